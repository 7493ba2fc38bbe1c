//! errand's own bugs, provoked at its seams: the worker that ships, in this process, on the real backends, with a
//! tool API or a queue that panics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use errand::{
    app::{self, App},
    clock,
    config::{self, Config, Sources},
    job::{QueueName, RequestId},
    queue::{Consumer, Delivery, Depth, Message, PolicyRisk, Queue, QueueError, Settler, SharedQueue},
    services::Services,
    shutdown::Shutdown,
    supervisor::Supervisor,
    tool::{
        Account, AccountList, ApiCheck, Call, Execution, Reply, SharedToolApi, ToolApi, ToolError, ToolInfo,
        ToolkitInfo,
    },
};
use errand_sandbox::Running;
use errand_testbed::factory::{self, Envelope as _};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Harness, PATIENCE, run, sandbox},
    support::wait::until,
};

const VERSION: &str = "20250101_00";

/// A toolkit of the sandbox whose names ask for panics.
fn world() -> String {
    let mut world = format!(
        r#"
        [[toolkit]]
        slug = "alpha"
        versions = [{{ version = "{VERSION}" }}]
        [[auth_config]]
        id = "ac_alpha"
        toolkit = "alpha"
        "#
    );
    for user in ["u-1", "ACCOUNT_ONCE", "unfit"] {
        world += &format!("[[account]]\nid = \"ca_{user}\"\nuser = \"{user}\"\ntoolkit = \"alpha\"\n");
    }
    let sends = ["SEND", "SEND_ANSWER_ALWAYS", "SEND_TOOL_ALWAYS", "SEND_TOOL_ONCE"].map(|tool| (tool, "[]"));
    let reads = ["READ_ANSWER_ALWAYS", "READ_ANSWER_ONCE"].map(|tool| (tool, "[\"readOnlyHint\"]"));
    for (tool, tags) in sends.into_iter().chain(reads) {
        world += &format!("[[tool]]\nslug = \"{tool}\"\ntoolkit = \"alpha\"\ntags = {tags}\nresult = {{}}\n");
    }
    world
}

/// The client of the tool API, which panics where a name asks for it: `..._ALWAYS` and `..._ONCE` in a tool's
/// slug, or an owner whose accounts cannot be listed. No answer of a server makes errand's own code panic, so
/// that a panic has to come from inside.
#[derive(Debug)]
struct PanickyClient {
    inner: SharedToolApi,
    asked: Mutex<BTreeMap<String, u32>>,
}

impl PanickyClient {
    /// Panics always, or the first time, if the name says so.
    fn ask(&self, what: &str, name: &str) {
        let asked = {
            let mut asked = self.asked.lock().unwrap();
            let asked = asked.entry(format!("{what} {name}")).or_default();
            *asked += 1;
            *asked
        };
        let due = name.contains(what) && (name.contains("ALWAYS") || asked == 1);
        assert!(!due, "a bug in what handles {what}");
    }
}

#[async_trait]
impl ToolApi for PanickyClient {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn execute(&self, call: &Call) -> Reply {
        let reply = self.inner.execute(call).await;
        self.ask("ANSWER", &call.spec.tool);
        reply
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        self.ask("TOOL", slug);
        self.inner.tool(slug, version).await
    }

    async fn toolkit(&self, slug: &str, version: Option<&str>) -> Result<ToolkitInfo, ToolError> {
        self.inner.toolkit(slug, version).await
    }

    async fn accounts(&self, owner_ids: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError> {
        self.ask("ACCOUNT", &owner_ids.join(","));
        let mut list = self.inner.accounts(owner_ids, toolkit).await?;
        if owner_ids == ["unfit"] {
            // No answer brings such an ID past the decoder, but this seam does.
            "ca_\0".clone_into(&mut list.accounts[0].id);
        }
        Ok(list)
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

/// A queue of which the first subscription panics when it is asked for deliveries.
#[derive(Debug)]
struct PanickyQueue {
    inner: SharedQueue,
    has_panicked: Arc<AtomicBool>,
    /// Whether publishing panics.
    publishes: bool,
}

#[async_trait]
impl Queue for PanickyQueue {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn survives_restart(&self) -> bool {
        self.inner.survives_restart()
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<(), QueueError>> {
        assert!(self.publishes || batch.is_empty(), "a bug in what publishes");
        self.inner.publish(batch).await
    }

    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let inner = self.inner.consume(queue, prefetch).await?;
        Ok(Box::new(PanickyConsumer { inner, has_panicked: self.has_panicked.clone() }))
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        self.inner.depth(queue).await
    }

    async fn check(&self) -> Result<String, QueueError> {
        self.inner.check().await
    }

    async fn check_events(&self) -> Result<(), QueueError> {
        self.inner.check_events().await
    }

    async fn policy_risks(&self) -> Result<Option<Vec<PolicyRisk>>, QueueError> {
        self.inner.policy_risks().await
    }

    fn connected(&self) -> bool {
        self.inner.connected()
    }

    fn reconnects(&self) -> u64 {
        self.inner.reconnects()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[derive(Debug)]
struct PanickyConsumer {
    inner: Box<dyn Consumer>,
    has_panicked: Arc<AtomicBool>,
}

#[async_trait]
impl Consumer for PanickyConsumer {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, QueueError> {
        let deliveries = self.inner.next(max).await?;
        assert!(self.has_panicked.swap(true, Relaxed), "a bug in what handles deliveries");
        Ok(deliveries)
    }

    fn settler(&self) -> Arc<dyn Settler> {
        self.inner.settler()
    }

    async fn stop(&mut self) -> Vec<Delivery> {
        self.inner.stop().await
    }
}

/// A worker in this process.
struct Inside {
    sandbox: Running,
    env: Vec<(String, String)>,
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
    _stage: Option<Harness>,
    folder: TempDir,
}

const SETTINGS: [(&str, &str); 9] = [
    ("COMPOSIO_API_KEY", "ak_test_good"),
    ("ERRAND__HTTP__LISTEN", ""),
    ("ERRAND__TOOLKIT_VERSIONS__ALPHA", VERSION),
    // A permit that is not given back keeps everybody waiting.
    ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "1"),
    ("ERRAND__RETRY__INITIAL_MS", "20"),
    ("ERRAND__RETRY__MAX_MS", "50"),
    ("ERRAND__RELAY__POLL_MS", "50"),
    ("ERRAND__VERIFY__ENABLED", "false"),
    ("ERRAND__STORE__MIGRATE_AT_START", "true"),
];

impl Inside {
    async fn services(hint: &str) -> Self {
        let harness = Harness::new(hint, "").await;
        let env = harness.env();
        Self::start(env, Some(harness), |queue| queue).await
    }

    async fn embedded(wrap: impl FnOnce(SharedQueue) -> SharedQueue) -> Self {
        Self::start(Vec::new(), None, wrap).await
    }

    async fn start(
        mut env: Vec<(String, String)>,
        harness: Option<Harness>,
        wrap: impl FnOnce(SharedQueue) -> SharedQueue,
    ) -> Self {
        metrics();
        drop(rustls::crypto::ring::default_provider().install_default());
        let sandbox = sandbox(&world()).await;
        env.push(("COMPOSIO_BASE_URL".into(), sandbox.base_url()));
        let folder = tempfile::tempdir().unwrap();
        if harness.is_none() {
            env.push(("DATABASE_URL".into(), format!("sqlite://{}/errand.db", folder.path().display())));
        }
        env.push(("ERRAND__WORKER__JOURNAL_DIR".into(), folder.path().join("journal").display().to_string()));
        env.extend(SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let sources = Sources { file: None, env: env.iter().cloned().collect() };
        let config: Config = config::load(&sources).unwrap().config;
        let inner = app::open_tool_api(&config).unwrap();
        let api = Arc::new(PanickyClient { inner, asked: Mutex::default() });
        let (store, queue) = (app::open_store(&config).unwrap(), wrap(app::open_queue(&config).unwrap()));
        let services = Services::new(store, queue, api, clock::system());
        let runtime = App::of(services, config).runtime();
        let shutdown = Shutdown::default();
        let ends = shutdown.clone();
        let supervisor = Supervisor::new(ends.stop.clone());
        let running = tokio::spawn(async move { runtime.run(ends, &supervisor).await.0.map(drop) });
        Self { sandbox, env, shutdown, running, _stage: harness, folder }
    }

    /// Enqueues through the command line, as the relay brings it to either queue.
    async fn submit(&self, jobs: &[Value]) {
        let file = self.folder.path().join("jobs.jsonl");
        let lines: Vec<String> = jobs.iter().map(Value::to_string).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let output = until("the jobs are enqueued", PATIENCE, async || {
            let output = run(&["enqueue-bulk", file.to_str().unwrap()], &self.env);
            output.status.success().then_some(output)
        });
        output.await;
    }

    async fn job_in(&self, job: &Value, states: &[&str]) -> Value {
        until(&format!("job {job} in {states:?}"), PATIENCE, async || {
            let output = run(&["jobs", "show", job.id(), "--json"], &self.env);
            let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
            states.contains(&shown["state"].as_str()?).then_some(shown)
        })
        .await
    }

    fn calls(&self, job: &Value) -> u32 {
        self.sandbox.job_effects(job.id())
    }

    async fn stop(self) {
        self.shutdown.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// The metrics of this process, in which other tests run too.
fn metrics() -> &'static PrometheusHandle {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| app::install_metrics().unwrap())
}

fn panics() -> u64 {
    let rendered = metrics().render();
    let line = rendered.lines().find_map(|line| line.strip_prefix("errand_panics_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

fn job(owner: &str, tool: &str) -> Value {
    factory::job(owner, tool, &json!({}))
}

fn message(shown: &Value) -> &str {
    shown["error"]["message"].as_str().unwrap()
}

fn outcomes(shown: &Value) -> Vec<&str> {
    shown["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_survived_on_rabbitmq_and_postgres() {
    panics_are_survived(Inside::services("panics").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_survived_on_the_embedded_pair() {
    panics_are_survived(Inside::embedded(|queue| queue).await).await;
}

async fn panics_are_survived(inside: Inside) {
    let before = panics();
    let good = job("u-1", "SEND");
    let counts = job("u-1", "SEND_ANSWER_ALWAYS");
    let hopeless = job("u-1", "READ_ANSWER_ALWAYS").with("max_attempts", 2);
    let clumsy = job("u-1", "READ_ANSWER_ONCE");
    let unknown_tool = job("u-1", "SEND_TOOL_ALWAYS").with("max_attempts", 2);
    let slow_tool = job("u-1", "SEND_TOOL_ONCE");
    let slow_account = job("ACCOUNT_ONCE", "SEND");
    let jobs = [&counts, &hopeless, &clumsy, &unknown_tool, &slow_tool, &slow_account, &good];
    inside.submit(&jobs.map(Clone::clone)).await;
    inside.job_in(&good, &["succeeded"]).await;

    let shown = inside.job_in(&counts, &["held", "failed", "succeeded"]).await;
    assert_eq!(
        (&shown["state"], &shown["held_reason"], outcomes(&shown)),
        (&json!("held"), &json!("unknown_outcome"), vec!["unknown"])
    );
    for part in ["a bug in errand", "the call may have been made", "release the job"] {
        assert!(message(&shown).contains(part), "{part} in {}", message(&shown));
    }
    assert_eq!(inside.calls(&counts), 1, "it is not repeated");

    let shown = inside.job_in(&hopeless, &["failed", "succeeded"]).await;
    assert_eq!((&shown["error"]["kind"], outcomes(&shown)), (&json!("internal"), vec!["unknown", "unknown"]));
    assert_eq!(inside.calls(&hopeless), 2, "within its budget");

    let shown = inside.job_in(&clumsy, &["failed", "succeeded"]).await;
    assert_eq!(outcomes(&shown), ["unknown", "succeeded"]);

    let shown = inside.job_in(&unknown_tool, &["failed", "succeeded"]).await;
    assert!(message(&shown).contains("nothing was sent"), "{shown}");
    assert_eq!((outcomes(&shown), inside.calls(&unknown_tool)), (vec!["not_sent", "not_sent"], 0));

    for job in [&slow_tool, &slow_account] {
        let shown = inside.job_in(job, &["failed", "succeeded", "held"]).await;
        assert_eq!(outcomes(&shown), ["not_sent", "succeeded"], "{shown}");
        assert_eq!(inside.calls(job), 1);
    }
    assert!(panics() >= before + 8, "{} panics", panics() - before);
    let next = job("u-1", "SEND");
    inside.submit(std::slice::from_ref(&next)).await;
    inside.job_in(&next, &["succeeded"]).await;
    inside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_goes_on_after_a_panic_in_its_queue() {
    let before = panics();
    let queue = |inner| Arc::new(PanickyQueue { inner, has_panicked: Arc::default(), publishes: true });
    let inside = Inside::embedded(|inner| queue(inner)).await;
    let jobs = [job("u-1", "SEND"), job("u-1", "SEND")];
    inside.submit(&jobs).await;
    for job in &jobs {
        inside.job_in(job, &["succeeded"]).await;
        assert_eq!(inside.calls(job), 1);
    }
    assert!(panics() > before);
    inside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_its_relay_stops_and_says_so() {
    let queue = |inner| Arc::new(PanickyQueue { inner, has_panicked: Arc::default(), publishes: false });
    let inside = Inside::embedded(|inner| queue(inner)).await;
    inside.submit(&[job("u-1", "SEND")]).await;
    // Nobody asks it to stop.
    let error = tokio::time::timeout(PATIENCE, inside.running).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("the relay ended by itself"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_which_a_part_ends_before_the_services_are_there_says_so_too() {
    metrics();
    drop(rustls::crypto::ring::default_provider().install_default());
    let nobody =
        [("DATABASE_URL", "postgres://u:p@127.0.0.1:1/db"), ("COMPOSIO_BASE_URL", "http://127.0.0.1:1/")];
    let env = SETTINGS.into_iter().chain(nobody).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let sources = Sources { file: None, env: env.collect() };
    let app = App::new(config::load(&sources).unwrap().config).unwrap();
    let shutdown = Shutdown::default();
    let supervisor = Supervisor::new(shutdown.stop.clone());
    let listener = supervisor.clone().watch("the listener", CancellationToken::new(), async {});
    let running = async { tokio::join!(app.runtime().run(shutdown, &supervisor), listener).0.0 };
    let error = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the listener ended by itself"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_the_database_refuses_fails_its_job_alone() {
    for inside in [Inside::services("unfreezable").await, Inside::embedded(|queue| queue).await] {
        let (unfit, good) = (job("unfit", "SEND"), job("u-1", "SEND"));
        inside.submit(&[unfit.clone(), good.clone()]).await;
        let shown = inside.job_in(&unfit, &["failed", "succeeded", "held"]).await;
        assert_eq!(
            (&shown["state"], &shown["error"]["kind"]),
            (&json!("failed"), &json!("internal")),
            "{shown}"
        );
        for part in ["nothing was sent", "cannot be recorded", "owner's account"] {
            assert!(message(&shown).contains(part), "{part} in {}", message(&shown));
        }
        assert_eq!(inside.calls(&unfit), 0);
        inside.job_in(&good, &["succeeded"]).await;
        inside.stop().await;
    }
}
