//! Leases of workers, and the rescue of their jobs.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{ClaimReceipt, Result};
use crate::job::{Budget, JobId, RequestId, WorkerId};

#[async_trait]
pub trait Leases: fmt::Debug + Send + Sync {
    /// Says that this worker process lives, and for how long (whole milliseconds) it counts as alive without another
    /// beat. The first beat makes it known.
    async fn beat(&self, worker: WorkerId, name: &str, lease: Duration) -> Result<()>;

    /// Says that this worker process ends and holds nothing any more.
    async fn retire(&self, worker: WorkerId) -> Result<()>;

    /// Up to `limit` running jobs, oldest claim first, whose worker has not beaten for its own lease or is
    /// not known at all. `lease` is that of workers of an older build, which do not say theirs.
    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>>;

    /// Up to `limit` running jobs of this worker, oldest claim first.
    async fn running_jobs(&self, worker: WorkerId, limit: usize) -> Result<Vec<LostJob>>;

    /// Forgets workers that have not beaten for `after` and for their own lease, and hold nothing, and whatever else is only
    /// needed to find jobs that run. Called every few seconds; returns the workers.
    async fn forget_workers(&self, after: Duration) -> Result<u64>;
}

#[derive(Debug, Clone)]
pub struct LostJob {
    pub id: JobId,
    pub request_id: RequestId,
    pub started_at: Timestamp,
    pub budget: Budget,
    /// What the lost worker was given. Without a binding nothing can have been sent.
    pub receipt: ClaimReceipt,
}
