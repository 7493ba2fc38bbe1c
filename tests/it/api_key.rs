//! A key of the tool API in a file, and its replacement while a worker runs.

use errand_testbed::factory::send;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, Process},
    support::wait::until,
};

/// A second key of the default world's organization.
const NEXT_KEY: &str = "[[key]]\nkey = \"ak_test_next\"\norg = \"org_demo\"\n";

async fn accepts_key(worker: &Process, accepts: bool) {
    until(&format!("the key is accepted: {accepts}"), PATIENCE, async || {
        (worker.readiness().await["api_key"] == json!(accepts)).then_some(())
    })
    .await;
}

/// Puts another key in the place of the one before, as an orchestrator does.
fn replace(file: &std::path::Path, key: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, format!("{key}\n")).unwrap();
    std::fs::rename(next, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_replaced_after_it_was_refused_is_used_without_a_restart() {
    let harness = Harness::new("new-key", "").await;
    let file = harness.journal_dir().with_file_name("api_key");
    replace(&file, "ak_test_good");
    let path = file.display().to_string();
    let worker = harness.worker(&[("COMPOSIO_API_KEY", ""), ("COMPOSIO_API_KEY_FILE", &path)]).await;
    harness.publish(&[send("user-1")]).await;
    harness.settled(1).await;

    // What the file has now, the API does not accept.
    replace(&file, "ak_test_expired");
    worker.logged("has another key, which is used from now on").await;
    accepts_key(&worker, false).await;
    let held: Vec<Value> = (0..5).map(|_| send("user-1")).collect();
    harness.publish(&held).await;
    harness.counts("held_reason = 'credentials'", 5).await;

    let began = std::time::Instant::now();
    replace(&file, "ak_test_good");
    accepts_key(&worker, true).await;
    until("the metric shows it", PATIENCE, async || {
        (worker.metric("errand_api_key_refused").await == 0.0).then_some(())
    })
    .await;
    harness.publish(&[send("user-1")]).await;
    harness.counts("state = 'succeeded'", 2).await;
    assert!(began.elapsed().as_secs() < 25, "{:?}", began.elapsed());
    // A person lets the others go, as after any refused key.
    let released = harness.errand(&["jobs", "release", "--reason", "credentials", "--retry", "--yes"]);
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    harness.all_ran_once(7).await;
    let log = worker.log();
    assert!(!log.contains("ak_test_good") && !log.contains("ak_test_expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_replaced_in_time_costs_no_job() {
    let harness = Harness::new("next-key", NEXT_KEY).await;
    let file = harness.journal_dir().with_file_name("api_key");
    replace(&file, "ak_test_good");
    let path = file.display().to_string();
    let worker = harness.worker(&[("COMPOSIO_API_KEY", ""), ("COMPOSIO_API_KEY_FILE", &path)]).await;
    let jobs: Vec<Value> = (0..300).map(|_| send("user-1")).collect();
    for (at, jobs) in jobs.chunks(100).enumerate() {
        harness.publish(jobs).await;
        match at {
            // A file that is not there for a moment, or empty, changes nothing.
            0 => std::fs::write(&file, "").unwrap(),
            1 => replace(&file, "ak_test_next"),
            _ => worker.logged("has another key, which is used from now on").await,
        }
        if at == 0 {
            worker.logged("cannot be used, so errand goes on with the key that it has").await;
        }
    }
    harness.all_ran_once(300).await;
    assert_eq!(worker.readiness().await["api_key"], true);
}
