//! Callbacks: events that are sent by HTTP to whoever asked for them.
//!
//! One worker at a time does so. It goes over the events and adds a delivery for each URL that one is sent to; what waits is sent
//! when it is due, and its outcome noted. A process that dies, or two that hold themselves for the one, send some again: a receiver
//! knows those by their ID. Nobody's receiver keeps others waiting ([`Receivers`]).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::receivers::{MAX_WIDTH, Receivers};
use crate::{
    backoff::{Intervals, RECONNECT},
    callback::{Answer, CallbackClient, Secret, SendError, SendErrorKind, Signed, sign},
    clock::SharedClock,
    failure::chain,
    job::{CallbackUrl, JobId, Owner, State, WorkerId},
    job_json::callback_job_json,
    services::Services,
    store::{
        CallbackAnswer, CalledEvent, CalledJob, DueDelivery, EventListener, EventsAfter, NewDelivery,
        NextTry, SharedStore, StoreError, Task, TriedDelivery,
    },
    task_lease::{ASKED_EVERY, TaskLease},
    telemetry::metrics,
};

/// When a delivery that was not taken is sent again, after each try; after the last it has failed. Two days together.
pub const SCHEDULE: [Duration; 10] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(3),
    Duration::from_hours(6),
    Duration::from_hours(12),
    Duration::from_hours(12),
    Duration::from_hours(12),
];

/// By how much of each wait it is longer or shorter, so that what failed together is not sent together again.
const JITTER: f64 = 0.1;

/// The URL of an owner that has taken nothing for so long is disabled.
pub const PATIENCE: Duration = Duration::from_hours(5 * 24);

/// From how many bytes on a result is left out of a callback, which then says where it is.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// What there is beside the result, at most, in bytes: the event, and the job without it.
const MAX_REST_BYTES: usize = 32 * 1024;

/// How often it is seen to what has been answered, and to new events.
const TURN: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(100);

/// How often deliveries are looked for that have become due by themselves.
const LOOK_FOR_DUE: Duration = Duration::from_secs(1);

/// The most events that are gone over together, and the most deliveries that are begun together.
const PAGE: usize = 500;
const BEGUN_TOGETHER: usize = 128;

/// After so many failures of the store in a row, another worker may try.
const GIVEN_UP_AFTER: u32 = 5;

/// How long a process that ends waits for answers.
const ENDING: Duration = Duration::from_secs(2);

/// Of what the IDs of deliveries and receivers are made; it never changes.
const IDS: Uuid = Uuid::from_u128(0x2f9c_77a4_51de_4b0b_8a63_0d1f_c2e8_9b57);

#[derive(Debug)]
pub struct CallbackSender {
    store: SharedStore,
    clock: SharedClock,
    client: Arc<CallbackClient>,
    lease: TaskLease,
    /// Up to which position deliveries are added for all events; `None` where only the store knows.
    added_to: Option<u64>,
    receivers: Receivers,
    sending: JoinSet<Result<Answer, SendError>>,
    /// What is being sent, by its task.
    on_their_way: HashMap<Id, DueDelivery>,
    /// The same, and what was answered and is not noted yet.
    open: HashSet<Uuid>,
    answered: Vec<Answered>,
    /// When deliveries are looked for next, if nothing happens before.
    look_at: Instant,
}

/// What became of a delivery.
#[derive(Debug)]
struct Answered {
    tried: TriedDelivery,
    /// The owner and the URL, where the state of their own callback changes by it.
    own: Option<(Owner, String, CallbackAnswer)>,
}

enum Turn {
    Busy,
    Idle,
    /// Another worker sends.
    NotOurs,
}

impl CallbackSender {
    pub fn new(services: &Services, client: Arc<CallbackClient>, worker: WorkerId) -> Self {
        let Services { store, clock, .. } = services.clone();
        let lease = TaskLease::new(store.clone(), Task::SendCallbacks, worker);
        Self {
            store,
            clock,
            client,
            lease,
            added_to: None,
            receivers: Receivers::default(),
            sending: JoinSet::new(),
            on_their_way: HashMap::new(),
            open: HashSet::new(),
            answered: Vec::new(),
            look_at: Instant::now(),
        }
    }

    /// Sends until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let turn = self.turn().await;
            failures = if turn.is_err() { failures + 1 } else { 0 };
            let wait = match turn {
                Ok(Turn::Busy) => TURN,
                Ok(Turn::Idle) => LOOK,
                Ok(Turn::NotOurs) => ASKED_EVERY,
                Err(error) => {
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    if failures == 1 {
                        tracing::warn!(error = %chain(&error), "callbacks cannot be read or noted; trying again");
                    }
                    if error.is_unanswered() {
                        // After a failover the store may know less.
                        self.added_to = None;
                    }
                    if failures == GIVEN_UP_AFTER {
                        // Perhaps it is this worker alone that cannot.
                        self.lease.leave().await;
                    }
                    RECONNECT.wait(failures, fastrand::f64())
                }
            };
            stop.run_until_cancelled(sleep(wait)).await;
        }
        drop(timeout(ENDING, self.end()).await);
        self.lease.leave().await;
    }

    /// Waits for what is on its way, and notes it. What is cut off is sent again by the next one.
    async fn end(&mut self) {
        while let Some(joined) = self.sending.join_next_with_id().await {
            self.take(joined);
        }
        if let Err(error) = self.note().await {
            tracing::warn!(error = %chain(&error), "callbacks were sent, and it cannot be noted; they are sent again");
        }
    }

    /// Notes what was answered, adds deliveries of new events, and sends what is due.
    ///
    /// # Errors
    /// The store does not answer. What was answered is noted the next time.
    async fn turn(&mut self) -> Result<Turn, StoreError> {
        if !self.lease.is_held().await? {
            self.added_to = None;
            metrics::CALLBACK_EVENTS.set([], 0.0);
            return Ok(Turn::NotOurs);
        }
        let mut has_changed = false;
        while let Some(joined) = self.sending.try_join_next_with_id() {
            self.take(joined);
            has_changed = true;
        }
        self.note().await?;
        has_changed |= self.add().await?;
        if has_changed || self.look_at <= Instant::now() {
            self.look_at = Instant::now() + LOOK_FOR_DUE;
            let begun = self.begin().await?;
            // What did not fit is looked for again at once.
            if begun == BEGUN_TOGETHER {
                self.look_at = Instant::now();
            }
        }
        metrics::CALLBACKS_SENDING.set([], self.on_their_way.len() as f64);
        Ok(if self.sending.is_empty() && !has_changed { Turn::Idle } else { Turn::Busy })
    }

    /// Adds deliveries of events that have happened, as many as a turn may.
    async fn add(&mut self) -> Result<bool, StoreError> {
        let last = self.store.last_event().await?;
        let added_to = match self.added_to {
            Some(added_to) => added_to,
            None => self.store.heard(EventListener::Callbacks).await?,
        };
        self.added_to = Some(added_to);
        metrics::CALLBACK_EVENTS.set([], last.saturating_sub(added_to) as f64);
        if last == added_to {
            return Ok(false);
        }
        let (has_added, up_to) = match self.store.called_events(added_to, PAGE).await? {
            EventsAfter::Are { events, next } => {
                let mut deliveries = Vec::new();
                for called in &events {
                    // A system without random numbers gives some later.
                    let Ok(fresh) = Secret::generate() else { return Ok(false) };
                    deliveries.extend(deliveries_of(called, &fresh));
                }
                if !deliveries.is_empty() {
                    self.store.add_deliveries(&deliveries).await?;
                }
                (!deliveries.is_empty(), next)
            }
            EventsAfter::Removed { up_to } => {
                let events = up_to - added_to;
                metrics::CALLBACKS.add(["passed_over"], events);
                tracing::error!(
                    events,
                    "events were removed for their age before callbacks could be sent; keep them for longer (retention.events_days)"
                );
                (false, up_to)
            }
            // The store was restored from an earlier copy of itself.
            EventsAfter::ToCome => {
                self.added_to = None;
                return Ok(false);
            }
        };
        if up_to > added_to {
            self.store.note_heard(EventListener::Callbacks, up_to).await?;
            self.added_to = Some(up_to);
        }
        Ok(has_added)
    }

    /// Sends what is due, as far as there is room. Returns how many.
    async fn begin(&mut self) -> Result<usize, StoreError> {
        let room = self.receivers.room().min(BEGUN_TOGETHER);
        if room == 0 {
            return Ok(0);
        }
        let due = self.store.due_deliveries(&self.receivers.full(), MAX_WIDTH, room).await?;
        let mut begun = Vec::with_capacity(due.len());
        for delivery in due {
            if !self.open.insert(delivery.id) {
                continue;
            }
            if delivery.own.is_some_and(|own| own.is_disabled) {
                self.answered.push(Answered::failed(delivery.id, "disabled"));
            } else if !self.receivers.admit(delivery.receiver, &delivery.owner) {
                self.open.remove(&delivery.id);
            } else {
                begun.push(delivery);
            }
        }
        let jobs = self.jobs(&begun).await;
        let jobs = match jobs {
            Ok(jobs) => jobs,
            Err(error) => {
                for delivery in begun {
                    self.open.remove(&delivery.id);
                    self.receivers.ended(delivery.receiver, &delivery.owner, None);
                }
                return Err(error);
            }
        };
        let count = begun.len();
        for delivery in begun {
            let job = delivery.job.and_then(|job| jobs.get(&job));
            self.send(delivery, job);
        }
        Ok(count)
    }

    /// The jobs of deliveries, those of them that are there.
    async fn jobs(&self, deliveries: &[DueDelivery]) -> Result<HashMap<JobId, CalledJob>, StoreError> {
        let mut jobs: Vec<JobId> = deliveries.iter().filter_map(|delivery| delivery.job).collect();
        if jobs.is_empty() {
            return Ok(HashMap::new());
        }
        jobs.sort_unstable();
        jobs.dedup();
        let found = self.store.called_jobs(&jobs, MAX_BODY_BYTES - MAX_REST_BYTES).await?;
        Ok(found.into_iter().map(|job| (job.job.spec.id, job)).collect())
    }

    fn send(&mut self, delivery: DueDelivery, job: Option<&CalledJob>) {
        let Ok(url) = delivery.url.parse::<CallbackUrl>() else {
            // A newer version has stored what this one does not take.
            self.receivers.ended(delivery.receiver, &delivery.owner, None);
            self.answered.push(Answered::failed(delivery.id, "bad_url"));
            return;
        };
        let body = Bytes::from(body(&delivery.event, job));
        let timestamp = self.clock.now().as_second();
        let id = delivery.event_id.to_string();
        let secrets: Vec<&Secret> = delivery.secrets.iter().collect();
        let signature = sign(&secrets, &id, timestamp, &body);
        let client = self.client.clone();
        let task = self.sending.spawn(async move {
            let begun = Instant::now();
            let answer = client.post(&url, Signed { id: &id, timestamp, signature: &signature }, body).await;
            metrics::CALLBACK_DURATION.record([], begun.elapsed().as_secs_f64());
            answer
        });
        self.on_their_way.insert(task.id(), delivery);
    }

    /// Takes an answer.
    fn take(&mut self, joined: Result<(Id, Result<Answer, SendError>), tokio::task::JoinError>) {
        let (id, answer) = match joined {
            Ok((id, answer)) => (id, Some(answer)),
            // A panic, which is counted where it is logged.
            Err(error) => (error.id(), None),
        };
        let Some(delivery) = self.on_their_way.remove(&id) else { return };
        let answered = Answered::new(&delivery, answer, fastrand::f64());
        let is_taken = answered.tried.next == NextTry::Delivered;
        self.receivers.ended(delivery.receiver, &delivery.owner, Some(is_taken));
        self.answered.push(answered);
    }

    /// Notes what was answered.
    async fn note(&mut self) -> Result<(), StoreError> {
        if self.answered.is_empty() {
            return Ok(());
        }
        let tried: Vec<TriedDelivery> = self.answered.iter().map(|answered| answered.tried.clone()).collect();
        self.store.note_deliveries(&tried).await?;
        let mut own: HashMap<(Owner, String), CallbackAnswer> = HashMap::new();
        for answered in self.answered.drain(..) {
            self.open.remove(&answered.tried.id);
            metrics::CALLBACKS.add([answered.word()], 1);
            if let Some((owner, url, answer)) = answered.own {
                // One that was taken tells that the others may be, too; and whoever is gone says so.
                let known = own.entry((owner, url)).or_insert(answer);
                *known = match (*known, answer) {
                    (CallbackAnswer::Gone, _) | (_, CallbackAnswer::Gone) => CallbackAnswer::Gone,
                    (known, answer) => known.min(answer),
                };
            }
        }
        for ((owner, url), answer) in own {
            if self.store.note_callback(&owner, &url, answer, PATIENCE).await? {
                metrics::CALLBACKS.add(["disabled"], 1);
                tracing::warn!(
                    owner.kind = %owner.kind(),
                    answer = if answer == CallbackAnswer::Gone { "410" } else { "none for days" },
                    "the callback of an owner is disabled; it is enabled by setting it again"
                );
            }
        }
        Ok(())
    }
}

impl Answered {
    fn failed(id: Uuid, why: &'static str) -> Self {
        let tried = TriedDelivery { id, next: NextTry::Never, status: None, error: Some(why) };
        Self { tried, own: None }
    }

    /// What becomes of a delivery by its answer; `None` where nobody knows it.
    fn new(delivery: &DueDelivery, answer: Option<Result<Answer, SendError>>, random: f64) -> Self {
        let (status, error, retry_after) = match &answer {
            Some(Ok(answer)) => (Some(answer.status), None, answer.retry_after),
            Some(Err(error)) => (None, Some(error.kind()), None),
            None => (None, Some(SendErrorKind::Local), None),
        };
        let outcome = match status {
            Some(200..300) => CallbackAnswer::Taken,
            Some(410) => CallbackAnswer::Gone,
            _ => CallbackAnswer::NotTaken,
        };
        let again = SCHEDULE.get(delivery.tries as usize).map(|wait| {
            let spread = Intervals::doubling(*wait, *wait).with_jitter(JITTER).wait(1, random);
            spread.max(retry_after.unwrap_or_default())
        });
        let next = match outcome {
            CallbackAnswer::Taken => NextTry::Delivered,
            CallbackAnswer::Gone => NextTry::Never,
            CallbackAnswer::NotTaken => again.map_or(NextTry::Never, NextTry::After),
        };
        let error = match outcome {
            CallbackAnswer::Taken => None,
            CallbackAnswer::Gone => Some("gone"),
            CallbackAnswer::NotTaken => Some(error.map_or("refused", SendErrorKind::as_str)),
        };
        // Where it works as before there is nothing to be noted.
        let changes = |own: &crate::store::OwnUrl| outcome != CallbackAnswer::Taken || own.is_failing;
        // What went wrong here says nothing of the receiver.
        let is_ours = error == Some(SendErrorKind::Local.as_str());
        let own = delivery.own.filter(|own| changes(own) && !is_ours);
        Self {
            tried: TriedDelivery { id: delivery.id, next, status, error },
            own: own.map(|_| (delivery.owner.clone(), delivery.url.clone(), outcome)),
        }
    }

    /// What is counted.
    fn word(&self) -> &'static str {
        match self.tried.next {
            NextTry::Delivered => "delivered",
            NextTry::After(_) => "failed",
            NextTry::Never => "given_up",
        }
    }
}

/// A delivery for each URL to which an event is sent.
fn deliveries_of(called: &CalledEvent, fresh: &Secret) -> Vec<NewDelivery> {
    let CalledEvent { event, urls } = called;
    let Some(owner) = &event.owner else { return Vec::new() };
    let json = serde_json::to_string(&event.json()).unwrap_or_default();
    let event_id = event.id();
    let of = |url: &String| {
        let origin = url.parse().map_or_else(|_| url.clone(), |url: CallbackUrl| url.origin());
        NewDelivery {
            id: Uuid::new_v5(&IDS, format!("{event_id}\n{url}").as_bytes()),
            receiver: Uuid::new_v5(&IDS, format!("{owner}\n{origin}").as_bytes()),
            owner: owner.clone(),
            url: url.clone(),
            event_id,
            kind: event.kind.as_str(),
            event: json.clone(),
            sequence: event.sequence,
            job: event.job,
            batch: event.batch,
            fresh: fresh.clone(),
        }
    };
    urls.iter().map(of).collect()
}

/// What is sent: the event, and its job as a reply has it, if that is still as the event left it. What has happened since is told by
/// an event of its own.
fn body(event: &str, job: Option<&CalledJob>) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        at: &'a RawValue,
        attempt: Option<u32>,
    }

    let Ok(told) = serde_json::from_str::<Told<'_>>(event) else { return event.into() };
    let is_as_told = |called: &&CalledJob| {
        let state = told.kind.strip_prefix("job.").and_then(|word| word.parse::<State>().ok());
        state == Some(called.job.state) && Some(called.job.attempt) == told.attempt
    };
    let job = job.filter(is_as_told).map(|called| callback_job_json(&called.job, called.left_out));
    let job = job.and_then(|job| serde_json::to_string(&job).ok()).unwrap_or_else(|| "null".to_owned());
    // The event is an object with some keys, always.
    let data = event.trim_end().strip_suffix('}').unwrap_or(event);
    format!(r#"{{"type":"{}","timestamp":{},"data":{data},"job":{job}}}}}"#, told.kind, told.at.get()).into()
}
