//! Removes jobs that ended long ago, and rejected messages that are old, many or large, so that nothing grows for ever.
//!
//! A round walks through the store in the order of creation. It takes few rows at a time, locks nothing but what it
//! removes, and pauses in proportion to what its statements took. What a round does not reach, the next one does. Of several
//! workers the one that started first does it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{Turns, pace::Pace, rounds};
use crate::{
    bounds::DELIVERIES_EXPIRE_AFTER,
    job::{Owner, State},
    store::{OldJob, OldMessage, Page, Result, SharedStore, Which},
    string_enum::string_enum,
    telemetry::metrics,
};

/// A process that starts after a long stop first lets the flow catch up.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Most rows that one statement looks at, and that one removes.
pub(super) const MOST_LOOKED_AT: usize = 500;
pub(super) const MOST_REMOVED: usize = 100;

/// Most bytes of results, or of messages, that one statement removes; at least one row, whatever its size.
pub(super) const MOST_BYTES: u64 = 2 * 1024 * 1024;

/// How long actions are kept after their end.
const ACTIONS_KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The work of a worker takes at most a tenth of the time.
const PAUSES: u32 = 9;

/// The same where a person waits.
const PAUSES_BY_HAND: u32 = 1;

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long jobs are kept.
    pub jobs: JobRetention,
    /// What holds instead for single owners; never longer.
    pub owners: HashMap<Owner, JobRetention>,
    /// How long rejected messages are kept, how many, and how many bytes of them; `None` is no limit.
    pub rejected_for: Option<Duration>,
    pub rejected_count: Option<u64>,
    pub rejected_bytes: Option<u64>,
    /// How long entries of the audit log are kept.
    pub changes_for: Option<Duration>,
    /// How long events are kept.
    pub events_for: Option<Duration>,
    /// Whether nothing is removed.
    pub dry_run: bool,
}

/// How long jobs are kept after they ended; `None` is for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobRetention {
    pub succeeded: Option<Duration>,
    pub failed: Option<Duration>,
    pub cancelled: Option<Duration>,
}

string_enum! {
    /// Why a rejected message was removed.
    Excess {
        Age = "age",
        Count = "count",
        Bytes = "bytes",
    }
}

/// What a round removed; in a dry run, what it would have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Jobs that were looked at.
    pub seen: u64,
    /// Jobs by the state that they were in; states without one are left out.
    pub jobs: BTreeMap<State, u64>,
    /// Rejected messages by why; causes without one are left out.
    pub rejected: BTreeMap<Excess, u64>,
    /// Entries of the audit log, which a dry run does not count.
    pub changes: u64,
    /// Events, likewise.
    pub events: u64,
    pub deliveries: u64,
    /// What the longest statement took.
    pub longest: Duration,
}

#[derive(Debug)]
pub struct Prune {
    store: SharedStore,
    options: Options,
    pauses: u32,
}

impl JobRetention {
    fn of(&self, state: State) -> Option<Duration> {
        match state {
            State::Succeeded => self.succeeded,
            State::Failed => self.failed,
            State::Cancelled => self.cancelled,
            State::Scheduled | State::Available | State::Running | State::Retryable | State::Held => None,
        }
    }

    fn shortest(&self) -> Option<Duration> {
        [self.succeeded, self.failed, self.cancelled].into_iter().flatten().min()
    }
}

impl Options {
    /// Whether a job is kept no longer.
    fn is_over(&self, job: &OldJob) -> bool {
        let kept_for = self.owners.get(&job.owner).unwrap_or(&self.jobs).of(job.state);
        job.may_go() && job.finished_for.zip(kept_for).is_some_and(|(since, kept_for)| since >= kept_for)
    }

    /// No job that was created later can be over.
    fn shortest(&self) -> Option<Duration> {
        self.owners.values().chain([&self.jobs]).filter_map(JobRetention::shortest).min()
    }

    /// After this no job is kept any more; `None` where some are kept for ever.
    fn longest(&self) -> Option<Duration> {
        let JobRetention { succeeded, failed, cancelled } = self.jobs;
        Some(succeeded?.max(failed?).max(cancelled?))
    }

    fn limits_messages(&self) -> bool {
        self.rejected_for.is_some() || self.rejected_count.is_some() || self.rejected_bytes.is_some()
    }
}

impl Prune {
    /// Paced for a person who waits; [`Self::run`] goes more slowly.
    pub fn new(store: SharedStore, options: Options) -> Self {
        Self { store, options, pauses: PAUSES_BY_HAND }
    }

    /// Removes what is over about every so often until `stop`, while it is this worker's turn.
    pub async fn run(mut self, every: Duration, turns: Turns, stop: CancellationToken) {
        self.pauses = PAUSES;
        start_counting();
        stop.run_until_cancelled(tokio::time::sleep(FIRST_AFTER.min(every))).await;
        let turn = || async {
            if turns.is_mine(&self.store).await? {
                tell(&self.run_once().await?);
            }
            Ok(0)
        };
        // A round that is cut off has left nothing half done.
        let round = || async { stop.run_until_cancelled(turn()).await.unwrap_or(Ok(0)) };
        rounds(&stop, every, usize::MAX, "the removal of old jobs", round).await;
    }

    /// One round through the whole store. What was removed before an error of the store stays removed, and an error about one kind of
    /// data keeps no other one.
    pub async fn run_once(&self) -> Result<Report> {
        let mut report = Report::default();
        let jobs = match self.options.shortest() {
            Some(shortest) => self.prune_jobs(shortest, &mut report).await,
            None => Ok(()),
        };
        let messages = match self.options.limits_messages() {
            true => self.prune_messages(&mut report).await,
            false => Ok(()),
        };
        let others = match self.options.dry_run {
            true => Ok(()),
            false => self.prune_others(&mut report).await,
        };
        jobs.and(messages).and(others).map(|()| report)
    }

    /// Removes what a dry run does not count.
    async fn prune_others(&self, report: &mut Report) -> Result<()> {
        let swept = self.sweep_other_ids(report).await;
        let batches = self.prune_batches(report).await;
        let actions = self.prune_actions(report).await;
        let changes = match self.options.changes_for {
            Some(age) => self.prune_changes(age, report).await,
            None => Ok(()),
        };
        let expired = self.expire_deliveries(report).await;
        let [events, deliveries] = match self.options.events_for {
            Some(age) => [self.prune_events(age, report).await, self.prune_deliveries(age, report).await],
            None => [Ok(()), Ok(())],
        };
        swept.and(batches).and(actions).and(changes).and(expired).and(events).and(deliveries)
    }

    async fn prune_jobs(&self, age: Duration, report: &mut Report) -> Result<()> {
        let (mut looks, mut removals) = (self.pace(MOST_LOOKED_AT), self.pace(MOST_REMOVED));
        let which = Which { owner: None, age };
        let mut after = None;
        loop {
            let rows = looks.rows();
            let Page { items, end } = looks.step(self.store.old_jobs(&which, after, rows)).await?;
            report.seen += items.len() as u64;
            let mut over: Vec<OldJob> = items.into_iter().filter(|job| self.options.is_over(job)).collect();
            while !over.is_empty() {
                let batch: Vec<OldJob> =
                    over.drain(..fitting(&over, removals.rows(), |job| job.bytes)).collect();
                for state in self.remove_jobs(&mut removals, &batch).await? {
                    *report.jobs.entry(state).or_default() += 1;
                }
            }
            report.longest = report.longest.max(looks.longest()).max(removals.longest());
            let Some(end) = end else { return Ok(()) };
            after = Some(end);
        }
    }

    /// Batches go as long after their completion as jobs that are kept longest.
    async fn prune_batches(&self, report: &mut Report) -> Result<()> {
        let Some(kept_for) = self.options.longest() else { return Ok(()) };
        let mut removals = self.pace(MOST_REMOVED);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_batches(kept_for, rows)).await?;
            report.longest = report.longest.max(removals.longest());
            if gone < rows as u64 {
                return Ok(());
            }
        }
    }

    /// The states of those that were removed.
    async fn remove_jobs(&self, pace: &mut Pace, batch: &[OldJob]) -> Result<Vec<State>> {
        if self.options.dry_run {
            return Ok(batch.iter().map(|job| job.state).collect());
        }
        let gone = pace.step(self.store.remove_jobs(batch)).await?;
        let gone: Vec<State> =
            batch.iter().filter(|job| gone.contains(&job.id)).map(|job| job.state).collect();
        for state in &gone {
            metrics::PRUNED_JOBS.add([state.as_str()], 1);
        }
        Ok(gone)
    }

    /// Other IDs are few, and those of which the job is gone come only from a build that did not know of them.
    async fn sweep_other_ids(&self, report: &mut Report) -> Result<()> {
        let (mut looks, mut after) = (self.pace(MOST_LOOKED_AT), None);
        loop {
            let rows = looks.rows();
            after = looks.step(self.store.sweep_other_ids(after, rows)).await?;
            report.longest = report.longest.max(looks.longest());
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Actions that ended long ago, or were never confirmed.
    async fn prune_actions(&self, report: &mut Report) -> Result<()> {
        let mut removals = self.pace(MOST_REMOVED);
        loop {
            let rows = removals.rows();
            let removed = removals.step(self.store.prune_actions(ACTIONS_KEPT_FOR, rows)).await?;
            report.longest = report.longest.max(removals.longest());
            if removed < rows as u64 {
                return Ok(());
            }
        }
    }

    async fn prune_changes(&self, age: Duration, report: &mut Report) -> Result<()> {
        let mut removals = self.pace(MOST_LOOKED_AT);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_changes(age, rows)).await?;
            report.changes += gone;
            report.longest = report.longest.max(removals.longest());
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// Gives up what has waited for too long, whatever retention is.
    async fn expire_deliveries(&self, report: &mut Report) -> Result<()> {
        let mut steps = self.pace(MOST_LOOKED_AT);
        loop {
            let rows = steps.rows();
            let expired = steps.step(self.store.expire_deliveries(DELIVERIES_EXPIRE_AFTER, rows)).await?;
            report.longest = report.longest.max(steps.longest());
            if expired == 0 {
                return Ok(());
            }
        }
    }

    /// As long as events.
    async fn prune_deliveries(&self, age: Duration, report: &mut Report) -> Result<()> {
        let mut removals = self.pace(MOST_LOOKED_AT);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_deliveries(age, rows)).await?;
            report.deliveries += gone;
            report.longest = report.longest.max(removals.longest());
            if gone == 0 {
                return Ok(());
            }
        }
    }

    async fn prune_events(&self, age: Duration, report: &mut Report) -> Result<()> {
        let mut removals = self.pace(MOST_LOOKED_AT);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_events(age, rows)).await?;
            report.events += gone;
            report.longest = report.longest.max(removals.longest());
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// From the newest to the oldest, counting: what lies beyond a limit goes.
    async fn prune_messages(&self, report: &mut Report) -> Result<()> {
        let (mut looks, mut removals) = (self.pace(MOST_LOOKED_AT), self.pace(MOST_REMOVED));
        let (mut kept, mut before) = (Kept::default(), None);
        loop {
            let rows = looks.rows();
            let Page { items, end } = looks.step(self.store.old_messages(before, rows)).await?;
            let beyond = items
                .into_iter()
                .filter_map(|message| Some((kept.excess(&self.options, &message)?, message)));
            let mut beyond: Vec<(Excess, OldMessage)> = beyond.collect();
            while !beyond.is_empty() {
                let fitting = fitting(&beyond, removals.rows(), |(_, message)| message.bytes);
                let batch: Vec<_> = beyond.drain(..fitting).collect();
                self.remove_messages(&mut removals, &batch, report).await?;
            }
            report.longest = report.longest.max(looks.longest()).max(removals.longest());
            let Some(end) = end else { return Ok(()) };
            before = Some(end);
        }
    }

    async fn remove_messages(
        &self,
        pace: &mut Pace,
        batch: &[(Excess, OldMessage)],
        report: &mut Report,
    ) -> Result<()> {
        let messages: Vec<OldMessage> = batch.iter().map(|(_, message)| *message).collect();
        let gone = if self.options.dry_run {
            messages.iter().map(|message| message.id).collect()
        } else {
            pace.step(self.store.remove_messages(&messages)).await?
        };
        for (excess, _) in batch.iter().filter(|(_, message)| gone.contains(&message.id)) {
            *report.rejected.entry(*excess).or_default() += 1;
            if !self.options.dry_run {
                metrics::PRUNED_MESSAGES.add([excess.as_str()], 1);
            }
        }
        Ok(())
    }

    fn pace(&self, most: usize) -> Pace {
        Pace::new(most, self.pauses)
    }
}

/// What a walk from the newest message on has left in its place.
#[derive(Debug, Default)]
struct Kept {
    count: u64,
    bytes: u64,
}

impl Kept {
    /// Why this message goes, or `None` when it is kept and counted. The newest is within any limit of bytes.
    fn excess(&mut self, options: &Options, message: &OldMessage) -> Option<Excess> {
        let (count, bytes) = (self.count + 1, self.bytes.saturating_add(message.bytes));
        let excess = if options.rejected_for.is_some_and(|kept_for| message.age >= kept_for) {
            Some(Excess::Age)
        } else if options.rejected_count.is_some_and(|most| count > most) {
            Some(Excess::Count)
        } else if options.rejected_bytes.is_some_and(|most| bytes > most && count > 1) {
            Some(Excess::Bytes)
        } else {
            None
        };
        // What is older than one that goes by count or bytes goes, too, so what goes is counted as well.
        (self.count, self.bytes) = (count, bytes);
        excess
    }
}

/// How many of these go together: up to so many, and no more bytes than one statement may remove.
pub(super) fn fitting<T>(rows: &[T], most: usize, bytes: impl Fn(&T) -> u64) -> usize {
    let mut sum = 0_u64;
    let fits = |row: &&T| {
        sum = sum.saturating_add(bytes(row));
        sum <= MOST_BYTES
    };
    rows.iter().take(most).take_while(fits).count().max(1)
}

/// A counter that is born with its first event hides that event from every rate.
fn start_counting() {
    for state in State::ALL.iter().filter(|state| state.is_final()) {
        metrics::PRUNED_JOBS.add([state.as_str()], 0);
    }
    for excess in Excess::ALL {
        metrics::PRUNED_MESSAGES.add([excess.as_str()], 0);
    }
}

fn tell(report: &Report) {
    let jobs: u64 = report.jobs.values().sum();
    let messages: u64 = report.rejected.values().sum();
    if jobs + messages + report.changes + report.events + report.deliveries > 0 {
        tracing::info!(
            seen = report.seen,
            jobs,
            messages,
            changes = report.changes,
            events = report.events,
            deliveries = report.deliveries,
            "removed what was kept for long enough"
        );
    }
    let over = |excess| report.rejected.get(&excess).copied().unwrap_or(0);
    if over(Excess::Count) + over(Excess::Bytes) > 0 {
        tracing::warn!(
            by_count = over(Excess::Count),
            by_bytes = over(Excess::Bytes),
            "rejected messages were removed before their time, the oldest first, because there are too many: see \
             `errand rejected list` for who publishes what is no job, or raise retention.rejected_count and \
             retention.rejected_bytes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(age_days: u64, bytes: u64) -> OldMessage {
        OldMessage { id: uuid::Uuid::nil(), age: Duration::from_hours(24 * age_days), bytes, received_at: 0 }
    }

    fn reasons(options: &Options, newest_first: &[OldMessage]) -> Vec<Option<Excess>> {
        let mut kept = Kept::default();
        newest_first.iter().map(|message| kept.excess(options, message)).collect()
    }

    #[test]
    fn messages_go_by_age_then_by_count_then_by_bytes_and_the_oldest_first() {
        let messages = [message(0, 10), message(1, 10), message(2, 10), message(40, 10)];
        let none = Options::default();
        assert_eq!(reasons(&none, &messages), [None; 4]);
        let options = Options { rejected_for: Some(Duration::from_hours(24 * 30)), ..none.clone() };
        assert_eq!(reasons(&options, &messages), [None, None, None, Some(Excess::Age)]);
        let by_count = Options { rejected_count: Some(2), ..options.clone() };
        assert_eq!(reasons(&by_count, &messages), [None, None, Some(Excess::Count), Some(Excess::Age)]);
        let by_bytes = Options { rejected_bytes: Some(10), ..options };
        let bytes = Some(Excess::Bytes);
        assert_eq!(reasons(&by_bytes, &messages), [None, bytes, bytes, Some(Excess::Age)]);
        let large = [message(0, 100), message(1, 1)];
        assert_eq!(
            reasons(&by_bytes, &large),
            [None, bytes],
            "the newest stays, and none that is older passes it"
        );
    }

    #[test]
    fn what_goes_together_is_bounded_in_rows_and_bytes_and_never_nothing() {
        let bytes = |bytes: &u64| *bytes;
        assert_eq!(fitting(&[1; 10], 4, bytes), 4);
        assert_eq!(fitting(&[MOST_BYTES / 2; 10], 4, bytes), 2);
        assert_eq!(fitting(&[u64::MAX, 1], 4, bytes), 1);
    }
}
