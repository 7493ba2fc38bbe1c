//! The tool API over HTTP, as Composio speaks it.
//!
//! Guarantees of this client:
//! * A call is made at most once: no retry, no redirect, no replay on another connection.
//! * [`Reply::NotSent`](super::Reply::NotSent) is only said when no tool can have run.
//! * Answers are bounded while they are read, in size and in time.
//! * The API key travels in its header and nowhere else; errors name no URL.
//!
//! Proxies from the environment are not honoured: the key and the customers' data go to the
//! configured address or nowhere.

use std::{fmt, path::PathBuf, time::Duration};

use reqwest::{
    ClientBuilder,
    header::{ACCEPT, HeaderMap, HeaderName, HeaderValue},
};
use secrecy::SecretString;
use url::Url;

use self::{client_pool::ClientPool, key::ApiKey, response::chain};
use crate::{clock::SharedClock, http_client::client_builder, string_enum::string_enum};

mod call;
mod key;
mod response;

pub mod client_pool;
pub mod lookup;
pub mod retry_after;
pub mod wire;

/// Idle connections are dropped before common load balancers do it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Literal routes and path segments that stand where a slug would; none of them is a tool.
const NOT_SLUGS: [&str; 6] = ["proxy", "enum", "input", "scopes", ".", ".."];

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[derive(Debug, Clone)]
pub struct Options {
    /// Scheme and host, with a path prefix if there is one; `http` or `https`.
    pub base_url: Url,
    pub api_key: SecretString,
    /// The file that the key came from, which may get another one later.
    pub api_key_file: Option<PathBuf>,
    /// The API version's path, below the base URL.
    pub api_path: String,
    /// Resolving, connecting and TLS. Keep it well below the timeout of a call.
    pub connect_timeout: Duration,
    /// The largest answer to a call, in bytes.
    pub max_response_bytes: usize,
    pub http_version: HttpVersion,
    /// Calls that run at once; so many connections, or streams of some, are kept open between calls.
    pub max_calls: usize,
    pub user_agent: String,
    /// Stands in for an answer's missing `Date` where a `Retry-After` is a date.
    pub clock: SharedClock,
}

string_enum! {
    /// The protocol of the connections to the tool API.
    HttpVersion {
        /// A connection for each call in flight. A lost connection leaves one outcome unknown.
        Http1 = "1.1",
        /// Connections are shared by up to a hundred calls, which takes a fraction of the memory and of the
        /// handshakes. Spoken without asking: a server that does not know it cannot be called.
        Http2 = "2",
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the tool API's base URL {0}")]
    BaseUrl(&'static str),
    #[error("the tool API's key is empty or has other characters than visible ones of ASCII")]
    ApiKey,
    #[error("the user agent contains characters that no header can carry")]
    UserAgent,
    /// The HTTP client cannot be set up, for example without certificates of authorities.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// A client of the tool API. All calls share its connections.
pub struct Composio {
    clients: ClientPool,
    root: Url,
    key: ApiKey,
    max_response_bytes: usize,
    clock: SharedClock,
}

impl Composio {
    /// Sets the client up; nothing is sent. With an `https` base URL, a rustls provider must have
    /// been installed for the process.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        let root = root(&options)?;
        let build = builders(&options)?;
        let clients = ClientPool::new(options.http_version, options.max_calls, build)
            .map_err(|error| SetupError::Client(chain(error)))?;
        let Options { api_key, api_key_file, max_response_bytes, clock, .. } = options;
        Ok(Self { clients, root, key: ApiKey::new(api_key, api_key_file)?, max_response_bytes, clock })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

impl fmt::Debug for Composio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Composio").field("root", &self.root.as_str()).finish_non_exhaustive()
    }
}

/// The base URL with the path of the API.
fn root(options: &Options) -> Result<Url, SetupError> {
    let mut root = options.base_url.clone();
    if !matches!(root.scheme(), "http" | "https") {
        return Err(SetupError::BaseUrl("is neither http nor https"));
    }
    if !root.username().is_empty() || root.password().is_some() {
        return Err(SetupError::BaseUrl("contains a user name or password, which would end up in logs"));
    }
    if root.query().is_some() || root.fragment().is_some() {
        return Err(SetupError::BaseUrl("contains a query or fragment"));
    }
    root.path_segments_mut()
        .map_err(|()| SetupError::BaseUrl("cannot have a path"))?
        .pop_if_empty()
        .extend(options.api_path.split('/').filter(|part| !part.is_empty()));
    Ok(root)
}

/// Makes HTTP clients that are alike, each with connections of its own.
fn builders(options: &Options) -> Result<impl Fn() -> ClientBuilder, SetupError> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        return Err(SetupError::Client("no rustls provider is installed for this process".into()));
    }
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
    let agent = HeaderValue::from_str(&options.user_agent).map_err(|_| SetupError::UserAgent)?;
    let (https, connect_timeout) = (options.base_url.scheme() == "https", options.connect_timeout);
    Ok(move || {
        client_builder(https)
            .user_agent(agent.clone())
            .default_headers(headers.clone())
            .no_proxy()
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
    })
}
