//! Reads the figures that only the store and the broker know, for the gauges.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    failure::chain,
    job::{HeldReason, QueueName, State},
    lane_head::LaneHeads,
    queue::{Depth, QueueErrorKind},
    services::Services,
    store::{ActionKind, Census, StoreError},
    telemetry::metrics,
};

/// The label of lanes for which there is no other.
const OTHER: &str = "other";

#[derive(Debug)]
pub struct Gauges {
    services: Services,
    /// The configured lanes and those that were found in the store, whose gauges have to be set to zero once they are
    /// empty.
    lanes: BTreeSet<QueueName>,
    most_lanes: usize,
    heads: Arc<LaneHeads>,
    /// Since when the oldest job of each lane waits in the store that should have run, as of the last look.
    late_since: BTreeMap<QueueName, Timestamp>,
    every: Duration,
    lease: Duration,
    reconnects: u64,
}

impl Gauges {
    /// Gauges of these lanes, whoever consumes them, and of those that the store knows, read once per `every`. `lease` is
    /// that of workers that do not say theirs.
    pub fn new(
        services: &Services,
        lanes: Vec<QueueName>,
        heads: Arc<LaneHeads>,
        every: Duration,
        lease: Duration,
    ) -> Self {
        let lanes: BTreeSet<QueueName> = lanes.into_iter().collect();
        Self {
            services: services.clone(),
            most_lanes: lanes.len() + metrics::MAX_UNKNOWN_LANES,
            lanes,
            heads,
            late_since: BTreeMap::new(),
            every,
            lease,
            reconnects: 0,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.run_once().await {
                tracing::debug!(error = %chain(&error), "the gauges could not be read");
            }
            stop.run_until_cancelled(tokio::time::sleep(self.every)).await;
        }
    }

    /// Reads once. While the store is away, its figures stay, and what is late in it grows older. A lane whose depth the
    /// broker does not tell keeps it, and its head grows older.
    pub async fn run_once(&mut self) -> Result<(), StoreError> {
        let census = self.services.store.census().await;
        if let Ok(census) = &census {
            self.note_waiting(census);
            self.show(census);
        }
        // While this is not known, what was paused stays so.
        if let Ok(paused) = self.services.store.paused_queues().await {
            for lane in &self.lanes {
                let is_paused = paused.iter().any(|paused| paused.queue == *lane);
                metrics::QUEUE_PAUSED.set([lane.as_str()], f64::from(u8::from(is_paused)));
            }
        }
        let Services { queue, clock, .. } = &self.services;
        metrics::BROKER_CONNECTED.set([], f64::from(u8::from(queue.connected())));
        let reconnects = queue.reconnects();
        metrics::BROKER_RECONNECTS.add([], reconnects.saturating_sub(self.reconnects));
        self.reconnects = reconnects;
        let mut is_away = false;
        for lane in &self.lanes {
            // One wait for a broker that does not answer is enough.
            let asked = if is_away { None } else { Some(queue.depth(lane).await) };
            let depth = match asked {
                Some(Ok(depth)) => Some(depth),
                // A lane that nobody has declared has no messages.
                Some(Err(error)) if error.kind() == QueueErrorKind::Unroutable => Some(Depth::default()),
                Some(Err(error)) => {
                    is_away = error.kind() == QueueErrorKind::Unavailable;
                    None
                }
                None => None,
            };
            if let Some(depth) = depth {
                metrics::QUEUE_DEPTH.set([lane.as_str()], depth.ready as f64);
            }
            let now = clock.now();
            let age = self.heads.look(lane, depth, now);
            let late = self.late_since.get(lane).map(|since| now.duration_since(*since));
            let late = late.map_or(Duration::ZERO, |late| late.try_into().unwrap_or_default());
            metrics::OLDEST_DUE.set([lane.as_str()], age.max(late).as_secs_f64());
        }
        let under_way = self.services.store.actions_under_way().await?;
        for kind in ActionKind::ALL {
            metrics::ACTIONS.set([kind.as_str()], under_way.get(kind).copied().unwrap_or(0) as f64);
        }
        metrics::WORKER_BUILDS.set([], self.services.store.live_builds(self.lease).await? as f64);
        census.map(drop)
    }

    /// Learns of the lanes in the store and of what is late there. Lanes without a label of their own are not looked at
    /// in the broker.
    fn note_waiting(&mut self, census: &Census) {
        for (lane, ..) in &census.jobs {
            if !self.is_full() {
                self.lanes.insert(lane.clone());
            }
        }
        let now = self.services.clock.now();
        self.late_since.clear();
        let mut others = Duration::ZERO;
        for (lane, age) in &census.oldest_due {
            if !self.lanes.contains(lane) {
                others = others.max(*age);
            } else if let Ok(since) = now.checked_sub(*age) {
                self.late_since.insert(lane.clone(), since);
            }
        }
        if self.is_full() {
            metrics::OLDEST_DUE.set([OTHER], others.as_secs_f64());
        }
    }

    /// Whether further lanes get no label of their own.
    fn is_full(&self) -> bool {
        self.lanes.len() == self.most_lanes
    }

    fn show(&self, census: &Census) {
        let mut jobs: BTreeMap<(&str, State), u64> = BTreeMap::new();
        // A gauge that was set once must be set to zero when its jobs are gone.
        for state in State::ALL.iter().copied().filter(|state| !state.is_final()) {
            let labels = self.lanes.iter().map(QueueName::as_str).chain(self.is_full().then_some(OTHER));
            jobs.extend(labels.map(|label| ((label, state), 0)));
        }
        for (lane, state, count) in &census.jobs {
            let label = if self.lanes.contains(lane) { lane.as_str() } else { OTHER };
            *jobs.entry((label, *state)).or_default() += count;
        }
        for ((lane, state), count) in jobs {
            metrics::JOBS_WAITING.set([lane, state.as_str()], count as f64);
        }
        for reason in HeldReason::ALL {
            let found = census.held.iter().find(|(r, _)| r == reason);
            metrics::JOBS_HELD.set([reason.as_str()], found.map_or(0, |(_, count)| *count) as f64);
        }
    }
}
