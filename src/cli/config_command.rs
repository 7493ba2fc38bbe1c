//! `errand config`: the settings as they are in effect, and what is wrong with them.

use super::{
    exit::Exit,
    output::{self, Format},
};
use crate::config::{self, Sources};

/// Print the manual of all settings, print those in effect, or check them for mistakes.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the settings in effect, with secrets masked.
    Show {
        /// Say where each value comes from.
        #[arg(long)]
        origins: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Report every mistake in the settings, and what a worker needs besides.
    Check,
    /// Print every setting with its default and what it means, to start an errand.toml from.
    Default,
}

pub(super) fn run(command: &Command, sources: &Sources) -> anyhow::Result<Exit> {
    if matches!(command, Command::Default) {
        output::print(config::DEFAULTS)?;
        return Ok(Exit::Success);
    }
    let loaded = config::load(sources)?;
    match command {
        Command::Default => {}
        Command::Show { origins, format: Format { json: false } } => {
            output::print(&loaded.to_toml(*origins))?
        }
        Command::Show { origins, format: Format { json: true } } => {
            output::print_json(&loaded.to_json(*origins))?;
        }
        Command::Check => {
            output::print_line("configuration is valid")?;
            if let Err(missing) = loaded.config.require_worker() {
                output::note(format_args!("for a worker, {missing}"));
            }
        }
    }
    Ok(Exit::Success)
}
