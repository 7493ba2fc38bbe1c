//! Finds out what became of calls whose outcome is unknown.
//!
//! A call that must not be made twice and ended without an answer is looked for in the tool API's
//! execution log, by the request ID under which it was sent. What the log has is taken as the answer
//! that did not arrive. That the log has nothing proves something only when it had time to settle
//! and when it shows a call of ours that is known to have succeeded, right before and right after: a
//! log that does not keep our request IDs, or has lost entries, finds nothing either. Where nobody can
//! know, a person decides.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::rounds;
use crate::{
    backoff::Intervals,
    clock::SharedClock,
    job::{
        AttemptEnd, AttemptOutcome, Ending, ErrorKind, JobError, LookResult, LookUps, RetryPolicy, Spending,
        Started, Stop, UnknownOutcome,
    },
    services::Services,
    store::{By, Check, Finish, Finished, JobView, PutOff, SharedStore, StoreError, StoreErrorKind},
    telemetry::metrics,
    tool::{
        Answer, Body, Execution, Reply, SharedToolApi, ToolError, ToolResult,
        classify::{Context, Next, classify},
    },
};

/// A look-up that was cut off is repeated after this; longer than any look-up takes.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// How many jobs of a round are looked at side by side.
const LOOKS_AT_ONCE: usize = 8;

/// When to look, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Waits between the looks at one job.
    pub intervals: Intervals,
    /// From when on a log without an entry says that the call never arrived.
    pub log_delay: Duration,
    /// From when on a person has to decide.
    pub give_up: Duration,
}

/// Settings of the verification.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Time between two rounds.
    pub poll: Duration,
    /// Jobs per round.
    pub batch: usize,
    /// When to look, and how long.
    pub policy: Policy,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long a worker waits for an answer, for jobs that do not say.
    pub timeout: Duration,
}

/// The verification.
#[derive(Debug)]
pub struct Verify {
    store: SharedStore,
    api: SharedToolApi,
    clock: SharedClock,
    relay_wake: Arc<Notify>,
    options: Options,
}

/// What the log says about a call, see [`LookResult`].
#[derive(Debug)]
enum Look {
    /// The ID of the entry, and how the call ended.
    Ended(String, ToolResult),
    Unclear,
    Absent,
    Blind,
    /// Why the log cannot be read.
    Closed(String),
}

impl Look {
    fn result(&self) -> LookResult {
        match self {
            Self::Ended(..) => LookResult::Ended,
            Self::Unclear => LookResult::Unclear,
            Self::Absent => LookResult::Absent,
            Self::Blind => LookResult::Blind,
            Self::Closed(_) => LookResult::Closed,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Closed(why) => Some(why.clone()),
            Self::Ended(..) | Self::Unclear | Self::Absent | Self::Blind => None,
        }
    }
}

/// What follows from a look.
#[derive(Debug)]
enum Step {
    /// The call ended so.
    Adopt(String, ToolResult),
    /// The call never arrived.
    NeverArrived,
    /// Look again.
    Again(Duration),
    /// A person has to decide.
    GiveUp,
}

impl Policy {
    /// Whether a log without an entry says something by now. `waited` is how long after the outcome became unknown a worker may still have waited for the answer.
    fn has_settled(&self, unknown_for: Duration, waited: Duration) -> bool {
        unknown_for >= self.log_delay.saturating_add(waited)
    }

    fn next(&self, look: Look, unknown_for: Duration, waited: Duration, checks: u32, random: f64) -> Step {
        match look {
            Look::Ended(log_id, result) => Step::Adopt(log_id, result),
            Look::Absent if self.has_settled(unknown_for, waited) => Step::NeverArrived,
            Look::Unclear | Look::Blind | Look::Closed(_) if unknown_for >= self.give_up => Step::GiveUp,
            _ => Step::Again(self.intervals.wait(checks.saturating_add(2), random)),
        }
    }
}

impl Verify {
    /// A verification with the log of the tool API; wakes the relay when it made jobs due.
    pub fn new(services: &Services, options: Options) -> Self {
        let Services { store, api, clock, relay_wake, .. } = services.clone();
        Self { store, api, clock, relay_wake, options }
    }

    /// Looks until `stop`; rounds follow each other without a pause while they are full.
    pub async fn run(self, stop: CancellationToken) {
        let Options { poll, batch, .. } = self.options;
        // Look-ups may take long, and one that is cut off is made again by the next process.
        let round = || async {
            tokio::select! {
                biased;
                round = self.run_once() => round,
                () = stop.cancelled() => Ok(0),
            }
        };
        rounds(stop.clone(), poll, batch, "the look-up of unknown outcomes", round).await;
    }

    /// One round; returns how many jobs were looked at.
    ///
    /// # Errors
    /// The store could not be read or written.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        let checks = self.store.take_checks(self.options.batch, TAKEN_FOR).await?;
        if checks.is_empty() {
            return Ok(0);
        }
        // One call that is known to have run shows for the whole round whether absence means anything.
        let shows_ours = self.shows_a_known_success().await?;
        let looks: Vec<_> = checks.iter().map(|check| self.look_at(check, shows_ours).boxed()).collect();
        let looked: Vec<_> = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).collect().await;
        // What a failed write left open is looked at again when its time as taken is over.
        looked.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(checks.len())
    }

    async fn shows_a_known_success(&self) -> Result<bool, StoreError> {
        let Some(known) = self.store.known_success().await? else { return Ok(false) };
        Ok(matches!(self.api.execution(known).await, Ok(Some(_))))
    }

    async fn look(&self, check: &Check, shows_ours: bool) -> Look {
        match self.api.execution(check.request_id).await {
            Ok(Some(Execution { tool: Some(tool), .. })) if tool != check.job.spec.tool => Look::Unclear,
            Ok(Some(Execution { log_id, result: Some(result), .. })) => Look::Ended(log_id, result),
            Ok(Some(Execution { result: None, .. })) => Look::Unclear,
            Ok(None) if shows_ours => Look::Absent,
            Ok(None) => Look::Blind,
            Err(error) => Look::Closed(closed(&error)),
        }
    }

    /// Looks again, right between two sights of the call that is known to have run: a log can go blind at any
    /// time, and a call must not be made again because it did so in the middle of a round.
    async fn look_between_sights(&self, check: &Check) -> Result<Look, StoreError> {
        let before = self.shows_a_known_success().await?;
        let look = self.look(check, before).await;
        if matches!(look, Look::Absent) && !self.shows_a_known_success().await? {
            return Ok(Look::Blind);
        }
        Ok(look)
    }

    async fn look_at(&self, check: &Check, shows_ours: bool) -> Result<(), StoreError> {
        let job = &check.job.spec;
        let waited = self.may_have_waited(check);
        let look = match self.look(check, shows_ours).await {
            Look::Absent if self.options.policy.has_settled(check.unknown_for, waited) => {
                self.look_between_sights(check).await?
            }
            look => look,
        };
        let (result, detail) = (look.result(), look.detail());
        let step = self.options.policy.next(look, check.unknown_for, waited, check.checks, fastrand::f64());
        let word = match &step {
            Step::Adopt(_, result) if result.successful => "succeeded",
            Step::Adopt(..) => "failed",
            Step::NeverArrived => "never_arrived",
            Step::Again(_) => "again",
            Step::GiveUp => "gave_up",
        };
        metrics::VERIFICATIONS.add1(word, 1);
        tracing::info!(job.id = %job.id, request.id = %check.request_id, result = word, "looked for a call in the execution log");
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
        let now = self.clock.now();
        let started = Started {
            number: check.job.attempt,
            request_id: check.request_id,
            version: check.job.binding.as_ref().map(|binding| binding.version.clone()),
            at: check.job.started_at.unwrap_or(now),
        };
        let (attempt, ending) = end.record(started, now);
        // What the log knows is what the holder would have been told.
        let by = By::Holder;
        let finish = Finish { id: check.job.spec.id, fence: check.fence, by, attempt, ending };
        if let [Finished::Applied { state, .. }] = self.store.finish(&[finish]).await?[..]
            && (!state.is_final() || check.job.spec.reply_to.is_some())
        {
            self.relay_wake.notify_one();
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
        let unknown = UnknownOutcome {
            known: &check.known,
            request_id: check.request_id,
            is_looked_up: again_after.is_some(),
            look_ups: Some(LookUps {
                count: check.checks.saturating_add(1),
                unknown_for: check.unknown_for,
                last_at: self.clock.now(),
                last: look,
                detail: detail.as_deref(),
            }),
        };
        let error = check.job.error.clone();
        let error = error.unwrap_or_else(|| JobError::new(ErrorKind::UnknownOutcome, ""));
        let error = error.with_message(unknown.sentence());
        let put_off = PutOff { id: check.job.spec.id, fence: check.fence, again_after, look, detail, error };
        self.store.put_off(&put_off).await?;
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
    let answer = Answer {
        status: 200,
        retry_after: None,
        request_id: None,
        deprecated: None,
        body: Body::Result(result),
    };
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
    let spending = Spending { budget: spec.budget, attempt: *attempt, spent: *spent, age: check.age };
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
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        backoff::RECONNECT,
        clock,
        job::{self, Arrival, Attempt, Binding, Effect, JobId, JobSpec, PinnedBy, RequestId, State},
        queue::embedded::EmbeddedQueue,
        store::{
            Admin as _, Claim, Claimed, Claims as _, Finishes as _, JobControl as _,
            sqlite::{SqliteOptions, SqliteStore},
        },
        sync::lock,
        tool::{Account, ApiCheck, Call, ToolApi, ToolInfo},
    };

    const POLICY: Policy = Policy {
        intervals: RECONNECT,
        log_delay: Duration::from_secs(900),
        give_up: Duration::from_secs(3_600),
    };

    fn looks() -> Vec<Look> {
        vec![Look::Unclear, Look::Absent, Look::Blind, Look::Closed("x".into())]
    }

    #[test]
    fn only_a_settled_log_that_shows_our_calls_proves_that_a_call_never_arrived() {
        let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), Duration::ZERO, 3, 0.5);
        assert!(matches!(next(Look::Absent, 899), Step::Again(_)));
        assert!(matches!(next(Look::Absent, 900), Step::NeverArrived));
        for look in [Look::Unclear, Look::Blind, Look::Closed("x".into())] {
            assert!(matches!(next(look, 3_599), Step::Again(_)));
        }
        for look in [Look::Unclear, Look::Blind, Look::Closed("x".into())] {
            assert!(matches!(next(look, 3_600), Step::GiveUp), "a person decides");
        }
    }

    #[test]
    fn the_log_settles_only_after_the_last_worker_stopped_waiting() {
        let waited = Duration::from_secs(5_000);
        let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), waited, 3, 0.5);
        assert!(matches!(next(Look::Absent, 900), Step::Again(_)));
        assert!(matches!(next(Look::Absent, 5_899), Step::Again(_)), "even when others would be given up");
        assert!(matches!(next(Look::Absent, 5_900), Step::NeverArrived));
        assert!(matches!(next(Look::Blind, 3_600), Step::GiveUp));
    }

    /// A log that has an entry for every call, and shows everything or nothing, look after look.
    #[derive(Debug)]
    struct Flickering(Mutex<Vec<bool>>);

    #[async_trait]
    impl ToolApi for Flickering {
        async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
            let mut looks = lock(&self.0);
            let sees = looks.pop().expect("no more looks than expected");
            Ok(sees.then(|| Execution {
                log_id: format!("log-{request_id}"),
                tool: None,
                result: Some(ToolResult {
                    data: RawValue::NULL.to_owned().into(),
                    successful: true,
                    error: None,
                    provider_status: None,
                    log_id: None,
                }),
            }))
        }

        async fn execute(&self, _: &Call) -> Reply {
            unreachable!("only the log is asked")
        }
        async fn tool(&self, _: &str, _: Option<&str>) -> Result<ToolInfo, ToolError> {
            unreachable!("only the log is asked")
        }
        async fn versions(&self, _: &str) -> Result<Vec<String>, ToolError> {
            unreachable!("only the log is asked")
        }
        async fn accounts(&self, _: &str, _: Option<&str>) -> Result<Vec<Account>, ToolError> {
            unreachable!("only the log is asked")
        }
        async fn account(&self, _: &str) -> Result<Account, ToolError> {
            unreachable!("only the log is asked")
        }
        async fn check(&self) -> Result<ApiCheck, ToolError> {
            unreachable!("only the log is asked")
        }
    }

    fn spec() -> Arc<JobSpec> {
        let queue = "default".parse().unwrap();
        let arrival = Arrival {
            queue: &queue,
            message_id: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
            fallback_id: Some(JobId::new()),
        };
        Arc::new(job::decode(br#"{"user_id":"u","tool":"T","arguments":{}}"#, &arrival).unwrap())
    }

    /// Runs a new job to the given end of its first attempt.
    async fn ended(store: &SqliteStore, outcome: AttemptOutcome, ending: Ending) -> JobId {
        let binding = Binding {
            toolkit: "t".into(),
            version: "20260101_00".into(),
            pinned_by: PinnedBy::Global,
            account: None,
            effect: Effect::Once,
        };
        let (spec, request_id) = (spec(), RequestId::new());
        let claim =
            Claim { spec: spec.clone(), request_id, binding: Some(binding), stop: None, from_store: false };
        let claimed = store.claim(job::WorkerId::new(), &[claim]).await.unwrap().remove(0);
        let Claimed::Running(receipt) = claimed else { panic!("{claimed:?}") };
        let now = clock::system().now();
        let attempt = Attempt {
            number: 1,
            request_id,
            outcome,
            http_status: (outcome == AttemptOutcome::Succeeded).then_some(200),
            log_id: None,
            version: Some("20260101_00".into()),
            error: ending.error().cloned(),
            started_at: now,
            finished_at: now,
        };
        let finish = Finish { id: spec.id, fence: receipt.fence, by: By::Holder, attempt, ending };
        store.finish(&[finish]).await.unwrap();
        spec.id
    }

    /// The state of a job with an entry after one round in which the log shows everything or nothing.
    async fn after_looks(mut looks: Vec<bool>) -> State {
        looks.reverse();
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions { path: folder.path().join("errand.db"), clock: clock::system() };
        let store = Arc::new(SqliteStore::new(options).unwrap());
        store.migrate().await.unwrap();
        let success = Ending::Succeed { result: RawValue::NULL.to_owned().into() };
        ended(&store, AttemptOutcome::Succeeded, success).await;
        let error = JobError::new(ErrorKind::UnknownOutcome, "no answer");
        let unknown = Ending::Verify { after: Duration::ZERO, error };
        let job = ended(&store, AttemptOutcome::Unknown, unknown).await;
        let options = Options {
            poll: Duration::from_secs(1),
            batch: 10,
            policy: Policy { log_delay: Duration::ZERO, ..POLICY },
            retry: RetryPolicy {
                intervals: RECONNECT,
                max_attempts: 5,
                max_retry_after: Duration::from_secs(1),
                max_throttled_age: Duration::from_secs(1),
            },
            timeout: Duration::from_secs(60),
        };
        let api = Arc::new(Flickering(Mutex::new(looks)));
        let queue = Arc::new(EmbeddedQueue::new([], 1));
        let verify = Verify::new(&Services::new(store.clone(), queue, api, clock::system()), options);
        assert_eq!(verify.run_once().await.unwrap(), 1);
        store.job(job).await.unwrap().unwrap().state
    }

    #[tokio::test]
    async fn a_log_that_goes_blind_in_the_middle_of_a_round_proves_nothing() {
        assert_eq!(after_looks(vec![true, true]).await, State::Succeeded);
        assert_eq!(after_looks(vec![true, false, false, false]).await, State::Held, "blind since");
        assert_eq!(after_looks(vec![true, false, true, true]).await, State::Succeeded, "not any more");
        assert_eq!(after_looks(vec![true, false, true, false, false]).await, State::Held, "blind again");
        let absent = vec![true, false, true, false, true];
        assert_eq!(after_looks(absent).await, State::Retryable, "which an absent entry looks like");
    }

    proptest! {
        /// However the log behaves, nothing is repeated before it had time to settle, and every job
        /// comes to an end or to a person.
        #[test]
        fn a_call_is_never_repeated_early_and_never_looked_for_without_end(
            choices in prop::collection::vec(0usize..4, 1..50), random in 0.0f64..1.0,
        ) {
            let mut unknown_for = POLICY.intervals.wait(1, random);
            for checks in 0.. {
                let look = looks().swap_remove(choices[checks as usize % choices.len()]);
                match POLICY.next(look, unknown_for, Duration::ZERO, checks, random) {
                    Step::Again(after) => {
                        prop_assert!(unknown_for < POLICY.give_up && !after.is_zero());
                        unknown_for += after;
                    }
                    Step::NeverArrived => {
                        prop_assert!(unknown_for >= POLICY.log_delay);
                        break;
                    }
                    Step::GiveUp | Step::Adopt(..) => break,
                }
            }
        }
    }
}
