//! Finds out what became of calls whose outcome is unknown.
//!
//! A `once` call that ended without an answer is looked for in the tool API's execution log, by its request ID. What the
//! log has is taken as the answer that did not arrive. That it has nothing proves something only when it had time to
//! settle and shows a call of ours that is known to have succeeded and was sent when the one in doubt must have ended,
//! right before and right after, and one that was sent before it: a log that does not keep our request IDs, has lost
//! entries, has stopped before that or is of another project, finds nothing either.
//! Where nobody can know, a person decides.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{quiet::Quiet, rounds};
use crate::{
    backoff::Intervals,
    clock::millis,
    failure::chain,
    job::{
        AttemptEnd, AttemptOutcome, Ending, ErrorKind, JobError, LookResult, RequestId, RetryPolicy,
        Spending, Started, State, Stop, clip,
    },
    services::Services,
    store::{By, Check, Finish, Finished, JobView, PutOff, StoreError, StoreErrorKind},
    telemetry::metrics,
    tool::{
        Answer, Body, Execution, Reply, ToolError, ToolResult,
        classify::{Context, Next, classify},
    },
};

/// A look-up that was cut off is repeated after this.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// The longest that the log may take to tell about one job, so that no other process takes it meanwhile.
const LOOK_TIMEOUT: Duration = Duration::from_secs(TAKEN_FOR.as_secs() - 10);

#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Waits between the looks at one job.
    pub intervals: Intervals,
    /// From when on a log without an entry says that the call never arrived. Half of it is for the call, which the tool
    /// API may go on with after errand stopped waiting, and half for the log, in which its entry has to appear.
    pub log_delay: Duration,
    /// From when on a person has to decide.
    pub give_up: Duration,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub poll: Duration,
    pub batch: usize,
    pub policy: Policy,
    pub retry: RetryPolicy,
    /// How long a worker waits for an answer, for jobs that do not say.
    pub timeout: Duration,
}

#[derive(Debug)]
pub struct Verify {
    services: Services,
    options: Options,
    /// The API throttles.
    quiet: Quiet,
}

/// What the log says about a call, see [`LookResult`].
#[derive(Debug)]
enum Look {
    /// The ID of the entry, and how the call ended.
    Ended(String, ToolResult),
    Unclear,
    Absent,
    Blind,
    /// In words for everybody, and with the cause for the log.
    Closed(String, String),
}

impl Look {
    /// What the history keeps of it.
    fn recorded(&self) -> (LookResult, Option<String>) {
        match self {
            Self::Ended(..) => (LookResult::Ended, None),
            Self::Unclear => (LookResult::Unclear, None),
            Self::Absent => (LookResult::Absent, None),
            Self::Blind => (LookResult::Blind, None),
            Self::Closed(why, _) => (LookResult::Closed, Some(why.clone())),
        }
    }
}

#[derive(Debug)]
enum Step {
    Adopt(String, ToolResult),
    NeverArrived,
    Again(Duration),
    /// A person has to decide.
    GiveUp,
}

impl Policy {
    /// Whether a log without an entry says something by now. `waited` is how long after the outcome became unknown
    /// a worker may still have waited for the answer.
    fn has_settled(&self, unknown_for: Duration, waited: Duration) -> bool {
        unknown_for >= self.log_delay.saturating_add(waited)
    }

    /// How long after its outcome became unknown a call has ended for certain, if it ever arrived.
    fn ended_after(&self, waited: Duration) -> Duration {
        (self.log_delay / 2).saturating_add(waited)
    }

    fn next(&self, look: Look, unknown_for: Duration, waited: Duration, checks: u32, random: f64) -> Step {
        match look {
            Look::Ended(log_id, result) => Step::Adopt(log_id, result),
            Look::Absent if self.has_settled(unknown_for, waited) => Step::NeverArrived,
            Look::Unclear | Look::Blind | Look::Closed(..) if unknown_for >= self.give_up => Step::GiveUp,
            _ => Step::Again(self.intervals.wait(checks.saturating_add(2), random)),
        }
    }
}

impl Verify {
    /// A verification with the log of the tool API; wakes the relay when it made jobs due.
    pub fn new(services: &Services, options: Options) -> Self {
        Self { services: services.clone(), options, quiet: Quiet::default() }
    }

    /// Looks until `stop`; rounds follow each other without a pause while they are full.
    pub async fn run(self, stop: CancellationToken) {
        let Options { poll, batch, .. } = self.options;
        // Look-ups may take long, and one that is cut off is made again by the next process.
        let round = || async { stop.run_until_cancelled(self.run_once()).await.unwrap_or(Ok(0)) };
        rounds(&stop, poll, batch, "the look-up of unknown outcomes", round).await;
    }

    /// One round; returns how many jobs were looked at.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        if self.quiet.is_now() {
            return Ok(0);
        }
        self.quiet.spare(&self.services.api_status);
        let checks = self.services.store.take_checks(self.options.batch, TAKEN_FOR).await?;
        if checks.is_empty() {
            return Ok(0);
        }
        let looked = join_all(checks.iter().map(|check| self.look_at(check))).await;
        // What a failed write left open is looked at again when its time as taken is over.
        looked.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(checks.len())
    }

    async fn shows(&self, known_success: RequestId) -> bool {
        matches!(self.execution(known_success).await, Ok(Some(_)))
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        let found = self.services.api.execution(request_id).await;
        if let Err(error @ ToolError::Throttled { .. }) = &found {
            self.quiet.heed(error, &self.options.policy.intervals);
        }
        found
    }

    async fn look(&self, check: &Check) -> Look {
        match self.execution(check.request_id).await {
            Ok(Some(Execution { tool: Some(tool), .. })) if tool != check.job.spec.tool => Look::Unclear,
            Ok(Some(Execution { log_id, result: Some(result), .. })) => Look::Ended(log_id, result),
            Ok(Some(Execution { result: None, .. })) => Look::Unclear,
            Ok(None) => Look::Absent,
            Err(error) => Look::Closed(closed(&error), chain(&error)),
        }
    }

    /// Looks again, right between two sights of a call that is known to have run: a log can go blind within a round. It
    /// was sent when the one in doubt had ended, since a log that stopped before that shows everything older. A call from
    /// before the one in doubt, if any is known, has to be in the log as well: that of another project, whose key errand has
    /// now, has only what came later.
    async fn look_between_sights(&self, check: &Check, waited: Duration) -> Result<Look, StoreError> {
        let ended_after = self.options.policy.ended_after(waited);
        let ended = check.job.unknown_since.and_then(|since| since.checked_add(ended_after).ok());
        let Some(ended) = ended else { return Ok(Look::Blind) };
        let store = &self.services.store;
        let Some(known) = store.known_success(ended).await? else { return Ok(Look::Blind) };
        let earlier = match check.job.started_at {
            Some(started) => store.known_success_before(started).await?,
            None => None,
        };
        for sight in earlier.into_iter().chain([known]) {
            if !self.shows(sight).await {
                return Ok(Look::Blind);
            }
        }
        Ok(match self.look(check).await {
            Look::Absent if !self.shows(known).await => Look::Blind,
            look => look,
        })
    }

    async fn look_at(&self, check: &Check) -> Result<(), StoreError> {
        let job = &check.job.spec;
        let waited = self.may_have_waited(check);
        let look = async {
            match self.look(check).await {
                Look::Absent if self.options.policy.has_settled(check.unknown_for, waited) => {
                    self.look_between_sights(check, waited).await
                }
                look => Ok(look),
            }
        };
        let late = |_| {
            let why = "the tool API takes too long".to_owned();
            Ok(Look::Closed(why.clone(), why))
        };
        let look = timeout(LOOK_TIMEOUT, look).await.unwrap_or_else(late)?;
        let (result, detail) = look.recorded();
        let (log_id, closed_by) = match &look {
            Look::Ended(log_id, _) => (Some(log_id.clone()), None),
            Look::Closed(_, error) => (None, Some(error.clone())),
            Look::Unclear | Look::Absent | Look::Blind => (None, None),
        };
        let step = self.options.policy.next(look, check.unknown_for, waited, check.checks, fastrand::f64());
        let word = match &step {
            Step::Adopt(_, result) if result.successful => "succeeded",
            Step::Adopt(..) => "failed",
            Step::NeverArrived => "never_arrived",
            Step::Again(_) => "again",
            Step::GiveUp => "gave_up",
        };
        metrics::VERIFICATIONS.add([word], 1);
        let next = if let Step::Again(after) = &step { Some(*after) } else { None };
        tracing::info!(
            job.id = %job.id, attempt.n = check.job.attempt, owner.kind = %job.owner.kind(), tool = job.tool,
            request.id = %check.request_id, log_id, result = word, why = result.as_str(),
            api = self.services.api.address(), error = closed_by, next_ms = next.map(millis),
            "looked for a call in the execution log"
        );
        let done = match step {
            Step::Adopt(log_id, result) => {
                self.finish(check, adopt(check, log_id, result, &self.options.retry)).await
            }
            Step::NeverArrived => self.finish(check, never_arrived(check, &self.options.retry)).await,
            Step::Again(after) => self.put_off(check, Some(after), result, detail).await,
            Step::GiveUp => self.put_off(check, None, result, detail).await,
        };
        match done {
            // One answer that no database keeps must not stop the looking for all others.
            Err(error) if error.kind() == StoreErrorKind::Data => {
                self.put_off(check, None, LookResult::Ended, None).await
            }
            done => done,
        }
    }

    /// A worker that was lost may live and not reach the store; then it went on waiting for its call.
    fn may_have_waited(&self, check: &Check) -> Duration {
        match &check.job.error {
            Some(error) if error.kind() == ErrorKind::WorkerLost => {
                check.job.spec.timeout.unwrap_or(self.options.timeout)
            }
            _ => Duration::ZERO,
        }
    }

    async fn finish(&self, check: &Check, end: AttemptEnd) -> Result<(), StoreError> {
        let now = self.services.clock.now();
        let started = Started {
            number: check.job.attempt,
            request_id: check.request_id,
            version: check.job.binding.as_ref().map(|binding| binding.version.clone()),
            at: check.job.started_at.unwrap_or(now),
        };
        let (attempt, ending) = end.record(started, now);
        let by = By::LookUp;
        let spec = &check.job.spec;
        let kind = ending.error().map(|error| error.kind().as_str());
        let finish = Finish { id: spec.id, fence: check.fence, by, attempt, ending };
        if let [Finished::Applied { state, .. }] = self.services.store.finish(&[finish]).await?[..] {
            if !state.is_final() || spec.reply_to.is_some() {
                self.services.relay_wake.notify_one();
            }
            if matches!(state, State::Failed | State::Held) {
                tracing::info!(
                    job.id = %spec.id, attempt.n = check.job.attempt, owner.kind = %spec.owner.kind(),
                    tool = spec.tool, queue = %spec.queue, kind, request.id = %check.request_id,
                    "job {state}, as the execution log shows"
                );
            }
        }
        Ok(())
    }

    /// Leaves the job as it is, until the next look-up or, without one, until a person decides.
    async fn put_off(
        &self,
        check: &Check,
        again_after: Option<Duration>,
        look: LookResult,
        detail: Option<String>,
    ) -> Result<(), StoreError> {
        let put_off = PutOff {
            id: check.job.spec.id,
            fence: check.fence,
            checks: check.checks,
            again_after,
            look,
            detail: detail.map(clip),
        };
        let is_recorded = self.services.store.put_off(&put_off).await?;
        if is_recorded && again_after.is_none() && check.job.spec.reply_to.is_some() {
            // Its app is told that nobody looks any more.
            self.services.relay_wake.notify_one();
        }
        Ok(())
    }
}

/// Takes an entry of the log as the answer that did not arrive.
fn adopt(check: &Check, log_id: String, result: ToolResult, retry: &RetryPolicy) -> AttemptEnd {
    let outcome = if result.successful { AttemptOutcome::Succeeded } else { AttemptOutcome::ToolFailed };
    let Some(binding) = &check.job.binding else {
        let error =
            JobError::new(ErrorKind::Internal, "the log has an entry of a job that had no version yet");
        let ending = Stop::Fail { error }.into();
        return AttemptEnd { outcome, http_status: None, log_id: Some(log_id), ending };
    };
    let data: Arc<RawValue> = result.data.clone();
    let answer = Answer { status: 200, retry_after: None, deprecated: None, body: Body::Result(result) };
    let classified = classify(Reply::Answered(answer), &Context::new(&check.job.spec, binding));
    let ending = match classified.next {
        // Whatever else the entry contains, its own verdict is that the call succeeded.
        _ if outcome == AttemptOutcome::Succeeded => Ending::Succeed { result: data },
        Next::Succeed { result } => Ending::Succeed { result },
        Next::Stop(stop) => stop.into(),
        Next::Retry { error, .. } | Next::Throttled { error, .. } => again(check, error, retry),
        Next::Unknown { error } => Stop::Fail { error }.into(),
    };
    AttemptEnd { outcome, http_status: None, log_id: Some(log_id), ending }
}

fn never_arrived(check: &Check, retry: &RetryPolicy) -> AttemptEnd {
    let error = JobError::new(
        ErrorKind::NotSent,
        format!("the call with request ID {} never arrived at the tool API", check.request_id),
    );
    AttemptEnd::unanswered(AttemptOutcome::NotSent, again(check, error, retry))
}

fn again(check: &Check, error: JobError, retry: &RetryPolicy) -> Ending {
    let JobView { spec, attempt, spent, .. } = &check.job;
    let spending = Spending {
        budget: spec.budget,
        attempt: *attempt,
        spent: *spent,
        age: check.age,
        postponed_for: Duration::ZERO,
    };
    retry.retry(spending, error, None, fastrand::f64())
}

/// Why the log could not be asked, without anything that the API said.
fn closed(error: &ToolError) -> String {
    match error {
        ToolError::NotFound(_) => "the tool API does not offer it".to_owned(),
        ToolError::Unavailable(_) => "the tool API does not answer".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
