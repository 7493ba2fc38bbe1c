//! `errand-lab bench`: how fast the worker is, beside a baseline over the same services.

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use errand::{
    cli::{Exit, note, print},
    config::Config,
    shutdown::Shutdown,
};

use crate::bench::{self, Backend, Http, Plan, Role, Task};

/// Measures the worker against a stub of the tool API, beside a baseline: a bare loop over the same services.
/// What it creates in the database and on the broker is its own, and is removed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The services to use.
    #[arg(long, value_enum, default_value = "amqp")]
    backend: Backend,
    /// How long the stub takes for an answer, in milliseconds; a list is measured one by one.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,50")]
    stub_ms: Vec<u64>,
    /// Jobs per measurement.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    jobs: usize,
    /// Jobs in flight at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    concurrency: u32,
    /// The HTTP version of the calls.
    #[arg(long, value_enum, default_value = "1.1")]
    http: Http,
    /// How often each contender is measured.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Leave the baseline out.
    #[arg(long)]
    no_baseline: bool,
    /// Also measure the worker of another build, in turn with the one of this build: an `errand-lab`, or an
    /// `errand` that still has the command `bench`.
    #[arg(long, value_name = "PATH")]
    worker: Option<PathBuf>,
    /// Let the worker of this build record events, and publish them where there is a broker.
    #[arg(long)]
    events: bool,
    /// How long jobs come at an even pace to measure latency; 0 leaves it out.
    #[arg(long, value_name = "S", default_value_t = 5)]
    latency_secs: u64,
    /// Also measure how long N running jobs of a lost worker take to be taken over.
    #[arg(long, value_name = "N", default_value_t = 0)]
    recover: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One process of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct ChildArgs {
    /// What it is.
    role: Role,
    /// How long the stub takes for an answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    stub_ms: u64,
    /// Jobs that it makes itself.
    #[arg(long, default_value_t = 0)]
    feed: usize,
    /// How many of them per second.
    #[arg(long, default_value_t = 0.0)]
    pace: f64,
    /// Where the API listens.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where the API serves its metrics.
    #[arg(long)]
    metrics: Option<SocketAddr>,
}

impl ChildArgs {
    pub(super) fn is_stub(&self) -> bool {
        self.role == Role::Stub
    }
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit> {
    ensure!(args.jobs > 0 && args.concurrency > 0 && args.rounds > 0, "there is nothing to measure");
    let plan = Plan {
        backend: args.backend,
        stub: args.stub_ms.iter().copied().map(Duration::from_millis).collect(),
        jobs: args.jobs,
        concurrency: args.concurrency,
        rounds: args.rounds,
        baseline: !args.no_baseline,
        other: args.worker.map(std::path::absolute).transpose()?,
        http: args.http,
        events: args.events,
        latency: Duration::from_secs(args.latency_secs),
        recover: args.recover,
    };
    let talks = std::io::stderr().is_terminal() || !args.json;
    let progress = |text: &str| {
        if talks {
            note(text);
        }
    };
    let report = bench::run(&config, &plan, &Shutdown::on_signals()?.stop, progress).await?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.text() };
    print(&text)?;
    Ok(Exit::Success)
}

/// Is one process of a running benchmark.
pub(super) async fn run_child(args: ChildArgs, config: Option<Config>) -> Result<Exit> {
    let ChildArgs { role, stub_ms, feed, pace, listen, metrics } = args;
    let task = Task { role, stub: Duration::from_millis(stub_ms), feed, pace, listen, metrics };
    Box::pin(bench::run_child(&task, config)).await?;
    Ok(Exit::Success)
}

/// Makes the tables of a build that is measured.
pub(super) async fn migrate(config: Config) -> Result<Exit> {
    bench::migrate(&config).await?;
    Ok(Exit::Success)
}

/// Enqueues the jobs of a build that is measured.
pub(super) async fn enqueue(file: &Path, config: Config) -> Result<Exit> {
    bench::enqueue(&config, file).await?;
    Ok(Exit::Success)
}
