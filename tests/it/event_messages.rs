//! What the queue does with events: what becomes of them, and that it is nobody else's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use errand::queue::{
    Address, Message, Queue, QueueError, QueueErrorKind,
    embedded::EmbeddedQueue,
    rabbitmq::{RabbitOptions, RabbitQueue},
};
use lapin::{
    ExchangeKind,
    message::Delivery,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueuePurgeOptions},
    types::FieldTable,
};
use reqwest::Method;
use serde_json::json;

use crate::{
    event_exchange::bind,
    event_exchange_faults::{OTHERS, at_most, permit, restricted},
    queue_contract::{
        helpers::{LIMIT, ids, lanes, message, message_to, publish},
        options, rabbit,
    },
    refused::{kinds, set_working},
    support::{rabbitmq::Vhost, vhost, wait::until},
};

fn event(key: &str, id: &str) -> Message {
    let mut event = message_to(Address::Events(key.into()), id);
    event.properties.kind = Some("job.failed");
    event.properties.timestamp = Some(1_700_000_000);
    event
}

fn events(key: &str, count: usize) -> Vec<Message> {
    ids(0..count).iter().map(|id| event(key, id)).collect()
}

async fn publish_one(queue: &dyn Queue, message: Message) -> Result<(), QueueError> {
    queue.publish(vec![message]).await.remove(0)
}

/// The path of the exchange in the management API.
fn exchange(vhost: &Vhost) -> String {
    format!("exchanges/{}/errand.events", vhost.encoded_name())
}

/// Takes the next message from a queue.
async fn taken(vhost: &Vhost, queue: &str) -> Delivery {
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    until(&format!("a message in `{queue}`"), LIMIT, async || {
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await
    .delivery
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_those_who_have_bound_a_queue_and_need_nobody() {
    let vhost = vhost("events").await;
    let queue = rabbit(&vhost.amqp_url);
    queue.check_events().await.unwrap();
    let made = vhost.manage(Method::GET, &exchange(&vhost), None).await.unwrap();
    let traits = ["type", "durable", "auto_delete", "internal"].map(|name| &made[name]);
    assert_eq!(traits, [&json!("topic"), &json!(true), &json!(false), &json!(false)], "{made}");
    assert_eq!(kinds(queue.publish(events("job.failed.github", 600)).await), []);

    bind(&vhost, "app", &["job.*.github"], FieldTable::default()).await;
    let batch = vec![
        event("job.failed.gmail", "another"),
        message("default", "job"),
        event("job.failed.github", "e"),
        message_to(Address::Reply("nobody".into()), "reply"),
        event("batch.completed.none", "batch"),
    ];
    assert_eq!(kinds(queue.publish(batch).await), [(3, QueueErrorKind::Unroutable)]);
    let Delivery { routing_key, properties, data, .. } = taken(&vhost, "app").await;
    assert_eq!((routing_key.as_str(), &*data), ("job.failed.github", &b"body of e"[..]));
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "job.failed");
    assert_eq!((*properties.timestamp(), *properties.delivery_mode()), (Some(1_700_000_000), Some(2)));
    let long = format!("job.failed.{}", "x".repeat(255));
    assert_eq!(kinds(queue.publish(events(&long, 1)).await), [(0, QueueErrorKind::Unroutable)]);

    // The bindings are gone with it, which nobody can know.
    vhost.manage(Method::DELETE, &exchange(&vhost), None).await.unwrap();
    let lost = publish_one(&queue, event("job.failed.github", "lost")).await.unwrap_err();
    assert_eq!(lost.kind(), QueueErrorKind::Unconfirmed, "{lost}");
    publish(&queue, ids(0..3)).await;
    assert_eq!(kinds(queue.publish(events("job.failed.github", 3)).await), []);
    bind(&vhost, "app", &["#"], FieldTable::default()).await;
    publish_one(&queue, event("job.failed.github", "found")).await.unwrap();
    assert_eq!(taken(&vhost, "app").await.data, b"body of found");
    assert_eq!(queue.reconnects(), 0);
    queue.close().await;
    let closed = queue.check_events().await.unwrap_err();
    assert_eq!(closed.kind(), QueueErrorKind::Unavailable, "{closed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_permission_for_events_is_named_and_concerns_events_alone() {
    let vhost = vhost("forbidden-events").await;
    let queue = rabbit(&restricted(&vhost).await);
    let missing = "may not create it";
    let error = queue.check_events().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Access, "{error}");
    assert!(error.to_string().contains("`errand.events`") && error.to_string().contains(missing), "{error}");
    let batch = vec![message("default", "a"), event("job.failed.x", "b"), message("bulk", "c")];
    let answers = queue.publish(batch).await;
    assert!(answers[1].as_ref().unwrap_err().to_string().contains(missing), "{answers:?}");
    assert_eq!(kinds(answers), [(1, QueueErrorKind::Access)]);

    rabbit(&vhost.amqp_url).check_events().await.unwrap();
    queue.check_events().await.unwrap();
    for _ in 0..2 {
        let answers = queue.publish(events("job.failed.x", 30)).await;
        for answer in &answers {
            let error = answer.as_ref().unwrap_err().to_string();
            assert!(error.contains("permission to write to the exchange `errand.events`"), "{error}");
        }
        assert!(kinds(answers).iter().all(|(_, kind)| *kind == QueueErrorKind::Access));
        publish(&queue, ids(0..3)).await;
    }
    // It need not configure what is there.
    permit(&vhost, OTHERS, ".*").await;
    until("the broker knows what is permitted", LIMIT, async || {
        publish_one(&queue, event("job.failed.x", "m")).await.ok()
    })
    .await;
    assert_eq!(kinds(queue.publish(events("job.failed.x", 30)).await), []);
    assert_eq!(queue.reconnects(), 0);
    let user = vhost.name.replace('/', "-");
    vhost.manage(Method::DELETE, &format!("users/{user}"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_for_events_of_another_type_is_told_and_harms_no_lane() {
    let vhost = vhost("events-differ").await;
    let queue = rabbit(&vhost.amqp_url);
    queue.check().await.unwrap();
    let lax = RabbitQueue::new(RabbitOptions { declare: false, ..options(&vhost.amqp_url) }).unwrap();
    let error = lax.check_events().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Topology, "{error}");
    let told = error.to_string();
    assert!(told.contains("`errand.events`") && told.contains("amqp.declare = true"), "{told}");

    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (options, none) =
        (ExchangeDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    channel.exchange_declare("errand.events".into(), ExchangeKind::Direct, options, none).await.unwrap();
    let error = queue.check_events().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Topology, "{error}");
    let batch = || vec![message("default", "a"), event("job.failed.x", "b"), message("default", "c")];
    for _ in 0..2 {
        let answers = queue.publish(batch()).await;
        let told = answers[1].as_ref().unwrap_err().to_string();
        assert!(told.contains("`errand.events`") && told.contains("amqp.declare = false"), "{told}");
        assert_eq!(kinds(answers), [(1, QueueErrorKind::Topology)]);
    }
    // Whoever declares nothing uses what is there.
    lax.check_events().await.unwrap();
    assert_eq!(kinds(lax.publish(batch()).await), []);
    vhost.manage(Method::DELETE, &exchange(&vhost), None).await.unwrap();
    assert_eq!(kinds(queue.publish(batch()).await), []);
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_queue_that_is_full_refuses_its_own_events_only() {
    let vhost = vhost("full-events").await;
    let queue = rabbit(&vhost.amqp_url);
    bind(&vhost, "small", &["job.succeeded.*"], at_most(1)).await;
    until("the queue refuses more", LIMIT, async || {
        publish_one(&queue, event("job.succeeded.x", "m")).await.is_err().then_some(())
    })
    .await;
    let batch =
        || vec![event("job.succeeded.gmail", "a"), event("job.failed.gmail", "b"), message("default", "c")];
    let answers = queue.publish(batch()).await;
    let told = answers[0].as_ref().unwrap_err().to_string();
    assert!(told.contains("`errand.events` for `job.succeeded.gmail` is full"), "{told}");
    assert_eq!(kinds(answers), [(0, QueueErrorKind::Refused)]);
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_purge("small".into(), QueuePurgeOptions::default()).await.unwrap();
    assert_eq!(kinds(queue.publish(batch()).await), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lane_waits_for_a_bound_queue_that_confirms_nothing() {
    let vhost = vhost("stuck-events").await;
    let queue = Arc::new(rabbit(&vhost.amqp_url));
    bind(&vhost, "slow", &["job.failed.*"], FieldTable::default()).await;
    assert_eq!(kinds(queue.publish(events("job.failed.x", 3)).await), []);
    set_working(&vhost, "slow", false).await;
    let publishing = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { queue.publish(events("job.failed.x", 300)).await })
    };
    let mut lanes = 0;
    while !publishing.is_finished() {
        let begun = Instant::now();
        publish(&*queue, ids(0..1)).await;
        assert!(begun.elapsed() < Duration::from_secs(9), "it waited for {:?}", begun.elapsed());
        lanes += 1;
    }
    assert!(lanes > 10, "{lanes}");
    let answers = publishing.await.unwrap();
    let told = answers[0].as_ref().unwrap_err().to_string();
    assert!(told.contains("bound to the exchange `errand.events` for `job.failed.x`"), "{told}");
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|e| e.kind() == QueueErrorKind::Stuck)));
    set_working(&vhost, "slow", true).await;
    until("they are tried again", LIMIT, async || {
        queue.publish(events("job.failed.x", 300)).await.iter().all(Result::is_ok).then_some(())
    })
    .await;
    assert_eq!(queue.reconnects(), 0, "the connection is nobody's to lose");
}

#[tokio::test]
async fn the_embedded_queue_has_no_exchange_for_events() {
    let queue = EmbeddedQueue::new(lanes(), 10);
    assert_eq!(queue.check_events().await.unwrap_err().kind(), QueueErrorKind::Unroutable);
    let answers = queue.publish(vec![event("job.failed.x", "a"), message("default", "b")]).await;
    assert_eq!(kinds(answers), [(0, QueueErrorKind::Unroutable)]);
}
