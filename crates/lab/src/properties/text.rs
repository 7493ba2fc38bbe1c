//! Texts that must not be told, and texts that can be kept.

use errand::bounds::{MAX_ERROR_CHARS, MAX_SHORT_TEXT_BYTES};

/// Stands for a customer's data or a secret, put where one could be. It is no valid value of any
/// field with rules of its own, so errand has no reason to ever repeat it.
pub(super) const CANARY: &str = "Canary 4711!";

/// Whether a text for people can be kept: every database takes it, and it does not flood a list.
pub(super) fn is_keepable_message(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= MAX_ERROR_CHARS && !text.contains('\0')
}

/// Whether a text can stand for an ID, a version or the like.
pub(super) fn is_short_text(text: &str) -> bool {
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
