//! What was finished or rejected long ago, and its removal.

use std::{collections::HashMap, fmt, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Result,
    read::{StoreRow, readable},
};
use crate::job::{JobId, Owner, Principal, State};

/// Rows in the order in which they came, page by page, and their removal.
///
/// * A walk reads every row once that was there at its beginning and was not removed meanwhile. A page changes nothing
///   and locks nothing.
/// * What a page says holds for one moment, so a removal looks again: what changed since, or is locked by somebody else,
///   stays. A removal that is sent again removes nothing more.
/// * What is not final is never removed, and neither is a job whose reply is still to be published or whose call is still
///   looked up.
#[async_trait]
pub trait Retention: fmt::Debug + Send + Sync {
    /// Up to `limit` of these jobs, oldest first, which come after `after`, or the first ones.
    async fn old_jobs(&self, which: &Which, after: Option<Place>, limit: usize) -> Result<Page<OldJob>>;

    /// Those of these jobs that are final and as they were seen.
    async fn seen_jobs(&self, principal: &Principal, seen: &[SeenJob]) -> Result<Vec<OldJob>>;

    /// Removes those of these jobs that are as they were seen, each with its attempts, its history, its idempotency key,
    /// its other IDs and the answers that tell of it in one transaction. Returns them.
    async fn remove_jobs(&self, jobs: &[OldJob]) -> Result<Vec<JobId>>;

    /// Up to `limit` rejected messages, newest first, which came before `before`, or the last ones.
    async fn old_messages(&self, before: Option<Place>, limit: usize) -> Result<Page<OldMessage>>;

    /// Removes those of these rejected messages that have not come again, with the answers that they owe. Returns their
    /// IDs.
    async fn remove_messages(&self, messages: &[OldMessage]) -> Result<Vec<Uuid>>;

    /// Removes other IDs of jobs that are gone, among up to `limit` other IDs that come after `after`, or the first ones. A
    /// job takes its own along, unless a build removes it that does not know of them. Returns the last one that was looked
    /// at; `None` when nothing was left.
    async fn sweep_other_ids(&self, after: Option<OtherId>, limit: usize) -> Result<Option<OtherId>>;

    /// Forgets which connections of an owner were awaited, as far as no job waits for them any more. Returns how many
    /// that were.
    async fn forget_awaited(&self, owner: &Owner) -> Result<u64>;
}

/// Which jobs a walk reads.
#[derive(Debug, Clone)]
pub struct Which {
    /// `None`: of all owners.
    pub owner: Option<Owner>,
    /// Those that were created so long ago, by the store's clock.
    pub age: Duration,
}

/// A place between two rows in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// By the store's clock, in microseconds since 1970.
    pub(super) at: i64,
    pub(super) id: Uuid,
}

impl Place {
    /// Before all rows. No ID of a row is that of this place.
    pub(super) const FIRST: Self = Self { at: 0, id: Uuid::nil() };
    /// After all rows: in the year 9999.
    pub(super) const LAST: Self = Self { at: 253_402_300_799_000_000, id: Uuid::max() };
}

/// An ID of a job beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherId {
    pub job: JobId,
    pub id: JobId,
}

impl OtherId {
    /// Before all others.
    pub(super) const FIRST: Self = Self { job: JobId(Uuid::nil()), id: JobId(Uuid::nil()) };

    pub(super) fn read(row: &impl StoreRow) -> Result<Self> {
        Ok(Self { job: JobId(row.read("job_id")?), id: JobId(row.read("id")?) })
    }
}

#[derive(Debug, Clone)]
pub struct Page<T> {
    /// Those that this version of errand can read.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when nothing was left.
    pub end: Option<Place>,
}

/// A job as it was when it was seen.
#[derive(Debug, Clone, Copy)]
pub struct SeenJob {
    pub id: JobId,
    /// When it became final, in microseconds since 1970: what changes when it is run again.
    pub(super) finished_at: Option<i64>,
}

/// A job as it is seen by what removes jobs.
#[derive(Debug, Clone)]
pub struct OldJob {
    pub id: JobId,
    pub owner: Owner,
    pub state: State,
    /// How long ago it became final, by the store's clock.
    pub finished_for: Option<Duration>,
    /// What keeps a final job.
    pub pending: Option<Pending>,
    /// About what its arguments and its result take.
    pub bytes: u64,
    /// When it became final, in microseconds since 1970: what changes when it is run again.
    pub(super) finished_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pending {
    /// Its reply is still to be published.
    Reply,
    /// Its call is still looked up.
    LookUp,
}

impl OldJob {
    /// Whether nothing but its retention keeps it.
    pub fn may_go(&self) -> bool {
        self.finished_for.is_some() && self.pending.is_none()
    }
}

/// A rejected message as it is seen by what removes messages.
#[derive(Debug, Clone, Copy)]
pub struct OldMessage {
    pub id: Uuid,
    /// Since it came last, by the store's clock.
    pub age: Duration,
    /// Of the body.
    pub bytes: u64,
    /// When it came last, in microseconds since 1970: what changes when it comes again.
    pub(crate) received_at: i64,
}

impl<T> Page<T> {
    fn read<R: StoreRow>(rows: &[R], item: impl Fn(&R) -> Result<T>) -> Result<Self> {
        let end = rows
            .last()
            .map(|row| Ok::<_, super::StoreError>(Place { at: row.read("at")?, id: row.read("id")? }));
        Ok(Self { items: readable(rows, item), end: end.transpose()? })
    }
}

impl Page<OldJob> {
    pub(super) fn of_jobs(rows: &[impl StoreRow]) -> Result<Self> {
        Self::read(rows, old_job)
    }
}

fn old_job(row: &impl StoreRow) -> Result<OldJob> {
    let pending = [("owes_reply", Pending::Reply), ("is_looked_up", Pending::LookUp)];
    let pending =
        pending.into_iter().map(|(column, pending)| Ok(row.read::<bool>(column)?.then_some(pending)));
    Ok(OldJob {
        id: JobId(row.read("id")?),
        owner: row.owner()?,
        state: row.parse("state")?,
        finished_for: row.span_if_any("finished_for")?,
        pending: pending.collect::<Result<Vec<_>>>()?.into_iter().flatten().next(),
        bytes: row.total("bytes")?,
        finished_at: row.read("finished_at")?,
    })
}

/// Those of these rows that are final and as they were seen.
pub(super) fn as_seen(rows: &[impl StoreRow], seen: &[SeenJob]) -> Vec<OldJob> {
    let seen: HashMap<JobId, Option<i64>> = seen.iter().map(|job| (job.id, job.finished_at)).collect();
    let mut jobs = readable(rows, old_job);
    jobs.retain(|job| job.finished_at.is_some() && seen.get(&job.id) == Some(&job.finished_at));
    jobs
}

impl Page<OldMessage> {
    pub(super) fn of_messages(rows: &[impl StoreRow]) -> Result<Self> {
        Self::read(rows, |row| {
            Ok(OldMessage {
                id: row.read("id")?,
                age: row.span("age")?,
                bytes: row.total("bytes")?,
                received_at: row.read("at")?,
            })
        })
    }
}
