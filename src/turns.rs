//! Turns of workers: what only one process of those that share a store needs to do.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    job::WorkerId,
    store::{SharedStore, StoreError},
};

/// Whose turn it is to do what only one worker needs to do: that of the living one that started first.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    pub worker: WorkerId,
    /// The age of a heartbeat from which a worker is lost that does not say its own.
    pub lease: Duration,
}

impl Turns {
    /// Whether it is this worker's. For a moment two may hold themselves for it, which what they do must bear.
    pub(crate) async fn is_mine(self, store: &SharedStore) -> Result<bool, StoreError> {
        Ok(store.eldest_worker(self.lease).await? == Some(self.worker))
    }
}

/// How often it is asked whose turn it is, by whoever does something many times a second.
pub(crate) const ASKED_AGAIN: Duration = Duration::from_secs(2);

/// Whether it is a worker's turn, which is not asked each time.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    mine_until: Option<Instant>,
}

impl Turn {
    pub(crate) fn new(turns: Turns) -> Self {
        Self { turns, mine_until: None }
    }

    /// Whether it is this worker's, as it was [`ASKED_AGAIN`] ago at most.
    pub(crate) async fn is_mine(&mut self, store: &SharedStore) -> Result<bool, StoreError> {
        if self.mine_until.is_none_or(|until| until <= Instant::now()) {
            self.mine_until = None;
            if self.turns.is_mine(store).await? {
                self.mine_until = Some(Instant::now() + ASKED_AGAIN);
            }
        }
        Ok(self.mine_until.is_some())
    }
}
