//! Messages, and how the tests of queues publish and receive them.

use std::time::Duration;

use bytes::Bytes;
use errand::{
    job::QueueName,
    queue::{Address, Consumer, Delivery, Message, Properties, Queue, Token},
};

/// Long enough for a busy machine; every wait ends as soon as its level is reached.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a test watches that something does not happen.
const QUIET: Duration = Duration::from_millis(300);

const LANES: [&str; 2] = ["default", "bulk"];

pub(crate) fn lane(name: &str) -> QueueName {
    name.parse().unwrap()
}

pub(crate) fn lanes() -> Vec<QueueName> {
    LANES.map(lane).to_vec()
}

pub(crate) fn message(to: &str, id: &str) -> Message {
    message_to(Address::Lane(lane(to)), id)
}

pub(crate) fn message_to(to: Address, id: &str) -> Message {
    let properties = Properties { message_id: Some(id.to_owned()), ..Properties::default() };
    Message { to, body: Bytes::from(format!("body of {id}")), properties, priority: 0 }
}

pub(crate) async fn publish(queue: &dyn Queue, ids: impl IntoIterator<Item = String>) {
    let batch = ids.into_iter().map(|id| message("default", &id)).collect();
    for result in queue.publish(batch).await {
        result.unwrap();
    }
}

pub(crate) fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("m{n}")).collect()
}

pub(crate) fn id_of(delivery: &Delivery) -> String {
    delivery.properties.message_id.clone().unwrap()
}

pub(crate) fn tokens(deliveries: &[Delivery]) -> Vec<Token> {
    deliveries.iter().map(|delivery| delivery.token).collect()
}

pub(crate) async fn consume(queue: &dyn Queue, prefetch: u16) -> Box<dyn Consumer> {
    queue.consume(&lane("default"), prefetch).await.unwrap()
}

/// Waits for exactly so many deliveries.
pub(crate) async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let next = tokio::time::timeout(LIMIT, consumer.next(count - deliveries.len()));
        let next = next.await.unwrap_or_else(|_| panic!("{} of {count} deliveries", deliveries.len()));
        deliveries.extend(next.unwrap());
    }
    deliveries
}

/// Whether nothing is delivered for a while.
pub(crate) async fn is_quiet(consumer: &mut dyn Consumer) -> bool {
    tokio::time::timeout(QUIET, consumer.next(1)).await.is_err()
}
