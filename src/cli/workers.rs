//! `errand workers`: which workers live, and what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::to_raw_value;
use uuid::Uuid;

use super::{
    exit::Exit,
    output::{self, Format},
    server::Call,
    setup::Setup,
};
use crate::{desk_json::WorkerJson, store::build};

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

pub(super) async fn run(args: &Args, setup: &Setup) -> anyhow::Result<Exit> {
    let workers = match &setup.server {
        Some(server) => server.page(Call::get("/v1/workers")).await?.items,
        None => {
            let store = setup.store()?;
            let workers = store.workers().await?;
            store.close().await;
            let lease = Duration::from_secs(setup.config().worker.lease_secs);
            workers
                .iter()
                .map(|worker| to_raw_value(&WorkerJson::of(worker, lease)))
                .collect::<Result<_, _>>()?
        }
    };
    let header = ["NAME", "STATE", "BUILD", "STARTED", "LAST BEAT", "RUNNING", "ID"];
    output::print_items(&workers, args.format, "no worker is known", header, |worker: &Worker| {
        [
            worker.name.clone(),
            if worker.alive { "alive" } else { "lost" }.to_owned(),
            worker.build.clone().unwrap_or_else(|| "unknown".to_owned()),
            output::moment(worker.started_at),
            format!("{:.0} s ago", Duration::from_millis(worker.silent_ms).as_secs_f64()),
            running(worker),
            worker.id.to_string(),
        ]
    })?;
    let mut builds = BTreeSet::new();
    for worker in &workers {
        let worker: Worker = serde_json::from_str(worker.get())?;
        builds.extend(worker.alive.then_some(worker.build));
    }
    if builds.len() > 1 {
        output::note(format!(
            "workers of {} builds live; this command is of build {}",
            builds.len(),
            build()
        ));
    }
    Ok(Exit::Success)
}

/// A worker as it is told.
#[derive(Deserialize)]
struct Worker {
    id: Uuid,
    name: String,
    build: Option<String>,
    alive: bool,
    started_at: Timestamp,
    silent_ms: u64,
    running_by_queue: BTreeMap<String, u64>,
}

fn running(worker: &Worker) -> String {
    if worker.running_by_queue.is_empty() {
        return "0".to_owned();
    }
    let lanes = worker.running_by_queue.iter().map(|(queue, jobs)| format!("{jobs} of {queue}"));
    lanes.collect::<Vec<_>>().join(", ")
}
