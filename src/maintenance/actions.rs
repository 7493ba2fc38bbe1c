//! Carries actions out: one decision about all jobs that a filter means.
//!
//! A worker takes the action whose turn it is, walks on for a moment from where it was, newest jobs first, and gives it back.
//! Before it decides about some jobs it records which; so whoever goes on after it died learns from their histories what it
//! has decided, and no job is decided about twice, even if it has failed again meanwhile. Each decision is the one that a
//! person makes about a single job, as the action's principal and in the name of who confirmed it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    pace::Pace,
    prune::{MOST_REMOVED, fitting},
    rounds,
};
use crate::{
    actions::concerns,
    failure::chain,
    job::{JobId, Release, State},
    store::{
        Action, ActionDecision, ActionKind, Decided, Decider, Deciding, Glance, HistoryEntry, HistoryFact,
        JobDecision, Looked, OldJob, Place, Progress, Result, SharedStore, Skip, Step, StoreErrorKind,
        TakenAction, Then,
    },
    telemetry::metrics,
};

/// How often it is looked whether there is something to carry out.
const POLL: Duration = Duration::from_secs(1);

/// What a process that died was carrying out is gone on with after this; longer than any look takes.
const LEASE: Duration = Duration::from_secs(30);

/// How long a turn of an action is, but for the decisions that were begun.
const TURN: Duration = Duration::from_secs(1);

/// How often at least it is looked whether the action was aborted.
const KEPT_EVERY: Duration = Duration::from_millis(500);

/// Jobs that are recorded together before they are decided about.
const TOGETHER: usize = 64;

/// Decisions that are under way at once, each a transaction: enough that they share the commits of the database, and fewer than
/// the connections to it that a worker has by default for all that is no claim and no finish.
const AT_ONCE: usize = 3;

/// Removals pause as long as they took.
const PAUSES: u32 = 1;

#[derive(Debug)]
pub struct Actions {
    store: SharedStore,
    relay_wake: Arc<Notify>,
    only: Option<Uuid>,
    stop: CancellationToken,
}

impl Actions {
    /// Wakes the relay when it made jobs due.
    pub fn new(store: SharedStore, relay_wake: Arc<Notify>) -> Self {
        Self { store, relay_wake, only: None, stop: CancellationToken::new() }
    }

    /// The same for this action alone, whoever's turn it is, until `stop`.
    #[must_use]
    pub fn only(self, action: Uuid, stop: CancellationToken) -> Self {
        Self { only: Some(action), stop, ..self }
    }

    /// Carries actions out until `stop`, turn by turn. Decisions that are begun are finished.
    pub async fn run(self, stop: CancellationToken) {
        start_counting();
        let this = Self { stop: stop.clone(), ..self };
        rounds(&stop, POLL, 1, "the carrying out of actions", || this.run_once()).await;
    }

    /// One turn of one action; returns how many there were to carry out, one or none.
    ///
    /// # Errors
    /// The store did not answer. What was decided is found out by whoever goes on when the lease has ended.
    pub async fn run_once(&self) -> Result<usize> {
        let Some(taken) = self.store.take_action(self.only, LEASE).await? else { return Ok(0) };
        let TakenAction { action, fence, place, unsettled } = taken;
        let progress = action.progress.clone();
        let mut turn = Turn { of: self, action, fence, progress, place, kept: Instant::now() };
        match unsettled {
            Some(deciding) => turn.settle(deciding).await?,
            None => turn.walk().await?,
        }
        Ok(1)
    }
}

/// An action that this process carries out at the moment.
struct Turn<'a> {
    of: &'a Actions,
    action: Action,
    fence: i64,
    /// What was met and done down to the place.
    progress: Progress,
    place: Option<Place>,
    /// When it was last seen that it is not aborted.
    kept: Instant,
}

impl Turn<'_> {
    /// Walks on, page by page, until the turn is over.
    async fn walk(&mut self) -> Result<()> {
        let until = Instant::now() + TURN;
        loop {
            let filter = self.action.meant();
            let looked = self.of.store.glances(&self.action.principal, &filter, self.place, false).await?;
            let Looked { mut items, next, .. } = looked;
            items.retain(|job| concerns(self.action.decision, job));
            let mut chunks = items.chunks(TOGETHER).peekable();
            while let Some(chunk) = chunks.next() {
                let is_last = chunks.peek().is_none();
                let to = if is_last { next } else { chunk.last().map(|job| job.place) };
                let deciding = Deciding { jobs: chunk.iter().map(|job| job.id).collect(), to, since: None };
                if !self.record(Then::Decide { next: deciding, lease: LEASE }).await? {
                    return Ok(());
                }
                if !self.decide(chunk).await? {
                    return self.record(Then::GiveBack).await.map(drop);
                }
                self.place = to;
                if !is_last && (self.of.stop.is_cancelled() || Instant::now() >= until) {
                    return self.record(Then::GiveBack).await.map(drop);
                }
            }
            self.place = next;
            if next.is_none() {
                return self.end().await;
            }
            let is_over = self.of.stop.is_cancelled() || Instant::now() >= until;
            if is_over || !self.keep().await? {
                return self.record(Then::GiveBack).await.map(drop);
            }
        }
    }

    /// Finds out what became of jobs that a process was deciding about when it stopped, and decides about the rest.
    async fn settle(&mut self, deciding: Deciding) -> Result<()> {
        let Deciding { jobs, to, .. } = &deciding;
        let mut decided = HashSet::new();
        for job in jobs {
            if self.was_decided(*job, &deciding).await? {
                decided.insert(*job);
            }
            if !self.keep().await? {
                return self.record(Then::GiveBack).await.map(drop);
            }
        }
        let mut open: HashSet<JobId> = jobs.iter().copied().collect();
        open.retain(|job| !decided.contains(job));
        let mut rest = Vec::new();
        let mut before = self.place;
        while !open.is_empty() {
            let filter = self.action.meant();
            let looked = self.of.store.glances(&self.action.principal, &filter, before, false).await?;
            let theirs = looked.items.into_iter().filter(|job| to.is_none_or(|to| job.place >= to));
            rest.extend(
                theirs.filter(|job| concerns(self.action.decision, job)).filter(|job| open.remove(&job.id)),
            );
            before = looked.next;
            if before.is_none_or(|before| to.is_some_and(|to| before <= to)) {
                break;
            }
        }
        self.progress.looked_at += decided.len() as u64;
        self.progress.done += decided.len() as u64;
        for _ in &open {
            self.skip(Skip::Changed);
        }
        for chunk in rest.chunks(TOGETHER) {
            if !self.decide(chunk).await? {
                return self.record(Then::GiveBack).await.map(drop);
            }
        }
        self.place = deciding.to;
        if self.place.is_none() { self.end().await } else { self.record(Then::GiveBack).await.map(drop) }
    }

    /// Whether a process did to a job what it had recorded that it would.
    async fn was_decided(&self, job: JobId, deciding: &Deciding) -> Result<bool> {
        let (store, principal) = (&self.of.store, &self.action.principal);
        let fact = match self.action.decision {
            ActionDecision::Cancel => HistoryFact::Cancelled,
            ActionDecision::Retry => HistoryFact::Retried,
            ActionDecision::Release(how) => HistoryFact::Released { how },
            ActionDecision::Prune => return Ok(store.job(principal, job).await?.is_none()),
        };
        let by = self.by();
        let history = store.history(principal, job).await?;
        let is_this = |entry: &HistoryEntry| {
            entry.fact == fact && entry.by == by && deciding.since.is_none_or(|since| entry.at >= since)
        };
        Ok(history.iter().any(is_this))
    }

    /// Decides about these jobs; `false` if the action was aborted meanwhile, so that the rest is left.
    async fn decide(&mut self, jobs: &[Glance]) -> Result<bool> {
        if self.action.decision == ActionDecision::Prune {
            return self.remove(jobs).await.map(|()| true);
        }
        for some in jobs.chunks(AT_ONCE) {
            if !self.keep().await? {
                return Ok(false);
            }
            let answers = join_all(some.iter().map(|job| self.decide_about(job.id))).await;
            let mut failed = None;
            for (job, answer) in some.iter().zip(answers) {
                match answer {
                    Ok(decided) => self.note(decided),
                    // What is wrong with one job keeps no other from being decided about.
                    Err(error) if matches!(error.kind(), StoreErrorKind::Data | StoreErrorKind::Corrupt) => {
                        tracing::warn!(job.id = %job.id, error = %chain(&error), "an action leaves a job as it is");
                        self.skip(Skip::Unreadable);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            self.of.relay_wake.notify_one();
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(true)
    }

    async fn decide_about(&self, job: JobId) -> Result<Decided> {
        let Action { principal, decision, force, .. } = &self.action;
        let store = &self.of.store;
        let by =
            Decider { by: self.by().to_owned().into(), origin: format!("action {}", self.action.id).into() };
        let decision = match decision {
            ActionDecision::Cancel => JobDecision::Cancel,
            ActionDecision::Retry => JobDecision::Restart(*force),
            ActionDecision::Release(Release::Retry) => JobDecision::ReleaseToRun(*force),
            ActionDecision::Release(how) => JobDecision::Release(*how),
            ActionDecision::Prune => unreachable!("jobs are removed together"),
        };
        store.decide(principal, job, decision, None, &by).await
    }

    /// Removes these jobs, as far as they are as they were seen.
    async fn remove(&mut self, jobs: &[Glance]) -> Result<()> {
        let as_seen: Vec<_> = jobs.iter().map(|job| job.seen).collect();
        let found = self.of.store.seen_jobs(&self.action.principal, &as_seen).await?;
        let mut found: HashMap<JobId, OldJob> = found.into_iter().map(|job| (job.id, job)).collect();
        let mut over = Vec::new();
        for job in jobs {
            match found.remove(&job.id) {
                Some(job) if job.may_go() => over.push(job),
                Some(_) => self.skip(Skip::Pending),
                None => self.skip(Skip::Changed),
            }
        }
        let mut pace = Pace::new(MOST_REMOVED, PAUSES);
        while !over.is_empty() {
            let batch: Vec<OldJob> = over.drain(..fitting(&over, pace.rows(), |job| job.bytes)).collect();
            let gone = pace.step(self.of.store.remove_jobs(&batch)).await?.len();
            self.done(gone as u64);
            for _ in gone..batch.len() {
                self.skip(Skip::Changed);
            }
        }
        Ok(())
    }

    fn note(&mut self, decided: Decided) {
        match decided {
            Decided::Now(state) => {
                self.done(1);
                self.progress.running += u64::from(state == State::Running);
            }
            Decided::Illegal(_) => self.skip(Skip::WrongState),
            Decided::MayHaveActed => self.skip(Skip::NeedsForce),
            Decided::Early => self.skip(Skip::Early),
            Decided::HasNotRun(_) => self.skip(Skip::HasNotRun),
            Decided::Changed => self.skip(Skip::Changed),
            Decided::Unknown => self.skip(Skip::Gone),
        }
    }

    fn done(&mut self, jobs: u64) {
        self.progress.looked_at += jobs;
        self.progress.done += jobs;
        metrics::ACTION_JOBS.add([self.action.decision.kind().as_str(), DONE], jobs);
    }

    fn skip(&mut self, why: Skip) {
        self.progress.looked_at += 1;
        *self.progress.skipped.entry(why).or_default() += 1;
        metrics::ACTION_JOBS.add([self.action.decision.kind().as_str(), why.as_str()], 1);
    }

    /// Who is said to have decided.
    fn by(&self) -> &str {
        self.action.confirmed_by.as_deref().unwrap_or(&self.action.made_by)
    }

    /// Whether to go on, which is asked once in a while.
    async fn keep(&mut self) -> Result<bool> {
        if self.kept.elapsed() < KEPT_EVERY {
            return Ok(true);
        }
        self.kept = Instant::now();
        self.of.store.keep_action(self.action.id, self.fence, LEASE).await
    }

    async fn record(&mut self, then: Then) -> Result<bool> {
        let step = Step { progress: self.progress.clone(), place: self.place, then };
        self.kept = Instant::now();
        self.of.store.record_action(self.action.id, self.fence, &step).await
    }

    async fn end(&mut self) -> Result<()> {
        self.record(Then::End).await?;
        let Progress { done, looked_at, .. } = self.progress;
        tracing::info!(
            action.id = %self.action.id, kind = self.action.decision.kind().as_str(), done, left = looked_at - done,
            "an action is carried out"
        );
        Ok(())
    }
}

/// The result of jobs that were decided about.
const DONE: &str = "done";

/// A counter that is born with its first event hides that event from every rate.
fn start_counting() {
    for kind in ActionKind::ALL {
        metrics::ACTION_JOBS.add([kind.as_str(), DONE], 0);
    }
}
