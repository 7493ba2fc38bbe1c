//! The queue carries job envelopes to workers. It is only transport: if every message is lost, no job that is in the
//! store is lost, and a message that is delivered twice runs nothing twice.
//!
//! A backend implements [`Queue`] and [`Consumer`]; the contract suite in
//! `tests/it/queue_contract` has a test for each guarantee. No lapin type crosses this seam.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::job::{Arrival, JobId, QueueName};

pub mod embedded;
pub mod rabbitmq;

mod error;
mod policy;

pub use error::{QueueError, QueueErrorKind};
pub use policy::{PolicyRisk, PolicyRiskKind};

pub type SharedQueue = Arc<dyn Queue>;

/// A message broker, on which errand declares the lanes that it needs.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// The name of the backend, for people: `RabbitMQ` or `embedded`.
    fn backend(&self) -> &'static str;

    /// Whether messages survive the end of this process.
    fn survives_restart(&self) -> bool;

    /// Publishes messages, persistently, and waits until the broker has confirmed each. Answers are
    /// in the order of the batch; the order of the messages in a lane is not promised.
    ///
    /// * `Ok` means that the message is durable in the named lane (or in the reply queue).
    /// * A message to a lane or reply queue that does not exist is an error of kind `Unroutable`,
    ///   never a silent loss. (RabbitMQ's direct reply-to names a connection and not a queue: `Ok`
    ///   does not say that somebody still waits there.)
    /// * A message to those who listen to events may have nobody who gets it. A lane or a reply never waits for what becomes
    ///   of events, if they are not in its batch.
    /// * A message that the broker does not take is an error of kind `Refused`, and harms no other of the batch.
    /// * A message to a lane that cannot be declared is an error of kind `Topology`, and harms no other of the batch.
    /// * An error of kind `Unconfirmed` or `Stuck` means that the message may or may not be there. The latter is
    ///   its queue's own fault, and found out at the second time at the latest; until then, the others of its batch may be
    ///   `Unconfirmed` as well. While it lasts, not every message is sent.
    /// * Every wait is bounded by the backend's timeouts.
    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<(), QueueError>>;

    /// Declares a lane and starts to consume it, with up to `prefetch` unsettled deliveries at a time.
    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError>;

    /// The approximate number of messages in a lane that are not delivered yet, and the number of its consumers. A
    /// lane that does not exist, or cannot be published to, is an error of kind `Unroutable`.
    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError>;

    /// Connects, declares all lanes, and returns the name and version of the broker; used at start and by `doctor`.
    async fn check(&self) -> Result<String, QueueError>;

    /// Makes sure that there is an exchange to which whoever listens to events can bind a queue.
    async fn check_events(&self) -> Result<(), QueueError>;

    /// How the broker can lose confirmed messages of the lanes, because of its policies or of how queues were declared.
    /// `None` where nobody can be asked, which says nothing about the risk.
    async fn policy_risks(&self) -> Result<Option<Vec<PolicyRisk>>, QueueError>;

    /// Whether the backend is connected, without asking the broker.
    fn connected(&self) -> bool;

    /// How often a lost connection was replaced.
    fn reconnects(&self) -> u64;

    /// Ends all connections, within a bounded time.
    async fn close(&self);
}

/// A subscription to one lane. When its connection ends, it ends, and unsettled deliveries come again.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// Waits for one delivery, and returns it with the others that have arrived, up to `max`; never none. The future may be
    /// dropped without losing deliveries. An error says that the subscription is over; the caller consumes anew.
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, QueueError>;

    /// The settler of this subscription; it may be used from another task while `next` waits.
    fn settler(&self) -> Arc<dyn Settler>;

    /// Ends the flow of deliveries, and returns those that `next` has not returned. All that are not settled can still be
    /// settled as long as the subscription lives.
    async fn stop(&mut self) -> Vec<Delivery>;
}

/// Settles deliveries of one subscription. Each delivery is settled once; settling after the
/// subscription ended does nothing, since the broker delivers such messages again.
#[async_trait]
pub trait Settler: fmt::Debug + Send + Sync {
    /// Acknowledges messages that the store has committed.
    async fn ack(&self, tokens: Vec<Token>) -> Result<(), QueueError>;

    /// Gives messages back as they are, for another consumer. They do not count as failed.
    async fn give_back(&self, tokens: Vec<Token>) -> Result<(), QueueError>;
}

/// Names one delivery within its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

#[derive(Clone)]
pub struct Delivery {
    pub token: Token,
    pub body: Bytes,
    pub properties: Properties,
    pub redelivered: bool,
}

/// The transport properties of a message that errand uses. Everything else is kept in `other` as text, so that a
/// rejected message can be shown whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Properties {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Who published the message, as the broker has checked it. It does not go out with what errand publishes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What sort of reply or event errand publishes, as the AMQP property `type`. Of a message that came, it is in `other`.
    #[serde(skip)]
    pub kind: Option<&'static str>,
    /// When the message was published, in seconds since 1970, as the publisher says. errand says so by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The lane from which the broker dead-lettered the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub died_in: Option<String>,
    /// Whether the relay published the message, for a job that is in the store. Kept messages spell it as the header does.
    #[serde(default, rename = "known", skip_serializing_if = "std::ops::Not::not")]
    pub from_store: bool,
    /// The bytes of all properties if they cannot be read, with what is not ASCII escaped as in Rust's strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Other properties and headers, as text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, String>,
}

impl Properties {
    /// What they say about the job in a message of this lane.
    pub fn arrival<'a>(&'a self, queue: &'a QueueName, fallback_id: Option<JobId>) -> Arrival<'a> {
        let Self { message_id, correlation_id, reply_to, user_id, traceparent, .. } = self;
        Arrival {
            message_id: message_id.as_deref(),
            reply_to: reply_to.as_deref(),
            publisher: user_id.as_deref(),
            correlation_id: correlation_id.as_deref(),
            traceparent: traceparent.as_deref(),
            fallback_id,
            ..Arrival::new(queue)
        }
    }
}

/// The header that carries [`Properties::from_store`].
pub const FROM_STORE_HEADER: &str = "x-errand-known";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A lane: exchange `errand`, routing key = the lane's name.
    Lane(QueueName),
    /// An app's reply queue: the default exchange, routing key = the queue's name.
    Reply(String),
    /// Whoever listens to events: topic exchange `errand.events`, with this routing key.
    Events(String),
}

impl Address {
    pub fn is_of_events(&self) -> bool {
        matches!(self, Self::Events(_))
    }
}

#[derive(Clone)]
pub struct Message {
    pub to: Address,
    pub body: Bytes,
    /// `message_id` must be set: a returned message is recognized by it.
    pub properties: Properties,
    /// AMQP priority, 0 to 9; brokers may ignore it.
    pub priority: u8,
}

// Bodies are customers' data, which must not reach a log by way of `{:?}`.

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, body, properties: _, redelivered } = self;
        f.debug_struct("Delivery")
            .field("token", token)
            .field("bytes", &body.len())
            .field("redelivered", redelivered)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, body, properties: _, priority: _ } = self;
        f.debug_struct("Message").field("to", to).field("bytes", &body.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    pub ready: u64,
    /// Consumers, of all processes; with some brokers also a stopped one that has unsettled deliveries.
    pub consumers: u64,
}

/// How long a broker may take to answer one request before it counts as failed.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
