//! The record of an ended attempt, and what the metrics are told of it.

use std::sync::atomic::Ordering;

use super::{
    crash::CrashPoint,
    persist::write_alone,
    running_job::RunningJob,
    shared::{Recorded, Shared},
};
use crate::{
    job::{AttemptEnd, Ending, Started, State},
    store::{By, Finish, Finished},
    sync::lock,
    telemetry::metrics,
};

/// Records the attempt, and waits until the store has it or the worker gives up.
pub(super) async fn record(shared: &Shared, job: RunningJob, end: AttemptEnd) {
    let cause = end.ending.error().map(|error| error.kind());
    let started = Started {
        number: job.receipt.attempt,
        request_id: job.request_id,
        version: job.receipt.binding.as_ref().map(|binding| binding.version.clone()),
        at: job.started_at,
    };
    let (attempt, ending) = end.record(started, shared.services.clock.now());
    let finish = Finish { id: job.spec.id, fence: job.receipt.fence, by: By::Holder, attempt, ending };
    shared.crash.pass(CrashPoint::AfterCall);
    let Some(finished) = submit(shared, finish).await else {
        // The store was away for the whole shutdown: the job is left behind, unless the journal takes it.
        job.noted.leave();
        return;
    };
    shared.crash.pass(CrashPoint::AfterFinish);
    match finished {
        Finished::Applied { state, late } => {
            if late {
                metrics::LATE.add([], 1);
            }
            if let (State::Retryable, Some(cause)) = (state, cause) {
                metrics::RETRIES.add([cause.as_str()], 1);
            }
            applied(shared, &job, state);
            tracing::debug!(state = %state, "attempt recorded");
        }
        Finished::Fenced => {
            metrics::FENCED.add([], 1);
            tracing::warn!("a late result was fenced off");
        }
    }
}

/// `None` when the worker gave up.
async fn submit(shared: &Shared, finish: Finish) -> Option<Finished> {
    let mut bytes = match &finish.ending {
        Ending::Succeed { result } => result.get().len() as u64,
        _ => 0,
    };
    shared.buffered.fetch_add(bytes, Ordering::Relaxed);
    shared.waiting.fetch_add(1, Ordering::Relaxed);
    let finished = match shared.finishes.submit(finish).await {
        Some(Recorded::Done(finished)) => Some(finished),
        Some(Recorded::NotWithOthers(finish)) => {
            // It may wait for long, and lanes must not. It keeps its slot, which bounds how many there are.
            shared.buffered.fetch_sub(std::mem::take(&mut bytes), Ordering::Relaxed);
            let finished = write_alone(shared, &finish).await;
            if finished.is_none() {
                lock(&shared.unwritten).push(*finish);
            }
            finished
        }
        None => None,
    };
    shared.waiting.fetch_sub(1, Ordering::Relaxed);
    shared.buffered.fetch_sub(bytes, Ordering::Relaxed);
    finished
}

fn applied(shared: &Shared, job: &RunningJob, state: State) {
    let toolkit = job.receipt.binding.as_ref().map(|binding| binding.toolkit.as_str());
    job.metrics.finished(toolkit, state.as_str());
    if state.is_final() {
        let took = shared.services.clock.now().duration_since(job.due_at).as_secs_f64().max(0.0);
        job.metrics.job_duration.record(took);
    }
    if !state.is_final() || job.spec.reply_to.is_some() {
        shared.services.relay_wake.notify_one();
    }
}
