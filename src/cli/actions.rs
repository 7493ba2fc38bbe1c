//! `errand actions`, and how commands decide about all jobs that a filter means.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Read as _},
    sync::Arc,
    time::Duration,
};

use indicatif::ProgressBar;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    context::Context,
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::{
    actions::{ActionJson, CONFIRM_WITHIN, Extent, Nonsense, narrow, preview},
    bounds::MAX_OPEN_ACTIONS,
    job::{HeldReason, Principal},
    maintenance::actions::Actions,
    store::{
        Action, ActionDecision, ActionStatus, Confirmed, Decider, Force, JobFilter, MadeAction, NewAction,
        Place, Preview, PreviewKind, Progress, SharedStore, Skip,
    },
};

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
        before: Option<Place>,
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

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    match command {
        Command::List { before, limit, format } => {
            let actions = store.actions(&Principal::Operator, before, limit).await?;
            list(&actions, format)?;
            if let Some(last) = actions.last().filter(|_| actions.len() >= limit) {
                output::note(format!("there may be more; go on with --before {}", last.place()));
            }
        }
        Command::Show { id, format } => {
            let action = store.action(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
            show(&action, format)?;
        }
        Command::Abort { id, who, format } => {
            let by = who.decider(context);
            let action =
                store.abort_action(&Principal::Operator, id, &by).await?.ok_or_else(|| unknown(id))?;
            if format.json {
                output::print_json(&ActionJson::of(&action))?;
            } else {
                output::print_line(format!("{id} is {}", action.status))?;
            }
        }
    }
    store.close().await;
    Ok(Exit::Success)
}

fn unknown(id: Uuid) -> anyhow::Error {
    exit::negative(format!("there is no action {id}, or it ended long ago; `errand actions list` names them"))
}

fn list(actions: &[Action], format: Format) -> anyhow::Result<()> {
    let header = ["ID", "ACTION", "STATUS", "OWNER", "MADE BY", "CREATED", "DONE", "LEFT"];
    let json = |action: &Action| serde_json::to_string(&ActionJson::of(action));
    output::print_list(actions, format, json, "there are no actions", header, |action| {
        let Progress { looked_at, done, .. } = action.progress;
        [
            action.id.to_string(),
            words(action),
            action.status.to_string(),
            action.principal.to_string(),
            action.made_by.clone(),
            output::moment(action.created_at),
            done.to_string(),
            looked_at.saturating_sub(done).to_string(),
        ]
    })
}

fn show(action: &Action, format: Format) -> anyhow::Result<()> {
    let json = ActionJson::of(action);
    if format.json {
        return output::print_json(&json);
    }
    let at_by = |at: Option<jiff::Timestamp>, by: Option<&str>| {
        at.map(|at| format!("{} by {}", output::moment(at), by.unwrap_or("nobody")))
    };
    let filter = serde_json::to_value(&json.filter)?;
    let asked = filter.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let asked: Vec<_> = asked.map(|(name, value)| format!("{name}={value}")).collect();
    let Progress { looked_at, done, .. } = action.progress;
    let previewed = action.preview.as_ref().map(|preview| match preview.at_least {
        true => format!("at least {} jobs", preview.total),
        false => output::count(preview.total, "job", "jobs"),
    });
    let force = [(action.force.effect, "repeats effects"), (action.force.early, "does not wait for run_at")];
    let force: Vec<_> = force.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    output::print_fields(&[
        ("action", Some(words(action))),
        ("status", Some(action.status.to_string())),
        ("owner", Some(action.principal.to_string())),
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

/// What an action does, in a word or two.
fn words(action: &Action) -> String {
    match action.decision.how() {
        Some(how) => format!("{} ({how})", action.decision.kind()),
        None => action.decision.kind().to_string(),
    }
}

/// A decision about all jobs that a filter means.
pub(super) struct ByFilter {
    pub(super) decision: ActionDecision,
    pub(super) force: Force,
    pub(super) filter: JobFilter,
    /// Who decides.
    pub(super) by: Decider,
    /// Whether jobs are counted only.
    pub(super) dry_run: bool,
    /// Whether nobody is asked.
    pub(super) yes: bool,
    pub(super) format: Format,
}

/// How often a command looks at an action that a worker carries out.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

impl ByFilter {
    /// Counts the jobs, asks, makes an action of it, and carries that out together with the workers.
    pub(super) async fn run(mut self, store: &SharedStore, context: &Context) -> anyhow::Result<Exit> {
        self.filter = narrow(self.decision, self.filter).map_err(|nonsense| exit::usage(told(nonsense)))?;
        if !self.dry_run && !self.yes {
            ask_for_terminal()?;
        }
        let now = store.now().await?;
        let until = self.filter.until.map_or(now, |asked| asked.min(now));
        let meant = JobFilter { until: Some(until), ..self.filter.clone() };
        let found = preview(store, &Principal::Operator, self.decision, &meant, Extent::Whole).await?;
        if self.dry_run {
            return self.print_preview(&found);
        }
        if found.total == 0 {
            return self.print(&found, None);
        }
        let id = Uuid::now_v7();
        let new = NewAction {
            id,
            decision: self.decision,
            filter: self.filter.clone(),
            until: Some(until),
            force: self.force,
            preview: Some(found.clone()),
            by: self.by.by.to_string(),
        };
        match store.make_action(&Principal::Operator, &new, CONFIRM_WITHIN).await? {
            MadeAction::New(_) | MadeAction::Known(_) => {}
            MadeAction::Conflict => anyhow::bail!("the new ID {id} is taken"),
            MadeAction::TooMany => {
                return Err(exit::negative(format!(
                    "there are {MAX_OPEN_ACTIONS} actions of the operator that have not ended; abort some of those that \
                     `errand actions list` names"
                )));
            }
        }
        if !self.yes {
            self.lines(&found).iter().for_each(output::note);
            let jobs = output::count(found.total, "job", "jobs");
            if !confirmed(&format!("{} {jobs}?", self.words().0))? {
                store.abort_action(&Principal::Operator, id, &self.by).await?;
                output::note("nothing was changed");
                return Ok(Exit::Negative);
            }
        }
        let answer = store.confirm_action(&Principal::Operator, id, &self.by, self.force.effect).await?;
        let Confirmed::Now(_) = answer else {
            return Err(exit::negative(format!("the action {id} was not confirmed in time, or aborted")));
        };
        let followed = follow(store, id, found.total, context).await;
        match followed.inspect_err(|_| goes_on(id))? {
            Some(action) => self.print(&found, Some(&action)),
            None => {
                goes_on(id);
                Ok(Exit::Negative)
            }
        }
    }

    /// The verb, and what the jobs are afterwards.
    fn words(&self) -> (&'static str, &'static str) {
        match self.decision {
            ActionDecision::Cancel => ("Cancel", "cancelled"),
            ActionDecision::Retry => ("Retry", "retried"),
            ActionDecision::Release(_) => ("Release", "released"),
            ActionDecision::Prune => ("Remove", "removed"),
        }
    }

    /// What the decision is about, line by line.
    fn lines(&self, preview: &Preview) -> Vec<String> {
        let mut lines = Vec::new();
        for PreviewKind { state, effect, last_outcome, jobs } in &preview.kinds {
            let effect =
                effect.map_or("effect not known yet".to_owned(), |effect| format!("effect {effect}"));
            let outcome =
                last_outcome.map_or("no call ended".to_owned(), |outcome| format!("last outcome {outcome}"));
            lines.push(format!("{jobs:>9}  {state}, {effect}, {outcome}"));
        }
        if self.decision.runs_again() && preview.may_have_acted > 0 {
            let jobs = output::count(preview.may_have_acted, "job whose effect", "jobs whose effects");
            lines.push(match self.force.effect {
                true => format!("--force repeats {jobs} may be there already"),
                false => format!("without --force, {jobs} may be there already stay as they are"),
            });
        }
        lines
    }

    fn print_preview(&self, preview: &Preview) -> anyhow::Result<Exit> {
        if self.format.json {
            return self.print(preview, None);
        }
        output::print_line(output::count(preview.total, "job matches", "jobs match"))?;
        for line in self.lines(preview) {
            output::print_line(line)?;
        }
        Ok(Exit::Success)
    }

    fn print(&self, preview: &Preview, action: Option<&Action>) -> anyhow::Result<Exit> {
        let (_, done) = self.words();
        let progress = action.map(|action| action.progress.clone()).unwrap_or_default();
        let exit = Exit::negative_if(action.is_some_and(|action| action.status == ActionStatus::Aborted));
        if self.format.json {
            output::print_json(&json!({
                "matching": preview.total, "may_have_acted": preview.may_have_acted, "kinds": preview.kinds,
                done: progress.done, "left": left(&progress), "action": action.map(|action| action.id),
            }))?;
            return Ok(exit);
        }
        output::print_line(output::count(progress.done, &format!("job {done}"), &format!("jobs {done}")))?;
        if progress.running > 0 {
            let running = output::count(
                progress.running,
                "job was running: its call goes",
                "jobs were running: their calls go",
            );
            output::note(format!("{running} on, and may still succeed; none is repeated"));
        }
        for (why, jobs) in left(&progress) {
            output::note(format!("{} as before: {why}", output::count(jobs, "job is", "jobs are")));
        }
        if let Some(by) = action.and_then(|action| action.aborted_by.as_deref()) {
            output::note(format!("the action was aborted by {by}"));
        }
        Ok(exit)
    }
}

/// Carries an action out, or watches how a worker does, until it has ended; `None` if somebody does not want to wait.
async fn follow(
    store: &SharedStore,
    id: Uuid,
    total: u64,
    context: &Context,
) -> anyhow::Result<Option<Action>> {
    let lease = Duration::from_secs(context.config().worker.lease_secs);
    if store.live_builds(lease).await? == 0 {
        output::note("no worker is alive, so this command carries it out by itself");
    }
    let stop = CancellationToken::new();
    let interrupted = tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        }
    });
    let carrying = Actions::new(store.clone(), Arc::default()).only(id, stop.clone());
    let bar = output::styled(ProgressBar::new(total), "{bar:30} {pos} of {len} jobs  {elapsed}");
    let ended = loop {
        let taken = carrying.run_once().await?;
        let action = store.action(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
        bar.set_position(action.progress.looked_at);
        if action.has_ended() {
            break Some(action);
        }
        if stop.is_cancelled() {
            break None;
        }
        if taken == 0 {
            stop.run_until_cancelled(tokio::time::sleep(FOLLOW_EVERY)).await;
        }
    };
    bar.finish_and_clear();
    interrupted.abort();
    Ok(ended)
}

fn goes_on(id: Uuid) {
    output::note(format!(
        "the action {id} goes on in the workers, or as soon as there is one; `errand actions show {id}` says how far it is, \
         and `errand actions abort {id}` ends it"
    ));
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

/// Why a decision makes no sense for what a filter asks for.
fn told(nonsense: Nonsense) -> String {
    match nonsense {
        Nonsense::Illegal(illegal) => format!("jobs that are {} cannot {}", illegal.from, illegal.action),
        Nonsense::HasNotRun(reason) => format!("jobs that are {}", only_retry(reason)),
        Nonsense::NotFinal(state) => format!("jobs that are {state} are not final and cannot be removed"),
    }
}

/// Why jobs that have not run cannot be marked as ended.
pub(super) fn only_retry(reason: HeldReason) -> String {
    format!(
        "held for {reason} have not run, so that they can only be released with --retry; `jobs cancel` calls jobs off"
    )
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
