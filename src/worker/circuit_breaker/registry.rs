//! The circuit breakers of a process, and what decides when they open and close. Pure.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    Open, Policy, Scope,
    breaker::{Breaker, Probe},
};

/// Owners whose calls have to fail in a row, without an answer in between, before the API's breaker opens.
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
    pub(super) key: u64,
}

/// The breakers through which a call went while they were open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ticket {
    key: Option<Probe>,
    api: Option<Probe>,
}

impl Ticket {
    pub(super) fn is_probe(&self) -> bool {
        self.key.is_some() || self.api.is_some()
    }
}

/// All breakers that are not idle.
#[derive(Debug)]
pub(super) struct Registry {
    policy: Policy,
    pub(super) keys: HashMap<u64, Breaker>,
    open_keys: usize,
    pub(super) api: Option<Breaker>,
    /// Different owners whose calls have failed since anybody's was answered.
    failing: Vec<u64>,
    numbers: u64,
    swept: Option<Instant>,
}

impl Registry {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            keys: HashMap::new(),
            open_keys: 0,
            api: None,
            failing: Vec::new(),
            numbers: 0,
            swept: None,
        }
    }

    /// How much is known, which is nothing while all is well.
    pub(super) fn known(&self) -> usize {
        self.keys.len() + self.failing.len() + usize::from(self.api.is_some())
    }

    /// How many breakers of owners and toolkits are open, and whether the API's is.
    pub(super) fn open(&self) -> (usize, bool) {
        (self.open_keys, self.api.is_some())
    }

    pub(super) fn admit(&mut self, caller: Caller, now: Instant, random: f64) -> Result<Ticket, Open> {
        let key = self.keys.get_mut(&caller.key);
        let api = self.api.as_mut();
        for (scope, breaker) in [(Scope::OwnerToolkit, &key), (Scope::Api, &api)] {
            if let Some(after) = breaker.as_ref().and_then(|open| open.keeps_back(&self.policy, now, random))
            {
                return Err(Open { scope, after });
            }
        }
        let enter = |breaker: Option<&mut Breaker>| breaker.and_then(|breaker| breaker.enter(now));
        Ok(Ticket { key: enter(key), api: enter(api) })
    }

    pub(super) fn give_back(&mut self, caller: Caller, ticket: Ticket) {
        if let Some(breaker) = self.keys.get_mut(&caller.key) {
            breaker.leave(ticket.key);
        }
        if let Some(breaker) = &mut self.api {
            breaker.leave(ticket.api);
        }
    }

    pub(super) fn answered(&mut self, caller: Caller, ticket: Ticket, now: Instant) {
        self.give_back(caller, ticket);
        self.failing.clear();
        if self.keys.get_mut(&caller.key).is_some_and(Breaker::answered)
            && let Some(breaker) = self.keys.remove(&caller.key)
        {
            self.open_keys -= usize::from(breaker.is_open());
        }
        if self.api.as_mut().is_some_and(Breaker::answered) {
            self.api = None;
        }
        self.sweep(now);
    }

    pub(super) fn failed(
        &mut self,
        caller: Caller,
        ticket: Ticket,
        retry_after: Option<Duration>,
        now: Instant,
        random: f64,
    ) {
        self.give_back(caller, ticket);
        let Policy { after, intervals, max_retry_after } = self.policy;
        let asked = retry_after.unwrap_or_default().min(max_retry_after);
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

        if self.failing.len() < OWNERS && !self.failing.contains(&caller.owner) {
            self.failing.push(caller.owner);
        }
        if self.api.is_none() && self.failing.len() == OWNERS {
            self.numbers += 1;
            let mut breaker = Breaker::new(self.numbers, now);
            breaker.failed(None, 1, wait, now);
            self.api = Some(breaker);
        } else if let Some(breaker) = &mut self.api {
            breaker.failed(ticket.api, 1, wait, now);
        }
        self.sweep(now);
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
    }
}
