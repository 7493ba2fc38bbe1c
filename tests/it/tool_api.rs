//! The client of the tool API against servers that misbehave, and against the sandbox.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use errand::{
    app, config,
    job::{
        self, Arrival, AttemptOutcome, Effect, ErrorKind, HeldReason, JobId, JobSpec, PinnedBy, RequestId,
        Stop,
    },
    tool::{
        Body, Call, Reply, ToolApi as _, ToolError,
        account::{AccountError, AccountOptions, Accounts},
        catalog::{Ask, Catalog, CatalogOptions, ResolveError, UnpinnedPolicy},
        classify::{self, Next},
        composio::{Composio, Options, SetupError},
        pin::PinSources,
    },
};
use errand_sandbox::{DEFAULT_WORLD, Options as SandboxOptions, Running, Sandbox, World};
use rogue::{Act, Rogue, response};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

mod fake;
mod multiplexed;
mod rogue;

const KEY: &str = "ak_test_good";
const OK: &str = r#"{"data":{},"error":null,"successful":true,"log_id":"log_1"}"#;

fn options(base: url::Url) -> Options {
    drop(rustls::crypto::ring::default_provider().install_default());
    let defaults = config::load(&config::Sources::default()).unwrap().config;
    Options { base_url: base, api_key: KEY.into(), ..app::tool_api_options(&defaults).unwrap() }
}

fn client(rogue: &Rogue) -> Composio {
    Composio::new(options(rogue.base())).unwrap()
}

fn spec(envelope: serde_json::Value) -> JobSpec {
    decode(&envelope.to_string(), None)
}

fn decode(envelope: &str, traceparent: Option<&str>) -> JobSpec {
    let arrival = Arrival {
        queue: &"default".parse().unwrap(),
        message_id: None,
        reply_to: None,
        correlation_id: None,
        traceparent,
        fallback_id: Some(JobId::new()),
    };
    job::decode(envelope.as_bytes(), &arrival).unwrap()
}

fn call(spec: JobSpec) -> Call {
    Call {
        request_id: RequestId::new(),
        job: spec.id,
        spec: Arc::new(spec),
        version: "20251027_00".into(),
        account: Some("ca_1".into()),
        timeout: Duration::from_secs(5),
    }
}

fn simple() -> Call {
    call(spec(json!({"user_id": "u-alice", "tool": "GITHUB_GET_REPO", "arguments": {}})))
}

fn within(millis: u64, call: Call) -> Call {
    Call { timeout: Duration::from_millis(millis), ..call }
}

fn body(reply: Reply) -> Body {
    match reply {
        Reply::Answered(answer) => answer.body,
        other => panic!("{other:?}"),
    }
}

// ---------------------------------------------------------------------------------------------
// The request.

#[tokio::test]
async fn a_call_carries_what_the_job_says_verbatim_and_the_key_once() {
    let rogue = Rogue::answering("200 OK", OK).await;
    let base = format!("http://{}/prefix/", rogue.addr).parse().unwrap();
    let composio = Composio::new(options(base)).unwrap();
    let arguments = r#"{"n": 123456789012345678901234567890.10e400,  "s":"\ud83d\ude00","u":"é"}"#;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call = call(decode(
        &format!(r#"{{"org_id":"org \"1\"","tool":"A/../B?c#d%e","arguments":{arguments}}}"#),
        Some(trace),
    ));
    let reply = composio.execute(&call).await;
    assert!(matches!(reply, Reply::Answered(answer) if answer.status == 200));

    let seen = &rogue.seen()[0];
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
    let rogue = Rogue::answering("200 OK", OK).await;
    let composio = client(&rogue);
    let bare = Call { account: None, ..call(spec(json!({"user_id": "u", "tool": "T"}))) };
    let text = call(spec(json!({"user_id": "u", "tool": "T", "text": "do it"})));
    for call in [bare, text] {
        composio.execute(&call).await;
    }
    let bodies: Vec<_> = rogue.seen().into_iter().map(|seen| seen.body).collect();
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
    let rogue = Rogue::answering("200 OK", OK).await;
    let composio = client(&rogue);
    for slug in ["proxy", "..", ".", "enum"] {
        let reply = composio.execute(&call(spec(json!({"user_id": "u", "tool": slug})))).await;
        assert!(matches!(reply, Reply::NotSent(_)), "{slug}");
        assert!(matches!(composio.tool(slug, None).await, Err(ToolError::NotFound(_))), "{slug}");
    }
    assert!(rogue.seen().is_empty());
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

// ---------------------------------------------------------------------------------------------
// Was it sent?

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    // Bound and not listening: nobody else can be given this port meanwhile.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = options(format!("http://{}", closed.local_addr().unwrap()).parse().unwrap());
    let unknown = options("http://no-such-host.invalid".parse().unwrap());
    // A server that accepts and never speaks stands still in the TLS handshake.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url: url::Url = format!("https://{}", silent.local_addr().unwrap()).parse().unwrap();
    let slow_tls = Options { connect_timeout: Duration::from_millis(100), ..options(silent_url.clone()) };
    let plain = Rogue::start(vec![Act::AnswerUnread(response("400 Bad Request", "", ""))]).await;
    let no_tls = options(format!("https://{}", plain.addr).parse().unwrap());
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
    let stalled = |text: &str| Act::AnswerAndStall(text.into());
    for (name, act) in [
        ("closed after reading", Act::AnswerAndClose(Vec::new())),
        ("half a head", Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\nconte".to_vec())),
        ("reset after reading", Act::Reset),
        ("garbage", Act::AnswerAndClose(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec())),
        ("no answer in time", stalled("")),
        ("half a head in time", stalled("HTTP/1.1 200 OK\r\n")),
        ("only 100 Continue", stalled("HTTP/1.1 100 Continue\r\n\r\n")),
    ] {
        let rogue = Rogue::start(vec![act]).await;
        let reply = client(&rogue).execute(&within(400, simple())).await;
        assert!(matches!(&reply, Reply::NoAnswer(_)), "{name}: {reply:?}");
        assert_eq!(rogue.seen().len(), 1, "{name}");
        let shown = format!("{reply:?}");
        assert!(!shown.contains("http:") && !shown.contains(KEY), "{name}: {shown}");
    }
    for act in [Act::ResetUnread, Act::Ignore] {
        let rogue = Rogue::start(vec![act.clone()]).await;
        let reply = client(&rogue).execute(&within(400, simple())).await;
        assert!(matches!(&reply, Reply::NoAnswer(_)), "{act:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_large_request_that_is_cut_off_midway_may_have_been_read() {
    let rogue = Rogue::start(vec![Act::ResetUnread]).await;
    let text = "x".repeat(900_000);
    let reply = client(&rogue).execute(&call(spec(json!({"user_id": "u", "tool": "T", "text": text})))).await;
    assert!(matches!(&reply, Reply::NoAnswer(_)), "{reply:?}");
}

#[tokio::test]
async fn a_connection_that_is_reused_and_lost_is_not_tried_again_behind_our_back() {
    let answer = Act::Answer(response("200 OK", "", OK));
    let rogue = Rogue::start(vec![answer.clone(), Act::AnswerAndClose(Vec::new()), answer]).await;
    let composio = client(&rogue);
    assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
    assert!(matches!(composio.execute(&simple()).await, Reply::NoAnswer(_)));
    assert_eq!(rogue.seen().len(), 2);
    assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
    assert_eq!(rogue.seen().len(), 3);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_while_idle_is_replaced() {
    let rogue = Rogue::start(vec![Act::AnswerAndClose(response("200 OK", "", OK))]).await;
    let composio = client(&rogue);
    for _ in 0..3 {
        assert!(matches!(composio.execute(&simple()).await, Reply::Answered(_)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rogue.seen().len(), 3);
}

// ---------------------------------------------------------------------------------------------
// The answer.

#[tokio::test]
async fn a_status_is_known_although_the_body_is_lost() {
    let head = |status: &str, length: usize| format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
    for (status, act) in [
        (200, Act::AnswerAndClose(format!("{}{{\"data\"", head("200 OK", 100)).into())),
        (200, Act::AnswerAndStall(format!("{}{{\"data\"", head("200 OK", 100)).into())),
        (500, Act::AnswerAndClose(head("500 Oops", 10).into())),
        (
            200,
            Act::AnswerAndClose(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"dat\r\n".to_vec(),
            ),
        ),
    ] {
        let rogue = Rogue::start(vec![act.clone()]).await;
        match client(&rogue).execute(&within(400, simple())).await {
            Reply::Answered(answer) => {
                assert_eq!(answer.status, status);
                assert!(matches!(answer.body, Body::Broken(_)), "{act:?}: {:?}", answer.body);
            }
            other => panic!("{act:?}: {other:?}"),
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
    for (name, act, limit, fits) in [
        ("exactly the limit", Act::Answer(response("200 OK", "", OK)), exact, true),
        ("one above it", Act::Answer(response("200 OK", "", OK)), exact - 1, false),
        ("chunked and endless", Act::AnswerAndStall(chunked(&"x".repeat(5000)).into()), 4000, false),
        ("announced and never sent", Act::AnswerAndStall(lie.into()), 4000, false),
        (
            "without any length",
            Act::AnswerAndClose(format!("HTTP/1.1 200 OK\r\n\r\n{OK}").into()),
            exact,
            true,
        ),
    ] {
        let rogue = Rogue::start(vec![act]).await;
        let composio = Composio::new(Options { max_response_bytes: limit, ..options(rogue.base()) }).unwrap();
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
    let rogue = Rogue::answering("200 OK", &format!(r#"{{"data":{data},"successful":true}}"#)).await;
    match body(client(&rogue).execute(&within(20_000, simple())).await) {
        Body::Result(result) => assert!(result.data.get() == data),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn headers_are_told_and_redirects_are_answers() {
    let headers = "retry-after: 3\r\nx-request-id: theirs\r\nlocation: /elsewhere\r\n\
                   composio-deprecated-toolkits: \"GITHUB\";version=\"20250905_00\"\r\n";
    let rogue = Rogue::start(vec![Act::Answer(response("307 Temporary Redirect", headers, ""))]).await;
    let Reply::Answered(answer) = client(&rogue).execute(&simple()).await else { panic!() };
    assert_eq!(answer.status, 307);
    assert_eq!(answer.retry_after, Some(Duration::from_secs(3)));
    assert_eq!(answer.request_id.as_deref(), Some("theirs"));
    assert_eq!(answer.deprecated.as_deref(), Some("\"GITHUB\";version=\"20250905_00\""));
    assert_eq!(rogue.seen().len(), 1);
}

#[tokio::test]
async fn our_own_request_id_in_any_spelling_is_not_worth_telling() {
    let call = simple();
    for id in [call.request_id.0.to_string(), call.request_id.0.simple().to_string()] {
        let header = format!("x-request-id: {id}\r\n");
        let rogue = Rogue::start(vec![Act::Answer(response("200 OK", &header, OK))]).await;
        let Reply::Answered(answer) = client(&rogue).execute(&call).await else { panic!() };
        assert_eq!(answer.request_id, None);
    }
}

#[tokio::test]
async fn a_key_that_the_api_quotes_is_taken_out() {
    let key = "not-prefixed-0123456789";
    let error = json!({"error": {"message": format!("bad {key}"), "suggested_fix": key, "errors": [key]}});
    let failed = json!({"data": {}, "error": format!("no {key}"), "successful": false});
    for (status, body) in [("403 Forbidden", error.to_string()), ("200 OK", failed.to_string())] {
        let rogue = Rogue::answering(status, &body).await;
        let composio =
            Composio::new(Options { api_key: key.to_owned().into(), ..options(rogue.base()) }).unwrap();
        let reply = composio.execute(&simple()).await;
        assert!(!format!("{reply:?}").contains(key), "{reply:?}");
        let found = composio.tool("T", None).await;
        assert!(!format!("{found:?}").contains(key), "{found:?}");
    }
}

// ---------------------------------------------------------------------------------------------
// Look-ups.

#[tokio::test]
async fn a_look_up_is_repeated_twice_when_the_api_fails_and_not_when_it_answers() {
    let broken = Act::Answer(response("503 Unavailable", "", ""));
    let tool = r#"{"slug":"T","toolkit":{"slug":"Kit"},"version":"20250101_00","tags":null,"no_auth":"?",
        "available_versions":["20240101_00","latest","20250101_00","00000000_00"],"deprecated":{"is_deprecated":true}}"#;
    let good = Act::Answer(response("200 OK", "", tool));
    let rogue = Rogue::start(vec![broken.clone(), Act::Reset, good]).await;
    let info = client(&rogue).tool("T", Some("20250101_00")).await.unwrap();
    assert_eq!((info.toolkit.as_str(), info.deprecated, info.no_auth), ("kit", true, false));
    assert_eq!(info.available_versions, ["20250101_00", "20240101_00", "00000000_00"]);
    assert_eq!(rogue.seen().len(), 3);
    assert_eq!(rogue.seen()[0].line(), "GET /api/v3.1/tools/T?version=20250101_00");

    let rogue = Rogue::start(vec![broken]).await;
    assert!(matches!(client(&rogue).tool("T", None).await, Err(ToolError::Unavailable(_))));
    assert_eq!(rogue.seen().len(), 3);
    assert_eq!(rogue.seen()[0].line(), "GET /api/v3.1/tools/T?toolkit_versions=latest");

    for (status, retry_after) in [("429 Slow Down", Some(Duration::from_secs(9)))] {
        let rogue = Rogue::start(vec![Act::Answer(response(status, "retry-after: 9\r\n", "{}"))]).await;
        match client(&rogue).versions("github").await {
            Err(ToolError::Throttled { retry_after: told }) => assert_eq!(told, retry_after),
            other => panic!("{other:?}"),
        }
        assert_eq!(rogue.seen().len(), 1);
    }
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
    let page = |value: &serde_json::Value| Act::Answer(response("200 OK", "", &value.to_string()));
    let rogue = Rogue::start(vec![page(&first), page(&second)]).await;
    let accounts = client(&rogue).accounts("u&1", Some("github")).await.unwrap();
    let ids: Vec<_> = accounts.iter().map(|account| (account.id.as_str(), account.status.as_str())).collect();
    let expected = [("ca_2", "REVOKED"), ("ca_3", "SOMETHING_NEW"), ("ca_1", "ACTIVE"), ("ca_4", "ACTIVE")];
    assert_eq!(ids, expected);
    assert!(!format!("{accounts:?}").contains("secret-token"));
    let seen = rogue.seen();
    assert!(seen[0].line().contains("user_ids=u%261&") && seen[0].line().contains("toolkit_slugs=github"));
    assert!(seen[1].line().ends_with("cursor=c%3D1"), "{}", seen[1].line());

    // A cursor that never ends, and one that repeats itself.
    let endless: Vec<_> =
        (0..40).map(|n| page(&json!({"items": [], "next_cursor": n.to_string()}))).collect();
    let rogue = Rogue::start(endless).await;
    assert!(client(&rogue).accounts("u", None).await.unwrap().is_empty());
    assert_eq!(rogue.seen().len(), 20);
    let rogue = Rogue::start(vec![page(&json!({"items": [], "next_cursor": "again"}))]).await;
    client(&rogue).accounts("u", None).await.unwrap();
    assert_eq!(rogue.seen().len(), 2);
}

#[tokio::test]
async fn an_answer_of_another_server_is_not_believed() {
    let rogue = Rogue::answering("200 OK", "<html>Welcome</html>").await;
    let composio = client(&rogue);
    assert!(matches!(composio.check().await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.tool("T", None).await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.accounts("u", None).await, Err(ToolError::Unavailable(_))));
    assert!(matches!(composio.account("ca").await, Err(ToolError::Unavailable(_))));
}

// ---------------------------------------------------------------------------------------------
// Against the sandbox.

struct Bench {
    running: Running,
    api: Arc<Composio>,
}

impl Bench {
    async fn start() -> Self {
        Self::with_key(KEY).await
    }

    async fn with_key(key: &str) -> Self {
        let world = World::from_toml(DEFAULT_WORLD).unwrap();
        let sandbox = Sandbox::new(world, SandboxOptions::default());
        let running = sandbox.bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let options = Options { api_key: key.into(), ..options(running.base_url().parse().unwrap()) };
        Self { running, api: Arc::new(Composio::new(options).unwrap()) }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.api.clone(), CatalogOptions::new(Duration::from_secs(600)))
    }

    /// Runs a call and says what it means.
    async fn run(&self, effect: Effect, call: Call) -> classify::Classified {
        let reply = self.api.execute(&call).await;
        let context = classify::Context {
            effect,
            account: call.account.as_deref(),
            explicit_account: call.spec.connected_account_id.is_some(),
            owner: &call.spec.owner,
            toolkit: "github",
            tool: &call.spec.tool,
            version: &call.version,
        };
        classify::classify(reply, &context)
    }
}

fn repo(user: &str, account: Option<&str>) -> Call {
    let arguments = json!({"owner": "o", "repo": "r"});
    let call = call(spec(json!({"user_id": user, "tool": "GITHUB_GET_REPO", "arguments": arguments})));
    Call { account: account.map(Into::into), ..call }
}

#[tokio::test]
async fn the_sandboxs_refusals_mean_what_they_should() {
    use ErrorKind::{
        AccountMismatch, AccountNotFound, Credentials, NeedsConnection, NeedsReconnection, UnknownTool,
    };
    let bench = Bench::start().await;
    let done = bench.run(Effect::Once, repo("u-alice", Some("ca_alice_new"))).await;
    assert_eq!((done.outcome, done.http_status), (AttemptOutcome::Succeeded, Some(200)));
    assert!(done.log_id.is_some());

    let elsewhere = |call: Call, version: &str| Call { version: version.into(), ..call };
    let unknown = call(spec(json!({"user_id": "u-alice", "tool": "GITHUB_NOPE"})));
    let rows = [
        ("another owner's account", repo("u-alice", Some("ca_bob")), AccountMismatch),
        ("a missing account", repo("u-alice", Some("ca_missing")), AccountNotFound),
        ("nobody's", repo("u-nobody", None), NeedsConnection),
        ("expired", repo("u-exp", Some("ca_exp")), NeedsReconnection),
        ("initializing", repo("u-init", Some("ca_init")), NeedsReconnection),
        ("switched off", repo("u-off", Some("ca_off")), NeedsReconnection),
        ("an unknown tool", unknown, UnknownTool),
        ("an unknown version", elsewhere(repo("u-alice", None), "20991231_00"), UnknownTool),
    ];
    for (name, call, kind) in rows {
        let refused = bench.run(Effect::Once, call).await;
        assert_eq!(refused.outcome, AttemptOutcome::Refused, "{name}");
        match refused.next {
            Next::Stop(Stop::Fail { error } | Stop::Connect { error, .. }) => {
                assert_eq!(error.kind(), kind, "{name}: {error:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    for key in ["ak_test_expired", "ak_test_readonly", "ak_nobody_knows"] {
        match Bench::with_key(key).await.run(Effect::Once, repo("u-alice", None)).await.next {
            Next::Stop(Stop::Hold { reason: HeldReason::Credentials, error }) => {
                assert_eq!(error.kind(), Credentials);
                assert!(!error.message().contains(key), "{}", error.message());
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    assert_eq!(bench.running.ledger_summary().effects, 1);
}

#[tokio::test]
async fn hundreds_of_calls_at_once_all_arrive_once() {
    let bench = Bench::start().await;
    let started = Instant::now();
    let calls = (0..400).map(|_| {
        let api = bench.api.clone();
        tokio::spawn(async move { api.execute(&within(30_000, repo("u-alice", None))).await })
    });
    for reply in calls.collect::<Vec<_>>() {
        let reply = reply.await.unwrap();
        assert!(matches!(&reply, Reply::Answered(answer) if answer.status == 200), "{reply:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(30));
    let summary = bench.running.ledger_summary();
    assert_eq!((summary.effects, summary.request_ids_repeated), (400, 0));
}

#[tokio::test]
async fn the_sandbox_can_be_looked_up() {
    let bench = Bench::start().await;
    let check = bench.api.check().await.unwrap();
    assert!(check.date.is_some());
    assert_eq!(bench.api.versions("github").await.unwrap(), ["20251027_00", "20250905_00", "00000000_00"]);
    assert!(matches!(bench.api.versions("nope").await, Err(ToolError::NotFound(_))));
    let tool = bench.api.tool("GITHUB_GET_REPO", None).await.unwrap();
    assert_eq!((tool.toolkit.as_str(), tool.version.as_str()), ("github", "20251027_00"));
    assert_eq!(tool.effect(), Effect::Safe);
    assert!(bench.api.tool("HACKERNEWS_GET_USER", None).await.unwrap().no_auth);
    let missing = bench.api.tool("GITHUB_LIST_STARGAZERS", Some("20250905_00")).await;
    assert!(matches!(missing, Err(ToolError::NotFound(_))));
    let accounts = bench.api.accounts("u-alice", Some("github")).await.unwrap();
    assert_eq!(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["ca_alice_new", "ca_alice_old"]);
    assert_eq!(bench.api.account("ca_bob").await.unwrap().user_id.as_deref(), Some("u-bob"));
    assert!(matches!(bench.api.account("ca_missing").await, Err(ToolError::NotFound(_))));

    let bad = Bench::with_key("ak_nobody_knows").await;
    match bad.api.check().await {
        Err(error @ ToolError::Credentials { status: 401, .. }) => {
            assert!(!format!("{error:?} {error}").contains("ak_nobody_knows"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pins_and_accounts_are_resolved_against_the_sandbox() {
    let bench = Bench::start().await;
    let catalog = bench.catalog();
    let stars = spec(json!({"user_id": "u-alice", "tool": "GITHUB_LIST_STARGAZERS"}));
    let config = |version: &str| PinSources {
        config: Arc::new([("github".to_owned(), version.to_owned())].into()),
        ..PinSources::default()
    };
    let resolve = async |pins: &PinSources, policy| catalog.resolve(&Ask::from(&stars), pins, policy).await;
    let good = resolve(&config("20251027_00"), UnpinnedPolicy::Refuse).await.unwrap();
    assert_eq!(
        (good.toolkit.as_str(), good.version.as_str(), good.pinned_by),
        ("github", "20251027_00", PinnedBy::Config)
    );
    let old = resolve(&config("20250905_00"), UnpinnedPolicy::Refuse).await.unwrap_err();
    let message = old.not_ready().error().message().to_owned();
    assert!(message.contains("20250905_00") && message.contains("20251027_00"), "{message}");
    let unpinned = resolve(&PinSources::default(), UnpinnedPolicy::Refuse).await.unwrap_err();
    assert!(matches!(unpinned, ResolveError::Unpinned { .. }));
    let frozen = resolve(&PinSources::default(), UnpinnedPolicy::Freeze).await.unwrap();
    assert_eq!((frozen.version.as_str(), frozen.pinned_by), ("20251027_00", PinnedBy::Latest));

    let accounts = Accounts::new(bench.api.clone(), AccountOptions::new(Duration::from_secs(30)));
    let account = async |user: &str, explicit| {
        let owner = format!("user:{user}").parse().unwrap();
        accounts.resolve(&owner, "github", explicit).await
    };
    assert_eq!(account("u-alice", None).await.unwrap(), "ca_alice_new");
    assert_eq!(account("u-alice", Some("ca_alice_old")).await.unwrap(), "ca_alice_old");
    assert!(matches!(account("u-alice", Some("ca_bob")).await, Err(AccountError::OtherOwner { .. })));
    assert!(matches!(account("u-alice", Some("ca_missing")).await, Err(AccountError::NotFound { .. })));
    assert!(matches!(account("u-exp", Some("ca_exp")).await, Err(AccountError::NotActive { .. })));
    assert!(matches!(
        account("u-exp", None).await,
        Err(AccountError::NoneConnected { latest: Some(status), .. }) if status == "EXPIRED"
    ));
    assert!(matches!(account("u-nobody", None).await, Err(AccountError::NoneConnected { latest: None, .. })));
}
