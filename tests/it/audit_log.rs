//! The audit log, over HTTP and on the command line.

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    api::{Api, read_answer},
    harness::{Harness, run},
};

async fn get(api: &Api, secret: &str, path: &str) -> (StatusCode, Value) {
    read_answer(api.request(Method::GET, path).bearer_auth(secret).send().await.unwrap()).await
}

async fn post(api: &Api, secret: &str, path: &str, body: &Value) -> Value {
    let answer = api.request(Method::POST, path).bearer_auth(secret).json(body).send().await.unwrap();
    let (status, answer) = read_answer(answer).await;
    assert!(status.is_success(), "{path}: {answer}");
    answer
}

fn made(harness: &Harness, args: &[&str]) -> Value {
    let args =
        [&["keys", "create", "--json", "--by", "ann", "--scope", "enqueue,read,manage"], args].concat();
    let output = harness.errand(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn secret(key: &Value) -> &str {
    key["secret"].as_str().unwrap()
}

/// What entries say of who did what about what.
fn summary(page: &Value) -> Vec<(&str, &str, &str)> {
    let word = |entry: &'_ Value, name: &str| entry[name].as_str().unwrap_or("-").to_owned().leak() as &str;
    let items = page["items"].as_array().unwrap().iter();
    items.map(|entry| (word(entry, "what"), word(entry, "by"), word(entry, "from"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_what_is_listed_for_the_operator_and_for_the_owner_of_it() {
    let harness = Harness::new("changes", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    let (operator, alice, bob) = (
        made(&harness, &["--operator"]),
        made(&harness, &["--user", "u-alice"]),
        made(&harness, &["--user", "u-bob"]),
    );
    let job = read("u-alice");
    post(&api, secret(&alice), "/v1/jobs", &job).await;
    post(&api, secret(&alice), &format!("/v1/jobs/{}/cancel", job.id()), &json!({})).await;
    let rotated = post(
        &api,
        secret(&operator),
        &format!("/v1/keys/{}/rotate", bob["id"].as_str().unwrap()),
        &json!({}),
    )
    .await;
    assert!(
        harness.errand(&["pins", "set", "github", "20251027_00", "--force", "--by", "ben"]).status.success()
    );

    let by_alice = format!("key {}", alice["id"].as_str().unwrap());
    let by_operator = format!("key {}", operator["id"].as_str().unwrap());
    let (_, all) = get(&api, secret(&operator), "/v1/audit-log").await;
    let expected = [
        ("pin.set", "ben", "command line"),
        ("key.rotated", &*by_operator, "127.0.0.1"),
        ("job.cancelled", &*by_alice, "127.0.0.1"),
        ("key.created", "ann", "command line"),
        ("key.created", "ann", "command line"),
        ("key.created", "ann", "command line"),
    ];
    assert_eq!(summary(&all), expected, "{all}");
    let cancelled = &all["items"][2];
    assert_eq!((&cancelled["object"], &cancelled["owner"]["id"]), (&json!(job.id()), &json!("u-alice")));
    assert_eq!(
        (&cancelled["before"]["state"], &cancelled["after"]["state"]),
        (&json!("available"), &json!("cancelled"))
    );
    let text = all.to_string();
    for key in [&operator, &alice, &bob, &rotated] {
        assert!(!text.contains(secret(key)), "no entry has a secret");
    }

    let (_, own) = get(&api, secret(&alice), "/v1/audit-log").await;
    assert_eq!(summary(&own), [expected[2], expected[4]], "{own}");
    let (_, none) = get(&api, secret(&alice), "/v1/audit-log?owner=user:u-bob").await;
    assert_eq!(none["items"], json!([]));
    let (_, jobs) = get(&api, secret(&operator), &format!("/v1/audit-log?kind=job&id={}", job.id())).await;
    assert_eq!(summary(&jobs), [expected[2]]);
    let (_, first) = get(&api, secret(&operator), "/v1/audit-log?limit=4").await;
    let next = first["next"].as_str().unwrap();
    let (_, rest) = get(&api, secret(&operator), &format!("/v1/audit-log?cursor={next}")).await;
    assert_eq!((summary(&rest).len(), &rest["next"]), (2, &Value::Null));
    let (status, wrong) = get(&api, secret(&operator), "/v1/audit-log?kind=jobs").await;
    assert_eq!(status, 400, "{wrong}");
    let reader = run(&["keys", "create", "--json", "--operator", "--scope", "read"], &harness.env());
    let reader: Value = serde_json::from_slice(&reader.stdout).unwrap();
    assert_eq!(get(&api, secret(&reader), "/v1/audit-log").await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_told_and_the_log_forgets_whose_it_was() {
    let harness = Harness::new("erased", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    made(&harness, &["--user", "u-alice"]);
    made(&harness, &["--user", "u-bob"]);
    let pin = ["pins", "set", "github", "20251027_00", "--force", "--owner", "user:u-alice"];
    assert!(harness.errand(&pin).status.success());
    assert!(
        harness.errand(&["erase", "--owner", "user:u-alice", "--by", "ann", "--dry-run"]).status.success()
    );
    assert!(harness.errand(&["erase", "--owner", "user:u-alice", "--by", "ann"]).status.success());
    let listed = harness.errand(&["audit-log", "--json"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(!text.contains("u-alice") && text.contains("u-bob"), "{text}");
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let erased: Vec<&Value> = entries.iter().filter(|entry| entry["what"] == "owner.erased").collect();
    assert_eq!((erased.len(), &erased[0]["by"]), (1, &json!("ann")), "a dry run is no erasure");
    let of_pins = harness.errand(&["audit-log", "--kind", "pin"]);
    let of_pins = String::from_utf8(of_pins.stdout).unwrap();
    assert!(of_pins.contains("pin.removed") && of_pins.contains("20251027_00"), "{of_pins}");
}
