//! The description of the HTTP API, and that the API does what it says.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use errand_testbed::factory::{Envelope as _, read, send};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    api::Api,
    harness::{Harness, in_memory, python, python_path, run, sandbox},
};

/// An API on a SQLite file.
pub(crate) async fn embedded() -> (Api, TempDir) {
    let folder = in_memory("errand-openapi-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (Api::start(&env).await, folder)
}

/// The secret of a new key of the operator.
fn key(env: &[(String, String)]) -> String {
    let made = run(&["keys", "create", "--operator", "--scope", "enqueue,read,manage", "--json"], env);
    let key: Value = serde_json::from_slice(&made.stdout).unwrap();
    key["secret"].as_str().unwrap().to_owned()
}

async fn document(api: &Api) -> Value {
    let (status, document) = api.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    document
}

/// Each method, path and operation ID.
fn operations(document: &Value) -> BTreeSet<(String, String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| {
            (method.to_uppercase(), path.clone(), operation["operationId"].as_str().unwrap().to_owned())
        })
    });
    all.collect()
}

/// Every `$ref` below a value.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(entries) => {
            found.extend(entries.get("$ref").and_then(Value::as_str));
            entries.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_valid_whole_and_has_every_route_and_problem() {
    let (api, _folder) = embedded().await;
    let document = document(&api).await;
    assert_eq!(document["openapi"].as_str().map(|version| &version[..4]), Some("3.1."));
    assert_eq!(python("openapi_errors.py", document.clone()).await, json!([]));

    let mut named = BTreeSet::new();
    references(&document, &mut named);
    for reference in named {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} is not there");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let schema =
            json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let published: Value = serde_json::from_str(include_str!("../../docs/envelope.schema.json")).unwrap();
    assert_eq!(document["components"]["schemas"]["Envelope"], published);

    // These names stay, because clients are generated from them.
    let expected = [
        ("GET", "/docs", "docs"),
        ("GET", "/openapi.json", "openApi"),
        ("GET", "/v1/actions", "listActions"),
        ("GET", "/v1/actions/{id}", "showAction"),
        ("GET", "/v1/batches", "listBatches"),
        ("GET", "/v1/batches/{id}", "showBatch"),
        ("GET", "/v1/batches/{id}/items", "listBatchItems"),
        ("POST", "/v1/batches", "createBatch"),
        ("POST", "/v1/batches/{id}/cancel", "cancelBatch"),
        ("POST", "/v1/batches/{id}/items", "addBatchItems"),
        ("POST", "/v1/batches/{id}/retry", "retryBatch"),
        ("POST", "/v1/batches/{id}/seal", "sealBatch"),
        ("DELETE", "/v1/pins/{toolkit}", "removePin"),
        ("GET", "/v1/accounts", "listAccounts"),
        ("GET", "/v1/audit-log", "listChanges"),
        ("GET", "/v1/callbacks", "listCallbacks"),
        ("GET", "/v1/deliveries", "listDeliveries"),
        ("GET", "/v1/events", "listEvents"),
        ("GET", "/v1/jobs", "listJobs"),
        ("GET", "/v1/jobs/{id}", "showJob"),
        ("GET", "/v1/jobs/{id}/attempts", "listAttempts"),
        ("GET", "/v1/jobs/{id}/history", "listHistory"),
        ("GET", "/v1/keys", "listKeys"),
        ("GET", "/v1/keys/{id}", "showKey"),
        ("POST", "/v1/actions", "createAction"),
        ("POST", "/v1/actions/{id}/abort", "abortAction"),
        ("POST", "/v1/actions/{id}/confirm", "confirmAction"),
        ("GET", "/v1/pins", "listPins"),
        ("GET", "/v1/queues", "listQueues"),
        ("GET", "/v1/rejected", "listRejected"),
        ("GET", "/v1/rejected/{id}", "showRejected"),
        ("GET", "/v1/rejected/{id}/body", "showRejectedBody"),
        ("GET", "/v1/stats", "showStats"),
        ("GET", "/v1/tools/{slug}", "showTool"),
        ("GET", "/v1/workers", "listWorkers"),
        ("PATCH", "/v1/jobs/{id}", "editJob"),
        ("POST", "/v1/jobs", "enqueueJob"),
        ("POST", "/v1/jobs/{id}/cancel", "cancelJob"),
        ("POST", "/v1/jobs/{id}/release", "releaseJob"),
        ("POST", "/v1/jobs/{id}/retry", "retryJob"),
        ("DELETE", "/v1/callbacks", "removeCallback"),
        ("POST", "/v1/callbacks/recover", "recoverCallbacks"),
        ("POST", "/v1/callbacks/secret", "callbackSecret"),
        ("POST", "/v1/keys", "createKey"),
        ("POST", "/v1/keys/{id}/revoke", "revokeKey"),
        ("POST", "/v1/keys/{id}/rotate", "rotateKey"),
        ("POST", "/v1/queues/{name}/pause", "pauseQueue"),
        ("POST", "/v1/queues/{name}/resume", "resumeQueue"),
        ("POST", "/v1/rejected/{id}/requeue", "requeueRejected"),
        ("POST", "/v1/tokens", "createToken"),
        ("PUT", "/v1/callbacks", "setCallback"),
        ("PUT", "/v1/pins/{toolkit}", "setPin"),
    ];
    let expected = expected.map(|(method, path, id)| (method.to_owned(), path.to_owned(), id.to_owned()));
    assert_eq!(operations(&document), BTreeSet::from(expected));
    for (method, path, _) in operations(&document) {
        let request = api.request(method.parse().unwrap(), &path.replace(['{', '}'], ""));
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status != StatusCode::METHOD_NOT_ALLOWED, "{method} {path}: {text}");
        assert!(!text.contains("no such path"), "{method} {path}: {text}");
    }

    // The page has a row for each kind; a unit test of the API holds it to that.
    let page = include_str!("../../docs/http-api.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| `urn:")).skip(2);
    let mut kinds = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        kinds.insert(format!("urn:errand:problem:{}", row.split('`').nth(1).unwrap()));
    }
    let described = document["components"]["schemas"]["Problem"]["properties"]["type"]["oneOf"].as_array();
    let described = described.unwrap().iter().map(|kind| kind["enum"][0].as_str().unwrap().to_owned());
    assert_eq!(described.collect::<BTreeSet<_>>(), kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_every_route_and_needs_nothing_from_elsewhere() {
    let (api, _folder) = embedded().await;
    let answer = api.request(Method::GET, "/docs").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'unsafe-inline';"), "{policy}");
    let page = answer.text().await.unwrap();
    for (method, path, id) in operations(&document(&api).await) {
        assert!(page.contains(&format!("<section id=\"{id}\"><h2><b>{method}</b> {path}</h2>")), "{id}");
    }
    assert!(page.contains("urn:errand:problem:needs-force"));
    assert!(page.contains(&format!("curl -s {}/v1/jobs ", api.base)), "{page}");
    for foreign in ["<script", "<link", "<img", "src=", "@import", "url(", "href=\"http", "href=\"//"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Every place in the page to which it leads is there.
    for target in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_past_is_as_its_schema_says() {
    let lost = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = false\nfirst = 1\n";
    let harness = Harness::new("openapi-past", lost).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let document = document(&api).await;
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&json!({"$ref": "#/components/schemas/Job", "components": document["components"]}))
        .unwrap();
    let wanted: BTreeSet<_> = document["components"]["schemas"]["Job"]["required"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key.as_str().unwrap().to_owned())
        .collect();
    for (job, state) in [(send("user-1"), "held"), (read("user-1"), "succeeded")] {
        let job = job.with("tags", json!({"team": "a"}));
        let path = format!("/v1/jobs/{}", job.id());
        api.request(Method::POST, "/v1/jobs").json(&job).send().await.unwrap();
        let (_, found) = api.get(&format!("{path}?wait=60")).await;
        assert_eq!(found["state"], state, "{found}");
        let errors: Vec<_> = validator.iter_errors(&found).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {found}");
        let keys: BTreeSet<_> = found.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, wanted);
        assert!(!validator.is_valid(&found.with("state", "done")));
    }
}

/// Lets schemathesis send what the description allows and what it does not, and compare the answers with it.
async fn is_as_described(env: &[(String, String)]) {
    let key = format!("Authorization: Bearer {}", key(env));
    let api = Api::start(env).await;
    // On a machine that others use; alone it takes some twenty seconds.
    let limit = Duration::from_secs(180);
    // It leaves a folder where it runs.
    let folder = in_memory("errand-schemathesis-");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schemathesis.toml");
    let testing = Command::new(python_path())
        .args(["-m", "schemathesis.cli", "--config-file", config, "run", "--no-color", "--header", &key])
        .arg(format!("{}/openapi.json", api.base))
        .current_dir(folder.path())
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        // Nothing leaves the machine, whatever the environment says of proxies.
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(limit, testing).await.expect("schemathesis ends in time").unwrap();
    let report = String::from_utf8_lossy(&ended.stdout);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "tests/run makes a Python with schemathesis\n{report}\n{errors}");
    // It leaves out the document that it goes by, which other tests read.
    let routes = operations(&document(&api).await).len() - 1;
    assert!(report.contains(&format!("Tested: {routes}\n")), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_as_described_with_postgresql() {
    let harness = Harness::new("openapi", "").await;
    let _worker = harness.worker(&[]).await;
    is_as_described(&harness.env()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_as_described_with_sqlite() {
    let folder = in_memory("errand-openapi-");
    let sandbox = sandbox("").await;
    let env = [
        ("DATABASE_URL", format!("sqlite://{}", folder.path().join("errand.db").display())),
        // For dry runs.
        ("COMPOSIO_BASE_URL", sandbox.base_url()),
        ("COMPOSIO_API_KEY", "ak_test_good".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    assert!(run(&["migrate"], &env).status.success());
    is_as_described(&env).await;
}
