//! The guarantees of the queue seam, each as a test that runs on every backend, and what only a real
//! broker can do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use errand::{
    job::{QueueName, QueueType},
    queue::{
        Address, Consumer, Delivery, Message, Properties, Queue, QueueErrorKind, SharedQueue, Token,
        embedded::EmbeddedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
};

use crate::support::{rabbitmq, wait::until};

/// Long enough for a busy machine; every wait ends as soon as its level is reached.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a test watches that something does not happen.
const QUIET: Duration = Duration::from_millis(300);

const LANES: [&str; 2] = ["default", "bulk"];

fn lane(name: &str) -> QueueName {
    name.parse().unwrap()
}

fn lanes() -> Vec<QueueName> {
    LANES.map(lane).to_vec()
}

fn message(to: &str, id: &str) -> Message {
    message_to(Address::Lane(lane(to)), id)
}

fn message_to(to: Address, id: &str) -> Message {
    let properties = Properties { message_id: Some(id.to_owned()), ..Properties::default() };
    Message { to, body: Bytes::from(format!("body of {id}")), properties, priority: 0 }
}

async fn publish(queue: &dyn Queue, ids: impl IntoIterator<Item = String>) {
    let batch = ids.into_iter().map(|id| message("default", &id)).collect();
    for result in queue.publish(batch).await {
        result.unwrap();
    }
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("m{n}")).collect()
}

fn id_of(delivery: &Delivery) -> String {
    delivery.properties.message_id.clone().unwrap()
}

fn tokens(deliveries: &[Delivery]) -> Vec<Token> {
    deliveries.iter().map(|delivery| delivery.token).collect()
}

async fn consume(queue: &dyn Queue, prefetch: u16) -> Box<dyn Consumer> {
    queue.consume(&lane("default"), prefetch).await.unwrap()
}

/// Waits for exactly so many deliveries.
async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let next = tokio::time::timeout(LIMIT, consumer.next(count - deliveries.len()));
        let next = next.await.unwrap_or_else(|_| panic!("{} of {count} deliveries", deliveries.len()));
        deliveries.extend(next.unwrap());
    }
    deliveries
}

/// Whether nothing is delivered for a while.
async fn is_quiet(consumer: &mut dyn Consumer) -> bool {
    tokio::time::timeout(QUIET, consumer.next(1)).await.is_err()
}

/// A queue of its own for one test.
trait Backend {
    async fn queue(hint: &str) -> SharedQueue;
}

struct Embedded;

impl Backend for Embedded {
    async fn queue(_hint: &str) -> SharedQueue {
        Arc::new(EmbeddedQueue::new(lanes(), 10_000))
    }
}

struct Rabbit;

impl Backend for Rabbit {
    async fn queue(hint: &str) -> SharedQueue {
        let vhost = rabbitmq::shared().await.vhost(hint).await;
        Arc::new(rabbit(&vhost.amqp_url))
    }
}

fn options(url: &str) -> RabbitOptions {
    RabbitOptions {
        url: url.to_owned().into(),
        queue_type: QueueType::Quorum,
        declare: true,
        lanes: lanes(),
        connection_name: "contract".to_owned(),
        heartbeat: Duration::from_secs(10),
    }
}

fn rabbit(url: &str) -> RabbitQueue {
    RabbitQueue::new(options(url)).unwrap()
}

macro_rules! contract {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::Embedded>(stringify!($name)).await;
            })*
        }
        mod rabbit {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::Rabbit>(stringify!($name)).await;
            })*
        }
    };
}

contract! {
    a_message_arrives_as_it_was_published
    the_known_mark_arrives_only_when_it_was_set
    exactly_the_unroutable_messages_of_a_batch_fail
    a_reply_to_a_queue_that_does_not_exist_is_unroutable
    thousands_of_concurrent_messages_are_all_confirmed
    unsettled_deliveries_come_again_when_their_consumer_is_gone
    at_most_prefetch_deliveries_are_unsettled
    one_unsettled_delivery_does_not_stop_the_others
    acknowledged_out_of_order_nothing_comes_again
    what_is_given_back_goes_to_another_consumer
    settling_twice_or_after_the_end_does_nothing
    next_loses_nothing_when_its_future_is_dropped
    next_is_never_empty_and_never_more_than_asked
    stop_gives_back_what_was_not_returned_and_leaves_the_rest_settleable
    two_consumers_share_a_lane
    depth_counts_what_waits_and_who_consumes
    consuming_declares_the_lane
    check_says_what_it_is
    a_closed_queue_refuses_everything_at_once
}

async fn a_message_arrives_as_it_was_published<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let properties = Properties {
        message_id: Some("m".into()),
        correlation_id: Some("correlation".into()),
        reply_to: Some("answers".into()),
        content_type: Some("application/json".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        from_store: true,
        unreadable: None,
        other: BTreeMap::new(),
    };
    let body = Bytes::from_static(b"{\"bytes\":\"\xf0\x9f\xa6\x80\"}\x00\xff");
    let to = Address::Lane(lane("bulk"));
    let sent = Message { to, body: body.clone(), properties: properties.clone(), priority: 0 };
    for result in queue.publish(vec![sent]).await {
        result.unwrap();
    }
    let mut consumer = queue.consume(&lane("bulk"), 10).await.unwrap();
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    assert_eq!(delivery.body, body);
    assert_eq!(delivery.properties, properties);
    assert!(!delivery.redelivered);
    queue.close().await;
}

async fn the_known_mark_arrives_only_when_it_was_set<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let mut marked = message("default", "marked");
    marked.properties.from_store = true;
    for result in queue.publish(vec![marked, message("default", "plain")]).await {
        result.unwrap();
    }
    let mut consumer = consume(&*queue, 10).await;
    for delivery in receive(&mut *consumer, 2).await {
        assert_eq!(delivery.properties.from_store, id_of(&delivery) == "marked");
    }
}

async fn exactly_the_unroutable_messages_of_a_batch_fail<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let publishers = (0..8).map(|publisher| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let batch = |n| {
                // The same IDs go to lanes that exist and to one that does not, which must not confuse anyone.
                let to = if n % 7 == publisher % 7 { "nowhere" } else { "default" };
                message(to, &format!("m{}", n / 2))
            };
            let batch: Vec<Message> = (0..500).map(batch).collect();
            let lost: Vec<bool> =
                batch.iter().map(|message| message.to == Address::Lane(lane("nowhere"))).collect();
            let results = queue.publish(batch).await;
            assert_eq!(results.len(), lost.len());
            for (result, lost) in results.into_iter().zip(lost) {
                match result {
                    Ok(()) => assert!(!lost, "an unroutable message passes for published"),
                    Err(error) => {
                        assert_eq!(error.kind(), QueueErrorKind::Unroutable, "{error}");
                        assert!(lost, "a published message passes for unroutable");
                    }
                }
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
}

async fn a_reply_to_a_queue_that_does_not_exist_is_unroutable<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    for name in ["answers", &"x".repeat(300)] {
        let reply = message_to(Address::Reply(name.to_owned()), "m");
        let error = queue.publish(vec![reply]).await.remove(0).unwrap_err();
        assert_eq!(error.kind(), QueueErrorKind::Unroutable, "{error}");
    }
}

async fn thousands_of_concurrent_messages_are_all_confirmed<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let mut publishers = Vec::new();
    for n in 0..2_000 {
        let queue = Arc::clone(&queue);
        publishers.push(tokio::spawn(async move { publish(&*queue, [format!("m{n}")]).await }));
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    publish(&*queue, ids(2_000..4_000)).await;
    let mut consumer = consume(&*queue, 500).await;
    let settler = consumer.settler();
    let mut seen = BTreeSet::new();
    while seen.len() < 4_000 {
        let deliveries = receive(&mut *consumer, 1).await;
        seen.extend(deliveries.iter().map(id_of));
        settler.ack(tokens(&deliveries)).await.unwrap();
    }
    assert_eq!(seen, ids(0..4_000).into_iter().collect());
}

async fn unsettled_deliveries_come_again_when_their_consumer_is_gone<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..10)).await;
    let mut consumer = consume(&*queue, 100).await;
    let deliveries = receive(&mut *consumer, 10).await;
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
    let settler = consumer.settler();
    settler.ack(tokens(&deliveries[2..5])).await.unwrap();
    settler.ack(tokens(&deliveries[..2])).await.unwrap();
    // The settler is still alive, and does not keep the deliveries.
    drop(consumer);
    let mut consumer = consume(&*queue, 100).await;
    let again = receive(&mut *consumer, 5).await;
    assert!(again.iter().all(|delivery| delivery.redelivered));
    let again: BTreeSet<_> = again.iter().map(id_of).collect();
    assert_eq!(again, ids(5..10).into_iter().collect());
    assert!(is_quiet(&mut *consumer).await);
    drop(settler);
}

async fn at_most_prefetch_deliveries_are_unsettled<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..30)).await;
    let mut consumer = consume(&*queue, 7).await;
    let first = receive(&mut *consumer, 7).await;
    assert!(is_quiet(&mut *consumer).await);
    consumer.settler().ack(tokens(&first)).await.unwrap();
    receive(&mut *consumer, 7).await;
    assert!(is_quiet(&mut *consumer).await);
}

async fn one_unsettled_delivery_does_not_stop_the_others<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..40)).await;
    let mut consumer = consume(&*queue, 4).await;
    let settler = consumer.settler();
    let stuck = receive(&mut *consumer, 1).await;
    for _ in 1..40 {
        let delivery = receive(&mut *consumer, 1).await;
        settler.ack(tokens(&delivery)).await.unwrap();
    }
    settler.ack(tokens(&stuck)).await.unwrap();
    drop(consumer);
    let mut consumer = consume(&*queue, 4).await;
    assert!(is_quiet(&mut *consumer).await);
}

async fn acknowledged_out_of_order_nothing_comes_again<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..200)).await;
    let mut consumer = consume(&*queue, 200).await;
    let deliveries = receive(&mut *consumer, 200).await;
    let mut tokens = tokens(&deliveries);
    fastrand::Rng::with_seed(7).shuffle(&mut tokens);
    let settlers = tokens.chunks(9).map(|chunk| {
        let (settler, chunk) = (consumer.settler(), chunk.to_vec());
        tokio::spawn(async move { settler.ack(chunk).await.unwrap() })
    });
    for settler in settlers.collect::<Vec<_>>() {
        settler.await.unwrap();
    }
    drop(consumer);
    let mut consumer = consume(&*queue, 200).await;
    assert!(is_quiet(&mut *consumer).await);
}

async fn what_is_given_back_goes_to_another_consumer<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..10)).await;
    let mut first = consume(&*queue, 10).await;
    let deliveries = receive(&mut *first, 10).await;
    let mut second = consume(&*queue, 10).await;
    first.stop().await;
    let settler = first.settler();
    settler.give_back(tokens(&deliveries[3..6])).await.unwrap();
    let returned = receive(&mut *second, 3).await;
    assert!(returned.iter().all(|delivery| delivery.redelivered));
    let returned: BTreeSet<_> = returned.iter().map(id_of).collect();
    assert_eq!(returned, deliveries[3..6].iter().map(id_of).collect());
    // The others belong to the first consumer still.
    settler.ack(tokens(&deliveries)).await.unwrap();
    drop(first);
    assert!(is_quiet(&mut *second).await);
}

async fn settling_twice_or_after_the_end_does_nothing<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..4)).await;
    let mut consumer = consume(&*queue, 2).await;
    let settler = consumer.settler();
    let deliveries = receive(&mut *consumer, 2).await;
    for _ in 0..2 {
        settler.ack(tokens(&deliveries)).await.unwrap();
        settler.give_back(tokens(&deliveries)).await.unwrap();
    }
    settler.ack(vec![Token(0), Token(999)]).await.unwrap();
    // The subscription has survived that.
    let rest = receive(&mut *consumer, 2).await;
    drop(consumer);
    let mut consumer = consume(&*queue, 2).await;
    let again = receive(&mut *consumer, 2).await;
    // These tokens name deliveries of the first subscription, which is over, and of no other.
    settler.ack(tokens(&rest)).await.unwrap();
    settler.ack(tokens(&again)).await.unwrap();
    drop(consumer);
    let mut consumer = consume(&*queue, 2).await;
    receive(&mut *consumer, 2).await;
}

async fn next_loses_nothing_when_its_future_is_dropped<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let publisher = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            for n in 0..300 {
                publish(&*queue, [format!("m{n}")]).await;
            }
        })
    };
    let mut consumer = consume(&*queue, 1_000).await;
    let mut seen = BTreeSet::new();
    let receiving = async {
        while seen.len() < 300 {
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_500))) => {}
                next = consumer.next(3) => seen.extend(next.unwrap().iter().map(id_of)),
            }
        }
    };
    tokio::time::timeout(LIMIT, receiving).await.expect("every message is received");
    publisher.await.unwrap();
}

async fn next_is_never_empty_and_never_more_than_asked<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..20)).await;
    let mut consumer = consume(&*queue, 20).await;
    let mut seen = 0;
    while seen < 20 {
        let batch = consumer.next(6).await.unwrap();
        assert!((1..=6).contains(&batch.len()));
        seen += batch.len();
    }
    // Asked for nothing, it still returns something, since empty would mean nothing.
    publish(&*queue, ids(20..21)).await;
    consumer.settler().ack((1..=20).map(Token).collect()).await.unwrap();
    assert_eq!(consumer.next(0).await.unwrap().len(), 1);
}

async fn stop_gives_back_what_was_not_returned_and_leaves_the_rest_settleable<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..20)).await;
    let mut first = consume(&*queue, 20).await;
    let taken = receive(&mut *first, 5).await;
    first.stop().await;
    let error = first.next(1).await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable);
    let mut second = consume(&*queue, 100).await;
    let rest: BTreeSet<_> = receive(&mut *second, 15).await.iter().map(id_of).collect();
    let taken_ids: BTreeSet<_> = taken.iter().map(id_of).collect();
    assert!(rest.is_disjoint(&taken_ids));
    first.settler().ack(tokens(&taken)).await.unwrap();
    first.stop().await;
    drop(first);
    assert!(is_quiet(&mut *second).await);
}

async fn two_consumers_share_a_lane<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let mut consumers = [consume(&*queue, 5).await, consume(&*queue, 5).await];
    publish(&*queue, ids(0..40)).await;
    let mut seen: HashMap<String, usize> = HashMap::new();
    for round in 0..8 {
        let consumer = &mut consumers[round % 2];
        let deliveries = receive(&mut **consumer, 5).await;
        deliveries.iter().for_each(|delivery| *seen.entry(id_of(delivery)).or_default() += 1);
        consumer.settler().ack(tokens(&deliveries)).await.unwrap();
    }
    assert_eq!(seen.len(), 40);
    assert!(seen.values().all(|count| *count == 1));
}

async fn depth_counts_what_waits_and_who_consumes<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..12)).await;
    let depth = async |ready, consumers| {
        until(&format!("{ready} ready, {consumers} consumers"), LIMIT, async || {
            let depth = queue.depth(&lane("default")).await.unwrap();
            (depth.ready == ready && depth.consumers == consumers).then_some(())
        })
        .await;
    };
    depth(12, 0).await;
    let mut consumer = consume(&*queue, 5).await;
    let deliveries = receive(&mut *consumer, 5).await;
    depth(7, 1).await;
    // A stopped consumer may count for as long as it has unsettled deliveries.
    consumer.stop().await;
    consumer.settler().give_back(tokens(&deliveries)).await.unwrap();
    depth(12, 0).await;
    let error = queue.depth(&lane("nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unroutable, "{error}");
    // Asking for what is not there has not hurt anyone.
    depth(12, 0).await;
}

async fn consuming_declares_the_lane<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let mut consumer = queue.consume(&lane("late"), 1).await.unwrap();
    for result in queue.publish(vec![message("late", "m")]).await {
        result.unwrap();
    }
    receive(&mut *consumer, 1).await;
}

async fn check_says_what_it_is<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    let said = queue.check().await.unwrap();
    assert!(said.to_lowercase().contains(&queue.backend().to_lowercase()), "{said}");
    assert!(queue.connected());
    assert_eq!(queue.reconnects(), 0);
    assert_eq!(said.chars().any(|c| c.is_ascii_digit()), queue.survives_restart(), "{said}");
}

async fn a_closed_queue_refuses_everything_at_once<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..1)).await;
    let mut consumer = consume(&*queue, 1).await;
    receive(&mut *consumer, 1).await;
    let started = std::time::Instant::now();
    queue.close().await;
    assert!(!queue.connected());
    let kinds = [
        consumer.next(1).await.unwrap_err().kind(),
        queue.publish(vec![message("default", "m")]).await.remove(0).unwrap_err().kind(),
        queue.consume(&lane("default"), 1).await.unwrap_err().kind(),
        queue.check().await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [QueueErrorKind::Unavailable; 4]);
    consumer.stop().await;
    drop(consumer);
    queue.close().await;
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// What is bounded in memory, and replies without a broker.
mod embedded_only {
    use super::*;

    #[tokio::test]
    async fn a_full_lane_refuses_after_a_while_and_takes_more_when_there_is_room() {
        let queue = Arc::new(EmbeddedQueue::new(lanes(), 3));
        publish(&*queue, ids(0..3)).await;
        let mut consumer = consume(&*queue, 10).await;
        let taken = receive(&mut *consumer, 2).await;
        // What is delivered and not settled takes room as well.
        let batch = ids(3..5).iter().map(|id| message("default", id)).collect();
        let started = std::time::Instant::now();
        for result in queue.publish(batch).await {
            assert_eq!(result.unwrap_err().kind(), QueueErrorKind::Full);
        }
        assert!(started.elapsed() < Duration::from_secs(10));
        let waiting = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { publish(&*queue, ids(3..4)).await })
        };
        consumer.settler().ack(tokens(&taken[..1])).await.unwrap();
        waiting.await.unwrap();
        drop(consumer);
        let mut consumer = consume(&*queue, 10).await;
        let order: Vec<_> = receive(&mut *consumer, 3).await.iter().map(id_of).collect();
        assert_eq!(order, ["m1", "m2", "m3"]);
    }

    #[tokio::test]
    async fn a_reply_queue_exists_until_its_receiver_is_dropped() {
        let queue = EmbeddedQueue::new(lanes(), 10);
        let mut answers = queue.reply_queue("answers");
        let reply = || vec![message_to(Address::Reply("answers".into()), "m")];
        queue.publish(reply()).await.remove(0).unwrap();
        assert_eq!(answers.recv().await.unwrap().properties.message_id.as_deref(), Some("m"));
        drop(answers);
        let error = queue.publish(reply()).await.remove(0).unwrap_err();
        assert_eq!(error.kind(), QueueErrorKind::Unroutable);
    }
}

/// What only a broker that other people use, configure and break can do.
mod broker {
    use futures_util::StreamExt as _;
    use lapin::{
        BasicProperties,
        options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
        types::{AMQPValue, FieldArray, FieldTable},
    };
    use reqwest::Method;
    use serde_json::json;

    use super::*;
    use crate::support::{Proxy, RabbitMq, http, machine, rabbitmq::Vhost};

    async fn vhost(hint: &str) -> Vhost {
        rabbitmq::shared().await.vhost(hint).await
    }

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
        let connection = vhost.connect().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongLongInt(-7));
        inner.insert(
            "list".into(),
            AMQPValue::FieldArray(FieldArray::from(vec![true.into(), AMQPValue::Void])),
        );
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
        let Properties { message_id, traceparent, from_store, mut other, .. } = delivery.properties;
        assert_eq!(message_id.as_deref(), Some("order-1"));
        assert_eq!(traceparent.as_deref(), Some("00-ab-cd-01"));
        assert!(!from_store);
        // Later versions add headers of their own.
        other.retain(|name, _| name != "x-delivery-count");
        let expected = [
            ("type", "job"),
            ("app_id", "shop"),
            ("timestamp", "1700000000"),
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
        let connection = vhost.connect().await;
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
        let connection = vhost.connect().await;
        let channel = connection.create_channel().await.unwrap();
        let pseudo_queue = "amq.rabbitmq.reply-to";
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut answers = channel
            .basic_consume(pseudo_queue.into(), "".into(), options, FieldTable::default())
            .await
            .unwrap();
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
            let connections = vhost.manage(Method::GET, &path, None).await;
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
        let node = RabbitMq::start(rabbitmq::Options::default()).await;
        let queue = rabbit(&node.url());
        publish(&queue, ids(0..50)).await;
        let mut consumer = consume(&queue, 10).await;
        let settler = consumer.settler();
        let taken = receive(&mut *consumer, 10).await;
        settler.ack(tokens(&taken[..5])).await.unwrap();
        // The acknowledgement is on its way only; the broker has it when it delivers more.
        receive(&mut *consumer, 5).await;

        node.kill9().await;
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
        assert!(started.elapsed() < Duration::from_secs(25));

        node.restart().await;
        // Settling what the broker has forgotten does nothing.
        settler.ack(tokens(&taken[5..])).await.unwrap();
        drop(consumer);
        until("publishing works again", LIMIT, async || publish_one(&queue, "default", "after").await.ok())
            .await;
        let mut consumer =
            until("consuming works again", LIMIT, async || queue.consume(&lane("default"), 500).await.ok())
                .await;
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
        let proxy = Proxy::start(port).await;
        let queue = rabbit(&proxy.url(&vhost.amqp_url));
        publish(&queue, ids(0..1)).await;
        let mut consumer = consume(&queue, 10).await;
        let taken = receive(&mut *consumer, 1).await;

        proxy.stall();
        let started = std::time::Instant::now();
        for id in ["stalled", "next"] {
            let error = publish_one(&queue, "default", id).await.unwrap_err();
            assert!(
                matches!(error.kind(), QueueErrorKind::Unavailable | QueueErrorKind::Unconfirmed),
                "{error}"
            );
        }
        assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
        proxy.cut().await;
        assert_eq!(consumer.next(1).await.unwrap_err().kind(), QueueErrorKind::Unavailable);
        consumer.settler().ack(tokens(&taken)).await.unwrap();
        consumer.stop().await;

        proxy.heal().await;
        until("publishing works again", LIMIT, async || publish_one(&queue, "default", "after").await.ok())
            .await;
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
        vhost.manage(Method::DELETE, &path, None).await;
        let error = tokio::time::timeout(LIMIT, consumer.next(1)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{error}");
        publish_one(&queue, "bulk", "unharmed").await.unwrap();
        receive(&mut *bulk, 1).await;
        let mut consumer = consume(&queue, 10).await;
        publish_one(&queue, "default", "anew").await.unwrap();
        receive(&mut *consumer, 1).await;

        // A publisher notices as well, says so, and declares the lane for the next message.
        drop(consumer);
        vhost.manage(Method::DELETE, &path, None).await;
        assert_eq!(
            publish_one(&queue, "default", "lost").await.unwrap_err().kind(),
            QueueErrorKind::Unroutable
        );
        publish_one(&queue, "default", "found").await.unwrap();
        vhost.manage(Method::DELETE, &format!("exchanges/{}/errand", vhost.encoded_name()), None).await;
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
        vhost.manage(Method::PUT, &format!("users/{user}"), Some(json!({"password": "p", "tags": ""}))).await;
        let permissions =
            json!({"configure": "", "write": "^(errand|amq\\.default)$", "read": "^errand\\..*"});
        vhost.manage(Method::PUT, &format!("permissions/{path}/{user}"), Some(permissions)).await;
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
        vhost.manage(Method::DELETE, &format!("users/{user}"), None).await;
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
        let node = RabbitMq::start(conf).await;
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
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(queue.reconnects(), 0);
        queue.close().await;
    }
}
