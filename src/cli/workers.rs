//! `errand workers`: which workers live, and what they hold.

use std::time::Duration;

use super::{
    context::Context,
    exit::Exit,
    output::{self, Format},
};
use crate::{
    desk_json::WorkerJson,
    store::{WorkerView, build},
};

const EXAMPLES: &str = "\
A worker that does not beat for its lease is lost: others take its jobs over, and it is
forgotten some time after that. One that ended well is not listed.";

/// List workers: which build each runs, since when, and what it holds.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let workers = store.workers().await?;
    store.close().await;
    let lease = Duration::from_secs(context.config().worker.lease_secs);
    let alive = |worker: &WorkerView| worker.silent_for < worker.lease.unwrap_or(lease);
    let header = ["NAME", "STATE", "BUILD", "STARTED", "LAST BEAT", "RUNNING", "ID"];
    let json = |worker: &WorkerView| serde_json::to_string(&WorkerJson::of(worker, lease));
    output::print_list(&workers, args.format, json, "no worker is known", header, |worker| {
        [
            worker.name.clone(),
            if alive(worker) { "alive" } else { "lost" }.to_owned(),
            worker.build.clone().unwrap_or_else(|| "unknown".to_owned()),
            output::moment(worker.started_at),
            format!("{:.0} s ago", worker.silent_for.as_secs_f64()),
            running(worker),
            worker.id.to_string(),
        ]
    })?;
    let mut builds: Vec<_> = workers.iter().filter(|worker| alive(worker)).map(|w| &w.build).collect();
    builds.sort();
    builds.dedup();
    if builds.len() > 1 {
        output::note(format!(
            "workers of {} builds live; this command is of build {}",
            builds.len(),
            build()
        ));
    }
    Ok(Exit::Success)
}

fn running(worker: &WorkerView) -> String {
    if worker.running.is_empty() {
        return "0".to_owned();
    }
    let lanes = worker.running.iter().map(|(queue, jobs)| format!("{jobs} of {queue}"));
    lanes.collect::<Vec<_>>().join(", ")
}
