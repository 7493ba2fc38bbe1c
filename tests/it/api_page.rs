//! The blocks of docs/http-api.md, run as they are printed and in their order, against the `errand api` that the page starts.
//!
//! Around them is what the page takes for granted: a worker with the sandbox (`errand dev`), a job and a rejected message
//! with the ID that its examples have, and a `curl` that fails where the answer is an error and prints its status. The block
//! that makes the first access key comes last, because from then on every request needs one.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio};

use errand::{
    app,
    config::{self, Sources},
    job::EnvelopeReason,
};
use errand_testbed::factory::read;
use serde_json::{Value, json};

use crate::{
    cli::decisions::rejected,
    harness::PATIENCE,
    readme::{Desk, Running, blocks_of},
    support::{self, machine, wait::until},
};

const PAGE: &str = include_str!("../../docs/http-api.md");

/// The address that the page names, and the ID and the tag in its examples.
const ADDRESS: &str = "127.0.0.1:8080";
const ID: &str = "0190b0a0-0000-7000-8000-000000000001";
const TAG: &str = "\"0a1b2c3d4e5f60718293a4b5c6d7e8f9\"";

/// What the status is printed after, in front of which there is no line break where the body is empty.
const STATUS: &str = "the status is ";

/// A folder with an `errand api`, its database, and a `curl`.
struct Place {
    desk: Desk,
    address: String,
}

impl Place {
    fn new() -> Self {
        let mut desk = Desk::new();
        let url = format!("sqlite://{}", desk.path().join("errand-dev/errand.db").display());
        for (name, value) in [
            ("DATABASE_URL", url),
            ("COMPOSIO_BASE_URL", format!("http://{}", desk.sandbox)),
            ("COMPOSIO_API_KEY", "ak_test_good".to_owned()),
            ("ERRAND__EVENTS__RECORD", "all".to_owned()),
            ("ERRAND__CALLBACKS__ENABLED", "true".to_owned()),
        ] {
            desk.env.push((name.to_owned(), value));
        }
        let path = desk.path().join("bin/curl");
        let shown = format!("\\n{STATUS}%{{http_code}}\\n");
        let script =
            format!("#!/bin/sh\nPATH=/usr/bin:/bin\nexec curl --fail-with-body -w '{shown}' \"$@\"\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { desk, address: format!("127.0.0.1:{}", machine::free_port()) }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.desk.path().join(name)).unwrap_or_default()
    }

    /// Starts what goes on until the test is over, and waits until its log says that it serves.
    async fn start(&self, command: &str, serves: &str) -> Running {
        let name = command.split_whitespace().nth(1).unwrap();
        let log = fs::File::create(self.desk.path().join(name)).unwrap();
        let lines = format!("exec {}", self.addressed(command.trim()));
        let started = self.desk.terminal(&lines).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let running = Running(started);
        until(&format!("`{command}` says `{serves}`"), PATIENCE, async || {
            self.log(name).contains(serves).then_some(())
        })
        .await;
        running
    }

    fn addressed(&self, lines: &str) -> String {
        lines.replace(ADDRESS, &self.address)
    }

    /// What a terminal shows in which these lines are typed, and whether all of them succeed.
    fn types(&self, lines: &str) -> (bool, String) {
        let output = self.desk.terminal(&self.addressed(lines)).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.success(), text)
    }

    /// The bodies of the answers to the requests of these lines, of which each has its expected status.
    #[track_caller]
    fn answers(&self, lines: &str, expected: &[u16]) -> Vec<String> {
        let (succeeds, text) = self.types(lines);
        assert!(succeeds, "{lines}\n{text}\n{}", self.log("api"));
        let mut bodies = Vec::new();
        let mut statuses = Vec::new();
        let mut body = "";
        for line in text.lines() {
            match line.strip_prefix(STATUS) {
                Some(status) => {
                    statuses.push(status.parse::<u16>().unwrap());
                    bodies.push(std::mem::take(&mut body).to_owned());
                }
                None if line.is_empty() => {}
                None => body = line,
            }
        }
        assert_eq!(statuses, expected, "{lines}\n{text}");
        bodies
    }

    /// Keeps a rejected message with the ID of the examples, which would be a job with another one.
    async fn reject(&self) {
        let env = self.desk.env.iter().cloned().collect();
        let config = config::load(&Sources { file: None, env }).unwrap().config;
        let store = app::open_store(&config).unwrap();
        let body = read("user-1").to_string();
        let message = rejected(ID.parse().unwrap(), body.as_bytes(), EnvelopeReason::NoId);
        store.reject(&[message]).await.unwrap();
        store.close().await;
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_the_page_does_what_the_page_says() {
    let [api, keys, enqueue, batches, reads, change, actions, queues, pins, events, callbacks] =
        blocks_of(PAGE, "sh")[..]
    else {
        panic!("the page has other blocks than those that are run here: {:#?}", blocks_of(PAGE, "sh"));
    };
    assert_eq!(PAGE.matches("\n```\n").count(), 11, "a block in another language");
    let place = Place::new();
    let _dev = place.start("errand dev", "worker ready").await;
    let _api = place.start(api.split('#').next().unwrap(), "the API is served").await;

    let done = place.answers(enqueue, &[200]);
    assert_eq!(parsed(&done[0])["state"], "succeeded");

    // The ID of the batch is in the first answer.
    let (make, watch) = batches.split_at(batches.rfind("curl ").unwrap());
    let made = place.answers(make, &[201]);
    let id = parsed(&made[0])["id"].as_str().unwrap().to_owned();
    assert!(watch.contains("/v1/batches/ID?"), "{watch}");
    let complete = place.answers(&watch.replace("/ID?", &format!("/{id}?")), &[200]);
    assert_eq!(parsed(&complete[0])["counts"]["succeeded"], 2, "{complete:?}");

    let (succeeds, text) = place.types(&format!(
        "errand enqueue GITHUB_GET_REPO --owner user:user-1 --id {ID} --run-at +1h --args '{{\"owner\":\"o\",\"repo\":\"r\"}}'"
    ));
    assert!(succeeds, "{text}");
    let list = parsed(&place.answers(reads, &[200, 200, 200])[0]);
    let listed = &list["items"];
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    assert!(listed[0]["arguments"].is_object() && !listed[0]["result"].is_null(), "{listed}");

    // With a tag that is not the job's nothing is changed.
    let (succeeds, text) = place.types(change);
    assert!(!succeeds && text.contains(&format!("{STATUS}412")), "{text}");
    let client = support::http::client();
    let url = |path: &str| format!("http://{}{path}", place.address);
    let job = client.get(url(&format!("/v1/jobs/{ID}"))).send().await.unwrap();
    let tag = job.headers()["etag"].to_str().unwrap().to_owned();
    assert!(change.contains(TAG), "{change}");
    let changed = place.answers(&change.replace(TAG, &tag), &[200]);
    let changed = parsed(&changed[0]);
    assert_eq!((&changed["queue"], &changed["priority"]), (&json!("bulk"), &json!(5)), "{changed}");

    let previewed = place.answers(actions, &[201]);
    assert_eq!(parsed(&previewed[0])["status"], "previewed");
    place.reject().await;
    let looked = place.answers(queues, &[200; 7]);
    assert_eq!(parsed(&looked[5])["items"][0]["id"], ID);
    assert_eq!(parsed(&looked[6])["new"], true);
    let pinned = place.answers(pins, &[200, 200, 204, 200, 200]);
    assert_eq!(parsed(&pinned[1])["items"][0]["toolkit"], "github");
    assert!(!parsed(&pinned[4])["items"].as_array().unwrap().is_empty(), "{pinned:?}");

    let happened = place.answers(events, &[200, 200, 200]);
    let types = |page: &str| {
        let page = parsed(page);
        page["items"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect::<Vec<_>>()
    };
    for page in &happened[..2] {
        assert!(types(page).contains(&json!("job.succeeded")), "{happened:?}");
    }
    assert!(parsed(&happened[2])["token"].as_str().unwrap().starts_with("errand_token_"), "{happened:?}");

    let called = place.answers(callbacks, &[200; 5]);
    assert_eq!(parsed(&called[1])["items"][0]["url"], parsed(&called[0])["url"]);
    assert!(parsed(&called[2])["secret"].as_str().unwrap().starts_with("whsec_"), "{called:?}");
    assert_eq!(parsed(&called[4]), json!({"deliveries": 0, "next": null}));

    let (succeeds, secret) = place.types(keys);
    assert!(succeeds, "{secret}");
    let secret = secret.lines().find(|line| line.starts_with("errand_")).unwrap();
    until("a request without the key to be refused", PATIENCE, async || {
        let answer = client.get(url("/v1/jobs")).send().await.unwrap();
        (answer.status() == 401).then_some(())
    })
    .await;
    let answer = client.get(url("/v1/jobs")).bearer_auth(secret).send().await.unwrap();
    assert_eq!(answer.status(), 200, "with the key that the page makes");
}
