//! What the values of the fields have to be, in words for those who publish them.

use std::borrow::Cow;

use jiff::{Timestamp, fmt::temporal::Pieces};
use serde_json::value::RawValue;

use crate::job::Effect;

/// A type of a field, and what has to be said about a value that it is not made of.
pub(super) trait Explained {
    /// Continues a sentence that begins with the field's name.
    fn expected(value: &RawValue) -> String;
}

impl Explained for Cow<'_, str> {
    fn expected(value: &RawValue) -> String {
        match value.get().starts_with('"') {
            true => "contains half of a surrogate pair, which is no character".to_owned(),
            false => "must be a text".to_owned(),
        }
    }
}

impl Explained for i128 {
    fn expected(_: &RawValue) -> String {
        "must be a whole number, without quotes, fraction or exponent".to_owned()
    }
}

impl Explained for Effect {
    fn expected(_: &RawValue) -> String {
        format!("must be one of the words {}", Self::WORDS.join(", "))
    }
}

impl Explained for &RawValue {
    fn expected(_: &RawValue) -> String {
        "must be JSON".to_owned()
    }
}

impl Explained for Timestamp {
    fn expected(value: &RawValue) -> String {
        let example = "write it as in 2026-05-04T06:30:00Z";
        let Ok(text) = serde_json::from_str::<String>(value.get()) else {
            return format!("must be a text with a time; {example}");
        };
        match Pieces::parse(&text) {
            Ok(pieces) if pieces.offset().is_some() && pieces.time().is_some() => {
                let last = Self::MAX.strftime("%Y-%m-%dT%H:%M:%SZ");
                format!("is out of the range of times, which ends at {last}")
            }
            Ok(pieces) if pieces.time().is_some() => {
                format!("has no offset from UTC, such as Z or +02:00; {example}")
            }
            Ok(_) | Err(_) => format!("is not a time of RFC 3339; {example}"),
        }
    }
}
