//! The example in TypeScript, run as its page says.

use std::{
    env, fs,
    process::{Command, Stdio},
    sync::OnceLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use ring::hmac;
use serde_json::json;

use crate::{
    api::served_by,
    event_streams::RECORDS,
    examples::{SERVES, followed, output, told_once},
    harness::{Harness, PATIENCE},
    openapi::embedded,
    support::{self, wait::until},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/typescript");

const FOLLOWS: &str = "import { Errand } from './dist/errand.js';\n\
    for await (const event of new Errand(process.argv[1]).events({ batch: process.argv[2] }))\n\
    console.log(event.type, event.job_id);\n";

/// Node in the folder of the example, with the packages that `tests/run` has installed there.
fn node(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new("node");
    command.current_dir(FOLDER).args(arguments).stdin(Stdio::null());
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).envs(variables.iter().copied());
    command
}

/// The example is compiled, once for all tests.
async fn compiled() {
    static COMPILED: OnceLock<()> = OnceLock::new();
    let compile = || {
        let done = node(&["node_modules/typescript/bin/tsc"], &[]).output().expect("a Node");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "tests/run installs what the example needs\n{said}");
    };
    tokio::task::spawn_blocking(move || COMPILED.get_or_init(compile)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_does_what_its_page_says() {
    compiled().await;
    let harness = Harness::new("shop-typescript", "").await;
    let api = served_by(harness.worker(&[SERVES, (RECORDS[0], RECORDS[1])]).await).await;
    let variables = [("ERRAND_URL", api.base.as_str()), ("AMQP_URL", harness.vhost.amqp_url.as_str())];
    let done = output(node(&["dist/shop.js"], &variables)).await;
    let (said, failed) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{said}{failed}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("one job: succeeded {") && lines[0].contains(r#""full_name":"o/first""#),
        "{said}"
    );
    assert_eq!(lines.iter().filter(|line| line.starts_with("event: job.succeeded ")).count(), 5, "{said}");
    assert_eq!(lines[6].trim_end(), "event: batch.completed", "{said}");
    assert!(lines[7].starts_with("batch: {") && lines[7].contains(r#""succeeded":5"#), "{said}");
    assert_eq!(lines[8..], ["reply: order-17 final succeeded"], "{said}");
    harness.all_ran_once(7).await;

    let asks = "import { Errand } from './dist/errand.js'; await new Errand(process.env.ERRAND_URL).run({})";
    let refused = output(node(&["--input-type=module", "--eval", asks], &variables)).await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("Refused") && told.contains("`user_id`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_follows_a_batch_through_lost_connections() {
    compiled().await;
    let follows = |url: &str, id: &str| node(&["--input-type=module", "--eval", FOLLOWS, url, id], &[]);
    told_once(followed("shop-ts-cut", follows).await.lines(), "null");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_has_the_types_of_the_api() {
    let (api, folder) = embedded().await;
    let made = folder.path().join("api.d.ts");
    let (document, to) = (format!("{}/openapi.json", api.base), made.display().to_string());
    let generator = "node_modules/openapi-typescript/bin/cli.js";
    let done = output(node(&[generator, &document, "--output", &to], &[])).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let known = fs::read_to_string(format!("{FOLDER}/api.d.ts")).unwrap();
    assert!(fs::read_to_string(made).unwrap() == known, "`npm run types` in {FOLDER} makes them anew");
}

/// What a header says of a callback that is signed with this secret.
fn signature(secret: &[u8], id: &str, seconds: i64, body: &str) -> String {
    let tag =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(tag))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_believes_only_callbacks_that_are_signed() {
    compiled().await;
    let (secret, other) = (&[7_u8; 32], &[8_u8; 32]);
    let text = format!("whsec_{}", BASE64.encode(secret));
    let file = tempfile::NamedTempFile::new().unwrap();
    let command = node(&["dist/callbacks.js"], &[("CALLBACK_SECRET", &text), ("CALLBACK_PORT", "0")]);
    let mut command = tokio::process::Command::from(command);
    let _server = command.stdout(file.reopen().unwrap()).kill_on_drop(true).spawn().unwrap();
    let said = || fs::read_to_string(file.path()).unwrap();
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
