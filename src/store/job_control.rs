//! What people and scripts read and decide.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    ChangeKind, Decider, Place, Result,
    convert::{to_duration, to_i32},
    read::{StoreRow, if_readable},
};
use crate::job::{
    AttemptOutcome, BatchId, Binding, Digest, ErrorKind, HeldReason, IllegalMove, JobError, JobId, JobSpec,
    Principal, QueueName, Release, RequestId, State, Transition, WorkerId,
};

/// Questions and decisions about single jobs. Decisions name who made them, for the [history](super::History) and the
/// [audit log](super::Changes).
///
/// * An owner finds no job of others: nothing is told of it, and a decision about it changes nothing and is
///   [`Decided::Unknown`].
#[async_trait]
pub trait JobControl: fmt::Debug + Send + Sync {
    async fn job(&self, principal: &Principal, id: JobId) -> Result<Option<JobView>>;

    /// Which of these jobs are settled ([`State::is_settled`]), or are not there. Asked for many who wait, each of whom has
    /// seen the job before.
    async fn settled(&self, jobs: &[JobId]) -> Result<HashSet<JobId>>;

    /// Its attempts, in order. The attempt of a running job is included, without an outcome.
    async fn attempts(&self, principal: &Principal, id: JobId) -> Result<Vec<AttemptView>>;

    /// Carries out a decision about a job, whose state has to allow it. With `as_read` it concerns the job as somebody has read
    /// it: one that was claimed, decided about or edited since stays as it is ([`Decided::Changed`]), so that a decision whose
    /// answer was lost can be sent again without being made about a later call.
    async fn decide(
        &self,
        principal: &Principal,
        id: JobId,
        decision: JobDecision,
        as_read: Option<&AsRead>,
        by: &Decider,
    ) -> Result<Decided>;

    /// [`JobDecision::Cancel`].
    async fn cancel(&self, principal: &Principal, id: JobId, by: &Decider) -> Result<Decided> {
        self.decide(principal, id, JobDecision::Cancel, None, by).await
    }

    /// [`JobDecision::Restart`].
    async fn restart(&self, principal: &Principal, id: JobId, by: &Decider, force: Force) -> Result<Decided> {
        self.decide(principal, id, JobDecision::Restart(force), None, by).await
    }

    /// [`JobDecision::Release`].
    async fn release(
        &self,
        principal: &Principal,
        id: JobId,
        release: Release,
        by: &Decider,
    ) -> Result<Decided> {
        self.decide(principal, id, JobDecision::Release(release), None, by).await
    }

    /// Changes when, where or until when a job runs that waits ([`crate::job::Transition::Edit`]), as somebody has read it.
    ///
    /// * A job that is another one than was read, or was claimed since, stays as it is: [`Decided::Changed`], or
    ///   [`Decided::Illegal`] where its state does not allow it at all.
    /// * With another `run_at` it is due then, or now without one or with one that has passed. The relay publishes one that
    ///   is due once more.
    /// * Messages from before the change are none of it any more: a claim by one is [`Claimed::Duplicate`].
    /// * The job as it was asked for at first is the same job as before, and so is it as it is now.
    ///
    /// [`Claimed::Duplicate`]: super::Claimed::Duplicate
    async fn edit(&self, principal: &Principal, edited: &Edited, by: &Decider) -> Result<Decided>;

    async fn census(&self) -> Result<Census>;
}

/// What a person, or errand on their behalf, decides about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobDecision {
    /// Calls it off ([`crate::job::Transition::Cancel`]). A running job is marked only. A call whose outcome is unknown
    /// is still looked up; what is learned of it changes the record of its attempt and not the state.
    Cancel,
    /// Runs a failed or cancelled job again, with a fresh attempt budget, or makes a waiting one due
    /// now ([`crate::job::Transition::Restart`]). Its error is forgotten; its binding stays.
    ///
    /// A job whose last call counts and may have had its effect is run again only with [`Force::effect`]
    /// ([`Decided::MayHaveActed`]), and one whose `run_at` is still to come only with [`Force::early`] ([`Decided::Early`]).
    Restart(Force),
    /// Lets a held job go. The result of one that a person marks as succeeded is JSON `null`. One that
    /// waited for a connection forgets the account that was chosen for it, because the new connection
    /// is another account; an account that the job named itself stays.
    ///
    /// A job that is held because its call cannot be made has not run, and can only be let go to run
    /// ([`Decided::HasNotRun`]).
    Release(Release),
    /// Lets a held job go to run, as [`Self::Release`] does with [`Release::Retry`]; but one whose last call counts and may
    /// have had its effect only with [`Force::effect`] ([`Decided::MayHaveActed`]), as decisions about many jobs do.
    ReleaseToRun(Force),
}

impl JobDecision {
    pub fn transition(self) -> Transition {
        match self {
            Self::Cancel => Transition::Cancel,
            Self::Restart(_) => Transition::Restart,
            Self::Release(release) => Transition::Release(release),
            Self::ReleaseToRun(_) => Transition::Release(Release::Retry),
        }
    }

    /// Whether it lets a job run again although that may repeat an effect.
    pub(super) fn repeats_effects(self) -> bool {
        match self {
            Self::Restart(force) | Self::ReleaseToRun(force) => force.effect,
            Self::Release(_) => true,
            Self::Cancel => false,
        }
    }

    /// What it is in the audit log.
    pub(super) fn change(self) -> ChangeKind {
        match self {
            Self::Cancel => ChangeKind::JobCancelled,
            Self::Restart(_) => ChangeKind::JobRetried,
            Self::Release(_) | Self::ReleaseToRun(_) => ChangeKind::JobReleased,
        }
    }
}

/// A job as somebody has read it, which is another one once it was claimed, decided about or edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsRead {
    pub state: State,
    /// How often it had been claimed.
    pub attempt: u32,
    pub digest: Digest,
    /// Since when it is due, and when it ended: so that a job which was run again and called off is not the one before.
    pub first_due_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl AsRead {
    pub fn of(job: &JobView) -> Self {
        let JobView { state, attempt, first_due_at, finished_at, .. } = *job;
        Self { state, attempt, digest: job.spec.digest, first_due_at, finished_at }
    }

    /// Whether a row is of a job that is like that still.
    pub(super) fn is(&self, row: &impl StoreRow) -> Result<bool> {
        let digest: Vec<u8> = row.read("digest")?;
        let attempt: i32 = row.read("attempt")?;
        let state: State = row.parse("state")?;
        let [first_due_at, finished_at] = [row.time_if_any("first_due_at")?, row.time_if_any("finished_at")?];
        let is_in_time = first_due_at == self.first_due_at && finished_at == self.finished_at;
        Ok(state == self.state && attempt == to_i32(self.attempt) && digest == self.digest.0 && is_in_time)
    }
}

/// A job that somebody has read and wants to be another one.
#[derive(Debug, Clone)]
pub struct Edited {
    pub read: AsRead,
    pub before: Arc<JobSpec>,
    /// Differs from it in what may be changed, and is not the same.
    pub after: Arc<JobSpec>,
    /// Whether it is to run later than now, by the store's clock, where that is changed.
    pub later: Option<bool>,
}

impl Edited {
    /// A job that was read, and what it is to be.
    pub fn new(read: &JobView, after: JobSpec, now: Timestamp) -> Self {
        let is_moved = read.spec.run_at != after.run_at;
        Self {
            read: AsRead::of(read),
            before: read.spec.clone(),
            later: is_moved.then(|| after.run_at.is_some_and(|at| at > now)),
            after: Arc::new(after),
        }
    }

    pub fn transition(&self) -> Transition {
        Transition::Edit { later: self.later }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    Now(State),
    /// Unchanged: it is not as it was read.
    Changed,
    Illegal(IllegalMove),
    /// Unchanged: running it again might repeat an effect.
    MayHaveActed,
    /// Unchanged: its `run_at` is still to come.
    Early,
    /// Unchanged: it is held for this reason and has not run, so that nobody can know how it ended.
    HasNotRun(HeldReason),
    Unknown,
}

/// What is done all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Force {
    /// Repeat an effect.
    pub effect: bool,
    /// Run a job before its `run_at`.
    pub early: bool,
}

#[derive(Debug, Clone)]
pub struct JobView {
    /// As it is now.
    pub spec: Arc<JobSpec>,
    /// What it was asked for as, where somebody has changed it since.
    pub asked: Option<Digest>,
    pub state: State,
    pub held_reason: Option<HeldReason>,
    pub binding: Option<Binding>,
    pub created_at: Timestamp,
    /// When it is next looked at, while it waits.
    pub due_at: Option<Timestamp>,
    /// Since when it is due, or was when it ran last, however often it was published or postponed since. `None` for a job
    /// of a build that did not note it.
    pub first_due_at: Option<Timestamp>,
    /// When its call is next looked up in the execution log, while its outcome is unknown.
    pub check_at: Option<Timestamp>,
    /// Since when the outcome of the last call that was looked up was unknown.
    pub unknown_since: Option<Timestamp>,
    /// How often the execution log was asked about that call.
    pub checks: u32,
    pub request_id: Option<RequestId>,
    /// When the last attempt was claimed.
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// The tool's `data`.
    pub result: Option<Arc<RawValue>>,
    pub error: Option<JobError>,
    /// The log ID of the last attempt that had one.
    pub log_id: Option<String>,
    pub attempt: u32,
    /// Attempts charged.
    pub spent: u32,
    /// Somebody asked to cancel it while it ran.
    pub cancel_requested: bool,
    /// How often the relay or the door has published it since it became due.
    pub publications: u32,
    /// The toolkit that its owner has to connect, while it is held for that.
    pub waits_for: Option<String>,
    /// The batch that enqueued it.
    pub batch: Option<BatchId>,
    /// The worker that runs it, or else the last one that ended an attempt. Builds before this one noted only the former.
    pub worker: Option<WorkerId>,
}

/// What the store decides about a job when it is inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// `scheduled` or `available`.
    pub state: State,
    pub created_at: Timestamp,
    pub due_at: Timestamp,
    pub first_due_at: Timestamp,
    /// As [`JobView::publications`].
    pub publications: u32,
}

impl JobView {
    /// A job that was inserted a moment ago, as reading it would tell as long as nobody has claimed or changed it.
    pub fn new(spec: Arc<JobSpec>, beginning: Beginning) -> Self {
        let Beginning { state, created_at, due_at, first_due_at, publications } = beginning;
        Self {
            spec,
            asked: None,
            state,
            held_reason: None,
            binding: None,
            created_at,
            due_at: Some(due_at),
            first_due_at: Some(first_due_at),
            check_at: None,
            unknown_since: None,
            checks: 0,
            request_id: None,
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
            log_id: None,
            attempt: 0,
            spent: 0,
            cancel_requested: false,
            publications,
            waits_for: None,
            batch: None,
            worker: None,
        }
    }

    /// Its place in lists.
    pub fn place(&self) -> Place {
        Place { at: self.created_at.as_microsecond(), id: self.spec.id.0 }
    }

    /// Whether a job of the same ID or key is this one: as it was asked for, or as it is now.
    pub fn is_asked_by(&self, spec: &JobSpec) -> bool {
        self.spec.owner == spec.owner && (self.spec.digest == spec.digest || self.asked == Some(spec.digest))
    }

    /// The toolkit of its tool, as far as it is known.
    pub fn toolkit(&self) -> Option<&str> {
        let bound = self.binding.as_ref().map(|binding| binding.toolkit.as_str());
        bound.or(self.waits_for.as_deref())
    }
}

/// One attempt as people read it; as JSON, with the kind of its error alone.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Attempt, description = "One attempt, or several in a row that only postponed the job.")]
pub struct AttemptView {
    /// Counts from 1; of several, that of the last.
    pub number: u32,
    /// How many attempts in a row this is: those that only postponed the job, for the same cause, are told as one, with
    /// the start of the first and all else of the last.
    pub times: u32,
    pub request_id: RequestId,
    /// `None` while it runs.
    pub outcome: Option<AttemptOutcome>,
    pub http_status: Option<u16>,
    pub log_id: Option<String>,
    pub version: Option<String>,
    #[serde(rename = "error_kind", serialize_with = "kind_of")]
    #[schema(value_type = Option<ErrorKind>)]
    pub error: Option<JobError>,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

fn kind_of<S: Serializer>(error: &Option<JobError>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    error.as_ref().map(JobError::kind).serialize(serializer)
}

/// Figures for the gauges. Counts of final states are left out: they only grow, and counting them
/// would read the whole table.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Jobs by queue and state, for states that are not final.
    pub jobs: Vec<(QueueName, State, u64)>,
    pub held: Vec<(HeldReason, u64)>,
    /// For each queue, how long the job has waited that should have run first, postponed ones included.
    pub oldest_due: Vec<(QueueName, Duration)>,
}

impl Census {
    /// Reads the figures of jobs that are due, by queue and state, that run, by queue, and that are held, by queue
    /// and reason.
    pub(super) fn of<R: StoreRow>(waiting: &[R], running: &[R], held: &[R]) -> Result<Self> {
        let mut census = Self::default();
        for row in waiting {
            let Some((queue, state)) = if_readable(row, lane_and_state(row)) else { continue };
            if let Some(oldest) = row.read("oldest")? {
                match census.oldest_due.iter_mut().find(|(name, _)| *name == queue) {
                    Some((_, longest)) => *longest = to_duration(oldest).max(*longest),
                    None => census.oldest_due.push((queue.clone(), to_duration(oldest))),
                }
            }
            census.jobs.push((queue, state, row.total("jobs")?));
        }
        for row in running {
            census.jobs.push((row.parse("queue")?, State::Running, row.total("jobs")?));
        }
        for row in held {
            let (queue, reason, jobs) = (row.parse("queue")?, row.word("held_reason")?, row.total("jobs")?);
            match census.held.iter_mut().find(|(held, _)| *held == reason) {
                Some((_, all)) => *all += jobs,
                None => census.held.push((reason, jobs)),
            }
            match census.jobs.iter_mut().find(|(name, state, _)| *name == queue && *state == State::Held) {
                Some((_, _, all)) => *all += jobs,
                None => census.jobs.push((queue, State::Held, jobs)),
            }
        }
        Ok(census)
    }
}

fn lane_and_state(row: &impl StoreRow) -> Result<(QueueName, State)> {
    Ok((row.parse("queue")?, row.parse("state")?))
}

/// Why a decision changed nothing of a job, as its row says; `None` if nothing stands in the way any more.
pub(super) fn refused(
    row: &impl StoreRow,
    transition: &Transition,
    as_read: Option<&AsRead>,
) -> Result<Option<Decided>> {
    if let Err(illegal) = transition.apply(row.parse("state")?) {
        return Ok(Some(Decided::Illegal(illegal)));
    }
    if let Some(read) = as_read
        && !read.is(row)?
    {
        return Ok(Some(Decided::Changed));
    }
    Ok(match transition {
        Transition::Restart | Transition::Release(Release::Retry) if row.read("may_have_acted")? => {
            Some(Decided::MayHaveActed)
        }
        Transition::Restart if row.read("is_early")? => Some(Decided::Early),
        Transition::Release(Release::Succeeded | Release::Failed) => row
            .word_if_any("held_reason")?
            .filter(|reason: &HeldReason| !reason.may_have_run())
            .map(Decided::HasNotRun),
        _ => None,
    })
}

/// Whether the last call of a job counts and has had its effect, or may have had it and nobody has said otherwise.
pub(super) const MAY_HAVE_ACTED: &str =
    "coalesce(frozen_effect = 'once'
        and exists (select 1 from attempts a where a.job_id = jobs.id and a.number = jobs.attempt
            and (a.outcome = 'succeeded'
                or a.outcome in ('unknown', 'lost') and jobs.error_kind is distinct from 'marked_failed')), false)";

/// Whether the call of a held job may have been made, so that a person can know how it ended.
pub(super) const MAY_HAVE_RUN: &str =
    "(held_reason is null or held_reason not in ('connection', 'credentials'))";

/// The attempts of a job; one in progress, and a first one that succeeded, are in the job's row.
pub(super) const ATTEMPTS: &str = "select number, times, request_id, outcome, http_status, log_id, version, {error},
        started_at, finished_at
    from attempts where job_id = {job_id} and {may_see_of}
    union all
    select attempt, 1, request_id, case when state = 'succeeded' then 'succeeded' end, http_status,
        case when state = 'succeeded' then log_id end, toolkit_version, {each error: null}, started_at, finished_at
    from jobs where id = {job_id} and {may_see} and (state = 'running' or http_status is not null)
    order by number";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{
        job::{Ending, Release, State, Transition},
        store::{Statement, postgres::PostgresStore, sqlite::SqliteStore},
    };

    /// The states from which a statement takes jobs, as its condition has it.
    fn states(text: &str) -> Vec<State> {
        let condition = text.rsplit("id = ").find(|condition| condition.contains("and state ")).unwrap();
        let states = condition.split_once("and state ").unwrap().1;
        let states = states.split(['\n', ')']).next().unwrap();
        states.split('\'').skip(1).step_by(2).map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn statements_take_jobs_from_the_states_that_the_transitions_allow() {
        let ending = Ending::Snooze { after: Duration::ZERO, error: None };
        let transitions = [
            ("cancel", Transition::Cancel),
            ("restart", Transition::Restart),
            ("edit", Transition::Edit { later: None }),
            ("release_retry", Transition::Release(Release::Retry)),
            ("release_succeeded", Transition::Release(Release::Succeeded)),
            ("release_failed", Transition::Release(Release::Failed)),
            ("finish_late", Transition::EndLate(ending)),
        ];
        for (name, transition) in transitions {
            let statements = PostgresStore::statements().chain(SqliteStore::statements());
            let mut found = 0;
            for Statement { text, .. } in statements.filter(|statement| statement.name == name) {
                let allowed = State::ALL.iter().filter(|state| transition.apply(**state).is_ok());
                let mut states = states(text);
                states.sort_by_key(|state| State::ALL.iter().position(|known| known == state));
                assert_eq!(states, allowed.copied().collect::<Vec<_>>(), "{name}: {text}");
                found += 1;
            }
            assert_eq!(found, 2, "{name} on both databases");
        }
    }
}
