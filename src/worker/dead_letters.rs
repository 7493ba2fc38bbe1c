//! What the broker has dead-lettered, because it waited too long, was given back too often or found no room: it becomes a
//! job of the lane from which it comes. The job is stored before its message is acknowledged, and the relay brings it to
//! a worker as it does any other job that is due.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    admit::{guarded, reject, repeat},
    intake::{Intake, Records, UNKNOWN_JOB},
    persist::{Unwritten, bisect, each},
    shared::Shared,
    stall_detector::stalled,
};
use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::{Arrival, EnvelopeError, EnvelopeReason, JobSpec, Principal, QueueName, decode},
    queue::{Delivery, QueueError, Settler, Token},
    store::{Inserted, Rejected, Repeat, StoreError, StoreErrorKind},
    telemetry::metrics::{self, LaneMetrics},
};

/// Messages that are taken together. They are few where all is well.
const BATCH: u16 = 100;

/// Why a message is not a job that came straight to the dead-letter queue.
const NOT_DEAD: &str = "the message came through the dead-letter queue `errand.dead`, and its header x-death names no lane: \
    publish jobs to the exchange `errand`";

/// Takes what is dead-lettered until `stop`, through any number of lost connections.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let metrics = Arc::new(LaneMetrics::new(QueueName::DEAD));
    let intake = Intake { lane: QueueName::dead(), shared, metrics, stop };
    let (mut failures, mut renewals) = (0, 0);
    while !intake.stop.is_cancelled() {
        let Err(error) = consume(&intake, &mut failures, &mut renewals).await else { return };
        failures += 1;
        let wait = RECONNECT.wait(failures, fastrand::f64());
        if failures == 1 {
            // A broker whose user may not declare the queue, for example, goes on refusing it.
            tracing::info!(error = %chain(&error), "what the broker dead-letters cannot be looked at; trying again");
        }
        intake.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

async fn consume(intake: &Intake, failures: &mut u32, renewals: &mut u32) -> Result<(), QueueError> {
    let Intake { lane, shared, stop, .. } = intake;
    let Some(consumer) = stop.run_until_cancelled(shared.services.queue.consume(lane, BATCH)).await else {
        return Ok(());
    };
    let mut consumer = consumer?;
    *failures = 0;
    let settler = consumer.settler();
    loop {
        let deliveries = tokio::select! {
            biased;
            // What is left to the broker here comes again.
            () = stop.cancelled() => return Ok(()),
            deliveries = consumer.next(BATCH.into()) => deliveries?,
            error = stalled(shared, lane, *renewals) => {
                *renewals += 1;
                return Err(error);
            }
        };
        *renewals = 0;
        if !take(intake, deliveries, &settler).await {
            return Ok(());
        }
    }
}

/// Takes deliveries to their end: stored, rejected or given back. `false` when the worker should stop.
async fn take(intake: &Intake, deliveries: Vec<Delivery>, settler: &Arc<dyn Settler>) -> bool {
    let tokens: Vec<Token> = deliveries.iter().map(|delivery| delivery.token).collect();
    let arrived = intake.shared.heads.arrive(&intake.lane, deliveries.len());
    let (mut rejected, mut admitted) = (Vec::new(), Vec::new());
    for delivery in deliveries {
        metrics::DEAD_LETTERS.add([], 1);
        match job_of(intake, &delivery).await {
            Ok(Some(job)) => admitted.push((job, delivery)),
            Ok(None) => {}
            Err(Refusal::Envelope(error)) => {
                rejected.push((delivery.token, reject(&intake.shared, &lane_of(&delivery), &delivery, error)))
            }
            Err(Refusal::Store(error)) => {
                metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                tracing::warn!(error = %chain(&error), "dead letters could not be taken; trying again");
                intake.give_back(settler, tokens).await;
                return intake.stop.run_until_cancelled(tokio::time::sleep(RECONNECT.max)).await.is_some();
            }
        }
    }
    let Stored { refused, repeats, failing, all_known } = store(intake, admitted).await;
    let taken = tokens.len().saturating_sub(failing.len()) as u64;
    intake.metrics.taken.increment(taken);
    intake.shared.heads.take(&intake.lane, taken, None, intake.shared.services.clock.now());
    drop(arrived);
    rejected.extend(refused);
    intake.shared.services.relay_wake.notify_one();
    intake.settle(tokens, failing, Records { rejected, repeats, all_known }, settler).await
}

/// What became of dead letters that are jobs.
struct Stored {
    /// They are rejected after all.
    refused: Vec<(Token, Rejected)>,
    /// They repeat jobs.
    repeats: Vec<(Token, Repeat)>,
    /// The store does not take them.
    failing: Vec<Token>,
    /// Whether the store has answered for all.
    all_known: bool,
}

/// Why a dead letter does not become a job.
enum Refusal {
    Envelope(EnvelopeError),
    /// It may still become one.
    Store(StoreError),
}

/// The job of a dead letter, if it is to be stored. A message without an ID is not one, because it may have run.
async fn job_of(intake: &Intake, delivery: &Delivery) -> Result<Option<Arc<JobSpec>>, Refusal> {
    let Intake { shared, .. } = intake;
    let properties = &delivery.properties;
    let lane = died_in(delivery)
        .ok_or_else(|| Refusal::Envelope(EnvelopeError::new(EnvelopeReason::BadValue, NOT_DEAD)))?;
    let arrival = Arrival { known: properties.from_store, ..properties.arrival(&lane, None) };
    let spec = guarded(|| {
        let spec = decode(&delivery.body, &arrival)?;
        if !properties.from_store {
            shared.resolver.check_message(&spec)?;
        }
        Ok(spec)
    });
    let spec = spec.map_err(Refusal::Envelope)?;
    if properties.from_store {
        match shared.services.store.job(&Principal::Operator, spec.id).await {
            // The relay publishes it again by itself. Stored again, it would be a new job if it were removed right now.
            Ok(Some(job)) if job.is_asked_by(&spec) => {
                return Ok(None);
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(Refusal::Envelope(EnvelopeError::new(EnvelopeReason::UnknownJob, UNKNOWN_JOB)));
            }
            Err(error) if error.kind() != StoreErrorKind::Corrupt => return Err(Refusal::Store(error)),
            // It is there, in words of a newer version.
            Err(_) => {}
        }
    }
    Ok(Some(Arc::new(spec)))
}

async fn store(intake: &Intake, admitted: Vec<(Arc<JobSpec>, Delivery)>) -> Stored {
    let (specs, deliveries): (Vec<_>, Vec<_>) = admitted.into_iter().unzip();
    let persist = &intake.persist("dead letters could not be stored");
    let write = |batch: Vec<Arc<JobSpec>>, tries| async move {
        let insert = || persist.shared.services.store.insert(&batch, Duration::ZERO);
        let written = persist.trying(tries).until_taken(insert).await;
        let answers = each(&batch, written);
        (batch, answers)
    };
    let (mut refused, mut repeats) = (Vec::new(), Vec::new());
    let done = |place: usize, spec: Arc<JobSpec>, answer| {
        let delivery: &Delivery = &deliveries[place];
        let error = match answer {
            Ok(Inserted::New(_)) => return,
            Ok(Inserted::Duplicate(repeated)) => {
                let repeat = repeat(&intake.shared, &lane_of(delivery), delivery, &spec, &repeated);
                repeats.extend(repeat.map(|repeat| (delivery.token, repeat)));
                return;
            }
            Ok(Inserted::Conflict(conflict)) => EnvelopeError::new(conflict.reason(), conflict.message()),
            Err(error) => {
                let message = format!("the database refuses the job for a value in it: {error}");
                EnvelopeError::new(EnvelopeReason::BadValue, message)
            }
        };
        refused.push((delivery.token, reject(&intake.shared, &lane_of(delivery), delivery, error)));
    };
    let Unwritten { failing, left } = bisect(specs, |spec| spec.weight(), write, done).await;
    let failing = failing.iter().map(|(place, _)| deliveries[*place].token).collect();
    Stored { refused, repeats, failing, all_known: left.is_empty() }
}

/// The lane from which a dead letter comes. Workers with other settings may know it if this one does not.
fn died_in(delivery: &Delivery) -> Option<QueueName> {
    delivery.properties.died_in.as_deref()?.parse().ok().filter(|lane| *lane != QueueName::dead())
}

fn lane_of(delivery: &Delivery) -> QueueName {
    died_in(delivery).unwrap_or_else(QueueName::dead)
}
