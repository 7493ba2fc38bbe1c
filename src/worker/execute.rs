//! One attempt of one claimed job, from the claim to the recorded outcome.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Shared,
    circuit_breaker::{CallPermit, Open, Scope},
    crash::CrashPoint,
    finish::BindOutcome,
};
use crate::{
    job::{
        AttemptEnd, AttemptOutcome, Binding, Ending, ErrorKind, JobError, JobSpec, NotReady, RequestId,
        Spending, Started, Stop,
    },
    store::{Bind, By, Claim, ClaimReceipt, Finish, Finished},
    telemetry::metrics::{self, LaneMetrics},
    tool::{
        Call, Reply,
        classify::{self, Next},
    },
};

/// A claimed job.
pub(super) struct Held {
    spec: Arc<JobSpec>,
    request_id: RequestId,
    receipt: ClaimReceipt,
    /// The call may have been sent.
    is_sent: bool,
    started_at: Timestamp,
    claimed_at: Instant,
    /// When the job was due for the first time, as far as this process can tell.
    due_at: Timestamp,
    metrics: Arc<LaneMetrics>,
}

impl Held {
    pub(super) fn new(
        shared: &Shared,
        metrics: Arc<LaneMetrics>,
        claim: Claim,
        receipt: ClaimReceipt,
    ) -> Self {
        let started_at = shared.deps.clock.now();
        let due_at = first_due(&claim.spec, receipt.created_at, started_at);
        if receipt.attempt == 1 {
            let waited = started_at.duration_since(due_at).as_secs_f64().max(0.0);
            metrics.waited(waited);
        }
        let Claim { spec, request_id, .. } = claim;
        let claimed_at = Instant::now();
        Self { spec, request_id, receipt, is_sent: false, started_at, claimed_at, due_at, metrics }
    }
}

/// An app's UUIDv7 says when it made the job, which the store cannot know of a message that waited
/// in the broker. An implausible time (another clock, another use of the bits) is not believed.
fn first_due(spec: &JobSpec, created_at: Timestamp, now: Timestamp) -> Timestamp {
    let made = spec.id.0.get_timestamp().and_then(|stamp| {
        let (seconds, nanos) = stamp.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    });
    let plausible = made.filter(|made| {
        let age = now.duration_since(*made);
        age >= jiff::SignedDuration::ZERO && age < jiff::SignedDuration::from_hours(24 * 30)
    });
    let enqueued = plausible.map_or(created_at, |made| made.min(created_at));
    spec.run_at.map_or(enqueued, |run_at| run_at.max(enqueued))
}

/// Runs the attempt in a task of its own, which owns the permit.
pub(super) fn start(shared: Arc<Shared>, held: Held, permit: OwnedSemaphorePermit) {
    shared.note_held(std::iter::once(held.spec.id));
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let metrics = held.metrics.clone();
        metrics.in_flight.increment(1.0);
        run(&shared, held).await;
        metrics.in_flight.decrement(1.0);
        drop(permit);
    });
}

async fn run(shared: &Shared, mut held: Held) {
    // A panic in a look-up, in decoding or in classification must not leave the job running for ever.
    let ended = match AssertUnwindSafe(attempt(shared, &mut held)).catch_unwind().await {
        Ok(Some(ended)) => ended,
        // Another worker holds the job now; there is nothing to record.
        Ok(None) => {
            shared.note_ended(held.spec.id);
            return;
        }
        Err(_) => panicked(shared, &held),
    };
    record(shared, held, ended).await;
}

/// `None` when the job turned out to be held by somebody else.
async fn attempt(shared: &Shared, held: &mut Held) -> Option<AttemptEnd> {
    let binding = match held.receipt.binding.take() {
        Some(binding) if !shared.resolver.lacks_account(&held.spec, &binding) => {
            held.receipt.binding.insert(binding).clone()
        }
        earlier => match bind(shared, held, earlier).await {
            Frozenness::Ready(binding) => binding,
            Frozenness::Ended(ended) => return Some(*ended),
            Frozenness::Fenced => return None,
        },
    };
    let timeout = held.spec.timeout.unwrap_or(shared.options.timeout);
    if let Some(ended) = refuse_to_start(shared, &binding, timeout) {
        return Some(ended);
    }
    let permit = match shared.breakers.admit(&held.spec.owner, &binding.toolkit) {
        Ok(permit) => permit,
        Err(open) => return Some(postpone(shared, held, open)),
    };
    if let Err(not_ready) = shared.resolver.admit_account(&held.spec, &binding) {
        return Some(set_back(shared, held, not_ready));
    }
    let call = Call {
        request_id: held.request_id,
        job: held.spec.id,
        spec: held.spec.clone(),
        version: binding.version.clone(),
        account: binding.account.clone(),
        timeout,
    };
    shared.crash.pass(CrashPoint::AfterClaim);
    held.is_sent = true;
    let sent = Instant::now();
    let answered = tokio::select! {
        biased;
        reply = shared.deps.api.execute(&call) => Some(reply),
        () = shared.interrupt.cancelled() => None,
        never = shared.crash.during_call() => match never {},
    };
    let ended = judge(shared, held, &binding, permit, answered);
    held.metrics.attempted(ended.outcome, sent.elapsed().as_secs_f64());
    Some(ended)
}

enum Frozenness {
    Ready(Binding),
    Ended(Box<AttemptEnd>),
    Fenced,
}

/// Decides pin, account and effect of a job that came without them, or the account alone, and makes
/// the decision durable before anything is sent.
async fn bind(shared: &Shared, held: &mut Held, earlier: Option<Binding>) -> Frozenness {
    let resolver = &shared.resolver;
    held.receipt.binding.clone_from(&earlier);
    let decision = async {
        match earlier {
            Some(binding) => resolver.decide_account(&held.spec, binding, held.claimed_at).await,
            None => resolver.decide(&held.spec, held.claimed_at).await,
        }
    };
    let resolution = tokio::select! {
        biased;
        resolution = decision => resolution,
        () = shared.interrupt.cancelled() => return Frozenness::Ended(Box::new(given_back(Duration::ZERO, None))),
    };
    match resolution {
        Ok(binding) => {
            let bind = Bind { id: held.spec.id, fence: held.receipt.fence, binding: binding.clone() };
            match shared.binder.submit(bind).await {
                Some(BindOutcome::Done) => {
                    held.receipt.binding = Some(binding.clone());
                    Frozenness::Ready(binding)
                }
                Some(BindOutcome::Fenced) => Frozenness::Fenced,
                Some(BindOutcome::Refused(why)) => {
                    let error = JobError::new(
                        ErrorKind::Internal,
                        format!(
                            "nothing was sent, because the version or account that was chosen for this job cannot \
                             be recorded: {why}; look at what the tool API says about the tool and the owner's account"
                        ),
                    );
                    Frozenness::Ended(Box::new(set_back(shared, held, Stop::Fail { error }.into())))
                }
                None => Frozenness::Ended(Box::new(given_back(Duration::ZERO, None))),
            }
        }
        Err(not_ready) => Frozenness::Ended(Box::new(set_back(shared, held, not_ready))),
    }
}

/// Nothing was sent, because something is missing.
fn set_back(shared: &Shared, held: &Held, not_ready: NotReady) -> AttemptEnd {
    let ending = match not_ready {
        NotReady::Stop(stop) => stop.into(),
        NotReady::Wait { error, retry_after } => throttled(shared, held, error, retry_after),
    };
    AttemptEnd::unanswered(AttemptOutcome::Interrupted, ending)
}

/// Whether the call must not be started now: the lease may be over, or the process is draining and
/// a call that counts could not finish.
fn refuse_to_start(shared: &Shared, binding: &Binding, timeout: Duration) -> Option<AttemptEnd> {
    if !shared.lease.may_start_call() {
        return Some(given_back(Duration::from_secs(1), None));
    }
    let until = *shared.drain_until.get()?;
    let fits = Instant::now() + timeout <= until || binding.effect.may_repeat();
    (!fits || shared.interrupt.is_cancelled()).then(|| given_back(Duration::ZERO, None))
}

fn given_back(after: Duration, error: Option<JobError>) -> AttemptEnd {
    AttemptEnd::unanswered(AttemptOutcome::Interrupted, Ending::Snooze { after, error })
}

/// Gives a job back whose call an open circuit breaker keeps back.
fn postpone(shared: &Shared, held: &Held, open: Open) -> AttemptEnd {
    let Open { scope, after } = open;
    let whose = match scope {
        Scope::OwnerToolkit => "for this owner and toolkit",
        Scope::Api => "for several owners",
    };
    let error = JobError::new(
        ErrorKind::NotSent,
        format!(
            "nothing was sent: the tool API did not answer the last calls {whose}, so that errand makes one at a \
             time until it does, and this one later"
        ),
    );
    set_back(shared, held, NotReady::Wait { error, retry_after: Some(after) })
}

/// Tells whether the API answered, whatever it answered.
fn report(permit: CallPermit<'_>, outcome: AttemptOutcome, next: &Next) {
    match next {
        Next::Throttled { retry_after, .. } => permit.failed(*retry_after),
        // The provider failed, not the API.
        Next::Retry { .. } if outcome == AttemptOutcome::ToolFailed => permit.answered(),
        Next::Retry { retry_after, .. } => permit.failed(*retry_after),
        Next::Unknown { .. } => permit.failed(None),
        Next::Succeed { .. } | Next::Stop(_) => permit.answered(),
    }
}

/// What the reply means for the job; without one, the shutdown interrupted the call.
fn judge(
    shared: &Shared,
    held: &Held,
    binding: &Binding,
    permit: CallPermit<'_>,
    reply: Option<Reply>,
) -> AttemptEnd {
    let context = classify::Context {
        owner: &held.spec.owner,
        tool: &held.spec.tool,
        toolkit: &binding.toolkit,
        version: &binding.version,
        account: binding.account.as_deref(),
        explicit_account: held.spec.connected_account_id.is_some(),
        effect: binding.effect,
    };
    let interrupted = reply.is_none();
    let reply = reply.unwrap_or_else(|| Reply::NoAnswer("the worker shut down during the call".into()));
    let classified = classify::classify(reply, &context);
    // A call that the shutdown cut off says nothing about the API.
    if !interrupted {
        report(permit, classified.outcome, &classified.next);
    }
    if classified.account_is_gone() {
        shared.resolver.account_refused(&held.spec, binding);
    } else if matches!(classified.outcome, AttemptOutcome::Succeeded | AttemptOutcome::ToolFailed) {
        shared.resolver.account_accepted(&held.spec, binding);
    }
    if let Some(notice) = &classified.deprecated {
        shared.resolver.note_deprecated(&binding.toolkit, &binding.version, notice);
    }
    let ending = match classified.next {
        Next::Succeed { result } => Ending::Succeed { result },
        Next::Stop(stop) => stop.into(),
        Next::Throttled { error, retry_after } => throttled(shared, held, error, retry_after),
        // An interruption is not the job's fault, so it spends no attempt.
        Next::Retry { error, .. } if interrupted => {
            Ending::Snooze { after: Duration::ZERO, error: Some(error) }
        }
        Next::Retry { error, retry_after } => retry(shared, held, error, retry_after),
        Next::Unknown { error } if binding.effect.may_repeat() => retry(shared, held, error, None),
        Next::Unknown { error } => Ending::undecided(shared.options.first_check, error),
    };
    AttemptEnd {
        outcome: classified.outcome,
        http_status: classified.http_status,
        log_id: classified.log_id,
        ending,
    }
}

fn retry(shared: &Shared, held: &Held, error: JobError, retry_after: Option<Duration>) -> Ending {
    shared.options.retry.retry(spending(shared, held), error, retry_after, fastrand::f64())
}

fn throttled(shared: &Shared, held: &Held, error: JobError, retry_after: Option<Duration>) -> Ending {
    shared.options.retry.snooze(spending(shared, held), error, retry_after, fastrand::f64())
}

fn spending(shared: &Shared, held: &Held) -> Spending {
    Spending {
        budget: held.spec.budget,
        attempt: held.receipt.attempt,
        spent: held.receipt.spent,
        age: age(shared, held),
    }
}

/// The age at the claim, by the store's clock, and the time since, by ours.
fn age(shared: &Shared, held: &Held) -> Duration {
    let since = shared.deps.clock.now().duration_since(held.started_at);
    held.receipt.age.saturating_add(since.try_into().unwrap_or(Duration::ZERO))
}

/// What becomes of a job on which errand itself failed: it is tried again within its budget, unless the call
/// counts and may have been made.
fn panicked(shared: &Shared, held: &Held) -> AttemptEnd {
    metrics::PANICS.add(1);
    tracing::error!(job.id = %held.spec.id, attempt.n = held.receipt.attempt, "an attempt panicked");
    let (outcome, what) = if held.is_sent {
        (AttemptOutcome::Unknown, "the call may have been made")
    } else {
        (AttemptOutcome::Interrupted, "nothing was sent")
    };
    let message = format!("a bug in errand ended this attempt, and its log says where: report it; {what}");
    let error = JobError::new(ErrorKind::Internal, message);
    let counts = held.receipt.binding.as_ref().is_none_or(|binding| !binding.effect.may_repeat());
    let ending = if held.is_sent && counts {
        Ending::undecided(shared.options.first_check, error)
    } else {
        retry(shared, held, error, None)
    };
    AttemptEnd::unanswered(outcome, ending)
}

/// Records the attempt and tells the metrics what became of the job.
async fn record(shared: &Shared, held: Held, ended: AttemptEnd) {
    let Held { spec, request_id, receipt, started_at, due_at, metrics: lane, is_sent: _, claimed_at: _ } =
        held;
    let toolkit = receipt.binding.as_ref().map(|binding| binding.toolkit.clone());
    let bytes = match &ended.ending {
        Ending::Succeed { result } => result.get().len() as u64,
        _ => 0,
    };
    let cause = ended.ending.error().map(|error| error.kind());
    let started = Started {
        number: receipt.attempt,
        request_id,
        version: receipt.binding.map(|binding| binding.version),
        at: started_at,
    };
    let (attempt, ending) = ended.record(started, shared.deps.clock.now());
    let finish = Finish { id: spec.id, fence: receipt.fence, by: By::Holder, attempt, ending };
    shared.crash.pass(CrashPoint::AfterCall);
    shared.buffered.fetch_add(bytes, Ordering::Relaxed);
    shared.waiting.fetch_add(1, Ordering::Relaxed);
    let finished = shared.finisher.submit(finish).await;
    shared.waiting.fetch_sub(1, Ordering::Relaxed);
    shared.buffered.fetch_sub(bytes, Ordering::Relaxed);
    let Some(finished) = finished else {
        // The store was away for the whole shutdown: the job stays in the list of what is left, unless
        // the journal takes it.
        return;
    };
    shared.crash.pass(CrashPoint::AfterFinish);
    shared.note_ended(spec.id);
    match finished {
        Finished::Applied { state, late } => {
            lane.finished(toolkit.as_deref(), state.as_str());
            if late {
                metrics::LATE.add(1);
            }
            if state.is_final() {
                let took = shared.deps.clock.now().duration_since(due_at).as_secs_f64().max(0.0);
                lane.finished_after(took);
            } else if let (crate::job::State::Retryable, Some(cause)) = (state, cause) {
                metrics::RETRIES.add1(cause.as_str(), 1);
            }
            if !state.is_final() || spec.reply_to.is_some() {
                shared.deps.relay_wake.notify_one();
            }
            tracing::debug!(job.id = %spec.id, attempt.n = receipt.attempt, state = %state, "attempt recorded");
        }
        Finished::Fenced => {
            metrics::FENCED.add(1);
            tracing::warn!(job.id = %spec.id, attempt.n = receipt.attempt, "a late result was fenced off");
        }
    }
}
