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
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

mod message;
mod outcome;
mod receivers;

pub use self::outcome::SCHEDULE;
use self::{
    message::{body, deliveries_of},
    outcome::{Answered, is_local, pace},
    receivers::{Pace, Receivers, Target},
};
use crate::{
    backoff::RECONNECT,
    callback::{Answer, CallbackClient, Secret, SendError, Signed, sign},
    clock::SharedClock,
    failure::chain,
    job::{CallbackUrl, JobId, Owner, WorkerId},
    services::Services,
    store::{
        CallbackAnswer, CalledJob, DueDelivery, EventListener, EventsAfter, Heard, SharedStore, StoreError,
        Task, TriedDelivery,
    },
    task_lease::{ASKED_EVERY, TaskLease},
    telemetry::metrics,
};

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

/// The most events that are gone over together, and the most deliveries that are begun together, and of one receiver.
const PAGE: usize = 500;
const BEGUN_TOGETHER: usize = 128;
const OF_ONE_TOGETHER: usize = 16;

/// After so many failures of the store in a row, another worker may try.
const GIVEN_UP_AFTER: u32 = 5;

/// How long a process that ends waits for answers.
const ENDING: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct CallbackSender {
    store: SharedStore,
    clock: SharedClock,
    client: Arc<CallbackClient>,
    lease: TaskLease,
    receivers: Receivers,
    sending: JoinSet<Result<Answer, SendError>>,
    /// What is being sent, by its task.
    on_their_way: HashMap<Id, OnItsWay>,
    /// The same, and what was answered and is not noted yet.
    open: HashSet<Uuid>,
    answered: Vec<Answered>,
    /// When deliveries are looked for next, if nothing happens before.
    look_at: Instant,
    /// How often in a row this host could not send, and until when it is not asked to again.
    local_failures: u32,
    rests_until: Instant,
}

#[derive(Debug)]
struct OnItsWay {
    delivery: DueDelivery,
    origin: String,
    since: Instant,
}

/// What became of a turn.
enum Turn {
    /// There is more to do.
    More,
    /// Something is on its way.
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
            receivers: Receivers::default(),
            sending: JoinSet::new(),
            on_their_way: HashMap::new(),
            open: HashSet::new(),
            answered: Vec::new(),
            look_at: Instant::now(),
            local_failures: 0,
            rests_until: Instant::now(),
        }
    }

    /// Sends until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        start_counting();
        let mut failures = 0;
        while !stop.is_cancelled() {
            let turn = self.turn().await;
            failures = if turn.is_err() { failures + 1 } else { 0 };
            let wait = match turn {
                Ok(Turn::More) => continue,
                Ok(Turn::Busy) => TURN,
                Ok(Turn::Idle) => LOOK,
                Ok(Turn::NotOurs) => ASKED_EVERY,
                Err(error) => {
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    if failures == 1 {
                        tracing::warn!(error = %chain(&error), "callbacks cannot be read or noted; trying again");
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
        self.end().await;
        self.lease.leave().await;
    }

    /// Waits a moment for what is on its way, and notes it. What is cut off is sent again by the next one.
    async fn end(&mut self) {
        let joining = async {
            while let Some(joined) = self.sending.join_next_with_id().await {
                self.take(joined);
            }
        };
        drop(timeout(ENDING, joining).await);
        if let Ok(Err(error)) = timeout(ENDING, self.note()).await {
            tracing::warn!(error = %chain(&error), "callbacks were sent, and it cannot be noted; they are sent again");
        }
    }

    /// Notes what was answered, adds deliveries of new events, and sends what is due.
    ///
    /// # Errors
    /// The store does not answer. What was answered is noted the next time.
    async fn turn(&mut self) -> Result<Turn, StoreError> {
        // Whoever has the task: what happens from the first turn on is to be sent.
        let heard = self.store.heard(EventListener::Callbacks).await?;
        let mut has_changed = false;
        while let Some(joined) = self.sending.try_join_next_with_id() {
            self.take(joined);
            has_changed = true;
        }
        // Also what was begun when this worker had the task.
        self.note().await?;
        if !self.lease.is_held().await? {
            metrics::CALLBACK_EVENTS.set([], 0.0);
            return Ok(if self.sending.is_empty() { Turn::NotOurs } else { Turn::Busy });
        }
        let added = self.add(heard).await?;
        if has_changed || added.any || self.look_at <= Instant::now() {
            self.look_at = Instant::now() + LOOK_FOR_DUE;
            // What did not fit is looked for again at once.
            if self.begin().await? {
                self.look_at = Instant::now();
            }
        }
        metrics::CALLBACKS_SENDING.set([], self.on_their_way.len() as f64);
        Ok(match () {
            () if added.more => Turn::More,
            () if self.sending.is_empty() && self.answered.is_empty() => Turn::Idle,
            () => Turn::Busy,
        })
    }

    /// Adds deliveries of the next events.
    async fn add(&mut self, heard: Heard) -> Result<Added, StoreError> {
        let Heard { up_to: added_to, last } = heard;
        metrics::CALLBACK_EVENTS.set([], last.saturating_sub(added_to) as f64);
        if last <= added_to {
            return Ok(Added { any: false, more: false });
        }
        let (any, up_to) = match self.store.called_events(added_to, PAGE).await? {
            EventsAfter::Are { events, next } => {
                let mut deliveries = Vec::new();
                for called in &events {
                    // A system without random numbers gives some later.
                    let Ok(fresh) = Secret::generate() else { return Ok(Added { any: false, more: false }) };
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
            EventsAfter::ToCome => return Ok(Added { any: false, more: false }),
        };
        if up_to > added_to {
            self.store.note_heard(EventListener::Callbacks, up_to).await?;
        }
        Ok(Added { any, more: up_to < last })
    }

    /// Sends what is due, as far as there is room. Returns whether there was more than fitted.
    async fn begin(&mut self) -> Result<bool, StoreError> {
        let room = self.receivers.room().min(BEGUN_TOGETHER);
        if room == 0 || Instant::now() < self.rests_until {
            return Ok(false);
        }
        let open: Vec<Uuid> = self.open.iter().copied().collect();
        let due = self.store.due_deliveries(&self.receivers.full(), &open, OF_ONE_TOGETHER, room).await?;
        let is_page = due.len() == room;
        let mut begun = Vec::with_capacity(due.len());
        for delivery in due {
            let url = delivery.url.parse::<CallbackUrl>();
            let never = match (&url, delivery.own) {
                (_, Some(own)) if own.is_disabled => Some("disabled"),
                _ if delivery.secrets.is_empty() => Some("erased"),
                // A newer version has stored what this one does not take.
                (Err(_), _) => Some("bad_url"),
                (Ok(_), _) => None,
            };
            if let Some(why) = never {
                self.open.insert(delivery.id);
                self.answered.push(Answered::failed(&delivery, why));
            } else if let Ok(url) = url {
                let origin = url.origin();
                let to = Target { id: delivery.receiver, owner: &delivery.owner, origin: &origin };
                let last = match (delivery.failures, delivery.is_proven) {
                    (0, true) => Pace::Soon,
                    (0, false) => Pace::Late,
                    _ => Pace::Failed,
                };
                if self.receivers.admit(to, last) {
                    self.open.insert(delivery.id);
                    begun.push((OnItsWay { delivery, origin, since: Instant::now() }, url));
                }
            }
        }
        let jobs = match self.jobs(&begun).await {
            Ok(jobs) => jobs,
            Err(error) => {
                for (OnItsWay { delivery, origin, .. }, _) in &begun {
                    self.open.remove(&delivery.id);
                    let to = Target { id: delivery.receiver, owner: &delivery.owner, origin };
                    self.receivers.ended(to, None);
                }
                return Err(error);
            }
        };
        for (begun, url) in begun {
            let job = begun.delivery.job.and_then(|job| jobs.get(&job));
            self.send(begun, url, job);
        }
        Ok(is_page)
    }

    /// The jobs of deliveries, those of them that are there.
    async fn jobs(&self, begun: &[(OnItsWay, CallbackUrl)]) -> Result<HashMap<JobId, CalledJob>, StoreError> {
        let mut jobs: Vec<JobId> = begun.iter().filter_map(|(begun, _)| begun.delivery.job).collect();
        if jobs.is_empty() {
            return Ok(HashMap::new());
        }
        jobs.sort_unstable();
        jobs.dedup();
        let found = self.store.called_jobs(&jobs, MAX_BODY_BYTES - MAX_REST_BYTES).await?;
        Ok(found.into_iter().map(|job| (job.job.spec.id, job)).collect())
    }

    fn send(&mut self, begun: OnItsWay, url: CallbackUrl, job: Option<&CalledJob>) {
        let delivery = &begun.delivery;
        let body = Bytes::from(body(delivery, job));
        let (id, secrets) = (delivery.event_id.to_string(), delivery.secrets.clone());
        let (client, clock, owner) = (self.client.clone(), self.clock.clone(), delivery.owner.clone());
        let task = self.sending.spawn(async move {
            let begun = Instant::now();
            let timestamp = clock.now().as_second();
            let signature = sign(&secrets.iter().collect::<Vec<_>>(), &id, timestamp, &body);
            let message = Signed { id: &id, timestamp, signature: &signature };
            let answer = client.post(&owner, &url, message, body).await;
            metrics::CALLBACK_DURATION.record([], begun.elapsed().as_secs_f64());
            answer
        });
        self.on_their_way.insert(task.id(), begun);
    }

    /// Takes an answer.
    fn take(&mut self, joined: Result<(Id, Result<Answer, SendError>), JoinError>) {
        let (id, answer) = match joined {
            Ok((id, answer)) => (id, Some(answer)),
            // A panic, which is counted where it is logged.
            Err(error) => (error.id(), None),
        };
        let Some(OnItsWay { delivery, origin, since }) = self.on_their_way.remove(&id) else { return };
        self.rest_if_local(answer.as_ref());
        let pace = pace(answer.as_ref(), since.elapsed());
        let to = Target { id: delivery.receiver, owner: &delivery.owner, origin: &origin };
        self.receivers.ended(to, pace);
        self.answered.push(Answered::new(&delivery, answer.as_ref(), pace, fastrand::f64()));
    }

    /// Where this host cannot send, all that is due would be begun in vain again and again.
    fn rest_if_local(&mut self, answer: Option<&Result<Answer, SendError>>) {
        let now = Instant::now();
        match answer {
            Some(Err(error)) if is_local(answer) => {
                // What was begun together fails together.
                if now < self.rests_until {
                    return;
                }
                self.local_failures += 1;
                self.rests_until = now + RECONNECT.wait(self.local_failures, fastrand::f64());
                if self.local_failures == 1 {
                    tracing::warn!(error = %chain(error), "callbacks cannot be sent from this host; trying again");
                }
            }
            // Answers to what was begun before tell nothing new.
            _ if now < self.rests_until => {}
            _ => self.local_failures = 0,
        }
    }

    /// Notes what was answered.
    async fn note(&mut self) -> Result<(), StoreError> {
        if self.answered.is_empty() {
            return Ok(());
        }
        let tried: Vec<TriedDelivery> = self.answered.iter().map(|answered| answered.tried.clone()).collect();
        self.store.note_deliveries(&tried).await?;
        // One that works tells that the others were bad luck.
        let mut receivers = HashMap::<Uuid, bool>::new();
        for (id, works) in self.answered.iter().filter_map(|answered| answered.receiver) {
            *receivers.entry(id).or_default() |= works;
        }
        if !receivers.is_empty() {
            self.store.note_receivers(&receivers.into_iter().collect::<Vec<_>>()).await?;
        }
        let mut own = HashMap::<(&Owner, &str), CallbackAnswer>::new();
        for (owner, url, answer) in self.answered.iter().filter_map(|answered| answered.own.as_ref()) {
            let known = own.entry((owner, url.as_str())).or_insert(*answer);
            // So does one that was taken; but whoever is gone says so.
            *known = match (*known, *answer) {
                (CallbackAnswer::Gone, _) | (_, CallbackAnswer::Gone) => CallbackAnswer::Gone,
                (known, answer) => known.min(answer),
            };
        }
        for ((owner, url), answer) in own {
            if self.store.note_callback(owner, url, answer, PATIENCE).await? {
                metrics::CALLBACKS.add(["disabled"], 1);
                tracing::warn!(
                    owner.kind = %owner.kind(),
                    answer = if answer == CallbackAnswer::Gone { "410" } else { "none for days" },
                    "the callback of an owner is disabled; it is enabled by setting it again"
                );
            }
        }
        for answered in self.answered.drain(..) {
            self.open.remove(&answered.tried.id);
            metrics::CALLBACKS.add([answered.word()], 1);
        }
        Ok(())
    }
}

/// A counter that is born with its first event hides that event from every rate.
fn start_counting() {
    for word in ["delivered", "failed", "given_up", "passed_over", "disabled"] {
        metrics::CALLBACKS.add([word], 0);
    }
}

/// Whether deliveries were added, and whether there are further events.
#[derive(Debug, Clone, Copy)]
struct Added {
    any: bool,
    more: bool,
}
