//! A server that errand tells what became of jobs, with signatures by Standard Webhooks.

use std::{collections::VecDeque, net::Ipv4Addr, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use axum::http::{HeaderMap, StatusCode};
use axum::{Router, body::Bytes, extract::State, routing::post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Mutex};

use crate::word;

/// How far the time of a callback may be from ours, in seconds. What somebody recorded on its way is of no use later.
const TOLERANCE: u64 = 5 * 60;

/// How many callbacks are remembered, because each may come more than once.
const REMEMBERED: usize = 10_000;

struct Receiver {
    secret: hmac::Key,
    /// The newest last. An app keeps them where it keeps what it makes of a callback, in the same transaction.
    known: Mutex<VecDeque<String>>,
}

/// Serves on loopback, for a proxy in front that speaks TLS.
pub(crate) async fn serve(secret: &str, port: u16) -> anyhow::Result<()> {
    let secret = secret.strip_prefix("whsec_").and_then(|secret| STANDARD.decode(secret).ok());
    let secret = secret.filter(|secret| secret.len() >= 24);
    let secret = secret.context("CALLBACK_SECRET is not `whsec_` and base64 of at least 24 bytes")?;
    let receiver = Receiver { secret: hmac::Key::new(hmac::HMAC_SHA256, &secret), known: Mutex::default() };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("callbacks at http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, Router::new().route("/", post(receive)).with_state(Arc::new(receiver))).await?)
}

/// Takes the body as bytes, because these are what was signed.
async fn receive(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(id) = verified(&receiver.secret, &headers, &body) else { return StatusCode::UNAUTHORIZED };
    let Ok(callback) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST };
    let mut known = receiver.known.lock().await;
    if !known.contains(&id) {
        println!("callback: {} {}", word(&callback["type"]), word(&callback["data"]["job_id"]));
        known.push_back(id);
        if known.len() > REMEMBERED {
            known.pop_front();
        }
    }
    StatusCode::NO_CONTENT
}

/// The ID of a callback that has the secret's signature and is not old.
fn verified(secret: &hmac::Key, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    // One that is no text is as good as missing: it signs nothing.
    let header = |name| headers.get(name)?.to_str().ok();
    let (id, sent) = (header("webhook-id")?, header("webhook-timestamp")?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    if now.abs_diff(sent.parse().ok()?) > TOLERANCE {
        return None;
    }
    let signed = [id.as_bytes(), b".", sent.as_bytes(), b".", body].concat();
    // There are several while a secret is replaced.
    let mut signatures = header("webhook-signature")?.split(' ').filter_map(|one| one.strip_prefix("v1,"));
    // `verify` takes as long for one that is nearly right as for any other.
    let is_valid = |tag: Vec<u8>| hmac::verify(secret, &signed, &tag).is_ok();
    signatures.any(|one| STANDARD.decode(one).is_ok_and(is_valid)).then(|| id.to_owned())
}
