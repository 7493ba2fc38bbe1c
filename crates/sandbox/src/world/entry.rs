//! Entries of a world file that are not yet what the world has: they name what other entries declare, or stand
//! for many.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::Deserialize;
use toml::Table;

use super::Status;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolEntry {
    pub(super) slug: Arc<str>,
    pub(super) toolkit: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    pub(super) no_auth: Option<bool>,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    #[serde(default)]
    pub(super) removed: bool,
    #[serde(default)]
    pub(super) deprecated: bool,
    #[serde(default)]
    pub(super) important: bool,
    #[serde(default)]
    pub(super) tags: Vec<String>,
    #[serde(default)]
    pub(super) scopes: Vec<String>,
    #[serde(default)]
    pub(super) required: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) optional: BTreeMap<String, String>,
    pub(super) result: Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountEntry {
    pub(super) id: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) toolkit: Arc<str>,
    pub(super) auth_config: Option<Arc<str>>,
    #[serde(default)]
    pub(super) status: Status,
    pub(super) created_at: Option<Timestamp>,
    pub(super) shared_with: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RangeEntry {
    pub(super) user: String,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) toolkit: Arc<str>,
    pub(super) id: Option<String>,
    pub(super) auth_config: Option<Arc<str>>,
    #[serde(default)]
    pub(super) status: Status,
    pub(super) created_at: Option<Timestamp>,
}
