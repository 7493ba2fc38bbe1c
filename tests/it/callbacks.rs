//! Callbacks, as the servers of apps get them. The real binary on real services; what comes is checked by the library that
//! Standard Webhooks has for it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use errand_testbed::factory::{Envelope as _, read};
use jiff::Timestamp;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

use crate::{
    access_keys::tomorrow,
    api::{Api, read_answer},
    event_exchange::{begins, listed},
    event_streams::text,
    harness::{Harness, PATIENCE, Process},
    support::wait::until,
};

/// What workers and APIs are told that send callbacks, also to receivers on this host.
pub(crate) const SENDS: [(&str, &str); 2] =
    [("ERRAND__CALLBACKS__ENABLED", "true"), ("ERRAND__CALLBACKS__ALLOWED_NETWORKS", "127.0.0.0/8")];

/// A request as a receiver got it.
#[derive(Debug, Clone)]
pub(crate) struct Came {
    pub(crate) path: String,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

impl Came {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn kind(&self) -> String {
        text(&self.json(), "type").to_owned()
    }

    fn is_signed_by(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

/// A server of an app's on this host, for as long as this lives.
pub(crate) struct Receiver {
    pub(crate) base: String,
    came: Arc<Mutex<Vec<Came>>>,
    /// How many more are answered. The others wait.
    answers: Arc<Semaphore>,
    serving: JoinHandle<()>,
}

impl Receiver {
    /// One that takes everything.
    pub(crate) async fn new() -> Self {
        Self::that(|_| StatusCode::NO_CONTENT).await
    }

    pub(crate) async fn that(answer: impl Fn(&Came) -> StatusCode + Send + Sync + 'static) -> Self {
        Self::of(Semaphore::MAX_PERMITS, answer).await
    }

    /// One that takes so many, and answers no others before it is opened.
    pub(crate) async fn gated(answers: usize) -> Self {
        Self::of(answers, |_| StatusCode::NO_CONTENT).await
    }

    async fn of(answers: usize, answer: impl Fn(&Came) -> StatusCode + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (came, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(answers)));
        let (kept, permits, answer) = (Arc::clone(&came), Arc::clone(&answers), Arc::new(answer));
        let take = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let one = Came { path: uri.to_string(), method, headers, body };
            // In the order in which they come: a request counts before it is answered.
            let status = answer(&one);
            kept.lock().unwrap().push(one);
            let permits = Arc::clone(&permits);
            async move {
                permits.acquire().await.unwrap().forget();
                status
            }
        };
        let serving =
            tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take)).await.unwrap() });
        Self { base, came, answers, serving }
    }

    /// Answers all that come and have come.
    pub(crate) fn open(&self) {
        self.answers.add_permits(1_000_000);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// What has come so far, in its order.
    pub(crate) fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap().clone()
    }

    /// Waits until so many have come.
    pub(crate) async fn has(&self, requests: usize) -> Vec<Came> {
        until(&format!("{requests} requests"), PATIENCE, async || {
            let came = self.came();
            (came.len() >= requests).then_some(came)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A worker that sends callbacks, and an API where they are asked for.
pub(crate) struct Place {
    pub(crate) harness: Harness,
    pub(crate) api: Api,
    pub(crate) worker: Process,
}

impl Place {
    pub(crate) async fn new(hint: &str, faults: &str) -> Self {
        Self::with(hint, faults, &[]).await
    }

    /// With these settings of the worker besides.
    pub(crate) async fn with(hint: &str, faults: &str, settings: &[(&str, &str)]) -> Self {
        Self::of(Harness::new(hint, faults).await, &[&SENDS, settings].concat()).await
    }

    pub(crate) async fn of(harness: Harness, settings: &[(&str, &str)]) -> Self {
        let worker = harness.worker(settings).await;
        let own = SENDS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let api = Api::start(&[harness.env(), own].concat()).await;
        begins(&harness).await;
        Self { harness, api, worker }
    }

    /// What the API answers to whoever may.
    pub(crate) async fn asks(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.api.request(method, path).json(body);
        let (status, answer) = read_answer(request.send().await.unwrap()).await;
        assert!(status.is_success(), "{path}: {answer}");
        answer
    }

    pub(crate) async fn set(&self, owner: &str, url: &str) -> Value {
        self.asks(Method::PUT, &format!("/v1/callbacks?owner={owner}"), &json!({ "url": url })).await
    }

    async fn secret(&self, owner: &str, wanted: &Value) -> String {
        let path = format!("/v1/callbacks/secret?owner={owner}");
        text(&self.asks(Method::POST, &path, wanted).await, "secret").to_owned()
    }

    pub(crate) async fn recover(&self, owner: &str, delivered: bool) -> Value {
        let body = json!({"since": "2020-01-01T00:00:00Z", "delivered": delivered});
        self.asks(Method::POST, &format!("/v1/callbacks/recover?owner={owner}"), &body).await
    }

    /// The deliveries that such a query finds, newest first.
    pub(crate) async fn deliveries(&self, query: &str) -> Vec<Value> {
        let (status, list) = self.api.get(&format!("/v1/deliveries?limit=500&{query}")).await;
        assert_eq!(status, StatusCode::OK, "{list}");
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until there are so many deliveries, and all are in this state.
    pub(crate) async fn all_are(&self, state: &str, deliveries: usize) {
        until(&format!("{deliveries} deliveries that are {state}"), PATIENCE, async || {
            let all = self.deliveries("").await;
            (all.len() == deliveries && all.iter().all(|one| one["state"] == state)).then_some(())
        })
        .await;
    }

    /// Waits until what was sent for a job was not taken for this reason.
    pub(crate) async fn failed(&self, job: &Value, error: &str) -> Value {
        until(&format!("{error} of {}", job.id()), PATIENCE, async || {
            let all = self.deliveries("").await;
            all.into_iter().find(|one| one["job_id"] == job["id"] && one["last_error"] == error)
        })
        .await
    }

    /// A job that nobody runs before tomorrow, with its events: one for its change, and one for its end.
    pub(crate) async fn changed_and_cancelled(&self, job: &Value) {
        self.asks(Method::POST, "/v1/jobs", job).await;
        self.asks(Method::PATCH, &format!("/v1/jobs/{}", job.id()), &json!({"priority": 5})).await;
        self.asks(Method::POST, &format!("/v1/jobs/{}/cancel", job.id()), &json!({})).await;
    }
}

/// A job of an owner whose events are sent there.
pub(crate) fn calling(owner: &str, url: &str) -> Value {
    read(owner).with("callback", json!({ "url": url }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_job_a_batch_and_an_owner_come_signed_with_what_became_of_the_job() {
    let place = Place::new("callbacks", "").await;
    let receiver = Receiver::new().await;
    let secret = place.secret("user:user-1", &json!({})).await;
    place.set("user:user-1", &receiver.url("owner?key=k")).await;
    let job = calling("user-1", &receiver.url("job"));
    place.harness.publish(&[job.clone(), read("user-2")]).await;
    let item = read("user-1");
    let batch = json!({"user_id": "user-1", "items": [item], "callback": {"url": receiver.url("batch")}});
    let batch = place.asks(Method::POST, "/v1/batches", &batch).await;
    let came = receiver.has(5).await;
    place.all_are("delivered", 5).await;

    let list = listed(&place.harness);
    let mut told = BTreeSet::new();
    for one in &came {
        let (body, is_about) = (one.json(), |id: &Value| one.json()["data"]["job_id"] == *id);
        assert!(one.is_signed_by(&secret), "{one:?}");
        assert_eq!(one.header("webhook-signature").split(' ').count(), 1);
        assert_eq!((&one.method, one.header("content-type")), (&Method::POST, "application/json"));
        let keys: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        assert_eq!(BTreeSet::from_iter(keys), ["data", "timestamp", "type"].map(str::to_owned).into());
        let mut data = body["data"].clone();
        assert_eq!((&body["type"], &body["timestamp"]), (&data["type"], &data["at"]), "{body}");
        assert_eq!(one.id(), text(&data, "id"), "the ID of the event");
        // The event as everybody reads it, and its job.
        let about = data.as_object_mut().unwrap().remove("job").unwrap();
        let mut event = list.iter().find(|event| event["id"] == data["id"]).unwrap().clone();
        event.as_object_mut().unwrap().remove("cursor");
        assert_eq!(data, event);
        if data["job_id"].is_null() {
            assert_eq!(about, Value::Null, "{body}");
        } else {
            let shown = place.harness.show(text(&data, "job_id"));
            for key in ["id", "state", "owner", "tool", "result", "finished_at"] {
                assert_eq!(about[key], shown[key], "{key} of {about}");
            }
            assert!(about["result"].is_object() && about["result_at"].is_null(), "{about}");
        }
        let whose = if is_about(&job["id"]) {
            "job"
        } else if is_about(&item["id"]) {
            "item"
        } else {
            "batch"
        };
        told.insert((one.path.clone(), whose, one.kind()));
    }
    let expected = [
        ("/job", "job", "job.succeeded"),
        ("/owner?key=k", "job", "job.succeeded"),
        ("/owner?key=k", "item", "job.succeeded"),
        ("/batch", "batch", "batch.completed"),
        ("/owner?key=k", "batch", "batch.completed"),
    ];
    let expected = expected.map(|(path, whose, kind)| (path.to_owned(), whose, kind.to_owned()));
    assert_eq!(told, expected.into());
    assert_eq!(came.len(), 5);
    assert!(came.iter().any(|one| one.json()["data"]["batch_id"] == batch["id"]));
    for delivery in place.deliveries("owner=user:user-1").await {
        let outcome = (&delivery["tries"], &delivery["last_status"], &delivery["last_error"]);
        assert_eq!(outcome, (&json!(1), &json!(204), &Value::Null), "{delivery}");
    }
    assert!(place.deliveries("owner=user:user-2").await.is_empty(), "nobody has asked");
    place.worker.metric_reaches("errand_callbacks_total{result=\"delivered\"}", 5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_large_is_told_by_where_it_is() {
    let faults = "[[fault]]\nkind = \"large\"\ntool = \"GITHUB_GET_REPO\"\nbytes = 300000\n";
    let place = Place::new("callbacks-large", faults).await;
    let receiver = Receiver::new().await;
    let job = calling("user-1", &receiver.url(""));
    place.harness.publish(std::slice::from_ref(&job)).await;
    let came = receiver.has(1).await.remove(0);
    let (body, shown) = (came.json(), place.harness.show(job.id()));
    let told = &body["data"]["job"];
    assert!(came.body.len() < 32 * 1024, "{} bytes", came.body.len());
    assert_eq!((&told["state"], &told["result"]), (&json!("succeeded"), &Value::Null), "{body}");
    assert_eq!(told["result_at"]["path"], format!("/v1/jobs/{}", job.id()), "{body}");
    assert!(told["result_at"]["bytes"].as_u64().unwrap() > 256 * 1024, "{body}");
    let at = place.api.get(text(&told["result_at"], "path")).await.1;
    assert!(at["result"].is_object() && at["result"] == shown["result"], "it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_replaced_both_sign_and_after_that_only_the_new_one() {
    let place = Place::new("callbacks-secrets", "").await;
    let receiver = Receiver::new().await;
    let owner = "user:user-1";
    let [old, again] = [place.secret(owner, &json!({})).await, place.secret(owner, &json!({})).await];
    assert_eq!(old, again, "it is told, and made once");
    let new = place.secret(owner, &json!({"replace": true, "overlap_secs": 3_600})).await;
    let other = place.secret("user:user-2", &json!({})).await;
    let sent = async |requests: usize| {
        place.harness.publish(&[calling("user-1", &receiver.url("job"))]).await;
        receiver.has(requests).await.pop().unwrap()
    };
    let signed = |one: &Came| [&old, &new, &other].map(|secret| one.is_signed_by(secret));
    assert_eq!(signed(&sent(1).await), [true, true, false]);
    place.harness.execute("update callbacks set previous_until = now()").await;
    assert_eq!(signed(&sent(2).await), [false, true, false], "the time of the old one is over");
    let newest = place.secret(owner, &json!({"replace": true, "overlap_secs": 0})).await;
    let last = sent(3).await;
    assert_eq!((signed(&last), last.is_signed_by(&newest)), ([false; 3], true), "at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_sent_again_later_and_those_after_it_of_the_same_job_wait_for_it() {
    let place = Place::new("callbacks-again", "").await;
    let is_ready = Arc::new(AtomicBool::new(false));
    let ready = Arc::clone(&is_ready);
    let answer = move |_: &Came| match ready.load(Ordering::SeqCst) {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let receiver = Receiver::that(answer).await;
    let job = calling("user-1", &receiver.url("job")).with("run_at", tomorrow());
    place.changed_and_cancelled(&job).await;
    let refused = place.failed(&job, "refused").await;
    assert_eq!((&refused["type"], &refused["last_status"]), (&json!("job.edited"), &json!(500)), "{refused}");
    assert_eq!(refused["state"], "waiting", "{refused}");
    let time = |name: &str| text(&refused, name).parse::<Timestamp>().unwrap();
    let wait = time("due_at").duration_since(time("tried_at")).as_millis();
    // A tenth more or less of five seconds, and then of thirty.
    let expected = if refused["tries"] == 1 { 5_000 } else { 30_000 };
    assert!((expected * 9 / 10..=expected * 11 / 10).contains(&wait), "{wait} ms in {refused}");
    let last = until("both are there", PATIENCE, async || {
        place.deliveries("").await.into_iter().find(|one| one["type"] == "job.cancelled")
    })
    .await;
    assert_eq!(
        (&last["state"], &last["tries"]),
        (&json!("waiting"), &json!(0)),
        "it waits for the first one"
    );

    is_ready.store(true, Ordering::SeqCst);
    place.all_are("delivered", 2).await;
    let came = receiver.came();
    let told: Vec<_> = came.iter().map(Came::kind).collect();
    let (last, before) = told.split_last().unwrap();
    assert!(last == "job.cancelled" && before.len() >= 2, "{told:?}");
    assert!(before.iter().all(|kind| kind == "job.edited"), "{told:?}");
    let ids: BTreeSet<_> = came.iter().map(Came::id).collect();
    assert_eq!((ids.len(), came[0].id()), (2, came[1].id()), "the same ID each time");
    let secret = place.secret("user:user-1", &json!({})).await;
    for one in &came {
        assert!(one.is_signed_by(&secret), "each with a signature of its own");
        let (kind, about) = (one.kind(), &one.json()["data"]["job"]);
        // What the job was when it was changed is past.
        assert_eq!(about["state"], if kind == "job.edited" { Value::Null } else { json!("cancelled") });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_is_gone_is_disabled_and_what_it_missed_comes_when_it_is_set_again() {
    let place = Place::new("callbacks-gone", "").await;
    let is_gone = Arc::new(AtomicBool::new(true));
    let gone = Arc::clone(&is_gone);
    let answer = move |_: &Came| match gone.load(Ordering::SeqCst) {
        true => StatusCode::GONE,
        false => StatusCode::ACCEPTED,
    };
    let receiver = Receiver::that(answer).await;
    let (owner, url) = ("user:user-1", receiver.url("owner"));
    let callback = async || place.api.get("/v1/callbacks").await.1["items"][0].clone();
    place.set(owner, &url).await;
    let [first, second] = [read("user-1"), read("user-1")];
    place.harness.publish(std::slice::from_ref(&first)).await;
    let missed = place.failed(&first, "gone").await;
    assert_eq!((&missed["state"], &missed["last_status"]), (&json!("failed"), &json!(410)), "{missed}");
    until("it is disabled", PATIENCE, async || callback().await["disabled_at"].is_string().then_some(()))
        .await;
    assert_eq!((&callback().await["disabled_why"], &callback().await["url"]), (&json!("gone"), &json!(url)));
    let told = listed(&place.harness).into_iter().find(|event| event["type"] == "callback.disabled").unwrap();
    let about = ["job_id", "batch_id", "tool", "attempt"].map(|key| told[key].is_null());
    assert_eq!((about, &told["owner"]["id"]), ([true; 4], &json!("user-1")), "{told}");

    // Nothing more is sent there, not even that it is disabled.
    place.harness.publish(std::slice::from_ref(&second)).await;
    place.failed(&second, "disabled").await;
    place.all_are("failed", 2).await;
    assert_eq!(receiver.came().len(), 1);

    is_gone.store(false, Ordering::SeqCst);
    assert_eq!(place.set(owner, &url).await["disabled_at"], Value::Null);
    assert_eq!(place.recover(owner, false).await, json!({"deliveries": 2, "next": null}));
    place.all_are("delivered", 2).await;
    let came = receiver.came();
    assert_eq!((came.len(), came[0].id()), (3, text(&missed, "event_id")));
    let ids: BTreeSet<_> = came[1..].iter().map(Came::id).collect();
    assert!(ids.len() == 2 && ids.contains(came[0].id()), "as they were sent before: {ids:?}");
    assert_eq!(place.recover(owner, false).await["deliveries"], 0, "nothing has failed");
    assert_eq!(place.recover(owner, true).await["deliveries"], 2);
    receiver.has(5).await;
}
