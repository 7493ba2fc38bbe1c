//! `errand jobs stats`: how many jobs there are of each owner, tool, version or error, among the newest.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{filter::FilterFlags, told::ToldSummary};
use crate::{
    bounds::MAX_LOOK,
    cli::{
        exit::Exit,
        output::{self, Format},
        server::{MAX_LIMIT, Server},
        setup::Setup,
        value,
    },
    job::{Principal, State},
    store::{JobFilter, Place},
};

/// By what jobs are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum By {
    Owner,
    Tool,
    Version,
    Error,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Count by owner, tool, version or error.
    #[arg(long, value_enum)]
    by: By,
    #[command(flatten)]
    which: FilterFlags,
    /// Look at up to N jobs, newest first.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value::most::<MOST>)]
    look: u64,
    /// Show the N largest groups.
    #[arg(long, default_value_t = 50, value_parser = value::limit)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// The most jobs that are looked at; some seconds of work.
const MOST: u64 = 1_000_000;

/// Where nothing else says since when.
const LAST: &str = "24h";

/// Most groups that are kept apart; of more, the rest is counted together.
const MAX_GROUPS: usize = 100_000;

type Counts = BTreeMap<State, u64>;

/// What was counted.
#[derive(Default)]
struct Tally {
    groups: BTreeMap<String, Counts>,
    looked_at: u64,
    /// How far back it looked.
    back_to: Option<Timestamp>,
}

impl Tally {
    fn add(&mut self, mut group: String, state: State) {
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            "(others)".clone_into(&mut group);
        }
        *self.groups.entry(group).or_default().entry(state).or_default() += 1;
    }
}

pub(super) async fn run(setup: &Setup, args: &Args) -> anyhow::Result<Exit> {
    let mut filter = args.which.filter()?;
    if filter.since.is_none() {
        filter.since = Some(value::past(LAST).map_err(anyhow::Error::msg)?);
    }
    let tally = match &setup.server {
        Some(server) => count_of(server, &filter, args).await?,
        None => count(setup, &filter, args).await?,
    };
    print(args, tally)
}

async fn count(setup: &Setup, filter: &JobFilter, args: &Args) -> anyhow::Result<Tally> {
    let store = setup.store()?;
    let (mut tally, mut before): (Tally, Option<Place>) = (Tally::default(), None);
    let complete = loop {
        let page = store.glances(&Principal::Operator, filter, before, false).await?;
        tally.looked_at += page.looked_at;
        for job in &page.items {
            let error = job.error_kind.map(|kind| kind.to_string());
            tally.add(group(args.by, &job.owner, &job.tool, &job.version, &error), job.state);
        }
        before = page.next;
        if before.is_none() || tally.looked_at + MAX_LOOK as u64 > args.look.max(MAX_LOOK as u64) {
            break before.is_none();
        }
    };
    store.close().await;
    tally.back_to = if complete { filter.since } else { before.map(|place| place.time()).transpose()? };
    Ok(tally)
}

/// The same over what a server lists.
async fn count_of(server: &Server, filter: &JobFilter, args: &Args) -> anyhow::Result<Tally> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<String>,
    }

    let (mut tally, mut before) = (Tally::default(), None);
    loop {
        let page = server.page(super::page_of(filter, before, MAX_LIMIT)?).await?;
        for listed in &page.items {
            let job: ToldSummary = serde_json::from_str(listed.get())?;
            let Version { version } = serde_json::from_str(listed.get())?;
            let error = job.error.as_ref().map(|error| error.kind().to_string());
            tally.add(group(args.by, &job.owner, &job.tool, &version, &error), job.state);
            (tally.looked_at, tally.back_to) = (tally.looked_at + 1, Some(job.created_at));
        }
        before = page.next();
        if before.is_none() {
            tally.back_to = filter.since;
        }
        if before.is_none() || tally.looked_at >= args.look {
            return Ok(tally);
        }
    }
}

fn group(
    by: By,
    owner: &impl ToString,
    tool: &str,
    version: &Option<String>,
    error: &Option<String>,
) -> String {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    match by {
        By::Owner => owner.to_string(),
        By::Tool => tool.to_owned(),
        By::Version => or_dash(version),
        By::Error => or_dash(error),
    }
}

fn print(args: &Args, Tally { groups, looked_at, back_to }: Tally) -> anyhow::Result<Exit> {
    let mut groups: Vec<(u64, String, Counts)> =
        groups.into_iter().map(|(group, counts)| (counts.values().sum(), group, counts)).collect();
    groups.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let hidden = groups.len().saturating_sub(args.limit);
    groups.truncate(args.limit);
    if args.format.json {
        let groups: Vec<_> = groups
            .iter()
            .map(|(jobs, group, states)| json!({"group": group, "jobs": jobs, "states": states}))
            .collect();
        output::print_json(&json!({
            "groups": groups, "groups_left_out": hidden, "looked_at": looked_at, "back_to": back_to,
        }))?;
        return Ok(Exit::Success);
    }
    let first = match args.by {
        By::Owner => "OWNER",
        By::Tool => "TOOL",
        By::Version => "VERSION",
        By::Error => "ERROR",
    };
    let header = [first, "JOBS", "WAITING", "RUNNING", "HELD", "SUCCEEDED", "FAILED", "CANCELLED"];
    let rows = groups.iter().map(|(jobs, group, counts)| {
        let of = |state| counts.get(&state).copied().unwrap_or(0);
        let waiting = of(State::Scheduled) + of(State::Available) + of(State::Retryable);
        let figures =
            [*jobs, waiting, of(State::Running), of(State::Held), of(State::Succeeded), of(State::Failed)];
        let figures = figures.into_iter().chain([of(State::Cancelled)]).map(|figure| figure.to_string());
        std::iter::once(group.clone()).chain(figures).collect()
    });
    output::print_table(&header, rows.collect())?;
    if hidden > 0 {
        output::note(format!(
            "and {}; see --limit",
            output::count(hidden as u64, "more group", "more groups")
        ));
    }
    let back_to = back_to.map(|at| format!(", back to {}", output::moment(at))).unwrap_or_default();
    output::note(format!("looked at {}{back_to}", output::count(looked_at, "job", "jobs")));
    Ok(Exit::Success)
}
