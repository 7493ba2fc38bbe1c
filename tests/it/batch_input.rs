//! Items of batches that are no jobs: each is named by its place in the batch, and nothing of its request is stored.

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::{Api, kind, read_answer},
    harness::{in_memory, run},
};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

async fn api() -> (Api, TempDir) {
    let folder = in_memory("errand-batch-input-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (Api::start(&env).await, folder)
}

async fn post(api: &Api, path: &str, media_type: &str, body: Vec<u8>) -> (u16, Value) {
    let request = api.request(Method::POST, path).header("content-type", media_type).body(body);
    let (status, answer) = read_answer(request.send().await.unwrap()).await;
    (status.as_u16(), answer)
}

/// What is no job, with where the mistake is in it, and its kind.
fn bad() -> [(Vec<u8>, &'static str, &'static str); 6] {
    let deep =
        format!(r#"{{"user_id":"u","tool":"T","arguments":{{"a":{}{}}}}}"#, "[".repeat(500), "]".repeat(500));
    let large = format!(r#"{{"user_id":"u","tool":"T","text":"{}"}}"#, "x".repeat(1024 * 1024));
    [
        (br#"{"user_id":"u","user_id":"v","tool":"T","arguments":{}}"#.to_vec(), "", "bad-request"),
        (br#"{"user_id":"u","tool":"T","priority":1,"priority":1}"#.to_vec(), "", "bad-request"),
        (b"{\"user_id\":\"u\",\"tool\":\"T\xff\",\"arguments\":{}}".to_vec(), "", "bad-request"),
        (deep.into_bytes(), "/arguments", "invalid-job"),
        (large.into_bytes(), "", "too-large"),
        (br#"{"user_id":"u","tool":"T","priority":10}"#.to_vec(), "/priority", "invalid-job"),
    ]
}

/// An item that is a job.
fn good() -> Vec<u8> {
    read("user-1").to_string().into_bytes()
}

/// Where the items are that are wrong, and of what kind the mistakes are.
fn errors(refused: &Value) -> Vec<(&str, &str)> {
    let errors = refused["errors"].as_array().unwrap();
    errors.iter().map(|error| (error["pointer"].as_str().unwrap(), kind(error))).collect()
}

async fn jobs(api: &Api) -> usize {
    api.get("/v1/jobs").await.1["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_no_job_is_named_and_its_batch_is_not_made() {
    let (api, _folder) = api().await;
    for (item, field, wrong) in bad() {
        let is_text = std::str::from_utf8(&item).is_ok();
        let items = [good(), item, good()].join(&b","[..]);
        let body = [&br#"{"items":["#[..], &items, &b"]}"[..]].concat();
        let (status, refused) = post(&api, "/v1/batches", JSON, body).await;
        if is_text {
            assert_eq!((status, kind(&refused)), (422, "invalid-batch"), "{refused}");
            assert_eq!(errors(&refused), [(&*format!("/items/1{field}"), wrong)], "{refused}");
        } else {
            // It is no JSON as a whole.
            assert_eq!((status, kind(&refused)), (400, wrong), "{refused}");
        }
    }
    let (status, refused) = post(&api, "/v1/batches", LINES, br#"{"items":[]}"#.to_vec()).await;
    assert_eq!((status, kind(&refused)), (415, "unsupported-media-type"), "{refused}");
    assert_eq!(api.get("/v1/batches").await.1["items"], json!([]));
    assert_eq!(jobs(&api).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_job_is_named_by_its_index_in_the_batch_and_nothing_of_its_chunk_is_stored() {
    let (api, _folder) = api().await;
    let (_, opened) = api.post("/v1/batches", &json!({"sealed": false})).await;
    let batch = format!("/v1/batches/{}", opened["id"].as_str().unwrap());
    let first = read("user-1").with("idempotency_key", "k");
    let chunk = [first.to_string().into_bytes(), good()].join(&b"\n"[..]);
    assert_eq!(post(&api, &format!("{batch}/items?from=0"), LINES, chunk).await.0, 201);
    let path = format!("{batch}/items?from=2");
    let (id, key) = (read("user-2").named(first.id()), read("user-1").with("idempotency_key", "k"));
    let taken = [(id, "/id", "id-conflict"), (key.with("priority", 5), "/idempotency_key", "key-conflict")];
    let taken = taken.map(|(job, field, wrong)| (job.to_string().into_bytes(), field, wrong));
    for (line, field, wrong) in bad().into_iter().chain(taken) {
        // Empty lines have no index.
        let chunk = [good(), Vec::new(), line, good()].join(&b"\n"[..]);
        let (status, refused) = post(&api, &path, LINES, chunk).await;
        assert_eq!((status, kind(&refused)), (422, "invalid-batch"), "{refused}");
        assert_eq!(errors(&refused), [(&*format!("/items/3{field}"), wrong)], "{refused}");
    }
    for media_type in [JSON, "text/plain", "application/x-ndjsonx", ""] {
        let (status, refused) = post(&api, &path, media_type, good()).await;
        assert_eq!((status, kind(&refused)), (415, "unsupported-media-type"), "{media_type}: {refused}");
    }
    assert_eq!(jobs(&api).await, 2);
    assert_eq!(api.get(&batch).await.1["total"], 2);

    // What was refused has left no trace, so the batch goes on where it was.
    for (from, media_type) in [(2, "application/x-ndjson; charset=utf-8"), (3, "application/jsonl")] {
        let (status, added) = post(&api, &format!("{batch}/items?from={from}"), media_type, good()).await;
        assert_eq!((status, &added["total"]), (201, &json!(from + 1)), "{added}");
    }
    assert_eq!(jobs(&api).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_has_up_to_ten_thousand_lines_and_a_hundred_mistakes_are_told() {
    let (api, _folder) = api().await;
    let (_, opened) = api.post("/v1/batches", &json!({"sealed": false})).await;
    let batch = format!("/v1/batches/{}", opened["id"].as_str().unwrap());
    let path = format!("{batch}/items?from=0");
    let (status, refused) = post(&api, &path, LINES, b"{}\n".repeat(10_001)).await;
    assert_eq!((status, kind(&refused)), (413, "too-large"), "{refused}");
    // Empty lines are none of them.
    let (status, refused) = post(&api, &path, LINES, b"{}\n\n".repeat(10_000)).await;
    assert_eq!((status, kind(&refused)), (422, "invalid-batch"), "{refused}");
    let pointers: Vec<_> = errors(&refused).into_iter().map(|(pointer, _)| pointer.to_owned()).collect();
    assert_eq!(pointers, (0..100).map(|index| format!("/items/{index}")).collect::<Vec<_>>());
    let (status, seen) = api.get(&batch).await;
    assert_eq!((status, &seen["total"]), (StatusCode::OK, &json!(0)), "{seen}");
    assert_eq!(jobs(&api).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_items_whose_ids_are_taken_a_hundred_are_told_and_how_many_there_are() {
    let (api, _folder) = api().await;
    let jobs: Vec<Value> = (0..150).map(|_| read("user-1")).collect();
    let (status, made) = api.post("/v1/batches", &json!({"items": jobs})).await;
    assert_eq!((status, &made["total"]), (StatusCode::CREATED, &json!(150)), "{made}");
    let others: Vec<Value> = jobs.into_iter().map(|job| job.with("priority", 5)).collect();

    let (_, opened) = api.post("/v1/batches", &json!({"sealed": false})).await;
    let batch = format!("/v1/batches/{}", opened["id"].as_str().unwrap());
    let chunk = others.iter().map(|job| format!("{job}\n")).collect::<String>().into_bytes();
    // The first two of the chunk are new, and where the others are is told by their index in the batch.
    let chunk = [good(), good(), chunk].join(&b"\n"[..]);
    for ((status, refused), first) in [
        (post(&api, "/v1/batches", JSON, json!({"items": others}).to_string().into_bytes()).await, 0),
        (post(&api, &format!("{batch}/items?from=0"), LINES, chunk).await, 2),
    ] {
        assert_eq!((status, kind(&refused)), (422, "invalid-batch"), "{refused}");
        assert!(refused["detail"].as_str().unwrap().contains("the first 100 of 150 items"), "{refused}");
        let pointers: Vec<_> = (first..first + 100).map(|index| format!("/items/{index}/id")).collect();
        let expected: Vec<_> = pointers.iter().map(|pointer| (pointer.as_str(), "id-conflict")).collect();
        assert_eq!(errors(&refused), expected);
    }
    let (_, page) = api.get("/v1/jobs?limit=500").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 150, "nothing of them is stored");
    assert_eq!(api.get(&batch).await.1["total"], 0);
}
