use proptest::prelude::*;

use super::*;
use crate::{
    job::{HeldReason, OwnerKind},
    tool::decode::decode,
};

const ALL: [Effect; 3] = [Effect::Safe, Effect::Idempotent, Effect::Once];

fn owner() -> Owner {
    Owner::new(OwnerKind::Org, "org_1").unwrap()
}

fn context<'a>(owner: &'a Owner, effect: Effect, account: Option<&'a str>, explicit: bool) -> Context<'a> {
    Context {
        effect,
        account,
        explicit_account: explicit,
        owner,
        toolkit: "github",
        tool: "GITHUB_GET_REPO",
        version: "20251027_00",
    }
}

fn reply(status: u16, body: &str) -> Reply {
    with_body(status, decode(status, body.as_bytes()))
}

fn with_body(status: u16, body: Body) -> Reply {
    Reply::Answered(Answer { status, retry_after: Some(Duration::from_secs(7)), deprecated: None, body })
}

/// The verdict as one word and the kind of its error.
fn verdict(classified: &Classified) -> (&'static str, Option<ErrorKind>) {
    match &classified.next {
        Next::Succeed { .. } => ("succeed", None),
        Next::Stop(Stop::Fail { error }) => ("fail", Some(error.kind())),
        Next::Stop(Stop::Connect { toolkit, error }) if toolkit == "github" => {
            ("connection", Some(error.kind()))
        }
        Next::Stop(Stop::Hold { reason: HeldReason::Credentials, error }) => {
            ("credentials", Some(error.kind()))
        }
        Next::Stop(stop) => ("hold", Some(stop.error().kind())),
        Next::Retry { error, .. } => ("retry", Some(error.kind())),
        Next::Throttled { error, .. } => ("throttled", Some(error.kind())),
        Next::Unknown { error } => ("unknown", Some(error.kind())),
    }
}

fn meaning(effect: Effect, status: u16, body: &str) -> Classified {
    classify(reply(status, body), &context(&owner(), effect, Some("ca_1"), false))
}

fn slug(code: i64, slug: &str) -> String {
    format!(r#"{{"error":{{"message":"m","code":{code},"slug":"{slug}","request_id":"r"}}}}"#)
}

#[test]
fn a_success_needs_status_field_and_silence() {
    let good = r#"{"data":{"a":1},"error":null,"successful":true,"log_id":"log_1","session_info":{},"x":1}"#;
    let classified = meaning(Effect::Once, 200, good);
    assert_eq!(classified.outcome, AttemptOutcome::Succeeded);
    assert_eq!(classified.log_id.as_deref(), Some("log_1"));
    assert!(matches!(classified.next, Next::Succeed { result } if result.get() == r#"{"a":1}"#));
    assert_eq!(verdict(&meaning(Effect::Once, 200, r#"{"successful":true}"#)).0, "succeed");
    assert_eq!(verdict(&meaning(Effect::Once, 206, r#"{"successful":true,"error":" "}"#)).0, "succeed");

    assert_eq!(
        verdict(&meaning(Effect::Once, 200, r#"{"data":{},"successful":true,"error":"no"}"#)).0,
        "fail"
    );
    assert_eq!(verdict(&meaning(Effect::Once, 200, r#"{"data":{},"successfull":true}"#)).0, "fail");
    for status in [300, 400, 404, 429, 500] {
        assert_eq!(verdict(&meaning(Effect::Once, status, good)).0, "unknown", "{status}");
    }
}

#[test]
fn a_failed_tool_is_repeated_only_where_the_provider_did_nothing_or_repeating_is_harmless() {
    use ErrorKind::{NeedsReconnection, ToolFailed};
    let run = |data: &str, error: &str| {
        format!(r#"{{"data":{data},"error":"{error}","successful":false,"log_id":"log_1"}}"#)
    };
    let status = |code: &str| run(&format!(r#"{{"status_code":{code},"message":"m"}}"#), "m");
    // The columns are `safe` and `once`; `idempotent` is as `safe`.
    let rows = [
        (status("404"), "fail", "fail", ToolFailed),
        (status("400"), "fail", "fail", ToolFailed),
        (status("null"), "fail", "fail", ToolFailed),
        (status("401"), "fail", "fail", ToolFailed),
        (status("429"), "retry", "retry", ToolFailed),
        (status("500"), "retry", "fail", ToolFailed),
        (status("503"), "retry", "fail", ToolFailed),
        (run("{}", "404 Client Error: Not Found"), "fail", "fail", ToolFailed),
        (run("{}", "429 Client Error: Too Many Requests"), "retry", "retry", ToolFailed),
        (run("{}", "503 Server Error: x"), "retry", "fail", ToolFailed),
        (run("{}", "503 reasons"), "fail", "fail", ToolFailed),
        (run("{}", "Invalid request data: missing `owner`"), "fail", "fail", ToolFailed),
        (run("{}", "oauth: invalid_grant"), "connection", "connection", NeedsReconnection),
        (
            run(r#"{"status_code":401,"message":"x","http_error":"error=token_revoked"}"#, "401"),
            "connection",
            "connection",
            NeedsReconnection,
        ),
        (
            run(r#"{"status_code":400}"#, "Token has been expired or revoked."),
            "connection",
            "connection",
            NeedsReconnection,
        ),
        (run(r#"{"status_code":404}"#, "no issue named invalid_grant"), "fail", "fail", ToolFailed),
    ];
    for (body, safe, once, kind) in rows {
        for (effect, expected) in [(Effect::Safe, safe), (Effect::Idempotent, safe), (Effect::Once, once)] {
            let classified = meaning(effect, 200, &body);
            assert_eq!(verdict(&classified), (expected, Some(kind)), "{effect} {body}");
            assert_eq!(classified.outcome, AttemptOutcome::ToolFailed);
            assert_eq!(classified.log_id.as_deref(), Some("log_1"));
        }
    }
}

#[test]
fn refusals_go_by_slug_then_code_then_status() {
    use ErrorKind::{
        AccountMismatch, Credentials, NeedsConnection, NeedsReconnection, Refused, Throttled, UnknownTool,
    };
    let html = "<html>Just a moment...</html>".to_owned();
    let not_found = "ActionExecute_ConnectedAccountNotFound";
    let rows = [
        (401, slug(906, "Auth_NoAuthProvided"), "credentials", Credentials),
        (401, slug(801, "APIKey_InvalidAPIKey"), "credentials", Credentials),
        (401, slug(811, "APIKey_APIKeyExpired"), "credentials", Credentials),
        (403, slug(812, "APIKey_InsufficientPermissions"), "credentials", Credentials),
        (403, slug(2206, "Organization_InsufficientPermissions"), "credentials", Credentials),
        (401, slug(10401, "HTTP_Unauthorized"), "credentials", Credentials),
        (403, r#"{"error":{"code":812}}"#.into(), "credentials", Credentials),
        (401, html.clone(), "credentials", Credentials),
        (403, slug(1, "Something_Else"), "fail", Refused),
        (404, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
        (400, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
        (404, slug(1800, "ActionExecute_ToolNotFound"), "fail", UnknownTool),
        (404, slug(9999, "New_Slug"), "fail", UnknownTool),
        (410, slug(9999, "New_Slug"), "fail", UnknownTool),
        (400, r#"{"error":{"code":"2401"}}"#.into(), "fail", UnknownTool),
        (400, slug(1810, not_found), "connection", NeedsConnection),
        (404, slug(1810, not_found), "connection", NeedsConnection),
        (404, r#"{"error":{"code":1810.0}}"#.into(), "connection", NeedsConnection),
        (410, slug(1820, "ActionExecute_ConnectedAccountExpired"), "connection", NeedsReconnection),
        (410, r#"{"error":{"code":1820}}"#.into(), "connection", NeedsReconnection),
        (422, r#"{"error":{"code":1706,"message":"m"}}"#.into(), "connection", NeedsReconnection),
        (422, r#"{"error":{"message":"m"}}"#.into(), "connection", NeedsReconnection),
        (400, slug(1811, "ActionExecute_ConnectedAccountEntityIdRequired"), "fail", AccountMismatch),
        (400, slug(1812, "ActionExecute_ConnectedAccountEntityIdMismatch"), "fail", AccountMismatch),
        (400, slug(1803, not_found), "connection", NeedsReconnection),
        (404, slug(606, "ConnectedAccount_ResourceNotFound"), "connection", NeedsReconnection),
        (400, r#"{"error":{"code":1806}}"#.into(), "connection", NeedsReconnection),
        (400, r#"{"error":{"message":"bad","errors":["x is missing"]}}"#.into(), "fail", Refused),
        (402, r#"{"error":"pay","tag":"X"}"#.into(), "fail", Refused),
        (409, "{}".into(), "fail", Refused),
        (413, html.clone(), "fail", Refused),
        (422, html.clone(), "fail", Refused),
        (403, r#"{"error":{"code":"403","message":"Forbidden","id":"x"}}"#.into(), "retry", Refused),
        (403, r#"{"message":"Forbidden"}"#.into(), "retry", Refused),
        (403, r#"{"status":"error","message":"Forbidden","data":null}"#.into(), "retry", Refused),
        (404, r#"{"data":{}}"#.into(), "retry", Refused),
        (404, r#"{"error":{"message":"no","suggested_fix":"Look."}}"#.into(), "fail", UnknownTool),
        (404, slug(10404, "HTTP_NotFound"), "retry", Refused),
        (404, r#"{"error":{"code":10404,"message":"no such route"}}"#.into(), "retry", Refused),
        (404, r#"{"message":"no Route matched with those values"}"#.into(), "retry", Refused),
        (400, r#"{"data":{},"error":"bad","successful":false}"#.into(), "fail", Refused),
        (403, r#"{"data":{},"error":"bad","successful":false}"#.into(), "fail", Refused),
        (404, r#"{"data":{},"error":"bad","successful":false,"log_id":"l"}"#.into(), "fail", UnknownTool),
        (403, html.clone(), "retry", Refused),
        (404, html.clone(), "retry", Refused),
        (429, r#"{"message":"Rate limit exceeded."}"#.into(), "throttled", Throttled),
        (429, slug(10429, "HTTP_TooManyRequests"), "throttled", Throttled),
        (429, html, "throttled", Throttled),
        (429, String::new(), "throttled", Throttled),
        (200, slug(1812, "ActionExecute_ConnectedAccountEntityIdMismatch"), "fail", AccountMismatch),
        (500, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
    ];
    for (status, body, expected, kind) in rows {
        for effect in ALL {
            let classified = meaning(effect, status, &body);
            assert_eq!(verdict(&classified), (expected, Some(kind)), "{effect} {status} {body}");
            let ran = !matches!(classified.outcome, AttemptOutcome::Refused | AttemptOutcome::Throttled);
            assert!(!ran, "{status} {body} means that nothing ran");
        }
    }
}

fn of_unknown_outcome() -> [(&'static str, Reply); 14] {
    [
        ("no answer", Reply::NoAnswer("reset".into())),
        ("500", reply(500, r#"{"error":{"message":"m","code":10500}}"#)),
        ("502 HTML", reply(502, "<html>")),
        ("503 empty", reply(503, "")),
        ("504", reply(504, "")),
        ("408", reply(408, "")),
        ("302", reply(302, "")),
        ("200 empty", reply(200, "")),
        ("200 cut JSON", reply(200, r#"{"data":{"#)),
        ("200 other JSON", reply(200, "[]")),
        ("200 unknown error", reply(200, r#"{"error":{"message":"m"}}"#)),
        ("500 with a result", reply(500, r#"{"data":{},"successful":false,"error":"e"}"#)),
        ("200 lost", with_body(200, Body::Broken("cut".into()))),
        ("500 lost", with_body(500, Body::Broken("cut".into()))),
    ]
}

#[test]
fn what_is_not_known_is_unknown_for_once_and_repeated_otherwise() {
    for effect in ALL {
        let expected = if effect == Effect::Once { "unknown" } else { "retry" };
        for (name, reply) in of_unknown_outcome() {
            let classified = classify(reply, &context(&owner(), effect, None, false));
            assert_eq!(verdict(&classified), (expected, Some(ErrorKind::UnknownOutcome)), "{name}");
            assert_eq!(classified.outcome, AttemptOutcome::Unknown, "{name}");
        }
    }
}

#[test]
fn nothing_sent_is_always_tried_again() {
    for effect in ALL {
        let classified = classify(Reply::NotSent("refused".into()), &context(&owner(), effect, None, false));
        assert_eq!(verdict(&classified), ("retry", Some(ErrorKind::NotSent)));
        assert_eq!(classified.outcome, AttemptOutcome::NotSent);
    }
}

#[test]
fn a_lost_refusal_is_asked_for_again_and_an_oversized_success_is_never() {
    for effect in ALL {
        let of = |reply| classify(reply, &context(&owner(), effect, None, false));
        for status in [400, 403, 404, 410, 422] {
            let lost = of(with_body(status, Body::Broken("cut".into())));
            assert_eq!((verdict(&lost).0, lost.outcome), ("retry", AttemptOutcome::Refused), "{status}");
        }
        assert_eq!(verdict(&of(with_body(200, Body::TooLarge))), ("fail", Some(ErrorKind::ResultTooLarge)));
        assert_eq!(verdict(&of(with_body(400, Body::TooLarge))), ("fail", Some(ErrorKind::Refused)));
    }
}

#[test]
fn a_missing_account_waits_for_a_connection_unless_the_job_named_it() {
    let owner = owner();
    let body = slug(1803, "ActionExecute_ConnectedAccountNotFound");
    let of = |account, explicit| {
        verdict(&classify(reply(400, &body), &context(&owner, Effect::Once, account, explicit)))
    };
    assert_eq!(of(None, false), ("connection", Some(ErrorKind::NeedsConnection)));
    assert_eq!(of(Some("ca_1"), false), ("connection", Some(ErrorKind::NeedsReconnection)));
    assert_eq!(of(Some("ca_1"), true), ("fail", Some(ErrorKind::AccountNotFound)));
}

#[test]
fn errors_say_what_to_change_and_hide_keys() {
    let body = r#"{"error":{"message":"no account, key ak_live_123456","code":1810,
        "slug":"ActionExecute_ConnectedAccountNotFound","suggested_fix":"Connect it."}}"#;
    let classified = meaning(Effect::Once, 400, body);
    assert!(classified.account_is_gone());
    let Next::Stop(Stop::Connect { error, .. }) = classified.next else { panic!("not held") };
    for part in [r#"`org_id` "org_1""#, "`github`", "no account, key ak_***", "suggested fix: Connect it."] {
        assert!(error.message().contains(part), "{part} in {}", error.message());
    }
    assert_eq!(error.code(), Some(1810));
    assert_eq!(error.slug(), Some("ActionExecute_ConnectedAccountNotFound"));
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let body = prop_oneof![
        prop::sample::select(vec![
            "",
            "<html>",
            "{}",
            "null",
            "[]",
            r#"{"error":{"message":"m"}}"#,
            r#"{"data":{},"successful":true}"#,
            r#"{"data":{},"successful":false}"#,
            r#"{"data":{"status_code":500},"successful":false}"#,
            r#"{"error":{"code":1810}}"#,
            r#"{"error":{"slug":"HTTP_TooManyRequests"}}"#,
            r#"{"error":{"code":12345,"slug":"X"}}"#,
        ])
        .prop_map(str::to_owned),
        ".{0,40}",
    ];
    prop_oneof![
        1 => Just(()).prop_map(|()| Reply::NotSent("x".into())),
        1 => Just(()).prop_map(|()| Reply::NoAnswer("x".into())),
        8 => (0u16..1000, body).prop_map(|(status, body)| reply(status, &body)),
        1 => (0u16..1000).prop_map(|status| with_body(status, Body::TooLarge)),
        1 => (0u16..1000).prop_map(|status| with_body(status, Body::Broken("x".into()))),
    ]
}

proptest! {
    /// The rule that this product stands on.
    #[test]
    fn a_once_call_of_unknown_outcome_is_never_simply_repeated(reply in any_reply(), account in any::<bool>()) {
        let owner = owner();
        let context = context(&owner, Effect::Once, account.then_some("ca_1"), false);
        let classified = classify(reply, &context);
        let repeated = matches!(classified.next, Next::Retry { .. } | Next::Throttled { .. });
        prop_assert!(!(classified.outcome == AttemptOutcome::Unknown && repeated));
        if classified.outcome == AttemptOutcome::Succeeded {
            prop_assert!(matches!(classified.next, Next::Succeed { .. }), "a success is a success");
            prop_assert!(classified.http_status.is_some_and(|status| (200..300).contains(&status)));
        }
    }

    #[test]
    fn no_error_carries_a_key(reply in any_reply()) {
        let reply = match reply {
            Reply::NotSent(_) => Reply::NotSent("ak_0123456789".into()),
            Reply::NoAnswer(_) => Reply::NoAnswer("ak_0123456789".into()),
            Reply::Answered(mut answer) => {
                answer.body = match answer.body {
                    Body::Error(error) => Body::Error(ApiError {
                        message: Some("ak_0123456789".into()),
                        errors: vec!["ak_0123456789".into()],
                        ..error
                    }),
                    other => other,
                };
                Reply::Answered(answer)
            }
        };
        let classified = classify(reply, &context(&owner(), Effect::Once, None, false));
        let shown = format!("{classified:?}");
        prop_assert!(!shown.contains("ak_0123456789"));
    }
}
