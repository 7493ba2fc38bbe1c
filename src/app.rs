//! Wires the parts together. The only place that names a concrete backend.

use anyhow::{Result, bail};

use crate::{
    config::Config, enqueue::Rules, job::OwnerPolicy, queue::SharedQueue, store::SharedStore,
    tool::SharedToolApi,
};

/// The store that the configuration names. Connects when it is first used.
pub fn open_store(_config: &Config) -> Result<SharedStore> {
    bail!("no store backend is built in")
}

/// The broker that the configuration names. Connects when it is first used.
pub fn open_queue(_config: &Config) -> Result<SharedQueue> {
    bail!("no queue backend is built in")
}

/// The tool API that the configuration names.
pub fn open_tool_api(_config: &Config) -> Result<SharedToolApi> {
    bail!("no tool API is built in")
}

/// The rules of admission that the configuration names.
pub fn rules(config: &Config) -> Rules {
    Rules {
        owners: OwnerPolicy {
            allow_default: config.owners.allow_default,
            refuse_email: config.owners.refuse_email,
        },
        owned_by: config
            .toolkits
            .iter()
            .filter_map(|(slug, toolkit)| toolkit.owned_by.map(|kind| (slug.clone(), kind)))
            .collect(),
    }
}
