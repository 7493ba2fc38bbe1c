//! Jobs whose owner has to connect an account: the real binary on real services against the sandbox.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::{Harness, PATIENCE, Process},
    support::{http, wait::until},
};

/// Connections are looked for early and often.
const QUICK: [(&str, &str); 6] = [
    ("ERRAND__CONNECTIONS__ENABLED", "true"),
    ("ERRAND__CONNECTIONS__POLL_MS", "50"),
    ("ERRAND__CONNECTIONS__BATCH", "50"),
    ("ERRAND__CONNECTIONS__FIRST_MS", "200"),
    ("ERRAND__CONNECTIONS__MAX_MS", "1000"),
    ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "1"),
];

fn id() -> String {
    Uuid::now_v7().to_string()
}

fn read(user: &str) -> Value {
    json!({"id": id(), "user_id": user, "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": "r"}})
}

fn send(user: &str) -> Value {
    json!({"id": id(), "user_id": user, "tool": "GMAIL_SEND_EMAIL",
           "arguments": {"recipient_email": "a@example.com", "subject": "s", "body": "b"}})
}

fn id_of(job: &Value) -> &str {
    job["id"].as_str().unwrap()
}

async fn count(harness: &Harness, condition: &str) -> u64 {
    let sql = format!("select count(*)::text from jobs where {condition}");
    harness.text(&sql).await.unwrap().parse().unwrap()
}

async fn become_so(harness: &Harness, jobs: u64, condition: &str) {
    until(&format!("{jobs} jobs with {condition}"), PATIENCE, async || {
        (count(harness, condition).await == jobs).then_some(())
    })
    .await;
}

/// The value of a series, 0 while it does not exist.
async fn value(worker: &Process, series: &str) -> u64 {
    let metrics = worker.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn held_jobs_go_on_by_themselves_when_the_account_is_active_again() {
    let harness = Harness::new("goon", "").await;
    let worker = harness.worker(&QUICK).await;
    harness.set_account("ca_bob", false).await;
    let first = read("u-bob");
    harness.publish(std::slice::from_ref(&first)).await;
    let shown = harness.job_in(id_of(&first), &["held"]).await;
    assert_eq!(shown["held_reason"], "connection");
    let message = shown["error"]["message"].as_str().unwrap();
    for part in ["`user_id` u-bob", "`github`", "connect"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let further: Vec<Value> = (0..20).map(|_| read("u-bob")).collect();
    harness.publish(&further).await;
    become_so(&harness, 21, "state = 'held' and held_reason = 'connection' and spent = 0").await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 0, "nothing was sent");

    // Another owner is not kept waiting by any of this.
    let other = read("u-alice");
    harness.publish(std::slice::from_ref(&other)).await;
    harness.job_in(id_of(&other), &["succeeded"]).await;

    harness.set_account("ca_bob", true).await;
    become_so(&harness, 22, "state = 'succeeded' and spent = 1").await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.effects), (22, 22), "{ledger:?}");
    assert!(value(&worker, "errand_connection_released_jobs_total").await >= 21);
    assert_eq!(harness.text("select count(*)::text from awaited").await.as_deref(), Some("0"));
    assert!(!worker.log().contains("u-bob"), "owners' IDs are in no log");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_listed_as_active_and_refused_by_the_provider_costs_few_calls() {
    let faults = "[[fault]]\nkind = \"provider_failure\"\nuser = \"u-alice\"\nprovider_status = 401\n\
                  message = \"oauth: invalid_grant\"\n";
    let harness = Harness::new("revoked", faults).await;
    let worker = harness.worker(&QUICK).await;
    let first = read("u-alice");
    harness.publish(std::slice::from_ref(&first)).await;
    become_so(&harness, 1, "held_reason = 'connection' and account is not null").await;
    let further: Vec<Value> = (0..100).map(|_| read("u-alice")).collect();
    harness.publish(&further).await;
    become_so(&harness, 101, "state = 'held' and spent = 0").await;
    until("the account was tried several times", PATIENCE, async || {
        (value(&worker, "errand_connection_lookups_total{result=\"active\"}").await >= 4).then_some(())
    })
    .await;
    let calls = harness.sandbox.ledger_summary().calls;
    assert!(calls <= 20, "{calls} calls for 101 jobs");

    let url = format!("{}/_sandbox/faults", harness.sandbox.base_url());
    http::client().delete(url).send().await.unwrap().error_for_status().unwrap();
    become_so(&harness, 101, "state = 'succeeded' and spent = 1").await;
    assert_eq!(harness.sandbox.ledger_summary().effects, 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_a_connection_longer_than_it_may_fails_and_says_so() {
    jobs_give_up_waiting("tooold", &QUICK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_up_waiting_also_where_nobody_looks_for_connections() {
    let settings = [("ERRAND__CONNECTIONS__ENABLED", "false"), ("ERRAND__CONNECTIONS__POLL_MS", "50")];
    let looks = jobs_give_up_waiting("unlooked", &settings).await;
    assert_eq!(looks, 0, "the tool API is not asked");
}

/// Returns how often the tool API was asked for connections.
async fn jobs_give_up_waiting(hint: &str, settings: &[(&str, &str)]) -> usize {
    let harness = Harness::new(hint, "").await;
    let worker = harness.worker(settings).await;
    let (mut aged, mut expiring, patient) = (read("u-nobody"), read("u-nobody"), read("u-nobody"));
    aged["max_age_ms"] = json!(1500);
    expiring["expires_at"] =
        json!((jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1500)).to_string());
    harness.publish(&[aged.clone(), expiring.clone(), patient.clone()]).await;
    for job in [&aged, &expiring] {
        let shown = harness.job_in(id_of(job), &["failed"]).await;
        let error = &shown["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`max_age_ms`") || message.contains("`expires_at`"), "{message}");
        if error["kind"] != "expired" {
            assert_eq!(error["kind"], "needs_connection");
            assert!(message.contains("`user_id` u-nobody") && message.contains("`github`"), "{message}");
        }
    }
    assert_eq!(harness.show(id_of(&patient))["state"], "held");
    assert!(value(&worker, "errand_connection_expired_jobs_total").await >= 1);
    worker.metrics().await.matches("errand_connection_lookups_total{").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_releases_by_owner_and_toolkit() {
    let harness = Harness::new("bulk", "").await;
    let _worker = harness.worker(&[]).await;
    let jobs: Vec<Value> =
        ["u-nobody", "u-new", "u-new"].map(read).into_iter().chain([send("u-new")]).collect();
    harness.publish(&jobs).await;
    become_so(&harness, 4, "state = 'held'").await;
    let release = |args: &[&str]| {
        let ran = harness.errand(&[&["jobs", "release", "--retry"], args].concat());
        (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
    };
    let counted = release(&["--owner", "user:u-new", "--dry-run"]);
    assert_eq!(counted, (Some(0), "3 jobs match\n".to_owned()));
    harness.connect("u-new", "ac_1").await;
    let released = release(&["--owner", "user:u-new", "--toolkit", "github", "--yes"]);
    assert_eq!(released, (Some(0), "2 jobs released\n".to_owned()));
    become_so(&harness, 2, "state = 'succeeded' and owner_id = 'u-new' and toolkit = 'github'").await;
    assert_eq!(count(&harness, "state = 'held'").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_that_waited_for_one_account_run_exactly_once() {
    let harness = Harness::new("thousand", "").await;
    let _workers = tokio::join!(harness.worker(&QUICK), harness.worker(&QUICK));
    let jobs: Vec<Value> = (0..1000).map(|_| send("u-new")).collect();
    harness.publish(&jobs).await;
    become_so(&harness, 1000, "state = 'held'").await;
    assert_eq!(
        harness.text("select count(*)::text from awaited").await.as_deref(),
        Some("1"),
        "one connection"
    );
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
    harness.connect("u-new", "ac_gmail").await;
    become_so(&harness, 1000, "state = 'succeeded' and spent = 1").await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (1000, 0), "{ledger:?}");
}
