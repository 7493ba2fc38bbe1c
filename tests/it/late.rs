//! Work that is late is seen to be late wherever it waits: the gauge grows with it, a real Prometheus that scrapes the
//! worker raises the shipped alerts, whose waits are shortened, and `errand jobs show` says why.

use std::time::{Duration, Instant};

use errand_testbed::factory::{Envelope as _, read, send, spread};
use lapin::BasicProperties;
use serde_json::Value;

use crate::{
    alerts::Watch,
    harness::{Harness, PATIENCE, Process, port, run},
    support::{self, wait::until},
};

/// How often a worker reads its gauges, with what a busy machine may add.
const GAUGES_EVERY: f64 = 7.0;

fn age(lane: &str) -> String {
    format!("errand_oldest_due_age_seconds{{queue=\"{lane}\"}}")
}

/// Waits until a job, which is late since some time between these, is seen to be, neither more nor less than it is.
async fn is_seen(worker: &Process, lane: &str, [earliest, latest]: [Instant; 2]) {
    worker.metric_reaches(&age(lane), 7.0).await;
    let least = latest.elapsed().as_secs_f64() - 2.0 * GAUGES_EVERY;
    let told = worker.metric(&age(lane)).await;
    let most = earliest.elapsed().as_secs_f64() + 1.0;
    assert!((least..=most).contains(&told), "{told} s instead of {least} s to {most} s");
}

/// When this began and when it ended.
async fn during(published: impl Future<Output = ()>) -> [Instant; 2] {
    let begun = Instant::now();
    published.await;
    [begun, Instant::now()]
}

/// Waits until `errand jobs show` says this, and returns all that it says.
async fn shown(harness: &Harness, env: &[(String, String)], id: &str, text: &str) -> String {
    let mut seen = String::new();
    for _ in 0..40 {
        let output = run(&["jobs", "show", id], env);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        seen = String::from_utf8(output.stdout).unwrap();
        if seen.contains(text) {
            assert!(harness.show(id)["first_due_at"].is_string());
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("`{text}` is not in\n{seen}");
}

fn enqueue(env: &[(String, String)], lane: &str) -> String {
    let args =
        ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", r#"{"owner":"o","repo":"r"}"#];
    let output = run(&[&args[..], &["--queue", lane]].concat(), env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value));
}

/// Jobs of one owner with IDs that do not say when they were made, in messages that do not either.
fn flood(jobs: u32) -> Vec<Value> {
    (0..jobs).map(|n| send("user-1").named(&format!("{n:08x}-3c2b-4a5e-9d1f-8a2b3c4d5e6f"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_behind_a_flood_of_another_owner_is_late() {
    let slow = "[[fault]]\nkind = \"latency\"\ntool = \"GMAIL_SEND_EMAIL\"\nfixed_ms = 250\n";
    let harness = Harness::new("flood", slow).await;
    let room = [("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "10")];
    let (worker, other) = (harness.worker(&room).await, harness.worker(&room).await);
    let watch = Watch::of(&worker).await;
    let published = during(harness.publish(&flood(4_000))).await;
    // The store knows nothing of what waits, and each worker takes half of it.
    is_seen(&worker, "default", published).await;
    is_seen(&other, "default", published).await;
    let job = enqueue(&harness.env(), "default");
    watch.raises("ErrandWorkIsLate", "default").await;
    assert!(!watch.has_raised("ErrandLaneStandsStill", "default").await, "it is worked off");
    let shown = shown(&harness, &harness.env(), &job, "messages wait there, with").await;
    assert!(shown.contains("1 time; again at ") && shown.contains(" s ago"), "{shown}");
    // What came without any time counts with the time that it has waited, as far as that was seen.
    let waits = worker.metric("errand_queue_wait_seconds_sum{queue=\"default\"}").await;
    let jobs = worker.metric("errand_queue_wait_seconds_count{queue=\"default\"}").await;
    assert!(waits / jobs > 1.0, "{waits} s of {jobs} jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_messages_that_say_when_they_were_published_is_late_by_that() {
    let slow = "[[fault]]\nkind = \"latency\"\ntool = \"GMAIL_SEND_EMAIL\"\nfixed_ms = 250\n";
    let harness = Harness::new("dated", slow).await;
    let worker = harness.worker(&[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "10")]).await;
    let then = u64::try_from(jiff::Timestamp::now().as_second() - 100).unwrap();
    let bodies: Vec<_> = flood(600).iter().map(|job| job.to_string().into_bytes()).collect();
    let properties = BasicProperties::default().with_delivery_mode(2).with_timestamp(then);
    harness.publish_raw(&bodies, properties).await;
    worker.metric_reaches(&age("default"), 98.0).await;
    assert!(worker.metric(&age("default")).await < 200.0);
    let told =
        harness.text("select extract(epoch from created_at - first_due_at)::integer::text from jobs").await;
    assert!((98..200).contains(&told.unwrap().parse::<i64>().unwrap()), "the store knows it as well");
    let id = harness.text("select id::text from jobs order by created_at limit 1").await.unwrap();
    assert!(harness.show(&id)["first_due_at"].as_str() < harness.show(&id)["created_at"].as_str());
    let told = harness.errand(&["jobs", "show", &id]).stdout;
    assert!(String::from_utf8(told).unwrap().contains("\nenqueued "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_broker_is_dead_is_late() {
    let harness = Harness::new("dead-broker", "").await;
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let url = broker.url(&harness.vhost.amqp_url).unwrap();
    let mut env = harness.env();
    set(&mut env, "AMQP_URL", url.clone());
    let worker = harness.worker(&[("AMQP_URL", &url)]).await;
    let watch = Watch::of(&worker).await;
    broker.cut().await.unwrap();
    let earliest = Instant::now();
    let job = enqueue(&env, "default");
    is_seen(&worker, "default", [earliest, Instant::now()]).await;
    watch.raises("ErrandWorkIsLate", "default").await;
    shown(&harness, &env, &job, "the broker, which cannot be asked: ").await;
    broker.heal().await.unwrap();
    harness.job_in(&job, &["succeeded"]).await;
    until("it is over", PATIENCE, async || (worker.metric(&age("default")).await == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_nobody_consumes_is_late() {
    let harness = Harness::new("no-consumer", "").await;
    let worker = harness.worker(&[("ERRAND__WORKER__QUEUES", "default")]).await;
    let watch = Watch::of(&worker).await;
    let body = read("u-alice").to_string().into_bytes();
    let published = during(harness.publish_to("bulk", &[body], BasicProperties::default())).await;
    // The store does not know the job yet.
    is_seen(&worker, "bulk", published).await;
    worker.metric_reaches("errand_queue_depth_messages{queue=\"bulk\"}", 1.0).await;
    watch.raises("ErrandWorkIsLate", "bulk").await;
    watch.raises("ErrandLaneStandsStill", "bulk").await;
    let job = enqueue(&harness.env(), "bulk");
    let shown =
        shown(&harness, &harness.env(), &job, "consumes the lane bulk: 2 messages wait there, and nobody")
            .await;
    assert!(shown.contains("\npublished "), "{shown}");
    assert!(harness.show(&job)["due_at"].is_string());
    assert_eq!(worker.metric(&age("default")).await, 0.0);
    let _other = harness.worker(&[("ERRAND__WORKER__QUEUES", "bulk")]).await;
    harness.all_ran_once(2).await;
    until("it is over", PATIENCE, async || (worker.metric(&age("bulk")).await == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_tool_api_is_away_is_late() {
    let harness = Harness::new("away", "").await;
    let api = support::start_proxy(port(&harness.sandbox.base_url())).await;
    let url = api.url(&harness.sandbox.base_url()).unwrap();
    api.cut().await.unwrap();
    let worker = harness.worker(&[("COMPOSIO_BASE_URL", &url), ("ERRAND__RETRY__INITIAL_MS", "500")]).await;
    let watch = Watch::of(&worker).await;
    let earliest = Instant::now();
    let job = enqueue(&harness.env(), "default");
    is_seen(&worker, "default", [earliest, Instant::now()]).await;
    watch.raises("ErrandWorkIsLate", "default").await;
    let shown = shown(&harness, &harness.env(), &job, "the tool API, which did not answer").await;
    assert!(shown.contains("retryable") && shown.contains(" s ago"), "{shown}");
    api.heal().await.unwrap();
    harness.job_in(&job, &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_only_the_store_knows_are_shown_up_to_a_bound() {
    let harness = Harness::new("lanes", "").await;
    let worker = harness.worker(&[]).await;
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    let jobs: Vec<_> = spread(70, read).into_iter().map(|job| job.with("run_at", &*later)).collect();
    harness.publish(&jobs).await;
    harness.counts("state = 'scheduled'", 70).await;
    let renamed = "update jobs set queue = 'lane-' || n from (select id as it, row_number() over () as n from jobs) r \
                   where id = it";
    harness.execute(renamed).await;
    worker.metric_reaches("errand_jobs{queue=\"other\",state=\"scheduled\"}", 20.0).await;
    until("each job is in one of them", PATIENCE, async || {
        (worker.metric_sum("errand_jobs").await == 70.0).then_some(())
    })
    .await;
    assert_eq!(worker.metric(&age("lane-7")).await, 0.0, "they are not due");
}
