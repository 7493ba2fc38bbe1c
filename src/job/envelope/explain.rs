//! Why bytes are not an envelope, in words that name the field and what it has to be.
//!
//! Decoding is one pass without such words; what it refuses is read once more here, field by field. Values are never
//! quoted, because they are customers' data; the names of fields are the app's.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    encoding::foreign,
    wire::{FIELDS, mistake_in},
};

/// The clause, and the field.
pub(super) type Explanation = (String, Option<&'static str>);

/// What is said about JSON that is no object.
pub(super) const NO_OBJECT: &str = "it must be one JSON object";

/// One clause about a body that the decoder refuses with `error`, and the field whose value is wrong, if that is it.
pub(super) fn explain(body: &[u8], error: &serde_json::Error) -> Explanation {
    if let Some(encoding) = foreign(body) {
        return (format!("it is {encoding}; publish plain JSON in UTF-8"), None);
    }
    match serde_json::from_slice::<Fields<'_>>(body) {
        Ok(Fields(fields)) => in_fields(&fields).unwrap_or_else(|| (not_json(error), None)),
        Err(error) if error.is_data() => (NO_OBJECT.to_owned(), None),
        Err(error) => (not_json(&error), None),
    }
}

/// What is no JSON is described without quoting it.
fn not_json(error: &serde_json::Error) -> String {
    let (text, line, column) = (error.to_string(), error.line(), error.column());
    // The words for a value of a wrong type would quote it.
    if line == 0 || error.is_data() {
        return "it cannot be read as one JSON object of the documented fields".to_owned();
    }
    let text = text.trim_end_matches(&format!(" at line {line} column {column}"));
    format!("it is not JSON: {text}, at line {line}, column {column}")
}

/// The first mistake in the fields of an object.
fn in_fields(fields: &[(Cow<'_, str>, &RawValue)]) -> Option<Explanation> {
    fields.iter().enumerate().find_map(|(place, (name, value))| {
        if fields[..place].iter().any(|(earlier, _)| earlier == name) {
            return Some((format!("duplicate field `{}`", shown(name)), None));
        }
        match FIELDS.iter().find(|field| *field == name) {
            Some(field) => mistake_in(field, value).map(|what| (format!("`{field}` {what}"), Some(*field))),
            None => {
                let known: Vec<_> = FIELDS.iter().map(|field| format!("`{field}`")).collect();
                let what = format!("unknown field `{}`, expected one of {}", shown(name), known.join(", "));
                Some((what, None))
            }
        }
    })
}

/// A field's name is the app's, not its customer's, and a typo has to be found.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

/// The fields of an object as they are written, in order, also those that are there twice.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}
