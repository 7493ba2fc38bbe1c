//! The end of a worker, in phases: intake, then calls, then waiting for the store, then the journal. Each keeps
//! to the countdown of the shutdown.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use tokio::{task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;

use super::{journal, shared::Shared};
use crate::{failure::chain, health::Phase, job::JobId, shutdown::Countdown, sync::lock};

/// How long a worker with nothing in flight tries to say so. Others forget it in time all the same.
const RETIRE: Duration = Duration::from_secs(2);

/// Ends everything that runs, in order: intake, then calls, then waiting for the store.
pub(super) async fn drain(shared: &Shared, countdown: &mut Countdown, lanes: &TaskTracker) {
    let _set_once = shared.drain_until.set(countdown.times().drain_until);
    enter(shared, Phase::Draining);
    // A claim that is being written still starts its jobs, so lanes end before the count of tasks means anything.
    let all_ended = || async {
        lanes.wait().await;
        shared.tasks.close();
        shared.tasks.wait().await;
    };
    if countdown.within(|times| times.drain_until, all_ended()).await.is_some() {
        return;
    }
    enter(shared, Phase::Interrupting);
    shared.interrupt.cancel();
    if countdown.within(|times| times.write_until, all_ended()).await.is_some() {
        return;
    }
    // Nothing waits for a service any more, so that this takes a moment at most.
    shared.give_up.cancel();
    if countdown.within(|times| times.end, all_ended()).await.is_none() {
        tracing::error!("some tasks do not end and are left as they are");
    }
}

/// Waits for a writer whose submitting side is closed.
pub(super) async fn writer_ended(countdown: &mut Countdown, writer: JoinHandle<()>) {
    match countdown.within(|times| times.end, writer).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::error!(error = %chain(&error), "a part of the worker ended abnormally"),
        None => tracing::error!("a part of the worker does not end and is left as it is"),
    }
}

/// Puts what the store did not take into the journal, and takes it off the list `left`; returns how much it is.
pub(super) async fn journal(shared: &Shared, countdown: &mut Countdown, left: &mut Vec<JobId>) -> usize {
    let unwritten = std::mem::take(&mut *lock(&shared.unwritten));
    if unwritten.is_empty() {
        return 0;
    }
    enter(shared, Phase::Journaling);
    let ids: HashSet<JobId> = unwritten.iter().map(|finish| finish.id).collect();
    let results = unwritten.len();
    let written = countdown.within(|times| times.end, journal::write(shared, unwritten)).await;
    match written.unwrap_or_else(|| Err("the disk takes too long".to_owned())) {
        Ok(file) => {
            left.retain(|id| !ids.contains(id));
            tracing::warn!(
                file = %file.display(), results,
                "the store did not take these results, so they are journaled; the next worker that starts with \
                 this folder writes them"
            );
            results
        }
        Err(why) => {
            tracing::error!(error = %why, results, "results could not be journaled and are left to the rescue");
            0
        }
    }
}

/// Removes the heartbeat row of a worker with nothing in flight.
pub(super) async fn retire(shared: &Shared, countdown: &mut Countdown, heartbeat: JoinHandle<()>) {
    let begun = Instant::now();
    let retire = async {
        // A beat that is under way would bring the row back.
        let _ended = heartbeat.await;
        shared.services.store.retire(shared.options.id).await
    };
    let retired = countdown.within(|times| times.end.min(begun + RETIRE), retire).await;
    let why = match retired {
        Some(Ok(())) => return,
        Some(Err(error)) => chain(&error),
        None => format!("{}: no answer in time", shared.services.store.address()),
    };
    tracing::warn!(
        error = why,
        "the worker's heartbeat row could not be removed; it will be forgotten later"
    );
}

fn enter(shared: &Shared, phase: Phase) {
    shared.health.enter(phase);
    let what = match phase {
        Phase::Interrupting => "calls that do not end in time are interrupted",
        Phase::Journaling => "results that the store has not taken go to the journal",
        _ => "no more jobs are taken, and running calls go on",
    };
    tracing::info!(
        phase = phase.as_str(),
        in_flight = shared.in_flight.len(),
        unwritten = shared.waiting.load(Ordering::Relaxed),
        "shutting down: {what}"
    );
}
