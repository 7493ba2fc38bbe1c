//! Pins, tools, accounts and rejected messages over HTTP: each path with a good answer, with wrong requests, and where the
//! process knows no tool API.

use errand::{
    app,
    config::{self, Sources},
    job::EnvelopeReason,
};
use errand_sandbox::Running;
use errand_testbed::factory::{Envelope as _, id, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    api::{Api, kind, read_answer},
    cli::decisions::rejected,
    harness::{PATIENCE, in_memory, run, sandbox},
    support::wait::until,
};

const VERSION: &str = "20251027_00";
const OLDER: &str = "20250905_00";
const NEVER: &str = "20990101_00";

/// An `errand api` with a database and a sandbox, and without a worker and a broker.
struct Place {
    sandbox: Running,
    env: Vec<(String, String)>,
    api: Api,
    _folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        let (folder, sandbox) = (in_memory("errand-desk-"), sandbox("").await);
        let url = format!("sqlite://{}", folder.path().join("errand.db").display());
        let env = [
            ("DATABASE_URL", url),
            ("COMPOSIO_BASE_URL", sandbox.base_url()),
            ("COMPOSIO_API_KEY", "ak_test_good".to_owned()),
        ];
        let env: Vec<_> = env.map(|(name, value)| (name.to_owned(), value)).into();
        assert!(run(&["migrate"], &env).status.success());
        let api = Api::start(&env).await;
        Self { sandbox, env, api, _folder: folder }
    }

    /// Another `errand api` of the same database, with another setting.
    async fn with(&self, name: &str, value: &str) -> Api {
        let more = (name.to_owned(), value.to_owned());
        Api::start(&self.env.iter().cloned().chain([more]).collect::<Vec<_>>()).await
    }

    /// The secret of a new key with all scopes, from which on requests without one are refused.
    async fn key(&self, whose: &[&str], scopes: &str) -> String {
        let made = run(&[&["keys", "create", "--scope", scopes], whose].concat(), &self.env);
        assert!(made.status.success(), "{made:?}");
        until("keys are asked for", PATIENCE, async || {
            (self.api.get("/v1/jobs").await.0 == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Keeps a message that is no job, as a worker would.
    async fn reject(&self, body: &[u8], reason: EnvelopeReason) -> String {
        let sources = Sources { file: None, env: self.env.iter().cloned().collect() };
        let store = app::open_store(&config::load(&sources).unwrap().config).unwrap();
        let message = rejected(Uuid::now_v7(), body, reason);
        let id = message.id.to_string();
        store.reject(&[message]).await.unwrap();
        store.close().await;
        id
    }
}

/// Asks with a key, or without one, and with a body, where there is one.
async fn ask(api: &Api, method: Method, path: &str, key: Option<&str>, body: Option<&Value>) -> (u16, Value) {
    let mut request = api.request(method, path);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await.unwrap();
    if answer.status() == StatusCode::NO_CONTENT {
        assert_eq!(answer.text().await.unwrap(), "");
        return (204, Value::Null);
    }
    let (status, body) = read_answer(answer).await;
    (status.as_u16(), body)
}

/// What a request is refused with.
async fn refused(api: &Api, method: Method, path: &str, body: Option<&Value>) -> (u16, String) {
    let (status, problem) = ask(api, method, path, None, body).await;
    (status, kind(&problem).to_owned())
}

fn said(status: u16, kind: &str) -> (u16, String) {
    (status, kind.to_owned())
}

fn version(version: &str) -> Value {
    json!({"version": version})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_set_listed_and_removed_and_what_cannot_be_one_is_refused() {
    let place = Place::new().await;
    let api = &place.api;
    let set = async |path: &str, body: &Value| ask(api, Method::PUT, path, None, Some(body)).await;
    let of_all = json!({"toolkit": "github", "version": OLDER, "owner": null, "pinned_by": "global"});
    assert_eq!(set("/v1/pins/github", &version(OLDER)).await, (200, of_all.clone()));
    let own = json!({
        "toolkit": "github", "version": VERSION, "owner": {"kind": "user", "id": "user-1"}, "pinned_by": "owner",
    });
    assert_eq!(set("/v1/pins/github?owner=user:user-1", &version(VERSION)).await, (200, own.clone()));
    let list = async || ask(api, Method::GET, "/v1/pins", None, None).await;
    let (status, listed) = list().await;
    assert_eq!((status, &listed["next"]), (200, &Value::Null));
    assert_eq!(listed["items"], json!([of_all, own]), "{listed}");

    for (path, body, status, expected) in [
        ("/v1/pins/github", json!({}), 400, "bad-request"),
        ("/v1/pins/github", version("latest"), 400, "bad-request"),
        ("/v1/pins/github", json!({"version": VERSION, "owner": "user:u"}), 400, "bad-request"),
        ("/v1/pins/github", json!([VERSION]), 400, "bad-request"),
        ("/v1/pins/GitHub", version(VERSION), 400, "bad-request"),
        ("/v1/pins/github?owner=user-1", version(VERSION), 400, "bad-request"),
        ("/v1/pins/github?force=perhaps", version(VERSION), 400, "bad-request"),
        ("/v1/pins/github?user=user-1", version(VERSION), 400, "bad-request"),
        ("/v1/pins/github", version(NEVER), 409, "wrong-state"),
        ("/v1/pins/nosuch", version(VERSION), 409, "wrong-state"),
    ] {
        let told = refused(api, Method::PUT, path, Some(&body)).await;
        assert_eq!(told, said(status, expected), "{path} {body}");
    }
    assert_eq!(refused(api, Method::GET, "/v1/pins?owner=user:u", None).await, said(400, "bad-request"));
    assert_eq!(list().await.1, listed, "nothing of this is pinned");
    // Whoever says so pins what the tool API does not know.
    let (status, forced) = set("/v1/pins/github?force=true", &version(NEVER)).await;
    assert_eq!((status, &forced["version"]), (200, &json!(NEVER)));

    let remove = async |path: &str| ask(api, Method::DELETE, path, None, None).await;
    assert_eq!(remove("/v1/pins/github").await.0, 204);
    assert_eq!(remove("/v1/pins/github?owner=user:user-1").await.0, 204);
    for path in ["/v1/pins/github", "/v1/pins/github?owner=user:user-1", "/v1/pins/%00"] {
        assert_eq!(refused(api, Method::DELETE, path, None).await, said(404, "not-found"), "{path}");
    }
    assert_eq!(list().await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_sets_sees_and_removes_its_own_pins_only() {
    let place = Place::new().await;
    let api = &place.api;
    let own = place.key(&["--user", "user-1"], "read,manage").await;
    let reader = place.key(&["--user", "user-1"], "read").await;
    let other = place.key(&["--org", "user-1"], "read,manage").await;
    let put =
        async |path: &str, key: &str| ask(api, Method::PUT, path, Some(key), Some(&version(VERSION))).await;
    let (status, pin) = put("/v1/pins/github", &own).await;
    assert_eq!((status, &pin["owner"]), (200, &json!({"kind": "user", "id": "user-1"})), "{pin}");
    assert_eq!(put("/v1/pins/github?owner=user:user-1", &own).await.0, 200);
    for (path, key) in [
        ("/v1/pins/github?owner=user:user-2", &own),
        ("/v1/pins/github?owner=org:user-1", &own),
        ("/v1/pins/github", &reader),
    ] {
        let (status, problem) = put(path, key).await;
        assert_eq!((status, kind(&problem)), (403, "forbidden"), "{path}");
    }
    let seen = async |key: &str| {
        let (status, list) = ask(api, Method::GET, "/v1/pins", Some(key), None).await;
        assert_eq!(status, 200, "{list}");
        list["items"].as_array().unwrap().len()
    };
    assert_eq!((seen(&own).await, seen(&reader).await, seen(&other).await), (1, 1, 0));
    let delete = async |path: &str, key: &str| ask(api, Method::DELETE, path, Some(key), None).await.0;
    assert_eq!(delete("/v1/pins/github", &other).await, 404, "it has none");
    assert_eq!(delete("/v1/pins/github?owner=user:user-1", &other).await, 403);
    assert_eq!(delete("/v1/pins/github", &reader).await, 403);
    assert_eq!(delete("/v1/pins/github", &own).await, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_and_accounts_are_told_as_the_tool_api_knows_them() {
    let place = Place::new().await;
    let api = &place.api;
    let (status, tool) = ask(api, Method::GET, "/v1/tools/GITHUB_GET_REPO", None, None).await;
    assert_eq!(
        (status, &tool["toolkit"], &tool["version"]),
        (200, &json!("github"), &json!(VERSION)),
        "{tool}"
    );
    assert_eq!((&tool["effect"], &tool["no_auth"]), (&json!("safe"), &json!(false)));
    let (status, old) =
        ask(api, Method::GET, &format!("/v1/tools/GITHUB_GET_REPO?version={OLDER}"), None, None).await;
    assert_eq!((status, &old["version"]), (200, &json!(OLDER)), "{old}");

    let (status, accounts) = ask(api, Method::GET, "/v1/accounts?owner=user:u-alice", None, None).await;
    let all = accounts["items"].as_array().unwrap();
    assert!(
        status == 200 && all.len() > 1 && all.iter().any(|account| account["usable"] == true),
        "{accounts}"
    );
    let path = "/v1/accounts?owner=user:u-alice&toolkit=github";
    let (_, of_one) = ask(api, Method::GET, path, None, None).await;
    let ids: Vec<_> =
        of_one["items"].as_array().unwrap().iter().map(|account| account["id"].clone()).collect();
    assert_eq!(ids, [json!("ca_alice_new"), json!("ca_alice_old")], "{of_one}");
    let (status, none) = ask(api, Method::GET, "/v1/accounts?owner=org:nobody", None, None).await;
    assert_eq!((status, none), (200, json!({"items": [], "next": null})));

    for (path, status, expected) in [
        ("/v1/tools/NO_SUCH_TOOL", 404, "not-found"),
        ("/v1/tools/NO%20TOOL", 404, "not-found"),
        ("/v1/tools/GITHUB_GET_REPO?version=latest", 400, "bad-request"),
        ("/v1/tools/GITHUB_GET_REPO?verison=20251027_00", 400, "bad-request"),
        ("/v1/accounts", 400, "bad-request"),
        ("/v1/accounts?owner=u-alice", 400, "bad-request"),
        ("/v1/accounts?owner=user:u-alice&toolkit=GitHub", 400, "bad-request"),
        ("/v1/accounts?owner=user:u-alice&tool=github", 400, "bad-request"),
        ("/v1/workers?alive=true", 400, "bad-request"),
    ] {
        assert_eq!(refused(api, Method::GET, path, None).await, said(status, expected), "{path}");
    }
    let workers = ask(api, Method::GET, "/v1/workers", None, None).await;
    assert_eq!(workers, (200, json!({"items": [], "next": null})));

    // An owner's key is for its own accounts, and what is of all owners is not for it.
    let alice = place.key(&["--user", "u-alice"], "read").await;
    let get = async |path: &str| ask(api, Method::GET, path, Some(&alice), None).await;
    assert_eq!(get("/v1/accounts").await.1["items"].as_array().unwrap().len(), all.len());
    for path in ["/v1/accounts?owner=user:u-bob", "/v1/accounts?owner=org:u-alice", "/v1/workers"] {
        let (status, problem) = get(path).await;
        assert_eq!((status, kind(&problem)), (403, "forbidden"), "{path}");
    }
    assert_eq!(get("/v1/tools/GITHUB_GET_REPO").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_of_the_tool_api_what_needs_it_is_501_and_pins_are_not_looked_up() {
    let place = Place::new().await;
    let without = place.with("COMPOSIO_API_KEY", "").await;
    for path in ["/v1/tools/GITHUB_GET_REPO", "/v1/accounts?owner=user:u-alice"] {
        assert_eq!(refused(&without, Method::GET, path, None).await, said(501, "no-tool-api"), "{path}");
    }
    let dry = refused(&without, Method::POST, "/v1/jobs?dry_run=true", Some(&read("user-1"))).await;
    assert_eq!(dry, said(501, "no-tool-api"));
    let (status, pin) = ask(&without, Method::PUT, "/v1/pins/github", None, Some(&version(NEVER))).await;
    assert_eq!((status, &pin["version"]), (200, &json!(NEVER)), "{pin}");
    assert_eq!(ask(&without, Method::GET, "/v1/pins", None, None).await.1["items"], json!([pin]));

    // One that knows a tool API which does not answer says that it does not.
    let away = place.with("COMPOSIO_BASE_URL", "http://127.0.0.1:1").await;
    for path in ["/v1/tools/GITHUB_GET_REPO", "/v1/accounts?owner=user:u-alice"] {
        assert_eq!(refused(&away, Method::GET, path, None).await, said(502, "tool-api"), "{path}");
    }
    let pin = refused(&away, Method::PUT, "/v1/pins/slack", Some(&version(VERSION))).await;
    assert_eq!(pin, said(502, "tool-api"));
    let forced = ask(&away, Method::PUT, "/v1/pins/slack?force=true", None, Some(&version(VERSION))).await;
    assert_eq!(forced.0, 200, "{}", forced.1);
    assert_eq!(place.sandbox.ledger_summary().calls, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_messages_are_listed_shown_and_requeued_without_a_broker() {
    let place = Place::new().await;
    let api = &place.api;
    let job = read("user-1");
    let good = place.reject(job.to_string().as_bytes(), EnvelopeReason::NoId).await;
    let garbage = place.reject(b"{", EnvelopeReason::Malformed).await;
    let list = async |query: &str| {
        let (status, page) = ask(api, Method::GET, &format!("/v1/rejected{query}"), None, None).await;
        assert_eq!(status, 200, "{query}: {page}");
        let ids = page["items"].as_array().unwrap().iter().map(|message| message["id"].clone());
        (ids.collect::<Vec<_>>(), page["next"].clone())
    };
    assert_eq!(list("").await, (vec![json!(garbage), json!(good)], Value::Null), "the newest first");
    assert_eq!(list("?reason=no_id&queue=default").await.0, [json!(good)]);
    assert!(list("?queue=bulk").await.0.is_empty() && list("?until=2020-01-01T00:00:00Z").await.0.is_empty());
    let (first, next) = list("?limit=1").await;
    let (second, _) = list(&format!("?limit=1&cursor={}", next.as_str().unwrap())).await;
    assert_eq!([first, second].concat(), [json!(garbage), json!(good)]);
    for query in ["?reason=odd", "?queue=No", "?since=yesterday", "?limit=0", "?cursor=1", "?resaon=no_id"] {
        let told = refused(api, Method::GET, &format!("/v1/rejected{query}"), None).await;
        assert_eq!(told, said(400, "bad-request"), "{query}");
    }

    let path = |id: &str, more: &str| format!("/v1/rejected/{id}{more}");
    let (status, shown) = ask(api, Method::GET, &path(&garbage, ""), None, None).await;
    assert_eq!((status, &shown["reason"], &shown["size"]), (200, &json!("malformed"), &json!(1)), "{shown}");
    let nobody = id();
    for unknown in [path(&nobody, ""), path("none", ""), path(&nobody, "/again")] {
        assert_eq!(refused(api, Method::GET, &unknown, None).await, said(404, "not-found"), "{unknown}");
    }

    let requeue = async |id: &str, body: Option<&Value>| {
        ask(api, Method::POST, &path(id, "/requeue"), None, body).await
    };
    assert_eq!(requeue(&good, None).await, (200, json!({"job": job.id(), "new": true})));
    assert_eq!(api.get(&format!("/v1/jobs/{}", job.id())).await.1["state"], "available");
    let corrected = read("user-2");
    for (id, body, status, expected) in [
        (&good, json!({}), 409, "wrong-state"),
        (&garbage, json!({}), 409, "wrong-state"),
        (&garbage, json!({"body": {"user_id": "user-2"}}), 409, "wrong-state"),
        (&garbage, json!({"body": corrected.clone().with("queue", "nowhere")}), 409, "wrong-state"),
        (&garbage, json!({"without_reply": 1}), 400, "bad-request"),
        (&garbage, json!({"bdoy": {}}), 400, "bad-request"),
        (&nobody, json!({}), 404, "not-found"),
    ] {
        let (found, problem) = requeue(id, Some(&body)).await;
        assert_eq!((found, kind(&problem)), (status, expected), "{body}: {problem}");
    }
    let job = requeue(&garbage, Some(&json!({"body": corrected}))).await;
    assert_eq!(job, (200, json!({"job": corrected.id(), "new": true})));
    assert!(list("").await.0.is_empty());
    let (_, shown) = ask(api, Method::GET, &path(&garbage, ""), None, None).await;
    assert_eq!(shown["requeued_by"], "api", "{shown}");

    let owner = place.key(&["--user", "user-1"], "read,manage").await;
    let (status, problem) = ask(api, Method::GET, "/v1/rejected", Some(&owner), None).await;
    assert_eq!((status, kind(&problem)), (403, "forbidden"), "{problem}");
    for (method, more) in [(Method::GET, ""), (Method::POST, "/requeue")] {
        let (status, problem) = ask(api, method, &path(&good, more), Some(&owner), None).await;
        assert!(matches!(status, 403 | 404), "an owner learns nothing of messages: {problem}");
    }
}
