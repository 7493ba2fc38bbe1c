//! Catalog and accounts against an API in memory that counts what it is asked.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use errand::{
    job::{Effect, ErrorKind, NotReady, Owner, PinnedBy, RequestId, Stop},
    tool::{
        Account, ApiCheck, ApiError, Call, Execution, Reply, ToolApi, ToolError, ToolInfo,
        account::{AccountError, AccountOptions, Accounts},
        catalog::{Ask, Catalog, CatalogOptions, ResolveError, Resolved, UnpinnedPolicy},
        pin::{PinSources, VersionMap},
    },
};
use futures_util::future::{FutureExt as _, join_all};
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(600);
const ANSWERS_AFTER: Duration = Duration::from_millis(10);
const BASE: &str = "00000000_00";
const OLD: &str = "20250101_00";
const NEW: &str = "20260101_00";

/// Answers from tables after a short while, and writes down what it was asked.
#[derive(Debug, Default)]
struct Fake {
    /// By slug and version; the newest has none.
    tools: HashMap<(&'static str, Option<&'static str>), ToolInfo>,
    accounts: Mutex<Vec<Account>>,
    failure: Mutex<Option<ToolError>>,
    asked: Mutex<Vec<String>>,
}

impl Fake {
    async fn ask(&self, what: String) -> Result<(), ToolError> {
        self.asked.lock().unwrap().push(what);
        tokio::time::sleep(ANSWERS_AFTER).await;
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn fail(&self, with: Option<ToolError>) {
        *self.failure.lock().unwrap() = with;
    }
}

#[async_trait]
impl ToolApi for Fake {
    async fn execute(&self, _: &Call) -> Reply {
        unreachable!("no call is made here")
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        self.ask(format!("{slug} {}", version.unwrap_or("newest"))).await?;
        let found = self.tools.iter().find(|((s, v), _)| *s == slug && *v == version);
        found.map(|(_, info)| info.clone()).ok_or_else(|| ToolError::NotFound(Box::default()))
    }

    async fn execution(&self, _: RequestId) -> Result<Option<Execution>, ToolError> {
        unreachable!("no log is read here")
    }

    async fn accounts(&self, owner_id: &str, toolkit: Option<&str>) -> Result<Vec<Account>, ToolError> {
        self.ask(format!("{owner_id} {}", toolkit.unwrap_or("all"))).await?;
        Ok(self.accounts.lock().unwrap().clone())
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        self.ask(id.to_owned()).await?;
        let accounts = self.accounts.lock().unwrap();
        accounts
            .iter()
            .find(|account| account.id == id)
            .cloned()
            .ok_or_else(|| ToolError::NotFound(Box::default()))
    }

    async fn check(&self) -> Result<ApiCheck, ToolError> {
        unreachable!("nothing is checked here")
    }
}

fn info(slug: &str, toolkit: &str, version: &str) -> ToolInfo {
    ToolInfo {
        slug: slug.into(),
        name: String::new(),
        description: String::new(),
        toolkit: toolkit.into(),
        version: version.into(),
        available_versions: vec![BASE.into(), NEW.into(), OLD.into()],
        tags: vec!["readOnlyHint".into()],
        no_auth: false,
        deprecated: false,
    }
}

fn unavailable() -> ToolError {
    ToolError::Unavailable("down".into())
}

fn user(id: &str) -> Owner {
    format!("user:{id}").parse().unwrap()
}

struct Bench {
    api: Arc<Fake>,
    catalog: Catalog,
    pins: PinSources,
}

impl Bench {
    /// `CHAT_POST` exists everywhere, `CHAT_SEND` only at the newest version, `CHAT_WRITE` only at
    /// the base one, `CHAT_TELL` only in between.
    fn new(pinned: Option<&str>) -> Self {
        Self::with_ttl(pinned, LONG)
    }

    fn with_ttl(pinned: Option<&str>, ttl: Duration) -> Self {
        let mut tools = HashMap::new();
        for (slug, version) in [
            ("CHAT_POST", BASE),
            ("CHAT_POST", OLD),
            ("CHAT_POST", NEW),
            ("CHAT_SEND", NEW),
            ("CHAT_WRITE", BASE),
            ("CHAT_TELL", OLD),
        ] {
            tools.insert((slug, Some(version)), info(slug, "chat", version));
            if version == NEW {
                tools.insert((slug, None), info(slug, "chat", version));
            }
        }
        let api = Arc::new(Fake { tools, ..Fake::default() });
        let config: VersionMap =
            pinned.map(|version| ("chat".to_owned(), version.to_owned())).into_iter().collect();
        Self {
            catalog: Catalog::new(api.clone(), CatalogOptions { ttl, negative_ttl: ttl }),
            api,
            pins: PinSources { config: Arc::new(config), ..PinSources::default() },
        }
    }

    async fn resolve(
        &self,
        tool: &str,
        version: Option<&str>,
        policy: UnpinnedPolicy,
    ) -> Result<Resolved, ResolveError> {
        let owner = user("u");
        let ask = Ask { tool, version, owner: &owner, effect: None };
        let resolved = self.catalog.resolve(&ask, &self.pins, policy).await;
        if !matches!(resolved, Err(ResolveError::Api(_))) {
            let again = self.catalog.resolve_cached(&ask, &self.pins, policy);
            let again = again.expect("what was decided once is decided again without waiting");
            assert_eq!(format!("{again:?}"), format!("{resolved:?}"));
        }
        resolved
    }
}

const REFUSE: UnpinnedPolicy = UnpinnedPolicy::Refuse;
const FREEZE: UnpinnedPolicy = UnpinnedPolicy::Freeze;

#[tokio::test]
async fn a_tool_is_looked_up_where_it_can_be_found_and_verified_at_the_pin() {
    let bench = Bench::new(Some(OLD));
    let resolved = bench.resolve("CHAT_POST", None, REFUSE).await.unwrap();
    assert_eq!((resolved.version.as_str(), resolved.pinned_by), (OLD, PinnedBy::Config));
    assert_eq!((resolved.toolkit.as_str(), resolved.effect), ("chat", Effect::Safe));
    assert_eq!(bench.api.asked(), ["CHAT_POST newest", "CHAT_POST 20250101_00"]);

    let named = bench.resolve("CHAT_POST", Some(NEW), REFUSE).await.unwrap();
    assert_eq!((named.version.as_str(), named.pinned_by), (NEW, PinnedBy::Job));
    assert!(bench.api.asked().is_empty(), "the newest description also serves for its version");

    let between = bench.resolve("CHAT_TELL", None, REFUSE).await.unwrap();
    assert_eq!(between.version, OLD, "a tool that only the pinned version has");
    let renamed = Bench::new(Some(BASE)).resolve("CHAT_WRITE", None, REFUSE).await.unwrap();
    assert_eq!(renamed.version, BASE);
}

#[tokio::test]
async fn a_tool_that_the_pinned_version_lacks_is_refused_and_told_where_it_is() {
    let bench = Bench::new(Some(OLD));
    for (tool, version, parts) in [
        ("CHAT_SEND", None, vec!["CHAT_SEND", OLD, NEW, "toolkit_versions"]),
        ("CHAT_SEND", Some(OLD), vec!["CHAT_SEND", OLD, NEW, "the job's `version`"]),
        ("CHAT_WRITE", None, vec!["CHAT_WRITE", OLD, BASE, NEW]),
        ("CHAT_NONE", None, vec!["CHAT_NONE", "newest", "base"]),
        ("CHAT_NONE", Some(OLD), vec!["CHAT_NONE", OLD]),
    ] {
        let error = bench.resolve(tool, version, REFUSE).await.unwrap_err();
        let NotReady::Stop(Stop::Fail { error }) = error.not_ready() else { panic!("{error:?}") };
        assert_eq!(error.kind(), ErrorKind::UnknownTool);
        for part in parts {
            assert!(error.message().contains(part), "{part} in {}", error.message());
        }
    }
}

#[tokio::test]
async fn an_unpinned_job_is_refused_with_the_ways_to_pin_or_frozen() {
    let bench = Bench::new(None);
    for version in [None, Some(" "), Some("latest")] {
        let error = bench.resolve("CHAT_POST", version, REFUSE).await.unwrap_err();
        let error = error.not_ready().error().clone();
        assert_eq!(error.kind(), ErrorKind::Unpinned);
        let mut parts = vec!["`version`", "errand pins set", "toolkit_versions", "COMPOSIO_TOOLKIT_VERSION_"];
        if version != Some("latest") {
            parts.push("COMPOSIO_TOOLKIT_VERSION_CHAT");
        }
        for part in parts {
            assert!(error.message().contains(part), "{part} in {}", error.message());
        }
        let frozen = bench.resolve("CHAT_POST", version, FREEZE).await.unwrap();
        assert_eq!((frozen.version.as_str(), frozen.pinned_by), (NEW, PinnedBy::Latest));
    }
    let gone = bench.resolve("CHAT_WRITE", None, FREEZE).await.unwrap_err();
    assert!(matches!(gone, ResolveError::UnknownTool { .. }), "{gone:?}");

    let latest = Bench::new(Some("latest"));
    let error = latest.resolve("CHAT_POST", None, REFUSE).await.unwrap_err();
    assert!(
        error.not_ready().error().message().contains("`toolkit_versions` in the configuration says `latest`")
    );
    assert_eq!(latest.resolve("CHAT_POST", None, FREEZE).await.unwrap().version, NEW);

    let malformed = Bench::new(Some("soon"));
    let error = malformed.resolve("CHAT_POST", None, FREEZE).await.unwrap_err();
    assert_eq!(error.not_ready().error().kind(), ErrorKind::Unpinned);
    let error = malformed.resolve("CHAT_POST", Some("v1"), FREEZE).await.unwrap_err();
    assert_eq!(error.not_ready().error().kind(), ErrorKind::InvalidJob);
}

#[tokio::test]
async fn callers_that_miss_together_share_one_request() {
    let bench = Bench::new(Some(NEW));
    let all = join_all((0..100).map(|_| bench.resolve("CHAT_POST", None, REFUSE))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.api.asked(), ["CHAT_POST newest"]);

    let missing = join_all((0..100).map(|_| bench.catalog.get("CHAT_NONE", None))).await;
    assert!(missing.iter().all(|found| matches!(found, Err(ToolError::NotFound(_)))));
    assert_eq!(bench.api.asked().len(), 1);
    assert!(bench.catalog.get_cached("CHAT_NONE", None).is_some(), "absence is remembered, too");

    bench.api.fail(Some(unavailable()));
    let failed = join_all((0..100).map(|_| bench.catalog.get("CHAT_SEND", None))).await;
    assert!(failed.iter().all(|found| matches!(found, Err(ToolError::Unavailable(_)))));
    assert_eq!(bench.api.asked().len(), 1, "those who waited fail together");
    bench.api.fail(None);
    assert!(bench.catalog.get("CHAT_SEND", None).await.is_ok(), "a failure is not remembered");
}

#[tokio::test]
async fn a_request_outlives_the_caller_that_began_it_only_for_those_who_wait() {
    let bench = Bench::new(None);
    let get = || Box::pin(bench.catalog.get("CHAT_POST", None));
    let (mut impatient, mut patient) = (get(), get());
    assert!((&mut impatient).now_or_never().is_none() && (&mut patient).now_or_never().is_none());
    drop(impatient);
    assert!(patient.await.is_ok());
    assert_eq!(bench.api.asked().len(), 1);

    assert!(bench.catalog.get("CHAT_SEND", None).now_or_never().is_none(), "begun and given up");
    assert!(bench.catalog.get("CHAT_SEND", None).await.is_ok());
    assert_eq!(bench.api.asked().len(), 2, "the abandoned request is not waited for");
}

#[tokio::test]
async fn an_old_description_of_a_literal_version_serves_while_the_api_is_down() {
    let bench = Bench::with_ttl(None, Duration::ZERO);
    bench.catalog.get("CHAT_POST", Some(OLD)).await.unwrap();
    assert!(bench.catalog.get_cached("CHAT_POST", Some(OLD)).is_none(), "its time is over");
    bench.api.fail(Some(unavailable()));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_ok());
    bench.api.fail(Some(ToolError::Throttled { retry_after: None }));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_ok());
    let key = ToolError::Credentials { status: 401, error: Box::new(ApiError::default()) };
    bench.api.fail(Some(key));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_err());
    bench.api.fail(Some(unavailable()));
    let error = bench.resolve("CHAT_SEND", Some(NEW), REFUSE).await.unwrap_err();
    assert!(matches!(error.not_ready(), NotReady::Wait { .. }), "{error:?}");
}

// ---------------------------------------------------------------------------------------------
// Accounts.

fn account(id: &str, owner: Option<&str>, toolkit: &str, status: &str, day: i64) -> Account {
    Account {
        id: id.into(),
        user_id: owner.map(Into::into),
        toolkit: toolkit.into(),
        status: status.into(),
        status_reason: None,
        disabled: false,
        created_at: jiff::Timestamp::from_second(day * 86_400).unwrap(),
    }
}

fn accounts(list: Vec<Account>, ttl: Duration) -> (Arc<Fake>, Accounts) {
    let api = Arc::new(Fake { accounts: Mutex::new(list), ..Fake::default() });
    let options = AccountOptions { ttl, negative_ttl: ttl };
    (api.clone(), Accounts::new(api, options))
}

#[tokio::test]
async fn the_default_is_the_owners_own_newest_usable_account_whatever_the_api_lists() {
    let off = Account { disabled: true, ..account("ca_off", Some("u"), "chat", "ACTIVE", 9) };
    let (api, accounts) = accounts(
        vec![
            account("ca_old", Some("u"), "chat", "ACTIVE", 1),
            account("ca_new", Some("u"), "chat", "ACTIVE", 3),
            account("ca_mid", None, "chat", "ACTIVE", 2),
            account("ca_other", Some("v"), "chat", "ACTIVE", 8),
            account("ca_mail", Some("u"), "mail", "ACTIVE", 8),
            account("ca_dead", Some("u"), "chat", "EXPIRED", 8),
            off,
        ],
        LONG,
    );
    let owner = user("u");
    assert!(accounts.resolve_cached(&owner, "chat", None).is_none());
    let all = join_all((0..50).map(|_| accounts.resolve(&owner, "chat", None, None))).await;
    assert!(all.into_iter().all(|found| found.unwrap() == "ca_new"));
    assert_eq!(api.asked(), ["u chat"]);
    assert_eq!(accounts.resolve_cached(&owner, "chat", None).unwrap().unwrap(), "ca_new");
    let org: Owner = "org:u".parse().unwrap();
    assert!(accounts.resolve_cached(&org, "chat", None).is_none(), "an organization is not a user");

    accounts.forget(&owner, "chat");
    api.accounts.lock().unwrap().retain(|account| account.id != "ca_new");
    assert_eq!(accounts.resolve(&owner, "chat", None, None).await.unwrap(), "ca_mid");
    // A comma makes the API's filter a list, so an account that does not say whose it is proves nothing.
    let error = accounts.resolve(&user("u,v"), "chat", None, None).await.unwrap_err();
    assert!(matches!(error, AccountError::NoneConnected { latest: None, .. }));
}

#[tokio::test]
async fn without_a_usable_account_the_job_waits_and_says_who_must_connect_what() {
    let (_, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "EXPIRED", 1)], LONG);
    for (owner, kind) in [("user:u", ErrorKind::NeedsReconnection), ("org:o", ErrorKind::NeedsConnection)] {
        let owner: Owner = owner.parse().unwrap();
        let error = accounts.resolve(&owner, "chat", None, None).await.unwrap_err();
        let NotReady::Stop(Stop::Connect { toolkit, error }) = error.not_ready() else { panic!("{error:?}") };
        assert_eq!(toolkit, "chat");
        assert_eq!(error.kind(), kind);
        for part in [owner.kind().field(), owner.id(), "`chat`"] {
            assert!(error.message().contains(part), "{part} in {}", error.message());
        }
    }
}

#[tokio::test]
async fn a_named_account_must_be_the_owners_own_for_this_toolkit_and_active() {
    let (api, accounts) = accounts(
        vec![
            account("ca_own", Some("u"), "chat", "ACTIVE", 1),
            account("ca_silent", None, "chat", "ACTIVE", 1),
            account("ca_other", Some("v"), "mail", "EXPIRED", 1),
            account("ca_mail", Some("u"), "mail", "ACTIVE", 1),
            account("ca_dead", Some("u"), "chat", "EXPIRED", 1),
        ],
        LONG,
    );
    let owner = user("u");
    for id in ["ca_own", "ca_silent"] {
        assert_eq!(accounts.resolve(&owner, "chat", Some(id), None).await.unwrap(), id);
        assert_eq!(accounts.resolve_cached(&owner, "chat", Some(id)).unwrap().unwrap(), id);
    }
    for (id, kind) in [
        ("ca_none", ErrorKind::AccountNotFound),
        ("ca_other", ErrorKind::AccountMismatch),
        ("ca_mail", ErrorKind::InvalidJob),
        ("ca_dead", ErrorKind::NeedsReconnection),
    ] {
        let error = accounts.resolve(&owner, "chat", Some(id), None).await.unwrap_err();
        let not_ready = error.not_ready();
        assert_eq!(not_ready.error().kind(), kind, "{id}");
        assert!(!not_ready.error().message().contains("`v`"), "nothing about the other owner");
        assert_eq!(matches!(not_ready, NotReady::Stop(Stop::Connect { .. })), id == "ca_dead");
    }
    api.asked();
    accounts.forget_account("ca_own");
    assert!(accounts.resolve_cached(&owner, "chat", Some("ca_own")).is_none());
    assert_eq!(accounts.resolve(&owner, "chat", Some("ca_own"), None).await.unwrap(), "ca_own");
    assert_eq!(api.asked(), ["ca_own"]);
}

#[tokio::test]
async fn what_was_forgotten_while_it_was_being_asked_is_not_remembered() {
    let (api, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "ACTIVE", 1)], LONG);
    let owner = user("u");
    let mut asking = Box::pin(accounts.resolve(&owner, "chat", None, None));
    assert!((&mut asking).now_or_never().is_none());
    accounts.forget(&owner, "chat");
    let found = asking.await;
    assert!(found.is_ok());
    assert!(accounts.resolve_cached(&owner, "chat", None).is_none());
    api.fail(Some(unavailable()));
    let error = accounts.resolve(&owner, "chat", None, None).await.unwrap_err();
    assert!(matches!(error.not_ready(), NotReady::Wait { .. }));
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_account_counts_only_for_jobs_that_were_claimed_before() {
    let (api, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "EXPIRED", 1)], LONG);
    let owner = user("u");
    let become_status = |status: &str| status.clone_into(&mut api.accounts.lock().unwrap()[0].status);
    for named in [None, Some("ca_1")] {
        let resolve = |since| accounts.resolve(&owner, "chat", named, Some(since));
        let early = Instant::now();
        resolve(early).await.unwrap_err();
        resolve(early).await.unwrap_err();
        assert_eq!(api.asked().len(), 1, "that is remembered");

        // The API is being asked when jobs are let go, and says what was true before.
        accounts.forget(&owner, "chat");
        accounts.forget_account("ca_1");
        let later = async {
            tokio::time::sleep(ANSWERS_AFTER / 2).await;
            join_all((0..50).map(|_| resolve(Instant::now()))).await
        };
        let activate = async {
            tokio::time::sleep(ANSWERS_AFTER + ANSWERS_AFTER / 2).await;
            become_status("ACTIVE");
        };
        let (first, later, ()) = tokio::join!(resolve(early), later, activate);
        first.unwrap_err();
        assert!(later.into_iter().all(|found| found.unwrap() == "ca_1"));
        assert_eq!(api.asked().len(), 2, "all who came later share one question");
        become_status("EXPIRED");
    }
}
