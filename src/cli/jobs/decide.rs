//! Decisions about jobs: named ones, or all that a filter means, step by step.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Read as _},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::{
    cli::{
        exit::{self, Exit},
        output::{self, Format},
    },
    job::{AttemptOutcome, Effect, HeldReason, IllegalMove, JobId, Principal, Release, State, Transition},
    store::{Decided, Force, Glance, JobFilter, Looked, Place, SharedStore, StoreError},
};

/// What a person decides about jobs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decision {
    Cancel,
    Retry(Force),
    Release(Release),
}

/// Decisions that are under way at once, each a transaction: enough that they share the commits of the database.
const AT_ONCE: usize = 8;

impl Decision {
    /// The verb, and what the jobs are afterwards.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Cancel => ("Cancel", "cancelled"),
            Self::Retry(_) => ("Retry", "retried"),
            Self::Release(_) => ("Release", "released"),
        }
    }

    fn transition(self) -> Transition {
        match self {
            Self::Cancel => Transition::Cancel,
            Self::Retry(_) => Transition::Restart,
            Self::Release(release) => Transition::Release(release),
        }
    }

    /// What a filter means for this decision, where it leaves something open.
    ///
    /// # Errors
    /// The decision makes no sense for what the filter asks for.
    pub(super) fn narrow(self, mut filter: JobFilter) -> anyhow::Result<JobFilter> {
        match self {
            Self::Cancel => {}
            Self::Retry(_) => filter.state = filter.state.or(Some(State::Failed)),
            Self::Release(release) => {
                filter.state = filter.state.or(Some(State::Held));
                let reason =
                    if filter.outcome_unknown { HeldReason::UnknownOutcome } else { HeldReason::Connection };
                let reason = *filter.held_reason.get_or_insert(reason);
                if !reason.may_have_run() && release != Release::Retry {
                    return Err(exit::usage(format!("jobs that are {}", only_retry(reason))));
                }
            }
        }
        if let Some(state) = filter.state
            && let Err(illegal) = self.transition().apply(state)
        {
            return Err(exit::usage(format!("jobs that are {state} cannot {}", illegal.action)));
        }
        Ok(filter)
    }

    /// Whether the decision may change this job, as it was seen.
    fn concerns(self, job: &Glance) -> bool {
        self.transition().apply(job.state).is_ok()
    }

    /// Carries the decision out for one job.
    pub(super) async fn carry_out(
        self,
        store: &SharedStore,
        id: JobId,
        by: &str,
    ) -> Result<Decided, StoreError> {
        match self {
            Self::Cancel => store.cancel(&Principal::Operator, id, by).await,
            Self::Retry(force) => store.restart(&Principal::Operator, id, by, force).await,
            Self::Release(release) => store.release(&Principal::Operator, id, release, by).await,
        }
    }
}

/// How careful a decision about many jobs is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Care {
    /// Count the matching jobs by state, effect and last outcome, and change nothing.
    #[arg(long, conflicts_with = "ids")]
    dry_run: bool,
    /// Do it without asking for confirmation.
    #[arg(long, conflicts_with_all = ["dry_run", "ids"])]
    yes: bool,
}

/// What is told of jobs that a decision concerns: state, effect, how the last call ended.
type Kind = (State, Option<Effect>, Option<AttemptOutcome>);

/// What a decision about many jobs has met and done.
#[derive(Debug, Default)]
struct Tally {
    kinds: BTreeMap<Kind, u64>,
    matching: u64,
    /// Of these, the jobs whose effect may be repeated.
    may_have_acted: u64,
    changed: u64,
    /// Of these, the running jobs that are only marked: their calls go on.
    running: u64,
    /// Jobs that stay as they are, by why.
    left: BTreeMap<&'static str, u64>,
}

/// Decides about all that match, in steps that each look at a bounded number of jobs. An interruption leaves whole jobs
/// behind, and the same command goes on.
pub(super) async fn decide_all(
    store: &SharedStore,
    filter: &JobFilter,
    decision: Decision,
    by: &str,
    care: Care,
    format: Format,
) -> anyhow::Result<Exit> {
    if !care.dry_run && !care.yes {
        ask_for_terminal()?;
    }
    let mut tally = Tally::default();
    if !care.yes {
        walk(store, filter, decision, &mut tally, async |_, _| Ok(())).await?;
    }
    let (verb, _) = decision.words();
    if !care.dry_run && !care.yes && tally.matching > 0 {
        tally.kinds(decision).iter().for_each(output::note);
        let jobs = output::count(tally.matching, "job", "jobs");
        if !confirmed(&format!("{verb} {jobs}?"))? {
            output::note("nothing was changed");
            return Ok(Exit::Negative);
        }
        tally = Tally::default();
    }
    if !care.dry_run {
        walk(store, filter, decision, &mut tally, async |tally, ids| {
            let decided = stream::iter(ids).map(|id| decision.carry_out(store, id, by));
            let decided: Vec<Decided> = decided.buffer_unordered(AT_ONCE).try_collect().await?;
            decided.into_iter().for_each(|decided| tally.note(decided));
            Ok(())
        })
        .await?;
    }
    tally.print(decision, care, format)
}

/// Looks at all that match, step by step, and hands the jobs of each step on that the decision concerns.
async fn walk(
    store: &SharedStore,
    filter: &JobFilter,
    decision: Decision,
    tally: &mut Tally,
    step: impl AsyncFn(&mut Tally, Vec<JobId>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut before: Option<Place> = None;
    loop {
        let Looked { items, next, .. } = store.glances(&Principal::Operator, filter, before, true).await?;
        let concerned: Vec<_> = items.into_iter().filter(|job| decision.concerns(job)).collect();
        for job in &concerned {
            *tally.kinds.entry((job.state, job.effect, job.last_outcome)).or_default() += 1;
            tally.matching += 1;
            tally.may_have_acted += u64::from(job.may_have_acted);
        }
        step(tally, concerned.into_iter().map(|job| job.id).collect()).await?;
        before = next;
        if before.is_none() {
            return Ok(());
        }
    }
}

impl Tally {
    fn note(&mut self, decided: Decided) {
        let why = match decided {
            Decided::Now(state) => {
                self.changed += 1;
                self.running += u64::from(state == State::Running);
                return;
            }
            Decided::MayHaveActed => "its last call may have had its effect (--force repeats it)",
            Decided::Early => "it is scheduled for later (--now does not wait)",
            Decided::HasNotRun(_) => "it has not run",
            Decided::Illegal(_) | Decided::Unknown => "it changed meanwhile",
        };
        *self.left.entry(why).or_default() += 1;
    }

    /// What the decision is about, line by line.
    fn kinds(&self, decision: Decision) -> Vec<String> {
        let mut lines = Vec::new();
        for ((state, effect, outcome), jobs) in &self.kinds {
            let effect =
                effect.map_or("effect not known yet".to_owned(), |effect| format!("effect {effect}"));
            let outcome =
                outcome.map_or("no call ended".to_owned(), |outcome| format!("last outcome {outcome}"));
            lines.push(format!("{jobs:>9}  {state}, {effect}, {outcome}"));
        }
        if let (Decision::Retry(force), 1..) = (decision, self.may_have_acted) {
            let jobs = output::count(self.may_have_acted, "job whose effect", "jobs whose effects");
            lines.push(match force.effect {
                true => format!("--force repeats {jobs} may be there already"),
                false => format!("without --force, {jobs} may be there already stay as they are"),
            });
        }
        lines
    }

    fn print(&self, decision: Decision, care: Care, format: Format) -> anyhow::Result<Exit> {
        let (_, done) = decision.words();
        if format.json {
            let kinds = self.kinds.iter().map(|((state, effect, last_outcome), jobs)| {
                json!({"state": state, "effect": effect, "last_outcome": last_outcome, "jobs": jobs})
            });
            let kinds: Vec<_> = kinds.collect();
            output::print_json(&json!({
                "matching": self.matching, "may_have_acted": self.may_have_acted, "kinds": kinds,
                done: self.changed, "left": self.left,
            }))?;
            return Ok(Exit::Success);
        }
        if care.dry_run {
            output::print_line(output::count(self.matching, "job matches", "jobs match"))?;
            for line in self.kinds(decision) {
                output::print_line(line)?;
            }
        } else {
            let jobs = |what: &str| (format!("job {what}"), format!("jobs {what}"));
            let (one, many) = jobs(done);
            output::print_line(output::count(self.changed, &one, &many))?;
            if self.running > 0 {
                let running = output::count(
                    self.running,
                    "job was running: its call goes",
                    "jobs were running: their calls go",
                );
                output::note(format!("{running} on, and may still succeed; none is repeated"));
            }
            for (why, jobs) in &self.left {
                output::note(format!("{} as before: {why}", output::count(*jobs, "job is", "jobs are")));
            }
        }
        Ok(Exit::Success)
    }
}

fn ask_for_terminal() -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(exit::usage("there is no terminal to ask on; add --yes to do it, or --dry-run to count"))
}

fn confirmed(question: &str) -> anyhow::Result<bool> {
    output::note(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The most bytes of an answer on the terminal.
const MAX_ANSWER: u64 = 16;

/// Carries a decision out for each of the named jobs and says what became of it.
pub(super) async fn decide(
    store: &SharedStore,
    ids: &[JobId],
    decision: Decision,
    by: &str,
    format: Format,
) -> anyhow::Result<Exit> {
    let mut refused = false;
    for id in ids {
        let (done, state, message) = match decision.carry_out(store, *id, by).await? {
            Decided::Unknown => (false, None, unknown(store, *id).await?),
            decided => told(decided),
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

const NO_SUCH_JOB: &str = "there is no such job in the database; a message that no worker has taken yet waits in the broker \
                           (`errand queues`)";

/// What is said of an ID that no job has: which job has it besides its own, if one has. Nothing is done to that before it
/// is named, because there may be more to it.
async fn unknown(store: &SharedStore, id: JobId) -> anyhow::Result<String> {
    Ok(match store.job_known_as(&Principal::Operator, id).await? {
        Some(first) => format!("unchanged: it is another ID of the job {first}; name that one"),
        None => format!("unchanged: {NO_SUCH_JOB}"),
    })
}

/// Whether it was done, the state if it is known, and what is said.
fn told(decided: Decided) -> (bool, Option<State>, String) {
    let unchanged = |message: &str| (false, None, format!("unchanged: {message}"));
    match decided {
        Decided::Now(state @ State::Running) => {
            let message = "is running; its call is not interrupted, but it will not be repeated";
            (true, Some(state), message.to_owned())
        }
        Decided::Now(state) => (true, Some(state), format!("is {state} now")),
        Decided::Illegal(illegal) => (false, Some(illegal.from), illegal_move(illegal)),
        Decided::MayHaveActed => unchanged(
            "its last call may have had its effect (see `errand jobs show`); to make it again all the same, add --force",
        ),
        Decided::Early => unchanged(
            "it is scheduled for later (see `run at` in `errand jobs show`); to run it now, add --now",
        ),
        Decided::HasNotRun(reason) => {
            (false, Some(State::Held), format!("unchanged: jobs that are {}", only_retry(reason)))
        }
        Decided::Unknown => unchanged(NO_SUCH_JOB),
    }
}

/// Why jobs that have not run cannot be marked as ended.
fn only_retry(reason: HeldReason) -> String {
    format!(
        "held for {reason} have not run, so that they can only be released with --retry; `jobs cancel` calls jobs off"
    )
}

/// Why a decision changed nothing, and what would.
fn illegal_move(IllegalMove { from, action }: IllegalMove) -> String {
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
