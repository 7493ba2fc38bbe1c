//! The tool API over HTTP, as Composio speaks it.
//!
//! Guarantees of this client:
//! * A call is made at most once: no retry, no redirect, no replay on another connection.
//! * [`Reply::NotSent`] is only said when no tool can have run.
//! * Answers are bounded while they are read, in size and in time.
//! * The API key travels in its header and nowhere else; errors name no URL.
//!
//! Proxies from the environment are not honoured: the key and the customers' data go to the
//! configured address or nowhere.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use reqwest::{
    Body as HttpBody, Client, Method, Request, Response,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::{
    Account, Answer, ApiCheck, ApiError, Body, Call, Execution, Reply, ToolApi, ToolError, ToolInfo,
    error::{date, decode, empty_object, lookup_error, retry_after},
};
use crate::{
    clock::{self, SharedClock},
    config::HttpVersion,
    failure,
    job::RequestId,
};

pub mod channels;
pub mod wire;

use channels::Channels;

/// The time that one look-up may take, its repetitions included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a listing may take, over all pages.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses before a look-up is repeated. Only look-ups are, because reading twice harms nobody.
const LOOKUP_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// The largest answer to a look-up, in bytes. Descriptions carry whole schemas.
const MAX_LOOKUP_BYTES: usize = 8 * 1024 * 1024;

/// Accounts per page, and the most pages of one owner that are read.
const ACCOUNTS_PER_PAGE: &str = "100";
const MAX_ACCOUNT_PAGES: usize = 20;

/// Idle connections are dropped before common load balancers do it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Entries of the log per page, and the most pages that are read for one request ID. The API does not
/// promise that there is only one entry.
const EXECUTIONS_PER_PAGE: usize = 5;
const MAX_EXECUTION_PAGES: usize = 20;

/// What is reserved for a body of unknown size before any of it has arrived.
const FIRST_READ: usize = 8 * 1024;

/// Longest header of the API that is passed on, in bytes.
const MAX_HEADER_BYTES: usize = 1024;

/// Literal routes and path segments that stand where a slug would; none of them is a tool.
const NOT_SLUGS: [&str; 6] = ["proxy", "enum", "input", "scopes", ".", ".."];

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ERRAND_JOB_ID: HeaderName = HeaderName::from_static("x-errand-job-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const DEPRECATED: HeaderName = HeaderName::from_static("composio-deprecated-toolkits");

/// How to reach the API.
#[derive(Debug, Clone)]
pub struct Options {
    /// Scheme and host, with a path prefix if there is one; `http` or `https`.
    pub base_url: Url,
    /// The project's key.
    pub api_key: SecretString,
    /// The API version's path, below the base URL.
    pub api_path: String,
    /// Resolving, connecting and TLS. Keep it well below the timeout of a call.
    pub connect_timeout: Duration,
    /// The largest answer to a call, in bytes.
    pub max_response_bytes: usize,
    /// The protocol of the connections.
    pub http_version: HttpVersion,
    /// Calls that run at once; so many connections, or streams of some, are kept open between calls.
    pub max_calls: usize,
    /// Sent as `user-agent`.
    pub user_agent: String,
    /// Stands in for an answer's missing `Date` where a `Retry-After` is a date.
    pub clock: SharedClock,
}

impl Options {
    /// Usual values, for tests and tools. A worker's come from its configuration.
    pub fn new(base_url: Url, api_key: impl Into<SecretString>) -> Self {
        Self {
            base_url,
            api_key: api_key.into(),
            api_path: "/api/v3.1".into(),
            connect_timeout: Duration::from_secs(3),
            max_response_bytes: 8 * 1024 * 1024,
            http_version: HttpVersion::default(),
            max_calls: 64,
            user_agent: concat!("errand/", env!("CARGO_PKG_VERSION")).into(),
            clock: clock::system(),
        }
    }
}

/// Why a client cannot be made of the given options.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base URL is unusable.
    #[error("the tool API's base URL {0}")]
    BaseUrl(&'static str),
    /// The key cannot be sent in a header.
    #[error("the tool API's key is empty or contains characters that no header can carry")]
    ApiKey,
    /// The user agent cannot be sent in a header.
    #[error("the user agent contains characters that no header can carry")]
    UserAgent,
    /// The HTTP client cannot be set up, for example without certificates of authorities.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// A client of the tool API. All calls share its connections.
pub struct Composio {
    channels: Channels,
    /// Base URL and API path.
    root: Url,
    api_key: SecretString,
    max_response_bytes: usize,
    clock: SharedClock,
}

impl Composio {
    /// Sets the client up; nothing is sent. With an `https` base URL, a rustls provider must have
    /// been installed for the process.
    ///
    /// # Errors
    /// [`SetupError`] when an option is unusable.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        let Options { base_url, api_key, api_path, connect_timeout, max_response_bytes, .. } = options;
        let tls = match base_url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(SetupError::BaseUrl("is neither http nor https")),
        };
        if !base_url.username().is_empty() || base_url.password().is_some() {
            return Err(SetupError::BaseUrl("contains a user name or password, which would end up in logs"));
        }
        if base_url.query().is_some() || base_url.fragment().is_some() {
            return Err(SetupError::BaseUrl("contains a query or fragment"));
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(SetupError::Client("no rustls provider is installed for this process".into()));
        }
        let mut key = HeaderValue::from_str(api_key.expose_secret()).map_err(|_| SetupError::ApiKey)?;
        if key.is_empty() {
            return Err(SetupError::ApiKey);
        }
        key.set_sensitive(true);
        let agent = HeaderValue::from_str(&options.user_agent).map_err(|_| SetupError::UserAgent)?;
        let headers =
            HeaderMap::from_iter([(X_API_KEY, key), (ACCEPT, HeaderValue::from_static("application/json"))]);
        let build = || {
            let builder = Client::builder()
                .user_agent(agent.clone())
                .default_headers(headers.clone())
                .no_proxy()
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .https_only(tls)
                .tcp_nodelay(true)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(POOL_IDLE_TIMEOUT);
            // Nothing is verified over plain HTTP, so a host without any authorities' certificates,
            // for example a slim container, must not be an obstacle.
            if tls { builder } else { builder.tls_certs_only([]) }
        };
        let channels = Channels::new(options.http_version, options.max_calls, build)
            .map_err(|error| SetupError::Client(chain(error)))?;
        let mut root = base_url;
        let parts: Vec<String> =
            api_path.split('/').filter(|part| !part.is_empty()).map(Into::into).collect();
        root.path_segments_mut()
            .map_err(|()| SetupError::BaseUrl("cannot have a path"))?
            .pop_if_empty()
            .extend(parts);
        Ok(Self { channels, root, api_key, max_response_bytes, clock: options.clock })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Builds a call. `started` is set when the body is first asked for, which the HTTP client does
    /// only on an open connection, and before it sends anything.
    fn request(&self, call: &Call, started: Arc<AtomicBool>) -> Result<Request, String> {
        let spec = &*call.spec;
        if NOT_SLUGS.contains(&spec.tool.as_str()) {
            return Err("this slug is not a tool's".into());
        }
        let none = (spec.arguments.is_none() && spec.text.is_none()).then(empty_object);
        let body = ExecuteBody {
            user_id: spec.owner.id(),
            version: &call.version,
            connected_account_id: call.account.as_deref(),
            arguments: spec.arguments.as_deref().or(none.as_deref()),
            text: spec.text.as_deref(),
        };
        let body = serde_json::to_vec(&body).map_err(|_| "the body cannot be encoded".to_owned())?;
        let mut request = Request::new(Method::POST, self.url(&["tools", "execute", &spec.tool]));
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let id = |id: String| HeaderValue::from_str(&id).map_err(|_| "an ID is no header value".to_owned());
        headers.insert(X_REQUEST_ID, id(call.request_id.to_string())?);
        headers.insert(X_ERRAND_JOB_ID, id(call.job.to_string())?);
        if let Some(parent) = spec.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(TRACEPARENT, parent);
        }
        let body = Bytes::from(body);
        *request.body_mut() = Some(HttpBody::wrap_stream(stream::once(async move {
            started.store(true, Ordering::Release);
            Ok::<_, std::convert::Infallible>(body)
        })));
        Ok(request)
    }

    async fn read(&self, mut response: Response, deadline: Instant, call: &Call) -> Answer {
        let status = response.status().as_u16();
        let headers = response.headers();
        let mut request_id = header(headers, &X_REQUEST_ID);
        let deprecated = header(headers, &DEPRECATED);
        let retry_after = retry_after(headers, self.clock.now());
        let body = match timeout_at(deadline, collect(&mut response, self.max_response_bytes)).await {
            Err(_) => Body::Broken("the body did not arrive in time".into()),
            Ok(Err(Unread::Broken(cause))) => Body::Broken(self.scrub(cause)),
            Ok(Err(Unread::TooLarge)) => Body::TooLarge,
            Ok(Ok(bytes)) => match decode(status, &bytes) {
                Body::Error(error) => {
                    request_id = request_id.or_else(|| error.request_id.clone());
                    Body::Error(self.scrub_error(error))
                }
                Body::Result(mut result) => {
                    result.error = result.error.map(|text| self.scrub(text));
                    Body::Result(result)
                }
                other => other,
            },
        };
        let ours = call.request_id.0;
        let request_id = request_id.filter(|id| uuid::Uuid::parse_str(id).ok() != Some(ours));
        Answer { status, retry_after, request_id, deprecated, body }
    }

    /// One look-up, repeated quickly when the API cannot be reached or fails.
    async fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Found, ToolError> {
        let mut url = self.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.look_up(|| Request::new(Method::GET, url.clone())).await
    }

    async fn look_up(&self, request: impl Fn() -> Request) -> Result<Found, ToolError> {
        let look_up = async {
            for pause in LOOKUP_PAUSES {
                match self.look_up_once(request()).await {
                    Err(ToolError::Unavailable(_)) => tokio::time::sleep(pause).await,
                    definite => return definite,
                }
            }
            self.look_up_once(request()).await
        };
        timeout(LOOKUP_TIMEOUT, look_up).await.unwrap_or_else(|_| {
            Err(ToolError::Unavailable(format!("it gave no answer within {} s", LOOKUP_TIMEOUT.as_secs())))
        })
    }

    async fn look_up_once(&self, request: Request) -> Result<Found, ToolError> {
        let unavailable = |error: reqwest::Error| ToolError::Unavailable(self.scrub(chain(error)));
        let place = self.channels.place();
        let mut response = place.client().execute(request).await.map_err(unavailable)?;
        let status = response.status();
        let date = date(response.headers());
        let retry_after = retry_after(response.headers(), self.clock.now());
        let body = collect(&mut response, MAX_LOOKUP_BYTES).await.map_err(|unread| match unread {
            Unread::TooLarge => ToolError::Unavailable("its answer to a look-up is too large".into()),
            Unread::Broken(cause) => ToolError::Unavailable(self.scrub(cause)),
        });
        if status.is_success() {
            return Ok(Found { body: body?, date });
        }
        // The status says enough when the body is lost.
        Err(match lookup_error(status.as_u16(), retry_after, &body.unwrap_or_default()) {
            ToolError::NotFound(error) => ToolError::NotFound(self.scrub_error(*error).into()),
            ToolError::Credentials { status, error } => {
                ToolError::Credentials { status, error: self.scrub_error(*error).into() }
            }
            ToolError::Refused { status, error } => {
                ToolError::Refused { status, error: self.scrub_error(*error).into() }
            }
            other @ (ToolError::Throttled { .. } | ToolError::Unavailable(_)) => other,
        })
    }

    /// One page of the log's entries for a request ID.
    async fn executions(&self, request_id: RequestId, cursor: Option<&str>) -> Result<Found, ToolError> {
        let url = self.url(&["logs", "tool_execution"]);
        let mut search = serde_json::json!({
            "limit": EXECUTIONS_PER_PAGE,
            "filters": [{ "field": "request_id", "operator": "==", "value": request_id.to_string() }],
        });
        if let Some(cursor) = cursor {
            search["cursor"] = cursor.into();
        }
        let search = Bytes::from(search.to_string());
        self.look_up(|| {
            let mut request = Request::new(Method::POST, url.clone());
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(search.clone().into());
            request
        })
        .await
    }

    /// Takes our own key out of a text, should the API ever quote it.
    fn scrub(&self, text: String) -> String {
        match self.api_key.expose_secret() {
            key if text.contains(key) => text.replace(key, "***"),
            _ => text,
        }
    }

    fn scrub_error(&self, error: ApiError) -> ApiError {
        let scrub = |text: Option<String>| text.map(|text| self.scrub(text));
        ApiError {
            message: scrub(error.message),
            code: error.code,
            slug: scrub(error.slug),
            request_id: scrub(error.request_id),
            suggested_fix: scrub(error.suggested_fix),
            errors: error.errors.into_iter().map(|text| self.scrub(text)).collect(),
        }
    }
}

#[async_trait]
impl ToolApi for Composio {
    async fn execute(&self, call: &Call) -> Reply {
        let deadline = Instant::now() + call.timeout;
        let started = Arc::new(AtomicBool::new(false));
        let request = match self.request(call, started.clone()) {
            Ok(request) => request,
            Err(cause) => return Reply::NotSent(cause),
        };
        let place = self.channels.place();
        match timeout_at(deadline, place.client().execute(request)).await {
            Ok(Ok(response)) => Reply::Answered(self.read(response, deadline, call).await),
            Ok(Err(error)) if error.is_connect() || error.is_builder() || was_refused(&error) => {
                Reply::NotSent(self.scrub(chain(error)))
            }
            Ok(Err(error)) => Reply::NoAnswer(self.scrub(chain(error))),
            // Nobody asked for the body, so the connection was never ready for it.
            Err(_) if !started.load(Ordering::Acquire) => {
                Reply::NotSent(format!("no connection within {} ms", call.timeout.as_millis()))
            }
            Err(_) => Reply::NoAnswer(format!("no answer within {} ms", call.timeout.as_millis())),
        }
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        if NOT_SLUGS.contains(&slug) {
            return Err(ToolError::NotFound(Box::default()));
        }
        let query = match version {
            Some(version) => ("version", version),
            None => ("toolkit_versions", "latest"),
        };
        let found = self.get(&["tools", slug], &[query]).await?;
        wire::tool(&found.body, version).ok_or_else(|| unreadable("a tool"))
    }

    async fn versions(&self, toolkit: &str) -> Result<Vec<String>, ToolError> {
        if NOT_SLUGS.contains(&toolkit) {
            return Err(ToolError::NotFound(Box::default()));
        }
        let found = self.get(&["toolkits", toolkit], &[]).await?;
        wire::versions(&found.body).ok_or_else(|| unreadable("a toolkit"))
    }

    async fn accounts(&self, owner_id: &str, toolkit: Option<&str>) -> Result<Vec<Account>, ToolError> {
        let pages = async {
            let mut accounts = Vec::new();
            let mut cursor: Option<String> = None;
            for _ in 0..MAX_ACCOUNT_PAGES {
                let mut query = vec![
                    ("user_ids", owner_id),
                    ("order_by", "created_at"),
                    ("order_direction", "desc"),
                    ("limit", ACCOUNTS_PER_PAGE),
                ];
                query.extend(toolkit.map(|toolkit| ("toolkit_slugs", toolkit)));
                query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
                let found = self.get(&["connected_accounts"], &query).await?;
                let page = wire::accounts(&found.body).ok_or_else(|| unreadable("a list of accounts"))?;
                accounts.extend(page.accounts);
                if page.next_cursor.is_none() || page.next_cursor == cursor {
                    break;
                }
                cursor = page.next_cursor;
            }
            Ok(accounts)
        };
        let mut accounts = timeout(LISTING_TIMEOUT, pages)
            .await
            .unwrap_or_else(|_| Err(ToolError::Unavailable("listing accounts took too long".into())))?;
        accounts.sort_by_key(|account: &Account| std::cmp::Reverse(account.created_at));
        Ok(accounts)
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        if matches!(id, "" | "." | ".." | "link") {
            return Err(ToolError::NotFound(Box::default()));
        }
        let found = self.get(&["connected_accounts", id], &[]).await?;
        wire::account(&found.body).ok_or_else(|| unreadable("an account"))
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        let pages = async {
            let mut cursor: Option<String> = None;
            for _ in 0..MAX_EXECUTION_PAGES {
                let found = self.executions(request_id, cursor.as_deref()).await?;
                let page = wire::executions(&found.body, request_id)
                    .ok_or_else(|| unreadable("a list of executions"))?;
                if page.found.is_some() {
                    return Ok(page.found);
                }
                // Its own entry may be behind any number of these.
                if page.others {
                    return Err(ToolError::Unavailable("its log does not filter by request ID".into()));
                }
                // A page may be empty and not the last.
                if page.next_cursor.is_none() {
                    return Ok(None);
                }
                if page.next_cursor == cursor {
                    break;
                }
                cursor = page.next_cursor;
            }
            Err(ToolError::Unavailable("its log has no last page".into()))
        };
        let mut found = timeout(LISTING_TIMEOUT, pages)
            .await
            .unwrap_or_else(|_| Err(ToolError::Unavailable("reading its log took too long".into())))?;
        if let Some(result) = found.as_mut().and_then(|execution| execution.result.as_mut()) {
            result.error = result.error.take().map(|text| self.scrub(text));
        }
        Ok(found)
    }

    async fn check(&self) -> Result<ApiCheck, ToolError> {
        let started = Instant::now();
        let found = self.get(&["toolkits"], &[("limit", "1")]).await?;
        if !found.body.trim_ascii_start().starts_with(b"{") {
            return Err(unreadable("a list of toolkits"));
        }
        Ok(ApiCheck { date: found.date, took: started.elapsed() })
    }
}

impl fmt::Debug for Composio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Composio").field("root", &self.root.as_str()).finish_non_exhaustive()
    }
}

/// A successful look-up.
struct Found {
    body: Vec<u8>,
    date: Option<Timestamp>,
}

/// The body of a call. `arguments` goes out as it came in, so that no number loses digits.
#[derive(Serialize)]
struct ExecuteBody<'a> {
    user_id: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

enum Unread {
    TooLarge,
    Broken(String),
}

/// Reads a body up to a limit, which holds while reading: no more than one chunk above it is ever
/// in memory.
async fn collect(response: &mut Response, limit: usize) -> Result<Vec<u8>, Unread> {
    let announced = response.content_length().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Unread::TooLarge);
    }
    // What is announced is believed only so far, because thousands of calls may wait at once.
    let mut body = Vec::with_capacity(announced.unwrap_or(FIRST_READ).min(FIRST_READ));
    while let Some(chunk) = response.chunk().await.map_err(|error| Unread::Broken(chain(error)))? {
        if body.len() + chunk.len() > limit {
            return Err(Unread::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(name)?.as_bytes());
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(MAX_HEADER_BYTES).collect();
    (!text.is_empty()).then_some(text)
}

fn unreadable(what: &str) -> ToolError {
    ToolError::Unavailable(format!("its answer is not {what} as documented; check its base URL"))
}

/// Whether the server refused the stream, by which it says that it has processed nothing of it
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-8.7>).
fn was_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}

/// An error with its causes, without the URL.
fn chain(error: reqwest::Error) -> String {
    failure::chain(&error.without_url())
}
