//! The circuit breakers of a process, and what decides when they open and close. Pure.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    Open, Policy, Scope,
    breaker::{Breaker, Probe},
};

/// Owners whose calls to a toolkit have to fail in a row, without an answer in between, before its breaker opens.
const OWNERS: usize = 5;

/// Most keys with failures. Calls of further ones are not kept back.
pub(super) const MAX_KEYS: usize = 10_000;

/// A key that has not been called for this long is forgotten, and this often is it looked for.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(600);
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Whose call it is, as hashes; `key` is that of owner and toolkit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) owner: u64,
    pub(super) toolkit: u64,
    pub(super) key: u64,
}

/// A call that was not answered properly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) retry_after: Option<Duration>,
    /// Whether it says anything about the toolkit, and not about this caller only.
    pub(super) accuses_toolkit: bool,
    /// Other calls to the toolkit that are under way and may still be answered.
    pub(super) others: usize,
}

/// Calls to one toolkit that failed in a row.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// Different owners of them, as many as are needed.
    owners: Vec<u64>,
    failures: usize,
    pub(super) breaker: Option<Breaker>,
    used: Option<Instant>,
}

/// The breakers through which a call went while they were open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ticket {
    key: Option<Probe>,
    toolkit: Option<Probe>,
}

impl Ticket {
    pub(super) fn is_probe(&self) -> bool {
        self.key.is_some() || self.toolkit.is_some()
    }
}

/// All breakers that are not idle.
#[derive(Debug)]
pub(super) struct Registry {
    policy: Policy,
    pub(super) keys: HashMap<u64, Breaker>,
    open_keys: usize,
    /// The toolkits to which no call was answered since the last one that failed.
    pub(super) toolkits: HashMap<u64, Row>,
    numbers: u64,
    swept: Option<Instant>,
}

impl Registry {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, keys: HashMap::new(), open_keys: 0, toolkits: HashMap::new(), numbers: 0, swept: None }
    }

    /// How much is known, which is nothing while all is well.
    pub(super) fn known(&self) -> usize {
        self.keys.len() + self.toolkits.len()
    }

    /// How many breakers of owners and toolkits are open, and how many of toolkits.
    pub(super) fn open(&self) -> (usize, usize) {
        (self.open_keys, self.toolkits.values().filter(|row| row.breaker.is_some()).count())
    }

    /// How long the open breaker of this toolkit lets no call through at all.
    pub(super) fn until_probe(&self, caller: Caller, now: Instant) -> Option<Duration> {
        self.toolkits.get(&caller.toolkit)?.breaker.as_ref().map(|breaker| breaker.until_probe(now))
    }

    pub(super) fn admit(&mut self, caller: Caller, now: Instant, random: f64) -> Result<Ticket, Open> {
        let key = self.keys.get_mut(&caller.key);
        let toolkit = self.toolkits.get_mut(&caller.toolkit).and_then(|row| row.breaker.as_mut());
        for (scope, breaker) in [(Scope::OwnerToolkit, &key), (Scope::Toolkit, &toolkit)] {
            if let Some(after) = breaker.as_ref().and_then(|open| open.keeps_back(&self.policy, now, random))
            {
                return Err(Open { scope, after });
            }
        }
        let enter = |breaker: Option<&mut Breaker>| breaker.and_then(|breaker| breaker.enter(now));
        Ok(Ticket { key: enter(key), toolkit: enter(toolkit) })
    }

    pub(super) fn give_back(&mut self, caller: Caller, ticket: Ticket) {
        if let Some(breaker) = self.keys.get_mut(&caller.key) {
            breaker.leave(ticket.key);
        }
        if let Some(breaker) = self.toolkits.get_mut(&caller.toolkit).and_then(|row| row.breaker.as_mut()) {
            breaker.leave(ticket.toolkit);
        }
    }

    pub(super) fn answered(&mut self, caller: Caller, ticket: Ticket, now: Instant) {
        self.give_back(caller, ticket);
        if self.keys.get_mut(&caller.key).is_some_and(Breaker::answered)
            && let Some(breaker) = self.keys.remove(&caller.key)
        {
            self.open_keys -= usize::from(breaker.is_open());
        }
        // An answer ends the row, and closes an open breaker step by step.
        if let Some(row) = self.toolkits.get_mut(&caller.toolkit)
            && row.breaker.as_mut().is_none_or(Breaker::answered)
        {
            self.toolkits.remove(&caller.toolkit);
        }
        self.sweep(now);
    }

    pub(super) fn failed(
        &mut self,
        caller: Caller,
        ticket: Ticket,
        failure: Failure,
        now: Instant,
        random: f64,
    ) {
        self.give_back(caller, ticket);
        let Policy { after, intervals, max_retry_after } = self.policy;
        let asked = failure.retry_after.unwrap_or_default().min(max_retry_after);
        let wait = |trips| intervals.wait(trips, random).max(asked);

        if !self.keys.contains_key(&caller.key) && self.make_room(now) {
            self.numbers += 1;
            self.keys.insert(caller.key, Breaker::new(self.numbers, now));
        }
        if let Some(breaker) = self.keys.get_mut(&caller.key) {
            let was_open = breaker.is_open();
            breaker.failed(ticket.key, after, wait, now);
            self.open_keys += usize::from(breaker.is_open() && !was_open);
        }

        if failure.accuses_toolkit {
            self.accuse(caller, ticket, failure.others, wait, now);
        }
        self.sweep(now);
    }

    fn accuse(
        &mut self,
        caller: Caller,
        ticket: Ticket,
        others: usize,
        wait: impl Fn(u32) -> Duration,
        now: Instant,
    ) {
        if self.toolkits.len() >= MAX_KEYS && !self.toolkits.contains_key(&caller.toolkit) {
            return;
        }
        let row = self.toolkits.entry(caller.toolkit).or_default();
        row.used = Some(now);
        row.failures = row.failures.saturating_add(1);
        if row.owners.len() < OWNERS && !row.owners.contains(&caller.owner) {
            row.owners.push(caller.owner);
        }
        if let Some(breaker) = &mut row.breaker {
            breaker.failed(ticket.toolkit, 1, wait, now);
        } else if row.owners.len() == OWNERS && row.failures > others {
            self.numbers += 1;
            let mut breaker = Breaker::new(self.numbers, now);
            breaker.failed(None, 1, wait, now);
            row.breaker = Some(breaker);
        }
    }

    fn make_room(&mut self, now: Instant) -> bool {
        if self.keys.len() >= MAX_KEYS {
            self.sweep(now);
        }
        self.keys.len() < MAX_KEYS
    }

    /// Forgets keys that nobody has called for long, every now and then.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.keys.retain(|_, breaker| breaker.in_flight > 0 || breaker.idle(now) < FORGET_AFTER);
        self.open_keys = self.keys.values().filter(|breaker| breaker.is_open()).count();
        self.toolkits.retain(|_, row| match (&row.breaker, row.used) {
            (Some(breaker), _) => breaker.in_flight > 0 || breaker.idle(now) < FORGET_AFTER,
            (None, used) => used.is_some_and(|used| now.saturating_duration_since(used) < FORGET_AFTER),
        });
    }
}
