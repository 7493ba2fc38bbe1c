//! The store is the truth about every job; a queue message is only transport.
//!
//! A backend implements the narrow traits below. Their documentation lists guarantees, and the
//! contract suite in `tests/it/store_contract.rs` has a test of the same meaning for each; every
//! backend runs all of them. No pool, transaction or row type crosses this seam.
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
//! * Futures may be dropped at any time without harm to the backend's connections.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::job::{
    Attempt, Binding, Ending, EnvelopeReason, ErrorKind, Fence, HeldReason, JobError, JobId, JobSpec,
    LookResult, Owner, OwnerKind, QueueName, Release, RequestId, State, Stop, WorkerId,
};

mod audit;
pub(crate) mod bench;
mod driver_error;
mod error;
mod migrations;
pub mod postgres;
mod replay;
mod row;
pub mod sqlite;

pub use audit::{Audit, AuditLimits, AuditPage, Finding, FindingKind};
pub use error::{StoreError, StoreErrorKind};

/// Everything that a process needs of a store.
pub trait Store:
    Jobs + Publications + Leases + Checks + Connections + Audit + JobControl + Pins + Rejections + Admin
{
}

impl<T: Jobs + Publications + Leases + Checks + Connections + Audit + JobControl + Pins + Rejections + Admin>
    Store for T
{
}

/// A store that is shared between long-lived parts.
pub type SharedStore = Arc<dyn Store>;

// ---------------------------------------------------------------------------------------------
// The path of a job: insert, claim, freeze, finish.

/// The writes on the path of every job.
#[async_trait]
pub trait Jobs: fmt::Debug + Send + Sync {
    /// Inserts jobs that did not come through a queue, as `scheduled` (when `run_at` is in the
    /// future) or `available`.
    ///
    /// * The same ID, owner and digest again is [`Inserted::Duplicate`] and changes nothing.
    /// * The same ID with another owner or digest, or the same idempotency key of the same owner
    ///   with another digest, is [`Inserted::Conflict`] and changes nothing.
    /// * The same idempotency key of the same owner with the same digest is a duplicate *of the
    ///   first job*, whose ID is returned.
    /// * `unclaimed_after` is when the relay looks at an available job for the first time: zero if
    ///   nobody else will publish it; otherwise that counts as its first publication.
    async fn insert(
        &self,
        batch: &[Arc<JobSpec>],
        unclaimed_after: Duration,
    ) -> Result<Vec<Inserted>, StoreError>;

    /// Takes deliveries: makes each job `running` under a new fence for `worker`, or says why not.
    /// Answers are in the order of the batch.
    ///
    /// * An unknown job is inserted and claimed in one step, unless [`Claim::from_store`] says that the
    ///   store knew it before: then it was removed since, and the answer is [`Claimed::Gone`].
    /// * A known `available` job of the same owner and digest is claimed: fence and attempt number
    ///   grow by one.
    /// * A known job in any other state is [`Claimed::Duplicate`]; nothing changes. The exception
    ///   makes repetition safe: a job that is `running` under the same worker and request ID gives
    ///   the [`Claimed::Running`] of the first time.
    /// * Another owner or digest, or an idempotency key used with another digest, is
    ///   [`Claimed::Conflict`]; nothing changes. The same key and digest under another ID is a
    ///   duplicate. Keys do not matter to a known job.
    /// * An unknown job whose `run_at` lies in the future becomes `scheduled` ([`Claimed::Scheduled`]).
    ///   A known job that is `available` was due, or a person made it due, so it runs.
    /// * A job whose `expires_at` has passed becomes `failed` with kind `expired` ([`Claimed::Ended`]).
    /// * With a [`Claim::stop`] the job becomes `failed` or `held` instead of `running`
    ///   ([`Claimed::Ended`]), with that error. Expiry and schedule matter only without one.
    /// * A known job whose attempts or fences are counted as far as can be counted becomes `failed` with kind
    ///   `internal` ([`Claimed::Ended`]) instead of `running`. All other counts stay at their highest value.
    /// * What was frozen earlier wins over [`Claim::frozen`]; what is offered is kept only where the
    ///   job becomes `running` and had nothing.
    /// * Within one batch, the first of several claims of the same ID wins; the others are duplicates.
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>, StoreError>;

    /// Records pin, account and effect of running jobs that were claimed without them, or without an
    /// account, before anything is sent. `false` for a job that the caller no longer holds (fenced), or for which
    /// something else was frozen before; it must then not be sent.
    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>, StoreError>;

    /// Ends attempts. What a holder reports about its attempt is recorded in every case (of a first
    /// attempt that succeeded, the times are the store's); what happens to the job is in [`Finished`],
    /// in the order of the batch.
    ///
    /// * Applied when the job is `running` under the given fence; `spent` grows by one where
    ///   [`Ending::spends_attempt`] says so.
    /// * A late result is applied too: the job was rescued (it is `retryable`, `scheduled`,
    ///   `available` or `held`) and its fence is unchanged, so nobody has claimed it since. It replaces
    ///   the record of the rescue and what the rescue charged to `spent`.
    /// * [`By::Rescuer`] is never late: it applies to `running` jobs of workers that are still lost, and
    ///   otherwise changes and records nothing. With the outcome `interrupted` it says that nothing was sent,
    ///   which applies only while the job is not frozen.
    /// * Otherwise [`Finished::Fenced`]: only the attempt record changes (the one of the same number
    ///   and request ID is replaced by the later knowledge, unless it already has a definite outcome,
    ///   which is any but `unknown` and `lost`).
    /// * A job that was asked to be cancelled while it ran becomes `cancelled` instead of
    ///   `retryable` or `held`; success and failure stand.
    /// * A snooze without an error keeps the error of the attempt before.
    /// * Final states get `finished_at`, and `reply_pending` where the app asked for a reply.
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError>;
}

/// What became of an inserted job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// It is new, and in this state now.
    New {
        /// `scheduled` or `available`.
        state: State,
    },
    /// It was known already.
    Duplicate {
        /// The job that stands for it; differs from the given ID when the idempotency key matched.
        id: JobId,
        /// That job's state.
        state: State,
    },
    /// Refused; nothing changed.
    Conflict(Conflict),
}

/// Why the same name cannot mean this job too. Says nothing about the other job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// The ID belongs to another owner.
    Owner,
    /// The ID was used with another body.
    Body,
    /// The owner used this idempotency key with another body.
    Key,
}

impl Conflict {
    /// The class under which a conflicting message is rejected.
    pub fn reason(self) -> EnvelopeReason {
        match self {
            Self::Owner => EnvelopeReason::OwnerConflict,
            Self::Body => EnvelopeReason::BodyConflict,
            Self::Key => EnvelopeReason::KeyConflict,
        }
    }

    /// One sentence for the app.
    pub fn message(self) -> &'static str {
        match self {
            Self::Owner | Self::Body => {
                "this `id` is already used by another job; give every job an ID of its own"
            }
            Self::Key => {
                "this `idempotency_key` was already used with another body; use a new key for a new request"
            }
        }
    }
}

/// One delivery that a worker wants to take.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job.
    pub spec: Arc<JobSpec>,
    /// The request ID of the attempt that this claim starts.
    pub request_id: RequestId,
    /// Pin, account and effect, when they could be decided without waiting.
    pub binding: Option<Binding>,
    /// What admission decided against running it; `None` runs it.
    pub stop: Option<Stop>,
    /// The message was published by the relay, so the store knew the job.
    pub from_store: bool,
}

impl Claim {
    /// The state to which the claim brings a job that is neither expired nor due later.
    pub fn goes_to(&self) -> State {
        self.stop.as_ref().map_or(State::Running, Stop::state)
    }
}

/// What became of a claim.
#[derive(Debug, Clone)]
pub enum Claimed {
    /// The worker holds the job.
    Running(ClaimReceipt),
    /// Due later; the relay will bring it back.
    Scheduled,
    /// It ended without running: refused, held or expired, as its state says.
    Ended {
        /// `failed` or `held`.
        state: State,
        /// Why.
        kind: ErrorKind,
    },
    /// It is known and not available.
    Duplicate {
        /// Its state.
        state: State,
    },
    /// It was known and has been removed since.
    Gone,
    /// Refused; nothing changed.
    Conflict(Conflict),
}

/// What the holder of a claim knows about the job beyond its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimReceipt {
    /// The proof of this claim.
    pub fence: Fence,
    /// The number of the attempt that this claim starts, from 1.
    pub attempt: u32,
    /// Attempts charged so far, this one not included.
    pub spent: u32,
    /// Decided earlier or with this claim; `None` means that the worker must decide and freeze.
    pub binding: Option<Binding>,
    /// When the store first knew the job.
    pub created_at: Timestamp,
    /// The age of the job at the claim, by the store's clock.
    pub age: Duration,
}

/// Pin, account and effect for a job that is held without them.
#[derive(Debug, Clone)]
pub struct Bind {
    /// The job.
    pub id: JobId,
    /// The claim.
    pub fence: Fence,
    /// The decision.
    pub binding: Binding,
}

/// The end of one attempt.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The job.
    pub id: JobId,
    /// The claim under which the attempt was made.
    pub fence: Fence,
    /// Who reports.
    pub by: By,
    /// The record of the attempt.
    pub attempt: Attempt,
    /// What should become of the job.
    pub ending: Ending,
}

/// Who ends an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The worker that made it.
    Holder,
    /// The rescue of a worker that stopped beating; `lease` is how old its beat must be.
    Rescuer {
        /// The age of the beat from which a worker is lost.
        lease: Duration,
    },
}

/// What became of a finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The job is in this state now.
    Applied {
        /// The new state.
        state: State,
        /// Whether the job had been rescued in the meantime.
        late: bool,
    },
    /// The caller no longer holds the job; only the attempt was recorded.
    Fenced,
}

// ---------------------------------------------------------------------------------------------
// The relay: due and unclaimed rows to the queue, and replies to apps.

/// What the relay reads and writes. Several processes may call these at once: a row is given to
/// one of them.
#[async_trait]
pub trait Publications: fmt::Debug + Send + Sync {
    /// Takes up to `limit` jobs that are due: `scheduled` and `retryable` ones whose time has come,
    /// and `available` ones that nobody claimed. Each becomes `available` and is looked at again
    /// after `unclaimed_after`, doubled with every time it was published without being claimed, up
    /// to `MAX_UNCLAIMED_WAIT`. Most urgent first: by priority, then by due time.
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>, StoreError>;

    /// Makes jobs that could not be published due again after `after`; the failed publication does
    /// not count.
    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<(), StoreError>;

    /// Makes every `available` job due now. For queues that lose their messages with the process.
    async fn republish_all(&self) -> Result<u64, StoreError>;

    /// How long until [`Self::take_due`] would find something, or `None` when nothing waits.
    async fn next_due_in(&self) -> Result<Option<Duration>, StoreError>;

    /// Takes up to `limit` finished jobs whose reply was not published yet; each is offered again
    /// after `again_after` unless [`Self::replied`] says that it is done.
    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<Reply>, StoreError>;

    /// These replies are published.
    async fn replied(&self, ids: &[JobId]) -> Result<(), StoreError>;
}

/// The longest time between two publications of a job that nobody claims.
pub const MAX_UNCLAIMED_WAIT: Duration = Duration::from_secs(3600);

/// A job to put on the queue.
#[derive(Debug, Clone)]
pub struct Due {
    /// The job.
    pub spec: Arc<JobSpec>,
    /// The state it was in.
    pub was: State,
}

/// A finished job whose app waits for the result.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The AMQP routing key (on the default exchange).
    pub reply_to: String,
    /// The app's correlation ID.
    pub correlation_id: Option<String>,
    /// What is published.
    pub job: JobView,
}

// ---------------------------------------------------------------------------------------------
// Leases and rescue.

/// Heartbeats of workers, and the jobs of workers that stopped.
#[async_trait]
pub trait Leases: fmt::Debug + Send + Sync {
    /// Says that this worker process lives. The first beat makes it known.
    async fn beat(&self, worker: WorkerId, name: &str) -> Result<(), StoreError>;

    /// Says that this worker process ends and holds nothing any more.
    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError>;

    /// Up to `limit` running jobs, oldest claim first, whose worker has not beaten for `lease` or is
    /// not known at all.
    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>, StoreError>;

    /// Forgets workers that have not beaten for `after` and hold nothing, and whatever else is only
    /// needed to find jobs that run. Called every few seconds; returns the workers.
    async fn forget_workers(&self, after: Duration) -> Result<u64, StoreError>;
}

/// A running job without a living worker.
#[derive(Debug, Clone)]
pub struct LostJob {
    /// The job.
    pub id: JobId,
    /// The claim of the lost worker.
    pub fence: Fence,
    /// The number of its attempt.
    pub attempt: u32,
    /// Attempts charged before that one.
    pub spent: u32,
    /// The request ID of its attempt.
    pub request_id: RequestId,
    /// When the attempt was claimed.
    pub started_at: Timestamp,
    /// `None` when nothing had been frozen, so that nothing can have been sent.
    pub binding: Option<Binding>,
    /// What the job may spend.
    pub budget: crate::job::Budget,
    /// Its age by the store's clock.
    pub age: Duration,
}

// ---------------------------------------------------------------------------------------------
// Unknown outcomes.

/// Jobs whose last call may or may not have run, while the tool API's log may still tell
/// ([`Ending::Verify`]). What the log tells is written with [`Jobs::finish`], as what the holder of the
/// claim learned late.
#[async_trait]
pub trait Checks: fmt::Debug + Send + Sync {
    /// Takes up to `limit` jobs about which the log should be asked now, longest due first. Each is
    /// taken again after `again_after`, unless something was decided until then. Several processes
    /// may call this at once: a job is given to one of them.
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>, StoreError>;

    /// Records that the log did not tell. Changes nothing where the job was released, cancelled or
    /// finished meanwhile, which is `false`.
    async fn put_off(&self, put_off: &PutOff) -> Result<bool, StoreError>;

    /// The request ID of any call of the last day that succeeded, by which a log can show that it
    /// knows our request IDs.
    async fn known_success(&self) -> Result<Option<RequestId>, StoreError>;
}

/// A job about which the log should be asked.
#[derive(Debug, Clone)]
pub struct Check {
    /// The job, which is `held`.
    pub job: JobView,
    /// The claim of the attempt.
    pub fence: Fence,
    /// The request ID of the attempt.
    pub request_id: RequestId,
    /// How often the log was asked before.
    pub checks: u32,
    /// Since when the outcome is unknown: the call was sent before.
    pub unknown_for: Duration,
    /// Age of the job.
    pub age: Duration,
    /// What the attempt itself told, before anything was looked up.
    pub known: String,
}

/// What becomes of a job about which the log did not tell.
#[derive(Debug, Clone)]
pub struct PutOff {
    /// The job.
    pub id: JobId,
    /// The claim of the attempt.
    pub fence: Fence,
    /// When the log is asked again; `None` leaves the decision to a person.
    pub again_after: Option<Duration>,
    /// What the log said.
    pub look: LookResult,
    /// Why it could not be read, if it could not.
    pub detail: Option<String>,
    /// What a person reads from now on.
    pub error: JobError,
}

// ---------------------------------------------------------------------------------------------
// Missing connections.

/// Jobs that are held until their owner has connected a toolkit ([`Stop::Connect`]). Those of the same owner, toolkit and named account wait together, and are asked
/// about together.
#[async_trait]
pub trait Connections: fmt::Debug + Send + Sync {
    /// Takes up to `limit` connections for which the tool API should be asked now, longest due first.
    ///
    /// * A connection is awaited from the moment at which the first of its jobs is held, and can be
    ///   taken at once; as soon as no job waits for it any more it is forgotten instead of given out.
    /// * Each is taken again after `again_after`, unless it was put off until then. Several processes
    ///   may call this at once: a connection is given to one of them.
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>, StoreError>;

    /// Records that the connection is still missing, or was not found out about: it is asked for again
    /// after `again_after`. What [`Awaited::doubted`] says is forgotten unless `keep_doubt` says otherwise
    /// or more jobs were held meanwhile.
    async fn put_off_awaited(
        &self,
        awaited: &Awaited,
        again_after: Duration,
        keep_doubt: bool,
    ) -> Result<(), StoreError>;

    /// Lets up to `limit` of the jobs go that wait for this connection, oldest first, as
    /// [`JobControl::release`] does with [`Release::Retry`], and returns how many. Fewer than `limit` means that
    /// none is left; then the connection is no longer awaited, unless more jobs were held meanwhile.
    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64, StoreError>;

    /// Ends up to `limit` jobs that wait for a connection and whose `expires_at` or `max_age_ms` has
    /// passed: they become `failed` with the kind of error that they had and a message that says so.
    /// Returns how many.
    async fn expire_awaiting(&self, limit: usize) -> Result<u64, StoreError>;
}

/// A connection that held jobs wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// Who has to connect.
    pub owner: Owner,
    /// What has to be connected.
    pub toolkit: String,
    /// The account that the jobs name, if they do.
    pub account: Option<String>,
    /// The account that a call of these jobs was last refused with: that the tool API says it is active
    /// proves nothing.
    pub doubted: Option<String>,
    /// How often it was put off before.
    pub looks: u32,
    /// The row, and how often jobs were parked in it.
    pub(crate) id: i64,
    pub(crate) parked: i64,
}

// ---------------------------------------------------------------------------------------------
// What people and scripts read and decide.

/// Questions and decisions about single jobs, from the command line and the HTTP API.
#[async_trait]
pub trait JobControl: fmt::Debug + Send + Sync {
    /// One job.
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError>;

    /// Its attempts, in order. The attempt of a running job is included, without an outcome.
    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError>;

    /// Jobs, newest first, without `result`.
    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError>;

    /// Calls a job off ([`crate::job::Transition::Cancel`]). A running job is marked only.
    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError>;

    /// Runs a failed or cancelled job again, with a fresh attempt budget, or makes a waiting one due
    /// now ([`crate::job::Transition::Restart`]). Its error is forgotten; what was frozen stays.
    async fn restart(&self, id: JobId) -> Result<Decided, StoreError>;

    /// Lets a held job go. The result of one that a person marks as succeeded is JSON `null`. One that
    /// waited for a connection forgets the account that was chosen for it, because the new connection
    /// is another account; an account that the job named itself stays.
    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError>;

    /// How many held jobs match.
    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError>;

    /// Lets up to `limit` matching jobs go, each as [`Self::release`] does, and returns how many. Jobs
    /// that somebody else decides about at the same time are left to them.
    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError>;

    /// Figures for the gauges.
    async fn census(&self) -> Result<Census, StoreError>;
}

/// The answer to a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// Done; the job is in this state now.
    Now(State),
    /// The job's state does not allow it.
    Illegal(crate::job::IllegalMove),
    /// There is no such job.
    Unknown,
}

/// Which jobs to list. All given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<State>,
    /// Of this owner.
    pub owner: Option<Owner>,
    /// Of this tool.
    pub tool: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Which held jobs to let go. All given conditions must hold.
#[derive(Debug, Clone)]
pub struct HeldFilter {
    /// Held for this reason.
    pub reason: HeldReason,
    /// Of this owner.
    pub owner: Option<Owner>,
    /// Of this toolkit, as far as it is known: a job that was held before its tool was looked up has none.
    pub toolkit: Option<String>,
}

/// A job as people and apps read it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: State,
    /// Why it is held.
    pub held_reason: Option<HeldReason>,
    /// Pin, account and effect, once decided.
    pub binding: Option<Binding>,
    /// When the store first knew it.
    pub created_at: Timestamp,
    /// When it is next looked at, while it waits.
    pub due_at: Option<Timestamp>,
    /// When its call is next looked up in the execution log, while its outcome is unknown.
    pub check_at: Option<Timestamp>,
    /// When the last attempt was claimed.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// The tool's `data`.
    pub result: Option<Arc<RawValue>>,
    /// Why it is not, or not yet, succeeded.
    pub error: Option<JobError>,
    /// The log ID of the last attempt that had one.
    pub log_id: Option<String>,
    /// Attempts started.
    pub attempt: u32,
    /// Attempts charged.
    pub spent: u32,
    /// Somebody asked to cancel it while it ran.
    pub cancel_requested: bool,
}

/// One attempt as people read it.
#[derive(Debug, Clone)]
pub struct AttemptView {
    /// Counts from 1.
    pub number: u32,
    /// The `x-request-id`.
    pub request_id: RequestId,
    /// `None` while it runs.
    pub outcome: Option<crate::job::AttemptOutcome>,
    /// The HTTP status.
    pub http_status: Option<u16>,
    /// The execution log ID.
    pub log_id: Option<String>,
    /// The toolkit version.
    pub version: Option<String>,
    /// Why it did not succeed.
    pub error: Option<JobError>,
    /// When it was claimed.
    pub started_at: Timestamp,
    /// When its outcome was known.
    pub finished_at: Option<Timestamp>,
}

/// Figures for the gauges. Counts of final states are left out: they only grow, and counting them
/// would read the whole table.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Jobs by queue and state, for states that are not final.
    pub jobs: Vec<(QueueName, State, u64)>,
    /// Held jobs by reason.
    pub held: Vec<(HeldReason, u64)>,
    /// For each queue, how long its oldest due job has waited.
    pub oldest_due: Vec<(QueueName, Duration)>,
}

// ---------------------------------------------------------------------------------------------
// Pins.

/// Toolkit versions that are pinned at run time.
#[async_trait]
pub trait Pins: fmt::Debug + Send + Sync {
    /// All pins, global ones first.
    async fn pins(&self) -> Result<Vec<PinRow>, StoreError>;

    /// Sets or replaces a pin.
    async fn set_pin(&self, pin: &PinRow) -> Result<(), StoreError>;

    /// Removes a pin; `false` when there was none.
    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool, StoreError>;
}

/// One pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRow {
    /// `None` is the global pin.
    pub owner: Option<Owner>,
    /// Lower-case toolkit slug.
    pub toolkit: String,
    /// The version.
    pub version: String,
}

// ---------------------------------------------------------------------------------------------
// Rejected messages.

/// Messages that are not jobs, kept whole.
#[async_trait]
pub trait Rejections: fmt::Debug + Send + Sync {
    /// Keeps messages. The same message again (same ID) only counts as seen once more, and is listed
    /// again if it was requeued: it came back.
    async fn reject(&self, batch: &[Rejected]) -> Result<(), StoreError>;

    /// The newest rejected messages that were not requeued, without bodies.
    async fn rejected(&self, limit: usize) -> Result<Vec<RejectedView>, StoreError>;

    /// One rejected message with its body.
    async fn rejected_message(&self, id: Uuid) -> Result<Option<RejectedView>, StoreError>;

    /// Marks a message as requeued, so that it is no longer listed.
    async fn mark_requeued(&self, id: Uuid) -> Result<bool, StoreError>;
}

/// A message that is not a job.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Derived from queue, properties and body, so that a redelivery is the same row.
    pub id: Uuid,
    /// The lane it came through.
    pub queue: QueueName,
    /// The class.
    pub reason: EnvelopeReason,
    /// One sentence that says what to change.
    pub message: String,
    /// The message, byte for byte.
    pub body: Vec<u8>,
    /// Its transport properties, as JSON.
    pub properties: String,
}

impl Rejected {
    /// Stands for an explanation that the database refused.
    const UNTOLD: &str = "the message is not a job, and the database refuses to keep what is wrong with it";

    /// Without any text that came with the message. Its body is bytes, which every database keeps.
    #[must_use]
    pub fn into_plain(self) -> Self {
        Self { message: Self::UNTOLD.to_owned(), properties: "{}".to_owned(), ..self }
    }

    /// Whether nothing is left that a database could refuse.
    pub fn is_plain(&self) -> bool {
        self.message == Self::UNTOLD && self.properties == "{}"
    }
}

/// A rejected message as people read it.
#[derive(Debug, Clone)]
pub struct RejectedView {
    /// What was kept; the body is empty in lists.
    pub message: Rejected,
    /// The size of the body in bytes.
    pub size: u64,
    /// How often it was delivered.
    pub seen: u32,
    /// When it was first seen.
    pub received_at: Timestamp,
    /// When it was requeued.
    pub requeued_at: Option<Timestamp>,
}

// ---------------------------------------------------------------------------------------------
// The database itself.

/// Whether the schema is what this build expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// All migrations are applied.
    Current,
    /// Migrations are missing.
    Behind {
        /// How many.
        missing: usize,
    },
    /// The database was migrated by a newer build, which is fine: migrations only add.
    Ahead,
}

/// Care for the database.
#[async_trait]
pub trait Admin: fmt::Debug + Send + Sync {
    /// What kind of database this is, for people: `PostgreSQL` or `SQLite`.
    fn backend(&self) -> &'static str;

    /// Applies the migrations that are missing; returns how many. Several processes may call it at once.
    async fn migrate(&self) -> Result<usize, StoreError>;

    /// Compares the schema with this build.
    async fn schema(&self) -> Result<Schema, StoreError>;

    /// Answers if the store can be read, with its clock.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// The server's version, for people.
    async fn version(&self) -> Result<String, StoreError>;

    /// Ends all connections.
    async fn close(&self);
}

/// The kind of owner as a filter column; both backends use the same words.
pub(crate) fn owner_columns(owner: Option<&Owner>) -> (Option<&'static str>, Option<&str>) {
    (owner.map(|o| o.kind().as_str()), owner.map(Owner::id))
}

/// Rebuilds an owner from its columns.
pub(crate) fn owner_of(kind: &str, id: String) -> Result<Owner, StoreError> {
    let kind: OwnerKind = kind.parse().map_err(|_| StoreError::corrupt("owner_kind"))?;
    Owner::new(kind, id).map_err(|_| StoreError::corrupt("owner_id"))
}

/// Runs a write in a task of its own, so that it ends properly when the caller's future is dropped.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    // Boxed, so that the code of a task is compiled once for each kind of answer and not for each write.
    let work: BoxFuture<'static, Result<T, StoreError>> = Box::pin(work);
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::new(StoreErrorKind::Unavailable, "the process is ending")),
        },
    }
}
