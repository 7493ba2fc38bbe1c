//! Connections to the broker: a connector makes one when it is first used, and a new one at the next use after it
//! ended. Everything that belongs to a connection is dropped with it; nothing is recovered.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event, uri::AMQPUri};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    endpoint::Endpoint,
    error::{self, bounded, has_ended, is_about_channel, within},
    stream::{self, SocketGuard},
};
use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::QueueName,
    queue::{BROKER_TIMEOUT, QueueError, QueueErrorKind},
    sync::lock,
};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a broker that did not answer one request may take to show that it answers another.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes a connection when one is needed and none is open.
pub(super) struct Connector {
    endpoint: Arc<Endpoint>,
    /// What the connection is for, which its name in the broker's list of connections shows.
    role: &'static str,
    current: Mutex<Option<Arc<Session>>>,
    attempts: tokio::sync::Mutex<Attempts>,
    reconnects: AtomicU64,
    closed: AtomicBool,
}

/// The attempts to connect since the last connection.
#[derive(Default)]
struct Attempts {
    connected_before: bool,
    failures: u32,
    /// The last failure, and when the next attempt is due.
    last_failure: Option<(Instant, QueueErrorKind, String)>,
}

pub(super) struct Session {
    connection: Connection,
    /// Whether all lanes were declared, but for those that could not be, and nothing has been found missing since.
    pub(super) declared: AtomicBool,
    /// Whether the exchange for events was declared.
    pub(super) event_exchange_declared: AtomicBool,
    /// The lanes whose declaration the broker refused on this connection. Whoever publishes to one tries again.
    pub(super) undeclared: Mutex<Vec<QueueName>>,
    /// Whether no more channels can be opened.
    used_up: AtomicBool,
    blocked_because: Arc<Mutex<String>>,
    events: JoinHandle<()>,
    guard: SocketGuard,
}

impl Connector {
    pub(super) fn new(endpoint: Arc<Endpoint>, role: &'static str) -> Self {
        Self {
            endpoint,
            role,
            current: Mutex::new(None),
            attempts: tokio::sync::Mutex::default(),
            reconnects: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn live(&self) -> Option<Arc<Session>> {
        lock(&self.current).as_ref().filter(|session| session.live()).cloned()
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects.load(Relaxed)
    }

    /// Returns the open connection, or makes one. After a failure, the next attempt waits as long as [`RECONNECT`]
    /// says, and a caller that would have to wait longer than [`BROKER_TIMEOUT`] gets the last failure again.
    pub(super) async fn get(&self) -> Result<Arc<Session>, QueueError> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let locked = timeout_at(deadline, self.attempts.lock()).await;
        let mut attempts = locked.map_err(|_elapsed| self.unreachable())?;
        self.ensure_open()?;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        if let Some((due, kind, text)) = &attempts.last_failure
            && timeout_at(deadline, sleep_until(*due)).await.is_err()
        {
            return Err(QueueError::new(*kind, text));
        }
        match self.connect().await {
            Ok(session) => Ok(self.adopt(session, &mut attempts)?),
            Err(error) => {
                attempts.failures = attempts.failures.saturating_add(1);
                let pause = RECONNECT.wait(attempts.failures, fastrand::f64());
                attempts.last_failure = Some((Instant::now() + pause, error.kind(), chain(&error)));
                Err(error)
            }
        }
    }

    /// Closes a connection that does not work, for everyone who uses it.
    pub(super) fn discard(&self, session: &Arc<Session>) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            let session = current.take();
            drop(current);
            tokio::spawn(async move {
                if let Some(session) = session {
                    session.close().await;
                }
            });
        }
    }

    /// Runs work on a connection. When the broker does not answer that, and no other request either, it closes the
    /// connection for everyone.
    pub(super) async fn run_on<T>(
        &self,
        session: &Arc<Session>,
        work: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        let result = work.await;
        if let Err(error) = &result
            && error.kind() == QueueErrorKind::Unavailable
        {
            self.discard_if_silent(session).await;
        }
        result
    }

    /// Closes a connection on which the broker answers nothing, for everyone who uses it. One queue that does not answer,
    /// such as one without a majority of its members, ends nothing of other queues.
    pub(super) async fn discard_if_silent(&self, session: &Arc<Session>) {
        // A blocked connection comes back to life by itself.
        if session.blocked().is_none() && !session.answers().await {
            self.discard(session);
        }
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Relaxed);
        let session = lock(&self.current).take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    fn ensure_open(&self) -> Result<(), QueueError> {
        if self.closed.load(Relaxed) {
            return Err(QueueError::new(QueueErrorKind::Unavailable, "the queue is closed"));
        }
        Ok(())
    }

    fn adopt(&self, session: Session, attempts: &mut Attempts) -> Result<Arc<Session>, QueueError> {
        if std::mem::replace(attempts, Attempts { connected_before: true, ..Attempts::default() })
            .connected_before
        {
            self.reconnects.fetch_add(1, Relaxed);
        }
        let session = Arc::new(session);
        *lock(&self.current) = Some(Arc::clone(&session));
        // The queue may have been closed while the connection was being made.
        self.ensure_open().inspect_err(|_closed| drop(lock(&self.current).take()))?;
        tracing::debug!(role = self.role, broker = %self.endpoint.address(), "connected to RabbitMQ");
        Ok(session)
    }

    async fn connect(&self) -> Result<Session, QueueError> {
        let name = format!("{} ({})", self.endpoint.connection_name, self.role);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        // The library connects on a thread of its own, which no timeout out here ends. The guard can.
        let guard = SocketGuard::default();
        let socket = guard.socket();
        let connect =
            async move |uri: AMQPUri, _runtime| match timeout(BROKER_TIMEOUT, stream::connect(&uri, &socket))
                .await
            {
                Ok(stream) => stream.map_err(lapin::Error::from),
                Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
            };
        let connecting =
            Connection::connector(self.endpoint.uri.clone(), stream::runtime(), connect, properties);
        let connection = match timeout(BROKER_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.explain(error))?,
            Err(_elapsed) => return Err(self.unreachable()),
        };
        Ok(Session::new(connection, guard, self.endpoint.address()))
    }

    fn explain(&self, error: lapin::Error) -> QueueError {
        let broker = self.endpoint.address();
        let user = &self.endpoint.uri.authority.userinfo.username;
        let vhost = &self.endpoint.uri.vhost;
        let (kind, what) = match error::reply_code(&error) {
            Some(error::ACCESS_REFUSED) => (
                QueueErrorKind::Access,
                format!(
                    "refused the login of `{user}`: check the user name and the password (the user `guest` may connect \
                     from the broker's own host only)"
                ),
            ),
            Some(error::NOT_ALLOWED) => (
                QueueErrorKind::Access,
                format!(
                    "does not let `{user}` use the virtual host `{vhost}`: check that it exists and that the user has \
                     permissions on it"
                ),
            ),
            _ if error::is_bad_certificate(&error) => {
                let what = "has no TLS certificate that this host trusts, or speaks no TLS";
                (QueueErrorKind::Access, what.to_owned())
            }
            _ if matches!(error.kind(), ErrorKind::AuthProviderError(_)) => {
                (QueueErrorKind::Access, "asked for a login that errand cannot give".to_owned())
            }
            _ => (QueueErrorKind::Unavailable, "cannot be reached".to_owned()),
        };
        QueueError::new(kind, format!("RabbitMQ at {broker} {what}")).with_source(error)
    }

    fn unreachable(&self) -> QueueError {
        let broker = self.endpoint.address();
        QueueError::new(QueueErrorKind::Unavailable, format!("RabbitMQ at {broker} does not answer"))
    }
}

/// Without the URL, which has the password.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("role", &self.role)
            .field("live", &self.live().is_some())
            .finish_non_exhaustive()
    }
}

impl Session {
    fn new(connection: Connection, guard: SocketGuard, broker: String) -> Self {
        let blocked_because = Arc::new(Mutex::new(String::new()));
        let mut events = Box::pin(connection.events_listener());
        let reason = Arc::clone(&blocked_because);
        let events = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(because) => {
                        tracing::warn!(broker, error = %because, "RabbitMQ blocks publishing");
                        *lock(&reason) = because;
                    }
                    Event::ConnectionUnblocked => tracing::info!(broker, "RabbitMQ takes messages again"),
                    _ => {}
                }
            }
        });
        Self {
            connection,
            declared: AtomicBool::new(false),
            event_exchange_declared: AtomicBool::new(false),
            undeclared: Mutex::default(),
            used_up: AtomicBool::new(false),
            blocked_because,
            events,
            guard,
        }
    }

    /// Whether the connection can be used.
    pub(super) fn live(&self) -> bool {
        self.connection.status().connected() && !self.used_up.load(Relaxed)
    }

    /// Why the broker blocks this connection, if it does. Nothing is written to a blocked connection, not even its end.
    pub(super) fn blocked(&self) -> Option<String> {
        self.connection.status().blocked().then(|| lock(&self.blocked_because).clone())
    }

    /// Opens a channel. An error of the broker closes the channel, so each purpose has its own.
    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        bounded("open a channel", self.open_channel()).await
    }

    /// Whether the broker answers on this connection, whatever its queues do.
    pub(super) async fn answers(&self) -> bool {
        self.live() && within(PROBE_TIMEOUT, "open a channel", self.open_channel()).await.is_ok()
    }

    /// Under the number of a channel that the broker has closed, the library opens none again: it answers once with what
    /// the broker said then, and leaves the number out afterwards. When all are used up, the connection has to be replaced.
    async fn open_channel(&self) -> lapin::Result<Channel> {
        loop {
            let opened = self.connection.create_channel().await;
            match &opened {
                Err(error) if self.live() && (is_about_channel(error) || has_ended(error)) => continue,
                Err(error) if matches!(error.kind(), ErrorKind::ChannelsLimitReached) => {
                    self.used_up.store(true, Relaxed);
                }
                _ => {}
            }
            return opened;
        }
    }

    async fn close(&self) {
        if self.connection.status().connected() {
            // If this fails, the broker closes the connection by itself.
            let goodbye = self.connection.close(200, "closing".into());
            drop(within(CLOSE_TIMEOUT, "end the connection", goodbye).await);
        }
        self.guard.shut_down();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.events.abort();
    }
}
