//! `errand events`: what became of jobs and batches.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    setup::Setup,
    value,
};
use crate::{
    job::Principal,
    store::{Event, EventJson, EventsAfter, Recording, SharedStore},
};

const EXAMPLES: &str = "\
Examples:
  errand events --limit 20
  errand events --follow --json | jq -r '.kind + \" \" + .job_id'
  errand events --after 4711 --owner org:org-7

What ends or holds a job, what somebody decides about a job or a batch, and the completion of a batch
is an event where events.record says so, which is in force where they happen. Each has a position;
whoever goes on behind the last one that they have read misses none. Events are kept for
retention.events_days.";

/// The time between two looks for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How many events one look brings.
const PAGE: usize = 1_000;

/// List events of jobs and batches, the oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Go on behind this position. Without it, a list begins with the oldest event, and --follow with the next.
    #[arg(long, value_name = "POSITION")]
    after: Option<u64>,
    #[command(flatten)]
    owner: value::AnyOwner,
    /// List up to N events.
    #[arg(long, default_value_t = 50, value_parser = value::limit, conflicts_with = "follow")]
    limit: usize,
    /// Go on, and print events as they happen, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let store = setup.store()?;
    let principal = args.owner.owner()?.map_or(Principal::Operator, Principal::Owner);
    if setup.config().events.record == Recording::Off {
        output::note("events.record is \"off\" here; there are events only of what records them");
    }
    let done = if args.follow {
        follow(&store, &principal, args.after, args.format).await
    } else {
        let events = behind(&store, &principal, args.after.unwrap_or(0), args.limit).await?;
        if let Some(last) = events.last().filter(|_| events.len() == args.limit) {
            output::note(format!("there may be more; go on with --after {}", last.position));
        }
        print(&events, args.format, "there are no such events")
    };
    store.close().await;
    done.map(|()| Exit::Success)
}

/// Prints what happens until somebody ends it.
async fn follow(
    store: &SharedStore,
    principal: &Principal,
    after: Option<u64>,
    format: Format,
) -> anyhow::Result<()> {
    let mut after = match after {
        Some(after) => after,
        None => store.last_event().await?,
    };
    let told = |event: &Event| {
        let about = event.job.map(|job| job.to_string()).or(event.batch.map(|batch| batch.to_string()));
        let why = event.held_reason.map(|reason| reason.to_string());
        let why = why.or(event.error_kind.map(|kind| kind.to_string()));
        let parts = [
            Some(output::moment(event.at)),
            Some(event.kind.to_string()),
            about,
            event.tool.clone(),
            event.owner.as_ref().map(ToString::to_string),
            why,
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
    };
    loop {
        // Read before the events: all up to here are among them, or are of others.
        let last = store.last_event().await?;
        let events = behind(store, principal, after, PAGE).await?;
        if format.json {
            print(&events, format, "")?;
        } else {
            for event in &events {
                output::print_line(told(event))?;
            }
        }
        if let Some(last) = events.last() {
            after = last.position;
        }
        if events.len() < PAGE {
            // Whoever follows an owner of whom there is nothing new has missed nothing when events of others are removed.
            after = after.max(last);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn behind(
    store: &SharedStore,
    principal: &Principal,
    after: u64,
    limit: usize,
) -> anyhow::Result<Vec<Event>> {
    match store.events(principal, after, limit).await? {
        EventsAfter::Are(events) => Ok(events),
        EventsAfter::Removed { up_to } => Err(exit::usage(format!(
            "events behind position {after} were removed after retention.events_days, the last of them at {up_to}: begin \
             anew with --after {up_to}, and read what became of the jobs in between"
        ))),
        EventsAfter::ToCome => Err(exit::usage(format!(
            "no event has had position {after} yet; take a position that was printed"
        ))),
    }
}

/// An event with its position.
#[derive(Serialize)]
struct Placed<'a> {
    position: u64,
    #[serde(flatten)]
    event: EventJson<'a>,
}

/// An event as it is told.
#[derive(Deserialize)]
struct ToldEvent {
    position: u64,
    at: Timestamp,
    kind: String,
    owner: Option<ToldOwner>,
    job_id: Option<Uuid>,
    batch_id: Option<Uuid>,
    tool: Option<String>,
    held_reason: Option<String>,
    error_kind: Option<String>,
}

fn print(events: &[Event], format: Format, nothing: &str) -> anyhow::Result<()> {
    let placed = |event: &Event| {
        serde_json::value::to_raw_value(&Placed { position: event.position, event: event.json() })
    };
    let items = events.iter().map(placed).collect::<serde_json::Result<Vec<Box<RawValue>>>>()?;
    let header = ["POSITION", "AT", "WHAT", "JOB OR BATCH", "TOOL", "OWNER", "WHY"];
    output::print_items(&items, format, nothing, header, |event: &ToldEvent| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            event.position.to_string(),
            output::moment(event.at),
            event.kind.clone(),
            or_dash(event.job_id.or(event.batch_id).map(|id| id.to_string())),
            or_dash(event.tool.clone()),
            output::whose(event.owner.as_ref()),
            or_dash(event.held_reason.clone().or(event.error_kind.clone())),
        ]
    })
}
