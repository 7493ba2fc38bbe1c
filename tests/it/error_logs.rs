//! Log lines of errors: they say the causes too, and no secret.

use std::path::{Path, PathBuf};

use errand_testbed::factory::{Envelope as _, read, send};

use crate::{
    harness::{Harness, PATIENCE},
    support::{self, wait::until},
};

/// Names of errors in log macros.
const ERRORS: [&str; 3] = ["error", "cause", "err"];

#[test]
fn no_log_line_prints_an_error_without_its_causes() {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let (mut calls, mut faults) = (0, Vec::new());
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        for call in log_calls(&source) {
            calls += 1;
            if prints_bare_error(call) {
                faults.push(format!("{}: {call}", file.display()));
            }
        }
    }
    assert!(calls > 50, "only {calls} log macros were found");
    assert!(faults.is_empty(), "print errors by `failure::chain`:\n{}", faults.join("\n"));
}

#[test]
fn causes_have_one_name_in_the_log_and_times_are_numbers() {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut faults = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        // A number of more than 64 bits is logged as a text.
        let is_fault = |call: &&str| {
            call.contains("as_millis()")
                || ["cause = ", "err = ", "problem = "].iter().any(|name| call.contains(name))
        };
        faults.extend(
            log_calls(&source).into_iter().filter(is_fault).map(|call| format!("{}: {call}", file.display())),
        );
    }
    assert!(
        faults.is_empty(),
        "name causes `error`, and write times by `clock::millis`:\n{}",
        faults.join("\n")
    );
}

#[test]
fn bare_errors_in_log_macros_are_noticed() {
    let calls = log_calls(
        r#"a(")"); tracing::warn!(%error, "a ) b"); tracing::info!(
            n = 1, error = ?cause, "x"); tracing::debug!("why: {error}"); tracing::error!(error = error.to_string());
           tracing::warn!(error = %chain(&error), kind = error.kind().as_str(), "an error (of any kind)");"#,
    );
    assert_eq!(calls.len(), 5);
    assert_eq!(
        calls.iter().map(|call| prints_bare_error(call)).collect::<Vec<_>>(),
        [true, true, true, true, false]
    );
}

/// All Rust files below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The arguments of each log macro.
fn log_calls(source: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    for level in ["trace", "debug", "info", "warn", "error"] {
        let call = format!("tracing::{level}!(");
        calls.extend(source.match_indices(&call).map(|(at, _)| arguments(&source[at + call.len()..])));
    }
    calls.sort_by_key(|call| call.as_ptr());
    calls
}

/// Everything up to the parenthesis that closes.
fn arguments(source: &str) -> &str {
    let (mut depth, mut in_text, mut escaped) = (1, false, false);
    for (at, c) in source.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            '(' if !in_text => depth += 1,
            ')' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &source[..at];
        }
    }
    source
}

/// Whether an error stands anywhere but in `chain`, where only a part of it is used, or as the name of a field.
fn prints_bare_error(call: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut at, mut in_text) = (0, false);
    while let Some(next) = call[at..].find(|c: char| is_name(c) || c == '"') {
        let (before, from) = call.split_at(at + next);
        let name = &from[..from.find(|c| !is_name(c)).unwrap_or(from.len())];
        at = before.len() + name.len().max(1);
        if name.is_empty() {
            in_text = !in_text;
            continue;
        }
        let after = &call[at..];
        let told = if in_text {
            !before.ends_with('{')
        } else {
            before.trim_end_matches(['&', '*']).ends_with("chain(")
                || after.starts_with(" = ")
                || after.starts_with('.') && !after.starts_with(".to_string")
        };
        if ERRORS.contains(&name) && !told {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_database_goes_away_says_why_and_no_password() {
    let harness = Harness::new("causes", "").await;
    let port = harness.database.url.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let proxy = support::start_proxy(port).await;
    let url = proxy.url(&harness.database.url).unwrap().replace("//errand@", "//errand:hunter2@");
    let heartbeat = ("ERRAND__WORKER__HEARTBEAT_SECS", "1");
    let worker = harness.worker(&[("DATABASE_URL", url.as_str()), heartbeat]).await;
    let mark = worker.log().len();
    proxy.cut().await.unwrap();
    let parts = ["the store does not take heartbeats", "the relay cannot"];
    let lines = until("both parts say so", PATIENCE, async || {
        let log = worker.log()[mark..].to_owned();
        parts.iter().all(|part| log.contains(part)).then_some(log)
    })
    .await;
    let host = proxy.url("postgres://127.0.0.1:1/").unwrap().replace("postgres://", "").replace('/', "");
    for line in lines.lines().filter(|line| line.contains("the database cannot be reached")) {
        assert!(
            line.contains(&format!("{host}: the database cannot be reached: error communicating")),
            "{line}"
        );
    }
    assert!(lines.contains("the database cannot be reached"), "{lines}");
    assert!(!worker.log().contains("hunter2"));
}

/// Everything that a level can ask for, of all who could write what they send.
const CHATTY: &str = "trace,errand=trace,lapin=trace,sqlx=trace,sqlx_core=trace,sqlx_postgres=trace,hyper=trace,\
    hyper_util=trace,h2=trace,reqwest=trace,rustls=trace,tokio=trace";

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_libraries_are_asked_for_everything_logs_no_secret_and_no_customers_data() {
    let harness = Harness::new("chatty", "").await;
    let amqp_url = harness.vhost.amqp_url.clone();
    let login = amqp_url.split_once("://").unwrap().1.split_once('@').unwrap().0;
    let (user, password) = login.split_once(':').unwrap();
    let database = harness.database.url.replace("//errand@", "//errand:hunter2@");
    for http_version in ["1.1", "2"] {
        let settings = [
            ("ERRAND__LOG__LEVEL", CHATTY),
            ("ERRAND__COMPOSIO__HTTP_VERSION", http_version),
            ("DATABASE_URL", database.as_str()),
        ];
        let mut worker = harness.worker(&settings).await;
        let jobs = [send("user-1"), read("u-alice")];
        harness.publish(&jobs).await;
        for job in &jobs {
            harness.job_in(job.id(), &["succeeded"]).await;
        }
        assert!(worker.stop().await.success());
        let log = worker.log();
        assert!(log.contains("\"lapin::") && log.contains("\"hyper"), "nothing was asked for: {log}");
        for secret in ["hunter2", password, user, "ak_test_good", "ann@example.com", "u-alice"] {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret}");
        }
    }
}
