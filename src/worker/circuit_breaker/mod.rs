//! Circuit breakers, which keep calls back while the tool API does not answer them.
//!
//! A breaker opens after a few calls in a row without a proper answer (not sent, no answer, an error of the server,
//! throttling), for one owner and toolkit. While it is open, one call at a time goes through as a probe, and the other
//! jobs are given back to the store for a time that grows with every probe that fails; they spend no attempt. A probe
//! that is answered, whatever the answer is, lets twice as many calls through, until the breaker is closed: jobs that
//! waited together must not arrive together.
//!
//! When several owners in a row, so never one alone, get no answer and nobody gets one in between, the breaker of the
//! whole API opens, for all calls of this process.
//!
//! [`Registry`] decides and is pure: it is given the time and a random number. Owners and toolkits are kept as
//! hashes, and only those with failures, so that a call among good ones costs one atomic read.

mod breaker;
mod registry;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::registry::{Caller, Registry, Ticket};
use crate::{backoff::Intervals, job::Owner, string_enum::string_enum, sync::lock, telemetry::metrics};

/// When calls are kept back, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Failures in a row, per owner and toolkit, that open the breaker.
    pub after: u32,
    pub intervals: Intervals,
    /// The longest `Retry-After` that is believed.
    pub max_retry_after: Duration,
}

string_enum! {
    Scope {
        /// One owner's calls to one toolkit.
        OwnerToolkit = "owner_toolkit",
        /// All calls of this process.
        Api = "api",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) scope: Scope,
    pub(super) after: Duration,
}

#[derive(Debug)]
pub(super) struct CircuitBreakers {
    /// [`Registry::known`], which is zero while all is well.
    known: AtomicUsize,
    hasher: RandomState,
    registry: Mutex<Registry>,
}

/// The right to make one call. Dropped without an answer, as by a panic, it says nothing about the API.
#[derive(Debug)]
pub(super) struct CallPermit<'a> {
    breakers: &'a CircuitBreakers,
    caller: Caller,
    ticket: Ticket,
    is_reported: bool,
}

impl CircuitBreakers {
    pub(super) fn new(policy: Policy) -> Self {
        for scope in Scope::ALL {
            metrics::CIRCUIT_BREAKERS_OPEN.set([scope.as_str()], 0.0);
        }
        Self {
            known: AtomicUsize::new(0),
            hasher: RandomState::new(),
            registry: Mutex::new(Registry::new(policy)),
        }
    }

    /// The right to call now, or when to come back. Never waits.
    pub(super) fn admit(&self, owner: &Owner, toolkit: &str) -> Result<CallPermit<'_>, Open> {
        let caller =
            Caller { owner: self.hasher.hash_one(owner), key: self.hasher.hash_one((owner, toolkit)) };
        let ticket = if self.is_idle() {
            Ticket::default()
        } else {
            self.registry().admit(caller, Instant::now(), fastrand::f64()).inspect_err(|open| {
                metrics::CIRCUIT_BREAKER_SNOOZES.add([open.scope.as_str()], 1);
            })?
        };
        Ok(CallPermit { breakers: self, caller, ticket, is_reported: false })
    }

    fn is_idle(&self) -> bool {
        self.known.load(Ordering::Relaxed) == 0
    }

    fn change(&self, change: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry();
        let before = registry.open();
        change(&mut registry);
        self.known.store(registry.known(), Ordering::Relaxed);
        let (keys, api) = registry.open();
        if before != (keys, api) {
            metrics::CIRCUIT_BREAKERS_OPEN.set([Scope::OwnerToolkit.as_str()], keys as f64);
            metrics::CIRCUIT_BREAKERS_OPEN.set([Scope::Api.as_str()], f64::from(u8::from(api)));
            match (before.1, api) {
                (false, true) => tracing::warn!(
                    "the circuit breaker of the tool API opened: calls of several owners in a row got no answer, so \
                     all calls fall to one probe at a time"
                ),
                (true, false) => {
                    tracing::info!("the circuit breaker of the tool API closed: it answers again");
                }
                _ => {}
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }
}

impl CallPermit<'_> {
    pub(super) fn answered(mut self) {
        self.is_reported = true;
        if self.ticket.is_probe() || !self.breakers.is_idle() {
            self.breakers.change(|registry| registry.answered(self.caller, self.ticket, Instant::now()));
        }
    }

    /// The API did not answer properly, or asked to slow down.
    pub(super) fn failed(mut self, retry_after: Option<Duration>) {
        self.is_reported = true;
        self.breakers.change(|registry| {
            registry.failed(self.caller, self.ticket, retry_after, Instant::now(), fastrand::f64());
        });
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if !self.is_reported && self.ticket.is_probe() {
            self.breakers.change(|registry| registry.give_back(self.caller, self.ticket));
        }
    }
}

#[cfg(test)]
mod tests;
