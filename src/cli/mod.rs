//! The command line: parses, loads the configuration, runs one command and turns what became of it
//! into one line and an exit code.
//!
//! Commands print answers to standard output and everything else to standard error. They return an
//! exit code when they ran, and an error when they could not; only this module picks the exit code
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
mod audit;
mod bench;
mod bulk;
mod chaos;
mod config_command;
mod context;
mod demo;
mod dev;
mod doctor;
mod enqueue;
mod exit;
mod health;
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
    /// See it all at work: some hundreds of jobs in one process, with nothing installed.
    Demo(demo::Args),
    /// Run worker, queue, store and sandbox in one process that stays up.
    Dev(dev::Args),
    /// Run a worker on RabbitMQ and PostgreSQL.
    Worker(worker::Args),
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
    /// Look through all jobs for what should not be.
    Audit(audit::Args),
    /// Bring the database's schema up to date.
    Migrate(migrate::Args),
    /// Show and check the settings.
    #[command(subcommand)]
    Config(config_command::Command),
    /// Check every service that errand depends on.
    Doctor(doctor::Args),
    /// Ask a worker's health endpoint.
    Health(health::Args),
    /// Serve a stand-in for the tool API.
    Sandbox(sandbox::Args),
    /// Measure the worker beside a bare loop over the same services.
    Bench(bench::Args),
    /// One process of `errand bench`.
    #[command(hide = true)]
    BenchChild(bench::ChildArgs),
    /// Break everything on purpose, and count what became of the jobs.
    Chaos(chaos::Args),
    /// One worker of `errand chaos`.
    #[command(hide = true)]
    ChaosWorker(chaos::WorkerArgs),
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
    let exit = match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(exit) => exit,
        Err(payload) => exit::of_panic(payload.as_ref()),
    };
    exit.into()
}

fn run() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to the end is not a failure.
            let _closed_pipe = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    dispatch(cli).unwrap_or_else(|error| exit::report(&error))
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let sources = Sources::of_process(cli.config);
    match cli.command {
        // These need no valid configuration.
        Command::Completions { shell } => completions(shell),
        Command::Config(command) => config_command::run(&command, &sources),

        Command::Demo(args) => {
            let mut loaded = config::load(&sources)?;
            if loaded.origin("log.level") == Some(&Origin::Default) {
                // The demo makes things fail on purpose, and accounts for all of them at the end.
                "error".clone_into(&mut loaded.config.log.level);
            }
            lasting(loaded.config, |config| demo::run(args, config))
        }
        Command::Dev(args) => lasting(config::load(&sources)?.config, |config| dev::run(args, config)),
        Command::Worker(args) => lasting(config::load(&sources)?.config, |config| worker::run(args, config)),
        Command::Sandbox(args) => lasting(config::load(&sources)?.config, |_| async move {
            sandbox::run(args, Shutdown::on_signals()?.stop).await.map(|()| Exit::Success)
        }),

        Command::Bench(args) => {
            let mut loaded = config::load(&sources)?;
            if loaded.origin("log.level") == Some(&Origin::Default) {
                "warn".clone_into(&mut loaded.config.log.level);
            }
            lasting(loaded.config, |config| bench::run(args, config))
        }
        Command::BenchChild(args) => bench_child(args, &sources),
        Command::Chaos(args) => {
            let mut loaded = config::load(&sources)?;
            if loaded.origin("log.level") == Some(&Origin::Default) {
                "error".clone_into(&mut loaded.config.log.level);
            }
            lasting(loaded.config, |config| chaos::run(args, config))
        }
        Command::ChaosWorker(args) => {
            lasting(config::load(&sources)?.config, |config| chaos::run_worker(args, config))
        }

        Command::Enqueue(args) => {
            brief(&sources, |context| async move { enqueue::run(*args, &context).await })
        }
        Command::EnqueueBulk(args) => {
            brief(&sources, |context| async move { bulk::run(args, &context).await })
        }
        Command::Jobs(command) => {
            brief(&sources, |context| async move { jobs::run(command, &context).await })
        }
        Command::Pins(command) => {
            brief(&sources, |context| async move { pins::run(command, &context).await })
        }
        Command::Tools(command) => {
            brief(&sources, |context| async move { tools::run(command, &context).await })
        }
        Command::Accounts(command) => {
            brief(&sources, |context| async move { accounts::run(command, &context).await })
        }
        Command::Rejected(command) => {
            brief(&sources, |context| async move { rejected::run(command, &context).await })
        }
        Command::Audit(args) => brief(&sources, |context| async move { audit::run(args, &context).await }),
        Command::Migrate(args) => {
            brief(&sources, |context| async move { migrate::run(&args, &context).await })
        }
        Command::Health(args) => brief(&sources, |_| async move { health::run(args).await }),
        Command::Doctor(args) => brief(&sources, |context| async move { doctor::run(&args, &context).await }),
    }
}

/// Plays a part of a benchmark. The stub needs no configuration, and one thread, since it shares the
/// processors with what is measured.
fn bench_child(args: bench::ChildArgs, sources: &Sources) -> anyhow::Result<Exit> {
    if args.is_stub() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(bench::run_child(args, None));
        runtime.shutdown_background();
        return answer;
    }
    lasting(config::load(sources)?.config, |config| bench::run_child(args, Some(config)))
}

/// Runs a command that ends by itself. It logs warnings only, unless a level is configured.
fn brief<F: Future<Output = anyhow::Result<Exit>>>(
    sources: &Sources,
    command: impl FnOnce(context::Context) -> F,
) -> anyhow::Result<Exit> {
    let loaded = config::load(sources)?;
    start_quiet_logging(&loaded)?;
    let runtime = runtime(FEW_THREADS)?;
    // A task of a driver that does not end must not keep the process: everything is settled by now.
    let answer = runtime.block_on(Box::pin(command(context::Context::new(loaded))));
    runtime.shutdown_background();
    answer
}

/// Runs a command that stays up, with full logging and the configured number of threads.
fn lasting<F: Future<Output = anyhow::Result<Exit>>>(
    config: Config,
    command: impl FnOnce(Config) -> F,
) -> anyhow::Result<Exit> {
    logging::init(config.log.format, &config.log.level, config.log.colors)?;
    let runtime = runtime(config.runtime.threads)?;
    let answer = runtime.block_on(Box::pin(command(config)));
    runtime.shutdown_background();
    answer
}

/// Starts logging of warnings only, unless a level is configured.
fn start_quiet_logging(loaded: &Loaded) -> anyhow::Result<()> {
    let log = &loaded.config.log;
    let level = if loaded.origin("log.level") == Some(&Origin::Default) { "warn" } else { &log.level };
    logging::init(log.format, level, log.colors)
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
