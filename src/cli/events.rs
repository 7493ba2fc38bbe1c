//! `errand events`: what became of jobs and batches.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    server::{Call, MAX_LIMIT, Page},
    setup::Setup,
    value,
};
use crate::{
    job::{BatchId, JobId, Principal},
    store::{Event, EventsAfter, EventsOf, SharedStore},
};

const EXAMPLES: &str = "\
Examples:
  errand events --limit 20
  errand events --follow --json | jq -r '.type + \" \" + .job_id'
  errand events --follow --batch 0190b0a0-0000-7000-8000-000000000001
  errand events --after 4711 --owner org:org-7

What ends or holds a job, what somebody decides about a job or a batch, and the completion of a batch
is an event where events.record says so, which is in force where they happen. Each has a cursor;
whoever goes on behind the last one that they have read misses none. Events are kept for
retention.events_days.";

/// The time between two looks at the database for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How many events one look brings.
const PAGE: usize = 1_000;

/// List events of jobs and batches, the oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Go on behind this cursor. Without it, a list begins with the oldest event, and --follow with the next.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    #[command(flatten)]
    owner: value::AnyOwner,
    /// Of this job.
    #[arg(long, value_name = "ID", conflicts_with_all = ["batch", "owner"])]
    job: Option<JobId>,
    /// Of this batch, and of its jobs.
    #[arg(long, value_name = "ID", conflicts_with = "owner")]
    batch: Option<BatchId>,
    /// List up to N events.
    #[arg(long, default_value_t = 50, value_parser = value::limit, conflicts_with = "follow")]
    limit: usize,
    /// Go on, and print events as they happen, until Ctrl-C. Those of one job or batch at a server end with it.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    format: Format,
}

impl Args {
    /// What is asked of a server.
    fn call(&self) -> anyhow::Result<Call> {
        let call = Call::get("/v1/events").with("owner", self.owner.owner()?).with("job", self.job);
        Ok(call.with("batch", self.batch).with("after", self.after.as_ref()))
    }
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        if args.follow {
            let mut stream = server.stream(args.call()?);
            while let Some(event) = stream.next().await? {
                print_as_it_happens(&RawValue::from_string(event)?, args.format)?;
            }
        } else {
            let call = args.call()?.with("limit", Some(args.limit.min(MAX_LIMIT)));
            list(&server.page(call).await?, args.limit.min(MAX_LIMIT), args.format)?;
        }
        return Ok(Exit::Success);
    }
    let of = match (args.job, args.batch) {
        (Some(job), _) => EventsOf::Job(job),
        (_, Some(batch)) => EventsOf::Batch(batch),
        (None, None) => EventsOf::All,
    };
    let after = match &args.after {
        Some(after) => {
            Some(after.parse().map_err(|_| exit::usage("--after must be a cursor as it was printed"))?)
        }
        None => None,
    };
    let store = setup.store()?;
    let whose = args.owner.owner()?.map_or(Principal::Operator, Principal::Owner);
    if !setup.config().records_events() {
        output::note(
            "no events are recorded here (events.record); there are events only of what records them",
        );
    }
    let reader = Reader { store: &store, whose, of };
    let done = if args.follow {
        reader.follow(after, args.format).await
    } else {
        match reader.page(after, args.limit).await {
            Ok((page, _)) => list(&page, args.limit, args.format),
            Err(error) => Err(error),
        }
    };
    store.close().await;
    done.map(|()| Exit::Success)
}

/// Who reads events in the database, as whom, and of what.
struct Reader<'a> {
    store: &'a SharedStore,
    whose: Principal,
    of: EventsOf,
}

impl Reader<'_> {
    /// Prints what happens until somebody ends it.
    async fn follow(&self, after: Option<u64>, format: Format) -> anyhow::Result<()> {
        let mut after = match after {
            Some(after) => after,
            None => self.store.last_event().await?,
        };
        loop {
            let (page, next) = self.page(Some(after), PAGE).await?;
            after = next;
            page.items.iter().try_for_each(|event| print_as_it_happens(event, format))?;
            if page.items.len() < PAGE {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// What is behind a position, and the position behind which to go on.
    async fn page(&self, after: Option<u64>, limit: usize) -> anyhow::Result<(Page, u64)> {
        let (events, next) = match self.store.events(&self.whose, self.of, after, limit).await? {
            EventsAfter::Are { events, next } => (events, next),
            EventsAfter::Removed { up_to } => {
                return Err(exit::usage(format!(
                    "events behind this cursor were removed after retention.events_days, the last of them at {up_to}: begin \
                     anew with --after {up_to}, and read what became of the jobs in between"
                )));
            }
            EventsAfter::ToCome => {
                return Err(exit::usage("no event has had this cursor yet; take one that was printed"));
            }
        };
        let placed = |event| Event::placed(event, event.position.to_string());
        Ok((Page::of(events.iter().map(placed), Some(next))?, next))
    }
}

/// An event as it is told.
#[derive(Deserialize)]
struct ToldEvent {
    cursor: String,
    at: Timestamp,
    r#type: String,
    owner: Option<ToldOwner>,
    job_id: Option<Uuid>,
    batch_id: Option<Uuid>,
    tool: Option<String>,
    held_reason: Option<String>,
    error_kind: Option<String>,
}

const HEADER: [&str; 7] = ["AT", "WHAT", "JOB OR BATCH", "TOOL", "OWNER", "WHY", "CURSOR"];

fn row(event: &ToldEvent) -> [String; HEADER.len()] {
    let or_dash = |text: Option<&String>| text.map_or("-", String::as_str).to_owned();
    let about = event.job_id.or(event.batch_id).map(|id| id.to_string());
    [
        output::moment(event.at),
        event.r#type.clone(),
        or_dash(about.as_ref()),
        or_dash(event.tool.as_ref()),
        output::whose(event.owner.as_ref()),
        or_dash(event.held_reason.as_ref().or(event.error_kind.as_ref())),
        event.cursor.clone(),
    ]
}

fn list(page: &Page, limit: usize, format: Format) -> anyhow::Result<()> {
    output::print_items(&page.items, format, "there are no such events", HEADER, row)?;
    if let Some(next) = page.next().filter(|_| page.items.len() == limit) {
        output::note(format!("there may be more; go on with --after {next}"));
    }
    Ok(())
}

/// Prints the line of one event, without a header.
fn print_as_it_happens(event: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return Ok(output::print_line(event.get())?);
    }
    let cells = row(&serde_json::from_str(event.get())?);
    Ok(output::print_line(output::clean(&cells.join("  ")))?)
}
