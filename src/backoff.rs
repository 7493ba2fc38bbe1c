//! Exponential intervals with jitter. The randomness of the `backoff` crate is switched off: callers pass the random
//! number, which keeps retry arithmetic pure and testable.

use std::time::Duration;

use ::backoff::{SystemClock, backoff::Backoff as _, exponential::ExponentialBackoff};

/// After this many doublings every sensible interval has reached its ceiling.
const MAX_STEPS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intervals {
    /// The first interval, before jitter.
    pub initial: Duration,
    /// The ceiling of an interval, before jitter.
    pub max: Duration,
    /// Growth per step, at least 1.
    pub multiplier: f64,
    /// Jitter as a share of the interval, 0 to 1: 0.2 spreads an interval over 80 % to 120 % of itself.
    pub jitter: f64,
}

impl Intervals {
    /// Intervals that double from `initial` to `max`, without jitter.
    pub const fn doubling(initial: Duration, max: Duration) -> Self {
        Self { initial, max, multiplier: 2.0, jitter: 0.0 }
    }

    /// The same intervals, spread by this share of each.
    #[must_use]
    pub const fn with_jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// The wait before retry number `step` (1 is the first). `random` is uniform in `[0, 1)`.
    pub fn wait(&self, step: u32, random: f64) -> Duration {
        let spread = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        self.interval(step).mul_f64(spread)
    }

    /// The interval before retry number `step`, before jitter.
    pub fn interval(&self, step: u32) -> Duration {
        let mut exponential = ExponentialBackoff::<SystemClock> {
            current_interval: self.initial,
            initial_interval: self.initial,
            randomization_factor: 0.0,
            multiplier: self.multiplier.max(1.0),
            max_interval: self.max,
            max_elapsed_time: None,
            ..Default::default()
        };
        let mut interval = self.initial;
        for _ in 0..step.clamp(1, MAX_STEPS) {
            interval = exponential.next_backoff().unwrap_or(self.max);
        }
        interval.min(self.max)
    }

    /// The wait of those who stand behind retry number `step`, which may be made `until_retry` from now: not less
    /// than half its interval, and up to half an interval more, so that they do not come back together.
    pub fn wait_behind(&self, step: u32, until_retry: Duration, random: f64) -> Duration {
        let half = Self { jitter: 0.0, ..*self }.wait(step, random) / 2;
        until_retry.max(half) + half.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Intervals for reconnecting to a service: from a quarter of a second to 15 seconds.
pub const RECONNECT: Intervals =
    Intervals::doubling(Duration::from_millis(250), Duration::from_secs(15)).with_jitter(0.3);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn intervals_double_up_to_their_ceiling() {
        let secs = Duration::from_secs;
        let intervals = Intervals::doubling(secs(2), secs(30));
        let waits = [1, 2, 3, 4, 5, 6, u32::MAX].map(|step| intervals.wait(step, 0.9));
        assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30].map(secs));
        assert_eq!(intervals.with_jitter(0.5).wait(2, 0.75), secs(5));
        assert_eq!(
            Intervals::doubling(secs(5), secs(3)).interval(1),
            secs(3),
            "the ceiling holds from the start"
        );
        assert_eq!(Intervals::doubling(secs(0), secs(3)).interval(9), secs(0));
    }

    proptest! {
        #[test]
        fn waits_stay_within_the_jittered_ceiling(step in 0u32..5_000, random in 0.0f64..1.0) {
            let wait = RECONNECT.wait(step, random);
            prop_assert!(wait <= RECONNECT.max.mul_f64(1.3 + 1e-9));
            prop_assert!(wait >= RECONNECT.initial.mul_f64(0.7 - 1e-9));
        }

        #[test]
        fn nobody_behind_a_retry_comes_back_before_it_or_late(
            step in 0u32..100, until_ms in 0u64..20_000, random in 0.0f64..1.0
        ) {
            let until_retry = Duration::from_millis(until_ms);
            let wait = RECONNECT.wait_behind(step, until_retry, random);
            let interval = Intervals { jitter: 0.0, ..RECONNECT }.wait(step, random);
            prop_assert!(wait >= until_retry && wait >= interval / 2);
            prop_assert!(wait <= until_retry.max(interval / 2) + interval / 2);
        }

        #[test]
        fn waits_never_shrink_with_the_step(step in 1u32..100, random in 0.0f64..1.0) {
            prop_assert!(RECONNECT.wait(step + 1, random) >= RECONNECT.wait(step, random));
        }
    }
}
