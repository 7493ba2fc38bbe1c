//! What all requests share.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{ledger::Ledger, mischief::rng, options::Options};

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) address: SocketAddr,
    pub(super) started: Instant,
    pub(super) misbehaves: AtomicBool,
    /// Requests so far.
    pub(super) requests: AtomicU64,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) work: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl State {
    pub(super) fn ledger<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        work(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn misbehaves(&self) -> bool {
        self.misbehaves.load(Ordering::Acquire)
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The random numbers of the n-th request about `subject`, if something goes wrong with it.
    pub(super) fn trouble(&self, subject: &str, nth: u64, rate: f64) -> Option<fastrand::Rng> {
        let mut rng = rng(self.options.seed, subject, nth);
        (self.misbehaves() && rng.f64() < rate).then_some(rng)
    }
}
