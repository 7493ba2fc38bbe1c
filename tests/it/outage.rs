//! A tool API that does not answer: few calls, no spent attempts, and no harm to those it does answer. The
//! real binary on real services against the sandbox.

use std::time::{Duration, Instant};

use errand_testbed::factory::{Envelope as _, read, send, spread};
use serde_json::Value;

use crate::{
    harness::{Harness, PATIENCE},
    support::{self, wait::until},
};

const USERS: usize = 20;

/// How often jobs of all owners may call what fails: some of each until that is known, and then one probe at a time.
fn few_since(begun: Instant) -> u64 {
    110 + 4 * begun.elapsed().as_secs()
}

async fn all_succeed(harness: &Harness, jobs: u64) {
    until(&format!("{jobs} jobs have succeeded"), PATIENCE, async || {
        assert_eq!(harness.count("state in ('failed', 'held')").await, 0, "no job gives up");
        (harness.count("state = 'succeeded'").await == jobs).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_fails_every_call_is_called_a_few_times_and_every_job_succeeds_afterwards() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 503\nbody = \"html\"\n";
    let harness = Harness::new("gone", faults).await;
    let worker = harness.worker(&[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20")]).await;
    let begun = Instant::now();
    harness.publish(&spread(200, |user| read(user).with("max_attempts", 6))).await;
    until("calls of all owners fell to a probe", PATIENCE, async || {
        (worker.metric("errand_circuit_breakers_open{scope=\"toolkit\"}").await == 1.0).then_some(())
    })
    .await;
    until("every job was postponed several times", PATIENCE, async || {
        (worker.metric("errand_circuit_breaker_snoozes_total{scope=\"toolkit\"}").await > 800.0).then_some(())
    })
    .await;
    let calls = harness.sandbox.ledger_summary().calls;
    assert!(calls <= few_since(begun), "{calls} calls, where 200 jobs have 1200 attempts");
    harness.heal().await;
    all_succeed(&harness, 200).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects, ledger.jobs_repeated), (200, 0), "{ledger:?}");
    for scope in ["toolkit", "owner_toolkit"] {
        let open = format!("errand_circuit_breakers_open{{scope=\"{scope}\"}}");
        until(&format!("no {open}"), PATIENCE, async || (worker.metric(&open).await == 0.0).then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_count_wait_for_an_api_that_is_gone_and_run_once() {
    let harness = Harness::new("unreached", "").await;
    let api =
        support::start_proxy(harness.sandbox.base_url().rsplit(':').next().unwrap().parse().unwrap()).await;
    let url = api.url(&harness.sandbox.base_url()).unwrap();
    let worker = harness
        .worker(&[
            ("COMPOSIO_BASE_URL", url.as_str()),
            ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20"),
            ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "600"),
        ])
        .await;
    // Tools and accounts are known when the API goes away.
    harness.publish(&spread(USERS, |user| send(user).with("max_attempts", 6))).await;
    all_succeed(&harness, 20).await;
    api.cut().await.unwrap();
    let begun = Instant::now();
    harness.publish(&spread(200, |user| send(user).with("max_attempts", 6))).await;
    until("every job was postponed several times", PATIENCE, async || {
        (worker.metric("errand_circuit_breaker_snoozes_total{scope=\"toolkit\"}").await > 800.0).then_some(())
    })
    .await;
    let spent: u64 = harness
        .text("select sum(spent)::text from jobs where state <> 'succeeded'")
        .await
        .unwrap()
        .parse()
        .unwrap();
    assert!(spent <= few_since(begun), "{spent} calls, where 200 jobs have 1200 attempts");
    api.heal().await.unwrap();
    all_succeed(&harness, 220).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (220, 0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_calls_fail_keeps_nobody_else_waiting() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 500\nuser = \"user-1\"\n";
    let harness = Harness::new("badtenant", faults).await;
    let worker = harness.worker(&[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20")]).await;
    let begun = Instant::now();
    harness.publish(&spread(100, |_| read("user-1").with("max_attempts", 12))).await;
    until("the owner's calls fell to a probe", PATIENCE, async || {
        (worker.metric("errand_circuit_breakers_open{scope=\"owner_toolkit\"}").await == 1.0).then_some(())
    })
    .await;
    let good: Vec<Value> =
        (0..300).map(|n| read(&format!("user-{}", n % (USERS - 1) + 2)).with("max_attempts", 1)).collect();
    let started = Instant::now();
    harness.publish(&good).await;
    until("all jobs of the others have succeeded", PATIENCE, async || {
        (harness.count("state = 'succeeded'").await == 300).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(90), "{:?}", started.elapsed());
    assert_eq!(harness.count("state = 'succeeded' and attempt > 1").await, 0, "none of them was postponed");
    assert_eq!(worker.metric("errand_circuit_breaker_snoozes_total{scope=\"toolkit\"}").await, 0.0);
    let calls = harness.sandbox.ledger_summary().calls - 300;
    assert!(calls <= few_since(begun), "{calls} calls of the one whose calls fail");
    harness.heal().await;
    all_succeed(&harness, 400).await;
    assert_eq!(harness.sandbox.ledger_summary().effects, 400);
}

/// Five jobs a moment whose timeouts are far too short, each of another owner, as fast as the others' calls are not.
#[tokio::test(flavor = "multi_thread")]
async fn impatient_jobs_of_many_owners_keep_nobody_else_waiting() {
    let harness = Harness::new("impatient", "[[fault]]\nkind = \"latency\"\nfixed_ms = 300\n").await;
    let worker = harness.worker(&[]).await;
    // Tools and accounts are known.
    harness.publish(&spread(USERS, |user| read(user).with("max_attempts", 1))).await;
    all_succeed(&harness, USERS as u64).await;
    let impatient = |n| read(&format!("user-{}", n % 5 + 1)).with("timeout_ms", 1).with("max_attempts", 1000);
    let patient = |n| read(&format!("user-{}", n % (USERS - 5) + 6)).with("max_attempts", 1);
    for round in 0..10 {
        harness.publish(&(0..5).map(impatient).collect::<Vec<_>>()).await;
        harness.publish(&(0..4).map(|n| patient(round * 4 + n)).collect::<Vec<_>>()).await;
    }
    until("the jobs of the others have succeeded", PATIENCE, async || {
        (harness.count("state = 'succeeded' and timeout_ms is null").await == 60).then_some(())
    })
    .await;
    assert_eq!(harness.count("timeout_ms is null and attempt > 1").await, 0, "none of them was postponed");
    assert_eq!(worker.metric("errand_circuit_breaker_snoozes_total{scope=\"toolkit\"}").await, 0.0);
}
