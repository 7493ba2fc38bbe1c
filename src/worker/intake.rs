//! Deliveries, from the broker to running jobs: admitted, claimed in one write, started, acknowledged. What was
//! not recorded is given back to the broker.

use std::{sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    admit::{admit, anonymous_job, reject},
    attempt,
    crash::CrashPoint,
    persist::{NotTaken, Persist, bisect, each},
    running_job::RunningJob,
    shared::Shared,
};
use crate::{
    failure::chain,
    job::{EnvelopeError, EnvelopeReason, JobSpec, QueueName},
    queue::{Delivery, QueueErrorKind, Settler, Token},
    store::{Claim, Claimed, Inserted, Rejected, StoreError},
    telemetry::metrics::{self, LaneMetrics},
};

/// Why a message is kept whose job should be in the database. It may be the last copy of a job that was confirmed, and
/// the job may have run: only a person knows.
pub(super) const UNKNOWN_JOB: &str = "the message says that the database knows its job (header x-errand-known), and it does not: the \
    database was restored, or it is not the one of the relay that published the message, or a publisher sets errand's own \
    header; `errand rejected requeue` runs it as a new job";

/// Takes the deliveries of one lane until its stop.
pub(super) struct Intake {
    pub(super) lane: QueueName,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<LaneMetrics>,
    pub(super) stop: CancellationToken,
}

impl Intake {
    /// Takes deliveries to their end: rejected, claimed or given back. `false` when the lane should stop.
    pub(super) async fn take(
        &self,
        deliveries: Vec<Delivery>,
        mut slots: OwnedSemaphorePermit,
        settler: &Arc<dyn Settler>,
    ) -> bool {
        let tokens: Vec<Token> = deliveries.iter().map(|delivery| delivery.token).collect();
        let mut rejected = Vec::new();
        let (mut claims, mut admitted) =
            (Vec::with_capacity(deliveries.len()), Vec::with_capacity(deliveries.len()));
        for delivery in deliveries {
            match admit(&self.shared, &self.lane, &delivery) {
                Ok(claim) => {
                    claims.push(claim);
                    admitted.push(delivery);
                }
                Err(error) => rejected.push(reject(&self.lane, &delivery, error)),
            }
        }

        let (claimed, in_doubt) = self.claim(claims).await;
        // In the order of the claims, of which those in doubt are the last.
        for ((claim, answer), delivery) in claimed.into_iter().zip(&admitted) {
            rejected.extend(self.start(claim, answer, delivery, &mut slots));
        }
        drop(slots);
        // The store may have taken what is in doubt, and nobody is going to run it here.
        self.shared.note_in_flight(in_doubt.iter().map(|claim| claim.spec.id));
        if !in_doubt.is_empty() || !self.keep(rejected).await {
            // What was claimed is recorded, so its redelivery is a duplicate; the rest comes again.
            self.give_back(settler, tokens).await;
            return false;
        }
        self.shared.crash.pass(CrashPoint::BeforeAck);
        self.acknowledge(settler, tokens).await;
        true
    }

    /// Puts deliveries back that nobody has looked at, for another worker. One without an ID must not come a second time,
    /// because then it passes for one that may have run: it becomes a job here, which the relay brings to a worker.
    pub(super) async fn put_back(&self, deliveries: Vec<Delivery>, settler: &Arc<dyn Settler>) {
        let (mut jobs, mut anonymous, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in deliveries {
            match anonymous_job(&self.shared, &self.lane, &delivery) {
                Some(job) => {
                    jobs.push(job);
                    anonymous.push(delivery.token);
                }
                None => others.push(delivery.token),
            }
        }
        let mut stored = self.store_all(&jobs).await.into_iter();
        let (known, unknown): (Vec<_>, Vec<_>) =
            anonymous.into_iter().partition(|_| stored.next().is_some_and(|stored| stored));
        others.extend(unknown);
        if !known.is_empty() {
            self.shared.services.relay_wake.notify_one();
            self.acknowledge(settler, known).await;
        }
        if !others.is_empty() {
            self.give_back(settler, others).await;
        }
    }

    /// Whether the store has each of these jobs now; nothing where it does not say so.
    async fn store_all(&self, jobs: &[Arc<JobSpec>]) -> Vec<bool> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let insert = self.shared.services.store.insert(jobs, Duration::ZERO);
        match self.shared.unless_interrupted(insert).await {
            Some(Ok(answers)) => {
                answers.iter().map(|answer| !matches!(answer, Inserted::Conflict(_))).collect()
            }
            Some(Err(error)) => {
                metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                tracing::warn!(queue = %self.lane, error = %chain(&error), "messages without an ID are given back and will be held");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Claims in one write. An error is why the database refuses what a job contains; claims without an answer are in
    /// doubt.
    async fn claim(&self, claims: Vec<Claim>) -> (Vec<(Claim, Result<Claimed, StoreError>)>, Vec<Claim>) {
        let (shared, persist) = (&*self.shared, &self.persist("claiming failed"));
        let write = |batch: Vec<Claim>| async move {
            shared.crash.pass(CrashPoint::BeforeClaim);
            metrics::CLAIM_BATCH.record([], batch.len() as f64);
            let started = Instant::now();
            let written =
                persist.until_taken(|| shared.services.store.claim(shared.options.id, &batch)).await;
            if written.is_ok() {
                metrics::CLAIM_DURATION.record([], started.elapsed().as_secs_f64());
            }
            let answers = each(&batch, written);
            (batch, answers)
        };
        bisect(claims, write).await
    }

    /// Keeps rejected messages; where the database refuses their text, their bytes alone. `false` if some are not kept.
    pub(super) async fn keep(&self, rejected: Vec<Rejected>) -> bool {
        let persist = &self.persist("rejected messages could not be kept");
        let write = |batch: Vec<Rejected>| async move {
            let store = &persist.shared.services.store;
            let mut kept = persist.until_taken(|| store.reject(&batch)).await;
            if let (Err(NotTaken::Refused(_)), [message]) = (&kept, &batch[..]) {
                let (plain, persist) =
                    ([message.clone().into_plain()], Persist { even_refused: true, ..*persist });
                kept = persist.until_taken(|| store.reject(&plain)).await;
            }
            let answers = kept.map(|()| vec![(); batch.len()]);
            (batch, answers)
        };
        bisect(rejected, write).await.1.is_empty()
    }

    /// Starts a job that was claimed, or counts why it was not. Returns a message that is rejected after all.
    fn start(
        &self,
        claim: Claim,
        answer: Result<Claimed, StoreError>,
        delivery: &Delivery,
        slots: &mut OwnedSemaphorePermit,
    ) -> Option<Rejected> {
        let result = match answer {
            Ok(Claimed::Running(receipt)) => {
                if let Some(slot) = slots.split(1) {
                    let published_at = delivery.properties.timestamp;
                    let job =
                        RunningJob::new(&self.shared, self.metrics.clone(), claim, receipt, published_at);
                    attempt::start(self.shared.clone(), job, slot);
                }
                self.metrics.running.increment(1);
                return None;
            }
            Ok(Claimed::Scheduled) => {
                self.shared.services.relay_wake.notify_one();
                "scheduled"
            }
            Ok(Claimed::Ended { state, kind }) => {
                self.metrics.finished(None, state.as_str());
                tracing::debug!(job.id = %claim.spec.id, kind = %kind, state = %state, "ended without a call");
                if claim.spec.reply_to.is_some() {
                    self.shared.services.relay_wake.notify_one();
                }
                "ended"
            }
            Ok(Claimed::Duplicate { .. }) => {
                metrics::DUPLICATES.add([self.lane.as_str()], 1);
                "duplicate"
            }
            Ok(Claimed::Gone) => {
                metrics::CLAIMS.add([self.lane.as_str(), "gone"], 1);
                let error = EnvelopeError::new(EnvelopeReason::UnknownJob, UNKNOWN_JOB);
                return Some(reject(&self.lane, delivery, error));
            }
            Ok(Claimed::Conflict(conflict)) => {
                metrics::CLAIMS.add([self.lane.as_str(), "conflict"], 1);
                let error = EnvelopeError::new(conflict.reason(), conflict.message());
                return Some(reject(&self.lane, delivery, error));
            }
            Err(error) => {
                let message = format!("the database refuses the job for a value in it: {error}");
                let error = EnvelopeError::new(EnvelopeReason::BadValue, message);
                return Some(reject(&self.lane, delivery, error));
            }
        };
        metrics::CLAIMS.add([self.lane.as_str(), result], 1);
        None
    }

    pub(super) fn persist(&self, failure: &'static str) -> Persist<'_> {
        Persist { lane: Some((&self.lane, &self.stop)), ..Persist::new(&self.shared, failure) }
    }

    pub(super) async fn acknowledge(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.ack(tokens)).await {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "acknowledging failed; the broker delivers again");
        }
    }

    pub(super) async fn give_back(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.give_back(tokens)).await
            && error.kind() != QueueErrorKind::Unavailable
        {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "giving deliveries back failed; the broker does it");
        }
    }
}
