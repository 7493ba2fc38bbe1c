//! Rejections: messages that are not jobs.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Decider, Place, Result};
use crate::job::{Asked, EnvelopeReason, JobId, Principal, QueueName};

/// Messages that are not jobs, kept whole.
///
/// * For an owner there are none, because nobody can vouch for what a rejected message says of its owner.
#[async_trait]
pub trait Rejections: fmt::Debug + Send + Sync {
    /// Keeps messages. The same message again (same ID) only counts as seen once more, and is listed
    /// again if it was requeued: it came back. Who asked for an answer is owed one (see [`Answers`]), in the same
    /// transaction; but not for a message that was kept before and that the broker only delivers again.
    ///
    /// [`Answers`]: super::Answers
    async fn reject(&self, batch: &[Rejected]) -> Result<()>;

    /// Up to `limit` rejected messages older than `before` that match and were not requeued, newest first, without
    /// bodies. How many there are to look at is bounded by `[retention]`.
    async fn rejected(
        &self,
        principal: &Principal,
        filter: &RejectedFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<RejectedView>>;

    async fn rejected_message(&self, principal: &Principal, id: Uuid) -> Result<Option<RejectedView>>;

    /// The message that came last of those that were meant to be this job, as far as that could be told.
    async fn rejected_as(&self, principal: &Principal, job: JobId) -> Result<Option<Uuid>>;

    /// Marks a message as requeued by a person, so that it is no longer listed. A body that was taken instead of its own
    /// is kept beside it.
    async fn mark_requeued(
        &self,
        principal: &Principal,
        id: Uuid,
        by: &Decider,
        corrected: Option<Vec<u8>>,
    ) -> Result<bool>;
}

/// Which rejected messages are listed. All given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct RejectedFilter {
    pub reason: Option<EnvelopeReason>,
    pub queue: Option<QueueName>,
    /// Received then or later.
    pub since: Option<Timestamp>,
    /// Received before then.
    pub until: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub struct Rejected {
    /// Derived from queue, properties and body, so that a redelivery is the same row.
    pub id: Uuid,
    pub queue: QueueName,
    pub reason: EnvelopeReason,
    /// One sentence that says what to change.
    pub message: String,
    pub body: Vec<u8>,
    /// Its transport properties, as JSON.
    pub properties: String,
    /// The ID of the job that it was meant to be, if one can be read.
    pub job: Option<JobId>,
    /// Who waits for an answer. A message that was read from the store has nobody here.
    pub asked: Option<Asked>,
}

impl Rejected {
    /// Stands for an explanation that the database refused.
    const UNTOLD: &str = "the message is not a job, and the database refuses to keep what is wrong with it";

    /// Without any text that came with the message, and so without an answer. Its body is bytes, which every database
    /// keeps.
    #[must_use]
    pub fn into_plain(self) -> Self {
        Self { message: Self::UNTOLD.to_owned(), properties: "{}".to_owned(), asked: None, ..self }
    }
}

/// A rejected message as people read it.
#[derive(Debug, Clone)]
pub struct RejectedView {
    /// What was kept; the body is empty in lists.
    pub message: Rejected,
    /// Of the body, in bytes.
    pub size: u64,
    /// How often it was delivered.
    pub seen: u32,
    pub received_at: Timestamp,
    pub requeued_at: Option<Timestamp>,
    /// Who requeued it last, since a build that notes it.
    pub requeued_by: Option<String>,
    /// The body that was taken instead of its own; always `None` in lists.
    pub corrected: Option<Vec<u8>>,
}

impl RejectedView {
    /// Its place in lists.
    pub fn place(&self) -> Place {
        Place { at: self.received_at.as_microsecond(), id: self.message.id }
    }
}
