//! One who follows events: first what was missed, then what happens.

use std::{collections::VecDeque, convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, Sse},
    },
};
use futures_util::{FutureExt as _, stream};
use jiff::Timestamp;
use tokio::{
    sync::mpsc::error::TryRecvError,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    caller::Admitted,
    connections::Asking,
    limits::Taken,
    problem::{Kind, Problem},
    sealing::{Cursors, Seals},
    streams::{Joined, Streams},
};
use crate::{
    job::Principal,
    store::{Event, EventKind, EventsAfter, EventsOf, Result},
    telemetry::metrics,
};

/// Most events that are read together of what was missed.
const PAGE: usize = 100;

/// How long a stream is silent at most: what stands between ends connections on which nothing passes for a minute or so.
const SILENCE: Duration = Duration::from_secs(15);

/// How long a store that is away is left in peace.
const AGAIN: Duration = Duration::from_secs(1);

/// Somebody who follows.
struct Follower {
    streams: Arc<Streams>,
    seals: Arc<Seals>,
    whose: Principal,
    of: EventsOf,
    cursors: Cursors,
    /// `None` where it has to begin anew.
    joined: Option<Joined>,
    /// Whether something happened that is neither read nor in the channel.
    missed: bool,
    /// Read and not told yet.
    waiting: VecDeque<Arc<Event>>,
    /// Up to where everything was read; `None` before the oldest.
    read_to: Option<u64>,
    /// When the job or batch was created that is followed: after one was removed, another one may have its ID.
    since: Option<Timestamp>,
    /// Whether what is followed has come to an end, by what was read of it.
    is_over: bool,
    told_at: Instant,
    admitted: Arc<Admitted>,
    /// So the connection is not idle, and is not closed to make room.
    _asking: Arc<Asking>,
    /// Its place among the streams of its owner.
    _taken: Taken,
    _counted: metrics::Counted,
}

/// Where somebody begins to read.
#[derive(Debug)]
pub(super) struct Beginning {
    /// As whom they read.
    pub(super) whose: Principal,
    pub(super) of: EventsOf,
    /// How positions are told to them.
    pub(super) cursors: Cursors,
    /// Behind which position; `None` at the beginning.
    pub(super) after: Option<u64>,
    /// When what is followed was created, if it is a job or a batch.
    pub(super) since: Option<Timestamp>,
    pub(super) is_over: bool,
}

/// The stream of what happens from there on.
pub(super) async fn follow(
    streams: Arc<Streams>,
    seals: Arc<Seals>,
    from: Beginning,
    admitted: Arc<Admitted>,
    asking: Arc<Asking>,
) -> std::result::Result<Response, Problem> {
    let Beginning { whose, of, cursors, after, since, is_over } = from;
    let taken = streams.room.take(&whose, 1).await?;
    let mut follower = Follower {
        streams: streams.clone(),
        seals,
        whose,
        of,
        cursors,
        joined: None,
        missed: true,
        waiting: VecDeque::new(),
        read_to: after,
        since,
        is_over,
        told_at: Instant::now(),
        admitted,
        _asking: asking,
        _taken: taken,
        _counted: metrics::API_STREAMS.counted(),
    };
    // Where many come at once, they wait for their turns instead of being refused.
    let turn = timeout(SILENCE, streams.turns.take(&follower.whose)).await.map_err(|_elapsed| {
        Problem::new(Kind::Busy, "too many streams begin at once; ask again a little later")
    })?;
    let (events, next) = if after.is_none() && of == EventsOf::All {
        follower.join().await?;
        (Vec::new(), streams.store.last_event().await?)
    } else {
        // A job or a batch is short, and what it has done already is part of what is to be told.
        let behind = follower.join_and_read().await?;
        follower.cursors.readable(&follower.seals, behind)?
    };
    drop(turn);
    if events.is_empty() && follower.is_over {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    follower.take_page(events, next);
    // With a cursor, if nothing is to be told yet, so that whoever is interrupted before the first event misses none.
    let first = follower.beat().retry(again(follower.streams.count()));
    let told = stream::unfold((Some(first), Box::new(follower)), |(first, mut follower)| async move {
        let next = match first {
            Some(first) => first,
            None => follower.next().await?,
        };
        Some((Ok::<_, Infallible>(next), (None, follower)))
    });
    let headers = [(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))];
    Ok((headers, Sse::new(told)).into_response())
}

/// How long a browser waits before it connects again: not all of so many at once, when the API starts again.
fn again(streams: usize) -> Duration {
    Duration::from_millis(1_000 + fastrand::u64(..2_000 + 2 * streams as u64))
}

impl Follower {
    /// What is told next; `None` at the end.
    async fn next(&mut self) -> Option<sse::Event> {
        let stop = self.streams.stop.clone();
        let told = AssertUnwindSafe(stop.run_until_cancelled(self.go_on())).catch_unwind().await;
        let told = told.unwrap_or_else(|_| {
            metrics::PANICS.add([], 1);
            None
        });
        self.told_at = Instant::now();
        told.flatten()
    }

    async fn go_on(&mut self) -> Option<sse::Event> {
        loop {
            self.look();
            // Also while the store is away.
            if self.told_at.elapsed() >= SILENCE {
                return self.is_welcome().await.then(|| self.beat());
            }
            if let Some(event) = self.waiting.front() {
                match self.admitted.is_valid().await {
                    Ok(()) => {}
                    Err(problem) if problem.kind() == Kind::Unavailable => {
                        sleep(AGAIN).await;
                        continue;
                    }
                    // Their key or token has ended, as they are told when they connect again.
                    Err(_refused) => return None,
                }
                let told = self.tell(event);
                self.waiting.pop_front();
                if told.is_some() {
                    return told;
                }
            } else if self.missed {
                self.read_missed().await?;
            } else if self.is_over {
                return None;
            } else {
                self.wait().await;
            }
        }
    }

    /// Reads some of what was missed; `None` if nobody can say what that is, so that they have to ask anew.
    async fn read_missed(&mut self) -> Option<()> {
        let streams = self.streams.clone();
        // Its turn may take so long to come that something else is told before.
        let Ok(turn) = timeout_at(self.told_at + SILENCE, streams.turns.take(&self.whose)).await else {
            return Some(());
        };
        let behind = self.join_and_read().await;
        drop(turn);
        match behind {
            Ok(EventsAfter::Are { events, next }) => self.take_page(events, next),
            Ok(EventsAfter::Removed { .. } | EventsAfter::ToCome) => return None,
            // The looks for all streams say that the store is away.
            Err(_away) => sleep(AGAIN).await,
        }
        Some(())
    }

    /// Where it joins those who take what happens, if it is not among them.
    async fn join(&mut self) -> Result<u64> {
        if let Some(joined) = &self.joined {
            return Ok(joined.behind);
        }
        let joined = self.streams.join(&self.whose, self.of).await?;
        Ok(self.joined.insert(joined).behind)
    }

    async fn join_and_read(&mut self) -> Result<EventsAfter> {
        let behind = self.join().await?;
        if self.read_to == Some(behind) {
            // As where a quiet stream connects again.
            return Ok(EventsAfter::Are { events: Vec::new(), next: behind });
        }
        self.streams.store.events(&self.whose, self.of, self.read_to, PAGE).await
    }

    /// Takes what has happened, and notes that nothing has.
    fn look(&mut self) {
        let Some(joined) = self.joined.as_mut().filter(|_| self.waiting.is_empty() && !self.missed) else {
            return;
        };
        let position = joined.position();
        match joined.events.try_recv() {
            Ok(event) => self.take(event),
            // All up to here was handed out before, and there is nothing of it.
            Err(TryRecvError::Empty) => self.read_to = self.read_to.max(Some(position)),
            Err(TryRecvError::Disconnected) => self.is_left_behind(),
        }
    }

    /// Waits for what happens, until it is time to tell something else.
    async fn wait(&mut self) {
        let Some(joined) = &mut self.joined else { return self.is_left_behind() };
        match timeout_at(self.told_at + SILENCE, joined.events.recv()).await {
            Ok(Some(event)) => self.take(event),
            Ok(None) => self.is_left_behind(),
            // It is time to tell that nothing has happened.
            Err(_elapsed) => {}
        }
    }

    fn is_left_behind(&mut self) {
        (self.joined, self.missed) = (None, true);
    }

    fn take_page(&mut self, events: Vec<Event>, next: u64) {
        events.into_iter().map(Arc::new).for_each(|event| self.take(event));
        self.read_to = Some(next);
        self.missed = self.joined.as_ref().is_none_or(|joined| next < joined.behind);
    }

    /// Takes what was read or handed out, unless it was taken before.
    fn take(&mut self, event: Arc<Event>) {
        if self.read_to.is_some_and(|read_to| event.position <= read_to) {
            return;
        }
        self.read_to = Some(event.position);
        if !event.may_be_seen_by(&self.whose) || self.since.is_some_and(|since| event.at < since) {
            return;
        }
        match (self.of, event.kind) {
            (EventsOf::Job(_), EventKind::JobSucceeded | EventKind::JobFailed | EventKind::JobCancelled)
            | (EventsOf::Batch(_), EventKind::BatchCompleted) => self.is_over = true,
            (EventsOf::Job(_), EventKind::JobRetried) | (EventsOf::Batch(_), EventKind::BatchRetried) => {
                self.is_over = false;
            }
            _ => {}
        }
        self.waiting.push_back(event);
    }

    /// Whether the stream goes on, of which nothing is told now.
    async fn is_welcome(&self) -> bool {
        let judged = self.admitted.is_valid().await;
        judged.map_or_else(|problem| problem.kind() == Kind::Unavailable, |()| true)
    }

    /// An event as it is told to them; `None` if it cannot be written, of which no event is known.
    fn tell(&self, event: &Event) -> Option<sse::Event> {
        let cursor = self.cursors.tell(&self.seals, event.position);
        let told = sse::Event::default().id(&cursor).event(event.kind.as_str());
        told.json_data(event.placed(cursor)).ok()
    }

    /// A comment that keeps the connection open, and says how far they have come where everything was told.
    fn beat(&self) -> sse::Event {
        let beat = sse::Event::default().comment("");
        match self.read_to {
            Some(position) if self.waiting.is_empty() => beat.id(self.cursors.tell(&self.seals, position)),
            _ => beat,
        }
    }
}
