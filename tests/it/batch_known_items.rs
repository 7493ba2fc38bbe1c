//! Items that are known jobs, which another request has enqueued: what they count for, and what a decision about the batch
//! means for them.

use errand_sandbox::Running;
use errand_testbed::factory::{Envelope as _, id, read};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::{Api, kind, served_by},
    harness::{Harness, PATIENCE, Process, in_memory, sandbox},
    support::wait::until,
};

async fn on_postgresql(hint: &str) -> (Harness, Process, Api) {
    let harness = Harness::new(hint, "").await;
    let worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    (harness, worker, api)
}

async fn on_sqlite() -> (TempDir, Running, Api) {
    let (folder, sandbox) = (in_memory("errand-known-items-"), sandbox("").await);
    let data = folder.path().to_str().unwrap();
    let env = [("COMPOSIO_BASE_URL", sandbox.base_url()), ("COMPOSIO_API_KEY", "ak_test_good".into())]
        .map(|(name, value)| (name.to_owned(), value));
    let args = ["dev", "--real", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
    let api = served_by(Process::start(&args, &env)).await;
    (folder, sandbox, api)
}

/// A job that fails without a call.
fn failing(owner: &str) -> Value {
    read(owner).with("tool", "GITHUB_NO_SUCH_TOOL")
}

/// A job that is not due while a test runs.
fn waiting(owner: &str) -> Value {
    read(owner).with("run_at", (Timestamp::now() + SignedDuration::from_hours(24)).to_string())
}

async fn enqueue(api: &Api, job: &Value) {
    let (status, made) = api.post("/v1/jobs", job).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
}

/// Waits for the end of a job.
async fn ends(api: &Api, job: &str) {
    let path = format!("/v1/jobs/{job}?wait=20");
    until("the end of a job", PATIENCE, async || (api.get(&path).await.0 == StatusCode::OK).then_some(()))
        .await;
}

async fn run_now(api: &Api, job: &Value) {
    let (status, due) = api.post(&format!("/v1/jobs/{}/retry", job.id()), &json!({"now": true})).await;
    assert_eq!(status, StatusCode::OK, "{due}");
}

async fn make(api: &Api, wanted: Value) -> (Value, String) {
    let (status, made) = api.make(&wanted).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = format!("/v1/batches/{}", made.id());
    (made, path)
}

async fn completes_with_the_last_of_them(api: &Api, sandbox: &Running) {
    let (done, new) = (read("user-1"), read("user-3"));
    let keyed = waiting("user-2").with("idempotency_key", "k");
    let again = keyed.clone().named(&id());
    enqueue(api, &done).await;
    ends(api, done.id()).await;
    enqueue(api, &keyed).await;
    let (made, path) = make(api, json!({"items": [done, done, keyed, again, new]})).await;
    assert_eq!(made["total"], 5);
    let (_, page) = api.get(&format!("{path}/items")).await;
    let items = page["items"].as_array().unwrap();
    let jobs: Vec<_> = items.iter().map(|item| item["job_id"].as_str().unwrap()).collect();
    assert_eq!(jobs, [done.id(), done.id(), keyed.id(), keyed.id(), new.id()]);

    until("what need not wait has ended", PATIENCE, async || {
        (api.get(&path).await.1["counts"]["succeeded"] == 3).then_some(())
    })
    .await;
    let (status, open) = api.get(&format!("{path}?wait=1")).await;
    assert_eq!((status, &open["completed_at"]), (StatusCode::ACCEPTED, &Value::Null), "{open}");
    assert_eq!(open["counts"]["scheduled"], 2, "{open}");
    run_now(api, &keyed).await;
    let complete = api.completed(made.id()).await;
    assert_eq!(complete["counts"]["succeeded"], 5, "{complete}");
    for (job, batch) in [(&done, &Value::Null), (&keyed, &Value::Null), (&new, &made["id"])] {
        let (_, told) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!(told["batch_id"], *batch, "{told}");
    }
    assert_eq!(sandbox.ledger_summary().calls, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_known_and_new_jobs_is_complete_once_each_has_ended_with_postgresql() {
    let (harness, _worker, api) = on_postgresql("known-items").await;
    completes_with_the_last_of_them(&api, &harness.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_known_and_new_jobs_is_complete_once_each_has_ended_with_sqlite() {
    let (_folder, sandbox, api) = on_sqlite().await;
    completes_with_the_last_of_them(&api, &sandbox).await;
}

async fn completes_at_once(api: &Api, sandbox: &Running) {
    let (succeeded, failed, cancelled) = (read("user-1"), failing("user-1"), waiting("user-1"));
    for job in [&succeeded, &failed, &cancelled] {
        enqueue(api, job).await;
    }
    let (status, answer) = api.post(&format!("/v1/jobs/{}/cancel", cancelled.id()), &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    for job in [&succeeded, &failed] {
        ends(api, job.id()).await;
    }
    let (made, _) = make(api, json!({"items": [succeeded, failed, cancelled]})).await;
    let complete = api.completed(made.id()).await;
    let counts = ["succeeded", "failed", "cancelled"].map(|state| &complete["counts"][state]);
    assert_eq!((&complete["total"], counts), (&json!(3), [&json!(1); 3]), "{complete}");
    assert_eq!(sandbox.ledger_summary().calls, 1, "nothing has run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_jobs_that_have_ended_is_complete_without_any_call_with_postgresql() {
    let (harness, _worker, api) = on_postgresql("known-ended").await;
    completes_at_once(&api, &harness.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_jobs_that_have_ended_is_complete_without_any_call_with_sqlite() {
    let (_folder, sandbox, api) = on_sqlite().await;
    completes_at_once(&api, &sandbox).await;
}

async fn goes_on_by_itself(api: &Api, sandbox: &Running) {
    let (known, own) = (waiting("user-1"), waiting("user-2"));
    enqueue(api, &known).await;
    let (made, path) = make(api, json!({"items": [known, own]})).await;
    let (status, answer) = api.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    until("the batch's own job is called off", PATIENCE, async || {
        let (_, batch) = api.get(&path).await;
        (batch["counts"]["cancelled"] == 1 && batch["doing"].is_null()).then_some(())
    })
    .await;
    let (_, told) = api.get(&format!("/v1/jobs/{}", known.id())).await;
    assert_eq!((&told["state"], &told["history"]), (&json!("scheduled"), &json!([])), "{told}");
    // Each of its jobs has to end, whoever enqueued it.
    let (status, open) = api.get(&format!("{path}?wait=1")).await;
    assert_eq!((status, &open["completed_at"]), (StatusCode::ACCEPTED, &Value::Null), "{open}");
    run_now(api, &known).await;
    let complete = api.completed(made.id()).await;
    let counts = ["succeeded", "cancelled"].map(|state| &complete["counts"][state]);
    assert_eq!(counts, [&json!(1); 2], "{complete}");
    assert_eq!(sandbox.ledger_summary().calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_job_goes_on_when_the_rest_of_its_batch_is_called_off_with_postgresql() {
    let (harness, _worker, api) = on_postgresql("known-goes-on").await;
    goes_on_by_itself(&api, &harness.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_job_goes_on_when_the_rest_of_its_batch_is_called_off_with_sqlite() {
    let (_folder, sandbox, api) = on_sqlite().await;
    goes_on_by_itself(&api, &sandbox).await;
}

async fn runs_nothing_of_others_again(api: &Api, sandbox: &Running) {
    let (known, own) = (failing("user-1"), failing("user-2"));
    enqueue(api, &known).await;
    ends(api, known.id()).await;
    let follow_up = read("user-3").nameless();
    let (made, path) = make(api, json!({"items": [known], "follow_up": follow_up})).await;
    let complete = api.completed(made.id()).await;
    assert_eq!(complete["counts"]["failed"], 1, "{complete}");
    ends(api, complete["follow_up_id"].as_str().unwrap()).await;
    for wanted in [json!({}), json!({"force": true}), json!({"generation": 1})] {
        let (status, refused) = api.post(&format!("{path}/retry"), &wanted).await;
        assert_eq!(status, StatusCode::CONFLICT, "there is nothing that it could run: {refused}");
        assert_eq!(kind(&refused), "wrong-state", "{refused}");
    }
    assert_eq!(api.get(&path).await.1, complete, "it stays as it is");

    // Of one with both, its own runs again.
    let (made, path) = make(api, json!({"items": [known, own]})).await;
    let complete = api.completed(made.id()).await;
    assert_eq!(complete["counts"]["failed"], 2, "{complete}");
    let (status, begun) = api.post(&format!("{path}/retry"), &json!({})).await;
    assert_eq!((status, &begun["generation"]), (StatusCode::OK, &json!(2)), "{begun}");
    let complete = api.completed(made.id()).await;
    let (generation, failed) = (&complete["generation"], &complete["counts"]["failed"]);
    assert_eq!((generation, failed), (&json!(2), &json!(2)), "{complete}");
    for (job, decisions) in [(&known, 0), (&own, 1)] {
        let (_, told) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!(told["history"].as_array().unwrap().len(), decisions, "{told}");
    }
    // By now a second job would have followed the first batch.
    let (_, page) = api.get("/v1/jobs?tool=GITHUB_GET_REPO").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1, "{page}");
    assert_eq!(sandbox.ledger_summary().calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_a_batch_did_not_enqueue_are_not_run_again_with_it_with_postgresql() {
    let (harness, _worker, api) = on_postgresql("known-failures").await;
    runs_nothing_of_others_again(&api, &harness.sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_a_batch_did_not_enqueue_are_not_run_again_with_it_with_sqlite() {
    let (_folder, sandbox, api) = on_sqlite().await;
    runs_nothing_of_others_again(&api, &sandbox).await;
}
