//! Routes of the real API that the sandbox does not have.

use errand_sandbox::DEFAULT_WORLD;
use reqwest::Method;
use serde_json::json;

use crate::bench::{Ask, Bench};

/// As the SDKs ask for them.
const ASKED: [&str; 21] = [
    "POST /tools/execute/proxy",
    "POST /tools/execute/GITHUB_GET_REPO/input",
    "POST /tools/scopes/required",
    "GET /toolkits/changelog",
    "POST /toolkits/github/scopes/recommended",
    "PATCH /connected_accounts/ca_bob",
    "POST /connected_accounts/ca_bob/revoke",
    "POST /connected_accounts/complete_auth",
    "POST /tool_router/session",
    "GET /tool_router/session/trs_1/tools",
    "POST /tool_router/session/trs_1/link",
    "POST /tool_router/session/trs_1/execute",
    "POST /labs/tool_router/session",
    "POST /files/upload/request",
    "GET /triggers_types/GITHUB_STAR_ADDED_EVENT",
    "POST /trigger_instances/GITHUB_STAR_ADDED_EVENT/upsert",
    "POST /webhook_subscriptions",
    "POST /mcp/servers",
    "GET /mcp/1",
    "POST /internal/action_execution/logs",
    "GET /auth/session/info",
];

#[tokio::test]
async fn what_only_the_real_api_has_is_refused_in_a_sentence() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    for asked in ASKED {
        let (method, path) = asked.split_once(' ').unwrap();
        for base in ["/api/v3", "/api/v3.1"] {
            let ask = Ask::new(method.parse().unwrap(), &format!("{base}{path}")).json(json!({}));
            let answer = bench.send(&ask).await.unwrap();
            assert_eq!(answer.status, 501, "{asked}: {}", answer.text());
            assert_eq!(answer.at("/error/slug"), "HTTP_NotImplemented");
            let message = answer.at("/error/message").as_str().unwrap().to_owned();
            assert!(
                message.starts_with("The sandbox does not model ") && message.ends_with('.'),
                "{message}"
            );
            assert_eq!(answer.headers["x-should-retry"], "false", "{asked}");
        }
    }
    let no_key = Ask::new(Method::GET, "/api/v3.1/toolkits/changelog").key(None);
    assert_eq!(bench.send(&no_key).await.unwrap().status, 401, "a key comes first");
}

#[tokio::test]
async fn what_nobody_has_is_not_found() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    for path in ["/nope", "/tools/execute/A/B", "/toolkit", "/mcps", "/connected_accounts/ca_bob/nope"] {
        for base in ["/api/v3", "/api/v3.1"] {
            let answer = bench.send(&Ask::post(&format!("{base}{path}"))).await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.at("/error/slug")),
                (404, json!("HTTP_NotFound")),
                "{path}"
            );
        }
    }
}
