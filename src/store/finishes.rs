//! The ends of attempts.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::job::{Attempt, Ending, Fence, JobId, State};

/// The write that ends an attempt.
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
    ///   which applies only while the job is not frozen.
    /// * Otherwise [`Finished::Fenced`]: only the attempt record changes (the one of the same number
    ///   and request ID is replaced by the later knowledge, unless it already has a definite outcome,
    ///   which is any but `unknown` and `lost`).
    /// * A job that was asked to be cancelled while it ran becomes `cancelled` instead of
    ///   `retryable` or `held`; success and failure stand.
    /// * A snooze without an error keeps the error of the attempt before.
    /// * Final states get `finished_at`, and `reply_pending` where the app asked for a reply.
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError>;
}

/// The end of one attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finish {
    /// The job.
    pub id: JobId,
    /// The claim under which the attempt was made.
    pub fence: Fence,
    /// Who reports.
    pub by: By,
    /// The record of the attempt.
    pub attempt: Attempt,
    /// What should become of the job.
    pub ending: Ending,
}

/// Who ends an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The worker that made it.
    Holder,
    /// The rescue of a worker that stopped beating; `lease` is how old its beat must be.
    Rescuer {
        /// The age of the beat from which a worker is lost.
        lease: Duration,
    },
}

/// What became of a finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The job is in this state now.
    Applied {
        /// The new state.
        state: State,
        /// Whether the job had been rescued in the meantime.
        late: bool,
    },
    /// The caller no longer holds the job; only the attempt was recorded.
    Fenced,
}
