//! `errand rejected`: messages that are not jobs, kept whole.

use std::{io::Write as _, sync::Arc};

use serde_json::json;
use uuid::Uuid;

use super::{
    context::{Context, OpenDoor},
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::{
    admission::Enqueued,
    job::{JobId, decode},
    queue::Properties,
    store::{RejectedView, SharedStore},
};

const EXAMPLES: &str = "\
Examples:
  errand rejected list
  errand rejected show 0190b0a0-0000-7000-8000-000000000001 --body | jq .
  errand rejected requeue 0190b0a0-0000-7000-8000-000000000001

`requeue` reads the message again, as it is. That helps where a setting was changed or where the
message only lacked an ID; a message that is still not a job stays where it is. A message whose job
the database should know and does not (unknown_job) becomes a new job: it may have run before.";

/// List, show and requeue rejected messages, which are not valid jobs.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List rejected messages, newest first.
    List {
        /// List up to N messages.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
    /// Show one rejected message.
    Show {
        /// The message.
        #[arg(value_parser = value::message_id)]
        id: Uuid,
        /// Print only the body, byte for byte. It may contain customers' data.
        #[arg(long, conflicts_with = "json")]
        body: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Try to enqueue rejected messages again.
    Requeue {
        /// The messages.
        #[arg(required = true, value_parser = value::message_id)]
        ids: Vec<Uuid>,
        /// Run the jobs without a reply, for example because their reply queue is not allowed.
        #[arg(long)]
        without_reply: bool,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::List { limit, format } => {
            let store = context.store()?;
            list(&store.rejected(limit).await?, format)?;
            store.close().await;
            Ok(Exit::Success)
        }
        Command::Show { id, body, format } => {
            let store = context.store()?;
            show(&find(&store, id).await?, body, format)?;
            store.close().await;
            Ok(Exit::Success)
        }
        Command::Requeue { ids, without_reply } => {
            let open = context.door()?;
            let mut refused = false;
            for id in ids {
                let line = match requeue(context, &open, id, without_reply).await? {
                    Ok(done) => done,
                    Err(reason) => {
                        refused = true;
                        format!("{id} stays rejected: {reason}")
                    }
                };
                output::print_line(output::clean(&line))?;
            }
            open.close().await;
            Ok(Exit::negative_if(refused))
        }
    }
}

async fn find(store: &SharedStore, id: Uuid) -> anyhow::Result<RejectedView> {
    let found = store.rejected_message(id).await?;
    found.ok_or_else(|| exit::negative(format!("there is no rejected message {id}")))
}

fn list(messages: &[RejectedView], format: Format) -> anyhow::Result<()> {
    let header = ["ID", "RECEIVED", "QUEUE", "REASON", "BYTES", "SEEN", "MESSAGE"];
    let json = |view: &RejectedView| serde_json::to_string(&summary(view));
    output::print_list(messages, format, json, "no messages were rejected", header, |view| {
        [
            view.message.id.to_string(),
            output::moment(view.received_at),
            view.message.queue.to_string(),
            view.message.reason.to_string(),
            view.size.to_string(),
            view.seen.to_string(),
            view.message.message.clone(),
        ]
    })
}

fn show(view: &RejectedView, body: bool, format: Format) -> anyhow::Result<()> {
    if body {
        let mut out = std::io::stdout().lock();
        out.write_all(&view.message.body).and_then(|()| out.flush()).map_err(output::Closed)?;
        return Ok(());
    }
    if format.json {
        return output::print_json(&summary(view));
    }
    output::print_fields(&[
        ("message", Some(view.message.id.to_string())),
        ("reason", Some(view.message.reason.to_string())),
        ("why", Some(view.message.message.clone())),
        ("queue", Some(view.message.queue.to_string())),
        ("received", Some(output::moment(view.received_at))),
        ("seen", Some(view.seen.to_string())),
        ("requeued", view.requeued_at.map(output::moment)),
        ("properties", Some(view.message.properties.clone())),
        ("body", Some(format!("{} bytes; --body prints them", view.size))),
    ])?;
    Ok(())
}

fn summary(view: &RejectedView) -> serde_json::Value {
    let message = &view.message;
    let properties: serde_json::Value = serde_json::from_str(&message.properties).unwrap_or_default();
    json!({
        "id": message.id, "queue": message.queue, "reason": message.reason, "message": message.message,
        "properties": properties, "size": view.size, "seen": view.seen, "received_at": view.received_at,
        "requeued_at": view.requeued_at,
    })
}

/// Reads a message again and enqueues it, and says what it is now; the inner error says why it stays rejected.
async fn requeue(
    context: &Context,
    open: &OpenDoor,
    id: Uuid,
    without_reply: bool,
) -> anyhow::Result<Result<String, String>> {
    let view = find(&open.store, id).await?;
    if view.requeued_at.is_some() {
        return Ok(Err("it was requeued before".to_owned()));
    }
    let mut properties: Properties = serde_json::from_str(&view.message.properties).unwrap_or_default();
    if without_reply {
        properties.reply_to = None;
    }
    // The message's own ID, so that a requeue that was interrupted makes one job, not two.
    let arrival = properties.arrival(&view.message.queue, Some(JobId(id)));
    if let Err(reason) = context.check_lane(view.message.queue.as_str()) {
        return Ok(Err(reason));
    }
    let spec = match decode(&view.message.body, &arrival) {
        Ok(spec) => Arc::new(spec),
        Err(error) => return Ok(Err(error.message)),
    };
    let done = match open.door.enqueue(&[spec]).await?.into_iter().next() {
        Some(Enqueued::New(job)) => format!("{id} is job {job} now"),
        Some(Enqueued::Duplicate(job)) => format!("{id} was job {job} before, so nothing new is enqueued"),
        Some(Enqueued::Refused(error)) => return Ok(Err(error.message().to_owned())),
        Some(Enqueued::Conflict(conflict)) => return Ok(Err(conflict.message().to_owned())),
        None => anyhow::bail!("the store gave no answer"),
    };
    open.store.mark_requeued(id).await?;
    Ok(Ok(done))
}
