//! RabbitMQ, from 3.10 to 4.x.
//!
//! There are two connections, each made when it is first used: one publishes and one consumes,
//! because a broker that is short of memory or disk stops reading from connections that publish, and
//! acknowledgements must still get through. A connection or channel that fails is never repaired: it
//! is dropped with all that belongs to it, and the next use makes a new one.
//!
//! * Lanes are durable queues `errand.<lane>`, bound to the durable direct exchange `errand`; see
//!   the module `topology` for the arguments.
//! * Messages are persistent and mandatory, and count as published when the broker has confirmed
//!   them; see the module `publisher`.
//! * A subscription has a channel of its own. Acknowledgements go only through that channel, so a
//!   late one cannot settle a message of another subscription; see the modules `consumer` and `ack_tracker`.
//! * Nothing is ever rejected: errand acknowledges what its store has committed, and gives the rest
//!   back.
//!
//! A subscription that ends ends alone, unless the broker stops to answer: then the connection is
//! dropped for all of them.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use self::{
    connector::{Connector, Endpoint, lock},
    consumer::RabbitConsumer,
    publisher::{MAX_CONFIRM_BATCH, PUBLISHERS, Request},
    topology::Topology,
};
use super::{BROKER_TIMEOUT, Consumer, Depth, Message, Queue, QueueError, QueueErrorKind};
use crate::job::QueueName;

mod ack_tracker;
mod connector;
mod consumer;
mod error;
mod frame_filter;
mod publisher;
mod stream;
mod topology;
mod wire;

/// How long a publish may take in all: to get a connection and a turn, and to be confirmed.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2 * BROKER_TIMEOUT.as_secs());

/// Requests that wait for a publisher, beyond which callers wait.
const REQUESTS: usize = 64;

/// The largest frame, in bytes, unless the URL says otherwise: what RabbitMQ lets other clients send by default.
/// A body is split, but the properties of a message are always one frame, and with a smaller limit here one message
/// with long headers would keep its lane waiting for ever. The client library keeps buffers of 64 frames for every
/// connection.
const FRAME_MAX: u32 = 128 * 1024;

/// Longest name of a connection, so that consumer tags fit into 255 bytes.
const MAX_CONNECTION_NAME_BYTES: usize = 128;

/// The type that lanes are declared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueType {
    /// Replicated, and the faster one even on a single node. Acknowledgements survive a crash of the broker.
    Quorum,
    /// For brokers without quorum queues. Acknowledged messages may come back after a crash of the broker.
    Classic,
}

/// How to reach the broker and what to declare on it.
#[derive(Debug, Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost` or `amqps://...`. No virtual host means `/`.
    pub url: SecretString,
    /// The type of the lanes' queues.
    pub queue_type: QueueType,
    /// Whether to create what is missing. Otherwise somebody else has to.
    pub declare: bool,
    /// The lanes that are published to; one that is consumed is declared anyway.
    pub lanes: Vec<QueueName>,
    /// How the connections are called in the broker's list.
    pub connection_name: String,
    /// How often each side shows that it is alive, in whole seconds; twice this time without a sign
    /// ends the connection. A `heartbeat` in the URL wins.
    pub heartbeat: Duration,
}

/// Lanes on a RabbitMQ broker.
pub struct RabbitQueue {
    shared: Arc<Shared>,
    publishing: Mutex<Publishing>,
}

/// What publishers and consumers share.
#[derive(Debug)]
struct Shared {
    publishing: Connector,
    consuming: Connector,
    topology: Topology,
    lanes: Vec<QueueName>,
    connection_name: String,
    /// The server's address, if a greeting can be read from it without TLS.
    plain_address: Option<(String, u16)>,
}

#[derive(Debug)]
enum Publishing {
    NotStarted,
    Running(mpsc::Sender<Request>),
    Closed,
}

impl RabbitQueue {
    /// Prepares the queue, without connecting.
    ///
    /// # Errors
    /// The URL is unusable; the kind is `Access`. Neither the URL nor its password is quoted.
    pub fn new(options: RabbitOptions) -> Result<Self, QueueError> {
        let uri = parse(options.url.expose_secret(), options.heartbeat)?;
        let end = options.connection_name.floor_char_boundary(MAX_CONNECTION_NAME_BYTES);
        let connection_name = options.connection_name[..end].to_owned();
        let plain = uri.scheme == lapin::uri::AMQPScheme::AMQP;
        let plain_address = plain.then(|| (uri.authority.host.clone(), uri.authority.port));
        let endpoint = Arc::new(Endpoint { uri, connection_name: connection_name.clone() });
        let shared = Shared {
            publishing: Connector::new(Arc::clone(&endpoint), "publish"),
            consuming: Connector::new(endpoint, "consume"),
            topology: Topology::new(options.queue_type, options.declare),
            lanes: options.lanes,
            connection_name,
            plain_address,
        };
        Ok(Self { shared: Arc::new(shared), publishing: Mutex::new(Publishing::NotStarted) })
    }

    /// Why the broker takes no messages at present, if so: it is short of memory or disk. Publishing
    /// answers `Full` meanwhile; consuming and settling go on.
    pub fn blocked(&self) -> Option<String> {
        self.shared.publishing.live()?.blocked()
    }

    /// Deletes a lane with all its messages. Only for lanes that somebody made for a while, such as
    /// those of the benchmark; deleting one that is not there is no error.
    pub(crate) async fn delete_lane(&self, lane: &QueueName) -> Result<(), QueueError> {
        let connector = &self.shared.consuming;
        let session = connector.get().await?;
        connector.run_on(&session, topology::delete(&session, lane)).await
    }

    /// The way to the publishers, which start with the first use.
    fn publishers(&self) -> Result<mpsc::Sender<Request>, QueueError> {
        let mut publishing = lock(&self.publishing);
        match &*publishing {
            Publishing::Running(sender) => Ok(sender.clone()),
            Publishing::Closed => Err(QueueError::new(QueueErrorKind::Unavailable, "the queue is closed")),
            Publishing::NotStarted => {
                let (sender, requests) = mpsc::channel(REQUESTS);
                let requests = Arc::new(tokio::sync::Mutex::new(requests));
                for _ in 0..PUBLISHERS {
                    tokio::spawn(publisher::run(Arc::clone(&self.shared), Arc::clone(&requests)));
                }
                *publishing = Publishing::Running(sender.clone());
                Ok(sender)
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
            Ok(sender) => sender,
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
            // If nobody takes it, the answer never comes, which is told below.
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
        answers
    }

    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let connector = &self.shared.consuming;
        let session = connector.get().await?;
        let started = connector.run_on(&session, async {
            if topology::exchange_is_missing(&session).await? {
                // The bindings of all lanes went with it. Without them the broker drops messages silently.
                self.shared.topology.ensure(&session, &self.shared.lanes).await?;
            }
            self.shared.topology.ensure(&session, std::slice::from_ref(queue)).await?;
            RabbitConsumer::start(Arc::clone(&self.shared), Arc::clone(&session), queue, prefetch).await
        });
        Ok(Box::new(started.await?))
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        // Nothing gets through a blocked connection, and the consuming one is never blocked.
        let publishing = self.shared.publishing.live().filter(|session| session.blocked().is_none());
        let (connector, session) = match publishing {
            Some(session) => (&self.shared.publishing, session),
            None => (&self.shared.consuming, self.shared.consuming.get().await?),
        };
        connector.run_on(&session, topology::depth(&session, queue)).await
    }

    async fn check(&self) -> Result<String, QueueError> {
        let connector = &self.shared.publishing;
        let session = connector.get().await?;
        connector.run_on(&session, self.shared.topology.ensure(&session, &self.shared.lanes)).await?;
        let version = match &self.shared.plain_address {
            Some(address) => timeout(BROKER_TIMEOUT, greeting(address)).await.ok().flatten(),
            None => None,
        };
        Ok(version.unwrap_or_else(|| "RabbitMQ".to_owned()))
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

/// Without the URL, which has the password.
impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitQueue").field("shared", &self.shared).finish_non_exhaustive()
    }
}

fn repeat(kind: QueueErrorKind, sentence: &str, times: usize) -> Vec<Result<(), QueueError>> {
    (0..times).map(|_| Err(QueueError::new(kind, sentence))).collect()
}

fn parse(url: &str, heartbeat: Duration) -> Result<AMQPUri, QueueError> {
    let unusable = |why: &str| {
        let sentence = format!(
            "the RabbitMQ URL is unusable ({why}): it should look like amqp://user:password@host:5672/vhost"
        );
        QueueError::new(QueueErrorKind::Access, sentence)
    };
    // The parser's own words may quote the URL, and with it the password.
    let generic = url::Url::parse(url).map_err(|_| unusable("not a URL"))?;
    let host = match generic.host() {
        // The AMQP parser takes an IPv6 address for no host at all, which means `localhost` to it.
        Some(url::Host::Ipv6(address)) => Some(address.to_string()),
        Some(host) if host.to_string().is_empty() => return Err(unusable("no host")),
        Some(_) => None,
        None => return Err(unusable("no host")),
    };
    let mut uri: AMQPUri = url.parse().map_err(|_| unusable("not an amqp or amqps URL"))?;
    if let Some(host) = host {
        uri.authority.host = host;
    }
    if uri.vhost.is_empty() {
        // Strictly, `amqp://host/` names a virtual host without a name. Nobody has one or means it.
        "/".clone_into(&mut uri.vhost);
    }
    let seconds = u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX);
    uri.query.heartbeat.get_or_insert(seconds);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    Ok(uri)
}

/// Asks the server for its name and version, which the client library keeps to itself.
async fn greeting((host, port): &(String, u16)) -> Option<String> {
    const FRAME_HEADER: usize = 7;
    const METHOD_HEADER: usize = 6;
    const MAX_GREETING: u32 = 64 * 1024;
    let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
    stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await.ok()?;
    let size = u32::from_be_bytes(header[3..].try_into().ok()?);
    if size > MAX_GREETING {
        return None;
    }
    let mut method = vec![0; size as usize];
    stream.read_exact(&mut method).await.ok()?;
    // The method's IDs and the protocol's version come before the server's properties.
    let table = method.get(METHOD_HEADER..)?;
    let (_, properties) = lapin::types::parsing::parse_field_table(table).ok()?;
    let text = |name: &str| properties.inner().get(name)?.as_long_string().map(ToString::to_string);
    Some(format!("{} {}", text("product")?, text("version")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::chain;

    fn parsed(url: &str) -> AMQPUri {
        parse(url, Duration::from_secs(15)).unwrap()
    }

    #[test]
    fn urls_mean_what_people_mean() {
        let uri = parsed("amqp://u:p@[2001:db8::1]:5673");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("2001:db8::1", 5673));
        assert_eq!(uri.vhost, "/");
        assert_eq!(parsed("amqp://u:p@mq/").vhost, "/");
        assert_eq!(parsed("amqp://u:p@mq/%2f").vhost, "/");
        assert_eq!(parsed("amqps://u:p@mq/jobs").authority.port, 5671);
        assert_eq!(parsed("amqp://u:p@10.1.2.3/jobs").authority.host, "10.1.2.3");
        assert_eq!(parsed("amqp://u:p@mq/jobs").query.heartbeat, Some(15));
        assert_eq!(parsed("amqp://u:p@mq/jobs?heartbeat=30").query.heartbeat, Some(30));
        assert_eq!(parsed("amqp://u:p@mq/jobs").query.frame_max, Some(FRAME_MAX));
        assert_eq!(parsed("amqp://u:p@mq/jobs?frame_max=65536").query.frame_max, Some(65536));
    }

    #[test]
    fn an_unusable_url_is_refused_without_quoting_it() {
        for url in [
            "",
            "hunter2",
            "http://u:hunter2@mq/",
            "amqp://u:hunter2@mq:99999/",
            "amqp:hunter2",
            "amqp:///hunter2",
        ] {
            let error = parse(url, Duration::from_secs(15)).unwrap_err();
            assert_eq!(error.kind(), QueueErrorKind::Access);
            assert!(!chain(&error).contains("hunter2"), "{error}");
        }
    }
}
