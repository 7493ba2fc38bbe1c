//! `errand config`: the settings as they are in effect, and what is wrong with them.

use super::{
    exit::Exit,
    output::{self, Format},
};
use crate::config::{self, Sources};

/// Print the settings in effect, or check them for mistakes.
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
    /// Report every mistake in the settings.
    Check,
}

pub(super) fn run(command: &Command, sources: &Sources) -> anyhow::Result<Exit> {
    let loaded = config::load(sources)?;
    match command {
        Command::Show { origins, format: Format { json: false } } => {
            output::print(&loaded.to_toml(*origins))?
        }
        Command::Show { origins, format: Format { json: true } } => {
            output::print_line(format!("{:#}", loaded.to_json(*origins)))?;
        }
        Command::Check => output::print_line("configuration is valid")?,
    }
    Ok(Exit::Success)
}
