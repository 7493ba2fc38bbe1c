//! The shipped alert rules in a real Prometheus that scrapes a real worker: each alert fires once when what it is about
//! happens, and none fires while all is well.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use errand_testbed::factory::{Envelope as _, job, read, send, spread};
use lapin::{
    BasicProperties, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Executor as _;
use tempfile::TempDir;

use crate::{
    callbacks::{Place, Receiver},
    dashboards::{ALERTS, alerts, samples},
    harness::{Harness, PATIENCE, Process, port},
    support::{self, Prometheus, http, machine, wait::until},
};

/// How long all has to be well in `a_busy_worker_raises_no_alert`.
const WELL_FOR: Duration = Duration::from_secs(120);

/// How long an alert may be about to fire there, of those that wait for a minute or more.
const STAYS_FOR: Duration = Duration::from_secs(30);

/// Times that the rules wait for, and what stands for them where a test waits. Thresholds that are no times stay.
const SHORTER: &[(&str, &str)] = &[
    ("> 45", "> 6"),
    ("(errand_taken_messages_total[5m])", "(errand_taken_messages_total[5s])"),
    ("> 20\n        labels", "> 3\n        labels"),
    ("(errand_finish_duration_seconds_count[1m])", "(errand_finish_duration_seconds_count[3s])"),
];

/// Events of an owner as a statement records them, more than wait for a moment.
const MUCH_HAPPENS: &str = "insert into event_inbox (kinds, sequences, job_ids, batch_ids, owner_kinds, owner_ids, tools, toolkits, queues,
        attempts, held_reasons, error_kinds)
    select array_fill('job.edited'::text, n), array_fill(1, n),
        (select array_agg(gen_random_uuid()) from generate_series(1, n[1])), array_fill(null::uuid, n),
        array_fill('user'::text, n), array_fill('user-1'::text, n), none, none, none, array_fill(null::integer, n), none, none
    from (select array[3000] as n, array_fill(null::text, array[3000]) as none) as much";

/// A Prometheus that scrapes a worker and has the shipped rules.
pub(crate) struct Watch {
    prometheus: Prometheus,
    _folder: TempDir,
    client: reqwest::Client,
}

impl Watch {
    /// With the rules as they are.
    async fn patient(worker: &Process) -> Self {
        let watch = Self::start(&worker.address().await.to_string(), ALERTS).await;
        // Before its first scrape it knows of no worker.
        until("a worker is seen", PATIENCE, async || {
            watch.has("errand_heartbeat_age_seconds").await.then_some(())
        })
        .await;
        watch.ends("ErrandNoLiveWorker").await;
        watch
    }

    /// Whether a query has a result.
    async fn has(&self, query: &str) -> bool {
        samples(&self.client, &self.prometheus, query).await > 0
    }

    /// With rules that wait for seconds where the shipped ones wait for minutes.
    async fn quick(target: &str) -> Self {
        let mut rules = ALERTS.to_owned();
        for (time, shorter) in SHORTER {
            assert!(rules.contains(time), "{time} is not in the rules");
            rules = rules.replace(time, shorter);
        }
        let is_wait = |line: &&str| !line.trim_start().starts_with("for: ");
        Self::start(target, &rules.lines().filter(is_wait).collect::<Vec<_>>().join("\n")).await
    }

    /// With the shorter waits.
    pub(crate) async fn of(worker: &Process) -> Self {
        Self::quick(&worker.address().await.to_string()).await
    }

    async fn start(target: &str, rules: &str) -> Self {
        let folder = tempfile::tempdir_in(machine::base()).unwrap();
        support::machine::open_for_others(folder.path());
        let file = folder.path().join("alerts.yml");
        fs::write(&file, rules).unwrap();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: errand\n  static_configs: [{{targets: ['{target}']}}]\n",
            file.display()
        );
        Self { prometheus: Prometheus::start(&config).await, _folder: folder, client: http::client() }
    }

    /// The alerts that fire or are about to.
    async fn raised(&self) -> BTreeSet<String> {
        self.named(|_| true).await
    }

    async fn firing(&self) -> BTreeSet<String> {
        self.named(|alert| alert["state"] == "firing").await
    }

    /// The names of the alerts for which this is so.
    async fn named(&self, counts: impl Fn(&Value) -> bool) -> BTreeSet<String> {
        let url = format!("{}/api/v1/alerts", self.prometheus.url());
        let answer: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
        let alerts = answer["data"]["alerts"].as_array().unwrap().iter().filter(|alert| counts(alert));
        alerts.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// The same of one lane.
    pub(crate) async fn has_raised(&self, alert: &str, lane: &str) -> bool {
        self.has(&format!("ALERTS{{alertname=\"{alert}\",queue=\"{lane}\"}}")).await
    }

    pub(crate) async fn raises(&self, alert: &str, lane: &str) {
        until(&format!("{alert} of {lane}"), PATIENCE, async || {
            self.has_raised(alert, lane).await.then_some(())
        })
        .await;
    }

    async fn fires(&self, alert: &str) {
        until(&format!("{alert} fires"), PATIENCE, async || {
            self.raised().await.contains(alert).then_some(())
        })
        .await;
    }

    async fn ends(&self, alert: &str) {
        until(&format!("{alert} ends"), PATIENCE, async || {
            (!self.raised().await.contains(alert)).then_some(())
        })
        .await;
    }
}

#[test]
fn each_alert_is_raised_by_a_test() {
    let tests = [include_str!("alerts.rs"), include_str!("late.rs")].concat();
    for alert in alerts() {
        let is_raised =
            [".fires(", ".raises("].iter().any(|by| tests.contains(&format!("{by}\"{}\"", alert.name)));
        assert!(is_raised, "{} is raised nowhere", alert.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_worker_raises_no_alert() {
    let harness = Harness::new("well", "[[fault]]\nkind = \"latency\"\nmean_ms = 50\n").await;
    let management = harness.vhost.management_url.replace("http://", "http://guest:guest@");
    let worker = harness
        .worker(&[("ERRAND__AUDIT__EVERY_SECS", "5"), ("ERRAND__AMQP__MANAGEMENT_URL", &management)])
        .await;
    let watch = Watch::patient(&worker).await;
    let begun = Instant::now();
    let mut jobs = 0;
    while begun.elapsed() < WELL_FOR {
        harness.publish(&spread(20, send)).await;
        jobs += 20;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(watch.firing().await, BTreeSet::new(), "after {:?}: {}", begun.elapsed(), worker.log());
        // One scrape that a busy machine misses has a rule begin to wait, and the next one ends that.
        until("no alert is about to fire", STAYS_FOR, async || watch.raised().await.is_empty().then_some(()))
            .await;
    }
    harness.all_ran_once(jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_there_or_cannot_consume_raises_an_alert() {
    let watch = Watch::quick(&format!("127.0.0.1:{}", machine::free_port())).await;
    watch.fires("ErrandNoLiveWorker").await;

    let harness = Harness::new("alert-broker", "").await;
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let url = broker.url(&harness.vhost.amqp_url).unwrap();
    let worker = harness.worker(&[("AMQP_URL", &url)]).await;
    let watch = Watch::of(&worker).await;
    watch.ends("ErrandNoLiveWorker").await;
    broker.cut().await.unwrap();
    watch.fires("ErrandNotConsuming").await;
    broker.heal().await.unwrap();
    watch.ends("ErrandNotConsuming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_raises_alerts() {
    let harness = Harness::new("alert-store", "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n").await;
    let database = support::start_proxy(port(&harness.database.url)).await;
    let url = database.url(&harness.database.url).unwrap();
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "4"),
        ("ERRAND__WORKER__QUEUES", "default"),
    ];
    let worker = harness.worker(&settings).await;
    let watch = Watch::of(&worker).await;
    harness.publish(&spread(4, send)).await;
    harness.called(4).await;
    database.cut().await.unwrap();
    watch.fires("ErrandStoreUnreachable").await;
    watch.fires("ErrandStoreErrors").await;
    watch.fires("ErrandHeartbeatOld").await;
    watch.fires("ErrandResultsNotWritten").await;
    watch.fires("ErrandFinishBacklog").await;
    database.heal().await.unwrap();
    for alert in
        ["ErrandStoreUnreachable", "ErrandHeartbeatOld", "ErrandResultsNotWritten", "ErrandFinishBacklog"]
    {
        watch.ends(alert).await;
    }
    harness.all_ran_once(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_api_that_is_away_raises_an_alert() {
    let harness = Harness::new("alert-api", "").await;
    let api = support::start_proxy(port(&harness.sandbox.base_url())).await;
    let url = api.url(&harness.sandbox.base_url()).unwrap();
    let worker = harness.worker(&[("COMPOSIO_BASE_URL", &url)]).await;
    let watch = Watch::of(&worker).await;
    api.cut().await.unwrap();
    harness.publish(&spread(20, send)).await;
    watch.fires("ErrandToolApiAway").await;
    api.heal().await.unwrap();
    watch.ends("ErrandToolApiAway").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_raises_alerts() {
    let harness = Harness::new("alert-key", "").await;
    let worker = harness.worker(&[("COMPOSIO_API_KEY", "ak_test_expired")]).await;
    let watch = Watch::of(&worker).await;
    watch.fires("ErrandApiKeyRefused").await;
    harness.publish(&spread(3, send)).await;
    watch.fires("ErrandCredentialsRefused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_messages_that_go_wrong_raise_alerts() {
    let faults = "[[fault]]\nkind = \"status\"\nstatus = 503\nbody = \"html\"\ntool = \"GITHUB_GET_REPO\"\n\n\
        [[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";
    let harness = Harness::new("alert-calls", faults).await;
    let worker = harness.worker(&[]).await;
    let watch = Watch::of(&worker).await;
    harness.publish(&spread(40, |user| read(user).with("max_attempts", 6))).await;
    watch.fires("ErrandToolkitAway").await;
    harness.publish(&[send("user-1")]).await;
    watch.fires("ErrandUnknownOutcomes").await;
    // Failures count from the second scrape that has them.
    harness.publish(&[job("user-1", "NO_SUCH_TOOL", &json!({}))]).await;
    worker
        .metric_reaches(
            "errand_jobs_finished_total{queue=\"default\",toolkit=\"none\",outcome=\"failed\"}",
            1.0,
        )
        .await;
    until("many failures", PATIENCE, async || {
        harness.publish(&spread(10, |user| job(user, "NO_SUCH_TOOL", &json!({})))).await;
        watch.raised().await.contains("ErrandManyFailures").then_some(())
    })
    .await;
    watch.fires("ErrandManyFailures").await;
    harness.publish_raw(&[b"no job".to_vec()], BasicProperties::default()).await;
    watch.fires("ErrandRejectedMessages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_may_lose_or_refuses_raises_alerts() {
    let harness = Harness::new("alert-policy", "").await;
    let management = harness.vhost.management_url.replace("http://", "http://guest:guest@");
    let settings = [
        ("ERRAND__AMQP__MANAGEMENT_URL", management.as_str()),
        ("ERRAND__EVENTS__RECORD", "all"),
        ("ERRAND__EVENTS__EXCHANGE", "true"),
    ];
    let worker = harness.worker(&settings).await;
    let watch = Watch::of(&worker).await;

    // A queue of replies that holds one message and refuses more.
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, arguments).await.unwrap();
    let properties = BasicProperties::default().with_delivery_mode(2).with_reply_to(queue.name().clone());
    let jobs: Vec<_> = spread(10, send).iter().map(|job| serde_json::to_vec(job).unwrap()).collect();
    harness.publish_raw(&jobs, properties).await;
    watch.fires("ErrandBrokerRefuses").await;

    // The same queue, which is full, for events.
    let (exchange, options) =
        ("errand.events", ExchangeDeclareOptions { durable: true, ..Default::default() });
    let none = FieldTable::default;
    channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, none()).await.unwrap();
    let bound = channel.queue_bind(
        queue.name().clone(),
        exchange.into(),
        "#".into(),
        QueueBindOptions::default(),
        none(),
    );
    bound.await.unwrap();
    harness.publish(&spread(10, send)).await;
    watch.fires("ErrandEventsNotPublished").await;

    let policy =
        json!({"pattern": "^errand\\.", "definition": {"message-ttl": 3_600_000}, "apply-to": "queues"});
    let path = format!("policies/{}/errand", harness.vhost.encoded_name());
    harness.vhost.manage(Method::PUT, &path, Some(policy)).await.unwrap();
    watch.fires("ErrandBrokerPolicyRisk").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_that_are_late_or_not_taken_raise_alerts() {
    let place = Place::new("alert-callbacks", "").await;
    let watch = Watch::of(&place.worker).await;
    let refuses = Receiver::that(|_| StatusCode::NOT_FOUND).await;
    place.set("user:user-1", &refuses.url("")).await;
    // Nothing can be added to what is sent, while much happens.
    let mut lock = place.harness.database.connect().await.unwrap();
    lock.execute("begin; lock table deliveries in exclusive mode").await.unwrap();
    place.harness.execute(MUCH_HAPPENS).await;
    watch.fires("ErrandCallbacksAreLate").await;
    lock.execute("commit").await.unwrap();
    watch.ends("ErrandCallbacksAreLate").await;
    watch.fires("ErrandCallbacksNotTaken").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_should_not_be_and_a_journal_that_cannot_be_read_raise_alerts() {
    let harness = Harness::new("alert-audit", "").await;
    fs::create_dir(harness.journal_dir()).unwrap();
    fs::write(harness.journal_dir().join("broken.json"), "{").unwrap();
    let worker = harness.worker(&[("ERRAND__AUDIT__EVERY_SECS", "1")]).await;
    let watch = Watch::of(&worker).await;
    watch.fires("ErrandJournalKept").await;
    let good = send("user-1");
    harness.publish(std::slice::from_ref(&good)).await;
    harness.job_in(good.id(), &["succeeded"]).await;
    harness
        .execute("alter table jobs drop constraint jobs_succeeded_has_result; update jobs set result = null")
        .await;
    watch.fires("ErrandAuditFindings").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_several_builds_raise_an_alert() {
    let harness = Harness::new("alert-builds", "").await;
    let worker = harness.worker(&[]).await;
    let watch = Watch::of(&worker).await;
    // As one of an older build beats, which does not say which it is.
    let other = "insert into workers (id, name, started_at, beat_at, lease_ms)
        values (gen_random_uuid(), 'old', now(), now(), 600000)";
    harness.execute(other).await;
    watch.fires("ErrandWorkersOfSeveralBuilds").await;
    harness.execute("delete from workers where name = 'old'").await;
    watch.ends("ErrandWorkersOfSeveralBuilds").await;
}
