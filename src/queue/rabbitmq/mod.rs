//! The queue on RabbitMQ, from 3.10 to 4.x.
//!
//! One connection publishes and one consumes, because a broker that is short of memory or disk stops reading from
//! connections that publish, and acknowledgements must still get through. A connection or channel that fails is never
//! repaired: it is dropped with all that belongs to it, and the next use makes a new one.
//!
//! * Lanes are durable queues `errand.<lane>`, bound to the durable direct exchange `errand` (`topology`).
//! * Events go to the durable topic exchange `errand.events`, which is declared when the first one is published.
//! * Messages are persistent, and mandatory but for events, and count as published when the broker has confirmed them (`publisher`).
//! * A subscription has a channel of its own, through which alone its acknowledgements go, so a late one cannot settle
//!   a message of another subscription (`consumer`, `ack_tracker`). It ends alone, unless the broker stops to answer
//!   anything on the connection.
//! * Nothing is ever rejected: errand acknowledges what its store has committed, and gives the rest back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use self::{
    apart::Apart,
    connector::Connector,
    consumer::RabbitConsumer,
    endpoint::Endpoint,
    error::repeat,
    management::Management,
    publisher::{MAX_CONFIRM_BATCH, PUBLISHERS, Request},
    shared::Shared,
    topology::Topology,
};
use super::{BROKER_TIMEOUT, Consumer, Depth, Message, PolicyRisk, Queue, QueueError, QueueErrorKind};
use crate::{
    job::{QueueName, QueueType},
    sync::lock,
};

mod ack_tracker;
mod apart;
mod confirm_batch;
mod connector;
mod consumer;
mod endpoint;
mod error;
mod frame_filter;
mod management;
mod publisher;
mod shared;
mod stream;
mod topology;
mod wire;

pub use stream::{FilteredFrames, MAX_BUFFERED_BYTES, filter_frames};

/// How long a batch of messages may take to be published: to get a connection and a publisher, and to be confirmed.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2 * BROKER_TIMEOUT.as_secs());

/// The capacity of the channel to the publishers; beyond it callers wait.
const REQUESTS: usize = 64;

#[derive(Debug, Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost` or `amqps://...`. No virtual host means `/`.
    pub url: SecretString,
    pub queue_type: QueueType,
    /// Whether to declare exchange and queues. Otherwise somebody else has to.
    pub declare: bool,
    /// The management API, `http://user:password@host:15672`; empty: it is not asked.
    pub management_url: SecretString,
    /// The lanes that are published to; one that is consumed is declared anyway.
    pub lanes: Vec<QueueName>,
    /// The name of the connections in the broker's list.
    pub connection_name: String,
    /// The interval of AMQP heartbeats, in whole seconds; a connection ends after two intervals without a sign of the
    /// other side. A `heartbeat` in the URL wins.
    pub heartbeat: Duration,
}

#[derive(Debug)]
pub struct RabbitQueue {
    shared: Arc<Shared>,
    publishing: Mutex<Publishing>,
    management: Option<Management>,
}

#[derive(Debug)]
enum Publishing {
    NotStarted,
    Running(Publishers),
    Closed,
}

/// The ways to the publishers. Events have one of their own, so that no job waits behind those that a queue does not confirm
/// which somebody has bound for them.
#[derive(Debug, Clone)]
struct Publishers {
    jobs_and_replies: mpsc::Sender<Request>,
    events: mpsc::Sender<Request>,
}

impl Publishers {
    fn start(shared: &Arc<Shared>) -> Self {
        Self { jobs_and_replies: started(shared, PUBLISHERS), events: started(shared, 1) }
    }

    fn of(self, batch: &[Message]) -> mpsc::Sender<Request> {
        let has_events = batch.iter().any(|message| message.to.is_of_events());
        if has_events { self.events } else { self.jobs_and_replies }
    }
}

fn started(shared: &Arc<Shared>, publishers: usize) -> mpsc::Sender<Request> {
    let (sender, requests) = mpsc::channel(REQUESTS);
    let requests = Arc::new(tokio::sync::Mutex::new(requests));
    for _ in 0..publishers {
        tokio::spawn(publisher::run(Arc::clone(shared), Arc::clone(&requests)));
    }
    sender
}

impl RabbitQueue {
    /// Does not connect. An unusable URL is an error of kind `Access`, which quotes neither the URL nor its password.
    pub fn new(options: RabbitOptions) -> Result<Self, QueueError> {
        let RabbitOptions { url, queue_type, declare, management_url, lanes, connection_name, heartbeat } =
            options;
        let endpoint = Arc::new(Endpoint::new(url.expose_secret(), heartbeat, &connection_name)?);
        let has_management = !management_url.expose_secret().is_empty();
        let management =
            has_management.then(|| Management::new(&management_url, &endpoint.uri.vhost)).transpose()?;
        let shared = Shared {
            publishing: Connector::new(Arc::clone(&endpoint), "publish"),
            consuming: Connector::new(Arc::clone(&endpoint), "consume"),
            endpoint,
            topology: Topology::new(queue_type, declare),
            lanes,
            apart: Apart::default(),
        };
        Ok(Self { shared: Arc::new(shared), publishing: Mutex::new(Publishing::NotStarted), management })
    }

    /// Why the broker blocks publishing, if it does. Publishing fails with `Full` meanwhile; consuming and settling go on.
    pub fn blocked(&self) -> Option<String> {
        self.shared.publishing.live()?.blocked()
    }

    /// The channel to the publishers, which start with its first use.
    fn publishers(&self) -> Result<Publishers, QueueError> {
        let mut publishing = lock(&self.publishing);
        match &*publishing {
            Publishing::Running(publishers) => Ok(publishers.clone()),
            Publishing::Closed => Err(QueueError::new(QueueErrorKind::Unavailable, "the queue is closed")),
            Publishing::NotStarted => {
                let publishers = Publishers::start(&self.shared);
                *publishing = Publishing::Running(publishers.clone());
                Ok(publishers)
            }
        }
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    fn backend(&self) -> &'static str {
        "RabbitMQ"
    }

    fn survives_restart(&self) -> bool {
        true
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<(), QueueError>> {
        let deadline = Instant::now() + PUBLISH_TIMEOUT;
        let total = batch.len();
        let sender = match self.publishers() {
            Ok(publishers) => publishers.of(&batch),
            Err(error) => return repeat(error.kind(), &error.to_string(), total),
        };
        let mut waiting = Vec::with_capacity(total.div_ceil(MAX_CONFIRM_BATCH));
        let mut batch = batch.into_iter();
        loop {
            let chunk: Vec<Message> = batch.by_ref().take(MAX_CONFIRM_BATCH).collect();
            if chunk.is_empty() {
                break;
            }
            let size = chunk.len();
            let (answer, answered) = oneshot::channel();
            // If no publisher takes it in time, there is no answer to wait for below.
            let sent = timeout_at(deadline, sender.send(Request { batch: chunk, answer })).await.is_ok();
            waiting.push((size, sent.then_some(answered)));
        }
        let mut answers = Vec::with_capacity(total);
        for (size, answered) in waiting {
            answers.extend(match answered {
                None => repeat(QueueErrorKind::Unavailable, "RabbitMQ is too slow to take the message", size),
                Some(answered) => match timeout_at(deadline, answered).await {
                    Ok(Ok(answer)) => answer,
                    _ => {
                        let sentence = "RabbitMQ did not confirm the message in time";
                        repeat(QueueErrorKind::Unconfirmed, sentence, size)
                    }
                },
            });
        }
        answers.into_iter().map(|answer| answer.map_err(|error| self.shared.named(error))).collect()
    }

    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let connector = &self.shared.consuming;
        let started = async {
            let session = connector.get().await?;
            let start = async {
                if topology::exchange_is_missing(&session).await? {
                    // The bindings of all lanes went with it. Without them the broker drops messages silently. A lane
                    // that cannot be declared is told to whoever uses it.
                    self.shared.topology.ensure_each(&session, &self.shared.lanes).await?;
                }
                self.shared.topology.ensure(&session, std::slice::from_ref(queue)).await?;
                RabbitConsumer::start(Arc::clone(&self.shared), Arc::clone(&session), queue, prefetch).await
            };
            connector.run_on(&session, start).await
        };
        let consumer = started.await.map_err(|error| self.shared.named(error))?;
        Ok(Box::new(consumer))
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        // Nothing gets through a blocked connection, and the consuming one is never blocked.
        let publishing = self.shared.publishing.live().filter(|session| session.blocked().is_none());
        let asked = async {
            let (connector, session) = match publishing {
                Some(session) => (&self.shared.publishing, session),
                None => (&self.shared.consuming, self.shared.consuming.get().await?),
            };
            connector.run_on(&session, topology::depth(&session, queue)).await
        };
        asked.await.map_err(|error| self.shared.named(error))
    }

    async fn check(&self) -> Result<String, QueueError> {
        let connector = &self.shared.publishing;
        let checked = async {
            let session = connector.get().await?;
            connector.run_on(&session, self.shared.topology.ensure(&session, &self.shared.lanes)).await
        };
        checked.await.map_err(|error| self.shared.named(error))?;
        Ok(self.shared.endpoint.version().await.unwrap_or_else(|| "RabbitMQ".to_owned()))
    }

    async fn check_events(&self) -> Result<(), QueueError> {
        let connector = &self.shared.publishing;
        let checked = async {
            let session = connector.get().await?;
            connector.run_on(&session, publisher::declare_event_exchange(&self.shared, &session)).await
        };
        checked.await.map_err(|error| self.shared.named(error))
    }

    async fn policy_risks(&self) -> Result<Option<Vec<PolicyRisk>>, QueueError> {
        let Some(management) = &self.management else { return Ok(None) };
        let lanes: Vec<&str> =
            self.shared.lanes.iter().map(QueueName::as_str).chain([QueueName::DEAD]).collect();
        management.risks(&lanes).await.map(Some)
    }

    fn connected(&self) -> bool {
        self.shared.publishing.live().is_some() || self.shared.consuming.live().is_some()
    }

    fn reconnects(&self) -> u64 {
        self.shared.publishing.reconnects() + self.shared.consuming.reconnects()
    }

    async fn close(&self) {
        // Publishers end when nobody can ask them any more.
        *lock(&self.publishing) = Publishing::Closed;
        tokio::join!(self.shared.publishing.close(), self.shared.consuming.close());
    }
}
