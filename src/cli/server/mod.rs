//! The server that commands use instead of this host's database: its HTTP API, spoken as any app would.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, header::RETRY_AFTER};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::sync::OnceCell;

use super::{exit, output, terminal, transport::stays_here};
use crate::{
    backoff::RECONNECT,
    config::{Target, mask_url},
    http_client::client_builder,
    store::{FilterJson, JobFilter},
};

mod address;
mod flags;
mod patience;
mod refused;
mod stream;

use refused::{Problem, in_flags, is_passing};

pub(super) use flags::ServerFlags;
pub(super) use patience::one_wait;
pub(super) use refused::{Away, Refused, is_away};

/// How long a connection may take, and an answer beyond the time that a request asks to wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The media type of most bodies.
pub(super) const JSON: &str = "application/json";

/// The most items of a page.
pub(super) const MAX_LIMIT: usize = 500;

/// How often a request is sent that may be sent again, and the longest that is waited before the next time.
const TIMES: u32 = 5;
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// A page of a list, whose items are as they came.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) items: Vec<Box<RawValue>>,
    pub(super) next: Option<Box<RawValue>>,
    /// Which time a list of jobs is about.
    #[serde(default)]
    pub(super) window: Option<Window>,
}

/// The time that a list of jobs is about.
#[derive(Debug, Deserialize)]
pub(super) struct Window {
    pub(super) since: Option<Timestamp>,
}

impl Page {
    /// A page that is not a server's: its items, and where the list goes on.
    pub(super) fn of<T: Serialize>(
        items: impl IntoIterator<Item = T>,
        next: Option<impl ToString>,
    ) -> serde_json::Result<Self> {
        let items = items.into_iter().map(|item| to_raw_value(&item)).collect::<Result<_, _>>()?;
        Ok(Self { items, next: next.map(|next| to_raw_value(&next.to_string())).transpose()?, window: None })
    }

    /// Where the list goes on, without quotation marks.
    pub(super) fn next(&self) -> Option<String> {
        let next = self.next.as_deref()?.get().trim_matches('"');
        (next != "null").then(|| next.to_owned())
    }
}

#[derive(Debug)]
pub(super) struct Server {
    client: Client,
    base: Url,
    key: Option<SecretString>,
    name: Option<String>,
    /// Whether a person is asked before the first change.
    asks: bool,
    /// The context that the command line confirms.
    confirmed: Option<String>,
    asked: OnceCell<()>,
}

/// A request to the server.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    body: Option<(&'static str, Vec<u8>)>,
    idempotency_key: Option<String>,
    /// Whether the same request again changes nothing more.
    repeatable: bool,
    changes: bool,
    waits: Duration,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { repeatable: true, changes: false, ..Self::new(Method::GET, path) }
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: None,
            idempotency_key: None,
            repeatable: false,
            changes: true,
            waits: Duration::ZERO,
        }
    }

    /// Adds a parameter, where there is a value.
    pub(super) fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name.to_owned(), value.to_string())));
        self
    }

    /// Adds what a filter asks for.
    pub(super) fn filtered(mut self, filter: &JobFilter) -> anyhow::Result<Self> {
        let asked = serde_json::to_value(FilterJson::of(filter))?;
        for (name, value) in asked.as_object().into_iter().flatten() {
            let values = match value {
                Value::Null => continue,
                Value::Array(values) => values.as_slice(),
                one => std::slice::from_ref(one),
            };
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.query.extend(values.iter().map(|value| (name.clone(), text(value))));
        }
        Ok(self)
    }

    pub(super) fn json(self, body: &impl Serialize) -> serde_json::Result<Self> {
        Ok(self.body(JSON, serde_json::to_vec(body)?))
    }

    pub(super) fn body(self, media_type: &'static str, body: Vec<u8>) -> Self {
        Self { body: Some((media_type, body)), ..self }
    }

    /// Makes the same request again the same, by this key.
    pub(super) fn known_by(self, key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), repeatable: true, ..self }
    }

    /// The same request again is the same, by what is in it.
    pub(super) fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }

    /// Nothing is changed by it, whatever its method.
    pub(super) fn only_asks(self) -> Self {
        Self { changes: false, repeatable: true, ..self }
    }

    /// The server answers within this time besides, because it waits for something.
    pub(super) fn waits(self, waits: Duration) -> Self {
        Self { waits, ..self }
    }
}

impl Server {
    /// # Errors
    /// The address is none.
    pub(super) fn new(target: Target, confirmed: Option<String>) -> anyhow::Result<Self> {
        let Target { name, server, api_key, production } = target;
        let base = address::base(&server).map_err(exit::usage)?;
        let stays = stays_here(&base);
        if base.scheme() == "http" && !stays && api_key.is_some() {
            output::note("warning: the key is sent without TLS; use https://");
        }
        let builder = client_builder(base.scheme() == "https")
            .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT);
        let builder = if stays { builder.no_proxy() } else { builder };
        let client = builder.build().context("cannot set up HTTP")?;
        Ok(Self { client, base, key: api_key, name, asks: production, confirmed, asked: OnceCell::new() })
    }

    /// How a person calls it.
    pub(super) fn place(&self) -> String {
        let address = mask_url(self.base.as_str());
        match &self.name {
            Some(name) => format!("{name} ({})", address.trim_end_matches('/')),
            None => address.trim_end_matches('/').to_owned(),
        }
    }

    /// How a command begins that asks the same server, to be pasted.
    pub(super) fn errand(&self) -> String {
        match &self.name {
            Some(name) => format!("errand --context {name}"),
            None => format!("errand --server {}", mask_url(self.base.as_str()).trim_end_matches('/')),
        }
    }

    /// The answer, read as JSON.
    ///
    /// # Errors
    /// A [`Refused`], or the server cannot be reached or does not answer as errand does.
    pub(super) async fn ask<T: DeserializeOwned>(&self, call: Call) -> anyhow::Result<T> {
        self.read(&self.send(call).await?.1)
    }

    /// What an answer says.
    ///
    /// # Errors
    /// It is not as errand answers.
    pub(super) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> anyhow::Result<T> {
        serde_json::from_slice(body).map_err(|error| self.is_no_errand(&error))
    }

    /// What is told of an answer that is not as errand answers.
    pub(super) fn is_no_errand(&self, error: &serde_json::Error) -> anyhow::Error {
        let place = self.place();
        exit::unreachable(format!("{place} does not answer as errand does; check the address: {error}"))
    }

    /// The status and the body of the answer.
    pub(super) async fn send(&self, call: Call) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        if call.changes {
            self.asked.get_or_try_init(async || self.may_change()).await?;
        }
        let mut times = 1;
        loop {
            let mut may_repeat = call.repeatable;
            let (error, pause) = match self.send_once(&call).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err((refused, pause))) => {
                    // With 429 nothing was done.
                    may_repeat |= refused.status == StatusCode::TOO_MANY_REQUESTS;
                    if !is_passing(refused.status) {
                        return Err(refused.into());
                    }
                    (anyhow::Error::from(refused), pause)
                }
                Err(error) => (self.away(error, &call), None),
            };
            if !may_repeat || times >= TIMES {
                return Err(error);
            }
            let pause = pause.unwrap_or_else(|| RECONNECT.wait(times, fastrand::f64()));
            tokio::time::sleep(pause.min(MAX_PAUSE)).await;
            times += 1;
        }
    }

    /// A page of a list.
    pub(super) async fn page(&self, call: Call) -> anyhow::Result<Page> {
        self.ask(call).await
    }

    /// All items of a list, page by page.
    pub(super) async fn all(&self, call: impl Fn() -> Call) -> anyhow::Result<Vec<Box<RawValue>>> {
        let (mut items, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.page(call().with("limit", Some(MAX_LIMIT)).with("cursor", cursor)).await?;
            cursor = page.next();
            items.extend(page.items);
            if cursor.is_none() {
                return Ok(items);
            }
        }
    }

    /// A request with the key, and without a body.
    fn request(&self, call: &Call) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(call.path.split('/').skip(1));
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let request = self.client.request(call.method.clone(), url);
        match &self.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        }
    }

    async fn send_once(
        &self,
        call: &Call,
    ) -> reqwest::Result<Result<(StatusCode, Vec<u8>), (Refused, Option<Duration>)>> {
        let mut request = self.request(call).timeout(ANSWER_TIMEOUT + call.waits);
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some((media_type, body)) = &call.body {
            request = request.header("content-type", *media_type).body(body.clone());
        }
        let mut answer = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = answer.status();
        let again = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                let message =
                    format!("{} answers with more than {MAX_ANSWER_BYTES} bytes; ask for less", self.place());
                return Ok(Err((Refused { status, kind: String::new(), message, items: Vec::new() }, None)));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(Ok((status, body)));
        }
        Ok(Err((self.refused(status, &body), again.map(Duration::from_secs))))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Refused {
        let no_errand = || {
            let (place, status_code) = (self.place(), status.as_u16());
            let message =
                format!("{place} answers HTTP {status_code}, not as errand does; check the address");
            Refused { status, kind: String::new(), message, items: Vec::new() }
        };
        let Ok(Problem { r#type, detail, errors }) = serde_json::from_slice::<Problem>(body) else {
            return no_errand();
        };
        // Others tell problems in this form, too.
        let Some(kind) = r#type.strip_prefix("urn:errand:problem:").map(str::to_owned) else {
            return no_errand();
        };
        let message = match status {
            StatusCode::UNAUTHORIZED => format!("{detail} (ERRAND_API_KEY, or the key of the context)"),
            _ => in_flags(&detail),
        };
        Refused { status, kind, message, items: errors }
    }

    /// What is told of a server that gives no answer.
    fn away(&self, error: reqwest::Error, call: &Call) -> anyhow::Error {
        // A request that may not have arrived may as well have been carried out.
        let perhaps = if call.changes && !call.repeatable && !error.is_connect() {
            "; whether it did what was asked is not known: look before you ask again"
        } else {
            ""
        };
        let why = crate::failure::chain(&error);
        let scheme = address::other_scheme(self.base.scheme(), &why);
        self.gone(&format!("{why}{scheme}{perhaps}"))
    }

    fn gone(&self, why: &str) -> anyhow::Error {
        Away(format!("{} does not answer: {why}", self.place())).into()
    }

    /// An error unless changes are wanted there.
    fn may_change(&self) -> anyhow::Result<()> {
        let Some(name) = self.name.as_ref().filter(|_| self.asks) else { return Ok(()) };
        match &self.confirmed {
            Some(confirmed) if confirmed == name => return Ok(()),
            Some(confirmed) => {
                return Err(exit::usage(format!("--confirm names {confirmed}, but the context is {name}")));
            }
            None => {}
        }
        terminal::need(&format!("this would change {name}, which is production; add --confirm {name}"))?;
        if terminal::answer(&format!(
            "This changes {}. Type the name of the context to go on:",
            self.place()
        ))? == *name
        {
            return Ok(());
        }
        Err(exit::negative("nothing was changed"))
    }
}
