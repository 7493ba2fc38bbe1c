//! A tool API that errs in every way it may, and keeps a ledger of what really happened.
//!
//! What it may do is what docs/guarantees.md says errand can live with: it may answer anything or nothing, at
//! any time; it may go on with a call when nobody waits any more, but not for longer than the settings
//! allow ([`Patience`]); its log may be late, or closed, or know none of our request IDs, but does not lose
//! single entries; and what it says about success and failure is true.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use errand::{
    job::{JobId, RequestId},
    tool::{
        Account, AccountList, Answer, ApiCheck, ApiError, Body, Call, Execution, Reply, ToolApi, ToolError,
        ToolInfo, ToolResult, ToolkitInfo,
    },
};
use jiff::Timestamp;
use serde_json::{json, value::RawValue};
use tokio::{sync::oneshot, time::sleep};

use super::{
    rng::SeededRng,
    world::{Life, Theme, World},
};

/// The only version of every toolkit.
pub(super) const VERSION: &str = "20250101_00";

/// Tools, their toolkits and what they claim about themselves.
pub(super) const TOOLS: [(&str, &str, &[&str]); 4] = [
    ("ALPHA_READ", "alpha", &["readOnlyHint"]),
    ("ALPHA_SET", "alpha", &["idempotentHint"]),
    ("BETA_SEND", "beta", &[]),
    ("GAMMA_SEND", "gamma", &[]),
];

/// Needs no account.
const OPEN_TOOLKIT: &str = "gamma";

/// Whose jobs there are. The API knows users and organizations by the same kind of ID.
pub(super) const OWNERS: [(&str, &str); 3] =
    [("user_id", "u-ann"), ("user_id", "u-bob"), ("org_id", "org-1")];

/// How long the API goes on with a call that nobody waits for any more, and takes to log it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// No longer than errand is told to wait.
    Promised,
    /// Longer, so that nothing keeps errand from making a call twice.
    Broken,
}

/// Half of `verify.log_delay_secs`; the other half is for the log.
const LATEST: Duration = Duration::from_secs(150);
const SLOWEST_LOG: Duration = Duration::from_secs(20);

/// How the API is, until the world is calm.
#[derive(Debug)]
pub(super) struct ApiWeather {
    /// Share of calls that do not simply succeed.
    calls: f64,
    /// Share of those that take long.
    slow: f64,
    /// Share of look-ups and questions to the log that fail.
    lookups: f64,
    /// When the key is not accepted.
    key_refused: (Duration, Duration),
    /// The log, for good or until the world is calm.
    pub(super) log: (Log, bool),
    patience: Patience,
}

/// What the execution log is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    Open,
    /// Knows none of our request IDs.
    Blind,
    Closed,
}

impl ApiWeather {
    pub(super) fn draw(rng: &SeededRng, calm_at: Duration, patience: Patience, theme: Theme) -> Self {
        let from = rng.up_to(calm_at);
        let long = if rng.chance(0.15) { rng.up_to(Duration::from_secs(60)) } else { Duration::ZERO };
        let log = rng.pick(&[Log::Open, Log::Open, Log::Open, Log::Open, Log::Blind, Log::Closed]);
        let mixed = theme == Theme::Mixture;
        Self {
            calls: if mixed { rng.pick(&[0.1, 0.4, 0.8]) } else { 0.8 },
            slow: if mixed { rng.pick(&[0.1, 0.2, 0.8]) } else { 0.9 },
            lookups: rng.pick(&[0.0, 0.1, 0.5]),
            key_refused: (from, (from + long).min(calm_at)),
            log: if patience == Patience::Broken { (Log::Open, false) } else { (log, rng.chance(0.5)) },
            patience,
        }
    }
}

/// The API, one for all processes.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) weather: ApiWeather,
    rng: SeededRng,
    pub(super) accounts: Vec<Connected>,
    ledger: Mutex<Ledger>,
    /// Calls that still go on.
    pub(super) under_way: AtomicUsize,
}

/// What really happened.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Every request that arrived, in order.
    pub(super) requests: Vec<Request>,
    /// Every effect, in order.
    pub(super) effects: Vec<Effect>,
    log: BTreeMap<RequestId, Entry>,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) job: JobId,
    pub(super) request: RequestId,
    pub(super) owner: String,
    pub(super) account: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Effect {
    pub(super) job: JobId,
    pub(super) request: RequestId,
}

#[derive(Debug)]
struct Entry {
    from: Duration,
    tool: String,
    result: ToolResult,
}

/// An account, and when it was usable.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    pub(super) id: String,
    pub(super) owner: &'static str,
    pub(super) toolkit: &'static str,
    pub(super) from: Duration,
    pub(super) until: Option<Duration>,
}

impl Connected {
    pub(super) fn is_usable(&self, now: Duration) -> bool {
        self.from <= now && self.until.is_none_or(|until| now < until)
    }
}

/// Accounts that are there from the beginning, come later, never come, or expire and are connected anew.
fn accounts(rng: &SeededRng, calm_at: Duration) -> Vec<Connected> {
    let mut accounts = Vec::new();
    for (_, owner) in OWNERS {
        for toolkit in ["alpha", "beta"] {
            let mut add = |from, until| {
                accounts.push(Connected {
                    id: format!("ca_{}", accounts.len()),
                    owner,
                    toolkit,
                    from,
                    until,
                });
            };
            match rng.below(8) {
                0 => {}
                1 => add(rng.up_to(calm_at), None),
                2 => {
                    let until = rng.up_to(calm_at);
                    add(Duration::ZERO, Some(until));
                    add(until + rng.up_to(calm_at - until), None);
                }
                _ => add(Duration::ZERO, None),
            }
        }
    }
    accounts
}

/// What becomes of one call.
#[derive(Debug, Clone)]
struct Fate {
    /// When it is answered, and how.
    answered_after: Duration,
    answer: Said,
    /// When the tool has its effect; `None` if never.
    runs_after: Option<Duration>,
    /// Whether, and how long after, it still has its effect when nobody waits for it any more.
    unwatched: Option<Duration>,
    logged_after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Success,
    ToolFailed(Option<u16>),
    Throttled,
    Refused,
    Gateway(u16),
    Failing(u16),
    Garbage,
    Broken(u16),
    TooLarge,
    Panic,
    NotSent,
    Reset,
}

impl Api {
    pub(super) fn new(seed: u64, calm_at: Duration, patience: Patience, theme: Theme) -> Self {
        let rng = SeededRng::new(seed, "api");
        Self {
            weather: ApiWeather::draw(&rng, calm_at, patience, theme),
            accounts: accounts(&rng, calm_at),
            rng,
            ledger: Mutex::default(),
            under_way: AtomicUsize::new(0),
        }
    }

    pub(super) fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub(super) fn has_run(&self, job: JobId) -> bool {
        self.ledger().effects.iter().any(|effect| effect.job == job)
    }

    fn fate(&self, timeout: Duration, calm: bool) -> Fate {
        let rng = &self.rng;
        let quick = rng.up_to(Duration::from_secs(2));
        let latest = match self.weather.patience {
            Patience::Promised => rng.up_to(LATEST),
            Patience::Broken => rng.between(LATEST * 2, LATEST * 5),
        };
        let mut fate = Fate {
            answered_after: quick,
            answer: Said::Success,
            runs_after: Some(quick),
            unwatched: rng.chance(0.6).then_some(latest),
            logged_after: rng.up_to(SLOWEST_LOG),
        };
        if calm || !rng.chance(self.weather.calls) {
            return fate;
        }
        let may_run = rng.chance(0.5);
        // The effect of a call whose answer says nothing comes before it, or when nobody waits any more.
        let unclear = if rng.chance(0.5) { Some(quick) } else { Some(quick + latest) };
        if rng.chance(self.weather.slow) {
            // Slow, and sometimes too slow.
            fate.answered_after = rng.between(timeout / 2, timeout.mul_f64(1.2));
            fate.runs_after = may_run.then_some(fate.answered_after);
            if fate.runs_after.is_none() {
                fate.answer = Said::Reset;
            }
            return fate;
        }
        match rng.below(12) {
            0 => fate.answer = Said::ToolFailed(rng.pick(&[None, Some(400), Some(429), Some(500)])),
            1 => fate.answer = Said::Throttled,
            2 => fate.answer = Said::Refused,
            3 => fate.answer = Said::Gateway(rng.pick(&[403, 404])),
            4 => fate.answer = Said::Broken(400),
            5 => fate.answer = Said::NotSent,
            6 => fate.answer = if rng.chance(0.3) { Said::TooLarge } else { Said::Success },
            7 => fate.answer = if rng.chance(0.3) { Said::Panic } else { Said::Reset },
            8 => fate.answer = Said::Failing(rng.pick(&[500, 502, 503, 504])),
            9 => fate.answer = rng.pick(&[Said::Garbage, Said::Broken(200)]),
            _ => fate.answer = Said::Reset,
        }
        fate.runs_after = match fate.answer {
            Said::Success | Said::TooLarge => Some(quick),
            Said::Panic | Said::Reset | Said::Failing(_) | Said::Garbage | Said::Broken(200) if may_run => {
                unclear
            }
            _ => None,
        };
        fate
    }

    fn log(&self, now: Duration, calm_at: Duration) -> Log {
        let (log, mends) = self.weather.log;
        if mends && now >= calm_at { Log::Open } else { log }
    }

    /// Why the API does not even try, if it has a reason.
    fn refusal(&self, call: &Call, now: Duration) -> Option<Answer> {
        let (from, to) = self.weather.key_refused;
        if (from..to).contains(&now) {
            return Some(error(401, "APIKey_Invalid"));
        }
        let (_, toolkit, _) = TOOLS.iter().find(|(slug, ..)| *slug == call.spec.tool)?;
        let account = self.accounts.iter().find(|account| Some(&account.id) == call.account.as_ref());
        match account {
            None if *toolkit == OPEN_TOOLKIT => None,
            None => Some(error(404, "ToolRouterV2_NoActiveConnection")),
            Some(account) if account.owner != call.spec.owner.id() => {
                Some(error(403, "ActionExecute_ConnectedAccountEntityIdMismatch"))
            }
            Some(account) if !account.is_usable(now) => {
                Some(error(422, "ActionExecute_ConnectedAccountExpired"))
            }
            Some(_) => None,
        }
    }
}

fn answer(status: u16, body: Body) -> Answer {
    Answer { status, retry_after: None, deprecated: None, body }
}

fn error(status: u16, slug: &str) -> Answer {
    answer(status, Body::Error(ApiError { slug: Some(slug.to_owned()), ..ApiError::default() }))
}

fn result(call: &Call, said: Said) -> ToolResult {
    let data = json!({"job": call.job.to_string(), "request": call.request_id.to_string()});
    let (successful, status) = match said {
        Said::ToolFailed(status) => (false, status),
        _ => (true, None),
    };
    ToolResult {
        data: RawValue::from_string(data.to_string()).unwrap().into(),
        successful,
        error: (!successful).then(|| "the tool failed".to_owned()),
        provider_status: status,
        log_id: Some("log_1".to_owned()),
    }
}

/// Counts a call that goes on.
struct UnderWay(Arc<World>);

impl UnderWay {
    fn new(world: &Arc<World>) -> Self {
        world.api.under_way.fetch_add(1, Relaxed);
        Self(world.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.api.under_way.fetch_sub(1, Relaxed);
    }
}

/// The API's side of a call, which goes on without the caller. `watched` ends when nobody waits any more.
async fn serve(under_way: UnderWay, call: Call, fate: Fate, watched: oneshot::Receiver<()>) {
    let world = &under_way.0;
    let Some(runs_after) = fate.runs_after else {
        if let Said::ToolFailed(_) = fate.answer {
            sleep(fate.answered_after).await;
            log(world, &call, &fate);
        }
        return;
    };
    tokio::select! {
        biased;
        () = sleep(runs_after) => {}
        _ = watched => match fate.unwatched {
            Some(still) => sleep(still).await,
            None => return,
        }
    }
    world.note("api", &format!("runs {} of {}", call.request_id, call.job));
    world.api.ledger().effects.push(Effect { job: call.job, request: call.request_id });
    log(world, &call, &fate);
}

fn log(world: &World, call: &Call, fate: &Fate) {
    let said = if let Said::ToolFailed(_) = fate.answer { fate.answer } else { Said::Success };
    let entry = Entry {
        from: world.now() + fate.logged_after,
        tool: call.spec.tool.clone(),
        result: result(call, said),
    };
    world.api.ledger().log.insert(call.request_id, entry);
}

/// One process's line to the API.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

impl Line {
    async fn call(&self, call: &Call) -> Reply {
        let Self { world, .. } = self;
        let api = &world.api;
        world.note(
            &self.life.name,
            &format!("sends {} of {} with {:?}", call.request_id, call.job, call.account),
        );
        api.ledger().requests.push(Request {
            job: call.job,
            request: call.request_id,
            owner: call.spec.owner.id().to_owned(),
            account: call.account.clone(),
        });
        if let Some(answer) = api.refusal(call, world.now()) {
            return Reply::Answered(answer);
        }
        let fate = api.fate(call.timeout, world.is_calm());
        world.note("api", &format!("will {:?} {}", fate.answer, call.request_id));
        // Dropped when the caller stops waiting, whatever the reason.
        let (_watching, watched) = oneshot::channel();
        if fate.answer != Said::NotSent {
            tokio::spawn(serve(UnderWay::new(world), call.clone(), fate.clone(), watched));
        }
        if fate.answered_after >= call.timeout {
            sleep(call.timeout).await;
            return Reply::NoAnswer("no answer in time".to_owned());
        }
        sleep(fate.answered_after).await;
        // The tool has done its part before it is answered.
        tokio::task::yield_now().await;
        match fate.answer {
            Said::Success | Said::ToolFailed(_) => {
                Reply::Answered(answer(200, Body::Result(result(call, fate.answer))))
            }
            Said::Throttled => {
                let mut answer = error(429, "HTTP_TooManyRequests");
                answer.retry_after = api.rng.chance(0.5).then(|| api.rng.up_to(Duration::from_secs(90)));
                Reply::Answered(answer)
            }
            Said::Refused => Reply::Answered(error(400, "Tool_InvalidArguments")),
            Said::Gateway(status) | Said::Failing(status) => Reply::Answered(answer(status, Body::Opaque)),
            Said::Garbage => Reply::Answered(answer(200, Body::Opaque)),
            Said::Broken(status) => Reply::Answered(answer(status, Body::Broken("cut off".to_owned()))),
            Said::TooLarge => Reply::Answered(answer(200, Body::TooLarge)),
            // Without the hook, which would print it.
            Said::Panic => std::panic::resume_unwind(Box::new("a panic of the simulated client")),
            Said::NotSent => Reply::NotSent("connection refused".to_owned()),
            Said::Reset => Reply::NoAnswer("connection reset".to_owned()),
        }
    }

    /// Some time passes, and the question fails or not.
    async fn ask<T: Send>(
        &self,
        question: impl FnOnce(&Api, Duration) -> Result<T, ToolError> + Send,
    ) -> Result<T, ToolError> {
        let (world, rng) = (&self.world, &self.world.api.rng);
        sleep(rng.up_to(Duration::from_millis(200))).await;
        if !world.is_calm() && rng.chance(world.api.weather.lookups) {
            sleep(rng.up_to(Duration::from_secs(20))).await;
            let retry_after = rng.chance(0.5).then(|| rng.up_to(Duration::from_secs(30)));
            return Err(match rng.below(2) {
                0 => ToolError::Throttled { retry_after },
                _ => ToolError::Unavailable("no answer".to_owned()),
            });
        }
        question(&world.api, world.now())
    }
}

/// A process that was killed hears of nothing any more, and its calls are no longer waited for.
macro_rules! unless_killed {
    ($self:ident, $future:expr) => {
        tokio::select! {
            biased;
            () = $self.life.dead.cancelled() => std::future::pending().await,
            answer = $future => answer,
        }
    };
}

#[async_trait]
impl ToolApi for Line {
    fn address(&self) -> String {
        "simulated".to_owned()
    }

    async fn execute(&self, call: &Call) -> Reply {
        let under_way = self.call(call);
        let dead = &self.life.dead;
        tokio::select! {
            biased;
            () = dead.cancelled() => {}
            reply = under_way => return reply,
        }
        // The connection ended with the process.
        std::future::pending().await
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        unless_killed!(
            self,
            self.ask(|_, _| {
                let found =
                    TOOLS.iter().find(|(name, ..)| *name == slug && version.is_none_or(|v| v == VERSION));
                let (slug, toolkit, tags) = found.ok_or_else(|| ToolError::NotFound(Box::default()))?;
                Ok(ToolInfo {
                    slug: (*slug).to_owned(),
                    name: String::new(),
                    description: String::new(),
                    toolkit: (*toolkit).to_owned(),
                    version: VERSION.to_owned(),
                    available_versions: vec![VERSION.to_owned()],
                    tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                    input_schema: None,
                    no_auth: *toolkit == OPEN_TOOLKIT,
                    deprecated: false,
                })
            })
        )
    }

    async fn toolkit(&self, _slug: &str, _version: Option<&str>) -> Result<ToolkitInfo, ToolError> {
        Err(ToolError::NotFound(Box::default()))
    }

    async fn accounts(&self, owners: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError> {
        unless_killed!(
            self,
            self.ask(|api, now| {
                let mine = api.accounts.iter().filter(|account| {
                    owners.contains(&account.owner)
                        && toolkit.is_none_or(|slug| slug == account.toolkit)
                        && account.from <= now
                });
                let accounts = mine.map(|account| shown(account, now)).collect();
                Ok(AccountList { accounts, is_whole: true, pages: 1 })
            })
        )
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        unless_killed!(
            self,
            self.ask(|api, now| {
                let found = api.accounts.iter().find(|account| account.id == id && account.from <= now);
                found.map(|account| shown(account, now)).ok_or_else(|| ToolError::NotFound(Box::default()))
            })
        )
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        let calm_at = self.world.calm_at;
        unless_killed!(
            self,
            self.ask(|api, now| match api.log(now, calm_at) {
                Log::Closed => Err(ToolError::Refused { status: 403, error: Box::default() }),
                Log::Blind => Ok(None),
                Log::Open =>
                    Ok(api.ledger().log.get(&request_id).filter(|entry| entry.from <= now).map(|entry| {
                        Execution {
                            log_id: "log_1".to_owned(),
                            tool: Some(entry.tool.clone()),
                            result: Some(entry.result.clone()),
                        }
                    })),
            })
        )
    }

    async fn check(&self) -> Result<ApiCheck, ToolError> {
        unless_killed!(self, self.ask(|_, _| Ok(ApiCheck { date: None, took: Duration::ZERO })))
    }
}

fn shown(account: &Connected, now: Duration) -> Account {
    let status = if account.is_usable(now) { "ACTIVE" } else { "EXPIRED" };
    Account {
        id: account.id.clone(),
        user_id: Some(account.owner.to_owned()),
        toolkit: account.toolkit.to_owned(),
        status: status.to_owned(),
        status_reason: None,
        disabled: false,
        created_at: Timestamp::UNIX_EPOCH + account.from,
    }
}
