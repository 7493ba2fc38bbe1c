//! Batches and chunks that are sent again over HTTP: the same is answered alike, and what is not the same is refused.

use errand_testbed::factory::{Envelope as _, read};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::{Api, kind, read_answer},
    harness::{Harness, in_memory, run},
};

/// The API on PostgreSQL and on SQLite, without a worker that would change anything.
async fn apis(hint: &str) -> (Harness, TempDir, [Api; 2]) {
    let harness = Harness::new(hint, "").await;
    let folder = in_memory("errand-batch-repeats-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let apis = [Api::start(&harness.env()).await, Api::start(&env).await];
    (harness, folder, apis)
}

/// Makes a batch with a key. Says where it is, too.
async fn make(api: &Api, key: &str, wanted: &Value) -> (StatusCode, Option<String>, Value) {
    let request = api.request(Method::POST, "/v1/batches").header("idempotency-key", key).json(wanted);
    let answer = request.send().await.unwrap();
    let location = answer.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
    let (status, body) = read_answer(answer).await;
    (status, location, body)
}

/// The jobs of a batch's items.
async fn jobs(api: &Api, batch: &Value) -> Vec<String> {
    let (status, page) = api.get(&format!("/v1/batches/{}/items", batch.id())).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| item["job_id"].as_str().unwrap().to_owned()).collect()
}

/// How many there are of something.
async fn count(api: &Api, path: &str) -> usize {
    api.get(path).await.1["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_sent_again_is_answered_alike_and_another_one_under_its_key_is_refused() {
    let (_harness, _folder, apis) = apis("batch-again").await;
    let later = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
    let [first, second, third] = ["user-1", "user-2", "user-3"].map(|owner| read(owner).nameless());
    let wanted = json!({
        "items": [first, second],
        "deadline": later,
        "stop_when": {"failed_percent": 50, "of_at_least": 2},
        "follow_up": third,
    });
    for api in &apis {
        let (status, location, made) = make(api, "night-1", &wanted).await;
        assert_eq!((status, &made["total"]), (StatusCode::CREATED, &json!(2)), "{made}");
        assert_eq!(location, Some(format!("/v1/batches/{}", made.id())));
        let known = (StatusCode::OK, location.clone(), made.clone());
        for _ in 0..2 {
            assert_eq!(make(api, "night-1", &wanted).await, known);
        }
        for (field, other) in [
            ("items", json!([second, first])),
            ("items", json!([first])),
            ("items", json!([first, second.clone().with("priority", 5)])),
            ("sealed", json!(false)),
            ("deadline", Value::Null),
            ("stop_when", json!({"failed_percent": 50, "of_at_least": 3})),
            ("follow_up", second.clone()),
            ("follow_up", Value::Null),
        ] {
            let (status, _, refused) = make(api, "night-1", &wanted.clone().with(field, other)).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{field}: {refused}");
            assert_eq!(kind(&refused), "key-conflict", "{field}");
            assert!(refused["detail"].as_str().unwrap().contains(made.id()), "{field}: {refused}");
        }
        assert_eq!(api.get(&location.unwrap()).await, (StatusCode::OK, made), "it is as it was");
        assert_eq!((count(api, "/v1/batches").await, count(api, "/v1/jobs").await), (1, 2));
        // What is asked for under another key is another batch.
        assert_eq!(make(api, "night-2", &wanted).await.0, StatusCode::CREATED);
        assert_eq!((count(api, "/v1/batches").await, count(api, "/v1/jobs").await), (2, 4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_are_sent_again_have_kept_their_idempotency_keys() {
    let (_harness, _folder, apis) = apis("batch-keys").await;
    let keyed = |n: usize| read("user-1").nameless().with("idempotency_key", format!("k-{n}"));
    let items: Vec<Value> = (0..6).map(keyed).collect();
    let lines: String = items[3..].iter().map(|item| format!("{item}\n")).collect();
    for api in &apis {
        let whole = json!({"items": items[..3]});
        let (status, _, made) = make(api, "whole", &whole).await;
        assert_eq!((status, &made["total"]), (StatusCode::CREATED, &json!(3)), "{made}");
        assert_eq!(make(api, "whole", &whole).await.0, StatusCode::OK);
        let (_, _, filled) = make(api, "filled", &json!({"sealed": false})).await;
        let path = format!("/v1/batches/{}/items?from=0", filled.id());
        for expected in [StatusCode::CREATED, StatusCode::OK] {
            let request = api.request(Method::POST, &path).header("content-type", "application/x-ndjson");
            let (status, added) = read_answer(request.body(lines.clone()).send().await.unwrap()).await;
            assert_eq!((status, &added["total"]), (expected, &json!(3)), "{added}");
        }
        let known = [jobs(api, &made).await, jobs(api, &filled).await].concat();
        for (n, job) in known.iter().enumerate() {
            let (_, told) = api.get(&format!("/v1/jobs/{job}")).await;
            assert_eq!(told["idempotency_key"], format!("k-{n}"), "{told}");
        }
        // So another batch, in which they would have other IDs, has the same jobs.
        let (status, _, other) = make(api, "other", &json!({"items": items})).await;
        assert_eq!(status, StatusCode::CREATED, "{other}");
        assert_eq!(jobs(api, &other).await, known);
        assert_eq!(count(api, "/v1/jobs").await, 6);
    }
}
