//! What became of an attempt, and why.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::RequestId;
use crate::{bounds::MAX_ERROR_CHARS, string_enum::string_enum};

string_enum! {
    /// What repeating a call does to the world.
    Effect {
        /// Reads only: repeat at will (`readOnlyHint`).
        Safe = "safe",
        /// Repeating changes nothing more (`idempotentHint`).
        Idempotent = "idempotent",
        /// Each call counts, so an unknown outcome is never repeated blindly. The default.
        Once = "once",
    }
}

impl Effect {
    /// Whether an attempt with an unknown outcome may simply be made again.
    pub fn may_repeat(self) -> bool {
        match self {
            Self::Safe | Self::Idempotent => true,
            Self::Once => false,
        }
    }
}

string_enum! {
    AttemptOutcome or Unrecognized {
        Succeeded = "succeeded",
        ToolFailed = "tool_failed",
        /// The tool API refused the call; nothing ran.
        Refused = "refused",
        /// The tool API asked us to slow down; nothing ran.
        Throttled = "throttled",
        /// No byte of the request left, or the call was not made at all (unknown tool, no connection, an open circuit
        /// breaker, a job whose time has passed); nothing ran. Older builds recorded the latter as `interrupted`.
        NotSent = "not_sent",
        /// Nobody knows whether the tool ran.
        Unknown = "unknown",
        /// The worker stopped beating while it held the job, so nobody knows whether the tool ran.
        Lost = "lost",
        /// errand gave the job back before it sent anything (shutdown, a lease that was nearly over), or the worker was
        /// lost before that.
        Interrupted = "interrupted",
    }
}

string_enum! {
    /// Why a job failed, is held or is being retried.
    ErrorKind or Unrecognized {
        /// The envelope contradicts itself, for example `text` and `arguments` together.
        InvalidJob = "invalid_job",
        /// The arguments do not fit the input schema of the tool, and `arguments.check` refuses that.
        InvalidArguments = "invalid_arguments",
        /// The owner may not run jobs (`default`, an e-mail address where that is refused).
        OwnerRefused = "owner_refused",
        /// The toolkit belongs to the other kind of owner.
        WrongOwnerKind = "wrong_owner_kind",
        /// No toolkit version is pinned and the policy refuses that.
        Unpinned = "unpinned",
        /// The tool does not exist at the pinned version, or was removed.
        UnknownTool = "unknown_tool",
        /// The connected account that the job names does not exist.
        AccountNotFound = "account_not_found",
        /// The connected account belongs to another owner. Never retried.
        AccountMismatch = "account_mismatch",
        /// The owner has not connected the toolkit.
        NeedsConnection = "needs_connection",
        /// The owner's connection expired or is not in a usable state.
        NeedsReconnection = "needs_reconnection",
        Credentials = "credentials",
        /// The tool API refused the call for another reason.
        Refused = "refused",
        ToolFailed = "tool_failed",
        Throttled = "throttled",
        /// The tool API could not be reached; nothing was sent.
        NotSent = "not_sent",
        UnknownOutcome = "unknown_outcome",
        WorkerLost = "worker_lost",
        /// The tool ran but its answer is larger than the limit, so the result is not kept.
        ResultTooLarge = "result_too_large",
        /// `expires_at` or `max_age_ms` passed before the call was made.
        Expired = "expired",
        /// errand itself failed to process the job.
        Internal = "internal",
        MarkedFailed = "marked_failed",
    }
}

/// What an app reads about a job whose time passed before it was called.
pub(crate) const EXPIRED: &str = "`expires_at` passed before the call was made";
pub(crate) const TOO_OLD: &str = "`max_age_ms` passed before the call was made";

/// What an app reads about a failure. It never contains credentials, and its texts keep to [`MAX_ERROR_CHARS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(description = "What went wrong.")]
pub struct JobError {
    kind: ErrorKind,
    #[serde(deserialize_with = "clipped")]
    message: String,
    /// The tool API's own number for it.
    code: Option<i64>,
    #[serde(default, deserialize_with = "clipped_if_any")]
    slug: Option<String>,
}

impl JobError {
    /// An error of errand's own, without a code of the tool API.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: clip(message.into()), code: None, slug: None }
    }

    pub fn with_code(mut self, code: Option<i64>, slug: Option<String>) -> Self {
        self.code = code;
        self.slug = slug.map(clip);
        self
    }

    pub fn with_message(mut self, message: String) -> Self {
        self.message = clip(message);
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// One sentence for people, saying what to change where something can be changed.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn code(&self) -> Option<i64> {
        self.code
    }

    pub fn slug(&self) -> Option<&str> {
        self.slug.as_deref()
    }
}

fn clipped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(clip)
}

fn clipped_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(clip))
}

/// Bounds a text that comes from outside, and drops the characters that no database accepts.
pub(crate) fn clip(text: String) -> String {
    if text.len() <= MAX_ERROR_CHARS && !text.contains('\0') {
        return text;
    }
    text.chars().filter(|c| *c != '\0').take(MAX_ERROR_CHARS).collect()
}

#[derive(Debug, Clone)]
pub struct Started {
    /// Counts from 1 within the job.
    pub number: u32,
    pub request_id: RequestId,
    /// The toolkit version, when it got as far as a pin.
    pub version: Option<String>,
    pub at: Timestamp,
}

/// One try at a job, as it is recorded when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counts from 1 within the job.
    pub number: u32,
    /// The `x-request-id` that the tool API saw.
    pub request_id: RequestId,
    pub outcome: AttemptOutcome,
    pub http_status: Option<u16>,
    pub log_id: Option<String>,
    /// The toolkit version that ran, when it got as far as a pin.
    pub version: Option<String>,
    pub error: Option<JobError>,
    /// When the attempt was claimed, by the worker's clock.
    pub started_at: Timestamp,
    /// When its outcome was known, by the worker's clock.
    pub finished_at: Timestamp,
}
