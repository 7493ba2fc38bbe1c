//! What a process does when a part of it ends that should not: it stops in order, so that whoever started it starts it
//! anew. A worker without its relay or its rescue would look alive while jobs stand still.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;

#[derive(Debug, Clone)]
pub struct Supervisor {
    stop: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
}

impl Supervisor {
    /// Cancels `stop` when a part ends too early.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, failed: Arc::default() }
    }

    /// Runs a part, which may end when `may_end` is cancelled. A panic ends it too.
    pub async fn watch(self, part: &'static str, may_end: CancellationToken, work: impl Future<Output = ()>) {
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        if ended.is_err() {
            metrics::PANICS.add([], 1);
        } else if may_end.is_cancelled() {
            return;
        }
        // The first one is the cause; others may follow from it.
        let _first = self.failed.set(part);
        tracing::error!(part, "a part of errand ended by itself, so the process stops in order");
        self.stop.cancel();
    }

    /// The part that ended too early, if one did.
    pub fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }
}
