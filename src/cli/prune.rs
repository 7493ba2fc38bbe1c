//! `errand prune`: removes what is kept for long enough, at once.

use std::time::Duration;

use serde_json::json;

use super::{
    actions::ByFilter,
    decider::Who,
    exit::{self, Exit},
    jobs::FilterFlags,
    output::{self, Format},
    setup::Setup,
};
use crate::{
    app,
    job::State,
    maintenance::prune::{Excess, Options, Prune, Report},
    store::{ActionDecision, Force},
};

const EXAMPLES: &str = "\
Examples:
  errand prune --dry-run
  errand prune --json | jq .jobs
  errand prune --state failed --toolkit github --until 7d --yes

With filters it removes the final jobs that match, however long they are to be kept. How long jobs,
rejected messages and the audit log are kept is said by [retention] and [owner_retention]. Workers do
the same by themselves, more slowly. A dry run counts jobs and rejected messages only.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Count what would be removed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    filter: FilterFlags,
    /// With filters: remove without asking for confirmation.
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let filter = args.filter.filter()?;
    if !filter.is_empty() {
        let (decision, force) = (ActionDecision::Prune, Force::default());
        let Args { dry_run, yes, who, format, .. } = args;
        return ByFilter { decision, force, filter, who, dry_run, yes, format }.run(setup).await;
    }
    if args.yes {
        return Err(exit::usage("--yes is for removal by filters, of which there is none"));
    }
    let store = setup.store()?;
    let options = Options { dry_run: args.dry_run, ..app::prune(setup.config()) };
    let report = Prune::new(store.clone(), options).run_once().await?;
    store.close().await;
    if args.format.json {
        print_json(args.dry_run, &report)?;
    } else {
        print_text(args.dry_run, &report)?;
    }
    Ok(Exit::Success)
}

fn print_json(dry_run: bool, report: &Report) -> anyhow::Result<()> {
    let jobs = finals().map(|state| (state.as_str().to_owned(), json!(of(&report.jobs, *state))));
    let rejected = Excess::ALL.iter().map(|by| (by.as_str().to_owned(), json!(of(&report.rejected, *by))));
    output::print_json(&json!({
        "dry_run": dry_run, "seen": report.seen, "longest_ms": millis(report.longest),
        "jobs": jobs.collect::<serde_json::Map<_, _>>(),
        "rejected": rejected.collect::<serde_json::Map<_, _>>(),
        "audit_log": (!dry_run).then_some(report.changes),
        "events": (!dry_run).then_some(report.events),
        "deliveries": (!dry_run).then_some(report.deliveries),
    }))
}

fn print_text(dry_run: bool, report: &Report) -> anyhow::Result<()> {
    let jobs = finals().map(|state| vec![format!("{state} jobs"), of(&report.jobs, *state).to_string()]);
    let rejected = Excess::ALL
        .iter()
        .map(|by| vec![format!("rejected messages by {by}"), of(&report.rejected, *by).to_string()]);
    // A dry run counts neither.
    let counted = [
        ("entries of the audit log", report.changes),
        ("events", report.events),
        ("deliveries of callbacks", report.deliveries),
    ];
    let entries = counted.into_iter().filter(|_| !dry_run);
    let entries = entries.map(|(what, removed)| vec![what.to_owned(), removed.to_string()]);
    let header = ["WHAT", if dry_run { "WOULD BE REMOVED" } else { "REMOVED" }];
    output::print_table(&header, jobs.chain(rejected).chain(entries).collect())?;
    output::print_line(format!(
        "\n{} jobs looked at; the longest statement took {} ms",
        report.seen,
        millis(report.longest)
    ))?;
    Ok(())
}

fn finals() -> impl Iterator<Item = &'static State> {
    State::ALL.iter().filter(|state| state.is_final())
}

fn of<K: Ord>(counts: &std::collections::BTreeMap<K, u64>, what: K) -> u64 {
    counts.get(&what).copied().unwrap_or(0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
