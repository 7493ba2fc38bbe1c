//! `errand jobs`: what became of jobs, and what should.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use serde_json::json;

use super::{
    context::Context,
    exit::{self, Exit},
    output::{self, Format},
    value, waiting,
};
use crate::{
    job::{HeldReason, IllegalMove, JobError, JobId, Owner, PinnedBy, Release, State, Transition},
    job_json::{self, Past},
    store::{
        AttemptView, Decided, HeldFilter, HistoryEntry, JobFilter, JobView, SharedStore, StoreError,
        check_decider,
    },
};

const EXAMPLES: &str = "\
Examples:
  errand jobs list --state held
  errand jobs list --owner org:org-7 --tool SLACK_SEND_MESSAGE --json | jq .error
  errand jobs show 0190b0a0-0000-7000-8000-000000000001
  errand jobs release 0190b0a0-0000-7000-8000-000000000001 --succeeded
  errand jobs release --retry --owner user:u-alice --toolkit github --dry-run
  errand jobs release --failed --reason unknown_outcome --toolkit gmail --yes

A held job waits for a person or a connection: `jobs show` says why.
The exit code is 1 if a decision could not be carried out for one of the jobs.";

const RELEASE_USAGE: &str = "\
errand jobs release <--retry|--succeeded|--failed> <ID>...
       errand jobs release <--retry|--succeeded|--failed> [--reason <REASON>] [--owner <OWNER>]
                           [--toolkit <TOOLKIT>] [--dry-run|--yes]";

/// List jobs, show one, cancel, retry and release them.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List jobs, newest first.
    List {
        /// Only jobs in this state: scheduled, available, running, retryable, held, succeeded, failed
        /// or cancelled.
        #[arg(long, value_parser = value::word::<State>(State::WORDS), hide_possible_values = true)]
        state: Option<State>,
        /// Only jobs of this owner: user:ID or org:ID.
        #[arg(long, value_parser = value::owner)]
        owner: Option<Owner>,
        /// Only jobs of this tool.
        #[arg(long)]
        tool: Option<String>,
        /// List up to N jobs.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
    /// Show one job with its attempts, its history and its result.
    Show {
        /// The job. Any ID under which it was sent with its idempotency key will do.
        id: JobId,
        #[command(flatten)]
        format: Format,
    },
    /// Cancel jobs. A call that is under way is not interrupted, and not repeated either.
    Cancel(Which),
    /// Retry failed or cancelled jobs with a fresh attempt budget, or make waiting jobs due now.
    Retry {
        #[command(flatten)]
        which: Which,
        /// Also jobs whose last call may have had its effect, which would be repeated.
        #[arg(long)]
        force: bool,
    },
    /// Release held jobs: the named ones, or all that match --reason, --owner and --toolkit.
    #[command(override_usage = RELEASE_USAGE)]
    Release {
        /// The jobs.
        #[arg(conflicts_with = "filter")]
        ids: Vec<JobId>,
        #[command(flatten)]
        how: ReleaseFlags,
        #[command(flatten)]
        which: ReleaseFilter,
        #[command(flatten)]
        care: Care,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The jobs.
    #[arg(required = true)]
    ids: Vec<JobId>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Who {
    /// Record NAME in the jobs' history as who decided so. Without it: the user of the operating system.
    #[arg(long, value_name = "NAME", value_parser = value::decider)]
    by: Option<String>,
}

impl Who {
    fn name(self, context: &Context) -> String {
        let user = || context.loaded.user.clone().filter(|user| check_decider(user).is_ok());
        self.by.or_else(user).unwrap_or_else(|| NOBODY_KNOWN.to_owned())
    }
}

/// Who decided, where nobody says and the environment names no user.
const NOBODY_KNOWN: &str = "unknown";

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

#[derive(Debug, clap::Args)]
#[group(id = "filter", multiple = true)]
pub(super) struct ReleaseFilter {
    /// Jobs that are held for this reason: connection, credentials, unknown_outcome or unidentified.
    /// Without it: connection.
    #[arg(long, value_parser = value::word::<HeldReason>(HeldReason::WORDS), hide_possible_values = true)]
    reason: Option<HeldReason>,
    /// Jobs of this owner: user:ID or org:ID.
    #[arg(long, value_parser = value::owner)]
    owner: Option<Owner>,
    /// Jobs of this toolkit, as far as it is known.
    #[arg(long, value_parser = value::toolkit)]
    toolkit: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Care {
    /// Count the matching jobs and change nothing.
    #[arg(long, conflicts_with = "ids")]
    dry_run: bool,
    /// Release without asking for confirmation.
    #[arg(long, conflicts_with_all = ["dry_run", "ids"])]
    yes: bool,
}

impl ReleaseFilter {
    fn is_empty(&self) -> bool {
        self.reason.is_none() && self.owner.is_none() && self.toolkit.is_none()
    }

    /// The filter, if one was given and the decision makes sense for all that it matches.
    fn held(&self, release: Release) -> anyhow::Result<Option<HeldFilter>> {
        if self.is_empty() {
            return Ok(None);
        }
        let Self { reason, owner, toolkit } = self;
        let reason = reason.unwrap_or(HeldReason::Connection);
        let may_have_run = match reason {
            HeldReason::UnknownOutcome | HeldReason::Unidentified | HeldReason::Unrecognized => true,
            HeldReason::Connection | HeldReason::Credentials => false,
        };
        if !may_have_run && release != Release::Retry {
            return Err(exit::usage(format!(
                "jobs that are held for {reason} have not run, so that they can only be released with --retry; \
                 `jobs cancel` calls jobs off"
            )));
        }
        Ok(Some(HeldFilter { reason, owner: owner.clone(), toolkit: toolkit.clone() }))
    }
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
    if let Command::Release { ids, which, .. } = &command
        && ids.is_empty()
        && which.is_empty()
    {
        return Err(exit::usage(WHICH_JOBS));
    }
    let store = context.store()?;
    let exit = match command {
        Command::List { state, owner, tool, limit, format } => {
            list(&store, &JobFilter { state, owner, tool, limit }, format).await?
        }
        Command::Show { id, format } => show(&store, id, format, context).await?,
        Command::Cancel(Which { ids, who, format }) => {
            let by = who.name(context);
            decide(&ids, format, async |id| store.cancel(id, &by).await).await?
        }
        Command::Retry { which: Which { ids, who, format }, force } => {
            let by = who.name(context);
            decide(&ids, format, async |id| store.restart(id, &by, force).await).await?
        }
        Command::Release { ids, how, which, care, who, format } => {
            let (how, by) = (how.release(), who.name(context));
            match which.held(how)? {
                Some(filter) => release_all(&store, &filter, how, &by, care, format).await?,
                None => decide(&ids, format, async |id| store.release(id, how, &by).await).await?,
            }
        }
    };
    store.close().await;
    Ok(exit)
}

async fn list(store: &SharedStore, filter: &JobFilter, format: Format) -> anyhow::Result<Exit> {
    let jobs = store.jobs(filter).await?;
    let json = |job: &JobView| serde_json::to_string(&job_json::job_summary_json(job));
    let header = ["ID", "STATE", "OWNER", "TOOL", "QUEUE", "ATTEMPTS", "CREATED", "ERROR"];
    output::print_list(&jobs, format, json, "no jobs match", header, |job| {
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
    if !format.json && jobs.len() == filter.limit {
        output::note("there may be more; see --limit");
    }
    Ok(Exit::Success)
}

async fn show(store: &SharedStore, id: JobId, format: Format, context: &Context) -> anyhow::Result<Exit> {
    let mut job = store.job(id).await?;
    if job.is_none()
        && let Some(first) = store.job_known_as(id).await?
    {
        job = store.job(first).await?;
    }
    let Some(job) = job else {
        return Err(exit::negative(match store.rejected_as(id).await? {
            Some(message) => {
                format!(
                    "there is no job {id}: its message was rejected; see `errand rejected show {message}`"
                )
            }
            None => format!(
                "there is no job {id}; that of an app is known once a worker has taken its message, and `errand doctor` \
                 says how many wait"
            ),
        }));
    };
    print(store, &job, format, context).await?;
    Ok(Exit::Success)
}

/// Prints a job with its attempts, its history and its result.
pub(super) async fn print(
    store: &SharedStore,
    job: &JobView,
    format: Format,
    context: &Context,
) -> anyhow::Result<()> {
    let attempts = store.attempts(job.spec.id).await?;
    let history = store.history(job.spec.id).await?;
    let known_as = store.known_as(job.spec.id).await?;
    if format.json {
        let past = Past { attempts: &attempts, history: &history, known_as: &known_as };
        return output::print_json(&job_json::job_json(job, Some(past)));
    }
    let spec = &job.spec;
    let binding = job.binding.as_ref();
    let now = store.now().await?;
    let mut fields = vec![
        ("job", Some(spec.id.to_string())),
        ("known as", (!known_as.is_empty()).then(|| other_ids(&known_as))),
        ("state", Some(state(job))),
        ("owner", Some(spec.owner.to_string())),
        ("requested by", spec.requested_by.clone()),
        ("tool", Some(spec.tool.clone())),
        ("version", binding.map(|f| format!("{} of {}, {}", f.version, f.toolkit, pinned(f.pinned_by)))),
        ("effect", binding.map(|f| f.effect).or(spec.effect).map(|effect| effect.to_string())),
        (
            "account",
            match binding {
                Some(binding) => binding.account.clone(),
                None => spec.connected_account_id.clone(),
            },
        ),
        ("queue", Some(spec.queue.to_string())),
        ("tags", (!spec.tags.is_empty()).then(|| tags(job))),
        ("created", Some(output::moment(job.created_at))),
    ];
    fields.extend(waiting::lines(job, now));
    fields.push(("waits for", waiting::why(job, now, context).await));
    fields.extend([
        ("started", job.started_at.map(output::moment)),
        ("finished", job.finished_at.map(output::moment)),
        ("attempts", Some(format!("{}, of which {} use up the budget", job.attempt, job.spent))),
        ("log ID", job.log_id.clone()),
        ("error", job_json::told_error(job, &history).as_deref().map(error)),
        ("result", job.result.as_ref().map(|result| result.get().to_owned())),
    ]);
    output::print_fields(&fields)?;
    if !attempts.is_empty() {
        output::print("\n")?;
        let rows = attempts.iter().map(attempt_row).collect();
        let header =
            ["ATTEMPT", "OUTCOME", "HTTP", "VERSION", "STARTED", "FINISHED", "LOG ID", "REQUEST ID", "ERROR"];
        output::print_table(&header, rows)?;
    }
    if !history.is_empty() {
        output::print("\n")?;
        let rows = history.iter().map(history_row).collect();
        output::print_table(&["AT", "KIND", "WHAT", "ATTEMPT", "BY"], rows)?;
    }
    Ok(())
}

fn other_ids(known_as: &[JobId]) -> String {
    known_as.iter().map(JobId::to_string).collect::<Vec<_>>().join(" ")
}

/// Where the version of a job comes from.
pub(super) fn pinned(by: PinnedBy) -> String {
    match by {
        PinnedBy::Latest => "not pinned: the newest at that time".to_owned(),
        by => format!("pinned by {}", by.as_str()),
    }
}

fn history_row(entry: &HistoryEntry) -> Vec<String> {
    let (kind, word, detail) = entry.fact.parts();
    let what: Vec<_> = [word, detail].into_iter().flatten().collect();
    vec![
        output::moment(entry.at),
        kind.to_string(),
        what.join(": "),
        entry.attempt.map(|number| number.to_string()).unwrap_or_default(),
        entry.by.clone(),
    ]
}

fn attempt_row(attempt: &AttemptView) -> Vec<String> {
    vec![
        attempt.number.to_string(),
        match attempt.outcome {
            None => "running".to_owned(),
            Some(outcome) if attempt.times > 1 => format!("{outcome}, {} times", attempt.times),
            Some(outcome) => outcome.to_string(),
        },
        attempt.http_status.map(|status| status.to_string()).unwrap_or_default(),
        attempt.version.clone().unwrap_or_default(),
        output::moment(attempt.started_at),
        attempt.finished_at.map(output::moment).unwrap_or_default(),
        attempt.log_id.clone().unwrap_or_default(),
        attempt.request_id.to_string(),
        attempt.error.as_ref().map(|error| error.kind().to_string()).unwrap_or_default(),
    ]
}

fn state(job: &JobView) -> String {
    match job.held_reason {
        Some(reason) => format!("{} ({reason})", job.state),
        None if job.cancel_requested && job.state == State::Running => {
            format!("{} (to be cancelled)", job.state)
        }
        None => job.state.to_string(),
    }
}

fn tags(job: &JobView) -> String {
    job.spec.tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn error(error: &JobError) -> String {
    let code = error.code().map(|code| format!(" code {code}")).unwrap_or_default();
    let slug = error.slug().map(|slug| format!(" {slug}")).unwrap_or_default();
    format!("{}: {}{slug}{code}", error.kind(), error.message())
}

/// What is said where neither IDs nor a filter say which jobs to release.
const WHICH_JOBS: &str =
    "say which jobs: by their IDs, or all that match --reason, --owner and --toolkit, of which one is enough";

/// Jobs that are let go in one write.
const PAGE: usize = 500;

/// Lets all matching jobs go, page by page, so that an interruption leaves whole jobs behind.
async fn release_all(
    store: &SharedStore,
    filter: &HeldFilter,
    release: Release,
    by: &str,
    care: Care,
    format: Format,
) -> anyhow::Result<Exit> {
    let matching = store.count_held(filter).await?;
    let mut released = 0;
    if !care.dry_run && matching > 0 {
        let jobs = output::count(matching, "job that is", "jobs that are");
        if !care.yes && !confirmed(&format!("Release {jobs} held for {}?", filter.reason))? {
            output::note("nothing was released");
            return Ok(Exit::Negative);
        }
        loop {
            let page = store.release_held(filter, release, by, PAGE).await?;
            released += page;
            if page < PAGE as u64 {
                break;
            }
        }
    }
    if format.json {
        output::print_json(&json!({"matching": matching, "released": released}))?;
    } else if care.dry_run {
        output::print_line(output::count(matching, "job matches", "jobs match"))?;
    } else {
        output::print_line(output::count(released, "job released", "jobs released"))?;
    }
    Ok(Exit::Success)
}

fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(exit::usage(
            "there is no terminal to ask on; add --yes to release, or --dry-run to count",
        ));
    }
    output::note(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The most bytes of an answer on the terminal.
const MAX_ANSWER: u64 = 16;

/// Why a decision changed nothing, and what would.
fn unchanged(IllegalMove { from, action }: IllegalMove) -> String {
    let release = Transition::Release(Release::Retry).action();
    match (from, action) {
        (State::Cancelled, action) if action == Transition::Cancel.action() => {
            "unchanged: it is cancelled already".to_owned()
        }
        (State::Held, _) => format!("unchanged: it is held and cannot {action}; see `errand jobs release`"),
        (_, action) if action == release => {
            format!("unchanged: it is {from}, and only held jobs can {release}")
        }
        _ => format!("unchanged: it is {from} and cannot {action}"),
    }
}

/// Carries a decision out for each job and says what became of it.
async fn decide(
    ids: &[JobId],
    format: Format,
    decision: impl AsyncFn(JobId) -> Result<Decided, StoreError>,
) -> anyhow::Result<Exit> {
    let mut refused = false;
    for id in ids {
        let (done, state, message) = match decision(*id).await? {
            Decided::Now(state @ State::Running) => {
                let message = "is running; its call is not interrupted, but it will not be repeated";
                (true, Some(state), message.to_owned())
            }
            Decided::Now(state) => (true, Some(state), format!("is {state} now")),
            Decided::Illegal(illegal) => (false, Some(illegal.from), unchanged(illegal)),
            Decided::MayHaveActed => {
                let message = "unchanged: its last call may have had its effect (see `errand jobs show`); to make it again \
                               all the same, add --force";
                (false, None, message.to_owned())
            }
            Decided::Unknown => (false, None, "unchanged: there is no such job".to_owned()),
        };
        refused |= !done;
        if format.json {
            output::print_json(&json!({"id": id, "done": done, "state": state, "message": message}))?;
        } else {
            output::print_line(format!("{id} {message}"))?;
        }
    }
    Ok(Exit::negative_if(refused))
}
