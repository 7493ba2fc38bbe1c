//! What `errand dev` says and does for somebody who meets errand for the first time.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{PATIENCE, run},
    support::{machine, wait::until},
};

/// A running `errand dev` whose output is kept, with a data folder whose name a shell has to quote. It is killed when it
/// is dropped.
struct Dev {
    folder: TempDir,
    child: Child,
}

impl Dev {
    /// With these variables in its environment.
    fn start(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_errand"))
            .args(["dev", "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--data", "it's data"])
            .args(["--sandbox-listen", &format!("127.0.0.1:{}", machine::free_port())])
            .env_clear()
            .envs(env.iter().copied())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    async fn logged(&self, text: &str) -> String {
        until(text, PATIENCE, async || {
            self.read("err").lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// The lines that it prints for another terminal.
    fn lines(&self) -> String {
        let out = self.read("out");
        let (_, lines) = out.split_once("another terminal:\n").unwrap();
        lines.split_once("\n\n").unwrap().0.to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Lines that are pasted into a new terminal, whose profile sets these variables.
fn paste(lines: &str, profile: &[(&str, &str)]) -> Output {
    Command::new("/bin/sh")
        .args(["-e", "-c", lines])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(profile.iter().copied())
        .current_dir("/")
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dev_prints_works_in_another_terminal_whatever_is_set() {
    let profile = [
        ("COMPOSIO_API_KEY", "ak_of_somebody"),
        ("COMPOSIO_BASE_URL", "http://127.0.0.1:1"),
        ("DATABASE_URL", "postgres://errand@127.0.0.1:1/errand"),
        ("AMQP_URL", "amqp://errand@127.0.0.1:1/%2f"),
    ];
    let dev = Dev::start(&profile);
    dev.logged("worker ready").await;
    let out = dev.read("out");
    assert!(out.contains("not used  DATABASE_URL, AMQP_URL, COMPOSIO_API_KEY"), "{out}");
    assert!(!out.contains("...") && !out.contains("ak_of_somebody"), "{out}");
    assert!(out.contains("HTTP API  http://127.0.0.1:0/v1/jobs, without keys until you make one\n"), "{out}");

    let pasted = paste(&dev.lines(), &profile);
    let shown = String::from_utf8(pasted.stdout).unwrap();
    assert!(
        pasted.status.success() && shown.contains("succeeded"),
        "{pasted:?}\n{out}",
        pasted = pasted.stderr
    );
    let line = dev.logged("attempt recorded").await;
    for part in
        ["job.id=", "owner.kind=\"user\"", "tool=\"GITHUB_GET_REPO\"", "state=succeeded", "duration_ms="]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    // A second one with what the first printed in its environment starts a sandbox, too.
    let again = Dev::start(&[("COMPOSIO_API_KEY", "ak_test_good")]);
    again.logged("worker ready").await;
    assert!(paste(&again.lines(), &[]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_process_starts_long_before_the_relay_asks_again() {
    let dev = Dev::start(&[("ERRAND__RELAY__POLL_MS", "60000")]);
    dev.logged("worker ready").await;
    let database = dev.folder.path().join("it's data/errand.db");
    let env = vec![("DATABASE_URL".to_owned(), format!("sqlite://{}", database.display()))];
    for _ in 0..3 {
        let args =
            ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", r#"{"owner":"o","repo":"r"}"#];
        let output = run(&[&args[..], &["--wait", "--json"]].concat(), &env);
        let job: Value = serde_json::from_slice(&output.stdout).unwrap();
        let at = |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let waited = at(&job["attempts"][0]["started_at"]).duration_since(at(&job["created_at"]));
        assert!(waited.unsigned_abs() < Duration::from_secs(30), "{waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_enqueued_after_a_pin_was_set_runs_by_it() {
    let dev = Dev::start(&[]);
    dev.logged("worker ready").await;
    let exports: String = dev
        .lines()
        .lines()
        .filter(|line| line.contains("export"))
        .fold(String::new(), |all, line| all + line + "\n");
    let job = r#"errand enqueue GITHUB_GET_REPO --owner user:u-alice --args '{"owner":"o","repo":"r"}' --wait --json"#;
    for version in ["20250905_00", "20251027_00"] {
        let pasted = paste(&format!("{exports}errand pins set github {version} >/dev/null\n{job}"), &[]);
        let job: Value = serde_json::from_slice(&pasted.stdout).unwrap();
        assert_eq!((&job["version"], &job["pinned_by"]), (&Value::from(version), &Value::from("global")));
    }
    let pasted = paste(&format!("{exports}errand pins unset github >/dev/null\n{job}"), &[]);
    let job: Value = serde_json::from_slice(&pasted.stdout).unwrap();
    assert_eq!(job["pinned_by"], "latest");
}

#[test]
fn what_dev_cannot_do_is_said_before_anything_else() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let free = format!("127.0.0.1:{}", machine::free_port());
    for (listen, api, sandbox, told) in [
        (&address, &free, &free, "--listen or http.listen"),
        (&free, &address, &free, "--api-listen or api.listen"),
        (&free, &free, &address, "--sandbox-listen"),
    ] {
        let ran = dev(&data, &["--listen", listen, "--api-listen", api, "--sandbox-listen", sandbox]);
        assert_eq!((ran.status.code(), ran.stdout.as_slice()), (Some(3), &b""[..]), "{ran:?}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains(told), "{ran:?}");
    }
    let ran = dev(&data, &["--real"]);
    assert_eq!((ran.status.code(), ran.stdout.as_slice()), (Some(3), &b""[..]), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("set COMPOSIO_API_KEY"), "{ran:?}");
}

fn dev(data: &Path, more: &[&str]) -> Output {
    run(&[&["dev", "--data", data.to_str().unwrap()], more].concat(), &[])
}
