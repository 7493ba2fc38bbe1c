//! `errand jobs edit`: when, where and until when a job runs that waits.

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Who, decide};
use crate::{
    admission::EditAnswer,
    cli::{
        exit::{self, Exit},
        output::Format,
        server::Call,
        setup::Setup,
        value,
    },
    job::{Edit, JobId, Principal, QueueName},
    store::Decided,
};

/// What takes a time away.
const NONE: &str = "none";

/// Change when, in which queue, how urgently and until when a job runs, as long as it waits.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The job.
    id: JobId,
    /// Not before: RFC 3339, or from now, such as +10m; `none` makes it due now.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    run_at: Option<When>,
    /// The queue that it goes to.
    #[arg(long)]
    queue: Option<String>,
    /// 0 to 9; higher runs earlier within its queue.
    #[arg(long, value_parser = clap::value_parser!(i64).range(0..=9))]
    priority: Option<i64>,
    /// Not after: RFC 3339, or from now, such as +1h; `none` takes it away.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    expires_at: Option<When>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

/// A time, or none.
#[derive(Debug, Clone, Copy)]
struct When(Option<Timestamp>);

fn when(text: &str) -> Result<When, String> {
    if text == NONE { Ok(When(None)) } else { value::moment(text).map(|at| When(Some(at))) }
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let Args { id, run_at, queue, priority, expires_at, who, format } = args;
    if run_at.is_none() && queue.is_none() && priority.is_none() && expires_at.is_none() {
        return Err(exit::usage("say what to change: --run-at, --queue, --priority or --expires-at"));
    }
    let told = match &setup.server {
        Some(server) => {
            who.is_the_key()?;
            let time = |When(at): When| at.map_or(Value::Null, |at| json!(at));
            let mut edit = serde_json::Map::new();
            edit.extend(run_at.map(|when| ("run_at".to_owned(), time(when))));
            edit.extend(queue.map(|queue| ("queue".to_owned(), json!(queue))));
            edit.extend(priority.map(|priority| ("priority".to_owned(), json!(priority))));
            edit.extend(expires_at.map(|when| ("expires_at".to_owned(), time(when))));
            let call = Call::new(Method::PATCH, format!("/v1/jobs/{id}")).repeatable().json(&edit)?;
            decide::told_by(server.ask(call).await)?
        }
        None => {
            let lane = |name: String| {
                setup.check_lane(&name).map_err(exit::usage)?;
                name.parse::<QueueName>().map_err(|error| exit::usage(error.to_string()))
            };
            let edit = Edit {
                run_at: run_at.map(|When(at)| at),
                queue: queue.map(lane).transpose()?,
                priority: priority.map(i128::from),
                expires_at: expires_at.map(|When(at)| at),
            };
            let door = setup.door()?;
            let answer =
                door.door.edit(&Principal::Operator, id, &edit, &who.decider(setup), |_| true).await?;
            let told = match answer {
                EditAnswer::Decided(Decided::Unknown) => {
                    (false, None, decide::unknown(&door.store, id).await?)
                }
                EditAnswer::Decided(decided) => decide::told(decided),
                EditAnswer::Refused(unfit) => (false, None, format!("unchanged: {}", unfit.error.message())),
                EditAnswer::Unexpected => decide::told(Decided::Changed),
            };
            door.close().await;
            told
        }
    };
    let done = told.0;
    decide::print(id, told, format)?;
    Ok(Exit::negative_if(!done))
}
