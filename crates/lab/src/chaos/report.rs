//! What became of all jobs, for people and for programs.

use std::collections::HashMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{Plan, cell::Cell, round::Outcome, stage::Backend, target::Kind};

/// Most complaints that are kept.
const COMPLAINTS: usize = 50;

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

    fn add(&mut self, other: &Self) {
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
    fn is_clean(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.stuck == 0
    }
}

/// Everything that one run saw.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    backend: Backend,
    api: Kind,
    seed: u64,
    cells: Vec<Row>,
    complaints: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip)]
    cell: Cell,
    name: &'static str,
    #[serde(flatten)]
    tally: Tally,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let row = |cell: &Cell| Row { cell: *cell, name: cell.name(), tally: Tally::default() };
        Self {
            backend: plan.backend,
            api: plan.api,
            seed: plan.seed,
            cells: plan.cells.iter().map(row).collect(),
            complaints: Vec::new(),
        }
    }

    /// Adds a round; returns a line about it.
    pub(super) fn add(&mut self, outcome: Outcome) -> String {
        let Outcome { cell, seed, tally, complaints, took } = outcome;
        let name = cell.name();
        if let Some(row) = self.cells.iter_mut().find(|row| row.cell == cell) {
            row.tally.add(&tally);
        }
        let mut line = format!(
            "{name}, seed {seed}: {} jobs, {} succeeded, {} failed, {} held, {} unknown, {:.0} s",
            tally.enqueued,
            tally.succeeded,
            tally.failed,
            tally.held,
            tally.unknown,
            took.as_secs_f64()
        );
        for complaint in complaints {
            line.push_str(&format!("\n  {complaint}"));
            if self.complaints.len() < COMPLAINTS {
                self.complaints.push(format!("{name}, seed {seed}: {complaint}"));
            }
        }
        line
    }

    /// Whether nothing was lost, done twice or stuck, and nothing else was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.complaints.is_empty() && self.cells.iter().all(|row| row.tally.is_clean())
    }

    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "FAULT", "ROUNDS", "ENQUEUED", "FINAL", "FAILED", "HELD", "LOST", "TWICE", "STUCK", "UNKNOWN",
            "ADOPTED", "REPEATED", "LATE", "GIVEN UP", "PEAK MB",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut total = Tally::default();
        for row in &self.cells {
            total.add(&row.tally);
            table.add_row(cells(row.name, &row.tally));
        }
        table.add_row(cells("all", &total));
        let services = match self.backend {
            Backend::Amqp => "RabbitMQ and PostgreSQL",
            Backend::Embedded => "the embedded queue and SQLite",
        };
        let mut text = format!("{services}, seed {}\n\n{table}\n\n", self.seed);
        for complaint in &self.complaints {
            text.push_str(complaint);
            text.push('\n');
        }
        text.push_str(match (self.is_clean(), total.rounds) {
            (_, 0) => "no round was played, so nothing is shown\n",
            (true, _) => "nothing lost, nothing done twice, nothing stuck\n",
            (false, _) => "the promise was broken, see above\n",
        });
        text
    }
}

fn cells(name: &str, tally: &Tally) -> Vec<String> {
    let numbers = [
        tally.rounds,
        tally.enqueued,
        tally.succeeded + tally.failed,
        tally.failed,
        tally.held,
        tally.lost,
        tally.twice,
        tally.stuck,
        tally.unknown,
        tally.adopted,
        tally.repeated,
        tally.late,
        tally.given_up,
        tally.peak_bytes / (1024 * 1024),
    ];
    std::iter::once(name.to_owned()).chain(numbers.iter().map(u64::to_string)).collect()
}
