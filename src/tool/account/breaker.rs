//! A circuit breaker for each connected account that calls were refused with lately. Pure: callers pass `now`.
//!
//! The tool API can list an account as active and refuse every call with it, because the provider has
//! taken the grant back. Without a breaker each job of the owner would be sent to find that out. For
//! a time that grows with every refusal the breaker is open and nobody calls with such an account; after that
//! one caller may probe, and the others wait for what it learns, but not for ever.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use crate::{backoff::Intervals, job::Owner, sync::lock};

/// Most accounts that are remembered. Where there are more, calls are made that could have been spared.
const CAPACITY: usize = 10_000;

/// An account, and whose jobs were refused with it: nobody can spoil another owner's account.
type Key = (Owner, String);

#[derive(Debug)]
pub(super) struct AccountBreaker {
    /// How long a breaker is open after each refusal in a row. The others wait for the longest of these for the
    /// one who probes.
    intervals: Intervals,
    /// So that nobody waits for a lock while nothing is refused.
    len: AtomicUsize,
    refused: Mutex<HashMap<Key, Refusals>>,
}

#[derive(Debug, Clone, Copy)]
struct Refusals {
    in_a_row: u32,
    open_until: Instant,
}

impl AccountBreaker {
    pub(super) fn new(intervals: Intervals) -> Self {
        Self { intervals, len: AtomicUsize::new(0), refused: Mutex::default() }
    }

    /// A call with this account was refused because of the account.
    pub(super) fn record_refusal(&self, owner: &Owner, account: &str, now: Instant) {
        let mut refused = self.refused();
        let key = (owner.clone(), account.to_owned());
        if refused.len() >= CAPACITY && !refused.contains_key(&key) {
            refused.retain(|_, refusals| now < refusals.open_until);
            if refused.len() >= CAPACITY {
                return;
            }
        }
        let refusals = refused.entry(key).or_insert(Refusals { in_a_row: 0, open_until: now });
        refusals.in_a_row = refusals.in_a_row.saturating_add(1);
        refusals.open_until = now + self.intervals.interval(refusals.in_a_row);
        self.len.store(refused.len(), Ordering::Relaxed);
    }

    /// Whether nobody may call with this account now.
    pub(super) fn is_open(&self, owner: &Owner, account: &str, now: Instant) -> bool {
        !self.is_empty()
            && self.refused().get(&(owner.clone(), account.to_owned())).is_some_and(|r| now < r.open_until)
    }

    /// Whether a call with this account may be made now. The first that may after a refusal is the probe, and
    /// opens the breaker for the others.
    pub(super) fn try_call(&self, owner: &Owner, account: &str, now: Instant) -> bool {
        if self.is_empty() {
            return true;
        }
        match self.refused().get_mut(&(owner.clone(), account.to_owned())) {
            Some(refusals) if now < refusals.open_until => false,
            Some(refusals) => {
                refusals.open_until = now + self.intervals.max;
                true
            }
            None => true,
        }
    }

    /// A call with this account was not refused because of the account.
    pub(super) fn close(&self, owner: &Owner, account: &str) {
        if !self.is_empty() {
            let mut refused = self.refused();
            refused.remove(&(owner.clone(), account.to_owned()));
            self.len.store(refused.len(), Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Key, Refusals>> {
        lock(&self.refused)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn breaker() -> AccountBreaker {
        AccountBreaker::new(Intervals::doubling(Duration::from_secs(2), LONGEST))
    }

    fn owner(text: &str) -> Owner {
        text.parse().unwrap()
    }

    #[test]
    fn after_a_refusal_nobody_calls_and_then_one_probes_for_all() {
        let (breaker, ann, start) = (breaker(), owner("user:ann"), Instant::now());
        assert!(breaker.try_call(&ann, "ca_1", start) && !breaker.is_open(&ann, "ca_1", start));
        let mut now = start;
        for wait in [2, 4, 8, 16, 30, 30] {
            breaker.record_refusal(&ann, "ca_1", now);
            now += Duration::from_secs(wait) - Duration::from_millis(1);
            assert!(breaker.is_open(&ann, "ca_1", now) && !breaker.try_call(&ann, "ca_1", now), "{wait}");
            now += Duration::from_millis(1);
            assert!(!breaker.is_open(&ann, "ca_1", now));
            assert!(breaker.try_call(&ann, "ca_1", now));
            assert!(!breaker.try_call(&ann, "ca_1", now), "one probes");
        }
        assert!(breaker.try_call(&ann, "ca_1", now + LONGEST), "the probe was never heard of again");
        assert!(breaker.try_call(&ann, "ca_2", now) && breaker.try_call(&owner("org:ann"), "ca_1", now));
        breaker.close(&ann, "ca_1");
        assert!(breaker.try_call(&ann, "ca_1", now) && breaker.try_call(&ann, "ca_1", now));
    }

    #[test]
    fn memory_is_bounded_and_a_full_one_spares_nothing_more() {
        let (breaker, now) = (breaker(), Instant::now());
        for n in 0..CAPACITY + 10 {
            breaker.record_refusal(&owner(&format!("user:{n}")), "ca", now);
        }
        assert_eq!(breaker.refused().len(), CAPACITY);
        assert!(breaker.try_call(&owner(&format!("user:{CAPACITY}")), "ca", now));
        breaker.record_refusal(&owner("user:late"), "ca", now + LONGEST);
        assert_eq!(breaker.refused().len(), 1, "what is over makes room");
    }
}
