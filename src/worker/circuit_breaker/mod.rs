//! Circuit breakers, which keep calls back while the tool API does not answer them.
//!
//! A breaker opens after a few calls in a row without a proper answer (not sent, no answer, an error of the server,
//! throttling), for one owner and toolkit. While it is open, one call at a time goes through as a probe, and the other
//! jobs are given back to the store for a time that grows with every probe that fails; they spend no attempt. A probe
//! that is answered, whatever the answer is, lets twice as many calls through, until the breaker is closed: jobs that
//! waited together must not arrive together. A probe that takes longer than the longest wait between two of them keeps
//! the others back no longer: another one is sent beside it.
//!
//! When calls of several owners to one toolkit fail in a row, so never those of one alone, the breaker of the toolkit
//! opens, for all calls of this process to it. The calls to it that are still under way can acquit it, so the failures
//! have to be more than those. A call that gave the API less than the usual time, because its job asked for that, is no
//! evidence against a toolkit: nobody can slow others by impatience. An API that is gone altogether opens the breakers of
//! all toolkits that are called.
//!
//! [`Registry`] decides and is pure: it is given the time and a random number. Owners and toolkits are kept as
//! hashes, and only those with failures.

mod breaker;
mod registry;

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::registry::{Caller, Failure, Registry, Ticket};
use crate::{
    backoff::Intervals,
    clock::millis,
    job::Owner,
    string_enum::string_enum,
    sync::{self, lock},
    telemetry::metrics,
};

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
        /// All calls of this process to one toolkit.
        Toolkit = "toolkit",
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
    /// How many calls are under way, by toolkit.
    under_way: RwLock<HashMap<u64, Arc<AtomicUsize>>>,
}

/// Most toolkits whose calls are counted apart; further ones are counted together.
const MAX_TOOLKITS: usize = 10_000;

/// The right to make one call. Dropped without an answer, as by a panic, it says nothing about the API.
#[derive(Debug)]
pub(super) struct CallPermit<'a> {
    breakers: &'a CircuitBreakers,
    toolkit: &'a str,
    caller: Caller,
    ticket: Ticket,
    under_way: Arc<AtomicUsize>,
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
            under_way: RwLock::default(),
        }
    }

    /// The right to call now, or when to come back. Never waits.
    pub(super) fn admit<'a>(&'a self, owner: &Owner, toolkit: &'a str) -> Result<CallPermit<'a>, Open> {
        let hasher = &self.hasher;
        let caller = Caller {
            owner: hasher.hash_one(owner),
            toolkit: hasher.hash_one(toolkit),
            key: hasher.hash_one((owner, toolkit)),
        };
        let ticket = if self.is_idle() {
            Ticket::default()
        } else {
            self.registry().admit(caller, Instant::now(), fastrand::f64()).inspect_err(|open| {
                metrics::CIRCUIT_BREAKER_SNOOZES.add([open.scope.as_str()], 1);
            })?
        };
        let under_way = self.under_way(caller.toolkit);
        under_way.fetch_add(1, Ordering::Relaxed);
        Ok(CallPermit { breakers: self, toolkit, caller, ticket, under_way, is_reported: false })
    }

    fn under_way(&self, toolkit: u64) -> Arc<AtomicUsize> {
        if let Some(known) = sync::read(&self.under_way).get(&toolkit) {
            return known.clone();
        }
        let mut all = sync::write(&self.under_way);
        let toolkit = if all.len() < MAX_TOOLKITS { toolkit } else { 0 };
        all.entry(toolkit).or_default().clone()
    }

    fn is_idle(&self) -> bool {
        self.known.load(Ordering::Relaxed) == 0
    }

    /// Changes the registry because of a call.
    fn change(&self, permit: &CallPermit<'_>, change: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry();
        let before = registry.open();
        change(&mut registry);
        self.known.store(registry.known(), Ordering::Relaxed);
        let (keys, toolkits) = registry.open();
        if before == (keys, toolkits) {
            return;
        }
        metrics::CIRCUIT_BREAKERS_OPEN.set([Scope::OwnerToolkit.as_str()], keys as f64);
        metrics::CIRCUIT_BREAKERS_OPEN.set([Scope::Toolkit.as_str()], toolkits as f64);
        let CallPermit { toolkit, caller, .. } = permit;
        match before.1.cmp(&toolkits) {
            std::cmp::Ordering::Less => {
                let wait_ms = registry.until_probe(*caller, Instant::now()).map(millis);
                tracing::info!(
                    toolkit,
                    wait_ms,
                    "the circuit breaker of a toolkit opened: calls of several owners in a row got no answer, so one \
                     call at a time is tried and the others are postponed"
                );
            }
            std::cmp::Ordering::Greater => {
                tracing::info!(
                    toolkit,
                    "the circuit breaker of a toolkit closed: the tool API answers its calls again"
                );
            }
            std::cmp::Ordering::Equal => {}
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
            let now = Instant::now();
            self.breakers.change(&self, |registry| registry.answered(self.caller, self.ticket, now));
        }
    }

    /// The API did not answer properly, or asked to slow down. `gave_time` says whether it was given the usual time.
    pub(super) fn failed(mut self, retry_after: Option<Duration>, gave_time: bool) {
        self.is_reported = true;
        let others = self.under_way.load(Ordering::Relaxed).saturating_sub(1);
        let failure = Failure { retry_after, accuses_toolkit: gave_time, others };
        self.breakers.change(&self, |registry| {
            registry.failed(self.caller, self.ticket, failure, Instant::now(), fastrand::f64());
        });
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        if !self.is_reported && self.ticket.is_probe() {
            self.breakers.change(self, |registry| registry.give_back(self.caller, self.ticket));
        }
    }
}

#[cfg(test)]
mod tests;
