//! errand's client of the tool API against one by somebody else, which misbehaves.

use std::{sync::Arc, time::Duration};

use errand::{
    app, config,
    job::{self, Arrival, Effect, JobSpec, Owner, OwnerKind, RequestId, Stop},
    tool::{
        Body, Call, Execution, Reply, ToolApi as _, ToolError,
        classify::{self, Next},
        composio::Composio,
    },
};
use errand_testbed::{
    factory,
    second_api::{Mischief, ONCE_TOOLS, Options, Rates, Running, SecondApi, TOOLKITS, TOOLS},
    support::{machine, wait::until},
};
use futures_util::{StreamExt as _, stream};

const LIMIT: Duration = Duration::from_secs(60);

/// The largest answer that is read, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// Nothing goes wrong at random.
const CALM: Rates = Rates { connection: 0.0, call: 0.0, look_up: 0.0, log: 0.0, blackout: 0.0 };

/// Times that fit into a test.
fn quick(seed: u64, rates: Rates) -> Options {
    Options {
        seed,
        rates,
        hang: Duration::from_millis(2_000),
        late: Duration::from_millis(2_500),
        log_delay: Duration::from_millis(300),
        log_blackout: Duration::from_secs(5),
        huge: 2 * MAX_RESPONSE,
        ..Options::default()
    }
}

fn client(api: &Running) -> Composio {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut config = config::load(&config::Sources::default()).unwrap().config;
    config.composio.base_url = api.base_url();
    config.composio.api_key = api.api_key().into();
    config.composio.max_response_bytes = MAX_RESPONSE;
    Composio::new(app::tool_api_options(&config).unwrap()).unwrap()
}

fn call(tool: &str, owner: &str) -> Call {
    let envelope = factory::self_naming(owner, tool).to_string();
    let spec: JobSpec = job::decode(envelope.as_bytes(), &Arrival::new(&"default".parse().unwrap())).unwrap();
    let (toolkit, version) = if tool.starts_with("NOTES") { TOOLKITS[0] } else { TOOLKITS[1] };
    Call {
        request_id: RequestId::new(),
        job: spec.id,
        spec: Arc::new(spec),
        version: version.into(),
        account: Some(format!("ca_{toolkit}_{owner}")),
        timeout: Duration::from_millis(1_500),
    }
}

fn meaning(call: &Call, reply: Reply) -> Next {
    let owner = Owner::new(OwnerKind::User, "user-1").unwrap();
    let context = classify::Context {
        effect: Effect::Once,
        account: call.account.as_deref(),
        explicit_account: false,
        owner: &owner,
        toolkit: "post",
        tool: &call.spec.tool,
        version: &call.version,
    };
    classify::classify(reply, &context).next
}

#[tokio::test]
async fn two_readings_of_the_facts_agree() {
    let api = SecondApi::bind(quick(1, CALM)).await.unwrap();
    api.heal();
    let client = client(&api);
    client.check().await.unwrap();
    let effects = [Effect::Safe, Effect::Idempotent, Effect::Once, Effect::Once];
    for (tool, effect) in TOOLS.into_iter().zip(effects) {
        let (toolkit, version) = if effect == Effect::Once { TOOLKITS[1] } else { TOOLKITS[0] };
        for asked in [None, Some(version)] {
            let info = client.tool(tool, asked).await.unwrap();
            assert_eq!((info.slug.as_str(), info.toolkit.as_str(), info.effect()), (tool, toolkit, effect));
            assert_eq!(
                (info.version.as_str(), &info.available_versions[..]),
                (version, &[version.to_owned()][..])
            );
        }
        assert!(matches!(client.tool(tool, Some("20200101_00")).await, Err(ToolError::NotFound(_))));
    }
    assert!(matches!(client.tool("NOTES_NOPE", None).await, Err(ToolError::NotFound(_))));

    let accounts = client.accounts(&["user-a,b&c /ä"], Some("post")).await.unwrap().accounts;
    assert!(
        accounts.iter().all(|account| account.user_id.as_deref() != Some("user-a,b&c /ä")),
        "it is a list there"
    );
    let accounts = client.accounts(&["user-1/ä"], None).await.unwrap().accounts;
    assert_eq!(accounts.len(), 2);
    for account in accounts {
        assert!(account.is_active() && account.user_id.as_deref() == Some("user-1/ä"));
        assert_eq!(client.account(&account.id).await.unwrap(), account);
    }
    let list = client.accounts(&["user-1/ä", "somebody", "org-2"], Some("post")).await.unwrap();
    assert!(list.is_whole);
    let owners: Vec<_> = list.accounts.iter().filter_map(|account| account.user_id.as_deref()).collect();
    assert_eq!(owners, ["user-1/ä", "org-2"]);
    assert!(client.accounts(&["somebody"], Some("post")).await.unwrap().accounts.is_empty());
    assert!(matches!(client.account("ca_post_somebody").await, Err(ToolError::NotFound(_))));

    for (tool, owner) in TOOLS.into_iter().zip(["user-1", "org-1", "user-2", "org-2"]) {
        let call = call(tool, owner);
        let Reply::Answered(answer) = client.execute(&call).await else { panic!("no answer") };
        let Body::Result(result) = answer.body else { panic!("{:?}", answer.body) };
        assert!(result.successful && result.error.is_none());
        assert!(result.data.get().contains("12345678901234567"), "{}", result.data);
        let (job, request) = (call.job.to_string(), call.request_id.to_string());
        assert_eq!((api.effects_of(&job), api.effects_of(&request), api.calls_of(&request)), (1, 1, 1));
        let Execution { log_id, tool: ran, result: logged } =
            client.execution(call.request_id).await.unwrap().unwrap();
        assert_eq!((Some(&log_id), ran.as_deref()), (result.log_id.as_ref(), Some(tool)));
        assert!(logged.unwrap().successful);
    }
    assert!(client.execution(RequestId::new()).await.unwrap().is_none());

    let strange = Call { account: Some("ca_post_user-2".into()), ..call("POST_SEND_LETTER", "user-1") };
    let reply = client.execute(&strange).await;
    assert!(matches!(meaning(&strange, reply), Next::Stop(Stop::Fail { .. })));
    let unconnected = Call { account: None, ..call("POST_SEND_LETTER", "somebody") };
    let reply = client.execute(&unconnected).await;
    assert!(matches!(meaning(&unconnected, reply), Next::Stop(Stop::Connect { .. })));

    let summary = api.summary();
    assert_eq!((summary.calls, summary.effects, summary.jobs, summary.refused), (4, 4, 4, 2), "{summary:?}");
    let wrong = (summary.repeated_once, summary.repeated_requests, summary.confused, summary.unpinned);
    assert_eq!((wrong, summary.strangers), ((0, 0, 0, 0), 1));
    assert!(summary.mischief.is_empty());
}

/// Makes many calls at once, and checks what each reply says against what happened.
async fn calls_mean_what_they_say(api: &Running, calls: usize) {
    let client = client(api);
    let made: Vec<(Call, Next)> = stream::iter(0..calls)
        .map(|n| {
            let call = call(ONCE_TOOLS[n % 2], &format!("user-{}", n % 7));
            let client = &client;
            async move {
                let reply = client.execute(&call).await;
                if let Reply::NotSent(cause) = &reply {
                    assert_eq!(api.calls_of(&call.request_id.to_string()), 0, "{cause}");
                }
                let next = meaning(&call, reply);
                (call, next)
            }
        })
        .buffer_unordered(24)
        .collect()
        .await;
    api.idle().await;
    for (call, next) in made {
        let effects = api.effects_of(&call.request_id.to_string());
        assert!(effects <= 1, "a call was made twice: {next:?}");
        match next {
            Next::Succeed { .. } => assert_eq!(effects, 1, "a success without an effect"),
            Next::Retry { error, .. } | Next::Throttled { error, .. } => {
                assert_eq!(effects, 0, "it would be made again: {error:?}");
            }
            Next::Stop(stop @ (Stop::Hold { .. } | Stop::Connect { .. })) => {
                panic!("nothing is wrong with the key or the account: {stop:?}")
            }
            Next::Stop(Stop::Fail { .. }) | Next::Unknown { .. } => {}
        }
    }
    let summary = api.summary();
    assert_eq!((summary.repeated_requests, summary.confused, summary.refused), (0, 0, 0), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_has_an_effect_and_what_is_repeated_has_none_however_the_api_misbehaves() {
    for seed in [1, 2, 3] {
        let rates = Rates { connection: 0.1, call: 0.7, ..CALM };
        let api = SecondApi::bind(quick(seed, rates)).await.unwrap();
        calls_mean_what_they_say(&api, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_alone_is_understood() {
    let one = async |mischief| {
        let options = Options { mischief: vec![mischief], ..quick(7, Rates { call: 1.0, ..CALM }) };
        let api = SecondApi::bind(options).await.unwrap();
        calls_mean_what_they_say(&api, 24).await;
        let summary = api.summary();
        // Some may find no connection in time on a busy machine.
        assert!(summary.calls > 0, "{mischief:?}");
        assert_eq!(summary.mischief.get(mischief.name()), Some(&summary.calls));
    };
    stream::iter(Mischief::ALL).map(one).buffer_unordered(3).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_are_right_or_fail_however_the_api_misbehaves() {
    let api = SecondApi::bind(quick(4, Rates { connection: 0.1, look_up: 0.8, ..CALM })).await.unwrap();
    let client = client(&api);
    let mut answered = 0;
    for n in 0..40 {
        let owner = format!("user-{n}");
        let owners = [owner.as_str()];
        let (tool, accounts) =
            tokio::join!(client.tool(TOOLS[n % 4], None), client.accounts(&owners, Some("post")));
        match tool {
            Ok(info) => assert_eq!(info.slug, TOOLS[n % 4]),
            Err(ToolError::Unavailable(_) | ToolError::Throttled { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
        match accounts {
            Ok(list) => {
                assert_eq!(list.accounts.len(), 1, "the account is there");
                answered += 1;
            }
            Err(ToolError::Unavailable(_) | ToolError::Throttled { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(answered > 5 && answered < 40, "{answered} of 40");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_is_found_or_the_log_cannot_be_read() {
    let api = SecondApi::bind(Options { log_delay: Duration::ZERO, ..quick(5, Rates { log: 0.8, ..CALM }) })
        .await
        .unwrap();
    let client = client(&api);
    let mut found = 0;
    for _ in 0..60 {
        let call = call("POST_SEND_LETTER", "user-1");
        client.execute(&call).await;
        match client.execution(call.request_id).await {
            Ok(Some(_)) => found += 1,
            Ok(None) => panic!("the log says that the call never arrived"),
            Err(ToolError::Unavailable(_) | ToolError::Throttled { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(found > 20, "{found} of 60");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_late_and_blind_for_a_while_and_loses_nothing() {
    let options =
        Options { log_blackout: Duration::from_millis(300), ..quick(6, Rates { blackout: 0.5, ..CALM }) };
    let api = SecondApi::bind(options).await.unwrap();
    let client = client(&api);
    let call = call("POST_SEND_LETTER", "user-1");
    client.execute(&call).await;
    let seen = async || client.execution(call.request_id).await.unwrap().is_some();
    until("the entry", LIMIT, async || seen().await.then_some(())).await;
    until("a blackout", LIMIT, async || (!seen().await).then_some(())).await;
    until("the entry again", LIMIT, async || seen().await.then_some(())).await;
    api.misbehave();
    until("a blackout", LIMIT, async || (!seen().await).then_some(())).await;
    api.heal();
    assert!(seen().await);
}

#[tokio::test]
async fn an_api_that_went_away_was_never_asked_and_comes_back_on_the_same_port() {
    let port = machine::free_port();
    let api = SecondApi::bind(Options { port, ..quick(1, CALM) }).await.unwrap();
    // Always another client, because one may not have noticed yet that its connection is gone.
    let success = async || {
        let call = call("POST_SEND_LETTER", "user-1");
        let reply = client(&api).execute(&call).await;
        matches!(meaning(&call, reply), Next::Succeed { .. })
    };
    assert!(success().await);
    api.go_away().await;
    // A process that another test is just starting may hold a copy of the socket for a moment.
    until("the port is closed", LIMIT, async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(())
    })
    .await;
    let call = call("POST_SEND_LETTER", "user-1");
    let reply = client(&api).execute(&call).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
    api.come_back().await.unwrap();
    assert_eq!(api.calls_of(&call.job.to_string()), 0);
    assert!(success().await);
    assert_eq!(api.base_url(), format!("http://127.0.0.1:{port}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_misbehaves_in_the_same_way() {
    let jobs: Vec<Call> = (0..40).map(|n| call(TOOLS[n % 4], "org-1")).collect();
    let drawn = async |seed| {
        let brief = Duration::from_millis(10);
        let options = Options { hang: brief, late: brief, ..quick(seed, Rates { call: 0.5, ..CALM }) };
        let api = SecondApi::bind(options).await.unwrap();
        let client = client(&api);
        let patient = jobs.iter().map(|call| Call { timeout: LIMIT, ..call.clone() });
        let calls = stream::iter(patient).map(async |call| drop(client.execute(&call).await));
        calls.buffer_unordered(4).collect::<Vec<()>>().await;
        api.idle().await;
        let mut calls: Vec<_> = api.calls().into_iter().map(|call| (call.job, call.mischief)).collect();
        calls.sort_by(|a, b| a.0.cmp(&b.0));
        calls
    };
    let first = drawn(1).await;
    assert_eq!(first, drawn(1).await);
    assert_ne!(first, drawn(2).await);
}
