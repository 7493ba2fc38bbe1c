//! The world: which keys, toolkits, tools, users and accounts exist, and how the API behaves where
//! its documentation leaves it open.
//!
//! A world is read once from a TOML file, checked as a whole, and never changes after that. What
//! does change while the sandbox runs (the state of accounts, the ledger, the logs, the fault
//! rules) starts from it and lives elsewhere.

mod entry;
mod file;
pub(super) mod template;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fault::Rule;
use template::Template;

/// The version that every toolkit starts from, and what `/api/v3` runs when none is named.
pub(super) const BASE_VERSION: &str = "00000000_00";

/// The default world, annotated.
pub const DEFAULT_WORLD: &str = include_str!("../world.toml");

/// A checked world.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) keys: HashMap<String, Key>,
    pub(super) toolkits: BTreeMap<String, Arc<Toolkit>>,
    pub(super) tools: BTreeMap<String, Arc<Tool>>,
    pub(super) auth_configs: Vec<AuthConfig>,
    pub(super) accounts: Vec<SeedAccount>,
    pub(super) behaviour: Behaviour,
    pub(super) rate_limit: RateLimit,
    pub(super) logs: LogSettings,
    pub(super) faults: Vec<Rule>,
}

impl World {
    /// A key that may execute tools, for a line that tells the user which one to use.
    pub fn usable_key(&self) -> Option<&str> {
        let usable = |(_, key): &(&String, &Key)| key.state == KeyState::Active && key.execute;
        self.keys.iter().filter(usable).map(|(name, _)| name.as_str()).min()
    }

    /// Turns zero data retention on, whatever the file says: logs keep no payloads and no error texts.
    pub fn retain_no_data(&mut self) {
        self.logs.visibility = LogVisibility::DontStoreData;
    }
}

/// Every mistake of a world file.
#[derive(Debug, thiserror::Error)]
#[error("the world file has {} mistake(s):\n  - {}", mistakes.len(), mistakes.join("\n  - "))]
pub struct WorldError {
    /// One sentence each, in the order of the file's sections.
    pub mistakes: Vec<String>,
}

/// An API key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    pub(super) key: String,
    /// Keys of one organization share its rate limit.
    #[serde(default = "default_org")]
    pub(super) org: Arc<str>,
    #[serde(default)]
    pub(super) state: KeyState,
    /// Whether the key's scope includes executing tools.
    #[serde(default = "yes")]
    pub(super) execute: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyState {
    #[default]
    Active,
    Expired,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Toolkit {
    pub(super) slug: Arc<str>,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) no_auth: bool,
    #[serde(default = "default_schemes")]
    pub(super) auth_schemes: Vec<String>,
    #[serde(default)]
    pub(super) categories: Vec<String>,
    #[serde(default)]
    pub(super) deprecated: bool,
    #[serde(default)]
    pub(super) base_url: String,
    /// Sorted, oldest first, once the world is checked.
    pub(super) versions: Vec<Version>,
}

impl Toolkit {
    pub(super) fn latest(&self) -> &Version {
        self.versions.last().expect("a checked toolkit has a version")
    }

    /// The version that a request names, or what the name stands for.
    pub(super) fn version(&self, name: &str) -> Option<&Version> {
        if name == "latest" {
            return Some(self.latest());
        }
        self.versions.iter().find(|version| *version.version == *name)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub(super) version: Arc<str>,
    /// When it was, or will be, deprecated. Answers then carry a notice.
    pub(super) deprecated_at: Option<Timestamp>,
    pub(super) sunset_at: Option<Timestamp>,
    #[serde(default = "default_reason")]
    pub(super) reason: String,
}

#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) slug: Arc<str>,
    pub(super) toolkit: Arc<Toolkit>,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) no_auth: bool,
    /// The first version that has it; without one, all do.
    pub(super) since: Option<String>,
    /// The first version that no longer has it.
    pub(super) until: Option<String>,
    pub(super) removed: bool,
    pub(super) deprecated: bool,
    pub(super) important: bool,
    pub(super) tags: Vec<String>,
    pub(super) scopes: Vec<String>,
    pub(super) required: BTreeMap<String, String>,
    pub(super) optional: BTreeMap<String, String>,
    pub(super) result: Template,
    pub(super) effect: Effect,
}

impl Tool {
    pub(super) fn exists_at(&self, version: &str) -> bool {
        self.since.as_deref().is_none_or(|since| version >= since)
            && self.until.as_deref().is_none_or(|until| version < until)
    }
}

/// What its hint tags promise about repeating a tool. No tag proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Effect {
    /// Reads only.
    Safe,
    /// Repeating it changes nothing more.
    Idempotent,
    /// Repeating it does it again.
    Once,
}

impl Effect {
    pub(super) fn from_tags(tags: &[String]) -> Self {
        let has = |tag: &str| tags.iter().any(|found| found == tag);
        if has("readOnlyHint") {
            Self::Safe
        } else if has("idempotentHint") {
            Self::Idempotent
        } else {
            Self::Once
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthConfig {
    pub(super) id: Arc<str>,
    pub(super) toolkit: Arc<str>,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default = "default_scheme")]
    pub(super) scheme: String,
    /// Managed OAuth: accounts are made through links only.
    #[serde(default = "yes")]
    pub(super) managed: bool,
    /// No new account is connected through it; those that are go on working.
    #[serde(default)]
    pub(super) disabled: bool,
    /// When given, no other tool may be executed with accounts of this auth config.
    pub(super) allowed_tools: Option<Vec<String>>,
}

impl AuthConfig {
    /// Whether connecting an account sends its user to a consent screen.
    pub(super) fn is_oauth(&self) -> bool {
        matches!(&*self.scheme, "OAUTH1" | "OAUTH2" | "DCR_OAUTH")
    }
}

/// An account that exists from the start.
#[derive(Debug, Clone)]
pub(super) struct SeedAccount {
    pub(super) id: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) toolkit: Arc<str>,
    pub(super) auth_config: Arc<str>,
    pub(super) status: Status,
    pub(super) created_at: Timestamp,
    pub(super) shared_with: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Status {
    Initializing,
    Initiated,
    #[default]
    Active,
    Failed,
    Expired,
    Inactive,
    Revoked,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Initiated => "INITIATED",
            Self::Active => "ACTIVE",
            Self::Failed => "FAILED",
            Self::Expired => "EXPIRED",
            Self::Inactive => "INACTIVE",
            Self::Revoked => "REVOKED",
        }
    }
}

/// The choices that documentation leaves open or that changed over time.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Behaviour {
    pub(super) unknown_version: UnknownVersion,
    pub(super) unknown_account_status: u16,
    pub(super) no_account_status: u16,
    pub(super) pending_account_code: u32,
    pub(super) pending_account_slug: String,
    pub(super) inactive_executes: bool,
    pub(super) missing_argument: MissingArgument,
    pub(super) legacy_failures: bool,
    pub(super) missing_user: MissingUser,
    pub(super) versions_order: VersionsOrder,
    pub(super) legacy_initiate: bool,
    pub(super) link_ttl_seconds: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            unknown_version: UnknownVersion::NotFound,
            unknown_account_status: 400,
            no_account_status: 400,
            pending_account_code: 1706,
            pending_account_slug: "ActionExecute_ConnectedAccountInvalidState".to_owned(),
            inactive_executes: false,
            missing_argument: MissingArgument::ToolFailure,
            legacy_failures: false,
            missing_user: MissingUser::Refuse,
            versions_order: VersionsOrder::Ascending,
            legacy_initiate: false,
            link_ttl_seconds: 600,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum UnknownVersion {
    NotFound,
    BadRequest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MissingArgument {
    ToolFailure,
    BadRequest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MissingUser {
    Refuse,
    Default,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VersionsOrder {
    Ascending,
    Descending,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimit {
    pub(super) requests: u64,
    pub(super) window_seconds: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { requests: 1_000_000, window_seconds: 60 }
    }
}

/// What execution logs keep, and how they misbehave. May be changed while the sandbox runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogSettings {
    pub(super) visibility: LogVisibility,
    /// How long after its end an execution becomes visible.
    pub(super) delay_ms: u32,
    /// The fraction of executions that never become visible.
    pub(super) lose_rate: f64,
    /// Whether a search answers with the heads of logs only, as the vendor's schema has it: without what they say about
    /// the request (`context`), and without payloads.
    pub(super) brief_search: bool,
    /// The status that every log endpoint answers with, or 0.
    pub(super) refuse_status: u16,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            visibility: LogVisibility::ShowAll,
            delay_ms: 0,
            lose_rate: 0.0,
            brief_search: false,
            refuse_status: 0,
        }
    }
}

/// What the logs of executions keep, as a setting of the real API's projects names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogVisibility {
    ShowAll,
    /// Zero data retention: neither arguments nor results nor error texts.
    DontStoreData,
}

fn yes() -> bool {
    true
}

fn default_org() -> Arc<str> {
    "default".into()
}

fn default_reason() -> String {
    "lifecycle".to_owned()
}

fn default_scheme() -> String {
    "OAUTH2".to_owned()
}

fn default_schemes() -> Vec<String> {
    vec![default_scheme()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_world_is_valid_and_states_the_coded_defaults() {
        let world = World::default_world();
        assert_eq!(world.behaviour, Behaviour::default());
        assert_eq!(world.rate_limit, RateLimit::default());
        assert_eq!(world.logs, LogSettings::default());
        assert_eq!(world.usable_key(), Some("ak_test_good"));
        assert!(world.faults.is_empty(), "the default world has no faults");
    }
}
