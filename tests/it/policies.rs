//! What policies of the broker do to confirmed jobs, and who says so.

use errand_testbed::factory::{Envelope as _, create, send, spread};
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions},
    types::FieldTable,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// The policy that errand ships, as a file for `rabbitmqctl import_definitions`.
const SHIPPED: &str = include_str!("../../deploy/rabbitmq/policy.json");

fn shipped() -> Value {
    let file: Value = serde_json::from_str(SHIPPED).unwrap();
    file["policies"][0].clone()
}

/// Sets the policy of a harness's queues, and waits until the broker has applied it to the lane.
async fn set_policy(harness: &Harness, pattern: &str, definition: &Value) {
    let vhost = harness.vhost.encoded_name();
    let policy = json!({"pattern": pattern, "definition": definition, "apply-to": "queues"});
    harness.vhost.manage(Method::PUT, &format!("policies/{vhost}/errand"), Some(policy)).await.unwrap();
    until("the policy is applied", PATIENCE, async || {
        let queue = queue(harness, "errand.default").await?;
        definition
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| queue["effective_policy_definition"][key] == *value)
            .then_some(())
    })
    .await;
}

async fn queue(harness: &Harness, name: &str) -> Option<Value> {
    let path = format!("queues/{}/{name}", harness.vhost.encoded_name());
    harness.vhost.manage(Method::GET, &path, None).await.ok()
}

fn management_url(harness: &Harness) -> String {
    harness.vhost.management_url.replace("http://", "http://guest:guest@")
}

fn doctor(harness: &Harness, management_url: &str) -> String {
    let mut env = harness.env();
    env.push(("ERRAND__AMQP__MANAGEMENT_URL".to_owned(), management_url.to_owned()));
    String::from_utf8(run(&["doctor"], &env).stdout).unwrap()
}

/// Declares all queues, as a worker does that was there before.
async fn declared(harness: &Harness) {
    let mut worker = harness.worker(&[]).await;
    until("the queue of dead letters is there", PATIENCE, async || queue(harness, "errand.dead").await).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_drops_jobs_is_told_by_doctor_by_the_log_and_by_a_metric() {
    let harness = Harness::new("policy", "").await;
    declared(&harness).await;
    let url = management_url(&harness);
    assert!(doctor(&harness, "").contains("its policies are unknown"));
    assert!(doctor(&harness, &url).contains("no policy makes it drop"), "{}", doctor(&harness, &url));
    let wrong = url.replace("guest:guest", "guest:hunter2");
    let told = doctor(&harness, &wrong);
    assert!(told.contains("its policies are unknown") && told.contains("tag `management`"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");

    let dropping = json!({"message-ttl": 3_600_000, "max-length": 1_000_000, "delivery-limit": 30});
    set_policy(&harness, "^errand\\.", &dropping).await;
    let told = doctor(&harness, &url);
    for what in [
        "longer than 3600000 ms",
        "beyond 1000000",
        "after 30 deliveries",
        "queue `errand.bulk`",
        "rabbitmqctl",
    ] {
        assert!(told.contains(what), "{what}: {told}");
    }
    let worker = harness.worker(&[("ERRAND__AMQP__MANAGEMENT_URL", &url)]).await;
    for kind in ["ttl", "max_length", "delivery_limit"] {
        // Of both lanes and the queue of dead letters.
        worker.metric_reaches(&format!("errand_broker_policy_risks{{kind=\"{kind}\"}}"), 3.0).await;
    }
    worker.logged("the broker can lose confirmed messages: queue `errand.default` drops").await;

    // With the policy that errand ships, the same limits lose nothing.
    let mut definition = shipped()["definition"].clone();
    definition.as_object_mut().unwrap().extend(dropping.as_object().unwrap().clone());
    set_policy(&harness, shipped()["pattern"].as_str().unwrap(), &definition).await;
    assert!(doctor(&harness, &url).contains("no policy makes it drop"), "{}", doctor(&harness, &url));
    // Without one part of it the broker dead-letters at most once, and says so nowhere.
    definition["overflow"] = json!("drop-head");
    set_policy(&harness, shipped()["pattern"].as_str().unwrap(), &definition).await;
    let at_most_once = doctor(&harness, &url);
    assert!(at_most_once.contains("dead-letters at most once"), "{at_most_once}");
    // What doctor prints is what is shipped.
    let command = told.split("set_policy").nth(1).unwrap();
    let printed: Vec<&str> = command.split('\'').collect();
    assert_eq!(printed[1], shipped()["pattern"]);
    assert_eq!(serde_json::from_str::<Value>(printed[3]).unwrap(), shipped()["definition"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_dead_letters_runs_as_a_job_of_its_lane() {
    let harness = Harness::new("dead", "").await;
    declared(&harness).await;
    let mut definition = shipped()["definition"].clone();
    definition["message-ttl"] = json!(300);
    set_policy(&harness, shipped()["pattern"].as_str().unwrap(), &definition).await;
    let jobs = spread(20, send);
    harness.publish(&jobs).await;
    let bulk: Vec<Value> = spread(5, create);
    let bodies: Vec<_> = bulk.iter().map(|job| job.to_string().into_bytes()).collect();
    harness.publish_to("bulk", &bodies, BasicProperties::default().with_delivery_mode(2)).await;
    // A dead letter keeps who published it, by which its reply is judged.
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (options, none) = (QueueDeclareOptions::default(), FieldTable::default());
    channel.queue_declare("guest.replies".into(), options, none).await.unwrap();
    let asks = BasicProperties::default().with_delivery_mode(2).with_user_id("guest".into());
    let asks = asks.with_reply_to("guest.replies".into());
    let body = send("u-alice").to_string().into_bytes();
    harness.publish_raw(std::slice::from_ref(&body), asks.clone()).await;
    // Nobody consumes, so all of them expire.
    until("all are dead", PATIENCE, async || {
        (queue(&harness, "errand.dead").await?["messages"] == 26).then_some(())
    })
    .await;

    // What comes straight to that queue says nothing about its lane, and is kept.
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let stray = send("u-alice").to_string();
    channel
        .basic_publish("".into(), "errand.dead".into(), options, stray.as_bytes(), properties)
        .await
        .unwrap();

    until("the stray one is there, and all are told", PATIENCE, async || {
        doctor(&harness, &management_url(&harness)).contains("27 dead letters wait").then_some(())
    })
    .await;
    let mut worker = harness.worker(&[]).await;
    harness.counts("state = 'succeeded' and queue = 'default'", 21).await;
    harness.counts("state = 'succeeded' and queue = 'bulk'", 5).await;
    worker.metric_reaches("errand_dead_letters_total", 27.0).await;
    until("the stray message is kept", PATIENCE, async || {
        let kept = harness.text("select queue || ' ' || reason from rejected").await?;
        (kept == "dead bad_value").then_some(())
    })
    .await;
    let reply = async |kind: &str| {
        let reply = until(kind, PATIENCE, async || {
            channel.basic_get("guest.replies".into(), BasicGetOptions { no_ack: true }).await.unwrap()
        })
        .await;
        let properties = &reply.delivery.properties;
        assert_eq!(properties.kind().as_ref().unwrap().as_str(), kind);
        properties.correlation_id().as_ref().map(ToString::to_string)
    };
    // The stray message asked for none.
    reply("final").await;
    assert!(!worker.readiness().await["consuming"].as_object().unwrap().contains_key("dead"));

    // A dead letter that repeats a job is answered as one that the broker delivers again: not where the end of the job was
    // the answer.
    assert!(worker.stop().await.success());
    harness.publish_raw(std::slice::from_ref(&body), asks.clone()).await;
    harness.publish_raw(&[body], asks.with_correlation_id("again".into())).await;
    until("it is dead", PATIENCE, async || {
        let depth = channel.queue_declare("errand.dead".into(), passive(), FieldTable::default());
        (depth.await.unwrap().message_count() == 2).then_some(())
    })
    .await;
    let worker = harness.worker(&[]).await;
    assert_eq!(reply("duplicate").await.as_deref(), Some("again"));
    until("no other is offered", PATIENCE, async || {
        let owed = harness.text("select count(*)::text from answers").await?;
        (owed == "0" && worker.metric("errand_dead_letters_total").await == 2.0).then_some(())
    })
    .await;
    assert_eq!(worker.metric("errand_replies_total{reply=\"duplicate\",result=\"sent\"}").await, 1.0);
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects, ledger.jobs_repeated), (26, 0), "{ledger:?}");
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_over_a_delivery_limit_runs_all_the_same() {
    let harness = Harness::new("limit", "").await;
    declared(&harness).await;
    let mut definition = shipped()["definition"].clone();
    definition["delivery-limit"] = json!(2);
    set_policy(&harness, shipped()["pattern"].as_str().unwrap(), &definition).await;
    let job = send("u-alice");
    harness.publish(std::slice::from_ref(&job)).await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    // As a worker in a crash loop does. Some versions count only what is rejected, so it is.
    until("the broker has had enough", PATIENCE, async || {
        let taken = channel.basic_get("errand.default".into(), BasicGetOptions::default()).await.unwrap();
        if let Some(taken) = taken {
            let options = lapin::options::BasicRejectOptions { requeue: true };
            channel.basic_reject(taken.delivery.delivery_tag, options).await.unwrap();
        }
        (queue(&harness, "errand.dead").await?["messages"] == 1).then_some(())
    })
    .await;
    let _worker = harness.worker(&[]).await;
    harness.job_in(job.id(), &["succeeded"]).await;
}
