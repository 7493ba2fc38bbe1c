//! A tool API that does what a test tells it, byte by byte where that matters, and records what it was asked.
//!
//! It knows nothing about tools: a test gives it [`Answer`]s. Where answers have to be right, and their effects
//! have to happen, it stands [in front of](ScriptedApi::in_front_of) another API and passes every request on.

#![allow(clippy::unwrap_used, reason = "a stand-in that cannot serve fails its test, and says why")]

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::support::http;

mod answer;
mod http1;
mod http2;
mod request;

pub use answer::Answer;
pub use request::Request;

/// A scripted API that is being served. It ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct ScriptedApi {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    /// What is done with the next requests; the last one stays for all that follow.
    script: Mutex<VecDeque<Answer>>,
    /// What is done with the calls of single jobs instead.
    of_jobs: Mutex<HashMap<String, Answer>>,
    behind: Behind,
    seen: Mutex<Vec<Request>>,
    arrival: Notify,
    release: Notify,
    connections: AtomicUsize,
    endless_bytes: AtomicU64,
}

/// Where answers come from that no script has.
enum Behind {
    Nothing,
    Api(Upstream),
    Function(Box<dyn Fn(&Request) -> Answer + Send + Sync>),
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Api(_) => "Api",
            Self::Function(_) => "Function",
        })
    }
}

/// The API behind this one.
struct Upstream {
    base_url: String,
    client: reqwest::Client,
}

impl ScriptedApi {
    /// Serves HTTP/1.1. The n-th request, over all connections, gets the n-th answer, and all that follow get
    /// the last one.
    pub async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::serve(script, Behind::Nothing, false).await
    }

    /// The same, with one answer for everything.
    pub async fn answering(status: &str, body: &str) -> Self {
        Self::start([Answer::new(status, body)]).await
    }

    /// The same for HTTP/2 without TLS, and for nothing else.
    pub async fn http2(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::serve(script, Behind::Nothing, true).await
    }

    /// Passes every request on to another API, and its answers back. What [`Self::answer_job`] replaces is
    /// passed on as well, so that it has its effect.
    pub async fn in_front_of(base_url: &str) -> Self {
        let upstream = Upstream { base_url: base_url.to_owned(), client: http::client() };
        Self::serve([Answer::theirs()], Behind::Api(upstream), false).await
    }

    /// Answers each request as a function of it says.
    pub async fn responding(respond: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve([Answer::theirs()], Behind::Function(Box::new(respond)), false).await
    }

    async fn serve(script: impl IntoIterator<Item = Answer>, behind: Behind, is_http2: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(script.into_iter().collect()),
            of_jobs: Mutex::default(),
            behind,
            seen: Mutex::default(),
            arrival: Notify::new(),
            release: Notify::new(),
            connections: AtomicUsize::new(0),
            endless_bytes: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(state.clone(), listener, is_http2));
        Self { address, state, task }
    }

    /// The root, without the path of the API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The loopback address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the requests that are still to come other answers.
    pub fn script(&self, script: impl IntoIterator<Item = Answer>) {
        *self.state.script.lock().unwrap() = script.into_iter().collect();
    }

    /// Answers every call of this job like this.
    pub fn answer_job(&self, job: &str, answer: Answer) {
        self.state.of_jobs.lock().unwrap().insert(job.to_owned(), answer);
    }

    /// Lets all [held](Answer::held) answers go whose requests have arrived.
    pub fn release(&self) {
        self.state.release.notify_waiters();
    }

    /// The requests that were read so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The requests that were read since the last time; they are not seen again.
    pub fn take_seen(&self) -> Vec<Request> {
        std::mem::take(&mut *self.state.seen.lock().unwrap())
    }

    /// The bodies that were sent for this job.
    #[must_use]
    pub fn bodies_of(&self, job: &str) -> Vec<String> {
        self.seen().into_iter().filter(|seen| seen.job() == Some(job)).map(|seen| seen.body).collect()
    }

    /// Waits until so many requests were read.
    pub async fn until_seen(&self, requests: usize) {
        loop {
            let arrival = self.state.arrival.notified();
            if self.state.seen.lock().unwrap().len() >= requests {
                return;
            }
            arrival.await;
        }
    }

    /// The connections that were made so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections.load(Relaxed)
    }

    /// Bytes of [endless](Answer::endless) bodies that anybody took.
    #[must_use]
    pub fn endless_bytes(&self) -> u64 {
        self.state.endless_bytes.load(Relaxed)
    }
}

impl Drop for ScriptedApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(state: Arc<State>, listener: TcpListener, is_http2: bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                state.connections.fetch_add(1, Relaxed);
                connections.spawn(connection(state.clone(), stream, is_http2));
            }
        }
    }
}

async fn connection(state: Arc<State>, stream: TcpStream, is_http2: bool) {
    if is_http2 {
        http2::serve(state, stream).await;
    } else {
        http1::serve(&state, stream).await;
    }
}

impl State {
    /// What is done with the request that is arriving.
    fn next(&self) -> Answer {
        let mut script = self.script.lock().unwrap();
        let next = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
        next.expect("a script has at least one answer")
    }

    /// Records a request and returns its answer, which is the given one unless its job has one of its own.
    async fn decide(&self, request: Request, scripted: Answer) -> Answer {
        let of_job = request.job().and_then(|job| self.of_jobs.lock().unwrap().get(job).cloned());
        // Decided before anybody hears of the request, who may change what the next one is told.
        let mut answer = match (of_job, &self.behind) {
            (Some(answer), _) => answer,
            (None, Behind::Function(respond)) if scripted.is_theirs() => respond(&request),
            (None, _) => scripted,
        };
        // Whoever waits for the request may let its answer go at once.
        let release = self.release.notified();
        tokio::pin!(release);
        release.as_mut().enable();
        self.seen.lock().unwrap().push(request.clone());
        self.arrival.notify_waiters();
        if let Behind::Api(upstream) = &self.behind {
            let theirs = upstream.ask(request).await;
            if answer.is_theirs() {
                answer = theirs;
            }
        }
        if answer.is_held() {
            release.await;
        }
        answer
    }
}

impl Upstream {
    /// What the other API says. Where it breaks off, so does this one.
    async fn ask(&self, request: Request) -> Answer {
        let (method, target) = request.line().split_once(' ').unwrap();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut asked = self.client.request(method, format!("{}{target}", self.base_url));
        for (name, value) in request.headers().filter(|(name, _)| !is_of_connection(name)) {
            asked = asked.header(name, value);
        }
        let Ok(said) = asked.body(request.body.clone()).send().await else {
            return Answer::nothing().closing();
        };
        let status = said.status().to_string();
        let headers = said.headers().clone();
        let Ok(body) = said.bytes().await else { return Answer::nothing().closing() };
        let mut answer = Answer::new(&status, body);
        for (name, value) in headers.iter().filter(|(name, _)| !is_of_connection(name.as_str())) {
            answer = answer.header(name.as_str(), value.to_str().unwrap());
        }
        answer
    }
}

/// Whether a header is about one connection, so that it is not passed on.
fn is_of_connection(header: &str) -> bool {
    ["host", "connection", "content-length", "transfer-encoding"]
        .iter()
        .any(|name| header.eq_ignore_ascii_case(name))
}
