//! `errand queues`: what waits in each lane, in the broker and in the database, and how fast it goes; pauses.

use super::{
    context::Context,
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::{
    app,
    job::{QueueName, State},
    lane_view::{LaneView, LaneViews},
    queue::Depth,
    store::Decider,
};

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

pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    match args.command {
        Some(Command::Pause { name, reason, who }) => {
            pause(&name, &reason, &who.decider(context), context).await
        }
        Some(Command::Resume { name, who }) => resume(&name, &who.decider(context), context).await,
        None => list(args.format, context).await,
    }
}

async fn pause(name: &QueueName, reason: &str, by: &Decider, context: &Context) -> anyhow::Result<Exit> {
    context.check_lane(name.as_str()).map_err(exit::usage)?;
    let store = context.store()?;
    let paused = store.pause_queue(name, by, reason).await?;
    store.close().await;
    if !paused {
        return Err(exit::negative(format!(
            "the queue {name} is paused already; `errand queues` says by whom and why"
        )));
    }
    output::print_line(format!("{name} is paused: within a few seconds no worker takes jobs from it"))?;
    Ok(Exit::Success)
}

async fn resume(name: &QueueName, by: &Decider, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let resumed = store.resume_queue(name, by).await?;
    store.close().await;
    if !resumed {
        return Err(exit::negative(format!("the queue {name} is not paused")));
    }
    output::print_line(format!("{name} goes on"))?;
    Ok(Exit::Success)
}

async fn list(format: Format, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let queue = context.config().uses_broker().then(|| app::open_queue(context.config())).transpose()?;
    let names = context.config().queues.keys().cloned();
    let views = LaneViews::look(&store, queue.as_ref(), names, WINDOWS).await?;
    store.close().await;
    if let Some(queue) = queue {
        queue.close().await;
    }
    views.remarks.iter().for_each(|remark| output::note(output::clean(remark)));
    if format.json {
        let lines = views.json().map(|lane| Ok(serde_json::to_string(&lane)? + "\n"));
        output::print(&lines.collect::<Result<String, serde_json::Error>>()?)?;
        return Ok(Exit::Success);
    }
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
    output::print_table(&header, views.lanes.iter().map(|(name, lane)| row(name, lane)).collect())?;
    remark(&views);
    Ok(Exit::Success)
}

/// Says what the table does not.
fn remark(views: &LaneViews) {
    let LaneViews { lanes, looked_at, complete, .. } = views;
    for (name, lane) in lanes {
        if let Some(pause) = &lane.pause {
            output::note(output::clean(&format!(
                "{name} is {pause}; `errand queues resume {name}` lets it go on"
            )));
        }
    }
    let is_busy = |lane: &LaneView| {
        lane.depth.as_ref().is_some_and(|depth| depth.ready > 0 && depth.consumers == 0)
            && lane.of(&[State::Running]) > 0
    };
    if lanes.values().any(is_busy) {
        output::note(
            "a worker whose slots are all busy is no consumer in the eyes of the broker: see `errand workers`",
        );
    }
    if lanes.values().any(|lane| lane.depth.as_ref().is_some_and(|depth| depth.ready > 0)) {
        output::note(
            "OLDEST DUE is of jobs in the database; errand_oldest_due_age_seconds tells how long messages wait in the broker",
        );
    }
    let jobs = output::count(*looked_at, "newest job", "newest jobs");
    output::note(match complete {
        true => format!("DONE is counted among all {jobs}"),
        false => format!("DONE is counted among the {jobs}; older ones that ended meanwhile are left out"),
    });
}

fn row(name: &QueueName, lane: &LaneView) -> Vec<String> {
    let of_broker =
        |figure: fn(&Depth) -> u64| lane.depth.as_ref().map_or("-".to_owned(), |d| figure(d).to_string());
    vec![
        name.to_string(),
        if lane.pause.is_some() { "yes" } else { "-" }.to_owned(),
        of_broker(|depth| depth.ready),
        of_broker(|depth| depth.consumers),
        lane.waiting().to_string(),
        lane.of(&[State::Running]).to_string(),
        lane.of(&[State::Held]).to_string(),
        lane.oldest_due.map_or("-".to_owned(), |age| format!("{:.0} s", age.as_secs_f64())),
        lane.last_minute.to_string(),
        lane.last_hour.to_string(),
    ]
}
