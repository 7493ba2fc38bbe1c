//! Leases of tasks: what one worker does for all that share a store, many times a second.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    job::WorkerId,
    store::{SharedStore, StoreError, Task},
};

/// For how long a task is taken, and how often its holder takes it anew.
const LEASE: Duration = Duration::from_secs(10);
const RENEWED_EVERY: Duration = Duration::from_secs(3);

/// How often others ask for it.
pub(crate) const ASKED_EVERY: Duration = Duration::from_secs(2);

/// How long leaving a task may take. Where it takes longer, others have it when the lease is over.
const LEAVING: Duration = Duration::from_secs(2);

/// A task that a worker does while it holds its lease. Only workers that can do it ask for it, whatever their build and settings.
#[derive(Debug)]
pub(crate) struct TaskLease {
    store: SharedStore,
    task: Task,
    worker: WorkerId,
    /// Until when it need not be taken anew; `None` while another worker has it.
    renewed_until: Option<Instant>,
}

impl TaskLease {
    pub(crate) fn new(store: SharedStore, task: Task, worker: WorkerId) -> Self {
        Self { store, task, worker, renewed_until: None }
    }

    /// Whether this worker has the task, for now. For a moment another one may believe so too, which what they do must bear.
    pub(crate) async fn is_held(&mut self) -> Result<bool, StoreError> {
        let now = Instant::now();
        if self.renewed_until.is_none_or(|until| until <= now) {
            self.renewed_until = None;
            let is_ours = self.store.take_task(self.task, self.worker, LEASE).await?;
            self.renewed_until = is_ours.then_some(now + RENEWED_EVERY);
        }
        Ok(self.renewed_until.is_some())
    }

    /// Leaves the task to others.
    pub(crate) async fn leave(&mut self) {
        if self.renewed_until.take().is_some() {
            // A store that is away says so elsewhere.
            drop(timeout(LEAVING, self.store.leave_task(self.task, self.worker)).await);
        }
    }
}
