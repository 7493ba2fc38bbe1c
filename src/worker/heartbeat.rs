//! The heartbeat, and what the worker may conclude from it about its own lease.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{failure::chain, store::StoreErrorKind, sync::lock, telemetry::metrics};

/// When this worker last proved that it lives, by its own monotonic clock, which also runs while
/// the process is stopped.
#[derive(Debug)]
pub(super) struct LeaseClock {
    lease: Duration,
    last_beat: Mutex<Option<Instant>>,
    beaten: tokio::sync::Notify,
}

impl LeaseClock {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, last_beat: Mutex::new(None), beaten: tokio::sync::Notify::new() }
    }

    /// Time since the last beat that the store confirmed, counted from before it was sent.
    pub(super) fn age(&self) -> Duration {
        let last = *lock(&self.last_beat);
        last.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Claims stop at half the lease, so that nobody rescues a job that was claimed a moment ago.
    pub(super) fn may_claim(&self) -> bool {
        self.age() < self.lease / 2
    }

    /// Calls stop a little before others may take the job over.
    pub(super) fn may_start_call(&self) -> bool {
        self.age() < self.lease.mul_f64(0.8)
    }

    /// Waits until claims are allowed.
    pub(super) async fn wait_until_fit(&self) {
        loop {
            let beaten = self.beaten.notified();
            if self.may_claim() {
                return;
            }
            beaten.await;
        }
    }

    fn beat(&self, sent: Instant) {
        *lock(&self.last_beat) = Some(sent);
        self.beaten.notify_waiters();
    }
}

/// Beats until `end`. A beat that fails is repeated sooner than the next one is due.
pub(super) async fn run(shared: Arc<Shared>, end: CancellationToken) {
    let every = shared.options.heartbeat;
    let mut away = false;
    while !end.is_cancelled() {
        let sent = Instant::now();
        let beat = shared.deps.store.beat(shared.options.id, &shared.options.name);
        let wait = match tokio::time::timeout(every, beat).await {
            Ok(Ok(())) => {
                shared.lease.beat(sent);
                shared.health.beat(sent);
                if away {
                    away = false;
                    metrics::STORE_RECONNECTS.add(1);
                    tracing::info!("the store answers again");
                }
                every
            }
            failed => {
                metrics::STORE_REACHABLE.set(0.0);
                let why = match failed {
                    Ok(Err(error)) => {
                        metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                        chain(&error)
                    }
                    _ => {
                        metrics::STORE_ERRORS.add1(StoreErrorKind::Unavailable.as_str(), 1);
                        "no answer in time".to_owned()
                    }
                };
                if !away {
                    away = true;
                    tracing::warn!(
                        error = %why,
                        "the store does not take heartbeats; no more jobs are claimed"
                    );
                }
                (every / 5).max(Duration::from_millis(100))
            }
        };
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
