use serde_json::{Value, json};

use super::*;
use crate::job::{BatchId, Principal};

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
fn nobody_gives_a_job_an_id_that_is_derived_for_an_item_of_a_batch() {
    let batch = BatchId::from_key(&Principal::Operator, "night");
    let queue = queue();
    for id in [batch.item(0), batch.item(1), batch.follow_up(1)] {
        assert_eq!((id.0.get_version_num(), id.0.get_variant()), (8, uuid::Variant::RFC4122));
        let error = decode_json(&with("id", json!(id.to_string()))).unwrap_err();
        assert_eq!((error.reason, error.field), (EnvelopeReason::BadValue, Some("id")), "{error}");
        let (named, text) = (json!({"user_id": "u", "tool": "T"}).to_string(), id.to_string());
        let message = Arrival { message_id: Some(&text), ..Arrival::new(&queue) };
        assert_eq!(decode(named.as_bytes(), &message).unwrap_err().reason, EnvelopeReason::BadValue);
        // Errand itself names items so, and carries them through the broker.
        let item = Arrival { fallback_id: Some(id), ..Arrival::new(&queue) };
        let spec = decode(named.as_bytes(), &item).unwrap();
        assert_eq!(spec.id, id);
        let relayed = Arrival { known: true, ..Arrival::new(&queue) };
        assert_eq!(decode(&encode(&spec), &relayed).unwrap().id, id);
    }
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

#[test]
fn every_message_names_the_field_and_what_it_has_to_be() {
    let job = |rest: &str| {
        format!(r#"{{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T",{rest}}}"#)
    };
    for (rest, said) in [
        (r#""priority":"1""#, "`priority` must be a whole number, without quotes, fraction or exponent"),
        (r#""priority":1.5"#, "`priority` must be a whole number"),
        (r#""priority":40000"#, "`priority` must be 0 to 9; higher runs earlier"),
        (r#""max_attempts":-1"#, "`max_attempts` must be 1 to 1000"),
        (r#""timeout_ms":1e3"#, "`timeout_ms` must be a whole number"),
        (r#""timeout_ms":99999999999999999999"#, "`timeout_ms` must be 1 to 1800000 milliseconds"),
        (r#""max_age_ms":[]"#, "`max_age_ms` must be a whole number"),
        (r#""text":7"#, "`text` must be a text"),
        (r#""text":"\ud800""#, "`text` contains half of a surrogate pair"),
        (r#""effect":"Once""#, "`effect` must be one of the words safe, idempotent, once"),
        (r#""effect":{}"#, "`effect` must be one of the words safe, idempotent, once"),
        (r#""tags":["a"]"#, "`tags` must be an object"),
        (r#""tags":{"a":1}"#, "`tags` must have a text for each tag"),
        (
            r#""run_at":1700000000"#,
            "`run_at` must be a text with a time; write it as in 2026-05-04T06:30:00Z",
        ),
        (r#""run_at":"tomorrow""#, "`run_at` is not a time of RFC 3339"),
        (r#""run_at":"2026-02-30T09:00:00Z""#, "`run_at` is not a time of RFC 3339"),
        (r#""run_at":"2026-01-31""#, "`run_at` is not a time of RFC 3339"),
        (r#""run_at":"2026-01-31T09:00:00""#, "`run_at` has no offset from UTC, such as Z"),
        (
            r#""expires_at":"9999-12-31T23:59:59.9999999Z""#,
            "`expires_at` is out of the range of times, which ends at 9999-12-30T22:00:00Z",
        ),
        (
            r#""expires_at":"9999-12-31T23:59:59.999999999+00:00""#,
            "`expires_at` is out of the range of times",
        ),
        (r#""text":"x","tool":"T""#, "duplicate field `tool`"),
        (r#""toll":1"#, "unknown field `toll`"),
    ] {
        let error = decode_bytes(job(rest).as_bytes()).map(drop).unwrap_err();
        assert!(error.message.contains(said), "{rest}: {error}");
        assert!(!error.message.contains("column"), "{rest}: {error}");
    }
}

#[test]
fn what_is_no_object_or_no_json_is_named() {
    let utf16: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (body, said) in [
        (&b"[]"[..], "it must be one JSON object"),
        (b"null", "it must be one JSON object"),
        (b"\"text\"", "it must be one JSON object"),
        (br#"[null,"u",null,null,"T",null,null,null,null,null,null,null,null,null,null,null,null,null,null]"#, "it must be one JSON object"),
        (b"{\"user_id\":\n\"u\",}", "it is not JSON: trailing comma, at line 2, column"),
        (b"{\"user_id\":", "it is not JSON: EOF"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (&utf16, "it is UTF-16"),
        (b"\x1f\x8b\x08\0", "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\0", "compressed with zstd"),
    ] {
        let error = decode_bytes(body).map(drop).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn the_empty_list_of_php_is_the_empty_object() {
    let php = decode_bytes(br#"{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T","arguments":[ ],"tags":[]}"#);
    let spelt = decode_bytes(
        br#"{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T","arguments":{},"tags":{}}"#,
    );
    let (php, spelt) = (php.unwrap(), spelt.unwrap());
    assert_eq!((php.digest, encode(&php)), (spelt.digest, encode(&spelt)));
    assert!(decode_json(&with("tags", json!([1]))).is_err());
}

#[test]
fn an_owner_is_what_a_reader_sees_and_known_ones_stay_readable() {
    for (id, said) in [
        (" default ", "begins or ends with a blank"),
        ("u-alice\u{a0}", "begins or ends with a blank"),
        ("de\u{200b}fault", "a character that nobody sees"),
        ("\u{202e}u-alice", "a character that nobody sees"),
        ("u\u{feff}", "a character that nobody sees"),
        ("u\u{e0041}", "a character that nobody sees"),
    ] {
        let job = with("user_id", json!(id));
        let error = decode_json(&job).map(drop).unwrap_err();
        assert_eq!(error.reason, EnvelopeReason::BadOwner, "{id:?}");
        assert!(error.message.starts_with("`user_id`") && error.message.contains(said), "{id:?}: {error}");
        // The relay goes on with rows that were accepted before.
        let queue = queue();
        let relayed = Arrival { known: true, ..Arrival::new(&queue) };
        assert_eq!(decode(&serde_json::to_vec(&job).unwrap(), &relayed).unwrap().owner.id(), id);
        assert_eq!(format!("user:{id}").parse::<Owner>().unwrap().id(), id);
    }
    for id in ["a b", "\u{4f60}\u{597d}", "\u{e9}\u{1f600}", "x@example.com", "auth0|5f7c"] {
        assert!(decode_json(&with("user_id", json!(id))).is_ok(), "{id}");
    }
}
