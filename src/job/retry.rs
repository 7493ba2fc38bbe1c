//! When to try again, and when to give up. Pure: callers pass ages and a random number.

use std::time::Duration;

use super::{Ending, JobError, Stop};
use crate::{backoff::Intervals, bounds::MAX_ATTEMPTS};

/// The rules that hold for jobs which do not bring their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    pub intervals: Intervals,
    /// Attempt budget of a job that names neither a count nor an age.
    pub max_attempts: u32,
    /// Longest `Retry-After` that is believed; longer ones are cut to this.
    pub max_retry_after: Duration,
    /// How long a job without an age of its own may be postponed, attempt after attempt, before it fails.
    pub max_postponed: Duration,
}

/// What a job may spend. Whichever limit is met first ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    pub max_attempts: Option<u32>,
    /// Time since the job was created.
    pub max_age: Option<Duration>,
}

/// What a job has used of its budget when an attempt ends.
#[derive(Debug, Clone, Copy)]
pub struct Spending {
    pub budget: Budget,
    pub attempt: u32,
    /// Attempts charged before this one.
    pub spent: u32,
    pub age: Duration,
    /// Time since the first of the postponements that the attempts before this one ended in, one after the other. Zero
    /// where the last of them ended otherwise.
    pub postponed_for: Duration,
}

impl RetryPolicy {
    /// Charges the attempt, and ends it in another attempt or, when the budget is spent, in failure. `random` is
    /// uniform in `[0, 1)`.
    pub fn retry(
        &self,
        spending: Spending,
        error: JobError,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Ending {
        match self.next(spending, retry_after, random) {
            Some(after) => Ending::Retry { after, error },
            None => Stop::Fail { error }.into(),
        }
    }

    /// Postpones the job without charging the attempt, or fails it when it would grow too old or has been postponed
    /// for too long. How old a job may be that names no age does not matter: it may have waited for its time, for a
    /// connection or for a person. The attempt's number makes waits grow although nothing is charged.
    pub fn snooze(
        &self,
        spending: Spending,
        error: JobError,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Ending {
        let wait = self.wait(spending.attempt, retry_after, random);
        let (passed, limit, setting) = match spending.budget.max_age {
            Some(max_age) => (spending.age, max_age, "max_age_ms"),
            None => (spending.postponed_for, self.max_postponed, "retry.max_throttled_secs"),
        };
        if passed.saturating_add(wait) <= limit {
            return Ending::Snooze { after: wait, error: Some(error) };
        }
        // What it says is going to happen does not happen any more.
        let message = format!(
            "given up, because `{setting}` does not allow another wait; before that: {}",
            error.message()
        );
        Stop::Fail { error: error.with_message(message) }.into()
    }

    /// The wait before the next attempt, or `None` when this one spends the budget.
    pub fn next(&self, spending: Spending, retry_after: Option<Duration>, random: f64) -> Option<Duration> {
        let Spending { budget, spent, age, .. } = spending;
        let spent = spent.saturating_add(1);
        let attempts = match (budget.max_attempts, budget.max_age) {
            (Some(count), _) => count,
            (None, Some(_)) => MAX_ATTEMPTS,
            (None, None) => self.max_attempts,
        };
        if spent >= attempts {
            return None;
        }
        let wait = self.wait(spent, retry_after, random);
        match budget.max_age {
            Some(limit) if age.saturating_add(wait) > limit => None,
            _ => Some(wait),
        }
    }

    /// A server's `Retry-After` wins over our own interval. It is cut to the believable maximum and
    /// spread upwards only, because coming back early is what the server asked us not to do.
    fn wait(&self, step: u32, retry_after: Option<Duration>, random: f64) -> Duration {
        match retry_after {
            Some(asked) => {
                asked.min(self.max_retry_after).mul_f64(1.0 + self.intervals.jitter * random.clamp(0.0, 1.0))
            }
            None => self.intervals.wait(step, random),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::ErrorKind;

    const POLICY: RetryPolicy = RetryPolicy {
        intervals: Intervals {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(600),
            multiplier: 2.0,
            jitter: 0.2,
        },
        max_attempts: 5,
        max_retry_after: Duration::from_secs(3600),
        max_postponed: Duration::from_secs(86_400),
    };

    /// What is used of this budget when the attempt ends that is charged as number `charged`.
    fn spending(budget: Budget, charged: u32, age: Duration) -> Spending {
        Spending {
            budget,
            attempt: charged,
            spent: charged.saturating_sub(1),
            age,
            postponed_for: Duration::ZERO,
        }
    }

    #[test]
    fn a_job_may_be_postponed_for_so_long_however_old_it_is() {
        let snooze = |budget, age, postponed_for| {
            let spending = Spending { postponed_for, ..spending(budget, 1, age) };
            POLICY.snooze(spending, JobError::new(ErrorKind::Throttled, ""), None, 0.5)
        };
        let (none, year) = (Budget::default(), 365 * POLICY.max_postponed);
        assert!(matches!(snooze(none, year, Duration::ZERO), Ending::Snooze { .. }));
        assert!(matches!(
            snooze(none, year, POLICY.max_postponed - Duration::from_secs(1)),
            Ending::Snooze { .. }
        ));
        assert!(matches!(snooze(none, year, POLICY.max_postponed), Ending::Stop(Stop::Fail { .. })));
        let hour = Duration::from_secs(3_600);
        let aged = Budget { max_age: Some(hour), ..none };
        let Ending::Stop(Stop::Fail { error }) = snooze(aged, hour, Duration::ZERO) else {
            panic!("its own age counts")
        };
        assert!(
            error.message().contains("`max_age_ms` does not allow another wait; before that: "),
            "{error:?}"
        );
        let old = Budget { max_age: Some(year), ..none };
        assert!(matches!(snooze(old, hour, POLICY.max_postponed), Ending::Snooze { .. }), "and nothing else");
    }

    #[test]
    fn a_count_budget_allows_exactly_that_many_attempts() {
        let budget = Budget { max_attempts: Some(3), max_age: None };
        let next = |charged: &u32| POLICY.next(spending(budget, *charged, Duration::ZERO), None, 0.5);
        let allowed = (1..10).take_while(|charged| next(charged).is_some());
        assert_eq!(allowed.count(), 2, "two retries after the first attempt make three");
    }

    #[test]
    fn an_age_budget_replaces_the_default_count() {
        let budget = Budget { max_attempts: None, max_age: Some(Duration::from_secs(3600)) };
        assert!(POLICY.next(spending(budget, 50, Duration::from_secs(1)), None, 0.5).is_some());
        assert!(POLICY.next(spending(budget, 1, Duration::from_secs(3600)), None, 0.5).is_none());
    }

    proptest! {
        #[test]
        fn the_servers_word_is_never_undercut(secs in 0u64..100_000, random in 0.0f64..1.0, spent in 1u32..5) {
            let asked = Duration::from_secs(secs);
            let spending = spending(Budget::default(), spent.min(4), Duration::ZERO);
            let wait = POLICY.next(spending, Some(asked), random).unwrap();
            prop_assert!(wait >= asked.min(POLICY.max_retry_after));
            prop_assert!(wait <= POLICY.max_retry_after.mul_f64(1.2));
        }

        #[test]
        fn no_input_overflows(spent in any::<u32>(), age in any::<u64>(), after in any::<u64>(), random in 0.0f64..1.0) {
            let budget = Budget { max_attempts: None, max_age: Some(Duration::from_secs(u64::MAX)) };
            let spending = Spending {
                attempt: spent,
                postponed_for: Duration::from_secs(after),
                ..spending(budget, spent, Duration::from_secs(age))
            };
            let _wait = POLICY.next(spending, Some(Duration::from_secs(after)), random);
            let _ending = POLICY.snooze(spending, JobError::new(ErrorKind::Throttled, ""), None, random);
        }
    }
}
