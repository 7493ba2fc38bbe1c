//! The command line: parses, loads the configuration, runs one command and turns what became of it
//! into one line and an exit code.
//!
//! Commands print answers to standard output and everything else to standard error. They return an
//! [`Exit`] when they ran, and an error when they could not; only this module picks the exit code
//! of an error and prints it, so that every failure looks the same.

use std::{
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::{
    config::{self, Config, Loaded, Origin, Sources},
    shutdown::Shutdown,
    telemetry::logging,
};

mod accounts;
mod bench;
mod bulk;
mod config_command;
mod context;
mod demo;
mod dev;
mod doctor;
mod enqueue;
mod exit;
mod jobs;
mod migrate;
mod output;
mod pins;
mod rejected;
mod sandbox;
mod tools;
mod value;
mod wait;
mod worker;

use context::Context;
use exit::Exit;

/// Threads of commands that only talk to services for a moment.
const FEW_THREADS: usize = 2;

/// Runs tool calls on behalf of users and organizations, durably.
#[derive(Debug, Parser)]
#[command(name = "errand", version, after_help = exit::HELP, arg_required_else_help = true)]
struct Cli {
    /// Read settings from this file instead of errand.toml (also: ERRAND_CONFIG).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run jobs from RabbitMQ and PostgreSQL until SIGTERM, then drain.
    Worker(worker::Args),
    /// Run everything in one process, with data that survives a restart.
    Dev(dev::Args),
    /// Run a few hundred jobs in one process, with nothing installed, and account for each.
    Demo(demo::Args),
    /// Serve a stand-in for the tool API, to develop and test against.
    Sandbox(sandbox::Args),
    /// Enqueue one job.
    Enqueue(Box<enqueue::Args>),
    /// Enqueue many jobs, from a file of JSON Lines.
    EnqueueBulk(bulk::Args),
    /// List, show and decide about jobs.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Pin toolkit versions at run time.
    #[command(subcommand)]
    Pins(pins::Command),
    /// Look tools up in the tool API.
    #[command(subcommand)]
    Tools(tools::Command),
    /// Look connected accounts up in the tool API.
    #[command(subcommand)]
    Accounts(accounts::Command),
    /// Look after messages that are not jobs.
    #[command(subcommand)]
    Rejected(rejected::Command),
    /// Bring the database's schema up to date.
    Migrate(migrate::Args),
    /// Show and check the settings.
    #[command(subcommand)]
    Config(config_command::Command),
    /// Check every service that errand depends on.
    Doctor(doctor::Args),
    /// Measure the worker beside a bare loop over the same services.
    Bench(bench::Args),
    /// One process of `errand bench`.
    #[command(hide = true)]
    BenchChild(bench::ChildArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Two crates of the tree could each choose a provider of TLS; an error means that one is chosen.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    panic::set_hook(Box::new(exit::report_panic));
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(exit) => exit,
        Err(payload) => exit::of_panic(payload.as_ref()).into(),
    }
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to the end is not a failure.
            let _closed_pipe = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success }.into();
        }
    };
    dispatch(cli).unwrap_or_else(|error| exit::report(&error).into())
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let sources = Sources::of_process(cli.config);
    let exit = match cli.command {
        // These need no valid configuration.
        Command::Completions { shell } => completions(shell),
        Command::Config(command) => config_command::run(&command, &sources),

        // These run until they are told to stop, and start logging themselves.
        Command::Worker(args) => return lasting(&sources, |config| worker::run(args, config)),
        Command::Dev(args) => return lasting(&sources, |config| dev::run(args, config)),
        Command::Demo(args) => return lasting(&sources, |config| demo::run(args, config)),
        Command::Bench(args) => return lasting(&sources, |config| bench::run(args, config)),
        Command::BenchChild(args) => return bench_child(args, &sources),
        Command::Sandbox(args) => brief(&sources, async |_| {
            sandbox::run(args, Shutdown::on_signals()?.stop).await?;
            Ok(Exit::Success)
        }),

        Command::Enqueue(args) => brief(&sources, async |context| enqueue::run(*args, &context).await),
        Command::EnqueueBulk(args) => brief(&sources, async |context| bulk::run(args, &context).await),
        Command::Jobs(command) => brief(&sources, async |context| jobs::run(command, &context).await),
        Command::Pins(command) => brief(&sources, async |context| pins::run(command, &context).await),
        Command::Tools(command) => brief(&sources, async |context| tools::run(command, &context).await),
        Command::Accounts(command) => brief(&sources, async |context| accounts::run(command, &context).await),
        Command::Rejected(command) => brief(&sources, async |context| rejected::run(command, &context).await),
        Command::Migrate(args) => brief(&sources, async |context| migrate::run(&args, &context).await),
        Command::Doctor(args) => brief(&sources, async |context| doctor::run(&args, &context).await),
    };
    exit.map(ExitCode::from)
}

/// Runs a command that lasts, on the configured number of threads.
fn lasting<F: Future<Output = anyhow::Result<ExitCode>>>(
    sources: &Sources,
    command: impl FnOnce(Config) -> F,
) -> anyhow::Result<ExitCode> {
    let config = config::load(sources)?.config;
    let runtime = runtime(config.runtime.threads)?;
    let answer = runtime.block_on(Box::pin(command(config)));
    runtime.shutdown_background();
    answer
}

/// Plays a part of a benchmark. The stub needs no configuration, and one thread, since it shares the
/// processors with what is measured.
fn bench_child(args: bench::ChildArgs, sources: &Sources) -> anyhow::Result<ExitCode> {
    let (config, threads) = if args.is_stub() {
        (None, 1)
    } else {
        let config = config::load(sources)?.config;
        logging::init(&config.log)?;
        let threads = config.runtime.threads;
        (Some(config), threads)
    };
    let runtime = runtime(threads)?;
    let answer = runtime.block_on(Box::pin(bench::run_child(args, config)));
    runtime.shutdown_background();
    answer.map(|()| ExitCode::SUCCESS)
}

/// Runs a command that ends by itself. It logs warnings only, unless a level is configured.
fn brief(
    sources: &Sources,
    command: impl AsyncFnOnce(Context) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let loaded = config::load(sources)?;
    start_quiet_logging(&loaded)?;
    let runtime = runtime(FEW_THREADS)?;
    // A task of a driver that does not end must not keep the process: everything is settled by now.
    let answer = runtime.block_on(Box::pin(command(Context::new(loaded))));
    runtime.shutdown_background();
    answer
}

/// Starts logging of warnings only, unless a level is configured.
fn start_quiet_logging(loaded: &Loaded) -> anyhow::Result<()> {
    let mut log = loaded.config.log.clone();
    if loaded.origin("log.level") == Some(&Origin::Default) {
        "warn".clone_into(&mut log.level);
    }
    logging::init(&log)
}

/// A runtime with so many threads; 0 means one per core.
fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "errand", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
