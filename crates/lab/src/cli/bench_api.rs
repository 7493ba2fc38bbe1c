//! `errand-lab bench-api`: how fast the HTTP API is, beside the primitives that it stands on.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::{Result, ensure};
use errand::{
    cli::{Exit, note, print},
    config::Config,
    shutdown::Shutdown,
};

use crate::bench::{self, ApiPlan, Figure};

/// Measures the HTTP API on RabbitMQ and PostgreSQL, each figure beside the primitive that it stands on. What it creates in the
/// database and on the broker is its own, and is removed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to measure.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "enqueue,batches,waiters,streams,lists,sql,callbacks"
    )]
    figures: Vec<Figure>,
    /// How often jobs one by one, batches and what stands beside them are measured.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How long jobs are enqueued one by one in each measurement.
    #[arg(long, value_name = "S", default_value_t = 5)]
    secs: u64,
    /// The connections that enqueue jobs one by one.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Batches of a thousand jobs in each measurement.
    #[arg(long, value_name = "N", default_value_t = 20)]
    batches: usize,
    /// Requests that wait for jobs.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    waiters: usize,
    /// Streams of events that are open.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    streams: usize,
    /// How long each request waits, of which the API allows a minute at most, and each stream is open.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=60))]
    wait_secs: u64,
    /// Finished jobs, among which jobs are listed.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    finished: u64,
    /// How often each list is read.
    #[arg(long, value_name = "N", default_value_t = 20)]
    reads: usize,
    /// Callbacks of each measurement; five times as many wait for the receiver that never answers.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(i64).range(10..))]
    callbacks: i64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit> {
    let Args {
        figures,
        rounds,
        secs,
        connections,
        batches,
        waiters,
        streams,
        wait_secs,
        finished,
        reads,
        callbacks,
        json,
    } = args;
    let amounts = [rounds, connections, batches, waiters, streams, reads];
    ensure!(amounts.iter().all(|amount| *amount > 0) && secs > 0, "there is nothing to measure");
    let time = Duration::from_secs(secs);
    let wait = Duration::from_secs(wait_secs);
    let plan = ApiPlan {
        figures,
        rounds,
        time,
        connections,
        batches,
        waiters,
        streams,
        wait,
        finished,
        reads,
        callbacks,
    };
    let talks = std::io::stderr().is_terminal() || !json;
    let progress = |text: &str| {
        if talks {
            note(text);
        }
    };
    let report = bench::run_api(&config, &plan, &Shutdown::on_signals()?.stop, progress).await?;
    let text = if json { serde_json::to_string(&report)? + "\n" } else { report.text() };
    print(&text)?;
    Ok(Exit::Success)
}
