//! Configuration: one annotated `default.toml` holds every setting, its default and its meaning; a
//! file and the environment overlay it. Only this module reads the environment.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    job::{OwnerKind, QueueName, QueueType},
    telemetry::logging::LogFormat,
    tool::{catalog::UnpinnedPolicy, composio::HttpVersion},
};

mod error;
mod load;
mod setting;
mod show;

pub use error::{ConfigErrors, Missing, Mistake, Origin};
pub use load::{DEFAULTS, Loaded, Sources, load, load_text};
pub use show::mask_url;

/// All settings. Field by field the same as `default.toml`, which is the manual.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub store: Store,
    pub amqp: Amqp,
    pub queues: BTreeMap<QueueName, Lane>,
    pub worker: Worker,
    pub relay: Relay,
    pub rescue: Rescue,
    pub verify: Verify,
    pub audit: Audit,
    pub connections: Connections,
    pub outage: Outage,
    pub retry: Retry,
    pub composio: Composio,
    pub pins: Pins,
    pub toolkit_versions: BTreeMap<String, String>,
    pub toolkits: BTreeMap<String, Toolkit>,
    pub owners: Owners,
    pub http: Http,
    pub log: Log,
    pub runtime: Runtime,
    /// Pins from `COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>`; not a setting of the file.
    #[serde(skip)]
    pub env_pins: BTreeMap<String, String>,
}

/// `[store]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub url: SecretString,
    pub hot_connections: u32,
    pub other_connections: u32,
    pub migrate_at_start: bool,
    pub statement_timeout_ms: u64,
}

/// `[amqp]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amqp {
    pub url: SecretString,
    pub queue_type: QueueType,
    pub declare: bool,
    pub heartbeat_secs: u16,
}

/// `[queues.<name>]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    pub concurrency: u32,
}

/// `[worker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    pub name: String,
    pub queues: Vec<QueueName>,
    pub lease_secs: u64,
    pub heartbeat_secs: u64,
    pub drain_secs: u64,
    pub accept_unidentified: bool,
    pub max_buffered_bytes: u64,
    #[serde(deserialize_with = "folder")]
    pub journal_dir: Option<PathBuf>,
}

/// `[relay]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    pub poll_ms: u64,
    pub batch: usize,
    pub unclaimed_secs: u64,
}

/// `[verify]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    pub enabled: bool,
    pub poll_ms: u64,
    pub batch: usize,
    pub first_ms: u64,
    pub max_ms: u64,
    pub settle_secs: u64,
    pub give_up_secs: u64,
}

/// `[connections]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    pub enabled: bool,
    pub poll_ms: u64,
    pub batch: usize,
    pub first_ms: u64,
    pub max_ms: u64,
}

/// `[outage]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    pub after: u32,
    pub first_ms: u64,
    pub max_ms: u64,
}

/// `[rescue]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescue {
    pub poll_secs: u64,
    pub batch: usize,
}

/// `[audit]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    pub enabled: bool,
    pub every_secs: u64,
    pub repair: bool,
}

/// `[retry]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    pub initial_ms: u64,
    pub max_ms: u64,
    pub multiplier: f64,
    pub jitter: f64,
    pub max_attempts: u32,
    pub max_retry_after_secs: u64,
    pub max_throttled_secs: u64,
}

/// `[composio]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composio {
    pub base_url: String,
    pub api_key: SecretString,
    pub api_path: String,
    pub http_version: HttpVersion,
    pub timeout_ms: u64,
    pub connect_timeout_ms: u64,
    pub max_response_bytes: usize,
    pub tool_cache_secs: u64,
    pub account_cache_secs: u64,
}

/// `[pins]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    pub unpinned: UnpinnedPolicy,
}

/// `[toolkits.<slug>]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toolkit {
    pub owned_by: Option<OwnerKind>,
}

/// `[owners]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    pub allow_default: bool,
    pub refuse_email: bool,
}

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    #[serde(deserialize_with = "listen_address")]
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
    /// Colors are welcome where a terminal is (`NO_COLOR` is not set); not a setting of the file.
    #[serde(skip)]
    pub colors: bool,
}

/// `[runtime]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub threads: usize,
}

/// An empty name switches off what the folder is for.
fn folder<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!text.is_empty()).then(|| text.into()))
}

/// An empty address switches a listener off.
fn listen_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        serde::de::Error::custom("must be an address and a port such as 127.0.0.1:9464, or empty")
    })
}
