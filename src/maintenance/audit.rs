//! Looks at every job for what the flow would never look at again, repairs what is safe and says the rest.
//!
//! A repair never decides about a job: it only brings the job back to where the relay or the rescue finds it. Whatever a
//! person must judge is reported. Of several workers the one that started first does it.
//!
//! What this cannot see is a message without a row; [`Audit::lanes`] compares figures instead.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Turns, rounds};
use crate::{
    clock::millis,
    job::{JobId, QueueName, State},
    queue::{BROKER_TIMEOUT, SharedQueue},
    store::{AuditLimits, Finding, FindingKind, SharedStore, StoreError},
    telemetry::metrics,
};

/// A process that starts after a long stop first gives relay and rescue the time to catch up.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Most jobs of each kind that are named in the log.
pub const NAMED_IN_LOG: usize = 10;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub page: usize,
    /// Time between two pages, in which the store does other things.
    pub pause: Duration,
    pub limits: AuditLimits,
    pub repair: bool,
    /// Most jobs of each kind that are named.
    pub named: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Jobs that were looked at.
    pub seen: u64,
    /// What is wrong, by kind; kinds without a finding are left out.
    pub found: BTreeMap<FindingKind, Found>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub found: u64,
    pub repaired: u64,
    /// The first of them.
    pub jobs: Vec<JobId>,
}

/// For information: apps publish messages that have no row yet, and a row that is being claimed has no message any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneFigures {
    pub lane: QueueName,
    pub available: u64,
    /// Messages that wait; `None` when the broker does not say.
    pub messages: Option<u64>,
}

#[derive(Debug)]
pub struct Audit {
    store: SharedStore,
    queue: Option<SharedQueue>,
    relay_wake: Arc<Notify>,
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// The job only waits for its turn.
    Nothing,
    /// A person has to see it.
    Report,
    /// The rescue has to find it.
    MakeFindable,
    /// The relay has to publish it.
    MakeDue,
}

/// How full the lane of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Unknown,
    Empty,
    /// Messages wait in the broker.
    Filled,
    /// Messages wait inside this process, which takes no more of them than it can hold.
    FilledInProcess,
}

impl Report {
    pub fn left(&self, kind: FindingKind) -> u64 {
        self.found.get(&kind).map_or(0, Found::left)
    }

    pub fn is_clean(&self) -> bool {
        self.found.values().all(|found| found.left() == 0)
    }
}

impl Found {
    pub fn left(&self) -> u64 {
        self.found.saturating_sub(self.repaired)
    }
}

impl Audit {
    /// Without a queue it repairs no job that might have a message; it wakes the relay when it made jobs due.
    pub fn new(
        store: SharedStore,
        queue: Option<SharedQueue>,
        relay_wake: Arc<Notify>,
        options: Options,
    ) -> Self {
        Self { store, queue, relay_wake, options }
    }

    /// Audits about every so often until `stop`, while it is this worker's turn.
    pub async fn run(self, every: Duration, turns: Turns, stop: CancellationToken) {
        show(&Report::default());
        // A counter that is born with its first event hides that event from every rate.
        for kind in FindingKind::ALL {
            metrics::AUDIT_REPAIRS.add([kind.as_str()], 0);
        }
        stop.run_until_cancelled(tokio::time::sleep(FIRST_AFTER.min(every))).await;
        // An audit that is cut off has changed nothing that the next one would miss.
        let round = || async { stop.run_until_cancelled(self.take_turn(turns)).await.transpose().map(|_| 0) };
        rounds(&stop, every, usize::MAX, "the audit", round).await;
    }

    async fn take_turn(&self, turns: Turns) -> Result<(), StoreError> {
        if !turns.is_mine(&self.store).await? {
            // Another worker shows what it finds; what this one found before is out of date.
            show(&Report::default());
            return Ok(());
        }
        let started = Instant::now();
        let report = self.run_once().await?;
        show(&report);
        metrics::AUDIT_COMPLETED.set([], self.store.now().await?.as_second() as f64);
        tell(&report, started.elapsed());
        Ok(())
    }

    /// One audit of the whole store. Repairs up to an error of the store are kept.
    pub async fn run_once(&self) -> Result<Report, StoreError> {
        let mut report = Report::default();
        let mut lanes = HashMap::new();
        let mut after = None;
        loop {
            let page = self.store.audit(after, self.options.page, &self.options.limits).await?;
            report.seen += page.seen;
            self.act(page.items, &mut lanes, &mut report).await?;
            let Some(last) = page.last else { break };
            after = Some(last);
            tokio::time::sleep(self.options.pause).await;
        }
        Ok(report)
    }

    /// The available jobs and the waiting messages of these lanes, and of all lanes that have such jobs.
    pub async fn lanes(&self, known: &[QueueName]) -> Result<Vec<LaneFigures>, StoreError> {
        let mut available: BTreeMap<QueueName, u64> = known.iter().map(|lane| (lane.clone(), 0)).collect();
        for (lane, state, jobs) in self.store.census().await?.jobs {
            if state == State::Available {
                available.insert(lane, jobs);
            }
        }
        let mut figures = Vec::new();
        for (lane, available) in available {
            let messages = self.messages(&lane).await;
            figures.push(LaneFigures { lane, available, messages });
        }
        Ok(figures)
    }

    /// Adds what a page found to the report, and repairs what may be repaired.
    async fn act(
        &self,
        findings: Vec<Finding>,
        lanes: &mut HashMap<String, Lane>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let mut repairs: BTreeMap<FindingKind, (Remedy, Vec<JobId>)> = BTreeMap::new();
        for Finding { kind, id, queue } in findings {
            let lane = match lanes.get(&queue) {
                Some(lane) => *lane,
                None => {
                    let lane = self.lane(&queue).await;
                    lanes.insert(queue, lane);
                    lane
                }
            };
            let remedy = remedy(kind, lane);
            if remedy == Remedy::Nothing {
                continue;
            }
            let found = report.found.entry(kind).or_default();
            found.found += 1;
            if found.jobs.len() < self.options.named {
                found.jobs.push(id);
            }
            if self.options.repair && remedy != Remedy::Report {
                repairs.entry(kind).or_insert((remedy, Vec::new())).1.push(id);
            }
        }
        for (kind, (remedy, jobs)) in repairs {
            let repaired = match remedy {
                Remedy::MakeFindable => self.store.make_findable(&jobs).await?,
                Remedy::MakeDue => {
                    let due = self.store.make_due(&jobs).await?;
                    self.relay_wake.notify_one();
                    due
                }
                Remedy::Nothing | Remedy::Report => continue,
            };
            let repaired = repaired.len() as u64;
            metrics::AUDIT_REPAIRS.add([kind.as_str()], repaired);
            report.found.entry(kind).or_default().repaired += repaired;
        }
        Ok(())
    }

    async fn lane(&self, lane: &str) -> Lane {
        let Ok(lane) = lane.parse::<QueueName>() else { return Lane::Unknown };
        match self.messages(&lane).await {
            None => Lane::Unknown,
            Some(0) => Lane::Empty,
            Some(_) if self.queue.as_ref().is_some_and(|queue| queue.survives_restart()) => Lane::Filled,
            Some(_) => Lane::FilledInProcess,
        }
    }

    async fn messages(&self, lane: &QueueName) -> Option<u64> {
        let depth = self.queue.as_ref()?.depth(lane);
        Some(tokio::time::timeout(BROKER_TIMEOUT, depth).await.ok()?.ok()?.ready)
    }
}

/// What a finding means, given how full the lane of the job is.
fn remedy(kind: FindingKind, lane: Lane) -> Remedy {
    match (kind, lane) {
        (FindingKind::RunningWithoutWorker | FindingKind::RunningWithoutClaim, _) => Remedy::MakeFindable,
        // Where messages wait, its own may be among them. Where none does, it is lost.
        (FindingKind::NotClaimed, Lane::Filled | Lane::FilledInProcess) => Remedy::Nothing,
        (FindingKind::NotClaimed, Lane::Empty) => Remedy::MakeDue,
        // The in-process queue is full before the store is empty, so that jobs wait where they are.
        (FindingKind::NotPublished, Lane::FilledInProcess) => Remedy::Nothing,
        (
            FindingKind::NotClaimed
            | FindingKind::NotPublished
            | FindingKind::RunningTooLong
            | FindingKind::AttemptWithoutOutcome
            | FindingKind::HeldWithoutReason
            | FindingKind::BrokenRule
            | FindingKind::NotLookedUp
            | FindingKind::ReplyOverdue,
            _,
        ) => Remedy::Report,
    }
}

/// What a person does about findings of this kind that are not repaired.
pub fn advice(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::RunningWithoutWorker => {
            "start a worker: its rescue takes them over; if workers run, see their logs for what keeps it"
        }
        FindingKind::RunningWithoutClaim => "run `errand audit --repair`, or leave it to a worker's audit",
        FindingKind::RunningTooLong => {
            "the worker lives but its call does not end: restart that worker; its jobs are taken over"
        }
        FindingKind::NotPublished => {
            "start a worker: its relay publishes them; if workers run, see errand_relay_failed_total and their logs"
        }
        FindingKind::NotClaimed => {
            "run `errand audit --repair` with the broker at hand; if it comes back, see whether a worker consumes the lane"
        }
        FindingKind::AttemptWithoutOutcome => {
            "the history of the job is incomplete: look at the tool API's log before you decide about it; something but \
             errand has written to `attempts`"
        }
        FindingKind::HeldWithoutReason => {
            "decide with `errand jobs release`; something but errand has written to `jobs`"
        }
        FindingKind::BrokenRule => {
            "a CHECK constraint of `jobs` is missing or not valid: correct the rows, then restore it from migrations/"
        }
        FindingKind::NotLookedUp => {
            "see that a worker runs with verify.enabled, or decide with `errand jobs release`"
        }
        FindingKind::ReplyOverdue => {
            "start a worker: its relay publishes replies; the results are in the store meanwhile"
        }
    }
}

/// Sets the gauges. Every kind is shown, so that one that is gone is seen to be gone.
fn show(report: &Report) {
    for kind in FindingKind::ALL {
        metrics::AUDIT_FINDINGS.set([kind.as_str()], report.left(*kind) as f64);
    }
}

fn tell(report: &Report, took: Duration) {
    let found: u64 = report.found.values().map(|found| found.found).sum();
    let repaired: u64 = report.found.values().map(|found| found.repaired).sum();
    tracing::info!(jobs = report.seen, found, repaired, took_ms = millis(took), "audited the store");
    for (kind, Found { found, repaired, jobs }) in &report.found {
        let jobs: Vec<String> = jobs.iter().take(NAMED_IN_LOG).map(JobId::to_string).collect();
        tracing::warn!(
            kind = kind.as_str(),
            found,
            repaired,
            jobs = jobs.join(" "),
            "the audit found jobs that no rule allows; {}",
            advice(*kind)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANES: [Lane; 4] = [Lane::Unknown, Lane::Empty, Lane::Filled, Lane::FilledInProcess];

    #[test]
    fn a_job_is_published_again_only_where_no_message_can_be_its_own() {
        for lane in LANES {
            let remedy = remedy(FindingKind::NotClaimed, lane);
            assert_eq!(remedy == Remedy::MakeDue, lane == Lane::Empty, "{lane:?}");
            assert_eq!(remedy == Remedy::Report, lane == Lane::Unknown, "{lane:?}");
        }
    }

    #[test]
    fn what_a_person_must_judge_is_never_repaired() {
        for kind in FindingKind::ALL {
            let safe = matches!(
                kind,
                FindingKind::RunningWithoutWorker
                    | FindingKind::RunningWithoutClaim
                    | FindingKind::NotClaimed
            );
            let repaired = LANES
                .iter()
                .any(|lane| matches!(remedy(*kind, *lane), Remedy::MakeFindable | Remedy::MakeDue));
            assert_eq!(repaired, safe, "{kind:?}");
        }
    }

    #[test]
    fn only_what_is_not_repaired_is_left() {
        let mut report = Report::default();
        assert!(report.is_clean());
        let found = |found, repaired| Found { found, repaired, jobs: vec![JobId::new()] };
        report.found.insert(FindingKind::NotClaimed, found(3, 3));
        assert!(report.is_clean());
        report.found.insert(FindingKind::BrokenRule, found(2, 0));
        assert_eq!((report.left(FindingKind::BrokenRule), report.is_clean()), (2, false));
    }
}
