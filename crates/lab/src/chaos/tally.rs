//! What became of the jobs of a round, and of all rounds of one fault.

use std::{collections::BTreeMap, time::Duration};

use errand::{
    job::{AttemptOutcome, HeldReason},
    store::{HistoryEntry, HistoryFact},
};
use serde::Serialize;

use super::fault::Fault;

/// A round that was played.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) fault: Fault,
    pub(super) seed: u64,
    pub(super) tally: Tally,
    /// What was wrong, a line each.
    pub(super) complaints: Vec<String>,
    pub(super) took: Duration,
}

/// What became of jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub(super) rounds: u64,
    pub(super) enqueued: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    /// Waiting for a person.
    pub(super) held: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
    pub(super) stuck: u64,
    /// Events that were recorded.
    pub(super) events: u64,
    /// What was not told of them in one of the ways, or told in a wrong order.
    pub(super) untold: u64,
    /// How often one was told again, in all ways.
    pub(super) told_again: u64,
    /// Calls whose outcome was unknown and that were looked for in the execution log.
    pub(super) unknown: u64,
    /// Of these: the log had the answer.
    pub(super) adopted: u64,
    /// The call never arrived and was made again.
    pub(super) repeated: u64,
    /// The worker's own answer came late and was taken.
    pub(super) late: u64,
    /// A person has to look.
    pub(super) given_up: u64,
    /// The most memory that a worker had that was there at the end.
    pub(super) peak_bytes: u64,
}

impl Tally {
    /// Counts the attempts of one job whose outcome was looked up, by how the looking ended.
    pub(super) fn add_look_ups(&mut self, history: &[HistoryEntry]) {
        let mut looked_up: BTreeMap<Option<u32>, Option<&HistoryFact>> = BTreeMap::new();
        for HistoryEntry { attempt, fact, .. } in history {
            match fact {
                HistoryFact::LookedUp { .. } => {
                    looked_up.entry(*attempt).or_default();
                }
                HistoryFact::Adopted { .. } | HistoryFact::Held { reason: HeldReason::UnknownOutcome } => {
                    looked_up.insert(*attempt, Some(fact));
                }
                _ => {}
            }
        }
        for end in looked_up.values() {
            self.unknown += 1;
            match end {
                Some(HistoryFact::Adopted { outcome: AttemptOutcome::NotSent }) => self.repeated += 1,
                Some(HistoryFact::Adopted { .. }) => self.adopted += 1,
                Some(_) => self.given_up += 1,
                None => self.late += 1,
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            rounds,
            enqueued,
            succeeded,
            failed,
            held,
            lost,
            twice,
            stuck,
            events,
            untold,
            told_again,
            unknown,
            adopted,
            repeated,
            late,
            given_up,
            peak_bytes,
        } = *other;
        self.rounds += rounds;
        self.enqueued += enqueued;
        self.succeeded += succeeded;
        self.failed += failed;
        self.held += held;
        self.lost += lost;
        self.twice += twice;
        self.stuck += stuck;
        self.events += events;
        self.untold += untold;
        self.told_again += told_again;
        self.unknown += unknown;
        self.adopted += adopted;
        self.repeated += repeated;
        self.late += late;
        self.given_up += given_up;
        self.peak_bytes = self.peak_bytes.max(peak_bytes);
    }

    /// What must be zero is zero.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.stuck == 0 && self.untold == 0
    }
}
