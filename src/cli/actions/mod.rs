//! `errand actions`, and how commands decide about all jobs that a filter means.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    server::{Call, MAX_LIMIT, Page, Server},
    setup::Setup,
    value,
};
use crate::{
    actions::ActionJson,
    cursor::ActionCursor,
    job::{HeldReason, Principal},
    store::{ActionStatus, PreviewKind, Progress, Skip},
};

mod by_filter;

pub(super) use by_filter::ByFilter;

const EXAMPLES: &str = "\
Examples:
  errand actions list
  errand actions show 0190b0a0-0000-7000-8000-000000000001 --json | jq .progress
  errand actions abort 0190b0a0-0000-7000-8000-000000000001

An action is one decision about all jobs that a filter means: `errand jobs cancel`, `retry` and
`release` and `errand prune` make one when they are given filters, and apps make them over HTTP.
It is carried out by workers, and by the command that made it.";

/// List, show and abort actions, which decide about many jobs by filters.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List actions, the newest first.
    List {
        /// Go on with a list that ended here.
        #[arg(long, value_name = "CURSOR")]
        before: Option<ActionCursor>,
        /// List up to N actions.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
    /// Show what an action means, and how far it has come.
    Show {
        /// The action.
        id: Uuid,
        #[command(flatten)]
        format: Format,
    },
    /// End an action. What was decided stays.
    Abort {
        /// The action.
        id: Uuid,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match &setup.server {
        Some(server) => run_at(command, server).await?,
        None => run_in(command, setup).await?,
    }
    Ok(Exit::Success)
}

async fn run_at(command: Command, server: &Server) -> anyhow::Result<()> {
    match command {
        Command::List { before, limit, format } => {
            let list =
                Call::get("/v1/actions").with("cursor", before).with("limit", Some(limit.min(MAX_LIMIT)));
            print_page(&server.page(list).await?, format)
        }
        Command::Show { id, format } => {
            show(&server.ask::<Box<RawValue>>(Call::get(format!("/v1/actions/{id}"))).await?, format)
        }
        Command::Abort { id, who, format } => {
            who.is_the_key()?;
            let abort = Call::post(format!("/v1/actions/{id}/abort")).repeatable();
            print_aborted(&server.ask::<Box<RawValue>>(abort).await?, format)
        }
    }
}

async fn run_in(command: Command, setup: &Setup) -> anyhow::Result<()> {
    let store = setup.store()?;
    match command {
        Command::List { before, limit, format } => {
            let actions = store.actions(&Principal::Operator, before.map(|cursor| cursor.0), limit).await?;
            let next = actions
                .last()
                .filter(|_| actions.len() >= limit)
                .map(|action| ActionCursor::of(action.place()));
            print_page(&Page::of(actions.iter().map(ActionJson::of), next)?, format)?;
        }
        Command::Show { id, format } => {
            let action = store.action(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
            show(&to_raw_value(&ActionJson::of(&action))?, format)?;
        }
        Command::Abort { id, who, format } => {
            let by = who.decider(setup);
            let action =
                store.abort_action(&Principal::Operator, id, &by).await?.ok_or_else(|| unknown(id))?;
            print_aborted(&to_raw_value(&ActionJson::of(&action))?, format)?;
        }
    }
    store.close().await;
    Ok(())
}

fn unknown(id: Uuid) -> anyhow::Error {
    exit::negative(format!("there is no action {id}, or it ended long ago; `errand actions list` names them"))
}

/// An action as it is told.
#[derive(Debug, Deserialize)]
struct ToldAction {
    id: Uuid,
    action: String,
    how: Option<String>,
    force: bool,
    now: bool,
    filter: serde_json::Map<String, Value>,
    until: Timestamp,
    owner: Option<ToldOwner>,
    status: ActionStatus,
    made_by: String,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    confirmed_by: Option<String>,
    confirmed_at: Option<Timestamp>,
    aborted_by: Option<String>,
    finished_at: Option<Timestamp>,
    preview: Option<ToldPreview>,
    progress: Progress,
}

/// What was counted before the confirmation, as it is told.
#[derive(Debug, Deserialize)]
struct ToldPreview {
    total: u64,
    needs_force: u64,
    at_least: bool,
    kinds: Vec<PreviewKind>,
}

impl ToldAction {
    /// What it does, in a word or two.
    fn words(&self) -> String {
        match &self.how {
            Some(how) => format!("{} ({how})", self.action),
            None => self.action.clone(),
        }
    }
}

fn print_page(page: &Page, format: Format) -> anyhow::Result<()> {
    let header = ["ID", "ACTION", "STATUS", "OWNER", "MADE BY", "CREATED", "DONE", "LEFT"];
    output::print_items(&page.items, format, "there are no actions", header, |action: &ToldAction| {
        let Progress { looked_at, done, .. } = action.progress;
        [
            action.id.to_string(),
            action.words(),
            action.status.to_string(),
            output::whose(action.owner.as_ref()),
            action.made_by.clone(),
            output::moment(action.created_at),
            done.to_string(),
            looked_at.saturating_sub(done).to_string(),
        ]
    })?;
    if let Some(next) = page.next() {
        output::note(format!("there may be more; go on with --before {next}"));
    }
    Ok(())
}

fn print_aborted(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let action: ToldAction = serde_json::from_str(json.get())?;
    Ok(output::print_line(format!("{} is {}", action.id, action.status))?)
}

fn show(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let action: ToldAction = serde_json::from_str(json.get())?;
    let at_by = |at: Option<Timestamp>, by: Option<&str>| {
        at.map(|at| format!("{} by {}", output::moment(at), by.unwrap_or("nobody")))
    };
    let asked = action.filter.iter().filter(|(_, value)| !value.is_null());
    let asked: Vec<_> = asked.map(|(name, value)| format!("{name}={value}")).collect();
    let Progress { looked_at, done, .. } = action.progress;
    let previewed = action.preview.as_ref().map(|preview| match preview.at_least {
        true => format!("at least {} jobs", preview.total),
        false => output::count(preview.total, "job", "jobs"),
    });
    let force = [(action.force, "repeats effects"), (action.now, "does not wait for run_at")];
    let force: Vec<_> = force.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    output::print_fields(&[
        ("action", Some(action.words())),
        ("status", Some(action.status.to_string())),
        ("owner", Some(output::whose(action.owner.as_ref()))),
        ("filter", Some(if asked.is_empty() { "all jobs".to_owned() } else { asked.join(" ") })),
        ("until", Some(output::moment(action.until))),
        ("forced", (!force.is_empty()).then(|| force.join(", "))),
        ("made", at_by(Some(action.created_at), Some(&action.made_by))),
        ("expires", action.expires_at.map(output::moment)),
        ("confirmed", at_by(action.confirmed_at, action.confirmed_by.as_deref())),
        ("ended", action.finished_at.map(output::moment)),
        ("aborted by", action.aborted_by.clone()),
        ("preview", previewed),
        ("done", Some(format!("{done} of {looked_at} looked at"))),
    ])?;
    for (why, jobs) in left(&action.progress) {
        output::print_line(format!("left        {}: {why}", output::count(jobs, "job", "jobs")))?;
    }
    Ok(())
}

/// How many jobs stayed as they were, by why.
fn left(progress: &Progress) -> BTreeMap<&'static str, u64> {
    let mut left = BTreeMap::new();
    for (why, jobs) in &progress.skipped {
        let why = match why {
            Skip::NeedsForce => "its last call may have had its effect (--force repeats it)",
            Skip::Early => "it is scheduled for later (--now does not wait)",
            Skip::HasNotRun => "it has not run",
            Skip::WrongState | Skip::Gone | Skip::Changed => "it changed meanwhile",
            Skip::Pending => "its reply is still to be published, or its call looked up",
            Skip::Unreadable => "a newer version of errand wrote it",
        };
        *left.entry(why).or_default() += jobs;
    }
    left
}

/// Why jobs that have not run cannot be marked as ended.
pub(super) fn only_retry(reason: HeldReason) -> String {
    format!(
        "held for {reason} have not run, so that they can only be released with --retry; `jobs cancel` calls jobs off"
    )
}
