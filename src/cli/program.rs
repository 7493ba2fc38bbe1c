//! How a program starts and ends.

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use clap::Parser;
use tokio::runtime::Runtime;

use super::exit::{self, Exit};
use crate::{config::Config, telemetry::logging};

/// Parses the command line and does what it says. An error is printed as one line, and decides the exit code.
pub fn run<C: Parser>(dispatch: impl FnOnce(C) -> anyhow::Result<Exit>) -> ExitCode {
    // Two crates of the tree could each choose a provider of TLS; an error means that one is chosen.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    panic::set_hook(Box::new(exit::report_panic));
    panic::catch_unwind(AssertUnwindSafe(|| parse_and_run(dispatch))).unwrap_or(Exit::Internal).into()
}

fn parse_and_run<C: Parser>(dispatch: impl FnOnce(C) -> anyhow::Result<Exit>) -> Exit {
    let command_line = match C::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Help that nobody reads to the end is not a failure.
            let _closed_pipe = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    dispatch(command_line).unwrap_or_else(|error| exit::report(&error))
}

/// Runs a command that stays up, with full logging and the configured number of threads.
///
/// # Errors
/// What the command returns, or that logging or the runtime cannot be set up.
pub fn lasting<F: Future<Output = anyhow::Result<Exit>>>(
    config: Config,
    command: impl FnOnce(Config) -> F,
) -> anyhow::Result<Exit> {
    logging::init(config.log.format, &config.log.level, config.colors)?;
    let runtime = runtime(config.runtime.threads)?;
    let answer = runtime.block_on(Box::pin(command(config)));
    runtime.shutdown_background();
    answer
}

/// A runtime with so many threads; 0 means one per core.
pub(super) fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}
