//! What only a RabbitMQ broker that other people use, configure and break can do.

use std::{collections::BTreeSet, time::Duration};

use errand::{
    job::QueueType,
    queue::{
        Address, Properties, Queue, QueueErrorKind,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use reqwest::Method;
use serde_json::json;

use crate::{
    queue_contract::{
        helpers::{LIMIT, consume, id_of, ids, lane, message, message_to, publish, receive, tokens},
        options, rabbit,
    },
    support::{self, http, machine, rabbitmq, vhost, wait::until},
};

async fn publish_one(queue: &dyn Queue, to: &str, id: &str) -> Result<(), errand::queue::QueueError> {
    queue.publish(vec![message(to, id)]).await.remove(0)
}

/// An error with its causes, as the command line prints it.
fn chain(error: &errand::queue::QueueError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(" {error} {error:?}");
        source = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_foreign_publisher_sends_is_kept_as_text() {
    let vhost = vhost("foreign").await;
    let queue = rabbit(&vhost.amqp_url);
    queue.check().await.unwrap();
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut inner = FieldTable::default();
    inner.insert("n".into(), AMQPValue::LongLongInt(-7));
    inner.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(vec![true.into(), AMQPValue::Void])));
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString("00-ab-cd-01".into()));
    headers.insert("table".into(), AMQPValue::FieldTable(inner));
    headers.insert("x-errand-known".into(), AMQPValue::LongString("true".into()));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_message_id("order-1".into())
        .with_type("job".into())
        .with_app_id("shop".into())
        .with_timestamp(1_700_000_000)
        .with_delivery_mode(1)
        .with_priority(5)
        .with_content_encoding("utf-8".into());
    let options = BasicPublishOptions::default();
    channel
        .basic_publish("errand".into(), "default".into(), options, b"{}", properties)
        .await
        .unwrap()
        .await
        .unwrap();

    let mut consumer = consume(&queue, 10).await;
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    let Properties { message_id, traceparent, timestamp, from_store, mut other, .. } = delivery.properties;
    assert_eq!(timestamp, Some(1_700_000_000));
    assert_eq!(message_id.as_deref(), Some("order-1"));
    assert_eq!(traceparent.as_deref(), Some("00-ab-cd-01"));
    assert!(!from_store);
    // Later versions add headers of their own.
    other.retain(|name, _| name != "x-delivery-count");
    let expected = [
        ("type", "job"),
        ("app_id", "shop"),
        ("delivery_mode", "1"),
        ("priority", "5"),
        ("content_encoding", "utf-8"),
        ("table", "{list: [true, null], n: -7}"),
        ("x-errand-known", "true"),
    ];
    assert_eq!(other, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    drop(consumer);

    let mut consumer = consume(&queue, 10).await;
    let again = receive(&mut *consumer, 1).await.remove(0);
    assert!(again.redelivered);
    assert_eq!(again.properties.other["x-delivery-count"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_reaches_the_queue_of_the_app() {
    let vhost = vhost("reply").await;
    let queue = rabbit(&vhost.amqp_url);
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare("answers".into(), options, FieldTable::default()).await.unwrap();
    let mut reply = message_to(Address::Reply("answers".into()), "job");
    reply.properties.correlation_id = Some("c".into());
    queue.publish(vec![reply]).await.remove(0).unwrap();
    let got = channel.basic_get("answers".into(), Default::default()).await.unwrap().expect("the reply");
    assert_eq!(got.delivery.data, b"body of job");
    assert_eq!(got.delivery.properties.correlation_id().as_ref().unwrap().as_str(), "c");
    assert_eq!(*got.delivery.properties.delivery_mode(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_reaches_an_app_that_waits_without_a_queue_of_its_own() {
    let vhost = vhost("direct").await;
    let queue = rabbit(&vhost.amqp_url);
    queue.check().await.unwrap();
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let pseudo_queue = "amq.rabbitmq.reply-to";
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut answers =
        channel.basic_consume(pseudo_queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
    let properties =
        BasicProperties::default().with_message_id("job".into()).with_reply_to(pseudo_queue.into());
    let options = BasicPublishOptions::default();
    channel.basic_publish("errand".into(), "default".into(), options, b"{}", properties).await.unwrap();

    let mut consumer = consume(&queue, 1).await;
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    let to = Address::Reply(delivery.properties.reply_to.unwrap());
    queue.publish(vec![message_to(to.clone(), "job")]).await.remove(0).unwrap();
    let answer = tokio::time::timeout(LIMIT, answers.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.data, b"body of job");

    connection.close(200, "gone".into()).await.unwrap();
    // Nobody can be told that nobody is there.
    queue.publish(vec![message_to(to, "job")]).await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_an_operator_closes_ends_the_subscription() {
    let vhost = vhost("forced").await;
    let queue = rabbit(&vhost.amqp_url);
    publish(&queue, ids(0..1)).await;
    let mut consumer = consume(&queue, 1).await;
    receive(&mut *consumer, 1).await;
    let path = format!("vhosts/{}/connections", vhost.encoded_name());
    until("the connections are listed and closed", LIMIT, async || {
        let connections = vhost.manage(Method::GET, &path, None).await.unwrap();
        for connection in connections.as_array().unwrap() {
            let name = connection["name"].as_str().unwrap().replace(' ', "%20").replace('>', "%3E");
            let url = format!("{}/api/connections/{name}", vhost.management_url);
            // The list is late, so this one may be gone.
            let gone = http::client().delete(url).basic_auth("guest", Some("guest")).send().await;
            gone.unwrap();
        }
        (!queue.connected()).then_some(())
    })
    .await;
    let error = tokio::time::timeout(LIMIT, consumer.next(1)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{}", chain(&error));
    let mut consumer = consume(&queue, 1).await;
    assert!(receive(&mut *consumer, 1).await[0].redelivered);
    publish(&queue, ids(1..2)).await;
    assert_eq!(queue.reconnects(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_accepts_and_never_speaks_is_hung_up_on() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", machine::free_port())).await.unwrap();
    let queue = rabbit(&format!("amqp://{}", listener.local_addr().unwrap()));
    let (mut silent, refused) = tokio::join!(async { listener.accept().await.unwrap().0 }, queue.check());
    assert_eq!(refused.unwrap_err().kind(), QueueErrorKind::Unavailable);
    let mut said = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut said);
    tokio::time::timeout(LIMIT, ended).await.expect("the connection ends").unwrap();
    assert_eq!(said, b"AMQP\0\0\x09\x01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_a_port_without_tls_is_told() {
    // Another test may have installed it; either is the same.
    drop(rustls::crypto::ring::default_provider().install_default());
    let vhost = vhost("tls").await;
    let error = rabbit(&vhost.amqp_url.replace("amqp:", "amqps:")).check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Access, "{}", chain(&error));
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_broker_loses_nothing_that_was_confirmed() {
    let node = support::start_rabbitmq(rabbitmq::Options::default()).await;
    let queue = rabbit(&node.url());
    publish(&queue, ids(0..50)).await;
    let mut consumer = consume(&queue, 10).await;
    let settler = consumer.settler();
    let taken = receive(&mut *consumer, 10).await;
    settler.ack(tokens(&taken[..5])).await.unwrap();
    // The acknowledgement is on its way only; the broker has it when it delivers more.
    receive(&mut *consumer, 5).await;

    node.kill9().await.unwrap();
    let error = loop {
        match tokio::time::timeout(LIMIT, consumer.next(10)).await.expect("the subscription ends") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{error}");
    assert_eq!(consumer.next(1).await.unwrap_err().kind(), QueueErrorKind::Unavailable);
    until("the loss is noticed", LIMIT, async || (!queue.connected()).then_some(())).await;
    let started = std::time::Instant::now();
    let error = publish_one(&queue, "default", "lost").await.unwrap_err();
    assert!(matches!(error.kind(), QueueErrorKind::Unavailable | QueueErrorKind::Unconfirmed), "{error}");
    assert!(queue.consume(&lane("default"), 1).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());

    node.restart().await.unwrap();
    // Settling what the broker has forgotten does nothing.
    settler.ack(tokens(&taken[5..])).await.unwrap();
    drop(consumer);
    until("publishing works again", LIMIT, async || publish_one(&queue, "default", "after").await.ok()).await;
    let mut consumer =
        until("consuming works again", LIMIT, async || queue.consume(&lane("default"), 500).await.ok()).await;
    let mut seen = BTreeSet::new();
    let settler = consumer.settler();
    let mut expected: BTreeSet<_> = ids(0..50).into_iter().chain(["after".to_owned()]).collect();
    for delivery in &taken[..5] {
        assert!(expected.remove(&id_of(delivery)));
    }
    while !seen.is_superset(&expected) {
        let deliveries = receive(&mut *consumer, 1).await;
        seen.extend(deliveries.iter().map(id_of));
        settler.ack(tokens(&deliveries)).await.unwrap();
    }
    assert!(queue.reconnects() >= 2);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_to_answer_delays_a_publish_only_so_long() {
    let vhost = vhost("stalled").await;
    let port = url::Url::parse(&vhost.amqp_url).unwrap().port().unwrap();
    let proxy = support::start_proxy(port).await;
    let queue = rabbit(&proxy.url(&vhost.amqp_url).unwrap());
    publish(&queue, ids(0..1)).await;
    let mut consumer = consume(&queue, 10).await;
    let taken = receive(&mut *consumer, 1).await;

    proxy.stall();
    let started = std::time::Instant::now();
    for id in ["stalled", "next"] {
        let error = publish_one(&queue, "default", id).await.unwrap_err();
        assert!(matches!(error.kind(), QueueErrorKind::Unavailable | QueueErrorKind::Unconfirmed), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    proxy.cut().await.unwrap();
    assert_eq!(consumer.next(1).await.unwrap_err().kind(), QueueErrorKind::Unavailable);
    consumer.settler().ack(tokens(&taken)).await.unwrap();
    consumer.stop().await;

    proxy.heal().await.unwrap();
    until("publishing works again", LIMIT, async || publish_one(&queue, "default", "after").await.ok()).await;
    until("consuming works again", LIMIT, async || queue.consume(&lane("default"), 5).await.ok()).await;
    assert!(queue.reconnects() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_ends_only_its_subscription_and_is_declared_anew() {
    let vhost = vhost("deleted").await;
    let queue = rabbit(&vhost.amqp_url);
    let mut consumer = consume(&queue, 10).await;
    let mut bulk = queue.consume(&lane("bulk"), 10).await.unwrap();
    let path = format!("queues/{}/errand.default", vhost.encoded_name());
    vhost.manage(Method::DELETE, &path, None).await.unwrap();
    let error = tokio::time::timeout(LIMIT, consumer.next(1)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{error}");
    publish_one(&queue, "bulk", "unharmed").await.unwrap();
    receive(&mut *bulk, 1).await;
    let mut consumer = consume(&queue, 10).await;
    publish_one(&queue, "default", "anew").await.unwrap();
    receive(&mut *consumer, 1).await;

    // A publisher notices as well, and declares the lane before it publishes again.
    drop(consumer);
    vhost.manage(Method::DELETE, &path, None).await.unwrap();
    publish_one(&queue, "default", "found").await.unwrap();
    // A broker that is busy may answer 0.
    until("it waits", LIMIT, async || {
        (queue.depth(&lane("default")).await.unwrap().ready == 1).then_some(())
    })
    .await;
    vhost.manage(Method::DELETE, &format!("exchanges/{}/errand", vhost.encoded_name()), None).await.unwrap();
    publish_one(&queue, "default", "lost").await.unwrap_err();
    publish_one(&queue, "default", "found").await.unwrap();
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_is_told_without_the_password() {
    let vhost = vhost("login").await;
    let queue = rabbit(&vhost.amqp_url.replace("guest:guest", "guest:hunter2"));
    for _ in 0..2 {
        let error = queue.check().await.unwrap_err();
        assert_eq!(error.kind(), QueueErrorKind::Access);
        assert!(error.to_string().contains("`guest`"), "{error}");
        assert!(!chain(&error).contains("hunter2"), "{}", chain(&error));
    }
    let error = publish_one(&queue, "default", "m").await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Access);
    assert!(!format!("{queue:?} {:?}", options("amqp://guest:hunter2@mq/")).contains("hunter2"));
    assert!(!queue.connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_virtual_host_and_a_missing_broker_are_told_apart() {
    let vhost = vhost("missing").await;
    let error = rabbit(&format!("{}-not", vhost.amqp_url)).check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Access, "{}", chain(&error));
    assert!(error.to_string().contains("virtual host"), "{error}");

    let error = rabbit("amqp://guest:guest@127.0.0.1:1/").check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{}", chain(&error));
    let error = rabbit("amqp://guest:guest@does-not-exist.invalid/").check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_another_type_is_a_topology_error_that_says_what_to_do() {
    let vhost = vhost("topology").await;
    let classic =
        RabbitQueue::new(RabbitOptions { queue_type: QueueType::Classic, ..options(&vhost.amqp_url) });
    let classic = classic.unwrap();
    publish(&classic, ids(0..3)).await;
    let mut consumer = consume(&classic, 10).await;
    let deliveries = receive(&mut *consumer, 3).await;
    consumer.settler().ack(tokens(&deliveries[1..])).await.unwrap();
    drop(consumer);
    let mut consumer = consume(&classic, 10).await;
    let again = receive(&mut *consumer, 1).await;
    assert!(again[0].redelivered);
    assert_eq!(id_of(&again[0]), id_of(&deliveries[0]));

    let quorum = rabbit(&vhost.amqp_url);
    for error in [
        quorum.check().await.unwrap_err(),
        publish_one(&quorum, "default", "m").await.unwrap_err(),
        quorum.consume(&lane("default"), 1).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), QueueErrorKind::Topology, "{error}");
        assert!(error.to_string().contains("amqp.queue_type"), "{error}");
    }
    // Without declaring, whatever is there is used.
    let lax = RabbitQueue::new(RabbitOptions { declare: false, ..options(&vhost.amqp_url) }).unwrap();
    lax.check().await.unwrap();
    publish(&lax, ids(3..4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_permission_to_configure_what_exists_is_used() {
    let vhost = vhost("permissions").await;
    let (user, path) = (vhost.name.replace('/', "-"), vhost.encoded_name());
    vhost
        .manage(Method::PUT, &format!("users/{user}"), Some(json!({"password": "p", "tags": ""})))
        .await
        .unwrap();
    let permissions = json!({"configure": "", "write": "^(errand|amq\\.default)$", "read": "^errand\\..*"});
    vhost.manage(Method::PUT, &format!("permissions/{path}/{user}"), Some(permissions)).await.unwrap();
    let restricted = rabbit(&vhost.amqp_url.replace("guest:guest", &format!("{user}:p")));
    let error = restricted.check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Access, "{}", chain(&error));
    assert!(error.to_string().contains("configure"), "{error}");

    rabbit(&vhost.amqp_url).check().await.unwrap();
    restricted.check().await.unwrap();
    publish(&restricted, ids(0..5)).await;
    let mut consumer = consume(&restricted, 10).await;
    let deliveries = receive(&mut *consumer, 5).await;
    consumer.settler().ack(tokens(&deliveries)).await.unwrap();
    assert!(restricted.depth(&lane("default")).await.is_ok());
    let error = publish_one(&restricted, "nowhere", "m").await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unroutable);
    vhost.manage(Method::DELETE, &format!("users/{user}"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_declaring_what_is_missing_is_a_topology_error() {
    let vhost = vhost("undeclared").await;
    let queue = RabbitQueue::new(RabbitOptions { declare: false, ..options(&vhost.amqp_url) }).unwrap();
    let error = queue.check().await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Topology, "{error}");
    assert!(error.to_string().contains("amqp.declare"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_short_of_memory_blocks_publishing_and_nothing_else() {
    let conf = rabbitmq::Options { memory_watermark: "1MB".to_owned(), ..Default::default() };
    let node = support::start_rabbitmq(conf).await;
    let queue = rabbit(&node.url());
    let mut consumer = consume(&queue, 10).await;
    assert_eq!(queue.blocked(), None);
    let first = publish_one(&queue, "default", "first").await.unwrap_err();
    assert!(matches!(first.kind(), QueueErrorKind::Unconfirmed | QueueErrorKind::Full), "{first}");
    assert!(queue.blocked().is_some_and(|reason| reason.contains("memory")), "{:?}", queue.blocked());
    let started = std::time::Instant::now();
    for _ in 0..3 {
        let error = publish_one(&queue, "default", "later").await.unwrap_err();
        assert_eq!(error.kind(), QueueErrorKind::Full, "{error}");
    }
    assert!(queue.depth(&lane("default")).await.is_ok());
    consumer.stop().await;
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert_eq!(queue.reconnects(), 0);
    queue.close().await;
}
