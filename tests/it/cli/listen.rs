//! The receiver of callbacks for developers.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
};

use errand::callback::{Secret, sign};
use jiff::Timestamp;
use reqwest::{Client, RequestBuilder};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{NOBODY, Place};
use crate::{
    harness::PATIENCE,
    support::{http, wait::until},
};

const VARIABLE: &str = "ERRAND_CALLBACK_SECRET";

/// A running `errand listen` whose output is kept. It is killed when it is dropped.
struct Listening {
    place: Place,
    child: Child,
    url: String,
    client: Client,
}

impl Listening {
    async fn start(place: Place, args: &[&str]) -> Self {
        let file = |name: &str| File::create(place.folder.path().join(name)).unwrap();
        let mut command = place.command(&[&["listen", "--port", "0"], args].concat());
        let child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        let mut listening = Self { place, child, url: String::new(), client: http::client() };
        listening.url = until("it listens", PATIENCE, async || {
            let said = listening.said("err");
            let (_, rest) = said.split_once("listening on ")?;
            Some(rest.split_once(' ')?.0.to_owned())
        })
        .await;
        listening
    }

    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.place.folder.path().join(name)).unwrap()
    }

    fn post(&self, body: &str) -> RequestBuilder {
        self.client.post(format!("{}/any/path", self.url)).body(body.to_owned())
    }

    fn signed(&self, by: &Secret, id: &str, at: i64, body: &str) -> RequestBuilder {
        let signature = sign(&[by], id, at, body.as_bytes());
        let headers =
            [("webhook-id", id), ("webhook-timestamp", &at.to_string()), ("webhook-signature", &signature)];
        headers.into_iter().fold(self.post(body), |request, (name, value)| request.header(name, value))
    }

    /// Ends it as Ctrl-C does, and returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

fn secret() -> Secret {
    Secret::generate().unwrap()
}

fn text(secret: &Secret) -> String {
    secret.to_text().expose_secret().to_owned()
}

/// What is sent of a job that has succeeded, with something in it that no line has.
fn callback() -> String {
    json!({
        "type": "job.succeeded", "timestamp": "2026-11-30T09:12:44Z",
        "data": {
            "owner": {"kind": "user", "id": "u-alice"}, "job_id": NOBODY, "batch_id": null,
            "job": {"id": NOBODY, "state": "succeeded", "result": {"of": "the customer"}},
        },
    })
    .to_string()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_by_one_of_the_secrets_is_printed_and_nothing_else_is() {
    let [old, new, other] = [(); 3].map(|()| secret());
    let place = Place::empty().set(VARIABLE, &format!("{}, {}", text(&old), text(&new)));
    let mut listening = Listening::start(place, &[]).await;
    let (body, now) = (callback(), now());
    assert_eq!(status(listening.signed(&old, "a", now, &body)).await, 204);
    assert_eq!(status(listening.signed(&new, "b", now, &body)).await, 204);
    assert_eq!(status(listening.signed(&new, "a", now, &body)).await, 204);
    let of_owner = r#"{"type":"callback.disabled","data":{"owner":{"kind":"org","id":"org-7"},"job":null}}"#;
    assert_eq!(status(listening.signed(&new, "c", now, of_owner)).await, 204);

    for (request, code, why) in [
        (listening.signed(&other, "d", now, &body), 401, "no signature is by one of the secrets"),
        (listening.signed(&old, "d", now - 600, &body), 401, "the timestamp is too old"),
        (listening.post(&body), 401, "there is no header `webhook-id`"),
        (listening.signed(&old, "d", now, "{\"the customer\""), 400, "no callback of errand's"),
        (listening.signed(&old, "d", now, &"x".repeat(1024 * 1024 + 1)), 413, "more than 1048576 bytes"),
        (listening.client.get(&listening.url), 405, "with POST"),
    ] {
        let code_of = status(request).await;
        let last = listening.said("err").lines().last().unwrap().to_owned();
        assert!(code_of == code && last.contains(&format!("answered with {code}: ")), "{code_of}: {last}");
        assert!(last.contains(why), "{why:?} is not in {last}");
    }
    assert_eq!(listening.stop(), Some(0));

    let out = listening.said("out");
    let lines: Vec<_> = out.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    let event = format!("job.succeeded  {NOBODY}  succeeded");
    let expected =
        [event.clone(), event.clone(), format!("{event}  again"), "callback.disabled  org:org-7  -".into()];
    assert_eq!(lines, expected, "{out}");
    let all = out + &listening.said("err");
    for hidden in [text(&old), text(&new), "the customer".into(), "whsec_".into()] {
        assert!(!all.contains(&hidden), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_nothing_is_verified_which_is_said() {
    let listening = Listening::start(Place::empty(), &[]).await;
    assert!(listening.said("err").contains("nothing is verified: set ERRAND_CALLBACK_SECRET"));
    assert_eq!(status(listening.post(&callback())).await, 204);
    assert!(listening.said("out").ends_with("  succeeded  not verified\n"), "{}", listening.said("out"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_printed_whole_and_answered_as_it_is_asked_for() {
    let secret = secret();
    let place = Place::empty();
    let file = place.file("secret", &format!("{}\n", text(&secret)));
    let listening = Listening::start(place, &["--secret-file", &file, "--json", "--answer", "503"]).await;
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&callback()).unwrap()).unwrap();
    assert_eq!(status(listening.signed(&secret, "a", now(), &pretty)).await, 503);
    assert_eq!(status(listening.post(&pretty)).await, 401);
    let out = listening.said("out");
    assert_eq!(out.lines().count(), 1, "{out}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap().to_string(), callback());
}

#[test]
fn what_cannot_be_used_is_refused_at_the_start_and_no_secret_is_quoted() {
    let good = text(&secret());
    for wrong in
        ["hunter2", "whsec_hunter2", &format!("{good} whsec_aHVudGVyMg=="), &format!("{good};{good}")]
    {
        let ran = Place::empty().set(VARIABLE, wrong).run(&["listen", "--port", "0"]);
        let ran = ran.fails(3, "a secret in ERRAND_CALLBACK_SECRET ");
        assert!(!ran.err.contains(&good) && !ran.err.contains("aHVudGVyMg"), "{ran:?}");
    }
    let place = Place::empty().set(VARIABLE, &good);
    let [empty, wrong] = [("empty", ""), ("wrong", "hunter2")].map(|(name, text)| place.file(name, text));
    for (args, code, says) in [
        (&["--secret-file", "/nowhere/secret"][..], 2, "/nowhere/secret cannot be read"),
        (&["--secret-file", &empty], 2, "is empty"),
        (&["--secret-file", &wrong], 2, "does not begin with `whsec_`"),
    ] {
        place.run(&[&["listen", "--port", "0"], args].concat()).fails(code, says);
    }
    for answer in ["199", "600", "ok"] {
        let ran = place.run(&["listen", "--answer", answer]).exits(2);
        assert!(ran.err.contains("write a status from 200 to 599"), "{ran:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    place.run(&["listen", "--port", &port]).fails(3, "choose another port with --port");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_where_nobody_reads_what_it_prints() {
    let place = Place::empty();
    let (reader, writer) = std::io::pipe().unwrap();
    let err = place.folder.path().join("err");
    let mut command = place.command(&["listen", "--port", "0"]);
    let mut child =
        command.stdout(writer).stderr(File::create(&err).unwrap()).stdin(Stdio::null()).spawn().unwrap();
    drop((reader, command));
    let url = until("it listens", PATIENCE, async || {
        let said = std::fs::read_to_string(&err).unwrap();
        Some(said.split_once("listening on ")?.1.split_once(' ')?.0.to_owned())
    })
    .await;
    let sent = http::client().post(url).body(callback()).send().await;
    let ended = until("it ends", PATIENCE, async || child.try_wait().unwrap()).await;
    assert_eq!((ended.code(), sent.unwrap().status().as_u16()), (Some(0), 204));
}
