//! What a worker may conclude from its heartbeats about its own lease.

use std::{sync::Mutex, time::Duration};

use tokio::{sync::Notify, time::Instant};

use crate::sync::lock;

/// When this worker last proved that it lives, by a monotonic clock that also runs while the process is stopped.
#[derive(Debug)]
pub(super) struct LeaseClock {
    lease: Duration,
    last_beat: Mutex<Option<Instant>>,
    beaten: Notify,
}

impl LeaseClock {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, last_beat: Mutex::new(None), beaten: Notify::new() }
    }

    /// Calls stop a little before others may take the job over.
    pub(super) fn may_start_call(&self) -> bool {
        self.age() < self.lease.mul_f64(0.8)
    }

    /// Waits until claims are allowed: for half the lease, so that nobody rescues a job that was claimed a moment ago.
    pub(super) async fn wait_until_fit(&self) {
        loop {
            let beaten = self.beaten.notified();
            if self.age() < self.lease / 2 {
                return;
            }
            beaten.await;
        }
    }

    /// Notes a heartbeat that the store confirmed, by the time before it was sent.
    pub(super) fn beat(&self, sent: Instant) {
        *lock(&self.last_beat) = Some(sent);
        self.beaten.notify_waiters();
    }

    fn age(&self) -> Duration {
        lock(&self.last_beat).map_or(Duration::MAX, |at| at.elapsed())
    }
}
