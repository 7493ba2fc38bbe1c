//! Decoding of the tool API's answers: results, errors in every shape that has been seen, and
//! `Retry-After`.
//!
//! Nothing here panics, whatever the bytes are, and a tool's `data` is passed on byte for byte. The
//! decoder goes by the shape of a body; what a shape means together with its status is for
//! `classify` to say.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{ApiError, Body, ToolError, ToolResult};
use crate::bounds::MAX_ERROR_CHARS;

/// Most per-field messages of one error that are kept.
const MAX_FIELD_ERRORS: usize = 16;

/// The longest `Retry-After` that is passed on. Whoever waits has a much lower limit; this one only
/// keeps arithmetic on the value harmless.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Finer than `Retry-After`, and preferred to it, as in the API's own clients.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

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
    if successful.is_some() || fields.has_any(&[Key::Successfull, Key::Data, Key::LogId]) {
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

/// Whether the API refuses errand's own key, as opposed to this call.
pub(crate) fn is_key_problem(status: u16, error: &ApiError) -> bool {
    const SLUGS: [&str; 5] = ["APIKey_", "Auth_", "HTTP_Unauthorized", "UserApiKey_", "Organization_"];
    const CODES: [i64; 8] = [801, 811, 812, 902, 906, 2113, 2206, 10401];
    status == 401
        || error.slug.as_deref().is_some_and(|slug| SLUGS.iter().any(|family| slug.starts_with(family)))
        || error.code.is_some_and(|code| CODES.contains(&code))
}

/// What a look-up reports for a status other than 2xx.
pub(crate) fn lookup_error(status: u16, retry_after: Option<Duration>, body: &[u8]) -> ToolError {
    let error = match decode(status, body) {
        Body::Error(error) => Some(error),
        Body::Result(result) => Some(ApiError { message: result.error, ..ApiError::default() }),
        Body::Opaque | Body::TooLarge | Body::Broken(_) => None,
    };
    let known = error.is_some();
    let error = Box::new(error.unwrap_or_default());
    match status {
        429 => ToolError::Throttled { retry_after },
        _ if is_key_problem(status, &error) => ToolError::Credentials { status, error },
        404 | 410 if known => ToolError::NotFound(error),
        // Without a word of the API this is a wrong base URL or something in between, and "not
        // found" would fail every job for good.
        404 => ToolError::Unavailable("it answered 404 without an error body; check its base URL".into()),
        400..=499 if matches!(error.code, Some(606 | 1800 | 2401)) => ToolError::NotFound(error),
        408 => ToolError::Unavailable("it answered 408".into()),
        400..=499 => ToolError::Refused { status, error },
        300..=399 => ToolError::Unavailable(format!(
            "it answered {status}; redirects are not followed, check its base URL"
        )),
        _ => ToolError::Unavailable(format!("it answered {status}")),
    }
}

/// The wait that an answer asks for: `retry-after-ms`, else seconds or an HTTP date. A date is
/// compared with the answer's own `Date`, else with `now`, so that a skewed clock does not shift it.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) = text(&RETRY_AFTER_MS).and_then(decimal) {
        return Some(seconds(millis / 1000.0));
    }
    let asked = text(&RETRY_AFTER)?;
    if let Some(count) = decimal(asked) {
        return Some(seconds(count));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = date(headers).map_or(SystemTime::from(now), SystemTime::from);
    Some(until.duration_since(from).unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

/// The answer's `Date`.
pub(crate) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    Timestamp::try_from(httpdate::parse_http_date(text.trim()).ok()?).ok()
}

/// A plain decimal number; signs, exponents, `inf` and `nan` are not what servers mean.
fn decimal(text: &str) -> Option<f64> {
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn seconds(count: f64) -> Duration {
    Duration::try_from_secs_f64(count).unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER)
}

/// Hides what looks like an API key. The API masks keys in its own messages, but not always, and
/// these messages are kept with jobs.
pub(crate) fn mask(text: &str) -> Cow<'_, str> {
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

fn result(fields: &Fields<'_>, successful: bool) -> ToolResult {
    let data = fields.get(Key::Data).map(ToOwned::to_owned).unwrap_or_else(empty_object);
    let mut error = fields.text(Key::Error);
    let mut provider_status = None;
    if (!successful || error.is_some())
        && let Some(inner) = Fields::of(data.get().as_bytes())
    {
        provider_status = inner.number(Key::StatusCode).and_then(|status| u16::try_from(status).ok());
        error = error.or_else(|| inner.text(Key::Message)).or_else(|| inner.text(Key::HttpError));
    }
    ToolResult { data: Arc::from(data), successful, error, provider_status, log_id: fields.text(Key::LogId) }
}

/// The empty JSON object.
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
        request_id: envelope.text(Key::RequestId).or_else(|| top.text(Key::RequestId)),
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
    RequestId,
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
/// as JSON. Blank, empty and `false` count as absent.
fn text(raw: &str) -> Option<String> {
    let text = match raw.as_bytes().first()? {
        // A string that is not valid Unicode (a lone surrogate) is shown in its escaped form.
        b'"' => serde_json::from_str(raw).unwrap_or_else(|_| raw.trim_matches('"').to_owned()),
        b'[' => match serde_json::from_str::<Vec<String>>(raw) {
            Ok(parts) => parts.join("; "),
            Err(_) => raw.to_owned(),
        },
        _ if matches!(raw, "false" | "{}") => return None,
        _ => raw.to_owned(),
    };
    let text = text.trim();
    let end = text.char_indices().nth(MAX_ERROR_CHARS).map_or(text.len(), |(at, _)| at);
    (!text.is_empty()).then(|| text[..end].to_owned())
}
