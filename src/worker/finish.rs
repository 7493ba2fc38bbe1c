//! The writers behind [`super::group_commit`]: ended attempts and frozen decisions, written in batches until
//! the store has taken them. Ended attempts that it has not taken when the worker gives up are kept for
//! the journal.

use std::{future::Future, sync::Arc};

use super::{Shared, group_commit::Runner};
use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::{ErrorKind, JobError, Stop},
    store::{Bind, Finish, Finished, StoreError, StoreErrorKind},
    telemetry::metrics,
};

/// Writes ended attempts.
pub(super) async fn run(shared: Arc<Shared>, runner: Runner<Finish, Finished>) {
    runner
        .run(|batch, backlog| {
            let shared = shared.clone();
            async move {
                metrics::FINISH_BACKLOG.set(backlog as f64);
                metrics::FINISH_BATCH.record(batch.len() as f64);
                let started = tokio::time::Instant::now();
                let (written, left) = write_finishes(&shared, batch).await;
                metrics::FINISH_DURATION.record(started.elapsed().as_secs_f64());
                shared.keep_unwritten(left);
                written
            }
        })
        .await;
}

/// What became of a frozen decision.
#[derive(Debug)]
pub(super) enum BindOutcome {
    /// It is recorded.
    Done,
    /// Somebody else holds the job.
    Fenced,
    /// The database refuses what it contains, and says this about it.
    Refused(String),
}

/// Writes frozen decisions. One that the database refuses is told so, and the others are written without it.
pub(super) async fn run_binder(shared: Arc<Shared>, runner: Runner<Bind, BindOutcome>) {
    runner
        .run(|batch, _| {
            let shared = shared.clone();
            async move { write_bindings(&shared, batch).await }
        })
        .await;
}

/// Returns the answers in order; items behind them were not written because the worker gave up.
async fn write_bindings(shared: &Shared, batch: Vec<Bind>) -> Vec<BindOutcome> {
    let store = &shared.deps.store;
    let mut answers = Vec::with_capacity(batch.len());
    let mut pieces = vec![batch];
    while let Some(mut piece) = pieces.pop() {
        match until_taken(shared, || store.bind(&piece)).await {
            Ok(written) => answers.extend(
                written.into_iter().map(|done| if done { BindOutcome::Done } else { BindOutcome::Fenced }),
            ),
            Err(Refused::Data(_)) if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                pieces.extend([rest, piece]);
            }
            Err(Refused::Data(error)) => answers.push(BindOutcome::Refused(error.to_string())),
            Err(Refused::GivenUp) => break,
        }
    }
    answers
}

/// Writes a batch of ended attempts; an item that the database refuses for what it contains is
/// recorded as a failure that says so, so that the rest is not held up. Returns the answers in order,
/// and the items behind them, which were not written because the worker gave up.
pub(super) async fn write_finishes(shared: &Shared, batch: Vec<Finish>) -> (Vec<Finished>, Vec<Finish>) {
    let store = &shared.deps.store;
    let mut answers = Vec::with_capacity(batch.len());
    let mut pieces = vec![batch];
    while let Some(mut piece) = pieces.pop() {
        let written = match until_taken(shared, || store.finish(&piece)).await {
            Ok(written) => Some(written),
            Err(Refused::Data(_)) if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                pieces.extend([rest, piece]);
                continue;
            }
            Err(Refused::Data(error)) => write_unstorable(shared, &piece, &error).await,
            Err(Refused::GivenUp) => None,
        };
        let Some(written) = written else {
            pieces.push(piece);
            break;
        };
        answers.extend(written);
    }
    (answers, pieces.into_iter().rev().flatten().collect())
}

/// Records the end of an attempt whose answer the database refuses: without the answer, and then without
/// the log ID too. `None` when the worker gave up.
async fn write_unstorable(shared: &Shared, refused: &[Finish], cause: &StoreError) -> Option<Vec<Finished>> {
    let error = JobError::new(
        ErrorKind::Internal,
        format!(
            "the tool API answered, but the database refuses to keep the answer: {cause}; the tool may have run, so \
             look the answer up in the tool API's log before the job is enqueued anew"
        ),
    );
    let mut failed = refused.to_vec();
    for finish in &mut failed {
        finish.attempt.error = Some(error.clone());
        finish.ending = Stop::Fail { error: error.clone() }.into();
    }
    let store = &shared.deps.store;
    for keeps_log_id in [true, false] {
        if !keeps_log_id {
            failed.iter_mut().for_each(|finish| finish.attempt.log_id = None);
        }
        match until_taken(shared, || store.finish(&failed)).await {
            Ok(written) => return Some(written),
            Err(Refused::GivenUp) => return None,
            Err(Refused::Data(_)) => {}
        }
    }
    for finish in refused {
        tracing::error!(
            job.id = %finish.id, error = %chain(cause),
            "the database refuses even to record that this job failed, so it stays as it is until an audit \
             reports it; compare its rules with the migrations"
        );
    }
    // The job is not changed and nobody holds it here, which is what this answer means. The others go on.
    Some(vec![Finished::Fenced; refused.len()])
}

pub(super) enum Refused {
    /// The database refuses the content.
    Data(StoreError),
    /// The worker stopped waiting.
    GivenUp,
}

/// Repeats a write until the store takes it, refuses its content, or the worker gives up. Every
/// batch may be repeated as it is, so a lost answer does no harm.
pub(super) async fn until_taken<'a, R, F>(shared: &Shared, write: impl Fn() -> F) -> Result<R, Refused>
where
    F: Future<Output = Result<R, StoreError>> + 'a,
{
    let mut failures = 0;
    loop {
        let written = tokio::select! {
            biased;
            () = shared.give_up.cancelled() => return Err(Refused::GivenUp),
            written = write() => written,
        };
        match written {
            Ok(answer) => {
                shared.health.store_answered();
                return Ok(answer);
            }
            Err(error) if error.kind() == StoreErrorKind::Data => {
                metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                return Err(Refused::Data(error));
            }
            Err(error) => {
                metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                failures += 1;
                let wait = RECONNECT.wait(failures, fastrand::f64());
                tracing::warn!(error = %chain(&error), wait_ms = wait.as_millis(), "results could not be written; trying again");
                tokio::select! {
                    biased;
                    () = shared.give_up.cancelled() => return Err(Refused::GivenUp),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}
