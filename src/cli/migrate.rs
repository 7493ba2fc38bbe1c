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
    let (line, negative) = if args.check {
        match store.schema().await? {
            Schema::Current => ("the schema is up to date".to_owned(), false),
            Schema::Ahead => ("the schema is newer than this build, which is fine".to_owned(), false),
            Schema::Behind { missing } => {
                (format!("{missing} migrations are missing; run `errand migrate`"), true)
            }
        }
    } else {
        match store.migrate().await? {
            0 => ("the schema is up to date".to_owned(), false),
            1 => ("1 migration applied".to_owned(), false),
            applied => (format!("{applied} migrations applied"), false),
        }
    };
    output::print_line(line)?;
    store.close().await;
    Ok(Exit::negative_if(negative))
}
