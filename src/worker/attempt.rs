//! One attempt of one claimed job, from the claim to the recorded outcome.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::Instrument as _;

use super::{
    binding,
    circuit_breaker::CallPermit,
    crash::CrashPoint,
    ending::{Stopped, given_back},
    record::record,
    running_job::RunningJob,
    shared::Shared,
};
use crate::{
    job::{AttemptEnd, AttemptOutcome, Binding, ErrorKind, HeldReason, JobError, Stop},
    telemetry::metrics,
    tool::{
        ApiStatus, Call, Reply,
        classify::{Classified, Context, Next, classify},
    },
};

/// Runs the attempt in a task of its own, which owns the slot of the lane.
pub(super) fn start(shared: Arc<Shared>, job: RunningJob, slot: OwnedSemaphorePermit) {
    let (tasks, span) = (shared.tasks.clone(), job.span());
    let attempt = async move {
        let metrics = job.metrics.clone();
        metrics.in_flight.increment(1.0);
        run(&shared, job).await;
        metrics.in_flight.decrement(1.0);
        drop(slot);
    };
    tasks.spawn(attempt.instrument(span));
}

async fn run(shared: &Shared, mut job: RunningJob) {
    // A panic in a look-up, in decoding or in classification must not leave the job running for ever.
    let end = match AssertUnwindSafe(steps(shared, &mut job)).catch_unwind().await {
        Ok(Ok(end)) => end,
        Ok(Err(Stopped::Ended(end))) => *end,
        Ok(Err(Stopped::Fenced)) => return,
        Err(_) => {
            metrics::PANICS.add([], 1);
            tracing::error!("an attempt panicked");
            job.policy(shared).panicked(job.receipt.binding.as_ref(), job.is_sent)
        }
    };
    record(shared, job, end).await;
}

async fn steps(shared: &Shared, job: &mut RunningJob) -> Result<AttemptEnd, Stopped> {
    let binding = binding::bind(shared, job).await?;
    let timeout = job.spec.timeout.unwrap_or(shared.options.timeout);
    check_time(shared, job, &binding, timeout)?;
    let permit = shared.breakers.admit(&job.spec.owner, &binding.toolkit);
    let permit = permit.map_err(|open| job.policy(shared).kept_back(open))?;
    let account = shared.resolver.admit_account(&job.spec, &binding);
    account.map_err(|not_ready| job.policy(shared).not_ready(not_ready))?;
    let sent = Instant::now();
    let reply = call(shared, job, &binding, timeout).await;
    let end = end(shared, job, &binding, permit, timeout, reply);
    job.metrics.attempted(end.outcome, sent.elapsed().as_secs_f64());
    Ok(end)
}

/// An error if the lease or the job's own time may be over, or the process is draining and a `once` call could not
/// finish. What comes before the call may take long, so that only now these can be judged.
fn check_time(
    shared: &Shared,
    job: &RunningJob,
    binding: &Binding,
    timeout: Duration,
) -> Result<(), Stopped> {
    if !shared.lease.may_start_call() {
        return Err(given_back(Duration::from_secs(1)).into());
    }
    if let Some(why) = job.too_late() {
        let error = JobError::new(ErrorKind::Expired, why);
        return Err(job.policy(shared).not_ready(Stop::Fail { error }.into()).into());
    }
    let Some(until) = shared.drain_until.get() else { return Ok(()) };
    let fits = Instant::now() + timeout <= *until || binding.effect.may_repeat();
    if fits && !shared.interrupt.is_cancelled() { Ok(()) } else { Err(given_back(Duration::ZERO).into()) }
}

/// Makes the call; `None` when the shutdown interrupted it.
async fn call(shared: &Shared, job: &mut RunningJob, binding: &Binding, timeout: Duration) -> Option<Reply> {
    let call = Call {
        request_id: job.request_id,
        job: job.spec.id,
        spec: job.spec.clone(),
        version: binding.version.clone(),
        account: binding.account.clone(),
        timeout,
    };
    shared.crash.pass(CrashPoint::AfterClaim);
    job.is_sent = true;
    tokio::select! {
        biased;
        reply = shared.services.api.execute(&call) => Some(reply),
        () = shared.interrupt.cancelled() => None,
        never = shared.crash.during_call() => match never {},
    }
}

/// What the reply means, for the job and for what is remembered about the API.
fn end(
    shared: &Shared,
    job: &RunningJob,
    binding: &Binding,
    permit: CallPermit<'_>,
    timeout: Duration,
    reply: Option<Reply>,
) -> AttemptEnd {
    let interrupted = reply.is_none();
    let reply = reply.unwrap_or_else(|| Reply::NoAnswer("the worker shut down during the call".into()));
    let classified = classify(reply, &Context::new(&job.spec, binding));
    // A call that the shutdown cut off says nothing about the API.
    if !interrupted {
        note(&shared.services.api_status, &classified);
        report(permit, &classified, timeout >= shared.options.timeout);
    }
    let resolver = &shared.resolver;
    if classified.account_is_gone() {
        resolver.account_refused(&job.spec, binding);
    } else if matches!(classified.outcome, AttemptOutcome::Succeeded | AttemptOutcome::ToolFailed) {
        resolver.account_accepted(&job.spec, binding);
    }
    if let Some(notice) = &classified.deprecated {
        resolver.note_deprecated(&binding.toolkit, &binding.version, notice);
    }
    job.policy(shared).called(binding, classified, interrupted)
}

/// Notes what the call says about the API as a whole. It does not decide: errand looks for itself.
fn note(status: &ApiStatus, classified: &Classified) {
    match &classified.next {
        Next::Stop(Stop::Hold { reason: HeldReason::Credentials, .. }) => {
            status.key_refused(classified.http_status.unwrap_or_default());
        }
        Next::Retry { .. } | Next::Unknown { .. } if classified.outcome != AttemptOutcome::ToolFailed => {
            status.doubt();
        }
        Next::Succeed { .. }
        | Next::Stop(_)
        | Next::Throttled { .. }
        | Next::Retry { .. }
        | Next::Unknown { .. } => status.answered(),
    }
}

/// Tells the circuit breaker whether the API answered, whatever it answered. A job that waits for less than the usual
/// time says nothing about others by it.
fn report(permit: CallPermit<'_>, classified: &Classified, waited_as_usual: bool) {
    let may_be_impatience = matches!(classified.outcome, AttemptOutcome::Unknown | AttemptOutcome::NotSent);
    let gave_time = waited_as_usual || !may_be_impatience;
    match &classified.next {
        Next::Throttled { retry_after, .. } => permit.failed(*retry_after, gave_time),
        // The provider failed, not the API.
        Next::Retry { .. } if classified.outcome == AttemptOutcome::ToolFailed => permit.answered(),
        Next::Retry { retry_after, .. } => permit.failed(*retry_after, gave_time),
        Next::Unknown { .. } => permit.failed(None, gave_time),
        Next::Succeed { .. } | Next::Stop(_) => permit.answered(),
    }
}
