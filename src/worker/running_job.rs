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

/// How old an app's job may be for the time in its ID, or with its message, to be believed.
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
        published_at: Option<u64>,
        noted: Noted,
        claimed_at: Instant,
    ) -> Self {
        let started_at = shared.services.clock.now();
        let due_at = first_due(&claim.spec, receipt.created_at, published_at, started_at);
        if receipt.attempt == 1 {
            let waited = started_at.duration_since(due_at).as_secs_f64().max(0.0);
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
/// cannot know. An implausible time (another clock, another use of the bits) is not believed.
fn first_due(spec: &JobSpec, created_at: Timestamp, published_at: Option<u64>, now: Timestamp) -> Timestamp {
    let plausible =
        |at: &Timestamp| (SignedDuration::ZERO..MAX_PLAUSIBLE_AGE).contains(&now.duration_since(*at));
    let made = spec.id.0.get_timestamp().and_then(|stamp| {
        let (seconds, nanos) = stamp.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    });
    let made = made.filter(plausible);
    let second = published_at.and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    // The message's own time is that of its publication and has no fractions of a second; a UUIDv7 has them.
    let published = match (second.filter(plausible), made) {
        (Some(second), made) => {
            let end = second + SignedDuration::from_secs(1);
            Some(made.map_or(end, |made| made.clamp(second, end)))
        }
        (None, made) => made,
    };
    let enqueued = published.map_or(created_at, |published| published.min(created_at));
    spec.run_at.map_or(enqueued, |run_at| run_at.max(enqueued))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, decode};

    fn job(id: &str) -> JobSpec {
        let queue = "default".parse().unwrap();
        let body = format!(r#"{{"id": "{id}", "user_id": "u", "tool": "T"}}"#);
        decode(body.as_bytes(), &Arrival::new(&queue)).unwrap()
    }

    #[test]
    fn the_wait_begins_when_the_message_was_published() {
        let at = |millis: i64| Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap();
        let seconds = |seconds: i64| Some(u64::try_from(at(seconds * 1_000).as_second()).unwrap());
        let random = job("6fa1c1de-3c2b-4a5e-9d1f-8a2b3c4d5e6f");
        let of_its_time = |millis: i64| {
            let stamp = u64::try_from(at(millis).as_millisecond()).unwrap();
            job(&uuid::Builder::from_unix_timestamp_millis(stamp, &[7; 10]).into_uuid().to_string())
        };
        let now = at(60_000);
        for (spec, published_at, expected) in [
            (&random, None, now),
            // Not later than the end of the second in which it was published.
            (&random, seconds(20), at(21_000)),
            (&of_its_time(20_400), None, at(20_400)),
            (&of_its_time(20_400), seconds(20), at(20_400)),
            // An ID may have been made long before the message was published.
            (&of_its_time(5_000), seconds(20), at(20_000)),
            // Milliseconds instead of seconds, the future, and 1970.
            (&random, Some(u64::try_from(now.as_millisecond()).unwrap()), now),
            (&random, seconds(90), now),
            (&random, Some(0), now),
            (&random, Some(u64::MAX), now),
        ] {
            assert_eq!(first_due(spec, now, published_at, now), expected, "{published_at:?}");
        }
        let known_since = at(1_000);
        assert_eq!(
            first_due(&random, known_since, seconds(20), now),
            known_since,
            "the relay publishes later"
        );
    }
}
