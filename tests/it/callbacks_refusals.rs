//! What cannot be sent by callbacks, what cannot be asked of them, and by whom.

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    access_keys::{database, made},
    api::{Api, kind, read_answer},
    callbacks::{Place, Receiver, SENDS, calling},
    callbacks_faults::Odd,
    enqueue_by_sql::{Role, all_are_taken_in, enqueue},
    event_streams::text,
    harness::{Harness, PATIENCE},
    publishers::rejected,
    support::wait::until,
};

/// What no answer may repeat of a URL.
const SECRET: &str = "hunter2";

/// What no callback can be sent to.
fn bad_urls() -> Vec<String> {
    let long = format!("https://app.example/{SECRET}/");
    let mut all = vec![long.clone() + &"x".repeat(1_025 - long.len())];
    let others = [
        "ftp://app.example/hunter2",
        "mailto:hunter2@app.example",
        "https://app:hunter2@app.example/",
        "https://hunter2@app.example/",
        "https://app.example/#hunter2",
        "https://?hunter2",
        "/hunter2",
        "https://app.example/a hunter2",
        "https://app.example:99999/hunter2",
        "",
    ];
    all.extend(others.map(str::to_owned));
    all
}

/// An API on a SQLite file that takes callbacks, without a worker.
async fn alone() -> (TempDir, Vec<(String, String)>, Api) {
    let (folder, mut env) = database();
    env.extend(SENDS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let api = Api::start(&env).await;
    (folder, env, api)
}

/// How somebody with this key is answered, or without one.
async fn told(api: &Api, secret: &str, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
    let mut request = api.request(method, path);
    if !secret.is_empty() {
        request = request.bearer_auth(secret);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let (status, answer) = read_answer(request.send().await.unwrap()).await;
    (status.as_u16(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_this_host_or_its_network_however_it_is_named() {
    let harness = Harness::new("callbacks-private", "").await;
    // As it is without settings of networks.
    let place = Place::of(harness, &SENDS[..1]).await;
    let odd = Odd::new(|stream| async move { drop(stream) }).await;
    let port = odd.port;
    let urls = [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://2130706433:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://[::1]:{port}/"),
        format!("https://localhost:{port}/"),
        format!("http://localhost:{port}/"),
        "https://10.0.0.1/".to_owned(),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://[::ffff:192.168.1.1]/".to_owned(),
        "https://[fe80::1]/".to_owned(),
        "https://0.0.0.0/".to_owned(),
    ];
    let jobs: Vec<Value> = urls.iter().map(|url| calling("user-1", url)).collect();
    place.harness.publish(&jobs).await;
    for (job, url) in jobs.iter().zip(&urls) {
        let refused = place.failed(job, "refused_address").await;
        assert_eq!((&refused["state"], &refused["last_status"]), (&json!("waiting"), &Value::Null), "{url}");
    }
    assert_eq!(odd.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_a_network_that_is_allowed_is_sent_to_unless_it_is_refused() {
    let refused = ("ERRAND__CALLBACKS__REFUSED_NETWORKS", "127.0.0.2");
    let place = Place::with("callbacks-allowed", "", &[refused]).await;
    let receiver = Receiver::new().await;
    let by_name = receiver.url("name").replace("127.0.0.1", "localhost");
    let elsewhere = ["https://10.0.0.1/", &receiver.url("").replace("127.0.0.1", "127.0.0.2")]
        .map(|url| calling("user-1", url));
    place.harness.publish(&[&[calling("user-1", &by_name)], &elsewhere[..]].concat()).await;
    assert_eq!(receiver.has(1).await[0].path, "/name");
    for job in &elsewhere {
        place.failed(job, "refused_address").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_asks_for_callbacks_at_the_broker_runs_where_none_are_sent() {
    let harness = Harness::new("callbacks-off", "").await;
    let _worker = harness.worker(&[("ERRAND__EVENTS__RECORD", "all")]).await;
    let job = calling("user-1", "https://app.example/hunter2");
    harness.publish(&[job, read("user-1")]).await;
    harness.counts("state = 'succeeded'", 2).await;
    assert_eq!(harness.text("select count(*)::text from deliveries").await.as_deref(), Some("0"));
    // A URL to which nothing can be sent is refused with the message.
    harness.publish(&[calling("user-1", "ftp://app.example/hunter2")]).await;
    until("it is rejected", PATIENCE, async || {
        (rejected(&harness).iter().any(|(_, reason)| reason == "bad_value")).then_some(())
    })
    .await;
    let why = harness.text("select message from rejected").await.unwrap();
    assert!(why.contains("`callback`") && !why.contains(SECRET), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_enqueued_by_sql_is_told_of_too() {
    let place = Place::new("callbacks-sql", "").await;
    let receiver = Receiver::new().await;
    let mut db = Role::that_enqueues(&place.harness, "shop").await.connect().await;
    let id = enqueue(&mut db, &calling("user-1", &receiver.url("sql")).nameless()).await;
    let without = enqueue(&mut db, &read("user-1").nameless().with("callback", Value::Null)).await;
    assert_eq!(receiver.has(1).await[0].json()["data"]["job_id"], json!(id));
    all_are_taken_in(&place.harness).await;
    place.harness.job_in(&without, &["succeeded"]).await;
    assert_eq!(receiver.came().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_to_which_nothing_can_be_sent_is_refused_without_being_repeated() {
    let (_folder, _env, api) = alone().await;
    for url in bad_urls() {
        let named = json!({ "url": url });
        let job = read("user-1").with("callback", named.clone());
        let batch = json!({"user_id": "user-1", "callback": named, "items": [read("user-1")]});
        let items = json!({"user_id": "user-1", "items": [job]});
        for (method, path, body, status) in [
            (Method::PUT, "/v1/callbacks?owner=user:user-1", &named, 400),
            (Method::POST, "/v1/jobs", &job, 422),
            (Method::POST, "/v1/batches", &batch, 400),
            (Method::POST, "/v1/batches", &items, 422),
        ] {
            let (found, problem) = told(&api, "", method, path, Some(body)).await;
            assert_eq!(found, status, "{path} {url}: {problem}");
            assert!(!problem.to_string().contains(SECRET), "{path} {url}: {problem}");
            if path == "/v1/jobs" {
                assert_eq!(problem["errors"][0]["pointer"], "/callback", "{problem}");
            }
        }
    }
    for path in ["/v1/callbacks", "/v1/jobs", "/v1/batches"] {
        assert_eq!(api.get(path).await.1["items"], json!([]), "{path}");
    }
    // As long as a URL may be.
    let longest = format!("https://app.example/{}", "x".repeat(1_004));
    let path = "/v1/callbacks?owner=user:user-1";
    let (status, set) = told(&api, "", Method::PUT, path, Some(&json!({ "url": longest }))).await;
    assert_eq!((status, &set["url"]), (200, &json!(longest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_callbacks_are_sent_none_can_be_set_and_what_was_set_can_be_taken_back() {
    let (_folder, mut env) = database();
    env.push(("ERRAND__EVENTS__RECORD".to_owned(), "all".to_owned()));
    let api = Api::start(&env).await;
    let url = json!({"url": "https://app.example/"});
    let path = "/v1/callbacks?owner=user:user-1";
    let (status, problem) = told(&api, "", Method::PUT, path, Some(&url)).await;
    assert_eq!((status, kind(&problem)), (409, "not-recorded"), "{problem}");
    let batch = json!({"user_id": "user-1", "callback": url, "items": [read("user-1")]});
    let (status, problem) = told(&api, "", Method::POST, "/v1/batches", Some(&batch)).await;
    assert_eq!((status, kind(&problem)), (409, "not-recorded"), "{problem}");
    let (status, problem) =
        told(&api, "", Method::POST, "/v1/jobs", Some(&read("user-1").with("callback", url))).await;
    assert_eq!((status, kind(&problem)), (422, "invalid-job"), "{problem}");
    let (status, none) = told(&api, "", Method::DELETE, path, None).await;
    assert_eq!((status, &none["url"]), (200, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_are_seen_and_changed_by_whoever_may_and_by_nobody_else() {
    let (_folder, env, api) = alone().await;
    let key = |args: &[&str]| made(&env, args)["secret"].as_str().unwrap().to_owned();
    let all = ["--scope", "enqueue,read,manage"];
    let [own, foreign, operator] = [["--user", "user-1"].as_slice(), &["--user", "user-2"], &["--operator"]]
        .map(|who| key(&[who, &all].concat()));
    let [reads, manages] =
        ["enqueue,read", "enqueue,manage"].map(|scopes| key(&["--user", "user-1", "--scope", scopes]));
    until("keys are asked for", PATIENCE, async || {
        (api.get("/v1/callbacks").await.0 == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let (url, since) =
        (json!({"url": "https://app.example/s3cret"}), json!({"since": "2020-01-01T00:00:00Z"}));
    let changes: [(Method, &str, &Value); 3] = [
        (Method::PUT, "/v1/callbacks", &url),
        (Method::POST, "/v1/callbacks/secret", &json!({})),
        (Method::POST, "/v1/callbacks/recover", &since),
    ];
    let named = |path: &str, owner: &str| format!("{path}?owner={owner}");
    for (method, path, body) in &changes {
        let ask = async |secret: &str, path: &str| told(&api, secret, method.clone(), path, Some(body)).await;
        for (secret, path, status) in [
            (&own, (*path).to_owned(), 200),
            (&own, named(path, "user:user-1"), 200),
            (&manages, named(path, "user:user-1"), 200),
            (&operator, named(path, "user:user-1"), 200),
            (&foreign, named(path, "user:user-1"), 403),
            (&own, named(path, "org:user-1"), 403),
            (&reads, named(path, "user:user-1"), 403),
            (&operator, (*path).to_owned(), 400),
            (&operator, named(path, "user-1"), 400),
            (&operator, named(path, "user:"), 400),
            (&own, format!("{path}?whose=user:user-1"), 400),
        ] {
            let (found, answer) = ask(secret, &path).await;
            assert_eq!(found, status, "{method} {path}: {answer}");
        }
        assert_eq!(told(&api, "", method.clone(), path, Some(body)).await.0, 401);
    }
    for path in ["/v1/callbacks", "/v1/deliveries"] {
        let get = async |secret: &str, query: &str| {
            told(&api, secret, Method::GET, &format!("{path}{query}"), None).await
        };
        assert_eq!(get(&manages, "").await.0, 403, "{path}");
        assert_eq!(get(&foreign, "").await.1["items"], json!([]), "{path}");
        for query in
            ["?cursor=1", "?cursor=j1.0190b0a0-0000-7000-8000-000000000001", "?limit=0", "?since=now"]
        {
            assert_eq!(get(&reads, query).await.0, 400, "{path}{query}");
        }
    }
    for (secret, seen) in [(&reads, 1), (&operator, 1), (&foreign, 0)] {
        let (_, list) = told(&api, secret, Method::GET, "/v1/callbacks", None).await;
        assert_eq!(list["items"].as_array().unwrap().len(), seen, "{list}");
    }
    let next = "/v1/callbacks?limit=1";
    let (_, page) = told(&api, &operator, Method::GET, next, None).await;
    let rest = format!("{next}&cursor={}", text(&page, "next"));
    assert_eq!(told(&api, &operator, Method::GET, &rest, None).await.1, json!({"items": [], "next": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_of_a_request_about_callbacks_changes_nothing() {
    let (_folder, _env, api) = alone().await;
    let owner = "?owner=user:user-1";
    for (path, body) in [
        ("/v1/callbacks", json!({"url": 7})),
        ("/v1/callbacks", json!({"url": ["https://app.example/"]})),
        ("/v1/callbacks", json!({"urls": "https://app.example/"})),
        ("/v1/callbacks", json!(["https://app.example/"])),
        ("/v1/callbacks/secret", json!({"replace": "yes"})),
        ("/v1/callbacks/secret", json!({"replace": true, "overlap_secs": 7_776_001})),
        ("/v1/callbacks/secret", json!({"replace": true, "overlap_secs": -1})),
        ("/v1/callbacks/secret", json!({"secret": "whsec_AAAA"})),
        ("/v1/callbacks/recover", json!({})),
        ("/v1/callbacks/recover", json!({"since": null})),
        ("/v1/callbacks/recover", json!({"since": "yesterday"})),
        ("/v1/callbacks/recover", json!({"since": "2020-01-01T00:00:00Z", "cursor": "1"})),
        (
            "/v1/callbacks/recover",
            json!({"since": "2020-01-01T00:00:00Z", "cursor": "j1.0190b0a0-0000-7000-8000-000000000001"}),
        ),
    ] {
        let method = if path == "/v1/callbacks" { Method::PUT } else { Method::POST };
        let (status, problem) = told(&api, "", method, &format!("{path}{owner}"), Some(&body)).await;
        assert_eq!((status, kind(&problem)), (400, "bad-request"), "{path} {body}: {problem}");
    }
    // Nobody's secret signs what is the operator's.
    let batch = json!({"callback": {"url": "https://app.example/"}, "items": [read("user-1")]});
    let (status, problem) = told(&api, "", Method::POST, "/v1/batches", Some(&batch)).await;
    assert_eq!(status, 400, "{problem}");
    assert!(text(&problem, "detail").contains("`callback` needs an owner"), "{problem}");
    for path in ["/v1/batches", "/v1/callbacks", "/v1/audit-log"] {
        assert_eq!(api.get(path).await.1["items"], json!([]), "{path}");
    }
}
