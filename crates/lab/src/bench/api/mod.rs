//! The benchmark of the HTTP API: each figure beside the primitive that it stands on, in the same run.
//!
//! The API is a process of its own and does all that `errand api` does. Whoever asks it is this process, over
//! connections that cost as little as possible, because they share the processors with what is measured.
//! `docs/bench.md` says what the figures mean.

mod bare;
mod batches;
mod by_sql;
mod callbacks;
mod client;
mod enqueue;
mod fill;
mod held;
mod lists;
mod report;
mod server;

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand::config::Config;
use tokio_util::sync::CancellationToken;

use self::report::Report;
use super::{
    environment::{Around, Environment},
    limits,
    plan::{Backend, Http},
    statistics::Spread,
};

/// Hardly anything of what is measured calls the tool API, so nobody listens there.
const NO_TOOL_API: &str = "http://127.0.0.1:1";

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) figures: Vec<Figure>,
    /// How often each contender is measured.
    pub(crate) rounds: usize,
    /// How long jobs are enqueued one by one in a measurement.
    pub(crate) time: Duration,
    /// The connections that enqueue jobs.
    pub(crate) connections: usize,
    /// Batches of one measurement.
    pub(crate) batches: usize,
    /// Requests that wait for jobs.
    pub(crate) waiters: usize,
    /// Streams of events that are open.
    pub(crate) streams: usize,
    /// How long each of these waits or is open.
    pub(crate) wait: Duration,
    /// Finished jobs, among which jobs are listed.
    pub(crate) finished: u64,
    /// How often each list is read.
    pub(crate) reads: usize,
    /// Callbacks of one measurement.
    pub(crate) callbacks: i64,
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Figure {
    /// Jobs that are enqueued one by one, beside the same route without the store, and beside database and broker alone.
    Enqueue,
    /// Batches of a thousand jobs, beside a bare insert of the same rows.
    Batches,
    /// Requests that wait for jobs: the database's time, and memory.
    Waiters,
    /// Streams of events: the same.
    Streams,
    /// Lists of jobs by each filter.
    Lists,
    /// Jobs that are enqueued by the SQL function: how many, and how soon they start.
    Sql,
    /// Callbacks to receivers that take 50 ms, alone and beside one that never answers.
    Callbacks,
}

/// Measures everything, telling `progress` what it is doing. When `stop` is cancelled, everything
/// that was created is removed before this returns.
///
/// # Errors
/// A service cannot be used, the API failed, or the run was stopped.
pub(crate) async fn run(
    config: &Config,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(&str),
) -> Result<Report> {
    let bench = Bench { config, plan, stop };
    let mut report = Report::default();
    let is_wanted = |figure| plan.figures.contains(&figure);
    if is_wanted(Figure::Enqueue) {
        report.enqueue = Some(enqueue::measure(bench, &progress).await?);
    }
    if is_wanted(Figure::Batches) {
        report.batches = Some(batches::measure(bench, &progress).await?);
    }
    if is_wanted(Figure::Waiters) {
        limits::raise_open_files(plan.waiters)?;
        progress(&format!("{} requests that wait", plan.waiters));
        let measured = async |environment: &Environment| held::waiters(environment, plan).await;
        report.waiters = Some(bench.with(measured).await?);
    }
    if is_wanted(Figure::Streams) {
        // They are three quarters of its connections at most.
        limits::raise_open_files((plan.streams * 4).div_ceil(3))?;
        progress(&format!("{} streams of events", plan.streams));
        let measured = async |environment: &Environment| held::streams(environment, plan).await;
        report.streams = Some(bench.with(measured).await?);
    }
    if is_wanted(Figure::Lists) {
        let measured = async |environment: &Environment| lists::measure(environment, plan, &progress).await;
        report.lists = Some(bench.with(measured).await?);
    }
    if is_wanted(Figure::Sql) {
        report.by_sql = Some(by_sql::measure(bench, &progress).await?);
    }
    if is_wanted(Figure::Callbacks) {
        report.callbacks = Some(callbacks::measure(bench, &progress).await?);
    }
    Ok(report)
}

/// What the measurements of a run share.
#[derive(Debug, Clone, Copy)]
struct Bench<'a> {
    config: &'a Config,
    plan: &'a Plan,
    stop: &'a CancellationToken,
}

impl Bench<'_> {
    /// Measures in an environment of its own.
    async fn with<T>(&self, work: impl AsyncFnOnce(&Environment) -> Result<T>) -> Result<T> {
        self.calling(NO_TOOL_API.to_owned(), work).await
    }

    /// Does the same with a tool API.
    async fn calling<T>(
        &self,
        tool_api: String,
        work: impl AsyncFnOnce(&Environment) -> Result<T>,
    ) -> Result<T> {
        let around = Around {
            config: self.config,
            backend: Backend::Amqp,
            concurrency: 64,
            http: Http::One,
            tool_api,
        };
        Environment::with(around, self.stop, work).await
    }
}

/// The contenders of a figure in the order of a round. Every second round has the opposite order, so that a host that
/// becomes slower harms all alike.
fn in_turn<T, const N: usize>(mut contenders: [T; N], round: usize) -> [T; N] {
    if round.is_multiple_of(2) {
        contenders.reverse();
    }
    contenders
}

fn spread(figures: Vec<f64>) -> Result<Spread> {
    Spread::of(figures).context("nothing was measured")
}
