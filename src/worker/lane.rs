//! One lane: the subscription to its queue, and a slot for each job in flight. What is taken has its slot already, so it
//! can be run.
//!
//! The broker sends ahead what a subscription may have unsettled, so that a free slot finds its job at hand. While calls
//! are short that is taken within moments. While they are long it would be parked here, although another worker may be
//! idle: then the subscription ends, what was sent ahead goes back, and the next one may have as much as slots are free.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{intake::Intake, shared::Shared, stall_detector::stalled};
use crate::{
    backoff::RECONNECT,
    bounds::CLAIM_BATCH,
    clock::millis,
    failure::chain,
    health::Service,
    job::QueueName,
    queue::{Consumer, QueueError, QueueErrorKind},
    telemetry::metrics::{self, LaneMetrics},
};

/// RabbitMQ's documented sweet spot ends at a few hundred unsettled deliveries; claims are short,
/// so more would only park messages that another worker could run.
const MAX_PREFETCH: u32 = 500;

/// How long what the broker sent ahead may wait here for slots.
const MAX_PARKED: Duration = Duration::from_secs(1);

/// After so long without room for results a line in the log says so.
const BUFFER_PATIENCE: Duration = Duration::from_secs(10);

/// Consumes the lane until `stop`, through any number of lost connections.
pub(super) async fn run(shared: Arc<Shared>, name: QueueName, concurrency: u32, stop: CancellationToken) {
    let metrics = Arc::new(LaneMetrics::new(name.as_str()));
    let lane = Lane {
        slots: Arc::new(Semaphore::new(concurrency as usize)),
        most_ahead: u16::try_from(concurrency.min(MAX_PREFETCH)).unwrap_or(u16::MAX),
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
        let Err(error) = ended else {
            shared.health.takes_none(name, None);
            return;
        };
        let why = chain(&error);
        if matches!(error.kind(), QueueErrorKind::Unavailable | QueueErrorKind::Access) {
            shared.health.fails(Service::Broker, why.clone());
        }
        failures += 1;
        let wait = RECONNECT.wait(failures, fastrand::f64());
        tracing::warn!(queue = %name, error = why, wait_ms = millis(wait), "consuming ended; trying again");
        shared.health.takes_none(name, Some(why));
        stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

struct Lane {
    slots: Arc<Semaphore>,
    /// The prefetch of a subscription while slots come free quickly.
    most_ahead: u16,
    intake: Intake,
}

/// How a subscription ended in order.
enum End {
    Stopped,
    /// Another one should follow, which has at least so much ahead, or as much as slots are free.
    Renew(usize),
}

impl Lane {
    /// Consumes until the stop (`Ok`) or until a subscription ends by itself (`Err`). `failures` counts subscriptions
    /// that failed in a row, and `renewals` those that were made anew in a row because nothing came.
    async fn consume(&self, failures: &mut u32, renewals: &mut u32) -> Result<(), QueueError> {
        let Intake { lane: name, shared, stop, .. } = &self.intake;
        let mut ahead = self.most_ahead;
        let mut subscriptions = 0_u64;
        loop {
            if !self.until_not_paused().await {
                return Ok(());
            }
            let consumer = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                consumer = shared.services.queue.consume(name, ahead) => consumer?,
            };
            subscriptions += 1;
            if subscriptions == 1 {
                tracing::info!(queue = %name, prefetch = ahead, "consuming");
            } else {
                tracing::debug!(queue = %name, prefetch = ahead, subscriptions, "consuming anew");
            }
            shared.health.works(Service::Broker);
            if shared.health.takes(name) {
                tracing::info!(worker.id = %shared.options.id, "worker ready");
            }
            *failures = 0;
            let End::Renew(least) = self.take_from(consumer, ahead, renewals).await? else { return Ok(()) };
            let Some(slots) = self.free_slots().await else { return Ok(()) };
            let wanted = least.max(slots.num_permits());
            ahead = u16::try_from(wanted).unwrap_or(u16::MAX).clamp(1, self.most_ahead);
        }
    }

    /// Waits as long as the queue is paused, in which there is nothing wrong with the lane. `false` when it should stop.
    async fn until_not_paused(&self) -> bool {
        let Intake { lane: name, shared, stop, .. } = &self.intake;
        if shared.pauses.has(name) {
            tracing::info!(queue = %name, "the queue is paused: nothing is taken from it");
            if shared.health.takes(name) {
                tracing::info!(worker.id = %shared.options.id, "worker ready");
            }
            stop.run_until_cancelled(shared.pauses.end(name)).await;
        }
        !stop.is_cancelled()
    }

    /// Takes deliveries of a subscription that may have so many `ahead`.
    async fn take_from(
        &self,
        mut consumer: Box<dyn Consumer>,
        ahead: u16,
        renewals: &mut u32,
    ) -> Result<End, QueueError> {
        let Intake { shared, stop, .. } = &self.intake;
        let settler = consumer.settler();
        let mut parked = Parked::new(ahead);
        let end = loop {
            if shared.pauses.has(&self.intake.lane) {
                break End::Renew(0);
            }
            let waiting = Instant::now();
            let slots = match tokio::time::timeout(parked.patience(), self.free_slots()).await {
                Ok(Some(slots)) => slots,
                Ok(None) => break End::Stopped,
                // Half of what slots came free for would wait here for half as long.
                Err(_elapsed) => break End::Renew(parked.taken / 2),
            };
            parked.waited += waiting.elapsed();
            let room = slots.num_permits();
            if self.wants_more(ahead, room) {
                break End::Renew(room);
            }
            let mut next = consumer.next(room);
            let deliveries = if let Some(at_hand) = (&mut next).now_or_never() {
                at_hand?
            } else {
                let arrived = tokio::select! {
                    biased;
                    () = stop.cancelled() => break End::Stopped,
                    () = shared.pauses.begin(&self.intake.lane) => break End::Renew(0),
                    arrived = next => arrived?,
                    error = stalled(shared, &self.intake.lane, *renewals) => {
                        *renewals += 1;
                        return Err(error);
                    }
                };
                parked = Parked::new(ahead);
                arrived
            };
            *renewals = 0;
            let taken = deliveries.len();
            if !self.intake.take(deliveries, slots, &settler).await {
                break End::Stopped;
            }
            parked.note(taken, room);
        };
        // What cannot be put back in time is left to the broker, and comes again.
        if let Some(unseen) = shared.unless_interrupted(consumer.stop()).await {
            self.intake.put_back(unseen, &settler).await;
        }
        Ok(end)
    }

    /// Whether so many free slots deserve a subscription that has more ahead. It has at least twice as much then, or all,
    /// so that few steps lead from one to the most.
    fn wants_more(&self, ahead: u16, room: usize) -> bool {
        ahead < self.most_ahead && room >= usize::from(ahead.saturating_mul(2).min(self.most_ahead))
    }

    /// Waits until a slot is free, and takes all that are free up to one batch. `None` when the lane should stop.
    async fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let Intake { shared, stop, .. } = &self.intake;
        let (mut full_since, mut is_told) = (None, false);
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
            if full_since.get_or_insert_with(Instant::now).elapsed() > BUFFER_PATIENCE && !is_told {
                is_told = true;
                tracing::warn!(
                    queue = %self.intake.lane,
                    "no job is taken: results that the store has not taken fill `worker.max_buffered_bytes`"
                );
            }
            // Results are being written; the next look is cheap and need not be exact.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Notices when what the broker sent ahead waits here too long for slots. It comes in order, so once as much was taken
/// as may be ahead, everything that waited at the beginning is gone. Time that claims take does not count, because
/// another worker would need it too.
#[derive(Debug)]
struct Parked {
    ahead: usize,
    waited: Duration,
    taken: usize,
}

impl Parked {
    fn new(ahead: u16) -> Self {
        Self { ahead: ahead.into(), waited: Duration::ZERO, taken: 0 }
    }

    /// Notes how many deliveries were taken, and for how many there was room.
    fn note(&mut self, taken: usize, room: usize) {
        self.taken += taken;
        if taken < room || self.taken >= self.ahead {
            self.waited = Duration::ZERO;
            self.taken = 0;
        }
    }

    /// How long the next slot may let it wait.
    fn patience(&self) -> Duration {
        MAX_PARKED.saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_at_full_load_parks_nothing_too_long_and_one_with_long_calls_does() {
        let millis = Duration::from_millis;
        // 256 ahead: slots come free singly, every so often, and there is always more.
        for (every, too_long) in
            [(millis(1), false), (millis(3), false), (millis(5), true), (millis(500), true)]
        {
            let mut parked = Parked::new(256);
            let mut was_too_long = false;
            for _ in 0..1_000 {
                was_too_long |= parked.patience() < every;
                parked.waited += every;
                parked.note(1, 1);
            }
            assert_eq!(was_too_long, too_long, "{every:?}");
        }
        // With nothing left behind, nothing is parked, however slowly slots come free.
        let mut parked = Parked::new(256);
        for _ in 0..10 {
            parked.waited += millis(900);
            assert!(parked.patience() > millis(0));
            parked.note(3, 4);
        }
    }
}
