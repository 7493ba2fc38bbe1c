//! The input schema of a tool is looked up once and compiled once, however many jobs are checked by it.

use errand_testbed::{
    factory::{Envelope as _, id, read},
    scripted_api::{Answer, ScriptedApi},
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    api::Api,
    harness::{Harness, in_memory, run},
};

const VERSION: &str = "20251027_00";

/// How many jobs are checked, and how many of them are asked about at once.
const JOBS: usize = 1_000;
const AT_ONCE: usize = 100;

/// How the API was asked about this tool.
fn asked_about(api: &ScriptedApi, tool: &str) -> Vec<String> {
    let seen = api.seen();
    let lines = seen.iter().map(|request| request.line().to_owned());
    lines.filter(|line| line.starts_with("GET ") && line.contains(&format!("/tools/{tool}"))).collect()
}

/// What would become of so many jobs like this, each with an ID of its own.
async fn dry_runs(api: &Api, job: &Value) -> Vec<Value> {
    let mut answers = Vec::new();
    while answers.len() < JOBS {
        let asking = (0..AT_ONCE).map(|_| async {
            let job = job.clone().named(&id());
            let (status, answer) = api.post("/v1/jobs?dry_run=true", &job).await;
            assert_eq!(status, 200, "{answer}");
            answer
        });
        answers.extend(join_all(asking).await);
    }
    answers
}

/// An API of its own with the tool API at this address, which checks arguments like this.
async fn api_that_checks(check: &str, tool_api: &str) -> (tempfile::TempDir, Api) {
    let folder = in_memory("errand-schema-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [
        ("DATABASE_URL", url.as_str()),
        ("COMPOSIO_BASE_URL", tool_api),
        ("COMPOSIO_API_KEY", "ak_test_good"),
        ("ERRAND__ARGUMENTS__CHECK", check),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    (folder, api)
}

/// A tool that needs no account, as the tool API describes it, with this schema of its arguments.
fn described(schema: &Value) -> Answer {
    let tool = json!({
        "slug": "CHAT_SEND", "name": "", "description": "", "toolkit": {"slug": "chat"}, "version": VERSION,
        "available_versions": [VERSION], "tags": ["readOnlyHint"], "no_auth": true, "input_parameters": schema,
    });
    Answer::new("200 OK", tool.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_refuses_a_thousand_jobs_of_one_tool_asks_for_its_schema_once() {
    let harness = Harness::new("schema-once", "").await;
    let front = ScriptedApi::in_front_of(&harness.sandbox.base_url()).await;
    let address = front.url();
    let settings = [("COMPOSIO_BASE_URL", address.as_str()), ("ERRAND__ARGUMENTS__CHECK", "refuse")];
    let worker = harness.worker(&settings).await;
    let unfit = || read("u-alice").with("version", VERSION).with("arguments", json!({"owner": 7}));
    let jobs: Vec<Value> = (0..JOBS).map(|_| unfit()).collect();
    harness.publish(&jobs).await;
    harness.counts("state = 'failed'", JOBS as u64).await;
    harness.counts("error_kind = 'invalid_arguments'", JOBS as u64).await;
    let asked = asked_about(&front, "GITHUB_GET_REPO");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].contains(VERSION), "{asked:?}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
    worker.metric_reaches("errand_argument_checks_total{result=\"refused\"}", JOBS as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_dry_runs_of_one_tool_ask_for_its_schema_once() {
    let schema = json!({"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]});
    for (check, would) in [("refuse", "fail"), ("warn", "run")] {
        let schema = schema.clone();
        let tools = ScriptedApi::responding(move |_| described(&schema)).await;
        let (_folder, api) = api_that_checks(check, &tools.url()).await;
        let unfit = read("u-alice").with("tool", "CHAT_SEND").with("version", VERSION);
        let unfit = unfit.with("arguments", json!({"to": 7}));
        for answer in dry_runs(&api, &unfit).await {
            assert_eq!(answer["would"], would, "{answer}");
            assert_eq!(answer["problems"][0]["pointer"], "/to", "{answer}");
        }
        let asked = asked_about(&tools, "CHAT_SEND");
        assert_eq!(asked.len(), 1, "{check}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_compiled_once_however_many_ask_at_once() {
    // Of one that cannot be used, each compilation leaves a line in the log, and nothing else differs before that.
    let schema = json!({"type": "object", "properties": {"to": 7}});
    let tools = ScriptedApi::responding(move |_| described(&schema)).await;
    let (_folder, api) = api_that_checks("refuse", &tools.url()).await;
    let job = read("u-alice").with("tool", "CHAT_SEND").with("version", VERSION);
    for answer in dry_runs(&api, &job.with("arguments", json!({"to": "ann"}))).await {
        assert_eq!((&answer["would"], &answer["problems"]), (&json!("run"), &json!([])), "{answer}");
    }
    let told = api.process.lines_like("the tool's input schema cannot be used");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["tool"], &told[0]["version"]), (&json!("CHAT_SEND"), &json!(VERSION)), "{told:?}");
}
