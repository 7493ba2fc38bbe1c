//! Is this worker alive, and is it ready? Ready means that it really consumes, that the store
//! answers, and that it is not draining.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{job::QueueName, string_enum::string_enum, sync::lock, telemetry::metrics};

string_enum! {
    /// Where a worker is in its life. A shutdown goes through the phases in this order, and may leave some out.
    Phase {
        /// It waits for its services, or writes what an earlier process journaled.
        Starting = "starting",
        /// It takes jobs.
        Running = "running",
        /// It takes no more jobs; running calls go on.
        Draining = "draining",
        /// Calls that outlast the drain are interrupted, and what is known is written.
        Interrupting = "interrupting",
        /// What the store did not take goes to the journal.
        Journaling = "journaling",
        /// Nothing runs; connections are closed.
        Closing = "closing",
    }
}

impl Phase {
    pub fn is_shutdown(self) -> bool {
        self >= Self::Draining
    }
}

#[derive(Debug)]
pub struct Health {
    consuming: Mutex<BTreeMap<QueueName, bool>>,
    store_seen: Mutex<Option<Instant>>,
    /// Whether the store takes results.
    writing: AtomicBool,
    /// The last heartbeat that the store took, or the start.
    beaten: Mutex<Instant>,
    stale_after: Duration,
    phase: Mutex<Phase>,
}

/// The answer of `/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// All of the below is as it should be.
    pub ready: bool,
    /// The worker really consumes each of its lanes.
    pub consuming: BTreeMap<QueueName, bool>,
    /// The store answered recently.
    pub store: bool,
    /// The store takes results, or there were none since it last did.
    pub writing: bool,
    pub draining: bool,
    pub phase: Phase,
}

impl Health {
    pub(crate) fn new(lanes: Vec<QueueName>, stale_after: Duration) -> Self {
        for lane in &lanes {
            metrics::CONSUMING.set([lane.as_str()], 0.0);
        }
        publish(Phase::Starting);
        Self {
            consuming: Mutex::new(lanes.into_iter().map(|lane| (lane, false)).collect()),
            store_seen: Mutex::new(None),
            writing: AtomicBool::new(true),
            beaten: Mutex::new(Instant::now()),
            stale_after,
            phase: Mutex::new(Phase::Starting),
        }
    }

    pub fn readiness(&self) -> Readiness {
        let consuming = lock(&self.consuming).clone();
        let seen = *lock(&self.store_seen);
        let store = seen.is_some_and(|at| at.elapsed() < self.stale_after);
        let phase = self.phase();
        let draining = phase.is_shutdown();
        let writing = self.writing.load(Ordering::Relaxed);
        let ready = !draining && store && writing && consuming.values().all(|consuming| *consuming);
        Readiness { ready, consuming, store, writing, draining, phase }
    }

    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        publish(phase);
    }

    /// Sets the gauges that would be stale if they were only set when something happens.
    pub fn refresh_gauges(&self) {
        let beaten = *lock(&self.beaten);
        metrics::HEARTBEAT_AGE.set([], beaten.elapsed().as_secs_f64());
    }

    pub(crate) fn beat(&self, sent: Instant) {
        *lock(&self.beaten) = sent;
        self.store_answered();
    }

    /// Notes whether a lane takes jobs: it is consumed, and claims do not fail. `true` is returned when this was the
    /// last lane to start.
    pub(crate) fn set_taking(&self, lane: &QueueName, taking: bool) -> bool {
        let mut lanes = lock(&self.consuming);
        let before = lanes.values().all(|taking| *taking);
        if let Some(entry) = lanes.get_mut(lane) {
            *entry = taking;
            metrics::CONSUMING.set([lane.as_str()], f64::from(u8::from(taking)));
        }
        !before && lanes.values().all(|taking| *taking)
    }

    /// Notes whether the store takes what is not a claim: results and bindings.
    pub(crate) fn set_writing(&self, writing: bool) {
        self.writing.store(writing, Ordering::Relaxed);
    }

    /// Whether the store has answered anything after this moment.
    pub(crate) fn store_answered_since(&self, moment: Instant) -> bool {
        lock(&self.store_seen).is_some_and(|seen| seen > moment)
    }

    pub(crate) fn store_answered(&self) {
        metrics::STORE_REACHABLE.set([], 1.0);
        *lock(&self.store_seen) = Some(Instant::now());
    }
}

/// Shows the phase in the gauges: one series per phase, of which one is 1.
fn publish(present: Phase) {
    for phase in Phase::ALL {
        metrics::PHASE.set([phase.as_str()], f64::from(u8::from(*phase == present)));
    }
    metrics::DRAINING.set([], f64::from(u8::from(present.is_shutdown())));
}
