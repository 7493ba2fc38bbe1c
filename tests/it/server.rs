//! The commands over the HTTP API of a server, and the contexts that name servers.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use errand_testbed::factory::{Envelope as _, id, read};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::Api,
    harness::{Harness, Process, in_memory, run},
};

/// A terminal far from the services: a home, and nothing else.
pub(crate) struct Terminal {
    pub(crate) home: TempDir,
    pub(crate) env: BTreeMap<&'static str, String>,
}

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let env = BTreeMap::from([("HOME", home.path().display().to_string())]);
        Self { home, env }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    pub(crate) fn says(&self, args: &[&str], input: &str) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_errand"))
            .args(args)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads no input may be gone by now.
        let _gone = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Said { code: output.status.code(), out, err }
    }

    /// What a command answers that succeeds.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let said = self.says(args, "");
        assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.out, said.err);
        said.out
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let out = self.run(args);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32, expected: &str) {
        let said = self.says(args, "");
        assert_eq!(said.code, Some(code), "{args:?}: {}{}", said.out, said.err);
        assert!(
            said.err.contains(expected) || said.out.contains(expected),
            "{args:?}: {}{}",
            said.out,
            said.err
        );
    }
}

fn key(env: &[(String, String)], whose: &[&str]) -> String {
    let made = run(&[&["keys", "create", "--scope", "enqueue,read,manage"], whose].concat(), env);
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_users_and_operators_works_at_a_server() {
    let harness = Harness::new("server", "").await;
    let _worker = harness.worker(&[]).await;
    let env = harness.env();
    let api = Api::start(&env).await;
    let operator =
        Terminal::new().with("ERRAND_API_KEY", &key(&env, &["--operator"])).with("ERRAND_CONTEXT", "far");
    operator.run(&["context", "set", "far", &api.base]);

    // Enqueue, wait, show and list: what the database says.
    let enqueue =
        ["enqueue", "GITHUB_GET_REPO", "--owner", "user:user-1", "--args", r#"{"owner":"o","repo":"r"}"#];
    let done = operator.json(&[&enqueue[..], &["--wait", "--json", "--tag", "team=a"]].concat());
    assert_eq!(done["state"], "succeeded");
    let id = done["id"].as_str().unwrap();
    assert_eq!(operator.json(&["jobs", "show", id, "--json"]), harness.show(id));
    let here = harness.errand(&["jobs", "show", id]);
    assert_eq!(operator.run(&["jobs", "show", id]), String::from_utf8(here.stdout).unwrap());
    let listed = operator.run(&["jobs", "list", "--tag", "team=a", "--state", "succeeded"]);
    assert_eq!(listed, String::from_utf8(harness.errand(&["jobs", "list"]).stdout).unwrap());
    assert_eq!(operator.json(&["jobs", "list", "--all", "--json"])["id"], id);
    let stats = operator.json(&["jobs", "stats", "--by", "owner", "--json"]);
    assert_eq!(stats["groups"], json!([{"group": "user:user-1", "jobs": 1, "states": {"succeeded": 1}}]));

    // Decisions about one job and about many.
    let later = operator.run(&[&enqueue[..], &["--run-at", "+1h"]].concat());
    let later = later.trim();
    let edited = operator.json(&["jobs", "edit", later, "--priority", "7", "--json"]);
    assert_eq!((&edited["done"], &edited["state"]), (&json!(true), &json!("scheduled")));
    operator.run(&["jobs", "cancel", later]);
    assert_eq!(harness.show(later)["state"], "cancelled");
    operator.fails(&["jobs", "cancel", later], 1, "unchanged");
    operator.fails(&["jobs", "release", later, "--failed"], 1, "unchanged");
    let dry = operator.json(&["jobs", "retry", "--state", "cancelled", "--dry-run", "--json"]);
    assert_eq!((&dry["matching"], &dry["retried"]), (&json!(1), &json!(0)));
    let retried = operator.json(&["jobs", "retry", "--state", "cancelled", "--now", "--yes", "--json"]);
    assert_eq!((&retried["matching"], &retried["retried"]), (&json!(1), &json!(1)), "{retried}");
    let action = retried["action"].as_str().unwrap();
    assert_eq!(operator.json(&["actions", "show", action, "--json"])["progress"]["done"], 1);
    assert!(operator.run(&["actions", "show", action]).contains("1 of 1 looked at"));
    assert_eq!(operator.run(&["actions", "list"]).lines().count(), 3, "a header, the dry run and the retry");
    operator.run(&["actions", "abort", action]);
    harness.job_in(later, &["succeeded"]).await;
    let pruned = operator.json(&["prune", "--state", "succeeded", "--yes", "--json"]);
    assert_eq!(pruned["removed"], 2, "{pruned}");

    // Many jobs are a batch.
    let lines: String = (0..1_500)
        .map(|n| match n {
            7 => "{\n".to_owned(),
            1_200 => json!({"user_id": "user-1", "tool": "GITHUB_GET_REPO", "queue": "nowhere"}).to_string() + "\n",
            _ => json!({"user_id": "user-1", "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": "r"}}).to_string() + "\n",
        })
        .collect();
    let bulk = operator.says(&["enqueue-bulk", "-", "--queue", "bulk", "--json"], &lines);
    assert_eq!(bulk.code, Some(1), "{}", bulk.err);
    let bulk: Value = serde_json::from_str(&bulk.out).unwrap();
    assert_eq!(
        (&bulk["added"], &bulk["refused"], &bulk["invalid"]),
        (&json!(1_498), &json!(1), &json!(1)),
        "{bulk}"
    );
    assert_eq!(bulk["problems"][0]["line"], 8);
    assert_eq!(bulk["problems"][1]["line"], 1_201);
    let batch = bulk["batch"].as_str().unwrap();
    // The same file with the batch adds nothing, as after an interruption by which the last answer was lost.
    let again = operator.says(&["enqueue-bulk", "-", "--queue", "bulk", "--batch", batch, "--json"], &lines);
    assert_eq!(serde_json::from_str::<Value>(&again.out).unwrap(), bulk, "{}", again.err);
    assert_eq!(operator.says(&["enqueue-bulk", "-", "--batch", batch], "{}\n{}\n").code, Some(1));
    let complete = operator.json(&["batches", "show", batch, "--wait=120", "--json"]);
    assert_eq!(
        (&complete["total"], &complete["counts"]["succeeded"]),
        (&json!(1_498), &json!(1_498)),
        "{complete}"
    );
    let here = harness.errand(&["batches", "show", batch, "--json"]);
    assert_eq!(complete, serde_json::from_slice::<Value>(&here.stdout).unwrap());
    for args in
        [&["batches", "list"][..], &["batches", "items", batch, "--from", "3"], &["batches", "show", batch]]
    {
        assert_eq!(operator.run(args), String::from_utf8(harness.errand(args).stdout).unwrap());
    }
    operator.fails(&["batches", "cancel", batch], 1, "complete");
    operator.fails(&["batches", "retry", batch], 1, "nothing to run again");
    operator.run(&["batches", "seal", batch]);

    // What operators look after.
    operator.run(&["queues", "pause", "bulk", "--reason", "repairs"]);
    assert!(operator.run(&["queues"]).lines().any(|line| line.starts_with("bulk") && line.contains("yes")));
    operator.run(&["queues", "resume", "bulk"]);
    assert!(operator.run(&["workers"]).contains("alive"));
    operator.fails(&["pins", "set", "github", "20990101_00"], 1, "has no version 20990101_00, but");
    operator.run(&["pins", "set", "github", "20250905_00", "--owner", "user:user-1"]);
    assert!(operator.run(&["pins", "list"]).contains("user:user-1"));
    operator.run(&["pins", "unset", "github", "--owner", "user:user-1"]);
    let set = operator.run(&["pins", "set", "github", "20250905_00"]);
    assert_eq!(set, "github is pinned to 20250905_00 for everybody\n");
    assert_eq!(operator.run(&["pins", "unset", "github"]), "github is not pinned any more\n");
    assert!(operator.run(&["tools", "show", "GITHUB_GET_REPO"]).contains("effect"));
    operator.run(&["accounts", "list", "--owner", "user:user-1"]);
    assert!(operator.run(&["audit-log", "--kind", "pin"]).contains("pin"));
    harness.publish_raw(&[b"{".to_vec()], lapin::BasicProperties::default()).await;
    let rejected = crate::support::wait::until("a rejected message", crate::harness::PATIENCE, async || {
        let said = operator.says(&["rejected", "list", "--json"], "");
        serde_json::from_str::<Value>(&said.out).ok()
    })
    .await;
    let (rejected, corrected) = (rejected["id"].as_str().unwrap(), read("user-1"));
    assert!(operator.run(&["rejected", "show", rejected]).contains("malformed"));
    operator.fails(&["rejected", "requeue", rejected], 1, "stays rejected");
    let requeue = ["rejected", "requeue", rejected, "--body", "-"];
    for (body, code, told) in [
        ("{", 2, "--body is no JSON"),
        (r#"{"user_id": "user-1"}"#, 1, "stays rejected"),
        (&read("user-1").with("queue", "nowhere").to_string(), 1, "is none of the settings"),
        (&corrected.to_string(), 0, "is job"),
    ] {
        let said = operator.says(&requeue, body);
        assert_eq!(said.code, Some(code), "{}{}", said.out, said.err);
        assert!(format!("{}{}", said.out, said.err).contains(told), "{}{}", said.out, said.err);
    }
    assert!(operator.run(&["jobs", "show", corrected.id()]).contains(corrected.id()));
    let body = |which: &str| operator.run(&["rejected", "show", rejected, which]);
    assert_eq!((body("--body").as_str(), body("--corrected")), ("{", corrected.to_string()));
    let shown = operator.json(&["rejected", "show", rejected, "--json"]);
    assert_eq!(shown["corrected_size"], corrected.to_string().len());

    // Keys, with which users do the same about what is theirs.
    let made =
        operator.json(&["keys", "create", "--user", "user-1", "--scope", "read,enqueue,manage", "--json"]);
    let user = Terminal::new().with("ERRAND_API_KEY", made["secret"].as_str().unwrap());
    let at = ["--server", &api.base];
    let run_at = |args: &[&str]| user.says(&[&at[..], args].concat(), "");
    assert_eq!(run_at(&["jobs", "list"]).code, Some(0));
    assert_eq!(run_at(&["workers"]).code, Some(1), "that is the operator's");
    let id = made["id"].as_str().unwrap();
    assert!(operator.run(&["keys", "list", "--owner", "user:user-1"]).contains(id));
    assert!(operator.run(&["keys", "rotate", id, "--overlap", "1h"]).starts_with("errand_"));
    assert_eq!(operator.run(&["keys", "revoke", id]), format!("the key {id} of user:user-1 is revoked\n"));
    crate::support::wait::until("a revoked key is refused", crate::harness::PATIENCE, async || {
        (run_at(&["jobs", "list"]).code == Some(4)).then_some(())
    })
    .await;

    // What needs more than an API, and what the API does not let somebody else say.
    operator.fails(&["prune"], 2, "needs the database itself");
    operator.fails(&["jobs", "cancel", later, "--by", "alice"], 2, "the access key says who decides");
    operator.fails(&["--server", &api.base, "migrate"], 2, "about this host");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_a_server_outlives_its_restart_and_is_told_at_the_end_how_to_look_again() {
    let folder = in_memory("errand-restart-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let mut api = Api::start(&env).await;
    let base = api.base.clone();
    let [long, short] = [(); 2].map(|()| id());
    let wait = |id: &str, wait: &str| {
        let enqueue = ["enqueue", "GITHUB_GET_REPO", "--owner", "user:user-1", "--id", id, wait];
        Process::start(&[&["--server", &base], &enqueue[..]].concat(), &[])
    };
    let mut patient = wait(&long, "--wait=600");
    patient.logged("waiting").await;
    let mut hasty = wait(&short, "--wait=8");
    hasty.logged("waiting").await;
    assert!(api.process.stop().await.success());

    assert_eq!(hasty.ended().await.code(), Some(4), "{}", hasty.log());
    let stored =
        format!("the job {short} is stored; look for it with `errand --server {base} jobs show {short}`");
    assert!(hasty.log().contains(&stored), "{}", hasty.log());
    patient.logged("it is asked again until the time to wait is over").await;

    let _api = Api::listening(base.strip_prefix("http://").unwrap(), &env).await;
    assert!(run(&["jobs", "cancel", &long], &env).status.success());
    assert_eq!(patient.ended().await.code(), Some(1), "it is cancelled: {}", patient.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_due_after_the_wait_says_when() {
    let folder = in_memory("errand-due-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    let due = format!("{:.0}", Timestamp::now() + SignedDuration::from_hours(24));
    let later = ["GITHUB_GET_REPO", "--owner", "user:u", "--run-at", &due, "--wait=0"];
    let at_server = run(&[&["--server", &api.base, "enqueue"], &later[..]].concat(), &env);
    let here = run(&[&["enqueue"], &later[..]].concat(), &env);
    for said in [at_server, here] {
        let err = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{err}");
        assert!(err.contains(&format!("because it is due at {due}")), "{err}");
    }
    // What is no address of errand's is told with one that is.
    let terminal = Terminal::new();
    let https = api.base.replace("http:", "https:");
    terminal.fails(&["--server", &https, "jobs", "list"], 4, "speaks no TLS: use http://");
    terminal.fails(&["--server", &format!("{}/v1", api.base), "jobs", "list"], 2, "leave out the `/v1`");
    terminal.fails(&["--server", "127.0.0.1:8080", "jobs", "list"], 2, "or http://127.0.0.1:8080 where");
}

#[test]
fn contexts_are_named_listed_used_and_removed() {
    let terminal = Terminal::new().with("DATABASE_URL", "sqlite:///nowhere/errand.db");
    let nowhere = "http://127.0.0.1:9";
    assert!(terminal.says(&["context", "list"], "").err.contains("there are no contexts"));
    let secret = "errand_secret-of-prod";
    let set = ["context", "set", "prod", nowhere, "--production", "--api-key-file", "-"];
    assert_eq!(terminal.says(&set, secret).code, Some(0));
    let file = terminal.home.path().join(".config/errand/contexts.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    terminal.run(&["context", "set", "staging", nowhere]);
    let list = terminal.run(&["context", "list"]);
    assert!(list.contains("prod") && list.contains("staging") && !list.contains(secret), "{list}");
    assert!(!terminal.run(&["context", "list", "--json"]).contains(secret));

    // Nothing is asked of a server that is not used.
    terminal.fails(&["jobs", "list"], 4, "/nowhere/errand.db");
    terminal.run(&["context", "use", "staging"]);
    terminal.fails(&["jobs", "list"], 4, "staging (http://127.0.0.1:9) does not answer");
    terminal.fails(&["--context", "local", "jobs", "list"], 4, "/nowhere/errand.db");
    terminal.fails(
        &["jobs", "list", "--context", "absent"],
        3,
        "there is no context `absent`, but prod, staging, local",
    );
    terminal.fails(&["--server", nowhere, "--context", "prod", "jobs", "list"], 2, "cannot be used with");

    // Production asks before changes, and for nothing else.
    let cancel = ["--context", "prod", "jobs", "cancel", "0190b0a0-0000-7000-8000-00000000dead"];
    terminal.fails(&cancel, 2, "add --confirm prod");
    terminal.fails(&[&cancel[..], &["--confirm", "staging"]].concat(), 2, "the context is prod");
    terminal.fails(&[&cancel[..], &["--confirm", "prod"]].concat(), 4, "does not answer");
    terminal.fails(&["--context", "prod", "jobs", "list"], 4, "does not answer");

    terminal.run(&["context", "remove", "staging"]);
    terminal.fails(&["jobs", "list"], 4, "/nowhere/errand.db");
    for (name, says) in
        [("local", "stands for the database"), ("a b", "letters, digits"), ("", "letters, digits")]
    {
        terminal.fails(&["context", "set", name, nowhere], 2, says);
    }
    terminal.fails(&["context", "set", "x", "errand.example.com"], 2, "write https://errand.example.com");
    terminal.fails(&["context", "use", "x"], 3, "there is no context `x`");
    terminal.fails(&["context", "set", "x", nowhere, "--api-key-file", "/nowhere/key"], 3, "/nowhere/key");
    refuses_what_others_may_read(&terminal, &file, secret);
}

fn refuses_what_others_may_read(terminal: &Terminal, file: &Path, secret: &str) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    terminal.fails(&["context", "list"], 3, "others may read the key");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(file, format!("[contexts.prod]\nserver = \"http://x\"\napi_kay = \"{secret}\"\n")).unwrap();
    let said = terminal.says(&["context", "list"], "");
    assert_eq!(said.code, Some(3));
    assert!(said.err.contains("line 3") && !said.err.contains(secret), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_errand_is_told_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut head = [0; 4096];
                let _read = stream.read(&mut head).await;
                let answer = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
                let _written = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let terminal = Terminal::new().with("ERRAND_API_KEY", "hunter2");
    let said = tokio::task::spawn_blocking(move || terminal.says(&["--server", &base, "jobs", "list"], ""))
        .await
        .unwrap();
    assert_eq!(said.code, Some(4), "{}", said.err);
    assert!(
        said.err.contains("HTTP 302, not as errand does") && !said.err.contains("hunter2"),
        "{}",
        said.err
    );
}
