//! Deliveries, from the broker to running jobs: admitted, claimed in one write, started, acknowledged. What was
//! not recorded is given back to the broker.

use std::sync::Arc;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    admit::{admit, reject},
    attempt,
    crash::CrashPoint,
    persist::{Bisected, NotTaken, Persist, bisect, each},
    running_job::RunningJob,
    shared::Shared,
};
use crate::{
    failure::chain,
    in_flight::Noted,
    job::{EnvelopeError, EnvelopeReason, QueueName},
    queue::{Delivery, QueueErrorKind, Settler, Token},
    store::{Claim, Claimed, Rejected, StoreError},
    telemetry::metrics::{self, LaneMetrics},
};

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
                Err(error) => rejected.push((delivery.token, reject(&self.lane, &delivery, error))),
            }
        }

        let in_flight = &self.shared.in_flight;
        let mut noted: Vec<Option<Noted>> =
            claims.iter().map(|claim| Some(in_flight.note(claim.request_id, claim.spec.id))).collect();
        let Bisected { done, failing, left } = self.claim(claims).await;
        for (place, claim, answer) in done {
            let Some(noted) = noted[place].take() else { continue };
            rejected.extend(self.start(claim, answer, &admitted[place], noted, &mut slots));
        }
        drop(slots);
        let mut unsettled: Vec<Token> = failing.iter().map(|(place, _)| admitted[*place].token).collect();
        // The store may have taken what is in doubt, and nobody is going to run it here.
        left.iter().filter_map(|(place, _)| noted[*place].take()).for_each(Noted::leave);
        let kept = self.keep(rejected).await;
        if !left.is_empty() || !kept.left.is_empty() {
            // What was claimed is recorded, so its redelivery is a duplicate; the rest comes again.
            self.give_back(settler, tokens).await;
            return false;
        }
        unsettled.extend(kept.failing.into_iter().map(|(_, (token, _))| token));
        let settled = tokens.into_iter().filter(|token| !unsettled.contains(token)).collect();
        self.shared.crash.pass(CrashPoint::BeforeAck);
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.ack(settled)).await {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "acknowledging failed; the broker delivers again");
        }
        if !unsettled.is_empty() {
            tracing::warn!(queue = %self.lane, messages = unsettled.len(), "messages that the store does not take are given back");
            self.give_back(settler, unsettled).await;
        }
        true
    }

    /// Claims in one write. An error is why the database refuses what a job contains; claims that are left are in doubt.
    async fn claim(&self, claims: Vec<Claim>) -> Bisected<Claim, Result<Claimed, StoreError>> {
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
        bisect(claims, claim_bytes, write).await
    }

    /// Keeps rejected messages; where the database refuses their text, their bytes alone.
    async fn keep(&self, rejected: Vec<(Token, Rejected)>) -> Bisected<(Token, Rejected), ()> {
        let persist = &self.persist("rejected messages could not be kept");
        let write = |batch: Vec<(Token, Rejected)>| async move {
            let store = &persist.shared.services.store;
            let (tokens, messages): (Vec<Token>, Vec<Rejected>) = batch.into_iter().unzip();
            let mut kept = persist.until_taken(|| store.reject(&messages)).await;
            if let (Err(NotTaken::Refused(_)), [message]) = (&kept, &messages[..]) {
                let (plain, persist) =
                    ([message.clone().into_plain()], Persist { even_refused: true, ..*persist });
                kept = persist.until_taken(|| store.reject(&plain)).await;
            }
            let answers = kept.map(|()| vec![(); messages.len()]);
            (tokens.into_iter().zip(messages).collect(), answers)
        };
        bisect(rejected, |(_, message)| message.body.len(), write).await
    }

    /// Starts a job that was claimed, or counts why it was not. Returns a message that is rejected after all.
    fn start(
        &self,
        claim: Claim,
        answer: Result<Claimed, StoreError>,
        delivery: &Delivery,
        noted: Noted,
        slots: &mut OwnedSemaphorePermit,
    ) -> Option<(Token, Rejected)> {
        let result = match answer {
            Ok(Claimed::Running(receipt)) => {
                if let Some(slot) = slots.split(1) {
                    let job = RunningJob::new(&self.shared, self.metrics.clone(), claim, receipt, noted);
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
            Ok(Claimed::Gone) => "gone",
            Ok(Claimed::Conflict(conflict)) => {
                metrics::CLAIMS.add([self.lane.as_str(), "conflict"], 1);
                let error = EnvelopeError::new(conflict.reason(), conflict.message());
                return Some((delivery.token, reject(&self.lane, delivery, error)));
            }
            Err(error) => {
                let message = format!("the database refuses the job for a value in it: {error}");
                let error = EnvelopeError::new(EnvelopeReason::BadValue, message);
                return Some((delivery.token, reject(&self.lane, delivery, error)));
            }
        };
        metrics::CLAIMS.add([self.lane.as_str(), result], 1);
        None
    }

    fn persist(&self, failure: &'static str) -> Persist<'_> {
        Persist { lane: Some((&self.lane, &self.stop)), ..Persist::new(&self.shared, failure) }
    }

    async fn give_back(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.give_back(tokens)).await
            && error.kind() != QueueErrorKind::Unavailable
        {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "giving deliveries back failed; the broker does it");
        }
    }
}

/// What a claim weighs in a write, in bytes; the rest of a job is short.
fn claim_bytes(claim: &Claim) -> usize {
    let spec = &claim.spec;
    spec.arguments.as_ref().map_or(0, |arguments| arguments.get().len())
        + spec.text.as_ref().map_or(0, String::len)
}
