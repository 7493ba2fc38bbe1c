//! The answers that take more than one look: what a claim or an insert means for a job that is
//! known, and what a finish means when its claim is over. Pure, and the same for both backends.

use uuid::Uuid;

use super::{
    By, Claim, ClaimReceipt, Claimed, Conflict, Finish, Finished, Inserted, Repeated, convert::reporter,
};
use crate::job::{
    AttemptOutcome, Digest, ErrorKind, Fence, JobId, JobSpec, Owner, RequestId, State, WorkerId,
};

/// A known job that stands in the way of a claim or an insert.
pub(super) struct FoundJob {
    /// Found by its idempotency key, because the ID is new.
    pub(super) by_key: bool,
    pub(super) id: JobId,
    /// Whose it is and what it asks for; `None` where this version cannot read it.
    pub(super) identity: Option<(Owner, Digest)>,
    /// What it was asked for as, where it was changed since.
    pub(super) asked: Option<Digest>,
    /// `None`: one that a newer version has added.
    pub(super) state: Option<State>,
    pub(super) error_kind: Option<ErrorKind>,
    pub(super) worker_id: Option<Uuid>,
    pub(super) request_id: Option<Uuid>,
    pub(super) ended_by: Option<Uuid>,
    pub(super) reply_to: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) message_id: Option<String>,
    /// What its holder knows, if it runs.
    pub(super) receipt: ClaimReceipt,
}

impl FoundJob {
    fn conflict(&self, spec: &JobSpec) -> Option<Conflict> {
        let (owner, digest) = self.identity.as_ref()?;
        let is_another = *digest != spec.digest && self.asked != Some(spec.digest);
        if self.by_key {
            is_another.then_some(Conflict::Key { first: Some(self.id) })
        } else if *owner != spec.owner {
            Some(Conflict::Owner)
        } else {
            is_another.then_some(Conflict::Body)
        }
    }

    /// Whether a message is of the job as it was before somebody changed it. By such a one it is not claimed: it may be in
    /// another queue by now, or not due.
    fn is_from_before(&self, claim: &Claim) -> bool {
        let is_of_it = |(owner, digest): &(Owner, Digest)| {
            *owner == claim.spec.owner
                && *digest != claim.spec.digest
                // The relay may have published it in between, as it is not known any more.
                && (claim.from_store || self.asked == Some(claim.spec.digest))
        };
        self.asked.is_some() && self.identity.as_ref().is_some_and(is_of_it)
    }

    /// The answer to a claim, or `None` when the job can be claimed by now. `again` says that another
    /// claim of the same job precedes this one in its batch.
    pub(super) fn claimed(self, claim: &Claim, worker: WorkerId, again: bool) -> Option<Claimed> {
        let is_from_before = self.is_from_before(claim);
        if let Some(conflict) = self.conflict(&claim.spec).filter(|_| !is_from_before) {
            return Some(Claimed::Conflict(conflict));
        }
        let request = Some(claim.request_id.0);
        let duplicate = Claimed::Duplicate(self.repeated(&claim.spec));
        if self.by_key || again || is_from_before || self.identity.is_none() {
            return Some(duplicate);
        }
        // A claim whose answer was lost is told what became of it the first time.
        let repeated = self.ended_by == request;
        Some(match (self.state, self.error_kind) {
            (Some(State::Available), _) => return None,
            (Some(State::Running), _) if self.worker_id == Some(worker.0) && self.request_id == request => {
                Claimed::Running(self.receipt)
            }
            (Some(State::Scheduled), _) if repeated => Claimed::Scheduled,
            (Some(state @ (State::Failed | State::Held)), Some(kind)) if repeated => {
                Claimed::Ended { state, kind }
            }
            _ => duplicate,
        })
    }

    /// Whether the job is bound or was tried, so that what is decided about it stays decided.
    pub(super) fn is_under_way(&self) -> bool {
        self.receipt.binding.is_some() || self.receipt.attempt > 0
    }

    pub(super) fn inserted(&self, spec: &JobSpec) -> Inserted {
        match self.conflict(spec) {
            Some(conflict) => Inserted::Conflict(conflict),
            None => Inserted::Duplicate(self.repeated(spec)),
        }
    }

    /// What a message is told that repeats this job.
    fn repeated(&self, spec: &JobSpec) -> Repeated {
        let is_same = (&self.reply_to, &self.correlation_id, &self.message_id)
            == (&spec.reply_to, &spec.correlation_id, &spec.message_id);
        Repeated {
            id: self.id,
            // Nothing is told about a job of which nobody can say whose it is.
            state: self.state.filter(|_| self.identity.is_some()),
            same_asker: self.identity.is_none() || (is_same && !self.by_key),
        }
    }
}

pub(super) struct RecordedAttempt {
    pub(super) request_id: RequestId,
    pub(super) outcome: AttemptOutcome,
    pub(super) reported_by: String,
    pub(super) ended_as: Option<State>,
    pub(super) late: bool,
    pub(super) charged: bool,
}

/// What is to be done about a finish whose job is not running under its fence.
pub(super) enum NextStep {
    /// Nothing: it is a repetition, or a rescue that came too late.
    Answer(Finished),
    /// The job was rescued and nobody has claimed it since: end it, and replace the record.
    EndLate {
        /// What the rescue charged for the same attempt.
        charged: bool,
    },
    /// The job was cancelled while its outcome was unknown, and now it is told: keep that, and leave the job cancelled.
    Learn {
        /// Whether the record does not know it yet.
        is_news: bool,
    },
    /// The claim is over: keep what is known about the attempt, and nothing else.
    RecordOnly,
}

/// The job of a finish that the normal statement did not apply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// `None`: one that a newer version has added.
    pub(super) state: Option<State>,
    pub(super) fence: Fence,
    /// Whether its call is being looked up.
    pub(super) is_looked_up: bool,
}

/// Decides about a finish that the normal statement did not apply. `job` is `None` if it was removed.
pub(super) fn next_step(
    finish: &Finish,
    job: Option<Standing>,
    record: Option<&RecordedAttempt>,
) -> NextStep {
    let own = record.filter(|record| record.request_id == finish.attempt.request_id);
    let is_open =
        |record: &RecordedAttempt| matches!(record.outcome, AttemptOutcome::Lost | AttemptOutcome::Unknown);
    let same_claim = job.filter(|job| job.fence == finish.fence);
    let looked_up = same_claim.filter(|job| job.is_looked_up);
    let is_cancelled = looked_up.is_some_and(|job| job.state == Some(State::Cancelled));
    // What the look-up or the worker itself tells ends the looking, whatever the record says by then.
    let tells = match finish.by {
        By::LookUp => true,
        By::Holder => !matches!(finish.attempt.outcome, AttemptOutcome::Unknown | AttemptOutcome::Lost),
        By::Rescuer { .. } => false,
    };
    if is_cancelled && tells {
        return NextStep::Learn { is_news: own.is_none_or(is_open) };
    }
    if let Some(record) = own
        && record.reported_by == reporter(finish.by)
        && record.outcome == finish.attempt.outcome
    {
        return NextStep::Answer(match record.ended_as {
            Some(state) => Finished::Applied { state, late: record.late },
            None => Finished::Fenced,
        });
    }
    // A rescue knows nothing about the attempt that its holder would not know better, and whoever decided about a job
    // that was looked up has ended that: a person's word is not overruled.
    if matches!(finish.by, By::Rescuer { .. }) || (finish.by == By::LookUp && looked_up.is_none()) {
        return NextStep::Answer(Finished::Fenced);
    }
    // Who knows nothing changes nothing that was found out or decided meanwhile.
    if tells && same_claim.and_then(|job| job.state).is_some_and(may_end_late) {
        return NextStep::EndLate { charged: own.is_some_and(|record| record.charged) };
    }
    let open = match (record, own) {
        (None, _) => job.is_some(),
        (Some(_), None) => false,
        (Some(_), Some(own)) => is_open(own),
    };
    if open { NextStep::RecordOnly } else { NextStep::Answer(Finished::Fenced) }
}

/// Whether nobody but a rescue has decided about a job since its last attempt, as [`Transition::EndLate`] has it.
///
/// [`Transition::EndLate`]: crate::job::Transition::EndLate
fn may_end_late(state: State) -> bool {
    match state {
        State::Scheduled | State::Available | State::Retryable | State::Held => true,
        State::Running | State::Succeeded | State::Failed | State::Cancelled => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Ending, Transition};

    #[test]
    fn a_late_result_counts_where_the_transitions_allow_it() {
        let late = Transition::EndLate(Ending::Snooze { after: std::time::Duration::ZERO, error: None });
        for state in State::ALL {
            assert_eq!(may_end_late(*state), late.apply(*state).is_ok(), "{state}");
        }
    }
}
