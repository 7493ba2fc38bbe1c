//! `errand audit-log`: who changed what.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    exit::Exit,
    output::{self, Format, ToldOwner},
    server::{Call, MAX_LIMIT, Page},
    setup::Setup,
    value,
};
use crate::{
    cursor::ChangeCursor,
    job::Principal,
    store::{Change, ChangeFilter, ObjectKind},
};

const EXAMPLES: &str = "\
Examples:
  errand audit-log --since 24h
  errand audit-log --kind key --owner org:org-7
  errand audit-log --kind job --id 0190b0a0-0000-7000-8000-000000000001 --json

It tells of what people and keys changed: keys, jobs, batches, actions, queues, pins, rejected
messages and owners that were erased. What errand decides about a job by itself is in the history
of the job (`errand jobs show`).
Entries are kept for retention.audit_log_days.";

/// List who changed what, and from where, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// About objects of this kind.
    #[arg(long, value_parser = value::word::<ObjectKind>(ObjectKind::WORDS))]
    kind: Option<ObjectKind>,
    /// About the object with this ID; of pins, the toolkit.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    owner: value::AnyOwner,
    /// Made by this person, or by a key: "key ID".
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Made then or later: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    since: Option<Timestamp>,
    /// Made before then: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    until: Option<Timestamp>,
    /// Go on with a list that ended here.
    #[arg(long, value_name = "CURSOR")]
    before: Option<ChangeCursor>,
    /// List up to N entries.
    #[arg(long, default_value_t = 50, value_parser = value::limit)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let page = match &setup.server {
        Some(server) => {
            let list = Call::get("/v1/audit-log")
                .with("kind", args.kind)
                .with("id", args.id)
                .with("owner", args.owner.owner()?)
                .with("by", args.by)
                .with("since", args.since)
                .with("until", args.until)
                .with("cursor", args.before)
                .with("limit", Some(args.limit.min(MAX_LIMIT)));
            server.page(list).await?
        }
        None => {
            let store = setup.store()?;
            let filter = ChangeFilter {
                kind: args.kind,
                object: args.id,
                owner: args.owner.owner()?,
                by: args.by,
                since: args.since,
                until: args.until,
            };
            let changes = store
                .changes(&Principal::Operator, &filter, args.before.map(|cursor| cursor.0), args.limit)
                .await?;
            store.close().await;
            let next = changes
                .last()
                .filter(|_| changes.len() == args.limit)
                .map(|last| ChangeCursor::of(last.place()));
            Page::of(changes.iter().map(Change::json), next)?
        }
    };
    list(&page.items, args.format)?;
    if let Some(next) = page.next() {
        output::note(format!("there may be more; go on with the same filters and --before {next}"));
    }
    Ok(Exit::Success)
}

/// A change as it is told.
#[derive(Deserialize)]
struct ToldChange {
    at: Timestamp,
    what: String,
    by: String,
    from: String,
    owner: Option<ToldOwner>,
    object: Option<String>,
    before: Option<Box<RawValue>>,
    after: Option<Box<RawValue>>,
}

fn list(changes: &[Box<RawValue>], format: Format) -> anyhow::Result<()> {
    let header = ["AT", "WHAT", "BY", "FROM", "OWNER", "OBJECT", "BEFORE", "AFTER"];
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    output::print_items(changes, format, "no changes match", header, |change: &ToldChange| {
        [
            output::moment(change.at),
            change.what.clone(),
            change.by.clone(),
            change.from.clone(),
            or_dash(change.owner.as_ref().map(ToString::to_string).as_deref()),
            or_dash(change.object.as_deref()),
            or_dash(change.before.as_deref().map(RawValue::get)),
            or_dash(change.after.as_deref().map(RawValue::get)),
        ]
    })
}
