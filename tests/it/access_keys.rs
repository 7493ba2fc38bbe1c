//! Access keys of the HTTP API: what they allow, and when they end.

use errand_testbed::factory::{Envelope as _, id, read};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    api::{Api, kind, read_answer, served_by},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// Somebody who uses the API with a key.
struct App<'a> {
    api: &'a Api,
    secret: String,
}

impl App<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.api.request(method, path).bearer_auth(&self.secret)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = read_answer(self.request(Method::GET, path).send().await.unwrap()).await;
        (status.as_u16(), body)
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(Method::POST, path).json(body);
        let (status, body) = read_answer(request.send().await.unwrap()).await;
        (status.as_u16(), body)
    }
}

/// A key that the command line makes.
pub(crate) fn made(env: &[(String, String)], args: &[&str]) -> Value {
    let output = run(&[&["keys", "create", "--json"], args].concat(), env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn app<'a>(api: &'a Api, env: &[(String, String)], args: &[&str]) -> App<'a> {
    App { api, secret: made(env, args)["secret"].as_str().unwrap().to_owned() }
}

pub(crate) fn tomorrow() -> String {
    (Timestamp::now() + SignedDuration::from_hours(24)).to_string()
}

/// A database without a worker.
pub(crate) fn database() -> (tempfile::TempDir, Vec<(String, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = vec![("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (folder, env)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_key_is_for_its_own_jobs_as_if_there_were_no_others() {
    let harness = Harness::new("keys", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let env = harness.env();
    assert_eq!(
        api.post("/v1/jobs", &read("user-2")).await.0,
        StatusCode::CREATED,
        "as long as there are no keys"
    );
    let all = "enqueue,read,manage";
    let user = app(&api, &env, &["--user", "user-1", "--scope", all]);
    let org = app(&api, &env, &["--org", "user-1", "--scope", all]);
    let operator = app(&api, &env, &["--operator", "--scope", all]);
    until("keys are asked for", PATIENCE, async || {
        (api.get("/v1/jobs").await.0 == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;

    let job = read("user-1");
    let request = user.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&job);
    let (status, done) = read_answer(request.send().await.unwrap()).await;
    assert_eq!((status, &done["state"]), (StatusCode::OK, &json!("succeeded")), "{done}");
    for owner in [json!({"user_id": "user-2"}), json!({"org_id": "user-1"})] {
        let (kind_of_owner, owner_id) = owner.as_object().unwrap().iter().next().unwrap();
        let foreign = json!({kind_of_owner: owner_id, "tool": "GITHUB_GET_REPO", "arguments": {}});
        let (status, problem) = user.post("/v1/jobs", &foreign).await;
        assert_eq!((status, kind(&problem)), (403, "forbidden"), "{problem}");
    }
    assert_eq!(harness.count("true").await, 2);

    let path = format!("/v1/jobs/{}", job.id());
    let unknown = format!("/v1/jobs/{}", id());
    for action in ["", "?wait=1"] {
        assert_eq!(org.get(&(path.clone() + action)).await, org.get(&(unknown.clone() + action)).await);
        assert_eq!(org.get(&(path.clone() + action)).await.0, 404);
    }
    for action in ["/cancel", "/retry"] {
        let told = org.post(&(path.clone() + action), &json!({})).await;
        assert_eq!(told, org.post(&(unknown.clone() + action), &json!({})).await);
        assert_eq!(told.0, 404);
    }
    let listed = async |app: &App<'_>, query: &str| {
        let (status, list) = app.get(&format!("/v1/jobs{query}")).await;
        assert_eq!(status, 200, "{list}");
        list["items"].as_array().unwrap().len()
    };
    assert_eq!((listed(&user, "").await, listed(&org, "").await, listed(&operator, "").await), (1, 0, 2));
    assert_eq!(listed(&org, "?owner=user:user-1").await, 0);

    let (status, again) = user.post(&format!("{path}/retry"), &json!({"force": true})).await;
    assert_eq!(status, 409, "it succeeded: {again}");
    let later = read("user-1").with("run_at", tomorrow());
    assert_eq!(user.post("/v1/jobs", &later).await.0, 201);
    let (status, cancelled) = user.post(&format!("/v1/jobs/{}/cancel", later.id()), &json!({})).await;
    let by = cancelled["history"][0]["by"].as_str().unwrap();
    assert!(status == 200 && by.starts_with("key 0"), "{cancelled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_what_its_scopes_name_and_nothing_else() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    let enqueue = app(&api, &env, &["--user", "user-1", "--scope", "enqueue"]);
    let reader = app(&api, &env, &["--user", "user-1", "--scope", "read"]);
    let manager = app(&api, &env, &["--user", "user-1", "--scope", "manage"]);
    let job = read("user-1").with("run_at", tomorrow());
    let path = format!("/v1/jobs/{}", job.id());
    for app in [&reader, &manager] {
        let (status, problem) = app.post("/v1/jobs", &job).await;
        assert_eq!((status, kind(&problem)), (403, "forbidden"));
        assert!(problem["detail"].as_str().unwrap().contains("`enqueue`"), "{problem}");
    }
    assert_eq!(enqueue.post("/v1/jobs", &job).await, (201, json!({"id": job.id()})), "no more is told");
    assert_eq!(enqueue.post("/v1/jobs", &job).await, (200, json!({"id": job.id()})));
    let waiting = enqueue.request(Method::POST, "/v1/jobs").header("prefer", "wait=1").json(&read("user-1"));
    assert_eq!(read_answer(waiting.send().await.unwrap()).await.0, StatusCode::FORBIDDEN);
    for app in [&enqueue, &manager] {
        for path in [path.as_str(), "/v1/jobs"] {
            assert_eq!(app.get(path).await.0, 403);
        }
    }
    for app in [&enqueue, &reader] {
        for path in ["/cancel", "/retry", "/release"].map(|action| path.clone() + action) {
            assert_eq!(app.post(&path, &json!({"how": "retry"})).await.0, 403);
        }
        assert_eq!(app.get("/v1/keys").await.0, 403);
        assert_eq!(app.post("/v1/keys", &json!({"scopes": ["read"]})).await.0, 403);
    }
    let (status, shown) = reader.get(&path).await;
    assert_eq!((status, &shown["state"]), (200, &json!("scheduled")), "nothing was changed");
    assert_eq!(reader.get("/v1/jobs").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(manager.post(&format!("{path}/cancel"), &json!({})).await, (200, json!({"id": job.id()})));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_rotated_and_revoked_with_keys_that_may_do_as_much() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    let operator = app(&api, &env, &["--operator", "--scope", "read,manage"]);
    let (status, org) =
        operator.post("/v1/keys", &json!({"org_id": "a", "scopes": ["read", "manage"]})).await;
    assert_eq!((status, &org["owner"]), (201, &json!({"kind": "org", "id": "a"})), "{org}");
    let org = App { api: &api, secret: org["secret"].as_str().unwrap().to_owned() };
    for (body, status) in [
        (json!({"org_id": "a", "scopes": ["enqueue"]}), 403),
        (json!({"scopes": ["read"]}), 400),
        (json!({"user_id": "a", "org_id": "a", "scopes": ["read"]}), 400),
        (json!({"user_id": "", "scopes": ["read"]}), 400),
        (json!({"operator": true, "scopes": []}), 400),
        (json!({"operator": true, "scopes": ["write"]}), 400),
        (json!({"operator": true, "scope": ["read"]}), 400),
    ] {
        assert_eq!(operator.post("/v1/keys", &body).await.0, status, "{body}");
    }
    for foreign in
        [json!({"user_id": "a", "scopes": ["read"]}), json!({"operator": true, "scopes": ["read"]})]
    {
        let (status, problem) = org.post("/v1/keys", &foreign).await;
        assert_eq!((status, kind(&problem)), (403, "forbidden"), "{foreign}");
    }
    let (status, own) = org.post("/v1/keys", &json!({"scopes": ["read"], "expires_in_secs": 3600})).await;
    assert_eq!(status, 201, "{own}");
    assert!(own["expires_at"].is_string());
    let (_, keys) = org.get("/v1/keys").await;
    assert_eq!(keys["items"].as_array().unwrap().len(), 2);
    assert!(!keys.to_string().contains("secret"), "{keys}");
    assert_eq!(operator.get("/v1/keys").await.1["items"].as_array().unwrap().len(), 3);
    let (_, page) = operator.get("/v1/keys?limit=2").await;
    let (_, rest) =
        operator.get(&format!("/v1/keys?limit=2&cursor={}", page["next"].as_str().unwrap())).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));

    let operators = page["items"].as_array().unwrap().iter().chain(rest["items"].as_array().unwrap());
    let operators = operators.into_iter().find(|key| key["owner"].is_null()).unwrap()["id"].as_str().unwrap();
    let unknown = id();
    for action in ["rotate", "revoke"] {
        let told = org.post(&format!("/v1/keys/{operators}/{action}"), &json!({})).await;
        assert_eq!(told, org.post(&format!("/v1/keys/{unknown}/{action}"), &json!({})).await);
        assert_eq!(told.0, 404);
    }
    assert_eq!(org.get(&format!("/v1/keys/{operators}")).await.0, 404);

    let path = format!("/v1/keys/{}", own["id"].as_str().unwrap());
    let (status, rotated) = org.post(&format!("{path}/rotate"), &json!({"overlap_secs": 60})).await;
    assert_eq!((status, &rotated["scopes"]), (201, &json!(["read"])), "{rotated}");
    for secret in [&own["secret"], &rotated["secret"]] {
        let app = App { api: &api, secret: secret.as_str().unwrap().to_owned() };
        assert_eq!(app.get("/v1/jobs").await.0, 200);
    }
    assert_eq!(org.get(&path).await.1["replaced_by"], rotated["id"]);
    assert_eq!(org.post(&format!("{path}/revoke"), &json!({})).await.0, 200);
    let ended = App { api: &api, secret: own["secret"].as_str().unwrap().to_owned() };
    until("the key is refused", PATIENCE, async || (ended.get("/v1/jobs").await.0 == 401).then_some(()))
        .await;
    assert_eq!(org.post(&format!("{path}/rotate"), &json!({})).await.0, 409);

    // What a key makes ends with it, unless it takes its place.
    let (_, brief) = operator
        .post("/v1/keys", &json!({"user_id": "b", "scopes": ["read", "manage"], "expires_in_secs": 600}))
        .await;
    let ends: Timestamp = brief["expires_at"].as_str().unwrap().parse().unwrap();
    let user = App { api: &api, secret: brief["secret"].as_str().unwrap().to_owned() };
    for wanted in [json!({"scopes": ["read"]}), json!({"scopes": ["read"], "expires_in_secs": 6000})] {
        let (status, made) = user.post("/v1/keys", &wanted).await;
        let made: Timestamp = made["expires_at"].as_str().unwrap().parse().unwrap();
        assert!(status == 201 && made <= ends + SignedDuration::from_secs(1), "{made} {ends}");
    }
    let path = format!("/v1/keys/{}/rotate", brief["id"].as_str().unwrap());
    assert_eq!(user.post(&path, &json!({"overlap_secs": 100_000_000})).await.0, 400);
    let (status, next) = user.post(&path, &json!({})).await;
    let next: Timestamp = next["expires_at"].as_str().unwrap().parse().unwrap();
    assert!(status == 201 && next >= ends, "{next} {ends}");
    assert_eq!(user.post(&path, &json!({})).await.0, 409, "it was replaced before");
}

/// Sends a request to enqueue a job, of which the body comes when `meanwhile` has come true after the head was judged.
async fn with_a_slow_body(
    api: &Api,
    secret: Option<&str>,
    job: &Value,
    meanwhile: impl AsyncFnOnce(),
) -> String {
    let address = api.base.strip_prefix("http://").unwrap();
    let authorization =
        secret.map(|secret| format!("Authorization: Bearer {secret}\r\n")).unwrap_or_default();
    let body = job.to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: {address}\r\n{authorization}Content-Type: application/json\r\n\
         Connection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The body is asked for by who has let the head pass.
    let mut asked = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut asked).await.unwrap();
    assert!(asked.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&asked));
    meanwhile().await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_after_the_end_of_its_key_does_nothing() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    // Before the first key, and finished after it.
    let answer = with_a_slow_body(&api, None, &read("user-1"), async || {
        made(&env, &["--operator", "--scope", "read"]);
        until("keys are required", PATIENCE, async || {
            (api.get("/v1/jobs").await.0 == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let key = made(&env, &["--user", "user-1", "--scope", "enqueue,read"]);
    let app = App { api: &api, secret: key["secret"].as_str().unwrap().to_owned() };
    let answer = with_a_slow_body(&api, Some(&app.secret), &read("user-1"), async || {
        assert!(run(&["keys", "revoke", key["id"].as_str().unwrap()], &env).status.success());
        until("it is refused", PATIENCE, async || (app.get("/v1/jobs").await.0 == 401).then_some(())).await;
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let jobs = run(&["jobs", "list", "--json"], &env);
    assert_eq!(String::from_utf8_lossy(&jobs.stdout), "", "nothing was enqueued");
    // That there was a key is not forgotten with the last one, and not by another process.
    assert!(run(&["erase", "--owner", "user:user-1"], &env).status.success());
    assert_eq!(Api::start(&env).await.get("/v1/jobs").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_passes_on_needs_a_key() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    for name in ["x-forwarded-for", "forwarded", "via"] {
        let request = api.request(Method::GET, "/v1/jobs").header(name, "192.0.2.1");
        let (status, problem) = read_answer(request.send().await.unwrap()).await;
        assert_eq!((status.as_u16(), kind(&problem)), (403, "foreign-origin"), "{name}");
    }
    let key = app(&api, &env, &["--operator", "--scope", "read"]);
    let request = key.request(Method::GET, "/v1/jobs").header("x-forwarded-for", "192.0.2.1");
    assert_eq!(read_answer(request.send().await.unwrap()).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_with_a_key_that_is_revoked_meanwhile_is_told_nothing() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    let made = made(&env, &["--user", "user-1", "--scope", "enqueue,read"]);
    let app = App { api: &api, secret: made["secret"].as_str().unwrap().to_owned() };
    let job = read("user-1");
    assert_eq!(app.post("/v1/jobs", &job).await.0, 201);
    let waiting = app.request(Method::GET, &format!("/v1/jobs/{}?wait=10", job.id()));
    let waiting = tokio::spawn(async move { waiting.send().await.unwrap() });
    assert!(run(&["keys", "revoke", made["id"].as_str().unwrap()], &env).status.success());
    let (status, problem) = read_answer(waiting.await.unwrap()).await;
    assert_eq!((status, kind(&problem)), (StatusCode::UNAUTHORIZED, "unauthorized"));
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_slowed_and_keys_that_are_known_are_not() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    let known = app(&api, &env, &["--user", "user-1", "--scope", "read"]);
    let other = app(&api, &env, &["--user", "b", "--scope", "read"]);
    assert_eq!(known.get("/v1/jobs").await.0, 200);
    let guess = |guess: u32| {
        let secret = format!("{}{guess:08x}", &known.secret[..known.secret.len() - 8]);
        App { api: &api, secret }
    };
    let slowed = until("guesses are slowed", PATIENCE, async || {
        for number in 0..30 {
            let answer = guess(number).request(Method::GET, "/v1/jobs").send().await.unwrap();
            let headers = answer.headers().clone();
            let (status, problem) = read_answer(answer).await;
            match status.as_u16() {
                401 => assert_eq!(headers["www-authenticate"], "Bearer"),
                429 => return Some((headers["retry-after"].clone(), problem)),
                status => panic!("{status}: {problem}"),
            }
        }
        None
    })
    .await;
    assert_eq!((slowed.0.to_str().unwrap(), kind(&slowed.1)), ("10", "too-many-requests"));
    assert_eq!(known.get("/v1/jobs").await.0, 200);
    until("it is over", PATIENCE, async || (other.get("/v1/jobs").await.0 == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_every_request_needs_a_key_and_any_name_will_do() {
    let (_folder, env) = database();
    let refused = run(&["api", "--listen", "0.0.0.0:0"], &env);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("errand keys create"));
    let made = made(&env, &["--operator", "--scope", "read"]);
    let api = Api::listening("0.0.0.0:0", &env).await;
    let app = App { api: &api, secret: made["secret"].as_str().unwrap().to_owned() };
    let named = app.request(Method::GET, "/v1/jobs").header("host", "errand.example").send().await.unwrap();
    assert_eq!(read_answer(named).await.0, StatusCode::OK);
    for authorization in
        ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer errand_", "Bearer ak_test_good", &app.secret]
    {
        let request = api.request(Method::GET, "/v1/jobs").header("authorization", authorization);
        let (status, problem) = read_answer(request.send().await.unwrap()).await;
        assert_eq!((status.as_u16(), kind(&problem)), (401, "unauthorized"), "{authorization}: {problem}");
    }
    assert_eq!(api.get("/v1/jobs").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(api.get("/v1/nothing").await.0, StatusCode::UNAUTHORIZED, "not even what paths there are");
    let secret = app.secret.as_str();
    assert!(!api.process.log().contains(&secret[secret.len() - 32..]), "no secret is logged");
}

/// `errand api` does not begin without a key there. A worker runs its jobs in any case.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_api_is_beyond_loopback_takes_nothing_before_there_is_a_key() {
    let harness = Harness::new("keyless", "").await;
    let mut api = served_by(harness.worker(&[("ERRAND__API__LISTEN", "0.0.0.0:0")]).await).await;
    api.base = api.base.replace("0.0.0.0", "127.0.0.1");
    let job = read("user-1");
    for path in ["/v1/jobs", "/v1/keys", "/v1/queues", "/v1/audit-log"] {
        let (status, problem) = api.get(path).await;
        assert_eq!((status.as_u16(), kind(&problem)), (401, "unauthorized"), "{path}: {problem}");
    }
    for (path, body) in [
        ("/v1/jobs", job.clone()),
        ("/v1/jobs?dry_run=true", job.clone()),
        ("/v1/batches", json!({"items": [job]})),
        ("/v1/actions", json!({"action": "cancel", "all": true})),
        ("/v1/keys", json!({"operator": true, "scopes": ["read"]})),
        ("/v1/queues/default/pause", json!({"reason": "none"})),
    ] {
        let (status, problem) = api.post(path, &body).await;
        assert_eq!((status.as_u16(), kind(&problem)), (401, "unauthorized"), "{path}: {problem}");
    }
    for table in ["jobs", "batches", "actions", "access_keys", "paused_queues", "changes"] {
        let rows = harness.text(&format!("select count(*)::text from {table}")).await;
        assert_eq!(rows.as_deref(), Some("0"), "{table}");
    }
    harness.called(0).await;
    let user = app(&api, &harness.env(), &["--user", "user-1", "--scope", "enqueue,read"]);
    assert_eq!(user.post("/v1/jobs", &job).await.0, 201, "there it is served");
}
