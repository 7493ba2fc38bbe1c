//! `errand jobs`: what became of jobs, and what should.

use jiff::Timestamp;

use super::{
    actions::ByFilter,
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    server::{Call, MAX_LIMIT, Page},
    setup::Setup,
    value,
};
use crate::{
    cursor::JobCursor,
    job::{JobId, Principal, Release},
    job_json,
    store::{Force, JobFilter},
};

mod decide;
mod edit;
mod filter;
mod show;
mod stats;
mod told;

pub(super) use filter::FilterFlags;
pub(super) use show::{pinned, print, print_view};
pub(super) use told::{ToldJob, ToldSummary};

use decide::{Care, Decision};
use told::state;

const EXAMPLES: &str = "\
Examples:
  errand jobs list --state held
  errand jobs list --owner org:org-7 --tool SLACK_SEND_MESSAGE --since 24h --json | jq .error
  errand jobs show 0190b0a0-0000-7000-8000-000000000001
  errand jobs stats --by owner --since 1h
  errand jobs retry --error unknown_tool --toolkit github --since 2d --dry-run
  errand jobs release 0190b0a0-0000-7000-8000-000000000001 --succeeded
  errand jobs edit 0190b0a0-0000-7000-8000-000000000001 --run-at +1h --priority 5
  errand jobs release --failed --reason unknown_outcome --toolkit gmail --yes

A held job waits for a person or a connection: `jobs show` says why.
`cancel`, `retry` and `release` take IDs, or the filters of `list` for all that match.
The exit code is 1 if a decision could not be carried out for one of the named jobs.";

const RELEASE_USAGE: &str = "\
errand jobs release <--retry|--succeeded|--failed> <ID>...
       errand jobs release <--retry|--succeeded|--failed> [FILTERS] [--force] [--dry-run|--yes]";

const RETRY_USAGE: &str = "\
errand jobs retry [--force] [--now] <ID>...
       errand jobs retry [--force] [--now] [FILTERS] [--dry-run|--yes]";

const CANCEL_USAGE: &str = "\
errand jobs cancel <ID>...
       errand jobs cancel [FILTERS] [--dry-run|--yes]";

/// List jobs, show one, count, cancel, retry, release and edit them.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List jobs, newest first.
    List {
        #[command(flatten)]
        which: Box<FilterFlags>,
        /// Go on with a list that ended here.
        #[arg(long, value_name = "CURSOR")]
        before: Option<JobCursor>,
        /// List up to N jobs.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        /// List all jobs that match, however long that takes.
        #[arg(long, requires = "json", conflicts_with = "limit")]
        all: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Show one job with its attempts, its history and its result.
    Show {
        /// The job.
        id: JobId,
        /// Also its input. It may contain customers' data.
        #[arg(long)]
        arguments: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Count jobs by owner, tool, version or error, and by state, among those of the last day.
    Stats(Box<stats::Args>),
    /// Cancel jobs. A call that is under way is not interrupted, and not repeated either.
    #[command(override_usage = CANCEL_USAGE)]
    Cancel(Which),
    /// Retry failed or cancelled jobs with a fresh attempt budget, or make waiting jobs due now.
    ///
    /// By filters, and without --state, it is about failed jobs.
    #[command(override_usage = RETRY_USAGE)]
    Retry {
        #[command(flatten)]
        which: Which,
        /// Also jobs whose last call may have had its effect, which would be repeated.
        #[arg(long)]
        force: bool,
        /// Also jobs that are scheduled for later, which would not wait for that.
        #[arg(long)]
        now: bool,
    },
    /// Release held jobs. By filters, and without --reason, it is about jobs that wait for a connection.
    #[command(override_usage = RELEASE_USAGE)]
    Release {
        #[command(flatten)]
        how: ReleaseFlags,
        #[command(flatten)]
        which: Which,
        /// By filters: also jobs whose last call may have had its effect, which would be repeated.
        #[arg(long, conflicts_with_all = ["succeeded", "failed"])]
        force: bool,
    },
    /// Change when, in which queue, how urgently and until when a job runs, as long as it waits.
    Edit(edit::Args),
}

/// The jobs that a decision is about, and how it is made.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The jobs. Instead of IDs, filters mean all jobs that match.
    ids: Vec<JobId>,
    #[command(flatten)]
    filter: Box<FilterFlags>,
    #[command(flatten)]
    care: Care,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Clone, Copy, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct ReleaseFlags {
    /// Make the call again.
    #[arg(long)]
    retry: bool,
    /// The call is known to have succeeded.
    #[arg(long)]
    succeeded: bool,
    /// The call is known to have failed, or is not wanted any more.
    #[arg(long)]
    failed: bool,
}

impl ReleaseFlags {
    fn release(self) -> Release {
        if self.retry {
            Release::Retry
        } else if self.succeeded {
            Release::Succeeded
        } else {
            Release::Failed
        }
    }
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    let (which, decision) = match command {
        Command::List { which, before, all: true, .. } => {
            return list_all(setup, &which.filter()?, before).await;
        }
        Command::List { which, before, limit, format, .. } => {
            return list(setup, &which.filter()?, before, limit, format).await;
        }
        Command::Show { id, arguments, format } => return show::show(id, arguments, format, setup).await,
        Command::Stats(args) => return stats::run(setup, &args).await,
        Command::Edit(args) => return edit::run(args, setup).await,
        Command::Cancel(which) => (which, Decision::Cancel),
        Command::Retry { which, force, now } => (which, Decision::Retry(Force { effect: force, early: now })),
        Command::Release { how, which, force } => {
            (which, Decision::Release(how.release(), Force { effect: force, early: false }))
        }
    };
    let Which { ids, filter, care, who, format } = which;
    let filter = filter.filter()?;
    if !ids.is_empty() && !filter.is_empty() {
        return Err(exit::usage("filters cannot be used with IDs; give one or the other"));
    }
    if ids.is_empty() {
        if filter.is_empty() {
            return Err(exit::usage(WHICH_JOBS));
        }
        let (Care { dry_run, yes }, (decision, force)) = (care, decision.of_action());
        return ByFilter { decision, force, filter, who, dry_run, yes, format }.run(setup).await;
    }
    decide::decide(setup, &ids, decision, &who, format).await
}

/// What is said where neither IDs nor a filter say which jobs are meant.
const WHICH_JOBS: &str = "say which jobs: by their IDs, or by filters such as --state, --owner, --tool and --since, \
                          of which one is enough";

/// The request for a page of a server's list.
fn page_of(filter: &JobFilter, before: Option<impl ToString>, limit: usize) -> anyhow::Result<Call> {
    let call = Call::get("/v1/jobs").with("cursor", before).with("limit", Some(limit.min(MAX_LIMIT)));
    call.filtered(filter)
}

/// Prints all that match as JSON Lines, page by page.
async fn list_all(setup: &Setup, filter: &JobFilter, before: Option<JobCursor>) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        // A list of a server goes back seven days, unless it is told how far.
        let filter = JobFilter { since: filter.since.or(Some(Timestamp::UNIX_EPOCH)), ..filter.clone() };
        let mut before = before.map(|cursor| cursor.to_string());
        loop {
            let page = server.page(page_of(&filter, before, MAX_LIMIT)?).await?;
            for job in &page.items {
                output::print_json(job)?;
            }
            before = page.next();
            if before.is_none() {
                return Ok(Exit::Success);
            }
        }
    }
    let store = setup.store()?;
    let mut before = before.map(|cursor| cursor.0);
    loop {
        let page = store.jobs(&Principal::Operator, filter, before, PAGE).await?;
        for job in &page.items {
            output::print_json(&job_json::job_summary_json(job))?;
        }
        before = page.next;
        if before.is_none() {
            store.close().await;
            return Ok(Exit::Success);
        }
    }
}

/// Jobs that are kept in memory where all are listed.
const PAGE: usize = 500;

async fn list(
    setup: &Setup,
    filter: &JobFilter,
    before: Option<JobCursor>,
    limit: usize,
    format: Format,
) -> anyhow::Result<Exit> {
    let (page, looked) = match &setup.server {
        Some(server) => {
            let page = server.page(page_of(filter, before, limit)?).await?;
            let back_to = page.next().and_then(|next| next.parse::<JobCursor>().ok()?.0.time().ok());
            let looked = match back_to.map(output::moment) {
                Some(back_to) if page.items.len() >= limit => format!("there may be more before {back_to}"),
                Some(back_to) => format!("looked back to {back_to}"),
                None => "there may be more".to_owned(),
            };
            (page, looked)
        }
        None => {
            let store = setup.store()?;
            let page = store.jobs(&Principal::Operator, filter, before.map(|cursor| cursor.0), limit).await?;
            store.close().await;
            let back_to =
                page.next.map(|next| next.time()).transpose()?.map(output::moment).unwrap_or_default();
            // A full list may have looked at fewer than it could.
            let looked = match page.items.len() >= limit {
                true => format!("there may be more before {back_to}"),
                false => format!("looked at {} jobs, back to {back_to}", page.looked_at),
            };
            (
                Page::of(page.items.iter().map(job_json::job_summary_json), page.next.map(JobCursor::of))?,
                looked,
            )
        }
    };
    let next = page.next();
    let nothing = if next.is_some() { "no jobs match among these" } else { "no jobs match" };
    let header = ["ID", "STATE", "OWNER", "TOOL", "QUEUE", "ATTEMPTS", "CREATED", "ERROR"];
    output::print_items(&page.items, format, nothing, header, |job: &ToldSummary| {
        [
            job.id.clone(),
            state(job),
            job.owner.to_string(),
            job.tool.clone(),
            job.queue.clone(),
            job.attempt.to_string(),
            output::moment(job.created_at),
            job.error.as_ref().map(|error| error.kind().to_string()).unwrap_or_default(),
        ]
    })?;
    if let Some(next) = next {
        output::note(format!("{looked}; go on with the same filters and --before {next}"));
    } else if let Some(since) = page.window.and_then(|window| window.since).filter(|_| filter.since.is_none())
    {
        output::note(format!("jobs since {}; --since goes back further", output::moment(since)));
    }
    Ok(Exit::Success)
}
