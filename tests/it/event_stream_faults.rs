//! Streams of events while the database is away, and after an ID was used again.

use errand_testbed::factory::{Envelope as _, read, spread};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    access_keys::{made, tomorrow},
    api::Api,
    event_streams::{App, RECORDS, alone, execute, text},
    harness::{Harness, port},
    support,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlasts_a_database_that_is_away_and_misses_nothing() {
    let harness = Harness::new("streams-away", "").await;
    // The worker has its database all the time.
    let _worker = harness.worker(&[RECORDS.into()]).await;
    let database = support::start_proxy(port(&harness.database.url)).await;
    let mut env = harness.env();
    env.retain(|(name, _)| name != "DATABASE_URL");
    env.push(("DATABASE_URL".to_owned(), database.url(&harness.database.url).unwrap()));
    env.push(RECORDS.map(str::to_owned).into());
    let api = Api::start(&env).await;
    let key = made(&harness.env(), &["--operator", "--scope", "read"]);
    let reader = App::of(&api, text(&key, "secret"));
    let mut stream = reader.stream("", "").await;
    database.cut().await.unwrap();
    let jobs = spread(20, read);
    harness.publish(&jobs).await;
    harness.settled(20).await;
    // It is told that it is still there, though nobody can say what has happened.
    let beat = stream.block().await.expect("it goes on");
    assert!(!beat.contains_key("data"), "{beat:?}");
    database.heal().await.unwrap();
    let mut expected: Vec<_> = jobs.iter().map(|job| job.id().to_owned()).collect();
    let mut told = Vec::new();
    for _ in &expected {
        let event = stream.next_event().await.expect("it goes on");
        told.push(text(&event, "job_id").to_owned());
    }
    expected.sort();
    told.sort();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_job_is_not_told_of_an_earlier_one_with_its_id() {
    let (_folder, env, api) = alone().await;
    let nobody = App::of(&api, "");
    let id = nobody.calls_off("user-1").await;
    assert_eq!(nobody.listed("").await.len(), 1);
    // As after its retention, which its events may outlast.
    execute(&env, "delete from jobs").await;
    let post = async |path: &str, body: serde_json::Value| {
        let answer = api.request(Method::POST, path).json(&body).send().await.unwrap();
        assert!([StatusCode::OK, StatusCode::CREATED].contains(&answer.status()), "{path}");
    };
    post("/v1/jobs", read("user-1").with("id", id.as_str()).with("run_at", tomorrow())).await;
    let mut stream = nobody.stream(&format!("?job={id}"), "").await;
    post(&format!("/v1/jobs/{id}/cancel"), json!({})).await;
    let told = stream.next_event().await.expect("it goes on");
    let all = nobody.listed("").await;
    assert_eq!((all.len(), &told["id"]), (2, &all[1]["id"]));
    assert_eq!(stream.next_event().await, None, "and then it is over");
}
