//! `errand jobs`: what became of jobs, and what should.

use super::{
    actions::ByFilter,
    context::Context,
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::{
    job::{JobId, Principal, Release},
    job_json,
    store::{Force, JobFilter, JobView, Place, SharedStore},
};

mod decide;
mod edit;
mod filter;
mod show;
mod stats;

pub(super) use filter::FilterFlags;
pub(super) use show::{pinned, print};

use decide::{Care, Decision};
use show::state;

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
        before: Option<Place>,
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

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let (which, decision) = match command {
        Command::List { which, before, all: true, .. } => {
            let filter = which.filter()?;
            return with_store(context, async |store| list_all(store, &filter, before).await).await;
        }
        Command::List { which, before, limit, format, .. } => {
            let filter = which.filter()?;
            return with_store(context, async |store| list(store, &filter, before, limit, format).await)
                .await;
        }
        Command::Show { id, arguments, format } => {
            return with_store(context, async |store| {
                show::show(store, id, arguments, format, context).await
            })
            .await;
        }
        Command::Stats(args) => {
            return with_store(context, async |store| stats::run(store, &args).await).await;
        }
        Command::Edit(args) => return edit::run(args, context).await,
        Command::Cancel(which) => (which, Decision::Cancel),
        Command::Retry { which, force, now } => (which, Decision::Retry(Force { effect: force, early: now })),
        Command::Release { how, which, force } => {
            (which, Decision::Release(how.release(), Force { effect: force, early: false }))
        }
    };
    let Which { ids, filter, care, who, format } = which;
    let (filter, by) = (filter.filter()?, who.decider(context));
    if !ids.is_empty() && !filter.is_empty() {
        return Err(exit::usage("filters cannot be used with IDs; give one or the other"));
    }
    if ids.is_empty() {
        if filter.is_empty() {
            return Err(exit::usage(WHICH_JOBS));
        }
        let (Care { dry_run, yes }, (decision, force)) = (care, decision.of_action());
        let all = ByFilter { decision, force, filter, by, dry_run, yes, format };
        with_store(context, async move |store| all.run(store, context).await).await
    } else {
        with_store(context, async |store| decide::decide(store, &ids, decision, &by, format).await).await
    }
}

/// What is said where neither IDs nor a filter say which jobs are meant.
const WHICH_JOBS: &str = "say which jobs: by their IDs, or by filters such as --state, --owner, --tool and --since, \
                          of which one is enough";

async fn with_store(
    context: &Context,
    command: impl AsyncFnOnce(&SharedStore) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let exit = command(&store).await?;
    store.close().await;
    Ok(exit)
}

/// Prints all that match as JSON Lines, page by page.
async fn list_all(
    store: &SharedStore,
    filter: &JobFilter,
    mut before: Option<Place>,
) -> anyhow::Result<Exit> {
    loop {
        let page = store.jobs(&Principal::Operator, filter, before, PAGE).await?;
        for job in &page.items {
            output::print_json(&job_json::job_summary_json(job))?;
        }
        before = page.next;
        if before.is_none() {
            return Ok(Exit::Success);
        }
    }
}

/// Jobs that are kept in memory where all are listed.
const PAGE: usize = 500;

async fn list(
    store: &SharedStore,
    filter: &JobFilter,
    before: Option<Place>,
    limit: usize,
    format: Format,
) -> anyhow::Result<Exit> {
    let page = store.jobs(&Principal::Operator, filter, before, limit).await?;
    let json = |job: &JobView| serde_json::to_string(&job_json::job_summary_json(job));
    let nothing = if page.next.is_some() { "no jobs match among these" } else { "no jobs match" };
    let header = ["ID", "STATE", "OWNER", "TOOL", "QUEUE", "ATTEMPTS", "CREATED", "ERROR"];
    output::print_list(&page.items, format, json, nothing, header, |job| {
        [
            job.spec.id.to_string(),
            state(job),
            job.spec.owner.to_string(),
            job.spec.tool.clone(),
            job.spec.queue.to_string(),
            job.attempt.to_string(),
            output::moment(job.created_at),
            job.error.as_ref().map(|error| error.kind().to_string()).unwrap_or_default(),
        ]
    })?;
    if let Some(next) = page.next {
        let back_to = output::moment(next.time()?);
        // A full list may have looked at fewer than it could.
        let looked = if page.items.len() >= limit {
            format!("there may be more before {back_to}")
        } else {
            format!("looked at {} jobs, back to {back_to}", page.looked_at)
        };
        output::note(format!("{looked}; go on with the same filters and --before {next}"));
    }
    Ok(Exit::Success)
}
