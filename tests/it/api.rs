//! The HTTP API, as an app meets it.

use std::net::SocketAddr;

use errand_testbed::factory::{Envelope as _, id, read, send, spread};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    harness::{Harness, PATIENCE, Process, run},
    support::{self, wait::until},
};

/// `errand api` as a process.
pub(crate) struct Api {
    pub(crate) process: Process,
    pub(crate) base: String,
    /// One for all requests, because it takes longer to make than most of them do; each has a connection of its own.
    client: Client,
}

impl Api {
    pub(crate) async fn start(env: &[(String, String)]) -> Self {
        Self::listening("127.0.0.1:0", env).await
    }

    pub(crate) async fn listening(address: &str, env: &[(String, String)]) -> Self {
        const SERVED: &str = "the API is served";
        let process = Process::start(&["api", "--listen", address], env);
        process.logged(SERVED).await;
        let address: SocketAddr = process.lines(SERVED)[0]["address"].as_str().unwrap().parse().unwrap();
        let base = format!("http://127.0.0.1:{}", address.port());
        Self::of(process, base)
    }

    fn of(process: Process, base: String) -> Self {
        let client = support::http::builder().pool_max_idle_per_host(0).build().unwrap();
        Self { process, base, client }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        read_answer(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read_answer(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }
}

/// The API of a process that does more than that, such as a worker.
pub(crate) async fn served_by(process: Process) -> Api {
    process.logged("worker ready").await;
    let address = process.lines("the API is served")[0]["address"].as_str().unwrap().to_owned();
    Api::of(process, format!("http://{address}"))
}

/// The status and the JSON of an answer. What is not 2xx must be a problem that says the same, in a sentence.
pub(crate) async fn read_answer(answer: Response) -> (StatusCode, Value) {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body: Value = answer.json().await.unwrap();
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["cache-control"], "no-store");
    if !status.is_success() {
        assert_eq!(headers["content-type"], "application/problem+json", "{body}");
        assert_eq!(body["status"], status.as_u16(), "{body}");
        assert!(body["detail"].as_str().unwrap().len() > 20, "{body}");
    }
    (status, body)
}

/// The end of a problem's type.
pub(crate) fn kind(problem: &Value) -> &str {
    problem["type"].as_str().unwrap().strip_prefix("urn:errand:problem:").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_enqueued_waited_for_read_and_listed() {
    let harness = Harness::new("api", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let job = send("user-1").with("tags", json!({"team": "a"}));
    let request = api.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&job);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["location"], format!("/v1/jobs/{}", job.id()));
    let (status, done) = read_answer(answer).await;
    assert_eq!((status, &done["state"]), (StatusCode::OK, &json!("succeeded")), "{done}");
    assert_eq!(done, harness.show(job.id()), "the JSON of `jobs show ID --json`");
    assert_eq!(api.get(&format!("/v1/jobs/{}?wait=60", job.id())).await, (StatusCode::OK, done));

    let (status, refused) = api.post("/v1/jobs", &read("user-1").with("tool", "GITHUB_NO_SUCH_TOOL")).await;
    assert_eq!(status, StatusCode::CREATED, "{refused}");
    let path = format!("/v1/jobs/{}?wait=60", refused["id"].as_str().unwrap());
    let (status, failed) = api.get(&path).await;
    assert_eq!((status, &failed["state"]), (StatusCode::OK, &json!("failed")), "{failed}");

    let listed = |list: &Value| {
        list["items"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect::<Vec<_>>()
    };
    for (query, expected) in [
        ("", vec![&failed["id"], &json!(job.id())]),
        ("?state=succeeded", vec![&json!(job.id())]),
        ("?owner=user:user-1&tag=team=a", vec![&json!(job.id())]),
        ("?error_kind=unknown_tool&queue=default", vec![&failed["id"]]),
        ("?owner=org:user-1", vec![]),
        ("?until=2020-01-01T00:00:00Z", vec![]),
    ] {
        let (status, list) = api.get(&format!("/v1/jobs{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {list}");
        assert_eq!(listed(&list).iter().collect::<Vec<_>>(), expected, "{query}");
        assert!(list["window"]["since"].is_string(), "{list}");
        assert!(list["items"].as_array().unwrap().iter().all(|job| job.get("result").is_none()));
    }
    let (status, nul) = api.get("/v1/jobs?tool=%00").await;
    assert_eq!((status, kind(&nul)), (StatusCode::BAD_REQUEST, "bad-request"));
    let (_, first) = api.get("/v1/jobs?limit=1").await;
    let (_, second) = api.get(&format!("/v1/jobs?limit=1&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!([listed(&first), listed(&second)].concat(), [failed["id"].clone(), json!(job.id())]);
    harness.called(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_again_is_that_job_and_another_one_is_refused_alike_for_everybody() {
    let harness = Harness::new("api-again", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    let job = read("user-1");
    assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
    let (status, again) = api.post("/v1/jobs", &job).await;
    assert_eq!((status, again["id"].as_str()), (StatusCode::OK, Some(job.id())));

    let (status, own) = api.post("/v1/jobs", &job.clone().with("priority", 5)).await;
    assert_eq!((status, kind(&own)), (StatusCode::UNPROCESSABLE_ENTITY, "id-conflict"));
    let foreign = read("user-2").with("id", job.id());
    assert_eq!(api.post("/v1/jobs", &foreign).await, (status, own), "nobody learns whose job it is");

    // The key means the same in the header and in the body.
    let unnamed = json!({"user_id": "user-1", "tool": "GITHUB_GET_REPO", "arguments": {}});
    let keyed = async |key: &str, body: &Value| {
        let request = api.request(Method::POST, "/v1/jobs").header("idempotency-key", key).json(body);
        read_answer(request.send().await.unwrap()).await
    };
    let (status, first) = keyed("k-1", &unnamed).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    for (status, known) in [
        keyed("k-1", &unnamed).await,
        keyed("\"k-1\"", &unnamed).await,
        api.post("/v1/jobs", &unnamed.clone().with("idempotency_key", "k-1")).await,
    ] {
        assert_eq!((status, &known["id"]), (StatusCode::OK, &first["id"]), "{known}");
    }
    let (status, other) = keyed("k-1", &unnamed.clone().with("tool", "GITHUB_LIST_REPOS")).await;
    assert_eq!((status, kind(&other)), (StatusCode::UNPROCESSABLE_ENTITY, "key-conflict"));
    let (status, both) = keyed("k-1", &unnamed.clone().with("idempotency_key", "k-2")).await;
    assert_eq!((status, kind(&both)), (StatusCode::UNPROCESSABLE_ENTITY, "invalid-job"));
    let (status, _) =
        keyed("k-1", &json!({"user_id": "user-2", "tool": "GITHUB_GET_REPO", "arguments": {}})).await;
    assert_eq!(status, StatusCode::CREATED, "the key of another owner is another key");
    assert_eq!(harness.count("true").await, 3);

    // By another ID a job is waited for as by its own.
    let renamed = read("user-3").with("idempotency_key", "k-3");
    assert_eq!(api.post("/v1/jobs", &renamed).await.0, StatusCode::CREATED);
    let alias = id();
    assert_eq!(
        api.post("/v1/jobs", &renamed.clone().with("id", alias.as_str())).await.1["id"],
        *renamed.id()
    );
    let begun = std::time::Instant::now();
    let (status, waited) = api.get(&format!("/v1/jobs/{alias}?wait=2")).await;
    assert_eq!((status, &waited["id"]), (StatusCode::ACCEPTED, &json!(renamed.id())), "{waited}");
    assert!(begun.elapsed().as_millis() >= 1_900, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_with_a_sentence_and_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    let good = read("user-1").to_string();
    let deep = format!(
        "{{\"user_id\":\"u\",\"tool\":\"T\",\"arguments\":{{\"a\":{}{}}}}}",
        "[".repeat(500),
        "]".repeat(500)
    );
    let large = format!("{{\"user_id\":\"u\",\"tool\":\"T\",\"text\":\"{}\"}}", "x".repeat(1024 * 1024));
    let bodies: [(&[u8], &str, u16); 11] = [
        (b"", "bad-request", 400),
        (b"{", "bad-request", 400),
        (b"[]", "bad-request", 400),
        (b"\xff\xfe{}", "bad-request", 400),
        (br#"{"user_id":"u","tool":"T","arguments":{},"argument":1}"#, "bad-request", 400),
        (br#"{"user_id":"u","user_id":"v","tool":"T","arguments":{}}"#, "bad-request", 400),
        (br#"{"user_id":"u","org_id":"o","tool":"T","arguments":{}}"#, "invalid-job", 422),
        (br#"{"user_id":"default","tool":"T","arguments":{}}"#, "invalid-job", 422),
        (br#"{"user_id":"u","tool":"T","arguments":{},"queue":"nowhere"}"#, "invalid-job", 422),
        (deep.as_bytes(), "invalid-job", 422),
        (large.as_bytes(), "too-large", 413),
    ];
    for (body, expected, status) in bodies {
        let request = api.request(Method::POST, "/v1/jobs").header("content-type", "application/json");
        let (found, problem) = read_answer(request.body(body.to_vec()).send().await.unwrap()).await;
        let start = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!((found.as_u16(), kind(&problem)), (status, expected), "{start}: {problem}");
    }
    for media_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/form-data"]
    {
        let request = api.request(Method::POST, "/v1/jobs").header("content-type", media_type);
        let (status, problem) = read_answer(request.body(good.clone()).send().await.unwrap()).await;
        assert_eq!((status.as_u16(), kind(&problem)), (415, "unsupported-media-type"));
    }
    for (path, status, expected) in [
        ("/v1/jobs?sate=failed", 400, "bad-request"),
        ("/v1/jobs?state=done", 400, "bad-request"),
        ("/v1/jobs?state=failed&state=held", 400, "bad-request"),
        ("/v1/jobs?cursor=1", 400, "bad-request"),
        ("/v1/jobs?limit=0", 400, "bad-request"),
        ("/v1/jobs?limit=501", 400, "bad-request"),
        ("/v1/jobs?owner=u-1", 400, "bad-request"),
        ("/v1/jobs?since=yesterday", 400, "bad-request"),
        ("/v1/jobs?tag=a", 400, "bad-request"),
        ("/v1/jobs?tool=%00", 400, "bad-request"),
        ("/v1/jobs?owner=user:%00", 400, "bad-request"),
        ("/v1/jobs?tag=a=%00", 400, "bad-request"),
        ("/v1/jobs/1?wait=soon", 404, "not-found"),
        ("/v1/jobs/none", 404, "not-found"),
        ("/v1/job", 404, "not-found"),
        ("/", 404, "not-found"),
    ] {
        let (found, problem) = api.get(path).await;
        assert_eq!((found.as_u16(), kind(&problem)), (status, expected), "{path}: {problem}");
    }
    let unknown = format!("/v1/jobs/{}", id());
    assert_eq!(api.get(&format!("{unknown}?wait=30")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.get(&format!("{unknown}?wait=soon")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(api.get(&format!("{unknown}/cancel")).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(api.get("/v1/jobs").await.1["items"], json!([]));
    assert_eq!(api.post("/v1/jobs", &serde_json::from_str(&good).unwrap()).await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_of_other_sites_may_neither_read_nor_change_anything() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    for (header, value) in [
        ("host", "rebound.example"),
        ("origin", "https://page.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let post = api.request(Method::POST, "/v1/jobs").json(&read("user-1"));
        for request in [api.request(Method::GET, "/v1/jobs"), post] {
            let (status, problem) = read_answer(request.header(header, value).send().await.unwrap()).await;
            assert_eq!((status.as_u16(), kind(&problem)), (403, "foreign-origin"), "{header}: {value}");
        }
    }
    assert_eq!(api.get("/v1/jobs").await.1["items"], json!([]));
    let beyond = run(&["api", "--listen", "0.0.0.0:0"], &env);
    assert_eq!(beyond.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("loopback"));
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_made_and_what_would_repeat_an_effect_is_refused() {
    let lost = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = false\nfirst = 1\n";
    let harness = Harness::new("api-decide", lost).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let later = read("user-1").with("run_at", (Timestamp::now() + SignedDuration::from_hours(1)).to_string());
    let sent = send("user-1");
    for job in [&later, &sent] {
        assert_eq!(api.post("/v1/jobs", job).await.0, StatusCode::CREATED);
    }
    let decide = async |job: &Value, action: &str, body: Value| {
        api.post(&format!("/v1/jobs/{}/{action}", job.id()), &body).await
    };
    let (status, early) = decide(&later, "retry", json!({})).await;
    assert_eq!((status, kind(&early)), (StatusCode::CONFLICT, "needs-force"));
    let (status, wrong) = decide(&later, "release", json!({"how": "retry"})).await;
    assert_eq!((status, kind(&wrong)), (StatusCode::CONFLICT, "wrong-state"));
    let (status, cancelled) = decide(&later, "cancel", json!({})).await;
    assert_eq!((status, &cancelled["state"]), (StatusCode::OK, &json!("cancelled")));
    assert_eq!(cancelled["history"][0]["by"], "api");

    // A held job is not final, and waiting for it is over.
    let (status, held) = api.get(&format!("/v1/jobs/{}?wait=60", sent.id())).await;
    assert_eq!((status, &held["state"]), (StatusCode::ACCEPTED, &json!("held")), "{held}");
    for body in [json!({}), json!({"how": "perhaps"}), json!({"why": "retry"}), json!(["retry"]), json!(null)]
    {
        assert_eq!(decide(&sent, "release", body).await.0, StatusCode::BAD_REQUEST);
    }
    let (status, failed) = decide(&sent, "release", json!({"how": "failed"})).await;
    assert_eq!((status, &failed["state"]), (StatusCode::OK, &json!("failed")));
    for body in [json!({"force": "yes"}), json!([true])] {
        let (status, again) = decide(&sent, "retry", body).await;
        assert_eq!((status, kind(&again)), (StatusCode::BAD_REQUEST, "bad-request"));
    }
    harness.heal().await;
    let (status, again) = decide(&sent, "retry", json!({"force": true})).await;
    assert_eq!(status, StatusCode::OK, "{again}");
    let (status, done) = api.get(&format!("/v1/jobs/{}?wait=60", sent.id())).await;
    assert_eq!((status, &done["state"]), (StatusCode::OK, &json!("succeeded")), "{done}");
    assert_eq!(decide(&read("user-1"), "cancel", json!({})).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_before_the_answer_lose_no_job_and_double_none() {
    let harness = Harness::new("api-cut", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let jobs = spread(200, send);
    let address = api.base.strip_prefix("http://").unwrap();
    for job in &jobs {
        let body = job.to_string();
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        // It is closed here, and nobody reads an answer.
    }
    for job in &jobs {
        let (status, known) = api.post("/v1/jobs", job).await;
        assert!(status.is_success(), "{known}");
        assert_eq!(known["id"].as_str(), Some(job.id()));
    }
    harness.all_ran_once(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_answered_when_the_api_ends() {
    let harness = Harness::new("api-end", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let mut api = Api::start(&harness.env()).await;
    let job = read("user-1");
    let request = api.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&job);
    let waiting = tokio::spawn(async move { request.send().await.unwrap() });
    harness.counts(&format!("id = '{}'", job.id()), 1).await;
    assert!(api.process.stop().await.success());
    let answer = waiting.await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "1");
    let (status, open) = read_answer(answer).await;
    assert_eq!((status, &open["state"]), (StatusCode::ACCEPTED, &json!("available")), "{open}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_told_without_its_address() {
    let port = support::machine::free_port();
    let url = format!("postgres://errand@127.0.0.1:{port}/errand");
    let api = Api::start(&[("DATABASE_URL".to_owned(), url)]).await;
    let request = api.request(Method::POST, "/v1/jobs").json(&read("user-1"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "2");
    let (status, problem) = read_answer(answer).await;
    assert_eq!((status.as_u16(), kind(&problem)), (503, "unavailable"));
    assert!(!problem.to_string().contains(&port.to_string()), "{problem}");
    assert!(api.process.log().contains(&port.to_string()), "{}", api.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_and_dev_serve_it_where_they_are_told_to_and_end_in_order() {
    let harness = Harness::new("api-worker", "").await;
    let mut env = harness.env();
    env.push(("ERRAND__API__LISTEN".into(), "127.0.0.1:0".into()));
    let worker = Process::start(&["worker", "--listen", "127.0.0.1:0"], &env);
    let folder = tempfile::tempdir().unwrap();
    let sandbox = format!("127.0.0.1:{}", support::machine::free_port());
    let data = folder.path().to_str().unwrap();
    let args = ["dev", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
    let dev = Process::start(&[&args[..], &["--sandbox-listen", &sandbox]].concat(), &[]);
    for process in [worker, dev] {
        let mut api = served_by(process).await;
        let job = read("user-1");
        let request = api.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&job);
        let (status, done) = read_answer(request.send().await.unwrap()).await;
        assert_eq!((status, &done["state"]), (StatusCode::OK, &json!("succeeded")), "{done}");
        let later = job
            .with("id", id())
            .with("run_at", (Timestamp::now() + SignedDuration::from_hours(1)).to_string());
        let request = api.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&later);
        let waiting = tokio::spawn(async move { request.send().await.unwrap() });
        until("it is stored", PATIENCE, async || {
            (api.get(&format!("/v1/jobs/{}", later.id())).await.0 == StatusCode::OK).then_some(())
        })
        .await;
        assert!(api.process.stop().await.success());
        assert_eq!(waiting.await.unwrap().status(), StatusCode::ACCEPTED, "who waits is answered at the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_become_of_a_job_and_stores_nothing() {
    let harness = Harness::new("api-dry", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    assert!(
        harness.errand(&["pins", "set", "gmail", "20251112_00", "--owner", "user:user-1"]).status.success()
    );
    let api = Api::start(&harness.env()).await;
    let dry = async |job: &Value| api.post("/v1/jobs?dry_run=true", job).await;
    let tomorrow = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
    let yesterday = (Timestamp::now() - SignedDuration::from_hours(24)).to_string();
    for (job, would, version, pinned_by, effect, held_reason, problem) in [
        (read("user-1"), "run", json!("20251027_00"), json!("env"), json!("safe"), json!(null), json!(null)),
        (
            send("user-1"),
            "run",
            json!("20251112_00"),
            json!("owner"),
            json!("once"),
            json!(null),
            json!(null),
        ),
        (
            read("user-1").with("run_at", tomorrow).with("version", "20251027_00"),
            "schedule",
            json!("20251027_00"),
            json!("job"),
            json!("safe"),
            json!(null),
            json!(null),
        ),
        (
            read("nobody"),
            "hold",
            json!(null),
            json!(null),
            json!(null),
            json!("connection"),
            json!("needs_connection"),
        ),
        (
            read("user-1").with("tool", "GITHUB_NO_SUCH_TOOL"),
            "fail",
            json!(null),
            json!(null),
            json!(null),
            json!(null),
            json!("unknown_tool"),
        ),
        (
            read("user-1").with("expires_at", yesterday),
            "fail",
            json!(null),
            json!(null),
            json!(null),
            json!(null),
            json!("expired"),
        ),
    ] {
        let (status, answer) = dry(&job).await;
        assert_eq!((status, &answer["would"]), (StatusCode::OK, &json!(would)), "{job}: {answer}");
        let told = ["version", "pinned_by", "effect", "held_reason"].map(|key| answer[key].clone());
        assert_eq!(told, [version, pinned_by, effect, held_reason], "{job}: {answer}");
        assert_eq!(answer["problems"][0]["kind"], problem, "{answer}");
        assert_eq!(
            answer["connected_account_id"].is_string(),
            would == "run" || would == "schedule",
            "{answer}"
        );
        assert_eq!((&answer["id"], &answer["owner"]["kind"]), (&json!(job.id()), &json!("user")));
    }
    assert_eq!(harness.count("true").await, 0);
    harness.called(0).await;

    let job = read("user-1");
    assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
    assert_eq!(dry(&job).await.1["would"], "repeat");
    let (status, other) = dry(&job.clone().with("priority", 5)).await;
    assert_eq!((status, kind(&other)), (StatusCode::UNPROCESSABLE_ENTITY, "id-conflict"));
    let mut keyed = read("user-1").with("idempotency_key", "k");
    keyed.as_object_mut().unwrap().remove("id");
    let (_, first) = api.post("/v1/jobs", &keyed).await;
    let (_, repeat) = dry(&keyed).await;
    assert_eq!((&repeat["would"], &repeat["id"]), (&json!("repeat"), &first["id"]), "{repeat}");
    let (status, other) = dry(&keyed.clone().with("priority", 5)).await;
    assert_eq!((status, kind(&other)), (StatusCode::UNPROCESSABLE_ENTITY, "key-conflict"));
    let (status, refused) = dry(&read("default")).await;
    assert_eq!((status, kind(&refused)), (StatusCode::UNPROCESSABLE_ENTITY, "invalid-job"));
    let (status, wrong) = api.post("/v1/jobs?dry_run=perhaps", &job).await;
    assert_eq!((status, kind(&wrong)), (StatusCode::BAD_REQUEST, "bad-request"));
    assert_eq!(harness.count("true").await, 2);

    let mut env = harness.env();
    env.push(("COMPOSIO_API_KEY".into(), String::new()));
    let api = Api::start(&env).await;
    let (status, none) = api.post("/v1/jobs?dry_run=true", &job).await;
    assert_eq!((status, kind(&none)), (StatusCode::NOT_IMPLEMENTED, "no-tool-api"));
}
