//! The guarantees of the queue seam, each as a test that runs on every backend.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use errand::{
    job::QueueType,
    queue::{
        Address, Message, Properties, QueueErrorKind, SharedQueue, Token,
        embedded::EmbeddedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
};

use self::helpers::{
    LIMIT, consume, id_of, ids, is_quiet, lane, lanes, message, message_to, publish, receive, tokens,
};
use crate::support::{self, wait::until};

pub(crate) mod helpers;

mod embedded_only;

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
        let vhost = support::vhost(hint).await;
        Arc::new(rabbit(&vhost.amqp_url))
    }
}

pub(crate) fn options(url: &str) -> RabbitOptions {
    RabbitOptions {
        url: url.to_owned().into(),
        queue_type: QueueType::Quorum,
        declare: true,
        management_url: String::new().into(),
        lanes: lanes(),
        connection_name: "contract".to_owned(),
        heartbeat: Duration::from_secs(10),
    }
}

pub(crate) fn rabbit(url: &str) -> RabbitQueue {
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
    stop_returns_what_next_has_not_and_everything_stays_settleable
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
        user_id: None,
        content_type: Some("application/json".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        kind: None,
        timestamp: Some(1_700_000_000),
        died_in: None,
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
    assert!(first.stop().await.is_empty());
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

async fn stop_returns_what_next_has_not_and_everything_stays_settleable<B: Backend>(hint: &str) {
    let queue = B::queue(hint).await;
    publish(&*queue, ids(0..20)).await;
    let mut first = consume(&*queue, 20).await;
    let taken = receive(&mut *first, 5).await;
    let unseen = first.stop().await;
    first.settler().give_back(tokens(&unseen)).await.unwrap();
    let error = first.next(1).await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable);
    let mut second = consume(&*queue, 100).await;
    let rest: BTreeSet<_> = receive(&mut *second, 15).await.iter().map(id_of).collect();
    let taken_ids: BTreeSet<_> = taken.iter().map(id_of).collect();
    assert!(rest.is_disjoint(&taken_ids));
    first.settler().ack(tokens(&taken)).await.unwrap();
    assert!(first.stop().await.is_empty(), "it ends once");
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
