//! The answers that take more than one look: what a claim or an insert means for a job that is
//! known, and what a finish means when its claim is over. Pure, and the same for both backends.

use uuid::Uuid;

use super::{
    By, Claim, ClaimReceipt, Claimed, Conflict, Finish, Finished, Inserted, StoreError,
    texts::{HOLDER, RESCUER},
};
use crate::job::{
    AttemptOutcome, Digest, ErrorKind, Fence, JobId, JobSpec, Owner, RequestId, State, Transition, WorkerId,
};

/// A known job that stands in the way of a claim or an insert.
pub(super) struct Known {
    /// Found by its idempotency key, because the ID is new.
    pub(super) by_key: bool,
    pub(super) id: JobId,
    pub(super) owner: Owner,
    pub(super) digest: Digest,
    pub(super) state: State,
    pub(super) error_kind: Option<ErrorKind>,
    pub(super) worker_id: Option<Uuid>,
    pub(super) request_id: Option<Uuid>,
    pub(super) settled_by: Option<Uuid>,
    /// What its holder knows, if it runs.
    pub(super) receipt: ClaimReceipt,
}

impl Known {
    fn conflict(&self, spec: &JobSpec) -> Option<Conflict> {
        if self.by_key {
            (self.digest != spec.digest).then_some(Conflict::Key)
        } else if self.owner != spec.owner {
            Some(Conflict::Owner)
        } else {
            (self.digest != spec.digest).then_some(Conflict::Body)
        }
    }

    /// The answer to a claim, or `None` when the job can be claimed by now. `again` says that another
    /// claim of the same job precedes this one in its batch.
    pub(super) fn claimed(self, claim: &Claim, worker: WorkerId, again: bool) -> Option<Claimed> {
        if let Some(conflict) = self.conflict(&claim.spec) {
            return Some(Claimed::Conflict(conflict));
        }
        let request = Some(claim.request_id.0);
        let duplicate = Claimed::Duplicate { state: self.state };
        if self.by_key || again {
            return Some(duplicate);
        }
        // A claim whose answer was lost is told what became of it the first time.
        let repeated = self.settled_by == request;
        Some(match (self.state, self.error_kind) {
            (State::Available, _) => return None,
            (State::Running, _) if self.worker_id == Some(worker.0) && self.request_id == request => {
                Claimed::Running(self.receipt)
            }
            (State::Scheduled, _) if repeated => Claimed::Scheduled,
            (state @ (State::Failed | State::Held), Some(kind)) if repeated => Claimed::Ended { state, kind },
            _ => duplicate,
        })
    }

    /// The answer to an insert.
    pub(super) fn inserted(&self, spec: &JobSpec) -> Inserted {
        match self.conflict(spec) {
            Some(conflict) => Inserted::Conflict(conflict),
            None => Inserted::Duplicate { id: self.id, state: self.state },
        }
    }
}

/// The record of an attempt that a finish meets.
pub(super) struct Record {
    pub(super) request_id: RequestId,
    pub(super) outcome: AttemptOutcome,
    pub(super) reported_by: String,
    pub(super) ended_as: Option<State>,
    pub(super) late: bool,
    pub(super) charged: bool,
}

/// What to do with a finish whose job is not running under its fence.
pub(super) enum Judged {
    /// Nothing: it is a repetition, or a rescue that came too late.
    Answer(Finished),
    /// The job was rescued and nobody has claimed it since: end it, and replace the record.
    Late {
        /// What the rescue charged for the same attempt.
        charged: bool,
    },
    /// The claim is over: keep what is known about the attempt, and nothing else.
    Record,
}

/// The judgement on a finish that the normal statement did not apply. `job` is the state and fence of
/// its job, `None` if it was removed.
pub(super) fn finish(
    finish: &Finish,
    job: Option<(State, Fence)>,
    record: Option<&Record>,
) -> Result<Judged, StoreError> {
    let own = record.filter(|record| record.request_id == finish.attempt.request_id);
    if let Some(record) = own
        && record.reported_by == reporter(finish.by)
        && record.outcome == finish.attempt.outcome
    {
        return Ok(Judged::Answer(match record.ended_as {
            Some(state) => Finished::Applied { state, late: record.late },
            None => Finished::Fenced,
        }));
    }
    // A rescue knows nothing about the attempt that its holder would not know better.
    if matches!(finish.by, By::Rescuer { .. }) {
        return Ok(Judged::Answer(Finished::Fenced));
    }
    if let Some((state, fence)) = job
        && fence == finish.fence
        && Transition::EndLate(finish.ending.clone()).apply(state).is_ok()
    {
        return Ok(Judged::Late { charged: own.is_some_and(|record| record.charged) });
    }
    let open = match (record, own) {
        (None, _) => job.is_some(),
        (Some(_), None) => false,
        (Some(_), Some(own)) => matches!(own.outcome, AttemptOutcome::Lost | AttemptOutcome::Unknown),
    };
    Ok(if open { Judged::Record } else { Judged::Answer(Finished::Fenced) })
}

/// The word for who reports.
pub(super) fn reporter(by: By) -> &'static str {
    match by {
        By::Holder => HOLDER,
        By::Rescuer { .. } => RESCUER,
    }
}
