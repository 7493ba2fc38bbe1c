//! The same flow in one process, with nothing but the binary.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use errand_testbed::factory::{read, spread};
use serde_json::Value;

use crate::{
    harness::{PATIENCE, Process, run},
    support::{machine, wait::until},
};

#[test]
fn the_demo_accounts_for_every_job() {
    let output = run(&["demo", "--json"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&String> = summary.as_object().unwrap().keys().collect();
    assert_eq!(names, ["enqueued", "jobs_per_second", "lost", "outcomes", "seconds", "settled"]);
    assert_eq!((&summary["lost"], &summary["settled"]), (&Value::from(0), &summary["enqueued"]));
    for state in ["succeeded", "failed", "held"] {
        assert!(summary["outcomes"][state].as_u64().unwrap() > 0, "{summary}");
    }
}

#[test]
fn the_demo_shows_attempts_pins_accounts_and_log_ids() {
    let output = run(&["demo", "--jobs", "200"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "after a retry",
        "pinned by",
        "account ca_",
        "log log_",
        "difference 0",
        "the toolkit is for organizations, and a user asked",
        "0 jobs that must act once acted twice",
        "errand dev ",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    // The call whose answer was lost is looked up and adopted before the demo ends.
    let adopted = text.lines().skip_while(|line| !line.starts_with("succeeded  looked up")).skip(1);
    let told: Vec<&str> = adopted.skip_while(|line| !line.contains("GMAIL_SEND_EMAIL")).take(6).collect();
    let told = told.join("\n");
    for part in ["-> succeeded", "attempt 1: succeeded, no answer", "adopted succeeded, by errand: look-up"] {
        assert!(told.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert!(!text.contains("unknown_outcome"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let env = [("TMPDIR".to_owned(), temporary.path().display().to_string())];
    let mut demo = Process::start(&["demo", "--jobs", "9000"], &env);
    let entries = || fs::read_dir(temporary.path()).unwrap().count();
    until("it has its folder", PATIENCE, async || (entries() > 0).then_some(())).await;
    demo.signal("INT");
    assert_eq!(demo.ended().await.code(), Some(1));
    assert_eq!(entries(), 0);
}

struct Dev {
    process: Process,
    env: Vec<(String, String)>,
}

impl Dev {
    async fn start(data: &Path) -> Self {
        Self::start_by(&[], data).await
    }

    /// Started by a program that gives its place to it.
    async fn start_by(starter: &[&str], data: &Path) -> Self {
        let sandbox = machine::free_port();
        let process = Process::start_by(
            starter,
            &[
                "dev",
                "--data",
                data.to_str().unwrap(),
                "--listen",
                "127.0.0.1:0",
                "--api-listen",
                "127.0.0.1:0",
                "--sandbox-listen",
                &format!("127.0.0.1:{sandbox}"),
            ],
            &[],
        );
        process.logged("worker ready").await;
        let env = vec![("DATABASE_URL".to_owned(), format!("sqlite://{}/errand.db", data.display()))];
        Self { process, env }
    }

    /// Enqueues a job in another process, and returns its ID.
    fn enqueue(&self) -> String {
        let output = run(&[&ENQUEUE[..], &["--json"]].concat(), &self.env);
        let stored: Value = serde_json::from_slice(&output.stdout).unwrap();
        stored["id"].as_str().unwrap().to_owned()
    }

    async fn succeeds(&self, id: &str) {
        until("the job succeeds", PATIENCE, async || (self.show(id)["state"] == "succeeded").then_some(()))
            .await;
    }

    fn show(&self, id: &str) -> Value {
        serde_json::from_slice(&run(&["jobs", "show", id, "--json"], &self.env).stdout).unwrap()
    }
}

const ENQUEUE: [&str; 6] =
    ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", r#"{"owner":"o","repo":"r"}"#];

#[tokio::test(flavor = "multi_thread")]
async fn jobs_enqueued_from_another_terminal_run_in_dev_and_survive_its_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(data.path()).await;
    let waited = run(&[&ENQUEUE[..], &["--wait", "--json"]].concat(), &dev.env);
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    let job: Value = serde_json::from_slice(&waited.stdout).unwrap();
    assert_eq!((&job["state"], &job["pinned_by"]), (&Value::from("succeeded"), &Value::from("latest")));
    assert!(dev.process.stop().await.success());

    // While nothing runs, a job is only stored; the next start finds it.
    let id = dev.enqueue();
    let dev = Dev::start(data.path()).await;
    dev.succeeds(&id).await;
    assert_eq!(dev.show(job["id"].as_str().unwrap())["state"], "succeeded", "older jobs are still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_not_as_old_as_its_id() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path()).await;
    let days_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(72);
    let stamp = u64::try_from(days_ago.as_millisecond()).unwrap();
    let id = uuid::Builder::from_unix_timestamp_millis(stamp, &[7; 10]).into_uuid().to_string();
    assert!(run(&[&ENQUEUE[..], &["--id", &id]].concat(), &dev.env).status.success());
    dev.succeeds(&id).await;
    for name in ["errand_queue_wait_seconds", "errand_job_duration_seconds"] {
        let series = |what: &str| format!("{name}_{what}{{queue=\"default\"}}");
        assert_eq!(dev.process.metric(&series("count")).await, 1.0);
        let seconds = dev.process.metric(&series("sum")).await;
        assert!(seconds < 600.0, "{name}: {seconds}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_killed_dev_are_rescued_by_the_next_one() {
    let data = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(data.path()).await;
    let file = data.path().join("jobs.jsonl");
    let lines: Vec<String> = spread(200, read).iter().map(Value::to_string).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let output = run(&["enqueue-bulk", file.to_str().unwrap()], &dev.env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dev.process.kill9();
    let dev = Dev::start(data.path()).await;
    until("every job ends", PATIENCE, async || {
        let list = run(&["jobs", "list", "--state", "succeeded", "--limit", "1000", "--json"], &dev.env);
        (String::from_utf8(list.stdout).ok()?.lines().count() == 200).then_some(())
    })
    .await;
}

/// No file may be written past its first bytes, which are soon used, so that every write fails as it does on a full disk.
/// The log, which is a file too, is shorter.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_full_disk_jobs_go_on_without_a_restart() {
    let data = tempfile::tempdir().unwrap();
    // Otherwise the first write that is too long ends the process.
    let dev = Dev::start_by(&["/bin/sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""], data.path()).await;
    dev.succeeds(&dev.enqueue()).await;
    dev.process.limit("--fsize=131072:");
    let waiting = dev.enqueue();
    dev.process.becomes_ready(false).await;
    dev.process.logged("disk I/O error").await;
    assert!(!dev.process.log().contains("the schema is missing"), "{}", dev.process.log());
    dev.process.limit("--fsize=unlimited:");
    dev.process.becomes_ready(true).await;
    dev.succeeds(&waiting).await;
    dev.succeeds(&dev.enqueue()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_read_the_files_of_dev() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    // The usual permissions of new files, whatever those of this process are.
    let dev = Dev::start_by(&["/bin/sh", "-c", "umask 022; exec \"$0\" \"$@\""], &data).await;
    dev.succeeds(&dev.enqueue()).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for name in ["errand.db", "errand.db-wal", "errand.db-shm"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
}

/// Half requests are many more than the files that the process may open.
#[tokio::test(flavor = "multi_thread")]
async fn half_requests_for_metrics_cost_no_job_and_keep_nobody_from_asking() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start_by(&["prlimit", "--nofile=256"], data.path()).await;
    let address = dev.process.address().await;
    let half = |_| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        stream
    };
    let mut open: Vec<TcpStream> = (0..300).map(half).collect();
    for _ in 0..5 {
        dev.succeeds(&dev.enqueue()).await;
        assert_eq!(dev.process.readiness().await["ready"], true);
    }
    assert!(dev.process.metric("process_open_fds").await < 250.0);
    // Nobody waits for the rest of the last one either.
    let mut last = open.pop().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match last.read(&mut [0; 64]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("it is not closed: {other:?}"),
    }
}
