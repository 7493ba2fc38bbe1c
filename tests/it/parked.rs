//! What a worker does not do with messages that it cannot run: keep them from workers that can.

use errand::queue::Queue as _;
use errand_testbed::factory::{Envelope as _, create, send, spread};
use lapin::BasicProperties;
use reqwest::Method;
use serde_json::Value;

use crate::{harness::Harness, queue_contract::rabbit};

/// Calls of one tool never end by themselves; those of the other take a while.
const LONG: &str = r#"
    [[fault]]
    kind = "hang"
    tool = "GMAIL_SEND_EMAIL"
    after_effect = false

    [[fault]]
    kind = "latency"
    tool = "LINEAR_CREATE_ISSUE"
    fixed_ms = 100
"#;

const IN_FLIGHT: &str = "errand_jobs_in_flight{queue=\"default\"}";

fn with_room(calls: &'static str) -> [(&'static str, &'static str); 2] {
    [("ERRAND__QUEUES__DEFAULT__CONCURRENCY", calls), ("ERRAND__WORKER__DRAIN_SECS", "1")]
}

fn long(jobs: usize) -> Vec<Value> {
    spread(jobs, send).into_iter().map(|job| job.with("timeout_ms", 600_000)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_busy_worker_cannot_run_go_to_one_that_can() {
    let harness = Harness::new("parked", LONG).await;
    let busy = harness.worker(&with_room("10")).await;
    harness.publish(&long(20)).await;
    harness.counts("state = 'running'", 10).await;
    let idle = harness.worker(&with_room("10")).await;
    // None of the calls ends, so nothing else could let the others run.
    harness.counts("state = 'running'", 20).await;
    idle.metric_reaches(IN_FLIGHT, 10.0).await;
    assert_eq!(idle.metric(IN_FLIGHT).await, 10.0);
    // A worker that is busy is healthy.
    busy.becomes_ready(true).await;
    assert_eq!(busy.metric("errand_consuming{queue=\"default\"}").await, 1.0);
}

/// How often the broker has delivered messages of the lane again.
async fn redelivered(harness: &Harness) -> u64 {
    let path = format!("queues/{}/errand.default", harness.vhost.encoded_name());
    let queue = harness.vhost.manage(Method::GET, &path, None).await.unwrap();
    queue["message_stats"]["redeliver"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_one_slot_free_gives_back_few_messages_and_runs_all() {
    let harness = Harness::new("one-slot", LONG).await;
    let worker = harness.worker(&with_room("40")).await;
    harness.publish(&long(39)).await;
    harness.counts("state = 'running'", 39).await;
    let short = spread(60, create);
    harness.publish(&short).await;
    harness.counts("state = 'succeeded'", 60).await;
    let again = redelivered(&harness).await;
    assert!(again < 60, "{again} messages were delivered again");
    assert_eq!(worker.metric("errand_broker_reconnects_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_an_id_are_not_held_for_having_waited() {
    let harness = Harness::new("nameless", LONG).await;
    let accept = ("ERRAND__WORKER__ACCEPT_UNIDENTIFIED", "true");
    let [room, drain] = with_room("5");
    // As many as there is room for, and behind them what is sent ahead.
    let mut jobs = [long(5), spread(20, create)].concat();
    for job in &mut jobs[5..] {
        job.as_object_mut().unwrap().remove("id");
    }
    let bodies: Vec<_> = jobs.iter().map(|job| job.to_string().into_bytes()).collect();
    rabbit(&harness.vhost.amqp_url).check().await.unwrap();
    harness.publish_raw(&bodies, BasicProperties::default().with_delivery_mode(2)).await;
    let _busy = harness.worker(&[room, drain, accept]).await;
    harness.counts("state = 'running' and tool = 'GMAIL_SEND_EMAIL'", 5).await;
    harness.counts("state = 'available' and tool = 'LINEAR_CREATE_ISSUE'", 5).await;
    let _idle = harness.worker(&[room, drain, accept]).await;
    harness.counts("state = 'succeeded'", 20).await;
    assert_eq!(harness.count("state = 'held'").await, 0);
}
