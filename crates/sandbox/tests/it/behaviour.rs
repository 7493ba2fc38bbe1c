//! What the sandbox keeps and shows beside its answers: the ledger, accounts, logs, worlds.

use std::time::Duration;

use errand_sandbox::{DEFAULT_WORLD, Options, Sandbox, World};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::{Ask, Bench, REPO, repo_body, repo_call};

#[tokio::test]
async fn the_ledger_tells_repeated_jobs_and_requests_from_single_ones() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let slack = || {
        Ask::post("/api/v3/tools/execute/SLACK_SEND_MESSAGE").json(json!({
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
    bench.send(&repo_call().key(Some("ak_bad"))).await.unwrap();

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

    bench.send(&Ask::new(Method::DELETE, "/_sandbox/ledger")).await.unwrap();
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
async fn logs_can_be_late_lost_or_refused() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let found = async || bench.find_logs("r-log").await["logs"].as_array().map(Vec::len);
    let settle = |settings: Value| Ask::new(Method::PUT, "/_sandbox/logs").json(settings);

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
        bench.send(&Ask::post(REPO).json(body).with("x-request-id", &id)).await.unwrap();
        assert_eq!(bench.find_logs(&id).await["logs"].as_array().unwrap().len(), 1, "{id}");
    }
}

#[tokio::test]
async fn a_link_that_is_opened_connects_the_account() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let link = Ask::post("/api/v3/connected_accounts/link")
        .json(json!({"auth_config_id": "ac_1", "user_id": "u-new"}));
    let link = bench.send(&link).await.unwrap().json();
    let before = bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap();
    assert_eq!(before.at("/error/status"), 422);
    let token = link["link_token"].as_str().unwrap();
    assert!(link["redirect_url"].as_str().unwrap().ends_with(&format!("/_sandbox/connect/{token}")));
    assert_eq!(bench.get(&format!("/_sandbox/connect/{token}")).await["status"], "ACTIVE");
    assert_eq!(bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap().status, 200);
}

/// In the seed's time accounts of managed OAuth came with a redirect; those of an OAuth app of one's own still do.
#[tokio::test]
async fn an_account_that_is_initiated_is_connected_by_its_redirect() {
    let before_the_change = DEFAULT_WORLD.replacen("legacy_initiate = false", "legacy_initiate = true", 1);
    let own_app = "[[auth_config]]\nid = \"ac_own\"\ntoolkit = \"github\"\nmanaged = false\n";
    let own_app = format!("{DEFAULT_WORLD}\n{own_app}");
    for (world, config) in [(before_the_change, "ac_1"), (own_app, "ac_own")] {
        let bench = Bench::start(&world).await;
        let initiate = |connection: Value| {
            Ask::post("/api/v3.1/connected_accounts")
                .json(json!({"auth_config": {"id": config}, "connection": connection}))
        };
        let to_consent = json!({"user_id": "u-new", "callback_url": "http://127.0.0.1:1/back"});
        let made = bench.send(&initiate(to_consent)).await.unwrap();
        assert_eq!((made.status.as_u16(), made.at("/connectionData/val/status")), (201, json!("INITIATED")));
        let redirect = made.at("/connectionData/val/redirectUrl");
        assert_eq!(redirect, made.at("/redirect_url"));
        assert_eq!(bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap().status, 422);
        let consent = redirect.as_str().unwrap().strip_prefix(&bench.running.base_url()).unwrap().to_owned();
        // The page of the callback is not there, and the consent is given all the same.
        assert!(bench.send(&Ask::new(Method::GET, &consent)).await.unwrap_err().is_connect());
        assert_eq!(bench.send(&repo_call().json(repo_body("u-new"))).await.unwrap().status, 200);

        let own_tokens = json!({"user_id": "u-tokens", "state": {"val": {"status": "ACTIVE"}}});
        let made = bench.send(&initiate(own_tokens)).await.unwrap();
        assert_eq!((made.at("/status"), made.at("/redirect_url")), (json!("ACTIVE"), Value::Null));
    }
}

#[tokio::test]
async fn without_data_retention_a_log_tells_how_a_call_ended_and_nothing_else() {
    let mut world = World::default_world();
    world.retain_no_data();
    let switched = DEFAULT_WORLD.replacen("visibility = \"show_all\"", "visibility = \"dont_store_data\"", 1);
    for world in [world, World::from_toml(&switched).unwrap()] {
        let bench = Bench::start_in(world, Options::DEFAULT_SEED).await;
        let secret = || {
            let mut body = repo_body("u-alice");
            body["arguments"]["repo"] = json!("of-a-customer");
            repo_call().json(body)
        };
        bench.send(&secret().with("x-request-id", "r-good")).await.unwrap();
        bench.set_faults(json!([{"kind": "provider_failure", "provider_status": 404}])).await;
        bench.send(&secret().with("x-request-id", "r-bad")).await.unwrap();
        for (request_id, status, is_error, http_status) in
            [("r-good", "success", false, 200), ("r-bad", "failed", true, 404)]
        {
            let found = bench.find_logs(request_id).await;
            let log = &found["logs"][0];
            let id = log["id"].as_str().unwrap();
            assert_eq!(bench.get(&format!("/api/v3.1/logs/tool_execution/{id}")).await, *log);
            assert_eq!(
                (&log["status"], &log["data"], log.get("message")),
                (&json!(status), &json!({}), None)
            );
            let told = &log["metadata"];
            assert_eq!((&told["is_error"], &told["http_status"]), (&json!(is_error), &json!(http_status)));
            assert_eq!(
                (&told["user_id"], &log["context"]["request_id"]),
                (&json!("u-alice"), &json!(request_id))
            );
            let old = bench.get(&format!("/api/v3/internal/action_execution/log/{id}")).await;
            for shown in [log, &old] {
                let text = shown.to_string();
                assert!(!text.contains("of-a-customer") && !text.contains("Client Error"), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn data_retention_that_is_switched_off_later_leaves_earlier_logs_as_they_are() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    bench.send(&repo_call().with("x-request-id", "r-before")).await.unwrap();
    let settings = Ask::new(Method::PUT, "/_sandbox/logs").json(json!({"visibility": "dont_store_data"}));
    assert_eq!(bench.send(&settings).await.unwrap().at("/visibility"), "dont_store_data");
    bench.send(&repo_call().with("x-request-id", "r-after")).await.unwrap();
    let data = async |id: &str| bench.find_logs(id).await["logs"][0]["data"].clone();
    assert_eq!(data("r-before").await["response"]["data"]["full_name"], "o/r");
    assert_eq!(data("r-after").await, json!({}));
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
        Ask::post("/api/v3.1/tools/execute/CRM_ADD_NOTE")
            .json(json!({"user_id": "someone", "arguments": {"text": "\"hi\"\n"}}))
    };
    assert_eq!(bench.send(&call()).await.unwrap().status, 503);
    let done = bench.send(&call()).await.unwrap().json();
    assert_eq!((&done["data"]["note"], &done["data"]["by"]), (&json!("\"hi\"\n"), &json!("someone")));
    let account = bench.get("/api/v3/connected_accounts/ca_crm").await;
    assert_eq!(account["created_at"], "2025-01-01T00:00:00.000Z");
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
