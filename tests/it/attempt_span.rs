//! Log lines of an attempt name its job, whoever writes them.

use errand_testbed::factory::{Envelope as _, read};
use serde_json::{Value, json};

use crate::harness::Harness;

/// JSON lines, with those of the HTTP client.
const LOG: [(&str, &str); 1] = [("ERRAND__LOG__LEVEL", "info,errand=debug,reqwest=debug,hyper_util=debug")];

#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_a_call_names_its_job_whoever_writes_it() {
    // The connection is lost with the first call, so that the second one makes its own.
    let harness =
        Harness::new("span", "[[fault]]\nkind = \"reset\"\nafter_effect = false\nfirst = 1\n").await;
    let mut worker = harness.worker(&LOG).await;
    let id = "0190b0a0-0000-7000-8000-00000000005a";
    harness.publish(&[read("user-1").named(id).with("effect", "safe")]).await;
    harness.job_in(id, &["succeeded"]).await;
    worker.stop().await;

    let log = worker.log();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of_attempt = |ours: bool, n: u64| {
        lines.iter().any(|line| {
            let span = &line["spans"][0];
            line["target"].as_str().is_some_and(|target| target.starts_with("errand") == ours)
                && (&span["name"], &span["job.id"]) == (&json!("attempt"), &json!(id))
                && (&span["attempt.n"], &span["owner.kind"]) == (&json!(n), &json!("user"))
                && span["tool"] == "GITHUB_GET_REPO"
        })
    };
    assert!(of_attempt(true, 1) && of_attempt(true, 2), "errand's own lines:\n{log}");
    assert!(of_attempt(false, 1) || of_attempt(false, 2), "lines of the HTTP client:\n{log}");
}
