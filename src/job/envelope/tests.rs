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
fn errors_never_quote_what_a_customer_sent() {
    for field in ["priority", "effect", "run_at", "tags", "arguments", "id", "user_id"] {
        for value in [json!({"hunter2": "hunter2"}), json!("hunter2")] {
            let error = decode_json(&with(field, value)).err().map(|error| error.message).unwrap_or_default();
            assert!(!error.contains("hunter2"), "{field}: {error}");
        }
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
}
