//! Writing to the store until it has taken it. A write is repeated while the store is unavailable, and a batch that it
//! refuses for what it contains is halved until the refused item is alone, so that it does not hold up the others.

use std::{future::Future, sync::Arc};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    group_commit::Runner,
    shared::{Bound, Shared},
};
use crate::{
    backoff::RECONNECT,
    failure::chain,
    job::{ErrorKind, JobError, QueueName, Stop},
    store::{Bind, Finish, Finished, StoreError, StoreErrorKind},
    sync::lock,
    telemetry::metrics,
};

#[derive(Debug)]
pub(super) enum NotTaken {
    /// The database refuses what it contains.
    Refused(StoreError),
    /// Nobody waits for the store any more.
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Persist<'a> {
    pub(super) shared: &'a Shared,
    /// What the log says when a write fails.
    pub(super) failure: &'static str,
    /// The lane that takes no jobs while the write fails, and its stop, which ends the repetition.
    pub(super) lane: Option<(&'a QueueName, &'a CancellationToken)>,
    /// Whether also what the database refuses for what it contains is repeated.
    pub(super) even_refused: bool,
}

impl<'a> Persist<'a> {
    /// Repeats writes until the worker gives up.
    pub(super) fn new(shared: &'a Shared, failure: &'static str) -> Self {
        Self { shared, failure, lane: None, even_refused: false }
    }

    /// Repeats a write until the store takes it, refuses its content, or nobody waits any more. A lost answer does no harm.
    pub(super) async fn until_taken<R, F>(&self, write: impl Fn() -> F) -> Result<R, NotTaken>
    where
        F: Future<Output = Result<R, StoreError>>,
    {
        let mut failures = 0;
        loop {
            let written = self.shared.give_up.run_until_cancelled(write()).await.ok_or(NotTaken::GivenUp)?;
            let error = match written {
                Ok(answer) => {
                    self.shared.health.store_answered();
                    if failures > 0 {
                        self.set_taking(true);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
            if error.kind() == StoreErrorKind::Data && !self.even_refused {
                return Err(NotTaken::Refused(error));
            }
            failures += 1;
            // Heartbeats may still succeed, on a full disk for example, but no job is taken.
            self.set_taking(false);
            self.pause(failures, &error).await?;
        }
    }

    fn set_taking(&self, taking: bool) {
        if let Some((lane, _)) = self.lane {
            self.shared.health.set_taking(lane, taking);
        }
    }

    async fn pause(&self, failures: u32, error: &StoreError) -> Result<(), NotTaken> {
        let wait = RECONNECT.wait(failures, fastrand::f64());
        tracing::warn!(
            queue = self.lane.map(|(lane, _)| lane.as_str()),
            error = %chain(error),
            wait_ms = wait.as_millis(),
            "{}; trying again",
            self.failure
        );
        let give_up = &self.shared.give_up;
        let stop = self.lane.map_or(give_up, |(_, stop)| stop);
        let slept = stop.run_until_cancelled(give_up.run_until_cancelled(tokio::time::sleep(wait)));
        slept.await.flatten().ok_or(NotTaken::GivenUp)
    }
}

/// Writes a batch, which is halved as long as the database refuses it. `write` gives back what it was given, and answers
/// for an item that the database refuses by itself. Returns the items with their answers in order, and the items behind
/// them, which were not written because nobody waits any more.
pub(super) async fn bisect<T, A, F>(batch: Vec<T>, write: impl Fn(Vec<T>) -> F) -> (Vec<(T, A)>, Vec<T>)
where
    F: Future<Output = (Vec<T>, Result<Vec<A>, NotTaken>)>,
{
    let mut done = Vec::with_capacity(batch.len());
    let mut pieces = vec![batch];
    while let Some(piece) = pieces.pop() {
        if piece.is_empty() {
            continue;
        }
        let (mut piece, written) = write(piece).await;
        match written {
            Ok(answers) => done.extend(piece.into_iter().zip(answers)),
            Err(NotTaken::Refused(_)) if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                pieces.extend([rest, piece]);
            }
            Err(_) => {
                pieces.push(piece);
                break;
            }
        }
    }
    (done, pieces.into_iter().rev().flatten().collect())
}

/// Writes ended attempts in batches, and keeps for the journal what the store has not taken when the worker gives up.
pub(super) async fn run_finishes(shared: Arc<Shared>, runner: Runner<Finish, Finished>) {
    let shared = &*shared;
    let write = |batch: Vec<Finish>, backlog| async move {
        metrics::FINISH_BACKLOG.set([], backlog as f64);
        metrics::FINISH_BATCH.record([], batch.len() as f64);
        let started = Instant::now();
        let (written, left) = write_finishes(shared, batch).await;
        metrics::FINISH_DURATION.record([], started.elapsed().as_secs_f64());
        lock(&shared.unwritten).extend(left);
        written
    };
    runner.run(write).await;
}

/// Writes bindings in batches.
pub(super) async fn run_bindings(shared: Arc<Shared>, runner: Runner<Bind, Bound>) {
    let persist = &Persist::new(&shared, "bindings could not be written");
    let write = |batch: Vec<Bind>| async move {
        let written = persist.until_taken(|| persist.shared.services.store.bind(&batch)).await;
        let written = each(&batch, written);
        (batch, written)
    };
    let write_all = |batch, _| async move {
        let (done, _) = bisect(batch, write).await;
        done.into_iter().map(|(_, bound)| bound).collect()
    };
    runner.run(write_all).await;
}

/// The answers for each item of a batch: the refusal of one that is alone is one.
pub(super) fn each<T, A>(
    batch: &[T],
    written: Result<Vec<A>, NotTaken>,
) -> Result<Vec<Result<A, StoreError>>, NotTaken> {
    match written {
        Err(NotTaken::Refused(error)) if batch.len() == 1 => Ok(vec![Err(error)]),
        written => written.map(|answers| answers.into_iter().map(Ok).collect()),
    }
}

/// Writes a batch of ended attempts; one that the database refuses is recorded as a failure that says so. Returns as
/// [`bisect`] does.
pub(super) async fn write_finishes(shared: &Shared, batch: Vec<Finish>) -> (Vec<Finished>, Vec<Finish>) {
    let persist = &Persist::new(shared, "results could not be written");
    let write = |batch: Vec<Finish>| async move {
        let written = match (persist.until_taken(|| shared.services.store.finish(&batch)).await, &batch[..]) {
            (Err(NotTaken::Refused(error)), [finish]) => {
                unstorable(persist, finish, &error).await.map(|finished| vec![finished])
            }
            (written, _) => written,
        };
        (batch, written)
    };
    let (done, left) = bisect(batch, write).await;
    (done.into_iter().map(|(_, finished)| finished).collect(), left)
}

/// Records the end of an attempt whose answer the database refuses: without it, and then without the log ID too.
async fn unstorable(
    persist: &Persist<'_>,
    refused: &Finish,
    cause: &StoreError,
) -> Result<Finished, NotTaken> {
    let error = JobError::new(
        ErrorKind::Internal,
        format!(
            "the tool API answered, but the database refuses to keep the answer: {cause}; the tool may have run, so \
             look the answer up in the tool API's log before the job is enqueued anew"
        ),
    );
    let mut failed = [refused.clone()];
    failed[0].attempt.error = Some(error.clone());
    failed[0].ending = Stop::Fail { error }.into();
    for keeps_log_id in [true, false] {
        if !keeps_log_id {
            failed[0].attempt.log_id = None;
        }
        match persist.until_taken(|| persist.shared.services.store.finish(&failed)).await {
            Ok(written) => return written.into_iter().next().ok_or(NotTaken::GivenUp),
            Err(NotTaken::GivenUp) => return Err(NotTaken::GivenUp),
            Err(NotTaken::Refused(_)) => {}
        }
    }
    tracing::error!(
        job.id = %refused.id, error = %chain(cause),
        "the database refuses even to record that this job failed, so it stays as it is until an audit \
         reports it; compare its rules with the migrations"
    );
    // The job is not changed and nobody holds it here, which is what this answer means. The others go on.
    Ok(Finished::Fenced)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is answered comes first and in order, each item once, and only a refused item is told so.
        #[test]
        fn every_item_is_answered_or_left_in_order(batch in prop::collection::vec(0u8..4, 0..40), writes in 0usize..60) {
            // Refuses batches with a 0 in them, and takes no more writes than given.
            let writes = &Cell::new(writes);
            let write = |batch: Vec<u8>| async move {
                let written = match writes.get().checked_sub(1) {
                    None => Err(NotTaken::GivenUp),
                    Some(rest) => {
                        writes.set(rest);
                        let refused = || NotTaken::Refused(StoreError::new(StoreErrorKind::Data, "no"));
                        if batch.contains(&0) { Err(refused()) } else { Ok(batch.clone()) }
                    }
                };
                let answers = each(&batch, written);
                (batch, answers)
            };
            let (done, left) = bisect(batch.clone(), write).now_or_never().unwrap();
            for (item, answer) in &done {
                prop_assert_eq!(answer.as_ref().ok(), Some(item).filter(|item| **item != 0));
            }
            let gave_up = writes.get() == 0;
            prop_assert!(left.is_empty() || gave_up);
            let all: Vec<u8> = done.into_iter().map(|(item, _)| item).chain(left).collect();
            prop_assert_eq!(all, batch);
        }
    }
}
