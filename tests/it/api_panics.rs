//! A request that panics gives back what it held: the room of its body, its turn to add items to batches, and its place on the
//! way to the broker. After as many panics as there are places, requests are answered as before.
//!
//! No request makes errand's own code panic, so that the panic comes from inside: from a clock, or from the client of the tool
//! API. The API itself is the one that ships, in this process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use errand::{
    admission::Admission,
    api::{self, Parts},
    app,
    clock::{self, Clock},
    config::{self, Sources},
    job::RequestId,
    tool::{
        Account, AccountList, ApiCheck, Call, Execution, Reply, SharedToolApi, ToolApi, ToolError, ToolInfo,
        ToolkitInfo,
    },
};
use errand_testbed::{
    factory::{Envelope as _, read},
    scripted_api::ScriptedApi,
};
use jiff::Timestamp;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{kind, read_answer},
    harness::{in_memory, run},
    support,
};

/// The largest body of a job and of a batch, and what all bodies together may have, of which one owner may have a quarter.
const MAX_JOB: usize = 1024 * 1024;
const MAX_BATCH: usize = 16 * MAX_JOB;
const ROOM: usize = 128 * MAX_JOB;

/// Whether what is between panics.
#[derive(Debug, Clone, Default)]
struct Trap(Arc<AtomicBool>);

impl Trap {
    fn set(&self, is_set: bool) {
        self.0.store(is_set, Relaxed);
    }

    fn pass(&self) {
        assert!(!self.0.load(Relaxed), "a bug in what a request is about");
    }
}

#[derive(Debug)]
struct PanickyClock(Trap);

impl Clock for PanickyClock {
    fn now(&self) -> Timestamp {
        self.0.pass();
        Timestamp::now()
    }
}

/// The client of the tool API, which panics when it is asked about a toolkit.
#[derive(Debug)]
struct PanickyClient {
    inner: SharedToolApi,
    trap: Trap,
}

#[async_trait]
impl ToolApi for PanickyClient {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn execute(&self, call: &Call) -> Reply {
        self.inner.execute(call).await
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        self.inner.tool(slug, version).await
    }

    async fn toolkit(&self, slug: &str, version: Option<&str>) -> Result<ToolkitInfo, ToolError> {
        self.trap.pass();
        self.inner.toolkit(slug, version).await
    }

    async fn accounts(&self, owner_ids: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError> {
        self.inner.accounts(owner_ids, toolkit).await
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        self.inner.account(id).await
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        self.inner.execution(request_id).await
    }

    async fn check(&self) -> Result<ApiCheck, ToolError> {
        self.inner.check().await
    }
}

/// The API in this process, with a trap.
struct Inside {
    trap: Trap,
    base: String,
    client: Client,
    stop: CancellationToken,
    /// Knows one version of every toolkit.
    _tool_api: ScriptedApi,
    _folder: TempDir,
}

impl Inside {
    async fn start() -> Self {
        let folder = in_memory("errand-api-panics-");
        let toolkit = r#"{"meta": {"version": "20251027_00", "available_versions": ["20251027_00"]}}"#;
        let tool_api = ScriptedApi::answering("200 OK", toolkit).await;
        let env = [
            ("DATABASE_URL", format!("sqlite://{}", folder.path().join("errand.db").display())),
            ("COMPOSIO_BASE_URL", tool_api.url()),
            ("COMPOSIO_API_KEY", "ak_test_good".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value));
        assert!(run(&["migrate"], &env).status.success());
        let client = support::http::client();
        let sources = Sources { file: None, env: env.into_iter().collect() };
        let config = config::load(&sources).unwrap().config;
        let (store, trap) = (app::open_store(&config).unwrap(), Trap::default());
        let clock: clock::SharedClock = Arc::new(PanickyClock(trap.clone()));
        let inner = app::open_tool_api(&config).unwrap();
        let parts = Parts {
            store: store.clone(),
            // What it hands over is looked at by nobody.
            admission: Admission::new(
                store,
                None,
                clock.clone(),
                app::rules(&config),
                Duration::from_secs(600),
            ),
            clock,
            resolver: None,
            lanes: config.queues.keys().cloned().collect(),
            tool_api: Some(Arc::new(PanickyClient { inner, trap: trap.clone() })),
            lease: Duration::from_secs(60),
            queue: None,
            records_events: true,
            sends_callbacks: true,
        };
        let api = api::Api::bind(([127, 0, 0, 1], 0).into(), parts, api::Options::default()).await.unwrap();
        let base = format!("http://{}", api.address().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(api.run(stop.clone()));
        Self { trap, base, client, stop, _tool_api: tool_api, _folder: folder }
    }

    /// The status and the JSON of the answer to a request with this body, which is made as long as that.
    async fn ask(&self, method: Method, path: &str, body: &Value, length: usize) -> (u16, Value) {
        let mut text = body.to_string();
        assert!(text.len() <= length);
        // Blanks at the end mean nothing.
        text.push_str(&" ".repeat(length - text.len()));
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json").body(text);
        let (status, body) = read_answer(request.send().await.unwrap()).await;
        (status.as_u16(), body)
    }

    /// So many requests panic, each of which would be fine, and says so.
    async fn panics(&self, times: usize, method: Method, path: &str, body: &Value, length: usize) {
        self.trap.set(true);
        for time in 0..times {
            let (status, problem) = self.ask(method.clone(), path, body, length).await;
            assert_eq!((status, kind(&problem)), (500, "internal"), "{path}, time {time}: {problem}");
        }
        self.trap.set(false);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_whose_requests_panic_give_back_their_room_and_their_turns() {
    let inside = Inside::start().await;
    let batch = json!({"items": [read("user-1").nameless()]});
    // Each holds a turn, of which there are four, and an eighth of the room.
    inside.panics(ROOM / MAX_BATCH + 1, Method::POST, "/v1/batches", &batch, MAX_BATCH).await;
    let (status, made) = inside.ask(Method::POST, "/v1/batches", &batch, MAX_BATCH).await;
    assert_eq!((status, &made["total"]), (201, &json!(1)), "{made}");
    // As many at once as one owner may, for which it needs all of what is its own.
    let both = async || inside.ask(Method::POST, "/v1/batches", &batch, MAX_BATCH).await.0;
    assert_eq!(tokio::join!(both(), both()), (201, 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_requests_panic_keep_no_place_on_the_way_to_the_broker() {
    let inside = Inside::start().await;
    // Of the way to the broker, which 1,024 small jobs fill, each of these takes an eighth.
    let text = "x".repeat(MAX_JOB - 1024);
    let job = || json!({"user_id": "user-1", "tool": "GITHUB_GET_REPO", "text": text});
    inside.panics(40, Method::POST, "/v1/jobs", &job(), MAX_JOB).await;
    let (status, stored) = inside.ask(Method::POST, "/v1/jobs", &job(), MAX_JOB).await;
    assert_eq!((status, &stored["state"]), (201, &json!("available")), "{stored}");
    let small = read("user-1");
    let (status, stored) = inside.ask(Method::POST, "/v1/jobs", &small, small.to_string().len()).await;
    assert_eq!((status, stored["id"].as_str()), (201, Some(small.id())), "{stored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_look_up_gives_back_the_room_of_the_body() {
    let inside = Inside::start().await;
    let pin = json!({"version": "20251027_00"});
    // Each holds a thirty-second part of what one owner may have.
    inside.panics(ROOM / 4 / MAX_JOB + 8, Method::PUT, "/v1/pins/github", &pin, MAX_JOB).await;
    let (status, set) = inside.ask(Method::PUT, "/v1/pins/github", &pin, MAX_JOB).await;
    assert_eq!((status, &set["version"]), (200, &json!("20251027_00")), "{set}");
}
