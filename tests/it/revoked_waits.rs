//! A key that is revoked while a request with it waits: the wait goes on, and at its end nothing is told of what was waited for.

use std::time::{Duration, Instant};

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    access_keys::{made, tomorrow},
    api::{Api, kind, read_answer, served_by},
    harness::{Harness, PATIENCE},
    support::wait::until,
};

/// How long a process takes a key for valid without another look.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// A request that waits: how long its answer took, and what it was.
type Waiting = JoinHandle<(Duration, StatusCode, Value)>;

/// The API of a worker, and one of each that can be waited for, of which nothing ends by itself.
struct Bench {
    api: Api,
    /// It is revoked while it waits.
    key: Value,
    /// Another one of the same owner.
    other: String,
    operator: String,
    /// Not enqueued yet.
    job: Value,
    batch: String,
    action: String,
    _harness: Harness,
}

impl Bench {
    async fn new(hint: &str) -> Self {
        let harness = Harness::new(hint, "").await;
        let owners = ["--user", "user-1", "--scope", "enqueue,read,manage"];
        let (key, other) = (made(&harness.env(), &owners), made(&harness.env(), &owners));
        let operator = made(&harness.env(), &["--operator", "--scope", "enqueue,read,manage"]);
        let api = served_by(harness.start_worker(&[("ERRAND__API__LISTEN", "127.0.0.1:0")])).await;
        let later = || read("user-1").with("run_at", tomorrow());
        let mut bench = Self {
            api,
            key,
            other: text(&other, "secret").to_owned(),
            operator: text(&operator, "secret").to_owned(),
            job: later(),
            batch: String::new(),
            action: String::new(),
            _harness: harness,
        };
        let batch = bench.post(&bench.other, "/v1/batches", &json!({"items": [later()]})).await;
        let action = bench.post(&bench.other, "/v1/actions", &json!({"action": "cancel", "all": true})).await;
        bench.batch = text(&batch, "id").to_owned();
        bench.action = text(&action, "id").to_owned();
        bench
    }

    async fn ask(
        &self,
        secret: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.api.request(method, path).bearer_auth(secret);
        if let Some(body) = body {
            request = request.json(body);
        }
        read_answer(request.send().await.unwrap()).await
    }

    async fn post(&self, secret: &str, path: &str, body: &Value) -> Value {
        let (status, told) = self.ask(secret, Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {told}");
        told
    }

    /// Everything that waits, with the key that is revoked: a job is waited for where it is enqueued, and the others by both
    /// ways to ask for that.
    fn requests(&self, seconds: u64) -> Vec<(String, RequestBuilder)> {
        let prefer = format!("wait={seconds}");
        let with_key = |method: Method, path: &str| {
            self.api.request(method, path).bearer_auth(text(&self.key, "secret"))
        };
        let job = with_key(Method::POST, "/v1/jobs").header("prefer", prefer.as_str()).json(&self.job);
        let mut all = vec![("POST /v1/jobs".to_owned(), job)];
        for path in [format!("/v1/batches/{}", self.batch), format!("/v1/actions/{}", self.action)] {
            let preferred = with_key(Method::GET, &path).header("prefer", prefer.as_str());
            let asked = format!("{path}?wait={seconds}");
            all.push((format!("{path}, preferred"), preferred));
            all.push((asked.clone(), with_key(Method::GET, &asked)));
        }
        all
    }

    /// Sends all of them, and returns once they wait.
    async fn all_wait(&self, seconds: u64) -> Vec<(String, Waiting)> {
        let requests = self.requests(seconds).into_iter();
        let waiting: Vec<_> = requests.map(|(what, request)| (what, waits(request))).collect();
        self.are_waiting(waiting.len()).await;
        waiting
    }

    async fn are_waiting(&self, requests: usize) {
        self.api.process.metric_reaches("errand_api_waiting_requests", requests as f64).await;
    }

    async fn revoke(&self) {
        let path = format!("/v1/keys/{}/revoke", text(&self.key, "id"));
        self.post(&self.operator, &path, &json!({})).await;
    }

    /// It is told that the key is none, and that what was asked for may be done all the same.
    fn assert_refused(&self, what: &str, status: StatusCode, problem: &Value) {
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {problem}");
        assert_eq!(kind(problem), "unauthorized", "{what}: {problem}");
        assert!(text(problem, "detail").contains("may be done"), "{what}: {problem}");
        for id in [self.job.id(), &self.batch, &self.action] {
            assert!(!problem.to_string().contains(id), "{what} tells of {id}: {problem}");
        }
    }

    /// The job was stored before the wait for it, so that another key finds it where the request is sent again.
    async fn assert_enqueued(&self) {
        let (status, known) = self.ask(&self.other, Method::POST, "/v1/jobs", Some(&self.job)).await;
        assert_eq!((status, known["id"].as_str()), (StatusCode::OK, Some(self.job.id())), "{known}");
    }
}

fn waits(request: RequestBuilder) -> Waiting {
    // It is the API that ends the wait.
    let request = request.timeout(PATIENCE);
    tokio::spawn(async move {
        let begun = Instant::now();
        let (status, told) = read_answer(request.send().await.unwrap()).await;
        (begun.elapsed(), status, told)
    })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_meanwhile_gets_401_at_the_end_of_the_wait_whatever_it_waits_for() {
    const SECONDS: u64 = 10;
    let bench = Bench::new("revoked-late").await;
    let waiting = bench.all_wait(SECONDS).await;
    bench.revoke().await;
    for (what, waiting) in waiting {
        let (took, status, problem) = waiting.await.unwrap();
        bench.assert_refused(&what, status, &problem);
        assert!(took >= Duration::from_secs(SECONDS), "{what} was answered after {took:?}");
    }
    bench.assert_enqueued().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_key_waits_for_may_end_and_the_key_is_not_told_of_it() {
    let bench = Bench::new("revoked-ended").await;
    let waiting = bench.all_wait(60).await;
    // It waits for the same, so that the end of the wait of the others is the end of this one.
    let batch = format!("/v1/batches/{}", bench.batch);
    let valid = bench.api.request(Method::GET, &format!("{batch}?wait=60")).bearer_auth(&bench.other);
    let valid = waits(valid);
    bench.are_waiting(waiting.len() + 1).await;
    let all_wait_since = Instant::now();
    bench.revoke().await;
    // From then on it is refused at the end of each wait, too, because that has been longer than a second.
    until("the key to be refused", PATIENCE, async || {
        let (status, _) = bench.ask(text(&bench.key, "secret"), Method::GET, "/v1/jobs", None).await;
        (status == StatusCode::UNAUTHORIZED && all_wait_since.elapsed() > KNOWN_FOR).then_some(())
    })
    .await;
    assert!(waiting.iter().all(|(_, waiting)| !waiting.is_finished()), "no wait is cut short by that");

    let job = format!("/v1/jobs/{}/cancel", bench.job.id());
    for path in [job, format!("{batch}/cancel"), format!("/v1/actions/{}/abort", bench.action)] {
        bench.post(&bench.operator, &path, &json!({})).await;
    }
    for (what, waiting) in waiting {
        let (_, status, problem) = waiting.await.unwrap();
        bench.assert_refused(&what, status, &problem);
    }
    let (_, status, complete) = valid.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{complete}");
    assert!(complete["completed_at"].is_string(), "{complete}");
    bench.assert_enqueued().await;
}
