//! The ends of attempts.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Result;
use crate::job::{Attempt, Ending, Fence, JobId, State};

#[async_trait]
pub trait Finishes: fmt::Debug + Send + Sync {
    /// Ends attempts. What a holder reports about its attempt is recorded in every case (of a first
    /// attempt that succeeded, the times are the store's); what happens to the job is in [`Finished`],
    /// in the order of the batch.
    ///
    /// * Applied when the job is `running` under the given fence; `spent` grows by one where
    ///   [`Ending::spends_attempt`] says so.
    /// * A late result is applied too: the job was rescued (it is `retryable`, `scheduled`,
    ///   `available` or `held`) and its fence is unchanged, so nobody has claimed it since. It replaces
    ///   the record of the rescue and what the rescue charged to `spent`.
    /// * [`By::Rescuer`] is never late: it applies to `running` jobs of workers that are still lost, and
    ///   otherwise changes and records nothing. With the outcome `interrupted` it says that nothing was sent,
    ///   which applies only while the job is not bound.
    /// * Otherwise [`Finished::Fenced`]: only the attempt record changes (the one of the same number
    ///   and request ID is replaced by the later knowledge, unless it already has a definite outcome,
    ///   which is any but `unknown` and `lost`).
    /// * A job that was asked to be cancelled while it ran becomes `cancelled` instead of
    ///   `retryable` or `held`; success and failure stand.
    /// * A snooze without an error keeps the error of the attempt before.
    /// * After an attempt that was spent, the first due time is that of the retry, because this wait is wanted. A snooze
    ///   keeps the one that the job had, so that it can be seen how late it is.
    /// * Attempts in a row that ended in a snooze of the holder with the same outcome and kind of error are one record:
    ///   that of the last, which says how many they are and when the first started.
    /// * Final states get `finished_at`, and are given out as a reply where the app asked for one. A job that becomes
    ///   `held` owes its app an answer ([`Answers`](super::Answers)), in the same transaction; so does a claim.
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>>;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finish {
    pub id: JobId,
    pub fence: Fence,
    pub by: By,
    pub attempt: Attempt,
    pub ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Holder,
    /// The look-up of an unknown outcome, which tells what the worker would have been told. It differs from
    /// the holder in the history only.
    LookUp,
    /// The rescue of a worker that stopped beating.
    Rescuer {
        /// The age of the beat from which a worker is lost that does not say its own lease. Zero: the rescuer is this
        /// worker itself, and its beat does not matter.
        lease: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    Applied {
        state: State,
        /// Whether the job had been rescued in the meantime.
        late: bool,
    },
    /// The caller no longer holds the job; only the attempt was recorded.
    Fenced,
}

impl Finished {
    /// What the record of the attempt says about it: what the job became, and whether it was late.
    pub(super) fn recorded(self) -> (Option<State>, bool) {
        match self {
            Self::Applied { state, late } => (Some(state), late),
            Self::Fenced => (None, false),
        }
    }
}

/// Records an attempt, or what is known better about one that is recorded.
pub(super) const RECORD: &str = "insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version,
        {error}, started_at, finished_at, reported_by, ended_as, late, charged)
    values ({job_id}, {values attempt}, {ended_as}, {late}, {charged})
    on conflict (job_id, number) do update set {each outcome, http_status, log_id, version, error, started_at, finished_at,
        reported_by, ended_as, late, charged: @ = excluded.@}
    where attempts.request_id = excluded.request_id";

/// The record of an attempt, or that of a later one which stands for it, too; a first one that succeeded is in the job's
/// row.
pub(super) const RECORDED: &str =
    "select request_id, outcome, reported_by, ended_as, late, charged from attempts
    where job_id = {job_id} and number >= {number} and number - times < {number}
    union all
    select request_id, 'succeeded', 'holder', state, false, true from jobs
    where id = {job_id} and attempt = {number} and http_status is not null";
