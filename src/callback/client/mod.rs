//! Sends callbacks.

use std::{
    collections::HashMap,
    error::Error,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Client, ClientBuilder, Response,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::{
    sync::OnceCell,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use url::Host;

use super::{
    address::AddressRules,
    guard::{Guard, Lookup, NoAddress, WHOSE, system_lookup},
    retry_after::retry_after,
};
use crate::{
    failure::Failure,
    http_client::client_builder,
    job::{CallbackUrl, Owner},
    string_enum::string_enum,
    sync::lock,
};

#[cfg(test)]
mod tests;

/// How errand names itself to receivers.
const USER_AGENT: &str = concat!("errand/", env!("CARGO_PKG_VERSION"));

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The most bytes that are read of a body, so that its connection can be used again. With more, it is closed.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// The longest that is spent on reading them.
const MAX_BODY_TIME: Duration = Duration::from_secs(1);

/// The most connections to a receiver that are kept while nothing is sent there.
const IDLE_PER_RECEIVER: usize = 16;

/// The most hosts and ports to which connections are kept. To others, each is closed after its request.
const KEPT_HOSTS: usize = 128;

/// How long they are kept, at most twice.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much an HTTP/2 receiver may send of an answer, and of all answers at a time, before anybody reads it, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The errors of the operating system by which a process, or the whole host, has too many open files (`EMFILE` and `ENFILE`).
const SCARCE: [i32; 2] = [24, 23];

string_enum! {
    /// Why a callback got no answer.
    SendErrorKind {
        /// No address of the host is one to which callbacks may be sent. Nothing was sent.
        RefusedAddress = "refused_address",
        /// The name of the host cannot be looked up, or has no address. Nothing was sent.
        UnknownHost = "unknown_host",
        /// The time was up. The receiver may have got it.
        Timeout = "timeout",
        /// No connection could be made, or not in half of the time. Nothing was sent.
        Connect = "connect",
        /// The certificate is not trusted, or encryption failed otherwise. As a rule, nothing was sent.
        Tls = "tls",
        /// The connection ended without an answer, or the answer was no HTTP. The receiver may have got it.
        Broken = "broken",
        /// No request can be made of the URL and the message. Nothing was sent.
        Unsendable = "unsendable",
        /// This host could not send: it says nothing about the receiver. Nothing was sent.
        Local = "local",
    }
}

/// Why a callback got no answer. Its message is a sentence that the customer may read; its causes are for an operator. Neither
/// holds the path or the query of the URL.
pub type SendError = Failure<SendErrorKind>;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("no rustls provider is installed for this process")]
    NoProvider,
    #[error("the HTTP client of callbacks cannot be built")]
    Client(#[source] reqwest::Error),
}

/// What a message says about itself, in its headers.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// `webhook-id`, which is the same each time the message is sent.
    pub id: &'a str,
    /// `webhook-timestamp`: now, in seconds since 1970.
    pub timestamp: i64,
    /// `webhook-signature`, made by [`sign`](super::sign) of the other two and the body.
    pub signature: &'a str,
}

/// What a receiver answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status, 100 to 999.
    pub status: u16,
    /// When it wants to be asked again, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// Whether the receiver took the message: only with a status of 200 to 299. A redirection is not followed.
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Sends callbacks to receivers that are not trusted.
///
/// * Every address is judged when it is connected to. `https` goes where [`AddressRules::permits`] says, and plain `http` only
///   where [`AddressRules::allows`] does.
/// * Nothing leads elsewhere: no redirection and no proxy of the environment.
/// * A request takes no longer than the timeout, whatever the receiver does.
/// * Neither slow names of one owner nor many hosts take all threads or open files.
/// * Of an answer, its status counts. Headers of more than 400 KiB or 100 lines (16 KiB over HTTP/2) are no answer; at most 16 KiB
///   of its body are read, for a second at most, and dropped.
pub struct CallbackClient {
    timeout: Duration,
    http: Clients,
    /// To read the authorities that this host trusts takes time, which is not spent where nothing is sent.
    https: OnceCell<Clients>,
    http_guard: Guard,
    https_guard: Guard,
    /// To which hosts and ports connections are kept, and until when there may be some.
    kept: Mutex<HashMap<String, Instant>>,
}

/// The clients of one scheme.
struct Clients {
    /// It keeps connections for the next request.
    keeping: Client,
    closing: Client,
}

impl Clients {
    fn build(guard: &Guard, timeout: Duration) -> reqwest::Result<Self> {
        let [keeping, closing] =
            [IDLE_PER_RECEIVER, 0].map(|idle| builder(guard, timeout).pool_max_idle_per_host(idle).build());
        Ok(Self { keeping: keeping?, closing: closing? })
    }
}

impl CallbackClient {
    /// The timeout is that of a whole request, from the look-up of its host.
    ///
    /// # Errors
    /// The process has no provider of encryption, or the client cannot be built.
    pub fn new(rules: AddressRules, timeout: Duration) -> Result<Self, SetupError> {
        Self::with_lookup(rules, timeout, system_lookup())
    }

    fn with_lookup(rules: AddressRules, timeout: Duration, lookup: Lookup) -> Result<Self, SetupError> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(SetupError::NoProvider);
        }
        // A look-up, a connection and an answer can each be slow, and which of them was is said.
        let https_guard = Guard { rules: Arc::new(rules), https: true, lookup, timeout: timeout / 3 };
        let http_guard = Guard { https: false, ..https_guard.clone() };
        let http = Clients::build(&http_guard, timeout).map_err(SetupError::Client)?;
        let (https, kept) = (OnceCell::new(), Mutex::default());
        Ok(Self { timeout, http, https, http_guard, https_guard, kept })
    }

    /// Sends a message of an owner once, as JSON, and waits for the answer. An answer of any status is an answer.
    ///
    /// # Errors
    /// There was none.
    pub async fn post(
        &self,
        owner: &Owner,
        url: &CallbackUrl,
        message: Signed<'_>,
        body: Bytes,
    ) -> Result<Answer, SendError> {
        let end = Instant::now() + self.timeout;
        let sending = WHOSE.scope(owner.clone(), self.send(url, message, body));
        let response = match timeout_at(end, sending).await {
            Ok(response) => response?,
            // That its time is up is all that this error says.
            Err(_) => return Err(failed(SendErrorKind::Timeout, url)),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(message.timestamp.try_into().unwrap_or(0));
        let retry_after = retry_after(response.headers(), now);
        let answer = Answer { status: response.status().as_u16(), retry_after };
        drain(response, end.min(Instant::now() + MAX_BODY_TIME)).await;
        Ok(answer)
    }

    /// Gives the head of the answer.
    async fn send(&self, url: &CallbackUrl, message: Signed<'_>, body: Bytes) -> Result<Response, SendError> {
        let guard = if url.is_https() { &self.https_guard } else { &self.http_guard };
        if literal(url).is_some_and(|ip| !guard.permits(ip)) {
            return Err(failed(SendErrorKind::RefusedAddress, url));
        }
        let Clients { keeping, closing } = if url.is_https() { self.https(url).await? } else { &self.http };
        let client = if self.keeps(url.origin()) { keeping } else { closing };
        let response = client
            .post(url.url().clone())
            .header(ID, message.id)
            .header(TIMESTAMP, message.timestamp)
            .header(SIGNATURE, message.signature)
            .body(body)
            .send();
        response.await.map_err(|error| failed(kind(&error), url).with_source(error.without_url()))
    }

    /// Whether a connection to this host and port is kept, however many others there are.
    fn keeps(&self, origin: String) -> bool {
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT_HOSTS && !kept.contains_key(&origin) {
            let now = Instant::now();
            kept.retain(|_, until| *until > now);
            if kept.len() >= KEPT_HOSTS {
                return false;
            }
        }
        kept.insert(origin, Instant::now() + self.timeout + 2 * IDLE_TIMEOUT);
        true
    }

    async fn https(&self, url: &CallbackUrl) -> Result<&Clients, SendError> {
        let local = || failed(SendErrorKind::Local, url);
        let build = || async {
            let (guard, timeout) = (self.https_guard.clone(), self.timeout);
            let built = spawn_blocking(move || Clients::build(&guard, timeout)).await;
            built.map_err(|error| local().with_source(error))?.map_err(|error| local().with_source(error))
        };
        self.https.get_or_try_init(build).await
    }
}

impl fmt::Debug for CallbackClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, https_guard, .. } = self;
        f.debug_struct("CallbackClient").field("timeout", timeout).field("rules", &https_guard.rules).finish()
    }
}

fn builder(guard: &Guard, timeout: Duration) -> ClientBuilder {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    client_builder(guard.https)
        .no_proxy()
        .referer(false)
        .user_agent(USER_AGENT)
        .default_headers(headers)
        .dns_resolver(guard.clone())
        .connect_timeout(timeout / 2)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
}

/// The address that a URL names itself, in whatever spelling.
fn literal(url: &CallbackUrl) -> Option<IpAddr> {
    match url.url().host()? {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
    }
}

/// Reads a small body to its end, so that its connection can be used again. What becomes of it changes nothing.
async fn drain(mut response: Response, end: Instant) {
    let mut left = MAX_BODY_BYTES;
    if response.content_length().is_some_and(|length| length > left as u64) {
        return;
    }
    while let Ok(Ok(Some(chunk))) = timeout_at(end, response.chunk()).await {
        let Some(rest) = left.checked_sub(chunk.len()) else { return };
        left = rest;
    }
}

fn failed(kind: SendErrorKind, url: &CallbackUrl) -> SendError {
    let why = match kind {
        SendErrorKind::RefusedAddress if url.is_https() => {
            "the host has no address to which callbacks may be sent"
        }
        SendErrorKind::RefusedAddress => {
            "the host has no address to which callbacks may be sent without encryption: use https"
        }
        SendErrorKind::UnknownHost => "the name of the host cannot be looked up",
        SendErrorKind::Timeout => "no answer came in time",
        SendErrorKind::Connect => "no connection could be made",
        SendErrorKind::Tls => "encryption failed, or the certificate of the host is not trusted",
        SendErrorKind::Broken => "the connection ended without an answer, or the answer was no HTTP",
        SendErrorKind::Unsendable => "no request can be made of the URL and the message",
        SendErrorKind::Local => "this host could not send the request",
    };
    SendError::new(kind, why)
}

fn kind(error: &reqwest::Error) -> SendErrorKind {
    if is_local(error) {
        return SendErrorKind::Local;
    }
    match find::<NoAddress>(error) {
        Some(NoAddress::Refused) => return SendErrorKind::RefusedAddress,
        Some(NoAddress::Unknown(_) | NoAddress::Slow | NoAddress::None) => return SendErrorKind::UnknownHost,
        None => {}
    }
    if error.is_builder() {
        SendErrorKind::Unsendable
    } else if find::<rustls::Error>(error).is_some() {
        SendErrorKind::Tls
    } else if error.is_connect() {
        SendErrorKind::Connect
    } else if error.is_timeout() {
        SendErrorKind::Timeout
    } else {
        SendErrorKind::Broken
    }
}

/// Whether this host has too little of something, so that nobody could be sent anything: open files, memory, or random numbers.
fn is_local(error: &reqwest::Error) -> bool {
    let is_scarce = |error: &io::Error| {
        error.kind() == io::ErrorKind::OutOfMemory
            || error.raw_os_error().is_some_and(|code| SCARCE.contains(&code))
    };
    find::<io::Error>(error).is_some_and(is_scarce)
        || matches!(find::<rustls::Error>(error), Some(rustls::Error::FailedToGetRandomBytes))
}

/// The first of the causes that is of this type.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error holds another, but calls the cause of that one its own.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
