//! Messages of apps.

use errand::{
    admission::message,
    bounds::{
        MAX_AGE, MAX_ATTEMPTS, MAX_ENVELOPE_BYTES, MAX_OWNER_ID_BYTES, MAX_SHORT_TEXT_BYTES, MAX_TAGS,
        MAX_TIMEOUT, MAX_TOOL_BYTES,
    },
    job::{Arrival, EnvelopeError, EnvelopeReason, JobSpec, Owner, QueueName, Rules, decode, encode},
};
use jiff::Timestamp;
use serde_json::Value;

use super::text::{CANARY, is_keepable_message, is_short_text};

/// Most fields of one envelope that are marked in turn; there are fewer documented ones.
const MAX_MARKED: usize = 24;

/// A job without an ID, for bytes that arrive beside an envelope instead of in one.
const MINIMAL: &[u8] = br#"{"user_id":"u-alice","tool":"GITHUB_GET_REPO"}"#;

/// Takes the bytes as an envelope, and as the properties of a message that carries one. Returns
/// `accepted`, or why the envelope is rejected.
///
/// # Panics
/// A property does not hold.
pub fn envelope(body: &[u8]) -> &'static str {
    let Ok(queue) = "default".parse::<QueueName>() else { unreachable!("the name is valid") };
    let bare = Arrival::new(&queue);
    let named = Arrival { message_id: Some("order-17"), ..bare };
    let outcome = check(body, &bare);
    drop(check(body, &named));

    let text = String::from_utf8_lossy(body);
    let text = Some(&*text);
    drop(check(MINIMAL, &Arrival { message_id: text, ..bare }));
    drop(check(MINIMAL, &Arrival { reply_to: text, ..named }));
    drop(check(MINIMAL, &Arrival { correlation_id: text, traceparent: text, ..named }));

    for marked in with_marks(body) {
        if let Err(error) = check(&marked, &named) {
            assert!(!error.message.contains(CANARY), "quotes what a customer sent: {}", error.message);
        }
    }
    match outcome {
        Ok(_) => "accepted",
        Err(error) => error.reason.as_str(),
    }
}

fn check(body: &[u8], arrival: &Arrival<'_>) -> Result<JobSpec, EnvelopeError> {
    let decoded = decode(body, arrival);
    match &decoded {
        Ok(spec) => accepted(spec, body, arrival),
        Err(error) => rejected(error),
    }
    decoded
}

/// Words of Rust and its libraries, which nobody who publishes jobs knows. Messages of the decoder quote no values.
const FOREIGN_WORDS: &[&str] =
    &["i16", "i128", "u32", "u64", "struct", "Wire", "sequence", "variant", "borrowed"];

fn rejected(error: &EnvelopeError) {
    if !error.message.contains("unknown field `") && !error.message.contains("duplicate field `") {
        for word in FOREIGN_WORDS {
            assert!(!error.message.contains(word), "says {word}: {:?}", error.message);
        }
    }
    assert!(is_keepable_message(&error.message), "cannot be kept: {:?}", error.message);
    assert!(!error.message.contains(char::is_control), "cannot be shown: {:?}", error.message);
    match error.reason {
        EnvelopeReason::TooLarge
        | EnvelopeReason::Malformed
        | EnvelopeReason::NoId
        | EnvelopeReason::BadOwner
        | EnvelopeReason::BadValue => {}
        EnvelopeReason::OwnerConflict
        | EnvelopeReason::BodyConflict
        | EnvelopeReason::KeyConflict
        | EnvelopeReason::ReplyRefused
        | EnvelopeReason::PublisherRefused
        | EnvelopeReason::UnknownJob => {
            panic!("no bytes alone are the reason: {}", error.reason)
        }
        EnvelopeReason::Unrecognized => panic!("only rows of another version have it"),
    }
}

fn accepted(spec: &JobSpec, body: &[u8], arrival: &Arrival<'_>) {
    assert!(spec.owner.id().len() <= MAX_OWNER_ID_BYTES);
    assert_eq!(Owner::new(spec.owner.kind(), spec.owner.id()).as_ref(), Ok(&spec.owner));
    assert_within_bounds(spec);
    if let Some(arguments) = &spec.arguments {
        let verbatim = std::str::from_utf8(body).is_ok_and(|body| body.contains(arguments.get()));
        // An empty list stands for an empty object.
        assert!(verbatim || arguments.get() == "{}", "the arguments are not what was sent");
    }
    if let Err(unfit) = Rules::default().check(spec, Timestamp::UNIX_EPOCH) {
        assert!(is_keepable_message(unfit.error.message()));
    }

    let again = decode(body, arrival).map(|again| again.digest);
    assert_eq!(again, Ok(spec.digest), "the same message is another job");
    let message = message(spec);
    assert!(message.body.len() <= MAX_ENVELOPE_BYTES, "the relay cannot pass it on");
    assert_eq!(i16::from(message.priority), spec.priority);
    let properties = &message.properties;
    let relayed = Arrival {
        message_id: properties.message_id.as_deref(),
        reply_to: properties.reply_to.as_deref(),
        correlation_id: properties.correlation_id.as_deref(),
        traceparent: properties.traceparent.as_deref(),
        ..Arrival::new(arrival.queue)
    };
    match decode(&message.body, &relayed) {
        Ok(relayed) => {
            assert_eq!(
                (relayed.id, relayed.digest),
                (spec.id, spec.digest),
                "the relay makes another job of it"
            );
            assert_eq!(relayed.reply_to, spec.reply_to);
            assert_eq!(relayed.correlation_id, spec.correlation_id);
            assert_eq!(relayed.traceparent, spec.traceparent);
            assert_eq!(encode(&relayed), encode(spec));
        }
        Err(error) => panic!("what the relay publishes is rejected: {error}"),
    }
}

fn assert_within_bounds(spec: &JobSpec) {
    assert!((1..=MAX_TOOL_BYTES).contains(&spec.tool.len()));
    assert!(!spec.tool.chars().any(char::is_control));
    assert!(spec.arguments.as_ref().is_none_or(|arguments| arguments.get().starts_with('{')));
    assert!(spec.text.as_ref().is_none_or(|text| !text.contains('\0')));
    assert!((0..=9).contains(&spec.priority));
    assert!(spec.budget.max_attempts.is_none_or(|count| (1..=MAX_ATTEMPTS).contains(&count)));
    assert!(spec.budget.max_age.is_none_or(|age| !age.is_zero() && age <= MAX_AGE));
    assert!(spec.timeout.is_none_or(|timeout| !timeout.is_zero() && timeout <= MAX_TIMEOUT));
    if let (Some(run_at), Some(expires_at)) = (spec.run_at, spec.expires_at) {
        assert!(run_at < expires_at);
    }
    let shorts = [
        &spec.requested_by,
        &spec.version,
        &spec.connected_account_id,
        &spec.idempotency_key,
        &spec.reply_to,
        &spec.correlation_id,
        &spec.message_id,
        &spec.traceparent,
    ];
    assert!(shorts.into_iter().flatten().all(|text| is_short_text(text)));
    assert!(spec.tags.len() <= MAX_TAGS);
    assert!(spec.tags.keys().all(|key| !key.is_empty()));
    for text in spec.tags.iter().flat_map(|(key, value)| [key, value]) {
        assert!(text.len() <= MAX_SHORT_TEXT_BYTES && !text.chars().any(char::is_control), "{text:?}");
    }
}

/// The envelope again, each time with the canary in everything that one of its fields says.
fn with_marks(body: &[u8]) -> Vec<Vec<u8>> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Vec::new() };
    if fields.keys().any(|name| name.contains(CANARY)) {
        // The names of unknown fields are quoted, because a typo has to be found.
        return Vec::new();
    }
    let mut all = Vec::new();
    for name in fields.keys().take(MAX_MARKED) {
        for mark in [|text: &str| format!("{CANARY}{text}"), |text: &str| format!("{text}{CANARY}")] {
            let mut marked = fields.clone();
            if let Some(value) = marked.get_mut(name) {
                *value = mark_all(value.take(), mark);
            }
            all.push(Value::Object(marked).to_string().into_bytes());
        }
    }
    all
}

fn mark_all(value: Value, mark: fn(&str) -> String) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
        Value::String(text) => mark(&text).into(),
        Value::Array(items) => items.into_iter().map(|item| mark_all(item, mark)).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (mark(&name), mark_all(value, mark))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> JobSpec {
        let queue = "default".parse().unwrap();
        decode(json.as_bytes(), &Arrival { message_id: Some("1"), ..Arrival::new(&queue) }).unwrap()
    }

    fn panics(run: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(run).is_err()
    }

    #[test]
    fn a_message_that_cannot_be_kept_is_noticed() {
        for (reason, message) in [
            (EnvelopeReason::Malformed, ""),
            (EnvelopeReason::Malformed, "\0"),
            (EnvelopeReason::KeyConflict, "x"),
        ] {
            let error = EnvelopeError { reason, message: message.to_owned(), field: None };
            assert!(panics(move || rejected(&error)), "{message:?}");
        }
    }

    #[test]
    fn a_job_out_of_bounds_is_noticed() {
        let good = spec(r#"{"user_id":"u","tool":"T","tags":{"a":""}}"#);
        assert_within_bounds(&good);
        for bad in [
            JobSpec { tool: "x".repeat(MAX_TOOL_BYTES + 1), ..good.clone() },
            JobSpec { priority: 10, ..good.clone() },
            JobSpec { version: Some(" ".into()), ..good.clone() },
            JobSpec { text: Some("\0".into()), ..good.clone() },
            JobSpec { timeout: Some(MAX_TIMEOUT * 2), ..good.clone() },
            JobSpec { tags: [(String::new(), String::new())].into(), ..good.clone() },
        ] {
            assert!(panics(move || assert_within_bounds(&bad)));
        }
    }

    #[test]
    fn a_job_that_is_not_what_was_sent_is_noticed() {
        let body: &[u8] = br#"{"user_id":"u","tool":"T","arguments":{"n":1}}"#;
        let queue: QueueName = "default".parse().unwrap();
        let arrival = Arrival { message_id: Some("1"), ..Arrival::new(&queue) };
        accepted(&spec(r#"{"user_id":"u","tool":"T","arguments":{"n":1}}"#), body, &arrival);
        for other in [r#"{"user_id":"u","tool":"T","arguments":{"n":2}}"#, r#"{"user_id":"v","tool":"T"}"#] {
            let (other, queue) = (spec(other), queue.clone());
            let arrival = Arrival { message_id: Some("1"), ..Arrival::new(&queue) };
            assert!(panics(|| accepted(&other, body, &arrival)));
        }
    }

    #[test]
    fn every_value_is_marked_and_no_name_of_a_field() {
        let marked = with_marks(br#"{"user_id":"u","arguments":{"a":["b"]}}"#);
        assert_eq!(marked.len(), 4);
        let marked: Vec<_> = marked.into_iter().map(|body| String::from_utf8(body).unwrap()).collect();
        assert!(marked.contains(&format!(r#"{{"arguments":{{"{CANARY}a":["{CANARY}b"]}},"user_id":"u"}}"#)));
        assert!(marked.contains(&format!(r#"{{"arguments":{{"a":["b"]}},"user_id":"u{CANARY}"}}"#)));
    }
}
