//! Reads the figures that only the store and the broker know, for the gauges.

use std::{collections::HashSet, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    failure::chain,
    job::{HeldReason, QueueName, State},
    services::Services,
    store::StoreError,
    telemetry::metrics,
};

#[derive(Debug)]
pub struct Gauges {
    services: Services,
    lanes: Vec<QueueName>,
    every: Duration,
    reconnects: u64,
}

impl Gauges {
    /// Gauges of these lanes, read once per `every`.
    pub fn new(services: &Services, lanes: Vec<QueueName>, every: Duration) -> Self {
        Self { services: services.clone(), lanes, every, reconnects: 0 }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.run_once().await {
                tracing::debug!(error = %chain(&error), "the gauges could not be read");
            }
            stop.run_until_cancelled(tokio::time::sleep(self.every)).await;
        }
    }

    /// Reads once. A lane whose depth the broker does not tell is left out.
    pub async fn run_once(&mut self) -> Result<(), StoreError> {
        let Services { store, queue, .. } = &self.services;
        metrics::BROKER_CONNECTED.set([], f64::from(u8::from(queue.connected())));
        let reconnects = queue.reconnects();
        metrics::BROKER_RECONNECTS.add([], reconnects.saturating_sub(self.reconnects));
        self.reconnects = reconnects;
        for lane in &self.lanes {
            if let Ok(depth) = queue.depth(lane).await {
                metrics::QUEUE_DEPTH.set([lane.as_str()], depth.ready as f64);
            }
        }
        let census = store.census().await?;
        // A gauge that was set once must be set to zero when its jobs are gone.
        let mut lanes: HashSet<&QueueName> = self.lanes.iter().collect();
        lanes.extend(census.jobs.iter().map(|(lane, ..)| lane));
        for lane in lanes {
            for state in State::ALL.iter().copied().filter(|state| !state.is_final()) {
                let found = census.jobs.iter().find(|(l, s, _)| l == lane && *s == state);
                let count = found.map_or(0, |(.., count)| *count);
                metrics::JOBS_WAITING.set([lane.as_str(), state.as_str()], count as f64);
            }
            let oldest = census.oldest_due.iter().find(|(l, _)| l == lane);
            let age = oldest.map_or(Duration::ZERO, |(_, age)| *age);
            metrics::OLDEST_DUE.set([lane.as_str()], age.as_secs_f64());
        }
        for reason in HeldReason::ALL {
            let found = census.held.iter().find(|(r, _)| r == reason);
            metrics::JOBS_HELD.set([reason.as_str()], found.map_or(0, |(_, count)| *count) as f64);
        }
        Ok(())
    }
}
