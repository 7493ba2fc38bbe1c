//! A job that this worker has claimed and not finished.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tracing::Span;

use super::{ending::EndingPolicy, shared::Shared};
use crate::{
    in_flight::Noted,
    job::{EXPIRED, JobSpec, RequestId, Spending, TOO_OLD},
    store::{Claim, ClaimReceipt},
    telemetry::metrics::LaneMetrics,
};

/// How old an app's job may be for the time in its ID to be believed.
const MAX_PLAUSIBLE_AGE: SignedDuration = SignedDuration::from_hours(24 * 30);

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
        noted: Noted,
    ) -> Self {
        let started_at = shared.services.clock.now();
        let due_at = first_due(&claim.spec, receipt.created_at, started_at);
        if receipt.attempt == 1 {
            let waited = started_at.duration_since(due_at).as_secs_f64().max(0.0);
            metrics.queue_wait.record(waited);
        }
        let Claim { spec, request_id, .. } = claim;
        let claimed_at = Instant::now();
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
        };
        EndingPolicy {
            retry: shared.options.retry,
            spending,
            first_check: shared.options.first_check,
            random: fastrand::f64(),
        }
    }
}

/// An app's UUIDv7 says when it made the job, which the store cannot know of a message that waited
/// in the broker. An implausible time (another clock, another use of the bits) is not believed.
fn first_due(spec: &JobSpec, created_at: Timestamp, now: Timestamp) -> Timestamp {
    let made = spec.id.0.get_timestamp().and_then(|stamp| {
        let (seconds, nanos) = stamp.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    });
    let plausible =
        made.filter(|made| (SignedDuration::ZERO..MAX_PLAUSIBLE_AGE).contains(&now.duration_since(*made)));
    let enqueued = plausible.map_or(created_at, |made| made.min(created_at));
    spec.run_at.map_or(enqueued, |run_at| run_at.max(enqueued))
}
