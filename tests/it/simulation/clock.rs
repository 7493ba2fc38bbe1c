//! The clocks of a simulated world. Simulated time is tokio's paused one: it stands still while anything
//! happens, and jumps to the next timer when nothing does.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use errand::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::rng::SeededRng;

/// What calendars show when a world begins, where they show the truth.
const BEGINNING: Timestamp = Timestamp::constant(1_772_323_200, 0);

/// The furthest that a store's clock leaps in all, either way.
pub(super) const LEAPS: Duration = Duration::from_secs(60);

/// How a wall clock differs from the truth.
#[derive(Debug, Clone, Default)]
pub(super) struct Wrongness {
    skew: SignedDuration,
    leaps: Vec<(Duration, SignedDuration)>,
}

impl Wrongness {
    /// Wrong by up to an hour, and set right or wrong in leaps until `calm_at`.
    pub(super) fn draw(rng: &SeededRng, calm_at: Duration) -> Self {
        let signed = |most: Duration| {
            let length = SignedDuration::try_from(rng.up_to(most)).unwrap();
            if rng.chance(0.5) { length } else { -length }
        };
        let skew = signed(Duration::from_secs(3_600));
        let leap = || signed(LEAPS / 2);
        let leaps = [leap(), leap()];
        let leaps =
            leaps.into_iter().filter(|_| rng.chance(0.3)).map(|by| (rng.up_to(calm_at), by)).collect();
        Self { skew, leaps }
    }

    fn show(&self, elapsed: Duration) -> Timestamp {
        let leapt: SignedDuration =
            self.leaps.iter().filter(|(at, _)| *at <= elapsed).map(|(_, by)| *by).sum();
        BEGINNING + self.skew + leapt + elapsed
    }
}

/// The clock of a worker's host.
#[derive(Debug)]
pub(super) struct HostClock {
    pub(super) start: Instant,
    pub(super) wrongness: Wrongness,
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        self.wrongness.show(self.start.elapsed())
    }
}

/// The clock of the store, which runs on a thread of its own: there, simulated time is what it was when the
/// call began.
#[derive(Debug, Default)]
pub(super) struct StoreClock {
    elapsed_micros: AtomicU64,
    wrongness: Mutex<Wrongness>,
}

impl StoreClock {
    /// Begins another world.
    pub(super) fn restart(&self, wrongness: Wrongness) {
        self.set(Duration::ZERO);
        *self.wrongness.lock().unwrap() = wrongness;
    }

    pub(super) fn set(&self, elapsed: Duration) {
        self.elapsed_micros.store(u64::try_from(elapsed.as_micros()).unwrap(), Relaxed);
    }

    /// What it shows so long after the world began.
    pub(super) fn at(&self, elapsed: Duration) -> Timestamp {
        self.wrongness.lock().unwrap().show(elapsed)
    }
}

impl Clock for StoreClock {
    fn now(&self) -> Timestamp {
        self.at(Duration::from_micros(self.elapsed_micros.load(Relaxed)))
    }
}
