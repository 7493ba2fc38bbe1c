//! What becomes of a job when something is missing before its call can be made.

use super::{ApiError, ToolError, redact::mask_keys};
use crate::job::{ErrorKind, HeldReason, JobError, NotReady, Stop};

impl ToolError {
    /// What a failed look-up means for the job that needed it; `what` completes "to ...".
    pub fn not_ready(&self, what: &str) -> NotReady {
        match self {
            Self::NotFound(error) => {
                let sentence = format!("the tool API found nothing when asked to {what}");
                Stop::Fail { error: said(ErrorKind::Refused, sentence, error) }.into()
            }
            Self::Refused { status, error } => {
                let sentence = format!("the tool API refused to {what} (HTTP {status})");
                Stop::Fail { error: said(ErrorKind::Refused, sentence, error) }.into()
            }
            Self::Credentials { status, error } => {
                let sentence = format!(
                    "the tool API does not accept errand's API key (HTTP {status}); correct the key, \
                     then release the job"
                );
                let error = said(ErrorKind::Credentials, sentence, error);
                Stop::Hold { reason: HeldReason::Credentials, error }.into()
            }
            Self::Throttled { retry_after } => NotReady::Wait {
                error: JobError::new(
                    ErrorKind::Throttled,
                    format!("the tool API is throttling, so errand could not ask it to {what} yet"),
                ),
                retry_after: *retry_after,
            },
            Self::Unavailable(cause) => NotReady::Wait {
                error: JobError::new(
                    ErrorKind::NotSent,
                    format!("the tool API cannot be asked to {what}: {}", mask_keys(cause)),
                ),
                retry_after: None,
            },
        }
    }
}

/// An error that begins with our own sentence, because that one says what to change, and goes on
/// with the API's words.
pub(crate) fn said(kind: ErrorKind, sentence: String, error: &ApiError) -> JobError {
    let mut text = sentence;
    if let Some(message) = &error.message {
        text.push_str("; it said: ");
        text.push_str(message);
    }
    for detail in &error.errors {
        text.push_str("; ");
        text.push_str(detail);
    }
    if let Some(fix) = &error.suggested_fix {
        text.push_str("; suggested fix: ");
        text.push_str(fix);
    }
    JobError::new(kind, mask_keys(&text).into_owned()).with_code(error.code, error.slug.clone())
}
