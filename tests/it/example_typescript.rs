//! The example in TypeScript, run as its page says.

use std::{
    env, fs,
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{
    api::served_by,
    event_streams::RECORDS,
    examples::{SERVES, believes_what_is_signed, followed, output, told_once},
    harness::Harness,
    openapi::embedded,
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

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_believes_only_callbacks_that_are_signed() {
    compiled().await;
    believes_what_is_signed(|variables| node(&["dist/callbacks.js"], variables)).await;
}
