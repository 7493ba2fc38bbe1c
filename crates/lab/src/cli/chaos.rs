//! `errand-lab chaos`: what becomes of jobs and their events under every fault there is.

use std::{io::IsTerminal as _, path::PathBuf, time::Duration};

use anyhow::Result;
use errand::{
    cli::{Exit, note, print, usage},
    config::Config,
    shutdown::Shutdown,
    worker::CrashPlan,
};

use crate::chaos::{self, ApiKind, Backend, Fault, Plan, Until};

/// Runs workers under faults of every kind, and compares what the store says with what really happened, and with the events
/// that listeners were told: a reader by position, a queue at the exchange, and a receiver of callbacks. The counts LOST, TWICE,
/// STUCK and UNTOLD must be 0. Everything is private to the run and removed afterwards: RabbitMQ and PostgreSQL servers are started from
/// the machine's own programs, on loopback.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The services to use.
    #[arg(long, value_enum, default_value = "amqp")]
    backend: Backend,
    /// The tool API to call.
    #[arg(long, value_enum, default_value = "sandbox")]
    api: ApiKind,
    /// How long to start rounds.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// Play N rounds, instead of going by time.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    rounds: Option<u64>,
    /// Only these faults, separated by commas; otherwise all there are.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Where everything random comes from; otherwise it is drawn and told.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Jobs of a round.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    jobs: u32,
    /// Rounds at the same time. Faults of the servers themselves have them for themselves.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    parallel: u32,
    /// Where the logs of rounds that went wrong are kept.
    #[arg(long, value_name = "DIR", default_value = "errand-chaos")]
    keep: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One worker of a run.
#[derive(Debug, clap::Args)]
pub(super) struct WorkerArgs {
    /// Crash when this point is passed for the N-th time.
    #[arg(long, value_name = "POINT:N")]
    crash_at: Option<CrashPlan>,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit> {
    let possible: Vec<Fault> =
        Fault::all(args.backend).into_iter().filter(|fault| args.api.knows(*fault)).collect();
    let faults = if args.faults.is_empty() { possible.clone() } else { args.faults };
    for fault in &faults {
        if !possible.contains(fault) {
            return Err(usage(format!(
                "{} does not exist with this backend and this tool API",
                fault.name()
            )));
        }
    }
    let plan = Plan {
        config,
        backend: args.backend,
        api: args.api,
        faults,
        until: match args.rounds {
            Some(rounds) => Until::Rounds(rounds),
            None => Until::Elapsed(Duration::from_secs(args.minutes * 60)),
        },
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        jobs: args.jobs as usize,
        parallel: args.parallel,
        keep: args.keep,
    };
    let talks = std::io::stderr().is_terminal() || !args.json;
    let progress = |text: &str| {
        if talks {
            note(text);
        }
    };
    progress(&format!("seed {}", plan.seed));
    let report = chaos::run(&plan, &Shutdown::on_signals()?.stop, progress).await?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.text() };
    print(&text)?;
    Ok(Exit::negative_if(!report.is_clean()))
}

/// Plays a worker of a run.
pub(super) async fn run_worker(args: WorkerArgs, config: Config) -> Result<Exit> {
    Box::pin(chaos::play(config, args.crash_at)).await?;
    Ok(Exit::Success)
}
