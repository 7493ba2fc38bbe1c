//! `errand erase`: removes what one owner has in the database, and in the journals of this host.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use serde_json::{Value, json};

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    setup::Setup,
    value::OwnerFlags,
};
use crate::{
    job::{JobId, Owner, Principal},
    maintenance::erase::{Erase, Left, Report},
    store::{SharedStore, StoreErrorKind},
    worker::Journals,
};

const EXAMPLES: &str = "\
Examples:
  errand erase --owner user:u-alice --dry-run
  errand erase --owner org:org-7 --json

Removes jobs that are final, with their attempts, history and keys, rejected messages, pins, access
keys, batches, actions, events, callbacks, and results in the journals of this host (worker.journal_dir). Jobs that are under way stay, and the
answer says how many and why: the exit code is 1 then, and a second call goes on. Once nobody
publishes for this owner any more and nothing is left, the exit code is 0.

Not looked for are jobs of others that name the owner, such as in `requested_by`, messages in the
broker, backups, and what the tool API keeps.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "errand erase [OPTIONS] --owner <OWNER>")]
pub(super) struct Args {
    #[command(flatten)]
    owner: OwnerFlags,
    /// Count what would be removed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

/// Results in the journals of this host.
#[derive(Debug, Default)]
struct JournalReport {
    removed: u64,
    /// Of jobs that are not final, so that a worker has to write them first.
    left: u64,
    /// Of jobs that the database does not know, so that nobody knows whose they are.
    unknown: u64,
    unreadable: u64,
    /// The folder, if it is not there.
    missing: Option<PathBuf>,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let owner = args.owner.known()?;
    let store = setup.store()?;
    // As long as the jobs are there, which say whose the results are.
    let journals = erase_results(setup, &store, &owner, args.dry_run).await?;
    let report = Erase::new(store.clone(), owner, args.who.decider(setup), args.dry_run).run_once().await?;
    store.close().await;
    tracing::info!(
        dry_run = args.dry_run,
        jobs = sum(&report.jobs),
        rejected = report.rejected,
        left = sum(&report.left),
        "erased what one owner had"
    );
    if args.format.json {
        output::print_json(&as_json(args.dry_run, &report, &journals))?;
    } else {
        print_text(args.dry_run, &report, &journals)?;
    }
    Ok(Exit::negative_if(sum(&report.left) + report.rejected_left + journals.left > 0))
}

async fn erase_results(
    setup: &Setup,
    store: &SharedStore,
    owner: &Owner,
    dry_run: bool,
) -> anyhow::Result<JournalReport> {
    let mut report = JournalReport::default();
    let Some(folder) = setup.config().worker.journal_dir.clone() else { return Ok(report) };
    let unusable =
        |error| exit::negative(format!("the journals (worker.journal_dir) cannot be used: {error}"));
    if !folder.is_dir() {
        report.missing = Some(folder);
        return Ok(report);
    }
    let journals = Journals::new(folder);
    let contents = journals.read().map_err(unusable)?;
    report.unreadable = contents.unreadable.len() as u64;
    let mut theirs: HashSet<JobId> = HashSet::new();
    for id in contents.jobs {
        match store.job(&Principal::Operator, id).await {
            Err(error) if error.kind() != StoreErrorKind::Corrupt => return Err(error.into()),
            // It may be there, in words of a newer version.
            Ok(None) | Err(_) => report.unknown += 1,
            Ok(Some(job)) if job.spec.owner != *owner => {}
            Ok(Some(job)) if !job.state.is_final() => report.left += 1,
            Ok(Some(_)) => {
                theirs.insert(id);
                report.removed += 1;
            }
        }
    }
    if !dry_run {
        report.removed = journals.remove(&theirs).map_err(unusable)?;
    }
    Ok(report)
}

fn as_json(dry_run: bool, report: &Report, journals: &JournalReport) -> Value {
    let jobs: serde_json::Map<_, _> =
        report.jobs.iter().map(|(state, jobs)| (state.as_str().to_owned(), json!(jobs))).collect();
    let left = report.left.iter().map(
        |((why, state), jobs)| json!({"why": why, "state": state, "jobs": jobs, "advice": why.advice()}),
    );
    json!({
        "dry_run": dry_run,
        "removed": {
            "jobs": jobs, "rejected": report.rejected, "pins": report.pins, "keys": report.keys, "batches": report.batches,
            "actions": report.actions, "connections": report.awaited, "events": report.events,
            "deliveries": report.deliveries,
            "journal": journals.removed,
        },
        "left": left.collect::<Vec<_>>(),
        "left_rejected": report.rejected_left,
        "left_in_journal": journals.left,
        "no_journal_dir": journals.missing,
        "not_known_whose": {
            "rejected": report.unreadable, "journal": journals.unknown, "journal_files": journals.unreadable,
        },
    })
}

fn print_text(dry_run: bool, report: &Report, journals: &JournalReport) -> anyhow::Result<()> {
    let row = |what: String, count: u64| vec![what, count.to_string()];
    let mut rows: Vec<_> =
        report.jobs.iter().map(|(state, jobs)| row(format!("{state} jobs"), *jobs)).collect();
    for (what, count) in [
        ("rejected messages", report.rejected),
        ("pins", report.pins),
        ("access keys", report.keys),
        ("batches", report.batches),
        ("actions", report.actions),
        ("awaited connections", report.awaited),
        ("events", report.events),
        ("deliveries of callbacks", report.deliveries),
        ("results in journals", journals.removed),
    ] {
        rows.push(row(what.to_owned(), count));
    }
    output::print_table(&["WHAT", if dry_run { "WOULD BE REMOVED" } else { "REMOVED" }], rows)?;
    for ((why, state), jobs) in &report.left {
        output::print_line(format!("\nleft: {jobs} {state} ({why}): {}", why.advice()))?;
    }
    if report.rejected_left > 0 {
        let advice = Left::Changed.advice();
        output::print_line(format!(
            "\nleft: {} rejected messages that changed: {advice}",
            report.rejected_left
        ))?;
    }
    if let Some(folder) = &journals.missing {
        let folder = folder.display();
        output::print_line(format!(
            "\nno journals were looked at: there is no folder {folder}; if the workers of this host have another, call this \
             with their worker.journal_dir"
        ))?;
    }
    if journals.left > 0 {
        let advice = Left::UnderWay.advice();
        output::print_line(format!("\nleft: {} results in journals of such jobs: {advice}", journals.left))?;
    }
    for (count, what) in [
        (report.unreadable, "rejected messages do not tell whose they are: see `errand rejected list`"),
        (journals.unknown, "results in journals are of jobs that the database does not know"),
        (journals.unreadable, "files in the folder of the journals cannot be read"),
    ] {
        if count > 0 {
            output::print_line(format!("\nnot known whose: {count} {what}"))?;
        }
    }
    Ok(())
}

fn sum<K>(counts: &BTreeMap<K, u64>) -> u64 {
    counts.values().sum()
}
