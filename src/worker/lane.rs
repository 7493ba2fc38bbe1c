//! One lane: the subscription to its queue, and a slot for each job in flight. What is received has its slot
//! already, so it can be run.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    intake::Intake,
    shared::Shared,
    stall_detector::{CHECK_INTERVALS, StallDetector},
};
use crate::{
    backoff::RECONNECT,
    bounds::CLAIM_BATCH,
    failure::chain,
    job::QueueName,
    queue::{QueueError, QueueErrorKind},
    telemetry::metrics::{self, LaneMetrics},
};

/// RabbitMQ's documented sweet spot ends at a few hundred unsettled deliveries; claims are short,
/// so more would only park messages that another worker could run.
const MAX_PREFETCH: u32 = 500;

/// Consumes the lane until `stop`, through any number of lost connections.
pub(super) async fn run(shared: Arc<Shared>, name: QueueName, concurrency: u32, stop: CancellationToken) {
    let metrics = Arc::new(LaneMetrics::new(name.as_str()));
    let lane = Lane {
        slots: Arc::new(Semaphore::new(concurrency as usize)),
        prefetch: u16::try_from(concurrency.min(MAX_PREFETCH)).unwrap_or(u16::MAX),
        intake: Intake { lane: name, shared, metrics, stop },
    };
    let Intake { lane: name, shared, stop, .. } = &lane.intake;
    let (mut failures, mut renewals) = (0, 0);
    while !stop.is_cancelled() {
        stop.run_until_cancelled(shared.lease.wait_until_fit()).await;
        if stop.is_cancelled() {
            return;
        }
        let ended = AssertUnwindSafe(lane.consume(&mut failures, &mut renewals)).catch_unwind().await;
        let ended = ended.unwrap_or_else(|_| {
            metrics::PANICS.add([], 1);
            Err(QueueError::new(QueueErrorKind::Unavailable, "a bug in errand ended the subscription"))
        });
        shared.health.set_taking(name, false);
        let Err(error) = ended else { return };
        failures += 1;
        let wait = RECONNECT.wait(failures, fastrand::f64());
        tracing::warn!(queue = %name, error = %chain(&error), wait_ms = wait.as_millis(), "consuming ended; trying again");
        stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

struct Lane {
    slots: Arc<Semaphore>,
    prefetch: u16,
    intake: Intake,
}

impl Lane {
    /// Consumes until the stop (`Ok`) or until the subscription ends (`Err`). `failures` counts subscriptions that
    /// failed in a row, and `renewals` those that were made anew in a row because nothing came.
    async fn consume(&self, failures: &mut u32, renewals: &mut u32) -> Result<(), QueueError> {
        let Intake { lane: name, shared, stop, .. } = &self.intake;
        let mut consumer = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            consumer = shared.services.queue.consume(name, self.prefetch) => consumer?,
        };
        let settler = consumer.settler();
        tracing::info!(queue = %name, prefetch = self.prefetch, "consuming");
        if shared.health.set_taking(name, true) {
            tracing::info!(worker.id = %shared.options.id, "worker ready");
        }
        *failures = 0;
        loop {
            let Some(slots) = self.free_slots().await else { break };
            let deliveries = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                deliveries = consumer.next(slots.num_permits()) => deliveries?,
                error = self.stalled(*renewals) => {
                    *renewals += 1;
                    return Err(error);
                }
            };
            *renewals = 0;
            if !self.intake.take(deliveries, slots, &settler).await {
                break;
            }
        }
        // What is left to the broker here comes again.
        let _stopped = shared.unless_interrupted(consumer.stop()).await;
        Ok(())
    }

    /// Checks the queue now and then while nothing comes, and returns when something should have come.
    async fn stalled(&self, renewals: u32) -> QueueError {
        let Intake { lane: name, shared, .. } = &self.intake;
        let mut detector = StallDetector::default();
        loop {
            tokio::time::sleep(CHECK_INTERVALS.wait(renewals + 1, fastrand::f64())).await;
            let seen = shared.services.queue.depth(name).await;
            if let Err(stall) = detector.observe(&seen) {
                metrics::SUBSCRIPTIONS_RENEWED.add([name.as_str()], 1);
                let sentence = format!("nothing comes through the subscription: {stall}");
                return QueueError::new(QueueErrorKind::Unavailable, sentence);
            }
        }
    }

    /// Waits until a slot is free, and takes all that are free up to one batch. `None` when the lane should stop.
    async fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let Intake { shared, stop, .. } = &self.intake;
        loop {
            let mut slots = stop.run_until_cancelled(self.slots.clone().acquire_owned()).await?.ok()?;
            stop.run_until_cancelled(shared.lease.wait_until_fit()).await?;
            if shared.has_buffer_room() {
                let more = self.slots.available_permits().min(CLAIM_BATCH - 1);
                let more = u32::try_from(more).unwrap_or(0);
                if let Ok(rest) = self.slots.clone().try_acquire_many_owned(more) {
                    slots.merge(rest);
                }
                return Some(slots);
            }
            drop(slots);
            // Results are being written; the next look is cheap and need not be exact.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
