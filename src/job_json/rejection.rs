//! What an app is told of a message that is no job.

use serde::Serialize;
use uuid::Uuid;

use crate::job::{EnvelopeReason, JobId, ReplyKind};

/// What an app is told of a message that is no job: the job that it was meant to be, as far as that can be told, under
/// which ID the message is kept, why it is rejected, and what to change.
pub fn rejection_json<'a>(
    rejected_id: Uuid,
    job: Option<JobId>,
    reason: EnvelopeReason,
    message: &'a str,
) -> impl Serialize + use<'a> {
    #[derive(Serialize)]
    struct Rejection<'a> {
        reply: ReplyKind,
        id: Option<JobId>,
        rejected_id: Uuid,
        reason: EnvelopeReason,
        message: &'a str,
    }

    Rejection { reply: ReplyKind::Rejected, id: job, rejected_id, reason, message }
}
