//! `errand audit`: looks through all jobs for what should not be.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;
use url::Url;

use super::{
    exit::{self, Exit},
    output::{self, Format},
    setup::Setup,
    value,
};
use crate::{
    app,
    failure::chain,
    maintenance::{
        audit::{self, Audit, LaneFigures, Report},
        ledger::{self, Comparison},
    },
    store::StoreErrorKind,
};

const EXAMPLES: &str = "\
Examples:
  errand audit
  errand audit --repair
  errand audit --json --limit 1000 | jq '.findings[].jobs'
  errand audit --ledger http://127.0.0.1:8090

The exit code is 0 when nothing is wrong, or everything was repaired, and 1 when something is left.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Give jobs back to the relay or to the rescue of lost workers, where that is safe. Without it, the audit only reads.
    #[arg(long)]
    repair: bool,
    /// Compare with the ledger of the sandbox at this address.
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// Print up to N job IDs of each kind of finding.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value::limit)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// Not judged by the parser of the command line, which quotes what it refuses, and with it a password.
fn ledger_url(text: &str) -> anyhow::Result<Url> {
    let fits = |url: &Url| {
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
    };
    let wrong = || exit::usage("--ledger takes the base URL of a sandbox, such as http://127.0.0.1:8090");
    text.parse().ok().filter(fits).ok_or_else(wrong)
}

#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    found: u64,
    repaired: u64,
    jobs: Vec<String>,
    advice: &'static str,
}

impl Row {
    fn left(&self) -> u64 {
        self.found.saturating_sub(self.repaired)
    }
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    let ledger = args.ledger.as_deref().map(ledger_url).transpose()?;
    let store = setup.store()?;
    let queue = setup.config().uses_broker().then(|| app::open_queue(setup.config())).transpose()?;
    let options = audit::Options {
        page: app::AUDIT_PAGE,
        pause: Duration::ZERO,
        limits: app::audit_limits(setup.config()),
        repair: args.repair,
        named: args.limit,
    };
    let audit = Audit::new(store.clone(), queue.clone(), Arc::new(Notify::new()), options);
    let known: Vec<_> = setup.config().queues.keys().cloned().collect();
    let report = audit.run_once().await?;
    let lanes = match audit.lanes(&known).await {
        // What the figures stumble over is among the findings.
        Err(error) if error.kind() == StoreErrorKind::Corrupt => {
            output::note(format_args!("the figures of the queues cannot be read: {}", chain(&error)));
            Vec::new()
        }
        lanes => lanes?,
    };
    let comparison = match &ledger {
        Some(url) => Some(ledger::compare(&store, url, args.limit).await?),
        None => None,
    };
    if let Some(queue) = queue {
        queue.close().await;
    }
    store.close().await;

    let rows = rows(&report, comparison.as_ref());
    let clean = rows.iter().all(|row| row.left() == 0);
    if args.format.json {
        print_json(clean, &report, &rows, &lanes, comparison.as_ref())?;
    } else {
        print_text(&report, &rows, &lanes, comparison.as_ref())?;
    }
    Ok(Exit::negative_if(!clean))
}

fn rows(report: &Report, comparison: Option<&Comparison>) -> Vec<Row> {
    let own = report.found.iter().map(|(kind, found)| Row {
        kind: kind.as_str(),
        found: found.found,
        repaired: found.repaired,
        jobs: found.jobs.iter().map(ToString::to_string).collect(),
        advice: audit::advice(*kind),
    });
    let contradictions = comparison.into_iter().flat_map(|comparison| {
        comparison.found.iter().map(|(kind, (found, jobs))| Row {
            kind: kind.as_str(),
            found: *found,
            repaired: 0,
            jobs: jobs.clone(),
            advice: kind.advice(),
        })
    });
    own.chain(contradictions).collect()
}

fn print_json(
    clean: bool,
    report: &Report,
    rows: &[Row],
    lanes: &[LaneFigures],
    comparison: Option<&Comparison>,
) -> anyhow::Result<()> {
    let lane = |lane: &LaneFigures| {
        json!({
            "queue": lane.lane, "available": lane.available, "messages": lane.messages,
            "difference": difference(lane),
        })
    };
    let lanes: Vec<_> = lanes.iter().map(lane).collect();
    let ledger = comparison.map(|comparison| {
        json!({
            "effects": comparison.effects, "without_job": comparison.without_job,
            "complete": comparison.complete,
        })
    });
    output::print_json(&json!({
        "clean": clean, "jobs": report.seen, "findings": rows, "queues": lanes, "ledger": ledger,
    }))
}

fn print_text(
    report: &Report,
    rows: &[Row],
    lanes: &[LaneFigures],
    comparison: Option<&Comparison>,
) -> anyhow::Result<()> {
    output::print_line(format!("{} jobs looked at", report.seen))?;
    if let Some(comparison) = comparison {
        output::print_line(format!(
            "{} effects in the ledger, of which {} name no job",
            comparison.effects, comparison.without_job
        ))?;
        if !comparison.complete {
            output::note(
                "the ledger has forgotten its oldest effects, so jobs without an effect are not looked for",
            );
        }
    }
    output::print("\n")?;
    let figures = lanes.iter().map(|lane| {
        let known = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
        vec![
            lane.lane.to_string(),
            lane.available.to_string(),
            known(lane.messages.map(|messages| messages.to_string())),
            known(difference(lane).map(|difference| difference.to_string())),
        ]
    });
    if !lanes.is_empty() {
        output::print_table(&["QUEUE", "AVAILABLE", "MESSAGES", "DIFFERENCE"], figures.collect())?;
        output::print("\n")?;
    }
    if rows.is_empty() {
        output::print_line("nothing is wrong")?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        vec![row.kind.to_owned(), row.found.to_string(), row.repaired.to_string(), row.jobs.join(" ")]
    });
    output::print_table(&["KIND", "FOUND", "REPAIRED", "JOBS"], cells.collect())?;
    for row in rows.iter().filter(|row| row.left() > 0) {
        output::print_line(format!("\n{}: {}", row.kind, row.advice))?;
    }
    Ok(())
}

/// Messages that wait beyond the jobs that are available; negative when there are fewer.
fn difference(lane: &LaneFigures) -> Option<i64> {
    lane.messages.map(|messages| messages as i64 - lane.available as i64)
}
