//! The published schema of the envelope says what the decoder does.

use errand::job::{EnvelopeError, JobSpec};
use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::jobs::{Properties, decode};

const SCHEMA: &str = include_str!("../../docs/envelope.schema.json");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn validator() -> Validator {
    jsonschema::options().should_validate_formats(true).build(&schema()).unwrap()
}

/// Decodes as for a message that came with an ID and through the lane that it names.
fn decoded(envelope: &Value) -> Result<JobSpec, EnvelopeError> {
    decode(&envelope.to_string(), Properties::default())
}

#[track_caller]
fn agree(validator: &Validator, envelope: &Value, valid: bool) {
    let decoded = decoded(envelope).map(drop);
    assert_eq!(decoded.is_ok(), valid, "decoder: {decoded:?} for {envelope}");
    let errors: Vec<_> = validator.iter_errors(envelope).map(|error| error.to_string()).collect();
    assert_eq!(errors.is_empty(), valid, "schema: {errors:?} for {envelope}");
}

fn with(field: &str, value: Value) -> Value {
    let mut envelope = json!({"user_id": "u-alice", "tool": "GITHUB_GET_REPO"});
    envelope[field] = value;
    envelope
}

#[test]
fn schema_and_decoder_accept_the_same_values() {
    let validator = validator();
    for (field, value) in [
        ("id", json!("0190b0a0-0000-7000-8000-000000000001")),
        ("id", json!("0190B0A0-0000-7000-8000-00000000000F")),
        ("id", json!("0190b0a0000070008000000000000001")),
        ("id", json!("{0190b0a0-0000-7000-8000-000000000001}")),
        ("id", json!("urn:uuid:0190b0a0-0000-7000-8000-000000000001")),
        ("id", json!("00000000-0000-0000-0000-000000000000")),
        ("id", json!(null)),
        ("user_id", json!("a b")),
        ("user_id", json!("\u{4f60}\u{597d} \u{e9}")),
        ("user_id", json!("x".repeat(256))),
        ("org_id", json!(null)),
        ("requested_by", json!("")),
        ("requested_by", json!("x".repeat(256))),
        ("tool", json!("x".repeat(128))),
        ("arguments", json!({})),
        ("arguments", json!([])),
        ("arguments", json!({"deep": {"er": [1, {"a": null}]}})),
        ("arguments", json!(null)),
        ("text", json!("")),
        ("text", json!("two\nlines")),
        ("version", json!("latest")),
        ("version", json!(" ")),
        ("connected_account_id", json!("ca_1")),
        ("queue", json!("bulk.mail-2_x")),
        ("queue", json!("x".repeat(64))),
        ("priority", json!(0)),
        ("priority", json!(9)),
        ("run_at", json!("2026-01-31T09:00:00Z")),
        ("run_at", json!("2026-01-31T09:00:00.123456+02:00")),
        ("expires_at", json!("2026-01-31T09:00:00-11:30")),
        ("timeout_ms", json!(1)),
        ("timeout_ms", json!(1_800_000)),
        ("max_attempts", json!(1)),
        ("max_attempts", json!(1_000)),
        ("max_age_ms", json!(31_622_400_000u64)),
        ("effect", json!("safe")),
        ("effect", json!("idempotent")),
        ("effect", json!("once")),
        ("effect", json!(null)),
        ("idempotency_key", json!("order 12")),
        ("tags", json!({})),
        ("tags", json!([])),
        ("tags", json!({"a": "", "b": "x"})),
        ("tags", json!(null)),
        ("callback", json!({"url": "https://app.example.com/errand?a=b"})),
        ("callback", json!({"url": "http://10.0.0.1:8080"})),
        ("callback", json!({"url": format!("https://app.example/{}", "x".repeat(1_004))})),
        ("callback", json!(null)),
    ] {
        agree(&validator, &with(field, value), true);
    }
    agree(&validator, &json!({"org_id": "o", "tool": "T"}), true);
    agree(&validator, &json!({"org_id": "o", "user_id": null, "tool": "T"}), true);
    agree(&validator, &json!({"org_id": "o", "tool": "T", "text": "x", "arguments": {}}), true);
}

#[test]
fn schema_and_decoder_refuse_the_same_values() {
    let validator = validator();
    let many: serde_json::Map<_, _> = (0..33).map(|n| (n.to_string(), json!("x"))).collect();
    for (field, value) in [
        ("id", json!("order-1")),
        ("id", json!("")),
        ("id", json!(7)),
        ("id", json!("0190b0a0-0000-7000-8000-00000000000g")),
        ("id", json!("0190b0a0-0000-8000-8000-000000000001")),
        ("id", json!("0190b0a0000080008000000000000001")),
        ("id", json!("{0190b0a0-0000-8000-8000-000000000001}")),
        ("id", json!("urn:uuid:0190b0a0-0000-8000-8000-000000000001")),
        ("user_id", json!("")),
        ("user_id", json!("   ")),
        ("user_id", json!(" u")),
        ("user_id", json!("u ")),
        ("user_id", json!("\u{a0}u")),
        ("user_id", json!("u\u{3000}")),
        ("user_id", json!("u\u{200b}")),
        ("user_id", json!("\u{feff}u")),
        ("user_id", json!("u\u{202e}v")),
        ("user_id", json!("u\u{ad}v")),
        ("user_id", json!("u\u{2028}v")),
        ("org_id", json!("o ")),
        ("user_id", json!("a\u{7}")),
        ("user_id", json!("x".repeat(257))),
        ("user_id", json!(null)),
        ("user_id", json!(12)),
        ("org_id", json!("both")),
        ("requested_by", json!("x".repeat(257))),
        ("requested_by", json!("a\u{0}")),
        ("tool", json!("")),
        ("tool", json!(null)),
        ("tool", json!("x".repeat(129))),
        ("tool", json!("a\nb")),
        ("arguments", json!([1])),
        ("arguments", json!("{}")),
        ("arguments", json!(1)),
        ("text", json!("a\u{0}b")),
        ("text", json!(1)),
        ("version", json!(20_251_027)),
        ("version", json!("\u{85}")),
        ("queue", json!("")),
        ("queue", json!("Bulk")),
        ("queue", json!("a b")),
        ("queue", json!("x".repeat(65))),
        ("priority", json!(-1)),
        ("priority", json!(10)),
        ("priority", json!(1.5)),
        ("priority", json!("1")),
        ("run_at", json!("tomorrow")),
        ("run_at", json!(1_700_000_000)),
        ("run_at", json!("2026-01-31")),
        ("run_at", json!("2026-02-30T09:00:00Z")),
        ("run_at", json!("2026-01-31T09:00:00")),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!(1_800_001)),
        ("timeout_ms", json!(-1)),
        ("max_attempts", json!(0)),
        ("max_attempts", json!(1_001)),
        ("max_age_ms", json!(0)),
        ("max_age_ms", json!(31_622_400_001u64)),
        ("effect", json!("Once")),
        ("effect", json!(1)),
        ("idempotency_key", json!("x".repeat(257))),
        ("tags", json!({"": "x"})),
        ("tags", json!({"a": null})),
        ("tags", json!({"a": 1})),
        ("tags", json!({"a": "x".repeat(257)})),
        ("tags", json!({"a\u{1}": "x"})),
        ("tags", json!(["a"])),
        ("tags", Value::Object(many)),
        ("callback", json!("https://app.example.com/errand")),
        ("callback", json!({})),
        ("callback", json!({"url": null})),
        ("callback", json!({"url": ""})),
        ("callback", json!({"url": "ftp://app.example/"})),
        ("callback", json!({"url": "https://app.example/#a"})),
        ("callback", json!({"url": "https://app.example/a b"})),
        ("callback", json!({"url": format!("https://app.example/{}", "x".repeat(1_005))})),
        ("callback", json!({"url": "https://app.example/", "secret": "s"})),
        ("toll", json!("x")),
        ("Tool", json!("x")),
        ("userId", json!("x")),
    ] {
        agree(&validator, &with(field, value), false);
    }
    for envelope in [json!({}), json!([]), json!("x"), json!({"user_id": "u"}), json!({"tool": "T"})] {
        agree(&validator, &envelope, false);
    }
}

#[test]
fn every_field_of_the_decoder_is_described() {
    let schema = schema();
    let fields = schema["properties"].as_object().unwrap();
    for (name, field) in fields {
        assert!(field["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}");
    }
    // The decoder lists its fields when it is given another one.
    let message = decoded(&with("no_such_field", json!(1))).map(drop).unwrap_err().message;
    let known: Vec<_> = message.split('`').skip(3).step_by(2).collect();
    let mut described: Vec<_> = fields.keys().map(String::as_str).collect();
    let mut decoded = known.clone();
    described.sort_unstable();
    decoded.sort_unstable();
    assert_eq!(described, decoded, "{message}");
}

#[test]
fn the_examples_are_valid() {
    for example in schema()["examples"].as_array().unwrap() {
        agree(&validator(), example, true);
    }
}

/// Values on both sides of every bound.
fn field() -> impl Strategy<Value = (&'static str, Value)> {
    let text = prop_oneof!["[ -~]{0,12}", "[ -~]{255,258}", "[a-z\\x00-\\x1f]{0,6}"].prop_map(Value::from);
    let short = |name: &'static str| {
        let text = prop_oneof!["[ -~]{0,12}", "[ -~]{255,258}", "[a-z\\x00-\\x1f]{0,6}"];
        text.prop_map(move |text| (name, json!(text)))
    };
    let whole = |name: &'static str, max: i64| {
        prop_oneof![-2i64..4, max - 2..max + 3].prop_map(move |number| (name, json!(number)))
    };
    prop_oneof![
        short("user_id"),
        short("org_id"),
        short("requested_by"),
        short("version"),
        short("connected_account_id"),
        short("idempotency_key"),
        "[A-Z_\\x00]{0,3}|[A-Z]{127,130}".prop_map(|tool| ("tool", json!(tool))),
        "[a-zA-Z0-9._ -]{0,5}|[a-z]{63,66}".prop_map(|queue| ("queue", json!(queue))),
        whole("priority", 9),
        whole("timeout_ms", 1_800_000),
        whole("max_attempts", 1_000),
        whole("max_age_ms", 31_622_400_000),
        "safe|idempotent|once|[a-z]{0,4}".prop_map(|effect| ("effect", json!(effect))),
        prop::collection::btree_map("[a-z]{0,2}", text, 0..3).prop_map(|tags| ("tags", json!(tags))),
        prop::collection::btree_map("[a-z]{1,4}", any::<i64>(), 0..40)
            .prop_map(|args| ("arguments", json!(args))),
        (0i64..4_000_000_000)
            .prop_map(|at| ("run_at", json!(jiff::Timestamp::from_second(at).unwrap().to_string()))),
        any::<u128>().prop_map(|id| ("id", json!(uuid::Uuid::from_u128(id).to_string()))),
        Just(("text", json!(null))),
        Just(("unknown", json!(true))),
    ]
}

proptest! {
    #[test]
    fn schema_and_decoder_give_the_same_verdict(
        owner in prop_oneof![Just("user_id"), Just("org_id")],
        fields in prop::collection::vec(field(), 0..5),
    ) {
        let mut envelope = json!({"tool": "GITHUB_GET_REPO"});
        envelope[owner] = json!("someone");
        for (name, value) in fields {
            envelope[name] = value;
        }
        let validator = validator();
        prop_assert_eq!(validator.is_valid(&envelope), decoded(&envelope).is_ok(), "{}", envelope);
    }
}
