//! The audit log: who changed what, from where, and when.
//!
//! The [history](super::History) of a job tells of errand's own decisions, too, in the job's own words, and goes with the job.
//! The audit log tells of people and keys only, of everything that they may change, and outlives what it is about. A decision
//! about a job is in both, by one statement.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Place, Result, read::StoreRow};
use crate::{
    job::{Owner, Principal},
    string_enum::string_enum,
};

/// Where somebody is who uses the command line.
pub const COMMAND_LINE: &str = "command line";

/// Who changes something, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decider {
    /// A person, or a key by its ID, as [`check_decider`](super::check_decider) has it.
    pub by: Cow<'static, str>,
    /// The address of the other end, or [`COMMAND_LINE`]. Up to 128 characters.
    pub origin: Cow<'static, str>,
}

impl Decider {
    /// A person at the command line.
    pub fn at_command_line(by: impl Into<Cow<'static, str>>) -> Self {
        Self { by: by.into(), origin: Cow::Borrowed(COMMAND_LINE) }
    }
}

string_enum! {
    /// What was done. The word before the dot is the kind of object.
    ChangeKind or Unrecognized {
        KeyCreated = "key.created",
        KeyRotated = "key.rotated",
        KeyRevoked = "key.revoked",
        JobCancelled = "job.cancelled",
        JobRetried = "job.retried",
        JobReleased = "job.released",
        JobEdited = "job.edited",
        BatchCancelled = "batch.cancelled",
        BatchRetried = "batch.retried",
        ActionConfirmed = "action.confirmed",
        ActionAborted = "action.aborted",
        QueuePaused = "queue.paused",
        QueueResumed = "queue.resumed",
        PinSet = "pin.set",
        PinRemoved = "pin.removed",
        RejectedRequeued = "rejected.requeued",
        OwnerErased = "owner.erased",
        CallbackSet = "callback.set",
        CallbackRotated = "callback.rotated",
        CallbackSecretRead = "callback.secret_read",
        CallbackRecovered = "callback.recovered",
    }
}

string_enum! {
    /// What a change is about.
    ObjectKind {
        Key = "key",
        Job = "job",
        Batch = "batch",
        Action = "action",
        Queue = "queue",
        Pin = "pin",
        Rejected = "rejected",
        Owner = "owner",
        Callback = "callback",
    }
}

/// Entries of the audit log.
///
/// * A change that a person or a key makes through this seam has its entry, written with it: there is never one without
///   the other. What changes nothing has none, but that the secret of a callback was told, with which its reader can sign.
/// * For an owner there are the entries about what is theirs.
/// * Entries hold neither secrets nor what customers sent.
#[async_trait]
pub trait Changes: fmt::Debug + Send + Sync {
    /// Up to `limit` entries older than `before` that match, newest first. How many there are to look at is bounded by
    /// `[retention]`.
    async fn changes(
        &self,
        principal: &Principal,
        filter: &ChangeFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Change>>;

    /// Notes that an owner's data is erased from now on. The entry does not say whose.
    async fn note_erasure(&self, owner: &Owner, by: &Decider) -> Result<()>;

    /// Takes the owner out of up to `limit` entries about what was theirs, or about an action whose filter names them, with the
    /// ID of what that was, the filter, and the address from which they made a change themselves. Returns of how many.
    async fn forget_owner(&self, owner: &Owner, limit: usize) -> Result<u64>;

    /// Removes up to `limit` entries that are so old, by the store's clock. Returns how many.
    async fn remove_changes(&self, age: Duration, limit: usize) -> Result<u64>;
}

/// Which entries are listed. All given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    pub kind: Option<ObjectKind>,
    /// The ID or name of the object.
    pub object: Option<String>,
    /// Whose it is about.
    pub owner: Option<Owner>,
    /// Who made it.
    pub by: Option<String>,
    /// Made then or later.
    pub since: Option<Timestamp>,
    /// Made before then.
    pub until: Option<Timestamp>,
}

/// One entry of the audit log.
#[derive(Debug, Clone)]
pub struct Change {
    pub id: Uuid,
    pub at: Timestamp,
    pub what: ChangeKind,
    pub by: String,
    pub origin: String,
    /// Whether it was made as the operator; else as the owner that it is about.
    pub as_operator: bool,
    /// Whose it is about, if anybody's whom errand still knows.
    pub owner: Option<Owner>,
    pub object: Option<String>,
    /// As small JSON, what the change put an end to, and what it brought.
    pub before: Option<Arc<RawValue>>,
    pub after: Option<Arc<RawValue>>,
}

/// An entry as JSON. Every key is always there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Change, description = "A change that a person or a key made.")]
pub struct ChangeJson<'a> {
    pub id: Uuid,
    pub at: Timestamp,
    pub what: ChangeKind,
    /// A person, or `key ID`, or `api` where there are no keys.
    pub by: &'a str,
    /// The address of the other end, or `command line`.
    pub from: &'a str,
    /// Whether it was made as the operator; else as the owner that it is about.
    pub as_operator: bool,
    /// Whose it is about, if that is anybody's whom errand still knows.
    pub owner: Option<&'a Owner>,
    /// The ID of what it is about; of a pin, the toolkit.
    pub object: Option<&'a str>,
    #[schema(value_type = Option<Object>)]
    pub before: Option<&'a RawValue>,
    #[schema(value_type = Option<Object>)]
    pub after: Option<&'a RawValue>,
}

impl Change {
    /// Its place in lists.
    pub fn place(&self) -> Place {
        Place { at: self.at.as_microsecond(), id: self.id }
    }

    pub fn json(&self) -> ChangeJson<'_> {
        ChangeJson {
            id: self.id,
            at: self.at,
            what: self.what,
            by: &self.by,
            from: &self.origin,
            as_operator: self.as_operator,
            owner: self.owner.as_ref(),
            object: self.object.as_deref(),
            before: self.before.as_deref(),
            after: self.after.as_deref(),
        }
    }
}

/// A new entry, without what its statement knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewChange<'a> {
    pub(super) id: Uuid,
    pub(super) what: ChangeKind,
    pub(super) decider: &'a Decider,
    pub(super) as_operator: bool,
}

impl<'a> NewChange<'a> {
    pub(super) fn new(what: ChangeKind, principal: &Principal, decider: &'a Decider) -> Self {
        let as_operator = principal.owner().is_none();
        Self { id: Uuid::now_v7(), what, decider, as_operator }
    }
}

pub(super) fn change(row: &impl StoreRow) -> Result<Change> {
    let has_owner = row.read::<Option<String>>("owner_id")?.is_some();
    Ok(Change {
        id: row.read("change_id")?,
        at: row.time("at")?,
        what: row.word("what")?,
        by: row.read("decider")?,
        origin: row.read("origin")?,
        as_operator: row.read("as_operator")?,
        owner: has_owner.then(|| row.owner()).transpose()?,
        object: row.read("object")?,
        before: row.json("before_value")?,
        after: row.json("after_value")?,
    })
}
