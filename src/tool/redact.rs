//! Takes what looks like an API key out of texts that are kept with jobs or logged.

use std::borrow::Cow;

/// Hides what looks like an API key. The API masks keys in its own messages, but not always, and
/// these messages are kept with jobs.
pub(crate) fn mask_keys(text: &str) -> Cow<'_, str> {
    const PREFIX: &str = "ak_";
    let part_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*' | '.');
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(PREFIX) {
        let (before, after) = (&rest[..at], &rest[at + PREFIX.len()..]);
        let end = after.find(|c| !part_of_key(c)).unwrap_or(after.len());
        out.push_str(before);
        out.push_str(PREFIX);
        if before.ends_with(|c: char| c.is_alphanumeric()) || end < 4 {
            out.push_str(&after[..end]);
        } else {
            out.push_str("***");
        }
        rest = &after[end..];
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_like_a_key_is_hidden() {
        assert_eq!(mask_keys("bad key ak_live_12345, sorry"), "bad key ak_***, sorry");
        assert_eq!(mask_keys("ak_**ABCD"), "ak_***");
        assert_eq!(mask_keys("(ak_secretsecret)(ak_othersecret)"), "(ak_***)(ak_***)");
        for harmless in ["break_point_of_no_return", "ak_", "ak_1", "nothing here", "ä"] {
            assert_eq!(mask_keys(harmless), harmless);
        }
    }

    proptest! {
        #[test]
        fn masking_leaves_no_key_and_never_panics(text in "(ak_|[a-zäk_* -]){0,20}") {
            let masked = mask_keys(&format!("{text} ak_0123456789abcdef {text}")).into_owned();
            prop_assert!(!masked.contains("0123456789abcdef"));
        }
    }
}
