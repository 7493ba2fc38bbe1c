//! Errors of the tool API: what an error body says, and what a failed look-up means.

use std::time::Duration;

/// An error body. Everything is optional, because everything has been seen missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiError {
    pub message: Option<String>,
    /// Numeric code; strings that are numbers are converted.
    pub code: Option<i64>,
    /// The best key for classification.
    pub slug: Option<String>,
    /// The API's advice; blank counts as absent.
    pub suggested_fix: Option<String>,
    pub errors: Vec<String>,
}

impl ApiError {
    /// Whether the API refuses errand's own key, as opposed to this call.
    pub fn is_key_problem(&self, status: u16) -> bool {
        const SLUGS: [&str; 5] = ["APIKey_", "Auth_", "HTTP_Unauthorized", "UserApiKey_", "Organization_"];
        const CODES: [i64; 8] = [801, 811, 812, 902, 906, 2113, 2206, 10401];
        status == 401
            || self.slug.as_deref().is_some_and(|slug| SLUGS.iter().any(|family| slug.starts_with(family)))
            || self.code.is_some_and(|code| CODES.contains(&code))
    }

    /// Whether the API itself says what is wrong with the request. What stands in front of it, and its router where a path is
    /// wrong, tell no more than the HTTP status, also where they put it into a code or a slug.
    pub fn tells_more_than(&self, status: u16) -> bool {
        match (self.slug.as_deref(), self.code) {
            (Some(slug), _) => !slug.starts_with("HTTP_"),
            (None, Some(code)) if code % 10_000 != i64::from(status) => true,
            (None, _) => self.suggested_fix.is_some(),
        }
    }
}

/// Why a look-up gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ToolError {
    /// The API answers that there is no such tool, toolkit or account.
    #[error("not found")]
    NotFound(Box<ApiError>),
    #[error("the tool API does not accept the key (HTTP {status})")]
    Credentials {
        /// 401 or 403.
        status: u16,
        error: Box<ApiError>,
    },
    #[error("the tool API is throttling")]
    Throttled { retry_after: Option<Duration> },
    #[error("the tool API refused the look-up (HTTP {status})")]
    Refused { status: u16, error: Box<ApiError> },
    /// Unreachable, failing, or not speaking the protocol. Names the cause without URL or credentials.
    #[error("the tool API cannot be reached: {0}")]
    Unavailable(String),
}
