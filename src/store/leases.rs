//! Leases of workers, and the rescue of their jobs.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{
    ClaimReceipt, Result,
    read::{StoreRow, readable},
};
use crate::{
    job::{Budget, JobId, QueueName, RequestId, WorkerId},
    string_enum::string_enum,
};

/// What this build is called: its version, and the short name of its commit if the one who built it gave
/// `ERRAND_COMMIT` to the compiler.
pub fn build() -> String {
    let commit = option_env!("ERRAND_COMMIT").filter(|commit| !commit.trim().is_empty());
    let commit = commit.map(|commit| format!("+{}", commit.trim())).unwrap_or_default();
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

string_enum! {
    /// What one worker does for all.
    Task {
        /// Makes jobs of what apps enqueue by SQL.
        TakeIn = "take_in",
        PublishEvents = "publish_events",
        /// Sends events to the receivers of callbacks.
        SendCallbacks = "send_callbacks",
    }
}

#[async_trait]
pub trait Leases: fmt::Debug + Send + Sync {
    /// Says that this worker process lives, which [build] it is, and for how long (whole milliseconds) it counts as alive without another
    /// beat. The first beat makes it known.
    async fn beat(&self, worker: WorkerId, name: &str, lease: Duration) -> Result<()>;

    /// The workers that are known, with what they hold, in the order in which they began. A worker that has ended well is
    /// known no more, and one that was lost for some time after its last job was taken over.
    async fn workers(&self) -> Result<Vec<WorkerView>>;

    /// How many different builds the workers have that live. `lease` is that of workers of an older build, which do not
    /// say theirs; those that do not say their build are one.
    async fn live_builds(&self, lease: Duration) -> Result<u64>;

    /// Says that this worker process ends and holds nothing any more.
    async fn retire(&self, worker: WorkerId) -> Result<()>;

    /// Takes a task for this worker and this time, or takes it anew; `false` while another worker has it.
    async fn take_task(&self, task: Task, worker: WorkerId, lease: Duration) -> Result<bool>;

    /// Leaves a task to others, if this worker has it.
    async fn leave_task(&self, task: Task, worker: WorkerId) -> Result<()>;

    /// Up to `limit` running jobs, oldest claim first, whose worker has not beaten for its own lease or is
    /// not known at all. `lease` is that of workers of an older build, which do not say theirs.
    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>>;

    /// Up to `limit` running jobs of this worker, oldest claim first.
    async fn running_jobs(&self, worker: WorkerId, limit: usize) -> Result<Vec<LostJob>>;

    /// Forgets workers that have not beaten for `after` and for their own lease, and hold nothing, and whatever else is only
    /// needed to find jobs that run. Called every few seconds; returns the workers.
    async fn forget_workers(&self, after: Duration) -> Result<u64>;
}

/// A worker process as people read it.
#[derive(Debug, Clone)]
pub struct WorkerView {
    pub id: WorkerId,
    pub name: String,
    /// `None` for a build that does not say.
    pub build: Option<String>,
    pub started_at: Timestamp,
    pub beat_at: Timestamp,
    /// Since its last beat, by the store's clock.
    pub silent_for: Duration,
    /// For how long it counts as alive after a beat; `None` for a build that does not say.
    pub lease: Option<Duration>,
    /// How many jobs it holds, by queue.
    pub running: Vec<(QueueName, u64)>,
}

impl WorkerView {
    /// Reads workers, and how many jobs they run by queue.
    pub(super) fn all<R: StoreRow>(workers: &[R], running: &[R]) -> Result<Vec<Self>> {
        let mut all = readable(workers, |row| {
            Ok(Self {
                id: WorkerId(row.read("id")?),
                name: row.read("name")?,
                build: row.read("build")?,
                started_at: row.time("started_at")?,
                beat_at: row.time("beat_at")?,
                silent_for: row.span("silent_for")?,
                lease: row.millis("lease_ms")?,
                running: Vec::new(),
            })
        });
        for row in running {
            let id = WorkerId(row.read("worker_id")?);
            if let Some(worker) = all.iter_mut().find(|worker| worker.id == id) {
                worker.running.push((row.parse("queue")?, row.total("jobs")?));
            }
        }
        Ok(all)
    }
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
