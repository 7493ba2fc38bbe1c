//! A tool API that does not answer: few calls, no spent attempts, and no harm to those it does answer. The
//! real binary on real services against the sandbox.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::{Harness, PATIENCE, Process},
    support::{Proxy, http, wait::until},
};

const USERS: usize = 20;

fn read(user: usize, attempts: u32) -> Value {
    json!({"id": Uuid::now_v7().to_string(), "user_id": format!("user-{user}"), "tool": "GITHUB_GET_REPO",
           "arguments": {"owner": "o", "repo": "r"}, "max_attempts": attempts})
}

fn send(user: usize, attempts: u32) -> Value {
    json!({"id": Uuid::now_v7().to_string(), "user_id": format!("user-{user}"), "tool": "GMAIL_SEND_EMAIL",
           "arguments": {"recipient_email": "a@example.com", "subject": "s", "body": "b"},
           "max_attempts": attempts})
}

async fn value(worker: &Process, series: &str) -> u64 {
    let metrics = worker.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

async fn count(harness: &Harness, condition: &str) -> u64 {
    let sql = format!("select count(*)::text from jobs where {condition}");
    harness.text(&sql).await.unwrap().parse().unwrap()
}

async fn all_succeed(harness: &Harness, jobs: u64) {
    until(&format!("{jobs} jobs have succeeded"), PATIENCE, async || {
        assert_eq!(count(harness, "state in ('failed', 'held')").await, 0, "no job gives up");
        (count(harness, "state = 'succeeded'").await == jobs).then_some(())
    })
    .await;
}

async fn heal(harness: &Harness) {
    let url = format!("{}/_sandbox/faults", harness.sandbox.base_url());
    http::client().delete(url).send().await.unwrap().error_for_status().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_fails_every_call_is_called_a_few_times_and_every_job_succeeds_afterwards() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 503\nbody = \"html\"\n";
    let harness = Harness::new("gone", faults).await;
    let worker = harness.worker(&[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20")]).await;
    let jobs: Vec<Value> = (0..200).map(|n| read(n % USERS + 1, 6)).collect();
    harness.publish(&jobs).await;
    until("calls of all owners fell to a probe", PATIENCE, async || {
        (value(&worker, "errand_circuit_breakers_open{scope=\"api\"}").await == 1).then_some(())
    })
    .await;
    until("every job was postponed several times", PATIENCE, async || {
        (value(&worker, "errand_circuit_breaker_snoozes_total{scope=\"api\"}").await > 800).then_some(())
    })
    .await;
    let calls = harness.sandbox.ledger_summary().calls;
    assert!(calls <= 120, "{calls} calls, where 200 jobs have 1200 attempts");
    heal(&harness).await;
    all_succeed(&harness, 200).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects, ledger.jobs_repeated), (200, 0), "{ledger:?}");
    for scope in ["api", "owner_toolkit"] {
        assert_eq!(
            value(&worker, &format!("errand_circuit_breakers_open{{scope=\"{scope}\"}}")).await,
            0,
            "{scope}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_count_wait_for_an_api_that_is_gone_and_run_once() {
    let harness = Harness::new("unreached", "").await;
    let api = Proxy::start(harness.sandbox.base_url().rsplit(':').next().unwrap().parse().unwrap()).await;
    let url = api.url(&harness.sandbox.base_url());
    let worker = harness
        .worker(&[
            ("COMPOSIO_BASE_URL", url.as_str()),
            ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20"),
            ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "600"),
        ])
        .await;
    // Tools and accounts are known when the API goes away.
    let warm: Vec<Value> = (1..=USERS).map(|user| send(user, 6)).collect();
    harness.publish(&warm).await;
    all_succeed(&harness, 20).await;
    api.cut().await;
    let jobs: Vec<Value> = (0..200).map(|n| send(n % USERS + 1, 6)).collect();
    harness.publish(&jobs).await;
    until("every job was postponed several times", PATIENCE, async || {
        (value(&worker, "errand_circuit_breaker_snoozes_total{scope=\"api\"}").await > 800).then_some(())
    })
    .await;
    let spent: u64 = harness
        .text("select sum(spent)::text from jobs where state <> 'succeeded'")
        .await
        .unwrap()
        .parse()
        .unwrap();
    assert!(spent <= 120, "{spent} calls, where 200 jobs have 1200 attempts");
    api.heal().await;
    all_succeed(&harness, 220).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (220, 0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_calls_fail_keeps_nobody_else_waiting() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 500\nuser = \"user-1\"\n";
    let harness = Harness::new("badtenant", faults).await;
    let worker = harness.worker(&[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20")]).await;
    let bad: Vec<Value> = (0..100).map(|_| read(1, 12)).collect();
    harness.publish(&bad).await;
    until("the owner's calls fell to a probe", PATIENCE, async || {
        (value(&worker, "errand_circuit_breakers_open{scope=\"owner_toolkit\"}").await == 1).then_some(())
    })
    .await;
    let good: Vec<Value> = (0..300).map(|n| read(n % (USERS - 1) + 2, 1)).collect();
    let started = Instant::now();
    harness.publish(&good).await;
    until("all jobs of the others have succeeded", PATIENCE, async || {
        (count(&harness, "state = 'succeeded'").await == 300).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(count(&harness, "state = 'succeeded' and attempt > 1").await, 0, "none of them was postponed");
    assert_eq!(value(&worker, "errand_circuit_breaker_snoozes_total{scope=\"api\"}").await, 0);
    let calls = harness.sandbox.ledger_summary().calls - 300;
    assert!(calls <= 120, "{calls} calls of the one whose calls fail");
    heal(&harness).await;
    all_succeed(&harness, 400).await;
    assert_eq!(harness.sandbox.ledger_summary().effects, 400);
}
