//! What really happened, whatever was answered.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::Value;

use super::{mischief::Mischief, world::ONCE_TOOLS};

/// A call of a tool.
#[derive(Clone, Debug)]
pub struct Call {
    /// The `x-request-id`.
    pub request_id: String,
    /// The `x-errand-job-id`; empty if there was none.
    pub job: String,
    /// The text `job` in the arguments, by which the sender can tell for itself what it asked for.
    pub argument: Option<String>,
    /// The tool.
    pub tool: String,
    /// The `user_id`.
    pub owner: String,
    /// The version that was asked for.
    pub version: Option<String>,
    /// The account that was asked for.
    pub account: Option<String>,
    /// What went wrong with it.
    pub mischief: Option<Mischief>,
    /// When it arrived, since the start.
    pub arrived: Duration,
    /// When the tool took effect, since the start.
    pub effect: Option<Duration>,
}

/// Everything that happened, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Calls that arrived whole and were not refused.
    pub calls: u64,
    /// Calls that were refused, because they named something that there is not.
    pub refused: u64,
    /// Effects.
    pub effects: u64,
    /// Jobs with an effect.
    pub jobs: u64,
    /// Jobs with several effects of a tool that must run once.
    pub repeated_once: u64,
    /// Request IDs that were sent more than once.
    pub repeated_requests: u64,
    /// Calls whose arguments name another job than their header.
    pub confused: u64,
    /// Calls with another owner's account.
    pub strangers: u64,
    /// Calls without a version.
    pub unpinned: u64,
    /// What went wrong, and how often.
    pub mischief: BTreeMap<&'static str, u64>,
}

/// An entry of the execution log.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) call: usize,
    pub(super) log_id: String,
    pub(super) successful: bool,
    pub(super) response: Value,
    pub(super) ended: Duration,
    /// When it can be found.
    pub(super) visible: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    calls: Vec<Call>,
    entries: Vec<Entry>,
    refused: u64,
    strangers: u64,
    unpinned: u64,
    mischief: BTreeMap<&'static str, u64>,
    /// How often each thing was asked for.
    asked: HashMap<String, u64>,
}

impl Ledger {
    /// How often this was asked for before.
    pub(super) fn ask(&mut self, subject: &str) -> u64 {
        let asked = self.asked.entry(subject.to_owned()).or_default();
        *asked += 1;
        *asked - 1
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.mischief.entry(what).or_default() += 1;
    }

    pub(super) fn refuse(&mut self) {
        self.refused += 1;
    }

    pub(super) fn stranger(&mut self) {
        self.strangers += 1;
    }

    /// Returns the place of the call.
    pub(super) fn arrive(&mut self, call: Call) -> usize {
        self.unpinned += u64::from(call.version.is_none());
        if let Some(mischief) = call.mischief {
            self.count(mischief.name());
        }
        self.calls.push(call);
        self.calls.len() - 1
    }

    /// The tool took effect.
    pub(super) fn effect(&mut self, call: usize, now: Duration) {
        if let Some(call) = self.calls.get_mut(call) {
            call.effect = Some(now);
        }
    }

    pub(super) fn log(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// The entries with their calls, oldest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Entry, &Call)> {
        self.entries.iter().filter_map(|entry| Some((entry, self.calls.get(entry.call)?)))
    }

    pub(super) fn calls(&self) -> &[Call] {
        &self.calls
    }

    pub(super) fn calls_of(&self, id: &str) -> u64 {
        self.of(id).count() as u64
    }

    pub(super) fn effects_of(&self, id: &str) -> u64 {
        self.of(id).filter(|call| call.effect.is_some()).count() as u64
    }

    fn of(&self, id: &str) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| {
            call.request_id == id || call.job == id || call.argument.as_deref() == Some(id)
        })
    }

    pub(super) fn summary(&self) -> Summary {
        let (mut jobs, mut requests) = (HashMap::<&str, (u64, bool)>::new(), HashMap::<&str, u64>::new());
        let mut confused = 0;
        for call in &self.calls {
            *requests.entry(&call.request_id).or_default() += 1;
            confused += u64::from(call.argument.as_deref().is_some_and(|named| named != call.job));
            if call.effect.is_some() {
                let job = jobs.entry(&call.job).or_default();
                job.0 += 1;
                job.1 |= ONCE_TOOLS.contains(&&*call.tool);
            }
        }
        Summary {
            calls: self.calls.len() as u64,
            refused: self.refused,
            effects: jobs.values().map(|(effects, _)| effects).sum(),
            jobs: jobs.len() as u64,
            repeated_once: jobs.values().filter(|(effects, once)| *once && *effects > 1).count() as u64,
            repeated_requests: requests.values().filter(|times| **times > 1).count() as u64,
            confused,
            strangers: self.strangers,
            unpinned: self.unpinned,
            mischief: self.mischief.clone(),
        }
    }
}
