//! The tool API that the workers call, and whose ledger knows what really happened.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::sandbox::{DEFAULT_WORLD, Options, Running, Sandbox, World};

/// How long a request to the tool API's own controls may take.
const CONTROL: Duration = Duration::from_secs(10);

/// The key that the sandbox's default world accepts.
const SANDBOX_KEY: &str = "ak_test_good";

/// Calls that the sandbox answers with a fault, of a hundred of each line.
const FAULT_RATE: f64 = 0.04;

/// Which tool API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// errand's own sandbox.
    Sandbox,
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
pub(super) struct Errand {
    pub(super) body: Value,
    /// Whether it must not take effect twice.
    pub(super) once: bool,
}

/// A tool API of one round.
#[derive(Debug)]
pub(super) enum Target {
    Sandbox { running: Running, http: reqwest::Client },
}

impl Target {
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
        }
    }

    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Sandbox { running, .. } => running.addr.port(),
        }
    }

    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Sandbox { .. } => SANDBOX_KEY,
        }
    }

    /// The n-th job: most are such that must not be repeated.
    pub(super) fn errand(&self, n: usize) -> Errand {
        let user = format!("user-{}", n % 20 + 1);
        let org = format!("org-{}", n % 3 + 1);
        let (body, once) = match n % 6 {
            0 => (
                json!({"user_id": user, "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": format!("r{n}")}}),
                false,
            ),
            1 => (
                json!({"user_id": user, "tool": "NOTION_UPDATE_PAGE", "arguments": {"page_id": format!("p{n}")}}),
                false,
            ),
            2 | 3 => (
                json!({"org_id": org, "tool": "SLACK_SEND_MESSAGE",
                       "arguments": {"channel": "C01", "text": format!("report {n}")}}),
                true,
            ),
            _ => (
                json!({"user_id": user, "tool": "GMAIL_SEND_EMAIL",
                       "arguments": {"recipient_email": "a@example.com", "subject": "s", "body": format!("mail {n}")}}),
                true,
            ),
        };
        Errand { body, once }
    }

    /// How often a job took effect.
    pub(super) fn effects(&self, job: &str) -> u32 {
        match self {
            Self::Sandbox { running, .. } => running.job_effects(job),
        }
    }

    /// Calls go wrong in every way from now on.
    pub(super) async fn misbehave(&self) -> Result<()> {
        match self {
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
        self.answer_after(Duration::from_millis(20), Duration::from_millis(300)).await
    }

    /// Calls go well from now on, and take between `least` and `most`.
    pub(super) async fn answer_after(&self, least: Duration, most: Duration) -> Result<()> {
        match self {
            Self::Sandbox { running, http } => {
                let wait = json!({"kind": "latency", "min_ms": millis(least), "max_ms": millis(most)});
                put(http, running, "faults", &json!({ "faults": [wait] })).await
            }
        }
    }

    /// Changes how the execution log behaves.
    pub(super) async fn set_log(&self, log: Log) -> Result<()> {
        match self {
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn put(http: &reqwest::Client, sandbox: &Running, what: &str, body: &Value) -> Result<()> {
    let url = format!("{}/_sandbox/{what}", sandbox.base_url());
    let answer = http.put(url).json(body).send().await.context("the sandbox does not answer")?;
    answer.error_for_status().context("the sandbox refuses a setting")?;
    Ok(())
}
