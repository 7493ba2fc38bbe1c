//! The end of a round: everything rests that nobody but a person moves.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;
use errand::{
    job::{JobId, Principal, State},
    store::{BatchView, JobFilter, JobView, SharedStore, StoreError, all_jobs},
};
use tokio::time::{Instant, sleep};

use super::load::Accepted;

/// How long everything may take to come to rest after the fault. Waits for retries, rescue and the log are
/// short in a round; the rest is for a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How often the store is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How many batches are read together.
const PAGE: usize = 1_000;

/// All jobs and batches there are, at rest or after [`PATIENCE`].
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) jobs: HashMap<JobId, JobView>,
    pub(super) batches: Vec<BatchView>,
}

impl Rest {
    /// Waits until every job and every batch rests.
    ///
    /// # Errors
    /// The store does not answer for too long.
    pub(super) async fn of(store: &SharedStore, accepted: &Accepted) -> Result<Self> {
        let begin = Instant::now();
        loop {
            match Self::now(store, accepted).await {
                Ok(rest) => {
                    let all_there = accepted.keys().all(|id| rest.jobs.contains_key(id));
                    if (all_there && rest.is_complete()) || begin.elapsed() > PATIENCE {
                        return Ok(rest);
                    }
                }
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
                // Faults may have left broken connections behind, which are noticed now.
                Err(_) => {}
            }
            sleep(LOOK).await;
        }
    }

    async fn now(store: &SharedStore, accepted: &Accepted) -> Result<Self, StoreError> {
        let most = accepted.len() * 2 + 1_000;
        let jobs = all_jobs(&**store, &Principal::Operator, &JobFilter::default(), most).await?;
        let jobs = jobs.into_iter().map(|job| (job.spec.id, job)).collect();
        let mut batches: Vec<BatchView> = Vec::new();
        loop {
            let before = batches.last().map(BatchView::place);
            let page = store.batches(&Principal::Operator, before, PAGE).await?;
            let is_last = page.len() < PAGE;
            batches.extend(page);
            if is_last {
                return Ok(Self { jobs, batches });
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.jobs.values().all(rests) && !self.batches.iter().any(BatchView::goes_on)
    }

    /// What has ended or is held, and the type of the last event that tells of it.
    pub(super) fn ends(&self) -> Vec<(String, String)> {
        let jobs = self.jobs.values().filter(|job| rests(job));
        let jobs = jobs.map(|job| (format!("job {}", job.spec.id), format!("job.{}", job.state)));
        let batches = self.batches.iter().filter(|batch| batch.completed_at.is_some());
        let batches = batches.map(|batch| (format!("batch {}", batch.id), "batch.completed".to_owned()));
        jobs.chain(batches).collect()
    }
}

/// Whether nothing but a person moves a job. One that is held while errand looks for its call is under way.
pub(super) fn rests(job: &JobView) -> bool {
    job.state.is_final() || (job.state == State::Held && job.check_at.is_none())
}
