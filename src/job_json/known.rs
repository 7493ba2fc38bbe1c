//! A job with all that is known of it, as it is read from the store.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::{Around, Fields, Past, whole_job_json};
use crate::{
    job::{JobId, JobSpec, Principal, State},
    store::{AttemptView, Beginning, HistoryEntry, JobView, Result, SharedStore},
};

/// A job with its past.
#[derive(Debug, Clone)]
pub struct KnownJob {
    pub job: JobView,
    pub attempts: Vec<AttemptView>,
    pub history: Vec<HistoryEntry>,
    /// Other IDs under which it was sent.
    pub known_as: Vec<JobId>,
    /// The name of the worker that runs it or ran it last, as long as that worker is known.
    pub worker_name: Option<String>,
    /// Since when its queue is paused, while it waits to run.
    pub queue_paused_since: Option<Timestamp>,
}

impl KnownJob {
    /// The job with this ID, or the one that was sent under it once more.
    pub async fn find(store: &SharedStore, principal: &Principal, id: JobId) -> Result<Option<Self>> {
        match Self::look(store, principal, id).await? {
            Some(job) => Self::of(store, principal, job).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same without its past.
    pub async fn look(store: &SharedStore, principal: &Principal, id: JobId) -> Result<Option<JobView>> {
        if let Some(job) = store.job(principal, id).await? {
            return Ok(Some(job));
        }
        match store.job_known_as(principal, id).await? {
            Some(first) => store.job(principal, first).await,
            None => Ok(None),
        }
    }

    pub async fn of(store: &SharedStore, principal: &Principal, job: JobView) -> Result<Self> {
        let id = job.spec.id;
        Ok(Self {
            attempts: store.attempts(principal, id).await?,
            history: store.history(principal, id).await?,
            known_as: store.known_as(principal, id).await?,
            worker_name: worker_name(store, &job).await?,
            queue_paused_since: queue_paused_since(store, &job).await?,
            job,
        })
    }

    /// A job that was enqueued a moment ago, and has no past.
    pub fn new(spec: Arc<JobSpec>, beginning: Beginning) -> Self {
        Self {
            job: JobView::new(spec, beginning),
            attempts: Vec::new(),
            history: Vec::new(),
            known_as: Vec::new(),
            worker_name: None,
            queue_paused_since: None,
        }
    }

    /// As JSON, without its input unless `fields` ask for it.
    pub fn json(&self, fields: Fields) -> impl Serialize + use<'_> {
        let past = Past { attempts: &self.attempts, history: &self.history, known_as: &self.known_as };
        let around =
            Around { worker_name: self.worker_name.as_deref(), queue_paused_since: self.queue_paused_since };
        whole_job_json(&self.job, past, around, fields)
    }
}

async fn worker_name(store: &SharedStore, job: &JobView) -> Result<Option<String>> {
    let Some(id) = job.worker else { return Ok(None) };
    Ok(store.workers().await?.into_iter().find(|worker| worker.id == id).map(|worker| worker.name))
}

async fn queue_paused_since(store: &SharedStore, job: &JobView) -> Result<Option<Timestamp>> {
    if !matches!(job.state, State::Scheduled | State::Available | State::Retryable) {
        return Ok(None);
    }
    let paused = store.paused_queues().await?;
    Ok(paused.into_iter().find(|paused| paused.queue == job.spec.queue).map(|paused| paused.pause.since))
}
