//! The vectors that are more than requests and what their answers hold.

use std::{collections::BTreeSet, time::Duration};

use errand_sandbox::DEFAULT_WORLD;
use serde_json::{Value, json};

use crate::bench::{Ask, Bench, PINNED, repo_call};

/// Those that a test of this file is about.
pub(crate) const IDS: [&str; 8] = ["V34", "V38", "V39", "V52", "V62", "V65", "V66", "V67"];

/// V34.
#[tokio::test]
async fn calls_beyond_the_limit_are_refused_until_the_window_ends() {
    let world = DEFAULT_WORLD.replacen("requests = 1000000", "requests = 2", 1).replacen(
        "window_seconds = 60",
        "window_seconds = 3600",
        1,
    );
    let bench = Bench::start(&world).await;
    for remaining in ["1", "0"] {
        let answer = bench.send(&repo_call()).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["x-ratelimit-remaining"], remaining);
    }
    let refused = bench.send(&repo_call()).await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json(), json!({"message": "Rate limit exceeded. Limit: 2 requests per 60 minutes"}));
    assert_eq!(refused.headers["x-ratelimit-remaining"], "0");
    let wait: u32 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait));
    assert_eq!(bench.running.ledger_summary().effects, 2);
}

/// V38.
#[tokio::test]
async fn a_call_that_is_repeated_with_the_same_key_has_two_effects() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "hang", "after_effect": true, "times": 1}])).await;
    let call = repo_call().with("idempotency-key", "same").with("x-request-id", "r38");
    let lost = bench.send_within(&call, Duration::from_secs(2)).await;
    assert!(lost.unwrap_err().is_timeout());
    assert_eq!(bench.send(&call).await.unwrap().status, 200);
    assert_eq!(bench.running.ledger_summary().effects, 2, "nothing is de-duplicated");
    assert_eq!(bench.running.ledger_summary().repeated_request_ids["r38"], 2);
}

/// V39.
#[tokio::test]
async fn a_call_that_is_cut_off_before_its_effect_has_none() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "reset", "after_effect": false}])).await;
    assert!(bench.send(&repo_call()).await.is_err());
    assert_eq!(bench.running.ledger_summary().effects, 0);
}

/// V52.
#[tokio::test]
async fn tools_are_listed_page_by_page_and_none_comes_twice() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let first = format!("/api/v3/tools?toolkit_slug=github&toolkit_versions[github]={PINNED}&limit=1");
    let mut seen = BTreeSet::new();
    let mut page = bench.get(&first).await;
    let total = page["total_items"].as_u64().unwrap();
    assert!(total > 1 && page["next_cursor"].is_string());
    loop {
        let items = page["items"].as_array().unwrap();
        assert_eq!(items.len(), 1);
        assert!(seen.insert(items[0]["slug"].to_string()), "no tool comes twice");
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        page = bench.get(&format!("{first}&cursor={cursor}")).await;
    }
    assert_eq!(seen.len() as u64, total);
    assert_eq!(page["next_cursor"], Value::Null);
}

/// V62.
#[tokio::test]
async fn a_link_that_nobody_opens_expires() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let link = Ask::post("/api/v3/connected_accounts/link")
        .json(json!({"auth_config_id": "ac_1", "user_id": "u-new"}));
    let answer = bench.send(&link).await.unwrap();
    assert_eq!(answer.status, 201);
    let link = answer.json();
    for field in ["link_token", "redirect_url", "expires_at", "connected_account_id"] {
        assert!(link[field].is_string(), "{field}");
    }
    assert!(link.get("id").is_none() && link.get("status").is_none());
    let id = link["connected_account_id"].as_str().unwrap();
    let account = format!("/api/v3/connected_accounts/{id}");
    assert_eq!(bench.get(&account).await["status"], "INITIATED");
    let advance = Ask::post("/_sandbox/clock").json(json!({"seconds": 540}));
    bench.send(&advance).await.unwrap();
    assert_eq!(bench.get(&account).await["status"], "INITIATED");
    bench.send(&Ask::post("/_sandbox/clock").json(json!({"seconds": 61}))).await.unwrap();
    assert_eq!(bench.get(&account).await["status"], "EXPIRED");
}

/// V65.
#[tokio::test]
async fn a_call_is_found_in_the_log_by_its_log_id() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let done = bench.send(&repo_call().with("x-request-id", "r65")).await.unwrap().json();
    let log_id = done["log_id"].as_str().unwrap();
    let log = bench.get(&format!("/api/v3.1/logs/tool_execution/{log_id}")).await;
    assert_eq!((&log["id"], &log["status"]), (&done["log_id"], &json!("success")));
    assert_eq!(log["type"], "tool.execution");
    assert_eq!(log["context"]["request_id"], "r65");
    assert_eq!(log["data"]["response"]["data"], done["data"]);
}

/// V66.
#[tokio::test]
async fn calls_are_found_in_the_log_by_their_request_id() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let count = async |id: &str| bench.find_logs(id).await["logs"].as_array().unwrap().len();
    assert_eq!(count("r66").await, 0);
    bench.send(&repo_call().with("x-request-id", "r66")).await.unwrap();
    bench.send(&repo_call().with("x-request-id", "r66-other")).await.unwrap();
    assert_eq!(count("r66").await, 1);
    bench.send(&repo_call().with("x-request-id", "r66")).await.unwrap();
    assert_eq!(count("r66").await, 2);
}

/// V67.
#[tokio::test]
async fn the_log_of_the_older_api_has_what_the_sdks_decode() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let done = bench.send(&repo_call()).await.unwrap().json();
    let log_id = done["log_id"].as_str().unwrap();
    let log = bench.get(&format!("/api/v3/internal/action_execution/log/{log_id}")).await;
    assert_eq!((&log["version"], &log["connection"]["entity"]), (&json!(PINNED), &json!("u-alice")));
    assert_eq!(log["actionId"], "GITHUB_GET_REPO");
    assert!(log["error"].is_object() && log["totalDuration"].is_string(), "as the SDKs decode it");
}
