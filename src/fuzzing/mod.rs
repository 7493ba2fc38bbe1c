//! What must hold for whatever bytes come from outside.
//!
//! Each function takes any bytes, decodes them as errand does, checks what the rest of errand relies
//! on, and panics where it does not hold. The fuzz targets in `fuzz/` call these functions with bytes
//! that they make up, and a test calls them with the collected examples. They are public only because
//! both live outside of this crate; nothing else is to use them.
//!
//! Each returns a word for what became of the bytes, so that the examples can say what they are
//! examples of.

mod config;
mod envelope;
mod journal;
mod tool_api;

pub use config::config;
pub use envelope::envelope;
pub use journal::journal;
pub use tool_api::tool_api;

use crate::bounds::{MAX_ERROR_CHARS, MAX_SHORT_TEXT_BYTES};

/// Stands for a customer's data or a secret, put where one could be. It is no valid value of any
/// field with rules of its own, so errand has no reason to ever repeat it.
const CANARY: &str = "Canary 4711!";

/// Whether a text for people can be kept: every database takes it, and it does not flood a list.
fn is_keepable_message(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= MAX_ERROR_CHARS && !text.contains('\0')
}

/// Whether a text can stand for an ID, a version or the like.
fn is_short_text(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_SHORT_TEXT_BYTES && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_cannot_be_kept_are_noticed() {
        assert!(is_keepable_message("say `tool`"));
        for bad in ["", "a\0b", &"x".repeat(MAX_ERROR_CHARS + 1)] {
            assert!(!is_keepable_message(bad));
        }
    }

    #[test]
    fn texts_that_are_no_ids_are_noticed() {
        assert!(is_short_text("ca_1"));
        for bad in ["", " ", "a\nb", &"x".repeat(MAX_SHORT_TEXT_BYTES + 1)] {
            assert!(!is_short_text(bad));
        }
    }
}
