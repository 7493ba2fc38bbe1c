//! A server in front of the sandbox. Everything passes through it as it is, so that calls have their effects;
//! what was sent for a job is kept byte for byte, and its answer may be replaced.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use tokio::task::JoinHandle;

use crate::support::http;

const MOST: usize = 4 * 1024 * 1024;
const JOB_ID: HeaderName = HeaderName::from_static("x-errand-job-id");

/// The largest answer that [`Said::Endless`] comes to, should anybody read it.
const ENDLESS: u64 = 1024 * 1024 * 1024;
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// What is answered instead of what the sandbox says.
#[derive(Debug, Clone)]
pub(super) enum Said {
    /// This status and body.
    This(u16, String),
    /// A success whose `data` does not end.
    Endless,
    /// A success that says that it is of this size, and is not.
    Announced(u64),
}

pub(super) fn success(data: &str) -> Said {
    Said::This(200, format!(r#"{{"data":{data},"successful":true,"error":null,"log_id":"log_front"}}"#))
}

#[derive(Debug)]
pub(super) struct RecordingProxy {
    address: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    sandbox: String,
    client: reqwest::Client,
    said: Mutex<HashMap<String, Said>>,
    seen: Mutex<HashMap<String, Vec<String>>>,
    endless: Arc<AtomicU64>,
}

impl RecordingProxy {
    pub(super) async fn start(sandbox: String) -> Self {
        let inner = Arc::new(Inner {
            sandbox,
            client: http::client(),
            said: Mutex::default(),
            seen: Mutex::default(),
            endless: Arc::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(inner.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, inner, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every call of this job is answered like this.
    pub(super) fn says(&self, job: &str, said: Said) {
        self.inner.said.lock().unwrap().insert(job.to_owned(), said);
    }

    /// The bodies that were sent for this job.
    pub(super) fn seen(&self, job: &str) -> Vec<String> {
        self.inner.seen.lock().unwrap().get(job).cloned().unwrap_or_default()
    }

    /// Bytes of endless answers that anybody took.
    pub(super) fn endless_bytes(&self) -> u64 {
        self.inner.endless.load(Relaxed)
    }
}

impl Drop for RecordingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(front): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MOST).await.unwrap();
    let job = parts.headers.get(JOB_ID).map(|job| job.to_str().unwrap().to_owned());
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut headers = parts.headers.clone();
    headers.remove("host");
    let call = front.client.request(parts.method.clone(), format!("{}{target}", front.sandbox));
    let answer = call.headers(headers).body(body.clone()).send().await.unwrap();
    if let Some(job) = job {
        let sent = String::from_utf8(body.to_vec()).unwrap();
        front.seen.lock().unwrap().entry(job.clone()).or_default().push(sent);
        let said = front.said.lock().unwrap().get(&job).cloned();
        if let Some(said) = said {
            return say(said, front.endless.clone());
        }
    }
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap();
    (status, [(CONTENT_TYPE, "application/json")], answer.bytes().await.unwrap()).into_response()
}

fn say(said: Said, taken: Arc<AtomicU64>) -> Response {
    match said {
        Said::This(status, body) => {
            (StatusCode::from_u16(status).unwrap(), [(CONTENT_TYPE, "application/json")], body)
                .into_response()
        }
        Said::Endless => Body::from_stream(endless(taken)).into_response(),
        Said::Announced(length) => {
            let body = Body::from_stream(endless(taken));
            Response::builder().header("content-length", length).body(body).unwrap()
        }
    }
}

fn endless(
    taken: Arc<AtomicU64>,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold(taken, async |taken| {
        let before = taken.fetch_add(CHUNK.len() as u64, Relaxed);
        let chunk = match before {
            0 => Bytes::from_static(
                br#"{"successful":true,"error":null,"log_id":"log_front","data":{"blob":""#,
            ),
            more if more < ENDLESS => Bytes::from_static(CHUNK),
            _ => return None,
        };
        Some((Ok(chunk), taken))
    })
}
