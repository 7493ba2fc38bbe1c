//! Actions: what a decision about many jobs means for each of them, and what is told of it before and after.
//! [`maintenance::actions`](crate::maintenance::actions) carries them out.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{HeldReason, IllegalMove, Principal, Release, State, Transition},
    store::{ActionDecision, Glance, JobFilter, Looked, Preview, PreviewKind, SharedStore, StoreError},
};

mod json;

pub use json::ActionJson;

/// How long an action waits for its confirmation.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(3_600);

/// The looks of a bounded preview, and how long it may take.
const PREVIEW_LOOKS: usize = 20;
const PREVIEW_TIME: Duration = Duration::from_secs(3);

/// How far a preview looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// To the end, however long that takes.
    Whole,
    /// At twenty times as many jobs as one look of a list reads, and for three seconds at most, for somebody who waits.
    Bounded,
}

/// A decision that makes no sense for what a filter asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonsense {
    /// Jobs in this state do not allow it.
    Illegal(IllegalMove),
    /// Jobs that are held for this reason have not run, so that nobody knows how they ended.
    HasNotRun(HeldReason),
    /// Jobs in this state are not final, so that they cannot be removed.
    NotFinal(State),
}

/// What a filter means for a decision, where it leaves something open: failed jobs are retried, and those that wait for a
/// connection released.
///
/// # Errors
/// The decision makes no sense for what the filter asks for.
pub fn narrow(decision: ActionDecision, mut filter: JobFilter) -> Result<JobFilter, Nonsense> {
    match decision {
        ActionDecision::Cancel | ActionDecision::Prune => {}
        ActionDecision::Retry => filter.state = filter.state.or(Some(State::Failed)),
        ActionDecision::Release(how) => {
            filter.state = filter.state.or(Some(State::Held));
            let reason =
                if filter.outcome_unknown { HeldReason::UnknownOutcome } else { HeldReason::Connection };
            let reason = *filter.held_reason.get_or_insert(reason);
            if !reason.may_have_run() && how != Release::Retry {
                return Err(Nonsense::HasNotRun(reason));
            }
        }
    }
    let Some(state) = filter.state else { return Ok(filter) };
    match transition(decision).map(|transition| transition.apply(state)) {
        Some(Err(illegal)) => Err(Nonsense::Illegal(illegal)),
        None if !state.is_final() => Err(Nonsense::NotFinal(state)),
        Some(Ok(_)) | None => Ok(filter),
    }
}

/// Whether the decision may change this job, as it was seen.
pub fn concerns(decision: ActionDecision, job: &Glance) -> bool {
    transition(decision)
        .map_or_else(|| job.state.is_final(), |transition| transition.apply(job.state).is_ok())
}

/// `None` where the job is removed.
fn transition(decision: ActionDecision) -> Option<Transition> {
    match decision {
        ActionDecision::Cancel => Some(Transition::Cancel),
        ActionDecision::Retry => Some(Transition::Restart),
        ActionDecision::Release(how) => Some(Transition::Release(how)),
        ActionDecision::Prune => None,
    }
}

/// Counts the jobs that a decision would be about, by state, effect and last outcome.
pub async fn preview(
    store: &SharedStore,
    principal: &Principal,
    decision: ActionDecision,
    filter: &JobFilter,
    extent: Extent,
) -> Result<Preview, StoreError> {
    let (begun, mut looks, mut before) = (Instant::now(), 0, None);
    let (mut preview, mut kinds) = (Preview::default(), BTreeMap::new());
    loop {
        let Looked { items, next, .. } = store.glances(principal, filter, before, true).await?;
        for job in items.iter().filter(|job| concerns(decision, job)) {
            *kinds.entry((job.state, job.effect, job.last_outcome)).or_default() += 1;
            preview.total += 1;
            preview.may_have_acted += u64::from(job.may_have_acted);
        }
        (before, looks) = (next, looks + 1);
        let is_enough =
            extent == Extent::Bounded && (looks >= PREVIEW_LOOKS || begun.elapsed() >= PREVIEW_TIME);
        if before.is_none() || is_enough {
            break;
        }
    }
    preview.at_least = before.is_some();
    let kind = |((state, effect, last_outcome), jobs)| PreviewKind { state, effect, last_outcome, jobs };
    preview.kinds = kinds.into_iter().map(kind).collect();
    Ok(preview)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(reason: HeldReason) -> JobFilter {
        JobFilter { state: Some(State::Held), held_reason: Some(reason), ..JobFilter::default() }
    }

    fn in_state(state: State) -> JobFilter {
        JobFilter { state: Some(state), ..JobFilter::default() }
    }

    #[test]
    fn what_a_filter_leaves_open_is_what_a_decision_is_made_for() {
        let all = JobFilter::default;
        let unknown = || JobFilter { outcome_unknown: true, ..all() };
        let release = ActionDecision::Release;
        for (decision, filter, narrowed) in [
            (ActionDecision::Cancel, all(), all()),
            (ActionDecision::Prune, all(), all()),
            (ActionDecision::Retry, all(), in_state(State::Failed)),
            (ActionDecision::Retry, in_state(State::Cancelled), in_state(State::Cancelled)),
            (release(Release::Retry), all(), held(HeldReason::Connection)),
            (
                release(Release::Failed),
                unknown(),
                JobFilter { outcome_unknown: true, ..held(HeldReason::UnknownOutcome) },
            ),
        ] {
            assert_eq!(narrow(decision, filter), Ok(narrowed), "{decision:?}");
        }
    }

    #[test]
    fn a_decision_that_no_job_of_the_filter_allows_is_refused() {
        for state in State::ALL.iter().copied() {
            let refused = narrow(ActionDecision::Prune, in_state(state)).is_err();
            assert_eq!(refused, !state.is_final(), "{state}");
            let refused = narrow(ActionDecision::Cancel, in_state(state)).is_err();
            assert_eq!(refused, state.is_final(), "{state}");
        }
        let failed = ActionDecision::Release(Release::Failed);
        let refused = narrow(failed, held(HeldReason::Connection));
        assert_eq!(refused, Err(Nonsense::HasNotRun(HeldReason::Connection)));
    }
}
