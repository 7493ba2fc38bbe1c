//! What became of the jobs of a round, and of all rounds of one fault.

use std::{collections::HashMap, time::Duration};

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
    /// Counts the last word about each unknown outcome.
    pub(super) fn add_look_ups(&mut self, words: &HashMap<String, String>) {
        for word in words.values() {
            self.unknown += 1;
            match word.as_str() {
                "succeeded" | "failed" => self.adopted += 1,
                "never_arrived" => self.repeated += 1,
                "gave_up" => self.given_up += 1,
                _ => self.late += 1,
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
        self.unknown += unknown;
        self.adopted += adopted;
        self.repeated += repeated;
        self.late += late;
        self.given_up += given_up;
        self.peak_bytes = self.peak_bytes.max(peak_bytes);
    }

    /// What must be zero is zero.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.stuck == 0
    }
}
