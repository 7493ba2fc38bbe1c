//! Chance, drawn from the seed.

use std::{sync::Mutex, time::Duration};

/// A stream of random numbers. Each part of a world has its own, so that a change in one part leaves the
/// others as they were.
#[derive(Debug)]
pub(super) struct SeededRng(Mutex<fastrand::Rng>);

impl SeededRng {
    pub(super) fn new(seed: u64, part: &str) -> Self {
        let mixed =
            part.bytes().fold(seed, |mixed, byte| (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(Mutex::new(fastrand::Rng::with_seed(mixed)))
    }

    pub(super) fn chance(&self, share: f64) -> bool {
        self.0.lock().unwrap().f64() < share
    }

    /// A whole number below `end`.
    pub(super) fn below(&self, end: usize) -> usize {
        self.0.lock().unwrap().usize(..end)
    }

    pub(super) fn pick<T: Clone>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// A time, in milliseconds, between none and `most`.
    pub(super) fn up_to(&self, most: Duration) -> Duration {
        self.between(Duration::ZERO, most)
    }

    pub(super) fn between(&self, least: Duration, most: Duration) -> Duration {
        let (least, most) = (least.as_millis() as u64, most.as_millis() as u64);
        Duration::from_millis(self.0.lock().unwrap().u64(least..=most.max(least)))
    }
}
