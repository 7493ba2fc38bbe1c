//! Keeps calls back while the tool API does not answer them.
//!
//! After a few calls in a row without a proper answer (not sent, no answer, an error of the server,
//! throttling) an owner's calls to a toolkit fall to one probe at a time. The other jobs are given back to the
//! store for a time that grows with every probe that fails, so that they spend no attempt and hold no
//! permit. A probe that is answered, whatever the answer is, lets twice as many calls through, and so on until
//! the key is open: jobs that waited together must not arrive together.
//!
//! When several owners in a row get no answer and nobody gets one in between, the same applies to all
//! calls of this process. One owner alone cannot bring that about.
//!
//! [`Book`] decides and is pure: it is given the time and a random number. Keys are kept as hashes of owner
//! and toolkit, and only those with failures, so that a call among good ones costs one atomic read.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{backoff::Intervals, job::Owner, telemetry::metrics};

/// Owners whose calls have to fail in a row, without an answer in between, before all calls fall to a
/// probe.
const OWNERS: usize = 5;

/// A gate that lets so many calls through at once is open.
const OPEN_AT: u32 = 32;

/// Most keys with failures. Calls of further ones are not kept back.
const MAX_KEYS: usize = 10_000;

/// What has not been called for so long is forgotten, and how often that is looked after.
const FORGET_AFTER: Duration = Duration::from_secs(600);
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// When calls are kept back, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Failures in a row, per owner and toolkit, until calls fall to a probe.
    pub after: u32,
    /// Waits between probes.
    pub intervals: Intervals,
    /// The longest `Retry-After` that is believed.
    pub max_retry_after: Duration,
}

/// What is down to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One owner's calls to one toolkit.
    OwnerToolkit,
    /// All calls of this process.
    Api,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Self::OwnerToolkit => "owner_toolkit",
            Self::Api => "api",
        }
    }
}

/// The call is not to be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Postponed {
    /// Because of this.
    pub(super) scope: Scope,
    /// When to come back.
    pub(super) after: Duration,
}

/// Whose call it is, as hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caller {
    owner: u64,
    key: u64,
}

/// What keeps calls back in one process.
#[derive(Debug)]
pub(super) struct Outages {
    /// What the book knows; zero while all is well.
    known: AtomicUsize,
    hasher: RandomState,
    book: Mutex<Book>,
}

/// The right to make one call. Dropped without an answer, as by a panic, it says nothing about the API.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    outages: &'a Outages,
    caller: Caller,
    slot: Slot,
    is_judged: bool,
}

impl Outages {
    pub(super) fn new(policy: Policy) -> Self {
        for scope in [Scope::OwnerToolkit, Scope::Api] {
            metrics::OUTAGES.set1(scope.as_str(), 0.0);
        }
        Self { known: AtomicUsize::new(0), hasher: RandomState::new(), book: Mutex::new(Book::new(policy)) }
    }

    /// The right to call now. Never waits.
    ///
    /// # Errors
    /// When to come back.
    pub(super) fn admit(&self, owner: &Owner, toolkit: &str) -> Result<Permit<'_>, Postponed> {
        let caller =
            Caller { owner: self.hasher.hash_one(owner), key: self.hasher.hash_one((owner, toolkit)) };
        let slot = if self.is_idle() {
            Slot::default()
        } else {
            self.book().admit(caller, Instant::now(), fastrand::f64()).inspect_err(|postponed| {
                metrics::OUTAGE_SNOOZES.add1(postponed.scope.as_str(), 1);
            })?
        };
        Ok(Permit { outages: self, caller, slot, is_judged: false })
    }

    fn is_idle(&self) -> bool {
        self.known.load(Ordering::Relaxed) == 0
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let mut book = self.book();
        let before = book.down();
        change(&mut book);
        self.known.store(book.known(), Ordering::Relaxed);
        let (keys, api) = book.down();
        if before != (keys, api) {
            metrics::OUTAGES.set1(Scope::OwnerToolkit.as_str(), keys as f64);
            metrics::OUTAGES.set1(Scope::Api.as_str(), f64::from(u8::from(api)));
            match (before.1, api) {
                (false, true) => tracing::warn!(
                    "calls of several owners in a row got no answer; all calls fall to one probe at a time"
                ),
                (true, false) => tracing::info!("the tool API answers again"),
                _ => {}
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// The API answered properly, whatever it answered.
    pub(super) fn answered(mut self) {
        self.is_judged = true;
        if self.slot.is_counted() || !self.outages.is_idle() {
            self.outages.change(|book| book.answered(self.caller, self.slot, Instant::now()));
        }
    }

    /// The API did not answer properly, or asked to slow down.
    pub(super) fn failed(mut self, retry_after: Option<Duration>) {
        self.is_judged = true;
        self.outages.change(|book| {
            book.failed(self.caller, self.slot, retry_after, Instant::now(), fastrand::f64());
        });
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.is_judged && self.slot.is_counted() {
            self.outages.change(|book| book.give_back(self.caller, self.slot));
        }
    }
}

/// The places that a call takes at gates that are down.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: Option<Place>,
    api: Option<Place>,
}

impl Slot {
    fn is_counted(&self) -> bool {
        self.key.is_some() || self.api.is_some()
    }
}

/// A place at one gate: which gate it was, and in which of its epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    gate: u64,
    epoch: u64,
}

/// What decides.
#[derive(Debug)]
struct Book {
    policy: Policy,
    keys: HashMap<u64, Gate>,
    /// How many of them are down.
    keys_down: usize,
    api: Option<Gate>,
    /// Different owners whose calls have failed since anybody's was answered.
    failing: Vec<u64>,
    gates: u64,
    swept: Option<Instant>,
}

/// One key, or the API. It counts failures until it is down.
#[derive(Debug)]
struct Gate {
    number: u64,
    failures: u32,
    /// Probes that failed since the last answer, and the fall itself; zero while it only counts.
    step: u32,
    allowed: u32,
    in_flight: u32,
    closed_until: Instant,
    /// Grows with every failure, so that calls that were made together are one failure.
    epoch: u64,
    used: Instant,
}

impl Gate {
    fn new(number: u64, now: Instant) -> Self {
        Self {
            number,
            failures: 0,
            step: 0,
            allowed: 1,
            in_flight: 0,
            closed_until: now,
            epoch: 0,
            used: now,
        }
    }

    fn is_down(&self) -> bool {
        self.step > 0
    }

    /// How long a call has to wait, if it has to.
    fn keeps_back(&self, policy: &Policy, now: Instant, random: f64) -> Option<Duration> {
        if !self.is_down() || (now >= self.closed_until && self.in_flight < self.allowed) {
            return None;
        }
        let interval = policy.intervals.wait(self.step, 0.5);
        let closed = self.closed_until.saturating_duration_since(now);
        Some(closed.max(interval / 2) + (interval / 2).mul_f64(random))
    }

    fn enter(&mut self, now: Instant) -> Option<Place> {
        self.used = now;
        self.is_down().then(|| {
            self.in_flight += 1;
            Place { gate: self.number, epoch: self.epoch }
        })
    }

    fn leave(&mut self, place: Option<Place>) {
        if place.is_some_and(|place| place.gate == self.number) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// `true` when the gate is open now.
    fn answered(&mut self) -> bool {
        self.step = self.step.min(1);
        self.allowed = self.allowed.saturating_mul(2);
        !self.is_down() || self.allowed > OPEN_AT
    }

    /// Calls that were sent before the fall, or together with one that failed, say nothing new.
    fn failed(&mut self, place: Option<Place>, after: u32, wait: impl Fn(u32) -> Duration, now: Instant) {
        self.used = now;
        if self.is_down() {
            if place != Some(Place { gate: self.number, epoch: self.epoch }) {
                return;
            }
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures < after {
                return;
            }
        }
        self.step = self.step.saturating_add(1);
        self.epoch += 1;
        self.allowed = 1;
        self.closed_until = now + wait(self.step);
    }
}

impl Book {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            keys: HashMap::new(),
            keys_down: 0,
            api: None,
            failing: Vec::new(),
            gates: 0,
            swept: None,
        }
    }

    /// How much is known, which is nothing while all is well.
    fn known(&self) -> usize {
        self.keys.len() + self.failing.len() + usize::from(self.api.is_some())
    }

    /// How many keys are down to a probe, and whether the API is.
    fn down(&self) -> (usize, bool) {
        (self.keys_down, self.api.is_some())
    }

    fn admit(&mut self, caller: Caller, now: Instant, random: f64) -> Result<Slot, Postponed> {
        let policy = &self.policy;
        let key = self.keys.get_mut(&caller.key);
        let postponed = |scope| move |after| Postponed { scope, after };
        let waits = key
            .as_ref()
            .and_then(|gate| gate.keeps_back(policy, now, random))
            .map(postponed(Scope::OwnerToolkit));
        let api = self.api.as_mut();
        let waits = waits.or_else(|| {
            let after = api.as_ref().and_then(|gate| gate.keeps_back(policy, now, random));
            after.map(postponed(Scope::Api))
        });
        match waits {
            Some(postponed) => Err(postponed),
            None => Ok(Slot {
                key: key.and_then(|gate| gate.enter(now)),
                api: api.and_then(|gate| gate.enter(now)),
            }),
        }
    }

    fn give_back(&mut self, caller: Caller, slot: Slot) {
        if let Some(gate) = self.keys.get_mut(&caller.key) {
            gate.leave(slot.key);
        }
        if let Some(gate) = &mut self.api {
            gate.leave(slot.api);
        }
    }

    fn answered(&mut self, caller: Caller, slot: Slot, now: Instant) {
        self.give_back(caller, slot);
        self.failing.clear();
        if self.keys.get_mut(&caller.key).is_some_and(Gate::answered)
            && let Some(gate) = self.keys.remove(&caller.key)
        {
            self.keys_down -= usize::from(gate.is_down());
        }
        if self.api.as_mut().is_some_and(Gate::answered) {
            self.api = None;
        }
        self.sweep(now);
    }

    fn failed(
        &mut self,
        caller: Caller,
        slot: Slot,
        retry_after: Option<Duration>,
        now: Instant,
        random: f64,
    ) {
        self.give_back(caller, slot);
        let Policy { after, intervals, max_retry_after } = self.policy;
        let asked = retry_after.unwrap_or_default().min(max_retry_after);
        let wait = |step| intervals.wait(step, random).max(asked);

        if !self.keys.contains_key(&caller.key) && self.make_room(now) {
            self.gates += 1;
            self.keys.insert(caller.key, Gate::new(self.gates, now));
        }
        if let Some(gate) = self.keys.get_mut(&caller.key) {
            let was_down = gate.is_down();
            gate.failed(slot.key, after, wait, now);
            self.keys_down += usize::from(gate.is_down() && !was_down);
        }

        if self.failing.len() < OWNERS && !self.failing.contains(&caller.owner) {
            self.failing.push(caller.owner);
        }
        if self.api.is_none() && self.failing.len() == OWNERS {
            self.gates += 1;
            let mut gate = Gate::new(self.gates, now);
            gate.failed(None, 1, wait, now);
            self.api = Some(gate);
        } else if let Some(gate) = &mut self.api {
            gate.failed(slot.api, 1, wait, now);
        }
        self.sweep(now);
    }

    /// Whether another key fits.
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
        self.keys.retain(|_, gate| {
            let idle = now.saturating_duration_since(gate.used.max(gate.closed_until));
            gate.in_flight > 0 || idle < FORGET_AFTER
        });
        self.keys_down = self.keys.values().filter(|gate| gate.is_down()).count();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        after: 3,
        intervals: Intervals {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            multiplier: 2.0,
            jitter: 0.2,
        },
        max_retry_after: Duration::from_secs(3_600),
    };

    fn caller(owner: u64) -> Caller {
        Caller { owner, key: owner * 100 }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Makes a call that the API does not answer.
    fn fail(book: &mut Book, caller: Caller, now: Instant) {
        let slot = book.admit(caller, now, 0.5).unwrap();
        book.failed(caller, slot, None, now, 0.5);
    }

    #[test]
    fn a_key_falls_to_one_probe_and_opens_step_by_step() {
        let (mut book, bad, start) = (Book::new(POLICY), caller(1), Instant::now());
        for _ in 0..3 {
            assert!(!book.down().1);
            fail(&mut book, bad, start);
        }
        assert_eq!(book.down(), (1, false));
        let postponed = book.admit(bad, start, 0.0).unwrap_err();
        assert_eq!(postponed, Postponed { scope: Scope::OwnerToolkit, after: secs(1) });
        assert!(book.admit(caller(2), start, 0.0).is_ok(), "others are not kept back");

        let mut now = start + secs(1);
        for wait in [2, 4, 8, 16, 32, 60, 60] {
            let probe = book.admit(bad, now, 0.5).unwrap();
            assert!(book.admit(bad, now, 0.5).is_err(), "one at a time");
            book.failed(bad, probe, None, now, 0.5);
            now += secs(wait) - Duration::from_millis(1);
            assert!(book.admit(bad, now, 0.5).is_err(), "{wait}");
            now += Duration::from_millis(1);
        }
        for allowed in [1, 2, 4, 8, 16, 32] {
            let slots: Vec<Slot> = (0..allowed).map(|_| book.admit(bad, now, 0.5).unwrap()).collect();
            assert!(book.admit(bad, now, 0.5).is_err(), "{allowed}");
            book.answered(bad, slots[0], now);
            slots[1..].iter().for_each(|slot| book.give_back(bad, *slot));
        }
        assert_eq!((book.known(), book.down()), (0, (0, false)), "nothing is left");
    }

    #[test]
    fn calls_that_were_made_together_are_one_failure() {
        let (mut book, bad, start) = (Book::new(POLICY), caller(1), Instant::now());
        let slots: Vec<Slot> = (0..50).map(|_| book.admit(bad, start, 0.5).unwrap()).collect();
        slots.iter().for_each(|slot| book.failed(bad, *slot, None, start, 0.5));
        let now = start + secs(1);
        let probe = book.admit(bad, now, 0.5).unwrap();
        book.answered(bad, probe, now);
        let two: Vec<Slot> = (0..2).map(|_| book.admit(bad, now, 0.5).unwrap()).collect();
        two.iter().for_each(|slot| book.failed(bad, *slot, None, now, 0.5));
        assert!(book.admit(bad, now + secs(2), 0.5).is_ok(), "two seconds, not four");
    }

    #[test]
    fn what_the_api_asks_for_is_kept() {
        let (mut book, bad, now) = (Book::new(POLICY), caller(1), Instant::now());
        for _ in 0..3 {
            let slot = book.admit(bad, now, 0.5).unwrap();
            book.failed(bad, slot, Some(secs(120)), now, 0.5);
        }
        assert!(book.admit(bad, now + secs(119), 0.0).unwrap_err().after >= secs(1));
        assert!(book.admit(bad, now + secs(120), 0.5).is_ok());
    }

    #[test]
    fn one_owner_never_stops_the_others_and_several_in_a_row_do() {
        let (mut book, now) = (Book::new(POLICY), Instant::now());
        for toolkit in 0..50 {
            fail(&mut book, Caller { owner: 1, key: toolkit }, now);
        }
        assert!(!book.down().1, "one owner, whatever the toolkit");
        for owner in 2..5 {
            fail(&mut book, caller(owner), now);
        }
        let good = caller(9);
        let slot = book.admit(good, now, 0.5).unwrap();
        book.answered(good, slot, now);
        for owner in 2..6 {
            fail(&mut book, caller(owner), now);
        }
        assert!(!book.down().1, "somebody was answered in between");
        fail(&mut book, caller(6), now);
        assert!(book.down().1);
        assert_eq!(book.admit(good, now, 0.5).unwrap_err().scope, Scope::Api);

        let mut now = now + secs(1);
        let probe = book.admit(good, now, 0.5).unwrap();
        assert!(book.admit(caller(10), now, 0.5).is_err());
        book.failed(good, probe, None, now, 0.5);
        assert!(book.admit(caller(10), now + secs(1), 0.5).is_err());
        now += secs(2);
        for _ in 0..6 {
            let slot = book.admit(caller(10), now, 0.5).unwrap();
            book.answered(caller(10), slot, now);
        }
        assert!(!book.down().1);
    }

    #[test]
    fn memory_is_bounded_and_what_nobody_calls_is_forgotten() {
        let (mut book, now) = (Book::new(POLICY), Instant::now());
        for key in 0..MAX_KEYS as u64 + 100 {
            book.failed(Caller { owner: 1, key }, Slot::default(), None, now, 0.5);
        }
        assert_eq!(book.keys.len(), MAX_KEYS);
        book.answered(Caller { owner: 1, key: 0 }, Slot::default(), now + FORGET_AFTER + SWEEP_EVERY);
        assert_eq!(book.known(), 0);
    }

    #[test]
    fn a_permit_that_is_dropped_makes_room_for_the_next() {
        let outages = Outages::new(Policy {
            intervals: Intervals { initial: Duration::ZERO, max: Duration::ZERO, ..POLICY.intervals },
            ..POLICY
        });
        let owner: Owner = "user:ann".parse().unwrap();
        for _ in 0..3 {
            outages.admit(&owner, "github").unwrap().failed(None);
        }
        let probe = outages.admit(&owner, "github").unwrap();
        assert!(outages.admit(&owner, "github").is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _probe = probe;
            panic!("in the middle of it");
        }));
        assert!(panicked.is_err());
        for _ in 0..6 {
            outages.admit(&owner, "github").unwrap().answered();
        }
        assert!(outages.is_idle());
    }

    proptest! {
        /// Whatever happens in whatever order: a gate that is down never has more calls in flight than it
        /// allowed, no key without failures is kept back for its own sake, and all opens once the API
        /// answers.
        #[test]
        fn probes_are_counted_and_everything_opens_again(
            steps in prop::collection::vec((0u64..8, 0u8..8, 0u64..5_000, 0.0f64..1.0), 1..400),
        ) {
            let mut book = Book::new(POLICY);
            let mut now = Instant::now();
            let mut calls: Vec<(Caller, Slot)> = Vec::new();
            let mut failed: Vec<u64> = Vec::new();
            for (owner, what, ms, random) in steps {
                now += Duration::from_millis(ms / 10);
                let who = caller(owner);
                match what {
                    0..=3 => {
                        let before: HashMap<u64, u32> =
                            book.keys.iter().filter(|(_, gate)| gate.is_down()).map(|(key, gate)| (*key, gate.allowed)).collect();
                        match book.admit(who, now, random) {
                            Ok(slot) => {
                                calls.push((who, slot));
                                if let Some(allowed) = before.get(&who.key) {
                                    prop_assert!(book.keys[&who.key].in_flight <= *allowed);
                                }
                                if let Some(api) = &book.api {
                                    prop_assert!(api.in_flight <= api.allowed);
                                }
                            }
                            Err(postponed) => {
                                let own = postponed.scope == Scope::OwnerToolkit;
                                prop_assert!(!own || failed.contains(&owner));
                                prop_assert!(postponed.after >= POLICY.intervals.initial / 2);
                                prop_assert!(postponed.after <= POLICY.intervals.max * 2);
                            }
                        }
                    }
                    _ if calls.is_empty() => {}
                    4 | 5 => {
                        let (who, slot) = calls.swap_remove(ms as usize % calls.len());
                        failed.push(who.owner);
                        book.failed(who, slot, None, now, random);
                    }
                    6 => {
                        let (who, slot) = calls.swap_remove(ms as usize % calls.len());
                        book.answered(who, slot, now);
                    }
                    _ => {
                        let (who, slot) = calls.swap_remove(ms as usize % calls.len());
                        book.give_back(who, slot);
                    }
                }
            }
            for (who, slot) in calls.drain(..) {
                book.give_back(who, slot);
            }
            let in_flight: u32 = book.keys.values().chain(&book.api).map(|gate| gate.in_flight).sum();
            prop_assert_eq!(in_flight, 0, "no slot is lost");
            for round in 0.. {
                now += POLICY.intervals.max * 2;
                for owner in 0..8 {
                    let who = caller(owner);
                    if let Ok(slot) = book.admit(who, now, 0.5) {
                        book.answered(who, slot, now);
                    }
                }
                if book.known() == 0 {
                    break;
                }
                prop_assert!(round < 20, "{book:?}");
            }
        }
    }
}
