//! Answers to messages, beside the results of final jobs: that a job is held, that a message is rejected, that it repeats
//! a job that is known.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use super::{JobView, Result};
use crate::job::{Asked, EnvelopeReason, JobId, Principal, ReplyKind};

/// What is owed to whoever asked for an answer, until it is published or given up. A job that becomes held, and a message
/// that is rejected, owe theirs by the write that makes them so ([`Finishes`], [`Claims`], [`Rejections`]).
///
/// * An answer says what is true when it is taken, not when it was owed.
/// * Who asks the same again while an answer is pending is owed that one, however often they ask; and once more where it had
///   been taken already, because it may have been published before.
/// * It goes with its job or its rejected message.
/// * An owner finds no other ID of a job of others, and no job of others by one.
///
/// [`Finishes`]: super::Finishes
/// [`Claims`]: super::Claims
/// [`Rejections`]: super::Rejections
#[async_trait]
pub trait Answers: fmt::Debug + Send + Sync {
    /// Notes what repeats jobs: who is owed an answer, and under which other IDs a job is known, of which up to
    /// [`MAX_ALIASES`](crate::bounds::MAX_ALIASES) are kept for a job. What was noted before is left as it is. No other ID
    /// is noted for a job that was removed, or that another session has locked.
    async fn note_repeats(&self, batch: &[Repeat]) -> Result<()>;

    /// Takes up to `limit` answers that are due, what is owed longest first; each is offered again after `again_after`
    /// unless [`Self::answered`] says that it is done. What their jobs contain is bounded in bytes as it is for
    /// [`Publications::take_due`](super::Publications::take_due).
    async fn take_answers(&self, limit: usize, again_after: Duration) -> Result<Vec<Answer>>;

    /// Notes that answers are done with: published, or never to be published.
    async fn answered(&self, ids: &[Uuid]) -> Result<()>;

    /// Makes answers that could not be published due again after `after`, which does not count as a refusal.
    async fn defer_answers(&self, ids: &[Uuid], after: Duration) -> Result<()>;

    /// Notes that answers were refused, as [`Publications::put_off_replies`](super::Publications::put_off_replies) does for
    /// results: the waits double, and one that was refused `most` times is given up. Returns those.
    async fn put_off_answers(&self, ids: &[Uuid], first: Duration, most: u32) -> Result<Vec<Uuid>>;

    /// The job for which this other ID stands.
    async fn job_known_as(&self, principal: &Principal, id: JobId) -> Result<Option<JobId>>;

    /// The other IDs of a job, oldest first where they have a time in them.
    async fn known_as(&self, principal: &Principal, id: JobId) -> Result<Vec<JobId>>;
}

/// A message or command that repeats a job.
#[derive(Debug, Clone)]
pub struct Repeat {
    /// The job that stands for it.
    pub job: JobId,
    /// The ID that it came with, or that of the job where it came without one.
    pub id: JobId,
    /// Who is owed an answer.
    pub asked: Option<Asked>,
}

/// An answer that is to be published.
#[derive(Debug, Clone)]
pub struct Answer {
    pub asked: Asked,
    pub kind: ReplyKind,
    pub about: About,
}

/// What an answer tells of.
#[derive(Debug, Clone)]
pub enum About {
    /// A job, as it is now.
    Job(Box<JobView>),
    /// A rejected message.
    Message {
        id: Uuid,
        /// The job that it was meant to be, as far as that can be told.
        job: Option<JobId>,
        reason: EnvelopeReason,
        /// One sentence that says what to change.
        message: String,
    },
    /// The job or the message was removed.
    Nothing,
}
