//! Claims: how a delivery becomes a running job.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Conflict, Repeated, Result};
use crate::job::{Binding, ErrorKind, Fence, JobId, JobSpec, RequestId, State, Stop, WorkerId};

#[async_trait]
pub trait Claims: fmt::Debug + Send + Sync {
    /// Answers are in the order of the batch.
    ///
    /// * An unknown job is inserted and claimed in one step, unless [`Claim::from_store`] says that the
    ///   store knew it before: then the answer is [`Claimed::Gone`], and nothing is inserted.
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
    /// * The first due time of an unknown job is [`Claim::published_at`], if the store's clock has passed it, or now; or
    ///   its `run_at` if that is later. A known job keeps the one that it has.
    /// * With a [`Claim::stop`] the job becomes `failed` or `held` instead of `running`
    ///   ([`Claimed::Ended`]), with that error. Expiry and schedule matter only without one. It does not count for a
    ///   job that is bound or was tried: what is decided stays decided, however often its message comes.
    /// * Counts of attempts stay at their highest value, so that no claim fails for them.
    /// * What was bound earlier wins over [`Claim::binding`]; what is offered is kept only where the
    ///   job becomes `running` and had nothing.
    /// * Within one batch, the first of several claims of the same ID wins; the others are duplicates.
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>>;

    /// Records pin, account and effect of running jobs that were claimed without them, or without an
    /// account, before anything is sent. `false` for a job that the caller no longer holds (fenced), or for which
    /// something else was bound before; it must then not be sent.
    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>>;
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub spec: Arc<JobSpec>,
    pub request_id: RequestId,
    /// Pin, account and effect, when they could be decided without waiting.
    pub binding: Option<Binding>,
    /// What admission decided against running it; `None` runs it.
    pub stop: Option<Stop>,
    /// The message was published by the relay, so the store knew the job.
    pub from_store: bool,
    /// When the message was published, if it says so and can be believed.
    pub published_at: Option<Timestamp>,
}

impl Claim {
    /// The state to which the claim brings a job that is neither expired nor due later.
    pub fn goes_to(&self) -> State {
        self.stop.as_ref().map_or(State::Running, Stop::state)
    }
}

#[derive(Debug, Clone)]
pub enum Claimed {
    Running(ClaimReceipt),
    /// Due later; the relay will bring it back.
    Scheduled,
    /// It ended without running: refused, held or expired, as its state says.
    Ended {
        /// `failed` or `held`.
        state: State,
        kind: ErrorKind,
    },
    /// It is known and not available.
    Duplicate(Repeated),
    /// It should be known and is not: the store was restored or is another one, or the message lies. Nothing changed.
    Gone,
    /// Refused; nothing changed.
    Conflict(Conflict),
}

/// What the holder of a claim knows about the job beyond its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimReceipt {
    pub fence: Fence,
    /// The number of the attempt that this claim starts, from 1.
    pub attempt: u32,
    /// Attempts charged so far, this one not included.
    pub spent: u32,
    /// Decided earlier or with this claim; `None` means that the worker must decide and bind.
    pub binding: Option<Binding>,
    /// When the store first knew the job.
    pub created_at: Timestamp,
    /// Since when it was due, as the store knows it; `None` for a job of a build that did not note it.
    pub first_due_at: Option<Timestamp>,
    /// The age of the job at the claim, by the store's clock.
    pub age: Duration,
    /// How long ago the first of the snoozes was that the last attempts ended in, one after the other; `None` where the
    /// last one ended otherwise, or a person or a connection has let the job go since.
    pub postponed_for: Option<Duration>,
}

impl ClaimReceipt {
    /// Of a job that was unknown before.
    pub(super) fn first(binding: Option<Binding>, created_at: Timestamp, first_due_at: Timestamp) -> Self {
        Self {
            fence: Fence(1),
            attempt: 1,
            spent: 0,
            binding,
            created_at,
            first_due_at: Some(first_due_at),
            age: Duration::ZERO,
            postponed_for: None,
        }
    }
}

/// Pin, account and effect for a job that is held without them.
#[derive(Debug, Clone)]
pub struct Bind {
    pub id: JobId,
    pub fence: Fence,
    pub binding: Binding,
}
