//! What becomes of a job when something is missing before its call can be made.

use std::time::Duration;

use super::{ApiError, ToolError, redact::mask_keys};
use crate::job::{ErrorKind, HeldReason, JobError};

/// Why a job cannot be called now, and what to do with it. Nothing was sent.
#[derive(Debug, Clone)]
pub enum NotReady {
    /// Final: the job itself has to be changed.
    Fail(JobError),
    /// Parked until a person or a connection lets it go.
    Hold(HeldReason, JobError),
    /// Parked until the job's owner has connected a toolkit.
    Connect {
        /// The toolkit.
        toolkit: String,
        /// Who has to do what.
        error: JobError,
    },
    /// Not the job's fault, and it passes: come back later without spending an attempt.
    Wait {
        /// What is to be waited for.
        error: JobError,
        /// The API's wish, if it said one.
        retry_after: Option<Duration>,
    },
}

impl NotReady {
    /// What it says to the app.
    pub fn error(&self) -> &JobError {
        match self {
            Self::Fail(error)
            | Self::Hold(_, error)
            | Self::Connect { error, .. }
            | Self::Wait { error, .. } => error,
        }
    }
}

impl ToolError {
    /// What a failed look-up means for the job that needed it; `what` completes "to ...".
    pub fn not_ready(&self, what: &str) -> NotReady {
        match self {
            Self::NotFound(error) => NotReady::Fail(said(
                ErrorKind::Refused,
                format!("the tool API found nothing when asked to {what}"),
                error,
            )),
            Self::Refused { status, error } => NotReady::Fail(said(
                ErrorKind::Refused,
                format!("the tool API refused to {what} (HTTP {status})"),
                error,
            )),
            Self::Credentials { status, error } => NotReady::Hold(
                HeldReason::Credentials,
                said(
                    ErrorKind::Credentials,
                    format!(
                        "the tool API does not accept errand's API key (HTTP {status}); correct the key, \
                         then release the job"
                    ),
                    error,
                ),
            ),
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
