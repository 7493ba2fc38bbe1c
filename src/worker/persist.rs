//! Writing to the store until it has taken it. A write is repeated while the store is unavailable. A batch that it refuses
//! for what it contains, or that fails again and again while it takes others, is halved until the item that it is about
//! is alone, so that one bad item costs itself only. Jobs that somebody has locked are left out at once.

use std::{
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    group_commit::Runner,
    shared::{Bound, Recorded, Shared},
};
use crate::{
    backoff::RECONNECT,
    bounds::MAX_BATCH_BYTES,
    clock::millis,
    failure::chain,
    job::{Ending, ErrorKind, JobError, JobId, QueueName, Stop},
    store::{Bind, Finish, Finished, StoreError, StoreErrorKind},
    sync::lock,
    telemetry::metrics,
};

/// After so many failures in a row, while the store answers others, the cause may be in the batch.
const TRIES: u32 = 3;

/// Parts into which a batch is cut that fails. They are tried once each, because each try may take as long as a statement
/// may, and the others wait.
const PARTS: usize = 8;

#[derive(Debug)]
pub(super) enum NotTaken {
    /// The database refuses what it contains.
    Refused(StoreError),
    /// It failed several times in a row while the store answered others.
    Failing,
    /// Other sessions have locked the jobs at these places of the batch.
    Locked(Vec<usize>),
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
    /// Whether also what fails while others do not is repeated.
    pub(super) even_failing: bool,
    /// Failures in a row before that is looked at.
    pub(super) tries: u32,
    /// The jobs that are written, in their order, of which others may have locked some. Empty where that is not looked at.
    pub(super) jobs: &'a [JobId],
    /// Set when a try of this write had no answer: it may still be under way and have locked the jobs itself, so that none
    /// counts as locked by others. `None` where an item that was left out may be written again as it is.
    pub(super) unanswered: Option<&'a AtomicBool>,
}

impl<'a> Persist<'a> {
    /// Repeats writes until the worker gives up.
    pub(super) fn new(shared: &'a Shared, failure: &'static str) -> Self {
        let (even_refused, even_failing) = (false, false);
        let (lane, jobs, unanswered) = (None, &[], None);
        Self { shared, failure, lane, even_refused, even_failing, tries: TRIES, jobs, unanswered }
    }

    /// The same with so many tries.
    pub(super) fn trying(&self, tries: u32) -> Self {
        Self { tries, ..*self }
    }

    /// The same for writes that change these jobs.
    pub(super) fn of<'b>(&self, jobs: &'b [JobId]) -> Persist<'b>
    where
        'a: 'b,
    {
        Persist { jobs, ..*self }
    }

    /// Repeats a write until the store takes it, refuses its content, or nobody waits any more. A lost answer does no harm.
    pub(super) async fn until_taken<R, F>(&self, write: impl Fn() -> F) -> Result<R, NotTaken>
    where
        F: Future<Output = Result<R, StoreError>>,
    {
        let (begun, mut failures) = (Instant::now(), 0);
        let give_up = &self.shared.give_up;
        loop {
            let attempt = async {
                let _turn = if self.even_failing { Some(self.shared.alone.lock().await) } else { None };
                try_once(&write).await
            };
            let error = match give_up.run_until_cancelled(attempt).await {
                None => return Err(NotTaken::GivenUp),
                Some(Ok(answer)) => {
                    self.shared.health.store_answered();
                    if failures > 0 {
                        self.goes_on();
                    }
                    return Ok(answer);
                }
                Some(Err(error)) => error,
            };
            metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
            if error.kind() == StoreErrorKind::Data && !self.even_refused {
                if failures > 0 {
                    self.goes_on();
                }
                return Err(NotTaken::Refused(error));
            }
            if let Some(unanswered) = self.unanswered
                && error.is_unanswered()
            {
                unanswered.store(true, Ordering::Relaxed);
            }
            let locked = match error.kind() {
                StoreErrorKind::Locked => give_up.run_until_cancelled(self.locked()).await.flatten(),
                _ => Some(Vec::new()),
            };
            // Where all are locked, or nobody knows by whom, no batch gets through.
            let gets_through = locked.is_some();
            if let Some(places) = locked.filter(|places| !places.is_empty()) {
                tracing::warn!(error = %chain(&error), jobs = places.len(), "{}: others have locked jobs", self.failure);
                if failures > 0 {
                    self.goes_on();
                }
                return Err(NotTaken::Locked(places));
            }
            failures += 1;
            // Heartbeats may still succeed, on a full disk for example, but no job is taken.
            self.tell(Err(chain(&error)));
            self.pause(failures, &error).await?;
            let others_do_not =
                failures >= self.tries && self.shared.health.store_answered_since(begun) && gets_through;
            if others_do_not && !self.even_failing {
                self.goes_on();
                return Err(NotTaken::Failing);
            }
        }
    }

    /// The places of the jobs that others have locked; `None` where that cannot be told, because the table is locked or an
    /// earlier try may have locked them.
    async fn locked(&self) -> Option<Vec<usize>> {
        if self.jobs.is_empty() {
            return Some(Vec::new());
        }
        if self.unanswered.is_some_and(|unanswered| unanswered.load(Ordering::Relaxed)) {
            return None;
        }
        let locked = self.shared.services.store.locked(self.jobs).await.ok()?;
        let places = self.jobs.iter().enumerate().filter(|(_, id)| locked.contains(id));
        Some(places.map(|(place, _)| place).collect())
    }

    fn goes_on(&self) {
        self.tell(Ok(()));
    }

    /// Tells readiness whether the write goes through.
    fn tell(&self, taken: Result<(), String>) {
        let health = &self.shared.health;
        match (self.lane, taken) {
            (Some((lane, _)), Ok(())) => _ = health.takes(lane),
            (Some((lane, _)), Err(why)) => health.takes_none(lane, Some(why)),
            (None, _) if self.even_failing => {}
            (None, taken) => health.set_writing(taken),
        }
    }

    async fn pause(&self, failures: u32, error: &StoreError) -> Result<(), NotTaken> {
        let wait = RECONNECT.wait(failures, fastrand::f64());
        tracing::warn!(
            queue = self.lane.map(|(lane, _)| lane.as_str()),
            error = %chain(error),
            wait_ms = millis(wait),
            "{}; trying again",
            self.failure
        );
        let give_up = &self.shared.give_up;
        let stop = self.lane.map_or(give_up, |(_, stop)| stop);
        let slept = stop.run_until_cancelled(give_up.run_until_cancelled(tokio::time::sleep(wait)));
        slept.await.flatten().ok_or(NotTaken::GivenUp)
    }
}

/// A write that panics has failed like any other, so that a bug that one item brings out harms that item only.
async fn try_once<R, F>(write: impl Fn() -> F) -> Result<R, StoreError>
where
    F: Future<Output = Result<R, StoreError>>,
{
    AssertUnwindSafe(async { write().await }).catch_unwind().await.unwrap_or_else(|_| {
        metrics::PANICS.add([], 1);
        tracing::error!("a write to the store panicked");
        Err(StoreError::new(StoreErrorKind::Corrupt, "a bug in errand, which its log shows: report it"))
    })
}

/// What was not written of a batch, each item with its place in it, in order.
pub(super) struct Unwritten<T> {
    /// Each of them fails by itself while the store answers others.
    pub(super) failing: Vec<(usize, T)>,
    /// They were not written, or nobody knows, because nobody waits any more.
    pub(super) left: Vec<(usize, T)>,
}

/// Writes a batch, in pieces that are neither too large nor refused. `bytes` is what an item weighs; `write` is given a
/// piece and how often to try, gives back what it was given, and answers for an item that the database refuses by itself.
/// A piece that fails goes behind the others, so that it does not hold them up. `done` is told each answer at once.
pub(super) async fn bisect<T, A, F>(
    batch: Vec<T>,
    bytes: impl Fn(&T) -> usize,
    write: impl Fn(Vec<T>, u32) -> F,
    mut done: impl FnMut(usize, T, A),
) -> Unwritten<T>
where
    F: Future<Output = (Vec<T>, Result<Vec<A>, NotTaken>)>,
{
    let (mut failing, mut left) = (Vec::new(), Vec::new());
    let mut pieces: VecDeque<_> = split(batch, bytes).into_iter().map(|piece| (piece, TRIES)).collect();
    while let Some(((place, piece), tries)) = pieces.pop_front() {
        let (piece, written) = write(piece, tries).await;
        match written {
            Ok(answers) => {
                for ((place, item), answer) in numbered(place, piece).zip(answers) {
                    done(place, item, answer);
                }
            }
            Err(NotTaken::Refused(_)) if piece.len() > 1 => {
                pieces.extend(parts(place, piece, 2).into_iter().map(|part| (part, tries)));
            }
            Err(NotTaken::Failing) if piece.len() > 1 => {
                pieces.extend(parts(place, piece, PARTS).into_iter().map(|part| (part, 1)));
            }
            Err(NotTaken::Failing | NotTaken::Refused(_)) => failing.extend(numbered(place, piece)),
            Err(NotTaken::Locked(locked)) => {
                let (free, locked) = without(place, piece, &locked);
                failing.extend(locked);
                pieces.extend(free.into_iter().map(|piece| (piece, tries)));
            }
            Err(NotTaken::GivenUp) => {
                left.extend(numbered(place, piece));
                left.extend(pieces.drain(..).flat_map(|((place, piece), _)| numbered(place, piece)));
            }
        }
    }
    failing.sort_by_key(|(place, _)| *place);
    left.sort_by_key(|(place, _)| *place);
    Unwritten { failing, left }
}

/// Items of a batch that are written together, with the place of the first.
type Piece<T> = (usize, Vec<T>);

/// Cuts a piece into so many parts, or into its items if it has fewer.
fn parts<T>(place: usize, piece: Vec<T>, parts: usize) -> Vec<Piece<T>> {
    let most = piece.len().div_ceil(parts);
    let mut rest = piece.into_iter();
    let mut cut = Vec::with_capacity(parts);
    let mut next = place;
    loop {
        let part: Vec<T> = rest.by_ref().take(most).collect();
        if part.is_empty() {
            return cut;
        }
        let first = next;
        next += part.len();
        cut.push((first, part));
    }
}

/// Cuts a batch into pieces of up to [`MAX_BATCH_BYTES`], or of one item, each with the place of its first item.
pub(super) fn split<T>(batch: Vec<T>, bytes: impl Fn(&T) -> usize) -> Vec<Piece<T>> {
    let mut pieces = Vec::new();
    let (mut piece, mut first, mut size) = (Vec::new(), 0, 0_usize);
    for (place, item) in batch.into_iter().enumerate() {
        let weight = bytes(&item);
        if !piece.is_empty() && size.saturating_add(weight) > MAX_BATCH_BYTES {
            pieces.push((first, std::mem::take(&mut piece)));
            (first, size) = (place, 0);
        }
        size = size.saturating_add(weight);
        piece.push(item);
    }
    if !piece.is_empty() {
        pieces.push((first, piece));
    }
    pieces
}

/// Takes the items at these places out of a piece. Returns what is between them, and them.
fn without<T>(place: usize, piece: Vec<T>, taken: &[usize]) -> (Vec<Piece<T>>, Vec<(usize, T)>) {
    let (mut between, mut out): (Vec<Piece<T>>, _) = (Vec::new(), Vec::new());
    for (index, item) in piece.into_iter().enumerate() {
        let number = place + index;
        match between.last_mut() {
            _ if taken.contains(&index) => out.push((number, item)),
            Some((first, run)) if *first + run.len() == number => run.push(item),
            _ => between.push((number, vec![item])),
        }
    }
    (between, out)
}

fn numbered<T>(first: usize, items: Vec<T>) -> impl Iterator<Item = (usize, T)> {
    items.into_iter().enumerate().map(move |(place, item)| (first + place, item))
}

/// What the end of an attempt weighs in a write, in bytes.
pub(super) fn finish_bytes(finish: &Finish) -> usize {
    match &finish.ending {
        Ending::Succeed { result } => result.get().len(),
        Ending::Stop(_) | Ending::Retry { .. } | Ending::Snooze { .. } | Ending::Verify { .. } => 0,
    }
}

/// Writes ended attempts in batches, and keeps for the journal what the store has not taken when the worker gives up.
pub(super) async fn run_finishes(shared: Arc<Shared>, runner: Runner<Finish, Recorded>) {
    let shared = &*shared;
    let write = |batch: Vec<Finish>, backlog| async move {
        metrics::FINISH_BACKLOG.set([], backlog as f64);
        metrics::FINISH_BATCH.record([], batch.len() as f64);
        let started = Instant::now();
        let mut answers: Vec<Option<Recorded>> = batch.iter().map(|_| None).collect();
        let done = |place: usize, finished| answers[place] = Some(Recorded::Done(finished));
        let Unwritten { failing, left } = write_finishes(shared, batch, done).await;
        metrics::FINISH_DURATION.record([], started.elapsed().as_secs_f64());
        for (place, finish) in failing {
            answers[place] = Some(Recorded::NotWithOthers(Box::new(finish)));
        }
        lock(&shared.unwritten).extend(left.into_iter().map(|(_, finish)| finish));
        answers
    };
    runner.run(write).await;
}

/// Writes bindings in batches.
pub(super) async fn run_bindings(shared: Arc<Shared>, runner: Runner<Bind, Bound>) {
    let persist = &Persist::new(&shared, "bindings could not be written");
    let write = |batch: Vec<Bind>, tries| async move {
        let jobs: Vec<JobId> = batch.iter().map(|bind| bind.id).collect();
        let bind = || persist.shared.services.store.bind(&batch);
        let written = persist.trying(tries).of(&jobs).until_taken(bind).await;
        let written = each(&batch, written);
        (batch, written)
    };
    let write_all = |batch: Vec<Bind>, _| async move {
        let mut answers: Vec<Option<Bound>> = batch.iter().map(|_| None).collect();
        bisect(batch, |_| 0, write, |place, _, bound| answers[place] = Some(bound)).await;
        answers
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

/// Writes a batch of ended attempts; one that the database refuses is recorded as a failure that says so.
pub(super) async fn write_finishes(
    shared: &Shared,
    batch: Vec<Finish>,
    mut done: impl FnMut(usize, Finished),
) -> Unwritten<Finish> {
    let persist = &Persist::new(shared, "results could not be written");
    let write = |batch: Vec<Finish>, tries| async move {
        let jobs: Vec<JobId> = batch.iter().map(|finish| finish.id).collect();
        // One that is alone has failed by itself already, and may be large; the results of others wait.
        let tries = if batch.len() == 1 { 1 } else { tries };
        let written = write_piece(&persist.trying(tries).of(&jobs), &batch).await;
        (batch, written)
    };
    bisect(batch, finish_bytes, write, |place, _, finished| done(place, finished)).await
}

/// Writes one ended attempt by itself until the store takes it; `None` when the worker gave up. All of these take turns,
/// because each try may keep a connection for as long as a statement may take.
pub(super) async fn write_alone(shared: &Shared, finish: &Finish) -> Option<Finished> {
    let persist = Persist { even_failing: true, ..Persist::new(shared, "a result could not be written") };
    write_piece(&persist, std::slice::from_ref(finish)).await.ok()?.into_iter().next()
}

async fn write_piece(persist: &Persist<'_>, piece: &[Finish]) -> Result<Vec<Finished>, NotTaken> {
    match (persist.until_taken(|| persist.shared.services.store.finish(piece)).await, piece) {
        (Err(NotTaken::Refused(error)), [finish]) => {
            unstorable(persist, finish, &error).await.map(|finished| vec![finished])
        }
        (written, _) => written,
    }
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
            Err(NotTaken::Refused(_)) => {}
            Err(not_taken) => return Err(not_taken),
        }
    }
    tracing::error!(
        job.id = %refused.id, error = %chain(cause),
        "the database refuses even to record that this job failed, so it stays as it is; compare its rules \
         with the migrations"
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
        /// Each item is answered once and in order, is known to fail by itself, or is left when nobody waits any more.
        #[test]
        fn every_item_has_one_end(batch in prop::collection::vec(0u8..5, 0..40), writes in 0usize..60) {
            // Refuses batches with a 0 in them, fails those with a 1, and takes no more writes than given. A 2 is large, and
            // a 4 locked.
            let bytes = |item: &u8| if *item == 2 { MAX_BATCH_BYTES } else { 10 };
            let writes = &Cell::new(writes);
            let write = |batch: Vec<u8>, _| async move {
                let written = match writes.get().checked_sub(1) {
                    None => Err(NotTaken::GivenUp),
                    Some(rest) => {
                        writes.set(rest);
                        let refused = || NotTaken::Refused(StoreError::new(StoreErrorKind::Data, "no"));
                        assert!(batch.len() == 1 || batch.iter().map(bytes).sum::<usize>() <= MAX_BATCH_BYTES);
                        let locked: Vec<_> = (0..batch.len()).filter(|place| batch[*place] == 4).collect();
                        match batch.iter().min() {
                            _ if !locked.is_empty() => Err(NotTaken::Locked(locked)),
                            Some(0) => Err(refused()),
                            Some(1) => Err(NotTaken::Failing),
                            _ => Ok(batch.clone()),
                        }
                    }
                };
                let answers = each(&batch, written);
                (batch, answers)
            };
            let mut done = Vec::new();
            let told = |place, item, answer| done.push((place, item, answer));
            let Unwritten { failing, left } = bisect(batch.clone(), bytes, write, told).now_or_never().unwrap();
            for (_, item, answer) in &done {
                prop_assert_eq!(answer.as_ref().ok(), Some(item).filter(|item| **item != 0));
            }
            prop_assert!(failing.iter().all(|(_, item)| matches!(item, 1 | 4)));
            prop_assert!(left.is_empty() || writes.get() == 0);
            let done = done.into_iter().map(|(place, item, _)| (place, item));
            let mut all: Vec<(usize, u8)> = done.chain(failing).chain(left).collect();
            all.sort_unstable();
            prop_assert_eq!(all, batch.into_iter().enumerate().collect::<Vec<_>>());
        }
    }
}
