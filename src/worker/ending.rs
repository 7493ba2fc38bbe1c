//! What becomes of a job at the end of an attempt. Pure: the time that has passed and a random number are given.

use std::time::Duration;

use super::circuit_breaker::{Open, Scope};
use crate::{
    job::{
        AttemptEnd, AttemptOutcome, Binding, Ending, ErrorKind, JobError, NotReady, RetryPolicy, Spending,
    },
    tool::classify::{Classified, Next},
};

/// Why an attempt ends before its call.
#[derive(Debug)]
pub(super) enum Stopped {
    Ended(Box<AttemptEnd>),
    /// Another worker holds the job now; there is nothing to record.
    Fenced,
}

impl From<AttemptEnd> for Stopped {
    fn from(end: AttemptEnd) -> Self {
        Self::Ended(Box::new(end))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct EndingPolicy {
    pub(super) retry: RetryPolicy,
    pub(super) spending: Spending,
    /// How long after an unknown outcome it is looked up for the first time, if it is at all.
    pub(super) first_check: Option<Duration>,
    pub(super) random: f64,
}

/// Gives a job back of which nothing was sent, for no reason that lies in it, to be run again after a while.
pub(super) fn given_back(after: Duration) -> AttemptEnd {
    AttemptEnd::unanswered(AttemptOutcome::Interrupted, Ending::Snooze { after, error: None })
}

impl EndingPolicy {
    /// Nothing was sent, because something is missing.
    pub(super) fn not_ready(&self, not_ready: NotReady) -> AttemptEnd {
        let ending = match not_ready {
            NotReady::Stop(stop) => stop.into(),
            NotReady::Wait { error, retry_after } => self.snooze(error, retry_after),
        };
        AttemptEnd::unanswered(AttemptOutcome::NotSent, ending)
    }

    /// Nothing was sent, because an open circuit breaker keeps the call back.
    pub(super) fn kept_back(&self, open: Open) -> AttemptEnd {
        let Open { scope, after } = open;
        let whose = match scope {
            Scope::OwnerToolkit => "for this owner and toolkit",
            Scope::Toolkit => "of several owners to this toolkit",
        };
        let error = JobError::new(
            ErrorKind::NotSent,
            format!(
                "nothing was sent: the tool API did not answer the last calls {whose}; until it does, errand tries one \
                 call at a time and postpones the others, this one too"
            ),
        );
        self.not_ready(NotReady::Wait { error, retry_after: Some(after) })
    }

    /// Nothing was sent, because the tool API has to be asked about the job first and answers nobody.
    pub(super) fn api_is_away(&self) -> AttemptEnd {
        let message = "nothing was sent: the tool API does not answer, and errand has to ask it about the tool or the \
            account first; errand goes on looking for it, and postpones the job until then";
        let error = JobError::new(ErrorKind::NotSent, message);
        self.not_ready(NotReady::Wait { error, retry_after: None })
    }

    /// The call was made; `interrupted` by the shutdown, or answered.
    pub(super) fn called(&self, binding: &Binding, classified: Classified, interrupted: bool) -> AttemptEnd {
        let Classified { outcome, http_status, log_id, next, .. } = classified;
        let ending = match next {
            Next::Succeed { result } => Ending::Succeed { result },
            Next::Stop(stop) => stop.into(),
            Next::Throttled { error, retry_after } => self.snooze(error, retry_after),
            // An interruption is not the job's fault, so it spends no attempt.
            Next::Retry { error, .. } if interrupted => {
                Ending::Snooze { after: Duration::ZERO, error: Some(error) }
            }
            Next::Retry { error, retry_after } => self.retry(error, retry_after),
            Next::Unknown { error } if binding.effect.may_repeat() => self.retry(error, None),
            Next::Unknown { error } => Ending::undecided(self.first_check, error),
        };
        AttemptEnd { outcome, http_status, log_id, ending }
    }

    /// errand itself failed: the job is tried again within its budget, unless it is `once` and may have been called.
    pub(super) fn panicked(&self, binding: Option<&Binding>, is_sent: bool) -> AttemptEnd {
        let (outcome, what) = if is_sent {
            (AttemptOutcome::Unknown, "the call may have been made")
        } else {
            (AttemptOutcome::NotSent, "nothing was sent")
        };
        let message =
            format!("a bug in errand ended this attempt, and its log says where: report it; {what}");
        let error = JobError::new(ErrorKind::Internal, message);
        let may_repeat = binding.is_some_and(|binding| binding.effect.may_repeat());
        let ending = if is_sent && !may_repeat {
            Ending::undecided(self.first_check, error)
        } else {
            self.retry(error, None)
        };
        AttemptEnd::unanswered(outcome, ending)
    }

    fn retry(&self, error: JobError, retry_after: Option<Duration>) -> Ending {
        self.retry.retry(self.spending, error, retry_after, self.random)
    }

    fn snooze(&self, error: JobError, retry_after: Option<Duration>) -> Ending {
        self.retry.snooze(self.spending, error, retry_after, self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backoff::RECONNECT,
        job::{Budget, Effect, PinnedBy},
    };

    fn policy(first_check: Option<Duration>, spent: u32) -> EndingPolicy {
        let retry = RetryPolicy {
            intervals: RECONNECT,
            max_attempts: 3,
            max_retry_after: Duration::from_secs(60),
            max_postponed: Duration::from_secs(60),
        };
        let spending = Spending {
            budget: Budget::default(),
            attempt: 1,
            spent,
            age: Duration::ZERO,
            postponed_for: Duration::ZERO,
        };
        EndingPolicy { retry, spending, first_check, random: 0.5 }
    }

    fn binding(effect: Effect) -> Binding {
        Binding {
            toolkit: "t".into(),
            version: "20260101_00".into(),
            pinned_by: PinnedBy::Global,
            account: None,
            effect,
        }
    }

    fn called(effect: Effect, spent: u32, next: Next, interrupted: bool) -> Ending {
        let classified = Classified {
            outcome: AttemptOutcome::Unknown,
            http_status: None,
            log_id: None,
            deprecated: None,
            next,
        };
        policy(Some(Duration::from_secs(5)), spent).called(&binding(effect), classified, interrupted).ending
    }

    fn error() -> JobError {
        JobError::new(ErrorKind::UnknownOutcome, "no answer")
    }

    #[test]
    fn an_unknown_outcome_is_looked_up_for_once_and_repeated_within_the_budget_otherwise() {
        let unknown = || Next::Unknown { error: error() };
        for interrupted in [true, false] {
            assert!(matches!(called(Effect::Once, 0, unknown(), interrupted), Ending::Verify { .. }));
            assert!(matches!(called(Effect::Safe, 0, unknown(), interrupted), Ending::Retry { .. }));
            assert!(matches!(called(Effect::Safe, 2, unknown(), interrupted), Ending::Stop(_)));
        }
    }

    #[test]
    fn an_interruption_spends_no_attempt() {
        let retry = || Next::Retry { error: error(), retry_after: Some(Duration::from_secs(9)) };
        let interrupted = called(Effect::Safe, 2, retry(), true);
        assert!(matches!(interrupted, Ending::Snooze { after: Duration::ZERO, error: Some(_) }));
        assert!(matches!(called(Effect::Safe, 1, retry(), false), Ending::Retry { .. }));
        assert!(matches!(called(Effect::Safe, 2, retry(), false), Ending::Stop(_)));
    }

    #[test]
    fn a_panic_repeats_a_once_call_only_if_nothing_was_sent() {
        let panicked = |effect: Option<Effect>, is_sent| {
            policy(None, 0).panicked(effect.map(binding).as_ref(), is_sent).ending
        };
        assert!(matches!(panicked(Some(Effect::Once), false), Ending::Retry { .. }));
        assert!(matches!(panicked(None, false), Ending::Retry { .. }));
        assert!(matches!(panicked(Some(Effect::Idempotent), true), Ending::Retry { .. }));
        for effect in [Some(Effect::Once), None] {
            assert!(matches!(panicked(effect, true), Ending::Stop(_)), "a person decides");
        }
    }
}
