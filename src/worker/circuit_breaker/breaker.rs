//! One circuit breaker, of an owner and toolkit or of a toolkit.

use std::time::Duration;

use tokio::time::Instant;

use super::Policy;

/// An open breaker that lets more calls than this through at once is closed.
const MAX_PROBES: u32 = 32;

#[derive(Debug)]
pub(super) struct Breaker {
    /// Tells this breaker from an earlier one of the same key.
    number: u64,
    failures: u32,
    /// How often in a row it has opened: by failures, and then by every probe that failed. Zero while it is closed.
    trips: u32,
    /// How many probes may be in flight together while it is open, not counting places of those that take too long.
    pub(super) allowed: u32,
    pub(super) in_flight: u32,
    /// No probe is sent before this.
    probe_at: Instant,
    /// When the last probe was sent.
    probed_at: Instant,
    /// Grows with every trip, so that calls that were made together are one failure.
    generation: u64,
    used: Instant,
}

/// A call that went through an open breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    breaker: u64,
    generation: u64,
}

impl Breaker {
    pub(super) fn new(number: u64, now: Instant) -> Self {
        Self {
            number,
            failures: 0,
            trips: 0,
            allowed: 1,
            in_flight: 0,
            probe_at: now,
            probed_at: now,
            generation: 0,
            used: now,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.trips > 0
    }

    pub(super) fn keeps_back(&self, policy: &Policy, now: Instant, random: f64) -> Option<Duration> {
        let has_room = self.in_flight < self.allowed || self.is_overdue(policy, now);
        if !self.is_open() || (now >= self.probe_at && has_room) {
            return None;
        }
        Some(policy.intervals.wait_behind(self.trips, self.until_probe(now), random))
    }

    pub(super) fn until_probe(&self, now: Instant) -> Duration {
        self.probe_at.saturating_duration_since(now)
    }

    /// Whether the last probe has been under way for the longest wait between probes. A call may take half an hour and
    /// say nothing about the others until then, so another probe is sent beside it.
    pub(super) fn is_overdue(&self, policy: &Policy, now: Instant) -> bool {
        self.in_flight > 0 && now.saturating_duration_since(self.probed_at) >= policy.intervals.max
    }

    pub(super) fn enter(&mut self, now: Instant) -> Option<Probe> {
        self.used = now;
        self.is_open().then(|| {
            self.in_flight += 1;
            self.probed_at = now;
            Probe { breaker: self.number, generation: self.generation }
        })
    }

    pub(super) fn leave(&mut self, probe: Option<Probe>) {
        if probe.is_some_and(|probe| probe.breaker == self.number) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// `true` when the breaker is closed now.
    pub(super) fn answered(&mut self) -> bool {
        self.trips = self.trips.min(1);
        self.allowed = self.allowed.saturating_mul(2);
        !self.is_open() || self.allowed > MAX_PROBES
    }

    /// Calls that were sent before it opened, or together with one that failed, say nothing new.
    pub(super) fn failed(
        &mut self,
        probe: Option<Probe>,
        after: u32,
        wait: impl Fn(u32) -> Duration,
        now: Instant,
    ) {
        self.used = now;
        if self.is_open() {
            if probe != Some(Probe { breaker: self.number, generation: self.generation }) {
                return;
            }
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures < after {
                return;
            }
        }
        self.trips = self.trips.saturating_add(1);
        self.generation += 1;
        self.allowed = 1;
        self.probe_at = now + wait(self.trips);
    }

    /// Time since somebody called, or could have.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.used.max(self.probe_at))
    }
}
