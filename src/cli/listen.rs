//! `errand listen`: a receiver of callbacks on this host, to see what errand sends while an app is made.
//!
//! It listens on loopback, verifies what comes, prints a line for it, and keeps nothing but which IDs came. It does not know what
//! is sent to others, and stands in for no receiver that has to lose nothing.

use std::{
    collections::{HashSet, VecDeque},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::{Body, HttpBody as _, to_bytes},
    extract::State,
    http::{HeaderMap, Method, Request, StatusCode},
};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    exit,
    output::{self, ToldOwner},
};
use crate::{
    callback::{Secret, verify},
    secret_file,
    sync::lock,
};

/// The variable of the environment with the secrets.
pub(super) const SECRET: &str = "ERRAND_CALLBACK_SECRET";

/// The most bytes of a body.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests that are under way have for their answer when it is told to stop.
const ENDING: Duration = Duration::from_secs(2);

/// How many IDs are remembered, because each callback may come more than once.
const REMEMBERED: usize = 10_000;

const EXAMPLES: &str = "\
Examples:
  export ERRAND_CALLBACK_SECRET=$(errand callbacks secret --owner user:u-alice)
  errand listen
  errand listen --json | jq .data.job.result
  errand listen --answer 503

It listens on 127.0.0.1 alone, at any path. `errand dev` sends callbacks there; workers do if
callbacks.allowed_networks says so. A callback whose signature is not by one of the secrets is
answered with 401, and one line on standard error says why.";

/// Receives callbacks on this host, verifies them, and prints a line for each.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The port of 127.0.0.1 to listen on; 0 takes any free one.
    #[arg(long, default_value_t = 8099, value_name = "PORT")]
    port: u16,
    /// Read the secrets from this file instead of ERRAND_CALLBACK_SECRET, with blanks or commas between them.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Answer with this status what is verified, such as 503 to see it sent again.
    #[arg(long, value_name = "STATUS", value_parser = status, default_value = "204")]
    answer: StatusCode,
    /// Print the whole body of each, on one line.
    #[arg(long)]
    json: bool,
}

/// Listens until `stop`. `secret` is what the environment says.
pub(super) async fn run(args: Args, secret: Option<&str>, stop: CancellationToken) -> anyhow::Result<()> {
    let secrets = match &args.secret_file {
        Some(path) => {
            let file = path.display();
            let text = secret_file::read(path).map_err(|error| exit::usage(format!("{file} {error}")))?;
            secrets(&text).map_err(|why| exit::usage(format!("a secret in {file} {why}")))?
        }
        None => secrets(secret.unwrap_or_default())
            .map_err(|why| exit::configuration(format!("a secret in {SECRET} {why}")))?,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await.with_context(|| {
        format!("cannot listen on 127.0.0.1:{}; choose another port with --port", args.port)
    })?;
    output::note(format!("listening on http://{} (stop with Ctrl-C)", listener.local_addr()?));
    if secrets.is_empty() {
        output::note(format!("nothing is verified: set {SECRET}, or give --secret-file"));
    }
    let stop_of_receiver = stop.clone();
    let receiver = Receiver {
        secrets,
        answer: args.answer,
        json: args.json,
        seen: Mutex::default(),
        stop: stop_of_receiver,
    };
    let router = Router::new().fallback(receive).with_state(Arc::new(receiver));
    let ending = async {
        stop.cancelled().await;
        tokio::time::sleep(ENDING).await;
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()) => served?,
        () = ending => {}
    }
    Ok(())
}

/// The secrets of a text. What is wrong with one continues its name, and quotes nothing.
fn secrets(text: &str) -> Result<Vec<Secret>, crate::callback::BadSecret> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace());
    words.filter(|word| !word.is_empty()).map(str::parse).collect()
}

fn status(text: &str) -> Result<StatusCode, String> {
    let status = text.parse().ok().filter(|status| (200..600).contains(status));
    let status = status.and_then(|status: u16| StatusCode::from_u16(status).ok());
    status.ok_or_else(|| "write a status from 200 to 599".to_owned())
}

#[derive(Debug)]
struct Receiver {
    secrets: Vec<Secret>,
    answer: StatusCode,
    json: bool,
    seen: Mutex<Seen>,
    /// To stop where nobody reads what is printed.
    stop: CancellationToken,
}

/// The last IDs that came. Their digests are kept, since an ID may have any length.
#[derive(Debug, Default)]
struct Seen {
    known: HashSet<Uuid>,
    /// The newest last.
    order: VecDeque<Uuid>,
}

impl Seen {
    /// Notes an ID, and returns whether it came before.
    fn again(&mut self, id: &str) -> bool {
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes());
        if !self.known.insert(digest) {
            return true;
        }
        self.order.push_back(digest);
        if self.order.len() > REMEMBERED
            && let Some(eldest) = self.order.pop_front()
        {
            self.known.remove(&eldest);
        }
        false
    }
}

/// Why something is not taken, without what it says.
struct Refused {
    status: StatusCode,
    why: String,
}

fn refused(status: StatusCode, why: impl Into<String>) -> Refused {
    Refused { status, why: why.into() }
}

/// A callback, as far as a line tells of it.
#[derive(Deserialize)]
struct Told {
    r#type: String,
    data: ToldEvent,
}

#[derive(Deserialize)]
struct ToldEvent {
    owner: Option<ToldOwner>,
    job_id: Option<Uuid>,
    batch_id: Option<Uuid>,
    job: Option<ToldJob>,
}

#[derive(Deserialize)]
struct ToldJob {
    state: String,
}

async fn receive(State(receiver): State<Arc<Receiver>>, request: Request<Body>) -> StatusCode {
    match receiver.take(request).await {
        Ok(line) => {
            // Without a reader there is nothing to listen for.
            if output::print_line(line).is_err() {
                receiver.stop.cancel();
            }
            receiver.answer
        }
        Err(Refused { status, why }) => {
            output::note(format!("{}  answered with {}: {why}", now(), status.as_u16()));
            status
        }
    }
}

impl Receiver {
    /// What is printed of a callback.
    async fn take(&self, request: Request<Body>) -> Result<String, Refused> {
        if request.method() != Method::POST {
            return Err(refused(StatusCode::METHOD_NOT_ALLOWED, "callbacks are sent with POST"));
        }
        let (head, body) = request.into_parts();
        let body = read(body).await?;
        let id = self.verified(&head.headers, &body)?;
        let no_callback = || refused(StatusCode::BAD_REQUEST, "the body is no callback of errand's");
        let text = std::str::from_utf8(&body).map_err(|_| no_callback())?;
        let told: Told = serde_json::from_str(text).map_err(|_| no_callback())?;
        let again = id.is_some_and(|id| lock(&self.seen).again(id));
        if self.json {
            // Line breaks of JSON are between its words.
            return Ok(text.replace(['\r', '\n'], " "));
        }
        Ok(self.line(&told, again))
    }

    /// The ID of a callback that is by one of the secrets. Where there are none, its ID, if it has one.
    fn verified<'a>(&self, headers: &'a HeaderMap, body: &[u8]) -> Result<Option<&'a str>, Refused> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.secrets.is_empty() {
            return Ok(header("webhook-id"));
        }
        let needed = |name: &str| {
            header(name)
                .ok_or_else(|| refused(StatusCode::UNAUTHORIZED, format!("there is no header `{name}`")))
        };
        let id = needed("webhook-id")?;
        let (timestamp, signature) = (needed("webhook-timestamp")?, needed("webhook-signature")?);
        let secrets: Vec<&Secret> = self.secrets.iter().collect();
        verify(&secrets, id, timestamp, signature, body, Timestamp::now().as_second())
            .map_err(|why| refused(StatusCode::UNAUTHORIZED, why.to_string()))?;
        Ok(Some(id))
    }

    fn line(&self, told: &Told, again: bool) -> String {
        let Told { r#type, data } = told;
        let about = data.job_id.or(data.batch_id).map(|id| id.to_string());
        let mut cells = vec![
            now(),
            r#type.clone(),
            about.unwrap_or_else(|| output::whose(data.owner.as_ref())),
            data.job.as_ref().map_or("-", |job| &job.state).to_owned(),
        ];
        cells.extend(again.then(|| "again".to_owned()));
        cells.extend(self.secrets.is_empty().then(|| "not verified".to_owned()));
        output::clean(&cells.join("  ")).into_owned()
    }
}

/// Reads a body within bounds.
async fn read(body: Body) -> Result<axum::body::Bytes, Refused> {
    let too_large =
        || refused(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {MAX_BODY_BYTES} bytes"));
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => Ok(body),
        // Where the sender went away nobody reads this.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let why = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(refused(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

fn now() -> String {
    output::moment(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_again_until_so_many_others_came() {
        let mut seen = Seen::default();
        assert!(!seen.again("a"));
        assert!(seen.again("a"));
        for n in 0..REMEMBERED {
            assert!(!seen.again(&n.to_string()));
        }
        assert!(!seen.again("a"), "it was forgotten");
        assert_eq!((seen.known.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn secrets_are_separated_by_blanks_and_commas_and_none_is_quoted() {
        let one = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        for (text, count) in [("", 0), (" ,\n", 0), (one, 1), (&*format!("{one},{one} {one}\n"), 3)] {
            assert_eq!(secrets(text).unwrap().len(), count, "{text:?}");
        }
        let error = secrets(&format!("{one} hunter2")).unwrap_err().to_string();
        assert_eq!(error, "does not begin with `whsec_`");
    }
}
