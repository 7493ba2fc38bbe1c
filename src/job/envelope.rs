//! The job envelope: what an app publishes and what the relay puts on the queue.
//!
//! Decoding is strict, because a typo must not change meaning. A message that fails here has no
//! usable identity or meaning and is kept whole as *rejected*; a job that is well-formed but may
//! not run (both `text` and `arguments`, owner `default`, ...) decodes, and admission fails it with
//! an error that its app can read.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Budget, Effect, JobId, Owner, OwnerKind, outcome::clip};
use crate::{
    bounds::{
        MAX_AGE, MAX_ATTEMPTS, MAX_ENVELOPE_BYTES, MAX_PRIORITY, MAX_QUEUE_NAME_BYTES, MAX_SHORT_TEXT_BYTES,
        MAX_TAGS, MAX_TIMEOUT, MAX_TOOL_BYTES,
    },
    string_enum::string_enum,
};

/// Deepest nesting of `arguments`; databases and languages give up at different depths.
const MAX_DEPTH: usize = 128;

/// The most bytes by which [`encode`] exceeds what was decoded: ID, queue, and times spelt out.
const MAX_GROWTH: usize = 1024;

/// A job as it was asked for: decoded, bounded and identified, but not yet judged.
#[derive(Clone)]
pub struct JobSpec {
    /// The dedupe key.
    pub id: JobId,
    /// Whose accounts are used.
    pub owner: Owner,
    /// Who asked.
    pub requested_by: Option<String>,
    /// UPPER_SNAKE slug.
    pub tool: String,
    /// The tool's input, verbatim.
    pub arguments: Option<Arc<RawValue>>,
    /// A request in natural language, instead of `arguments`.
    pub text: Option<String>,
    /// The version that the job itself asks for; blank counts as absent.
    pub version: Option<String>,
    /// The account that the job itself asks for.
    pub connected_account_id: Option<String>,
    /// The lane.
    pub queue: QueueName,
    /// 0 to 9 within the lane; higher runs earlier.
    pub priority: i16,
    /// Not before.
    pub run_at: Option<Timestamp>,
    /// Not after.
    pub expires_at: Option<Timestamp>,
    /// Per attempt.
    pub timeout: Option<Duration>,
    /// What retries may spend.
    pub budget: Budget,
    /// Overrides the tool's hints.
    pub effect: Option<Effect>,
    /// Unique per owner.
    pub idempotency_key: Option<String>,
    /// Searchable labels.
    pub tags: BTreeMap<String, String>,
    /// Where the result is published, if anywhere (AMQP `reply_to`).
    pub reply_to: Option<String>,
    /// The app's correlation ID, returned with the result.
    pub correlation_id: Option<String>,
    /// W3C trace context of the publisher.
    pub traceparent: Option<String>,
    /// Identifies everything above but the ID and the three transport fields, so that the same ID
    /// with another body is noticed.
    pub digest: Digest,
}

/// What a job says is a customer's data, which must not reach a log by way of `{:?}`.
impl fmt::Debug for JobSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSpec")
            .field("id", &self.id)
            .field("owner", &self.owner.kind())
            .field("tool", &self.tool)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// A 128-bit prefix of the SHA-256 of a job's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

/// The name of a lane: lower-case letters, digits, `_`, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(Arc<str>);

/// How and where a message arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The lane it came through.
    pub queue: &'a QueueName,
    /// AMQP `message_id`, which stands for a missing `id`.
    pub message_id: Option<&'a str>,
    /// Where to publish the result.
    pub reply_to: Option<&'a str>,
    /// Returned with the result.
    pub correlation_id: Option<&'a str>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
    /// The ID for an envelope that brings none: a fresh one where a person or an HTTP call
    /// enqueues, `None` where a redelivery could not be told from a new job.
    pub fallback_id: Option<JobId>,
}

impl<'a> Arrival<'a> {
    /// An envelope that comes through this lane without transport properties.
    pub fn new(queue: &'a QueueName) -> Self {
        Self {
            queue,
            message_id: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
            fallback_id: None,
        }
    }
}

/// Which owners may run jobs at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerPolicy {
    /// Accept the owner `default`, which could expose other people's data. Only for development.
    pub allow_default: bool,
    /// Refuse e-mail addresses, which change hands, instead of warning.
    pub refuse_email: bool,
}

string_enum! {
    /// The class of a rejected message, for metrics and for `errand rejected`.
    EnvelopeReason {
        /// Larger than [`MAX_ENVELOPE_BYTES`].
        TooLarge = "too_large",
        /// Not JSON, or not an object of the documented fields.
        Malformed = "malformed",
        /// Neither an `id` nor an AMQP `message_id`.
        NoId = "no_id",
        /// Not exactly one of `user_id` and `org_id`, or an unusable one.
        BadOwner = "bad_owner",
        /// A field's value is out of bounds.
        BadValue = "bad_value",
        /// The ID is taken by another owner's job.
        OwnerConflict = "owner_conflict",
        /// The ID is taken by a job with another body.
        BodyConflict = "body_conflict",
        /// The owner used this idempotency key with another body.
        KeyConflict = "key_conflict",
    }
}

/// Why a message is not a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EnvelopeError {
    /// The class.
    pub reason: EnvelopeReason,
    /// One sentence that says what to change. Quotes field names, never values of customers.
    pub message: String,
}

impl EnvelopeError {
    /// An error of the given class.
    pub fn new(reason: EnvelopeReason, message: impl Into<String>) -> Self {
        Self { reason, message: clip(message.into()) }
    }
}

/// The JSON as it travels. Kept apart from [`JobSpec`], so that the wire can be read beside its
/// documentation.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    org_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_by: Option<Cow<'a, str>>,
    tool: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Cow<'a, BTreeMap<String, String>>>,
}

/// Decodes an envelope.
///
/// # Errors
/// [`EnvelopeError`] when the message has no usable identity or meaning; it names the field.
pub fn decode(body: &[u8], arrival: &Arrival<'_>) -> Result<JobSpec, EnvelopeError> {
    use EnvelopeReason::{BadOwner, BadValue, Malformed, NoId, TooLarge};
    if body.len() > MAX_ENVELOPE_BYTES {
        return Err(EnvelopeError::new(
            TooLarge,
            format!("the envelope has {} bytes; send at most {MAX_ENVELOPE_BYTES}", body.len()),
        ));
    }
    let wire: Wire<'_> = serde_json::from_slice(body).map_err(|error| {
        EnvelopeError::new(Malformed, format!("the envelope is not a valid job: {}", describe(&error)))
    })?;
    let bad = |field: &str, what: String| EnvelopeError::new(BadValue, format!("`{field}` {what}"));

    let owner = match (wire.user_id, wire.org_id) {
        (Some(id), None) => (OwnerKind::User, id),
        (None, Some(id)) => (OwnerKind::Org, id),
        (Some(_), Some(_)) => {
            return Err(EnvelopeError::new(BadOwner, "give `user_id` or `org_id`, not both"));
        }
        (None, None) => return Err(EnvelopeError::new(BadOwner, "give `user_id` or `org_id`")),
    };
    let field = owner.0.field();
    let owner = Owner::new(owner.0, owner.1)
        .map_err(|error| EnvelopeError::new(BadOwner, format!("`{field}` {error}")))?;

    let id = match (&wire.id, arrival.message_id, arrival.fallback_id) {
        (Some(id), ..) => id.parse().map_err(|_| bad("id", "is not a UUID".into()))?,
        (None, Some(message_id), _) if !message_id.trim().is_empty() => {
            JobId::from_message_id(&owner, message_id)
        }
        (None, _, Some(id)) => id,
        (None, _, None) => {
            return Err(EnvelopeError::new(
                NoId,
                "give an `id` or an AMQP `message_id`, because without one a redelivery cannot be told from a new job",
            ));
        }
    };

    let queue = match wire.queue {
        None => arrival.queue.clone(),
        Some(name) => {
            let name: QueueName = name.parse().map_err(|error| bad("queue", format!("{error}")))?;
            if name != *arrival.queue {
                let came = arrival.queue;
                return Err(bad("queue", format!("says `{name}` but the message came through `{came}`")));
            }
            name
        }
    };

    let tool = wire.tool.ok_or_else(|| bad("tool", "is missing".into()))?;
    if tool.is_empty() || tool.len() > MAX_TOOL_BYTES || tool.chars().any(char::is_control) {
        return Err(bad("tool", format!("must have 1 to {MAX_TOOL_BYTES} printable characters")));
    }
    if let Some(arguments) = wire.arguments {
        if !arguments.get().starts_with('{') {
            return Err(bad("arguments", "must be an object".into()));
        }
        if depth(arguments.get()) > MAX_DEPTH {
            return Err(bad("arguments", format!("is nested deeper than {MAX_DEPTH} levels")));
        }
    }
    if wire.text.as_deref().is_some_and(|text| text.contains('\0')) {
        return Err(bad("text", "contains a NUL character".into()));
    }
    let short = |field: &str, value: Option<Cow<'_, str>>| match value {
        Some(text) if text.len() > MAX_SHORT_TEXT_BYTES || text.chars().any(char::is_control) => {
            Err(bad(field, format!("must have at most {MAX_SHORT_TEXT_BYTES} printable bytes")))
        }
        Some(text) if text.trim().is_empty() => Ok(None),
        other => Ok(other.map(Cow::into_owned)),
    };
    let within = |field: &str, value: Option<u64>, max: Duration| match value {
        Some(ms) if ms == 0 || u128::from(ms) > max.as_millis() => {
            Err(bad(field, format!("must be 1 to {} milliseconds", max.as_millis())))
        }
        other => Ok(other.map(Duration::from_millis)),
    };
    if wire.max_attempts.is_some_and(|n| n == 0 || n > MAX_ATTEMPTS) {
        return Err(bad("max_attempts", format!("must be 1 to {MAX_ATTEMPTS}")));
    }
    let priority = wire.priority.unwrap_or(0);
    if !(0..=i16::from(MAX_PRIORITY)).contains(&priority) {
        return Err(bad("priority", format!("must be 0 to {MAX_PRIORITY}; higher runs earlier")));
    }
    let tags = wire.tags.map(Cow::into_owned).unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(bad("tags", format!("has more than {MAX_TAGS} entries")));
    }
    let unfit = |text: &String| text.len() > MAX_SHORT_TEXT_BYTES || text.chars().any(char::is_control);
    if tags.iter().any(|(key, value)| key.is_empty() || unfit(key) || unfit(value)) {
        return Err(bad("tags", format!("must map 1 to {MAX_SHORT_TEXT_BYTES} printable bytes to the same")));
    }
    let (run_at, expires_at) = (wire.run_at.map(whole_microseconds), wire.expires_at.map(whole_microseconds));
    if let (Some(run_at), Some(expires_at)) = (run_at, expires_at)
        && expires_at <= run_at
    {
        return Err(bad("expires_at", "must be later than `run_at`".into()));
    }

    let mut spec = JobSpec {
        id,
        owner,
        requested_by: short("requested_by", wire.requested_by)?,
        tool: tool.into_owned(),
        arguments: wire.arguments.map(|raw| Arc::from(raw.to_owned())),
        text: wire.text.map(Cow::into_owned),
        version: short("version", wire.version)?,
        connected_account_id: short("connected_account_id", wire.connected_account_id)?,
        queue,
        priority,
        run_at,
        expires_at,
        timeout: within("timeout_ms", wire.timeout_ms, MAX_TIMEOUT)?,
        budget: Budget {
            max_attempts: wire.max_attempts,
            max_age: within("max_age_ms", wire.max_age_ms, MAX_AGE)?,
        },
        effect: wire.effect,
        idempotency_key: short("idempotency_key", wire.idempotency_key)?,
        tags,
        reply_to: short("reply_to", arrival.reply_to.map(Cow::Borrowed))?,
        correlation_id: short("correlation_id", arrival.correlation_id.map(Cow::Borrowed))?,
        traceparent: short("traceparent", arrival.traceparent.map(Cow::Borrowed))?,
        digest: Digest([0; 16]),
    };
    // What the relay publishes has to be accepted too.
    if body.len() > MAX_ENVELOPE_BYTES - MAX_GROWTH {
        let bytes = encode(&spec).len();
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::new(
                TooLarge,
                format!(
                    "the envelope has {bytes} bytes with its ID and queue; send at most {MAX_ENVELOPE_BYTES}"
                ),
            ));
        }
    }
    spec.digest = digest(&spec);
    Ok(spec)
}

/// Databases keep microseconds. A finer time would come back from the store as another one, and the
/// job with it as another body.
fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
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

fn digest(spec: &JobSpec) -> Digest {
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

fn depth(json: &str) -> usize {
    let (mut in_string, mut escaped, mut level, mut deepest) = (false, false, 0usize, 0usize);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                level += 1;
                deepest = deepest.max(level);
            }
            b'}' | b']' if !in_string => level = level.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// serde's message quotes the offending value; an error that is logged or listed must not. A value
/// may imitate the rest of the message, so only what stands behind all of it is taken.
fn describe(error: &serde_json::Error) -> String {
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

/// Why a string is not a queue name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {MAX_QUEUE_NAME_BYTES} lower-case letters, digits, `_`, `-` or `.`")]
pub struct QueueNameError;

impl QueueName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for QueueName {
    type Err = QueueNameError;

    fn from_str(text: &str) -> Result<Self, QueueNameError> {
        let fits = (1..=MAX_QUEUE_NAME_BYTES).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.'));
        if fits { Ok(Self(text.into())) } else { Err(QueueNameError) }
    }
}

impl TryFrom<String> for QueueName {
    type Error = QueueNameError;

    fn try_from(text: String) -> Result<Self, QueueNameError> {
        text.parse()
    }
}

impl From<QueueName> for String {
    fn from(name: QueueName) -> Self {
        name.0.to_string()
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn queue() -> QueueName {
        "default".parse().unwrap()
    }

    fn decode_bytes(body: &[u8]) -> Result<JobSpec, EnvelopeError> {
        let queue = queue();
        let arrival = Arrival::new(&queue);
        decode(body, &arrival)
    }

    fn decode_json(value: &Value) -> Result<JobSpec, EnvelopeError> {
        decode_bytes(&serde_json::to_vec(value).unwrap())
    }

    fn minimal() -> Value {
        json!({"id": "0190b0a0-0000-7000-8000-000000000001", "user_id": "u-alice", "tool": "GITHUB_GET_REPO"})
    }

    fn with(field: &str, value: Value) -> Value {
        let mut job = minimal();
        job[field] = value;
        job
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = decode_json(&with("toll", json!("X"))).unwrap_err();
        assert_eq!(error.reason, EnvelopeReason::Malformed);
        assert!(error.message.contains("toll"), "{error}");
    }

    #[test]
    fn exactly_one_owner_is_needed() {
        assert_eq!(decode_json(&with("org_id", json!("o"))).unwrap_err().reason, EnvelopeReason::BadOwner);
        assert_eq!(decode_json(&with("user_id", json!(null))).unwrap_err().reason, EnvelopeReason::BadOwner);
        assert_eq!(decode_json(&with("user_id", json!(" "))).unwrap_err().reason, EnvelopeReason::BadOwner);
        assert_eq!(
            decode_json(&with("user_id", json!("a\u{7}"))).unwrap_err().reason,
            EnvelopeReason::BadOwner
        );
    }

    #[test]
    fn a_message_without_any_id_is_refused() {
        assert_eq!(decode_json(&with("id", json!(null))).unwrap_err().reason, EnvelopeReason::NoId);
    }

    #[test]
    fn message_ids_of_two_owners_never_collide() {
        let alice = Owner::new(OwnerKind::User, "a").unwrap();
        let org = Owner::new(OwnerKind::Org, "a").unwrap();
        assert_ne!(JobId::from_message_id(&alice, "order-1"), JobId::from_message_id(&org, "order-1"));
        assert_eq!(JobId::from_message_id(&alice, "order-1"), JobId::from_message_id(&alice, "order-1"));
    }

    #[test]
    fn values_out_of_bounds_name_their_field() {
        for (field, value) in [
            ("arguments", json!([1])),
            ("timeout_ms", json!(0)),
            ("max_attempts", json!(0)),
            ("max_attempts", json!(1_000_000)),
            ("priority", json!(10)),
            ("queue", json!("Not A Queue")),
            ("queue", json!("other")),
            ("tool", json!("")),
            ("version", json!("x".repeat(300))),
            ("text", json!("a\u{0}b")),
            ("tags", json!({"": "x"})),
        ] {
            let error = decode_json(&with(field, value)).unwrap_err();
            assert_eq!(error.reason, EnvelopeReason::BadValue, "{field}");
            assert!(error.message.contains(field), "{error}");
        }
    }

    #[test]
    fn errors_never_quote_what_a_customer_sent() {
        for field in ["priority", "effect", "run_at", "tags", "arguments", "id", "user_id"] {
            let error = decode_json(&with(field, json!({"hunter2": "hunter2"}))).map(drop);
            let error = error.map_err(|e| e.message).err().unwrap_or_default();
            assert!(!error.contains("hunter2"), "{field}: {error}");
            let error = decode_json(&with(field, json!("hunter2"))).map(drop);
            let error = error.map_err(|e| e.message).err().unwrap_or_default();
            assert!(!error.contains("hunter2"), "{field}: {error}");
        }
    }

    #[test]
    fn errors_do_not_quote_values_that_imitate_them() {
        for (field, value) in [
            ("priority", "x, expected hunter2"),
            ("priority", "expected hunter2"),
            ("effect", "x`, expected hunter2"),
            ("effect", "expected hunter2"),
            ("run_at", "2026-01-02T03:04:05Zhunter2"),
            ("run_at", "2026-01-02T03:04:05Z: invalid type: hunter2, expected hunter2"),
        ] {
            let error = decode_json(&with(field, json!(value))).unwrap_err();
            assert_eq!(error.reason, EnvelopeReason::Malformed);
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn errors_can_be_kept_whatever_a_field_is_called() {
        for name in ["re\0po", "\u{1b}[2J", &"long".repeat(10_000)] {
            let error = decode_json(&with(name, json!(1))).unwrap_err();
            assert_eq!(error.reason, EnvelopeReason::Malformed);
            assert!(!error.message.contains(char::is_control), "{error}");
            assert!(error.message.chars().count() <= crate::bounds::MAX_ERROR_CHARS);
        }
    }

    #[test]
    fn times_that_become_equal_are_refused_before_the_relay_has_to() {
        let mut job = with("run_at", json!("2026-01-02T03:04:05.000000100Z"));
        job["expires_at"] = json!("2026-01-02T03:04:05.000000900Z");
        assert_eq!(decode_json(&job).unwrap_err().reason, EnvelopeReason::BadValue);
    }

    #[test]
    fn what_would_be_too_large_for_the_relay_is_refused_at_once() {
        let queue = queue();
        let arrival = Arrival { message_id: Some("order-17"), ..Arrival::new(&queue) };
        let of_size = |size: usize| {
            let frame = r#"{"user_id":"u","tool":"T","text":""}"#;
            frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(size - frame.len())))
        };
        let fits = decode(of_size(MAX_ENVELOPE_BYTES - 100).as_bytes(), &arrival).unwrap();
        assert!(decode(&encode(&fits), &arrival).is_ok());
        let error = decode(of_size(MAX_ENVELOPE_BYTES).as_bytes(), &arrival).unwrap_err();
        assert_eq!(error.reason, EnvelopeReason::TooLarge);
    }

    #[test]
    fn deep_nesting_is_refused_and_quoted_brackets_are_not_nesting() {
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        let body = format!(
            r#"{{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T","arguments":{deep}}}"#
        );
        assert_eq!(decode_bytes(body.as_bytes()).unwrap_err().reason, EnvelopeReason::BadValue);
        assert!(decode_json(&with("arguments", json!({"a": "{[\\\"".repeat(500)}))).is_ok());
    }

    #[test]
    fn numbers_beyond_two_to_the_53_survive_verbatim() {
        let body = br#"{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T",
            "arguments":{"n": 123456789012345678901234567890.5}}"#;
        let spec = decode_bytes(body).unwrap();
        assert!(String::from_utf8(encode(&spec)).unwrap().contains("123456789012345678901234567890.5"));
    }

    #[test]
    fn white_space_does_not_change_the_digest_and_values_do() {
        let a = decode_json(&with("arguments", json!({"a": [1, 2]}))).unwrap();
        let spaced = br#"{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u-alice",
            "tool":"GITHUB_GET_REPO","arguments":{ "a" : [ 1 , 2 ] }}"#;
        assert_eq!(a.digest, decode_bytes(spaced).unwrap().digest);
        assert_ne!(a.digest, decode_json(&with("arguments", json!({"a": [1, 3]}))).unwrap().digest);
        assert_ne!(a.digest, decode_json(&with("arguments", json!({"a ": [1, 2]}))).unwrap().digest);
    }

    #[test]
    fn times_are_kept_as_finely_as_databases_keep_them() {
        let spec = decode_json(&with("run_at", json!("2026-01-02T03:04:05.123456789Z"))).unwrap();
        assert_eq!(spec.run_at, Some("2026-01-02T03:04:05.123456Z".parse().unwrap()));
        let stored = decode_json(&with("run_at", json!("2026-01-02T03:04:05.123456Z"))).unwrap();
        assert_eq!(spec.digest, stored.digest);
    }

    fn short() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[ -~]{0,40}")
    }

    prop_compose! {
        fn envelopes()(
            owner in "[!-~]{1,40}", org in any::<bool>(), tool in "[A-Z_]{1,40}",
            args in prop::option::of(prop::collection::btree_map(".{0,8}", any::<i64>(), 0..5)),
            text in prop::option::of("[^\0]{0,60}"), version in short(), account in short(),
            priority in prop::option::of(0i16..=9), at in prop::option::of(0i64..4_000_000_000),
            timeout in prop::option::of(1u64..1_000_000), attempts in prop::option::of(1u32..1000),
            age in prop::option::of(1u64..1_000_000), effect in prop::option::of(0usize..3),
            key in short(), tags in prop::collection::btree_map("[a-z]{1,8}", "[ -~]{0,8}", 0..4),
        ) -> Value {
            let mut job = json!({
                "id": JobId::new().to_string(), "tool": tool, "text": text, "version": version,
                "connected_account_id": account, "priority": priority,
                "run_at": at.map(|s| Timestamp::from_second(s).unwrap().to_string()),
                "timeout_ms": timeout, "max_attempts": attempts, "max_age_ms": age,
                "effect": effect.map(|n| Effect::ALL[n].as_str()), "idempotency_key": key, "tags": tags,
                "arguments": args,
            });
            job[if org { "org_id" } else { "user_id" }] = json!(owner);
            job
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same_job(envelope in envelopes()) {
            let first = decode_json(&envelope).unwrap();
            let again = decode_bytes(&encode(&first)).unwrap();
            prop_assert_eq!(first.digest, again.digest);
            prop_assert_eq!(encode(&first), encode(&again));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _result = decode_bytes(&bytes).map(drop);
        }
    }
}
