//! What a worker tells in its log, its readiness and its metrics when a service is away or a job fails: once, with cause
//! and host, and nothing of customers. The real binary on real services.

use std::time::{Duration, Instant};

use errand_testbed::factory::{Envelope as _, id, job, read, send, spread};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, Process, port, run, sandbox},
    support::{self, Proxy, postgres, rabbitmq, wait::until},
};

/// Within which readiness shows a fault, with what a busy machine may add.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

const AWAY: &str = "the tool API does not answer: jobs wait until it does, and errand goes on looking";
const BACK: &str = "the tool API answers again";
const REFUSED: &str = "the tool API does not accept errand's key";
const OPEN: &str = "errand_circuit_breakers_open{scope=\"api\"}";
const NEXT_LOOK: &str = "errand_tool_api_next_look_timestamp_seconds";

/// Lines of a level that an operator sees.
fn seen(worker: &Process) -> Vec<Value> {
    let log = worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["level"] != "DEBUG").collect()
}

async fn behind_proxy(harness: &Harness) -> (Proxy, Vec<(&'static str, String)>) {
    let api = support::start_proxy(port(&harness.sandbox.base_url())).await;
    let url = api.url(&harness.sandbox.base_url()).unwrap();
    (api, vec![("COMPOSIO_BASE_URL", url), ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "600".to_owned())])
}

/// The API goes away while jobs of twenty owners come, and comes back.
async fn is_told_once(harness: &Harness, api: &Proxy, worker: &Process, before: u64) {
    assert_eq!((worker.metric(OPEN).await, worker.metric(NEXT_LOOK).await), (0.0, 0.0));
    let warnings = || seen(worker).into_iter().filter(|line| line["level"] == "WARN").count();
    let warned = warnings();
    api.cut().await.unwrap();
    harness.publish(&spread(60, send)).await;
    worker.metric_reaches(OPEN, 1.0).await;
    worker.metric_reaches(NEXT_LOOK, 1.7e9).await;
    until("each job was postponed", PATIENCE, async || {
        (harness.count("state <> 'succeeded' and attempt > 1").await == 60).then_some(())
    })
    .await;
    assert_eq!(harness.count("state in ('failed', 'held')").await, 0);
    api.heal().await.unwrap();
    harness.counts("state = 'succeeded'", before + 60).await;
    until("it is over", PATIENCE, async || (worker.metric(OPEN).await == 0.0).then_some(())).await;
    until("no look is due", PATIENCE, async || (worker.metric(NEXT_LOOK).await == 0.0).then_some(())).await;
    let (away, back) = (worker.lines(AWAY), worker.lines(BACK));
    assert_eq!((away.len(), back.len()), (1, 1), "{}", worker.log());
    assert_eq!(away[0]["level"], "WARN");
    assert_eq!(away[0]["api"], format!("127.0.0.1:{}", api.port()));
    assert!(away[0]["error"].as_str().unwrap().contains("refused"), "{}", away[0]);
    assert!(away[0]["wait_ms"].is_u64() && back[0]["lasted_ms"].is_u64(), "{} {}", away[0], back[0]);
    assert_eq!(warnings() - warned, 1, "{}", worker.log());
    harness.all_ran_once(before + 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_api_that_is_away_is_told_once_when_nothing_is_remembered() {
    let harness = Harness::new("away-cold", "").await;
    let (api, settings) = behind_proxy(&harness).await;
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let worker = harness.worker(&settings).await;
    is_told_once(&harness, &api, &worker, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_api_that_is_away_is_told_once_when_all_is_remembered() {
    let harness = Harness::new("away-warm", "").await;
    let (api, settings) = behind_proxy(&harness).await;
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let worker = harness.worker(&settings).await;
    harness.publish(&spread(20, send)).await;
    harness.counts("state = 'succeeded'", 20).await;
    is_told_once(&harness, &api, &worker, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_api_that_is_away_at_the_start_is_told_without_any_job() {
    let harness = Harness::new("away-start", "").await;
    let (api, settings) = behind_proxy(&harness).await;
    api.cut().await.unwrap();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let worker = harness.worker(&settings).await;
    worker.logged(AWAY).await;
    worker.becomes_ready(true).await;
    api.heal().await.unwrap();
    worker.logged(BACK).await;
}

/// A worker with a key that the API does not accept, or only for look-ups.
async fn tells_of_its_key(key: &str, hint: &str, at_the_start: bool) {
    let harness = Harness::new(hint, "").await;
    let worker = harness.worker(&[("COMPOSIO_API_KEY", key)]).await;
    if at_the_start {
        worker.logged(REFUSED).await;
    }
    harness.publish(&spread(10, send)).await;
    harness.counts("held_reason = 'credentials'", 10).await;
    worker.metric_reaches("errand_api_key_refused", 1.0).await;
    // Said next, in this order.
    worker.logged(REFUSED).await;
    worker.becomes_ready(false).await;
    let told = worker.lines_like(REFUSED);
    assert_eq!((told.len(), &told[0]["level"]), (1, &json!("WARN")), "{}", worker.log());
    assert!(told[0]["http_status"].is_u64(), "{}", told[0]);

    let readiness = worker.readiness().await;
    assert_eq!((&readiness["ready"], &readiness["api_key"]), (&json!(false), &json!(false)), "{readiness}");
    let reason = readiness["reasons"]["api_key"].as_str().unwrap();
    assert!(reason.contains(&format!("127.0.0.1:{}", port(&harness.sandbox.base_url()))), "{reason}");
    let url = format!("http://{}/health/ready", worker.address().await);
    let health = run(&["health", "--url", &url], &harness.env());
    assert_eq!(health.status.code(), Some(1));
    assert!(String::from_utf8(health.stdout).unwrap().contains(reason));

    let held = until("a line for each job", PATIENCE, async || {
        Some(worker.lines("job held")).filter(|lines| lines.len() == 10)
    })
    .await;
    assert_eq!((&held[0]["kind"], &held[0]["reason"]), (&json!("credentials"), &json!("credentials")));
    assert!(!worker.log().contains(key));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_accepted_is_told_at_the_start_and_in_readiness() {
    tells_of_its_key("ak_test_expired", "bad-key", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_accepted_for_look_ups_only_is_told_when_a_call_is_refused() {
    tells_of_its_key("ak_test_readonly", "half-key", false).await;
}

/// The fields of the attempt's span in a line.
fn span(line: &Value) -> &Value {
    &line["spans"][0]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_job_that_fails_or_is_held_has_a_line_without_customers_data_and_no_other_has() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 400\nuser = \"user-2\"\n\n\
        [[fault]]\nkind = \"provider_failure\"\nprovider_status = 422\nmessage = \"secret words\"\nuser = \"user-3\"\n";
    let harness = Harness::new("lines", faults).await;
    let worker = harness.worker(&[]).await;
    let secret = json!({"recipient_email": "ann@example.com", "subject": "secret words", "body": "b"});
    let of = |owner: &str| job(owner, "GMAIL_SEND_EMAIL", &secret).with("max_attempts", 1);
    let cases = [
        (job("user-1", "NO_SUCH_TOOL", &secret), "job failed", "unknown_tool", "not_sent", false),
        (of("user-2"), "job failed", "refused", "refused", true),
        (of("user-3"), "job failed", "tool_failed", "tool_failed", true),
        (of("nobody-here"), "job held", "needs_connection", "not_sent", false),
        (
            of("user-1").with("connected_account_id", "ca_bob"),
            "job failed",
            "account_not_found",
            "not_sent",
            false,
        ),
    ];
    let good = send("user-1");
    harness.publish(&cases.clone().map(|case| case.0)).await;
    harness.publish(std::slice::from_ref(&good)).await;
    harness.job_in(good.id(), &["succeeded"]).await;
    for (envelope, message, kind, outcome, is_answered) in &cases {
        let shown = harness.job_in(envelope.id(), &["failed", "held"]).await;
        assert_eq!(shown["attempts"][0]["outcome"], *outcome, "{shown}");
        let line = until("its line", PATIENCE, async || {
            worker.lines(message).into_iter().find(|line| span(line)["job.id"] == envelope.id())
        })
        .await;
        assert_eq!((&line["level"], &line["outcome"]), (&json!("INFO"), &json!(outcome)), "{line}");
        assert!(kind.is_empty() || line["kind"] == *kind, "{line}");
        assert_eq!(line["kind"], shown["error"]["kind"]);
        assert_eq!(span(&line)["tool"], envelope["tool"]);
        assert_eq!(span(&line)["attempt.n"], 1);
        assert_eq!((line["http_status"].is_u64(), line["took_ms"].is_u64()), (*is_answered, true), "{line}");
        assert_eq!(line.get("log_id").unwrap_or(&Value::Null), &shown["log_id"], "{line}");
    }
    let of_the_good = |line: &Value| line.to_string().contains(good.id());
    assert!(!seen(&worker).iter().any(of_the_good), "{}", worker.log());
    assert_eq!(worker.lines_like("job ").len(), cases.len(), "{}", worker.log());
    for word in ["ann@example.com", "secret words", "nobody-here", "user-3"] {
        assert!(!worker.log().contains(word), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_is_told_with_its_ids_its_reason_and_its_text_and_without_its_body() {
    let harness = Harness::new("rejected-line", "").await;
    let worker = harness.worker(&[]).await;
    let job = read("user-1").with("tole", "secret words");
    harness.publish(std::slice::from_ref(&job)).await;
    harness.publish_raw(&[b"secret words".to_vec()], BasicProperties::default()).await;
    let lines = until("both are told", PATIENCE, async || {
        Some(worker.lines("message rejected and kept")).filter(|lines| lines.len() == 2)
    })
    .await;
    let [named, nameless] = &lines[..] else { unreachable!() };
    assert_eq!(
        (&named["job.id"], &named["reason"], &named["queue"]),
        (&json!(job.id()), &json!("malformed"), &json!("default")),
        "{named}"
    );
    assert!(named["error"].as_str().unwrap().contains("unknown field `tole`"), "{named}");
    assert!(named["rejected.id"].is_string() && named["bytes"].is_u64(), "{named}");
    assert_eq!(nameless.get("job.id"), None, "{nameless}");
    assert!(!worker.log().contains("secret words"));
}

/// Waits until the worker is not ready because of this service, and returns why and how long that took.
async fn unready_because_of(worker: &Process, service: &str) -> (String, Duration) {
    let begun = Instant::now();
    let why = until(&format!("{service} is not there"), PATIENCE, async || {
        let readiness = worker.readiness().await;
        let why = readiness["reasons"][service].as_str()?.to_owned();
        assert_eq!((&readiness["ready"], &readiness[service]), (&json!(false), &json!(false)), "{readiness}");
        Some(why)
    })
    .await;
    (why, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_within_seconds_that_the_store_is_silent_or_gone_and_why() {
    let server = support::start_postgres(postgres::Options::default()).await;
    let harness = Harness::of(
        server.database("ready").await.unwrap(),
        support::vhost("ready").await,
        sandbox("").await,
    );
    let worker = harness.worker(&[]).await;
    worker.becomes_ready(true).await;
    let readiness = worker.readiness().await;
    for key in ["store", "broker", "api_key", "migrations", "writing"] {
        assert_eq!(readiness[key], true, "{readiness}");
    }
    assert_eq!(readiness["reasons"], json!({}));

    server.pause().await.unwrap();
    let (why, took) = unready_because_of(&worker, "store").await;
    server.resume().await.unwrap();
    assert!(took < SEEN_WITHIN, "a store that says nothing: {took:?}");
    let host = format!("127.0.0.1:{}", server.port());
    assert!(why.starts_with(&host), "{why}");
    worker.becomes_ready(true).await;

    server.kill9().await.unwrap();
    let (_, took) = unready_because_of(&worker, "store").await;
    assert!(took < SEEN_WITHIN, "a store that is gone: {took:?}");
    until("the cause", PATIENCE, async || {
        let (why, _) = unready_because_of(&worker, "store").await;
        (why.contains(&host) && why.contains("refused")).then_some(())
    })
    .await;
    server.restart().await.unwrap();
    worker.becomes_ready(true).await;
    assert_eq!(worker.readiness().await["reasons"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_within_seconds_that_the_broker_is_gone_and_why() {
    let broker = support::start_rabbitmq(rabbitmq::Options::default()).await;
    let harness = Harness::of(
        support::database("ready-broker").await,
        broker.vhost("ready").await.unwrap(),
        sandbox("").await,
    );
    let worker = harness.worker(&[]).await;
    worker.becomes_ready(true).await;
    broker.kill9().await.unwrap();
    let (why, took) = unready_because_of(&worker, "broker").await;
    assert!(took < SEEN_WITHIN, "{took:?}");
    assert!(why.contains(&format!("127.0.0.1:{}", broker.port())), "{why}");
    worker.logged("consuming ended; trying again").await;
    let ended = worker.lines("consuming ended; trying again");
    assert!(ended[0]["wait_ms"].is_u64() && ended[0]["error"].as_str().unwrap().contains("127.0.0.1:"));
    broker.restart().await.unwrap();
    worker.becomes_ready(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_that_migrations_are_missing() {
    let harness = Harness::without_tables("ready-schema", "").await;
    let worker = harness.start_worker(&[("ERRAND__STORE__MIGRATE_AT_START", "false")]);
    let (why, _) = unready_because_of(&worker, "migrations").await;
    until("how many", PATIENCE, async || {
        let (why, _) = unready_because_of(&worker, "migrations").await;
        why.contains("run `errand migrate`").then_some(())
    })
    .await;
    assert!(!why.is_empty());
    let readiness = worker.readiness().await;
    assert_eq!((&readiness["store"], &readiness["phase"]), (&json!(true), &json!("starting")), "{readiness}");
    assert!(harness.errand(&["migrate"]).status.success());
    worker.becomes_ready(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_worker_is_its_last_line() {
    let harness = Harness::new("last-line", "").await;
    let mut worker = harness.worker(&[]).await;
    harness.publish(&[read("user-1").named(&id())]).await;
    harness.counts("state = 'succeeded'", 1).await;
    assert!(worker.stop().await.success());
    worker.logged("worker stopped").await;
    let told = seen(&worker);
    let last = told.last().unwrap();
    assert_eq!((&last["message"], &last["left"]), (&json!("worker stopped"), &json!(0)), "{last}");
    let phases: Vec<_> =
        worker.lines_like("shutting down: ").iter().map(|line| line["message"].clone()).collect();
    assert_eq!(phases.len(), 2);
    assert_ne!(phases[0], phases[1]);
}
