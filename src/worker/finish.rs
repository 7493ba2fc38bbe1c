//! The writers behind [`super::batch`]: ended attempts and frozen decisions, written in batches until
//! the store has taken them. Ended attempts that it has not taken when the worker gives up are kept for
//! the journal.

use std::{future::Future, sync::Arc};

use super::{Shared, batch::Runner};
use crate::{
    backoff::RECONNECT,
    job::{Ending, ErrorKind, JobError},
    store::{Finish, Finished, Freeze, StoreError, StoreErrorKind},
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

/// Writes frozen decisions. One that the database refuses counts as fenced: nothing is sent, and
/// the job is rescued.
pub(super) async fn run_freezer(shared: Arc<Shared>, runner: Runner<Freeze, bool>) {
    runner
        .run(|batch, _| {
            let shared = shared.clone();
            async move {
                let store = &shared.deps.store;
                match until_taken(&shared, || store.freeze(&batch)).await {
                    Ok(answers) => answers,
                    Err(Refused::Data(_)) => vec![false; batch.len()],
                    Err(Refused::GivenUp) => Vec::new(),
                }
            }
        })
        .await;
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

async fn write_unstorable(shared: &Shared, refused: &[Finish], cause: &StoreError) -> Option<Vec<Finished>> {
    let error = JobError::new(
        ErrorKind::Internal,
        format!("the tool answered, but the database refuses to keep the answer: {cause}"),
    );
    let mut failed = refused.to_vec();
    for finish in &mut failed {
        finish.attempt.error = Some(error.clone());
        finish.attempt.log_id = None;
        finish.ending = Ending::Fail { error: error.clone() };
    }
    let store = &shared.deps.store;
    until_taken(shared, || store.finish(&failed)).await.ok()
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
            Err(error) if error.kind() == StoreErrorKind::Data => return Err(Refused::Data(error)),
            Err(error) => {
                metrics::STORE_ERRORS.add1(error.kind().as_str(), 1);
                failures += 1;
                let wait = RECONNECT.wait(failures, fastrand::f64());
                tracing::warn!(%error, wait_ms = wait.as_millis(), "results could not be written; trying again");
                tokio::select! {
                    biased;
                    () = shared.give_up.cancelled() => return Err(Refused::GivenUp),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}
