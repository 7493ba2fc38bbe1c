//! What a server does not do, and why.

use reqwest::StatusCode;
use serde::Deserialize;

/// A problem as the API tells it (RFC 9457), as far as commands go by it.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) r#type: String,
    pub(super) detail: String,
    #[serde(default)]
    pub(super) errors: Vec<ItemProblem>,
}

/// What is wrong with one item of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::cli) struct ItemProblem {
    pub(in crate::cli) pointer: String,
    pub(in crate::cli) detail: String,
}

/// A server gives no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::cli) struct Away(pub(super) String);

/// Whether a server gives no answer, or says itself that it cannot answer now, as it and what stands before it do while it
/// restarts.
pub(in crate::cli) fn is_away(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    error.is::<Away>() || refused.is_some_and(|refused| is_passing(refused.status))
}

/// Whether the same request may well be answered soon.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

/// A server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(in crate::cli) struct Refused {
    pub(in crate::cli) status: StatusCode,
    /// The end of the problem's `type`, such as `needs-force`; empty where the answer is not errand's.
    pub(in crate::cli) kind: String,
    pub(in crate::cli) message: String,
    pub(in crate::cli) items: Vec<ItemProblem>,
}

impl Refused {
    pub(in crate::cli) fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }

    /// Whether errand says so, and not something else that has its address.
    pub(in crate::cli) fn is_of_errand(&self) -> bool {
        !self.kind.is_empty()
    }
}
