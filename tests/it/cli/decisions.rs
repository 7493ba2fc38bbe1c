//! What people decide about jobs, pins and rejected messages.

use errand::{
    job::{EnvelopeReason, ErrorKind, HeldReason, JobError, State, Stop, WorkerId},
    store::{Claim, Claimed, Rejected, SharedStore},
};
use errand_testbed::factory;
use insta::assert_snapshot;
use serde_json::json;
use uuid::Uuid;

use super::{NOBODY, Place, block_on, with_sandbox};
use crate::jobs::{claim, spec};

const NO_SUCH_JOB: &str = "there is no such job in the database; a message that no worker has taken yet waits in the broker \
                           (`errand queues`)";

#[test]
fn decisions_say_what_became_of_each_job() {
    let place = Place::with_database();
    let id = place.enqueue(&[]);
    let ran = place.run(&["jobs", "cancel", &id, NOBODY]).exits(1);
    assert_eq!(ran.out, format!("{id} is cancelled now\n{NOBODY} unchanged: {NO_SUCH_JOB}\n"));
    let ran = place.run(&["jobs", "cancel", &id, "--json"]).exits(1);
    assert_eq!(
        ran.json(),
        json!({"id": id, "done": false, "state": "cancelled",
               "message": "unchanged: it is cancelled already"})
    );
    assert_eq!(place.run(&["jobs", "retry", &id]).succeeds().out, format!("{id} is available now\n"));
    let refused = place.run(&["jobs", "release", &id, "--retry"]).exits(1);
    assert_eq!(refused.out, format!("{id} unchanged: it is available, and only held jobs can be released\n"));
    place.run(&["jobs", "show", NOBODY]).fails(1, "there is no job");
}

#[test]
fn the_history_of_a_job_says_who_decided() {
    let place = Place::with_database().set("LOGNAME", "operator");
    let id = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &id, "--by", "alice"]).succeeds();
    place.run(&["jobs", "retry", &id]).succeeds();
    let shown = place.run(&["jobs", "show", &id, "--json"]).succeeds().json();
    let decided = |n: usize| (shown["history"][n]["kind"].as_str(), shown["history"][n]["by"].as_str());
    assert_eq!(decided(0), (Some("cancelled"), Some("alice")));
    assert_eq!(decided(1), (Some("retried"), Some("operator")));
    let table = place.run(&["jobs", "show", &id]).succeeds().out;
    assert!(table.contains("cancelled") && table.contains("alice"), "{table}");
    let refused = place.run(&["jobs", "cancel", &id, "--by", "errand: worker"]).exits(2);
    assert!(refused.err.contains("stands for errand itself"), "{refused:?}");
}

#[test]
fn a_held_job_is_shown_with_its_reason_and_can_be_released() {
    let place = Place::with_database();
    let id = hold(&place.store(), "X");
    let list = place.run(&["jobs", "list", "--state", "held"]).succeeds();
    assert!(list.out.contains("held (connection)"), "{list:?}");
    let shown = place.run(&["jobs", "show", &id]).succeeds();
    assert!(
        shown.out.contains("needs_connection: connect it \u{fffd}[31m first"),
        "control characters are masked: {shown:?}"
    );
    assert_eq!(place.run(&["jobs", "show", &id, "--json"]).succeeds().json()["held_reason"], "connection");
    let retried = place.run(&["jobs", "retry", &id]).exits(1);
    assert!(
        retried.out.contains("is held and cannot be retried; `errand jobs release` lets it go"),
        "{retried:?}"
    );
    for ending in ["--succeeded", "--failed"] {
        let refused = place.run(&["jobs", "release", &id, ending]).exits(1);
        assert!(
            refused.out.contains("unchanged: jobs that are held for connection have not run"),
            "{refused:?}"
        );
    }
    let ran = place.run(&["jobs", "release", &id, "--retry"]).succeeds();
    assert_eq!(ran.out, format!("{id} is available now\n"));
}

#[test]
fn held_jobs_are_released_by_reason_owner_and_toolkit() {
    let place = Place::with_database();
    let ids = [hold(&place.store(), "X"), hold(&place.store(), "Y")];
    let by = |args: &[&str]| place.run(&[&["jobs", "release"], args].concat());
    let preview = by(&["--retry", "--owner", "user:u", "--dry-run"]).succeeds().out;
    assert_eq!(preview, "2 jobs match\n        2  held, effect not known yet, no call ended\n");
    for nothing in [["--owner", "org:u"], ["--toolkit", "github"], ["--reason", "credentials"]] {
        assert_eq!(by(&[&["--retry", "--dry-run"][..], &nothing].concat()).succeeds().out, "0 jobs match\n");
    }
    by(&["--retry", "--owner", "user:u"]).fails(2, "add --yes");
    by(&["--failed", "--owner", "user:u", "--yes"]).fails(2, "have not run");
    for wrong in
        [&["--retry", "--yes"][..], &["--retry", &ids[0], "--owner", "user:u"], &["--owner", "user:u"]]
    {
        by(wrong).exits(2);
    }
    let ran = by(&["--retry", "--owner", "user:u", "--reason", "connection", "--yes", "--json"]).succeeds();
    let done = ran.json();
    assert_eq!((&done["matching"], &done["released"], &done["left"]), (&json!(2), &json!(2), &json!({})));
    let kinds = json!([{"state": "held", "effect": null, "last_outcome": null, "jobs": 2}]);
    assert_eq!(done["kinds"], kinds);
    for id in &ids {
        assert_eq!(place.run(&["jobs", "show", id, "--json"]).succeeds().json()["state"], "available");
    }
}

/// A job that admission parked, with an error that tries to steer the terminal.
fn hold(store: &SharedStore, tool: &str) -> String {
    let spec = spec(&factory::job("u", tool, &json!({})));
    let id = spec.id.to_string();
    let error = JobError::new(ErrorKind::NeedsConnection, "connect it\n\u{1b}[31m first");
    let stop = Some(Stop::Hold { reason: HeldReason::Connection, error });
    let claim = Claim { stop, ..claim(&spec) };
    let worker = WorkerId::new();
    block_on(async {
        store.beat(worker, "test", std::time::Duration::from_secs(60)).await.unwrap();
        let claimed = store.claim(worker, &[claim]).await.unwrap();
        assert!(matches!(claimed[0], Claimed::Ended { state: State::Held, .. }), "{claimed:?}");
        store.close().await;
    });
    id
}

#[test]
fn pins_of_all_places_are_listed_in_the_order_in_which_they_win() {
    let place = Place::with_database().set("COMPOSIO_TOOLKIT_VERSION_GITHUB", "20250101_00");
    place.file("errand.toml", "[toolkit_versions]\ngithub = \"20250202_00\"\n");
    let set = place.run(&["pins", "set", "github", "20250303_00", "--force"]).succeeds();
    assert_eq!(set.out, "github is pinned to 20250303_00 for everybody\n");
    place.run(&["pins", "set", "github", "20250404_00", "--owner", "org:org-7", "--force"]).succeeds();
    assert_snapshot!(place.run(&["pins", "list"]).succeeds().out, @"
    TOOLKIT  VERSION      FOR        PINNED BY
    github   20250404_00  org:org-7  owner
    github   20250303_00  everybody  global
    github   20250202_00  everybody  config
    github   20250101_00  everybody  env
    ");
    let first = &place.run(&["pins", "list", "--json"]).succeeds().json_lines()[0];
    assert_eq!(first["owner"], json!({"kind": "org", "id": "org-7"}));
    place.run(&["pins", "unset", "github", "--owner", "org:org-7"]).succeeds();
    place
        .run(&["pins", "unset", "github", "--owner", "org:org-7"])
        .fails(1, "github was not pinned for org:org-7");
}

#[test]
fn a_pin_is_looked_up_before_it_is_set_and_what_goes_away_is_said() {
    let (place, _sandbox) = with_sandbox();
    let set = |version: &str| place.run(&["pins", "set", "github", version]);
    set("19990101_00").fails(1, "github has no version 19990101_00, but 20251027_00, 20250905_00");
    place.run(&["pins", "set", "nosuch", "20251027_00"]).fails(1, "knows no toolkit nosuch");
    assert_eq!(place.run(&["pins", "list", "--json"]).succeeds().out, "");
    assert_eq!(set("20251027_00").succeeds().err, "");
    let old = "warning: version 20250905_00 of github is deprecated from 2026-05-27 on, and gone from 2026-08-27 on (lifecycle)\n";
    assert_eq!(set("20250905_00").succeeds().err, old);
    place.run(&["pins", "set", "slack", "19990101_00", "--force"]).succeeds();
    let list = place.run(&["pins", "list"]).succeeds();
    let unknown = "warning: the tool API knows no version 19990101_00 of slack\n";
    assert_eq!(list.err, format!("{old}{unknown}"));

    let away = place.set("COMPOSIO_BASE_URL", "http://127.0.0.1:1");
    assert_eq!(away.run(&["pins", "list"]).succeeds().out.lines().count(), 3);
    away.run(&["pins", "set", "github", "20251027_00"]).fails(4, "--force sets it all the same");
    let without_key = Place::with_database();
    without_key.run(&["pins", "set", "github", "20251027_00"]).fails(3, "set COMPOSIO_API_KEY");
}

#[test]
fn a_rejected_message_can_be_read_and_requeued_once_it_is_a_job() {
    let place = Place::with_database();
    let fit = reject(&place.store(), br#"{"user_id":"u","tool":"X"}"#, EnvelopeReason::NoId);
    let unfit = reject(&place.store(), b"{\"nonsense\":1", EnvelopeReason::Malformed);

    let list = place.run(&["rejected", "list"]).succeeds();
    assert!(list.out.contains("no_id") && list.out.contains("malformed"), "{list:?}");
    assert_eq!(place.run(&["rejected", "list", "--json"]).succeeds().json_lines().len(), 2);
    let shown = place.run(&["rejected", "show", &unfit]).succeeds();
    assert!(shown.out.contains("13 bytes") && !shown.out.contains("nonsense"), "{shown:?}");
    assert_eq!(place.run(&["rejected", "show", &unfit, "--body"]).succeeds().out, "{\"nonsense\":1");
    place.run(&["rejected", "show", NOBODY]).fails(1, "there is no rejected message");

    let ran = place.run(&["rejected", "requeue", &fit, &unfit]).exits(1);
    assert!(ran.out.starts_with(&format!("{fit} is job {fit} now\n{unfit} stays rejected: ")), "{ran:?}");
    assert_eq!(place.run(&["jobs", "show", &fit, "--json"]).succeeds().json()["state"], "available");
    let left = place.run(&["rejected", "list", "--json"]).succeeds().json_lines();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], json!(unfit));
    let again = place.run(&["rejected", "requeue", &fit]).exits(1);
    assert!(again.out.contains("was requeued before"), "{again:?}");
}

#[test]
fn rejected_messages_are_found_by_what_they_say_and_run_with_a_corrected_body() {
    let place = Place::with_database();
    let named =
        br#"{"id":"0190b0a0-0000-7000-8000-000000000001","org_id":"org-7","tool":"X","priority":"high"}"#;
    let wrong = reject(&place.store(), named, EnvelopeReason::BadValue);
    let garbage = reject(&place.store(), &[b'['; 400], EnvelopeReason::Malformed);
    let list = |filter: &[&str]| -> Vec<String> {
        let ran = place.run(&[&["rejected", "list", "--json"], filter].concat()).succeeds();
        ran.json_lines().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    };
    for filter in [
        &["--owner", "org:org-7"][..],
        &["--job", "0190b0a0-0000-7000-8000-000000000001"],
        &["--job", &wrong],
        &["--reason", "bad_value", "--queue", "default", "--since", "1h"],
    ] {
        assert_eq!(list(filter), std::slice::from_ref(&wrong), "{filter:?}");
    }
    for filter in
        [&["--owner", "user:org-7"][..], &["--job", NOBODY], &["--queue", "bulk"], &["--until", "1h"]]
    {
        assert!(list(filter).is_empty(), "{filter:?}");
    }
    assert_eq!(list(&["--limit", "1"]), [garbage]);
    let text = place.run(&["rejected", "list"]).succeeds().out;
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");

    let corrected = place.file("corrected.json", r#"{"org_id":"org-7","tool":"X","priority":9}"#);
    let requeue = ["rejected", "requeue", &wrong, "--body", &corrected, "--by", "alice"];
    place.run(&[&requeue[..], &[NOBODY]].concat()).fails(2, "the body of one message");
    assert_eq!(place.run(&requeue).succeeds().out, format!("{wrong} is job {wrong} now\n"));
    assert_eq!(place.run(&["jobs", "show", &wrong, "--json"]).succeeds().json()["priority"], 9);
    assert_eq!(place.run(&["rejected", "show", &wrong, "--body"]).succeeds().out.as_bytes(), named);
    let kept = place.run(&["rejected", "show", &wrong, "--corrected"]).succeeds().out;
    assert_eq!(kept, std::fs::read_to_string(corrected).unwrap());
    assert_eq!(place.run(&["rejected", "show", &wrong, "--json"]).succeeds().json()["requeued_by"], "alice");
}

/// A message that is no job, as a worker would keep it.
pub(crate) fn rejected(id: Uuid, body: &[u8], reason: EnvelopeReason) -> Rejected {
    Rejected {
        id,
        queue: "default".parse().unwrap(),
        reason,
        message: "it is not a job".to_owned(),
        body: body.to_vec(),
        properties: "{}".to_owned(),
        job: None,
        asked: None,
    }
}

fn reject(store: &SharedStore, body: &[u8], reason: EnvelopeReason) -> String {
    let message = rejected(Uuid::now_v7(), body, reason);
    let id = message.id.to_string();
    block_on(async {
        store.reject(&[message]).await.unwrap();
        store.close().await;
    });
    id
}
