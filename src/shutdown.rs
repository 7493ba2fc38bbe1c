//! Asking a process to stop, and how long it may take. The token is passed down; there is no global one.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The two ways to end: in order, and at once.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop taking new work, finish what runs, then end.
    pub stop: CancellationToken,
    /// End now, which is within about a second. Nothing is lost, but calls are interrupted.
    pub abort: CancellationToken,
}

impl Shutdown {
    /// Cancels `stop` at the first SIGTERM or SIGINT and `abort` at the second.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::default();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            for token in [tokens.stop, tokens.abort] {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}

/// The least and the most of a budget that is kept back for what follows the running calls.
const RESERVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// When the parts of one shutdown end. All times follow from its begin and its budget, so they add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// Running calls are interrupted.
    pub drain_until: Instant,
    /// Nobody waits for the store any more.
    pub write_until: Instant,
    /// The process is gone.
    pub end: Instant,
}

impl Timeline {
    /// The times of a shutdown that begins `now`. A fifth of the budget, from one second to five, is kept back to
    /// interrupt, to write and to close; a budget of less than a second counts as one second.
    pub fn new(now: Instant, budget: Duration) -> Self {
        let (least, most) = RESERVE;
        let reserve = (budget / 5).clamp(least, most);
        let drain_until = now + budget.saturating_sub(reserve);
        Self { drain_until, write_until: drain_until + reserve / 2, end: drain_until + reserve }
    }

    /// The same shutdown as if its budget were used up `now`.
    #[must_use]
    pub fn cut_short(self, now: Instant) -> Self {
        let short = Self::new(now, Duration::ZERO);
        Self {
            drain_until: self.drain_until.min(short.drain_until),
            write_until: self.write_until.min(short.write_until),
            end: self.end.min(short.end),
        }
    }
}

/// The budget of a shutdown that has begun. Every wait of the shutdown goes through it.
#[derive(Debug)]
pub struct Countdown {
    times: Timeline,
    abort: CancellationToken,
    cut: bool,
}

impl Countdown {
    /// Begins to count; `abort` cuts the rest short.
    pub fn begin(budget: Duration, abort: CancellationToken) -> Self {
        Self { times: Timeline::new(Instant::now(), budget), abort, cut: false }
    }

    pub fn times(&self) -> Timeline {
        self.times
    }

    pub fn left(&self) -> Duration {
        self.times.end.saturating_duration_since(Instant::now())
    }

    /// Waits for `work` until the chosen time, which drops it (`None`). A second signal may bring the time nearer.
    pub async fn within<T>(
        &mut self,
        until: impl Fn(Timeline) -> Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.abort.cancelled(), if !self.cut => {
                    self.cut = true;
                    self.times = self.times.cut_short(Instant::now());
                }
                () = tokio::time::sleep_until(until(self.times)) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the budget is divided, it is used up and not exceeded.
        #[test]
        fn the_times_are_in_order_and_add_up_to_the_budget(budget_ms in 0u64..4_000_000, cut_ms in 0u64..4_000_000) {
            let (now, budget) = (Instant::now(), Duration::from_millis(budget_ms));
            let whole = Timeline::new(now, budget);
            prop_assert!(now <= whole.drain_until && whole.drain_until < whole.write_until && whole.write_until < whole.end);
            prop_assert_eq!(whole.end - now, budget.max(Duration::from_secs(1)));
            let reserve = whole.end - whole.drain_until;
            prop_assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&reserve));

            let at = now + Duration::from_millis(cut_ms);
            let cut = whole.cut_short(at);
            prop_assert!(cut.drain_until <= cut.write_until && cut.write_until <= cut.end);
            prop_assert!(cut.end <= whole.end && cut.end <= at + Duration::from_secs(1));
        }
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_work_or_at_its_time() {
        let begun = Instant::now();
        let mut countdown = Countdown::begin(Duration::from_secs(2), CancellationToken::new());
        assert_eq!(countdown.within(|times| times.drain_until, async { 7 }).await, Some(7));
        assert_eq!(countdown.within(|times| times.drain_until, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!(countdown.within(|times| times.end, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(2));
        assert_eq!(countdown.left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_every_later_wait_short() {
        let abort = CancellationToken::new();
        let begun = Instant::now();
        let mut countdown = Countdown::begin(Duration::from_secs(3_600), abort.clone());
        let signal = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            abort.cancel();
        };
        let (drained, ()) =
            tokio::join!(countdown.within(|times| times.drain_until, pending::<()>()), signal);
        assert_eq!(drained, None);
        assert_eq!(countdown.within(|times| times.end, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(1), "what is known is still written");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
