//! Every setting: its name, its type and its bounds. `default.toml` has its default and says what it means.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{
    error::{AllMissing, Missing},
    rule::Rule::{
        self, Address, ApiKey, BaseUrl, Filter, Flag, Lanes, Networks, Number, Origins, OwnerPatterns, Path,
        Prefixes, Role, Schema, Service, Text, Version, Whole, Word,
    },
};
use crate::{
    bounds::{MAX_AGE, MAX_ATTEMPTS, MAX_TIMEOUT},
    callback::Network,
    job::{OwnerKind, QueueName, QueueType},
    store::{Recording, postgres::SchemaName},
    telemetry::logging::LogFormat,
    tool::{arguments::ArgumentCheck, catalog::UnpinnedPolicy, composio::HttpVersion, pin::VersionMap},
};

/// Most calls that one worker process runs at once for one lane.
const MAX_CONCURRENCY: i64 = 20_000;

/// Most jobs per round of the relay or the rescue.
const MAX_BATCH: i64 = 10_000;

/// The longest retention but for ever.
const MAX_DAYS: i64 = 36_500;

const DAY_SECS: i64 = 86_400;
const DAY_MS: i64 = DAY_SECS * 1_000;

/// All settings. Field by field the same as `default.toml`, which is the manual.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub store: Store,
    pub amqp: Amqp,
    pub queues: BTreeMap<QueueName, Lane>,
    pub worker: Worker,
    pub relay: Relay,
    pub replies: Replies,
    pub publishers: BTreeMap<String, Vec<String>>,
    pub rescue: Rescue,
    pub verify: Verify,
    pub audit: Audit,
    pub retention: Retention,
    pub owner_retention: BTreeMap<String, OwnerRetention>,
    pub connections: Connections,
    pub circuit_breaker: CircuitBreaker,
    pub retry: Retry,
    pub composio: Composio,
    pub arguments: Arguments,
    pub events: Events,
    pub callbacks: Callbacks,
    pub pins: Pins,
    pub toolkit_versions: VersionMap,
    pub toolkits: BTreeMap<String, Toolkit>,
    pub owners: Owners,
    pub api: Api,
    pub http: Http,
    pub log: Log,
    pub runtime: Runtime,
    /// Pins from `COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>`; not a setting of the file.
    #[serde(skip)]
    pub env_pins: VersionMap,
    /// The file that `composio.api_key` was read from, if it is in one; not a setting of its own.
    #[serde(skip)]
    pub api_key_file: Option<PathBuf>,
    /// Whether log lines may have colors where a terminal is (`NO_COLOR` is not set); not a setting of the file.
    #[serde(skip)]
    pub colors: bool,
}

impl Config {
    /// An error if no database is configured.
    pub fn require_store(&self) -> Result<(), Missing> {
        if self.store.url.expose_secret().is_empty() { Err(Missing::Store) } else { Ok(()) }
    }

    /// An error if no broker is configured.
    pub fn require_amqp(&self) -> Result<(), Missing> {
        if self.has_amqp() { Ok(()) } else { Err(Missing::Amqp) }
    }

    /// An error if no key for the tool API is configured.
    pub fn require_api_key(&self) -> Result<(), Missing> {
        if self.composio.api_key.expose_secret().is_empty() { Err(Missing::ApiKey) } else { Ok(()) }
    }

    /// An error that names everything that a worker needs and that is not set.
    pub fn require_worker(&self) -> Result<(), AllMissing> {
        let needed = [self.require_store(), self.require_amqp(), self.require_api_key()];
        let missing: Vec<Missing> = needed.into_iter().filter_map(Result::err).collect();
        if missing.is_empty() { Ok(()) } else { Err(AllMissing(missing)) }
    }

    /// Whether this process records the events of what it writes.
    pub fn records_events(&self) -> bool {
        match self.events.record {
            Recording::Off => false,
            Recording::Listeners => self.events.exchange || self.callbacks.enabled,
            Recording::All => true,
        }
    }

    pub fn has_amqp(&self) -> bool {
        !self.amqp.url.expose_secret().is_empty()
    }

    /// Whether jobs reach workers through a broker, and not by the relay of a process that uses the same store.
    pub fn uses_broker(&self) -> bool {
        self.has_amqp() && !self.store_is_sqlite()
    }

    /// Whether the store is a SQLite file, which only the processes of one machine share.
    pub fn store_is_sqlite(&self) -> bool {
        self.store.url.expose_secret().starts_with("sqlite://")
    }
}

/// Declares the sections of `default.toml`, in its order: a struct for each, and the rule of each of its settings. A
/// `*` stands for a name that people choose; a `map` has nothing but such names.
macro_rules! settings {
    ($(
        struct $name:ident $section:tt { $($(#[$attr:meta])* $key:ident: $type:ty = $rule:expr,)* }
        $(map $map:tt = $map_rule:expr;)?
    )*) => {
        $(
            #[derive(Debug, Clone, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name { $($(#[$attr])* pub $key: $type,)* }
        )*

        /// The rule of every setting, in the order of `default.toml`.
        pub(super) const SETTINGS: &[(&[&str], Rule)] = &[$(
            $((path!($section $key), $rule),)*
            $((path!($map), $map_rule),)?
        )*];
    };
}

macro_rules! path {
    ([$($part:tt)+] $($key:ident)?) => { &[$(stringify!($part),)+ $(stringify!($key))?] };
}

settings! {
    struct Store [store] {
        url: SecretString = Service(&["postgres", "postgresql", "sqlite"]),
        schema: SchemaName = Schema,
        tenant_role: String = Role,
        hot_connections: u32 = Whole(1, 1_000),
        other_connections: u32 = Whole(1, 1_000),
        migrate_at_start: bool = Flag,
        statement_timeout_ms: u64 = Whole(100, 3_600_000),
    }
    struct Amqp [amqp] {
        url: SecretString = Service(&["amqp", "amqps"]),
        queue_type: QueueType = Word(QueueType::WORDS),
        declare: bool = Flag,
        heartbeat_secs: u16 = Whole(1, 3_600),
        management_url: SecretString = Service(&["http", "https"]),
    }
    struct Lane [queues *] {
        concurrency: u32 = Whole(1, MAX_CONCURRENCY),
    }
    struct Worker [worker] {
        name: String = Text,
        queues: Vec<QueueName> = Lanes,
        lease_secs: u64 = Whole(2, 3_600),
        heartbeat_secs: u64 = Whole(1, 600),
        drain_secs: u64 = Whole(0, 3_600),
        accept_unidentified: bool = Flag,
        max_buffered_bytes: u64 = Whole(65_536, 1 << 36),
        #[serde(deserialize_with = "unless_empty")]
        journal_dir: Option<PathBuf> = Text,
    }
    struct Relay [relay] {
        poll_ms: u64 = Whole(10, 60_000),
        batch: usize = Whole(1, MAX_BATCH),
        unclaimed_secs: u64 = Whole(1, 3_600),
    }
    struct Replies [replies] {
        allowed: Vec<String> = Prefixes,
        held: bool = Flag,
    }
    map [publishers *] = OwnerPatterns;
    struct Rescue [rescue] {
        poll_secs: u64 = Whole(1, 3_600),
        batch: usize = Whole(1, MAX_BATCH),
    }
    struct Verify [verify] {
        enabled: bool = Flag,
        poll_ms: u64 = Whole(10, 3_600_000),
        batch: usize = Whole(1, 100),
        first_ms: u64 = Whole(1, 3_600_000),
        max_ms: u64 = Whole(1, 3_600_000),
        log_delay_secs: u64 = Whole(0, DAY_SECS),
        give_up_secs: u64 = Whole(0, 30 * DAY_SECS),
    }
    struct Audit [audit] {
        enabled: bool = Flag,
        every_secs: u64 = Whole(1, DAY_SECS),
        repair: bool = Flag,
    }
    struct Retention [retention] {
        succeeded_days: u64 = Whole(0, MAX_DAYS),
        failed_days: u64 = Whole(0, MAX_DAYS),
        cancelled_days: u64 = Whole(0, MAX_DAYS),
        rejected_days: u64 = Whole(0, MAX_DAYS),
        rejected_count: u64 = Whole(0, 1_000_000_000),
        rejected_bytes: u64 = Whole(0, 1 << 50),
        audit_log_days: u64 = Whole(0, MAX_DAYS),
        events_days: u64 = Whole(0, MAX_DAYS),
        every_secs: u64 = Whole(1, DAY_SECS),
    }
    struct OwnerRetention [owner_retention *] {
        succeeded_days: Option<u64> = Whole(0, MAX_DAYS),
        failed_days: Option<u64> = Whole(0, MAX_DAYS),
        cancelled_days: Option<u64> = Whole(0, MAX_DAYS),
    }
    struct Connections [connections] {
        enabled: bool = Flag,
        poll_ms: u64 = Whole(10, 3_600_000),
        batch: usize = Whole(1, 100),
        first_ms: u64 = Whole(1, DAY_MS),
        max_ms: u64 = Whole(1, DAY_MS),
    }
    struct CircuitBreaker [circuit_breaker] {
        after: u32 = Whole(1, 1_000_000),
        first_ms: u64 = Whole(1, 3_600_000),
        max_ms: u64 = Whole(1, 3_600_000),
    }
    struct Retry [retry] {
        initial_ms: u64 = Whole(1, DAY_MS),
        max_ms: u64 = Whole(1, DAY_MS),
        multiplier: f64 = Number(1.0, 100.0),
        jitter: f64 = Number(0.0, 1.0),
        max_attempts: u32 = Whole(1, MAX_ATTEMPTS as i64),
        max_retry_after_secs: u64 = Whole(1, 7 * DAY_SECS),
        max_throttled_secs: u64 = Whole(1, MAX_AGE.as_secs() as i64),
    }
    struct Composio [composio] {
        base_url: String = BaseUrl,
        api_key: SecretString = ApiKey,
        api_path: String = Path,
        http_version: HttpVersion = Word(HttpVersion::WORDS),
        timeout_ms: u64 = Whole(1, MAX_TIMEOUT.as_millis() as i64),
        connect_timeout_ms: u64 = Whole(1, MAX_TIMEOUT.as_millis() as i64),
        max_response_bytes: usize = Whole(1_024, 1 << 28),
        tool_cache_secs: u64 = Whole(0, 7 * DAY_SECS),
        account_cache_secs: u64 = Whole(0, DAY_SECS),
    }
    struct Arguments [arguments] {
        check: ArgumentCheck = Word(ArgumentCheck::WORDS),
    }
    struct Events [events] {
        record: Recording = Word(Recording::WORDS),
        exchange: bool = Flag,
    }
    struct Callbacks [callbacks] {
        enabled: bool = Flag,
        allowed_networks: Vec<Network> = Networks,
        refused_networks: Vec<Network> = Networks,
        timeout_ms: u64 = Whole(100, 60_000),
    }
    struct Pins [pins] {
        unpinned: UnpinnedPolicy = Word(UnpinnedPolicy::WORDS),
    }
    map [toolkit_versions *] = Version;
    struct Toolkit [toolkits *] {
        owned_by: Option<OwnerKind> = Word(OwnerKind::WORDS),
    }
    struct Owners [owners] {
        allow_default: bool = Flag,
        refuse_email: bool = Flag,
    }
    struct Api [api] {
        #[serde(deserialize_with = "unless_empty")]
        listen: Option<SocketAddr> = Address,
        cors_origins: Vec<String> = Origins,
        requests_per_second: u32 = Whole(0, 1_000_000),
        #[serde(deserialize_with = "unless_empty")]
        tls_certificate: Option<PathBuf> = Text,
        #[serde(deserialize_with = "unless_empty")]
        tls_key: Option<PathBuf> = Text,
    }
    struct Http [http] {
        #[serde(deserialize_with = "unless_empty")]
        listen: Option<SocketAddr> = Address,
    }
    struct Log [log] {
        format: LogFormat = Word(LogFormat::WORDS),
        level: String = Filter,
    }
    struct Runtime [runtime] {
        threads: usize = Whole(0, 1_024),
    }
}

/// An empty text switches off what the setting is for.
fn unless_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    (!text.is_empty()).then(|| text.parse().map_err(serde::de::Error::custom)).transpose()
}
