//! How fast rows are removed: small statements, and pauses that are as long as they were slow.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{store::Result, telemetry::metrics};

/// How long a statement should take, so that what waits for the same rows, disk or connection waits for little.
const AIM: Duration = Duration::from_millis(15);

/// The rows of the first statement: few, because nobody knows yet how slow the store is.
const FIRST: usize = 50;

/// Fewer at a time would help nobody: where so few take long, it is the way to the store or its commit that does.
const LEAST: usize = 25;

/// No pause is longer, so that a store that stood still for once is not left alone for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How many rows the next statement takes, and how long to wait after it.
#[derive(Debug)]
pub(super) struct Pace {
    rows: usize,
    most: usize,
    /// How many times as long as a statement the pause after it is.
    pauses: u32,
    longest: Duration,
}

impl Pace {
    /// Takes at most `most` rows at a time.
    pub(super) fn new(most: usize, pauses: u32) -> Self {
        Self { rows: FIRST.min(most), most, pauses, longest: Duration::ZERO }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The longest step so far.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// Makes one step, which takes about [`Self::rows`] rows, and pauses.
    pub(super) async fn step<T>(&mut self, step: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let done = step.await?;
        let took = started.elapsed();
        metrics::PRUNE_STEP.record([], took.as_secs_f64());
        self.longest = self.longest.max(took);
        self.learn(took);
        sleep((took * self.pauses).min(LONGEST_PAUSE)).await;
        Ok(done)
    }

    fn learn(&mut self, took: Duration) {
        let rows = if took > AIM { self.rows / 2 } else { self.rows + self.rows / 4 + 1 };
        self.rows = rows.clamp(LEAST.min(self.most), self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_becomes_slow_gets_fewer_rows_at_a_time_and_more_when_it_is_fast_again() {
        let mut pace = Pace::new(200, 9);
        for _ in 0..20 {
            pace.learn(Duration::from_millis(1));
        }
        assert_eq!(pace.rows(), 200, "never more than it may");
        for _ in 0..20 {
            pace.learn(Duration::from_secs(1));
        }
        assert_eq!(
            pace.rows(),
            LEAST,
            "and never so few that a slow way to the store is all that is paid for"
        );
        for _ in 0..40 {
            pace.learn(Duration::from_millis(1));
        }
        assert_eq!(pace.rows(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_is_left_alone_in_proportion_to_what_a_step_took() {
        let mut pace = Pace::new(100, 9);
        let started = Instant::now();
        for _ in 0..10 {
            let step = async {
                sleep(Duration::from_millis(10)).await;
                Ok(())
            };
            pace.step(step).await.unwrap();
        }
        assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    }
}
