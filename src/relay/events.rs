//! Events for whoever listens at the broker: each is published to its exchange.
//!
//! One worker at a time does so. An event goes out when the broker has confirmed those before it that are about the same job or
//! batch, so that each queue has them in their order. The store knows up to which position all are confirmed. A process that
//! dies, or two that hold themselves for the one, publish some again: a listener knows those by their sequence, which is not
//! behind that of the last one it had of the job or the batch.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::{Principal, WorkerId},
    queue::{Address, Message, Properties, QueueError, SharedQueue},
    services::Services,
    store::{Event, EventKind, EventListener, EventsAfter, EventsOf, Heard, SharedStore, StoreError, Task},
    task_lease::{ASKED_EVERY, TaskLease},
    telemetry::metrics,
};

/// How often the store is asked for new events.
const LOOK: Duration = Duration::from_millis(100);

/// After so many failures in a row, another worker may try.
const PATIENCE: u32 = 5;

/// Most routing keys of which it is kept that some were not taken; then all are offered again.
const MOST_FEW: usize = 1_000;

/// The most events that are read together.
const PAGE: usize = 500;

/// The third word of the routing key of an event that is about no toolkit, so that each key has three.
const NO_TOOLKIT: &str = "none";

/// The longest third word, in bytes: AMQP has 255 for a whole key.
const MAX_TOOLKIT_BYTES: usize = 128;

#[derive(Debug)]
pub struct EventPublisher {
    store: SharedStore,
    queue: SharedQueue,
    lease: TaskLease,
    /// `None` where this worker has published nothing yet, or not lately.
    published: Option<Published>,
}

/// What is published beyond the position up to which all is.
#[derive(Debug, Default)]
struct Published {
    /// Events that one before them, which the broker does not take, keeps from counting.
    beyond: HashSet<u64>,
    /// For routing keys of which some were not taken, how many are offered together at most: one, and ever more when that is taken.
    /// Where one queue refuses an event, all others that it is for have it, and get it again each time that it is offered.
    few: HashMap<String, usize>,
}

/// What became of a round.
#[derive(Debug)]
enum Round {
    More,
    Done,
    /// Another worker publishes.
    NotOurs,
    Failed(QueueError),
}

impl EventPublisher {
    pub fn new(services: &Services, worker: WorkerId) -> Self {
        let Services { store, queue, .. } = services.clone();
        let lease = TaskLease::new(store.clone(), Task::PublishEvents, worker);
        Self { store, queue, lease, published: None }
    }

    /// Publishes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut failures, mut told) = (0, None);
        while !stop.is_cancelled() {
            let round = self.run_once().await;
            let failed = match &round {
                Ok(Round::Failed(error)) => {
                    Some((error.kind().as_str(), "events cannot be published; trying again", chain(error)))
                }
                Err(error) => {
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    let what = "the store does not say which events are to be published; trying again";
                    Some((error.kind().as_str(), what, chain(error)))
                }
                Ok(Round::More | Round::Done | Round::NotOurs) => None,
            };
            failures = if failed.is_some() { failures + 1 } else { 0 };
            // Once for each reason, while it lasts.
            if let Some((kind, what, why)) = &failed
                && told != Some(*kind)
            {
                tracing::warn!(error = why, "{what}");
            }
            told = failed.map(|(kind, ..)| kind);
            if matches!(&round, Err(error) if error.is_unanswered()) {
                // After a failover the store may know less.
                self.published = None;
            }
            if failures == PATIENCE {
                // Perhaps it is this worker alone that cannot.
                self.lease.leave().await;
                self.published = None;
            }
            let wait = match round {
                Ok(Round::More) => continue,
                Ok(Round::Done) => LOOK,
                Ok(Round::NotOurs) => ASKED_EVERY,
                Ok(Round::Failed(_)) | Err(_) => RECONNECT.wait(failures, fastrand::f64()),
            };
            stop.run_until_cancelled(sleep(wait)).await;
        }
        self.lease.leave().await;
    }

    /// Publishes a page of events, if this worker has the task.
    ///
    /// # Errors
    /// The store does not answer. What was published and could not be noted is not published again by this process, unless the store
    /// was gone meanwhile.
    async fn run_once(&mut self) -> Result<Round, StoreError> {
        // Whoever has the task: what happens from the first round on is to be published.
        let Heard { up_to: published_to, last } = self.store.heard(EventListener::Exchange).await?;
        if !self.lease.is_held().await? {
            self.published = None;
            metrics::EVENTS_TO_PUBLISH.set([], 0.0);
            return Ok(Round::NotOurs);
        }
        let events = last.saturating_sub(published_to);
        metrics::EVENTS_TO_PUBLISH.set([], events as f64);
        let published = match &mut self.published {
            Some(published) => published,
            none => {
                // So that queues can be bound to it before the first event.
                if let Err(error) = self.queue.check_events().await {
                    metrics::EVENT_MESSAGES.add(["failed"], events.min(1));
                    return Ok(Round::Failed(error));
                }
                none.insert(Published::default())
            }
        };
        if last == published_to {
            return Ok(Round::Done);
        }
        let behind = self.store.events(&Principal::Operator, EventsOf::All, Some(published_to), PAGE).await?;
        let (failed, up_to) = match behind {
            EventsAfter::Are { events, next } => {
                let failed = published.publish(&self.queue, &events).await;
                (failed, published.up_to_with(&events, next))
            }
            EventsAfter::Removed { up_to } => {
                let sent = published
                    .beyond
                    .iter()
                    .filter(|position| (published_to + 1..=up_to).contains(position))
                    .count() as u64;
                let events = up_to - published_to - sent;
                metrics::EVENT_MESSAGES.add(["passed_over"], events);
                tracing::error!(
                    events,
                    "events were removed for their age before they could be published; keep them for longer \
                     (retention.events_days)"
                );
                (None, up_to)
            }
            // The store was restored from an earlier copy of itself.
            EventsAfter::ToCome => {
                self.published = None;
                return Ok(Round::Done);
            }
        };
        if up_to > published_to {
            self.store.note_heard(EventListener::Exchange, up_to).await?;
            published.beyond.retain(|position| *position > up_to);
        }
        Ok(match failed {
            Some(error) => Round::Failed(error),
            None if up_to < last => Round::More,
            None => Round::Done,
        })
    }
}

impl Published {
    /// Up to where all is published, of which these are the events behind what was, up to `next`.
    fn up_to_with(&self, events: &[Event], next: u64) -> u64 {
        let open = events.iter().map(|event| event.position).find(|position| !self.beyond.contains(position));
        open.map_or(next, |open| open - 1)
    }

    /// Publishes those of a page that are not published, or some of them. The first error of those that the broker does not take.
    async fn publish(&mut self, queue: &SharedQueue, events: &[Event]) -> Option<QueueError> {
        for wave in waves(events) {
            let open: Vec<(String, &Event)> = wave
                .into_iter()
                .filter(|event| !self.beyond.contains(&event.position))
                .map(|event| (routing_key(event), event))
                .collect();
            let (offered, is_whole) = self.offered(open);
            let messages = offered.iter().map(|(key, event)| message(key, event)).collect();
            let answers = queue.publish(messages).await;
            let (mut sent, mut failed) = (0, Vec::new());
            let mut taken = HashSet::new();
            for ((key, event), answer) in offered.into_iter().zip(answers) {
                match answer {
                    Ok(()) => {
                        self.beyond.insert(event.position);
                        sent += 1;
                        taken.insert(key);
                    }
                    Err(error) => failed.push((key, error)),
                }
            }
            metrics::EVENT_MESSAGES.add(["sent"], sent);
            metrics::EVENT_MESSAGES.add(["failed"], failed.len() as u64);
            for key in taken {
                let more = self.few.remove(&key).map(|few| 2 * few).filter(|more| *more < PAGE);
                self.few.extend(more.map(|more| (key, more)));
            }
            if self.few.len() > MOST_FEW {
                self.few.clear();
            }
            self.few.extend(failed.iter().map(|(key, _)| (key.clone(), 1)));
            if let Some((_, error)) = failed.into_iter().next() {
                return Some(error);
            }
            if !is_whole {
                break;
            }
        }
        None
    }

    /// Those of a wave that are offered now, and whether these are all.
    fn offered<'a>(&self, open: Vec<(String, &'a Event)>) -> (Vec<(String, &'a Event)>, bool) {
        if self.few.is_empty() {
            return (open, true);
        }
        let all = open.len();
        let mut counts = HashMap::<String, usize>::new();
        let offered: Vec<_> = open
            .into_iter()
            .filter(|(key, _)| {
                let Some(few) = self.few.get(key) else { return true };
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                *count <= *few
            })
            .collect();
        let is_whole = offered.len() == all;
        (offered, is_whole)
    }
}

/// The events in groups, each of which may go out when the one before it is there: in no group are two of one job or batch. What
/// happens to a batch is told after what happened to its jobs before, and before what happens to them then.
fn waves(events: &[Event]) -> Vec<Vec<&Event>> {
    let mut waves: Vec<Vec<&Event>> = Vec::new();
    // The first wave that is late enough for another event of a job or a batch, and of any job of a batch.
    let (mut of_jobs, mut of_batches, mut of_items) =
        (HashMap::<Uuid, usize>::new(), HashMap::<Uuid, usize>::new(), HashMap::<Uuid, usize>::new());
    for event in events {
        let first = |known: &HashMap<Uuid, usize>, id: Option<Uuid>| {
            id.and_then(|id| known.get(&id)).copied().unwrap_or_default()
        };
        let (job, batch) = (event.job.map(|job| job.0), event.batch.map(|batch| batch.0));
        let mut wave = first(&of_jobs, job).max(first(&of_batches, batch));
        match (job, batch) {
            (Some(job), batch) => {
                of_jobs.insert(job, wave + 1);
                if let Some(batch) = batch {
                    let items = of_items.entry(batch).or_default();
                    *items = (*items).max(wave + 1);
                }
            }
            (None, batch) => {
                wave = wave.max(first(&of_items, batch));
                of_batches.extend(batch.map(|batch| (batch, wave + 1)));
            }
        }
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        waves[wave].push(event);
    }
    waves
}

/// An event as `errand events` shows it to the operator, with its position, by which a listener sees whether one is missing.
fn message(key: &str, event: &Event) -> Message {
    let body = serde_json::to_vec(&event.placed(event.position.to_string())).unwrap_or_default();
    let properties = Properties {
        message_id: Some(event.id().to_string()),
        content_type: Some("application/json".into()),
        kind: Some(event.kind.as_str()),
        timestamp: u64::try_from(event.at.as_second()).ok(),
        ..Properties::default()
    };
    Message { to: Address::Events(key.to_owned()), body: body.into(), properties, priority: 0 }
}

/// `job.succeeded.github`: always three words, the last of which is the toolkit.
fn routing_key(event: &Event) -> String {
    let toolkit = event.toolkit.as_deref().filter(|toolkit| !toolkit.is_empty()).unwrap_or(NO_TOOLKIT);
    let toolkit = &toolkit[..toolkit.floor_char_boundary(MAX_TOOLKIT_BYTES)];
    // A dot would begin a fourth word, and what else patterns are made of would be taken for it.
    let toolkit = toolkit.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'), "_");
    match event.kind {
        // Of a newer version.
        EventKind::Unrecognized => {
            let subject = if event.job.is_some() { "job" } else { "batch" };
            format!("{subject}.{}.{toolkit}", event.kind)
        }
        kind => format!("{kind}.{toolkit}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{BatchId, JobId};

    fn event(position: u64, job: Option<u128>, batch: Option<u128>) -> Event {
        Event {
            position,
            at: jiff::Timestamp::UNIX_EPOCH,
            kind: if job.is_some() { EventKind::JobSucceeded } else { EventKind::BatchCompleted },
            sequence: 1,
            job: job.map(|job| JobId(Uuid::from_u128(job))),
            batch: batch.map(|batch| BatchId(Uuid::from_u128(batch))),
            owner: None,
            tool: None,
            toolkit: None,
            queue: None,
            attempt: None,
            held_reason: None,
            error_kind: None,
        }
    }

    proptest! {
        #[test]
        fn no_wave_has_two_events_whose_order_counts(
            about in prop::collection::vec((prop::option::of(0u128..4), prop::option::of(0u128..3)), 0..40)
        ) {
            let events: Vec<Event> = about
                .into_iter()
                .enumerate()
                .map(|(n, (job, batch))| event(n as u64, job, batch.or(job.is_none().then_some(0))))
                .collect();
            let waves = waves(&events);
            prop_assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), events.len());
            prop_assert!(waves.iter().all(|wave| !wave.is_empty()), "a wave without events");
            let wave_of = |event: &Event| waves.iter().position(|wave| wave.iter().any(|e| e.position == event.position));
            for (place, later) in events.iter().enumerate() {
                for earlier in &events[..place] {
                    let same_job = later.job.is_some() && later.job == earlier.job;
                    let is_of_the_batch = later.job.is_none() || earlier.job.is_none();
                    if same_job || is_of_the_batch && later.batch.is_some() && later.batch == earlier.batch {
                        prop_assert!(wave_of(earlier) < wave_of(later), "{} before {}", earlier.position, later.position);
                    }
                }
            }
        }
    }

    #[test]
    fn events_of_different_jobs_go_out_together() {
        let events: Vec<Event> = (0..100).map(|n| event(n, Some(n.into()), Some(1))).collect();
        assert_eq!(waves(&events).len(), 1);
    }

    #[test]
    fn a_routing_key_has_three_words() {
        for (toolkit, key) in [
            (Some("github"), "job.succeeded.github"),
            (Some("google_sheets-2"), "job.succeeded.google_sheets-2"),
            (Some("a.b#*c d"), "job.succeeded.a_b__c_d"),
            (Some(""), "job.succeeded.none"),
            (None, "job.succeeded.none"),
        ] {
            let event = Event { toolkit: toolkit.map(str::to_owned), ..event(1, Some(1), None) };
            assert_eq!(routing_key(&event), key);
        }
        let newer = Event { kind: EventKind::Unrecognized, ..event(1, Some(1), None) };
        assert_eq!(routing_key(&newer), "job.unrecognized.none");
        let long = Event { toolkit: Some("ä".repeat(300)), ..event(1, Some(1), None) };
        assert!(routing_key(&long).len() < 255);
    }
}
