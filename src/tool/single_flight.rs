//! A bounded cache with single flight: callers that miss the same key at the same time share one request.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use tokio::time::Instant;

use super::ToolError;
use crate::sync::lock;

/// The longest that one fetch may take, whatever the API behind it promises.
const MAX_FETCH: Duration = Duration::from_secs(60);

/// Flights that everybody stopped waiting for are swept out when there are so many.
const SWEEP_AT: usize = 256;

type Fetch<V> = BoxFuture<'static, Result<V, ToolError>>;

/// A cache of values, each with a time to live of its own. An error goes to those who wait and is not kept.
pub(super) struct SingleFlightCache<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    values: quick_cache::sync::Cache<K, Entry<V>>,
    flights: Mutex<Flights<K, V>>,
}

struct Flights<K, V> {
    by_key: HashMap<K, Flight<V>>,
    next: u64,
}

/// A fetch under way. Only those who wait for it keep it alive, so that a fetch nobody wants any
/// more ends.
struct Flight<V> {
    number: u64,
    fetch: WeakShared<Fetch<V>>,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    until: Instant,
}

impl<K, V> SingleFlightCache<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            values: quick_cache::sync::Cache::new(capacity.max(1)),
            flights: Mutex::new(Flights { by_key: HashMap::new(), next: 0 }),
        }))
    }

    /// The value, while it is fresh.
    pub(super) fn fresh(&self, key: &K) -> Option<V> {
        let entry = self.0.values.get(key)?;
        (Instant::now() < entry.until).then_some(entry.value)
    }

    /// The value, even when its time is over.
    pub(super) fn stale(&self, key: &K) -> Option<V> {
        self.0.values.get(key).map(|entry| entry.value)
    }

    /// Keeps a value that came along with another one.
    pub(super) fn insert(&self, key: K, value: V, ttl: Duration) {
        self.0.insert(key, value, ttl);
    }

    /// Ends the time of a value.
    pub(super) fn expire(&self, key: &K) {
        if let Some(entry) = self.0.values.get(key) {
            self.0.values.insert(key.clone(), Entry { until: Instant::now(), ..entry });
        }
    }

    /// Drops a value, also one that is being fetched: whoever waits for it still gets it, but the
    /// next caller asks anew.
    pub(super) fn forget(&self, key: &K) {
        self.0.flights().by_key.remove(key);
        self.0.values.remove(key);
    }

    /// The value, fetched unless it is fresh. `ttl` says how long a fetched value is kept.
    pub(super) async fn get_or_fetch(
        &self,
        key: K,
        ttl: impl FnOnce(&V) -> Duration + Send + 'static,
        fetch: impl FnOnce() -> Fetch<V>,
    ) -> Result<V, ToolError> {
        if let Some(value) = self.fresh(&key) {
            return Ok(value);
        }
        self.join(key, ttl, fetch).await
    }

    fn join(
        &self,
        key: K,
        ttl: impl FnOnce(&V) -> Duration + Send + 'static,
        fetch: impl FnOnce() -> Fetch<V>,
    ) -> Shared<Fetch<V>> {
        let mut flights = self.0.flights();
        // A fetch may have ended between the caller's look-up and the lock.
        if let Some(value) = self.fresh(&key) {
            return std::future::ready(Ok(value)).boxed().shared();
        }
        if let Some(under_way) = flights.by_key.get(&key).and_then(|flight| flight.fetch.upgrade()) {
            return under_way;
        }
        if flights.by_key.len() >= SWEEP_AT {
            flights.by_key.retain(|_, flight| flight.fetch.upgrade().is_some());
        }
        flights.next += 1;
        let number = flights.next;
        let (inner, fetched, fetch) = (self.0.clone(), key.clone(), fetch());
        let flight = async move {
            let result = tokio::time::timeout(MAX_FETCH, fetch)
                .await
                .unwrap_or_else(|_| Err(ToolError::Unavailable("the look-up took too long".into())));
            inner.complete(fetched, number, &result, ttl);
            result
        };
        let shared = flight.boxed().shared();
        if let Some(fetch) = shared.downgrade() {
            flights.by_key.insert(key, Flight { number, fetch });
        }
        shared
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Inner<K, V> {
    /// Ends a flight. What was forgotten while it was under way is not kept.
    fn complete(&self, key: K, number: u64, result: &Result<V, ToolError>, ttl: impl FnOnce(&V) -> Duration) {
        let mut flights = self.flights();
        if flights.by_key.get(&key).is_none_or(|flight| flight.number != number) {
            return;
        }
        flights.by_key.remove(&key);
        if let Ok(value) = result {
            self.insert(key, value.clone(), ttl(value));
        }
    }

    fn insert(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let until = now.checked_add(ttl).unwrap_or(now);
        self.values.insert(key, Entry { value, until });
    }

    fn flights(&self) -> MutexGuard<'_, Flights<K, V>> {
        lock(&self.flights)
    }
}

impl<K, V> fmt::Debug for SingleFlightCache<K, V> {
    /// Without contents: keys name owners.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlightCache").finish_non_exhaustive()
    }
}
