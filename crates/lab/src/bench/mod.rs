//! The benchmark: the real worker against a stub of the tool API, and beside it, in the same run, a
//! baseline over the same services: a bare loop that shows what these and the client libraries allow.
//!
//! Every contender is a process of its own, so that its CPU time and memory are its own. The contenders are
//! measured in turn, because a shared host is never twice the same; only their ratio within one run means
//! anything. One of them can be the worker of another build, which is told everything in the words that builds
//! of the past and of the future share: the commands `bench-child worker`, `migrate` and `enqueue-bulk`, a few
//! settings, and the columns of `jobs` that say when a job was made, started and finished.
//!
//! What is there is not disturbed: every measurement has a database schema (or file) and a lane of its own,
//! which are removed afterwards. `docs/bench.md` says what the figures mean.

mod api;
mod baseline;
mod child;
mod contender;
mod database;
mod environment;
mod jobs;
mod limits;
mod measurement;
mod plan;
mod prepare;
mod recovery;
mod report;
mod statistics;
mod stub;

use std::time::Duration;

use anyhow::Result;
use errand::config::Config;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    api::{Figure, Plan as ApiPlan, run as run_api},
    child::Role,
    contender::{Task, run as run_child},
    database::use_schema_of_url,
    plan::{Backend, Http, Plan},
    prepare::{enqueue, migrate},
    report::Report,
};
use self::{
    child::check_program,
    environment::{Base, Environment},
    measurement::Measurement,
    plan::Contender,
    report::Level,
    stub::StubProcess,
};

/// Jobs at an even pace come at this share of the rate that the contender reached.
const PACE: f64 = 0.2;

/// Measures everything, telling `progress` what it is doing. When `stop` is cancelled, everything
/// that was created is removed before this returns.
///
/// # Errors
/// A service cannot be used, a contender failed, or the run was stopped.
pub(crate) async fn run(
    config: &Config,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(&str),
) -> Result<Report> {
    limits::check_open_files(plan.concurrency)?;
    if let Some(other) = &plan.other {
        check_program(other).await?;
    }
    let mut report = Report::new(plan);
    for delay in &plan.stub {
        let stub = StubProcess::start(*delay).await?;
        let mut level = level(Base { config, plan, stub: &stub }, stop, &progress).await?;
        level.peak_in_flight = stub.calls().await?.peak;
        report.levels.push(level);
        stub.stop().await?;
    }
    if plan.recover > 0 {
        let stub = StubProcess::start(Duration::ZERO).await?;
        let base = Base { config, plan, stub: &stub };
        for round in 1..=plan.rounds {
            progress(&format!("recovery of {} jobs, round {round} of {}", plan.recover, plan.rounds));
            let measured =
                async |environment: &Environment| recovery::measure(config, plan, environment).await;
            report.recoveries.push(Environment::with(base.around(), stop, measured).await?);
        }
        stub.stop().await?;
    }
    Ok(report)
}

/// All measurements against one stub.
async fn level(base: Base<'_>, stop: &CancellationToken, progress: &impl Fn(&str)) -> Result<Level> {
    let Base { plan, stub, .. } = base;
    let mut level = Level::new(stub.delay());
    let at = format!("stub of {} ms", stub.delay().as_millis());
    for round in 1..=plan.rounds {
        for contender in plan.contenders(round) {
            progress(&format!("{at}, round {round} of {}: {}", plan.rounds, contender.name()));
            let measurement = Measurement { base, contender };
            let measured = async |environment: &Environment| measurement.rate(environment, round).await;
            level.rates.push(Environment::with(base.around(), stop, measured).await?);
        }
    }
    level.compare();
    if plan.latency.is_zero() {
        return Ok(level);
    }
    for contender in plan.contenders(1) {
        let Some(pace) = level.rate_of(contender).map(|rate| rate * PACE) else { continue };
        // The baseline has no way in from outside but the broker.
        if plan.backend == Backend::Embedded && contender == Contender::Baseline {
            continue;
        }
        progress(&format!("{at}: latency of the {} at {pace:.0} jobs/s", contender.name()));
        let measurement = Measurement { base, contender };
        let measured = async |environment: &Environment| measurement.latency(environment, pace).await;
        level.latencies.push(Environment::with(base.around(), stop, measured).await?);
    }
    Ok(level)
}
