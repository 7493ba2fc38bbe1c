//! One lane: take deliveries when there is room, admit them, claim them in one write, acknowledge,
//! and start the jobs.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Shared,
    crash::CrashPoint,
    execute,
    stall_detector::{CHECK_INTERVALS, StallDetector},
};
use crate::{
    backoff::RECONNECT,
    bounds::CLAIM_BATCH,
    failure::chain,
    job::{
        Arrival, EnvelopeError, EnvelopeReason, ErrorKind, HeldReason, JobError, JobId, NotReady, QueueName,
        RequestId, Stop, decode,
    },
    queue::{Delivery, Properties, QueueError, QueueErrorKind, Settler, Token},
    store::{Claim, Claimed, Rejected, StoreError, StoreErrorKind},
    telemetry::metrics::{self, LaneMetrics},
};

/// RabbitMQ's documented sweet spot ends at a few hundred unsettled deliveries; claims are short,
/// so more would only park messages that another worker could run.
const MAX_PREFETCH: u32 = 500;

/// Why a message is rejected whose ID, reply queue and headers are not known.
const UNREADABLE: &str = "the properties of the message cannot be read: a property or the name of a header is not UTF-8, \
    headers are nested deeper than 32 levels, or all of it is longer than one frame (128 KiB); publish it with short text \
    and flat headers (what came is kept as `unreadable`)";

/// The namespace of IDs of rejected messages, which are derived from the message.
const REJECTED_NAMESPACE: Uuid = Uuid::from_u128(0x2d0c_6f5a_9b7e_5f0e_8c52_6572_7261_6e64);

/// Consumes the lane until `stop`, through any number of lost connections.
pub(super) async fn run(shared: Arc<Shared>, name: QueueName, concurrency: u32, stop: CancellationToken) {
    let lane = Lane {
        permits: Arc::new(Semaphore::new(concurrency as usize)),
        prefetch: u16::try_from(concurrency.min(MAX_PREFETCH)).unwrap_or(u16::MAX),
        metrics: Arc::new(LaneMetrics::new(name.as_str())),
        name,
        shared,
    };
    let (mut failures, mut renewals) = (0, 0);
    while !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = lane.shared.lease.wait_until_fit() => {}
        }
        let ended = AssertUnwindSafe(lane.consume(&stop, &mut failures, &mut renewals)).catch_unwind().await;
        let ended = ended.unwrap_or_else(|_| {
            metrics::PANICS.add(1);
            Err(QueueError::new(QueueErrorKind::Unavailable, "a bug in errand ended the subscription"))
        });
        lane.shared.health.set_consuming(&lane.name, false);
        let Err(error) = ended else { return };
        failures += 1;
        let wait = RECONNECT.wait(failures, fastrand::f64());
        tracing::warn!(queue = %lane.name, error = %chain(&error), wait_ms = wait.as_millis(), "consuming ended; trying again");
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Compressed JSON is no JSON, and its first bytes do not say why.
fn with_encoding(error: EnvelopeError, properties: &Properties) -> EnvelopeError {
    if error.reason == EnvelopeReason::Malformed && properties.other.contains_key("content_encoding") {
        let hint = "it came with a content encoding, which errand does not undo: send it without";
        return EnvelopeError::new(error.reason, format!("{}; {hint}", error.message));
    }
    error
}

/// Stands for the answer of a store that did not come before the shutdown was over.
fn given_up() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "the worker stopped waiting for the store")
}

struct Lane {
    name: QueueName,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    prefetch: u16,
    metrics: Arc<LaneMetrics>,
}

/// A delivery that decoded into a job.
struct Admitted {
    claim: Claim,
    /// Kept for the case that the database refuses the job for what it contains.
    delivery: Delivery,
}

impl Lane {
    /// Consumes until `stop` (`Ok`) or until the subscription ends (`Err`). `failures` counts subscriptions that
    /// failed in a row, and `renewals` those that were made anew in a row because nothing came.
    async fn consume(
        &self,
        stop: &CancellationToken,
        failures: &mut u32,
        renewals: &mut u32,
    ) -> Result<(), QueueError> {
        let mut consumer = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            consumer = self.shared.deps.queue.consume(&self.name, self.prefetch) => consumer?,
        };
        let settler = consumer.settler();
        tracing::info!(queue = %self.name, prefetch = self.prefetch, "consuming");
        if self.shared.health.set_consuming(&self.name, true) {
            tracing::info!(worker.id = %self.shared.options.id, "worker ready");
        }
        *failures = 0;
        loop {
            let Some(permits) = self.room(stop).await else { break };
            let deliveries = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                deliveries = consumer.next(permits.num_permits()) => deliveries?,
                error = self.stalled(*renewals) => {
                    *renewals += 1;
                    return Err(error);
                }
            };
            *renewals = 0;
            if !self.take(deliveries, permits, &settler, stop).await {
                break;
            }
        }
        // What is left to the broker here comes again.
        let _stopped = self.shared.unless_interrupted(consumer.stop()).await;
        Ok(())
    }

    /// Checks the queue now and then while nothing comes, and returns when something should have come.
    async fn stalled(&self, renewals: u32) -> QueueError {
        let mut detector = StallDetector::default();
        loop {
            tokio::time::sleep(CHECK_INTERVALS.wait(renewals + 1, fastrand::f64())).await;
            let seen = self.shared.deps.queue.depth(&self.name).await;
            if let Err(stall) = detector.observe(&seen) {
                metrics::SUBSCRIPTIONS_RENEWED.add1(self.name.as_str(), 1);
                let sentence = format!("nothing comes through the subscription: {stall}");
                return QueueError::new(QueueErrorKind::Unavailable, sentence);
            }
        }
    }

    /// Waits until at least one job fits, and takes all the room there is up to one batch. `None`
    /// when the lane should stop.
    async fn room(&self, stop: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                permit = self.permits.clone().acquire_owned() => permit.ok()?,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = self.shared.lease.wait_until_fit() => {}
            }
            if self.shared.has_buffer_room() {
                let mut permits = first;
                let more = self.permits.available_permits().min(CLAIM_BATCH - 1);
                if let Ok(rest) =
                    self.permits.clone().try_acquire_many_owned(u32::try_from(more).unwrap_or(0))
                {
                    permits.merge(rest);
                }
                return Some(permits);
            }
            drop(first);
            // Results are being written; the next look is cheap and need not be exact.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes deliveries to their end as deliveries: rejected, claimed or given back. `false` when
    /// the lane should stop.
    async fn take(
        &self,
        deliveries: Vec<Delivery>,
        mut permits: OwnedSemaphorePermit,
        settler: &Arc<dyn Settler>,
        stop: &CancellationToken,
    ) -> bool {
        let tokens: Vec<Token> = deliveries.iter().map(|delivery| delivery.token).collect();
        let mut rejected = Vec::new();
        let mut admitted = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match self.admit(&delivery) {
                Ok(claim) => admitted.push(Admitted { claim, delivery }),
                Err(error) => rejected.push(self.rejected(&delivery, error)),
            }
        }

        let (claimed, complete) = self.claim(admitted, &mut rejected, stop).await;
        for (admitted, answer) in claimed {
            self.start(admitted, answer, &mut permits, &mut rejected);
        }
        drop(permits);
        if !complete || !self.keep_rejected(rejected, stop).await {
            // What was claimed is recorded, so its redelivery is a duplicate; the rest comes again.
            self.give_back(settler, tokens).await;
            return false;
        }
        self.shared.crash.pass(CrashPoint::BeforeAck);
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.ack(tokens)).await {
            tracing::debug!(queue = %self.name, error = %chain(&error), "acknowledging failed; the broker delivers again");
        }
        true
    }

    /// Decides what a delivery is, without waiting for anything.
    fn admit(&self, delivery: &Delivery) -> Result<Claim, EnvelopeError> {
        let options = &self.shared.options;
        let properties = &delivery.properties;
        if properties.unreadable.is_some() {
            return Err(EnvelopeError::new(EnvelopeReason::Malformed, UNREADABLE));
        }
        let anonymous = options.accept_unidentified.then(JobId::new);
        let arrival = Arrival {
            queue: &self.name,
            message_id: properties.message_id.as_deref(),
            reply_to: properties.reply_to.as_deref(),
            correlation_id: properties.correlation_id.as_deref(),
            traceparent: properties.traceparent.as_deref(),
            fallback_id: anonymous,
        };
        let spec = decode(&delivery.body, &arrival).map_err(|error| with_encoding(error, properties))?;
        let request_id = RequestId::new();
        let from_store = properties.from_store;
        let resolver = &self.shared.resolver;
        let (binding, stop) = if anonymous == Some(spec.id) && delivery.redelivered {
            let error = JobError::new(
                ErrorKind::UnknownOutcome,
                "the message has no ID and was delivered before, so it may have run; release the job to run it",
            );
            (None, Some(Stop::Hold { reason: HeldReason::Unidentified, error }))
        } else if let Err(error) = resolver.judge(&spec) {
            (None, Some(Stop::Fail { error }))
        } else {
            match resolver.decide_cached(&spec) {
                Some(Ok(binding)) => (Some(binding), None),
                // Known jobs may carry an earlier decision that still holds, which only the store
                // knows; what stops them is decided after the claim.
                Some(Err(NotReady::Stop(stop @ Stop::Fail { .. }))) if !from_store => (None, Some(stop)),
                // A job is not held before its time: by the store's clock it is scheduled, or found
                // wanting after the claim.
                Some(Err(NotReady::Stop(stop))) if !from_store && spec.run_at.is_none() => (None, Some(stop)),
                Some(Err(_)) | None => (None, None),
            }
        };
        Ok(Claim { spec: Arc::new(spec), request_id, binding, stop, from_store })
    }

    /// Claims in one write, again and again until the store has answered. A job that the database
    /// refuses for what it contains is moved to `rejected`. The second value is `false` when the lane
    /// should stop, with claims left that the store did not answer.
    async fn claim(
        &self,
        admitted: Vec<Admitted>,
        rejected: &mut Vec<Rejected>,
        stop: &CancellationToken,
    ) -> (Vec<(Admitted, Claimed)>, bool) {
        let mut done = Vec::with_capacity(admitted.len());
        let mut pieces = vec![admitted];
        while let Some(mut piece) = pieces.pop() {
            if piece.is_empty() {
                continue;
            }
            let claims: Vec<Claim> = piece.iter().map(|admitted| admitted.claim.clone()).collect();
            match self.write_claims(&claims, stop).await {
                Ok(answers) => done.extend(piece.into_iter().zip(answers)),
                Err(error) if error.kind() == StoreErrorKind::Data && piece.len() > 1 => {
                    let rest = piece.split_off(piece.len() / 2);
                    pieces.extend([rest, piece]);
                }
                Err(error) if error.kind() == StoreErrorKind::Data => {
                    for admitted in piece {
                        let error = EnvelopeError::new(
                            EnvelopeReason::BadValue,
                            format!("the database refuses the job for a value in it: {error}"),
                        );
                        rejected.push(self.rejected(&admitted.delivery, error));
                    }
                }
                Err(_) => {
                    // The store may have taken them, and nobody is going to run them here.
                    pieces.push(piece);
                    let in_doubt = pieces.iter().flatten().map(|admitted| admitted.claim.spec.id);
                    self.shared.note_held(in_doubt);
                    return (done, false);
                }
            }
        }
        (done, true)
    }

    async fn write_claims(
        &self,
        claims: &[Claim],
        stop: &CancellationToken,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.shared.crash.pass(CrashPoint::BeforeClaim);
        metrics::CLAIM_BATCH.record(claims.len() as f64);
        let started = tokio::time::Instant::now();
        let mut failures = 0;
        loop {
            let written = tokio::select! {
                biased;
                written = self.shared.deps.store.claim(self.shared.options.id, claims) => written,
                () = self.shared.give_up.cancelled() => Err(given_up()),
            };
            match written {
                Ok(answers) => {
                    metrics::CLAIM_DURATION.record(started.elapsed().as_secs_f64());
                    self.shared.health.store_answered();
                    if failures > 0 {
                        self.shared.health.set_consuming(&self.name, true);
                    }
                    return Ok(answers);
                }
                Err(error) if error.kind() == StoreErrorKind::Data => {
                    metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                    return Err(error);
                }
                Err(error) => {
                    metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                    failures += 1;
                    // Heartbeats may still succeed, on a full disk for example, but no job is taken.
                    self.shared.health.set_consuming(&self.name, false);
                    let wait = RECONNECT.wait(failures, fastrand::f64());
                    tracing::warn!(queue = %self.name, error = %chain(&error), jobs = claims.len(), wait_ms = wait.as_millis(), "claiming failed; trying again");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Err(error),
                        () = self.shared.give_up.cancelled() => return Err(error),
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// Starts a job that was claimed, or counts why it was not.
    fn start(
        &self,
        admitted: Admitted,
        answer: Claimed,
        permits: &mut OwnedSemaphorePermit,
        rejected: &mut Vec<Rejected>,
    ) {
        let queue = self.name.as_str();
        let Admitted { claim, delivery } = admitted;
        let result = match answer {
            Claimed::Running(receipt) => {
                if let Some(permit) = permits.split(1) {
                    let held = execute::Held::new(&self.shared, self.metrics.clone(), claim, receipt);
                    execute::start(self.shared.clone(), held, permit);
                }
                self.metrics.claimed(1);
                return;
            }
            Claimed::Scheduled => {
                self.shared.deps.relay_wake.notify_one();
                "scheduled"
            }
            Claimed::Ended { state, kind } => {
                self.metrics.finished(None, state.as_str());
                tracing::debug!(job.id = %claim.spec.id, kind = %kind, state = %state, "ended without a call");
                if claim.spec.reply_to.is_some() {
                    self.shared.deps.relay_wake.notify_one();
                }
                "ended"
            }
            Claimed::Duplicate { .. } => {
                metrics::DUPLICATES.add1(queue, 1);
                "duplicate"
            }
            Claimed::Gone => "gone",
            Claimed::Conflict(conflict) => {
                let error = EnvelopeError::new(conflict.reason(), conflict.message());
                rejected.push(self.rejected(&delivery, error));
                "conflict"
            }
        };
        metrics::CLAIMS.add2([queue, result], 1);
    }

    fn rejected(&self, delivery: &Delivery, error: EnvelopeError) -> Rejected {
        metrics::REJECTED.add1(error.reason.as_str(), 1);
        let properties = serde_json::to_string(&delivery.properties).unwrap_or_else(|_| "{}".into());
        let mut name = Vec::with_capacity(delivery.body.len() + 128);
        name.extend_from_slice(self.name.as_str().as_bytes());
        name.push(0);
        let Properties { message_id, unreadable, .. } = &delivery.properties;
        name.extend_from_slice(message_id.as_deref().or(unreadable.as_deref()).unwrap_or("").as_bytes());
        name.push(0);
        name.extend_from_slice(&delivery.body);
        tracing::warn!(queue = %self.name, reason = %error.reason, bytes = delivery.body.len(), "message rejected and kept");
        Rejected {
            id: Uuid::new_v5(&REJECTED_NAMESPACE, &name),
            queue: self.name.clone(),
            reason: error.reason,
            message: error.message,
            body: delivery.body.to_vec(),
            properties,
        }
    }

    /// Writes rejected messages, waiting for the store as long as it takes. `false` when the lane
    /// should stop.
    async fn keep_rejected(&self, rejected: Vec<Rejected>, stop: &CancellationToken) -> bool {
        let mut failures = 0;
        let mut pieces = vec![rejected];
        while let Some(mut piece) = pieces.pop() {
            if piece.is_empty() {
                continue;
            }
            let kept = tokio::select! {
                biased;
                kept = self.shared.deps.store.reject(&piece) => kept,
                () = self.shared.give_up.cancelled() => return false,
            };
            let Err(error) = kept else {
                if failures > 0 {
                    self.shared.health.set_consuming(&self.name, true);
                }
                continue;
            };
            if error.kind() == StoreErrorKind::Data && piece.iter().any(|message| !message.is_plain()) {
                if piece.len() > 1 {
                    let rest = piece.split_off(piece.len() / 2);
                    pieces.extend([rest, piece]);
                } else {
                    pieces.push(piece.into_iter().map(Rejected::into_plain).collect());
                }
                continue;
            }
            metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
            failures += 1;
            self.shared.health.set_consuming(&self.name, false);
            let wait = RECONNECT.wait(failures, fastrand::f64());
            tracing::warn!(queue = %self.name, error = %chain(&error), wait_ms = wait.as_millis(), "rejected messages could not be kept; trying again");
            pieces.push(piece);
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(wait) => {}
            }
        }
        true
    }

    async fn give_back(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.give_back(tokens)).await
            && error.kind() != QueueErrorKind::Unavailable
        {
            tracing::debug!(queue = %self.name, error = %chain(&error), "giving deliveries back failed; the broker does it");
        }
    }
}
