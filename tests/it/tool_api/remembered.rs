//! What catalog and accounts remember, and how often they ask.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use errand::{
    job::{Effect, ErrorKind, NotReady, Owner, PinnedBy, Stop},
    tool::{
        ToolError,
        account::{AccountError, AccountOptions, Accounts},
        catalog::{Ask, Catalog, CatalogOptions, ResolveError, Resolved, UnpinnedPolicy},
        composio::Composio,
        pin::{PinSources, VersionMap},
    },
};
use errand_testbed::{
    factory::Envelope as _,
    scripted_api::{Answer, Request, ScriptedApi},
};
use futures_util::future::{FutureExt as _, join_all};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client;

const LONG: Duration = Duration::from_secs(600);
const BASE: &str = "00000000_00";
const OLD: &str = "20250101_00";
const NEW: &str = "20260101_00";

/// What the API says.
#[derive(Debug, Default)]
struct Table {
    /// By what was asked for.
    tools: HashMap<String, Value>,
    accounts: Vec<Value>,
    /// Accounts that no list shows, because whoever asks does not own them.
    unlisted: Vec<&'static str>,
    /// Said instead of everything else.
    failure: Option<Answer>,
    is_held: bool,
}

/// An API that answers from a table.
struct TableApi {
    server: ScriptedApi,
    table: Arc<Mutex<Table>>,
    client: Arc<Composio>,
}

impl TableApi {
    async fn start(table: Table) -> Self {
        let table = Arc::new(Mutex::new(table));
        let shown = table.clone();
        let server = ScriptedApi::responding(move |request| shown.lock().unwrap().answer(request)).await;
        let client = Arc::new(client(&server));
        Self { server, table, client }
    }

    fn asked(&self) -> Vec<String> {
        self.server.take_seen().iter().map(asked).collect()
    }

    fn fail(&self, with: Option<Answer>) {
        self.table.lock().unwrap().failure = with;
    }

    /// Whether answers wait until they are released.
    fn hold(&self, is_held: bool) {
        self.table.lock().unwrap().is_held = is_held;
    }
}

impl Table {
    fn answer(&self, request: &Request) -> Answer {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        let asked = asked(request);
        let found = match asked.split_once(' ') {
            Some((tool, _)) if tool.starts_with("CHAT_") => self.tools.get(&asked).cloned(),
            Some(_) => {
                let listed = |account: &&Value| self.unlisted.iter().all(|id| account["id"] != *id);
                let listed: Vec<_> = self.accounts.iter().filter(listed).collect();
                Some(json!({"items": listed, "next_cursor": null}))
            }
            None => self.accounts.iter().find(|account| account["id"] == asked.as_str()).cloned(),
        };
        let missing = || {
            Answer::new("404 Not Found", r#"{"error":{"message":"there is none","slug":"Tool_NotFound"}}"#)
        };
        let answer = found.map_or_else(missing, |found| Answer::new("200 OK", found.to_string()));
        if self.is_held { answer.held() } else { answer }
    }
}

/// A look-up in words: a tool and its version, an owner and a toolkit, or an account.
fn asked(request: &Request) -> String {
    let target = request.line().strip_prefix("GET ").unwrap();
    let url = url::Url::parse(&format!("http://api{target}")).unwrap();
    let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
    let path: Vec<&str> = url.path_segments().unwrap().collect();
    match path.as_slice() {
        [.., "tools", slug] => format!("{slug} {}", query.get("version").map_or("newest", String::as_str)),
        [.., "connected_accounts"] => format!("{} {}", query["user_ids"], query["toolkit_slugs"]),
        [.., id] => (*id).to_owned(),
        [] => unreachable!("a path has a segment"),
    }
}

fn tool(slug: &str, version: &str) -> Value {
    json!({"slug": slug, "name": "", "description": "", "toolkit": {"slug": "chat"}, "version": version,
           "available_versions": [BASE, NEW, OLD], "tags": ["readOnlyHint"], "no_auth": false})
}

/// Look-ups are repeated after this.
fn unavailable() -> Answer {
    Answer::new("503 Unavailable", "")
}

/// And not after this.
fn throttled() -> Answer {
    Answer::new("429 Slow Down", "{}")
}

fn user(id: &str) -> Owner {
    format!("user:{id}").parse().unwrap()
}

struct Bench {
    api: TableApi,
    catalog: Catalog,
    pins: PinSources,
}

impl Bench {
    /// `CHAT_POST` exists everywhere, `CHAT_SEND` only at the newest version, `CHAT_WRITE` only at
    /// the base one, `CHAT_TELL` only in between.
    async fn new(pinned: Option<&str>) -> Self {
        Self::with_ttl(pinned, LONG).await
    }

    async fn with_ttl(pinned: Option<&str>, ttl: Duration) -> Self {
        let mut tools = HashMap::new();
        for (slug, version) in [
            ("CHAT_POST", BASE),
            ("CHAT_POST", OLD),
            ("CHAT_POST", NEW),
            ("CHAT_SEND", NEW),
            ("CHAT_WRITE", BASE),
            ("CHAT_TELL", OLD),
        ] {
            tools.insert(format!("{slug} {version}"), tool(slug, version));
            if version == NEW {
                tools.insert(format!("{slug} newest"), tool(slug, version));
            }
        }
        let api = TableApi::start(Table { tools, ..Table::default() }).await;
        let config: VersionMap =
            pinned.map(|version| ("chat".to_owned(), version.to_owned())).into_iter().collect();
        Self {
            catalog: Catalog::new(
                api.client.clone(),
                CatalogOptions { negative_ttl: ttl, ..CatalogOptions::new(ttl) },
            ),
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
    let bench = Bench::new(Some(OLD)).await;
    let resolved = bench.resolve("CHAT_POST", None, REFUSE).await.unwrap();
    assert_eq!((resolved.version.as_str(), resolved.pinned_by), (OLD, PinnedBy::Config));
    assert_eq!((resolved.toolkit.as_str(), resolved.effect), ("chat", Effect::Safe));
    assert_eq!(bench.api.asked(), ["CHAT_POST newest", "CHAT_POST 20250101_00"]);

    let named = bench.resolve("CHAT_POST", Some(NEW), REFUSE).await.unwrap();
    assert_eq!((named.version.as_str(), named.pinned_by), (NEW, PinnedBy::Job));
    assert!(bench.api.asked().is_empty(), "the newest description also serves for its version");

    let between = bench.resolve("CHAT_TELL", None, REFUSE).await.unwrap();
    assert_eq!(between.version, OLD, "a tool that only the pinned version has");
    let renamed = Bench::new(Some(BASE)).await.resolve("CHAT_WRITE", None, REFUSE).await.unwrap();
    assert_eq!(renamed.version, BASE);
}

#[tokio::test]
async fn a_tool_that_the_pinned_version_lacks_is_refused_and_told_where_it_is() {
    let bench = Bench::new(Some(OLD)).await;
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
    let bench = Bench::new(None).await;
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

    let latest = Bench::new(Some("latest")).await;
    let error = latest.resolve("CHAT_POST", None, REFUSE).await.unwrap_err();
    assert!(
        error.not_ready().error().message().contains("`toolkit_versions` in the configuration says `latest`")
    );
    assert_eq!(latest.resolve("CHAT_POST", None, FREEZE).await.unwrap().version, NEW);

    let malformed = Bench::new(Some("soon")).await;
    let error = malformed.resolve("CHAT_POST", None, FREEZE).await.unwrap_err();
    assert_eq!(error.not_ready().error().kind(), ErrorKind::Unpinned);
    let error = malformed.resolve("CHAT_POST", Some("v1"), FREEZE).await.unwrap_err();
    assert_eq!(error.not_ready().error().kind(), ErrorKind::InvalidJob);
}

#[tokio::test]
async fn callers_that_miss_together_share_one_request() {
    let bench = Bench::new(Some(NEW)).await;
    let all = join_all((0..100).map(|_| bench.resolve("CHAT_POST", None, REFUSE))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.api.asked(), ["CHAT_POST newest"]);

    let missing = join_all((0..100).map(|_| bench.catalog.get("CHAT_NONE", None))).await;
    assert!(missing.iter().all(|found| matches!(found, Err(ToolError::NotFound(_)))));
    assert_eq!(bench.api.asked().len(), 1);
    assert!(bench.catalog.get_cached("CHAT_NONE", None).is_some(), "absence is remembered, too");

    bench.api.fail(Some(throttled()));
    let failed = join_all((0..100).map(|_| bench.catalog.get("CHAT_SEND", None))).await;
    assert!(failed.iter().all(|found| matches!(found, Err(ToolError::Throttled { .. }))));
    assert_eq!(bench.api.asked().len(), 1, "those who waited fail together");
    bench.api.fail(None);
    assert!(bench.catalog.get("CHAT_SEND", None).await.is_ok(), "a failure is not remembered");
}

#[tokio::test]
async fn a_request_outlives_the_caller_that_began_it_only_for_those_who_wait() {
    let bench = Bench::new(None).await;
    let get = || Box::pin(bench.catalog.get("CHAT_POST", None));
    let (mut impatient, mut patient) = (get(), get());
    assert!((&mut impatient).now_or_never().is_none() && (&mut patient).now_or_never().is_none());
    drop(impatient);
    assert!(patient.await.is_ok());
    assert_eq!(bench.api.asked().len(), 1);

    bench.api.hold(true);
    tokio::select! {
        answered = bench.catalog.get("CHAT_SEND", None) => panic!("{answered:?}"),
        () = bench.api.server.until_seen(1) => {}
    }
    bench.api.hold(false);
    assert!(bench.catalog.get("CHAT_SEND", None).await.is_ok());
    assert_eq!(bench.api.asked().len(), 2, "the abandoned request is not waited for");
}

#[tokio::test]
async fn an_old_description_of_a_literal_version_serves_while_the_api_is_down() {
    let bench = Bench::with_ttl(None, Duration::ZERO).await;
    bench.catalog.get("CHAT_POST", Some(OLD)).await.unwrap();
    assert!(bench.catalog.get_cached("CHAT_POST", Some(OLD)).is_none(), "its time is over");
    bench.api.fail(Some(unavailable()));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_ok());
    bench.api.fail(Some(throttled()));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_ok());
    bench.api.fail(Some(Answer::new("401 Unauthorized", r#"{"error":{"message":"no key"}}"#)));
    assert!(bench.catalog.get("CHAT_POST", Some(OLD)).await.is_err());
    bench.api.fail(Some(unavailable()));
    let error = bench.resolve("CHAT_SEND", Some(NEW), REFUSE).await.unwrap_err();
    assert!(matches!(error.not_ready(), NotReady::Wait { .. }), "{error:?}");
}

// ---------------------------------------------------------------------------------------------
// Accounts.

fn account(id: &str, owner: Option<&str>, toolkit: &str, status: &str, day: i64) -> Value {
    let created = jiff::Timestamp::from_second(day * 86_400).unwrap().to_string();
    json!({"id": id, "user_id": owner, "toolkit": {"slug": toolkit}, "status": status, "is_disabled": false,
           "created_at": created})
}

async fn accounts(accounts: Vec<Value>, ttl: Duration) -> (TableApi, Accounts) {
    let api = TableApi::start(Table { accounts, ..Table::default() }).await;
    let options = AccountOptions { ttl, negative_ttl: ttl };
    let accounts = Accounts::new(api.client.clone(), options);
    (api, accounts)
}

#[tokio::test]
async fn the_default_is_the_owners_own_newest_usable_account_whatever_the_api_lists() {
    let off = account("ca_off", Some("u"), "chat", "ACTIVE", 9).with("is_disabled", true);
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
    )
    .await;
    let owner = user("u");
    assert!(accounts.resolve_cached(&owner, "chat", None).is_none());
    let all = join_all((0..50).map(|_| accounts.resolve(&owner, "chat", None, None))).await;
    assert!(all.into_iter().all(|found| found.unwrap() == "ca_new"));
    assert_eq!(api.asked(), ["u chat"]);
    assert_eq!(accounts.resolve_cached(&owner, "chat", None).unwrap().unwrap(), "ca_new");
    let org: Owner = "org:u".parse().unwrap();
    assert!(accounts.resolve_cached(&org, "chat", None).is_none(), "an organization is not a user");

    accounts.forget(&owner, "chat");
    api.table.lock().unwrap().accounts.retain(|account| account["id"] != "ca_new");
    assert_eq!(accounts.resolve(&owner, "chat", None, None).await.unwrap(), "ca_mid");
    // A comma makes the API's filter a list, so an account that does not say whose it is proves nothing.
    let error = accounts.resolve(&user("u,v"), "chat", None, None).await.unwrap_err();
    assert!(matches!(error, AccountError::NoneConnected { latest: None, .. }));
}

#[tokio::test]
async fn without_a_usable_account_the_job_waits_and_says_who_must_connect_what() {
    let (_api, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "EXPIRED", 1)], LONG).await;
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
            account("ca_foreign", None, "chat", "ACTIVE", 1),
            account("ca_other", Some("v"), "mail", "EXPIRED", 1),
            account("ca_mail", Some("u"), "mail", "ACTIVE", 1),
            account("ca_dead", Some("u"), "chat", "EXPIRED", 1),
        ],
        LONG,
    )
    .await;
    api.table.lock().unwrap().unlisted.push("ca_foreign");
    let owner = user("u");
    for id in ["ca_own", "ca_silent"] {
        assert_eq!(accounts.resolve(&owner, "chat", Some(id), None).await.unwrap(), id);
        assert_eq!(accounts.resolve_cached(&owner, "chat", Some(id)).unwrap().unwrap(), id);
    }
    let mut nobodys = None;
    for (id, kind) in [
        ("ca_none", ErrorKind::AccountNotFound),
        // The API does not say whose it is, and does not list it among the owner's.
        ("ca_foreign", ErrorKind::AccountNotFound),
        ("ca_other", ErrorKind::AccountNotFound),
        ("ca_mail", ErrorKind::InvalidJob),
        ("ca_dead", ErrorKind::NeedsReconnection),
    ] {
        let error = accounts.resolve(&owner, "chat", Some(id), None).await.unwrap_err();
        let not_ready = error.not_ready();
        assert_eq!(not_ready.error().kind(), kind, "{id}");
        let told = not_ready.error().message().replace(id, "ca_none");
        if kind == ErrorKind::AccountNotFound {
            assert_eq!(
                *nobodys.get_or_insert(told.clone()),
                told,
                "what others have is nothing to this owner"
            );
        }
        assert_eq!(matches!(not_ready, NotReady::Stop(Stop::Connect { .. })), id == "ca_dead");
    }
    api.asked();
    accounts.forget_account(&owner, "ca_own");
    assert!(accounts.resolve_cached(&owner, "chat", Some("ca_own")).is_none());
    assert_eq!(accounts.resolve(&owner, "chat", Some("ca_own"), None).await.unwrap(), "ca_own");
    assert_eq!(api.asked(), ["ca_own"]);
}

#[tokio::test]
async fn what_was_forgotten_while_it_was_being_asked_is_not_remembered() {
    let (api, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "ACTIVE", 1)], LONG).await;
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

#[tokio::test]
async fn that_there_is_no_account_counts_only_for_jobs_that_were_claimed_before() {
    let (api, accounts) = accounts(vec![account("ca_1", Some("u"), "chat", "EXPIRED", 1)], LONG).await;
    let owner = user("u");
    let become_status = |status: &str| api.table.lock().unwrap().accounts[0]["status"] = json!(status);
    for named in [None, Some("ca_1")] {
        let resolve = |since| accounts.resolve(&owner, "chat", named, Some(since));
        let early = Instant::now();
        resolve(early).await.unwrap_err();
        resolve(early).await.unwrap_err();
        assert_eq!(api.asked().len(), 1, "that is remembered");

        // The API is being asked when jobs are let go, and says what was true before.
        accounts.forget(&owner, "chat");
        accounts.forget_account(&owner, "ca_1");
        api.hold(true);
        let first = resolve(early);
        tokio::pin!(first);
        tokio::select! {
            answered = &mut first => panic!("{answered:?}"),
            () = api.server.until_seen(1) => {}
        }
        let later = join_all((0..50).map(|_| resolve(Instant::now())));
        tokio::pin!(later);
        assert!((&mut later).now_or_never().is_none(), "they wait");
        api.hold(false);
        become_status("ACTIVE");
        api.server.release();
        let (first, later) = tokio::join!(first, later);
        first.unwrap_err();
        assert!(later.into_iter().all(|found| found.unwrap() == "ca_1"));
        assert_eq!(api.asked().len(), 2, "all who came later share one question");
        become_status("EXPIRED");
    }
}
