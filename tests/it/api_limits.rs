//! The doors of the HTTP API: who may come in from a browser, how much one owner may send, and TLS.

use std::{path::Path, time::Duration};

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Certificate, Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// A database without a worker.
fn database() -> (tempfile::TempDir, Vec<(String, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = vec![("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (folder, env)
}

fn with(env: &[(String, String)], more: &[(&str, &str)]) -> Vec<(String, String)> {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    env.iter().cloned().chain(more).collect()
}

fn secret(env: &[(String, String)], args: &[&str]) -> String {
    let args = [&["keys", "create", "--json", "--scope", "enqueue,read,manage"], args].concat();
    let output = run(&args, env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key: Value = serde_json::from_slice(&output.stdout).unwrap();
    key["secret"].as_str().unwrap().to_owned()
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn preflight(api: &Api, origin: &str) -> Response {
    api.request(Method::OPTIONS, "/v1/jobs")
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "authorization,content-type")
        .send()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_named_origins_may_use_the_api_with_a_key_and_no_others() {
    const PAGE: &str = "https://app.example";
    let (_folder, env) = database();
    let secret = secret(&env, &["--operator"]);
    let api = Api::start(&with(&env, &[("ERRAND__API__CORS_ORIGINS", PAGE)])).await;
    let asked = preflight(&api, PAGE).await;
    assert_eq!(asked.status(), StatusCode::NO_CONTENT, "a browser asks without a key");
    assert_eq!(header(&asked, "access-control-allow-origin"), Some(PAGE));
    assert!(header(&asked, "access-control-allow-headers").unwrap().contains("authorization"));
    assert!(header(&asked, "access-control-allow-methods").unwrap().contains("POST"));
    assert_eq!(header(&asked, "access-control-allow-credentials"), None);
    assert_eq!(header(&asked, "vary"), Some("origin"));

    let list = |origin: &'static str| api.request(Method::GET, "/v1/jobs").header("Origin", origin);
    let answer = list(PAGE).bearer_auth(&secret).send().await.unwrap();
    assert_eq!(
        (answer.status(), header(&answer, "access-control-allow-origin")),
        (StatusCode::OK, Some(PAGE))
    );
    // An error, too, is for the page to read.
    let answer = list(PAGE).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some(PAGE));
    for other in ["https://app.example.evil", "http://app.example", "https://app.example:8443", "null"] {
        let asked = preflight(&api, other).await;
        assert!(!asked.status().is_success(), "{other}");
        assert_eq!(header(&asked, "access-control-allow-origin"), None, "{other}");
        let answer = list(other).bearer_auth(&secret).send().await.unwrap();
        assert_eq!(header(&answer, "access-control-allow-origin"), None, "a browser keeps it from {other}");
    }

    let off = Api::start(&env).await;
    let asked = preflight(&off, PAGE).await;
    assert!(!asked.status().is_success() && header(&asked, "access-control-allow-origin").is_none());
    let every = Api::start(&with(&env, &[("ERRAND__API__CORS_ORIGINS", "*")])).await;
    assert_eq!(
        header(&preflight(&every, "https://any.example").await, "access-control-allow-origin"),
        Some("*")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_allowed_needs_a_key_also_where_programs_need_none() {
    let (_folder, env) = database();
    let api = Api::start(&with(&env, &[("ERRAND__API__CORS_ORIGINS", "https://app.example")])).await;
    let request = api.request(Method::GET, "/v1/jobs").header("Origin", "https://app.example");
    let (status, problem) = read_answer(request.send().await.unwrap()).await;
    assert_eq!((status, kind(&problem)), (StatusCode::FORBIDDEN, "foreign-origin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_over_its_rate_waits_and_others_do_not_notice() {
    let (_folder, env) = database();
    let (busy, other) = (secret(&env, &["--user", "u-busy"]), secret(&env, &["--user", "u-other"]));
    // It gains nothing by sending with many keys, of which each is within the rate.
    let mut keys = vec![busy.clone()];
    keys.extend((0..5).map(|_| secret(&env, &["--user", "u-busy"])));
    let api = Api::start(&with(&env, &[("ERRAND__API__REQUESTS_PER_SECOND", "1")])).await;
    let list = |secret: &str| api.request(Method::GET, "/v1/jobs").bearer_auth(secret);
    let answers = futures_util::future::join_all(keys.iter().map(|key| list(key).send())).await;
    let mut answers = answers.into_iter().map(Result::unwrap);
    let refused = answers.find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).unwrap();
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    let (_, problem) = read_answer(refused).await;
    assert!(problem["detail"].as_str().unwrap().contains("api.requests_per_second"), "{problem}");
    assert_eq!(list(&other).send().await.unwrap().status(), StatusCode::OK);
    until("the busy owner to be let in again", PATIENCE, async || {
        (list(&busy).send().await.unwrap().status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_refused_for_its_rate_is_not_half_there_and_is_whole_when_it_is_sent_again() {
    let (_folder, env) = database();
    let busy = secret(&env, &["--user", "u-busy"]);
    let api = Api::start(&with(&env, &[("ERRAND__API__REQUESTS_PER_SECOND", "1")])).await;
    let batch = json!({"items": [read("u-busy").nameless(), read("u-busy").nameless()]});
    let enqueue = async |key: &str| {
        let request = api.request(Method::POST, "/v1/batches").bearer_auth(&busy).json(&batch);
        request.header("idempotency-key", key).send().await.unwrap()
    };
    let there = |what: &str| {
        let listed = run(&[what, "list", "--json"], &env);
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        String::from_utf8(listed.stdout).unwrap().lines().count()
    };
    // The first is let through, and on a machine that stands still others may be.
    let mut let_in = 0;
    let refused = until("a batch to be refused", PATIENCE, async || {
        let answer = enqueue(&format!("night-{let_in}")).await;
        let is_refused = answer.status() == StatusCode::TOO_MANY_REQUESTS;
        let_in += usize::from(!is_refused);
        is_refused.then_some(answer)
    })
    .await;
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    let (_, problem) = read_answer(refused).await;
    assert!(problem["detail"].as_str().unwrap().contains("`api.requests_per_second`"), "{problem}");
    assert_eq!((there("batches"), there("jobs")), (let_in, 2 * let_in));
    let answer = until("the same batch to be let in", PATIENCE, async || {
        let answer = enqueue(&format!("night-{let_in}")).await;
        (answer.status() != StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    let (status, made) = read_answer(answer).await;
    assert_eq!((status, &made["total"]), (StatusCode::CREATED, &json!(2)), "{made}");
    assert_eq!((there("batches"), there("jobs")), (let_in + 1, 2 * let_in + 2));
}

/// Begins a request with a body of a megabyte and sends only the half of it.
async fn half_a_request(api: &Api, secret: &str) -> TcpStream {
    let mut connection = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n\
         Content-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&[b' '; 1024]).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_one_owner_leave_room_for_those_of_others() {
    let (_folder, env) = database();
    let (greedy, other) = (secret(&env, &["--user", "u-greedy"]), secret(&env, &["--user", "u-other"]));
    let second = secret(&env, &["--user", "u-greedy"]);
    let api = Api::start(&env).await;
    let mut held = Vec::new();
    let refused = until("the greedy owner to be refused", PATIENCE, async || {
        for _ in 0..20 {
            held.push(half_a_request(&api, &greedy).await);
        }
        let request = api.request(Method::POST, "/v1/jobs").bearer_auth(&second).json(&read("u-greedy"));
        let answer = request.send().await.unwrap();
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    let (_, problem) = read_answer(refused).await;
    assert!(problem["detail"].as_str().unwrap().contains("Content-Length"), "{problem}");
    let request = api.request(Method::POST, "/v1/jobs").bearer_auth(&other).json(&read("u-other"));
    let (status, job) = read_answer(request.send().await.unwrap()).await;
    assert_eq!(status, StatusCode::CREATED, "{job}");
    // Who goes away takes nothing along.
    drop(held);
    until("the greedy owner to be let in again", PATIENCE, async || {
        let request = api.request(Method::POST, "/v1/jobs").bearer_auth(&greedy).json(&read("u-greedy"));
        (request.send().await.unwrap().status() == StatusCode::CREATED).then_some(())
    })
    .await;
}

/// A batch that takes items, and a key of its owner.
struct Batch<'a> {
    api: &'a Api,
    secret: String,
    path: String,
}

impl<'a> Batch<'a> {
    async fn open(api: &'a Api, secret: String) -> Self {
        let request = api.request(Method::POST, "/v1/batches").bearer_auth(&secret);
        let (status, made) = read_answer(request.json(&json!({"sealed": false})).send().await.unwrap()).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let path = format!("/v1/batches/{}", made["id"].as_str().unwrap());
        Self { api, secret, path }
    }

    async fn add(&self, from: usize, lines: &str) -> Response {
        let request = self.api.request(Method::POST, &format!("{}/items?from={from}", self.path));
        let request = request.bearer_auth(&self.secret).header("content-type", "application/x-ndjson");
        request.body(lines.to_owned()).send().await.unwrap()
    }

    /// Begins to add these, and sends only the half of them once there is room for all; `None` if there is none.
    async fn add_half(&self, from: usize, lines: &str) -> Option<TcpStream> {
        const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut connection =
            TcpStream::connect(self.api.base.strip_prefix("http://").unwrap()).await.unwrap();
        let (path, secret, length) = (&self.path, &self.secret, lines.len());
        let head = format!(
            "POST {path}/items?from={from} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n\
             Content-Type: application/x-ndjson\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\
             Connection: close\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut told = [0; GO_ON.len()];
        let _read = tokio::time::timeout(PATIENCE, connection.read_exact(&mut told)).await.unwrap().unwrap();
        if told != GO_ON {
            return None;
        }
        connection.write_all(&lines.as_bytes()[..length / 2]).await.unwrap();
        Some(connection)
    }

    /// How many items it has, and how many jobs its owner has.
    async fn stored(&self) -> (u64, usize) {
        let get = async |path: &str| {
            let request = self.api.request(Method::GET, path).bearer_auth(&self.secret);
            read_answer(request.send().await.unwrap()).await.1
        };
        let (batch, jobs) = (get(&self.path).await, get("/v1/jobs").await);
        (batch["total"].as_u64().unwrap(), jobs["items"].as_array().unwrap().len())
    }
}

/// Two items.
fn chunk(user: &str) -> String {
    format!("{0}\n{0}\n", read(user).nameless())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_sent_half_keep_out_further_ones_of_their_owner_until_they_are_whole_or_gone() {
    let (_folder, env) = database();
    let (busy, other) = (secret(&env, &["--user", "u-busy"]), secret(&env, &["--user", "u-other"]));
    let api = Api::start(&env).await;
    let (batch, others) = (Batch::open(&api, busy).await, Batch::open(&api, other).await);
    let small = chunk("u-busy");
    // Two of these are as much as one owner may send at once.
    let largest = format!("{small}{}", " ".repeat(16 * 1024 * 1024 - small.len()));
    let mut first = batch.add_half(0, &largest).await.unwrap();
    let second = batch.add_half(2, &largest).await.unwrap();
    let refused = batch.add(2, &small).await;
    assert_eq!(
        (refused.status(), header(&refused, "retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, Some("1"))
    );
    let (_, problem) = read_answer(refused).await;
    assert!(problem["detail"].as_str().unwrap().contains("send fewer at once"), "{problem}");
    assert_eq!(batch.stored().await, (0, 0));
    assert_eq!(others.add(0, &chunk("u-other")).await.status(), StatusCode::CREATED);

    first.write_all(&largest.as_bytes()[largest.len() / 2..]).await.unwrap();
    let mut answer = String::new();
    let _read = tokio::time::timeout(PATIENCE, first.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(batch.add(2, &small).await.status(), StatusCode::CREATED);
    assert_eq!(batch.stored().await, (4, 4));
    drop(second);
    until("room for two again", PATIENCE, async || {
        let both = (batch.add_half(4, &largest).await, batch.add_half(4, &largest).await);
        matches!(both, (Some(_), Some(_))).then_some(())
    })
    .await;
    until("room for a whole one", PATIENCE, async || {
        (batch.add(4, &small).await.status() == StatusCode::CREATED).then_some(())
    })
    .await;
    assert_eq!(batch.stored().await, (6, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_adds_items_with_two_requests_at_once_and_sends_a_third_one_again() {
    let harness = Harness::new("api-turns", "").await;
    let secret = secret(&harness.env(), &["--user", "user-1"]);
    let api = Api::start(&harness.env()).await;
    let batch = Batch::open(&api, secret).await;
    let items = chunk("user-1");
    // Whoever has a turn waits for this, and gives up after a while.
    let mut locking = harness.database.connect().await.unwrap();
    sqlx::raw_sql("begin; select id from batches for update").execute(&mut locking).await.unwrap();
    let refused = until("one of three to be refused", PATIENCE, async || {
        let answers = futures_util::future::join_all((0..3).map(|_| batch.add(0, &items))).await;
        answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS)
    })
    .await;
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    let (_, problem) = read_answer(refused).await;
    assert!(problem["detail"].as_str().unwrap().contains("add items to batches"), "{problem}");
    assert_eq!(batch.stored().await, (0, 0));
    locking.close().await.unwrap();
    until("the same one to be added", PATIENCE, async || {
        batch.add(0, &items).await.status().is_success().then_some(())
    })
    .await;
    assert_eq!(batch.stored().await, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_and_a_seal_that_are_refused_for_the_rate_are_done_once_they_are_sent_again_in_time() {
    let (_folder, env) = database();
    let busy = secret(&env, &["--user", "u-busy"]);
    let api = Api::start(&with(&env, &[("ERRAND__API__REQUESTS_PER_SECOND", "1")])).await;
    let (batch, items) = (Batch::open(&api, busy).await, chunk("u-busy"));
    let path = format!("{}/seal", batch.path);
    let seal = || api.request(Method::POST, &path).bearer_auth(&batch.secret).send();
    // On a machine that stands still, some are let in before one is refused.
    let (mut total, mut seals) = (0, 0);
    let refused = until("a chunk to be refused", PATIENCE, async || {
        let answer = batch.add(total, &items).await;
        total += 2 * usize::from(answer.status() == StatusCode::CREATED);
        is_refused(&answer).then_some(answer)
    })
    .await;
    as_told(&refused).await;
    let (status, added) = read_answer(batch.add(total, &items).await).await;
    assert_eq!((status, &added["total"]), (StatusCode::CREATED, &json!(total + 2)), "{added}");
    let refused = until("a seal to be refused", PATIENCE, async || {
        let answer = seal().await.unwrap();
        seals += usize::from(answer.status() == StatusCode::OK);
        is_refused(&answer).then_some(answer)
    })
    .await;
    let listed = run(&["batches", "list", "--json"], &env);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed["total"], &listed["sealed"]), (&json!(total + 2), &json!(seals > 0)), "{listed}");
    as_told(&refused).await;
    let (status, sealed) = read_answer(seal().await.unwrap()).await;
    assert_eq!((status, &sealed["sealed"]), (StatusCode::OK, &json!(true)), "{sealed}");
    // Whoever has lost the answer to the last chunk sends it once more.
    let again = until("the chunk to be let in once more", PATIENCE, async || {
        Some(batch.add(total, &items).await).filter(|answer| !is_refused(answer))
    })
    .await;
    let (status, again) = read_answer(again).await;
    assert_eq!((status, &again["total"]), (StatusCode::OK, &json!(total + 2)), "{again}");
}

fn is_refused(answer: &Response) -> bool {
    answer.status() == StatusCode::TOO_MANY_REQUESTS
}

/// Waits for as long as an answer says.
async fn as_told(answer: &Response) {
    let seconds = header(answer, "retry-after").unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_tell_of_requests_by_route_and_not_by_what_is_asked_for() {
    let (_folder, env) = database();
    let process =
        crate::harness::Process::start(&["api", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"], &env);
    process.logged("the API is served").await;
    let address = |message: &str| process.lines(message)[0]["address"].as_str().unwrap().to_owned();
    let (served, metrics) =
        (format!("http://{}", address("the API is served")), address("metrics are served"));
    let client = crate::support::http::client();
    for path in ["/v1/jobs", "/v1/jobs/0190b0a0-0000-7000-8000-000000000001", "/secret-of-a-customer"] {
        drop(client.get(format!("{served}{path}")).send().await.unwrap());
    }
    let job = read("u-alice");
    let created = client.post(format!("{served}/v1/jobs")).json(&job).send().await.unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    let waiting = client.get(format!("{served}/v1/jobs/{}?wait=60", job["id"].as_str().unwrap())).send();
    let waiting = tokio::spawn(waiting);
    let text = until("the figures", PATIENCE, async || {
        let text =
            client.get(format!("http://{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line == "errand_api_waiting_requests 1").then_some(text)
    })
    .await;
    for line in [
        "errand_api_requests_total{method=\"GET\",route=\"/v1/jobs\",status=\"2xx\"} 1",
        "errand_api_requests_total{method=\"GET\",route=\"/v1/jobs/{id}\",status=\"4xx\"} 1",
        "errand_api_requests_total{method=\"GET\",route=\"other\",status=\"4xx\"} 1",
        "errand_api_requests_total{method=\"POST\",route=\"/v1/jobs\",status=\"2xx\"} 1",
        "errand_api_request_duration_seconds_count{method=\"POST\",route=\"/v1/jobs\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("secret-of-a-customer") && !text.contains("u-alice"));
    let open = text.lines().find_map(|line| line.strip_prefix("errand_api_connections ")).unwrap();
    assert!(open.parse::<f64>().unwrap() >= 1.0, "{open}");
    waiting.abort();
}

/// Writes a certificate of its own for 127.0.0.1, and returns it.
fn certify(folder: &Path) -> Certificate {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    // As a tool does it that renews certificates: one after the other.
    std::fs::write(folder.join("certificate.pem"), own.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), own.signing_key.serialize_pem()).unwrap();
    Certificate::from_pem(own.cert.pem().as_bytes()).unwrap()
}

fn trusting(certificate: &Certificate) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
    builder.tls_certs_only([certificate.clone()]).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_speaks_tls_and_takes_a_new_certificate_without_a_restart() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (folder, env) = database();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate_file, key_file) = (file("certificate.pem"), file("key.pem"));
    let env = with(
        &env,
        &[("ERRAND__API__TLS_CERTIFICATE", &certificate_file), ("ERRAND__API__TLS_KEY", &key_file)],
    );
    let first = certify(folder.path());
    let api = Api::start(&env).await;
    let url = format!("{}/v1/jobs", api.base.replace("http://", "https://"));
    let answer = trusting(&first).get(&url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    // Who speaks no TLS is told nothing.
    let mut plain = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    plain.write_all(b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    let _closed = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut told)).await.unwrap();
    assert!(!told.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&told));

    let second = certify(folder.path());
    let client = trusting(&second);
    until("the new certificate", PATIENCE, async || client.get(&url).send().await.ok()).await;
    trusting(&first).get(&url).send().await.unwrap_err();
    // What cannot be used changes nothing.
    std::fs::write(&key_file, "no key").unwrap();
    api.process.logged("the last one stays").await;
    assert_eq!(client.get(&url).send().await.unwrap().status(), StatusCode::OK);
    assert!(!api.process.log().contains("no key"));

    let mut alone = env.clone();
    alone.retain(|(name, _)| name != "ERRAND__API__TLS_KEY");
    let refused = run(&["api", "--listen", "127.0.0.1:0"], &alone);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("TLS needs both"));
    let refused = run(&["api", "--listen", "127.0.0.1:0"], &env);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("key.pem"), "it says which file");
}

#[tokio::test(flavor = "multi_thread")]
async fn origins_are_written_as_browsers_send_them() {
    let (_folder, env) = database();
    for wrong in [
        "app.example",
        "https://app.example/",
        "https://app.example/path",
        "https://App.example",
        "https://*.example",
    ] {
        let refused =
            run(&["api", "--listen", "127.0.0.1:0"], &with(&env, &[("ERRAND__API__CORS_ORIGINS", wrong)]));
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains("api.cors_origins"), "{wrong}: {told}");
    }
}
