//! A decision about all jobs that a filter means: previewed, asked about, made an action of, and followed to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use serde_json::{json, value::to_raw_value};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{ToldAction, ToldPreview, left, only_retry, unknown};
use crate::{
    actions::{ActionJson, CONFIRM_WITHIN, Extent, Nonsense, narrow, preview},
    bounds::MAX_OPEN_ACTIONS,
    cli::{
        decider::Who,
        exit::{self, Exit},
        output::{self, Format},
        server::{Call, Server, is_away},
        setup::Setup,
        terminal,
    },
    job::{Principal, State},
    maintenance::actions::Actions,
    store::{
        ActionDecision, ActionStatus, Confirmed, FilterJson, Force, JobFilter, MadeAction, NewAction,
        Preview, PreviewKind, SharedStore,
    },
};

/// A decision about all jobs that a filter means.
pub(in crate::cli) struct ByFilter {
    pub(in crate::cli) decision: ActionDecision,
    pub(in crate::cli) force: Force,
    pub(in crate::cli) filter: JobFilter,
    pub(in crate::cli) who: Who,
    /// Whether jobs are counted only.
    pub(in crate::cli) dry_run: bool,
    /// Whether nobody is asked.
    pub(in crate::cli) yes: bool,
    pub(in crate::cli) format: Format,
}

/// How often a command looks at an action that a worker carries out, in the database and at a server. There it is told of the
/// end when it comes.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long a server may give no answer before an action there is not followed any longer.
const MISSED: Duration = Duration::from_secs(300);

impl ByFilter {
    /// Counts the jobs, asks, makes an action of it, and carries that out together with the workers.
    pub(in crate::cli) async fn run(mut self, setup: &Setup) -> anyhow::Result<Exit> {
        let left_out = left_out(self.decision, &self.filter);
        self.filter = narrow(self.decision, self.filter).map_err(|nonsense| exit::usage(told(nonsense)))?;
        if !self.dry_run && !self.yes {
            terminal::need("add --yes to do it, or --dry-run to count")?;
        }
        let exit = match &setup.server {
            Some(server) => {
                self.who.is_the_key()?;
                self.run_at(server).await?
            }
            None => {
                let store = setup.store()?;
                let exit = self.run_in(&store, setup).await?;
                store.close().await;
                exit
            }
        };
        left_out.iter().for_each(output::note);
        Ok(exit)
    }

    async fn run_at(self, server: &Server) -> anyhow::Result<Exit> {
        let (action, how) = (self.decision.kind(), self.decision.how());
        let filter = FilterJson::of(&self.filter);
        let Force { effect, early } = self.force;
        let wanted = json!({
            "action": action, "how": how, "filter": filter, "all": true,
            "force": effect && self.decision.runs_again(), "now": early,
        });
        let make = Call::post("/v1/actions").known_by(Uuid::now_v7()).json(&wanted)?;
        // An action that is not confirmed changes nothing.
        let make = if self.dry_run { make.only_asks() } else { make };
        let made: ToldAction = server.ask(make).await?;
        let (id, found) = (made.id, made.preview.map(Preview::from).unwrap_or_default());
        let call = |verb: &str| Call::post(format!("/v1/actions/{id}/{verb}")).repeatable();
        if self.dry_run || found.total == 0 || !self.is_confirmed(&found)? {
            server.send(call("abort").only_asks()).await?;
            return match self.dry_run {
                true => self.print_preview(&found),
                false if found.total == 0 => self.print(&found, None),
                false => Ok(Exit::Negative),
            };
        }
        let confirmed = server.send(call("confirm").json(&json!({"force": effect}))?).await;
        confirmed.map_err(|error| match is_away(&error) {
            true => error.context(format!(
                "the action {id} may be confirmed or not: `{} actions show {id}` says whether it is",
                server.errand()
            )),
            false => error,
        })?;
        let followed = follow_at(server, id, found.total).await;
        self.print_followed(id, &found, followed, &server.errand())
    }

    async fn run_in(self, store: &SharedStore, setup: &Setup) -> anyhow::Result<Exit> {
        let by = self.who.decider(setup);
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
            by: by.by.to_string(),
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
        if !self.is_confirmed(&found)? {
            store.abort_action(&Principal::Operator, id, &by).await?;
            return Ok(Exit::Negative);
        }
        let answer = store.confirm_action(&Principal::Operator, id, &by, self.force.effect).await?;
        let Confirmed::Now(_) = answer else {
            return Err(exit::negative(format!("the action {id} was not confirmed in time, or aborted")));
        };
        let followed = follow(store, id, found.total, setup).await;
        self.print_followed(id, &found, followed, "errand")
    }

    /// Whether it is wanted.
    fn is_confirmed(&self, found: &Preview) -> anyhow::Result<bool> {
        if self.yes {
            return Ok(true);
        }
        self.lines(found).iter().for_each(output::note);
        let jobs = output::count(found.total, "job", "jobs");
        let answer = terminal::answer(&format!("{} {jobs}? [y/N]", self.words().0))?;
        let is_wanted = matches!(&*answer, "y" | "Y" | "yes");
        if !is_wanted {
            output::note("nothing was changed");
        }
        Ok(is_wanted)
    }

    fn print_followed(
        &self,
        id: Uuid,
        found: &Preview,
        followed: anyhow::Result<Option<ToldAction>>,
        errand: &str,
    ) -> anyhow::Result<Exit> {
        match followed.inspect_err(|_| goes_on(id, errand))? {
            Some(action) => self.print(found, Some(&action)),
            None => {
                goes_on(id, errand);
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
        self.note_nothing(preview);
        Ok(Exit::Success)
    }

    /// Says what else could be meant where no failed job is there to be retried.
    fn note_nothing(&self, preview: &Preview) {
        let is_about_failed =
            self.decision == ActionDecision::Retry && self.filter.state == Some(State::Failed);
        if preview.total == 0 && is_about_failed {
            output::note(
                "no failed job matches; `--state cancelled` retries cancelled ones, and `errand jobs release` lets held ones go",
            );
        }
    }

    fn print(&self, preview: &Preview, action: Option<&ToldAction>) -> anyhow::Result<Exit> {
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
        self.note_nothing(preview);
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

/// Which jobs a decision is not about by what a filter leaves open, and how they are meant. Without it, nobody could tell
/// why nothing was done.
fn left_out(decision: ActionDecision, filter: &JobFilter) -> Option<&'static str> {
    match decision {
        ActionDecision::Release(_) if filter.held_reason.is_none() && !filter.outcome_unknown => Some(
            "without --reason, this is about jobs that wait for a connection only; `errand jobs list --state held` shows why others \
             are held, and for example `--reason unknown_outcome` releases those (`--retry --force` where their call may have had \
             its effect)",
        ),
        ActionDecision::Release(_)
        | ActionDecision::Retry
        | ActionDecision::Cancel
        | ActionDecision::Prune => None,
    }
}

/// Carries an action out, or watches how a worker does, until it has ended; `None` if somebody does not want to wait.
async fn follow(
    store: &SharedStore,
    id: Uuid,
    total: u64,
    setup: &Setup,
) -> anyhow::Result<Option<ToldAction>> {
    let lease = Duration::from_secs(setup.config().worker.lease_secs);
    if store.live_builds(lease).await? == 0 {
        output::note("no worker is alive, so this command carries it out by itself");
    }
    let (stop, interrupted) = on_interrupt();
    let carrying = Actions::new(store.clone(), Arc::default()).only(id, stop.clone());
    let bar = bar(total);
    let ended = loop {
        let taken = carrying.run_once().await?;
        let action = store.action(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
        bar.set_position(action.progress.looked_at);
        if action.has_ended() {
            let json = to_raw_value(&ActionJson::of(&action))?;
            break Some(serde_json::from_str(json.get())?);
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

/// Watches how workers of a server carry an action out.
async fn follow_at(server: &Server, id: Uuid, total: u64) -> anyhow::Result<Option<ToldAction>> {
    let (stop, interrupted) = on_interrupt();
    let bar = bar(total);
    let ended = loop {
        let call = |_| {
            let call = Call::get(format!("/v1/actions/{id}"));
            call.with("wait", Some(ASK_EVERY.as_secs())).waits(ASK_EVERY)
        };
        let asked = server.keep_asking::<ToldAction>(Instant::now() + MISSED, call);
        let Some(told) = stop.run_until_cancelled(asked).await else { break None };
        let action = told?;
        bar.set_position(action.progress.looked_at);
        if action.finished_at.is_some() {
            break Some(action);
        }
    };
    bar.finish_and_clear();
    interrupted.abort();
    Ok(ended)
}

fn bar(total: u64) -> ProgressBar {
    output::styled(ProgressBar::new(total), "{bar:30} {pos} of {len} jobs  {elapsed}")
}

/// What is cancelled at Ctrl-C, and the task that waits for that.
fn on_interrupt() -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let interrupted = tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        }
    });
    (stop, interrupted)
}

impl From<ToldPreview> for Preview {
    fn from(ToldPreview { total, needs_force, at_least, kinds }: ToldPreview) -> Self {
        Self { total, may_have_acted: needs_force, at_least, kinds }
    }
}

fn goes_on(id: Uuid, errand: &str) {
    output::note(format!(
        "the action {id} goes on in the workers, or as soon as there is one; `{errand} actions show {id}` says how far it is, \
         and `{errand} actions abort {id}` ends it"
    ));
}

/// Why a decision makes no sense for what a filter asks for.
fn told(nonsense: Nonsense) -> String {
    match nonsense {
        Nonsense::Illegal(illegal) => format!("jobs that are {} cannot {}", illegal.from, illegal.action),
        Nonsense::HasNotRun(reason) => format!("jobs that are {}", only_retry(reason)),
        Nonsense::NotFinal(state) => format!("jobs that are {state} are not final and cannot be removed"),
    }
}
