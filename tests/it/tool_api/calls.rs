//! Calls against servers that misbehave.

use std::{sync::Arc, time::Duration};

use errand::tool::{
    Body, Call, Reply, ToolApi as _, ToolError,
    composio::{Composio, Options, SetupError},
};
use errand_testbed::scripted_api::{Answer, ScriptedApi};
use serde_json::json;
use tokio::net::TcpSocket;

use super::{KEY, OK, base, body, call, client, options, simple, within};
use crate::jobs::{Properties, decode, spec};

#[tokio::test]
async fn a_call_carries_what_the_job_says_verbatim_and_the_key_once() {
    let api = ScriptedApi::answering("200 OK", OK).await;
    let prefixed = format!("{}/prefix/", api.url()).parse().unwrap();
    let composio = Composio::new(options(prefixed)).unwrap();
    let arguments = r#"{"n": 123456789012345678901234567890.10e400,  "s":"\ud83d\ude00","u":"é"}"#;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let envelope = format!(r#"{{"org_id":"org \"1\"","tool":"A/../B?c#d%e","arguments":{arguments}}}"#);
    let properties = Properties { traceparent: Some(trace), ..Properties::default() };
    let call = call(Arc::new(decode(&envelope, properties).unwrap()));
    let reply = composio.execute(&call).await;
    assert!(matches!(reply, Reply::Answered(answer) if answer.status == 200));

    let seen = &api.seen()[0];
    assert_eq!(seen.line(), "POST /prefix/api/v3.1/tools/execute/A%2F..%2FB%3Fc%23d%25e");
    assert_eq!(seen.header("x-api-key"), [KEY]);
    assert_eq!(seen.header("x-request-id"), [call.request_id.to_string()]);
    assert_eq!(seen.header("x-errand-job-id"), [call.job.to_string()]);
    assert_eq!(seen.header("traceparent"), [trace]);
    assert_eq!(seen.header("content-type"), ["application/json"]);
    assert_eq!(seen.header("content-length"), [seen.body.len().to_string()]);
    assert!(seen.header("transfer-encoding").is_empty() && seen.header("accept-encoding").is_empty());
    assert_eq!(
        seen.body,
        format!(
            r#"{{"user_id":"org \"1\"","version":"20251027_00","connected_account_id":"ca_1","arguments":{arguments}}}"#
        )
    );
}

#[tokio::test]
async fn a_call_without_input_has_empty_arguments_and_one_with_text_has_none() {
    let api = ScriptedApi::answering("200 OK", OK).await;
    let composio = client(&api);
    let bare = Call { account: None, ..call(spec(&json!({"user_id": "u", "tool": "T"}))) };
    let text = call(spec(&json!({"user_id": "u", "tool": "T", "text": "do it"})));
    for call in [bare, text] {
        composio.execute(&call).await;
    }
    let bodies: Vec<_> = api.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        bodies,
        [
            r#"{"user_id":"u","version":"20251027_00","arguments":{}}"#,
            r#"{"user_id":"u","version":"20251027_00","connected_account_id":"ca_1","text":"do it"}"#,
        ]
    );
}

#[tokio::test]
async fn a_literal_route_is_not_a_tool() {
    let api = ScriptedApi::answering("200 OK", OK).await;
    let composio = client(&api);
    for slug in ["proxy", "..", ".", "enum"] {
        let reply = composio.execute(&call(spec(&json!({"user_id": "u", "tool": slug})))).await;
        assert!(matches!(reply, Reply::NotSent(_)), "{slug}");
        assert!(matches!(composio.tool(slug, None).await, Err(ToolError::NotFound(_))), "{slug}");
    }
    assert!(api.seen().is_empty());
}

#[test]
fn unusable_options_are_refused() {
    let of = |base: &str, key: &str| {
        Composio::new(Options { api_key: key.into(), ..options(base.parse().unwrap()) })
    };
    for base in ["ftp://h", "http://user@h", "http://:pw@h", "http://h/?a=1", "http://h/#x", "data:x"] {
        assert!(matches!(of(base, KEY), Err(SetupError::BaseUrl(_))), "{base}");
    }
    for key in ["", "a\nb"] {
        assert!(matches!(of("http://h", key), Err(SetupError::ApiKey)), "{key:?}");
    }
    let shown = format!("{:?}", of("https://h", KEY).unwrap());
    assert!(!shown.contains(KEY), "{shown}");
    assert!(!format!("{:?}", options("https://h".parse().unwrap())).contains(KEY));
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    // Bound and not listening: nobody else can be given this port meanwhile.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = options(format!("http://{}", closed.local_addr().unwrap()).parse().unwrap());
    let unknown = options("http://no-such-host.invalid".parse().unwrap());
    // A server that accepts and never speaks stands still in the TLS handshake.
    let silent = ScriptedApi::start([Answer::nothing().unread().hanging()]).await;
    let silent_url: url::Url = format!("https://{}", silent.address()).parse().unwrap();
    let slow_tls = Options { connect_timeout: Duration::from_millis(100), ..options(silent_url.clone()) };
    let plain = ScriptedApi::start([Answer::new("400 Bad Request", "").unread().closing()]).await;
    let no_tls = options(format!("https://{}", plain.address()).parse().unwrap());
    for (name, options) in
        [("refused", refused), ("DNS", unknown), ("slow TLS", slow_tls), ("no TLS", no_tls)]
    {
        let reply = Composio::new(options).unwrap().execute(&simple()).await;
        assert!(matches!(&reply, Reply::NotSent(_)), "{name}: {reply:?}");
        let shown = format!("{reply:?}");
        assert!(!shown.contains("http") && !shown.contains(KEY), "{name}: {shown}");
    }
    // The deadline of the call comes before the limit for connecting.
    let reply = Composio::new(options(silent_url)).unwrap().execute(&within(80, simple())).await;
    assert!(matches!(&reply, Reply::NotSent(cause) if cause.contains("80 ms")), "{reply:?}");
}

#[tokio::test]
async fn once_the_request_left_only_a_status_line_ends_the_doubt_and_nothing_is_repeated() {
    let answer = |text: &str| Answer::bytes(text);
    for (name, answer) in [
        ("closed after reading", Answer::nothing().closing()),
        ("half a head", answer("HTTP/1.1 200 OK\r\nconte").closing()),
        ("reset after reading", Answer::nothing().resetting()),
        ("garbage", answer("SSH-2.0-OpenSSH_9.2\r\n\r\n").closing()),
        ("no answer in time", Answer::nothing().hanging()),
        ("half a head in time", answer("HTTP/1.1 200 OK\r\n").hanging()),
        ("only 100 Continue", answer("HTTP/1.1 100 Continue\r\n\r\n").hanging()),
    ] {
        let api = ScriptedApi::start([answer]).await;
        let reply = client(&api).execute(&within(1_500, simple())).await;
        assert!(matches!(&reply, Reply::NoAnswer(_)), "{name}: {reply:?}");
        assert_eq!(api.seen().len(), 1, "{name}");
        let shown = format!("{reply:?}");
        assert!(!shown.contains("http:") && !shown.contains(KEY), "{name}: {shown}");
    }
    for answer in [Answer::nothing().unread().resetting(), Answer::nothing().unread().hanging()] {
        let api = ScriptedApi::start([answer.clone()]).await;
        let reply = client(&api).execute(&within(1_500, simple())).await;
        assert!(matches!(&reply, Reply::NoAnswer(_)), "{answer:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_large_request_that_is_cut_off_midway_may_have_been_read() {
    let api = ScriptedApi::start([Answer::nothing().unread().resetting()]).await;
    let text = "x".repeat(900_000);
    let reply = client(&api).execute(&call(spec(&json!({"user_id": "u", "tool": "T", "text": text})))).await;
    assert!(matches!(&reply, Reply::NoAnswer(_)), "{reply:?}");
}

#[tokio::test]
async fn a_connection_that_is_reused_and_lost_is_not_tried_again_behind_our_back() {
    let answer = Answer::new("200 OK", OK);
    let api = ScriptedApi::start([answer.clone(), Answer::nothing().closing(), answer]).await;
    let composio = client(&api);
    assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
    assert!(matches!(composio.execute(&simple()).await, Reply::NoAnswer(_)));
    assert_eq!(api.seen().len(), 2);
    assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
    assert_eq!(api.seen().len(), 3);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_while_idle_is_replaced() {
    let api = ScriptedApi::start([Answer::new("200 OK", OK).closing()]).await;
    let composio = client(&api);
    for _ in 0..3 {
        assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.seen().len(), 3);
}

#[tokio::test]
async fn a_status_is_known_although_the_body_is_lost() {
    let half =
        |status: &str| Answer::bytes(format!("HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\n{{\"data\""));
    let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"dat\r\n";
    for (status, script) in [
        (200, half("200 OK").closing()),
        (200, half("200 OK").hanging()),
        (500, Answer::bytes("HTTP/1.1 500 Oops\r\ncontent-length: 10\r\n\r\n").closing()),
        (200, Answer::bytes(chunk).closing()),
    ] {
        let api = ScriptedApi::start([script.clone()]).await;
        match client(&api).execute(&within(1_500, simple())).await {
            Reply::Answered(answer) => {
                assert_eq!(answer.status, status);
                assert!(matches!(answer.body, Body::Broken(_)), "{script:?}: {:?}", answer.body);
            }
            other => panic!("{script:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_body_is_bounded_while_it_is_read_announced_or_not() {
    let exact = OK.len();
    let chunked = |body: &str| {
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len())
    };
    let lie = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n";
    let unframed = format!("HTTP/1.1 200 OK\r\n\r\n{OK}");
    for (name, answer, limit, fits) in [
        ("exactly the limit", Answer::new("200 OK", OK), exact, true),
        ("one above it", Answer::new("200 OK", OK), exact - 1, false),
        ("chunked and endless", Answer::bytes(chunked(&"x".repeat(5000))).hanging(), 4000, false),
        ("announced and never sent", Answer::bytes(lie).hanging(), 4000, false),
        ("without any length", Answer::bytes(unframed).closing(), exact, true),
    ] {
        let api = ScriptedApi::start([answer]).await;
        let composio = Composio::new(Options { max_response_bytes: limit, ..options(base(&api)) }).unwrap();
        let body = body(composio.execute(&simple()).await);
        match body {
            Body::Result(_) if fits => {}
            Body::TooLarge if !fits => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_large_result_arrives_byte_for_byte() {
    let item = r#"{"n":null,"big":98765432109876543210,"é":"\u0000"}"#;
    let data = format!("[{}]", vec![item; 120_000].join(", "));
    assert!(data.len() > 5 * 1024 * 1024);
    let api = ScriptedApi::answering("200 OK", &format!(r#"{{"data":{data},"successful":true}}"#)).await;
    match body(client(&api).execute(&within(20_000, simple())).await) {
        Body::Result(result) => assert!(result.data.get() == data),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn headers_are_told_and_redirects_are_answers() {
    let redirect = Answer::new("307 Temporary Redirect", "")
        .header("retry-after", "3")
        .header("location", "/elsewhere")
        .header("composio-deprecated-toolkits", "\"GITHUB\";version=\"20250905_00\"");
    let api = ScriptedApi::start([redirect]).await;
    let Reply::Answered(answer) = client(&api).execute(&simple()).await else { panic!() };
    assert_eq!(answer.status, 307);
    assert_eq!(answer.retry_after, Some(Duration::from_secs(3)));
    assert_eq!(answer.deprecated.as_deref(), Some("\"GITHUB\";version=\"20250905_00\""));
    assert_eq!(api.seen().len(), 1);
}

#[tokio::test]
async fn a_key_that_the_api_quotes_is_taken_out() {
    let key = "not-prefixed-0123456789";
    let error = json!({"error": {"message": format!("bad {key}"), "suggested_fix": key, "errors": [key]}});
    let failed = json!({"data": {}, "error": format!("no {key}"), "successful": false});
    for (status, body) in [("403 Forbidden", error.to_string()), ("200 OK", failed.to_string())] {
        let api = ScriptedApi::answering(status, &body).await;
        let composio =
            Composio::new(Options { api_key: key.to_owned().into(), ..options(base(&api)) }).unwrap();
        let reply = composio.execute(&simple()).await;
        assert!(!format!("{reply:?}").contains(key), "{reply:?}");
        let found = composio.tool("T", None).await;
        assert!(!format!("{found:?}").contains(key), "{found:?}");
    }
}
