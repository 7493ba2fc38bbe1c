//! The example program in Rust, run as its page says. Its callbacks are tested in its own package.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use uuid::Uuid;

use crate::{
    api::served_by,
    event_streams::RECORDS,
    examples::{SERVES, followed, output, told_once},
    harness::Harness,
};

/// The example with these variables. Cargo builds it for its own tests, beside errand.
fn example(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_errand")).with_file_name("shop");
    assert!(program.exists(), "test the whole workspace, or build it: cargo build -p errand-shop");
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_rust_does_what_its_page_says() {
    let harness = Harness::new("shop-rust", "").await;
    let api = served_by(harness.worker(&[SERVES, (RECORDS[0], RECORDS[1])]).await).await;
    let variables = [("ERRAND_URL", api.base.as_str()), ("AMQP_URL", harness.vhost.amqp_url.as_str())];
    let done = output(example(&[], &variables)).await;
    let (said, failed) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{said}{failed}");
    let lines: Vec<&str> = said.lines().collect();
    let first = lines[0].strip_prefix("one job: succeeded {").unwrap();
    assert!(first.contains(r#""full_name":"o/first""#), "{said}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("event: job.succeeded ")).count(), 5, "{said}");
    assert!(lines[6].starts_with("event: batch.completed - "), "{said}");
    assert!(lines[7].starts_with("batch: {") && lines[7].contains(r#""succeeded":5"#), "{said}");
    assert_eq!(lines[8..], ["reply: order-17 final succeeded"], "{said}");
    harness.all_ran_once(7).await;

    // Once more behind one of the events, as after a restart.
    let batch = api.get("/v1/batches").await.1["items"][0]["id"].as_str().unwrap().to_owned();
    let cursor = lines[4].rsplit(' ').next().unwrap();
    let rest = output(example(&["events", &format!("batch={batch}"), cursor], &variables)).await;
    let rest = String::from_utf8(rest.stdout).unwrap();
    let events: Vec<&str> = rest.lines().collect();
    assert_eq!(events.len(), 2, "{rest}");
    assert_eq!(without_cursors(&events), without_cursors(&lines[5..7]));

    let refused = output(example(&["events", &format!("batch={}", Uuid::new_v4())], &variables)).await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.starts_with("Error: refused: 404 "), "{told}");
    assert!(told.contains("there is no batch with this ID"), "{told}");
}

/// Lines of events, whose cursors are other ones each time.
fn without_cursors<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_rust_follows_a_batch_through_lost_connections() {
    let follows = |url: &str, id: &str| example(&["events", &format!("batch={id}")], &[("ERRAND_URL", url)]);
    let said = followed("shop-rust-cut", follows).await;
    let lines: Vec<&str> = said.lines().collect();
    let told = without_cursors(&lines);
    told_once(told.iter().filter_map(|line| line.strip_prefix("event: ")), "-");
}
