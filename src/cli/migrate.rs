//! `errand migrate`: the schema of the database, and where apps publish.

use std::time::Duration;

use super::{exit::Exit, output, setup::Setup};
use crate::{
    app,
    failure::chain,
    store::{Migrated, Schema},
};

/// The longest that the broker may take. A worker declares what is missing, too.
const BROKER_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check for missing migrations without applying them; exit with 1 when some are missing.
    #[arg(long)]
    check: bool,
    /// Move errand's tables from this schema of PostgreSQL into the one of `store.schema` first, with all workers stopped.
    #[arg(long, value_name = "SCHEMA", conflicts_with = "check")]
    move_from: Option<String>,
}

pub(super) async fn run(args: &Args, setup: &Setup) -> anyhow::Result<Exit> {
    let store = setup.store()?;
    let (line, negative) = if args.check {
        let schema = store.schema().await?;
        match schema.problem() {
            Some((problem, advice)) => (format!("{problem}; {advice}"), true),
            None if schema == Schema::Ahead => {
                ("the schema is newer than this build, which is fine".to_owned(), false)
            }
            None => ("the schema is up to date".to_owned(), false),
        }
    } else {
        let migrated = match &args.move_from {
            Some(from) => {
                let migrated = store.move_from(from).await?;
                let here = setup.config().store.schema.as_str();
                output::print_line(format!("errand's tables are in the schema `{here}`"))?;
                migrated
            }
            None => store.migrate().await?,
        };
        let applied = match migrated.applied {
            0 => "the schema is up to date".to_owned(),
            1 => "1 migration applied".to_owned(),
            applied => format!("{applied} migrations applied"),
        };
        let lock = lock(migrated, &setup.config().store.tenant_role);
        (format!("{applied}{lock}"), false)
    };
    output::print_line(line)?;
    store.close().await;
    if !args.check && setup.config().uses_broker() && setup.config().amqp.declare {
        declare(setup).await?;
    }
    Ok(Exit::negative_if(negative))
}

/// What became of the second lock between owners, as a line of its own.
fn lock(migrated: Migrated, role: &str) -> String {
    match (migrated.is_lock_changed, role) {
        (true, "") => {
            "\nrow-level security keeps owners apart no more, because `store.tenant_role` is empty".to_owned()
        }
        (false, "") => String::new(),
        (true, role) => {
            format!(
                "\nthe role `{role}` was granted its rights, and row-level security keeps owners apart from now on"
            )
        }
        (false, role) => {
            format!("\nrow-level security keeps owners apart for the role `{role}`, and is up to date")
        }
    }
}

/// Declares exchange and queues, so that apps may publish before the first worker. That the broker is away is no failure
/// of a migration.
async fn declare(setup: &Setup) -> anyhow::Result<()> {
    let queue = app::open_queue(setup.config())?;
    let declaring = async {
        queue.check().await?;
        if setup.config().events.exchange { queue.check_events().await } else { Ok(()) }
    };
    let answer = tokio::time::timeout(BROKER_TIMEOUT, declaring).await;
    let failed = match answer {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some(format!("the broker did not answer within {} s", BROKER_TIMEOUT.as_secs())),
    };
    match failed {
        None => output::print_line("the exchange and the queues are declared")?,
        Some(why) => {
            output::note(format_args!("a worker declares the exchange and the queues when it starts: {why}"))
        }
    }
    queue.close().await;
    Ok(())
}
