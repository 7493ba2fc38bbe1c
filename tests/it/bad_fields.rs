//! A job that is refused over HTTP is told which field of its envelope is wrong, with a pointer as in RFC 6901.

use errand_testbed::factory::{Envelope as _, read};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    access_keys::database,
    api::{Api, kind, read_answer},
    support::machine,
};

/// Where a job is asked for, and where it is only tried.
const DOORS: [&str; 2] = ["/v1/jobs", "/v1/jobs?dry_run=true"];

/// An API that knows a tool API. It never asks it, because what is refused is refused before.
async fn api() -> (Api, TempDir) {
    let (folder, mut env) = database();
    env.extend([
        ("COMPOSIO_BASE_URL".to_owned(), format!("http://127.0.0.1:{}", machine::free_port())),
        ("COMPOSIO_API_KEY".to_owned(), "ak_test_good".to_owned()),
    ]);
    (Api::start(&env).await, folder)
}

/// Sends a job through both doors, which say the same of one field.
async fn refused(api: &Api, job: &Value, wrong: (u16, &str), pointer: &str) {
    for door in DOORS {
        let (status, problem) = api.post(door, job).await;
        assert_eq!((status.as_u16(), kind(&problem)), wrong, "{door} {pointer}: {problem}");
        let error = json!({"pointer": pointer, "type": problem["type"], "detail": problem["detail"]});
        assert_eq!(problem["errors"], json!([error]), "{door}");
    }
}

async fn jobs(api: &Api) -> usize {
    api.get("/v1/jobs").await.1["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_no_job_can_have_is_named_by_its_field() {
    let (api, _folder) = api().await;
    let deep = (0..200).fold(json!({}), |inner, _| json!({"a": inner}));
    for (field, value, pointer) in [
        ("id", json!("1"), "/id"),
        ("user_id", json!("default"), "/user_id"),
        ("tool", json!(""), "/tool"),
        ("arguments", json!([1]), "/arguments"),
        ("arguments", deep, "/arguments"),
        ("text", json!("and arguments"), "/text"),
        ("queue", json!("nowhere"), "/queue"),
        ("priority", json!(10), "/priority"),
        ("run_at", json!("9999-01-01T00:00:00Z"), "/run_at"),
        ("timeout_ms", json!(0), "/timeout_ms"),
        ("tags", json!({"": "x"}), "/tags"),
        ("callback", json!({"url": "ftp://app.example/"}), "/callback"),
        // None are sent by this API's workers.
        ("callback", json!({"url": "https://app.example/"}), "/callback"),
    ] {
        refused(&api, &read("user-1").with(field, value), (422, "invalid-job"), pointer).await;
    }
    let late =
        read("user-1").with("run_at", "2030-01-02T00:00:00Z").with("expires_at", "2030-01-01T00:00:00Z");
    refused(&api, &late, (422, "invalid-job"), "/expires_at").await;
    assert_eq!(jobs(&api).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_job_has_is_named_by_its_field() {
    let (api, _folder) = api().await;
    let (named, keyed) = (read("user-1"), read("user-1").with("idempotency_key", "k"));
    for job in [&named, &keyed] {
        assert_eq!(api.post("/v1/jobs", job).await.0, 201);
    }
    refused(&api, &named.with("priority", 5), (422, "id-conflict"), "/id").await;
    let nameless = keyed.nameless().with("priority", 5);
    refused(&api, &nameless, (422, "key-conflict"), "/idempotency_key").await;
    assert_eq!(jobs(&api).await, 2);
}

/// A value of which nobody can tell what it means.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_of_a_job_is_named_by_its_field() {
    let (api, _folder) = api().await;
    for (field, value, pointer) in [
        ("user_id", json!(7), "/user_id"),
        ("run_at", json!("tomorrow"), "/run_at"),
        ("priority", json!("high"), "/priority"),
        ("effect", json!("twice"), "/effect"),
        ("callback", json!("https://app.example/"), "/callback"),
        ("callback", json!({}), "/callback"),
    ] {
        refused(&api, &read("user-1").with(field, value), (400, "bad-request"), pointer).await;
    }
    refused(&api, &read(""), (422, "invalid-job"), "/user_id").await;
    assert_eq!(jobs(&api).await, 0);
}

/// What is wrong with a body as a whole, or the name of a field that there is not, is in no field of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_envelope_at_all_has_no_field() {
    let (api, _folder) = api().await;
    for door in DOORS {
        for body in ["", "[]", "{", "7", "\"job\"", "{\"user\":1}", "{\"tool\":\"A\",\"tool\":\"B\"}"] {
            let request = api.request(Method::POST, door).header("content-type", "application/json");
            let (status, problem) = read_answer(request.body(body).send().await.unwrap()).await;
            assert_eq!((status.as_u16(), kind(&problem)), (400, "bad-request"), "{body}: {problem}");
            assert_eq!(problem.get("errors"), None, "{body}: {problem}");
        }
    }
    assert_eq!(jobs(&api).await, 0);
}
