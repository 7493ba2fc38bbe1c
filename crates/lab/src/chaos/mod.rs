//! Chaos: real workers on real services under every fault there is, and a count of what became of each job.
//!
//! A run is a series of rounds. Each round is one *cell*, a kind of fault: jobs come in at an even pace,
//! the fault strikes while they run, everything heals, and when nothing moves any more the store is
//! compared with the tool API's own ledger of effects. Three counts must be zero whatever happens:
//! * lost: a job that was accepted and is not in the store, or that says it succeeded without an effect,
//! * twice: a job whose call must not be repeated, and that took effect more than once,
//! * stuck: a job that neither reached a final state nor waits for a person with a reason.
//!
//! Everything random comes from the seed. Real services have their own timing, so a seed repeats the
//! same faults, but not the same run.

mod cell;
mod load;
mod process;
mod report;
mod round;
mod stage;
mod strike;
mod target;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use errand::config::Config;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{cell::Cell, process::play, report::Report, stage::Backend, target::Kind as ApiKind};
use self::{round::Round, stage::Ground};

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The settings of this process; workers see none of them.
    pub(crate) config: Config,
    /// The services under the workers.
    pub(crate) backend: Backend,
    /// The tool API.
    pub(crate) api: ApiKind,
    /// Which faults; each has its turn before one comes again.
    pub(crate) cells: Vec<Cell>,
    /// When no more rounds are started.
    pub(crate) until: Until,
    /// Where everything random comes from.
    pub(crate) seed: u64,
    /// Jobs of a round.
    pub(crate) jobs: usize,
    /// Rounds at the same time, as far as their faults do not touch shared services.
    pub(crate) parallel: u32,
    /// Where the logs of rounds that went wrong are kept.
    pub(crate) keep: PathBuf,
}

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Rounds are started for so long.
    Elapsed(Duration),
    /// So many rounds.
    Rounds(u64),
}

impl Until {
    fn is_over(self, started: Instant, rounds: u64) -> bool {
        match self {
            Self::Elapsed(length) => started.elapsed() >= length,
            Self::Rounds(count) => rounds >= count,
        }
    }
}

/// Runs rounds, telling `progress` about each, until the plan is done or `stop` is cancelled; then the
/// rounds that run are finished.
///
/// # Errors
/// Services cannot be started, or a round could not be played to its end.
pub(crate) async fn run(plan: &Plan, stop: &CancellationToken, progress: impl Fn(&str)) -> Result<Report> {
    std::fs::create_dir_all(&plan.keep)
        .with_context(|| format!("cannot create {}; name another folder with --keep", plan.keep.display()))?;
    let ground = Arc::new(Ground::prepare(plan.backend).await?);
    let permits = Arc::new(Semaphore::new(plan.parallel as usize));
    let mut report = Report::new(plan);
    let mut order = Order::new(plan);
    let mut running: JoinSet<Result<round::Outcome>> = JoinSet::new();
    let started = Instant::now();
    let mut rounds = 0;
    while !plan.until.is_over(started, rounds) && !stop.is_cancelled() {
        let (cell, seed) = order.next();
        // A fault of a shared service would be a fault of all rounds.
        let needed = if cell.needs_the_services_alone() { plan.parallel } else { 1 };
        let permit = tokio::select! {
            permit = permits.clone().acquire_many_owned(needed) => permit?,
            () = stop.cancelled() => break,
        };
        rounds += 1;
        let round = Round { cell, seed, plan: plan.clone(), ground: ground.clone() };
        running.spawn(async move {
            let outcome = round.play().await.with_context(|| format!("a round of {}", round.title()));
            drop(permit);
            outcome
        });
        while let Some(done) = running.try_join_next() {
            progress(&report.add(done??));
        }
    }
    while let Some(done) = running.join_next().await {
        progress(&report.add(done??));
    }
    Ok(report)
}

/// The order of cells: shuffled anew for every pass through them. The first round has the seed of the run, so
/// that any round can be played again by its own seed.
struct Order {
    rng: fastrand::Rng,
    seed: u64,
    cells: Vec<Cell>,
    left: Vec<Cell>,
}

impl Order {
    fn new(plan: &Plan) -> Self {
        let rng = fastrand::Rng::with_seed(plan.seed);
        Self { rng, seed: plan.seed, cells: plan.cells.clone(), left: Vec::new() }
    }

    fn next(&mut self) -> (Cell, u64) {
        if self.left.is_empty() {
            self.left.clone_from(&self.cells);
            self.rng.shuffle(&mut self.left);
        }
        let cell = self.left.pop().unwrap_or(Cell::KillWorkers);
        (cell, std::mem::replace(&mut self.seed, self.rng.u64(..)))
    }
}
