//! Is this worker alive, and is it ready? Ready means that it really consumes, that the store
//! answers, and that it is not draining.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{job::QueueName, telemetry::metrics};

/// What is known about a worker's fitness.
#[derive(Debug)]
pub struct Health {
    consuming: Mutex<BTreeMap<QueueName, bool>>,
    store_seen: Mutex<Option<Instant>>,
    /// The last heartbeat that the store took, or the start.
    beaten: Mutex<Instant>,
    stale_after: Duration,
    draining: AtomicBool,
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
    /// The worker is shutting down.
    pub draining: bool,
}

impl Health {
    pub(super) fn new(lanes: Vec<QueueName>, stale_after: Duration) -> Self {
        for lane in &lanes {
            metrics::CONSUMING.set1(lane.as_str(), 0.0);
        }
        Self {
            consuming: Mutex::new(lanes.into_iter().map(|lane| (lane, false)).collect()),
            store_seen: Mutex::new(None),
            beaten: Mutex::new(Instant::now()),
            stale_after,
            draining: AtomicBool::new(false),
        }
    }

    /// The present state.
    pub fn readiness(&self) -> Readiness {
        let consuming = self.consuming.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = *self.store_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let store = seen.is_some_and(|at| at.elapsed() < self.stale_after);
        let draining = self.draining.load(Ordering::Relaxed);
        let ready = !draining && store && consuming.values().all(|consuming| *consuming);
        Readiness { ready, consuming, store, draining }
    }

    /// Sets the gauges that would be stale if they were only set when something happens.
    pub fn refresh_gauges(&self) {
        let beaten = *self.beaten.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::HEARTBEAT_AGE.set(beaten.elapsed().as_secs_f64());
    }

    pub(super) fn beat(&self, sent: Instant) {
        *self.beaten.lock().unwrap_or_else(PoisonError::into_inner) = sent;
        self.store_answered();
    }

    /// Notes whether a lane is consumed; `true` is returned when this was the last lane to start.
    pub(super) fn set_consuming(&self, lane: &QueueName, consuming: bool) -> bool {
        metrics::CONSUMING.set1(lane.as_str(), f64::from(u8::from(consuming)));
        let mut lanes = self.consuming.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lanes.values().all(|consuming| *consuming);
        if let Some(entry) = lanes.get_mut(lane) {
            *entry = consuming;
        }
        !before && lanes.values().all(|consuming| *consuming)
    }

    pub(super) fn store_answered(&self) {
        metrics::STORE_REACHABLE.set(1.0);
        *self.store_seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
