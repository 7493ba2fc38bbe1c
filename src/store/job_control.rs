//! What people and scripts read and decide.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::StoreError;
use crate::job::{
    AttemptOutcome, Binding, HeldReason, IllegalMove, JobError, JobId, JobSpec, Owner, QueueName, Release,
    RequestId, State,
};

/// Questions and decisions about single jobs, from the command line and the HTTP API.
#[async_trait]
pub trait JobControl: fmt::Debug + Send + Sync {
    /// One job.
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError>;

    /// Its attempts, in order. The attempt of a running job is included, without an outcome.
    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError>;

    /// Jobs, newest first, without `result`.
    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError>;

    /// Calls a job off ([`crate::job::Transition::Cancel`]). A running job is marked only.
    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError>;

    /// Runs a failed or cancelled job again, with a fresh attempt budget, or makes a waiting one due
    /// now ([`crate::job::Transition::Restart`]). Its error is forgotten; what was frozen stays.
    async fn restart(&self, id: JobId) -> Result<Decided, StoreError>;

    /// Lets a held job go. The result of one that a person marks as succeeded is JSON `null`. One that
    /// waited for a connection forgets the account that was chosen for it, because the new connection
    /// is another account; an account that the job named itself stays.
    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError>;

    /// How many held jobs match.
    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError>;

    /// Lets up to `limit` matching jobs go, each as [`Self::release`] does, and returns how many. Jobs
    /// that somebody else decides about at the same time are left to them.
    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError>;

    /// Figures for the gauges.
    async fn census(&self) -> Result<Census, StoreError>;
}

/// The answer to a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// Done; the job is in this state now.
    Now(State),
    /// The job's state does not allow it.
    Illegal(IllegalMove),
    /// There is no such job.
    Unknown,
}

/// Which jobs to list. All given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<State>,
    /// Of this owner.
    pub owner: Option<Owner>,
    /// Of this tool.
    pub tool: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Which held jobs to let go. All given conditions must hold.
#[derive(Debug, Clone)]
pub struct HeldFilter {
    /// Held for this reason.
    pub reason: HeldReason,
    /// Of this owner.
    pub owner: Option<Owner>,
    /// Of this toolkit, as far as it is known: a job that was held before its tool was looked up has none.
    pub toolkit: Option<String>,
}

/// A job as people and apps read it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: State,
    /// Why it is held.
    pub held_reason: Option<HeldReason>,
    /// Pin, account and effect, once decided.
    pub binding: Option<Binding>,
    /// When the store first knew it.
    pub created_at: Timestamp,
    /// When it is next looked at, while it waits.
    pub due_at: Option<Timestamp>,
    /// When its call is next looked up in the execution log, while its outcome is unknown.
    pub check_at: Option<Timestamp>,
    /// When the last attempt was claimed.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// The tool's `data`.
    pub result: Option<Arc<RawValue>>,
    /// Why it is not, or not yet, succeeded.
    pub error: Option<JobError>,
    /// The log ID of the last attempt that had one.
    pub log_id: Option<String>,
    /// Attempts started.
    pub attempt: u32,
    /// Attempts charged.
    pub spent: u32,
    /// Somebody asked to cancel it while it ran.
    pub cancel_requested: bool,
}

/// One attempt as people read it.
#[derive(Debug, Clone)]
pub struct AttemptView {
    /// Counts from 1.
    pub number: u32,
    /// The `x-request-id`.
    pub request_id: RequestId,
    /// `None` while it runs.
    pub outcome: Option<AttemptOutcome>,
    /// The HTTP status.
    pub http_status: Option<u16>,
    /// The execution log ID.
    pub log_id: Option<String>,
    /// The toolkit version.
    pub version: Option<String>,
    /// Why it did not succeed.
    pub error: Option<JobError>,
    /// When it was claimed.
    pub started_at: Timestamp,
    /// When its outcome was known.
    pub finished_at: Option<Timestamp>,
}

/// Figures for the gauges. Counts of final states are left out: they only grow, and counting them
/// would read the whole table.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Jobs by queue and state, for states that are not final.
    pub jobs: Vec<(QueueName, State, u64)>,
    /// Held jobs by reason.
    pub held: Vec<(HeldReason, u64)>,
    /// For each queue, how long its oldest due job has waited.
    pub oldest_due: Vec<(QueueName, Duration)>,
}

impl Census {
    /// Adds the jobs of one queue and state; `oldest` is how long the oldest due one has waited.
    pub(super) fn add(&mut self, queue: QueueName, state: State, jobs: u64, oldest: Option<Duration>) {
        if let Some(oldest) = oldest {
            match self.oldest_due.iter_mut().find(|(name, _)| *name == queue) {
                Some((_, longest)) => *longest = oldest.max(*longest),
                None => self.oldest_due.push((queue.clone(), oldest)),
            }
        }
        self.jobs.push((queue, state, jobs));
    }

    /// Adds the held jobs of one queue and reason.
    pub(super) fn add_held(&mut self, queue: QueueName, reason: HeldReason, jobs: u64) {
        match self.held.iter_mut().find(|(held, _)| *held == reason) {
            Some((_, all)) => *all += jobs,
            None => self.held.push((reason, jobs)),
        }
        match self.jobs.iter_mut().find(|(name, state, _)| *name == queue && *state == State::Held) {
            Some((_, _, all)) => *all += jobs,
            None => self.jobs.push((queue, State::Held, jobs)),
        }
    }
}
