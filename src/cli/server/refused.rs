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
}
