//! What is bounded in memory, and replies without a broker.

use std::{sync::Arc, time::Duration};

use errand::queue::{Address, Queue as _, QueueErrorKind, embedded::EmbeddedQueue};

use super::helpers::{consume, id_of, ids, lanes, message, message_to, publish, receive, tokens};

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
