//! Publications: due and unclaimed rows to the queue, and replies to apps.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{JobView, Result};
use crate::job::{JobId, JobSpec, State};

/// What the relay reads and writes. Rows that others have locked are left out: what is noted about them is lost, so that
/// they are offered again when they would have been without it.
#[async_trait]
pub trait Publications: fmt::Debug + Send + Sync {
    /// Takes up to `limit` jobs that are due: `scheduled` and `retryable` ones whose time has come,
    /// and `available` ones that nobody claimed. Each becomes `available` and is looked at again
    /// after `unclaimed_after`, doubled with every time it was published without being claimed, up
    /// to `MAX_UNCLAIMED_WAIT`. Most urgent first: by priority, then by due time. Arguments and texts together have up to
    /// [`MAX_BATCH_BYTES`](crate::bounds::MAX_BATCH_BYTES), unless the first job alone has more; the others stay due.
    /// The first due time of a job stays, here and in all other methods.
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>>;

    /// Makes jobs that could not be published due again after `after`; the failed publication does
    /// not count.
    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<()>;

    /// Makes every `available` job due now. For queues that lose their messages with the process.
    async fn republish_all(&self) -> Result<u64>;

    /// How long until [`Self::take_due`] would find something, or `None` when nothing waits.
    async fn next_due_in(&self) -> Result<Option<Duration>>;

    /// Takes up to `limit` finished jobs with a `reply_to` to which the result was not published yet; each is offered
    /// again after `again_after` unless [`Self::replied`] says that it is done. What they contain is bounded in bytes as
    /// it is for [`Self::take_due`].
    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<JobView>>;

    /// Notes that replies are done with: published, or never to be published.
    async fn replied(&self, ids: &[JobId]) -> Result<()>;

    /// Makes replies that could not be published due again after `after`, which does not count as a refusal.
    async fn defer_replies(&self, ids: &[JobId], after: Duration) -> Result<()>;

    /// Notes that replies were refused. Each is offered again after a wait that is `first` and doubles with every refusal
    /// up to `MAX_UNCLAIMED_WAIT`. One that was refused `most` times is given up: it is done with, its result stays with
    /// the job, and the answer names it.
    async fn put_off_replies(&self, ids: &[JobId], first: Duration, most: u32) -> Result<Vec<JobId>>;

    /// Wakes `wake` within moments of every write of another process to the store, until it is dropped or there is an
    /// error. A store to which that would cost more than nearly nothing wakes nobody: there a broker brings the jobs.
    async fn watch(&self, _wake: &Notify) -> Result<()> {
        std::future::pending().await
    }
}

/// The longest time between two publications of a job that nobody claims.
pub const MAX_UNCLAIMED_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub struct Due {
    pub spec: Arc<JobSpec>,
    pub was: State,
}
