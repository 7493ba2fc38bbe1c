//! Takes over the running jobs of workers that stopped beating, and those that the store says this process runs while
//! nothing here works on them, which only a bug or an answer that was lost for good leaves behind.
//!
//! What may be repeated is due again; a `once` call that may have been made is held until [`super::verify`] or a person
//! knows. A job without a binding cannot have been sent, so it is simply given back. The store's `finish` still accepts
//! the result of a worker that was only presumed dead, while nobody has claimed the job again.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rounds;
use crate::{
    failure::chain,
    in_flight::InFlight,
    job::{
        AttemptEnd, AttemptOutcome, Ending, ErrorKind, JobError, RequestId, RetryPolicy, Spending, Started,
        WorkerId,
    },
    services::Services,
    store::{By, ClaimReceipt, Finish, Finished, LostJob, SharedStore, StoreError, StoreErrorKind},
    sync::lock,
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
    strays: Option<Strays>,
    reach: Mutex<Reach>,
}

/// Whether this process reached the store all the while, as the others did that it judges by their heartbeats.
#[derive(Debug)]
struct Reach {
    /// When the store answered last, or the process began to ask for it.
    answered: Instant,
    /// Until then no other worker counts as lost.
    patient_until: Instant,
}

/// The jobs of this process that the store says are running.
#[derive(Debug)]
struct Strays {
    worker: WorkerId,
    in_flight: Arc<InFlight>,
    /// When they were looked at, and which of them were not in flight then.
    seen: Mutex<(Instant, HashSet<RequestId>)>,
}

impl Rescue {
    /// A rescue that wakes the relay when it made jobs due. The process waits for its services since `waiting_since`.
    pub fn new(services: &Services, options: Options, waiting_since: Instant) -> Self {
        let reach = Mutex::new(Reach { answered: waiting_since, patient_until: waiting_since });
        Self { services: services.clone(), options, strays: None, reach }
    }

    /// Looks until `stop`; pages follow each other without a pause while they are full. Beside that it forgets lost workers
    /// of which nothing runs any more, and claims: neither waits for the other.
    pub async fn run(self, stop: CancellationToken) {
        let Options { poll, batch, lease, .. } = self.options;
        let forget = || async {
            let forgetting = self.services.store.forget_workers(lease * FORGET_AFTER_LEASES);
            stop.run_until_cancelled(forgetting).await.transpose().map(|_| 0)
        };
        let rescuing = rounds(&stop, poll, batch, "the rescue", || self.run_once());
        let forgetting = rounds(&stop, poll, batch, "the forgetting of lost workers", forget);
        join(rescuing, forgetting).await;
    }

    /// The same, also for jobs of this worker that are not in flight.
    #[must_use]
    pub fn watching(self, worker: WorkerId, in_flight: Arc<InFlight>) -> Self {
        let strays = Strays { worker, in_flight, seen: Mutex::new((Instant::now(), HashSet::new())) };
        Self { strays: Some(strays), ..self }
    }

    /// One page; returns how many jobs were taken over.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        let Options { lease, batch, .. } = self.options;
        let store = &self.services.store;
        if let Some(strays) = &self.strays
            && strays.is_due(lease)
        {
            let found = strays.confirm(store.running_jobs(strays.worker, batch).await?);
            // No beat is young enough for a lease of nothing, so that this process counts as lost.
            self.take_over(&found, Duration::ZERO).await?;
        }
        let lost = store.lost_jobs(lease, batch).await?;
        let patient = lock(&self.reach).is_patient(self.options);
        let taken = if patient && !lost.is_empty() {
            tracing::info!(jobs = lost.len(), "the store was away: other workers have a lease to beat again");
            0
        } else {
            self.take_over(&lost, lease).await?
        };
        lock(&self.reach).answered = Instant::now();
        Ok(taken)
    }

    async fn take_over(&self, lost: &[LostJob], lease: Duration) -> Result<usize, StoreError> {
        let Services { store, clock, relay_wake, .. } = &self.services;
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
            let by = By::Rescuer { lease };
            Finish { id: job.id, fence: job.receipt.fence, by, attempt, ending }
        };
        let finishes: Vec<Finish> = lost.iter().map(finish).collect();
        let mut rescued = 0;
        for (job, finished) in lost.iter().zip(finish_each(store, &finishes).await?) {
            if let Some(Finished::Applied { state, .. }) = finished {
                rescued += 1;
                metrics::RESCUED.add([state.as_str()], 1);
                let line = if lease.is_zero() {
                    "job that nothing worked on taken over"
                } else {
                    "job of a lost worker taken over"
                };
                let toolkit = job.receipt.binding.as_ref().map(|binding| binding.toolkit.as_str());
                tracing::warn!(
                    job.id = %job.id, attempt.n = job.receipt.attempt, toolkit, request.id = %job.request_id,
                    state = %state, "{line}"
                );
            }
        }
        if rescued > 0 {
            relay_wake.notify_one();
        }
        Ok(rescued)
    }
}

impl Reach {
    /// Whether the store was away, as far as this process saw, for so long that workers that live could not beat. They
    /// have the time of a lease to do so. An answer that took so long counts too, because beats were held up as it was.
    fn is_patient(&mut self, Options { poll, lease, .. }: Options) -> bool {
        let now = Instant::now();
        if now - self.answered > poll.mul_f64(1.25) + lease / 2 {
            self.patient_until = now + lease;
        }
        self.answered = now;
        now < self.patient_until
    }
}

impl Strays {
    fn is_due(&self, lease: Duration) -> bool {
        lock(&self.seen).0.elapsed() >= lease
    }

    /// Which of the jobs that the store says are running are not in flight, now and at the last look: a claim and a
    /// finish take a moment between here and there.
    fn confirm(&self, running: Vec<LostJob>) -> Vec<LostJob> {
        let mut seen = lock(&self.seen);
        let absent: Vec<LostJob> =
            running.into_iter().filter(|job| !self.in_flight.has(job.request_id)).collect();
        let before = std::mem::replace(&mut seen.1, absent.iter().map(|job| job.request_id).collect());
        seen.0 = Instant::now();
        absent.into_iter().filter(|job| before.contains(&job.request_id)).collect()
    }
}

/// Failures in a row after which the store, and not a job, is at fault.
const FAILURES: u32 = 3;

/// Finishes a batch, or, where the store does not take it, each by itself: one that it does not take (`None`) harms no
/// other. An error says that the store takes none. They come in any order, so that where the first few fail each time
/// the others do not wait for them for ever.
async fn finish_each(store: &SharedStore, finishes: &[Finish]) -> Result<Vec<Option<Finished>>, StoreError> {
    match store.finish(finishes).await {
        Ok(finished) => return Ok(finished.into_iter().map(Some).collect()),
        Err(error) if finishes.len() == 1 && error.kind() == StoreErrorKind::Unavailable => {
            return Err(error);
        }
        Err(error) => tracing::warn!(error = %chain(&error), "lost jobs cannot be taken over together"),
    }
    let (mut finished, mut failures) = (vec![None; finishes.len()], 0);
    let mut places: Vec<usize> = (0..finishes.len()).collect();
    fastrand::shuffle(&mut places);
    for place in places {
        let finish = &finishes[place];
        let one = store.finish(std::slice::from_ref(finish)).await;
        if let Err(error) = &one {
            metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
            tracing::error!(job.id = %finish.id, error = %chain(error), "a job cannot be taken over, and stays as it is");
        }
        failures = if one.is_ok() { 0 } else { failures + 1 };
        match one {
            Ok(one) => finished[place] = one.into_iter().next(),
            // One that others have locked says nothing about the store.
            Err(error)
                if failures == FAILURES
                    && error.kind() != StoreErrorKind::Locked
                    && finished.iter().all(Option::is_none) =>
            {
                return Err(error);
            }
            Err(_) if failures == FAILURES => break,
            Err(_) => {}
        }
    }
    Ok(finished)
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
    let ClaimReceipt { attempt, spent, age, postponed_for, .. } = job.receipt;
    let postponed_for = postponed_for.unwrap_or_default();
    let spending = Spending { budget: job.budget, attempt, spent, age, postponed_for };
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
        job::{Binding, Budget, Effect, Fence, HeldReason, JobId, PinnedBy, Stop},
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
            max_postponed: Duration::from_secs(60),
        },
    };

    #[tokio::test(start_paused = true)]
    async fn other_workers_have_a_lease_to_beat_when_the_store_was_away() {
        let now = Instant::now();
        let mut reach = Reach { answered: now, patient_until: now };
        for _ in 0..10 {
            tokio::time::advance(OPTIONS.poll).await;
            assert!(!reach.is_patient(OPTIONS), "it answers all the while");
        }
        tokio::time::advance(OPTIONS.lease).await;
        assert!(reach.is_patient(OPTIONS));
        tokio::time::advance(OPTIONS.lease / 2).await;
        assert!(reach.is_patient(OPTIONS), "looking more often does not make it shorter");
        tokio::time::advance(OPTIONS.lease / 2).await;
        assert!(!reach.is_patient(OPTIONS));
    }

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
            receipt: ClaimReceipt {
                fence: Fence(1),
                attempt,
                spent,
                binding,
                created_at: started_at,
                first_due_at: None,
                age,
                postponed_for: None,
            },
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
