//! The tool API: who runs tools on behalf of an owner's connected accounts.
//!
//! [`ToolApi`] is the seam; `composio` speaks the real protocol over HTTP. It reports what was seen
//! on the wire and decides nothing: whether a reply is a success, a refusal or an unknown outcome
//! is for [`classify`] to say.
//!
//! Around it, [`catalog`] knows tools and decides versions by the order in [`pin`], [`account`]
//! chooses accounts, and [`not_ready`] says what becomes of a job when either cannot.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::job::{JobId, JobSpec, RequestId};

mod single_flight;

pub(crate) mod redact;

pub mod account;
pub mod arguments;
pub mod catalog;
pub mod classify;
pub mod composio;
pub mod decode;
pub mod deprecation;
pub mod error;
pub mod not_ready;
pub mod pin;
mod pinnable;
pub mod status;

pub use error::{ApiError, ToolError};
pub use pinnable::{Pinnable, pinnable};
pub use status::{ASK_WHILE_AWAY, ApiStatus};

pub type SharedToolApi = Arc<dyn ToolApi>;

/// What errand asks of a tool API.
#[async_trait]
pub trait ToolApi: fmt::Debug + Send + Sync {
    /// Host and port, for people.
    fn address(&self) -> String;

    /// Makes one call and reports what was seen. Never repeats a request by itself, follows no
    /// redirect, and bounds time and size of the answer.
    async fn execute(&self, call: &Call) -> Reply;

    /// Describes a tool at a toolkit version; `None` for the newest.
    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError>;

    /// Describes a toolkit at a version of it; `None` for the newest. For people who pin versions.
    async fn toolkit(&self, slug: &str, version: Option<&str>) -> Result<ToolkitInfo, ToolError>;

    /// The accounts of these owners for a toolkit, in any status, most recently connected first. The API takes a list of
    /// IDs joined by commas: an ID with a comma in it is a list there, and what comes for it may be anybody's.
    async fn accounts(&self, owner_ids: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError>;

    async fn account(&self, id: &str) -> Result<Account, ToolError>;

    /// What the execution log says about the call with this request ID; `None` when it has no entry, over all
    /// pages of a search that was for nothing else. A call can be in the log some time after it was
    /// answered, or never.
    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError>;

    /// Looks whether there is another key than the one in use, where that can be known, and takes it for everything that
    /// is sent from now on. The error says why the place of the key cannot be used, without the key.
    async fn renew_key(&self) -> Result<bool, String> {
        Ok(false)
    }

    /// Answers if the API is reachable and accepts the key; with its clock, for the skew check.
    async fn check(&self) -> Result<ApiCheck, ToolError>;
}

#[derive(Debug, Clone)]
pub struct Execution {
    pub log_id: String,
    /// The tool that ran, when the entry names it.
    pub tool: Option<String>,
    /// What the tool reported; without `data` where the log keeps no payloads. `None` while the entry
    /// does not say how the call ended.
    pub result: Option<ToolResult>,
}

#[derive(Debug, Clone)]
pub struct Call {
    /// Sent as `x-request-id`; stored before anything is sent.
    pub request_id: RequestId,
    /// Sent as `x-errand-job-id`, for correlation only.
    pub job: JobId,
    /// Tool, owner, and `arguments` or `text`.
    pub spec: Arc<JobSpec>,
    pub version: String,
    /// The bound account, unless the tool needs none.
    pub account: Option<String>,
    /// For the whole attempt, connecting included.
    pub timeout: Duration,
}

#[derive(Debug)]
pub enum Reply {
    /// No byte of the call's body left, so no tool can have run. The text names the cause without URL
    /// or credentials.
    NotSent(String),
    /// The request left, at least in part, and no status line came back.
    NoAnswer(String),
    /// A status line came back.
    Answered(Answer),
}

/// An HTTP answer, decoded as far as it can be.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The parsed `Retry-After` (or `retry-after-ms`), not yet clamped; garbage is `None`.
    pub retry_after: Option<Duration>,
    /// `Composio-Deprecated-Toolkits`, verbatim: the pinned version will go away.
    pub deprecated: Option<String>,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    /// A tool result: `{data, error, successful, log_id}`. Unknown keys are ignored.
    Result(ToolResult),
    /// An error in any of the documented or captured shapes.
    Error(ApiError),
    /// Not decodable: HTML, empty, not JSON, or JSON of another shape.
    Opaque,
    /// Larger than the limit; reading stopped there.
    TooLarge,
    Broken(String),
}

#[derive(Debug, Clone)]
pub struct ToolResult {
    /// The tool's output, verbatim; `{}` when it was absent or null.
    pub data: Arc<RawValue>,
    /// The API's own verdict; absent counts as `false`.
    pub successful: bool,
    /// A non-blank error text; of a failed run without one, the text in its `data`.
    pub error: Option<String>,
    /// The provider's HTTP status, from `data.status_code` of a failed run.
    pub provider_status: Option<u16>,
    pub log_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolInfo {
    /// UPPER_SNAKE slug.
    pub slug: String,
    pub name: String,
    pub description: String,
    /// Lower-case toolkit slug, from the description and never from the tool slug's prefix.
    pub toolkit: String,
    pub version: String,
    /// All versions of the toolkit, newest first.
    pub available_versions: Vec<String>,
    /// Hint and other tags.
    pub tags: Vec<String>,
    /// The JSON Schema of the arguments at this version, as text; `None` where there is none, or where it is longer than
    /// [`arguments::MAX_SCHEMA_BYTES`].
    pub input_schema: Option<Arc<str>>,
    pub no_auth: bool,
    pub deprecated: bool,
}

impl ToolInfo {
    /// What repeating a call does, by the hint tags. No tag proves nothing, and a tool that claims
    /// to read and to destroy is not believed to read.
    pub fn effect(&self) -> crate::job::Effect {
        let has = |tag: &str| self.tags.iter().any(|t| t == tag);
        let writes = has("destructiveHint") || has("createHint") || has("updateHint");
        if has("readOnlyHint") && !writes {
            crate::job::Effect::Safe
        } else if has("idempotentHint") {
            crate::job::Effect::Idempotent
        } else {
            crate::job::Effect::Once
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolkitInfo {
    /// All its versions, newest first.
    pub available_versions: Vec<String>,
    /// `Composio-Deprecated-Toolkits`, verbatim: the version that was asked for will go away.
    pub deprecated: Option<String>,
}

/// A connected account, without its credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    /// Who it belongs to; the API may leave it out.
    pub user_id: Option<String>,
    /// Lower-case toolkit slug.
    pub toolkit: String,
    /// `ACTIVE`, `EXPIRED`, ... Unknown words are kept as they are.
    pub status: String,
    pub status_reason: Option<String>,
    /// Switched off by somebody.
    pub disabled: bool,
    pub created_at: Timestamp,
}

impl Account {
    pub fn is_active(&self) -> bool {
        self.status == "ACTIVE" && !self.disabled
    }
}

#[derive(Debug, Clone)]
pub struct AccountList {
    pub accounts: Vec<Account>,
    /// Whether the API has no more of them. It may have more pages than are read.
    pub is_whole: bool,
    /// How many pages were read, each with a request.
    pub pages: usize,
}

#[derive(Debug, Clone)]
pub struct ApiCheck {
    /// The API's clock, from its `Date` header.
    pub date: Option<Timestamp>,
    pub took: Duration,
}
