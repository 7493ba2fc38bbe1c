//! The command line of `errand-lab`. It starts and ends as that of `errand` does: the same settings, the same
//! messages and the same exit codes.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use errand::{
    cli::{self, Exit, lasting},
    config::{self, Config, Origin, Sources},
};

mod bench;
mod bench_api;
mod chaos;
mod compat;

/// Measures errand, and breaks it on purpose.
#[derive(Debug, Parser)]
#[command(name = "errand-lab", version, after_help = cli::HELP, arg_required_else_help = true)]
struct Cli {
    /// Read settings from this file instead of errand.toml (also: ERRAND_CONFIG).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the worker beside a baseline, and beside the worker of another build.
    Bench(bench::Args),
    /// Measure the HTTP API, each figure beside the primitive that it stands on.
    BenchApi(bench_api::Args),
    /// One process of `errand-lab bench`.
    #[command(hide = true)]
    BenchChild(bench::ChildArgs),
    /// Make the tables of a build that `errand-lab bench` measures, as `errand migrate` does.
    #[command(hide = true)]
    Migrate,
    /// Enqueue jobs for a build that `errand-lab bench` measures, as `errand enqueue-bulk` does.
    #[command(hide = true)]
    EnqueueBulk {
        /// A file of JSON Lines.
        file: PathBuf,
    },
    /// Break everything on purpose, and count what became of the jobs and their events.
    Chaos(chaos::Args),
    /// Run an older build and this one on one database, both ways round.
    Compat(compat::Args),
    /// One worker of `errand-lab chaos`.
    #[command(hide = true)]
    ChaosWorker(chaos::WorkerArgs),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    cli::run(dispatch)
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let sources = Sources::of_process(cli.config);
    match cli.command {
        Command::Bench(args) => {
            lasting(load_with_level(&sources, "warn")?, |config| bench::run(args, config))
        }
        Command::BenchApi(args) => {
            lasting(load_with_level(&sources, "warn")?, |config| bench_api::run(args, config))
        }
        Command::BenchChild(args) => bench_child(args, &sources),
        Command::Migrate => lasting(load_of_measurement(&sources)?, bench::migrate),
        Command::EnqueueBulk { file } => {
            lasting(
                load_of_measurement(&sources)?,
                |config| async move { bench::enqueue(&file, config).await },
            )
        }
        Command::Chaos(args) => {
            lasting(load_with_level(&sources, "error")?, |config| chaos::run(args, config))
        }
        Command::Compat(args) => {
            lasting(load_with_level(&sources, "error")?, |config| compat::run(args, config))
        }
        Command::ChaosWorker(args) => {
            lasting(config::load(&sources)?.config, |config| chaos::run_worker(args, config))
        }
    }
}

/// The settings, with this level of logging unless one is configured.
fn load_with_level(sources: &Sources, level: &str) -> anyhow::Result<Config> {
    let mut loaded = config::load(sources)?;
    if loaded.origin("log.level") == Some(&Origin::Default) {
        level.clone_into(&mut loaded.config.log.level);
    }
    Ok(loaded.config)
}

/// The settings of what is measured, in the schema of the measurement.
fn load_of_measurement(sources: &Sources) -> anyhow::Result<Config> {
    let mut config = config::load(sources)?.config;
    crate::bench::use_schema_of_url(&mut config);
    Ok(config)
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
    lasting(load_of_measurement(sources)?, |config| bench::run_child(args, Some(config)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
