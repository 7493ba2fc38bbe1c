//! The example programs, run as their pages say.

use std::process::{Command, Output, Stdio};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use errand_testbed::factory::{read, spread};
use jiff::Timestamp;
use ring::hmac;
use serde_json::{Value, json};

use crate::{
    api::served_by,
    event_streams::RECORDS,
    harness::{Harness, PATIENCE, port, python_path},
    support::{self, wait::until},
};

pub(crate) const SERVES: (&str, &str) = ("ERRAND__API__LISTEN", "127.0.0.1:0");

/// Follows the events of a batch, and says how far it is by the lines that it prints.
const FOLLOWS: &str = "import sys\nfrom shop import Errand\nfor event in Errand(sys.argv[1]).events(f'batch={sys.argv[2]}'):\n    \
    print(event['type'], event['job_id'], flush=True)\n";

/// The example in Python with these variables.
fn example(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(python_path());
    command.current_dir(format!("{}/examples/python", env!("CARGO_MANIFEST_DIR")));
    command.args(["-B"]).args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

pub(crate) async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_python_does_what_its_page_says() {
    let harness = Harness::new("shop-python", "").await;
    let api = served_by(harness.worker(&[SERVES, (RECORDS[0], RECORDS[1])]).await).await;
    let variables = [("ERRAND_URL", api.base.as_str()), ("AMQP_URL", harness.vhost.amqp_url.as_str())];
    let done = output(example(&["shop.py"], &variables)).await;
    let (said, failed) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{said}{failed}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("one job: succeeded {") && lines[0].contains("'full_name': 'o/first'"),
        "{said}"
    );
    assert_eq!(lines.iter().filter(|line| line.starts_with("event: job.succeeded ")).count(), 5, "{said}");
    assert_eq!(lines[6].trim_end(), "event: batch.completed", "{said}");
    assert!(lines[7].starts_with("batch: {") && lines[7].contains("'succeeded': 5"), "{said}");
    assert_eq!(lines[8..], ["reply: order-17 final succeeded"], "{said}");
    harness.all_ran_once(7).await;

    // Without a server, and with what the server refuses.
    let refused =
        output(example(&["-c", "from shop import *; Errand(os.environ['ERRAND_URL']).run({})"], &variables))
            .await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && told.contains("shop.Refused: ") && told.contains("`user_id`"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_python_follows_a_batch_through_lost_connections() {
    let said = followed("shop-cut", |url, id| example(&["-c", FOLLOWS, url, id], &[])).await;
    told_once(said.lines(), "None");
}

/// That each event of a batch of fifteen jobs is told once, as `type job`. For a job that there is not, each language has its word.
pub(crate) fn told_once<'a>(lines: impl Iterator<Item = &'a str>, none: &str) {
    let lines: Vec<&str> = lines.collect();
    let mut jobs: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("job.succeeded ")).collect();
    let told = jobs.len();
    jobs.sort_unstable();
    jobs.dedup();
    let last = format!("batch.completed {none}");
    assert_eq!((told, jobs.len(), lines.last()), (15, 15, Some(&last.as_str())), "{lines:?}");
}

/// What a program says that follows a batch of fifteen jobs at this address, and whose connection is cut twice: a line for each
/// event.
pub(crate) async fn followed(hint: &str, program: impl FnOnce(&str, &str) -> Command) -> String {
    let harness = Harness::new(hint, "").await;
    let api = served_by(harness.worker(&[SERVES, (RECORDS[0], RECORDS[1])]).await).await;
    let proxy = support::start_proxy(port(&api.base)).await;
    let url = proxy.url(&api.base).unwrap().trim_end_matches('/').to_owned();
    // It stays open until all has been told that comes before the cuts.
    let (_, batch) = api.post("/v1/batches", &json!({"items": spread(5, read), "sealed": false})).await;
    let id = batch["id"].as_str().unwrap().to_owned();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut child = program(&url, &id).stdout(file.reopen().unwrap()).spawn().unwrap();
    let said = || std::fs::read_to_string(file.path()).unwrap();
    let mut items = 5;
    for _ in 0..2 {
        until("all is told", PATIENCE, async || (said().lines().count() == items).then_some(())).await;
        proxy.cut().await.unwrap();
        let more: Vec<String> = spread(5, read).iter().map(Value::to_string).collect();
        let added = api.request(reqwest::Method::POST, &format!("/v1/batches/{id}/items?from={items}"));
        let added = added.header("content-type", "application/x-ndjson").body(more.join("\n")).send().await;
        assert_eq!(added.unwrap().status(), 201);
        items += 5;
        harness.counts("state = 'succeeded'", items as u64).await;
        proxy.heal().await.unwrap();
    }
    api.post(&format!("/v1/batches/{id}/seal"), &json!({})).await;
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert!(ended.success());
    said()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_python_believes_only_callbacks_that_are_signed() {
    believes_what_is_signed(|variables| example(&["callbacks.py"], variables)).await;
}

/// What a header says of a callback that is signed with this secret.
fn signature(secret: &[u8], id: &str, seconds: i64, body: &str) -> String {
    let tag =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(tag))
}

/// That a program which receives callbacks tells of each that is signed once, and refuses others. It says where it listens, first of all.
pub(crate) async fn believes_what_is_signed(program: impl FnOnce(&[(&str, &str)]) -> Command) {
    let (secret, other) = (&[7_u8; 32], &[8_u8; 32]);
    let text = format!("whsec_{}", BASE64.encode(secret));
    let file = tempfile::NamedTempFile::new().unwrap();
    let command = program(&[("CALLBACK_SECRET", &text), ("CALLBACK_PORT", "0")]);
    let mut command = tokio::process::Command::from(command);
    let _server = command.stdout(file.reopen().unwrap()).kill_on_drop(true).spawn().unwrap();
    let said = || std::fs::read_to_string(file.path()).unwrap();
    let url = until("it listens", PATIENCE, async || {
        said().strip_suffix('\n')?.strip_prefix("listening on ").map(str::to_owned)
    })
    .await;

    let body = |job: &str| {
        let data = json!({"id": "e", "type": "job.succeeded", "job_id": job, "tool": "T\u{e9}"});
        json!({"type": "job.succeeded", "timestamp": "2026-11-30T09:12:44Z", "data": data}).to_string()
    };
    let client = support::http::client();
    let post = async |id: &str, seconds: i64, signature: &str, body: &str| {
        let request = client.post(&url).body(body.to_owned());
        let request = request.header("webhook-id", id).header("webhook-timestamp", seconds);
        request.header("webhook-signature", signature).send().await.unwrap().status().as_u16()
    };
    let (now, one, two) = (Timestamp::now().as_second(), body("one"), body("two"));
    let right = signature(secret, "e-1", now, &one);
    assert_eq!(post("e-1", now, &right, &one).await, 204);
    // Again, as after a lost answer: at another time, with the same ID.
    assert_eq!(post("e-1", now - 1, &signature(secret, "e-1", now - 1, &one), &one).await, 204);
    // While the secret is changed there are two.
    let both = format!("{} {}", signature(other, "e-2", now, &two), signature(secret, "e-2", now, &two));
    assert_eq!(post("e-2", now, &both, &two).await, 204);

    assert_eq!(post("e-1", now, &right, &two).await, 401, "another body");
    assert_eq!(post("e-3", now, &right, &one).await, 401, "another ID");
    assert_eq!(post("e-1", now - 1, &right, &one).await, 401, "another time");
    let old = now - 310;
    assert_eq!(post("e-3", old, &signature(secret, "e-3", old, &two), &two).await, 401, "an old one");
    assert_eq!(post("e-3", now, &signature(other, "e-3", now, &two), &two).await, 401, "another secret");
    let unsigned = client.post(&url).body(two).send().await.unwrap();
    assert_eq!(unsigned.status().as_u16(), 401);
    let lines = said();
    let told: Vec<&str> = lines.lines().skip(1).collect();
    assert_eq!(told, ["callback: job.succeeded one", "callback: job.succeeded two"]);
}
