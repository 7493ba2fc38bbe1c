//! The job envelope: what an app publishes and what the relay puts on the queue.
//!
//! Decoding is strict, because a typo must not change meaning. A message that fails here has no
//! usable identity or meaning and is kept whole as *rejected*; a job that is well-formed but may
//! not run (both `text` and `arguments`, owner `default`, ...) decodes, and admission fails it with
//! an error that its app can read.

mod edit;
mod encoding;
mod expected;
mod explain;
mod identity;
mod wire;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::value::RawValue;

pub use self::{
    edit::Edit,
    encoding::{BYTE_ORDER_MARK, FOREIGN_BYTES, Foreign, foreign, names_compression},
    identity::id_of,
    wire::encode,
};
use self::{
    explain::{Explanation, explain},
    identity::{id, message_id},
    wire::{Callback, Tags, Wire, digest},
};
use super::{Budget, CallbackUrl, Effect, JobId, Owner, OwnerKind, QueueName, outcome::clip};
use crate::{
    bounds::{
        MAX_AGE, MAX_ATTEMPTS, MAX_ENVELOPE_BYTES, MAX_PRIORITY, MAX_SHORT_TEXT_BYTES, MAX_TAGS, MAX_TIMEOUT,
        MAX_TOOL_BYTES,
    },
    string_enum::string_enum,
};

/// Deepest nesting of `arguments`; databases and languages give up at different depths.
const MAX_DEPTH: usize = 128;

/// The most bytes by which [`encode`] exceeds what was decoded: ID, queue, and times spelt out.
const MAX_GROWTH: usize = 1024;

/// A job as it was asked for, or as it is after an [`Edit`]: decoded, bounded and identified, but not yet judged.
#[derive(Clone)]
pub struct JobSpec {
    /// The dedupe key.
    pub id: JobId,
    /// Whether the ID came with the job. Otherwise errand made it, and its publisher does not know it.
    pub is_named: bool,
    pub owner: Owner,
    pub requested_by: Option<String>,
    /// UPPER_SNAKE slug.
    pub tool: String,
    /// The tool's input, verbatim.
    pub arguments: Option<Arc<RawValue>>,
    /// A request in natural language, instead of `arguments`.
    pub text: Option<String>,
    /// The version that the job itself asks for; blank counts as absent.
    pub version: Option<String>,
    pub connected_account_id: Option<String>,
    pub queue: QueueName,
    /// 0 to 9 within the lane; higher runs earlier.
    pub priority: i16,
    /// Not before.
    pub run_at: Option<Timestamp>,
    /// Not after.
    pub expires_at: Option<Timestamp>,
    /// Per attempt.
    pub timeout: Option<Duration>,
    pub budget: Budget,
    /// Overrides the tool's hints.
    pub effect: Option<Effect>,
    /// Unique per owner.
    pub idempotency_key: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// Where the events of the job are sent.
    pub callback: Option<CallbackUrl>,
    /// Where the result is published, if anywhere (AMQP `reply_to`).
    pub reply_to: Option<String>,
    /// The AMQP user who published it, as the broker has checked it, or the role of the database that enqueued it by SQL.
    pub publisher: Option<String>,
    /// The app's correlation ID, returned with the result.
    pub correlation_id: Option<String>,
    /// The app's message ID, returned with the result, where that is not the job's own ID. `None` without `reply_to`.
    pub message_id: Option<String>,
    pub traceparent: Option<String>,
    /// Identifies everything above but the ID and the transport fields, so that the same ID
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

#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The lane it came through.
    pub queue: &'a QueueName,
    /// AMQP `message_id`, which stands for a missing `id`.
    pub message_id: Option<&'a str>,
    pub reply_to: Option<&'a str>,
    /// AMQP `user_id`, which the broker has checked, or the role of a session of the database.
    pub publisher: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
    /// The idempotency key that came beside the envelope, as HTTP's header of that name. It stands for a missing
    /// `idempotency_key`, and may not contradict one.
    pub idempotency_key: Option<&'a str>,
    /// The ID for an envelope that brings none: a fresh one where a person or an HTTP call
    /// enqueues, `None` where a redelivery could not be told from a new job.
    pub fallback_id: Option<JobId>,
    /// The job is in the store already, so its owner's ID has only to be one that was accepted at any time.
    pub known: bool,
}

impl<'a> Arrival<'a> {
    /// An envelope that comes through this lane without transport properties.
    pub fn new(queue: &'a QueueName) -> Self {
        Self {
            queue,
            message_id: None,
            reply_to: None,
            publisher: None,
            correlation_id: None,
            traceparent: None,
            idempotency_key: None,
            fallback_id: None,
            known: false,
        }
    }
}

string_enum! {
    /// The class of a rejected message, for metrics and for `errand rejected`.
    EnvelopeReason or Unrecognized {
        /// Larger than [`MAX_ENVELOPE_BYTES`].
        TooLarge = "too_large",
        /// Not JSON, or not an object of the documented fields.
        Malformed = "malformed",
        /// Neither an `id` nor an AMQP `message_id`.
        NoId = "no_id",
        /// Not exactly one of `user_id` and `org_id`, or an unusable one.
        BadOwner = "bad_owner",
        BadValue = "bad_value",
        OwnerConflict = "owner_conflict",
        BodyConflict = "body_conflict",
        KeyConflict = "key_conflict",
        /// Asks for a reply where `replies.allowed` lets none go.
        ReplyRefused = "reply_refused",
        /// Its publisher may not publish jobs of its owner, by the setting `publishers`.
        PublisherRefused = "publisher_refused",
        /// Says that the database knows its job, and it does not.
        UnknownJob = "unknown_job",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EnvelopeError {
    pub reason: EnvelopeReason,
    /// One sentence that says what to change. Quotes field names, never values of customers.
    pub message: String,
    /// The field whose value is wrong, where that is what is wrong.
    pub field: Option<&'static str>,
}

impl EnvelopeError {
    pub fn new(reason: EnvelopeReason, message: impl Into<String>) -> Self {
        Self { reason, message: clip(message.into()), field: None }
    }
}

/// Decodes an envelope.
///
/// # Errors
/// [`EnvelopeError`] when the message has no usable identity or meaning; it names the field.
pub fn decode(body: &[u8], arrival: &Arrival<'_>) -> Result<JobSpec, EnvelopeError> {
    if body.len() > MAX_ENVELOPE_BYTES {
        return Err(too_large(body.len(), ""));
    }
    let wire = read(body).map_err(|(what, field)| {
        let what = format!("the envelope is not a valid job: {what}");
        EnvelopeError { field, ..EnvelopeError::new(EnvelopeReason::Malformed, what) }
    })?;
    let owner = owner(wire.user_id, wire.org_id, arrival.known)?;
    let id = id(wire.id.as_deref(), &owner, arrival)?;
    let is_named = wire.id.is_some() || arrival.message_id.is_some_and(|id| !id.trim().is_empty());
    let (run_at, expires_at) = times(wire.run_at, wire.expires_at)?;
    let mut spec = JobSpec {
        id,
        is_named,
        owner,
        requested_by: short("requested_by", wire.requested_by)?,
        tool: tool(wire.tool)?,
        arguments: arguments(wire.arguments)?,
        text: text(wire.text)?,
        version: short("version", wire.version)?,
        connected_account_id: short("connected_account_id", wire.connected_account_id)?,
        queue: queue(wire.queue, arrival)?,
        priority: priority(wire.priority)?,
        run_at,
        expires_at,
        timeout: millis("timeout_ms", wire.timeout_ms, MAX_TIMEOUT)?,
        budget: Budget {
            max_attempts: max_attempts(wire.max_attempts)?,
            max_age: millis("max_age_ms", wire.max_age_ms, MAX_AGE)?,
        },
        effect: wire.effect,
        idempotency_key: idempotency_key(wire.idempotency_key, arrival)?,
        tags: tags(wire.tags)?,
        callback: callback(wire.callback)?,
        reply_to: short("reply_to", arrival.reply_to.map(Cow::Borrowed))?,
        publisher: arrival.publisher.filter(|user| !is_unfit(user)).map(str::to_owned),
        correlation_id: short("correlation_id", arrival.correlation_id.map(Cow::Borrowed))?,
        message_id: message_id(id, arrival),
        traceparent: short("traceparent", arrival.traceparent.map(Cow::Borrowed))?,
        digest: Digest([0; 16]),
    };
    // What the relay publishes has to be accepted too.
    if body.len() > MAX_ENVELOPE_BYTES - MAX_GROWTH {
        let bytes = encode(&spec).len();
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(too_large(bytes, " with its ID and queue"));
        }
    }
    spec.digest = digest(&spec);
    Ok(spec)
}

/// The queue that an envelope names, as far as it can be read. What cannot be read is explained by [`decode`].
pub fn named_queue(body: &[u8]) -> Option<QueueName> {
    #[derive(serde::Deserialize)]
    struct Lane {
        queue: Option<QueueName>,
    }

    serde_json::from_slice::<Lane>(body).ok().and_then(|lane| lane.queue)
}

/// The fields of an envelope, or what is wrong with it as a whole.
fn read(body: &[u8]) -> Result<Wire<'_>, Explanation> {
    match serde_json::from_slice(body) {
        // serde would take the values of the fields in a list, too.
        Ok(_) if !body.trim_ascii_start().starts_with(b"{") => Err((explain::NO_OBJECT.to_owned(), None)),
        Ok(wire) => Ok(wire),
        Err(error) => Err(explain(body, &error)),
    }
}

fn too_large(bytes: usize, with: &str) -> EnvelopeError {
    EnvelopeError::new(
        EnvelopeReason::TooLarge,
        format!("the envelope has {bytes} bytes{with}; send at most {MAX_ENVELOPE_BYTES}"),
    )
}

fn bad(field: &'static str, what: impl fmt::Display) -> EnvelopeError {
    let error = EnvelopeError::new(EnvelopeReason::BadValue, format!("`{field}` {what}"));
    EnvelopeError { field: Some(field), ..error }
}

fn owner(user: Option<Cow<'_, str>>, org: Option<Cow<'_, str>>, known: bool) -> Result<Owner, EnvelopeError> {
    let bad_owner = |what: String| EnvelopeError::new(EnvelopeReason::BadOwner, what);
    let (kind, id) = match (user, org) {
        (Some(id), None) => (OwnerKind::User, id),
        (None, Some(id)) => (OwnerKind::Org, id),
        (Some(_), Some(_)) => return Err(bad_owner("give `user_id` or `org_id`, not both".into())),
        (None, None) => return Err(bad_owner("give `user_id` or `org_id`".into())),
    };
    let owner = if known { Owner::known(kind, id) } else { Owner::new(kind, id) };
    owner.map_err(|error| EnvelopeError {
        field: Some(kind.field()),
        ..bad_owner(format!("`{}` {error}", kind.field()))
    })
}

fn queue(name: Option<Cow<'_, str>>, arrival: &Arrival<'_>) -> Result<QueueName, EnvelopeError> {
    let Some(name) = name else { return Ok(arrival.queue.clone()) };
    let name: QueueName = name.parse().map_err(|error| bad("queue", error))?;
    if name != *arrival.queue {
        let came = arrival.queue;
        return Err(bad("queue", format!("says `{name}` but the message came through `{came}`")));
    }
    Ok(name)
}

fn idempotency_key(
    named: Option<Cow<'_, str>>,
    arrival: &Arrival<'_>,
) -> Result<Option<String>, EnvelopeError> {
    let beside = arrival.idempotency_key.map(Cow::Borrowed);
    if let (Some(named), Some(beside)) = (&named, &beside)
        && named != beside
    {
        return Err(bad(
            "idempotency_key",
            "is another one than the header `Idempotency-Key`; send one of them",
        ));
    }
    short("idempotency_key", named.or(beside))
}

fn tool(slug: Option<Cow<'_, str>>) -> Result<String, EnvelopeError> {
    let slug = slug.ok_or_else(|| bad("tool", "is missing"))?;
    if slug.is_empty() || slug.len() > MAX_TOOL_BYTES || slug.chars().any(char::is_control) {
        return Err(bad("tool", format!("must have 1 to {MAX_TOOL_BYTES} printable characters")));
    }
    Ok(slug.into_owned())
}

fn arguments(raw: Option<&RawValue>) -> Result<Option<Arc<RawValue>>, EnvelopeError> {
    let Some(raw) = raw else { return Ok(None) };
    if !raw.get().starts_with('{') {
        return if is_empty_list(raw) {
            Ok(Some(no_arguments()))
        } else {
            Err(bad("arguments", "must be an object"))
        };
    }
    if depth(raw.get()) > MAX_DEPTH {
        return Err(bad("arguments", format!("is nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(Some(Arc::from(raw.to_owned())))
}

/// What PHP makes of an empty map.
fn is_empty_list(raw: &RawValue) -> bool {
    raw.get()
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.trim().is_empty())
}

fn no_arguments() -> Arc<RawValue> {
    let empty = RawValue::from_string("{}".to_owned());
    empty.unwrap_or_else(|error| unreachable!("an empty object is JSON: {error}")).into()
}

fn callback(callback: Option<Callback<'_>>) -> Result<Option<CallbackUrl>, EnvelopeError> {
    let url = callback.map(|callback| callback.url.parse()).transpose();
    url.map_err(|what| bad("callback", format!("cannot be used: {what}")))
}

fn text(text: Option<Cow<'_, str>>) -> Result<Option<String>, EnvelopeError> {
    if text.as_deref().is_some_and(|text| text.contains('\0')) {
        return Err(bad("text", "contains a NUL character"));
    }
    Ok(text.map(Cow::into_owned))
}

/// A short printable text; a blank one counts as absent.
fn short(field: &'static str, value: Option<Cow<'_, str>>) -> Result<Option<String>, EnvelopeError> {
    match value {
        Some(text) if is_unfit(&text) => {
            Err(bad(field, format!("must have at most {MAX_SHORT_TEXT_BYTES} printable bytes")))
        }
        Some(text) if text.trim().is_empty() => Ok(None),
        other => Ok(other.map(Cow::into_owned)),
    }
}

/// Whether a text is too long for a short one, or has control characters.
pub(super) fn is_unfit(text: &str) -> bool {
    text.len() > MAX_SHORT_TEXT_BYTES || text.chars().any(char::is_control)
}

fn millis(
    field: &'static str,
    value: Option<i128>,
    max: Duration,
) -> Result<Option<Duration>, EnvelopeError> {
    let max = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    let Some(ms) = whole(field, value, 1, max, " milliseconds")? else { return Ok(None) };
    Ok(Some(Duration::from_millis(ms)))
}

fn max_attempts(count: Option<i128>) -> Result<Option<u32>, EnvelopeError> {
    whole("max_attempts", count, 1, MAX_ATTEMPTS, "")
}

fn priority(priority: Option<i128>) -> Result<i16, EnvelopeError> {
    Ok(whole("priority", priority, 0, i16::from(MAX_PRIORITY), "; higher runs earlier")?.unwrap_or(0))
}

/// A number from `least` to `most`; `rest` ends the sentence that names them.
fn whole<T>(
    field: &'static str,
    value: Option<i128>,
    least: T,
    most: T,
    rest: &str,
) -> Result<Option<T>, EnvelopeError>
where
    T: TryFrom<i128> + PartialOrd + fmt::Display,
{
    let Some(value) = value else { return Ok(None) };
    match T::try_from(value) {
        Ok(number) if number >= least && number <= most => Ok(Some(number)),
        Ok(_) | Err(_) => Err(bad(field, format!("must be {least} to {most}{rest}"))),
    }
}

fn tags(tags: Option<Tags<'_>>) -> Result<BTreeMap<String, String>, EnvelopeError> {
    let tags = tags.map(|Tags(tags)| tags.into_owned()).unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(bad("tags", format!("has more than {MAX_TAGS} entries")));
    }
    if tags.iter().any(|(key, value)| key.is_empty() || is_unfit(key) || is_unfit(value)) {
        return Err(bad("tags", format!("must map 1 to {MAX_SHORT_TEXT_BYTES} printable bytes to the same")));
    }
    Ok(tags)
}

/// `run_at` and `expires_at`, in order.
fn times(
    run_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
) -> Result<(Option<Timestamp>, Option<Timestamp>), EnvelopeError> {
    let (run_at, expires_at) = (run_at.map(whole_microseconds), expires_at.map(whole_microseconds));
    if let (Some(run_at), Some(expires_at)) = (run_at, expires_at)
        && expires_at <= run_at
    {
        return Err(bad("expires_at", "must be later than `run_at`"));
    }
    Ok((run_at, expires_at))
}

/// Databases keep microseconds. A finer time would come back from the store as another one, and the
/// job with it as another body.
fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
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
