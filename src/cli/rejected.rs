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
    job::{EnvelopeReason, JobId, Principal, QueueName},
    rejected::{RejectedJson, Search, WholeRejectedJson},
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

/// The width that a line of a list keeps to.
const WIDTH: usize = 100;

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match command {
        Command::List(args) => list(setup, &args).await?,
        Command::Show { id, body: true, .. } => print_bytes(&body(setup, id, false).await?)?,
        Command::Show { id, corrected: true, .. } => print_bytes(&body(setup, id, true).await?)?,
        Command::Show { id, format, .. } => show(&told(setup, id).await?, format)?,
        Command::Requeue(args) => {
            return match &setup.server {
                Some(server) => requeue_over(server, args).await,
                None => requeue_all(setup, args).await,
            };
        }
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

/// A page of a list, at a server or of the database, and where it goes on.
async fn page(
    setup: &Setup,
    args: &ListArgs,
) -> anyhow::Result<(Vec<Box<RawValue>>, Option<RejectedCursor>)> {
    let owner = args.owner.owner()?;
    if let Some(server) = &setup.server {
        let list = Call::get("/v1/rejected")
            .with("job", args.job)
            .with("owner", owner)
            .with("reason", args.reason)
            .with("queue", args.queue.as_ref())
            .with("since", args.since)
            .with("until", args.until)
            .with("cursor", args.before)
            .with("limit", Some(args.limit.min(MAX_LIMIT)));
        let page = server.page(list).await?;
        let next = page.next().map(|next| next.parse()).transpose()?;
        return Ok((page.items, next));
    }
    let filter = RejectedFilter {
        reason: args.reason,
        queue: args.queue.clone(),
        since: args.since,
        until: args.until,
    };
    let search = Search { filter, job: args.job, owner };
    let store = setup.store()?;
    let before = args.before.map(|cursor| cursor.0);
    let found = search.page(&store, &Principal::Operator, before, args.limit).await?;
    store.close().await;
    let told = found.messages.iter().map(|view| to_raw_value(&RejectedJson::of(view)));
    Ok((told.collect::<Result<_, _>>()?, found.next.map(RejectedCursor::of)))
}

async fn list(setup: &Setup, args: &ListArgs) -> anyhow::Result<()> {
    let (messages, next) = page(setup, args).await?;
    print(&messages, args.format)?;
    if let Some(next) = next {
        let back_to = output::moment(next.0.time()?);
        output::note(format!(
            "looked back to {back_to}; there may be more; go on with the same filters and --before {next}"
        ));
    }
    Ok(())
}

/// A message, as a server or the database tells it.
async fn told(setup: &Setup, id: Uuid) -> anyhow::Result<Box<RawValue>> {
    if let Some(server) = &setup.server {
        return server.ask(Call::get(format!("/v1/rejected/{id}"))).await;
    }
    let view = read(setup, id).await?;
    Ok(to_raw_value(&WholeRejectedJson::of(&view))?)
}

/// Its body, or the one that was taken instead.
async fn body(setup: &Setup, id: Uuid, corrected: bool) -> anyhow::Result<Vec<u8>> {
    if let Some(server) = &setup.server {
        let body = Call::get(format!("/v1/rejected/{id}/body")).with("corrected", Some(corrected));
        return Ok(server.send(body).await?.1);
    }
    let view = read(setup, id).await?;
    if !corrected {
        return Ok(view.message.body);
    }
    view.corrected.ok_or_else(|| exit::negative(format!("{id} was not requeued with another body")))
}

async fn read(setup: &Setup, id: Uuid) -> anyhow::Result<RejectedView> {
    let store = setup.store()?;
    let view = find(&store, id).await?;
    store.close().await;
    Ok(view)
}

async fn find(store: &SharedStore, id: Uuid) -> anyhow::Result<RejectedView> {
    let found = store.rejected_message(&Principal::Operator, id).await?;
    found.ok_or_else(|| exit::negative(format!("there is no rejected message {id}")))
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
    /// Neither in lists nor of servers of an earlier build.
    #[serde(default)]
    job: Option<JobId>,
    #[serde(default)]
    corrected_size: Option<u64>,
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

fn show(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let told: ToldMessage = serde_json::from_str(json.get())?;
    Ok(output::print_fields(&[
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
        ("job", told.job.map(|id| id.to_string())),
        ("corrected", told.corrected_size.map(|size| format!("{size} bytes; --corrected prints them"))),
    ])?)
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
