//! The HTTP API. Each request may be sent again: a job has an ID, and a batch a key.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub(crate) struct Errand {
    http: Client,
    url: String,
    key: Option<String>,
}

impl Errand {
    pub(crate) fn new(url: String, key: Option<String>) -> anyhow::Result<Self> {
        // reqwest is built without a provider of cryptography. That there is one already is no failure.
        drop(rustls::crypto::ring::default_provider().install_default());
        // A wait is answered within 30 seconds, and a stream has a comment every 15.
        let mut http =
            Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(Duration::from_secs(45));
        if url.starts_with("http:") {
            // There is nothing to verify, and a slim container has no certificates to read.
            http = http.tls_certs_only([]);
        }
        Ok(Self { http: http.build()?, url, key })
    }

    /// Enqueues a job and waits until it is final, or held for a person or a connection.
    pub(crate) async fn run(&self, job: &Value) -> anyhow::Result<Value> {
        let enqueue = self.request(Method::POST, "/v1/jobs").header("Prefer", "wait=30");
        let mut job = self.call(enqueue.json(job)).await?;
        while job["finished_at"].is_null() && job["state"] != "held" {
            let id = job["id"].as_str().context("a job without an ID")?;
            job = self.get(&format!("/v1/jobs/{id}?wait=30")).await?;
        }
        Ok(job)
    }

    /// Enqueues jobs together. The same key is the same batch.
    pub(crate) async fn enqueue_batch(&self, jobs: &[Value], key: &str) -> anyhow::Result<Value> {
        let enqueue = self.request(Method::POST, "/v1/batches").header("Idempotency-Key", key);
        self.call(enqueue.json(&json!({"items": jobs}))).await
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(self.request(Method::GET, path)).await
    }

    /// Tells the events of `job=ID` or `batch=ID` until its end, through lost connections: all, or those behind the cursor of
    /// one of them. An app keeps the `cursor` of each event with what it makes of it, and goes on there after a restart.
    pub(crate) async fn events(
        &self,
        of: &str,
        mut cursor: Option<String>,
        mut tell: impl AsyncFnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let mut request = self.request(Method::GET, &format!("/v1/events?{of}"));
            request = request.header(header::ACCEPT, "text/event-stream");
            if let Some(cursor) = &cursor {
                request = request.header("Last-Event-ID", cursor);
            }
            let mut stream = self.answer(request, async |stream| Ok(stream)).await?;
            if stream.status() == StatusCode::NO_CONTENT {
                return Ok(());
            }
            let mut come = Vec::new();
            while let Ok(Some(chunk)) = stream.chunk().await {
                come.extend_from_slice(&chunk);
                while let Some(end) = come.windows(2).position(|two| two == b"\n\n") {
                    let block = String::from_utf8(come.drain(..end + 2).collect())?;
                    let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
                    // A comment has a cursor, too, and no event.
                    if let Some(event) = field("data: ") {
                        tell(serde_json::from_str(event)?).await?;
                    }
                    cursor = field("id: ").map(str::to_owned).or(cursor);
                }
            }
            // It ended or was lost, and half an event is told once more. The API knows whether more is to come.
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(key) = &self.key { request.bearer_auth(key) } else { request }
    }

    async fn call(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let body = self.answer(request, Response::bytes).await?;
        serde_json::from_slice(&body).context("an answer that is no JSON")
    }

    /// What is read of an answer. While the API is away or asks for patience, the request is sent again for two minutes.
    async fn answer<T>(
        &self,
        request: RequestBuilder,
        read: impl AsyncFn(Response) -> reqwest::Result<T>,
    ) -> anyhow::Result<T> {
        let request = request.build()?;
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let mut pause = Duration::from_secs(1);
            let again = request.try_clone().context("a streamed body cannot be sent again")?;
            let cause = match self.http.execute(again).await {
                Err(lost) => lost.into(),
                Ok(response) if response.status().is_success() => match read(response).await {
                    Ok(read) => return Ok(read),
                    Err(lost) => lost.into(),
                },
                Ok(response) if [429, 503].contains(&response.status().as_u16()) => {
                    let named = response.headers().get(header::RETRY_AFTER);
                    let seconds = named.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
                    pause = seconds.map_or(pause, Duration::from_secs);
                    anyhow!("the answer is {}", response.status())
                }
                Ok(response) => {
                    // Sending the same again would not change this. `detail` says what would.
                    let (status, told) = (response.status(), response.text().await?);
                    let problem: Value = serde_json::from_str(&told).unwrap_or_default();
                    bail!("refused: {status}: {}", problem["detail"].as_str().unwrap_or(&told));
                }
            };
            if until.saturating_duration_since(Instant::now()) < pause {
                return Err(cause.context("there was no answer for two minutes"));
            }
            sleep(pause).await;
        }
    }
}
