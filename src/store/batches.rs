//! Batches: many jobs that were enqueued together.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Conflict, Decider, Place, Result, StoreError,
    convert::{to_duration, to_i32},
    read::StoreRow,
};
use crate::{
    bounds::MAX_OPEN_BATCHES,
    job::{BatchId, CallbackUrl, Digest, JobId, JobSpec, Owner, Principal, State},
    string_enum::string_enum,
};

/// Batches, which are counted from their jobs: neither a claim nor a finish writes anything of a batch.
///
/// * Items are added whole or not at all, with the jobs that are new among them, and each job once. An item that is a known
///   job is that job, and no item of another owner's job is.
/// * The same batch again, or the same chunk again, changes nothing and gives the same answer.
/// * A batch is complete when it is sealed and each of its jobs is final or gone, once a generation. When its rest was
///   called off, a job that is held by then counts as ended.
/// * An owner finds no batch of others: nothing is told of it, and nothing about it is changed.
#[async_trait]
pub trait Batches: fmt::Debug + Send + Sync {
    /// Adds a batch with its first items. One that is sealed without items and that no job follows is complete at once.
    async fn add_batch(&self, batch: &NewBatch, items: &[Arc<JobSpec>]) -> Result<Added>;

    /// Adds items to a batch that is open, of which the first has the index `from`.
    async fn add_items(
        &self,
        principal: &Principal,
        id: BatchId,
        from: u64,
        items: &[Arc<JobSpec>],
    ) -> Result<Added>;

    /// Lets a batch take no more items. One that is sealed already stays as it is.
    async fn seal_batch(&self, principal: &Principal, id: BatchId) -> Result<Option<BatchView>>;

    /// A batch with the counts of a moment ago, or of this moment where that is asked for; of one with very many open items,
    /// some are of a moment ago all the same.
    async fn batch(&self, principal: &Principal, id: BatchId, live: bool) -> Result<Option<BatchView>>;

    /// The jobs of up to `limit` items from this index on, in their order. The state is `None` of a job that is gone, or that
    /// is in a state which this version does not know.
    async fn batch_items(
        &self,
        principal: &Principal,
        id: BatchId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<BatchItem>>;

    /// Up to `limit` batches older than `before`, newest first, with the counts of a moment ago.
    async fn batches(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<BatchView>>;

    /// Which of these batches do not [go on](BatchView::goes_on) by the counts of a moment ago, or are not there.
    async fn settled_batches(&self, ids: &[BatchId]) -> Result<Vec<BatchId>>;

    /// Seals a batch and begins to call off the jobs that it enqueued and that are not final. One that is complete, or of
    /// which that was begun, stays as it is.
    async fn cancel_batch(&self, principal: &Principal, id: BatchId, by: &Decider) -> Result<BatchDecided>;

    /// Begins the next generation of a complete batch, in which those of its own jobs that failed are run again, and
    /// forgets that its rest was called off, and its deadline. With `force` also those whose last call may have had its
    /// effect. One that is not complete, or of which no own job failed, stays as it is; and so does one whose owner has
    /// [`MAX_OPEN_BATCHES`] that are not complete, and one that is not of the `generation` that is meant, where one is.
    async fn retry_batch(
        &self,
        principal: &Principal,
        id: BatchId,
        by: &Decider,
        force: bool,
        generation: Option<u32>,
    ) -> Result<BatchDecided>;

    /// Takes up to `limit` batches that are to be looked at, for `lease`: of each owner the one that is due for the longest
    /// time, then of each the next, so that nobody's wait for all that another has. That holds among as many as
    /// two owners may have; behind these, what is due for longer comes first.
    async fn take_batches(&self, limit: usize, lease: Duration) -> Result<Vec<TakenBatch>>;

    /// Counts the jobs of a batch anew: of its open parts those that were counted longest ago, with about `most` items.
    /// A part whose jobs have all ended is not open any more.
    async fn count_batch(&self, id: BatchId, most: usize) -> Result<Option<Counted>>;

    /// Notes how far what is being done with a batch has come, where that is what was taken; `None`: it is done.
    async fn advance_batch(&self, taken: &TakenBatch, place: Option<Place>) -> Result<()>;

    /// Completes the generation of a batch that was taken, if it is complete. Returns whether it is by now.
    async fn complete_batch(&self, taken: &TakenBatch) -> Result<bool>;

    /// Says when a batch that was taken is looked at again, unless that has changed since.
    async fn put_off_batch(&self, taken: &TakenBatch, after: Duration) -> Result<()>;

    /// Removes up to `limit` batches that were completed so long ago, with their items and without their jobs. Returns how
    /// many.
    async fn remove_batches(&self, completed_for: Duration, limit: usize) -> Result<u64>;

    /// Removes the batches of an owner, whether they are complete or not, without their jobs. Returns how many.
    async fn remove_batches_of(&self, owner: &Owner) -> Result<u64>;
}

/// A batch before it is stored.
#[derive(Clone)]
pub struct NewBatch {
    pub id: BatchId,
    /// Whose it is.
    pub principal: Principal,
    /// Of its settings. That of its items is added to it.
    pub digest: Digest,
    /// Whether it takes no more items.
    pub is_sealed: bool,
    /// When what has not started by then is called off.
    pub deadline: Option<Timestamp>,
    pub stop: Option<StopRule>,
    /// The envelope of the job that is enqueued when it is complete.
    pub follow_up: Option<String>,
    /// Where its events are sent, without those of its jobs.
    pub callback: Option<CallbackUrl>,
}

impl NewBatch {
    /// Whether nothing is left to be done for it once it is stored.
    pub(super) fn is_complete_with(&self, items: &[Arc<JobSpec>]) -> bool {
        self.is_sealed && items.is_empty() && self.follow_up.is_none()
    }
}

/// The envelope is a customer's data.
impl fmt::Debug for NewBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewBatch").field("id", &self.id).finish_non_exhaustive()
    }
}

/// When so many jobs have failed that the rest is called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRule {
    /// This percentage of those that succeeded or failed.
    #[schema(minimum = 1, maximum = 100)]
    pub failed_percent: u8,
    /// Once at least so many have.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub of_at_least: u32,
}

impl StopRule {
    /// Whether these counts are a reason to call off the rest.
    pub fn applies(self, counts: &Counts) -> bool {
        let sample = counts.succeeded + counts.failed;
        sample >= u64::from(self.of_at_least)
            && counts.failed * 100 >= u64::from(self.failed_percent) * sample
    }
}

/// What became of items that were to be added.
#[derive(Debug, Clone)]
pub enum Added {
    /// They are new; with the job of each.
    New(BatchView, Vec<JobId>),
    /// They were there.
    Known(BatchView),
    /// Nothing was changed.
    Not(NotAdded),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAdded {
    /// There is no such batch.
    Unknown,
    /// The ID stands for another batch, or these indexes for other items.
    Taken,
    /// The owner has [`MAX_OPEN_BATCHES`] that are not complete.
    TooMany,
    /// The next item has this index.
    Gap { next: u64 },
    /// It takes no more items.
    Sealed,
    /// It would have more than [`MAX_BATCH_ITEMS`](crate::bounds::MAX_BATCH_ITEMS) items, or
    /// [`MAX_BATCH_PARTS`](crate::bounds::MAX_BATCH_PARTS) parts.
    Full,
    /// Some items, by their place among those that were given, have an ID or key that is taken.
    Items(Vec<(usize, Conflict)>),
}

/// Most due batches among which owners take turns, those that are due for the longest time. It is more than one owner has, and
/// few enough to be sorted for each take.
pub(super) const TAKING_TURNS: i64 = 2_000;
const _: () = assert!(TAKING_TURNS as usize > MAX_OPEN_BATCHES);

/// The generation that a retry is of, as statements take it: 0, which none is, for any.
pub(super) fn meant(generation: Option<u32>) -> i32 {
    generation.map_or(0, to_i32)
}

/// What became of a decision about a batch.
#[derive(Debug, Clone)]
pub enum BatchDecided {
    Begun(BatchView),
    /// It stays as it is.
    Unchanged(BatchView),
    Unknown,
}

#[derive(Debug, Clone)]
pub struct BatchView {
    pub id: BatchId,
    /// Whose it is.
    pub principal: Principal,
    pub created_at: Timestamp,
    pub sealed_at: Option<Timestamp>,
    /// How many items it has.
    pub items: u64,
    pub generation: u32,
    pub completed_at: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub stop: Option<StopRule>,
    /// Who called off its rest, and when.
    pub cancelled: Option<(String, Timestamp)>,
    pub doing: Option<Doing>,
    pub counts: Counts,
    /// Whether a job follows its completion.
    pub has_follow_up: bool,
}

impl BatchView {
    /// Where it is in the order of creation.
    pub fn place(&self) -> Place {
        Place { at: self.created_at.as_microsecond(), id: self.id.0 }
    }

    /// Whether it is neither complete, nor are all of its jobs that have not ended held, so that it goes on only when a person
    /// or a connection comes. What is still to be added or called off goes on, too.
    pub fn goes_on(&self) -> bool {
        let Counts { held, .. } = self.counts;
        let is_changing = self.sealed_at.is_none() || self.doing.is_some() || self.cancelled.is_some();
        let waits = !is_changing && held > 0 && held + self.counts.ended() == self.items;
        self.completed_at.is_none() && !waits
    }

    /// The job that follows the completion of this generation.
    pub fn follow_up(&self) -> Option<JobId> {
        self.has_follow_up.then(|| self.id.follow_up(self.generation))
    }
}

string_enum! {
    /// What is being done with the jobs of a batch.
    Doing {
        /// Those that are not final are called off.
        Cancel = "cancel",
        /// Those that failed are run again.
        Retry = "retry",
    }
}

/// A batch that one process looks at.
#[derive(Clone)]
pub struct TakenBatch {
    pub batch: BatchView,
    /// The envelope of the job that follows.
    pub follow_up: Option<String>,
    /// Who wants what is being done, whether although it may repeat an effect, for how long by now, and where it goes on.
    pub doing: Option<(Doing, Orders)>,
    pub is_past_deadline: bool,
    /// How long ago it was made.
    pub age: Duration,
    /// Until when it is taken, in microseconds since 1970.
    pub(super) until: i64,
}

/// The envelope is a customer's data.
impl fmt::Debug for TakenBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenBatch").field("id", &self.batch.id).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    pub by: String,
    pub force: bool,
    pub given_for: Duration,
    pub place: Option<Place>,
}

/// An item of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchItem {
    pub index: u64,
    pub job: JobId,
    pub state: Option<State>,
}

/// How many of the items of a batch are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Counts {
    pub scheduled: u64,
    pub available: u64,
    pub running: u64,
    pub retryable: u64,
    pub held: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Those whose job is not there any more.
    pub removed: u64,
}

impl Counts {
    pub(super) fn of(row: &impl StoreRow) -> Result<Self> {
        Ok(Self {
            scheduled: row.total("scheduled")?,
            available: row.total("available")?,
            running: row.total("running")?,
            retryable: row.total("retryable")?,
            held: row.total("held")?,
            succeeded: row.total("succeeded")?,
            failed: row.total("failed")?,
            cancelled: row.total("cancelled")?,
            removed: row.total("removed")?,
        })
    }

    /// How many have ended.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.cancelled + self.removed
    }
}

/// What a count found.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub counts: Counts,
    /// How many parts are open.
    pub open: u64,
    /// How long the counts have been the same.
    pub unchanged_for: Duration,
}

pub(super) fn item(row: &impl StoreRow) -> Result<BatchItem> {
    let state: Option<String> = row.read("state")?;
    Ok(BatchItem {
        index: row.total("item")?,
        job: JobId(row.read("job_id")?),
        state: state.and_then(|state| state.parse().ok()),
    })
}

pub(super) fn view(row: &impl StoreRow) -> Result<BatchView> {
    let is_operators = row.read::<Option<String>>("owner_kind")?.is_none();
    let failed_percent = row.unsigned_if_any::<u8>("stop_percent")?;
    let cancelled_by: Option<String> = row.read("cancelled_by")?;
    Ok(BatchView {
        id: BatchId(row.read("id")?),
        principal: if is_operators { Principal::Operator } else { Principal::Owner(row.owner()?) },
        created_at: row.time("created_at")?,
        sealed_at: row.time_if_any("sealed_at")?,
        items: row.total("items")?,
        generation: row.count("generation")?,
        completed_at: row.time_if_any("completed_at")?,
        deadline: row.time_if_any("deadline")?,
        stop: failed_percent
            .zip(row.unsigned_if_any("stop_sample")?)
            .map(|(failed_percent, of_at_least)| StopRule { failed_percent, of_at_least }),
        cancelled: cancelled_by.zip(row.time_if_any("cancelled_at")?),
        doing: row.parse_if_any("doing")?,
        counts: Counts::of(row)?,
        has_follow_up: row.read("has_follow_up")?,
    })
}

/// A batch with the columns that a take returns beside those of a view.
pub(super) fn taken(row: &impl StoreRow) -> Result<TakenBatch> {
    let place: Option<String> = row.read("doing_place")?;
    let orders = Orders {
        by: row.read::<Option<String>>("doing_by")?.unwrap_or_default(),
        force: row.read("doing_force")?,
        given_for: row.span_if_any("doing_for")?.unwrap_or_default(),
        place: place.and_then(|place| place.parse().ok()),
    };
    let batch = view(row)?;
    Ok(TakenBatch {
        doing: batch.doing.map(|doing| (doing, orders)),
        batch,
        follow_up: row.read("follow_up")?,
        is_past_deadline: row.read("is_past_deadline")?,
        age: row.span("age")?,
        until: row.read("until")?,
    })
}

pub(super) fn counted(row: &impl StoreRow) -> Result<Counted> {
    Ok(Counted {
        counts: Counts::of(row)?,
        open: row.total("open")?,
        unchanged_for: to_duration(row.read("unchanged_for")?),
    })
}

/// The columns of a batch that people read.
pub(super) const BATCH: &str = "id, owner_kind, owner_id, created_at, sealed_at, items, generation, completed_at, deadline,
    stop_percent, stop_sample, cancelled_by, cancelled_at, doing, {counts}, follow_up is not null as has_follow_up";

/// Whether [a batch goes on](BatchView::goes_on).
pub(super) const GOES_ON: &str =
    "completed_at is null and (sealed_at is null or doing is not null or cancelled_at is not null
    or held = 0 or held + succeeded + failed + cancelled + removed <> items)";

/// The counts of a row, in order.
pub(super) const COUNTS: &str =
    "{each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: @}";

/// The same of jobs `j` that items have or, where they are gone, had.
pub(super) const COUNT_JOBS: &str =
    "{each scheduled, available, running, retryable, held, succeeded, failed, cancelled:
        count(*) filter (where j.state = '@') as @}, count(*) filter (where j.id is null) as removed";

/// The sums of such counts of a table `c`.
pub(super) const SUM_COUNTS: &str = "{each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: cast(coalesce(sum(c.@), 0) as bigint) as @}";

/// Takes over the counts of a table `c`.
pub(super) const SET_COUNTS: &str =
    "{each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: @ = c.@}";

/// Whether the counts of a batch `b` are not those of a table `c`.
pub(super) const COUNTS_DIFFER: &str = "({each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: b.@})
    is distinct from ({each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: c.@})";

/// Whether a job failed that a batch enqueued, which is what a retry of it runs again.
pub(super) const HAS_FAILED: &str =
    "failed > 0 and exists (select 1 from jobs where batch_id = batches.id and state = 'failed')";

/// Whether the owner of a new batch may have one more that is not complete. The operator may, whose batches have no owner.
pub(super) const MAY_BE_OPENED: &str = "{most} > (select count(*) from batches
    where owner_kind = {owner_kind} and owner_id = {owner_id} and completed_at is null)";

/// The same of a batch that is run again.
pub(super) const MAY_BE_REOPENED: &str = "{most} > (select count(*) from batches o
    where o.owner_kind = batches.owner_kind and o.owner_id = batches.owner_id and o.completed_at is null)";

/// The digest of a row is that of the same items or settings.
pub(super) fn is_same(row: &impl StoreRow, digest: Digest) -> Result<bool> {
    Ok(row.digest().map_err(|_| StoreError::corrupt("digest"))? == digest)
}
