//! Events at the broker, as apps get them that have bound queues to the exchange. The real binary on real services; what comes
//! is checked against the published schema.

use std::collections::{BTreeMap, BTreeSet};

use errand_testbed::factory::{Envelope as _, create, job, read, send, spread};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use jsonschema::Validator;
use lapin::{
    Channel, Connection, ExchangeKind,
    message::Delivery,
    options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    access_keys::tomorrow,
    api::{Api, read_answer},
    event_streams::{RECORDS, text},
    harness::{Harness, PATIENCE, Process},
    poison::{break_rows, heal},
    support::{rabbitmq::Vhost, wait::until},
};

const SCHEMA: &str = include_str!("../../docs/event.schema.json");

const EXCHANGE: &str = "errand.events";

/// What a worker is told that publishes events.
pub(crate) const PUBLISHES: [(&str, &str); 1] = [("ERRAND__EVENTS__EXCHANGE", "true")];

pub(crate) const SENT: &str = "errand_event_messages_total{result=\"sent\"}";
pub(crate) const WAITING: &str = "errand_events_to_publish";

/// Makes a queue and binds it to the exchange, which an app may make, too.
pub(crate) async fn bind(vhost: &Vhost, queue: &str, patterns: &[&str], arguments: FieldTable) {
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (durable, none) =
        (ExchangeDeclareOptions { durable: true, ..Default::default() }, FieldTable::default);
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, none()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
    for pattern in patterns {
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), EXCHANGE.into(), (*pattern).into(), options, none()).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}

/// An app that takes what comes to a queue, for as long as this lives.
pub(crate) struct Listener {
    _connection: Connection,
    _channel: Channel,
    deliveries: lapin::Consumer,
    queue: String,
    schema: Validator,
}

impl Listener {
    /// With a queue of its own.
    pub(crate) async fn new(vhost: &Vhost, queue: &str, patterns: &[&str]) -> Self {
        bind(vhost, queue, patterns, FieldTable::default()).await;
        Self::of(vhost, queue).await
    }

    /// With a queue that is there.
    pub(crate) async fn of(vhost: &Vhost, queue: &str) -> Self {
        let connection = vhost.connect().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (options, none) =
            (BasicConsumeOptions { no_ack: true, ..Default::default() }, FieldTable::default());
        let deliveries = channel.basic_consume(queue.into(), "".into(), options, none).await.unwrap();
        let schema = serde_json::from_str(SCHEMA).unwrap();
        let schema = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        Self { _connection: connection, _channel: channel, deliveries, queue: queue.to_owned(), schema }
    }

    /// The next event. What stands around it says the same.
    pub(crate) async fn next(&mut self) -> Value {
        let delivery = tokio::time::timeout(PATIENCE, self.deliveries.next()).await;
        let delivery = delivery.unwrap_or_else(|_| panic!("nothing comes to `{}`", self.queue));
        let Delivery { exchange, routing_key, properties, data, .. } = delivery.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&data).unwrap();
        let wrong: Vec<_> = self.schema.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{wrong:?} in {event}");
        let key = format!("{}.{}", text(&event, "type"), event["toolkit"].as_str().unwrap_or("none"));
        assert_eq!((exchange.as_str(), routing_key.as_str()), (EXCHANGE, key.as_str()), "{event}");
        let told = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        let names = [properties.kind(), properties.message_id(), properties.content_type()].map(told);
        let expected = [text(&event, "type"), text(&event, "id"), "application/json"];
        assert_eq!(names, expected.map(|name| Some(name.to_owned())), "{event}");
        let at: Timestamp = text(&event, "at").parse().unwrap();
        let second = u64::try_from(at.as_second()).unwrap();
        assert_eq!(
            (*properties.timestamp(), *properties.delivery_mode()),
            (Some(second), Some(2)),
            "{event}"
        );
        event
    }

    /// So many events.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut told = Vec::new();
        while told.len() < count {
            told.push(self.next().await);
        }
        told
    }

    /// What comes until all of these are among it.
    pub(crate) async fn until_has(&mut self, expected: &[Value]) -> Vec<Value> {
        let mut missing: BTreeSet<u64> = expected.iter().map(position).collect();
        let mut told = Vec::new();
        while !missing.is_empty() {
            let event = self.next().await;
            missing.remove(&position(&event));
            told.push(event);
        }
        told
    }
}

fn position(event: &Value) -> u64 {
    text(event, "cursor").parse().unwrap()
}

/// The job that it is about, or else the batch.
fn subject(event: &Value) -> &str {
    event["job_id"].as_str().unwrap_or_else(|| text(event, "batch_id"))
}

/// Makes sure that what came is all that is listed, and as it is listed, each of a job or a batch in its order, once an app has
/// dropped what is not behind the last one that it had.
pub(crate) fn are(told: &[Value], listed: &[Value]) {
    let (mut last, mut kept) = (BTreeMap::<&str, u64>::new(), Vec::new());
    for event in told {
        let sequence = event["sequence"].as_u64().unwrap();
        if last.get(subject(event)).is_none_or(|last| *last < sequence) {
            last.insert(subject(event), sequence);
            kept.push(event);
        }
    }
    kept.sort_by_key(|event| position(event));
    assert_eq!(kept.len(), listed.len(), "of {} that came", told.len());
    for (kept, listed) in kept.into_iter().zip(listed) {
        assert_eq!(kept, listed);
    }
}

/// Makes sure that what happened to a batch is told after what happened to its jobs before, and before what happened to them
/// then.
fn batches_are_in_order(told: &[Value]) {
    let of_batches: Vec<_> = told.iter().enumerate().filter(|(_, event)| event["job_id"].is_null()).collect();
    assert!(!of_batches.is_empty(), "it is about batches");
    for (place, of_batch) in of_batches {
        for (other, event) in told.iter().enumerate().filter(|(_, e)| e["batch_id"] == of_batch["batch_id"]) {
            let (came, happened) = (other < place, position(event) < position(of_batch));
            assert_eq!(came, happened, "{event} and {of_batch}");
        }
    }
}

/// All events, as the operator's list tells them.
pub(crate) fn listed(harness: &Harness) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let last = all.last().map(|event| text(event, "cursor").to_owned());
        let mut args = vec!["events", "--json", "--limit", "10000"];
        if let Some(last) = &last {
            args.extend(["--after", last.as_str()]);
        }
        let output = harness.errand(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let page = String::from_utf8(output.stdout).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
}

/// Up to which position all are published.
async fn published(harness: &Harness) -> Option<u64> {
    harness.text("select position::text from event_listeners").await?.parse().ok()
}

/// Waits until a worker has noted from where on events are published.
pub(crate) async fn begins(harness: &Harness) {
    until("it is noted where they begin", PATIENCE, async || published(harness).await).await;
}

/// Waits until no event waits.
pub(crate) async fn all_are_published(worker: &Process) {
    until("no event waits", PATIENCE, async || (worker.metric(WAITING).await == 0.0).then_some(())).await;
}

/// Asks the API for what it grants.
async fn granted(api: &Api, method: Method, path: &str, body: &Value) -> Value {
    let (status, answer) = read_answer(api.request(method, path).json(body).send().await.unwrap()).await;
    assert!(status.is_success(), "{path}: {answer}");
    answer
}

async fn cancelled(api: &Api, job: &Value) {
    granted(api, Method::POST, &format!("/v1/jobs/{}/cancel", job.id()), &json!({})).await;
}

/// The calls of this tool fail; with `first = 1` of each job the first.
fn refuses_issues(more: &str) -> String {
    format!(
        "[[fault]]\nkind = \"provider_failure\"\nprovider_status = 400\ntool = \"LINEAR_CREATE_ISSUE\"\n{more}"
    )
}

/// Events of every sort that a queue may be bound for.
async fn much_happens(harness: &Harness, api: &Api) {
    let [held, later] = [read("u-nobody"), read("user-1").with("run_at", tomorrow())];
    let others = [create("user-1"), job("user-1", "NO_SUCH_TOOL", &json!({})), held.clone()];
    harness.publish(&[&spread(4, read)[..], &spread(4, send), &others].concat()).await;
    let (status, made) = api.make(&json!({"items": [read("user-1"), send("user-2"), read("user-3")]})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    granted(api, Method::POST, "/v1/jobs", &later).await;
    granted(api, Method::PATCH, &format!("/v1/jobs/{}", later.id()), &json!({"priority": 5})).await;
    cancelled(api, &later).await;
    harness.job_in(held.id(), &["held"]).await;
    cancelled(api, &held).await;
    api.completed(text(&made, "id")).await;
    harness.counts("state in ('succeeded', 'failed')", 13).await;
}

/// Whether a queue gets an event.
type Fits = fn(&Value) -> bool;

#[tokio::test(flavor = "multi_thread")]
async fn each_queue_gets_the_events_that_its_patterns_fit_as_the_operator_reads_them() {
    let harness = Harness::new("exchange", &refuses_issues("")).await;
    let api = Api::start(&[harness.env(), vec![RECORDS.map(str::to_owned).into()]].concat()).await;
    let early = read("user-1").with("run_at", tomorrow());
    granted(&api, Method::POST, "/v1/jobs", &early).await;
    cancelled(&api, &early).await;
    let worker = harness.worker(&PUBLISHES).await;
    begins(&harness).await;
    let fits: [(&str, &[&str], Fits); 3] = [
        ("succeeded", &["job.succeeded.#"], |event| event["type"] == "job.succeeded"),
        ("github", &["job.*.github"], |event| event["toolkit"] == "github"),
        ("two", &["job.failed.*", "batch.completed.none"], |event| {
            event["type"] == "job.failed" || event["type"] == "batch.completed"
        }),
    ];
    let (mut all, mut others) = (Listener::new(&harness.vhost, "all", &["#"]).await, Vec::new());
    for (queue, patterns, _) in fits {
        others.push(Listener::new(&harness.vhost, queue, patterns).await);
    }
    much_happens(&harness, &api).await;

    let list = listed(&harness);
    assert_eq!(api.get("/v1/events?limit=500").await.1["items"], json!(list));
    let (before, rest) = list.split_first().unwrap();
    assert_eq!(before["job_id"], early["id"], "what happened before is not published");
    let types: BTreeSet<&str> = rest.iter().map(|event| text(event, "type")).collect();
    let expected =
        ["batch.completed", "job.cancelled", "job.edited", "job.failed", "job.held", "job.succeeded"];
    assert_eq!(types, expected.into());
    let told = all.take(rest.len()).await;
    are(&told, rest);
    batches_are_in_order(&told);
    for (listener, (.., fits)) in others.iter_mut().zip(fits) {
        let expected: Vec<Value> = rest.iter().filter(|event| fits(event)).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < rest.len());
        are(&listener.take(expected.len()).await, &expected);
    }
    let last = [read("user-2"), create("user-2")];
    harness.publish(&last).await;
    for (listener, job) in others.iter_mut().zip([&last[0], &last[0], &last[1]]) {
        assert_eq!(listener.next().await["job_id"], job["id"], "and nothing else came before");
    }
    all_are_published(&worker).await;
    assert_eq!(worker.metric(SENT).await, (rest.len() + 2) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_hundreds_of_jobs_come_once_and_in_the_order_of_each_job_and_of_their_batch() {
    let harness = Harness::new("exchange-order", &refuses_issues("first = 1\n")).await;
    let api = Api::start(&[harness.env(), vec![RECORDS.map(str::to_owned).into()]].concat()).await;
    let worker = harness.worker(&PUBLISHES).await;
    begins(&harness).await;
    let mut all = Listener::new(&harness.vhost, "all", &["#"]).await;
    let (status, made) = api.make(&json!({"items": spread(300, create)})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let id = text(&made, "id");
    assert_eq!(api.completed(id).await["counts"]["failed"], 300);
    granted(&api, Method::POST, &format!("/v1/batches/{id}/retry"), &json!({})).await;
    assert_eq!(api.completed(id).await["counts"]["succeeded"], 300);
    let list = listed(&harness);
    assert_eq!(list.len(), 3 * 300 + 3, "each job failed, was retried and succeeded");
    let told = all.take(list.len()).await;
    are(&told, &list);
    batches_are_in_order(&told);
    all_are_published(&worker).await;
    assert_eq!(worker.metric(SENT).await, list.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_workers_one_publishes_and_when_it_dies_or_stops_the_next_goes_on() {
    let harness = Harness::new("exchange-turns", "").await;
    let lease = [("ERRAND__WORKER__HEARTBEAT_SECS", "1"), ("ERRAND__WORKER__LEASE_SECS", "10")];
    let settings = [&PUBLISHES[..], &lease[..]].concat();
    let mut first = harness.worker(&settings).await;
    begins(&harness).await;
    let mut second = harness.worker(&settings).await;
    let mut all = Listener::new(&harness.vhost, "all", &["#"]).await;
    harness.publish(&spread(100, send)).await;
    let mut told = all.take(100).await;
    let list = listed(&harness);
    are(&told, &list);
    let noted = Some(position(&list[99]));
    until("it is noted", PATIENCE, async || (published(&harness).await == noted).then_some(())).await;
    assert_eq!([first.metric(SENT).await, second.metric(SENT).await], [100.0, 0.0]);

    // It publishes, and cannot note it. It knows that by itself.
    break_rows(&harness, "event_listeners", "update", "true").await;
    harness.publish(&spread(100, send)).await;
    told.extend(all.take(100).await);
    let failures = first.metric_sum("errand_store_errors_total").await;
    until("it has tried again", PATIENCE, async || {
        (first.metric_sum("errand_store_errors_total").await >= failures + 2.0).then_some(())
    })
    .await;
    assert_eq!([first.metric(SENT).await, second.metric(SENT).await], [200.0, 0.0]);
    assert_eq!(published(&harness).await, noted);

    // Whoever comes after it does not.
    first.kill9();
    heal(&harness, "event_listeners").await;
    harness.publish(&spread(100, send)).await;
    told.extend(all.take(200).await);
    let list = listed(&harness);
    are(&told, &list);
    second.metric_reaches(SENT, 200.0).await;
    assert_eq!(second.metric(SENT).await, 200.0, "those that were not noted, once more, and the new ones");

    let third = harness.worker(&settings).await;
    assert!(second.stop().await.success(), "{}", second.log());
    harness.publish(&spread(50, send)).await;
    harness.all_ran_once(350).await;
    let list = listed(&harness);
    told.extend(all.until_has(&list[300..]).await);
    are(&told, &list);
    third.metric_reaches(SENT, 50.0).await;
}
