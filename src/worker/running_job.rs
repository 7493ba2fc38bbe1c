//! A job that this worker has claimed and not finished.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::Span;

use super::{ending::EndingPolicy, shared::Shared};
use crate::{
    in_flight::Noted,
    job::{EXPIRED, JobSpec, RequestId, Spending, TOO_OLD},
    store::{Claim, ClaimReceipt},
    telemetry::metrics::LaneMetrics,
};

#[derive(Debug)]
pub(super) struct RunningJob {
    pub(super) spec: Arc<JobSpec>,
    pub(super) request_id: RequestId,
    pub(super) receipt: ClaimReceipt,
    /// The call may have been sent.
    pub(super) is_sent: bool,
    pub(super) started_at: Timestamp,
    pub(super) claimed_at: Instant,
    /// When the job was due for the first time, as far as this process can tell.
    pub(super) due_at: Timestamp,
    pub(super) metrics: Arc<LaneMetrics>,
    pub(super) noted: Noted,
}

impl RunningJob {
    pub(super) fn new(
        shared: &Shared,
        metrics: Arc<LaneMetrics>,
        claim: Claim,
        receipt: ClaimReceipt,
        waited_since: Option<Timestamp>,
        noted: Noted,
        claimed_at: Instant,
    ) -> Self {
        let started_at = shared.services.clock.now();
        let due_at = first_due(&claim.spec, receipt.created_at, waited_since);
        if receipt.attempt == 1 {
            let waited = started_at.duration_since(wait_began(due_at, &receipt)).as_secs_f64().max(0.0);
            metrics.queue_wait.record(waited);
        }
        let Claim { spec, request_id, .. } = claim;
        Self { spec, request_id, receipt, is_sent: false, started_at, claimed_at, due_at, metrics, noted }
    }

    /// The span of the attempt, by which every line about it names its job, whoever writes the line. It has the
    /// highest level, so that it is there whatever `log.level` leaves out.
    pub(super) fn span(&self) -> Span {
        tracing::error_span!(
            "attempt",
            job.id = %self.spec.id,
            attempt.n = self.receipt.attempt,
            owner.kind = self.spec.owner.kind().as_str(),
            tool = self.spec.tool
        )
    }

    /// Its age: by the store's clock until the claim, by a monotonic one since, which nobody sets.
    fn age(&self) -> Duration {
        self.receipt.age.saturating_add(self.claimed_at.elapsed())
    }

    /// How long it has been postponed, in the same time.
    fn postponed_for(&self) -> Duration {
        let until_claim = self.receipt.postponed_for;
        until_claim.map_or(Duration::ZERO, |until| until.saturating_add(self.claimed_at.elapsed()))
    }

    /// Why it is too late to call now, if it is.
    pub(super) fn too_late(&self) -> Option<&'static str> {
        let age = self.age();
        let now = self.receipt.created_at.saturating_add(age).unwrap_or(Timestamp::MAX);
        if self.spec.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Some(EXPIRED);
        }
        self.spec.budget.max_age.filter(|max_age| *max_age <= age).map(|_| TOO_OLD)
    }

    /// By what an ending of the attempt is decided now.
    pub(super) fn policy(&self, shared: &Shared) -> EndingPolicy {
        let spending = Spending {
            budget: self.spec.budget,
            attempt: self.receipt.attempt,
            spent: self.receipt.spent,
            age: self.age(),
            postponed_for: self.postponed_for(),
        };
        EndingPolicy {
            retry: shared.options.retry,
            spending,
            first_check: shared.options.first_check,
            random: fastrand::f64(),
        }
    }
}

/// When the job was due first: when the store knew it, or earlier if its message waited in the broker, which the store
/// cannot know.
fn first_due(spec: &JobSpec, created_at: Timestamp, waited_since: Option<Timestamp>) -> Timestamp {
    let enqueued = waited_since.map_or(created_at, |since| since.min(created_at));
    spec.run_at.map_or(enqueued, |run_at| run_at.max(enqueued))
}

/// When the wait for a worker began. A job that was held before it ran was not due meanwhile.
fn wait_began(due_at: Timestamp, receipt: &ClaimReceipt) -> Timestamp {
    receipt.first_due_at.filter(|first| *first > receipt.created_at).unwrap_or(due_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, Fence, decode};

    #[test]
    fn the_wait_begins_when_the_message_was_published_unless_its_time_came_later() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let queue = "default".parse().unwrap();
        let body = br#"{"id": "6fa1c1de-3c2b-4a5e-9d1f-8a2b3c4d5e6f", "user_id": "u", "tool": "T"}"#;
        let mut spec = decode(body, &Arrival::new(&queue)).unwrap();
        assert_eq!(first_due(&spec, at(60), None), at(60));
        assert_eq!(first_due(&spec, at(60), Some(at(20))), at(20));
        assert_eq!(first_due(&spec, at(1), Some(at(20))), at(1), "the relay publishes later");
        spec.run_at = Some(at(30));
        assert_eq!(first_due(&spec, at(60), Some(at(20))), at(30));
    }

    #[test]
    fn a_job_that_was_held_before_it_ran_did_not_wait_for_a_worker() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let receipt = |first_due_at| ClaimReceipt {
            fence: Fence(1),
            attempt: 1,
            spent: 0,
            binding: None,
            created_at: at(10),
            first_due_at,
            age: Duration::ZERO,
            postponed_for: None,
        };
        for (first_due_at, expected) in [(None, at(3)), (Some(at(10)), at(3)), (Some(at(500)), at(500))] {
            assert_eq!(wait_began(at(3), &receipt(first_due_at)), expected, "{first_due_at:?}");
        }
    }
}
