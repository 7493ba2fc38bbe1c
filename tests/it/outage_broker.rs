//! What becomes of jobs while RabbitMQ refuses, forgets or loses something, and after that. One worker lives
//! through all of it, and every job counts, so that a repetition would be seen.

use std::time::{Duration, Instant};

use errand_testbed::factory::{Envelope as _, create, send, spread};
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicNackOptions},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    api::Api,
    harness::{Harness, PATIENCE, Process, port, run, sandbox},
    support::{self, Proxy, http, rabbitmq, wait::until},
};

/// Every first call of this tool is throttled, so that the relay has to bring the job back.
const RELAYED: &str = r#"
    [[fault]]
    kind = "throttle"
    tool = "LINEAR_CREATE_ISSUE"
    form = "org"
    retry_after = "0.1"
    first = 1
"#;

/// A tool API that can be stalled, and a worker that reaches it. Jobs that are claimed while it is stalled run
/// until it is healed.
async fn behind_proxy(harness: &Harness) -> (Proxy, Process) {
    let api =
        support::start_proxy(url::Url::parse(&harness.sandbox.base_url()).unwrap().port().unwrap()).await;
    let through = api.url(&harness.sandbox.base_url()).unwrap();
    let worker = harness.worker(&[("COMPOSIO_BASE_URL", through.trim_end_matches('/'))]).await;
    (api, worker)
}

/// Few lines were logged behind the first bytes, since then.
fn says_little_since(process: &Process, (mark, then): (usize, Instant)) {
    let (lines, seconds) = (process.log()[mark..].lines().count(), then.elapsed().as_secs() as usize);
    assert!(lines < 100 + 10 * seconds, "{lines} lines in {seconds} s:\n{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_out_of_memory_running_jobs_end_and_retries_wait() {
    let broker = support::start_rabbitmq(rabbitmq::Options::default()).await;
    let harness = Harness::of(
        support::database("alarm").await,
        broker.vhost("alarm").await.unwrap(),
        sandbox(RELAYED).await,
    );
    let (api, worker) = behind_proxy(&harness).await;
    let door = Api::start(&harness.env()).await;
    api.stall();
    harness.publish(&[spread(20, send), spread(4, create)].concat()).await;
    harness.counts("state = 'running'", 24).await;
    broker.control(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    let mark = (worker.log().len(), Instant::now());
    api.heal().await.unwrap();
    worker.logged("RabbitMQ blocks publishing").await;
    harness.counts("state = 'succeeded' and tool = 'GMAIL_SEND_EMAIL'", 20).await;
    // Who enqueues is answered, and the relay gets what the broker does not take.
    let enqueue = async || assert_eq!(door.post("/v1/jobs", &send("user-1")).await.0, StatusCode::CREATED);
    enqueue().await;
    door.process.logged("could not be handed to the broker").await;
    let refused_since = (door.process.log().len(), Instant::now());
    for _ in 0..399 {
        enqueue().await;
    }
    says_little_since(&door.process, refused_since);
    // It still consumes and records.
    worker.becomes_ready(true).await;
    assert_ne!(harness.count("state in ('retryable', 'available')").await, 0, "retries wait in the store");
    says_little_since(&worker, mark);

    broker.control(&["set_vm_memory_high_watermark", "0.9"]).await.unwrap();
    harness.all_ran_once(424).await;
    assert_eq!(worker.lines("RabbitMQ takes messages again").len(), 1);
    assert_eq!(worker.metric("errand_broker_reconnects_total").await, 0.0);
}

/// A user of a harness's virtual host.
struct User<'a> {
    harness: &'a Harness,
    name: String,
}

impl<'a> User<'a> {
    async fn new(harness: &'a Harness, password: &str) -> Self {
        let user = Self { harness, name: harness.vhost.name.replace('/', "-") };
        user.set_password(password).await;
        user.permit().await;
        user
    }

    async fn set_password(&self, password: &str) {
        let body = json!({"password": password, "tags": ""});
        self.harness.vhost.manage(Method::PUT, &format!("users/{}", self.name), Some(body)).await.unwrap();
    }

    fn permissions(&self) -> String {
        format!("permissions/{}/{}", self.harness.vhost.encoded_name(), self.name)
    }

    async fn permit(&self) {
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.harness.vhost.manage(Method::PUT, &self.permissions(), Some(all)).await.unwrap();
    }

    async fn forbid(&self) {
        self.harness.vhost.manage(Method::DELETE, &self.permissions(), None).await.unwrap();
    }

    /// Closes the user's connections until the worker notices. The broker's list of them lags behind.
    async fn cut_off(&self, worker: &Process) {
        let list = format!("vhosts/{}/connections", self.harness.vhost.encoded_name());
        until("the worker is cut off", PATIENCE, async || {
            let connections = self.harness.vhost.manage(Method::GET, &list, None).await.unwrap();
            let own =
                connections.as_array()?.iter().filter(|connection| connection["user"] == self.name.as_str());
            for name in own.filter_map(|connection| connection["name"].as_str()) {
                let name = name.replace(' ', "%20").replace(':', "%3A").replace('>', "%3E");
                let url = format!("{}/api/connections/{name}", self.harness.vhost.management_url);
                // One that has just ended is not found.
                drop(http::client().delete(url).basic_auth("guest", Some("guest")).send().await);
            }
            (worker.readiness().await["ready"] == false).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_credentials_are_named_tried_again_slowly_and_never_shown() {
    let harness = Harness::new("revoked", "[[fault]]\nkind = \"latency\"\nfixed_ms = 1000\n").await;
    let user = User::new(&harness, "first-secret").await;
    let url = harness.vhost.amqp_url.replace("guest:guest", &format!("{}:first-secret", user.name));
    let worker = harness.worker(&[("AMQP_URL", &url)]).await;
    let mark = (worker.log().len(), Instant::now());
    harness.publish(&spread(10, send)).await;

    user.set_password("second-secret").await;
    user.cut_off(&worker).await;
    harness.publish(&spread(10, send)).await;
    until("it tried several times and said why", PATIENCE, async || {
        (worker.log().matches("refused the login of").count() >= 4).then_some(())
    })
    .await;
    user.set_password("first-secret").await;
    worker.becomes_ready(true).await;

    user.forbid().await;
    user.cut_off(&worker).await;
    harness.publish(&spread(10, send)).await;
    worker.logged("does not let").await;
    user.permit().await;
    worker.becomes_ready(true).await;

    harness.all_ran_once(30).await;
    says_little_since(&worker, mark);
    let shown = worker.log() + &worker.metrics().await;
    assert!(!shown.contains("first-secret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_queue_is_deleted_is_declared_and_consumed_again_and_others_go_on() {
    let harness = Harness::new("deleted-lane", RELAYED).await;
    let (api, worker) = behind_proxy(&harness).await;
    api.stall();
    harness.publish(&[spread(10, send), spread(4, create)].concat()).await;
    harness.counts("state = 'running'", 14).await;
    let queue = format!("queues/{}/errand.default", harness.vhost.encoded_name());
    harness.vhost.manage(Method::DELETE, &queue, None).await.unwrap();
    // The broker's own numbers may still be those of the queue that was deleted.
    let consumed = |lane: &str| worker.lines("consuming").iter().filter(|line| line["queue"] == lane).count();
    until("it consumes again", PATIENCE, async || (consumed("default") == 2).then_some(())).await;
    api.heal().await.unwrap();
    harness.publish(&spread(10, send)).await;
    let bulk: Vec<Vec<u8>> = spread(5, send).iter().map(|job| serde_json::to_vec(job).unwrap()).collect();
    harness.publish_to("bulk", &bulk, BasicProperties::default()).await;
    harness.all_ran_once(29).await;
    assert_eq!(consumed("bulk"), 1, "the other lane was not disturbed:\n{}", worker.log());
    let ended = worker.lines("consuming ended; trying again");
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert!(ended[0]["error"].as_str().unwrap().contains("its queue was deleted or moved"), "{ended:?}");
    worker.becomes_ready(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_the_database_knows_outlive_a_deleted_queue() {
    let harness = Harness::new("deleted-messages", "").await;
    let soon = ("ERRAND__RELAY__UNCLAIMED_SECS", "1");
    assert!(harness.worker(&[]).await.stop().await.success());
    let mut env = harness.env();
    env.push((soon.0.to_owned(), soon.1.to_owned()));
    for n in 1..=3 {
        let user = format!("user-{n}");
        let arguments = r#"{"recipient_email": "ann@example.com", "subject": "s", "body": "b"}"#;
        let output = run(&["enqueue", "GMAIL_SEND_EMAIL", "--user-id", &user, "--args", arguments], &env);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let queue = format!("queues/{}/errand.default", harness.vhost.encoded_name());
    harness.vhost.manage(Method::DELETE, &queue, None).await.unwrap();
    let _worker = harness.worker(&[soon]).await;
    harness.all_ran_once(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_comes_back_with_the_next_retry_or_by_itself() {
    let harness = Harness::new("deleted-exchange", RELAYED).await;
    let (api, worker) = behind_proxy(&harness).await;
    let exchange = format!("exchanges/{}/errand", harness.vhost.encoded_name());
    // The relay has published before, so that it takes the exchange for granted.
    harness.publish(&spread(1, create)).await;
    harness.all_ran_once(1).await;
    api.stall();
    harness.publish(&spread(4, create)).await;
    harness.counts("state = 'running'", 4).await;
    harness.vhost.manage(Method::DELETE, &exchange, None).await.unwrap();
    api.heal().await.unwrap();
    harness.all_ran_once(5).await;
    assert_ne!(worker.metric_sum("errand_relay_failed_total").await, 0.0, "the relay met the loss");

    // Nothing has to be published by errand now, and apps cannot.
    harness.vhost.manage(Method::DELETE, &exchange, None).await.unwrap();
    until("the exchange is there, with the bindings of both lanes", PATIENCE, async || {
        let path = format!("bindings/{}", harness.vhost.encoded_name());
        let bindings = harness.vhost.manage(Method::GET, &path, None).await.unwrap();
        let of_errand = bindings.as_array()?.iter().filter(|binding| binding["source"] == "errand");
        (of_errand.count() == 2).then_some(())
    })
    .await;
    harness.publish(&spread(5, send)).await;
    let bulk: Vec<Vec<u8>> = spread(5, send).iter().map(|job| serde_json::to_vec(job).unwrap()).collect();
    harness.publish_to("bulk", &bulk, BasicProperties::default()).await;
    harness.all_ran_once(15).await;
    worker.becomes_ready(true).await;
    assert!(worker.log().contains("its queue or exchange was deleted"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_given_back_and_redelivered_very_often_is_not_lost_and_runs_once() {
    let harness = Harness::new("redelivered", "").await;
    assert!(harness.worker(&[]).await.stop().await.success());
    harness.publish(&spread(2, send)).await;
    let connection = harness.vhost.connect().await.unwrap();
    for round in 0..40 {
        let channel = connection.create_channel().await.unwrap();
        for _ in 0..2 {
            let taken = until("the message is back", PATIENCE, async || {
                channel.basic_get("errand.default".into(), BasicGetOptions::default()).await.unwrap()
            })
            .await;
            // Every other round ends as it does for a consumer that crashes.
            if round % 2 == 0 {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                taken.nack(options).await.unwrap();
            }
        }
        channel.close(200, "gone".into()).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
    let _worker = harness.worker(&[]).await;
    harness.all_ran_once(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_the_broker_forgot_notices_and_subscribes_anew() {
    let harness = Harness::new("forgotten", "").await;
    let worker = harness.worker(&[]).await;
    harness.publish(&spread(3, send)).await;
    harness.settled(3).await;
    // Takes the consumers off the queues without telling anybody, as faults of brokers have done. Connection,
    // channel and heartbeats stay as they are.
    for queue in ["errand.default", "errand.dead"] {
        let forget = format!(
            r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{}">>, queue, <<"{queue}">>)),
               [{{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q),
                   rabbit_fifo:make_checkout({{element(2, C), element(1, C)}}, cancel, #{{}}))
                || C <- rabbit_amqqueue:consumers(Q)]."#,
            harness.vhost.name
        );
        support::control(&["eval", &forget]).await;
    }
    harness.publish(&spread(5, send)).await;
    harness.all_ran_once(8).await;
    worker.becomes_ready(true).await;
    let renewed = async |lane: &str| {
        worker.metric(&format!("errand_subscriptions_renewed_total{{queue=\"{lane}\"}}")).await
    };
    assert_eq!((renewed("default").await, renewed("bulk").await), (1.0, 0.0));
    worker.metric_reaches("errand_subscriptions_renewed_total{queue=\"dead\"}", 1.0).await;
    assert_eq!(worker.metric("errand_broker_reconnects_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_called_off_while_the_broker_is_gone_are_not_repeated() {
    let harness = Harness::new("called-off", RELAYED).await;
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let tool_api = support::start_proxy(port(&harness.sandbox.base_url())).await;
    let (amqp, calls) =
        (broker.url(&harness.vhost.amqp_url).unwrap(), tool_api.url(&harness.sandbox.base_url()).unwrap());
    let worker =
        harness.worker(&[("AMQP_URL", &amqp), ("COMPOSIO_BASE_URL", calls.trim_end_matches('/'))]).await;
    let api = Api::start(&harness.env()).await;
    tool_api.stall();
    let (throttled, sent) = (create("user-1"), send("user-1"));
    harness.publish(&[throttled.clone(), sent.clone()]).await;
    harness.counts("state = 'running'", 2).await;
    broker.cut().await.unwrap();
    for job in [&throttled, &sent] {
        let (status, told) = api.post(&format!("/v1/jobs/{}/cancel", job.id()), &json!({})).await;
        let told = (status, &told["state"], &told["cancel_requested"]);
        assert_eq!(told, (StatusCode::OK, &json!("running"), &json!(true)));
    }
    // The end of the call is written with what the database says by then, whatever the broker does.
    tool_api.heal().await.unwrap();
    let ended = async |job: &Value| harness.job_in(job.id(), &["cancelled", "succeeded", "retryable"]).await;
    let (called_off, done) = (ended(&throttled).await, ended(&sent).await);
    assert_eq!((&called_off["state"], &called_off["due_at"]), (&json!("cancelled"), &Value::Null));
    assert_eq!((&called_off["history"][0]["by"], &called_off["attempt"]), (&json!("api"), &json!(1)));
    assert_eq!(called_off["attempts"][0]["outcome"], "throttled", "{called_off}");
    assert_eq!((&done["state"], &done["cancel_requested"]), (&json!("succeeded"), &json!(true)), "{done}");
    assert!(worker.log().contains("consuming ended; trying again"), "{}", worker.log());

    broker.heal().await.unwrap();
    let next = send("user-2");
    harness.publish(std::slice::from_ref(&next)).await;
    harness.job_in(next.id(), &["succeeded"]).await;
    assert_eq!((harness.show(throttled.id()), harness.show(sent.id())), (called_off, done));
    harness.called(3).await;
}

/// So long it takes at least until the API gives up what it hands to a broker that is silent, and at most until it ends when
/// it is told to.
const SILENCE: Duration = Duration::from_secs(10);

/// What a machine may add that stands still for seconds.
const MARGIN: Duration = Duration::from_secs(10);

/// Enqueues jobs one after the other, of which each is stored although the broker may be silent.
async fn stored(api: &Api, jobs: &[Value]) {
    for job in jobs {
        let (status, told) = api.post("/v1/jobs", job).await;
        assert_eq!(status, StatusCode::CREATED, "{told}");
    }
}

/// Enqueues jobs at once. What is not answered, or not with 201, is false.
fn enqueued(api: &Api, jobs: &[Value]) -> Vec<JoinHandle<bool>> {
    let enqueue = |job: &Value| {
        let answer = api.request(Method::POST, "/v1/jobs").json(job).send();
        tokio::spawn(async { answer.await.is_ok_and(|answer| answer.status() == StatusCode::CREATED) })
    };
    jobs.iter().map(enqueue).collect()
}

/// A job that is so large that the API has nine of its kind at most on their way to the broker at once.
fn large(job: Value) -> Value {
    let mut arguments = job["arguments"].clone();
    arguments["body"] = "x".repeat(900_000).into();
    job.with("arguments", arguments)
}

/// Twelve jobs, and an API that has handed the first to a broker which is silent since then. The next nine are on their way to
/// it, and the others wait at the door.
async fn silenced(harness: &Harness) -> (Proxy, Api, Vec<JoinHandle<bool>>) {
    let jobs: Vec<Value> = spread(12, |user| if user == "user-1" { send(user) } else { large(send(user)) });
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let mut env = harness.env();
    env.push(("AMQP_URL".into(), broker.url(&harness.vhost.amqp_url).unwrap()));
    env.push(("ERRAND__RELAY__UNCLAIMED_SECS".into(), "5".into()));
    let api = Api::start(&env).await;
    stored(&api, &jobs[..1]).await;
    harness.all_ran_once(1).await;
    broker.stall();
    let stalled = Instant::now();
    stored(&api, &jobs[1..10]).await;
    let slowed = enqueued(&api, &jobs[10..]);
    // Whoever does not enqueue notices nothing.
    for job in &jobs[1..10] {
        let (status, told) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!(status, StatusCode::OK, "{told}");
    }
    let is_early = |task: &JoinHandle<bool>| task.is_finished() && stalled.elapsed() < SILENCE;
    assert!(!slowed.iter().any(is_early), "the door waits for the broker");
    (broker, api, slowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_silent_jobs_over_http_are_stored_and_then_slowed_down_and_none_is_lost() {
    let harness = Harness::new("api-silence", "").await;
    let _worker = harness.worker(&[]).await;
    let (broker, _api, slowed) = silenced(&harness).await;
    broker.heal().await.unwrap();
    for answered in slowed {
        assert!(answered.await.unwrap(), "what is slow is not refused");
    }
    harness.all_ran_once(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_told_to_stop_while_the_broker_is_silent_ends_in_time_and_loses_nothing() {
    let harness = Harness::new("api-end-silence", "").await;
    let _worker = harness.worker(&[]).await;
    let (broker, mut api, slowed) = silenced(&harness).await;
    let begun = Instant::now();
    assert!(api.process.stop().await.success(), "{}", api.process.log());
    assert!(begun.elapsed() < SILENCE + MARGIN, "{:?}", begun.elapsed());
    // The relay of the worker, for which the broker is there, publishes what was stored.
    harness.counts("state = 'succeeded'", 12).await;
    // Who waited at the door was answered, so that nobody has to send anything again.
    for answered in slowed {
        assert!(answered.await.unwrap(), "{}", api.process.log());
    }
    // What waits for the silent broker comes late.
    broker.heal().await.unwrap();
    harness.all_ran_once(12).await;
}
