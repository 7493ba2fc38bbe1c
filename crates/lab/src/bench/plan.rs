//! What a run measures, and with what.

use std::{path::PathBuf, time::Duration};

use super::database::Table;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The services.
    pub(crate) backend: Backend,
    /// How long the stub takes for an answer, one value after the other.
    pub(crate) stub: Vec<Duration>,
    /// Jobs of one measurement.
    pub(crate) jobs: usize,
    /// Jobs in flight at once.
    pub(crate) concurrency: u32,
    /// How often each contender is measured.
    pub(crate) rounds: usize,
    /// Whether the baseline takes part.
    pub(crate) baseline: bool,
    /// The program of another build, whose worker takes part.
    pub(crate) other: Option<PathBuf>,
    /// The protocol between the contenders and the stub.
    pub(crate) http: Http,
    /// Whether the worker of this build records events, and publishes them where there is a broker.
    pub(crate) events: bool,
    /// How long jobs come in at an even pace to measure latency; zero leaves it out.
    pub(crate) latency: Duration,
    /// Running jobs of a lost worker, to measure how long they take to be taken over; zero leaves it out.
    pub(crate) recover: usize,
}

/// The protocol between the contenders and the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Http {
    /// A connection for each call.
    #[value(name = "1.1")]
    One,
    /// A connection for every 100 calls.
    #[value(name = "2")]
    Two,
}

impl Plan {
    /// Everybody who is measured, in the order of a round. Every second round has the opposite order, so that a
    /// host that becomes slower harms all of them alike.
    pub(super) fn contenders(&self, round: usize) -> Vec<Contender> {
        let mut contenders = Vec::new();
        if self.baseline {
            contenders.push(Contender::Baseline);
        }
        contenders.push(Contender::Worker);
        if self.other.is_some() {
            contenders.push(Contender::Other);
        }
        if round.is_multiple_of(2) {
            contenders.reverse();
        }
        contenders
    }
}

impl Http {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::One => "1.1",
            Self::Two => "2",
        }
    }
}

/// The services under the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    /// RabbitMQ and PostgreSQL, from AMQP_URL and DATABASE_URL.
    Amqp,
    /// The queue in the process and SQLite, in a temporary folder.
    Embedded,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Contender {
    /// The worker of this build, with everything it does.
    Worker,
    /// The worker of another build.
    Other,
    /// Consume, one batched insert, call, one batched update, acknowledge.
    Baseline,
}

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Other => "other build",
            Self::Baseline => "baseline",
        }
    }

    /// Where its jobs are.
    pub(super) fn table(self) -> Table {
        match self {
            Self::Worker | Self::Other => Table::Jobs,
            Self::Baseline => Table::Baseline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_round_has_the_opposite_order() {
        let mut plan = Plan {
            backend: Backend::Embedded,
            stub: Vec::new(),
            jobs: 1,
            concurrency: 1,
            rounds: 2,
            baseline: false,
            other: Some("other".into()),
            http: Http::One,
            events: false,
            latency: Duration::ZERO,
            recover: 0,
        };
        assert_eq!(plan.contenders(1), [Contender::Worker, Contender::Other]);
        assert_eq!(plan.contenders(2), [Contender::Other, Contender::Worker]);
        plan.baseline = true;
        assert_eq!(plan.contenders(3), [Contender::Baseline, Contender::Worker, Contender::Other]);
        plan.other = None;
        assert_eq!(plan.contenders(2), [Contender::Worker, Contender::Baseline]);
    }
}
