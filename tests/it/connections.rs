//! Jobs whose owner has to connect an account: the real binary on real services against the sandbox.

use errand_testbed::factory::{Envelope as _, read, send, spread};
use serde_json::Value;

use crate::{
    harness::{Harness, PATIENCE},
    support::wait::until,
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

#[tokio::test(flavor = "multi_thread")]
async fn held_jobs_go_on_by_themselves_when_the_account_is_active_again() {
    let harness = Harness::new("goon", "").await;
    let worker = harness.worker(&QUICK).await;
    harness.set_account("ca_bob", false).await;
    let first = read("u-bob");
    harness.publish(std::slice::from_ref(&first)).await;
    let shown = harness.job_in(first.id(), &["held"]).await;
    assert_eq!(shown["held_reason"], "connection");
    let message = shown["error"]["message"].as_str().unwrap();
    for part in [r#"`user_id` "u-bob""#, "`github`", "connect"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let further = spread(20, |_| read("u-bob"));
    harness.publish(&further).await;
    harness.counts("state = 'held' and held_reason = 'connection' and spent = 0", 21).await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 0, "nothing was sent");
    assert_eq!((&shown["toolkit"], &shown["version"]), (&"github".into(), &Value::Null), "{shown}");
    let held = |toolkit: &str| {
        format!("errand_jobs_finished_total{{queue=\"default\",toolkit=\"{toolkit}\",outcome=\"held\"}}")
    };
    worker.metric_reaches(&held("github"), 21.0).await;
    assert!(worker.metric(&held("none")).await < 1.0);

    // Another owner is not kept waiting by any of this.
    let other = read("u-alice");
    harness.publish(std::slice::from_ref(&other)).await;
    harness.job_in(other.id(), &["succeeded"]).await;

    harness.set_account("ca_bob", true).await;
    harness.counts("state = 'succeeded' and spent = 1", 22).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.effects), (22, 22), "{ledger:?}");
    worker.metric_reaches("errand_connection_released_jobs_total", 21.0).await;
    until("nothing is awaited any more", PATIENCE, async || {
        (harness.text("select count(*)::text from awaited").await? == "0").then_some(())
    })
    .await;
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
    harness.counts("held_reason = 'connection' and account is not null", 1).await;
    let further = spread(100, |_| read("u-alice"));
    harness.publish(&further).await;
    harness.counts("state = 'held' and spent = 0", 101).await;
    let looks = "errand_connection_lookups_total{result=\"active\"}";
    worker.metric_reaches(looks, 4.0).await;
    // Each time that the account is found to be active, few jobs try it.
    let calls = harness.sandbox.ledger_summary().calls;
    let looks = worker.metric(looks).await;
    assert!(calls as f64 <= 5.0 * looks, "{calls} calls of 101 jobs after {looks} looks");

    harness.heal().await;
    harness.counts("state = 'succeeded' and spent = 1", 101).await;
    assert_eq!(harness.sandbox.ledger_summary().effects, 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_chosen_account_was_deleted_goes_on_with_the_next_one() {
    let harness = Harness::new("deleted", "").await;
    let mut settings = QUICK;
    settings[5] = ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "60");
    let _worker = harness.worker(&settings).await;
    let first = read("u-bob");
    harness.publish(std::slice::from_ref(&first)).await;
    harness.job_in(first.id(), &["succeeded"]).await;
    harness.delete_account("ca_bob").await;

    let second = read("u-bob");
    harness.publish(std::slice::from_ref(&second)).await;
    let shown = harness.job_in(second.id(), &["held", "failed"]).await;
    assert_eq!((&shown["state"], &shown["held_reason"]), (&"held".into(), &"connection".into()), "{shown}");
    harness.connect("u-bob", "ac_1").await;
    let shown = harness.job_in(second.id(), &["succeeded", "failed"]).await;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_ne!(shown["connected_account_id"], "ca_bob");
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
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(6_000);
    let aged = read("u-nobody").with("max_age_ms", 6_000);
    let expiring = read("u-nobody").with("expires_at", soon.to_string());
    let patient = read("u-nobody");
    harness.publish(&[aged.clone(), expiring.clone(), patient.clone()]).await;
    for job in [&aged, &expiring] {
        let shown = harness.job_in(job.id(), &["failed"]).await;
        let error = &shown["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`max_age_ms`") || message.contains("`expires_at`"), "{message}");
        if error["kind"] != "expired" {
            assert_eq!(error["kind"], "needs_connection");
            assert!(message.contains(r#"`user_id` "u-nobody""#) && message.contains("`github`"), "{message}");
        }
    }
    assert_eq!(harness.show(patient.id())["state"], "held");
    worker.metric_reaches("errand_connection_expired_jobs_total", 1.0).await;
    worker.metrics().await.matches("errand_connection_lookups_total{").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_releases_by_owner_and_toolkit() {
    let harness = Harness::new("bulk", "").await;
    let _worker = harness.worker(&[]).await;
    let jobs: Vec<Value> =
        ["u-nobody", "u-new", "u-new"].map(read).into_iter().chain([send("u-new")]).collect();
    harness.publish(&jobs).await;
    harness.counts("state = 'held'", 4).await;
    let release = |args: &[&str]| {
        let ran = harness.errand(&[&["jobs", "release", "--retry"], args].concat());
        (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
    };
    let (status, counted) = release(&["--owner", "user:u-new", "--dry-run"]);
    assert!(status == Some(0) && counted.starts_with("3 jobs match\n"), "{counted}");
    harness.connect("u-new", "ac_1").await;
    let released = release(&["--owner", "user:u-new", "--toolkit", "github", "--yes"]);
    assert_eq!(released, (Some(0), "2 jobs released\n".to_owned()));
    harness.counts("state = 'succeeded' and owner_id = 'u-new' and toolkit = 'github'", 2).await;
    assert_eq!(harness.count("state = 'held'").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_that_waited_for_one_account_run_exactly_once() {
    let harness = Harness::new("thousand", "").await;
    let _workers = tokio::join!(harness.worker(&QUICK), harness.worker(&QUICK));
    let jobs = spread(1000, |_| send("u-new"));
    harness.publish(&jobs).await;
    harness.counts("state = 'held'", 1000).await;
    assert_eq!(
        harness.text("select count(*)::text from awaited").await.as_deref(),
        Some("1"),
        "one connection"
    );
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
    harness.connect("u-new", "ac_gmail").await;
    harness.counts("state = 'succeeded' and spent = 1", 1000).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (1000, 0), "{ledger:?}");
}
