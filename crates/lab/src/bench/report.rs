//! What was measured, for people and for programs.

use std::{path::PathBuf, time::Duration};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    plan::{Backend, Contender, Plan},
    recovery::Recovery,
    statistics::Spread,
};

/// Bytes of a megabyte, as memory is counted here.
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    backend: Backend,
    jobs: usize,
    concurrency: u32,
    rounds: usize,
    /// The program of the other build, if one took part.
    other: Option<PathBuf>,
    pub(super) levels: Vec<Level>,
    pub(super) recoveries: Vec<Recovery>,
}

/// Everything against a stub of one speed.
#[derive(Debug, Serialize)]
pub(super) struct Level {
    stub_ms: u64,
    /// The most calls that the stub saw at once.
    pub(super) peak_in_flight: u64,
    pub(super) rates: Vec<Rate>,
    pub(super) latencies: Vec<Latency>,
    /// How the worker of this build compares with that of the other.
    pub(super) comparison: Option<Comparison>,
}

/// One measurement through a full lane.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Rate {
    pub(super) contender: Contender,
    pub(super) round: usize,
    pub(super) jobs_per_second: f64,
    pub(super) seconds: f64,
    pub(super) cpu_seconds_per_1000: f64,
    pub(super) peak_bytes: u64,
}

/// One measurement of jobs at an even pace.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub(super) contender: Contender,
    pub(super) pace: f64,
    pub(super) jobs: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// This build divided by the other, in pairs of measurements of the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) jobs_per_second: Spread,
    pub(super) cpu_seconds_per_1000: Spread,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let Plan { backend, jobs, concurrency, rounds, .. } = *plan;
        let other = plan.other.clone();
        Self { backend, jobs, concurrency, rounds, other, levels: Vec::new(), recoveries: Vec::new() }
    }

    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let services = match self.backend {
            Backend::Amqp => "RabbitMQ and PostgreSQL",
            Backend::Embedded => "the embedded queue and SQLite",
        };
        let mut text = format!(
            "{} jobs per measurement, {} in flight, {} rounds, {services}\n\n{}\n\n",
            self.jobs,
            self.concurrency,
            self.rounds,
            self.table()
        );
        for level in &self.levels {
            text.push_str(&level.ratios());
        }
        for Recovery { jobs, first_seconds, all_seconds } in &self.recoveries {
            text.push_str(&format!(
                "{jobs} jobs of a lost worker: the first was taken over {first_seconds:.1} s after the lease ended, \
                 the last after {all_seconds:.1} s\n"
            ));
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "STUB",
            "CONTENDER",
            "JOBS/S",
            "LOWEST",
            "HIGHEST",
            "CPU S/1000",
            "PEAK MB",
            "P50 MS",
            "P99 MS",
        ]);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for level in &self.levels {
            let contenders = [Contender::Baseline, Contender::Worker, Contender::Other];
            for row in contenders.into_iter().filter_map(|contender| level.row(contender)) {
                table.add_row(row);
            }
        }
        table
    }
}

impl Level {
    pub(super) fn new(stub: Duration) -> Self {
        let stub_ms = u64::try_from(stub.as_millis()).unwrap_or(u64::MAX);
        Self { stub_ms, peak_in_flight: 0, rates: Vec::new(), latencies: Vec::new(), comparison: None }
    }

    /// The row of a contender, if it was measured.
    fn row(&self, contender: Contender) -> Option<[String; 9]> {
        let rates = Spread::of(self.figures(contender, |rate| rate.jobs_per_second))?;
        let cpu = Spread::of(self.figures(contender, |rate| rate.cpu_seconds_per_1000))?;
        let latency = self.latencies.iter().find(|latency| latency.contender == contender);
        let milliseconds = |pick: fn(&Latency) -> f64| {
            latency.map_or_else(|| "-".to_owned(), |latency| format!("{:.1}", pick(latency)))
        };
        Some([
            format!("{} ms", self.stub_ms),
            contender.name().to_owned(),
            format!("{:.0}", rates.median),
            format!("{:.0}", rates.lowest),
            format!("{:.0}", rates.highest),
            format!("{:.3}", cpu.median),
            format!("{:.1}", self.peak_megabytes(contender)),
            milliseconds(|latency| latency.p50_ms),
            milliseconds(|latency| latency.p99_ms),
        ])
    }

    /// What the figures are to each other, a line each.
    fn ratios(&self) -> String {
        let stub_ms = self.stub_ms;
        // Against a stub without a delay the count would only tell how the stub works.
        let in_flight = match stub_ms {
            0 => String::new(),
            _ => format!(", up to {} calls in flight", self.peak_in_flight),
        };
        let ratio = self.ratio().map_or_else(String::new, |(ratio, lowest, highest)| {
            format!(", worker / baseline = {ratio:.2} (medians; round by round {lowest:.2} to {highest:.2})")
        });
        let mut text = format!("stub of {stub_ms} ms{in_flight}{ratio}\n");
        if let Some(Comparison { jobs_per_second, cpu_seconds_per_1000 }) = &self.comparison {
            text.push_str(&format!(
                "stub of {stub_ms} ms, this build / other build, {} pairs: jobs/s {jobs_per_second}, CPU per job \
                 {cpu_seconds_per_1000}\n",
                jobs_per_second.count
            ));
        }
        text
    }

    /// Compares the worker of this build with that of the other, if both were measured.
    pub(super) fn compare(&mut self) {
        let pairs = |figure| self.pairs(Contender::Worker, Contender::Other, figure);
        let jobs_per_second = pairs(|rate| rate.jobs_per_second);
        let cpu_seconds_per_1000 = pairs(|rate| rate.cpu_seconds_per_1000);
        self.comparison =
            jobs_per_second.zip(cpu_seconds_per_1000).map(|(jobs_per_second, cpu_seconds_per_1000)| {
                Comparison { jobs_per_second, cpu_seconds_per_1000 }
            });
    }

    /// The median rate of a contender.
    pub(super) fn rate_of(&self, contender: Contender) -> Option<f64> {
        Spread::of(self.figures(contender, |rate| rate.jobs_per_second)).map(|rates| rates.median)
    }

    /// The measurements of a contender, round by round.
    fn measurements(&self, contender: Contender) -> impl Iterator<Item = &Rate> {
        self.rates.iter().filter(move |rate| rate.contender == contender)
    }

    /// A figure of every measurement of a contender, round by round.
    fn figures(&self, contender: Contender, figure: fn(&Rate) -> f64) -> Vec<f64> {
        self.measurements(contender).map(figure).collect()
    }

    fn peak_megabytes(&self, contender: Contender) -> f64 {
        self.measurements(contender).map(|rate| rate.peak_bytes).max().unwrap_or(0) as f64 / MEGABYTE
    }

    /// The ratio of the medians, and the lowest and highest ratio of a round.
    fn ratio(&self) -> Option<(f64, f64, f64)> {
        let ratio = self.rate_of(Contender::Worker)? / self.rate_of(Contender::Baseline)?;
        let pairs = self.pairs(Contender::Worker, Contender::Baseline, |rate| rate.jobs_per_second)?;
        Some((ratio, pairs.lowest, pairs.highest))
    }

    /// A figure of one contender divided by that of another, round by round.
    fn pairs(&self, this: Contender, other: Contender, figure: fn(&Rate) -> f64) -> Option<Spread> {
        let pairs = self.measurements(this).zip(self.measurements(other));
        Spread::of(pairs.map(|(this, other)| figure(this) / figure(other)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(contender: Contender, jobs_per_second: f64) -> Rate {
        Rate {
            contender,
            round: 1,
            jobs_per_second,
            seconds: 1.0,
            cpu_seconds_per_1000: 0.1,
            peak_bytes: 1 << 20,
        }
    }

    #[test]
    fn the_ratio_is_of_medians_and_shows_its_spread() {
        let mut level = Level::new(Duration::ZERO);
        assert!(level.ratio().is_none());
        level.rates = vec![
            rate(Contender::Baseline, 1000.0),
            rate(Contender::Worker, 600.0),
            rate(Contender::Baseline, 2000.0),
            rate(Contender::Worker, 1000.0),
        ];
        assert_eq!(level.ratio(), Some((800.0 / 1500.0, 0.5, 0.6)));
        let report = Report {
            backend: Backend::Amqp,
            jobs: 1,
            concurrency: 1,
            rounds: 2,
            other: None,
            levels: vec![level],
            recoveries: Vec::new(),
        };
        assert!(report.text().contains("0.53 (medians; round by round 0.50 to 0.60)"), "{}", report.text());
    }

    #[test]
    fn builds_are_compared_round_by_round() {
        let mut level = Level::new(Duration::ZERO);
        level.compare();
        assert_eq!(level.comparison, None);
        for (round, this, other) in [(1, 1100.0, 1000.0), (2, 900.0, 1000.0), (3, 2400.0, 2000.0)] {
            let mut pair = [rate(Contender::Worker, this), rate(Contender::Other, other)];
            if round == 2 {
                pair.reverse();
            }
            level.rates.extend(pair);
        }
        level.compare();
        let comparison = level.comparison.unwrap();
        let Spread { count, lowest, median, highest, .. } = comparison.jobs_per_second;
        assert_eq!((count, lowest, median, highest), (3, 0.9, 1.1, 1.2));
        assert_eq!(comparison.cpu_seconds_per_1000.highest, 1.0);
        assert_eq!(
            comparison.jobs_per_second.to_string(),
            "1.100 (quartiles 1.000 and 1.150, from 0.900 to 1.200)"
        );
    }
}
