//! The set-up of a command: the settings, the services that they name, and the server that stands in for these.

use std::time::Duration;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;

use super::{exit, server::Server};
use crate::{
    admission::Admission,
    app, clock,
    config::{Config, Loaded, place},
    failure::chain,
    job::QueueName,
    queue::SharedQueue,
    store::{SharedStore, StoreError},
    tool::SharedToolApi,
};

#[derive(Debug)]
pub(super) struct Setup {
    pub(super) loaded: Loaded,
    /// The server that is used instead of what the settings name.
    pub(super) server: Option<Server>,
}

impl Setup {
    pub(super) fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// The store, which must be configured. A server's is not within reach.
    pub(super) fn store(&self) -> anyhow::Result<SharedStore> {
        if let Some(server) = &self.server {
            return Err(exit::usage(format!(
                "this needs the database itself and cannot be done at {}; run it where errand's settings are, with --context local",
                server.place()
            )));
        }
        self.config().require_store()?;
        app::open_store(self.config()).context("cannot open the database")
    }

    /// Names the database in an error of its, whose message says only what happened.
    pub(super) fn name_database(&self, error: anyhow::Error) -> anyhow::Error {
        let is_of_database = error.chain().any(|cause| cause.is::<StoreError>());
        match place(self.config().store.url.expose_secret()) {
            Some(place) if is_of_database && !chain(&*error).contains(&place) => {
                error.context(format!("the database at {place}"))
            }
            _ => error,
        }
    }

    /// Says of an answer that is not as errand answers whose it is, however far it was read.
    pub(super) fn name_server(&self, error: anyhow::Error) -> anyhow::Error {
        let unread = error.chain().find_map(|cause| cause.downcast_ref::<serde_json::Error>());
        match (&self.server, unread) {
            (Some(server), Some(unread)) => server.is_no_errand(unread),
            _ => error,
        }
    }

    /// The tool API, whose key must be configured.
    pub(super) fn tool_api(&self) -> anyhow::Result<SharedToolApi> {
        self.config().require_api_key()?;
        app::open_tool_api(self.config()).context("cannot use the tool API")
    }

    pub(super) fn door(&self) -> anyhow::Result<OpenDoor> {
        let store = self.store()?;
        let queue = self.config().uses_broker().then(|| app::open_queue(self.config()));
        let queue = queue.transpose().context("cannot use the broker")?;
        let unclaimed_after = Duration::from_secs(self.config().relay.unclaimed_secs);
        let rules = app::rules(self.config());
        let door = Admission::new(store.clone(), queue.clone(), clock::system(), rules, unclaimed_after);
        Ok(OpenDoor { door, store, queue })
    }

    /// Whether jobs may be sent to this lane; the error is a sentence that lists the lanes there are.
    pub(super) fn check_lane(&self, lane: &str) -> Result<(), String> {
        let known: Vec<_> = self.config().queues.keys().map(QueueName::as_str).collect();
        if known.contains(&lane) {
            return Ok(());
        }
        Err(format!("there is no queue of this name in [queues]; use one of {}", known.join(", ")))
    }
}

#[derive(Debug)]
pub(super) struct OpenDoor {
    pub(super) door: Admission,
    pub(super) store: SharedStore,
    queue: Option<SharedQueue>,
}

impl OpenDoor {
    pub(super) async fn close(&self) {
        if let Some(queue) = &self.queue {
            queue.close().await;
        }
        self.store.close().await;
    }
}
