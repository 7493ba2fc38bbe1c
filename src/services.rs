//! What one process works with.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    clock::SharedClock,
    queue::SharedQueue,
    store::SharedStore,
    tool::{ApiStatus, SharedToolApi, status::Watched},
};

/// The backends of one process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    pub store: SharedStore,
    pub queue: SharedQueue,
    pub api: SharedToolApi,
    /// What was last seen of the tool API, by whoever asked it through [`Self::api`].
    pub api_status: Arc<ApiStatus>,
    /// The process's own time.
    pub clock: SharedClock,
    /// Woken when a job was written that will be due soon, or that has a reply to send.
    pub relay_wake: Arc<Notify>,
}

impl Services {
    /// With a relay that nobody has woken yet.
    pub fn new(store: SharedStore, queue: SharedQueue, api: SharedToolApi, clock: SharedClock) -> Self {
        let api_status = Arc::<ApiStatus>::default();
        let api = Arc::new(Watched::new(api, api_status.clone()));
        Self { store, queue, api, api_status, clock, relay_wake: Arc::default() }
    }
}
