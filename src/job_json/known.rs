//! A job with all that is known of it, as it is read from the store.

use serde::Serialize;

use super::{Fields, Past, whole_job_json};
use crate::{
    job::{JobId, Principal, State},
    store::{AttemptView, HistoryEntry, JobView, Result, SharedStore},
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
}

impl KnownJob {
    /// The job with this ID, or the one that was sent under it once more.
    pub async fn find(store: &SharedStore, principal: &Principal, id: JobId) -> Result<Option<Self>> {
        let mut job = store.job(principal, id).await?;
        if job.is_none()
            && let Some(first) = store.job_known_as(principal, id).await?
        {
            job = store.job(principal, first).await?;
        }
        match job {
            Some(job) => Self::of(store, principal, job).await.map(Some),
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
            job,
        })
    }

    /// A job that was enqueued a moment ago. As long as it waits for its first attempt, it is told without a past, which is not
    /// even looked for.
    pub async fn born(store: &SharedStore, principal: &Principal, job: JobView) -> Result<Self> {
        let waits = matches!(job.state, State::Scheduled | State::Available);
        if !waits || job.attempt > 0 || job.asked.is_some() {
            return Self::of(store, principal, job).await;
        }
        Ok(Self { job, attempts: Vec::new(), history: Vec::new(), known_as: Vec::new(), worker_name: None })
    }

    /// As JSON, without its input unless `fields` ask for it.
    pub fn json(&self, fields: Fields) -> impl Serialize + use<'_> {
        let past = Past { attempts: &self.attempts, history: &self.history, known_as: &self.known_as };
        whole_job_json(&self.job, past, self.worker_name.as_deref(), fields)
    }
}

async fn worker_name(store: &SharedStore, job: &JobView) -> Result<Option<String>> {
    let Some(id) = job.worker else { return Ok(None) };
    Ok(store.workers().await?.into_iter().find(|worker| worker.id == id).map(|worker| worker.name))
}
