//! Faults: what breaks, when, and whose call it is. `faults.toml` has what each kind shows the client.

use std::{collections::BTreeSet, time::Duration};

use errand_sandbox::DEFAULT_WORLD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::{Ask, Bench, repo_call};

#[tokio::test]
async fn a_reset_ends_the_connection_without_a_byte_before_or_after_the_effect() {
    for (after_effect, effects) in [(false, 0), (true, 1)] {
        let bench = Bench::start(DEFAULT_WORLD).await;
        bench.set_faults(json!([{"kind": "reset", "after_effect": after_effect, "times": 1}])).await;
        let error = bench.send(&repo_call()).await.unwrap_err();
        assert!(!error.is_timeout() && !error.is_connect(), "{error:?}");
        assert!(chain(&error).contains("reset"), "{}", chain(&error));
        assert_eq!(bench.running.ledger_summary().effects, effects);
        assert_eq!(bench.send(&repo_call()).await.unwrap().status, 200, "later calls are answered");
    }
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_an_error_to_the_client() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "malformed", "form": "truncated_body"}])).await;
    assert!(bench.send(&repo_call()).await.is_err());
    assert_eq!(bench.running.ledger_summary().effects, 1);
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_does_not_stop_a_slow_call() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "latency", "fixed_ms": 3_000}])).await;
    let gone = bench.send_within(&repo_call(), Duration::from_millis(1_000)).await;
    assert!(gone.unwrap_err().is_timeout());
    bench.wait_for_effects(1).await;
}

#[tokio::test]
async fn bad_fault_rules_are_refused_over_http_and_change_nothing() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "latency", "fixed_ms": 0}])).await;
    let put = |faults: Value| Ask::new(Method::PUT, "/_sandbox/faults").json(json!({ "faults": faults }));
    let refused =
        bench.send(&put(json!([{"kind": "status"}, {"kind": "reset", "tool": "NOPE"}]))).await.unwrap();
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["errors"].as_array().unwrap().len(), 3);
    let unknown = bench.send(&put(json!([{"kind": "reset", "after_efect": true}]))).await.unwrap();
    assert!(unknown.json()["error"]["errors"][0].as_str().unwrap().contains("after_efect"));
    assert_eq!(bench.get("/_sandbox/faults").await["faults"][0]["rule"]["kind"], "latency");
    bench.send(&Ask::new(Method::DELETE, "/_sandbox/faults")).await.unwrap();
    assert_eq!(bench.get("/_sandbox/faults").await["faults"], json!([]));
}

#[tokio::test]
async fn the_same_seed_makes_the_same_decisions_in_any_order() {
    let fate = async |seed: u64, jobs: Vec<u32>| {
        let bench = Bench::start_with(DEFAULT_WORLD, seed).await;
        bench.set_faults(json!([{"kind": "status", "status": 500, "rate": 0.5}])).await;
        let mut failed = BTreeSet::new();
        for job in jobs {
            let call = repo_call().with("x-errand-job-id", &format!("job-{job}"));
            if bench.send(&call).await.unwrap().status == 500 {
                failed.insert(job);
            }
        }
        failed
    };
    let forward = fate(1, (0..64).collect()).await;
    let backward = fate(1, (0..64).rev().collect()).await;
    let other = fate(2, (0..64).collect()).await;
    assert_eq!(forward, backward);
    assert_ne!(forward, other);
    assert!((16..48).contains(&forward.len()), "about half: {}", forward.len());
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
