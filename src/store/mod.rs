//! The store is the truth about every job; a queue message is only transport.
//!
//! A backend implements the narrow traits of the modules below. Their documentation lists guarantees, and the
//! contract suite in `tests/it/store_contract` has a test of the same meaning for each; every backend runs all
//! of them. A noun has the same file name here, in both backends and in the suite. No pool, transaction or row
//! type crosses this seam.
//!
//! What holds for every method:
//! * Methods that write take batches and are atomic per item: an item is applied whole or not at all.
//! * When a method returns, what it wrote is durable.
//! * An `Err` means that it is unknown which items were applied. Every batch may be sent again as it
//!   is: claims are recognized by their request ID, finishes by request ID, reporter and outcome,
//!   inserts and rejections by their IDs, so that a repetition changes nothing (but the count of how
//!   often a rejected message was seen) and gives the answer that was lost; an insert that was applied
//!   is a duplicate of itself.
//! * An error of kind `Data` means that nothing of the batch was applied.
//! * Due times, leases, expiry and ages are judged by the store's clock. Durations come in, never
//!   instants of the caller's clock.
//! * What people read and decide takes the principal. For an owner it is as if jobs of others did not exist. What has no
//!   principal is of the operator and of errand's own parts.
//! * What a method takes for somebody to work on is given to one of the processes that ask at the same time.
//! * Futures may be dropped at any time without harm to the backend's connections.

use std::sync::Arc;

mod access_keys;
mod actions;
mod admin;
mod answers;
mod audit;
mod batch_items;
mod batches;
mod bound;
mod callbacks;
mod changes;
mod checks;
mod claims;
mod columns;
mod connections;
mod convert;
mod detached;
mod driver_error;
mod error;
mod events;
mod filter_json;
mod finishes;
mod history;
mod job_control;
mod job_filter;
mod job_inbox;
mod job_lists;
mod jobs;
mod leases;
mod migrations;
mod pauses;
mod pins;
pub mod postgres;
mod publications;
mod read;
mod rejections;
mod replay;
mod retention;
mod rows;
mod sql;
pub mod sqlite;
mod texts;

pub use access_keys::{AccessKeys, AddedKey, UsedKey};
pub use actions::{
    Action, ActionDecision, ActionKind, ActionStatus, Actions, Confirmed, Deciding, MadeAction, NewAction,
    Preview, PreviewKind, Progress, Skip, Step, TakenAction, Then,
};
pub use admin::{Admin, Concern, Migrated, Schema, Weight};
pub use answers::{About, Answer, Answers, Repeat};
pub use audit::{Audit, AuditLimits, AuditPage, Finding, FindingKind};
pub use batches::{
    Added, BatchDecided, BatchItem, BatchView, Batches, Counted, Counts, Doing, NewBatch, NotAdded, Orders,
    StopRule, TakenBatch,
};
pub use callbacks::{
    Callback, CallbackAnswer, Callbacks, CalledEvent, CalledJob, Delivery, DeliveryFilter, DeliveryState,
    DueDelivery, NewDelivery, NextTry, OwnUrl, Recovery, Secrets, TriedDelivery, WhyDisabled,
};
pub use changes::{COMMAND_LINE, Change, ChangeFilter, ChangeJson, ChangeKind, Changes, Decider, ObjectKind};
pub use checks::{Check, Checks, PutOff};
pub use claims::{Bind, Claim, ClaimReceipt, Claimed, Claims};
pub use connections::{Awaited, Connections, SEARCHED_FOR_TOGETHER, TakeAwaited};
pub use error::{Result, StoreError, StoreErrorKind};
pub use events::{
    Event, EventJson, EventKind, EventListener, Events, EventsAfter, EventsOf, Heard, PlacedEvent, Recording,
};
pub use filter_json::{BadFilter, FilterJson};
pub use finishes::{By, Finish, Finished, Finishes};
pub use history::{History, HistoryEntry, HistoryFact, HistoryKind, check_decider};
pub use job_control::{
    AsRead, AttemptView, Beginning, Census, Decided, Edited, Force, JobControl, JobDecision, JobView,
};
pub use job_filter::{JobFilter, Looked, NoPlace};
pub use job_inbox::{InboxEntry, JobInbox};
pub use job_lists::{Glance, JobLists, all_jobs};
pub use jobs::{Conflict, Inserted, Jobs, Repeated};
pub use leases::{Leases, LostJob, Task, WorkerView, build};
pub use pauses::{Pause, PausedQueue, Pauses, check_reason};
pub use pins::Pins;
pub use publications::{Due, MAX_UNCLAIMED_WAIT, Publications};
pub use rejections::{Rejected, RejectedFilter, RejectedView, Rejections};
pub use retention::{OldJob, OldMessage, OtherId, Page, Pending, Place, Retention, SeenJob, Which};
pub use sql::Statement;

/// Everything that a process needs of a store.
pub trait Store:
    Jobs
    + JobInbox
    + Claims
    + Finishes
    + Publications
    + Answers
    + Leases
    + Checks
    + Connections
    + Events
    + Audit
    + Changes
    + JobControl
    + JobLists
    + History
    + Pins
    + Pauses
    + AccessKeys
    + Batches
    + Callbacks
    + Actions
    + Rejections
    + Retention
    + Admin
{
}

pub type SharedStore = Arc<dyn Store>;
