//! The JSON of an envelope, as it travels.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Digest, JobSpec, expected::Explained};
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

        /// The names of all fields.
        pub(super) const FIELDS: &[&str] = &[$(stringify!($field),)*];

        /// What is wrong with the value of a field, if anything.
        pub(super) fn mistake_in<$life>(field: &str, value: &$life RawValue) -> Option<String> {
            match field {
                $(stringify!($field) => mistake::<$type>(value),)*
                _ => None,
            }
        }
    };
}

fn mistake<'a, T: Explained + Deserialize<'a>>(value: &'a RawValue) -> Option<String> {
    serde_json::from_str::<Option<T>>(value.get()).is_err().then(|| T::expected(value))
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
    priority: i128,
    run_at: Timestamp,
    expires_at: Timestamp,
    timeout_ms: i128,
    max_attempts: i128,
    max_age_ms: i128,
    effect: Effect,
    idempotency_key: Cow<'a, str>,
    tags: Tags<'a>,
    callback: Callback<'a>,
}

/// Tags by name. The empty list is what PHP makes of an empty map.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Tags<'a>(pub(super) Cow<'a, BTreeMap<String, String>>);

impl<'de> Deserialize<'de> for Tags<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TagsVisitor;

        impl<'de> Visitor<'de> for TagsVisitor {
            type Value = BTreeMap<String, String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                Self::Value::deserialize(MapAccessDeserializer::new(map))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(BTreeMap::new()),
                    Some(_) => Err(S::Error::invalid_type(Unexpected::Seq, &self)),
                }
            }
        }

        deserializer.deserialize_any(TagsVisitor).map(|tags| Self(Cow::Owned(tags)))
    }
}

/// Where the events of the job are sent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Callback<'a> {
    #[serde(borrow)]
    pub(super) url: Cow<'a, str>,
}

impl Explained for Callback<'_> {
    fn expected(_: &RawValue) -> String {
        "must be an object such as {\"url\": \"https://app.example.com/errand\"}".to_owned()
    }
}

impl Explained for Tags<'_> {
    fn expected(value: &RawValue) -> String {
        match value.get().starts_with('{') {
            true => "must have a text for each tag".to_owned(),
            false => "must be an object".to_owned(),
        }
    }
}

/// The envelope of a stored job, as the relay publishes it. Decoding it gives the same job with
/// the same digest.
pub fn encode(spec: &JobSpec) -> Vec<u8> {
    let wire = wire_of(spec, spec.arguments.as_deref(), Some(spec.id.to_string()));
    serde_json::to_vec(&wire).unwrap_or_else(|error| unreachable!("plain data always encodes: {error}"))
}

fn wire_of<'a>(spec: &'a JobSpec, arguments: Option<&'a RawValue>, id: Option<String>) -> Wire<'a> {
    let millis = |d: Duration| i128::try_from(d.as_millis()).unwrap_or(i128::MAX);
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
        priority: (spec.priority != 0).then(|| spec.priority.into()),
        run_at: spec.run_at,
        expires_at: spec.expires_at,
        timeout_ms: spec.timeout.map(millis),
        max_attempts: spec.budget.max_attempts.map(i128::from),
        max_age_ms: spec.budget.max_age.map(millis),
        effect: spec.effect,
        idempotency_key: text(&spec.idempotency_key),
        tags: (!spec.tags.is_empty()).then_some(Tags(Cow::Borrowed(&spec.tags))),
        callback: spec.callback.as_ref().map(|url| Callback { url: Cow::Borrowed(url.as_str()) }),
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
