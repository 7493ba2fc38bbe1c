//! The client against the sandbox.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use errand::{
    job::{AttemptOutcome, Effect, ErrorKind, HeldReason, PinnedBy, Stop},
    tool::{
        Call, Reply, ToolApi as _, ToolError,
        account::{AccountError, AccountOptions, Accounts},
        catalog::{Ask, Catalog, CatalogOptions, ResolveError, UnpinnedPolicy},
        classify::{self, Next},
        composio::{Composio, Options},
        pin::PinSources,
    },
};
use errand_sandbox::{DEFAULT_WORLD, Options as SandboxOptions, Running, Sandbox, World};
use errand_testbed::factory;
use serde_json::json;

use super::{KEY, call, options, within};
use crate::jobs::spec;

struct Bench {
    running: Running,
    api: Arc<Composio>,
}

impl Bench {
    async fn start() -> Self {
        Self::with_key(KEY).await
    }

    async fn with_key(key: &str) -> Self {
        Self::within(World::default_world(), key).await
    }

    async fn within(world: World, key: &str) -> Self {
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
    let call = call(spec(&factory::read(user)));
    Call { account: account.map(Into::into), ..call }
}

#[tokio::test]
async fn the_sandboxs_refusals_mean_what_they_should() {
    use ErrorKind::{AccountMismatch, Credentials, NeedsConnection, NeedsReconnection, UnknownTool};
    let bench = Bench::start().await;
    let done = bench.run(Effect::Once, repo("u-alice", Some("ca_alice_new"))).await;
    assert_eq!((done.outcome, done.http_status), (AttemptOutcome::Succeeded, Some(200)));
    assert!(done.log_id.is_some());

    let elsewhere = |call: Call, version: &str| Call { version: version.into(), ..call };
    let unknown = call(spec(&json!({"user_id": "u-alice", "tool": "GITHUB_NOPE"})));
    let rows = [
        ("another owner's account", repo("u-alice", Some("ca_bob")), AccountMismatch),
        ("a chosen account that is missing", repo("u-alice", Some("ca_missing")), NeedsReconnection),
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
    let tool = bench.api.tool("GITHUB_GET_REPO", None).await.unwrap();
    assert_eq!((tool.toolkit.as_str(), tool.version.as_str()), ("github", "20251027_00"));
    assert_eq!(tool.available_versions, ["20251027_00", "20250905_00", "00000000_00"]);
    assert_eq!(tool.effect(), Effect::Safe);
    assert!(bench.api.tool("HACKERNEWS_GET_USER", None).await.unwrap().no_auth);
    let missing = bench.api.tool("GITHUB_LIST_STARGAZERS", Some("20250905_00")).await;
    assert!(matches!(missing, Err(ToolError::NotFound(_))));
    let list = bench.api.accounts(&["u-alice", "u-nobody", "u-bob"], Some("github")).await.unwrap();
    assert_eq!((list.is_whole, list.pages), (true, 1));
    let owners: Vec<_> = list.accounts.iter().filter_map(|account| account.user_id.as_deref()).collect();
    assert_eq!(owners, ["u-bob", "u-alice", "u-alice"]);
    let accounts = bench.api.accounts(&["u-alice"], Some("github")).await.unwrap().accounts;
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

/// Under zero data retention the log says how a call ended and nothing of what came of it.
#[tokio::test]
async fn a_log_without_payloads_tells_a_success_from_a_failure() {
    let failure = "[[fault]]\nkind = \"provider_failure\"\nuser = \"u-bob\"\nprovider_status = 404\n";
    let mut world = World::from_toml(&format!("{DEFAULT_WORLD}\n{failure}")).unwrap();
    world.retain_no_data();
    let bench = Bench::within(world, KEY).await;
    for (user, successful) in [("u-alice", true), ("u-bob", false)] {
        let call = repo(user, None);
        bench.api.execute(&call).await;
        let found = bench.api.execution(call.request_id).await.unwrap().unwrap();
        assert_eq!(found.tool.as_deref(), Some("GITHUB_GET_REPO"));
        let result = found.result.unwrap();
        assert_eq!((result.successful, result.data.get()), (successful, "null"));
        assert_eq!((result.error, result.log_id), (None, Some(found.log_id)));
    }
}

/// The vendor's schema has no request ID in what a search finds, but in each entry.
#[tokio::test]
async fn a_search_that_shows_heads_of_logs_only_finds_a_call_all_the_same() {
    let world = DEFAULT_WORLD.replace("brief_search = false", "brief_search = true");
    assert_ne!(world, DEFAULT_WORLD);
    let bench = Bench::within(World::from_toml(&world).unwrap(), KEY).await;
    let call = repo("u-alice", None);
    let answered =
        bench.run(Effect::Once, Call { request_id: call.request_id, ..repo("u-alice", None) }).await;
    bench.api.execute(&repo("u-bob", None)).await;
    let found = bench.api.execution(call.request_id).await.unwrap().unwrap();
    assert_eq!(Some(&found.log_id), answered.log_id.as_ref());
    let result = found.result.unwrap();
    assert!(result.successful && result.data.get() != "null", "the payload is in the entry");
    assert!(bench.api.execution(errand::job::RequestId::new()).await.unwrap().is_none());
}

#[tokio::test]
async fn pins_and_accounts_are_resolved_against_the_sandbox() {
    let bench = Bench::start().await;
    let catalog = bench.catalog();
    let stars = spec(&json!({"user_id": "u-alice", "tool": "GITHUB_LIST_STARGAZERS"}));
    let config = |version: &str| PinSources {
        config: Arc::new([("github".to_owned(), version.to_owned())].into()),
        ..PinSources::default()
    };
    let resolve = async |pins: &PinSources, policy| catalog.resolve(&Ask::from(&*stars), pins, policy).await;
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
        accounts.resolve(&owner, "github", explicit, None).await
    };
    assert_eq!(account("u-alice", None).await.unwrap(), "ca_alice_new");
    assert_eq!(account("u-alice", Some("ca_alice_old")).await.unwrap(), "ca_alice_old");
    assert!(matches!(account("u-alice", Some("ca_bob")).await, Err(AccountError::NotFound { .. })));
    assert!(matches!(account("u-alice", Some("ca_missing")).await, Err(AccountError::NotFound { .. })));
    assert!(matches!(account("u-exp", Some("ca_exp")).await, Err(AccountError::NotActive { .. })));
    assert!(matches!(
        account("u-exp", None).await,
        Err(AccountError::NoneConnected { latest: Some(status), .. }) if status == "EXPIRED"
    ));
    assert!(matches!(account("u-nobody", None).await, Err(AccountError::NoneConnected { latest: None, .. })));
}
