//! The ledger: which calls came in, and which of them really had their effect.
//!
//! It is the sandbox's reason to exist. A worker may believe what it likes about a call that timed
//! out; the ledger knows. Counters are exact for as long as the sandbox runs. Details of effects,
//! and the memory of which jobs and requests were seen, are bounded: the oldest make room.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use super::{seeded::fingerprint, world::Effect};

/// How many effects are kept in detail.
pub(super) const EFFECTS_KEPT: usize = 250_000;

/// How many jobs, and how many request IDs, are remembered to notice a repetition.
pub(super) const IDENTITIES_KEPT: usize = 1_000_000;

/// How many repeated jobs, and repeated request IDs, the summary names. More are only counted.
const REPEATS_NAMED: usize = 1_000;

/// What the ledger says in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LedgerSummary {
    /// Execute requests that passed authentication and the rate limit, whatever became of them.
    pub calls: u64,
    /// Calls that really had their effect.
    pub effects: u64,
    /// Effects of tools that only read.
    pub effects_safe: u64,
    /// Effects of tools that may be repeated without harm.
    pub effects_idempotent: u64,
    /// Effects of tools that do it again when they are repeated.
    pub effects_once: u64,
    /// Effects of each tool.
    pub effects_by_tool: BTreeMap<String, u64>,
    /// Jobs that made a call.
    pub jobs: u64,
    /// Jobs that had more than one effect, of whatever kind.
    pub jobs_repeated: u64,
    /// Jobs that had more than one effect of tools that must run once. Anything but 0 is damage.
    pub jobs_repeated_once: u64,
    /// The jobs that had more than one effect, with how many; the first thousand.
    pub repeated_jobs: BTreeMap<String, u32>,
    /// Request IDs, of those that clients chose, that came with more than one call.
    pub request_ids_repeated: u64,
    /// Those request IDs, with how many calls; the first thousand.
    pub repeated_request_ids: BTreeMap<String, u32>,
    /// How many effects are kept in detail.
    pub effects_kept: u64,
}

/// One effect.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    /// Counts up from 1.
    pub(super) number: u64,
    pub(super) at: Timestamp,
    pub(super) tool: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) effect: Effect,
    pub(super) read_only: bool,
    pub(super) user: Arc<str>,
    pub(super) account: Option<Arc<str>>,
    pub(super) request_id: Arc<str>,
    pub(super) job: Option<Arc<str>>,
}

/// What is known of one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct JobCounts {
    pub(super) calls: u32,
    pub(super) effects: u32,
    pub(super) effects_once: u32,
}

/// Who calls, as fault rules identify it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) fingerprint: u128,
    /// Which call with that identity this is, from 1.
    pub(super) ordinal: u32,
}

/// Which effects to list.
#[derive(Debug, Default)]
pub(super) struct Filter<'a> {
    pub(super) tool: Option<&'a str>,
    pub(super) job: Option<&'a str>,
    pub(super) request_id: Option<&'a str>,
    /// Only effects with a greater number.
    pub(super) after: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Book>);

impl Ledger {
    /// Counts a call before anything else can happen to it. `chosen` says that the client made up
    /// the request ID, so that seeing it twice means something.
    pub(super) fn call(&self, request_id: &str, chosen: bool, job: Option<&str>) -> Identity {
        let request_key = fingerprint(request_id);
        let job_key = job.map(fingerprint);
        let mut book = self.book();
        book.summary.calls += 1;
        let mut identity = Identity { fingerprint: request_key, ordinal: 1 };
        if chosen {
            let calls = book.requests.entry(request_key);
            *calls += 1;
            identity.ordinal = *calls;
            if identity.ordinal > 1 {
                book.summary.request_ids_repeated += u64::from(identity.ordinal == 2);
                name_repeat(&mut book.summary.repeated_request_ids, request_id, identity.ordinal);
            }
        }
        if let Some(job_key) = job_key {
            let counts = book.jobs.entry(job_key);
            counts.calls += 1;
            identity = Identity { fingerprint: job_key, ordinal: counts.calls };
            book.summary.jobs += u64::from(identity.ordinal == 1);
        }
        identity
    }

    /// Records that a call had its effect.
    pub(super) fn effect(&self, mut entry: Entry) {
        let job_key = entry.job.as_deref().map(fingerprint);
        let once = entry.effect == Effect::Once;
        let mut book = self.book();
        book.summary.effects += 1;
        match entry.effect {
            Effect::Safe => book.summary.effects_safe += 1,
            Effect::Idempotent => book.summary.effects_idempotent += 1,
            Effect::Once => book.summary.effects_once += 1,
        }
        match book.by_tool.get_mut(&entry.tool) {
            Some(count) => *count += 1,
            None => {
                book.by_tool.insert(Arc::clone(&entry.tool), 1);
            }
        }
        if let (Some(key), Some(job)) = (job_key, &entry.job) {
            let counts = book.jobs.entry(key);
            counts.effects += 1;
            counts.effects_once += u32::from(once);
            let counts = *counts;
            if counts.effects > 1 {
                book.summary.jobs_repeated += u64::from(counts.effects == 2);
                book.summary.jobs_repeated_once += u64::from(once && counts.effects_once == 2);
                name_repeat(&mut book.summary.repeated_jobs, job, counts.effects);
            }
        }
        entry.number = book.summary.effects;
        if book.entries.len() == EFFECTS_KEPT {
            book.entries.pop_front();
        }
        book.entries.push_back(entry);
    }

    pub(super) fn summary(&self) -> LedgerSummary {
        let book = self.book();
        let mut summary = book.summary.clone();
        summary.effects_by_tool =
            book.by_tool.iter().map(|(tool, count)| (tool.to_string(), *count)).collect();
        summary.effects_kept = book.entries.len() as u64;
        summary
    }

    pub(super) fn job(&self, job: &str) -> JobCounts {
        self.book().jobs.map.get(&fingerprint(job)).copied().unwrap_or_default()
    }

    pub(super) fn tool_effects(&self, tool: &str) -> u64 {
        self.book().by_tool.get(tool).copied().unwrap_or(0)
    }

    /// The kept effects that pass `filter`, oldest first, up to `limit`, and whether there are more.
    pub(super) fn entries(&self, filter: &Filter<'_>, limit: usize) -> (Vec<Entry>, bool) {
        let book = self.book();
        let start = book.entries.partition_point(|entry| entry.number <= filter.after);
        let mut passing = book.entries.range(start..).filter(|entry| {
            filter.tool.is_none_or(|tool| *entry.tool == *tool)
                && filter.job.is_none_or(|job| entry.job.as_deref() == Some(job))
                && filter.request_id.is_none_or(|id| *entry.request_id == *id)
        });
        let found = passing.by_ref().take(limit).cloned().collect();
        (found, passing.next().is_some())
    }

    pub(super) fn clear(&self) {
        *self.book() = Book::default();
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Book {
    summary: LedgerSummary,
    by_tool: HashMap<Arc<str>, u64>,
    jobs: Recent<JobCounts>,
    requests: Recent<u32>,
    entries: VecDeque<Entry>,
}

/// A map that forgets the key it has known longest once it is full.
#[derive(Debug, Default)]
struct Recent<V> {
    map: HashMap<u128, V>,
    order: VecDeque<u128>,
}

impl<V: Default> Recent<V> {
    fn entry(&mut self, key: u128) -> &mut V {
        let order = &mut self.order;
        if !self.map.contains_key(&key) {
            if order.len() == IDENTITIES_KEPT
                && let Some(oldest) = order.pop_front()
            {
                self.map.remove(&oldest);
            }
            order.push_back(key);
        }
        self.map.entry(key).or_default()
    }
}

/// Names a repetition as long as there is room; a name that is there already is always brought up to date.
fn name_repeat(names: &mut BTreeMap<String, u32>, name: &str, count: u32) {
    if let Some(known) = names.get_mut(name) {
        *known = count;
    } else if names.len() < REPEATS_NAMED {
        names.insert(name.to_owned(), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_longest_is_forgotten_first() {
        let mut recent: Recent<u32> = Recent::default();
        for key in 0..IDENTITIES_KEPT as u128 {
            *recent.entry(key) += 1;
        }
        *recent.entry(0) += 1;
        assert_eq!(*recent.entry(0), 2, "nothing is forgotten while there is room");
        recent.entry(u128::MAX);
        assert_eq!(recent.map.len(), IDENTITIES_KEPT);
        assert!(!recent.map.contains_key(&0) && recent.map.contains_key(&1));
    }
}
