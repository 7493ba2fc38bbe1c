//! `errand migrate`: the schema of the database.

use super::{context::Context, exit::Exit, output};
use crate::store::Schema;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check for missing migrations without applying them; exit with 1 when some are missing.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let exit = if args.check {
        let (line, negative) = match store.schema().await? {
            Schema::Current => ("the schema is up to date".to_owned(), false),
            Schema::Ahead => ("the schema is newer than this build, which is fine".to_owned(), false),
            Schema::Behind { missing } => {
                (format!("{missing} migrations are missing; run `errand migrate`"), true)
            }
        };
        output::print_line(line)?;
        Exit::negative_if(negative)
    } else {
        let line = match store.migrate().await? {
            0 => "the schema is up to date".to_owned(),
            1 => "1 migration applied".to_owned(),
            applied => format!("{applied} migrations applied"),
        };
        output::print_line(line)?;
        Exit::Success
    };
    store.close().await;
    Ok(exit)
}
