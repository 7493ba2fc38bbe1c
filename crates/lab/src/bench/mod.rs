//! The benchmark: the real worker against a stub of the tool API, and beside it, in the same run, a
//! bare loop over the same services as the limit.
//!
//! Every measured party is a process of its own, so that its CPU time and memory are its own. The
//! parties take turns, because a shared host is never twice the same; only their ratio within one
//! run means anything.
//!
//! What is there is not disturbed: every turn has a database schema (or file) and a lane of its own,
//! which are removed afterwards. `docs/bench.md` says what the figures mean.

mod bare;
mod child;
mod database;
mod jobs;
mod limits;
mod party;
mod recovery;
mod report;
mod stage;
mod stub;
mod turn;

use std::time::Duration;

use anyhow::Result;
use errand::config::Config;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    child::Role,
    party::{Part, play},
    report::Report,
};
use self::{database::Table, report::Level, stage::Stage, stub::StubProcess, turn::Turn};

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The services.
    pub(crate) backend: Backend,
    /// How long the stub takes for an answer, one value after the other.
    pub(crate) stub: Vec<Duration>,
    /// Jobs of one turn.
    pub(crate) jobs: usize,
    /// Jobs in flight at once.
    pub(crate) concurrency: u32,
    /// How often each party has its turn.
    pub(crate) rounds: usize,
    /// Whether the bare loop takes part.
    pub(crate) bare: bool,
    /// The protocol between the parties and the stub.
    pub(crate) http: Http,
    /// How long jobs come in at an even pace to measure latency; zero leaves it out.
    pub(crate) latency: Duration,
    /// Running jobs of a lost worker, to measure how long they take to be taken over; zero leaves it out.
    pub(crate) recover: usize,
}

/// The protocol between the parties and the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Http {
    /// A connection for each call.
    #[value(name = "1.1")]
    One,
    /// A connection for every 100 calls.
    #[value(name = "2")]
    Two,
}

impl Http {
    fn as_str(self) -> &'static str {
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

/// Who has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Party {
    /// The worker, with everything it does.
    Worker,
    /// Consume, one batched insert, call, one batched update, acknowledge.
    Bare,
}

impl Party {
    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Bare => "bare loop",
        }
    }

    /// Where its jobs are.
    fn table(self) -> Table {
        match self {
            Self::Worker => Table::Jobs,
            Self::Bare => Table::Bare,
        }
    }
}

/// Jobs at an even pace come at this share of the rate that the party reached.
const PACE: f64 = 0.2;

/// Measures everything, telling `progress` what it is doing. When `stop` is cancelled, everything
/// that was created is removed before this returns.
///
/// # Errors
/// A service cannot be used, a party failed, or the run was stopped.
pub(crate) async fn run(
    config: &Config,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(&str),
) -> Result<Report> {
    limits::check_open_files(plan.concurrency)?;
    let mut report = Report::new(plan);
    for delay in &plan.stub {
        let stub = StubProcess::start(*delay).await?;
        let mut level = level(config, plan, &stub, stop, &progress).await?;
        level.peak_in_flight = stub.calls().await?.peak;
        report.levels.push(level);
        stub.stop().await?;
    }
    if plan.recover > 0 {
        let stub = StubProcess::start(Duration::ZERO).await?;
        for round in 1..=plan.rounds {
            progress(&format!("recovery of {} jobs, round {round} of {}", plan.recover, plan.rounds));
            let measured = async |stage: &Stage| recovery::measure(config, plan, &stub, stage).await;
            report.recoveries.push(Stage::with(config, plan, stop, measured).await?);
        }
        stub.stop().await?;
    }
    Ok(report)
}

/// All turns against one stub.
async fn level(
    config: &Config,
    plan: &Plan,
    stub: &StubProcess,
    stop: &CancellationToken,
    progress: &impl Fn(&str),
) -> Result<Level> {
    let mut level = Level::new(stub.delay());
    let parties: &[Party] = if plan.bare { &[Party::Bare, Party::Worker] } else { &[Party::Worker] };
    let at = format!("stub of {} ms", stub.delay().as_millis());
    for round in 1..=plan.rounds {
        for party in parties {
            progress(&format!("{at}, round {round} of {}: {}", plan.rounds, party.name()));
            let turn = Turn { config, plan, stub, party: *party };
            level.rates.push(Stage::with(config, plan, stop, async |stage| turn.rate(stage).await).await?);
        }
    }
    if plan.latency.is_zero() {
        return Ok(level);
    }
    for party in parties {
        let Some(pace) = level.rate_of(*party).map(|rate| rate * PACE) else { continue };
        // The bare loop has no way in from outside but the broker.
        if plan.backend == Backend::Embedded && *party == Party::Bare {
            continue;
        }
        progress(&format!("{at}: latency of the {} at {pace:.0} jobs/s", party.name()));
        let turn = Turn { config, plan, stub, party: *party };
        let measured = async |stage: &Stage| turn.latency(stage, pace).await;
        level.latencies.push(Stage::with(config, plan, stop, measured).await?);
    }
    Ok(level)
}
