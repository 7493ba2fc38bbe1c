//! What all handlers share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{
    accounts::Accounts,
    clock::Clock,
    fault::Faults,
    ledger::Ledger,
    limiter::Limiter,
    logs::Logs,
    seeded::{draw, token},
    world::World,
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) seed: u64,
    pub(super) clock: Clock,
    pub(super) accounts: Accounts,
    pub(super) limiter: Limiter,
    pub(super) faults: Faults,
    pub(super) ledger: Ledger,
    pub(super) logs: Logs,
    /// Cancelled when the server stops; whatever waits, waits for it too.
    pub(super) stopped: CancellationToken,
    /// Differs from run to run, so that IDs of one run mean nothing in the next.
    run: u64,
    serial: AtomicU64,
}

pub(super) type Shared = Arc<State>;

impl State {
    pub(super) fn new(world: World, seed: u64) -> Self {
        Self {
            seed,
            clock: Clock::default(),
            accounts: Accounts::new(&world),
            limiter: Limiter::new(world.rate_limit.clone()),
            faults: Faults::new(world.faults.clone()),
            ledger: Ledger::default(),
            logs: Logs::new(seed, world.logs.clone()),
            stopped: CancellationToken::new(),
            run: fastrand::u64(..),
            serial: AtomicU64::new(0),
            world,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A number that is given out once.
    pub(super) fn unique(&self) -> u64 {
        draw(self.run, self.serial.fetch_add(1, Ordering::Relaxed), 0)
    }

    /// An ID like those of the API: a prefix and a few characters without meaning.
    pub(super) fn new_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}", token(self.unique()))
    }
}
