//! Look-ups against servers that misbehave.

use std::time::Duration;

use errand::tool::{ToolApi as _, ToolError};
use errand_testbed::scripted_api::{Answer, ScriptedApi};
use serde_json::json;

use super::client;

#[tokio::test]
async fn a_look_up_is_repeated_twice_when_the_api_fails_and_not_when_it_answers() {
    let broken = Answer::new("503 Unavailable", "");
    let tool = r#"{"slug":"T","toolkit":{"slug":"Kit"},"version":"20250101_00","tags":null,"no_auth":"?",
        "available_versions":["20240101_00","latest","20250101_00","00000000_00"],"deprecated":{"is_deprecated":true}}"#;
    let good = Answer::new("200 OK", tool);
    let api = ScriptedApi::start([broken.clone(), Answer::nothing().resetting(), good]).await;
    let info = client(&api).tool("T", Some("20250101_00")).await.unwrap();
    assert_eq!((info.toolkit.as_str(), info.deprecated, info.no_auth), ("kit", true, false));
    assert_eq!(info.available_versions, ["20250101_00", "20240101_00", "00000000_00"]);
    assert_eq!(api.seen().len(), 3);
    assert_eq!(api.seen()[0].line(), "GET /api/v3.1/tools/T?version=20250101_00");

    let api = ScriptedApi::start([broken]).await;
    assert!(matches!(client(&api).tool("T", None).await, Err(ToolError::Unavailable(_))));
    assert_eq!(api.seen().len(), 3);
    assert_eq!(api.seen()[0].line(), "GET /api/v3.1/tools/T?toolkit_versions=latest");

    let throttled = Answer::new("429 Slow Down", "{}").header("retry-after", "9");
    let api = ScriptedApi::start([throttled]).await;
    match client(&api).tool("T", None).await {
        Err(ToolError::Throttled { retry_after }) => assert_eq!(retry_after, Some(Duration::from_secs(9))),
        other => panic!("{other:?}"),
    }
    assert_eq!(api.seen().len(), 1);
}

#[tokio::test]
async fn accounts_are_read_page_by_page_up_to_a_bound_and_sorted() {
    let account = |id: &str, status: &str, created: &str| {
        json!({"id": id, "user_id": "u&1", "status": status, "toolkit": {"slug": "GitHub"}, "is_disabled": false,
               "created_at": created, "state": {"val": {"access_token": "secret-token"}}, "data": {"k": "secret-token"}})
    };
    let first = json!({"items": [
        account("ca_1", "ACTIVE", "2026-01-01T00:00:00.000Z"),
        account("ca_2", "REVOKED", "2026-01-03T00:00:00Z"),
        {"id": 5}, null,
    ], "next_cursor": "c=1"});
    let second = json!({"items": [account("ca_3", "SOMETHING_NEW", "2026-01-02T00:00:00Z"),
                                  account("ca_4", "ACTIVE", "garbage")], "next_cursor": null});
    let page = |value: &serde_json::Value| Answer::new("200 OK", value.to_string());
    let api = ScriptedApi::start([page(&first), page(&second)]).await;
    let list = client(&api).accounts(&["u&1"], Some("github")).await.unwrap();
    assert_eq!((list.is_whole, list.pages), (true, 2));
    let accounts = list.accounts;
    let ids: Vec<_> = accounts.iter().map(|account| (account.id.as_str(), account.status.as_str())).collect();
    let expected = [("ca_2", "REVOKED"), ("ca_3", "SOMETHING_NEW"), ("ca_1", "ACTIVE"), ("ca_4", "ACTIVE")];
    assert_eq!(ids, expected);
    assert!(!format!("{accounts:?}").contains("secret-token"));
    let seen = api.seen();
    assert!(seen[0].line().contains("user_ids=u%261&") && seen[0].line().contains("toolkit_slugs=github"));
    assert!(seen[1].line().ends_with("cursor=c%3D1"), "{}", seen[1].line());

    // A cursor that never ends, and one that repeats itself.
    let endless = (0..40).map(|n| page(&json!({"items": [], "next_cursor": n.to_string()})));
    let api = ScriptedApi::start(endless).await;
    let list = client(&api).accounts(&["u"], None).await.unwrap();
    assert_eq!((list.accounts.len(), list.is_whole, list.pages), (0, false, 20));
    assert_eq!(api.seen().len(), 20);
    let api = ScriptedApi::start([page(&json!({"items": [], "next_cursor": "again"}))]).await;
    assert!(!client(&api).accounts(&["u"], None).await.unwrap().is_whole);
    assert_eq!(api.seen().len(), 2);
}

#[tokio::test]
async fn an_answer_of_another_server_is_not_believed() {
    let api = ScriptedApi::answering("200 OK", "<html>Welcome</html>").await;
    let composio = client(&api);
    assert!(matches!(composio.check().await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.tool("T", None).await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.accounts(&["u"], None).await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.account("ca").await, Err(ToolError::Unavailable(_))));
}
