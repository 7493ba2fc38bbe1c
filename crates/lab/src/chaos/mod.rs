//! Chaos: real workers on real services under every fault there is, and a count of what became of each job.
//!
//! A run is a series of rounds. Each round injects one kind of fault: jobs come in at an even pace,
//! the fault is injected while they run, everything heals, and when nothing moves any more the store is
//! compared with the tool API's own ledger of effects, and with what listeners were told. Four counts must be zero whatever
//! happens:
//! * lost: a job that was accepted and is not in the store, or that says it succeeded without an effect,
//! * twice: a job whose call must not be repeated, and that took effect more than once,
//! * stuck: a job that neither reached a final state nor waits for a person with a reason,
//! * untold: an event that was not told in each of the ways ([`listeners`]), or not in the order of its job or batch.
//!
//! Everything random comes from the seed. Real services have their own timing, so a seed repeats the
//! same faults, but not the same run.

mod backend;
mod cluster;
mod environment;
mod fault;
mod injector;
mod listeners;
mod load;
mod plan;
mod process;
mod report;
mod rest;
mod round;
mod tally;
mod tool_api;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    backend::Backend,
    fault::Fault,
    plan::{Plan, Until},
    process::play,
    report::Report,
    tool_api::Kind as ApiKind,
};
use self::{cluster::Cluster, round::Round, tally::Outcome};

/// Runs rounds, telling `progress` about each, until the plan is done or `stop` is cancelled; then the
/// rounds that run are finished.
///
/// # Errors
/// Services cannot be started, or a round could not be played to its end.
pub(crate) async fn run(plan: &Plan, stop: &CancellationToken, progress: impl Fn(&str)) -> Result<Report> {
    std::fs::create_dir_all(&plan.keep)
        .with_context(|| format!("cannot create {}; name another folder with --keep", plan.keep.display()))?;
    let cluster = Arc::new(Cluster::prepare(plan.backend).await?);
    let permits = Arc::new(Semaphore::new(plan.parallel as usize));
    let mut report = Report::new(plan);
    let mut order = Order::new(plan);
    let mut running: JoinSet<Result<Outcome>> = JoinSet::new();
    let started = Instant::now();
    let mut rounds = 0;
    while !plan.until.is_over(started, rounds) && !stop.is_cancelled() {
        let (fault, seed) = order.next();
        // A fault of a shared service would be a fault of all rounds.
        let needed = if fault.needs_the_services_alone() { plan.parallel } else { 1 };
        let permit = tokio::select! {
            permit = permits.clone().acquire_many_owned(needed) => permit?,
            () = stop.cancelled() => break,
        };
        rounds += 1;
        let round = Round { fault, seed, plan: plan.clone(), cluster: cluster.clone() };
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

/// The order of faults: shuffled anew for every pass through them. The first round has the seed of the run, so
/// that any round can be played again by its own seed.
struct Order {
    rng: fastrand::Rng,
    seed: u64,
    faults: Vec<Fault>,
    left: Vec<Fault>,
}

impl Order {
    fn new(plan: &Plan) -> Self {
        let rng = fastrand::Rng::with_seed(plan.seed);
        Self { rng, seed: plan.seed, faults: plan.faults.clone(), left: Vec::new() }
    }

    fn next(&mut self) -> (Fault, u64) {
        if self.left.is_empty() {
            self.left.clone_from(&self.faults);
            self.rng.shuffle(&mut self.left);
        }
        let fault = self.left.pop().unwrap_or(Fault::KillWorkers);
        (fault, std::mem::replace(&mut self.seed, self.rng.u64(..)))
    }
}
