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
fn what_is_no_job_is_refused_by_the_field_that_is_wrong() {
    use EnvelopeReason::{BadOwner, BadValue, Malformed, NoId};
    for (field, value, reason) in [
        ("toll", json!("X"), Malformed),
        ("org_id", json!("o"), BadOwner),
        ("user_id", json!(null), BadOwner),
        ("user_id", json!(" "), BadOwner),
        ("user_id", json!("a\u{7}"), BadOwner),
        ("id", json!(null), NoId),
        ("arguments", json!([1]), BadValue),
        ("timeout_ms", json!(0), BadValue),
        ("max_attempts", json!(0), BadValue),
        ("max_attempts", json!(1_000_000), BadValue),
        ("priority", json!(10), BadValue),
        ("queue", json!("Not A Queue"), BadValue),
        ("queue", json!("other"), BadValue),
        ("tool", json!(""), BadValue),
        ("version", json!("x".repeat(300)), BadValue),
        ("text", json!("a\u{0}b"), BadValue),
        ("tags", json!({"": "x"}), BadValue),
    ] {
        let error = decode_json(&with(field, value)).unwrap_err();
        assert_eq!(error.reason, reason, "{field}");
        assert!(error.message.contains(field), "{error}");
    }
}

#[test]
fn message_ids_of_two_owners_never_collide() {
    let alice = Owner::new(OwnerKind::User, "a").unwrap();
    let org = Owner::new(OwnerKind::Org, "a").unwrap();
    assert_ne!(JobId::from_message_id(&alice, "order-1"), JobId::from_message_id(&org, "order-1"));
    assert_eq!(JobId::from_message_id(&alice, "order-1"), JobId::from_message_id(&alice, "order-1"));
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
