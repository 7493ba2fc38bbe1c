//! The part of the example that needs no errand: callbacks, signed here by hand. The rest is tested with errand, in
//! `tests/it/example_rust.rs` of the repository, by the program that cargo builds for these tests.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Client;
use ring::hmac;
use serde_json::json;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A running `shop callbacks`. Killed when it is dropped.
struct Shop {
    child: Child,
    said: BufReader<ChildStdout>,
    url: String,
    client: Client,
}

impl Shop {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command.arg("callbacks").env_clear().envs([("CALLBACK_SECRET", SECRET), ("CALLBACK_PORT", "0")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        said.read_line(&mut first).unwrap();
        let url = first.trim_end().strip_prefix("callbacks at ").unwrap().to_owned();
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        Self { child, said, url, client }
    }

    /// The status of the answer to a callback.
    async fn tell(&self, id: &str, sent: u64, signature: &str, body: &str) -> u16 {
        let request = self.client.post(&self.url).header("webhook-id", id).header("webhook-timestamp", sent);
        let request = request.header("webhook-signature", signature).body(body.to_owned());
        request.send().await.unwrap().status().as_u16()
    }

    /// All that it has printed.
    fn end(mut self) -> String {
        self.child.kill().unwrap();
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn sign(secret: &str, id: &str, sent: u64, body: &str) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    format!("v1,{}", STANDARD.encode(hmac::sign(&key, format!("{id}.{sent}.{body}").as_bytes())))
}

fn callback(kind: &str, job: Option<&str>) -> String {
    json!({"type": kind, "timestamp": "2026-11-30T09:12:44.120391Z", "data": {"type": kind, "job_id": job}})
        .to_string()
}

#[test]
fn what_is_signed_here_has_the_signature_of_the_standard() {
    // An example of its libraries.
    let body = r#"{"email":"test@example.com","username":"test_user"}"#;
    let signed = sign(SECRET, "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body);
    assert_eq!(signed, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
}

#[tokio::test]
async fn a_callback_is_told_once_however_often_it_comes() {
    let shop = Shop::start();
    let (one, other) = (callback("job.succeeded", Some("job-1")), callback("batch.completed", None));
    let sent = now();
    // The same once more, by its time a minute later.
    for sent in [sent, sent + 60] {
        assert_eq!(shop.tell("one", sent, &sign(SECRET, "one", sent, &one), &one).await, 204);
    }
    // While its secret is replaced, errand signs with both.
    let signed = sign(SECRET, "other", sent, &other);
    let both = format!("v1,{} v1a,{} {signed}", STANDARD.encode([7; 32]), STANDARD.encode([7; 64]));
    assert_eq!(shop.tell("other", sent, &both, &other).await, 204);
    assert_eq!(shop.end(), "callback: job.succeeded job-1\ncallback: batch.completed -\n");
}

#[tokio::test]
async fn what_errand_has_not_signed_or_not_lately_is_refused() {
    let shop = Shop::start();
    let (body, sent) = (callback("job.succeeded", Some("job-1")), now());
    let signed = sign(SECRET, "one", sent, &body);
    assert_eq!(shop.tell("one", sent, &signed, &body.replace("job-1", "job-2")).await, 401);
    assert_eq!(shop.tell("two", sent, &signed, &body).await, 401);
    assert_eq!(shop.tell("one", sent + 1, &signed, &body).await, 401);
    assert_eq!(
        shop.tell("one", sent, &sign("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oE", "one", sent, &body), &body)
            .await,
        401
    );
    for wrong in ["", "v1,", "v1,not base64", signed.trim_start_matches("v1,"), &signed[..12]] {
        assert_eq!(shop.tell("one", sent, wrong, &body).await, 401, "{wrong}");
    }
    for sent in [sent - 301, sent + 330] {
        assert_eq!(shop.tell("one", sent, &sign(SECRET, "one", sent, &body), &body).await, 401, "{sent}");
    }
    let bare = shop.client.post(&shop.url).body(body.clone()).send().await.unwrap();
    assert_eq!(bare.status(), 401);
    // None of these was taken for the one that comes then.
    assert_eq!(shop.tell("one", sent, &signed, &body).await, 204);
    assert_eq!(shop.end(), "callback: job.succeeded job-1\n");
}

#[test]
fn without_a_secret_it_serves_nothing() {
    for (secret, told) in [(None, "CALLBACK_SECRET is missing"), (Some("whsec_AAAA"), "24 bytes")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command.arg("callbacks").env_clear().envs(secret.map(|secret| ("CALLBACK_SECRET", secret)));
        let done = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && said.contains(told), "{said}");
    }
}
