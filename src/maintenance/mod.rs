//! What keeps the store in order beside the flow of jobs.

pub mod actions;
pub mod audit;
pub mod batches;
pub mod connections;
pub mod erase;
pub mod gauges;
pub mod key_file;
pub mod ledger;
mod pace;
pub mod policies;
pub mod prune;
mod quiet;
pub mod rescue;
pub mod tool_api;
pub mod verify;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::WorkerId,
    store::{SharedStore, StoreError},
    telemetry::metrics,
};

/// Whose turn it is to do what only one worker needs to do: that of the living one that started first.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    pub worker: WorkerId,
    /// The age of a heartbeat from which a worker is lost that does not say its own.
    pub lease: Duration,
}

impl Turns {
    /// Whether it is this worker's. For a moment two may hold themselves for it, which what they do must bear.
    async fn is_mine(self, store: &SharedStore) -> Result<bool, StoreError> {
        Ok(store.eldest_worker(self.lease).await? == Some(self.worker))
    }
}

/// Repeats `round`, which returns how many jobs it took, until `stop`: at once while it takes a whole `batch`, otherwise
/// after about `poll`, because processes that started together need not look together. `task` names it in the log.
async fn rounds<F: Future<Output = Result<usize, StoreError>>>(
    stop: &CancellationToken,
    poll: Duration,
    batch: usize,
    task: &'static str,
    round: impl Fn() -> F,
) {
    let mut failures = 0;
    while !stop.is_cancelled() {
        let wait = match round().await {
            Ok(taken) => {
                failures = 0;
                if taken == batch {
                    continue;
                }
                poll.mul_f64(0.75 + fastrand::f64() / 2.0)
            }
            Err(error) => {
                failures += 1;
                metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                if failures == 1 {
                    tracing::warn!(error = %chain(&error), "{task} fails; trying again");
                }
                RECONNECT.wait(failures, fastrand::f64())
            }
        };
        stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}
