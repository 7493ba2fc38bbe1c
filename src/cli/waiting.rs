//! Since when a job waits, and for what, as far as `errand jobs show` can tell without asking much.

use std::time::Duration;

use jiff::Timestamp;

use super::{jobs::ToldJob, output, setup::Setup};
use crate::{
    app,
    failure::chain,
    job::{ErrorKind, QueueName, State},
    store::{PausedQueue, SharedStore},
};

/// How long the broker may take to tell how a lane is.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the message of a job was published that a worker has made known, and, while the job waits to run, since when it is
/// due and when it is published.
pub(super) fn lines(job: &ToldJob, now: Timestamp) -> Vec<(&'static str, Option<String>)> {
    let enqueued = job.more.first_due_at.filter(|due| *due < job.summary.created_at);
    let mut lines = vec![("enqueued", enqueued.map(output::moment))];
    if let Some(next) = job.more.due_at {
        let due = job.more.first_due_at.unwrap_or(next);
        let waited: Duration = now.duration_since(due).try_into().unwrap_or_default();
        let ago = if waited.is_zero() { String::new() } else { format!(", {} ago", span(waited)) };
        lines.push(("due", Some(format!("{}{ago}", output::moment(due)))));
        lines.push(("published", Some(published(job, next, now))));
    }
    lines
}

fn published(job: &ToldJob, next: Timestamp, now: Timestamp) -> String {
    let is_waiting = job.state() != State::Available;
    let next = if next <= now {
        "as soon as the relay of a worker finds it".to_owned()
    } else if is_waiting {
        format!("not before {}", output::moment(next))
    } else {
        format!("at {}", output::moment(next))
    };
    match job.more.publications {
        _ if is_waiting => next,
        0 => format!("not yet; {next}"),
        times => {
            format!(
                "offered to the broker {}; again {next}, unless a worker takes it before",
                output::count(times.into(), "time", "times")
            )
        }
    }
}

/// For what a job waits that should run by now, or that was postponed; `None` where that cannot be told.
pub(super) async fn why(job: &ToldJob, now: Timestamp, store: &SharedStore, setup: &Setup) -> Option<String> {
    let next = job.more.due_at?;
    // What is said beside the answer must not keep it.
    let paused = store.paused_queues().await.unwrap_or_default();
    if let Some(PausedQueue { queue, pause }) =
        paused.iter().find(|paused| paused.queue.as_str() == job.queue())
    {
        return Some(format!(
            "the queue {queue}, which is {pause}; `errand queues resume {queue}` lets it go on"
        ));
    }
    if job.state() != State::Available && next > now {
        return postponed(job, now).map(str::to_owned);
    }
    if !setup.config().uses_broker() {
        return None;
    }
    let lane: QueueName = job.queue().parse().ok()?;
    let asked = tokio::time::timeout(PATIENCE, broker(&lane, setup)).await;
    Some(
        asked
            .unwrap_or_else(|_| format!("the broker, which does not answer within {} s", PATIENCE.as_secs())),
    )
}

/// Why a job waits for another attempt that was due before.
fn postponed(job: &ToldJob, now: Timestamp) -> Option<&'static str> {
    if job.state() != State::Retryable || job.more.first_due_at.is_none_or(|due| due > now) {
        return None;
    }
    Some(match job.error()?.kind() {
        ErrorKind::NotSent => "the tool API, which did not answer before a call was made",
        ErrorKind::Throttled => "the tool API, which limits how often it is called",
        _ => "its next attempt, because the last one was postponed",
    })
}

/// How the lane of a job is.
async fn broker(lane: &QueueName, setup: &Setup) -> String {
    let queue = match app::open_queue(setup.config()) {
        Ok(queue) => queue,
        Err(error) => return format!("the broker, which cannot be used: {}", chain(&*error)),
    };
    let told = match queue.depth(lane).await {
        Ok(depth) => {
            let messages = output::count(depth.ready, "message waits", "messages wait");
            match depth.consumers {
                0 => format!(
                    "a worker that consumes the lane {lane}: {messages} there, and nobody takes any: none \
                     consumes it, or all have their slots busy (`errand workers`)"
                ),
                some => format!(
                    "a worker of the lane {lane}: {messages} there, with {}",
                    output::count(some, "consumer", "consumers")
                ),
            }
        }
        Err(error) => format!("the broker, which cannot be asked: {}", chain(&error)),
    };
    queue.close().await;
    told
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
