//! The record of an ended attempt, and what the metrics are told of it.

use std::sync::atomic::Ordering;

use super::{
    crash::CrashPoint,
    persist::write_alone,
    running_job::RunningJob,
    shared::{Recorded, Shared},
};
use crate::{
    clock::millis,
    job::{AttemptEnd, AttemptOutcome, Ending, ErrorKind, HeldReason, JobError, Started, State},
    store::{By, Finish, Finished},
    sync::lock,
    telemetry::metrics,
};

/// What the log says about an attempt whose job failed or is held: nothing that an app, a tool or the tool API wrote.
#[derive(Debug)]
struct Unsuccessful {
    kind: ErrorKind,
    reason: Option<HeldReason>,
    outcome: Option<AttemptOutcome>,
    http_status: Option<u16>,
    log_id: Option<String>,
    /// The toolkit that the owner has to connect.
    waits_for: Option<String>,
}

impl Unsuccessful {
    const UNSTORABLE: Self = Self {
        kind: ErrorKind::Internal,
        reason: None,
        outcome: None,
        http_status: None,
        log_id: None,
        waits_for: None,
    };

    fn of(end: &AttemptEnd, error: &JobError) -> Self {
        let AttemptEnd { outcome, http_status, log_id, ending } = end;
        Self {
            kind: error.kind(),
            reason: ending.held_reason(),
            outcome: Some(*outcome),
            http_status: *http_status,
            log_id: log_id.clone(),
            waits_for: ending.waits_for().map(str::to_owned),
        }
    }

    /// The toolkit of the job, as far as it is known.
    fn toolkit<'a>(&'a self, job: &'a RunningJob) -> Option<&'a str> {
        bound_toolkit(job).or(self.waits_for.as_deref())
    }

    /// The job, the attempt and the tool are fields of the attempt's span.
    fn tell(&self, job: &RunningJob, state: State) {
        let Self { kind, reason, outcome, http_status, log_id, .. } = self;
        tracing::info!(
            queue = %job.spec.queue,
            toolkit = self.toolkit(job),
            kind = kind.as_str(),
            reason = reason.map(HeldReason::as_str),
            outcome = outcome.map(AttemptOutcome::as_str),
            http_status,
            log_id,
            request.id = %job.request_id,
            took_ms = millis(job.claimed_at.elapsed()),
            "job {state}"
        );
    }
}

/// Records the attempt, and waits until the store has it or the worker gives up.
pub(super) async fn record(shared: &Shared, job: RunningJob, end: AttemptEnd) {
    // Nothing is gathered about an attempt that succeeded.
    let unsuccessful = end.ending.error().map(|error| Unsuccessful::of(&end, error));
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
            if let (State::Retryable, Some(Unsuccessful { kind, .. })) = (state, &unsuccessful) {
                metrics::RETRIES.add([kind.as_str()], 1);
            }
            let toolkit = unsuccessful.as_ref().map_or_else(|| bound_toolkit(&job), |end| end.toolkit(&job));
            applied(shared, &job, toolkit, state);
            if matches!(state, State::Failed | State::Held) {
                // The database may have refused to keep the answer of a call that succeeded.
                unsuccessful.unwrap_or(Unsuccessful::UNSTORABLE).tell(&job, state);
            } else {
                let duration_ms = millis(job.claimed_at.elapsed());
                tracing::debug!(state = %state, duration_ms, "attempt recorded");
            }
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

fn bound_toolkit(job: &RunningJob) -> Option<&str> {
    job.receipt.binding.as_ref().map(|binding| binding.toolkit.as_str())
}

fn applied(shared: &Shared, job: &RunningJob, toolkit: Option<&str>, state: State) {
    job.metrics.finished(toolkit, state.as_str());
    if state.is_final() {
        let took = shared.services.clock.now().duration_since(job.due_at).as_secs_f64().max(0.0);
        job.metrics.job_duration.record(took);
    }
    if !state.is_final() || job.spec.reply_to.is_some() {
        shared.services.relay_wake.notify_one();
    }
}
