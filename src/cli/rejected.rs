//! `errand rejected`: messages that are not jobs, kept whole.

use std::io::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    server::{Call, MAX_LIMIT, Refused, Server},
    setup::{OpenDoor, Setup},
    value,
};
use crate::{
    admission::{Requeue, Requeued},
    cursor::RejectedCursor,
    desk_json::RejectedJson,
    job::{EnvelopeReason, JobId, Owner, Principal, QueueName, id_of},
    maintenance::erase::names,
    queue::Properties,
    store::{RejectedFilter, RejectedView, SharedStore},
};

const EXAMPLES: &str = "\
Examples:
  errand rejected list
  errand rejected show 0190b0a0-0000-7000-8000-000000000001 --body | jq .
  errand rejected list --owner org:org-7 --reason bad_value --since 24h
  errand rejected requeue 0190b0a0-0000-7000-8000-000000000001
  errand rejected requeue 0190b0a0-0000-7000-8000-000000000001 --body corrected.json

`requeue` reads the message again, as it is, or with the body that --body gives, which is kept
beside the message's own. That helps where a setting was changed or where the message only lacked
an ID; a message that is still not a job stays where it is. A message whose job
the database should know and does not (unknown_job) becomes a new job: it may have run before.";

/// List, show and requeue rejected messages, which are not valid jobs.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List rejected messages that were not requeued, newest first.
    List(Box<ListArgs>),
    /// Show one rejected message.
    Show {
        /// The message.
        #[arg(value_parser = value::message_id)]
        id: Uuid,
        /// Print only the body, byte for byte. It may contain customers' data.
        #[arg(long, conflicts_with = "json")]
        body: bool,
        /// Print only the body that was taken instead when it was requeued. It may contain customers' data.
        #[arg(long, conflicts_with_all = ["json", "body"])]
        corrected: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Try to enqueue rejected messages again.
    Requeue(RequeueArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct RequeueArgs {
    /// The messages.
    #[arg(required = true, value_parser = value::message_id)]
    ids: Vec<Uuid>,
    /// Run the jobs without a reply, for example because their reply queue is not allowed.
    #[arg(long)]
    without_reply: bool,
    /// Run the jobs whoever published them, also where `[publishers]` does not let them.
    #[arg(long)]
    any_publisher: bool,
    /// Take the body from this file (- for standard input) instead of the message's own. For one message.
    #[arg(long, value_name = "FILE")]
    body: Option<String>,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Messages that would be this job, as far as their body or properties tell.
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    #[command(flatten)]
    owner: value::AnyOwner,
    /// Messages that were rejected for this reason, such as malformed.
    #[arg(long, value_parser = value::word::<EnvelopeReason>(EnvelopeReason::WORDS), hide_possible_values = true)]
    reason: Option<EnvelopeReason>,
    /// Messages of this queue.
    #[arg(long)]
    queue: Option<QueueName>,
    /// Messages that came then or later: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    since: Option<Timestamp>,
    /// Messages that came before then: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    until: Option<Timestamp>,
    /// Go on with a list that ended here.
    #[arg(long, value_name = "CURSOR")]
    before: Option<RejectedCursor>,
    /// List up to N messages.
    #[arg(long, default_value_t = 50, value_parser = value::limit)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// Messages that are read in one go, and at most for one list, to find a job or an owner in their bodies. They are read
/// one at a time, because a body may be large.
const PAGE: usize = 100;
const MOST_READ: usize = 1_000;

/// The width that a line of a list keeps to.
const WIDTH: usize = 100;

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match (command, &setup.server) {
        (Command::List(args), Some(server)) => list_of(server, &args).await?,
        (Command::List(args), None) => {
            let store = setup.store()?;
            list(&store, &args).await?;
            store.close().await;
        }
        (Command::Show { body, corrected, .. }, Some(_)) if body || corrected => {
            return Err(exit::usage("bodies are not told by a server; read them where the database is"));
        }
        (Command::Show { id, format, .. }, Some(server)) => {
            show(&server.ask::<Box<RawValue>>(Call::get(format!("/v1/rejected/{id}"))).await?, &[], format)?;
        }
        (Command::Show { id, body, corrected, format }, None) => {
            let store = setup.store()?;
            let view = find(&store, id).await?;
            match (body, corrected, &view.corrected) {
                (true, ..) => print_bytes(&view.message.body)?,
                (_, true, Some(corrected)) => print_bytes(corrected)?,
                (_, true, None) => {
                    return Err(exit::negative(format!("{id} was not requeued with another body")));
                }
                (..) => show(&to_raw_value(&RejectedJson::of(&view))?, &of_its_body(&view), format)?,
            }
            store.close().await;
        }
        (Command::Requeue(args), Some(server)) => return requeue_over(server, args).await,
        (Command::Requeue(args), None) => return requeue_all(setup, args).await,
    }
    Ok(Exit::Success)
}

impl RequeueArgs {
    /// The corrected body, whose file is named as `@FILE` and `-` name it elsewhere.
    fn corrected(&self) -> anyhow::Result<Option<String>> {
        if self.body.is_some() && self.ids.len() > 1 {
            return Err(exit::usage("--body is the body of one message; name one ID with it"));
        }
        let read =
            |file: &String| value::text_or_file(&if file == "-" { file.clone() } else { format!("@{file}") });
        self.body.as_ref().map(read).transpose()
    }
}

async fn requeue_all(setup: &Setup, args: RequeueArgs) -> anyhow::Result<Exit> {
    let corrected = args.corrected()?;
    let RequeueArgs { ids, without_reply, any_publisher, who, .. } = args;
    let by = who.decider(setup);
    let open = setup.door()?;
    let mut refused = false;
    for id in ids {
        let how = Requeue {
            without_reply,
            any_publisher,
            corrected: corrected.as_deref().map(str::as_bytes),
            by: &by,
        };
        let told = requeue(setup, &open, id, &how).await?;
        refused |= told.is_err();
        print_requeued(id, told)?;
    }
    open.close().await;
    Ok(Exit::negative_if(refused))
}

/// What a server is asked to do with a message.
#[derive(Serialize)]
struct How<'a> {
    without_reply: bool,
    any_publisher: bool,
    body: Option<&'a RawValue>,
}

/// The job that a message is now, as a server tells it.
#[derive(Deserialize)]
struct RequeuedAs {
    job: JobId,
    new: bool,
}

async fn requeue_over(server: &Server, args: RequeueArgs) -> anyhow::Result<Exit> {
    args.who.is_the_key()?;
    let corrected = args.corrected()?;
    let body = corrected
        .as_deref()
        .map(serde_json::from_str::<&RawValue>)
        .transpose()
        .map_err(|error| exit::usage(format!("--body is no JSON: {error}")))?;
    let RequeueArgs { ids, without_reply, any_publisher, .. } = args;
    let how = How { without_reply, any_publisher, body };
    let mut refused = false;
    for id in ids {
        let requeue = Call::post(format!("/v1/rejected/{id}/requeue")).json(&how)?;
        let told = match server.ask(requeue).await {
            Ok(RequeuedAs { job, new: true }) => Ok(is_new(id, job)),
            Ok(RequeuedAs { job, new: false }) => Ok(was_before(id, job)),
            Err(error) => match error.downcast::<Refused>()? {
                refusal if exit::of_refusal(&refusal) == Exit::Negative => Err(refusal.message),
                refusal => return Err(refusal.into()),
            },
        };
        refused |= told.is_err();
        print_requeued(id, told)?;
    }
    Ok(Exit::negative_if(refused))
}

/// Says what a message is now; the error says why it stays rejected.
fn print_requeued(id: Uuid, told: Result<String, String>) -> anyhow::Result<()> {
    let line = told.unwrap_or_else(|why| {
        format!("{id} stays rejected: {}", why.strip_prefix("it stays rejected: ").unwrap_or(&why))
    });
    Ok(output::print_line(output::clean(&line))?)
}

fn is_new(id: Uuid, job: JobId) -> String {
    format!("{id} is job {job} now")
}

fn was_before(id: Uuid, job: JobId) -> String {
    format!("{id} was job {job} before, so nothing new is enqueued")
}

async fn list_of(server: &Server, args: &ListArgs) -> anyhow::Result<()> {
    if args.job.is_some() || args.owner.owner()?.is_some() {
        return Err(exit::usage(
            "a server does not look into bodies; look for --job and --owner where the database is",
        ));
    }
    let list = Call::get("/v1/rejected")
        .with("reason", args.reason)
        .with("queue", args.queue.as_ref())
        .with("since", args.since)
        .with("until", args.until)
        .with("cursor", args.before)
        .with("limit", Some(args.limit.min(MAX_LIMIT)));
    let page = server.page(list).await?;
    print(&page.items, args.format)?;
    if let Some(next) = page.next() {
        output::note(format!("there may be more; go on with the same filters and --before {next}"));
    }
    Ok(())
}

async fn find(store: &SharedStore, id: Uuid) -> anyhow::Result<RejectedView> {
    let found = store.rejected_message(&Principal::Operator, id).await?;
    found.ok_or_else(|| exit::negative(format!("there is no rejected message {id}")))
}

async fn list(store: &SharedStore, args: &ListArgs) -> anyhow::Result<()> {
    let filter = RejectedFilter {
        reason: args.reason,
        queue: args.queue.clone(),
        since: args.since,
        until: args.until,
    };
    let (owner, mut before, mut read, mut found) =
        (args.owner.owner()?, args.before.map(|cursor| cursor.0), 0, Vec::new());
    let is_read = owner.is_some() || args.job.is_some();
    let next = loop {
        let page = if is_read { PAGE } else { args.limit };
        let messages = store.rejected(&Principal::Operator, &filter, before, page).await?;
        let is_last = messages.len() < page;
        for view in messages {
            before = Some(view.place());
            read += 1;
            if !is_read || is_of(store, &view, args.job, owner.as_ref()).await? {
                found.push(view);
            }
            if found.len() >= args.limit {
                break;
            }
        }
        if found.len() >= args.limit || is_read && read >= MOST_READ {
            break before;
        }
        if is_last {
            break None;
        }
    };
    let told =
        found.iter().map(|view| to_raw_value(&RejectedJson::of(view))).collect::<Result<Vec<_>, _>>()?;
    print(&told, args.format)?;
    if let Some(next) = next {
        let back_to = output::moment(next.time()?);
        output::note(format!(
            "looked at {}, back to {back_to}; go on with the same filters and --before {}",
            output::count(read as u64, "message", "messages"),
            RejectedCursor::of(next)
        ));
    }
    Ok(())
}

/// Whether a message tells that it is of this job and this owner.
async fn is_of(
    store: &SharedStore,
    view: &RejectedView,
    job: Option<JobId>,
    owner: Option<&Owner>,
) -> anyhow::Result<bool> {
    let Some(whole) = store.rejected_message(&Principal::Operator, view.message.id).await? else {
        return Ok(false);
    };
    let is_of_job = job.is_none_or(|job| job_of(&whole) == Some(job) || job.0 == view.message.id);
    let is_of_owner = owner.is_none_or(|owner| names(&whole.message.body, owner) == Some(true));
    Ok(is_of_job && is_of_owner)
}

/// The job that a message would be, as far as it tells.
fn job_of(view: &RejectedView) -> Option<JobId> {
    let properties: Properties = serde_json::from_str(&view.message.properties).unwrap_or_default();
    id_of(&view.message.body, &properties.arrival(&view.message.queue, None))
}

/// A message as it is told.
#[derive(Deserialize)]
struct ToldMessage {
    id: Uuid,
    queue: String,
    reason: String,
    message: String,
    properties: Box<RawValue>,
    size: u64,
    seen: u32,
    received_at: Timestamp,
    requeued_at: Option<Timestamp>,
    requeued_by: Option<String>,
}

fn print(messages: &[Box<RawValue>], format: Format) -> anyhow::Result<()> {
    let header = ["ID", "RECEIVED", "QUEUE", "REASON", "WHY"];
    let read: Vec<ToldMessage> =
        messages.iter().map(|json| serde_json::from_str(json.get())).collect::<Result<_, _>>()?;
    let widest = |text: fn(&ToldMessage) -> &str, least: usize| {
        read.iter().map(|message| text(message).chars().count()).fold(least, usize::max)
    };
    let queues = widest(|message| &message.queue, header[2].len());
    let reasons = widest(|message| &message.reason, header[3].len());
    // The ID, the time, and two blanks after each of four columns.
    let room = WIDTH.saturating_sub(36 + 20 + 8 + queues + reasons).max(header[4].len());
    output::print_items(messages, format, "no messages match", header, |message: &ToldMessage| {
        [
            message.id.to_string(),
            output::moment(message.received_at),
            message.queue.clone(),
            message.reason.clone(),
            clipped(&message.message, room),
        ]
    })
}

/// The beginning of a text, in so many characters.
fn clipped(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(output::Closed)?;
    Ok(())
}

/// What only the database tells of a message.
fn of_its_body(view: &RejectedView) -> [(&'static str, Option<String>); 2] {
    let corrected =
        view.corrected.as_ref().map(|body| format!("{} bytes; --corrected prints them", body.len()));
    [("job", job_of(view).map(|id| id.to_string())), ("corrected", corrected)]
}

fn show(json: &RawValue, more: &[(&'static str, Option<String>)], format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let told: ToldMessage = serde_json::from_str(json.get())?;
    let mut fields = vec![
        ("message", Some(told.id.to_string())),
        ("reason", Some(told.reason)),
        ("why", Some(told.message)),
        ("queue", Some(told.queue)),
        ("received", Some(output::moment(told.received_at))),
        ("seen", Some(told.seen.to_string())),
        ("requeued", told.requeued_at.map(output::moment)),
        ("requeued by", told.requeued_by),
        ("properties", Some(told.properties.get().to_owned())),
        ("body", Some(format!("{} bytes; --body prints them", told.size))),
    ];
    fields.extend_from_slice(more);
    Ok(output::print_fields(&fields)?)
}

/// Reads a message again and enqueues it, and says what it is now; the inner error says why it stays rejected.
async fn requeue(
    setup: &Setup,
    open: &OpenDoor,
    id: Uuid,
    how: &Requeue<'_>,
) -> anyhow::Result<Result<String, String>> {
    let view = find(&open.store, id).await?;
    if let Err(reason) = setup.check_lane(how.queue(&view).as_str()) {
        return Ok(Err(reason));
    }
    Ok(match open.door.requeue(&view, how).await? {
        Requeued::New(job) => Ok(is_new(id, job)),
        Requeued::Known(job) => Ok(was_before(id, job)),
        Requeued::Before => Err("it was requeued before".to_owned()),
        Requeued::Refused(why) => Err(why),
    })
}
