//! The command line: parses, loads the configuration, runs one command and picks the exit code.
//!
//! Commands print answers to standard output and everything else to standard error. They return an exit code when they
//! ran, and an error when they could not, which only this module prints. What it exports besides [`main`] is for
//! `errand-lab`, whose commands start and end in the same way.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    config::{self, Config, Origin, Sources},
    shutdown::Shutdown,
    telemetry::logging,
};

mod accounts;
mod actions;
mod api;
mod audit;
mod audit_log;
mod batches;
mod bulk;
mod callbacks;
mod config_command;
mod context_command;
mod decider;
mod demo;
mod dev;
mod doctor;
mod enqueue;
mod erase;
mod events;
mod exit;
mod health;
mod jobs;
mod keys;
mod listen;
mod migrate;
mod output;
mod pins;
mod program;
mod prune;
mod queues;
mod rejected;
mod sandbox;
mod server;
mod setup;
mod table;
mod terminal;
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

use program::runtime;
use server::{Server, ServerFlags};
use setup::Setup;

/// Threads of commands that only talk to services for a moment.
const FEW_THREADS: usize = 2;

/// Runs tool calls on behalf of users and organizations, durably.
#[derive(Debug, Parser)]
#[command(name = "errand", version, after_help = exit::HELP, arg_required_else_help = true)]
struct Cli {
    /// Read settings from this file instead of errand.toml (also: ERRAND_CONFIG).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    server: ServerFlags,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    OfHost(HostCommand),
    #[command(flatten)]
    OfServer(ServerCommand),
}

/// Commands about this host, its settings and the services that they name.
#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Run a demonstration: some hundred jobs against the sandbox tool API.
    Demo(demo::Args),
    /// Run a development server: worker, queue, store and sandbox tool API.
    Dev(dev::Args),
    /// Run a worker on RabbitMQ and PostgreSQL.
    Worker(worker::Args),
    /// Serve the HTTP API, by which apps enqueue jobs and follow them.
    Api(api::Args),
    /// Audit all jobs: find rows that break a rule or that nothing goes on with.
    Audit(audit::Args),
    /// Remove what one owner has in the database and in the journals of this host.
    Erase(erase::Args),
    /// Apply the database migrations that are missing.
    Migrate(migrate::Args),
    /// Print the manual of all settings, print those in effect, or check them for mistakes.
    #[command(subcommand)]
    Config(config_command::Command),
    /// List, set, use and remove contexts: servers whose HTTP API commands use.
    #[command(subcommand)]
    Context(context_command::Command),
    /// Check database, broker and tool API, and say what to change.
    Doctor(doctor::Args),
    /// Ask a worker's health endpoint; exit with 0 when it is healthy.
    Health(health::Args),
    /// Serve the sandbox, a stand-in for the tool API.
    Sandbox(sandbox::Args),
    /// Receive callbacks on this host, verify them, and print a line for each.
    Listen(listen::Args),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Commands that go by the database and the services of this host, or over the HTTP API of a server.
#[derive(Debug, Subcommand)]
enum ServerCommand {
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
    /// List and show batches and their items, cancel and retry them as a whole.
    #[command(subcommand)]
    Batches(batches::Command),
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
    /// Set where the events of owners are sent, and see to their deliveries.
    #[command(subcommand)]
    Callbacks(callbacks::Command),
    AuditLog(audit_log::Args),
    Events(events::Args),
    /// Show a tool as the tool API describes it.
    #[command(subcommand)]
    Tools(tools::Command),
    /// List connected accounts as the tool API knows them.
    #[command(subcommand)]
    Accounts(accounts::Command),
    /// List, show and requeue rejected messages, which are not valid jobs.
    #[command(subcommand)]
    Rejected(rejected::Command),
    /// Remove jobs and rejected messages that were kept for long enough.
    Prune(Box<prune::Args>),
}

pub fn main() -> ExitCode {
    program::run(dispatch)
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { config, server, command } = cli;
    let sources = Sources::of_process(config);
    match command {
        Command::OfHost(_) if server.names_one() => {
            Err(exit::usage("this command is about this host; leave out --server and --context"))
        }
        Command::OfHost(command) => command.run(&sources),
        Command::OfServer(command) => {
            let server = server.server(&sources)?;
            brief(&sources, server, async |setup| command.run(setup).await)
        }
    }
}

impl HostCommand {
    fn run(self, sources: &Sources) -> anyhow::Result<Exit> {
        match self {
            // These need no valid configuration.
            Self::Completions { shell } => completions(shell),
            Self::Config(command) => config_command::run(&command, sources),
            Self::Context(command) => context_command::run(command, sources),

            Self::Demo(args) => {
                // The demo makes things fail on purpose, and accounts for all of them at the end.
                lasting(with_level(sources, "error")?, |config| demo::run(args, config))
            }
            Self::Dev(args) => lasting(with_level(sources, dev::LOG_LEVEL)?, |config| {
                dev::run(args, config, sources.path_addition())
            }),
            Self::Worker(args) => lasting(config::load(sources)?.config, |config| worker::run(args, config)),
            Self::Api(args) => lasting(config::load(sources)?.config, |config| api::run(args, config)),
            Self::Sandbox(args) => lasting(config::load(sources)?.config, |_| async move {
                sandbox::run(args, Shutdown::on_signals()?.stop).await?;
                Ok(Exit::Success)
            }),

            Self::Listen(args) => {
                let secret = sources.env.get(listen::SECRET).cloned();
                lasting(config::load(sources)?.config, |_| async move {
                    listen::run(args, secret.as_deref(), Shutdown::on_signals()?.stop).await?;
                    Ok(Exit::Success)
                })
            }

            Self::Audit(args) => brief(sources, None, async |setup| audit::run(args, setup).await),
            Self::Erase(args) => brief(sources, None, async |setup| erase::run(args, setup).await),
            Self::Migrate(args) => brief(sources, None, async |setup| migrate::run(&args, setup).await),
            Self::Health(args) => brief(sources, None, async |setup| health::run(args, setup).await),
            Self::Doctor(args) => brief(sources, None, async |setup| doctor::run(&args, setup).await),
        }
    }
}

impl ServerCommand {
    async fn run(self, setup: &Setup) -> anyhow::Result<Exit> {
        match self {
            Self::Enqueue(args) => enqueue::run(*args, setup).await,
            Self::EnqueueBulk(args) => bulk::run(args, setup).await,
            Self::Jobs(command) => jobs::run(command, setup).await,
            Self::Actions(command) => actions::run(command, setup).await,
            Self::Batches(command) => batches::run(command, setup).await,
            Self::Queues(args) => queues::run(args, setup).await,
            Self::Workers(args) => workers::run(&args, setup).await,
            Self::Keys(command) => keys::run(command, setup).await,
            Self::Callbacks(command) => callbacks::run(command, setup).await,
            Self::AuditLog(args) => audit_log::run(args, setup).await,
            Self::Events(args) => events::run(args, setup).await,
            Self::Pins(command) => pins::run(command, setup).await,
            Self::Tools(command) => tools::run(command, setup).await,
            Self::Accounts(command) => accounts::run(command, setup).await,
            Self::Rejected(command) => rejected::run(command, setup).await,
            Self::Prune(args) => prune::run(*args, setup).await,
        }
    }
}

/// The settings, with this level of logging unless one is configured.
fn with_level(sources: &Sources, level: &str) -> anyhow::Result<Config> {
    let mut loaded = config::load(sources)?;
    if loaded.origin("log.level") == Some(&Origin::Default) {
        level.clone_into(&mut loaded.config.log.level);
    }
    Ok(loaded.config)
}

/// Runs a command that ends by itself. It logs warnings only, unless a level is configured.
fn brief(
    sources: &Sources,
    server: Option<Server>,
    command: impl AsyncFnOnce(&Setup) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let loaded = config::load(sources)?;
    let log = &loaded.config.log;
    let level = if loaded.origin("log.level") == Some(&Origin::Default) { "warn" } else { &log.level };
    logging::init(log.format, level, loaded.config.colors)?;
    let runtime = runtime(FEW_THREADS)?;
    let setup = Setup { loaded, server };
    // A task of a driver that does not end must not keep the process: everything is settled by now.
    let answer = runtime.block_on(Box::pin(command(&setup)));
    let answer = answer.map_err(|error| setup.name_server(setup.name_database(error)));
    runtime.shutdown_background();
    answer
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "errand", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}
