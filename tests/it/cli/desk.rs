//! What operators ask: lists, counts, workers, queues, and decisions about many jobs at once.

use std::collections::BTreeSet;

use errand::{
    job::{
        Attempt, AttemptOutcome, Binding, Effect, Ending, ErrorKind, HeldReason, JobError, PinnedBy, Stop,
        WorkerId,
    },
    store::{By, Claim, Claimed, Finish, SharedStore, build},
};
use errand_testbed::factory;
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::{NOBODY, Place, block_on};
use crate::jobs::{claim, spec};

/// A job that counts and failed: as it were before its call, or so that nobody knows whether the call was made.
fn failed(store: &SharedStore, worker: WorkerId, outcome: AttemptOutcome) -> String {
    ended(store, worker, outcome, |error| Stop::Fail { error })
}

/// A job that counts and is held, because nobody knows whether its call was made.
fn held(store: &SharedStore, worker: WorkerId) -> String {
    let reason = HeldReason::UnknownOutcome;
    ended(store, worker, AttemptOutcome::Unknown, |error| Stop::Hold { reason, error })
}

fn ended(
    store: &SharedStore,
    worker: WorkerId,
    outcome: AttemptOutcome,
    stop: impl FnOnce(JobError) -> Stop,
) -> String {
    let spec = spec(&factory::job("u", "GITHUB_GET_REPO", &json!({"secret": "input"})));
    let binding = Binding {
        toolkit: "github".into(),
        version: "20251027_00".into(),
        pinned_by: PinnedBy::Latest,
        account: Some("ca_1".into()),
        effect: Effect::Once,
    };
    let claim = Claim { binding: Some(binding), ..claim(&spec) };
    block_on(async {
        store.beat(worker, "worker-one", std::time::Duration::from_secs(60)).await.unwrap();
        let claimed = store.claim(worker, std::slice::from_ref(&claim)).await.unwrap().remove(0);
        let Claimed::Running(receipt) = claimed else { panic!("{claimed:?}") };
        let error = JobError::new(ErrorKind::ToolFailed, "no");
        let attempt = Attempt {
            number: receipt.attempt,
            request_id: claim.request_id,
            outcome,
            http_status: None,
            log_id: None,
            version: Some("20251027_00".into()),
            error: Some(error.clone()),
            started_at: Timestamp::now(),
            finished_at: Timestamp::now(),
        };
        let ending: Ending = stop(error).into();
        let finish = Finish { id: spec.id, fence: receipt.fence, by: By::Holder, attempt, ending };
        store.finish(&[finish]).await.unwrap();
    });
    spec.id.to_string()
}

fn state_of(place: &Place, id: &str) -> Value {
    place.run(&["jobs", "show", id, "--json"]).succeeds().json()["state"].clone()
}

#[test]
fn a_retry_by_filters_shows_first_what_would_be_repeated() {
    let place = Place::with_database();
    let (store, worker) = (place.store(), WorkerId::new());
    let harmless = failed(&store, worker, AttemptOutcome::ToolFailed);
    let unclear = failed(&store, worker, AttemptOutcome::Unknown);
    block_on(store.close());
    let called_off = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &called_off]).succeeds();
    let retry = |more: &[&str]| place.run(&[&["jobs", "retry", "--tool", "GITHUB_GET_REPO"], more].concat());

    let preview = retry(&["--dry-run", "--json"]).succeeds().json();
    assert_eq!(
        (&preview["matching"], &preview["may_have_acted"], &preview["retried"]),
        (&json!(2), &json!(1), &json!(0))
    );
    let kind =
        |outcome: &str| json!({"state": "failed", "effect": "once", "last_outcome": outcome, "jobs": 1});
    assert_eq!(preview["kinds"], json!([kind("tool_failed"), kind("unknown")]));
    let text = retry(&["--dry-run"]).succeeds();
    assert!(text.out.starts_with("2 jobs match\n"), "{text:?}");
    assert!(text.out.contains("failed, effect once, last outcome unknown"), "{text:?}");
    assert!(text.out.contains("without --force, 1 job whose effect may be there already"), "{text:?}");
    assert_eq!((state_of(&place, &harmless), state_of(&place, &unclear)), (json!("failed"), json!("failed")));

    retry(&[]).fails(2, "add --yes");
    let done = retry(&["--yes"]).succeeds();
    assert_eq!(done.out, "1 job retried\n");
    assert!(done.err.contains("1 job is as before: its last call may have had its effect"), "{done:?}");
    assert_eq!(
        (state_of(&place, &harmless), state_of(&place, &unclear)),
        (json!("available"), json!("failed"))
    );
    assert_eq!(state_of(&place, &called_off), "cancelled", "without --state it is about failed jobs");
    assert_eq!(retry(&["--yes", "--force", "--json"]).succeeds().json()["retried"], 1);
    assert_eq!(state_of(&place, &unclear), "available");
    let none = retry(&["--yes"]).succeeds();
    assert!(
        none.err.contains("no failed job matches; `--state cancelled` retries cancelled ones"),
        "{none:?}"
    );
}

#[test]
fn held_jobs_whose_effect_may_be_there_are_released_by_filters_only_by_force() {
    let place = Place::with_database();
    let (store, worker) = (place.store(), WorkerId::new());
    let unclear = held(&store, worker);
    block_on(store.close());
    let release = |more: &[&str]| {
        place.run(&[&["jobs", "release", "--retry", "--reason", "unknown_outcome"], more].concat())
    };
    let unmeant = place.run(&["jobs", "release", "--retry", "--tool", "GITHUB_GET_REPO", "--yes"]).succeeds();
    assert_eq!(unmeant.out, "0 jobs released\n");
    for says in ["jobs that wait for a connection only", "--reason unknown_outcome", "--retry --force"] {
        assert!(unmeant.err.contains(says), "{unmeant:?}");
    }
    let preview = release(&["--dry-run"]).succeeds();
    assert!(!preview.err.contains("--reason"), "{preview:?}");
    let preview = preview.out;
    assert!(preview.contains("without --force, 1 job whose effect may be there already"), "{preview}");
    let done = release(&["--yes"]).succeeds();
    assert!(done.err.contains("1 job is as before: its last call may have had its effect"), "{done:?}");
    assert_eq!((&*done.out, state_of(&place, &unclear)), ("0 jobs released\n", json!("held")));
    assert_eq!(release(&["--yes", "--force"]).succeeds().out, "1 job released\n");
    assert_eq!(state_of(&place, &unclear), "available");
    place.run(&["jobs", "release", "--failed", "--force", "--unknown", "--yes"]).exits(2);
}

#[test]
fn decisions_take_the_filters_of_lists_and_refuse_what_makes_no_sense() {
    let place = Place::with_database();
    let ids = [place.enqueue(&["--tag", "batch=7"]), place.enqueue(&["--tag", "batch=7"])];
    let other = place.enqueue(&["--tag", "batch=8"]);
    let listed =
        place.run(&["jobs", "list", "--tag", "batch=7", "--state", "available", "--json"]).succeeds();
    let listed: BTreeSet<String> =
        listed.json_lines().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, ids.iter().cloned().collect());
    let ran = place.run(&["jobs", "cancel", "--tag", "batch=7", "--since", "1h", "--yes"]).succeeds();
    assert_eq!(ran.out, "2 jobs cancelled\n");
    assert_eq!(
        (state_of(&place, &ids[0]), state_of(&place, &other)),
        (json!("cancelled"), json!("available"))
    );
    assert_eq!(
        place.run(&["jobs", "cancel", "--tag", "batch=7", "--yes"]).succeeds().out,
        "0 jobs cancelled\n"
    );

    for spelling in [&["--owner", "user:u-alice"][..], &["--user", "u-alice"], &["--user-id", "u-alice"]] {
        let found =
            place.run(&[&["jobs", "list", "--tag", "batch=7", "--json"], spelling].concat()).succeeds();
        assert_eq!(found.json_lines().len(), 2, "{spelling:?}");
        place.run(&[&["jobs", "list", "--org", "o"], spelling].concat()).exits(2);
        place.run(&[&["erase", "--dry-run"], spelling].concat()).exits(1);
        place.run(&[&["enqueue", "X"], spelling].concat()).succeeds();
    }
    let usage = place.run(&["enqueue", "--help"]).succeeds().out;
    assert!(usage.contains("--owner <OWNER> <TOOL>") && !usage.contains("--user"), "{usage}");

    for command in ["cancel", "retry"] {
        place.run(&["jobs", command]).fails(2, "say which jobs");
    }
    place
        .run(&["jobs", "retry", "--state", "running", "--yes"])
        .fails(2, "jobs that are running cannot be retried");
    place.run(&["jobs", "release", "--retry", "--state", "failed", "--yes"]).fails(2, "cannot be released");
    place.run(&["jobs", "cancel", &other, "--tag", "batch=8"]).exits(2);
    place.run(&["jobs", "list", "--before", "yesterday"]).exits(2);
}

#[test]
fn a_scheduled_job_is_not_run_before_its_time_without_being_asked() {
    let place = Place::with_database();
    let id = place.enqueue(&["--run-at", "+1h"]);
    let refused = place.run(&["jobs", "retry", &id]).exits(1);
    assert!(
        refused.out.contains("it is scheduled for later") && refused.out.contains("--now"),
        "{refused:?}"
    );
    assert_eq!(state_of(&place, &id), "scheduled");
    assert_eq!(
        place.run(&["jobs", "retry", &id, "--now"]).succeeds().out,
        format!("{id} is available now\n")
    );
}

#[test]
fn a_list_that_is_not_at_its_end_says_how_to_go_on() {
    let place = Place::with_database();
    let mut ids: Vec<String> = (0..3).map(|_| place.enqueue(&[])).collect();
    ids.reverse();
    let first = place.run(&["jobs", "list", "--limit", "2", "--json"]).succeeds();
    let shown = |ran: &super::Ran| -> Vec<String> {
        ran.json_lines().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(shown(&first), ids[..2]);
    let cursor = first.err.trim().rsplit_once("--before ").unwrap().1.to_owned();
    let second = place.run(&["jobs", "list", "--limit", "2", "--before", &cursor, "--json"]).succeeds();
    assert_eq!((shown(&second), &*second.err), (ids[2..].to_vec(), ""));
    let all = place.run(&["jobs", "list", "--all", "--json"]).succeeds();
    assert_eq!((shown(&all), &*all.err), (ids, ""));
}

#[test]
fn workers_and_queues_and_counts_are_told() {
    let place = Place::with_database();
    let (store, worker) = (place.store(), WorkerId::new());
    let done = failed(&store, worker, AttemptOutcome::ToolFailed);
    block_on(store.close());
    place.enqueue(&["--queue", "bulk"]);

    let workers = place.run(&["workers", "--json"]).succeeds().json_lines();
    assert_eq!(
        (workers.len(), &workers[0]["name"], &workers[0]["alive"]),
        (1, &json!("worker-one"), &json!(true))
    );
    assert_eq!((&workers[0]["build"], &workers[0]["running"]), (&json!(build()), &json!(0)));
    assert!(place.run(&["workers"]).succeeds().out.contains("worker-one"));
    let shown = place.run(&["jobs", "show", &done]).succeeds().out;
    assert!(shown.contains(&format!("worker        worker-one ({worker})")), "{shown}");

    let queues = place.run(&["queues", "--json"]).succeeds().json_lines();
    let of = |name: &str| queues.iter().find(|lane| lane["queue"] == name).unwrap();
    assert_eq!((&of("bulk")["waiting"], &of("bulk")["finished_last_minute"]), (&json!(1), &json!(0)));
    assert_eq!((&of("default")["finished_last_hour"], &of("default")["messages"]), (&json!(1), &Value::Null));
    assert!(place.run(&["queues"]).succeeds().err.contains("DONE is counted among all 2 newest jobs"));

    let stats = |by: &str| place.run(&["jobs", "stats", "--by", by, "--json"]).succeeds().json();
    let owners = stats("owner");
    assert_eq!(owners["looked_at"], 2);
    let groups: BTreeSet<&str> =
        owners["groups"].as_array().unwrap().iter().map(|group| group["group"].as_str().unwrap()).collect();
    assert_eq!(groups, BTreeSet::from(["user:u", "user:u-alice"]));
    assert_eq!(
        stats("error")["groups"][1],
        json!({"group": "tool_failed", "jobs": 1, "states": {"failed": 1}})
    );
    assert_eq!(stats("version")["groups"][1]["group"], "20251027_00");
    assert!(
        place.run(&["jobs", "stats", "--by", "tool"]).succeeds().err.contains("looked at 2 jobs, back to")
    );
}

#[test]
fn a_job_that_is_not_in_the_database_may_still_be_on_its_way() {
    let place = Place::with_database();
    place
        .run(&["jobs", "show", NOBODY])
        .fails(1, "`errand queues` shows how many messages wait in the broker");
}

/// Columns of `jobs` that the JSON leaves out, each with the reason.
const LEFT_OUT: &[(&str, &str)] = &[
    ("asked_digest", "the same of the job as it was asked for"),
    ("digest", "derived from the envelope"),
    ("fence", "which claim it is; internal to workers"),
    ("ended_by", "recognizes a repeated write"),
    ("http_status", "part of the attempt, under `attempts`"),
    ("waits_until", "derived from `expires_at` and `max_age_ms`"),
    ("reply_due_at", "internal to the relay"),
    ("reply_refusals", "internal to the relay"),
    ("postponed_since", "internal to retries; `attempts` tells the postponements"),
    ("events", "counts its events, each of which tells it as `sequence`"),
];

/// Columns whose key in the JSON has another name.
const RENAMED: &[(&str, &str)] = &[
    ("owner_kind", "owner"),
    ("owner_id", "owner"),
    ("version", "asked_version"),
    ("connected_account_id", "asked_connected_account_id"),
    ("effect", "asked_effect"),
    ("toolkit_version", "version"),
    ("account", "connected_account_id"),
    ("frozen_effect", "effect"),
    ("published", "publications"),
    ("worker_id", "worker"),
    ("ran_by", "worker"),
    ("error_kind", "error"),
    ("error_message", "error"),
    ("error_code", "error"),
    ("error_slug", "error"),
    ("waits_for", "toolkit"),
    ("callback_url", "callback"),
];

#[test]
fn the_json_of_a_job_tells_every_column_or_there_is_a_reason() {
    let place = Place::with_database();
    let run_at = "2030-01-01T00:00:00Z";
    let id = place.enqueue(&[
        "--args",
        r#"{"b":1,"a":2}"#,
        "--tag",
        "team=x",
        "--priority",
        "3",
        "--run-at",
        "+1h",
        "--expires-at",
        run_at,
        "--max-attempts",
        "4",
        "--timeout",
        "5s",
        "--idempotency-key",
        "k",
        "--effect",
        "safe",
    ]);
    let whole = place.run(&["jobs", "show", &id, "--json", "--arguments"]).succeeds();
    let json = whole.json();
    let columns = block_on(async {
        let url = format!("sqlite://{}", place.folder.path().join("errand.db").display());
        let mut db = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("select name from pragma_table_info('jobs')").fetch_all(&mut db).await.unwrap()
    });
    assert!(columns.len() > 40);
    for column in columns.iter().map(|row| row.get::<String, _>(0)) {
        if LEFT_OUT.iter().any(|(left, _)| *left == column) {
            continue;
        }
        let key = RENAMED.iter().find(|(from, _)| *from == column).map_or(&*column, |(_, to)| *to);
        assert!(
            json.get(key).is_some(),
            "{column}: neither is `{key}` a key, nor is it in LEFT_OUT with a reason"
        );
    }
    let told = |key: &str| json[key].clone();
    assert_eq!(
        [told("tags"), told("priority"), told("max_attempts"), told("timeout_ms"), told("idempotency_key")],
        [json!({"team": "x"}), json!(3), json!(4), json!(5000), json!("k")]
    );
    assert_eq!(
        (told("asked_effect"), told("effect"), told("expires_at")),
        (json!("safe"), Value::Null, json!(run_at))
    );
    assert_eq!(told("due_at"), told("run_at"));
    assert!(whole.out.contains(r#""arguments":{"b":1,"a":2}"#), "verbatim: {whole:?}");

    let without = place.run(&["jobs", "show", &id, "--json"]).succeeds().json();
    assert!(without.get("arguments").is_none() && without.get("text").is_none());
    let text = place.run(&["jobs", "show", &id, "--arguments"]).succeeds().out;
    assert!(text.contains(r#"{"b":1,"a":2}"#) && text.contains("priority"), "{text}");
    assert!(!place.run(&["jobs", "show", &id]).succeeds().out.contains(r#"{"b":1,"a":2}"#));
}
