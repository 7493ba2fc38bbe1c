//! `errand-lab compat`: an older build and this one on one database.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use errand::{
    cli::{Exit, note, print},
    config::Config,
};

use crate::compat;

/// Runs an older build of errand and a newer one on one database, one after the other and side by side, through a
/// migration and a rollback. Everything is private to the run and removed afterwards.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The program `errand` of the older build.
    #[arg(long, value_name = "PATH")]
    old: PathBuf,
    /// The program `errand` of the newer build; otherwise the one beside this program.
    #[arg(long, value_name = "PATH")]
    new: Option<PathBuf>,
}

pub(super) async fn run(args: Args, _: Config) -> Result<Exit> {
    let beside =
        std::env::current_exe().context("cannot find this program's own file")?.with_file_name("errand");
    let old = std::path::absolute(args.old)?;
    let new = std::path::absolute(args.new.unwrap_or(beside))?;
    for program in [&old, &new] {
        ensure!(program.is_file(), "there is no program {}; build it, or name another", program.display());
    }
    compat::run(&old, &new, |text| note(text)).await?;
    print("The builds run side by side.\n")?;
    Ok(Exit::Success)
}
