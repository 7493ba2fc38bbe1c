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

/// What the API tells whoever sends JSON, and how the same is said on the command line.
const IN_FLAGS: [(&str, &str); 5] = [
    ("send {\"force\": true}", "add --force"),
    ("send {\"now\": true}", "add --now"),
    ("{\"how\": \"retry\"}", "--retry"),
    ("{\"force\": true}", "--force"),
    ("{\"now\": true}", "--now"),
];

/// What the API says, for somebody who sends flags and no JSON.
pub(super) fn in_flags(detail: &str) -> String {
    IN_FLAGS.iter().fold(detail.to_owned(), |text, (json, flag)| text.replace(json, flag))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_would_say_is_told_in_flags() {
        for (detail, told) in [
            ("look, and send {\"force\": true} if that is wanted", "look, and add --force if that is wanted"),
            ("send {\"now\": true} to run it at once", "add --now to run it at once"),
            ("it can only be let go to run: {\"how\": \"retry\"}", "it can only be let go to run: --retry"),
            ("there is no job with this ID", "there is no job with this ID"),
        ] {
            assert_eq!(in_flags(detail), told);
        }
    }
}
