//! What the store is asked and told by somebody has a test in which it is somebody else.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    assert_none,
    source::{Source, files, read},
};

/// Methods with a test of their own beside that of `CALLS`: the file in `tests/it/store_contract`, its test, and which.
const ELSEWHERE: &[(&str, &str, &[&str])] = &[
    (
        "access_keys",
        "an_owner_sees_and_changes_its_own_keys_only",
        &["add_key", "keys", "key", "rotate_key", "revoke_key"],
    ),
    ("actions", "an_owner_sees_and_decides_about_its_own_actions_only", &["make_action", "actions"]),
    (
        "batches",
        "nobody_else_sees_a_batch",
        &["add_items", "seal_batch", "batch", "batch_items", "batches", "cancel_batch", "retry_batch"],
    ),
    (
        "callbacks",
        "an_owner_sees_and_changes_its_own_callback_and_deliveries_only",
        &["set_callback", "callback_secrets", "callbacks", "deliveries", "recover_deliveries"],
    ),
    ("events", "an_owner_sees_their_own_events_only", &["events"]),
    ("pins", "an_owner_pins_for_itself_only", &["pins_of", "set_pin", "unset_pin"]),
];

/// The name at the beginning of a text.
fn name(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The methods of the traits of a file that take a principal.
fn methods(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("\npub trait ") {
        let rest = &code[at + 1..];
        // Formatted code ends a trait with a brace in the first column.
        let body = &rest[..rest.find("\n}").unwrap_or(rest.len())];
        for (at, _) in body.match_indices(" fn ") {
            let method = &body[at + " fn ".len()..];
            let signature = method.split([';', '{']).next().unwrap_or_default();
            if signature.contains(": &Principal") {
                found.push(name(method));
            }
        }
    }
    found
}

/// The methods that the lines of `CALLS` call for somebody.
fn called() -> BTreeSet<String> {
    let text = read("tests/it/store_contract/principals.rs");
    let (_, calls) = text.split_once("\ncalls! {").expect("the table of calls");
    let calls = &calls[..calls.find("\n}").unwrap_or(calls.len())];
    let methods = calls.match_indices(" = store.").map(|(at, before)| &calls[at + before.len()..]);
    let for_somebody = methods.filter(|call| call[name(call).len()..].starts_with("(who"));
    for_somebody.map(|call| name(call).to_owned()).collect()
}

#[test]
fn each_method_of_the_store_that_takes_a_principal_is_tried_as_somebody_else() {
    let called = called();
    let is_of_both = |path: &String| path.matches('/').count() == 2;
    let sources: Vec<_> = files("src/store", ".rs")
        .iter()
        .filter(|path| is_of_both(path))
        .map(|path| Source::read("src", path))
        .collect();
    let methods: BTreeMap<_, _> = sources
        .iter()
        .flat_map(|source| {
            methods(&source.code).into_iter().map(move |method| (method, source.path.as_str()))
        })
        .collect();
    let elsewhere: BTreeSet<_> = ELSEWHERE.iter().flat_map(|(.., methods)| methods.iter().copied()).collect();
    let mut broken = Vec::new();
    for (method, path) in &methods {
        match (called.contains(*method), elsewhere.contains(method)) {
            (false, false) => broken.push(format!("{path}: `{method}` is in neither table")),
            (true, true) => broken.push(format!("{path}: `{method}` is in both tables")),
            (true, false) | (false, true) => {}
        }
    }
    for (file, test, of) in ELSEWHERE {
        let text = read(&format!("tests/it/store_contract/{file}.rs"));
        if !text.contains(&format!("on_every_backend!({test},")) {
            broken.push(format!("{file}: there is no test `{test}`"));
        }
        for method in of.iter().filter(|method| !text.contains(&format!(".{method}("))) {
            broken.push(format!("{file}: `{method}` is not called"));
        }
    }
    let gone = elsewhere.iter().filter(|method| !methods.contains_key(*method));
    broken.extend(gone.map(|method| format!("`{method}` is no method of the store that takes a principal")));
    assert_none(&broken, "questions and decisions that nobody tries as somebody else:");
}
