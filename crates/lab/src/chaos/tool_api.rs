//! The tool API that the workers call, and whose ledger knows what really happened.

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand::job::{JobId, Owner, OwnerKind};
use errand_sandbox::{DEFAULT_WORLD, Options, Running, Sandbox, World};
use errand_testbed::second_api::{self, SecondApi};
use serde_json::{Value, json};

use super::fault::Fault;

/// How long a request to the tool API's own controls may take.
const CONTROL: Duration = Duration::from_secs(10);

/// The key that the sandbox's default world accepts.
const SANDBOX_KEY: &str = "ak_test_good";

/// How long the second API hangs: longer than workers wait.
const SECOND_API_HANG: Duration = Duration::from_secs(5);

/// How late an effect of the second API may be, and its entry in the log. Twice this is well below the time
/// after which workers trust the log, whatever else holds a call up.
const SECOND_API_LATE: Duration = Duration::from_millis(500);

/// How long the second API's log shows nothing at a time.
const SECOND_API_BLACKOUT: Duration = Duration::from_secs(3);

/// A large result, in bytes. A few of them are more than one write carries.
const LARGE_RESULT: usize = 2_500_000;

/// How many owners there are of each kind.
const USERS: usize = 20;
const ORGS: usize = 3;

/// Calls that the sandbox answers with a fault, of a hundred of each line.
const FAULT_RATE: f64 = 0.04;

/// Which tool API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// errand's own sandbox.
    Sandbox,
    /// A second one by another hand, which shares no code with the first and misbehaves in its own ways.
    SecondApi,
}

impl Kind {
    /// Whether rounds of this kind can be played with it: only the sandbox's log can be told what to do.
    pub(crate) fn knows(self, fault: Fault) -> bool {
        let needs_sandbox =
            matches!(fault, Fault::LogsLate | Fault::LogsRefused | Fault::LogsLost | Fault::LargeResults);
        self == Self::Sandbox || !needs_sandbox
    }
}

/// How the execution log behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// Entries are there at once.
    Prompt,
    /// Entries are there after this time.
    Late(Duration),
    /// It cannot be read.
    Refused,
    /// No entry is kept.
    Lost,
}

/// What an app would send, but for its ID.
#[derive(Debug)]
pub(super) struct SampleJob {
    pub(super) body: Value,
    /// Whether it must not take effect twice.
    pub(super) once: bool,
}

/// A tool API of one round.
#[derive(Debug)]
pub(super) enum ToolApi {
    Sandbox { running: Running, http: reqwest::Client },
    SecondApi(second_api::Running),
}

impl ToolApi {
    pub(super) async fn start(kind: Kind, seed: u64) -> Result<Self> {
        match kind {
            Kind::Sandbox => {
                let world = World::from_toml(DEFAULT_WORLD).context("the sandbox's world is damaged")?;
                let running = Sandbox::new(world, Options { seed })
                    .bind(([127, 0, 0, 1], 0).into())
                    .await
                    .context("cannot listen on a free port of 127.0.0.1")?;
                let http = reqwest::Client::builder().timeout(CONTROL).no_proxy().build()?;
                let target = Self::Sandbox { running, http };
                target.heal().await?;
                Ok(target)
            }
            Kind::SecondApi => {
                let options = second_api::Options {
                    seed,
                    hang: SECOND_API_HANG,
                    late: SECOND_API_LATE,
                    log_delay: SECOND_API_LATE,
                    log_blackout: SECOND_API_BLACKOUT,
                    ..second_api::Options::default()
                };
                let running =
                    SecondApi::bind(options).await.context("cannot listen on a free port of 127.0.0.1")?;
                running.heal();
                Ok(Self::SecondApi(running))
            }
        }
    }

    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Sandbox { running, .. } => running.addr.port(),
            Self::SecondApi(running) => running.port(),
        }
    }

    pub(super) fn key(&self) -> &str {
        match self {
            Self::Sandbox { .. } => SANDBOX_KEY,
            Self::SecondApi(running) => running.api_key(),
        }
    }

    /// The n-th job: most are such that must not be repeated.
    pub(super) fn errand(&self, id: JobId, n: usize) -> SampleJob {
        let user = user(n);
        let org = org(n);
        let (mut body, once) = match (self, n % 6) {
            (Self::Sandbox { .. }, 0) => (
                json!({"user_id": user, "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": format!("r{n}")}}),
                false,
            ),
            (Self::Sandbox { .. }, 1) => (
                json!({"user_id": user, "tool": "NOTION_UPDATE_PAGE", "arguments": {"page_id": format!("p{n}")}}),
                false,
            ),
            (Self::Sandbox { .. }, 2 | 3) => (
                json!({"org_id": org, "tool": "SLACK_SEND_MESSAGE",
                       "arguments": {"channel": "C01", "text": format!("report {n}")}}),
                true,
            ),
            (Self::Sandbox { .. }, _) => (
                json!({"user_id": user, "tool": "GMAIL_SEND_EMAIL",
                       "arguments": {"recipient_email": "a@example.com", "subject": "s", "body": format!("mail {n}")}}),
                true,
            ),
            (Self::SecondApi(_), of_six) => {
                let tool = second_api::TOOLS[of_six % second_api::TOOLS.len()];
                let owner = if of_six < 3 { ("user_id", user) } else { ("org_id", org) };
                (
                    json!({owner.0: owner.1, "tool": tool, "arguments": {"job": id}}),
                    second_api::ONCE_TOOLS.contains(&tool),
                )
            }
        };
        body["id"] = json!(id);
        SampleJob { body, once }
    }

    /// How often a job took effect.
    pub(super) fn effects(&self, job: &str) -> u64 {
        match self {
            Self::Sandbox { running, .. } => running.job_effects(job).into(),
            Self::SecondApi(running) => running.effects_of(job),
        }
    }

    /// What calls said that they must not say, a line each.
    pub(super) fn complaints(&self) -> Vec<String> {
        let Self::SecondApi(running) = self else { return Vec::new() };
        let second_api::Summary { confused, strangers, unpinned, repeated_requests, .. } = running.summary();
        [
            (confused, "calls named another job than the one that they were for"),
            (strangers, "calls used an account of another owner"),
            (unpinned, "calls named no version"),
            (repeated_requests, "request IDs were sent more than once"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }

    /// Calls go wrong in every way from now on.
    pub(super) async fn misbehave(&self) -> Result<()> {
        match self {
            Self::SecondApi(running) => {
                running.misbehave();
                Ok(())
            }
            Self::Sandbox { running, http } => {
                let rate = FAULT_RATE;
                let faults = json!([
                    {"kind": "latency", "min_ms": 20, "max_ms": 300},
                    {"kind": "reset", "after_effect": true, "rate": rate},
                    {"kind": "reset", "after_effect": false, "rate": rate},
                    {"kind": "hang", "after_effect": true, "rate": rate},
                    {"kind": "hang", "after_effect": false, "rate": rate},
                    {"kind": "status", "status": 500, "after_effect": true, "rate": rate},
                    {"kind": "status", "status": 502, "body": "html", "rate": rate},
                    {"kind": "status", "status": 503, "body": "empty", "after_effect": true, "rate": rate},
                    {"kind": "malformed", "form": "truncated_json", "rate": rate},
                    {"kind": "malformed", "form": "truncated_body", "rate": rate},
                    {"kind": "malformed", "form": "not_json", "rate": rate},
                    {"kind": "throttle", "retry_after": "1", "rate": rate},
                    {"kind": "provider_failure", "provider_status": 503, "rate": rate},
                ]);
                put(http, running, "faults", &json!({ "faults": faults })).await
            }
        }
    }

    /// Calls go well from now on, and take the time that calls take.
    pub(super) async fn heal(&self) -> Result<()> {
        match self {
            Self::Sandbox { running, http } => answer_within(http, running, 20, 300).await,
            Self::SecondApi(running) => {
                running.heal();
                Ok(())
            }
        }
    }

    /// From now on every call, or with the second API some, can be interrupted before it is answered.
    pub(super) async fn be_slow(&self) -> Result<()> {
        match self {
            Self::Sandbox { running, http } => answer_within(http, running, 200, 400).await,
            Self::SecondApi(_) => self.misbehave().await,
        }
    }

    /// From now on every third result is large: up to a third of what errand takes.
    pub(super) async fn be_large(&self) -> Result<()> {
        let Self::Sandbox { running, http } = self else { return Ok(()) };
        let faults = json!([
            {"kind": "latency", "min_ms": 20, "max_ms": 300},
            {"kind": "large", "bytes": LARGE_RESULT, "rate": 0.33},
        ]);
        put(http, running, "faults", &json!({ "faults": faults })).await
    }

    /// Changes how the execution log behaves. That of the second API follows its misbehaviour.
    pub(super) async fn set_log(&self, log: Log) -> Result<()> {
        match self {
            Self::SecondApi(_) => Ok(()),
            Self::Sandbox { running, http } => {
                let settings = match log {
                    Log::Prompt => json!({}),
                    Log::Late(delay) => json!({"delay_ms": millis(delay)}),
                    Log::Refused => json!({"refuse_status": 503}),
                    Log::Lost => json!({"lose_rate": 1.0}),
                };
                put(http, running, "logs", &settings).await
            }
        }
    }
}

/// Whose jobs there are.
pub(super) fn owners() -> Result<Vec<Owner>> {
    let users = (0..USERS).map(|n| Owner::new(OwnerKind::User, user(n)));
    let orgs = (0..ORGS).map(|n| Owner::new(OwnerKind::Org, org(n)));
    Ok(users.chain(orgs).collect::<Result<_, _>>()?)
}

/// The owner of the n-th job, if it is a user's, and if it is an organization's.
fn user(n: usize) -> String {
    format!("user-{}", n % USERS + 1)
}

fn org(n: usize) -> String {
    format!("org-{}", n % ORGS + 1)
}

async fn answer_within(http: &reqwest::Client, sandbox: &Running, least: u64, most: u64) -> Result<()> {
    let wait = json!({"kind": "latency", "min_ms": least, "max_ms": most});
    put(http, sandbox, "faults", &json!({ "faults": [wait] })).await
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn put(http: &reqwest::Client, sandbox: &Running, what: &str, body: &Value) -> Result<()> {
    let url = format!("{}/_sandbox/{what}", sandbox.base_url());
    let answer = http.put(url).json(body).send().await.context("the sandbox does not answer")?;
    answer.error_for_status().context("the sandbox refuses a setting")?;
    Ok(())
}
