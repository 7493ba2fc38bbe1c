//! Decoding of the bodies of the tool API's answers: results, and errors in every shape that has been seen.
//!
//! Nothing here panics, whatever the bytes are, and a tool's `data` is passed on byte for byte. The
//! decoder goes by the shape of a body; what a shape means together with its status is for
//! `classify` to say.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{ApiError, Body, ToolResult};
use crate::bounds::MAX_ERROR_CHARS;

/// Most per-field messages of one error that are kept.
const MAX_FIELD_ERRORS: usize = 16;

/// Decodes a complete body.
pub fn decode(status: u16, body: &[u8]) -> Body {
    let Some(fields) = Fields::of(body) else { return Body::Opaque };
    let success = (200..300).contains(&status);
    let successful = match fields.raw(Key::Successful) {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        // Another type is not the documented field, so it is no verdict either way.
        Some(_) if success => return Body::Opaque,
        Some(_) => None,
    };
    let enveloped = fields.raw(Key::Error).is_some_and(|raw| raw.starts_with('{'));
    if enveloped && !(success && successful.is_some()) {
        return Body::Error(api_error(&fields));
    }
    // Envelopes of others have `data` too, and what stands in front of the API answers with error statuses.
    let is_result = successful.is_some() || fields.raw(Key::LogId).is_some();
    if is_result || success && fields.has_any(&[Key::Successfull, Key::Data, Key::LogId]) {
        return Body::Result(result(&fields, successful.unwrap_or(false)));
    }
    if fields.has_any(&[Key::Error, Key::Message, Key::Code, Key::Slug]) {
        return Body::Error(api_error(&fields));
    }
    Body::Opaque
}

/// What the tool itself said in the `data` of a failed run, beyond the error text: the API moved
/// these texts about, and the cause may stand in any of them.
pub(crate) fn failure_texts(data: &RawValue) -> Vec<String> {
    let Some(fields) = Fields::of(data.get().as_bytes()) else { return Vec::new() };
    [Key::Message, Key::HttpError].into_iter().filter_map(|key| fields.text(key)).collect()
}

fn result(fields: &Fields<'_>, successful: bool) -> ToolResult {
    let data = fields.get(Key::Data).map(ToOwned::to_owned).unwrap_or_else(empty_object);
    let enveloped = fields.get(Key::Error).and_then(|raw| Fields::of(raw.get().as_bytes()));
    let mut error = enveloped.and_then(|inner| inner.text(Key::Message)).or_else(|| fields.text(Key::Error));
    let mut provider_status = None;
    if (!successful || error.is_some())
        && let Some(inner) = Fields::of(data.get().as_bytes())
    {
        provider_status = inner.number(Key::StatusCode).and_then(|status| u16::try_from(status).ok());
        error = error.or_else(|| inner.text(Key::Message)).or_else(|| inner.text(Key::HttpError));
    }
    ToolResult { data: Arc::from(data), successful, error, provider_status, log_id: fields.text(Key::LogId) }
}

pub(crate) fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Reads an error that stands in an envelope, or at the top where the envelope was left out.
fn api_error(top: &Fields<'_>) -> ApiError {
    let inner = top.get(Key::Error).and_then(|raw| Fields::of(raw.get().as_bytes()));
    let envelope = inner.as_ref().unwrap_or(top);
    let message = match &inner {
        Some(inner) => inner.text(Key::Message).or_else(|| top.text(Key::Message)),
        None => top.text(Key::Message).or_else(|| top.text(Key::Error)),
    };
    ApiError {
        message,
        code: envelope.number(Key::Code).or_else(|| top.number(Key::Code)),
        slug: envelope.text(Key::Slug).or_else(|| top.text(Key::Slug)),
        suggested_fix: envelope.text(Key::SuggestedFix).or_else(|| top.text(Key::SuggestedFix)),
        errors: envelope.texts(Key::Errors),
    }
}

/// The keys that mean something to us, wherever they stand.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Data,
    Error,
    Successful,
    Successfull,
    LogId,
    Message,
    Code,
    Slug,
    SuggestedFix,
    Errors,
    StatusCode,
    HttpError,
    #[serde(other)]
    Other,
}

/// The values of the known keys of one JSON object, undecoded. A key that is given twice counts as
/// it was given last, and a `null` as absent; both are errors or traps for a derived decoder.
#[derive(Default)]
struct Fields<'a>([Option<&'a RawValue>; Key::Other as usize]);

impl<'a> Fields<'a> {
    /// `None` unless the whole text is one JSON object.
    fn of(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    fn get(&self, key: Key) -> Option<&'a RawValue> {
        self.0.get(key as usize).copied().flatten().filter(|raw| raw.get() != "null")
    }

    fn raw(&self, key: Key) -> Option<&'a str> {
        self.get(key).map(RawValue::get)
    }

    fn has_any(&self, keys: &[Key]) -> bool {
        keys.iter().any(|key| self.0.get(*key as usize).is_some_and(Option::is_some))
    }

    fn text(&self, key: Key) -> Option<String> {
        text(self.raw(key)?)
    }

    fn texts(&self, key: Key) -> Vec<String> {
        let Some(raw) = self.raw(key) else { return Vec::new() };
        match serde_json::from_str::<Vec<&RawValue>>(raw) {
            Ok(items) => {
                items.into_iter().take(MAX_FIELD_ERRORS).filter_map(|item| text(item.get())).collect()
            }
            Err(_) => text(raw).into_iter().collect(),
        }
    }

    /// A whole number, also as `400.0` or `"400"`.
    fn number(&self, key: Key) -> Option<i64> {
        let raw = self.raw(key)?.trim_matches('"').trim();
        raw.parse().ok().or_else(|| {
            let number: f64 = raw.parse().ok()?;
            // The bound is far above any code and far below where the cast would not be exact.
            #[expect(clippy::cast_possible_truncation, reason = "the value is whole and small")]
            (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64)
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key::<Key>()? {
                    match fields.0.get_mut(key as usize) {
                        Some(slot) => *slot = Some(map.next_value()?),
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// A JSON value as a text for people: strings as they are, lists of strings joined, anything else
/// as JSON. Blank, empty and `false` count as absent. NUL is dropped, because no database keeps it.
fn text(raw: &str) -> Option<String> {
    let mut text = match raw.as_bytes().first()? {
        // A string that is not valid Unicode (a lone surrogate) is shown in its escaped form.
        b'"' => serde_json::from_str(raw).unwrap_or_else(|_| raw.trim_matches('"').to_owned()),
        b'[' => match serde_json::from_str::<Vec<String>>(raw) {
            Ok(parts) => parts.join("; "),
            Err(_) => raw.to_owned(),
        },
        _ if matches!(raw, "false" | "{}") => return None,
        _ => raw.to_owned(),
    };
    text.retain(|c| c != '\0');
    let text = text.trim();
    let end = text.char_indices().nth(MAX_ERROR_CHARS).map_or(text.len(), |(at, _)| at);
    (!text.is_empty()).then(|| text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(status: u16, body: &str) -> ApiError {
        match decode(status, body.as_bytes()) {
            Body::Error(error) => error,
            other => panic!("{body} gave {other:?}"),
        }
    }

    fn outcome(status: u16, body: &str) -> ToolResult {
        match decode(status, body.as_bytes()) {
            Body::Result(result) => result,
            other => panic!("{body} gave {other:?}"),
        }
    }

    #[test]
    fn every_error_shape_that_has_been_seen_is_read() {
        let full = error(
            404,
            r#"{"error":{"message":"no","code":2401,"slug":"Tool_ToolNotFound","status":404,
               "request_id":"r","suggested_fix":"","errors":["a","b"]}}"#,
        );
        assert_eq!(full.message.as_deref(), Some("no"));
        assert_eq!(full.code, Some(2401));
        assert_eq!(full.slug.as_deref(), Some("Tool_ToolNotFound"));
        assert_eq!(full.suggested_fix, None, "blank advice is none");
        assert_eq!(full.errors, ["a", "b"]);

        for (body, code) in [
            (r#"{"error":{"code":400.0,"message":"m"}}"#, Some(400)),
            (r#"{"error":{"code":"403","message":"m","id":"x"}}"#, Some(403)),
            (r#"{"error":{"code":" 7 ","message":"m"}}"#, Some(7)),
            (r#"{"error":{"code":"E_NO","message":"m"}}"#, None),
            (r#"{"error":{"code":1.5,"message":"m"}}"#, None),
            (r#"{"error":{"code":null,"message":"m"}}"#, None),
            (r#"{"error":{"message":"m"}}"#, None),
            (r#"{"error":"m","tag":"X"}"#, None),
            (r#"{"message":"m"}"#, None),
            (r#"{"message":["m"],"error":"Bad Request","statusCode":400}"#, None),
            (r#"{"code":10429,"slug":"HTTP_TooManyRequests","message":"m"}"#, Some(10429)),
            (r#"{"data":null,"error":{"message":"m","code":5}}"#, Some(5)),
            (r#"{"data":{},"successful":false,"error":{"message":"m","code":5}}"#, Some(5)),
        ] {
            let error = error(400, body);
            assert_eq!((error.message.as_deref(), error.code), (Some("m"), code), "{body}");
        }
        assert_eq!(error(429, r#"{"code":10429,"slug":"HTTP_TooManyRequests"}"#).message, None);
        let empty = r#"{"error":{}}"#;
        assert_eq!(error(500, empty), ApiError::default());
    }

    #[test]
    fn what_is_no_answer_of_the_api_is_opaque() {
        for body in [
            "",
            " ",
            "null",
            "true",
            "5",
            "\"text\"",
            "[]",
            "[{\"data\":{}}]",
            "{}",
            "{\"ok\":true}",
            "<html>Just a moment...</html>",
            "{\"data\":",
            "{\"data\":{},}",
            "{\"data\":{}} trailing",
            "{\"successful\":\"true\",\"data\":{}}",
            "\u{feff}{}",
            "{\"data\":{\"a\":01}}",
        ] {
            assert!(matches!(decode(200, body.as_bytes()), Body::Opaque), "{body}");
        }
        assert!(matches!(decode(200, b"{\"data\":\"\xff\"}"), Body::Opaque));
    }

    #[test]
    fn only_the_documented_field_says_success() {
        assert!(outcome(200, r#"{"data":{},"successful":true}"#).successful);
        for body in [
            r#"{"data":{},"successful":false}"#,
            r#"{"data":{},"successful":null}"#,
            r#"{"data":{},"successfull":true}"#,
            r#"{"data":{},"error":null}"#,
            r#"{"log_id":"log_1"}"#,
        ] {
            assert!(!outcome(200, body).successful, "{body}");
        }
        let twice = outcome(200, r#"{"successful":true,"successful":false,"data":1,"data":2}"#);
        assert!(!twice.successful);
        assert_eq!(twice.data.get(), "2");
    }

    #[test]
    fn data_of_any_kind_is_kept_and_absence_becomes_an_empty_object() {
        let big = r#"{"n":123456789012345678901234567890.10e400,"s":"\ud800\u0041","x":[ 1,2 ]}"#;
        for data in [big, "[1,2]", "\"text\"", "5", "false"] {
            let body = format!(r#"{{"successful":true, "data" : {data} ,"error":null,"extra":{{}}}}"#);
            assert_eq!(outcome(200, &body).data.get(), data);
        }
        for body in [r#"{"successful":true}"#, r#"{"successful":true,"data":null}"#] {
            assert_eq!(outcome(200, body).data.get(), "{}");
        }
    }

    #[test]
    fn a_failed_run_brings_the_providers_status_and_some_text() {
        for (body, status, text) in [
            (
                r#"{"data":{"status_code":404.0,"message":"gone","http_error":"h"},"error":null,"successful":false}"#,
                Some(404),
                Some("gone"),
            ),
            (
                r#"{"data":{"status_code":null,"message":"a"},"error":"b","successful":false}"#,
                None,
                Some("b"),
            ),
            // The data of a success is not read.
            (r#"{"data":{"status_code":404,"message":"a"},"error":" ","successful":true}"#, None, None),
            (r#"{"data":{},"error":{"message":"m"},"successful":false,"log_id":""}"#, None, Some("m")),
            // An error of any kind is an error.
            (r#"{"data":{},"error":{"why":1},"successful":true}"#, None, Some(r#"{"why":1}"#)),
            (r#"{"data":{"status_code":70000},"error":"e","successful":false}"#, None, Some("e")),
        ] {
            let run = outcome(200, body);
            assert_eq!(
                (run.provider_status, run.error.as_deref(), run.log_id),
                (status, text, None),
                "{body}"
            );
        }
    }

    #[test]
    fn no_text_brings_a_nul_that_the_database_would_refuse() {
        let run = outcome(200, r#"{"data":{},"successful":true,"log_id":"log_\u00001","error":"\u0000"}"#);
        assert_eq!((run.log_id.as_deref(), run.error), (Some("log_1"), None));
        let error = error(400, r#"{"error":{"message":["a","\u0000b"],"slug":"S\u0000"}}"#);
        assert_eq!((error.message.as_deref(), error.slug.as_deref()), (Some("a; b"), Some("S")));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,12}".prop_map(Into::into),
        ];
        let known =
            "data|error|successful|log_id|message|code|slug|errors|status_code|suggested_fix|http_error";
        let key = prop_oneof![known, ".{0,5}"];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::hash_map(key.clone(), inner, 0..8)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_the_decoder_panic(status in 0u16..1000, value in json(), cut in 0usize..400) {
            let text = value.to_string();
            let _body = decode(status, text.as_bytes());
            let _body = decode(status, &text.as_bytes()[..cut.min(text.len())]);
        }

        #[test]
        fn data_survives_byte_for_byte(value in json(), pretty in any::<bool>()) {
            let data =
                if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            let body = format!(r#"{{"data":{data},"successful":true,"error":null}}"#);
            let expected = if data == "null" { "{}" } else { data.as_str() };
            let result = outcome(200, &body);
            prop_assert_eq!(result.data.get(), expected);
        }
    }
}
