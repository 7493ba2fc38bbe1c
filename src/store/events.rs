//! Events: what became of jobs and batches, in one order.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Result,
    read::{StoreRow, readable},
};
use crate::{
    job::{BatchId, ErrorKind, HeldReason, JobId, Owner, Principal, QueueName},
    string_enum::string_enum,
};

/// How many events are given positions together, about: as many as this, and what is left of the last write.
pub(super) const PLACED_TOGETHER: i64 = 5_000;

string_enum! {
    /// When events are recorded.
    Recording {
        Off = "off",
        /// Where errand itself sends them on.
        Listeners = "listeners",
        All = "all",
    }
}

string_enum! {
    /// What happened. The word before the dot is what it happened to.
    EventKind or Unrecognized {
        JobSucceeded = "job.succeeded",
        JobFailed = "job.failed",
        JobCancelled = "job.cancelled",
        JobHeld = "job.held",
        /// Somebody called it off while it ran; its call goes on.
        JobCancelRequested = "job.cancel_requested",
        /// Somebody lets it run again.
        JobRetried = "job.retried",
        /// It is not held any more, because somebody let it go or its connection is there.
        JobReleased = "job.released",
        /// Somebody changed when, where or until when it runs.
        JobEdited = "job.edited",
        /// Every item of it is final, in one of its generations.
        BatchCompleted = "batch.completed",
        BatchCancelled = "batch.cancelled",
        /// Somebody lets its failed items run again.
        BatchRetried = "batch.retried",
        /// Nothing is sent any more to the URL that its owner has set.
        CallbackDisabled = "callback.disabled",
    }
}

string_enum! {
    /// Who is given every event by errand itself, and not because somebody asks.
    EventListener {
        /// The exchange of the broker.
        Exchange = "exchange",
        /// The receivers of callbacks.
        Callbacks = "callbacks",
    }
}

/// Events of jobs and batches.
///
/// * Where a store records events, what ends a job or holds it, what somebody decides about a job or a batch, and the
///   completion of a batch is one, written with the change: there is never one without the other. A write that is sent again
///   adds none, and a store that does not record adds none.
/// * Positions grow. Once an event can be read, none appears at a position before it; so whoever goes on behind the last one
///   that they have read misses none.
/// * The events of one job, or of one batch, are in the order in which they happened, and their sequences grow. Where some
///   were not recorded, there is a gap.
/// * What was committed before a call can be read by it.
/// * For an owner there are their own events only. Positions are counted over all owners, so they are not told to them.
/// * A listener begins behind the events that there are when it is first asked for, and never goes back.
/// * A position behind which events were removed for their age is refused to everybody: whoever goes on there may have missed
///   some. As positions are given to all alike, that is how long ago it was the last one, whoever the removed ones were of.
#[async_trait]
pub trait Events: fmt::Debug + Send + Sync {
    /// Up to `limit` events behind a position, in order; without one, from the oldest on.
    async fn events(
        &self,
        principal: &Principal,
        of: EventsOf,
        after: Option<u64>,
        limit: usize,
    ) -> Result<EventsAfter>;

    /// The last position that was given; 0 before the first.
    async fn last_event(&self) -> Result<u64>;

    /// How far a listener has come.
    async fn heard(&self, listener: EventListener) -> Result<Heard>;

    /// Notes that a listener was given all events up to a position. One that is earlier than it has come changes nothing.
    async fn note_heard(&self, listener: EventListener, up_to: u64) -> Result<()>;

    /// Removes up to `limit` events from the beginning that are so old, by the store's clock. Returns how many.
    async fn remove_events(&self, age: Duration, limit: usize) -> Result<u64>;

    /// Removes up to `limit` of an owner's events. Returns how many.
    async fn remove_events_of(&self, owner: &Owner, limit: usize) -> Result<u64>;
}

/// How far a listener has come, as positions of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    /// It was given all events up to this one.
    pub up_to: u64,
    /// The last one that was given to an event.
    pub last: u64,
}

/// Which events are asked for, of those that somebody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventsOf {
    All,
    Job(JobId),
    /// Those of its jobs, too.
    Batch(BatchId),
}

/// What there is behind a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventsAfter<T = Event> {
    Are {
        /// Without those that this version cannot read.
        events: Vec<T>,
        /// Behind which to go on. It is later than `after` also where there is nothing of what is asked for, so that whoever goes
        /// on there has missed nothing when events of others are removed.
        next: u64,
    },
    /// Some of them were removed for their age, the last of them at this position.
    Removed { up_to: u64 },
    /// No event has had this position.
    ToCome,
}

/// What happened to a job or a batch, without what customers sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub position: u64,
    /// When it happened, by the store's clock.
    pub at: Timestamp,
    pub kind: EventKind,
    /// Which event of the job it is, or else of the batch, or else of the owner's callback, counted from 1.
    pub sequence: u32,
    pub job: Option<JobId>,
    /// The batch that it is about, or of which the job is.
    pub batch: Option<BatchId>,
    /// `None` of a batch of the operator's.
    pub owner: Option<Owner>,
    pub tool: Option<String>,
    pub toolkit: Option<String>,
    pub queue: Option<QueueName>,
    /// How often the job had been claimed.
    pub attempt: Option<u32>,
    pub held_reason: Option<HeldReason>,
    pub error_kind: Option<ErrorKind>,
}

/// Of what the IDs of events are made; it never changes.
const EVENT_IDS: Uuid = Uuid::from_u128(0x6b1f_9a52_3c0e_4d77_9d10_5a2f_84e6_c3b1);

impl Event {
    /// An ID that is the same for everybody and for ever, made of what it is about, its sequence and its time: after a job was
    /// removed, another one may have its ID.
    pub fn id(&self) -> Uuid {
        let object = self.job.map(|job| job.0).or(self.batch.map(|batch| batch.0));
        let mut name = match (object, &self.owner) {
            (None, Some(owner)) => owner.to_string().into_bytes(),
            (object, _) => object.unwrap_or_default().as_bytes().to_vec(),
        };
        name.extend(self.sequence.to_be_bytes());
        name.extend(self.at.as_microsecond().to_be_bytes());
        Uuid::new_v5(&EVENT_IDS, &name)
    }

    /// Whether it is told to somebody.
    pub fn may_be_seen_by(&self, principal: &Principal) -> bool {
        self.owner.as_ref().map_or(*principal == Principal::Operator, |owner| principal.may_see(owner))
    }

    /// With its place in a list, as whoever reads that is told it.
    pub fn placed(&self, cursor: String) -> PlacedEvent<'_> {
        PlacedEvent { cursor, event: self.json() }
    }

    pub fn json(&self) -> EventJson<'_> {
        EventJson {
            id: self.id(),
            kind: self.kind,
            at: self.at,
            sequence: self.sequence,
            owner: self.owner.as_ref(),
            job_id: self.job,
            batch_id: self.batch,
            tool: self.tool.as_deref(),
            toolkit: self.toolkit.as_deref(),
            queue: self.queue.as_ref().map(QueueName::as_str),
            attempt: self.attempt,
            held_reason: self.held_reason,
            error_kind: self.error_kind,
        }
    }
}

/// An event as JSON. Every key is always there.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Event)]
pub struct EventJson<'a> {
    /// The same for everybody and for ever.
    pub id: Uuid,
    /// What happened. The word before the dot is what it happened to.
    #[serde(rename = "type")]
    pub kind: EventKind,
    pub at: Timestamp,
    /// Which event of the job it is, or else of the batch, counted from 1. Where some were not recorded, there is a gap.
    pub sequence: u32,
    /// `null` of a batch of the operator's.
    pub owner: Option<&'a Owner>,
    pub job_id: Option<JobId>,
    /// The batch that it is about, or of which the job is.
    pub batch_id: Option<BatchId>,
    pub tool: Option<&'a str>,
    pub toolkit: Option<&'a str>,
    pub queue: Option<&'a str>,
    /// How often the job had been claimed.
    pub attempt: Option<u32>,
    pub held_reason: Option<HeldReason>,
    pub error_kind: Option<ErrorKind>,
}

/// An event as JSON, with its place in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PlacedEvent<'a> {
    /// To go on behind this event.
    pub cursor: String,
    #[serde(flatten)]
    pub event: EventJson<'a>,
}

/// The positions that were given and removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions {
    pub(super) last: u64,
    removed: u64,
}

impl Positions {
    pub(super) fn read(row: &impl StoreRow) -> Result<Self> {
        Ok(Self { last: row.total("last")?, removed: row.total("removed")? })
    }

    /// These events behind a position, unless it is none to go on from by the positions before and after they were read: what was
    /// given before is among them, and what was removed later may have been.
    pub(super) fn behind<T>(
        self,
        after: Option<u64>,
        later: Self,
        events: Vec<T>,
        next: u64,
    ) -> EventsAfter<T> {
        match after {
            Some(after) if after > self.last => EventsAfter::ToCome,
            Some(after) if after < later.removed => EventsAfter::Removed { up_to: later.removed },
            _ => EventsAfter::Are { events, next },
        }
    }

    /// The last of `limit` positions behind one, or of those that were given.
    pub(super) fn page(self, after: u64, limit: usize) -> u64 {
        after.saturating_add(limit as u64).min(self.last).max(after)
    }
}

/// What stands behind a position, as up to `limit` rows say.
pub(super) fn events_after(
    after: Option<u64>,
    limit: usize,
    rows: &[impl StoreRow],
    before: Positions,
    later: Positions,
) -> Result<EventsAfter> {
    let read_to = rows.last().map(|row| row.total("position")).transpose()?.or(after).unwrap_or(0);
    let next = if rows.len() < limit { read_to.max(before.last) } else { read_to };
    Ok(before.behind(after, later, readable(rows, event), next))
}

/// A position as a column has it; none is so large.
pub(super) fn to_position(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

pub(super) fn event(row: &impl StoreRow) -> Result<Event> {
    let has_owner = row.read::<Option<String>>("owner_id")?.is_some();
    Ok(Event {
        position: row.total("position")?,
        at: row.time("at")?,
        kind: row.word("kind")?,
        sequence: row.count("sequence")?,
        job: row.read::<Option<Uuid>>("job_id")?.map(JobId),
        batch: row.read::<Option<Uuid>>("batch_id")?.map(BatchId),
        owner: has_owner.then(|| row.owner()).transpose()?,
        tool: row.read("tool")?,
        toolkit: row.read("toolkit")?,
        queue: row.parse_if_any("queue")?,
        attempt: row.unsigned_if_any("attempt")?,
        held_reason: row.word_if_any("held_reason")?,
        error_kind: row.word_if_any("error_kind")?,
    })
}

#[cfg(test)]
mod tests {
    use crate::store::{Statement, postgres::PostgresStore};

    /// Statements after which no job has ended or is held, and that are nobody's decision.
    const NO_EVENTS: &[&str] = &["take_due", "locked"];

    #[test]
    fn each_statement_that_changes_the_state_of_a_job_records_events() {
        let mut recording = 0;
        for Statement { name, text, .. } in PostgresStore::statements() {
            let Some((_, update)) = text.split_once("update jobs") else { continue };
            let set = update.split("where").next().unwrap_or_default();
            let changes_state =
                set.split_whitespace().collect::<Vec<_>>().windows(2).any(|two| two == ["state", "="]);
            if changes_state && !NO_EVENTS.contains(name) {
                assert!(
                    text.contains("recorded_events"),
                    "{name} changes states and records no events: {text}"
                );
                recording += 1;
            }
        }
        assert!(recording >= 9, "{recording}");
    }
}
