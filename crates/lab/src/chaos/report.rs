//! What became of all jobs, for people and for programs.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    backend::Backend,
    fault::Fault,
    plan::Plan,
    tally::{Outcome, Tally},
    tool_api::Kind,
};

/// Most complaints that are kept.
const COMPLAINTS: usize = 50;

/// Everything that one run saw.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    backend: Backend,
    api: Kind,
    seed: u64,
    faults: Vec<Row>,
    complaints: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip)]
    fault: Fault,
    name: &'static str,
    #[serde(flatten)]
    tally: Tally,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let row = |fault: &Fault| Row { fault: *fault, name: fault.name(), tally: Tally::default() };
        Self {
            backend: plan.backend,
            api: plan.api,
            seed: plan.seed,
            faults: plan.faults.iter().map(row).collect(),
            complaints: Vec::new(),
        }
    }

    /// Adds a round; returns a line about it.
    pub(super) fn add(&mut self, outcome: Outcome) -> String {
        let Outcome { fault, seed, tally, complaints, took } = outcome;
        let name = fault.name();
        if let Some(row) = self.faults.iter_mut().find(|row| row.fault == fault) {
            row.tally.add(&tally);
        }
        let mut line = format!(
            "{name}, seed {seed}: {} jobs, {} succeeded, {} failed, {} held, {} unknown, {} events, {:.0} s",
            tally.enqueued,
            tally.succeeded,
            tally.failed,
            tally.held,
            tally.unknown,
            tally.events,
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

    /// Whether nothing was lost, done twice, stuck or untold, and nothing else was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.complaints.is_empty() && self.faults.iter().all(|row| row.tally.is_clean())
    }

    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "FAULT",
            "ROUNDS",
            "ENQUEUED",
            "FINAL",
            "FAILED",
            "HELD",
            "LOST",
            "TWICE",
            "STUCK",
            "EVENTS",
            "UNTOLD",
            "TOLD AGAIN",
            "UNKNOWN",
            "ADOPTED",
            "REPEATED",
            "LATE",
            "GIVEN UP",
            "PEAK MB",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut total = Tally::default();
        for row in &self.faults {
            total.add(&row.tally);
            table.add_row(table_row(row.name, &row.tally));
        }
        table.add_row(table_row("all", &total));
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
            (true, _) => "nothing lost, nothing done twice, nothing stuck, nothing untold\n",
            (false, _) => "the promise was broken, see above\n",
        });
        text
    }
}

fn table_row(name: &str, tally: &Tally) -> Vec<String> {
    let numbers = [
        tally.rounds,
        tally.enqueued,
        tally.succeeded + tally.failed,
        tally.failed,
        tally.held,
        tally.lost,
        tally.twice,
        tally.stuck,
        tally.events,
        tally.untold,
        tally.told_again,
        tally.unknown,
        tally.adopted,
        tally.repeated,
        tally.late,
        tally.given_up,
        tally.peak_bytes / (1024 * 1024),
    ];
    std::iter::once(name.to_owned()).chain(numbers.iter().map(u64::to_string)).collect()
}
