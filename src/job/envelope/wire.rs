//! The JSON of an envelope, as it travels.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Digest, JobSpec};
use crate::job::{Effect, OwnerKind};

/// Declares the JSON as it travels. What is missing is left out.
macro_rules! wire {
    ($life:lifetime: $($(#[$attribute:meta])? $field:ident: $type:ty,)*) => {
        /// Kept apart from [`JobSpec`], so that the wire can be read beside its documentation.
        #[derive(Debug, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct Wire<$life> {
            $($(#[$attribute])?
            #[serde(skip_serializing_if = "Option::is_none")]
            pub(super) $field: Option<$type>,)*
        }
    };
}

wire! { 'a:
    id: Cow<'a, str>,
    user_id: Cow<'a, str>,
    org_id: Cow<'a, str>,
    requested_by: Cow<'a, str>,
    tool: Cow<'a, str>,
    #[serde(borrow)]
    arguments: &'a RawValue,
    text: Cow<'a, str>,
    version: Cow<'a, str>,
    connected_account_id: Cow<'a, str>,
    queue: Cow<'a, str>,
    priority: i16,
    run_at: Timestamp,
    expires_at: Timestamp,
    timeout_ms: u64,
    max_attempts: u32,
    max_age_ms: u64,
    effect: Effect,
    idempotency_key: Cow<'a, str>,
    tags: Cow<'a, BTreeMap<String, String>>,
}

/// The envelope of a stored job, as the relay publishes it. Decoding it gives the same job with
/// the same digest.
pub fn encode(spec: &JobSpec) -> Vec<u8> {
    let wire = wire_of(spec, spec.arguments.as_deref(), Some(spec.id.to_string()));
    serde_json::to_vec(&wire).unwrap_or_else(|error| unreachable!("plain data always encodes: {error}"))
}

fn wire_of<'a>(spec: &'a JobSpec, arguments: Option<&'a RawValue>, id: Option<String>) -> Wire<'a> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let owner_id = |kind| (spec.owner.kind() == kind).then(|| Cow::Borrowed(spec.owner.id()));
    let text = |text: &'a Option<String>| text.as_deref().map(Cow::Borrowed);
    Wire {
        id: id.map(Cow::Owned),
        user_id: owner_id(OwnerKind::User),
        org_id: owner_id(OwnerKind::Org),
        requested_by: text(&spec.requested_by),
        tool: Some(Cow::Borrowed(&spec.tool)),
        arguments,
        text: text(&spec.text),
        version: text(&spec.version),
        connected_account_id: text(&spec.connected_account_id),
        queue: Some(Cow::Borrowed(spec.queue.as_str())),
        priority: (spec.priority != 0).then_some(spec.priority),
        run_at: spec.run_at,
        expires_at: spec.expires_at,
        timeout_ms: spec.timeout.map(millis),
        max_attempts: spec.budget.max_attempts,
        max_age_ms: spec.budget.max_age.map(millis),
        effect: spec.effect,
        idempotency_key: text(&spec.idempotency_key),
        tags: (!spec.tags.is_empty()).then_some(Cow::Borrowed(&spec.tags)),
    }
}

/// The digest of everything but the ID and the transport fields.
pub(super) fn digest(spec: &JobSpec) -> Digest {
    let compact = spec.arguments.as_deref().and_then(|raw| compact(raw.get()));
    let arguments = compact.as_deref().or(spec.arguments.as_deref());
    let wire = wire_of(spec, arguments, None);
    let body = serde_json::to_vec(&wire).unwrap_or_default();
    let hash = Sha256::digest(&body);
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&hash[..16]);
    Digest(prefix)
}

/// The same JSON without white space between tokens, or `None` when it has none.
fn compact(json: &str) -> Option<Box<RawValue>> {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            out.push(c);
            (in_string, escaped) = match c {
                _ if escaped => (true, false),
                '\\' => (true, true),
                '"' => (false, false),
                _ => (true, false),
            };
        } else if !c.is_ascii_whitespace() {
            out.push(c);
            in_string = c == '"';
        }
    }
    if out.len() == json.len() {
        return None;
    }
    RawValue::from_string(out).ok()
}

/// serde's message quotes the offending value; an error that is logged or listed must not. A value
/// may imitate the rest of the message, so only what stands behind all of it is taken.
pub(super) fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.trim_end_matches(place.as_str());
    let expected = |otherwise| text.rsplit_once(", expected ").map_or(otherwise, |(_, expected)| expected);
    let what = match text.split_once(": ") {
        // What is no JSON is described without quoting it.
        _ if !error.is_data() => text.to_owned(),
        Some((head @ ("invalid type" | "invalid value" | "invalid length"), _)) => {
            format!("{head}, expected {}", expected("another type"))
        }
        _ if text.starts_with("unknown variant `") => {
            format!("unknown word, expected {}", expected("another"))
        }
        // A field's name is the app's, not its customer's, and a typo has to be found.
        _ if text.starts_with("unknown field `") => text.replace(char::is_control, ""),
        _ if text.starts_with("duplicate field `") => text.to_owned(),
        _ => "a value cannot be read; times are written as in 2026-05-04T06:30:00Z".to_owned(),
    };
    format!("{what}, at column {}", error.column())
}
