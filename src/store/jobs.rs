//! Jobs that did not come through a queue.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Beginning, JobView, Result};
use crate::job::{EnvelopeReason, JobId, JobSpec, State};

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
    /// * The first due time is `run_at`, or now where that is later or there is none.
    /// * `unclaimed_after` is when the relay looks at an available job for the first time: zero if
    ///   nobody else will publish it; otherwise that counts as its first publication.
    async fn insert(&self, batch: &[Arc<JobSpec>], unclaimed_after: Duration) -> Result<Vec<Inserted>>;

    /// What [`insert`](Self::insert) would answer about a job that is known; `None` where it would be new.
    async fn known(&self, spec: &JobSpec) -> Result<Option<Inserted>>;

    /// Which of these jobs another session has locked at this moment. [`StoreErrorKind::Locked`] where none can be
    /// written, because a table is locked.
    ///
    /// [`StoreErrorKind::Locked`]: super::StoreErrorKind::Locked
    async fn locked(&self, jobs: &[JobId]) -> Result<HashSet<JobId>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// It is new, and begins like this.
    New(Beginning),
    /// It is known.
    Duplicate(Repeated),
    /// Refused; nothing changed.
    Conflict(Conflict),
}

/// The job that stands for one which repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// Differs from the given ID when the idempotency key matched.
    pub id: JobId,
    /// `None` where this version cannot tell it.
    pub state: Option<State>,
    /// Both came under one ID and ask for an answer in the same place, with the same correlation ID and message ID, so that
    /// the answer to one is the answer to the other.
    pub same_asker: bool,
}

impl Repeated {
    /// How this job stands for one with its ID, owner and digest.
    pub fn by(job: &JobView, spec: &JobSpec) -> Self {
        let same_asker = (&job.spec.reply_to, &job.spec.correlation_id, &job.spec.message_id)
            == (&spec.reply_to, &spec.correlation_id, &spec.message_id);
        Self { id: job.spec.id, state: Some(job.state), same_asker }
    }

    /// Whether whoever repeated the job is owed an answer of their own. Nobody is while the job's end will answer them,
    /// or where the broker only delivers a message again.
    pub fn is_answered(&self, redelivered: bool) -> bool {
        !self.same_asker || (!redelivered && self.state.is_some_and(State::is_final))
    }
}

/// Why the same name cannot mean this job too. Says nothing about a job that may be another owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    Owner,
    Body,
    Key {
        /// The job of the same owner that has the key; `None`: another item of the same batch.
        first: Option<JobId>,
    },
}

impl Conflict {
    /// The class under which a conflicting message is rejected.
    pub fn reason(self) -> EnvelopeReason {
        match self {
            Self::Owner => EnvelopeReason::OwnerConflict,
            Self::Body => EnvelopeReason::BodyConflict,
            Self::Key { .. } => EnvelopeReason::KeyConflict,
        }
    }

    pub fn message(self) -> String {
        let same = "must be sent in the same bytes (order of keys, escapes, spelling of numbers), apart from white space";
        match self {
            Self::Owner => {
                "this `id` is already used by another job; give every job an ID of its own".to_owned()
            }
            Self::Body => format!(
                "this `id` is known with another body: a new job needs an `id` of its own, and the same job again {same}"
            ),
            Self::Key { first } => {
                let of = first.map_or_else(|| "another item".to_owned(), |id| format!("the job {id}"));
                format!(
                    "this `idempotency_key` is that of {of}, which has another body: a new request needs a new key, and the \
                     same request again {same}"
                )
            }
        }
    }
}
