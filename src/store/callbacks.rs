//! Callbacks: events that are sent to whoever asked for them, by HTTP.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Decider, Event, EventsAfter, JobView, Place, Result, StoreError,
    events::event,
    read::{StoreRow, if_readable},
    rows::job,
};
use crate::{
    callback::Secret,
    job::{BatchId, CallbackUrl, JobId, Owner, Principal},
    string_enum::string_enum,
};

string_enum! {
    /// How far a delivery is.
    DeliveryState or Unrecognized {
        /// It is sent when it is due.
        Waiting = "waiting",
        /// The receiver has taken it.
        Delivered = "delivered",
        /// It is not sent any more, unless somebody asks for it.
        Failed = "failed",
    }
}

string_enum! {
    /// Why nothing is sent to the URL of an owner any more.
    WhyDisabled or Unrecognized {
        /// It answered 410.
        Gone = "gone",
        /// It has taken nothing for days.
        Failing = "failing",
    }
}

/// Callbacks of owners, and the deliveries of events to URLs.
///
/// * The events of a job are sent to the URL that it names, those of a batch as a whole to that of the batch, and all of an
///   owner's to the one that they have set. A URL that is named twice gets an event once.
/// * An event is sent to a URL when those before it of the same job or batch were taken there, or given up.
/// * Adding the same deliveries again, or noting the same outcomes again, changes nothing.
/// * An owner finds no callback and no delivery of others: nothing is told of them, and nothing is changed.
#[async_trait]
pub trait Callbacks: fmt::Debug + Send + Sync {
    /// Sets where all events of an owner are sent from now on; `None`: nowhere. What was disabled is enabled. `fresh` becomes
    /// the secret of an owner who has none. `None` where the owner is not the principal's.
    async fn set_callback(
        &self,
        principal: &Principal,
        owner: &Owner,
        url: Option<CallbackUrl>,
        fresh: &Secret,
        by: &Decider,
    ) -> Result<Option<Callback>>;

    /// What signs all that is sent for an owner. `fresh` becomes it where there is none, or where one is to be `replaced`:
    /// then the one before signs beside it for this time. While one before still does, it stays as it is, unless for no time;
    /// so a request that is sent again replaces nothing that nobody has seen. `None` where the owner is not the principal's.
    /// That it is told has an entry of the audit log, or that it was replaced.
    async fn callback_secrets(
        &self,
        principal: &Principal,
        owner: &Owner,
        fresh: &Secret,
        replaced: Option<Duration>,
        by: &Decider,
    ) -> Result<Option<Secrets>>;

    /// Up to `limit` callbacks of owners who have set a URL, in the order of owners, behind one of them.
    async fn callbacks(
        &self,
        principal: &Principal,
        behind: Option<Owner>,
        limit: usize,
    ) -> Result<Vec<Callback>>;

    /// Those of the next `limit` events behind a position that somebody has asked for, as [`Events::events`](super::Events).
    async fn called_events(&self, after: u64, limit: usize) -> Result<EventsAfter<CalledEvent>>;

    /// Adds deliveries, which are due at once, and a secret for each owner who has none. Those that were added before stay
    /// as they are.
    async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<()>;

    /// Up to `limit` deliveries that are due, with up to `most` of each receiver; none of these receivers' (`full`), and none of
    /// these (`open`). Receivers take turns, and one that does not take what it is sent is left alone for ever longer.
    async fn due_deliveries(
        &self,
        full: &[Uuid],
        open: &[Uuid],
        most: usize,
        limit: usize,
    ) -> Result<Vec<DueDelivery>>;

    /// Those of these jobs that are there, each without what it was given, and without its result if that has more than `most` bytes.
    async fn called_jobs(&self, jobs: &[JobId], most: usize) -> Result<Vec<CalledJob>>;

    /// Notes what became of deliveries that were due. What comes after one that waits again waits as long.
    async fn note_deliveries(&self, tried: &[TriedDelivery]) -> Result<()>;

    /// Notes which receivers have taken what they were sent, and which have not.
    async fn note_receivers(&self, answers: &[(Uuid, bool)]) -> Result<()>;

    /// Notes how the URL that an owner has set answers, if it is that. Where it has said that it is gone, or has taken nothing for
    /// so long (`patience`), it is disabled, and that is an event; returns whether it was by this.
    async fn note_callback(
        &self,
        owner: &Owner,
        url: &str,
        answer: CallbackAnswer,
        patience: Duration,
    ) -> Result<bool>;

    /// Up to `limit` deliveries older than `before`, newest first.
    async fn deliveries(
        &self,
        principal: &Principal,
        filter: &DeliveryFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Delivery>>;

    /// Makes up to `limit` deliveries of an owner due again that were made since then and before `before`, the newest first:
    /// those that failed, and where `delivered` says so also those that were delivered. Returns how many, and before which
    /// others are left, if there may be some.
    async fn recover_deliveries(
        &self,
        principal: &Principal,
        owner: &Owner,
        recovery: &Recovery,
        limit: usize,
        by: &Decider,
    ) -> Result<(u64, Option<Place>)>;

    /// Gives up to `limit` deliveries up that have waited so long, by the store's clock. Returns how many.
    async fn expire_deliveries(&self, waited: Duration, limit: usize) -> Result<u64>;

    /// Removes up to `limit` deliveries that ended so long ago, by the store's clock. Returns how many.
    async fn remove_deliveries(&self, ended_for: Duration, limit: usize) -> Result<u64>;

    /// Removes up to `limit` deliveries of an owner. Returns how many.
    async fn remove_deliveries_of(&self, owner: &Owner, limit: usize) -> Result<u64>;

    /// Removes the callback of an owner, with its secrets, and their receivers. Returns whether there was one.
    async fn remove_callback_of(&self, owner: &Owner) -> Result<bool>;
}

/// What an owner has set.
#[derive(Debug, Clone)]
pub struct Callback {
    pub owner: Owner,
    /// As it was set. The path may be a secret.
    pub url: Option<String>,
    pub set_at: Timestamp,
    /// Since when it has taken nothing.
    pub failing_since: Option<Timestamp>,
    pub disabled: Option<(WhyDisabled, Timestamp)>,
}

/// What signs.
#[derive(Debug, Clone)]
pub struct Secrets {
    pub secret: Secret,
    /// The one before, as long as it signs, too.
    pub previous: Option<(Secret, Timestamp)>,
}

/// How a URL answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallbackAnswer {
    Taken,
    NotTaken,
    /// Nothing is to be sent there any more.
    Gone,
}

/// An event that somebody has asked for.
#[derive(Debug, Clone)]
pub struct CalledEvent {
    pub event: Event,
    /// That of its job, or else of its batch, and that of its owner.
    pub urls: Vec<String>,
}

/// The job of an event that is sent.
#[derive(Debug, Clone)]
pub struct CalledJob {
    pub job: JobView,
    /// How many bytes the result has, if it was left out.
    pub left_out: Option<usize>,
}

/// A delivery before it is stored.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub id: Uuid,
    /// Whoever it is sent to: those whose deliveries have the same wait for each other.
    pub receiver: Uuid,
    pub owner: Owner,
    pub url: String,
    pub event_id: Uuid,
    /// The type of the event.
    pub kind: &'static str,
    /// The event as JSON.
    pub event: String,
    pub position: u64,
    pub job: Option<JobId>,
    pub batch: Option<BatchId>,
    /// The secret of an owner who has none.
    pub fresh: Secret,
}

impl NewDelivery {
    /// Of which events are sent one after the other.
    pub(super) fn subject(&self) -> Uuid {
        self.job.map(|job| job.0).or(self.batch.map(|batch| batch.0)).unwrap_or(self.event_id)
    }
}

/// A delivery that is to be sent.
#[derive(Debug, Clone)]
pub struct DueDelivery {
    pub id: Uuid,
    pub receiver: Uuid,
    pub owner: Owner,
    pub url: String,
    pub event_id: Uuid,
    /// The event as JSON.
    pub event: String,
    pub job: Option<JobId>,
    /// How often it was sent before.
    pub tries: u32,
    /// What signs it: one secret, or two while one takes the place of the other; none where the owner was erased.
    pub secrets: Vec<Secret>,
    /// Whether its receiver has taken something, and how often in a row it has not.
    pub is_proven: bool,
    pub failures: u32,
    /// What there is of the owner's own callback, if this is its URL.
    pub own: Option<OwnUrl>,
}

/// The state of the URL that an owner has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnUrl {
    pub is_failing: bool,
    pub is_disabled: bool,
}

/// What became of a delivery that was sent, or was not to be.
#[derive(Debug, Clone)]
pub struct TriedDelivery {
    pub id: Uuid,
    pub next: NextTry,
    /// How often it was sent before, so that the same outcome is noted once.
    pub tries: u32,
    /// Whether it was sent at all.
    pub is_sent: bool,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// Why it was not taken, in one word.
    pub error: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextTry {
    /// It is delivered.
    Delivered,
    After(Duration),
    /// It has failed.
    Never,
}

impl TriedDelivery {
    pub(super) fn state(&self) -> DeliveryState {
        match self.next {
            NextTry::Delivered => DeliveryState::Delivered,
            NextTry::After(_) => DeliveryState::Waiting,
            NextTry::Never => DeliveryState::Failed,
        }
    }

    pub(super) fn after(&self) -> Option<Duration> {
        match self.next {
            NextTry::After(wait) => Some(wait),
            NextTry::Delivered | NextTry::Never => None,
        }
    }
}

/// Which deliveries are listed. All given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    pub owner: Option<Owner>,
    pub state: Option<DeliveryState>,
}

/// Which deliveries are sent again.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub since: Timestamp,
    /// Where to go on.
    pub before: Option<Place>,
    /// Also those that were delivered.
    pub delivered: bool,
}

/// A delivery as it is told.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: Uuid,
    pub owner: Owner,
    pub url: String,
    pub event_id: Uuid,
    /// The type of the event.
    pub kind: String,
    pub job: Option<JobId>,
    pub batch: Option<BatchId>,
    pub state: DeliveryState,
    pub created_at: Timestamp,
    /// When it is sent, while it waits.
    pub due_at: Option<Timestamp>,
    /// How often it was sent.
    pub tries: u32,
    /// What the last answer was, if there was one.
    pub last_status: Option<u16>,
    /// Why it was not taken the last time.
    pub last_error: Option<String>,
    pub tried_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Delivery {
    /// Where it is in the order of creation.
    pub fn place(&self) -> Place {
        Place { at: self.created_at.as_microsecond(), id: self.id }
    }
}

/// How many bytes a result has that was left out is in the column `left_out`.
pub(super) fn called_job(row: &impl StoreRow) -> Result<CalledJob> {
    let left_out: Option<i64> = row.read("left_out")?;
    Ok(CalledJob { job: job(row)?, left_out: left_out.and_then(|bytes| usize::try_from(bytes).ok()) })
}

/// Whether no event of the same job or batch waits for the same URL that comes before that of the delivery `d`. What waits is found
/// by what it is about: a receiver, by which an index could find it, too, may have very much that waits.
pub(super) const IS_FIRST_OF_SUBJECT: &str =
    "not exists (select 1 from deliveries e where e.state = 'waiting'
    and e.subject = d.subject and e.url = d.url and e.receiver {equals} d.receiver and e.position < d.position)";

/// What the owner's own callback `c` has to do with the delivery `d`.
pub(super) const OWN_URL: &str =
    "coalesce(c.url = d.url, false) as is_own, c.failing_since is not null as is_failing,
    c.disabled_at is not null as is_disabled";

/// The events of rows that say which URLs they are sent to, as far as they can be read.
pub(super) fn called(rows: &[impl StoreRow]) -> Vec<CalledEvent> {
    let read = |row: &_| {
        let urls: [Option<String>; 2] =
            [StoreRow::read(row, "callback_url")?, StoreRow::read(row, "owner_url")?];
        let mut urls: Vec<String> = urls.into_iter().flatten().collect();
        urls.dedup();
        Ok(CalledEvent { event: event(row)?, urls })
    };
    rows.iter().filter_map(|row| if_readable(row, read(row))).collect()
}

pub(super) fn callback(row: &impl StoreRow) -> Result<Callback> {
    let disabled_at = row.time_if_any("disabled_at")?;
    Ok(Callback {
        owner: row.owner()?,
        url: row.read("url")?,
        set_at: row.time("set_at")?,
        failing_since: row.time_if_any("failing_since")?,
        disabled: disabled_at.map(|at| Ok::<_, StoreError>((row.word("disabled_why")?, at))).transpose()?,
    })
}

pub(super) fn secrets(row: &impl StoreRow) -> Result<Secrets> {
    let previous = secret_if_any(row, "previous_secret")?;
    let until = row.time_if_any("previous_until")?;
    let signs: bool = row.read("previous_signs")?;
    Ok(Secrets {
        secret: secret_if_any(row, "secret")?.ok_or_else(|| StoreError::corrupt("secret"))?,
        previous: previous.zip(until).filter(|_| signs),
    })
}

fn secret_if_any(row: &impl StoreRow, column: &str) -> Result<Option<Secret>> {
    let bytes: Option<Vec<u8>> = row.read(column)?;
    bytes.map(|bytes| Secret::from_bytes(&bytes).map_err(|_| StoreError::corrupt(column))).transpose()
}

pub(super) fn due(row: &impl StoreRow) -> Result<DueDelivery> {
    let (secret, previous) = match secret_if_any(row, "secret")? {
        Some(_) => secrets(row).map(|secrets| (Some(secrets.secret), secrets.previous))?,
        None => (None, None),
    };
    let is_own: bool = row.read("is_own")?;
    let own = OwnUrl { is_failing: row.read("is_failing")?, is_disabled: row.read("is_disabled")? };
    Ok(DueDelivery {
        id: row.read("id")?,
        receiver: row.read("receiver")?,
        owner: row.owner()?,
        url: row.read("url")?,
        event_id: row.read("event_id")?,
        event: row.read("event")?,
        job: row.read::<Option<Uuid>>("job_id")?.map(JobId),
        tries: row.count("tries")?,
        secrets: [secret, previous.map(|(secret, _)| secret)].into_iter().flatten().collect(),
        is_proven: row.read("is_proven")?,
        failures: row.count("failures")?,
        own: is_own.then_some(own),
    })
}

pub(super) fn delivery(row: &impl StoreRow) -> Result<Delivery> {
    Ok(Delivery {
        id: row.read("id")?,
        owner: row.owner()?,
        url: row.read("url")?,
        event_id: row.read("event_id")?,
        kind: row.read("kind")?,
        job: row.read::<Option<Uuid>>("job_id")?.map(JobId),
        batch: row.read::<Option<Uuid>>("batch_id")?.map(BatchId),
        state: row.word("state")?,
        created_at: row.time("created_at")?,
        due_at: row.time_if_any("due_at")?,
        tries: row.count("tries")?,
        last_status: row.unsigned_if_any("last_status")?,
        last_error: row.read("last_error")?,
        tried_at: row.time_if_any("tried_at")?,
        finished_at: row.time_if_any("finished_at")?,
    })
}

/// What the audit log says of a URL that was set: where it leads, because the rest of it may be a secret.
pub(super) fn told(url: Option<&CallbackUrl>) -> String {
    serde_json::json!({ "origin": url.map(CallbackUrl::origin) }).to_string()
}

/// How many deliveries of a page are due again, as the row of the oldest of them says, and where others may be left.
pub(super) fn recovered(row: &impl StoreRow, limit: usize) -> Result<(u64, Option<Place>)> {
    let deliveries = row.total("deliveries")?;
    let oldest = Place { at: row.time("created_at")?.as_microsecond(), id: row.read("id")? };
    Ok((deliveries, (deliveries >= limit as u64).then_some(oldest)))
}

/// What the audit log says of a secret that was replaced.
pub(super) fn rotated(overlap: Duration) -> String {
    serde_json::json!({ "overlap_secs": overlap.as_secs() }).to_string()
}
