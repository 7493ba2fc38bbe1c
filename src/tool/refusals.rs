//! Accounts that calls were refused with lately. Pure: callers pass `now`.
//!
//! The tool API can list an account as active and refuse every call with it, because the provider has
//! taken the grant back. Without this memory each job of the owner would be sent to find that out. For
//! a time that grows with every refusal nobody calls with such an account; after that one caller may
//! try, and the others wait for what it learns, but not for ever.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{job::Owner, sync::lock};

/// Most accounts that are remembered. Where there are more, calls are made that could have been spared.
const CAPACITY: usize = 10_000;

/// An account, and whose jobs were refused with it: nobody can spoil another owner's account.
type Key = (Owner, String);

/// The memory.
#[derive(Debug)]
pub(super) struct Refusals {
    /// How long nobody calls after the first refusal; doubles with every further one.
    first: Duration,
    /// The ceiling of that, and how long the others wait for the one who tries.
    longest: Duration,
    /// So that nobody waits for a lock while nothing is refused.
    len: AtomicUsize,
    known: Mutex<HashMap<Key, Refusal>>,
}

#[derive(Debug, Clone, Copy)]
struct Refusal {
    times: u32,
    until: Instant,
}

impl Refusals {
    /// Remembers nothing yet.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, len: AtomicUsize::new(0), known: Mutex::default() }
    }

    /// A call with this account was refused because of the account.
    pub(super) fn note(&self, owner: &Owner, account: &str, now: Instant) {
        let mut known = self.known();
        let key = (owner.clone(), account.to_owned());
        if known.len() >= CAPACITY && !known.contains_key(&key) {
            known.retain(|_, refusal| now < refusal.until);
            if known.len() >= CAPACITY {
                return;
            }
        }
        let refusal = known.entry(key).or_insert(Refusal { times: 0, until: now });
        refusal.times = refusal.times.saturating_add(1);
        refusal.until = now + self.first.saturating_mul(1 << (refusal.times - 1).min(8)).min(self.longest);
        self.len.store(known.len(), Ordering::Relaxed);
    }

    /// Whether a call with this account would be spared now.
    pub(super) fn stands(&self, owner: &Owner, account: &str, now: Instant) -> bool {
        !self.is_empty()
            && self.known().get(&(owner.clone(), account.to_owned())).is_some_and(|r| now < r.until)
    }

    /// Whether a call with this account may be made now. The first who may after a refusal keeps the
    /// others waiting.
    pub(super) fn admits(&self, owner: &Owner, account: &str, now: Instant) -> bool {
        if self.is_empty() {
            return true;
        }
        match self.known().get_mut(&(owner.clone(), account.to_owned())) {
            Some(refusal) if now < refusal.until => false,
            Some(refusal) => {
                refusal.until = now + self.longest;
                true
            }
            None => true,
        }
    }

    /// A call with this account was not refused because of the account.
    pub(super) fn clear(&self, owner: &Owner, account: &str) {
        if !self.is_empty() {
            let mut known = self.known();
            known.remove(&(owner.clone(), account.to_owned()));
            self.len.store(known.len(), Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Refusal>> {
        lock(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn refusals() -> Refusals {
        Refusals::new(Duration::from_secs(2), LONGEST)
    }

    fn owner(text: &str) -> Owner {
        text.parse().unwrap()
    }

    #[test]
    fn after_a_refusal_nobody_calls_and_then_one_tries_for_all() {
        let (refusals, ann, start) = (refusals(), owner("user:ann"), Instant::now());
        assert!(refusals.admits(&ann, "ca_1", start) && !refusals.stands(&ann, "ca_1", start));
        let mut now = start;
        for wait in [2, 4, 8, 16, 30, 30] {
            refusals.note(&ann, "ca_1", now);
            now += Duration::from_secs(wait) - Duration::from_millis(1);
            assert!(refusals.stands(&ann, "ca_1", now) && !refusals.admits(&ann, "ca_1", now), "{wait}");
            now += Duration::from_millis(1);
            assert!(!refusals.stands(&ann, "ca_1", now));
            assert!(refusals.admits(&ann, "ca_1", now));
            assert!(!refusals.admits(&ann, "ca_1", now), "one tries");
        }
        assert!(refusals.admits(&ann, "ca_1", now + LONGEST), "the one who tried was never heard of again");
        assert!(refusals.admits(&ann, "ca_2", now) && refusals.admits(&owner("org:ann"), "ca_1", now));
        refusals.clear(&ann, "ca_1");
        assert!(refusals.admits(&ann, "ca_1", now) && refusals.admits(&ann, "ca_1", now));
    }

    #[test]
    fn memory_is_bounded_and_a_full_one_spares_nothing_more() {
        let (refusals, now) = (refusals(), Instant::now());
        for n in 0..CAPACITY + 10 {
            refusals.note(&owner(&format!("user:{n}")), "ca", now);
        }
        assert_eq!(refusals.known().len(), CAPACITY);
        assert!(refusals.admits(&owner(&format!("user:{CAPACITY}")), "ca", now));
        refusals.note(&owner("user:late"), "ca", now + LONGEST);
        assert_eq!(refusals.known().len(), 1, "what is over makes room");
    }
}
