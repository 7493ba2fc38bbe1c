//! Takes over the running jobs of workers that stopped beating.
//!
//! What may be repeated is due again; a `once` call that may have been made is held until [`super::verify`] or a person
//! knows. A job without a binding cannot have been sent, so it is simply given back. The store's `finish` still accepts
//! the result of a worker that was only presumed dead, while nobody has claimed the job again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::rounds;
use crate::{
    job::{AttemptEnd, AttemptOutcome, Ending, ErrorKind, JobError, RetryPolicy, Spending, Started},
    services::Services,
    store::{By, ClaimReceipt, Finish, Finished, LostJob, StoreError},
    telemetry::metrics,
};

/// Workers that have been silent for this many leases and hold nothing are forgotten.
const FORGET_AFTER_LEASES: u32 = 20;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub poll: Duration,
    pub batch: usize,
    /// Age of a heartbeat from which a worker is lost.
    pub lease: Duration,
    /// How long after an unknown outcome the tool API's log is asked first; `None` leaves it to a person.
    pub first_check: Option<Duration>,
    pub retry: RetryPolicy,
}

#[derive(Debug)]
pub struct Rescue {
    services: Services,
    options: Options,
}

impl Rescue {
    /// A rescue that wakes the relay when it made jobs due.
    pub fn new(services: &Services, options: Options) -> Self {
        Self { services: services.clone(), options }
    }

    /// Looks until `stop`; pages follow each other without a pause while they are full.
    pub async fn run(self, stop: CancellationToken) {
        let Options { poll, batch, .. } = self.options;
        rounds(&stop, poll, batch, "the rescue", || self.run_once()).await;
    }

    /// One page; returns how many jobs were taken over.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        let Services { store, clock, relay_wake, .. } = &self.services;
        let lost = store.lost_jobs(self.options.lease, self.options.batch).await?;
        if lost.is_empty() {
            store.forget_workers(self.options.lease * FORGET_AFTER_LEASES).await?;
            return Ok(0);
        }
        let now = clock.now();
        let finish = |job: &LostJob| {
            let version = job.receipt.binding.as_ref().map(|binding| binding.version.clone());
            let started = Started {
                number: job.receipt.attempt,
                request_id: job.request_id,
                version,
                at: job.started_at,
            };
            let (attempt, ending) = end(job, &self.options, fastrand::f64()).record(started, now);
            let by = By::Rescuer { lease: self.options.lease };
            Finish { id: job.id, fence: job.receipt.fence, by, attempt, ending }
        };
        let finishes: Vec<Finish> = lost.iter().map(finish).collect();
        let mut rescued = 0;
        for (job, finished) in lost.iter().zip(store.finish(&finishes).await?) {
            if let Finished::Applied { state, .. } = finished {
                rescued += 1;
                metrics::RESCUED.add([state.as_str()], 1);
                tracing::warn!(job.id = %job.id, attempt.n = job.receipt.attempt, state = %state, "job of a lost worker taken over");
            }
        }
        if rescued > 0 {
            relay_wake.notify_one();
        }
        Ok(rescued)
    }
}

/// What becomes of a job whose worker is lost.
fn end(job: &LostJob, options: &Options, random: f64) -> AttemptEnd {
    let Some(binding) = &job.receipt.binding else {
        let again = Ending::Snooze { after: Duration::ZERO, error: None };
        return AttemptEnd::unanswered(AttemptOutcome::Interrupted, again);
    };
    if !binding.effect.may_repeat() {
        let error = JobError::new(
            ErrorKind::WorkerLost,
            "the worker disappeared during the call, so it is unknown whether the tool ran",
        );
        let ending = Ending::undecided(options.first_check, error);
        return AttemptEnd::unanswered(AttemptOutcome::Lost, ending);
    }
    let error = JobError::new(ErrorKind::WorkerLost, "the worker disappeared during the call");
    let ClaimReceipt { attempt, spent, age, .. } = job.receipt;
    let spending = Spending { budget: job.budget, attempt, spent, age };
    let ending = match options.retry.retry(spending, error, None, random) {
        // The wait is left out: the lease was the wait, and the call is safe to repeat.
        Ending::Retry { after: _, error } => Ending::Retry { after: Duration::ZERO, error },
        ending => ending,
    };
    AttemptEnd::unanswered(AttemptOutcome::Lost, ending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backoff,
        job::{Binding, Budget, Effect, Fence, HeldReason, JobId, PinnedBy, RequestId, Stop},
    };

    const OPTIONS: Options = Options {
        poll: Duration::from_secs(5),
        batch: 10,
        lease: Duration::from_secs(30),
        first_check: Some(Duration::from_secs(5)),
        retry: RetryPolicy {
            intervals: backoff::RECONNECT,
            max_attempts: 3,
            max_retry_after: Duration::from_secs(60),
            max_throttled_age: Duration::from_secs(60),
        },
    };

    fn lost(effect: Option<Effect>, spent: u32) -> LostJob {
        let binding = effect.map(|effect| Binding {
            toolkit: "t".into(),
            version: "20250101_00".into(),
            pinned_by: PinnedBy::Job,
            account: None,
            effect,
        });
        let started_at = jiff::Timestamp::UNIX_EPOCH;
        let (attempt, age) = (spent + 1, Duration::ZERO);
        LostJob {
            id: JobId::new(),
            request_id: RequestId::new(),
            started_at,
            budget: Budget::default(),
            receipt: ClaimReceipt { fence: Fence(1), attempt, spent, binding, created_at: started_at, age },
        }
    }

    #[test]
    fn a_call_that_counts_is_held_and_never_repeated() {
        let asked = end(&lost(Some(Effect::Once), 0), &OPTIONS, 0.5);
        assert_eq!(asked.outcome, AttemptOutcome::Lost);
        assert!(matches!(asked.ending, Ending::Verify { .. }), "the log is asked");
        let nobody_asks = Options { first_check: None, ..OPTIONS };
        let AttemptEnd { ending, .. } = end(&lost(Some(Effect::Once), 0), &nobody_asks, 0.5);
        assert!(matches!(ending, Ending::Stop(Stop::Hold { reason: HeldReason::UnknownOutcome, .. })));
    }

    #[test]
    fn repeatable_calls_are_due_at_once_within_their_budget() {
        for effect in [Effect::Safe, Effect::Idempotent] {
            let AttemptEnd { ending, .. } = end(&lost(Some(effect), 0), &OPTIONS, 0.5);
            assert!(matches!(ending, Ending::Retry { after: Duration::ZERO, .. }));
            let AttemptEnd { ending, .. } = end(&lost(Some(effect), 2), &OPTIONS, 0.5);
            assert!(matches!(ending, Ending::Stop(Stop::Fail { .. })));
        }
    }

    #[test]
    fn a_job_that_cannot_have_been_sent_spends_nothing() {
        let given_back = end(&lost(None, 0), &OPTIONS, 0.5);
        assert_eq!(given_back.outcome, AttemptOutcome::Interrupted);
        assert!(!given_back.ending.spends_attempt());
    }
}
