//! Queues that are paused: nothing is taken from them, by whichever worker, until they are resumed.

use errand_testbed::factory::id;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, Process, in_memory, run, sandbox},
    support::wait::until,
};

type Env = [(String, String)];

/// Enqueues a job, and waits for its success where that is asked for.
fn enqueue(env: &Env, queue: &str, wait: bool) -> String {
    let id = id();
    let mut args =
        vec!["enqueue", "GITHUB_GET_REPO", "--owner", "user:user-1", "--id", &id, "--queue", queue];
    args.extend(["--args", r#"{"owner":"o","repo":"r"}"#]);
    args.extend(wait.then_some("--wait=120"));
    let output = run(&args, env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    id
}

fn errand(env: &Env, args: &[&str]) -> String {
    let output = run(args, env);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn show(env: &Env, id: &str) -> Value {
    serde_json::from_str(&errand(env, &["jobs", "show", id, "--json"])).unwrap()
}

async fn succeeds(env: &Env, id: &str) -> Value {
    until(&format!("{id} succeeds"), PATIENCE, async || {
        Some(show(env, id)).filter(|job| job["state"] == "succeeded")
    })
    .await
}

/// Whether a job waits that no worker has taken.
fn waits(env: &Env, id: &str) {
    let job = show(env, id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("available"), &json!(0)), "{job}");
}

async fn a_paused_queue_stands_still(env: &Env, start: impl AsyncFn() -> Process) {
    const PAUSED: &str = "the queue is paused: nothing is taken from it";
    let mut worker = start().await;
    errand(env, &["queues", "pause", "default", "--reason", "a repair", "--by", "ann"]);
    assert_eq!(run(&["queues", "pause", "default", "--reason", "x"], env).status.code(), Some(1));
    worker.logged(PAUSED).await;
    worker.metric_reaches("errand_queue_paused{queue=\"default\"}", 1.0).await;
    let (first, second) = (enqueue(env, "default", false), enqueue(env, "default", false));
    // Another queue goes on, also after a restart.
    enqueue(env, "bulk", true);
    assert!(worker.stop().await.success());
    worker = start().await;
    worker.logged(PAUSED).await;
    enqueue(env, "bulk", true);
    for job in [&first, &second] {
        waits(env, job);
        let told = errand(env, &["jobs", "show", job]);
        assert!(told.contains("paused by ann since 2") && told.contains("because: a repair"), "{told}");
    }
    let queues = errand(env, &["queues", "--json"]);
    let lanes: Vec<Value> = queues.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| lanes.iter().find(|lane| lane["queue"] == name).unwrap();
    assert_eq!((&of("default")["paused"]["by"], &of("default")["waiting"]), (&json!("ann"), &json!(2)));
    assert_eq!(of("bulk")["paused"], Value::Null);

    // A job that is moved out of it runs, and its message of before means nothing.
    errand(env, &["jobs", "edit", &first, "--queue", "bulk", "--by", "bob"]);
    let moved = succeeds(env, &first).await;
    assert_eq!((&moved["queue"], &moved["history"][0]["by"]), (&json!("bulk"), &json!("bob")), "{moved}");
    waits(env, &second);
    errand(env, &["queues", "resume", "default"]);
    succeeds(env, &second).await;
    assert_eq!(succeeds(env, &first).await["attempt"], 1);
    worker.metric_reaches("errand_duplicate_deliveries_total{queue=\"default\"}", 1.0).await;
    assert_eq!(run(&["queues", "resume", "default"], env).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_takes_from_a_paused_queue_with_rabbitmq() {
    let harness = Harness::new("pauses", "").await;
    a_paused_queue_stands_still(&harness.env(), async || harness.worker(&[]).await).await;
    harness.all_ran_once(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_takes_from_a_paused_queue_embedded() {
    let (folder, sandbox) = (in_memory("errand-pauses-"), sandbox("").await);
    let data = folder.path().to_str().unwrap().to_owned();
    let env = [
        ("DATABASE_URL", format!("sqlite://{}", folder.path().join("errand.db").display())),
        ("COMPOSIO_BASE_URL", sandbox.base_url()),
        ("COMPOSIO_API_KEY", "ak_test_good".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let args = ["dev", "--real", "--data", &data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
    let start = async || {
        let process = Process::start(&args, &env[1..]);
        process.logged("worker ready").await;
        process
    };
    a_paused_queue_stands_still(&env, start).await;
    let ledger = sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.jobs_repeated), (4, 0), "{ledger:?}");
}
