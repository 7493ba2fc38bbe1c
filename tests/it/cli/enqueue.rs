//! Jobs from the command line.

use insta::assert_snapshot;
use serde_json::json;

use super::{NOBODY, Place};
use crate::{
    harness::PATIENCE,
    support::{self, wait::until},
};

#[test]
fn an_enqueued_job_can_be_listed_and_shown() {
    let place = Place::with_database();
    let id =
        place.enqueue(&["--args", r#"{"owner":"o", "n":1.50}"#, "--tag", "team=core", "--run-at", "+10m"]);
    let shown = place.run(&["jobs", "show", &id]).succeeds().out;
    let stable: Vec<_> = shown
        .lines()
        .filter(|line| {
            !["job", "created", "run", "due", "published"].contains(&line.split(' ').next().unwrap())
        })
        .collect();
    assert_snapshot!(stable.join("\n"), @"
    state         scheduled
    owner         user:u-alice
    tool          GITHUB_GET_REPO
    queue         default
    tags          team=core
    attempts      0, budget used: 0
    ");
    let list = place.run(&["jobs", "list"]).succeeds();
    assert!(list.out.starts_with("ID  ") && list.out.contains(&id), "{list:?}");
    let line = &place.run(&["jobs", "list", "--json", "--owner", "user:u-alice"]).succeeds().json_lines()[0];
    assert_eq!((&line["id"], &line["state"]), (&json!(id), &json!("scheduled")));
    assert!(line.get("result").is_none() && line.get("attempts").is_none());
    for filter in [&["--state", "held"][..], &["--owner", "org:u-alice"], &["--tool", "OTHER"]] {
        let none = place.run(&[&["jobs", "list"], filter].concat()).succeeds();
        assert_eq!((none.out.as_str(), none.err.as_str()), ("", "no jobs match\n"));
    }
}

#[test]
fn a_job_as_json_has_exactly_the_documented_keys() {
    let place = Place::with_database();
    let id = place.enqueue(&[]);
    let ran = place.run(&["jobs", "show", &id, "--json"]).succeeds();
    let keys: Vec<_> = ran.out.split(",\"").map(|part| part.split('"').next().unwrap().to_owned()).collect();
    assert!(ran.out.starts_with("{\"id\":"), "{ran:?}");
    assert_eq!(
        keys[1..].join(" "),
        "state held_reason owner id requested_by tool toolkit version pinned_by connected_account_id queue \
         batch_id created_at first_due_at due_at finished_at result error log_id attempts history known_as started_at run_at \
         expires_at timeout_ms max_attempts max_age_ms priority tags effect asked_effect asked_version \
         asked_connected_account_id idempotency_key worker attempt spent publications queue_paused_since cancel_requested request_id \
         check_at checks unknown_since reply_to publisher correlation_id message_id traceparent \
         callback"
    );
}

#[test]
fn arguments_come_from_the_command_line_a_file_or_standard_input() {
    let place = Place::with_database();
    let file = place.file("args.json", "{\"from\": \"file\"}\n");
    place.enqueue(&["--args", &format!("@{file}")]);
    place
        .run_with_input(&["enqueue", "X", "--org-id", "o", "--args", "-"], "{\"from\": \"stdin\"}\n")
        .succeeds();
    place
        .run(&["enqueue", "X", "--org-id", "o", "--args", "@missing.json"])
        .fails(2, "cannot read @missing.json");
    place.run(&["enqueue", "X", "--org-id", "o", "--args", "{\"a\""]).fails(2, "not valid JSON");
    place.run(&["enqueue", "X", "--org-id", "o", "--args", "[1]"]).fails(2, "`arguments` must be an object");
    place.enqueue(&["--args", "[]"]);
}

#[test]
fn an_id_or_an_idempotency_key_makes_one_job_of_two() {
    let place = Place::with_database();
    let first = place.enqueue(&["--idempotency-key", "k", "--args", "{}"]);
    assert_eq!(place.enqueue(&["--idempotency-key", "k", "--args", "{ }"]), first);
    assert_eq!(place.enqueue(&["--id", &first, "--idempotency-key", "k", "--args", "{}"]), first);
    let again =
        ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", "{}", "--idempotency-key", "k"];
    let json = place.run(&[&again[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(json, json!({"id": first, "duplicate": true}));
    // The first is found by an ID that somebody gave, and not by one that nobody has seen.
    let named = "0190b0a0-0000-7000-8000-00000000000a";
    assert_eq!(place.enqueue(&["--id", named, "--idempotency-key", "k", "--args", "{}"]), first);
    let shown = place.run(&["jobs", "show", named, "--json"]).succeeds().json();
    assert_eq!((&shown["id"], &shown["known_as"]), (&json!(first), &json!([named])));
    let told = place.run(&["jobs", "cancel", named]).exits(1);
    assert!(told.out.contains(&format!("another ID of the job {first}; name that one")), "{told:?}");
    let other = ["enqueue", "OTHER", "--user-id", "u-alice", "--idempotency-key", "k"];
    place.run(&other).fails(1, "this `idempotency_key` is that of the job");
    place
        .run(&["enqueue", "OTHER", "--user-id", "u-alice", "--id", &first])
        .fails(1, "this `id` is known with another body");
    place
        .run(&["enqueue", "GITHUB_GET_REPO", "--user-id", "u-bob", "--id", &first])
        .fails(1, "this `id` is already used by another job");
}

#[test]
fn a_job_that_may_not_run_is_refused_with_the_reason() {
    let place = Place::with_database();
    place.run(&["enqueue", "X", "--user-id", "default"]).fails(1, "could expose other people's data");
    place.run(&["enqueue", "X", "--user-id", "u", "--queue", "nope"]).fails(2, "use one of bulk, default");
    place.run(&["enqueue", "X", "--user-id", "u", "--queue", "No Pe"]).fails(2, "--queue must have");
    place.run(&["enqueue", "X", "--user-id", "u", "--priority", "10"]).fails(2, "`priority` must be 0 to 9");
    place.run(&["enqueue", "X", "--user-id", " "]).fails(2, "--owner is empty");
    place.run(&["enqueue", "X", "--user-id", " default "]).fails(2, "begins or ends with a blank");
    place.run(&["enqueue", "X", "--user-id", "\u{ff44}efault"]).fails(1, "could expose other people's data");
    let pin = place.run(&["pins", "set", "github", "20251027_00", "--owner", "user:u\u{200b}"]).exits(2);
    assert!(pin.err.contains("nobody sees"), "{pin:?}");
    let far = ["enqueue", "X", "--user-id", "u", "--run-at", "2999-01-01T00:00:00Z"];
    place.run(&far).fails(1, "`run_at` is further ahead than 366 days");
}

#[test]
fn an_owner_that_looks_like_an_address_is_remarked_and_refused_where_the_settings_say_so() {
    let place = Place::with_database();
    let args = ["enqueue", "X", "--user-id", "a@example.com"];
    let ran = place.run(&args).succeeds();
    assert!(ran.err.contains("looks like an e-mail address"), "{ran:?}");
    let line = "{\"user_id\":\"a@example.com\",\"tool\":\"X\"}\n";
    let bulk = place.run_with_input(&["enqueue-bulk", "-"], &line.repeat(3)).succeeds();
    assert_eq!(bulk.err.matches("looks like an e-mail address").count(), 1, "{bulk:?}");
    let strict = place.set("ERRAND__OWNERS__REFUSE_EMAIL", "true").run(&args).exits(1);
    assert_eq!(strict.err.lines().count(), 1, "{strict:?}");
}

#[test]
fn waiting_ends_with_the_job_or_with_the_time() {
    let place = Place::with_database();
    let ran = place
        .run(&["enqueue", "X", "--user-id", "u", "--wait=1", "--json"])
        .fails(1, "is still available after 1 s");
    assert_eq!(ran.json()["state"], "available");
    let id = place.enqueue(&["--id", NOBODY]);
    place.run(&["jobs", "cancel", &id]).succeeds();
    let ended = ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--id", NOBODY, "--wait", "--json"];
    assert_eq!(place.run(&ended).exits(1).json()["state"], "cancelled");
}

#[test]
fn with_a_broker_jobs_are_handed_over_at_once_and_without_it_they_are_kept() {
    let services = tokio::runtime::Runtime::new().unwrap();
    let (database, vhost) =
        services.block_on(async { (support::database("cli").await, support::vhost("cli").await) });
    let place = Place::empty().set("DATABASE_URL", &database.url).set("AMQP_URL", &vhost.amqp_url);
    place.run(&["migrate"]).succeeds();
    place.enqueue(&[]);
    let file = place.file("jobs.jsonl", &"{\"user_id\":\"u\",\"tool\":\"X\"}\n".repeat(1_000));
    assert_eq!(
        place.run(&["enqueue-bulk", &file]).succeeds().out,
        "1000 new, 0 duplicate, 0 refused, 0 invalid\n"
    );
    // A broker that is busy may count none.
    let told = "queue default: 1001 messages wait and nobody takes any";
    let doctor = services.block_on(until(told, PATIENCE, async || {
        Some(place.run(&["doctor"]).exits(1)).filter(|doctor| doctor.out.contains(told))
    }));
    assert!(doctor.out.contains("OK    database       PostgreSQL"), "{doctor:?}");

    let place = place.set("AMQP_URL", "amqp://errand:hunter2@127.0.0.1:1/%2f");
    let id = place.enqueue(&[]);
    assert_eq!(place.run(&["jobs", "show", &id, "--json"]).succeeds().json()["state"], "available");
}

#[test]
fn bulk_counts_every_line_and_bad_ones_stop_nobody() {
    let place = Place::with_database();
    let mut lines: Vec<String> = (0..1_200)
        .map(|n| {
            let id = uuid::Uuid::from_u128(n + 1);
            json!({"id": id, "user_id": format!("u-{n}"), "tool": "X", "arguments": {"n": n}}).to_string()
        })
        .collect();
    lines.insert(3, r#"{"user_id": "u", "tool": "X", "toll": 1}"#.to_owned());
    lines.insert(4, String::new());
    lines.insert(700, r#"{"user_id": "default", "tool": "X"}"#.to_owned());
    lines.insert(701, r#"{"user_id": "u", "tool": "X", "queue": "nope"}"#.to_owned());
    lines.push(r#"{"user_id": "u", "tool": "X", "queue": "bulk"}"#.to_owned());
    let file = place.file("jobs.jsonl", &lines.join("\n"));
    let ran = place.run(&["enqueue-bulk", &file]).exits(1);
    assert_eq!(ran.out, "1201 new, 0 duplicate, 1 refused, 2 invalid\n");
    assert_snapshot!(ran.err, @"
    line 4: the envelope is not a valid job: unknown field `toll`, expected one of `id`, `user_id`, `org_id`, `requested_by`, `tool`, `arguments`, `text`, `version`, `connected_account_id`, `queue`, `priority`, `run_at`, `expires_at`, `timeout_ms`, `max_attempts`, `max_age_ms`, `effect`, `idempotency_key`, `tags`, `callback`
    line 701: the owner `default` is refused because it could expose other people's data; send the real `user_id`
    line 702: there is no queue of this name in [queues]; use one of bulk, default
    ");
    let again = place.run_with_input(&["enqueue-bulk", "-", "--json"], &lines[..3].join("\n")).succeeds();
    assert_eq!(again.json(), json!({"new": 0, "duplicate": 3, "refused": 0, "invalid": 0, "problems": []}));
    place.run(&["enqueue-bulk", "missing.jsonl"]).fails(2, "cannot read missing.jsonl");
    let batch = "0190b0a0-0000-7000-8000-000000000001";
    place.run(&["enqueue-bulk", "missing.jsonl", "--batch", batch]).fails(2, "for batches at a server");
}

#[test]
fn a_file_in_another_encoding_is_named_once_and_a_byte_order_mark_is_no_line() {
    let place = Place::with_database();
    let line = r#"{"user_id":"u","tool":"X"}"#;
    let marked = place.file("marked.jsonl", &format!("\u{feff}{line}\r\n{line}\r\n"));
    assert_eq!(
        place.run(&["enqueue-bulk", &marked]).succeeds().out,
        "2 new, 0 duplicate, 0 refused, 0 invalid\n"
    );
    assert_eq!(
        place.run_with_input(&["enqueue-bulk", "-"], "").succeeds().out,
        "0 new, 0 duplicate, 0 refused, 0 invalid\n"
    );
    let arguments = place.file("arguments.json", "\u{feff}{\"a\":1}");
    place.enqueue(&["--args", &format!("@{arguments}")]);
    let utf16: Vec<u8> = format!("\u{feff}{line}\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, bytes, said) in [
        ("utf-16", utf16.as_slice(), "the input is UTF-16; make it plain text in UTF-8"),
        ("unmarked-utf-16", &utf16[2..], "the input is UTF-16; make it plain text in UTF-8"),
        (
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0",
            "the input is compressed with gzip; make it plain text in UTF-8 first",
        ),
        (
            "zstd",
            b"\x28\xb5\x2f\xfd\0\0",
            "the input is compressed with zstd; make it plain text in UTF-8 first",
        ),
    ] {
        let path = place.file(name, "");
        std::fs::write(&path, bytes).unwrap();
        let ran = place.run(&["enqueue-bulk", &path]);
        assert_eq!(ran.err.matches("input").count(), 1, "{ran:?}");
        ran.fails(2, said);
        let arguments = format!("@{path}");
        let ran = place.run(&["enqueue", "X", "--user-id", "u", "--args", &arguments]);
        ran.fails(2, said.strip_prefix("the input").unwrap());
    }
}
