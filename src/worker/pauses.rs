//! Which queues are paused. Their lanes take nothing, and what runs goes on.

use std::{collections::BTreeSet, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::QueueName,
    store::{SharedStore, StoreError, StoreErrorKind},
};

/// How often a worker looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the store may take to answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The queues that are paused, as far as this worker knows.
#[derive(Debug, Default)]
pub(super) struct Pauses(watch::Sender<BTreeSet<QueueName>>);

impl Pauses {
    pub(super) fn has(&self, queue: &QueueName) -> bool {
        self.0.borrow().contains(queue)
    }

    /// Waits until the queue is paused.
    pub(super) async fn begin(&self, queue: &QueueName) {
        // The sender lives as long as this.
        drop(self.0.subscribe().wait_for(|paused| paused.contains(queue)).await);
    }

    /// Waits until the queue is not paused.
    pub(super) async fn end(&self, queue: &QueueName) {
        drop(self.0.subscribe().wait_for(|paused| !paused.contains(queue)).await);
    }

    fn note(&self, paused: BTreeSet<QueueName>) {
        self.0.send_if_modified(|known| {
            let is_new = *known != paused;
            *known = paused;
            is_new
        });
    }
}

/// Looks once, before any lane takes anything, for as long as the store does not answer.
pub(super) async fn first_look(store: &SharedStore, pauses: &Pauses) {
    let mut failures = 0;
    while let Err(error) = look(store, pauses).await {
        tracing::warn!(error = %chain(&error), "no job is taken before it is known which queues are paused; trying again");
        failures += 1;
        tokio::time::sleep(RECONNECT.wait(failures, fastrand::f64())).await;
    }
}

/// Looks again and again until `stop`. While the store is away, what was paused stays so, and nothing else is.
pub(super) async fn run(store: &SharedStore, pauses: &Pauses, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if let Some(Err(error)) = stop.run_until_cancelled(look(store, pauses)).await {
            tracing::debug!(error = %chain(&error), "it is not known whether other queues are paused by now");
        }
    }
}

async fn look(store: &SharedStore, pauses: &Pauses) -> Result<(), StoreError> {
    // One that does not answer in time is asked again.
    if let Ok(paused) = tokio::time::timeout(LOOK_TIMEOUT, store.paused_queues()).await {
        pauses.note(paused?.into_iter().map(|paused| paused.queue).collect());
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Unavailable, "no answer in time"))
}
