//! The command line: parses, loads the configuration, runs one command and picks the exit code.
//!
//! Commands print answers to standard output and everything else to standard error. They return an exit code when they
//! ran, and an error when they could not, which only this module prints. What it exports besides [`main`] is for
//! `errand-lab`, whose commands start and end in the same way.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    config::{self, Origin, Sources},
    shutdown::Shutdown,
    telemetry::logging,
};

mod accounts;
mod actions;
mod api;
mod audit;
mod audit_log;
mod bulk;
mod config_command;
mod context;
mod decider;
mod demo;
mod dev;
mod doctor;
mod enqueue;
mod erase;
mod exit;
mod health;
mod jobs;
mod keys;
mod migrate;
mod output;
mod pins;
mod program;
mod prune;
mod queues;
mod rejected;
mod sandbox;
mod tools;
mod transport;
mod value;
mod wait;
mod waiting;
mod worker;
mod workers;

pub use exit::{Exit, HELP, usage};
pub use output::{note, print};
pub use program::{lasting, run};

use context::Context;
use program::runtime;

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
    /// Run a demonstration: some hundred jobs against the sandbox tool API.
    Demo(demo::Args),
    /// Run a development server: worker, queue, store and sandbox tool API.
    Dev(dev::Args),
    /// Run a worker on RabbitMQ and PostgreSQL.
    Worker(worker::Args),
    /// Serve the HTTP API, by which apps enqueue jobs and follow them.
    Api(api::Args),
    /// Enqueue one job.
    Enqueue(Box<enqueue::Args>),
    /// Enqueue many jobs, from a file of JSON Lines.
    EnqueueBulk(bulk::Args),
    /// List jobs, show one, count, cancel, retry, release and edit them.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// List, show and abort actions, which decide about many jobs by filters.
    #[command(subcommand)]
    Actions(actions::Command),
    /// List queues, and what is in them; pause and resume them.
    Queues(queues::Args),
    /// List workers: which build each runs, since when, and what it holds.
    Workers(workers::Args),
    /// List, set and remove pins of toolkit versions.
    #[command(subcommand)]
    Pins(pins::Command),
    /// Make, list, rotate and revoke access keys of the HTTP API.
    #[command(subcommand)]
    Keys(keys::Command),
    AuditLog(audit_log::Args),
    /// Show a tool as the tool API describes it.
    #[command(subcommand)]
    Tools(tools::Command),
    /// List connected accounts as the tool API knows them.
    #[command(subcommand)]
    Accounts(accounts::Command),
    /// List, show and requeue rejected messages, which are not valid jobs.
    #[command(subcommand)]
    Rejected(rejected::Command),
    /// Audit all jobs: find rows that break a rule or that nothing goes on with.
    Audit(audit::Args),
    /// Remove jobs and rejected messages that were kept for long enough.
    Prune(Box<prune::Args>),
    /// Remove what one owner has in the database and in the journals of this host.
    Erase(erase::Args),
    /// Apply the database migrations that are missing.
    Migrate(migrate::Args),
    /// Print the manual of all settings, print those in effect, or check them for mistakes.
    #[command(subcommand)]
    Config(config_command::Command),
    /// Check database, broker and tool API, and say what to change.
    Doctor(doctor::Args),
    /// Ask a worker's health endpoint; exit with 0 when it is healthy.
    Health(health::Args),
    /// Serve the sandbox, a stand-in for the tool API.
    Sandbox(sandbox::Args),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

pub fn main() -> ExitCode {
    program::run(dispatch)
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
        Command::Dev(args) => {
            let mut loaded = config::load(&sources)?;
            if loaded.origin("log.level") == Some(&Origin::Default) {
                dev::LOG_LEVEL.clone_into(&mut loaded.config.log.level);
            }
            lasting(loaded.config, |config| dev::run(args, config, sources.path_addition()))
        }
        Command::Worker(args) => lasting(config::load(&sources)?.config, |config| worker::run(args, config)),
        Command::Api(args) => lasting(config::load(&sources)?.config, |config| api::run(args, config)),
        Command::Sandbox(args) => lasting(config::load(&sources)?.config, |_| async move {
            sandbox::run(args, Shutdown::on_signals()?.stop).await?;
            Ok(Exit::Success)
        }),

        Command::Enqueue(args) => brief(&sources, async |context| enqueue::run(*args, context).await),
        Command::EnqueueBulk(args) => brief(&sources, async |context| bulk::run(args, context).await),
        Command::Jobs(command) => brief(&sources, async |context| jobs::run(command, context).await),
        Command::Actions(command) => brief(&sources, async |context| actions::run(command, context).await),
        Command::Queues(args) => brief(&sources, async |context| queues::run(args, context).await),
        Command::Workers(args) => brief(&sources, async |context| workers::run(&args, context).await),
        Command::Keys(command) => brief(&sources, async |context| keys::run(command, context).await),
        Command::AuditLog(args) => brief(&sources, async |context| audit_log::run(args, context).await),
        Command::Pins(command) => brief(&sources, async |context| pins::run(command, context).await),
        Command::Tools(command) => brief(&sources, async |context| tools::run(command, context).await),
        Command::Accounts(command) => brief(&sources, async |context| accounts::run(command, context).await),
        Command::Rejected(command) => brief(&sources, async |context| rejected::run(command, context).await),
        Command::Audit(args) => brief(&sources, async |context| audit::run(args, context).await),
        Command::Prune(args) => brief(&sources, async |context| prune::run(*args, context).await),
        Command::Erase(args) => brief(&sources, async |context| erase::run(args, context).await),
        Command::Migrate(args) => brief(&sources, async |context| migrate::run(&args, context).await),
        Command::Health(args) => brief(&sources, async |context| health::run(args, context).await),
        Command::Doctor(args) => brief(&sources, async |context| doctor::run(&args, context).await),
    }
}

/// Runs a command that ends by itself. It logs warnings only, unless a level is configured.
fn brief(
    sources: &Sources,
    command: impl AsyncFnOnce(&Context) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let loaded = config::load(sources)?;
    let log = &loaded.config.log;
    let level = if loaded.origin("log.level") == Some(&Origin::Default) { "warn" } else { &log.level };
    logging::init(log.format, level, loaded.config.colors)?;
    let runtime = runtime(FEW_THREADS)?;
    let context = Context { loaded };
    // A task of a driver that does not end must not keep the process: everything is settled by now.
    let answer = runtime.block_on(Box::pin(command(&context))).map_err(|error| context.name_database(error));
    runtime.shutdown_background();
    answer
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "errand", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}
