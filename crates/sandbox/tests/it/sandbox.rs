//! The sandbox against its vectors: what the tool API is known to answer, request by request, over
//! real HTTP. The vectors are rows; every row runs, and all that fail are reported together.

use std::{
    collections::BTreeSet,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use errand_sandbox::{DEFAULT_WORLD, Options, Running, Sandbox, World};
use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

const KEY: &str = "ak_test_good";
const PINNED: &str = "20251027_00";
const REPO: &str = "/api/v3/tools/execute/GITHUB_GET_REPO";

#[tokio::test]
async fn every_vector_is_answered_as_the_tool_api_answers_it() {
    let vectors = vectors();
    let ids: BTreeSet<String> = vectors.iter().map(|vector| vector.id.to_owned()).collect();
    let expected: BTreeSet<String> = (1..=68).map(|n| format!("V{n:02}")).collect();
    assert_eq!(ids, expected, "each vector has a row");
    run_rows(vectors).await;
}

#[tokio::test]
async fn every_fault_shows_the_client_what_it_says_and_leaves_the_effect_it_says() {
    let latency = |rule: Value| Row::new("latency").fault(rule).then(repo_call()).effects(1);
    let repo = || repo_call();
    run_rows(vec![
        latency(json!({"kind": "latency", "fixed_ms": 1})),
        latency(json!({"kind": "latency", "min_ms": 0, "max_ms": 2})),
        latency(json!({"kind": "latency", "mean_ms": 1})),
        Row::new("a status before the effect")
            .fault(json!({"kind": "status", "status": 500}))
            .then(repo().expect(500).at("/error/code", 10500))
            .effects(0),
        Row::new("a status after the effect")
            .fault(json!({"kind": "status", "status": 502, "body": "empty", "after_effect": true}))
            .then(repo().expect(502).check(|answer| assert!(answer.body.is_empty())))
            .effects(1),
        Row::new("a message without an envelope")
            .fault(json!({"kind": "status", "status": 500, "body": "message_only"}))
            .then(repo().expect(500).at("/message", "Internal Server Error"))
            .effects(0),
        Row::new("a provider's failure")
            .fault(json!({"kind": "provider_failure", "provider_status": 503, "message": "try later"}))
            .then(repo().at("/successful", false).at("/data/status_code", 503).at("/error", "try later"))
            .effects(0),
        Row::new("truncated JSON")
            .fault(json!({"kind": "malformed", "form": "truncated_json"}))
            .then(repo().check(|answer| assert!(answer.try_json().is_none() && !answer.body.is_empty())))
            .effects(1),
        Row::new("not JSON")
            .fault(json!({"kind": "malformed", "form": "not_json"}))
            .then(repo().check(|answer| assert!(answer.try_json().is_none())))
            .effects(1),
        Row::new("an empty 200")
            .fault(json!({"kind": "malformed", "form": "empty"}))
            .then(repo().check(|answer| assert!(answer.body.is_empty())))
            .effects(1),
        Row::new("a retry-after that is a date")
            .fault(json!({"kind": "throttle", "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}))
            .then(repo().expect(429).header("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"))
            .effects(0),
        Row::new("a retry-after that is garbage, from the edge")
            .fault(json!({"kind": "throttle", "form": "edge", "retry_after": "soon"}))
            .then(repo().expect(429).header("retry-after", "soon").at("/error/code", 10429))
            .effects(0),
        Row::new("a rule for another tool or user does not apply")
            .fault(json!({"kind": "status", "status": 500, "tool": "SLACK_SEND_MESSAGE"}))
            .fault(json!({"kind": "status", "status": 500, "user": "u-bob"}))
            .then(repo())
            .effects(1),
        Row::new("times caps a rule")
            .fault(json!({"kind": "status", "status": 500, "times": 2}))
            .then(repo().expect(500))
            .then(repo().expect(500))
            .then(repo()),
        Row::new("first counts the calls of each job on its own")
            .fault(json!({"kind": "status", "status": 500, "first": 1}))
            .then(repo().with("x-errand-job-id", "a").expect(500))
            .then(repo().with("x-errand-job-id", "b").expect(500))
            .then(repo().with("x-errand-job-id", "a"))
            .then(repo().with("x-errand-job-id", "b"))
            .effects(2),
    ])
    .await;
}

#[tokio::test]
async fn a_reset_ends_the_connection_without_a_byte_before_or_after_the_effect() {
    for (after_effect, effects) in [(false, 0), (true, 1)] {
        let bench = Bench::start(DEFAULT_WORLD).await;
        bench.set_faults(json!([{"kind": "reset", "after_effect": after_effect, "times": 1}])).await;
        let error = bench.send(&repo_call()).await.unwrap_err();
        assert!(!error.is_timeout() && !error.is_connect(), "{error:?}");
        assert!(chain(&error).contains("reset"), "{}", chain(&error));
        assert_eq!(bench.running.ledger_summary().effects, effects);
        assert_eq!(bench.send(&repo_call()).await.unwrap().status, 200, "later calls are answered");
    }
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_an_error_to_the_client() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "malformed", "form": "truncated_body"}])).await;
    assert!(bench.send(&repo_call()).await.is_err());
    assert_eq!(bench.running.ledger_summary().effects, 1);
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_does_not_stop_a_slow_call() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "latency", "fixed_ms": 150}])).await;
    let gone = bench.send_within(&repo_call(), Duration::from_millis(30)).await;
    assert!(gone.unwrap_err().is_timeout());
    bench.wait_for_effects(1).await;
}

#[tokio::test]
async fn the_ledger_tells_repeated_jobs_and_requests_from_single_ones() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let slack = || {
        Step::post("/api/v3/tools/execute/SLACK_SEND_MESSAGE").json(json!({
            "user_id": "org-1", "version": "20251104_01", "arguments": {"channel": "C1", "text": "hi"},
        }))
    };
    for (job, request) in [("once", "r1"), ("twice", "r2"), ("twice", "r2")] {
        let call = slack().with("x-errand-job-id", job).with("x-request-id", request);
        assert_eq!(bench.send(&call).await.unwrap().status, 200);
    }
    for _ in 0..2 {
        bench.send(&repo_call().with("x-errand-job-id", "reads")).await.unwrap();
    }
    bench.send(&repo_call().key("ak_bad")).await.unwrap();

    let summary = bench.running.ledger_summary();
    assert_eq!((summary.calls, summary.effects), (5, 5));
    assert_eq!((summary.effects_safe, summary.effects_idempotent, summary.effects_once), (2, 0, 3));
    assert_eq!((summary.jobs, summary.jobs_repeated, summary.jobs_repeated_once), (3, 2, 1));
    assert_eq!(summary.repeated_jobs["twice"], 2);
    assert_eq!(summary.request_ids_repeated, 1);
    assert_eq!(summary.repeated_request_ids["r2"], 2);
    assert_eq!(bench.get("/_sandbox/ledger").await, serde_json::to_value(&summary).unwrap());

    let job = bench.get("/_sandbox/ledger?job=twice").await;
    assert_eq!((&job["calls"], &job["effects"], &job["effects_once"]), (&json!(2), &json!(2), &json!(2)));
    assert_eq!(job["entries"][0]["account"], "ca_slack_org-1");
    assert_eq!(job["entries"][0]["read_only"], false);
    assert_eq!(bench.get("/_sandbox/ledger?tool=GITHUB_GET_REPO").await["effects"], 2);

    let page = bench.get("/_sandbox/ledger/effects?limit=3").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    let rest = page["next_cursor"].as_str().unwrap();
    let page = bench.get(&format!("/_sandbox/ledger/effects?limit=3&cursor={rest}")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["next_cursor"], Value::Null);

    bench.send(&Step::new(Method::DELETE, "/_sandbox/ledger")).await.unwrap();
    assert_eq!(bench.running.ledger_summary().calls, 0);
}

#[tokio::test]
async fn accounts_in_bulk_belong_to_their_own_users_only() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    for n in [1, 20] {
        let call = repo_call().json(repo_body(&format!("user-{n}")));
        assert_eq!(bench.send(&call).await.unwrap().status, 200);
    }
    let refused = bench.send(&repo_call().json(repo_body("user-21"))).await.unwrap();
    assert_eq!(refused.at("/error/code"), 1810);
    let used = bench.get("/_sandbox/ledger/effects").await;
    assert_eq!(used["items"][1]["account"], "ca_github_user-20");
    let listed = bench.get("/api/v3/connected_accounts?toolkit_slugs=slack&limit=100").await;
    assert_eq!(listed["total_items"], 4, "three organizations and the one of the vectors");
}

#[tokio::test]
async fn the_same_seed_makes_the_same_decisions_in_any_order() {
    let fate = async |seed: u64, jobs: Vec<u32>| {
        let bench = Bench::start_with(DEFAULT_WORLD, seed).await;
        bench.set_faults(json!([{"kind": "status", "status": 500, "rate": 0.5}])).await;
        let mut failed = BTreeSet::new();
        for job in jobs {
            let call = repo_call().with("x-errand-job-id", &format!("job-{job}"));
            if bench.send(&call).await.unwrap().status == 500 {
                failed.insert(job);
            }
        }
        failed
    };
    let forward = fate(1, (0..64).collect()).await;
    let backward = fate(1, (0..64).rev().collect()).await;
    let other = fate(2, (0..64).collect()).await;
    assert_eq!(forward, backward);
    assert_ne!(forward, other);
    assert!((16..48).contains(&forward.len()), "about half: {}", forward.len());
}

#[tokio::test]
async fn logs_can_be_late_lost_or_refused() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let found = async || bench.find_logs("r-log").await["logs"].as_array().map(Vec::len);
    let settle = |settings: Value| Step::new(Method::PUT, "/_sandbox/logs").json(settings);

    bench.send(&settle(json!({"delay_ms": 60_000}))).await.unwrap();
    bench.send(&repo_call().with("x-request-id", "r-log")).await.unwrap();
    assert_eq!(found().await, Some(0), "not visible yet");
    bench.running.advance_clock(Duration::from_secs(61));
    assert_eq!(found().await, Some(1));

    bench.send(&settle(json!({"lose_rate": 1.0}))).await.unwrap();
    bench.send(&repo_call().with("x-request-id", "r-log")).await.unwrap();
    assert_eq!(found().await, Some(1), "the second one is lost");
    assert_eq!(bench.running.ledger_summary().effects, 2, "the ledger knows it all the same");

    bench.send(&settle(json!({"refuse_status": 503}))).await.unwrap();
    assert_eq!(found().await, None);
    let bad = bench.send(&settle(json!({"lose_rate": 2.0}))).await.unwrap();
    assert_eq!(bad.status, 400);
}

/// Large arguments take a while to read, and that time must not be counted into the future.
#[tokio::test]
async fn a_log_is_visible_as_soon_as_its_call_is_answered() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    for n in 0..20 {
        let id = format!("r-{n}");
        let mut body = repo_body("u-alice");
        body["arguments"]["padding"] = json!(vec!["x"; 20_000]);
        bench.send(&Step::post(REPO).json(body).with("x-request-id", &id)).await.unwrap();
        assert_eq!(bench.find_logs(&id).await["logs"].as_array().unwrap().len(), 1, "{id}");
    }
}

#[tokio::test]
async fn a_link_that_is_opened_connects_the_account() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let link = Step::post("/api/v3/connected_accounts/link")
        .json(json!({"auth_config_id": "ac_1", "user_id": "u-new"}));
    let link = bench.send(&link).await.unwrap().json();
    let before = bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap();
    assert_eq!(before.at("/error/status"), 422);
    let token = link["link_token"].as_str().unwrap();
    assert!(link["redirect_url"].as_str().unwrap().ends_with(&format!("/_sandbox/connect/{token}")));
    assert_eq!(bench.get(&format!("/_sandbox/connect/{token}")).await["status"], "ACTIVE");
    assert_eq!(bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap().status, 200);
}

#[test]
fn a_bad_world_is_refused_with_all_its_mistakes_at_once() {
    let text = r#"
        colour = "red"
        [behaviour]
        unknown_versoin = "not_found"
        [[key]]
        key = "ak_1"
        [[toolkit]]
        slug = "t"
        versions = [{ version = "soon" }]
        [[tool]]
        slug = "T_RUN"
        toolkit = "nowhere"
        result = {}
        [[tool]]
        slug = "T_OTHER"
        toolkit = "t"
        required = { a = "strnig" }
        tags = ["readonlyHint"]
        result = { b = "{c}" }
        [[account]]
        id = "ca_1"
        user = "u"
        toolkit = "t"
        [[account]]
        id = "ca_2"
        user = "u"
        toolkit = "t"
        statsu = "ACTIVE"
        [[account_range]]
        user = "all-the-same"
        from = 2
        to = 1
        toolkit = "t"
        [[fault]]
        kind = "reset"
        tool = "T_NOPE"
    "#;
    let error = World::from_toml(text).unwrap_err().to_string();
    for part in [
        "`colour`",
        "unknown_versoin",
        "\"soon\" is not YYYYMMDD_NN",
        "T_RUN: toolkit \"nowhere\"",
        "type \"strnig\"",
        "readonlyHint",
        "{c}",
        "ca_1: toolkit t has no [[auth_config]]",
        "statsu",
        "{n}",
        "from = 2 to = 1",
        "T_NOPE",
        "after_effect",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(World::from_toml("a = ").unwrap_err().to_string().contains("not valid TOML"));
}

#[tokio::test]
async fn a_small_world_of_ones_own_is_enough() {
    let world = r#"
        [[key]]
        key = "ak_test_good"
        [[toolkit]]
        slug = "crm"
        versions = [{ version = "20250101_00" }]
        [[tool]]
        slug = "CRM_ADD_NOTE"
        toolkit = "crm"
        required = { text = "string" }
        result = { note = "{text}", size = "{@id}", by = "{@user}" }
        [[auth_config]]
        id = "ac_crm"
        toolkit = "crm"
        [[account]]
        id = "ca_crm"
        user = "someone"
        toolkit = "crm"
        created_at = 2025-01-01T00:00:00Z
        [[fault]]
        kind = "status"
        status = 503
        times = 1
    "#;
    let bench = Bench::start(world).await;
    let call = || {
        Step::post("/api/v3.1/tools/execute/CRM_ADD_NOTE")
            .json(json!({"user_id": "someone", "arguments": {"text": "\"hi\"\n"}}))
    };
    assert_eq!(bench.send(&call()).await.unwrap().status, 503);
    let done = bench.send(&call()).await.unwrap().json();
    assert_eq!((&done["data"]["note"], &done["data"]["by"]), (&json!("\"hi\"\n"), &json!("someone")));
    let account = bench.get("/api/v3/connected_accounts/ca_crm").await;
    assert_eq!(account["created_at"], "2025-01-01T00:00:00.000Z");
}

#[tokio::test]
async fn bad_fault_rules_are_refused_over_http_and_change_nothing() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.set_faults(json!([{"kind": "latency", "fixed_ms": 0}])).await;
    let put = |faults: Value| Step::new(Method::PUT, "/_sandbox/faults").json(json!({ "faults": faults }));
    let refused =
        bench.send(&put(json!([{"kind": "status"}, {"kind": "reset", "tool": "NOPE"}]))).await.unwrap();
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["errors"].as_array().unwrap().len(), 3);
    let unknown = bench.send(&put(json!([{"kind": "reset", "after_efect": true}]))).await.unwrap();
    assert!(unknown.json()["error"]["errors"][0].as_str().unwrap().contains("after_efect"));
    assert_eq!(bench.get("/_sandbox/faults").await["faults"][0]["rule"]["kind"], "latency");
    bench.send(&Step::new(Method::DELETE, "/_sandbox/faults")).await.unwrap();
    assert_eq!(bench.get("/_sandbox/faults").await["faults"], json!([]));
}

#[tokio::test]
async fn requests_that_make_no_sense_get_an_envelope_too() {
    let large = "x".repeat(5 * 1024 * 1024);
    run_rows(vec![
        Row::new("no such route").then(Step::get("/api/v3/nope").expect(404).at("/error/status", 404)),
        Row::new("wrong method").then(Step::get(REPO).expect(405).at("/error/status", 405)),
        Row::new("not JSON").then(repo_call().raw("{").expect(400).at("/error/status", 400)),
        Row::new("not an object").then(repo_call().raw("[1]").expect(400).at("/error/status", 400)),
        Row::new("arguments of the wrong type")
            .then(repo_call().json(json!({"user_id": "u-alice", "arguments": [1]})).expect(400)),
        Row::new("a body that is too large")
            .then(repo_call().raw(&large).expect(413).at("/error/status", 413)),
        Row::new("a slug that is not UTF-8").then(Step::get("/api/v3/tools/%FF").expect(400)),
        Row::new("a slug that is percent-encoded")
            .then(Step::get("/api/v3.1/tools/GITHUB%5FGET%5FREPO").at("/slug", "GITHUB_GET_REPO")),
        Row::new("proxied requests")
            .then(Step::post("/api/v3/tools/execute/proxy").json(json!({})).expect(501)),
        Row::new("a bad cursor")
            .then(Step::get("/api/v3/tools?cursor=%20").expect(400).at("/error/code", 1901)),
        Row::new("a bad limit").then(Step::get("/api/v3/tools?limit=many").expect(400)),
        Row::new("health needs no key").then(Step::get("/_sandbox/health").no_key().at("/status", "ok")),
    ])
    .await;
}

#[tokio::test]
async fn tools_toolkits_and_auth_configs_can_be_listed_and_made() {
    run_rows(vec![
        Row::new("slugs of the latest versions").then(Step::get("/api/v3/tools/enum").check(|answer| {
            let slugs = answer.json();
            let slugs = slugs.as_array().unwrap();
            assert!(slugs.contains(&json!("NOTION_SEARCH")) && !slugs.contains(&json!("NOTION_FIND_PAGES")));
        })),
        Row::new("toolkits").then(
            Step::get("/api/v3/toolkits?search=hub")
                .at("/items/0/slug", "github")
                .at("/items/0/meta/version", PINNED),
        ),
        Row::new("auth configs").then(
            Step::get("/api/v3/auth_configs?toolkit_slug=slack")
                .at("/total_items", 1)
                .at("/items/0/no_of_connections", 4),
        ),
        Row::new("a new auth config, and an account of it")
            .then(
                Step::post("/api/v3/auth_configs")
                    .json(json!({"toolkit": {"slug": "github"}, "auth_config": {"type": "use_custom_auth"}}))
                    .expect(201)
                    .at("/auth_config/is_composio_managed", false),
            )
            .then(Step::get("/api/v3/auth_configs?toolkit_slug=github").at("/total_items", 2)),
        Row::new("an account without managed OAuth")
            .then(
                Step::post("/api/v3/connected_accounts")
                    .json(json!({"auth_config": {"id": "ac_maps"}, "connection": {}}))
                    .expect(201)
                    .at("/status", "ACTIVE"),
            )
            .then(Step::get("/api/v3/connected_accounts?user_ids=default").at("/total_items", 1)),
        Row::new("deleting an account")
            .then(Step::new(Method::DELETE, "/api/v3/connected_accounts/ca_bob").at("/success", true))
            .then(Step::get("/api/v3/connected_accounts/ca_bob").expect(404))
            .then(repo_call().json(repo_body("u-bob")).expect(400).at("/error/code", 1810)),
        Row::new("a shared account")
            .then(notion("u-alice").expect(200))
            .then(notion("u-bob").expect(403).at("/error/code", 1802)),
        Row::new("the generated description")
            .then(Step::get("/api/v3.1/tools?search=geocode").at("/items/0/toolkit/slug", "google_maps")),
    ])
    .await;
}

#[tokio::test]
async fn stopping_closes_open_connections_and_frees_the_port() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.send(&repo_call()).await.unwrap();
    let Bench { running, client } = bench;
    let (addr, base) = (running.addr, running.base_url());
    running.stop().await;
    let error = client.get(format!("{base}/_sandbox/health")).send().await.unwrap_err();
    assert!(error.is_connect(), "the kept-alive connection is gone and no new one is taken: {error:?}");
    let again = Sandbox::new(World::default_world(), Options::default()).bind(addr).await;
    assert!(again.is_ok());
}

fn vectors() -> Vec<Row> {
    let stars = |version: &str| json!({"user_id": "u-alice", "version": version, "arguments": {"owner": "o", "repo": "r"}});
    let stars_at = |api: &str| Step::post(&format!("{api}/tools/execute/GITHUB_LIST_STARGAZERS"));
    let versioned = |version: &str| repo_call().json(stars(version));
    let as_user = |user: &str| repo_call().json(repo_body(user));
    let with_account = |user: &str, account: &str| {
        let mut body = repo_body(user);
        body["connected_account_id"] = json!(account);
        repo_call().json(body)
    };
    let slack = |user: &str| {
        Step::post("/api/v3/tools/execute/SLACK_SEND_MESSAGE").json(json!({
            "user_id": user, "version": "20251104_01", "arguments": {"channel": "C1", "text": "hi"},
        }))
    };
    let status = |status: u16, body: &str| json!({"kind": "status", "status": status, "body": body});
    let accounts = "/api/v3/connected_accounts";
    let alice_is_newest_first = |answer: &Answer| {
        let page = answer.json();
        let ids: Vec<&str> =
            page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["ca_alice_new", "ca_alice_old"]);
    };
    let no_account = |answer: &Answer, user: &str, toolkit: &str| {
        let message = answer.at("/error/message");
        let message = message.as_str().unwrap().to_owned();
        assert!(message.contains(user) && message.contains(toolkit), "{message}");
    };

    vec![
        Row::new("V01").then(repo_call().at("/successful", true).at("/error", Value::Null).check(|answer| {
            assert!(answer.json()["log_id"].as_str().unwrap().starts_with("log_"));
            assert_eq!(answer.json()["data"]["full_name"], "o/r");
            for name in ["x-ratelimit", "x-ratelimit-remaining", "x-ratelimit-window-size", "x-request-id"] {
                assert!(answer.headers.contains_key(name), "{name}");
            }
            assert_eq!(answer.headers["x-ratelimit-window-size"], "60s");
        })),
        Row::new("V02").then(
            repo_call()
                .with("x-request-id", "11111111-1111-4111-8111-111111111111")
                .header("x-request-id", "11111111-1111-4111-8111-111111111111"),
        ),
        Row::new("V03").then(
            repo_call().no_key().expect(401).at("/error/code", 906).at("/error/slug", "Auth_NoAuthProvided"),
        ),
        Row::new("V04").then(
            repo_call()
                .key("ak_bad")
                .expect(401)
                .at("/error/code", 801)
                .at("/error/slug", "APIKey_InvalidAPIKey")
                .check(|answer| assert!(!answer.text().contains("ak_bad"))),
        ),
        Row::new("V05").then(repo_call().key("ak_test_expired").expect(401).at("/error/code", 811)),
        Row::new("V06").then(
            repo_call()
                .key("ak_test_readonly")
                .expect(403)
                .at("/error/code", 812)
                .at("/error/slug", "APIKey_InsufficientPermissions"),
        ),
        Row::new("V07").then(
            Step::post("/api/v3/tools/execute/GITHUB_NOPE")
                .json(stars(PINNED))
                .with("x-request-id", "r7")
                .expect(404)
                .at("/error/code", 2401)
                .at("/error/slug", "Tool_ToolNotFound")
                .at("/error/request_id", "r7")
                .check(|answer| assert!(answer.text().contains("GITHUB_NOPE"))),
        ),
        Row::new("V08")
            .then(stars_at("/api/v3").json(stars("20250905_00")).expect(404).at("/error/code", 2401)),
        Row::new("V09").then(
            stars_at("/api/v3")
                .json(json!({"user_id": "u-alice", "arguments": {"owner": "o", "repo": "r"}}))
                .expect(404)
                .at("/error/code", 2401),
        ),
        Row::new("V10").then(
            stars_at("/api/v3.1").json(json!({"user_id": "u-alice", "arguments": {"owner": "o", "repo": "r"}})),
        ),
        Row::new("V11")
            .then(stars_at("/api/v3").json(stars("latest")))
            .then(stars_at("/api/v3.1").json(stars("latest"))),
        Row::new("V12").then(versioned("20991231_00").expect(404).at("/error/code", 2401)),
        Row::new("V12")
            .switch("unknown_version = \"not_found\"", "unknown_version = \"bad_request\"")
            .then(versioned("20991231_00").expect(400)),
        Row::new("V13").then(
            Step::post("/api/v3/tools/execute/github_get_repo")
                .json(stars(PINNED))
                .expect(404)
                .at("/error/code", 2401),
        ),
        Row::new("V14").then(
            repo_call()
                .json(json!({"connected_account_id": "ca_alice_new", "version": PINNED}))
                .expect(400)
                .at("/error/code", 1811)
                .at("/error/slug", "ActionExecute_ConnectedAccountEntityIdRequired"),
        ),
        Row::new("V15").then(repo_call().json(json!({
            "entity_id": "u-alice", "connected_account_id": "ca_alice_new", "version": PINNED,
            "arguments": {"owner": "o", "repo": "r"},
        }))),
        Row::new("V16")
            .then(
                with_account("u-alice", "ca_bob")
                    .expect(400)
                    .at("/error/code", 1812)
                    .at("/error/slug", "ActionExecute_ConnectedAccountEntityIdMismatch")
                    .check(|answer| assert!(!answer.text().contains("u-bob"))),
            )
            .effects(0),
        Row::new("V17").then(with_account("u-alice", "ca_missing").expect(400).at("/error/code", 1803)),
        Row::new("V17")
            .switch("unknown_account_status = 400", "unknown_account_status = 404")
            .then(with_account("u-alice", "ca_missing").expect(404).at("/error/code", 1803)),
        Row::new("V18").then(
            as_user("u-nobody")
                .expect(400)
                .at("/error/code", 1810)
                .at("/error/slug", "ActionExecute_ConnectedAccountNotFound")
                .check(move |answer| no_account(answer, "u-nobody", "github")),
        ),
        Row::new("V18")
            .switch("no_account_status = 400", "no_account_status = 404")
            .then(as_user("u-nobody").expect(404).at("/error/code", 1810)),
        Row::new("V19").then(
            slack("u-bob-individual")
                .expect(400)
                .at("/error/code", 1810)
                .check(move |answer| no_account(answer, "u-bob-individual", "slack")),
        ),
        Row::new("V20").then(slack("org_550e8400")).uses("ca_org"),
        Row::new("V21").then(as_user("u-alice")).uses("ca_alice_new"),
        Row::new("V22")
            .then(
                Step::new(Method::PATCH, &format!("{accounts}/ca_alice_new/status"))
                    .json(json!({"enabled": false})),
            )
            .then(as_user("u-alice"))
            .uses("ca_alice_old"),
        Row::new("V23").then(with_account("u-alice", "ca_alice_old")).uses("ca_alice_old"),
        Row::new("V24")
            .then(
                with_account("u-exp", "ca_exp")
                    .expect(410)
                    .at("/error/code", 1820)
                    .at("/error/slug", "ActionExecute_ConnectedAccountExpired")
                    .check(|answer| assert!(answer.text().contains("is in EXPIRED state"))),
            )
            .then(as_user("u-exp").expect(410).at("/error/code", 1820)),
        Row::new("V25")
            .then(with_account("u-init", "ca_init").expect(422).at("/error/code", 1706))
            .then(as_user("u-init").expect(422)),
        Row::new("V25")
            .switch("pending_account_code = 1706", "pending_account_code = 1777")
            .then(as_user("u-init").expect(422).at("/error/code", 1777)),
        Row::new("V26").then(with_account("u-off", "ca_off").expect(422)).then(as_user("u-off").expect(422)),
        Row::new("V26")
            .switch("inactive_executes = false", "inactive_executes = true")
            .then(as_user("u-off"))
            .uses("ca_off"),
        Row::new("V27").then(
            Step::post("/api/v3/tools/execute/HACKERNEWS_GET_USER")
                .json(json!({"user_id": "u-nobody", "arguments": {"username": "pg"}}))
                .at("/data/username", "pg"),
        ),
        Row::new("V28")
            .fault(json!({"kind": "provider_failure", "provider_status": 404}))
            .then(repo_call().at("/successful", false).at("/data/status_code", 404).check(|answer| {
                let json = answer.json();
                assert!(json["data"]["http_error"].as_str().unwrap().starts_with("404 Client Error"));
                assert_eq!(json["error"], json["data"]["message"]);
                assert!(json["log_id"].as_str().unwrap().starts_with("log_"));
            }))
            .effects(0),
        Row::new("V29")
            .fault(json!({"kind": "provider_failure", "provider_status": 429}))
            .then(repo_call().at("/successful", false).at("/data/status_code", 429)),
        Row::new("V30")
            .fault(json!({"kind": "provider_failure", "provider_status": 404, "legacy": true}))
            .then(repo_call().at("/successful", false).at("/data", json!({})).check(|answer| {
                assert!(answer.json()["error"].as_str().unwrap().starts_with("404 Client Error"));
            })),
        Row::new("V30")
            .switch("legacy_failures = false", "legacy_failures = true")
            .fault(json!({"kind": "provider_failure", "provider_status": 404}))
            .then(repo_call().at("/data", json!({}))),
        Row::new("V31")
            .fault(json!({"kind": "provider_failure"}))
            .then(repo_call().at("/successful", false).at("/data/status_code", Value::Null)),
        Row::new("V32")
            .then(
                repo_call()
                    .json(json!({"user_id": "u-alice", "version": PINNED, "arguments": {"owner": "o"}}))
                    .at("/successful", false)
                    .check(|answer| {
                        let error = answer.at("/error");
                        let error = error.as_str().unwrap();
                        assert!(error.contains("Invalid request data") && error.contains("repo"), "{error}");
                    }),
            )
            .effects(0),
        Row::new("V32")
            .switch("missing_argument = \"tool_failure\"", "missing_argument = \"bad_request\"")
            .then(
                repo_call()
                    .json(json!({"user_id": "u-alice", "version": PINNED, "arguments": {"owner": "o"}}))
                    .expect(400)
                    .at("/error/errors", json!(["repo: required"])),
            ),
        Row::new("V33").then(
            repo_call()
                .json(json!({"user_id": "u-alice", "version": PINNED, "text": "get it", "arguments": {}}))
                .expect(400)
                .at("/error/status", 400),
        ),
        Row::new("V34")
            .switch("requests = 1000000", "requests = 2")
            .switch("window_seconds = 60", "window_seconds = 3600")
            .then(repo_call().header("x-ratelimit-remaining", "1"))
            .then(repo_call().header("x-ratelimit-remaining", "0"))
            .then(
                repo_call()
                    .expect(429)
                    .at("", json!({"message": "Rate limit exceeded. Limit: 2 requests per 60 minutes"}))
                    .header("x-ratelimit-remaining", "0")
                    .check(|answer| {
                        let wait: u32 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
                        assert!((1..=3600).contains(&wait));
                    }),
            )
            .effects(2),
        Row::new("V35")
            .fault(json!({"kind": "throttle", "form": "edge"}))
            .then(
                repo_call().expect(429).at("/error/code", 10429).at("/error/slug", "HTTP_TooManyRequests").check(
                    |answer| {
                        assert!(!answer.headers.contains_key("x-ratelimit"));
                        assert!(!answer.headers.contains_key("retry-after"));
                    },
                ),
            ),
        Row::new("V36")
            .fault(json!({"kind": "status", "status": 500, "times": 1}))
            .then(repo_call().expect(500).at("/error/status", 500))
            .then(repo_call().at("/successful", true)),
        Row::new("V37")
            .fault(json!({"kind": "status", "status": 502, "body": "html", "times": 1}))
            .fault(status(503, "empty"))
            .then(repo_call().expect(502).check(|answer| assert!(answer.text().contains("<html>"))))
            .then(repo_call().expect(503).check(|answer| assert!(answer.body.is_empty()))),
        Row::custom("V38", |bench| {
            Box::pin(async move {
                bench.set_faults(json!([{"kind": "hang", "after_effect": true, "times": 1}])).await;
                let call = repo_call().with("idempotency-key", "same").with("x-request-id", "r38");
                let lost = bench.send_within(&call, Duration::from_millis(100)).await;
                assert!(lost.unwrap_err().is_timeout());
                assert_eq!(bench.send(&call).await.unwrap().status, 200);
                assert_eq!(bench.running.ledger_summary().effects, 2, "nothing is de-duplicated");
                assert_eq!(bench.running.ledger_summary().repeated_request_ids["r38"], 2);
            })
        }),
        Row::custom("V39", |bench| {
            Box::pin(async move {
                bench.set_faults(json!([{"kind": "reset", "after_effect": false}])).await;
                assert!(bench.send(&repo_call()).await.is_err());
                assert_eq!(bench.running.ledger_summary().effects, 0);
            })
        }),
        Row::new("V40").fault(status(403, "string_code")).then(
            repo_call().expect(403).at("/error/code", "403").at("/error/message", "Forbidden").check(|answer| {
                assert!(answer.json()["error"]["id"].is_string());
            }),
        ),
        Row::new("V41").fault(status(402, "string_error")).then(repo_call().expect(402).check(|answer| {
            assert!(answer.json()["error"].is_string() && answer.json()["tag"].is_string());
        })),
        Row::new("V42").fault(status(400, "no_slug")).then(
            repo_call().expect(400).at("/error/suggested_fix", "").check(|answer| {
                let json = answer.json();
                assert!(json["error"].get("slug").is_none() && json["error"].get("request_id").is_none());
            }),
        ),
        Row::new("V43").fault(json!({"kind": "malformed", "form": "no_log_id"})).then(
            repo_call().at("/successful", true).check(|answer| assert!(answer.json().get("log_id").is_none())),
        ),
        Row::new("V44").fault(json!({"kind": "malformed", "form": "extra_fields"})).then(
            repo_call().at("/successful", true).check(|answer| {
                assert!(answer.json()["session_info"].is_object());
                assert!(answer.json()["x_unknown"].is_array());
            }),
        ),
        Row::new("V45").fault(json!({"kind": "malformed", "form": "error_text"})).then(
            repo_call().at("/successful", true).check(|answer| {
                assert!(!answer.json()["error"].as_str().unwrap().is_empty());
            }),
        ),
        Row::new("V46").fault(json!({"kind": "large", "bytes": 5_000_000})).then(repo_call().check(|answer| {
            assert!(answer.body.len() >= 5_000_000);
            let text = answer.text();
            assert!(text.contains("9007199254740993123") && text.contains("日本語"));
            assert_eq!(answer.json()["data"]["rows"][0]["none"], Value::Null);
        })),
        Row::new("V47").then(versioned("20250905_00").header(
            "composio-deprecated-toolkits",
            "\"GITHUB\";version=\"20250905_00\";deprecated=@1779840000;sunset=@1787788800;reason=\"lifecycle\"",
        )),
        Row::new("V48").then(
            Step::post("/api/v3/tools/execute/GITHUB_OLD_SEARCH")
                .json(json!({"user_id": "u-alice", "version": PINNED, "arguments": {"query": "q"}}))
                .expect(410)
                .at("/error/status", 410),
        ),
        Row::new("V49")
            .fault(json!({"kind": "status", "status": 503, "headers": {"x-should-retry": "false"}}))
            .then(repo_call().expect(503).header("x-should-retry", "false")),
        Row::new("V50").then(
            Step::get(&format!("/api/v3/tools/GITHUB_GET_REPO?version={PINNED}"))
                .at("/toolkit/slug", "github")
                .at("/version", PINNED)
                .at("/available_versions", json!(["00000000_00", "20250905_00", PINNED]))
                .check(|answer| {
                    assert!(answer.json()["tags"].as_array().unwrap().contains(&json!("readOnlyHint")));
                }),
        ),
        Row::new("V51").then(
            Step::get("/api/v3/tools/GITHUB_GET_REPO?version=20250905_00&toolkit_versions[github]=20251027_00")
                .at("/version", "20250905_00"),
        ),
        Row::custom("V52", |bench| {
            Box::pin(async move {
                let first = format!("/api/v3/tools?toolkit_slug=github&toolkit_versions[github]={PINNED}&limit=1");
                let mut seen = BTreeSet::new();
                let mut page = bench.get(&first).await;
                let total = page["total_items"].as_u64().unwrap();
                assert!(total > 1 && page["next_cursor"].is_string());
                loop {
                    let items = page["items"].as_array().unwrap();
                    assert_eq!(items.len(), 1);
                    assert!(seen.insert(items[0]["slug"].to_string()), "no tool comes twice");
                    let Some(cursor) = page["next_cursor"].as_str() else { break };
                    page = bench.get(&format!("{first}&cursor={cursor}")).await;
                }
                assert_eq!(seen.len() as u64, total);
                assert_eq!(page["next_cursor"], Value::Null);
            })
        }),
        Row::new("V53").then(
            Step::get("/api/v3/tools?tool_slugs=GITHUB_GET_REPO,NOTION_SEARCH&toolkit_slug=slack&limit=9999")
                .at("/total_items", 2)
                .at("/items/0/slug", "GITHUB_GET_REPO")
                .at("/items/1/slug", "NOTION_SEARCH"),
        ),
        Row::new("V54").then(Step::get("/api/v3/toolkits/github").at("/meta/version", PINNED).check(|answer| {
            assert!(answer.json()["composio_managed_auth"].is_array(), "as the SDKs decode it");
            let versions = answer.at("/meta/available_versions");
            for version in ["20250905_00", PINNED] {
                assert!(versions.as_array().unwrap().contains(&json!(version)));
            }
        })),
        Row::new("V55").then(
            Step::get("/api/v3/toolkits/github?version=20250905_00").at("/meta/version", "20250905_00"),
        ),
        Row::new("V56").then(Step::get("/api/v3/toolkits/nope").expect(404).at("/error/status", 404)),
        Row::new("V57").then(
            Step::get(&format!("{accounts}?user_ids=u-alice&toolkit_slugs=github&statuses=ACTIVE"))
                .check(alice_is_newest_first),
        ),
        Row::new("V58")
            .then(
                Step::get(&format!("{accounts}?user_ids[]=u-alice&toolkit_slugs%5B%5D=github&statuses[]=ACTIVE"))
                    .check(alice_is_newest_first),
            )
            .then(
                Step::get(&format!("{accounts}?user_ids=u-alice&user_ids=u-nobody&toolkit_slugs=github"))
                    .check(alice_is_newest_first),
            ),
        Row::new("V59").then(
            Step::get(&format!("{accounts}/ca_missing"))
                .expect(404)
                .at("/error/code", 606)
                .at("/error/slug", "ConnectedAccount_ResourceNotFound"),
        ),
        Row::new("V60").then(
            Step::get(&format!("{accounts}?user_ids=u-revoked")).at("/items/0/status", "REVOKED"),
        ),
        Row::new("V61")
            .then(
                Step::new(Method::PATCH, &format!("{accounts}/ca_off/status"))
                    .json(json!({"enabled": true}))
                    .at("", json!({"success": true})),
            )
            .then(Step::get(&format!("{accounts}/ca_off")).at("/status", "ACTIVE"))
            .then(as_user("u-off")),
        Row::custom("V62", |bench| {
            Box::pin(async move {
                let link = Step::post("/api/v3/connected_accounts/link")
                    .json(json!({"auth_config_id": "ac_1", "user_id": "u-new"}));
                let answer = bench.send(&link).await.unwrap();
                assert_eq!(answer.status, 201);
                let link = answer.json();
                for field in ["link_token", "redirect_url", "expires_at", "connected_account_id"] {
                    assert!(link[field].is_string(), "{field}");
                }
                assert!(link.get("id").is_none() && link.get("status").is_none());
                let id = link["connected_account_id"].as_str().unwrap();
                let account = format!("/api/v3/connected_accounts/{id}");
                assert_eq!(bench.get(&account).await["status"], "INITIATED");
                let advance = Step::post("/_sandbox/clock").json(json!({"seconds": 599}));
                bench.send(&advance).await.unwrap();
                assert_eq!(bench.get(&account).await["status"], "INITIATED");
                bench.send(&Step::post("/_sandbox/clock").json(json!({"seconds": 2}))).await.unwrap();
                assert_eq!(bench.get(&account).await["status"], "EXPIRED");
            })
        }),
        Row::new("V63").then(
            Step::post(accounts)
                .json(json!({"auth_config": {"id": "ac_1"}, "connection": {"user_id": "u-new"}}))
                .expect(400)
                .at("/error/code", 600)
                .at("/error/slug", "ConnectedAccount_BadRequest"),
        ),
        Row::new("V64")
            .then(
                Step::post(&format!("{accounts}/ca_alice_new/refresh"))
                    .at("/status", "INITIATED")
                    .check(|answer| assert!(answer.json()["redirect_url"].is_string())),
            )
            .then(with_account("u-alice", "ca_alice_new").expect(422)),
        Row::custom("V65", |bench| {
            Box::pin(async move {
                let done = bench.send(&repo_call().with("x-request-id", "r65")).await.unwrap().json();
                let log_id = done["log_id"].as_str().unwrap();
                let log = bench.get(&format!("/api/v3.1/logs/tool_execution/{log_id}")).await;
                assert_eq!((&log["id"], &log["status"]), (&done["log_id"], &json!("success")));
                assert_eq!(log["type"], "tool.execution");
                assert_eq!(log["context"]["request_id"], "r65");
                assert_eq!(log["data"]["response"]["data"], done["data"]);
            })
        }),
        Row::custom("V66", |bench| {
            Box::pin(async move {
                let count = async |id: &str| bench.find_logs(id).await["logs"].as_array().unwrap().len();
                assert_eq!(count("r66").await, 0);
                bench.send(&repo_call().with("x-request-id", "r66")).await.unwrap();
                bench.send(&repo_call().with("x-request-id", "r66-other")).await.unwrap();
                assert_eq!(count("r66").await, 1);
                bench.send(&repo_call().with("x-request-id", "r66")).await.unwrap();
                assert_eq!(count("r66").await, 2);
            })
        }),
        Row::custom("V67", |bench| {
            Box::pin(async move {
                let done = bench.send(&repo_call()).await.unwrap().json();
                let log_id = done["log_id"].as_str().unwrap();
                let log = bench.get(&format!("/api/v3/internal/action_execution/log/{log_id}")).await;
                assert_eq!((&log["version"], &log["connection"]["entity"]), (&json!(PINNED), &json!("u-alice")));
                assert_eq!(log["actionId"], "GITHUB_GET_REPO");
                assert!(log["error"].is_object() && log["totalDuration"].is_string(), "as the SDKs decode it");
            })
        }),
        Row::new("V68")
            .then(repo_call().with("x-user-api-key", "uak_1").expect(401).at("/error/code", 10401)),
    ]
}

fn repo_body(user: &str) -> Value {
    json!({"user_id": user, "version": PINNED, "arguments": {"owner": "o", "repo": "r"}})
}

/// The call that most vectors are variations of.
fn repo_call() -> Step {
    Step::post(REPO).json(repo_body("u-alice"))
}

fn notion(user: &str) -> Step {
    Step::post("/api/v3/tools/execute/NOTION_SEARCH").json(json!({
        "user_id": user, "connected_account_id": "ca_shared", "arguments": {"query": "q"},
    }))
}

async fn run_rows(rows: Vec<Row>) {
    let mut failed = Vec::new();
    for row in rows {
        let id = row.id;
        // A panic of one row must not hide the rows after it.
        if let Err(error) = tokio::spawn(row.run()).await {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            failed.push(format!("{id}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{} row(s) failed:\n{}", failed.len(), failed.join("\n"));
}

type Custom = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One row of a table: a fresh sandbox, what is changed about it, and the requests in order.
struct Row {
    id: &'static str,
    world: String,
    faults: Vec<Value>,
    steps: Vec<Step>,
    effects: Option<u64>,
    uses: Option<&'static str>,
    custom: Option<Custom>,
}

impl Row {
    fn new(id: &'static str) -> Self {
        Self {
            id,
            world: DEFAULT_WORLD.to_owned(),
            faults: Vec::new(),
            steps: Vec::new(),
            effects: None,
            uses: None,
            custom: None,
        }
    }

    fn custom(id: &'static str, custom: Custom) -> Self {
        Self { custom: Some(custom), ..Self::new(id) }
    }

    /// Changes one line of the default world.
    fn switch(mut self, from: &str, to: &str) -> Self {
        let line = format!("\n{from}\n");
        assert!(self.world.contains(&line), "{}: the world has no line {from}", self.id);
        self.world = self.world.replacen(&line, &format!("\n{to}\n"), 1);
        self
    }

    fn fault(mut self, rule: Value) -> Self {
        self.faults.push(rule);
        self
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// How many effects there must be in the end.
    fn effects(mut self, effects: u64) -> Self {
        self.effects = Some(effects);
        self
    }

    /// The account that the last effect must have used.
    fn uses(mut self, account: &'static str) -> Self {
        self.uses = Some(account);
        self
    }

    async fn run(self) {
        let bench = Bench::start(&self.world).await;
        if !self.faults.is_empty() {
            bench.set_faults(json!(self.faults)).await;
        }
        for step in &self.steps {
            step.verify(&bench.send(step).await.unwrap());
        }
        if let Some(custom) = self.custom {
            custom(&bench).await;
        }
        if let Some(effects) = self.effects {
            assert_eq!(bench.running.ledger_summary().effects, effects, "effects");
        }
        if let Some(account) = self.uses {
            let effects = bench.get("/_sandbox/ledger/effects").await;
            assert_eq!(effects["items"].as_array().unwrap().last().unwrap()["account"], account);
        }
        bench.running.stop().await;
    }
}

type Check = Box<dyn Fn(&Answer) + Send + Sync>;

/// A request and what its answer must be.
struct Step {
    method: Method,
    path: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
    status: u16,
    values: Vec<(&'static str, Value)>,
    answer_headers: Vec<(&'static str, &'static str)>,
    checks: Vec<Check>,
}

impl Step {
    fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            key: Some(KEY.to_owned()),
            headers: Vec::new(),
            body: None,
            status: 200,
            values: Vec::new(),
            answer_headers: Vec::new(),
            checks: Vec::new(),
        }
    }

    fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    fn no_key(mut self) -> Self {
        self.key = None;
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn json(self, body: Value) -> Self {
        self.raw(&body.to_string())
    }

    fn raw(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    fn expect(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The value at a JSON pointer of the answer.
    fn at(mut self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.values.push((pointer, value.into()));
        self
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.answer_headers.push((name, value));
        self
    }

    fn check(mut self, check: impl Fn(&Answer) + Send + Sync + 'static) -> Self {
        self.checks.push(Box::new(check));
        self
    }

    fn verify(&self, answer: &Answer) {
        let what = format!("{} {}", self.method, self.path);
        assert_eq!(answer.status, self.status, "{what} answered {}", answer.text());
        for (pointer, value) in &self.values {
            assert_eq!(&answer.at(pointer), value, "{what} at {pointer}");
        }
        for (name, value) in &self.answer_headers {
            let found = answer.headers.get(*name).unwrap_or_else(|| panic!("{what} has no header {name}"));
            assert_eq!(found, value, "{what} header {name}");
        }
        for check in &self.checks {
            check(answer);
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn try_json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    fn json(&self) -> Value {
        self.try_json().unwrap_or_else(|| panic!("not JSON: {}", self.text()))
    }

    fn at(&self, pointer: &str) -> Value {
        self.json().pointer(pointer).cloned().unwrap_or_else(|| panic!("no {pointer} in {}", self.text()))
    }
}

/// A sandbox of its own and a client for it.
struct Bench {
    running: Running,
    client: Client,
}

impl Bench {
    async fn start(world: &str) -> Self {
        Self::start_with(world, Options::DEFAULT_SEED).await
    }

    async fn start_with(world: &str, seed: u64) -> Self {
        // The first test installs the provider; for the others it is there.
        rustls::crypto::ring::default_provider().install_default().ok();
        let sandbox = Sandbox::new(World::from_toml(world).unwrap(), Options { seed });
        let running = sandbox.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { running, client }
    }

    async fn send(&self, step: &Step) -> reqwest::Result<Answer> {
        self.send_within(step, Duration::from_secs(20)).await
    }

    async fn send_within(&self, step: &Step, limit: Duration) -> reqwest::Result<Answer> {
        let url = format!("{}{}", self.running.base_url(), step.path);
        let mut request = self.client.request(step.method.clone(), url).timeout(limit);
        if let Some(key) = &step.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in &step.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &step.body {
            request = request.header("content-type", "application/json").body(body.clone());
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    }

    async fn get(&self, path: &str) -> Value {
        self.send(&Step::get(path)).await.unwrap().json()
    }

    async fn set_faults(&self, faults: Value) {
        let put = Step::new(Method::PUT, "/_sandbox/faults").json(json!({ "faults": faults }));
        put.verify(&self.send(&put).await.unwrap());
    }

    async fn find_logs(&self, request_id: &str) -> Value {
        let filter = json!({"field": "request_id", "operator": "==", "value": request_id});
        let search = Step::post("/api/v3.1/logs/tool_execution").json(json!({"filters": [filter]}));
        self.send(&search).await.unwrap().json()
    }

    async fn wait_for_effects(&self, effects: u64) {
        tokio::time::timeout(Duration::from_secs(10), async {
            while self.running.ledger_summary().effects < effects {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{:?}", self.running.ledger_summary()));
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
