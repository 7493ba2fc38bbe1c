//! Actions by filter, as apps and operators meet them.

use errand_testbed::factory::{Envelope as _, id, read, send};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, Process, run},
    support::wait::until,
};

/// Waits until an action has ended.
async fn ended(api: &Api, id: &str) -> Value {
    let path = format!("/v1/actions/{id}?wait=20");
    until("the action to end", PATIENCE, async || {
        let (status, action) = api.get(&path).await;
        assert_eq!(status == StatusCode::OK, !action["finished_at"].is_null(), "{action}");
        (status == StatusCode::OK).then_some(action)
    })
    .await
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_previews_confirms_and_follows_an_action() {
    let lost = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\nfirst = 1\n\
                [[fault]]\nkind = \"provider_failure\"\nprovider_status = 400\ntool = \"GITHUB_GET_REPO\"\n";
    let harness = Harness::new("actions", lost).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let (unclear, mut failing) = (send("user-1"), Vec::new());
    harness.publish(std::slice::from_ref(&unclear)).await;
    harness.job_in(unclear.id(), &["held"]).await;
    for _ in 0..5 {
        failing.push(read("user-1").with("tags", json!({"team": "a"})));
    }
    harness.publish(&failing).await;
    harness.counts("state = 'failed'", 5).await;
    let release = ["jobs", "release", unclear.id(), "--failed"];
    assert!(harness.errand(&release).status.success());
    harness.heal().await;

    let wanted = json!({"action": "retry", "filter": {"owner": "user:user-1"}, "force": true});
    let request = api.request(Method::POST, "/v1/actions").header("idempotency-key", "k").json(&wanted);
    let answer = request.try_clone().unwrap().send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let (status, action) = read_answer(answer).await;
    assert_eq!((status, &action["status"]), (StatusCode::CREATED, &json!("previewed")), "{action}");
    assert_eq!(location, format!("/v1/actions/{}", text(&action, "id")));
    assert_eq!(
        action["preview"],
        json!({
            "total": 6, "needs_force": 0, "at_least": false, "by_state": {"failed": 6},
            "by_effect": {"once": 1, "safe": 5}, "by_last_outcome": {"tool_failed": 5, "unknown": 1},
            "kinds": [
                {"state": "failed", "effect": "safe", "last_outcome": "tool_failed", "jobs": 5},
                {"state": "failed", "effect": "once", "last_outcome": "unknown", "jobs": 1},
            ],
        }),
        "a person has said that it failed"
    );
    assert_eq!((&action["filter"]["state"], &action["owner"]), (&json!("failed"), &Value::Null));
    let (status, again) = read_answer(request.send().await.unwrap()).await;
    assert_eq!((status, &again), (StatusCode::OK, &action), "the same key");
    let other = api.request(Method::POST, "/v1/actions").header("idempotency-key", "k");
    let (status, refused) =
        read_answer(other.json(&json!({"action": "cancel", "all": true})).send().await.unwrap()).await;
    assert_eq!((status, kind(&refused)), (StatusCode::UNPROCESSABLE_ENTITY, "key-conflict"));

    let (_, tagged) = api
        .post("/v1/actions", &json!({"action": "retry", "filter": {"tag": ["team=a"], "effect": "safe"}}))
        .await;
    assert_eq!(tagged["preview"]["total"], 5, "{tagged}");
    let id = text(&tagged, "id");
    assert_eq!(harness.count("state = 'failed'").await, 6, "nobody has confirmed anything");
    let late = api.request(Method::GET, &format!("/v1/actions/{id}")).header("prefer", "wait=0");
    let late = late.send().await.unwrap();
    assert_eq!(late.headers()["retry-after"], "1");
    assert_eq!(read_answer(late).await, (StatusCode::ACCEPTED, tagged.clone()));
    for _ in 0..2 {
        let (status, confirmed) = api.post(&format!("/v1/actions/{id}/confirm"), &json!({})).await;
        assert_eq!((status, &confirmed["confirmed_by"]), (StatusCode::OK, &json!("api")), "{confirmed}");
    }
    let done = ended(&api, id).await;
    assert_eq!(done["status"], "done");
    assert_eq!(done["progress"], json!({"looked_at": 5, "done": 5, "running": 0, "skipped": {}}));
    harness.counts("state = 'succeeded'", 5).await;
    let shown = harness.show(failing[0].id());
    let entry = shown["history"].as_array().unwrap().iter().find(|entry| entry["kind"] == "retried");
    assert_eq!(entry.unwrap()["by"], "api", "{shown}");

    let aborted = api.post(&format!("{location}/abort"), &json!({})).await;
    assert_eq!((aborted.0, &aborted.1["status"]), (StatusCode::OK, &json!("aborted")), "{}", aborted.1);
    let (status, late) = api.post(&format!("{location}/confirm"), &json!({"force": true})).await;
    assert_eq!((status, kind(&late)), (StatusCode::CONFLICT, "wrong-state"), "{late}");
    let (_, first) = api.get("/v1/actions?limit=1").await;
    assert_eq!(first["items"][0]["id"], id);
    let (_, rest) = api.get(&format!("/v1/actions?cursor={}", text(&first, "next"))).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));

    let (_, prune) = api
        .post(
            "/v1/actions",
            &json!({"action": "prune", "filter": {"state": "succeeded", "tool": "GITHUB_GET_REPO"}}),
        )
        .await;
    api.post(&format!("/v1/actions/{}/confirm", text(&prune, "id")), &json!({})).await;
    assert_eq!(ended(&api, text(&prune, "id")).await["progress"]["done"], 5);
    assert_eq!(harness.count("true").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_is_not_repeated_unless_preview_and_confirmation_say_so() {
    let lost = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\nfirst = 1\n";
    let harness = Harness::new("actions-force", lost).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let unclear = send("user-1");
    harness.publish(std::slice::from_ref(&unclear)).await;
    harness.job_in(unclear.id(), &["held"]).await;
    let wanted = |force: bool| {
        let filter = json!({"held_reason": "unknown_outcome"});
        json!({"action": "release", "how": "retry", "filter": filter, "force": force})
    };
    let (_, plain) = api.post("/v1/actions", &wanted(false)).await;
    assert_eq!(plain["preview"]["needs_force"], 1, "{plain}");
    let confirm = async |id: &str, body: &Value| api.post(&format!("/v1/actions/{id}/confirm"), body).await;
    confirm(text(&plain, "id"), &json!({})).await;
    let done = ended(&api, text(&plain, "id")).await;
    assert_eq!(done["progress"]["skipped"], json!({"needs_force": 1}), "{done}");
    assert_eq!(harness.show(unclear.id())["state"], "held");
    assert_eq!(harness.sandbox.ledger_summary().calls, 1);

    let (_, forced) = api.post("/v1/actions", &wanted(true)).await;
    let id = text(&forced, "id");
    let (status, refused) = confirm(id, &json!({})).await;
    assert_eq!((status, kind(&refused)), (StatusCode::CONFLICT, "needs-force"), "{refused}");
    let (status, confirmed) = confirm(id, &json!({"force": true})).await;
    assert_eq!((status, &confirmed["force"]), (StatusCode::OK, &json!(true)), "{confirmed}");
    assert_eq!(ended(&api, id).await["progress"]["done"], 1);
    harness.job_in(unclear.id(), &["succeeded"]).await;
    harness.called(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_says_what_does() {
    let harness = Harness::new("actions-bad", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    for (body, said) in [
        (json!({}), "say what to do"),
        (json!({"action": "destroy", "all": true}), "say what to do"),
        (json!({"action": "cancel"}), "`filter` is empty"),
        (json!({"action": "cancel", "filter": {}}), "`filter` is empty"),
        (
            json!({"action": "cancel", "filter": {"stat": "failed"}}),
            "unknown field `stat`, expected one of `state`",
        ),
        (json!({"action": "cancel", "filter": []}), "`filter` cannot be read: it must be an object"),
        (json!({"action": "cancel", "filter": {"state": 7}}), "`filter` cannot be read"),
        (json!({"action": "cancel", "filter": {"state": "gone"}}), "`filter.state`: use one of"),
        (
            json!({"action": "cancel", "filter": {"owner": "x"}}),
            "`filter.owner`: names neither a user nor an organization; write `user:ID`",
        ),
        (json!({"action": "cancel", "filter": {"tag": ["x"]}}), "`filter.tag`: must be NAME=VALUE"),
        (json!({"action": "cancel", "filter": {"tool": "\u{0}"}}), "`filter.tool`: may have no control"),
        (json!({"action": "cancel", "filter": {"since": "now"}}), "`filter.since`: must be a time"),
        (json!({"action": "cancel", "filter": {"tool": "x".repeat(20_000)}}), "16384 bytes at most"),
        (json!({"action": "cancel", "filter": {"state": "failed"}}), "a failed job cannot be cancelled"),
        (json!({"action": "prune", "filter": {"state": "running"}}), "not final"),
        (json!({"action": "release", "all": true}), "say what is known of the calls"),
        (json!({"action": "release", "how": "retry", "filter": {"state": "failed"}}), "cannot be released"),
        (json!({"action": "release", "how": "failed", "filter": {"tool": "T"}}), "have not run"),
        (json!({"action": "cancel", "how": "retry", "all": true}), "`how` is for `release` only"),
        (json!({"action": "cancel", "force": true, "all": true}), "`force` is for"),
        (json!({"action": "cancel", "now": true, "all": true}), "`now` is for"),
        (json!({"action": "cancel", "all": true, "sure": true}), "unknown field `sure`"),
    ] {
        let (status, problem) = api.post("/v1/actions", &body).await;
        assert_eq!((status, kind(&problem)), (StatusCode::BAD_REQUEST, "bad-request"), "{body}");
        assert!(text(&problem, "detail").contains(said), "{said:?} is not in {problem}");
    }
    for path in ["/v1/actions?cursor=x", "/v1/actions?limit=0", "/v1/actions?status=done"] {
        let (status, problem) = api.get(path).await;
        assert_eq!((status, kind(&problem)), (StatusCode::BAD_REQUEST, "bad-request"), "{path}: {problem}");
    }
    // One that is empty is of a variable that is not set, and would make two actions of one.
    for key in ["k".repeat(257), String::new(), "\"\"".to_owned()] {
        let request = api.request(Method::POST, "/v1/actions").header("idempotency-key", &key);
        let request = request.json(&json!({"action": "cancel", "all": true}));
        assert_eq!(read_answer(request.send().await.unwrap()).await.0, StatusCode::BAD_REQUEST, "{key}");
    }
    assert_eq!(api.get("/v1/actions").await.1["items"], json!([]), "nothing of this was kept");
    let (status, all) = api.post("/v1/actions", &json!({"action": "cancel", "all": true})).await;
    assert_eq!((status, &all["preview"]["total"]), (StatusCode::CREATED, &json!(0)), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_of_somebody_else_is_as_one_that_does_not_exist() {
    let harness = Harness::new("actions-foreign", "").await;
    let env = harness.env();
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&env).await;
    for owner in ["user-1", "user-2"] {
        let tomorrow = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
        let later = read(owner).with("run_at", tomorrow);
        assert_eq!(api.post("/v1/jobs", &later).await.0, StatusCode::CREATED);
    }
    let secret = |args: &[&str]| {
        let made = run(&[&["keys", "create", "--json"], args].concat(), &env);
        let key: Value = serde_json::from_slice(&made.stdout).unwrap();
        text(&key, "secret").to_owned()
    };
    let own = secret(&["--user", "user-1", "--scope", "read,manage"]);
    let foreign = [
        secret(&["--org", "user-1", "--scope", "read,manage"]),
        secret(&["--user", "user-2", "--scope", "manage"]),
    ];
    let reader = secret(&["--user", "user-1", "--scope", "enqueue,read"]);
    let ask = async |secret: &str, method: Method, path: &str, body: &Value| {
        let request = api.request(method, path).bearer_auth(secret).json(body);
        read_answer(request.send().await.unwrap()).await
    };
    let wanted = json!({"action": "cancel", "all": true});
    let (status, action) = ask(&own, Method::POST, "/v1/actions", &wanted).await;
    assert_eq!((status, &action["preview"]["total"]), (StatusCode::CREATED, &json!(1)), "{action}");
    assert_eq!(action["owner"], json!({"kind": "user", "id": "user-1"}));
    let path = format!("/v1/actions/{}", text(&action, "id"));
    let requests = [(Method::GET, ""), (Method::POST, "/confirm"), (Method::POST, "/abort")];
    for secret in &foreign {
        for (method, what) in &requests {
            let told = ask(secret, method.clone(), &format!("{path}{what}"), &json!({})).await;
            let unknown = format!("/v1/actions/{}{what}", id());
            assert_eq!(told, ask(secret, method.clone(), &unknown, &json!({})).await);
            assert_eq!(told.0, StatusCode::NOT_FOUND);
        }
        assert_eq!(ask(secret, Method::GET, "/v1/actions", &json!({})).await.1["items"], json!([]));
    }
    for (method, what) in requests.iter().cloned().chain([(Method::GET, "s"), (Method::POST, "s")]) {
        let path = if what == "s" { "/v1/actions".to_owned() } else { format!("{path}{what}") };
        let (status, problem) = ask(&reader, method, &path, &wanted).await;
        assert_eq!((status, kind(&problem)), (StatusCode::FORBIDDEN, "forbidden"), "{problem}");
    }
    assert_eq!(
        ask(&own, Method::GET, &path, &json!({})).await,
        (StatusCode::OK, action.clone()),
        "unchanged"
    );

    // Nobody decides about jobs of another owner, and all are one's own.
    let other = json!({"action": "cancel", "filter": {"owner": "user:user-2"}});
    assert_eq!(ask(&own, Method::POST, "/v1/actions", &other).await.0, StatusCode::FORBIDDEN);
    let (status, _) = ask(&own, Method::POST, &format!("{path}/confirm"), &json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let _worker = harness.worker(&[]).await;
    harness.counts("state = 'cancelled' and owner_id = 'user-1'", 1).await;
    assert_eq!(harness.count("state = 'scheduled' and owner_id = 'user-2'").await, 1);
}

/// So many that whoever calls them off is seen in the middle of that.
const JOBS: u64 = 4_000;

/// Jobs of the tool `T` that no worker claims before they are called off.
async fn many_waiting(harness: &Harness) {
    harness
        .execute(&format!(
            "insert into jobs (id, digest, owner_kind, owner_id, tool, queue, priority, tags, state, created_at, run_at, due_at,
                fence, attempt, spent)
             select gen_random_uuid(), '\\x00112233445566778899aabbccddeeff', 'user', 'u-' || n % 3, 'T', 'default', 0, '{{}}',
                'scheduled', now() - n * interval '1 millisecond', now() + interval '1 day', now() + interval '1 day', 0, 0, 0
             from generate_series(1, {JOBS}) as n"
        ))
        .await;
}

/// All of them were called off, each once.
async fn all_called_off_once(harness: &Harness) {
    harness.counts("state = 'cancelled'", JOBS).await;
    let once = "select (count(*) || ' ' || count(distinct job_id)) from job_history where kind = 'cancelled'";
    assert_eq!(harness.text(once).await, Some(format!("{JOBS} {JOBS}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_nobody_waits_for_any_more_leaves_its_action_to_the_workers() {
    let harness = Harness::new("actions-ctrl-c", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    many_waiting(&harness).await;
    let mut command =
        Process::start(&["jobs", "cancel", "--tool", "T", "--yes", "--by", "alice"], &harness.env());
    until("it to be in the middle", PATIENCE, async || {
        (harness.count("state = 'cancelled'").await > 0).then_some(())
    })
    .await;
    command.signal("INT");
    assert_eq!(command.ended().await.code(), Some(1), "{}", command.log());
    let log = command.log();
    assert!(log.contains("no worker is alive") && log.contains("goes on in the workers"), "{log}");
    let cancelled = harness.count("state = 'cancelled'").await;
    assert!(cancelled < JOBS, "it was too late for that");
    let id = harness.text("select id::text from actions where status = 'confirmed'").await.unwrap();
    assert!(log.contains(&format!("`errand actions abort {id}` ends it")), "{log}");
    let _worker = harness.worker(&[]).await;
    all_called_off_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_the_middle_leaves_the_rest_to_another() {
    let harness = Harness::new("actions-killed", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    many_waiting(&harness).await;
    let (status, action) =
        api.post("/v1/actions", &json!({"action": "cancel", "filter": {"tool": "T"}})).await;
    assert_eq!((status, &action["preview"]["total"]), (StatusCode::CREATED, &json!(JOBS)), "{action}");
    let id = text(&action, "id");
    let mut first = harness.worker(&[]).await;
    api.post(&format!("/v1/actions/{id}/confirm"), &json!({})).await;
    until("it to be in the middle", PATIENCE, async || {
        (harness.count("state = 'cancelled'").await > 0).then_some(())
    })
    .await;
    first.kill9();
    let cancelled = harness.count("state = 'cancelled'").await;
    assert!(cancelled < JOBS, "it was too late to kill it");
    let _others = [harness.worker(&[]).await, harness.worker(&[]).await];
    let done = ended(&api, id).await;
    assert_eq!(done["progress"], json!({"looked_at": JOBS, "done": JOBS, "running": 0, "skipped": {}}));
    all_called_off_once(&harness).await;
}
