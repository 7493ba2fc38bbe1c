//! `errand queues`: what waits in each lane, in the broker and in the database, and how fast it goes; pauses.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    server::Call,
    setup::Setup,
    value,
};
use crate::{app, job::QueueName, lane_view::LaneViews, store::Pause};

const EXAMPLES: &str = "\
MESSAGES and CONSUMERS are the broker's. An app's message has no row in the database before a
worker takes it, so WAITING does not count it. DONE counts jobs that ended in the last minute
and hour, among the newest jobs; what it looked at is said below the table.";

/// List queues: what waits, runs and is held, who consumes, and how many jobs end; pause and resume them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    format: Format,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Let no worker take jobs from a queue. What runs goes on, and what waits goes on waiting, until it is resumed.
    Pause {
        /// The queue.
        name: QueueName,
        /// Why, for those who wonder.
        #[arg(long, value_name = "TEXT", value_parser = value::reason)]
        reason: String,
        #[command(flatten)]
        who: Who,
    },
    /// Let a queue go on.
    Resume {
        /// The queue.
        name: QueueName,
        #[command(flatten)]
        who: Who,
    },
}

/// Windows of jobs that are looked at for the rates; a second of work.
const WINDOWS: usize = 20;

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    match args.command {
        Some(Command::Pause { name, reason, who }) => pause(&name, &reason, &who, setup).await,
        Some(Command::Resume { name, who }) => resume(&name, &who, setup).await,
        None => list(args.format, setup).await,
    }
}

async fn pause(name: &QueueName, reason: &str, who: &Who, setup: &Setup) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        who.is_the_key()?;
        server.send(Call::post(format!("/v1/queues/{name}/pause")).json(&json!({"reason": reason}))?).await?;
    } else {
        setup.check_lane(name.as_str()).map_err(exit::usage)?;
        let store = setup.store()?;
        let paused = store.pause_queue(name, &who.decider(setup), reason).await?;
        store.close().await;
        if !paused {
            return Err(exit::negative(format!(
                "the queue {name} is paused already; `errand queues` says by whom and why"
            )));
        }
    }
    output::print_line(format!("{name} is paused: within a few seconds no worker takes jobs from it"))?;
    Ok(Exit::Success)
}

async fn resume(name: &QueueName, who: &Who, setup: &Setup) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        who.is_the_key()?;
        server.send(Call::post(format!("/v1/queues/{name}/resume"))).await?;
    } else {
        let store = setup.store()?;
        let resumed = store.resume_queue(name, &who.decider(setup)).await?;
        store.close().await;
        if !resumed {
            return Err(exit::negative(format!("the queue {name} is not paused")));
        }
    }
    output::print_line(format!("{name} goes on"))?;
    Ok(Exit::Success)
}

/// The queues as they are told.
async fn look(setup: &Setup) -> anyhow::Result<Vec<Box<RawValue>>> {
    if let Some(server) = &setup.server {
        return Ok(server.page(Call::get("/v1/queues")).await?.items);
    }
    let store = setup.store()?;
    let queue = setup.config().uses_broker().then(|| app::open_queue(setup.config())).transpose()?;
    let names = setup.config().queues.keys().cloned();
    let views = LaneViews::look(&store, queue.as_ref(), names, WINDOWS).await?;
    store.close().await;
    if let Some(queue) = queue {
        queue.close().await;
    }
    views.remarks.iter().for_each(|remark| output::note(output::clean(remark)));
    Ok(views.json().map(|lane| to_raw_value(&lane)).collect::<Result<_, _>>()?)
}

async fn list(format: Format, setup: &Setup) -> anyhow::Result<Exit> {
    let lanes = look(setup).await?;
    let header = [
        "QUEUE",
        "PAUSED",
        "MESSAGES",
        "CONSUMERS",
        "WAITING",
        "RUNNING",
        "HELD",
        "OLDEST DUE",
        "DONE/MIN",
        "DONE/H",
    ];
    output::print_items(&lanes, format, "there are no queues", header, row)?;
    if !format.json {
        let lanes =
            lanes.iter().map(|lane| serde_json::from_str(lane.get())).collect::<Result<Vec<_>, _>>()?;
        remark(&lanes);
    }
    Ok(Exit::Success)
}

/// A queue as it is told.
#[derive(Deserialize)]
struct Lane {
    queue: String,
    paused: Option<Pause>,
    messages: Option<u64>,
    consumers: Option<u64>,
    waiting: u64,
    running: u64,
    held: u64,
    oldest_due_ms: Option<u64>,
    finished_last_minute: u64,
    finished_last_hour: u64,
    looked_at: u64,
    complete: bool,
}

/// Says what the table does not.
fn remark(lanes: &[Lane]) {
    for Lane { queue, paused, .. } in lanes {
        if let Some(pause) = paused {
            let goes_on = format!("{queue} is {pause}; `errand queues resume {queue}` lets it go on");
            output::note(output::clean(&goes_on));
        }
    }
    let is_full = |lane: &Lane| lane.messages.is_some_and(|messages| messages > 0);
    if lanes.iter().any(|lane| is_full(lane) && lane.consumers == Some(0) && lane.running > 0) {
        output::note(
            "a worker whose slots are all busy is no consumer in the eyes of the broker: see `errand workers`",
        );
    }
    if lanes.iter().any(is_full) {
        output::note(
            "OLDEST DUE is of jobs in the database; errand_oldest_due_age_seconds tells how long messages wait in the broker",
        );
    }
    // All lanes were looked at together.
    let Some(Lane { looked_at, complete, .. }) = lanes.first() else { return };
    let jobs = output::count(*looked_at, "newest job", "newest jobs");
    output::note(match complete {
        true => format!("DONE is counted among all {jobs}"),
        false => format!("DONE is counted among the {jobs}; older ones that ended meanwhile are left out"),
    });
}

fn row(lane: &Lane) -> [String; 10] {
    let or_dash = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
    let age = lane.oldest_due_ms.map(|age| format!("{:.0} s", Duration::from_millis(age).as_secs_f64()));
    [
        lane.queue.clone(),
        if lane.paused.is_some() { "yes" } else { "-" }.to_owned(),
        or_dash(lane.messages),
        or_dash(lane.consumers),
        lane.waiting.to_string(),
        lane.running.to_string(),
        lane.held.to_string(),
        age.unwrap_or_else(|| "-".to_owned()),
        lane.finished_last_minute.to_string(),
        lane.finished_last_hour.to_string(),
    ]
}
