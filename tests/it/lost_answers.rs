//! Answers that are lost after the commit, through every door of the HTTP API: the client sends the same again, as
//! documented, and in the end no job is lost and none is doubled.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use errand_sandbox::Running;
use errand_testbed::factory::{Envelope as _, send, spread};
use futures_util::{StreamExt as _, stream};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::{
    api::{Api, read_answer, served_by},
    harness::{Harness, PATIENCE, Process, in_memory, sandbox},
    support::{self, wait::until},
};

/// Jobs with an ID of their own, and those with an idempotency key.
const BY_ID: usize = 300;
const BY_KEY: usize = 300;

/// Batches that come in one request, and those that are made, filled with two chunks, and sealed.
const WHOLE: usize = 200;
const FILLED: usize = 50;

/// Items of each of these requests.
pub(crate) const ITEMS: usize = 2;

/// One for each request.
const CUT: usize = BY_ID + BY_KEY + WHOLE + 4 * FILLED;
const JOBS: usize = BY_ID + BY_KEY + WHOLE * ITEMS + FILLED * 2 * ITEMS;
const _: () = assert!(CUT >= 1_000);

/// Requests under way at once. Of those that add items, an owner may send two.
pub(crate) const JOBS_AT_ONCE: usize = 8;
pub(crate) const BATCHES_AT_ONCE: usize = 2;

/// Forwards each request, and cuts its connection when the answer has begun to come, which is after the commit.
pub(crate) struct Cutter {
    pub(crate) base: String,
    pub(crate) cut: Arc<AtomicUsize>,
    pub(crate) accepting: AbortHandle,
}

impl Cutter {
    pub(crate) async fn start(api: &Api) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let target: SocketAddr = api.base.strip_prefix("http://").unwrap().parse().unwrap();
        let cut = Arc::new(AtomicUsize::new(0));
        let counted = cut.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(cut_answer(client, target, counted.fetch_add(1, Relaxed)));
            }
        });
        Self { base, cut, accepting: accepting.abort_handle() }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Lets nothing of the answer through, or a part of its head, or all but its end.
async fn cut_answer(client: TcpStream, target: SocketAddr, n: usize) -> io::Result<()> {
    let api = TcpStream::connect(target).await?;
    api.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (mut from_api, mut to_api) = api.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let mut answer = vec![0; 16 * 1024];
    let length = tokio::select! {
        length = from_api.read(&mut answer) => length?,
        // A client closes nothing before it has an answer, so this ends by an error only.
        forwarded = tokio::io::copy(&mut from_client, &mut to_api) => return forwarded.map(drop),
    };
    let told = [0, 20, length.saturating_sub(1)][n % 3];
    to_client.write_all(&answer[..told]).await
}

/// A client whose answers are lost when it asks for the first time.
pub(crate) struct Unlucky<'a> {
    pub(crate) api: &'a Api,
    pub(crate) cutter: Cutter,
    pub(crate) client: Client,
}

impl Unlucky<'_> {
    pub(crate) fn request(&self, base: &str, method: &Method, path: &str) -> RequestBuilder {
        self.client.request(method.clone(), format!("{base}{path}"))
    }

    /// Sends a request of which the answer is lost.
    pub(crate) async fn lost(
        &self,
        method: &Method,
        path: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) {
        let request = self.request(&self.cutter.base, method, path);
        let answer = async { with(request).send().await?.bytes().await };
        assert!(answer.await.is_err(), "the answer to {method} {path} came whole");
    }

    /// Sends it once more. What was asked for is there.
    async fn again(
        &self,
        method: &Method,
        path: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Value {
        let answer = with(self.request(&self.api.base, method, path)).send().await.unwrap();
        let (status, known) = read_answer(answer).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {known}");
        known
    }

    pub(crate) async fn twice(&self, path: &str, with: impl Fn(RequestBuilder) -> RequestBuilder) -> Value {
        self.lost(&Method::POST, path, &with).await;
        self.again(&Method::POST, path, &with).await
    }

    async fn enqueue(&self, n: usize, job: Value) {
        if n.is_multiple_of(2) {
            let known = self.twice("/v1/jobs", |request| request.json(&job)).await;
            assert_eq!(known["id"], job["id"]);
        } else {
            let (job, key) = (job.nameless(), format!("job-{n}"));
            self.twice("/v1/jobs", |request| request.header("Idempotency-Key", &key).json(&job)).await;
        }
    }

    async fn whole_batch(&self, n: usize) {
        let (key, wanted) = (format!("whole-{n}"), json!({"items": items()}));
        let known =
            self.twice("/v1/batches", |request| request.header("Idempotency-Key", &key).json(&wanted)).await;
        assert_eq!((&known["total"], &known["sealed"]), (&json!(ITEMS), &json!(true)), "{known}");
    }

    async fn filled_batch(&self, n: usize) {
        let (key, wanted) = (format!("filled-{n}"), json!({"sealed": false}));
        let known =
            self.twice("/v1/batches", |request| request.header("Idempotency-Key", &key).json(&wanted)).await;
        let batch = format!("/v1/batches/{}", known["id"].as_str().unwrap());
        for from in [0, ITEMS] {
            let path = format!("{batch}/items?from={from}");
            let lines: String = items().iter().map(|item| format!("{item}\n")).collect();
            let chunk = |request: RequestBuilder| {
                request.header("Content-Type", "application/x-ndjson").body(lines.clone())
            };
            self.lost(&Method::POST, &path, chunk).await;
            // The same again, or on at the batch's total.
            let known = if n.is_multiple_of(2) {
                self.again(&Method::POST, &path, chunk).await
            } else {
                self.again(&Method::GET, &batch, |request| request).await
            };
            assert_eq!(known["total"], from + ITEMS, "{known}");
        }
        let known = self.twice(&format!("{batch}/seal"), |request| request).await;
        assert_eq!((&known["total"], &known["sealed"]), (&json!(2 * ITEMS), &json!(true)), "{known}");
    }
}

/// Items without an ID, which they get by their place.
pub(crate) fn items() -> Vec<Value> {
    spread(ITEMS, send).into_iter().map(|job| job.nameless()).collect()
}

/// Every item of a list, page by page.
pub(crate) async fn all(api: &Api, path: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.get(&format!("{path}?limit=500{cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else { return items };
        cursor = format!("&cursor={next}");
    }
}

/// Loses a thousand answers, while a worker runs the jobs.
async fn loses_nothing(api: &Api, sandbox: &Running) {
    let cutter = Cutter::start(api).await;
    let unlucky = &Unlucky { api, cutter, client: support::http::client() };
    let jobs = stream::iter(spread(BY_ID + BY_KEY, send).into_iter().enumerate());
    tokio::join!(
        jobs.for_each_concurrent(JOBS_AT_ONCE, |(n, job)| unlucky.enqueue(n, job)),
        stream::iter(0..WHOLE + FILLED).for_each_concurrent(BATCHES_AT_ONCE, async |n| {
            if n < WHOLE { unlucky.whole_batch(n).await } else { unlucky.filled_batch(n).await }
        }),
    );
    assert_eq!(unlucky.cutter.cut.load(Relaxed), CUT);
    until("all jobs have run", PATIENCE, async || {
        (sandbox.ledger_summary().effects >= JOBS as u64).then_some(())
    })
    .await;
    let jobs = until("all jobs have succeeded", PATIENCE, async || {
        let jobs = all(api, "/v1/jobs").await;
        jobs.iter().all(|job| job["state"] == "succeeded").then_some(jobs)
    })
    .await;
    let ids: HashSet<&str> = jobs.iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!((jobs.len(), ids.len()), (JOBS, JOBS));
    assert_eq!(all(api, "/v1/batches").await.len(), WHOLE + FILLED);
    let ledger = sandbox.ledger_summary();
    assert_eq!((ledger.effects, ledger.jobs_repeated), (JOBS as u64, 0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_lost_after_the_commit_lose_no_job_and_double_none_with_postgresql() {
    let harness = Harness::new("lost-answers", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    loses_nothing(&api, &harness.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_lost_after_the_commit_lose_no_job_and_double_none_with_sqlite() {
    let (folder, sandbox) = (in_memory("errand-lost-answers-"), sandbox("").await);
    let data = folder.path().to_str().unwrap();
    let env = [("COMPOSIO_BASE_URL", sandbox.base_url()), ("COMPOSIO_API_KEY", "ak_test_good".into())]
        .map(|(name, value)| (name.to_owned(), value));
    let args = ["dev", "--real", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
    let api = served_by(Process::start(&args, &env)).await;
    loses_nothing(&api, &sandbox).await;
}
