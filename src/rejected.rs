//! Rejected messages, as they are told and found: by what is kept of each, and by what its body says of its job and owner.
//!
//! A message that is no job may say anything of its owner, so this is for the operator alone.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    job::{BYTE_ORDER_MARK, EnvelopeReason, JobId, Owner, Principal, QueueName, id_of},
    queue::Properties,
    store::{Place, RejectedFilter, RejectedView, SharedStore, StoreError},
};

/// Messages that are read in one go, and at most for one page, to find a job or an owner in their bodies. They are read
/// one at a time, because a body may be large.
const READ_AT_ONCE: usize = 100;
const MOST_READ: usize = 1_000;

/// Which messages are looked for.
#[derive(Debug, Clone, Default)]
pub struct Search {
    pub filter: RejectedFilter,
    /// Those that would be this job, as far as they tell.
    pub job: Option<JobId>,
    /// Those that name this owner, as far as they tell.
    pub owner: Option<Owner>,
}

/// What was found so far.
#[derive(Debug)]
pub struct Found {
    /// The newest first.
    pub messages: Vec<RejectedView>,
    /// Where to go on, if there may be more.
    pub next: Option<Place>,
}

impl Search {
    /// Up to `limit` messages behind a place. Where their bodies have to be read, these are 1,000 at most, so that the page may
    /// have few messages or none although there is a next one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn page(
        &self,
        store: &SharedStore,
        principal: &Principal,
        mut before: Option<Place>,
        limit: usize,
    ) -> Result<Found, StoreError> {
        let reads = self.job.is_some() || self.owner.is_some();
        let (mut messages, mut read) = (Vec::new(), 0);
        loop {
            let rows = if reads { READ_AT_ONCE } else { limit };
            let listed = store.rejected(principal, &self.filter, before, rows).await?;
            let is_last = listed.len() < rows;
            for view in listed {
                before = Some(view.place());
                read += 1;
                if !reads || self.finds(store, principal, &view).await? {
                    messages.push(view);
                }
                if messages.len() >= limit {
                    return Ok(Found { messages, next: before });
                }
            }
            if is_last {
                return Ok(Found { messages, next: None });
            }
            if read >= MOST_READ {
                return Ok(Found { messages, next: before });
            }
        }
    }

    async fn finds(
        &self,
        store: &SharedStore,
        principal: &Principal,
        view: &RejectedView,
    ) -> Result<bool, StoreError> {
        let Some(whole) = store.rejected_message(principal, view.message.id).await? else {
            return Ok(false);
        };
        let is_of_job = self.job.is_none_or(|job| job_of(&whole) == Some(job) || job.0 == view.message.id);
        let is_of_owner =
            self.owner.as_ref().is_none_or(|owner| names(&whole.message.body, owner) == Some(true));
        Ok(is_of_job && is_of_owner)
    }
}

/// The job that a message would be, as far as it tells.
pub fn job_of(view: &RejectedView) -> Option<JobId> {
    let properties: Properties = serde_json::from_str(&view.message.properties).unwrap_or_default();
    id_of(&view.message.body, &properties.arrival(&view.message.queue, None))
}

/// Whether a message that is no job names this owner as its own; `None` where it does not tell.
pub fn names(body: &[u8], owner: &Owner) -> Option<bool> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return None };
    let id = fields.get(owner.kind().field()).and_then(Value::as_str);
    // An ID with blanks around it is a reason to reject a message.
    Some(id.is_some_and(|id| id.trim() == owner.id().trim()))
}

/// A message that is no job, without its body.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RejectedMessage)]
pub struct RejectedJson<'a> {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub queue: &'a QueueName,
    pub reason: EnvelopeReason,
    /// What to change.
    pub message: &'a str,
    /// What it was published with.
    pub properties: Value,
    /// Of the body, in bytes.
    pub size: u64,
    /// How often it came.
    pub seen: u32,
    pub received_at: Timestamp,
    pub requeued_at: Option<Timestamp>,
    pub requeued_by: Option<&'a str>,
}

impl<'a> RejectedJson<'a> {
    pub fn of(view: &'a RejectedView) -> Self {
        let message = &view.message;
        Self {
            id: message.id,
            queue: &message.queue,
            reason: message.reason,
            message: &message.message,
            properties: serde_json::from_str(&message.properties).unwrap_or_default(),
            size: view.size,
            seen: view.seen,
            received_at: view.received_at,
            requeued_at: view.requeued_at,
            requeued_by: view.requeued_by.as_deref(),
        }
    }
}

/// A rejected message by itself, which says what its body tells.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WholeRejectedMessage)]
pub struct WholeRejectedJson<'a> {
    #[serde(flatten)]
    message: RejectedJson<'a>,
    /// The job that it would be, as far as it tells.
    #[schema(value_type = Option<Uuid>)]
    job: Option<JobId>,
    /// Of the body that was taken instead of its own, in bytes.
    corrected_size: Option<usize>,
}

impl<'a> WholeRejectedJson<'a> {
    pub fn of(view: &'a RejectedView) -> Self {
        let corrected_size = view.corrected.as_ref().map(Vec::len);
        Self { message: RejectedJson::of(view), job: job_of(view), corrected_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_message_is_an_owners_by_the_field_of_its_kind() {
        let owner: Owner = "user:u-1".parse().unwrap();
        for (body, theirs) in [
            (r#"{"user_id": "u-1", "tool": 7}"#, Some(true)),
            ("\u{feff}{\"user_id\": \"u-1\"}", Some(true)),
            (r#"{"user_id": " u-1 "}"#, Some(true)),
            (r#"{"org_id": "u-1"}"#, Some(false)),
            (r#"{"user_id": "u-10"}"#, Some(false)),
            (r#"{"user_id": 1}"#, Some(false)),
            (r#"{"user_id": "u-1""#, None),
            (r#"["u-1"]"#, None),
            ("", None),
        ] {
            assert_eq!(names(body.as_bytes(), &owner), theirs, "{body}");
        }
    }
}
