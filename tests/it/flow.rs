//! The whole flow with the real binary on RabbitMQ and PostgreSQL: what an app publishes, what the
//! tool API sees, and what is recorded.

use std::collections::BTreeSet;

use errand_testbed::factory::{Envelope as _, browse, create, id, post, read, send, spread, update};
use lapin::{BasicProperties, types::FieldTable};
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, python},
    support::wait::until,
};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_foreign_client_end_with_result_log_id_version_and_account() {
    let harness = Harness::new("foreign", "").await;
    let _worker = harness.worker(&[]).await;
    let jobs = spread(20, |_| read("u-alice"));
    let asked = json!({"url": harness.vhost.amqp_url, "jobs": jobs, "replies": true});
    let replies = python("foreign_client.py", asked).await;
    let replies = replies.as_array().unwrap();

    assert_eq!(replies.len(), jobs.len());
    for reply in replies {
        let job = &reply["job"];
        assert_eq!(reply["correlation_id"], format!("order-{}", job["id"].as_str().unwrap()));
        assert_eq!(job["state"], "succeeded");
        assert_eq!(job["result"]["full_name"], "o/r");
    }
    for job in &jobs {
        let shown = harness.show(job.id());
        assert_eq!(shown["state"], "succeeded");
        assert_eq!(shown["version"], "20251027_00");
        assert_eq!(shown["pinned_by"], "env");
        assert_eq!(shown["toolkit"], "github");
        assert_eq!(shown["connected_account_id"], "ca_alice_new");
        assert_eq!(shown["result"]["full_name"], "o/r");
        assert_eq!(shown["attempts"][0]["log_id"], shown["log_id"]);
        assert!(shown["log_id"].as_str().unwrap().starts_with("log_"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_published_three_times_runs_once() {
    let harness = Harness::new("thrice", "").await;
    let worker = harness.worker(&[]).await;
    let jobs = spread(30, send);
    for _ in 0..3 {
        harness.publish(&jobs).await;
    }
    harness.settled(30).await;
    until("all deliveries are taken", PATIENCE, async || {
        let metrics = worker.metrics().await;
        metrics.contains("errand_duplicate_deliveries_total{queue=\"default\"} 60").then_some(())
    })
    .await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (30, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_owner_or_body_is_rejected_and_changes_nothing() {
    let harness = Harness::new("conflict", "").await;
    let _worker = harness.worker(&[]).await;
    let one = id();
    harness.publish(&[read("u-alice").named(&one)]).await;
    let before = harness.job_in(&one, &["succeeded"]).await;
    let other_owner = read("u-bob").named(&one);
    let other_body = read("u-alice").named(&one).with("arguments", json!({"owner": "o", "repo": "else"}));
    harness.publish(&[other_owner, other_body]).await;
    until("two rejected messages", PATIENCE, async || {
        (harness.text("select count(*)::text from rejected").await? == "2").then_some(())
    })
    .await;
    assert_eq!(harness.show(&one), before);
    let listed = String::from_utf8(harness.errand(&["rejected", "list"]).stdout).unwrap();
    assert!(listed.contains("owner_conflict") && listed.contains("body_conflict"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_job_is_kept_whole_and_can_be_requeued() {
    let harness = Harness::new("rejected", "").await;
    let _worker = harness.worker(&[]).await;
    let headers = FieldTable::default();
    let nameless = browse("u-alice").nameless();
    let bodies: Vec<Vec<u8>> = vec![
        b"\xff\xfe not json \x00".to_vec(),
        br#"{"user_id":"u","tool":"T","id":"0190b0a0-0000-7000-8000-000000000001","toll":1}"#.to_vec(),
        br#"{"tool":"T","id":"0190b0a0-0000-7000-8000-000000000002"}"#.to_vec(),
        serde_json::to_vec(&nameless).unwrap(),
    ];
    harness.publish_raw(&bodies, BasicProperties::default().with_headers(headers)).await;
    let listed = until("four rejected messages", PATIENCE, async || {
        let output = harness.errand(&["rejected", "list", "--json"]);
        let rows: Vec<Value> = String::from_utf8(output.stdout)
            .ok()?
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        (rows.len() == 4).then_some(rows)
    })
    .await;
    let reasons: BTreeSet<&str> = listed.iter().filter_map(|row| row["reason"].as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["bad_owner", "malformed", "no_id"]));

    let broken = listed.iter().find(|row| row["size"] == bodies[0].len()).unwrap()["id"].as_str().unwrap();
    let output = harness.errand(&["rejected", "show", broken, "--body"]);
    assert!(
        output.stdout.windows(bodies[0].len()).any(|part| part == bodies[0]),
        "the body is kept byte for byte"
    );
    assert!(!harness.errand(&["rejected", "requeue", broken]).status.success(), "it is still not a job");

    let nameless = listed.iter().find(|row| row["reason"] == "no_id").unwrap()["id"].as_str().unwrap();
    assert!(harness.errand(&["rejected", "requeue", nameless]).status.success());
    harness.settled(1).await;
    assert_eq!(harness.text("select state from jobs").await.as_deref(), Some("succeeded"));
    assert_eq!(harness.sandbox.ledger_summary().effects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_may_not_run_fail_with_an_error_that_says_what_to_change() {
    let harness = Harness::new("refused", "").await;
    let worker_rules = [("ERRAND__TOOLKITS__SLACK__OWNED_BY", "org")];
    let _worker = harness.worker(&worker_rules).await;
    let with = |field: &str, value: &str| read("u-alice").with(field, value);
    let cases = [
        (with("text", "please"), "failed", "invalid_job", "arguments"),
        (with("user_id", "default"), "failed", "owner_refused", "user_id"),
        (post("u-alice"), "failed", "wrong_owner_kind", "org_id"),
        (with("tool", "NOTION_SEARCH"), "failed", "unpinned", "errand pins set"),
        (with("version", "latest"), "failed", "unpinned", "version"),
        (with("tool", "GITHUB_NOPE"), "failed", "unknown_tool", "GITHUB_NOPE"),
        (with("version", "20200101_00"), "failed", "unknown_tool", "20200101_00"),
        (with("connected_account_id", "ca_bob"), "failed", "account_not_found", "ca_bob"),
        (with("connected_account_id", "ca_missing"), "failed", "account_not_found", "ca_missing"),
        (with("expires_at", "2020-01-01T00:00:00Z"), "failed", "expired", "expires_at"),
        (with("user_id", "u-nobody"), "held", "needs_connection", "u-nobody"),
        (with("user_id", "u-exp"), "held", "needs_reconnection", "u-exp"),
    ];
    let jobs: Vec<Value> = cases.iter().map(|(job, ..)| job.clone()).collect();
    harness.publish(&jobs).await;
    harness.settled(cases.len() as u64).await;
    for (job, state, kind, hint) in &cases {
        let shown = harness.show(job.id());
        assert_eq!((&shown["state"], &shown["error"]["kind"]), (&json!(state), &json!(kind)), "{job}");
        let message = shown["error"]["message"].as_str().unwrap();
        assert!(message.contains(hint), "{kind}: {message}");
    }
    assert_eq!(harness.sandbox.ledger_summary().effects, 0, "none of them reached a tool");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_moment_is_retried_and_throttling_spends_no_attempt() {
    let faults = r#"
        [[fault]]
        kind = "provider_failure"
        tool = "LINEAR_UPDATE_ISSUE"
        provider_status = 503
        first = 2
        [[fault]]
        kind = "throttle"
        tool = "GITHUB_GET_REPO"
        form = "org"
        retry_after = "0.1"
        first = 3
    "#;
    let harness = Harness::new("retry", faults).await;
    let _worker = harness.worker(&[]).await;
    let (flaky, throttled, hopeless) = (id(), id(), id());
    let once = read("u-alice").named(&throttled).with("max_attempts", 1);
    let twice = update("user-1").named(&hopeless).with("max_attempts", 2);
    harness.publish(&[update("user-1").named(&flaky), once, twice]).await;

    let flaky = harness.job_in(&flaky, &["succeeded"]).await;
    let outcomes: Vec<&str> =
        flaky["attempts"].as_array().unwrap().iter().filter_map(|a| a["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["tool_failed", "tool_failed", "succeeded"]);
    let ids: BTreeSet<&str> =
        flaky["attempts"].as_array().unwrap().iter().filter_map(|a| a["request_id"].as_str()).collect();
    assert_eq!(ids.len(), 3, "each attempt has a request ID of its own");

    let throttled = harness.job_in(&throttled, &["succeeded", "failed"]).await;
    assert_eq!(
        throttled["state"], "succeeded",
        "a budget of one attempt survives three refusals: {throttled}"
    );
    let times = |attempt: &Value| attempt["times"].as_u64().unwrap();
    let attempts = throttled["attempts"].as_array().unwrap();
    assert_eq!(
        attempts.iter().map(times).collect::<Vec<_>>(),
        [3, 1],
        "postponements in a row are one record"
    );

    let hopeless = harness.job_in(&hopeless, &["succeeded", "failed"]).await;
    assert_eq!((&hopeless["state"], &hopeless["error"]["kind"]), (&json!("failed"), &json!("tool_failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_known_for_days_before_its_time_came_bears_throttling() {
    let faults = "[[fault]]\nkind = \"throttle\"\ntool = \"GITHUB_GET_REPO\"\nform = \"org\"\nretry_after = \"0.1\"\nfirst = 2\n";
    let harness = Harness::new("patient", faults).await;
    let _worker = harness.worker(&[]).await;
    let one = id();
    let in_a_while = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    harness.publish(&[read("u-alice").named(&one).with("run_at", in_a_while.to_string())]).await;
    harness.job_in(&one, &["scheduled"]).await;
    harness.execute("update jobs set created_at = created_at - interval '3 days', due_at = now()").await;
    let shown = harness.job_in(&one, &["succeeded", "failed"]).await;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    let attempts = shown["attempts"].as_array().unwrap().iter();
    let outcomes: Vec<_> = attempts.map(|attempt| (&attempt["outcome"], &attempt["times"])).collect();
    assert_eq!(outcomes, [(&json!("throttled"), &json!(2)), (&json!("succeeded"), &json!(1))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_of_a_call_that_counts_is_held_until_the_operator_decides() {
    let faults = r#"
        [[fault]]
        kind = "reset"
        tool = "GMAIL_SEND_EMAIL"
        after_effect = true
        first = 1
        [[fault]]
        kind = "status"
        tool = "SLACK_SEND_MESSAGE"
        status = 502
        body = "html"
        [[fault]]
        kind = "hang"
        tool = "LINEAR_CREATE_ISSUE"
        after_effect = true
    "#;
    let harness = Harness::new("unknown", faults).await;
    let _worker = harness.worker(&[]).await;
    let (reset, status, hang, unwanted) = (id(), id(), id(), id());
    harness
        .publish(&[
            send("user-1").named(&reset),
            post("org-1").named(&status),
            post("org-2").named(&unwanted),
            create("user-1").named(&hang).with("timeout_ms", 3_000),
        ])
        .await;
    for job in [&reset, &status, &hang, &unwanted] {
        let shown = harness.job_in(job, &["held"]).await;
        assert_eq!(shown["held_reason"], "unknown_outcome");
        assert_eq!(shown["attempts"][0]["outcome"], "unknown");
        assert!(shown["attempts"][0]["request_id"].is_string());
    }
    let release =
        |job: &str, how: &str| assert!(harness.errand(&["jobs", "release", job, how]).status.success());
    release(&status, "--failed");
    release(&hang, "--succeeded");
    assert_eq!(harness.show(&status)["error"]["kind"], "marked_failed");
    assert_eq!(harness.show(&hang)["state"], "succeeded");
    assert_eq!(harness.sandbox.job_effects(&reset), 1, "nothing was repeated without being asked to");
    release(&reset, "--retry");
    let again = harness.job_in(&reset, &["succeeded"]).await;
    assert_eq!(again["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(harness.sandbox.job_effects(&reset), 2, "the operator asked for the second one");

    // One that is cancelled may have had its effect as well.
    assert!(harness.errand(&["jobs", "cancel", &unwanted]).status.success());
    let refused = harness.errand(&["jobs", "retry", &unwanted]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stdout).contains("add --force"), "{refused:?}");
    assert!(harness.errand(&["jobs", "retry", "--force", &unwanted]).status.success());
    let again = harness.job_in(&unwanted, &["held"]).await;
    assert_eq!(again["attempts"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_later_wait_in_the_store_and_can_be_cancelled() {
    let harness = Harness::new("later", "").await;
    let _worker = harness.worker(&[]).await;
    let at = |secs: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(secs)).to_string();
    let (soon, never) = (id(), id());
    let first = read("u-alice").named(&soon).with("run_at", at(2));
    let second = read("u-alice").named(&never).with("run_at", at(3600));
    harness.publish(&[first.clone(), second]).await;
    harness.job_in(&never, &["scheduled"]).await;
    assert!(harness.errand(&["jobs", "cancel", &never]).status.success());
    assert_eq!(harness.show(&never)["state"], "cancelled");
    let shown = harness.job_in(&soon, &["succeeded"]).await;
    let started = shown["attempts"][0]["started_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let run_at = first["run_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(started >= run_at, "{started} is before {run_at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_set_at_run_time_decides_the_next_jobs_and_is_recorded() {
    let harness = Harness::new("pins", "").await;
    let _worker = harness.worker(&[]).await;
    let set = |args: &[&str]| assert!(harness.errand(args).status.success());
    set(&["pins", "set", "github", "20250905_00", "--owner", "user:u-bob"]);
    let shown = until("the pin takes effect", PATIENCE, async || {
        let job = read("u-bob");
        harness.publish(std::slice::from_ref(&job)).await;
        let shown = harness.job_in(job.id(), &["succeeded"]).await;
        (shown["pinned_by"] == "owner").then_some(shown)
    })
    .await;
    assert_eq!(shown["version"], "20250905_00");
    let asked = read("u-bob").with("version", "20251027_00");
    harness.publish(std::slice::from_ref(&asked)).await;
    let shown = harness.job_in(asked.id(), &["succeeded"]).await;
    assert_eq!((&shown["version"], &shown["pinned_by"]), (&json!("20251027_00"), &json!("job")));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_and_arguments_survive_verbatim() {
    let harness = Harness::new("verbatim", "").await;
    let _worker = harness.worker(&[]).await;
    let one = id();
    let body = format!(
        r#"{{"id":"{one}","user_id":"user-1","tool":"NOTION_UPDATE_PAGE","version":"20251118_00","arguments":
           {{"page_id":"p","properties":{{"z":12345678901234567890123,"a":"\u0000 \ud83d\ude00","y":1.10}}}}}}"#
    );
    harness.publish_raw(&[body.into_bytes()], BasicProperties::default()).await;
    harness.job_in(&one, &["succeeded"]).await;
    let stored = harness.text(&format!("select arguments::text from jobs where id = '{one}'")).await.unwrap();
    assert!(stored.contains("12345678901234567890123") && stored.contains(r"\u0000"), "{stored}");
    assert!(stored.find("\"z\"") < stored.find("\"a\""), "the order of keys is kept: {stored}");
    let shown = String::from_utf8(harness.errand(&["jobs", "show", &one, "--json"]).stdout).unwrap();
    assert!(shown.contains("\"result\":{"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waited_for_a_connection_runs_with_the_new_one_and_keeps_its_version() {
    let harness = Harness::new("reconnect", "").await;
    let _worker = harness.worker(&[("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "1")]).await;
    let one = id();
    // The account is chosen and then expires before the call, which only the call can find out.
    let warm = read("u-bob");
    harness.publish(std::slice::from_ref(&warm)).await;
    harness.job_in(warm.id(), &["succeeded"]).await;
    harness.set_account("ca_bob", false).await;
    harness.publish(&[read("u-bob").named(&one)]).await;
    let held = harness.job_in(&one, &["held"]).await;
    assert_eq!(held["held_reason"], "connection");

    harness.connect("u-bob", "ac_1").await;
    assert!(harness.errand(&["pins", "set", "github", "20250905_00"]).status.success());
    assert!(harness.errand(&["jobs", "release", &one, "--retry"]).status.success());
    let done = harness.job_in(&one, &["succeeded"]).await;
    assert_ne!(done["connected_account_id"], "ca_bob");
    if !held["version"].is_null() {
        assert_eq!(done["version"], held["version"], "a pin is decided once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_messages_without_an_id_run_once_and_are_held_when_they_come_again() {
    let harness = Harness::new("unidentified", "").await;
    let accepting = [("ERRAND__WORKER__ACCEPT_UNIDENTIFIED", "true")];
    let mut worker = harness.worker(&accepting).await;
    let nameless = browse("user-1").nameless();
    harness.publish(std::slice::from_ref(&nameless)).await;
    harness.settled(1).await;
    assert!(worker.stop().await.success());

    // Another consumer takes the message and goes away without settling it.
    harness.publish(&[nameless]).await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    until("the message is there", PATIENCE, async || {
        channel.basic_get("errand.default".into(), lapin::options::BasicGetOptions::default()).await.unwrap()
    })
    .await;
    connection.close(200, "gone".into()).await.unwrap();

    let _worker = harness.worker(&accepting).await;
    harness.settled(2).await;
    let reasons =
        "select string_agg(state || coalesce(':' || held_reason, ''), ',' order by state) from jobs";
    assert_eq!(harness.text(reasons).await.as_deref(), Some("held:unidentified,succeeded"));
    assert_eq!(harness.sandbox.ledger_summary().effects, 1);
}
