use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::job::{Arrival, JobId, decode};

fn spec(arguments: &str) -> JobSpec {
    let queue = "default".parse().unwrap();
    let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
    let body = format!(r#"{{"user_id": "u", "tool": "A_TOOL", "arguments": {arguments}}}"#);
    decode(body.as_bytes(), &arrival).unwrap()
}

fn check(schema: &Value, arguments: &str) -> Verdict {
    Arguments::default().check(&spec(arguments), "20251027_00", Some(&schema.to_string()))
}

fn places(schema: &Value, arguments: &Value) -> Vec<(String, &'static str)> {
    match check(schema, &arguments.to_string()) {
        Verdict::Unfit(problems) => {
            problems.into_iter().map(|problem| (problem.pointer, problem.rule)).collect()
        }
        Verdict::Fits => Vec::new(),
        Verdict::Unchecked => panic!("{schema} cannot be used for {arguments}"),
    }
}

fn fits(schema: &Value, arguments: &Value) -> bool {
    places(schema, arguments).is_empty()
}

#[test]
fn an_object_that_names_its_properties_takes_no_others() {
    let closed =
        json!({"type": "object", "properties": {"owner": {"type": "string"}}, "required": ["owner"]});
    assert!(fits(&closed, &json!({"owner": "o"})));
    assert_eq!(places(&closed, &json!({})), [("/owner".to_owned(), "required")]);
    assert_eq!(places(&closed, &json!({"owner": 7})), [("/owner".to_owned(), "type")]);
    let unknown = places(&closed, &json!({"owner": "o", "a/b~c": 1}));
    assert_eq!(unknown, [("/a~1b~0c".to_owned(), "additionalProperties")]);

    for open in [
        json!({"type": "object"}),
        json!({"type": "object", "properties": {}}),
        json!({"type": "object", "properties": {"a": {}}, "additionalProperties": true}),
        json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "number"}}),
        json!({}),
        json!(true),
    ] {
        assert!(fits(&open, &json!({"other": 1})), "{open}");
    }
    let none = json!({"type": "object", "additionalProperties": false});
    assert!(!fits(&none, &json!({"other": 1})));
}

#[test]
fn the_rule_holds_at_every_depth_and_behind_references() {
    let point = json!({"type": "object", "properties": {"x": {"type": "integer"}}});
    let schema = json!({
        "type": "object",
        "properties": {
            "one": {"$ref": "#/$defs/point"},
            "maybe": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
            "by_default": {"allOf": [{"$ref": "#/$defs/point"}], "default": {}},
            "many": {"type": "array", "items": {"$ref": "#/$defs/point"}},
            "free": {"type": "object"},
        },
        "$defs": {"point": point},
    });
    assert!(fits(
        &schema,
        &json!({"one": {"x": 1}, "maybe": null, "by_default": {"x": 2}, "many": [{"x": 3}]})
    ));
    assert!(fits(&schema, &json!({"free": {"any": {"thing": 1}}})));
    let wrong = [
        ("/one/y", json!({"one": {"y": 1}})),
        ("/maybe/y", json!({"maybe": {"y": 1}})),
        ("/by_default/y", json!({"by_default": {"y": 1}})),
        ("/many/1/y", json!({"many": [{"x": 1}, {"y": 1}]})),
    ];
    for (place, arguments) in wrong {
        assert_eq!(places(&schema, &arguments), [(place.to_owned(), "additionalProperties")], "{arguments}");
    }
}

/// Closed one by one they would take nothing at all.
#[test]
fn schemas_that_share_an_object_stay_open() {
    let of = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}});
    for schema in [
        json!({"allOf": [of("a"), of("b")]}),
        json!({"properties": {"a": {"type": "string"}}, "allOf": [of("b")]}),
        json!({"properties": {"a": {}}, "if": {"required": ["a"]}, "then": of("b")}),
    ] {
        assert!(fits(&schema, &json!({"a": "1", "b": "2"})), "{schema}");
    }
    let either = json!({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert!(fits(&either, &json!({"a": 1})));
    assert!(!fits(&either, &json!({"a": 1, "c": 1})), "what only asks for members names none");
}

#[test]
fn older_descriptions_say_otherwise_that_a_value_may_be_null() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string", "nullable": true},
        "b": {"type": "string", "default": null},
        "c": {"type": "string"},
    }});
    assert!(fits(&schema, &json!({"a": null, "b": null, "c": ""})));
    assert_eq!(places(&schema, &json!({"c": null})), [("/c".to_owned(), "type")]);
}

#[test]
fn numbers_beyond_a_double_are_judged_as_they_are() {
    let exact = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9_007_199_254_740_993_u64}}});
    assert!(fits(&exact, &json!({"n": 9_007_199_254_740_993_u64})));
    assert!(!fits(&exact, &json!({"n": 9_007_199_254_740_994_u64})));
    // No type of ours has these; the tool's may.
    let integer = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
    assert_eq!(check(&integer, r#"{"n": 123456789012345678901234567890}"#), Verdict::Fits);
    assert_eq!(check(&integer, r#"{"n": 1e999}"#), Verdict::Unchecked);
}

#[test]
fn what_is_told_has_places_and_rules_and_no_values() {
    let schema = json!({"type": "object", "properties": {
        "token": {"type": "string", "minLength": 40, "pattern": "^[a-z]+$"},
        "kind": {"enum": ["a", "b"]},
        "shape": {"oneOf": [{"type": "object", "properties": {"r": {"type": "number"}}}, {"type": "string", "maxLength": 2}]},
        "not": {"not": {"const": "hunter2"}},
        "list": {"type": "array", "uniqueItems": true, "items": {"type": "string"}},
    }});
    let arguments = json!({
        "token": "hunter2", "kind": "hunter2", "shape": {"r": "hunter2"}, "not": "hunter2", "list": ["hunter2", "hunter2"],
    });
    let Verdict::Unfit(problems) = check(&schema, &arguments.to_string()) else { panic!("it fits") };
    let error = ArgumentProblem::error(&problems, "A_TOOL", "20251027_00");
    for place in [
        "/token must have at least 40",
        "/token must match",
        "/kind must be one of [\"a\",\"b\"]",
        "/shape/r must be",
        "/list",
    ] {
        assert!(error.message().contains(place), "{place}: {}", error.message());
    }
    assert!(!error.message().contains("hunter2"), "{}", error.message());
}

#[test]
fn a_schema_that_cannot_be_bounded_checks_nothing() {
    let mut doubles = json!({"$defs": {"d0": {"type": "string"}}});
    for n in 1..40 {
        let inner = json!({"$ref": format!("#/$defs/d{}", n - 1)});
        doubles["$defs"][format!("d{n}")] = json!({"anyOf": [inner, inner]});
    }
    doubles["$ref"] = json!("#/$defs/d39");
    let deep = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
    let long: String = "x".repeat(MAX_SCHEMA_BYTES);
    for schema in [
        doubles,
        deep,
        json!({"description": long}),
        json!({"properties": {"a": {"$ref": "https://example.com/schema.json"}}}),
        json!({"properties": {"a": {"$ref": "other.json#/x"}}}),
        json!({"properties": {"a": {"$ref": "#/nowhere"}}}),
        json!({"properties": {"a": {"$id": "https://example.com/", "$ref": 7}}}),
        json!({"properties": {"a": {"pattern": "^(?=.*x)(.*)*\\1$"}}}),
        json!({"properties": {"a": {"pattern": "((((a{100}){100}){100}){100}"}}}),
        json!({"properties": {"a": {"type": "nothing"}}}),
        json!({"properties": {"a": []}}),
        json!([1]),
        json!({"properties": {"a": {"oneOf": [{"type": "string"}, {"$ref": "#"}]}}}),
    ] {
        let before = Instant::now();
        let text: String = schema.to_string().chars().take(80).collect();
        assert_eq!(
            check(&schema, r#"{"a": {"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"}}"#),
            Verdict::Unchecked,
            "{text}"
        );
        assert!(before.elapsed() < Duration::from_secs(30), "{text}");
    }
}

#[test]
fn a_schema_that_refers_to_itself_is_followed_once() {
    let tree = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}},
    }});
    assert!(fits(&tree, &json!({"name": "a", "children": [{"name": "b", "children": []}]})));
    assert_eq!(places(&tree, &json!({"children": [{"name": 1}]})), [("/children/0/name".to_owned(), "type")]);
    // Around in a circle without a value in between.
    for circle in [
        json!({"$ref": "#"}),
        json!({"anyOf": [{"$ref": "#"}]}),
        json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
    ] {
        assert!(fits(&circle, &json!({"a": 1})), "{circle}");
    }
}

#[test]
fn arguments_that_would_cost_too_much_are_not_checked() {
    let parts: serde_json::Map<String, Value> =
        (0..2_000).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
    let schema = json!({"type": "object", "properties": parts});
    let many = format!(r#"{{"p0": [{}1]}}"#, "1,".repeat(5_000));
    assert_eq!(check(&schema, &many), Verdict::Unchecked);
    let large = format!(r#"{{"p0": "{}"}}"#, "x".repeat(200_000));
    assert_eq!(check(&schema, &large), Verdict::Fits);
}

#[test]
fn a_job_that_says_in_words_what_it_wants_is_not_checked() {
    let queue = "default".parse().unwrap();
    let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
    let spec = decode(br#"{"user_id": "u", "tool": "A_TOOL", "text": "do it"}"#, &arrival).unwrap();
    let schema = r#"{"required": ["a"]}"#;
    assert_eq!(Arguments::default().check(&spec, "20251027_00", Some(schema)), Verdict::Unchecked);
    let absent = decode(br#"{"user_id": "u", "tool": "A_TOOL"}"#, &arrival).unwrap();
    assert!(matches!(Arguments::default().check(&absent, "20251027_00", Some(schema)), Verdict::Unfit(_)));
    assert_eq!(Arguments::default().check(&absent, "20251027_00", None), Verdict::Unchecked);
}

/// A schema of objects within objects, each with or without a word about further properties.
fn object_schemas() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(json!({})), Just(json!({"type": "object"})), Just(json!({"type": "integer"}))];
    leaf.prop_recursive(4, 32, 3, |inner| {
        let named = prop::collection::btree_map("[a-c]", inner, 0..3);
        let further = prop_oneof![Just(None), Just(Some(true)), Just(Some(false))];
        (named, further).prop_map(|(named, further)| {
            let mut schema = json!({"type": "object", "properties": named});
            if let Some(further) = further {
                schema["additionalProperties"] = further.into();
            }
            schema
        })
    })
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(1)), Just(json!("s")), Just(json!({}))];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop::collection::btree_map("[a-d]", inner, 0..3).prop_map(|map| json!(map))
    })
}

/// The vendor's rule, word by word.
fn rule(schema: &Value, value: &Value) -> bool {
    let Some(kind) = schema.get("type") else { return true };
    if kind == "integer" {
        return value.is_i64();
    }
    let Some(members) = value.as_object() else { return false };
    let none = serde_json::Map::new();
    let named = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let takes_others = match schema.get("additionalProperties") {
        Some(further) => further == true,
        None => named.is_empty(),
    };
    members.iter().all(|(name, member)| match named.get(name) {
        Some(schema) => rule(schema, member),
        None => takes_others,
    })
}

proptest! {
    #[test]
    fn arguments_fit_exactly_by_the_vendors_rule(schema in object_schemas(), value in values()) {
        let arguments = json!({"a": value});
        let schema = json!({"type": "object", "properties": {"a": schema}});
        prop_assert_eq!(fits(&schema, &arguments), rule(&schema, &arguments), "{} {}", schema, arguments);
    }

    #[test]
    fn no_schema_and_no_arguments_are_too_much(schema in ".{0,200}", word in "[a-z$A-Z]{1,8}", value in values()) {
        let known = json!({"properties": {"a": {word: value.clone()}}, "items": value});
        for schema in [schema, known.to_string()] {
            let spec = spec(&json!({"a": value}).to_string());
            let verdict = Arguments::default().check(&spec, "20251027_00", Some(&schema));
            prop_assert!(!matches!(verdict, Verdict::Unfit(problems) if problems.is_empty()));
        }
    }
}
