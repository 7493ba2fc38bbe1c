//! The legal moves of a job between its states: the specification by which tests judge a store, whose statements and
//! CHECK constraints repeat it. The product itself asks it only why a person's decision was refused.

use super::{Ending, Release, State};

#[derive(Debug, Clone)]
pub enum Transition {
    /// The relay puts a due or unclaimed job on the way to the queue.
    Publish,
    Claim,
    /// Admission refuses an unclaimed job; final.
    Refuse,
    /// Admission parks an unclaimed job.
    Park,
    /// The holder of the fence, or the rescue of a lost worker, ends the attempt.
    End(Ending),
    /// The result of a worker that was presumed dead; legal while nobody has claimed since.
    EndLate(Ending),
    Release(Release),
    /// Somebody calls it off. A running job is only marked, because its call may already count.
    Cancel,
    /// An operator runs a failed or cancelled job again.
    Restart,
    /// Somebody changes when, where or until when a job runs that waits. One that is due is due later, and the other way
    /// round, where that is changed; what else it waits for stays.
    Edit {
        /// Whether it is to run later than now, where that is changed.
        later: Option<bool>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {from} job cannot {action}")]
pub struct IllegalMove {
    pub from: State,
    /// The verb that was tried.
    pub action: &'static str,
}

impl Transition {
    /// The verb, for messages.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Publish => "be published",
            Self::Claim => "be claimed",
            Self::Refuse => "be refused",
            Self::Park => "be held",
            Self::End(_) => "be finished",
            Self::EndLate(_) => "be finished late",
            Self::Release(_) => "be released",
            Self::Cancel => "be cancelled",
            Self::Restart => "be retried",
            Self::Edit { later: Some(_) } => "get another `run_at`",
            Self::Edit { later: None } => "be changed",
        }
    }

    pub fn apply(&self, from: State) -> Result<State, IllegalMove> {
        use State::{Available, Cancelled, Failed, Held, Retryable, Running, Scheduled, Succeeded};
        let to = match (self, from) {
            (Self::Publish, Scheduled | Retryable | Available) => Available,
            (Self::Claim, Available) => Running,
            (Self::Refuse, Available) => Failed,
            (Self::Park, Available) => Held,
            (Self::End(ending), Running) => ending.state(),
            (Self::EndLate(ending), Scheduled | Available | Retryable | Held) => ending.state(),
            (Self::Release(Release::Retry), Held) => Available,
            (Self::Release(Release::Succeeded), Held) => Succeeded,
            (Self::Release(Release::Failed), Held) => Failed,
            (Self::Cancel, Scheduled | Available | Retryable | Held) => Cancelled,
            (Self::Cancel, Running) => Running,
            (Self::Restart, Failed | Cancelled | Retryable | Scheduled) => Available,
            (Self::Edit { later: Some(true) }, Scheduled | Available) => Scheduled,
            (Self::Edit { later: Some(false) }, Scheduled | Available) => Available,
            (Self::Edit { later: None }, Scheduled | Available | Held) => from,
            (Self::Edit { .. }, Retryable) => Retryable,
            _ => return Err(IllegalMove { from, action: self.action() }),
        };
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::job::{ErrorKind, HeldReason, JobError, Stop};

    fn endings() -> Vec<Ending> {
        let error = JobError::new(ErrorKind::ToolFailed, "x");
        vec![
            Ending::Succeed { result: RawValue::from_string("{}".into()).unwrap().into() },
            Stop::Fail { error: error.clone() }.into(),
            Ending::Retry { after: Duration::ZERO, error: error.clone() },
            Ending::Snooze { after: Duration::ZERO, error: None },
            Stop::Hold { reason: HeldReason::Credentials, error: error.clone() }.into(),
            Stop::Connect { toolkit: "github".into(), error: error.clone() }.into(),
            Ending::Verify { after: Duration::ZERO, error },
        ]
    }

    fn transitions() -> Vec<Transition> {
        let mut all = vec![
            Transition::Publish,
            Transition::Claim,
            Transition::Refuse,
            Transition::Park,
            Transition::Cancel,
            Transition::Restart,
        ];
        all.extend([None, Some(true), Some(false)].map(|later| Transition::Edit { later }));
        all.extend(Release::ALL.iter().copied().map(Transition::Release));
        all.extend(endings().into_iter().map(Transition::End));
        all.extend(endings().into_iter().map(Transition::EndLate));
        all
    }

    #[test]
    fn only_a_restart_leaves_a_final_state_and_success_is_for_ever() {
        for transition in transitions() {
            for from in State::ALL.iter().copied().filter(|state| state.is_final()) {
                let restart = matches!(transition, Transition::Restart) && from != State::Succeeded;
                assert_eq!(transition.apply(from).is_ok(), restart, "{transition:?} from {from}");
            }
        }
    }

    #[test]
    fn a_job_runs_only_after_a_claim() {
        for transition in transitions() {
            for from in State::ALL.iter().copied() {
                if transition.apply(from) == Ok(State::Running) && from != State::Running {
                    assert!(matches!(transition, Transition::Claim));
                }
            }
        }
    }

    proptest! {
        /// Whatever happened before, a job that is not final can still reach a final state.
        #[test]
        fn no_walk_ends_in_a_dead_end(walk in prop::collection::vec(0usize..64, 0..60)) {
            let all = transitions();
            let mut state = State::Available;
            for step in walk {
                if let Ok(next) = all[step % all.len()].apply(state) {
                    state = next;
                }
            }
            let exits = all.iter().filter(|t| t.apply(state).is_ok_and(State::is_final)).count();
            prop_assert!(state.is_final() || exits > 0);
        }
    }
}
