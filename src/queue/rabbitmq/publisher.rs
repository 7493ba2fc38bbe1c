//! Publishing with confirms.
//!
//! A publisher owns one channel and works in batches: it publishes all messages of the requests that wait, and answers
//! when the broker has confirmed every one. Requests that arrive meanwhile make the next batch, so load makes batches
//! larger, and a few publishers side by side keep the connection busy.
//!
//! The batch is what makes the answers right. The broker returns an unroutable message before it confirms it, but the
//! client library hands it out with whichever confirm completes next. At the end of a batch every returned message has
//! surfaced, and belongs to the message that has its address and ID.
//!
//! A message that the broker does not take, because it is larger than `max_message_size`, closes the channel under the
//! whole batch, and nothing says which one it was. So what is not confirmed then is published again in halves, each on a
//! new channel, until the message stands alone; the others have got through. If this user may not write to an exchange,
//! that concerns all messages to it and no others.
//!
//! A queue that confirms nothing, such as a quorum queue without a majority of its members, holds up its batch until the
//! time is over, and RabbitMQ may hold up the whole channel for it. If the broker answers other requests then, the
//! connection is kept. The addresses that did not confirm are published to apart from others, and from each other, until
//! they do: one message first, for a short time, for which the others wait (`apart`). What stands alone is its queue's
//! own fault. A lane that cannot be declared concerns its own messages only, too.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt as _;
use lapin::{Channel, options::ConfirmSelectOptions};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{
    apart::Plan,
    confirm_batch::{ConfirmBatch, Outcome, stuck, unconfirmed},
    connector::Session,
    error::{ACCESS_REFUSED, bounded, repeat, reply_code},
    shared::Shared,
};
use crate::{
    failure::chain,
    job::QueueName,
    queue::{Address, BROKER_TIMEOUT, Message, QueueError, QueueErrorKind},
    sync::lock,
    telemetry::metrics,
};

/// Publishers of jobs and replies; events have one more.
pub(super) const PUBLISHERS: usize = 3;

/// How long an address that did not confirm before may take to confirm one message. After each that does not, those behind
/// it have half of that, but never less than the least.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// The most messages of one request; a confirm batch ends with the request that reaches this number.
pub(super) const MAX_CONFIRM_BATCH: usize = 256;

/// Whether the messages of a request were published, in their order.
pub(super) type Answer = Vec<Result<(), QueueError>>;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) batch: Vec<Message>,
    pub(super) answer: oneshot::Sender<Answer>,
}

pub(super) type Requests = Arc<Mutex<mpsc::Receiver<Request>>>;

/// Publishes until all senders of requests are gone.
pub(super) async fn run(shared: Arc<Shared>, requests: Requests) {
    let mut publisher = Publisher { shared, channel: None };
    while let Some(batch) = next_batch(&requests).await {
        // A caller that gave up waiting was told `Unconfirmed`; it is better not to send its messages at all.
        let (sizes, messages): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .filter(|request| !request.answer.is_closed())
            .map(|request| ((request.batch.len(), request.answer), request.batch))
            .unzip();
        let publishing = AssertUnwindSafe(publisher.publish(messages.into_iter().flatten().collect()));
        let Ok(published) = publishing.catch_unwind().await else {
            metrics::PANICS.add([], 1);
            tracing::error!("publishing panicked");
            // Without an answer, callers take it that their messages may or may not be there.
            publisher.channel = None;
            continue;
        };
        let mut results = published.into_iter();
        for (size, answer) in sizes {
            // Nobody waits for the answer any more if this fails.
            drop(answer.send(results.by_ref().take(size).collect()));
        }
    }
}

async fn next_batch(requests: &Requests) -> Option<Vec<Request>> {
    let mut requests = requests.lock().await;
    let first = requests.recv().await?;
    let mut messages = first.batch.len();
    let mut batch = vec![first];
    while messages < MAX_CONFIRM_BATCH
        && let Ok(request) = requests.try_recv()
    {
        messages += request.batch.len();
        batch.push(request);
    }
    Some(batch)
}

struct Publisher {
    shared: Arc<Shared>,
    /// A channel in confirm mode without unconfirmed messages, and the connection it belongs to.
    channel: Option<(Arc<Session>, Channel)>,
}

impl Publisher {
    /// Publishes messages and answers for each. What a refused neighbour took along is published again.
    async fn publish(&mut self, messages: Vec<Message>) -> Answer {
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let mut answers: Vec<Option<Result<(), QueueError>>> = messages.iter().map(|_| None).collect();
        // The messages that still have to be published together, by their places; the next ones last.
        let Plan { together, mut apart, not_yet } = self.shared.apart.plan(&messages);
        let mut probe_timeout = PROBE_TIMEOUT;
        let mut windows = vec![together];
        for place in not_yet {
            answers[place] = Some(Err(stuck(&messages[place].to)));
        }
        let mut declared_anew = false;
        // What is `behind` a message goes to its address, and waits for what becomes of it.
        while let Some((window, behind, limit)) = windows
            .pop()
            .map(|window| (window, Vec::new(), BROKER_TIMEOUT))
            .or_else(|| apart.pop().map(|mut first| (vec![first.remove(0)], first, probe_timeout)))
        {
            let Some(first) = window.first().copied() else { continue };
            let batch = ConfirmBatch::new(window.iter().map(|place| &messages[*place]).collect());
            // In less than a probe may take, silence says nothing about an address.
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = if left < PROBE_TIMEOUT { Duration::ZERO } else { limit.min(left) };
            let outcomes = self.publish_window(batch, limit).await;
            let (mut suspects, mut lost) = (Vec::new(), Vec::new());
            for (place, outcome) in window.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Answered(answer) => {
                        lost.extend(self.comes_back(&messages[place].to, &answer).then_some(place));
                        answers[place] = Some(answer);
                    }
                    Outcome::Suspect(error) => suspects.push((place, error)),
                }
            }
            let is_access = suspects.iter().any(|(_, error)| reply_code(error) == Some(ACCESS_REFUSED));
            let places = suspects.iter().map(|(place, _)| *place).collect();
            windows.extend(divide(&messages, places, is_access));
            for (place, error) in suspects {
                // Stands if the message is not published again.
                answers[place] = Some(Err(refused(&messages[place].to, is_access, error)));
            }
            if !declared_anew && !lost.is_empty() {
                declared_anew = true;
                windows.push(lost);
            }
            match &answers[first] {
                Some(Err(error))
                    if matches!(error.kind(), QueueErrorKind::Stuck | QueueErrorKind::Unconfirmed) =>
                {
                    probe_timeout = (probe_timeout / 2).max(MIN_PROBE_TIMEOUT);
                    let same = repeat(error.kind(), &chain(error), behind.len());
                    behind.into_iter().zip(same).for_each(|(place, answer)| answers[place] = Some(answer));
                }
                _ => windows.push(behind),
            }
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(unconfirmed("not published"))))
            .collect()
    }

    /// Whether the queue of a lane was deleted, which the next channel declares again.
    fn comes_back(&self, to: &Address, answer: &Result<(), QueueError>) -> bool {
        let unroutable = matches!(answer, Err(error) if error.kind() == QueueErrorKind::Unroutable);
        unroutable && matches!(to, Address::Lane(lane) if self.shared.lanes.contains(lane))
    }

    /// Publishes a batch, within `limit` beside the time that it takes to get a channel.
    async fn publish_window(&mut self, mut batch: ConfirmBatch<'_>, limit: Duration) -> Vec<Outcome> {
        let size = batch.messages.len();
        let started = Instant::now();
        let ready = if limit.is_zero() {
            Err(unconfirmed("other messages left no time to publish this one"))
        } else {
            self.channel(&mut batch).await
        };
        let (session, channel) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // What concerns the exchange alone says nothing about replies, which are offered again soon.
                let kind = if error.kind().concerns_one_message() {
                    QueueErrorKind::Unavailable
                } else {
                    error.kind()
                };
                let answers = repeat(kind, &chain(&error), size);
                return answers.into_iter().map(Outcome::Answered).collect();
            }
        };
        // Queues that did not answer in time to being declared leave the others half of it, and a probe all of it.
        let deadline = (started + limit).max(Instant::now() + (limit / 2).max(limit.min(PROBE_TIMEOUT)));
        let finished = batch.run(&channel, deadline).await;
        self.shared.apart.confirmed(batch.confirmed());
        // A blocked connection comes back to life by itself, and could not even be closed now.
        if !finished && session.blocked().is_none() {
            if session.answers().await {
                batch.stuck = batch.silent();
                self.shared.apart.unanswered(batch.unanswered().into_iter(), batch.stuck.is_some());
            } else {
                self.shared.publishing.discard(&session);
            }
        }
        if batch.unroutable_lanes() {
            // The queue or the exchange of a lane is gone: the next batch declares it again.
            session.declared.store(false, Relaxed);
        }
        if finished && channel.status().connected() {
            self.channel = Some((session, channel));
        } else if finished && !batch.was_refused() {
            session.declared.store(false, Relaxed);
            session.event_exchange_declared.store(false, Relaxed);
        }
        batch.outcomes()
    }

    /// Takes the channel, or opens one. It is put back only when all messages on it are confirmed. Messages to lanes that
    /// cannot be declared are answered.
    async fn channel(&mut self, batch: &mut ConfirmBatch<'_>) -> Result<(Arc<Session>, Channel), QueueError> {
        let connector = &self.shared.publishing;
        let session = connector.get().await?;
        if let Some(reason) = session.blocked() {
            let sentence = format!("RabbitMQ takes no messages at present: {reason}");
            return Err(QueueError::new(QueueErrorKind::Full, sentence));
        }
        connector
            .run_on(&session, async {
                if batch.any_to(Address::is_of_events)
                    && let Err(error) = declare_event_exchange(&self.shared, &session).await
                {
                    batch.fail_events(&error);
                }
                if batch.any_to(|to| !to.is_of_events()) {
                    for (lane, error) in declare(&self.shared, &session, batch).await? {
                        batch.fail_lane(&lane, &error);
                        if error.kind() == QueueErrorKind::Unavailable {
                            self.shared.apart.unanswered([&Address::Lane(lane)].into_iter(), true);
                        }
                    }
                }
                let kept = self
                    .channel
                    .take()
                    .filter(|(owner, channel)| Arc::ptr_eq(owner, &session) && channel.status().connected());
                if let Some((_, channel)) = kept {
                    return Ok(channel);
                }
                let channel = session.channel().await?;
                let confirm = channel.confirm_select(ConfirmSelectOptions::default());
                bounded("confirm messages", confirm).await?;
                Ok(channel)
            })
            .await
            .map(|channel| (Arc::clone(&session), channel))
    }
}

/// Declares what is not declared yet: all lanes once, and those for which that failed when there is something to
/// publish to them. Returns the lanes that cannot be used. One that did not answer is not declared again: what is
/// published to it shows in less time whether it works.
async fn declare(
    shared: &Shared,
    session: &Session,
    batch: &ConfirmBatch<'_>,
) -> Result<Vec<(QueueName, QueueError)>, QueueError> {
    let lanes = if session.declared.load(Relaxed) {
        let mut undeclared = lock(&session.undeclared).clone();
        undeclared.retain(|lane| batch.any_to(|to| matches!(to, Address::Lane(to) if to == lane)));
        undeclared
    } else {
        shared.lanes.clone()
    };
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let failed = shared.topology.ensure_each(session, &lanes).await?;
    let mut undeclared = lock(&session.undeclared);
    undeclared.retain(|lane| !lanes.contains(lane));
    let is_told = |(_, error): &&(_, QueueError)| error.kind() != QueueErrorKind::Unavailable;
    undeclared.extend(failed.iter().filter(is_told).map(|(lane, _)| lane.clone()));
    session.declared.store(true, Relaxed);
    Ok(failed)
}

pub(super) async fn declare_event_exchange(shared: &Shared, session: &Session) -> Result<(), QueueError> {
    if !session.event_exchange_declared.load(Relaxed) {
        shared.topology.ensure_event_exchange(session).await?;
        session.event_exchange_declared.store(true, Relaxed);
    }
    Ok(())
}

/// The windows in which messages are published again of which one made the broker close the channel. None where that
/// can find out nothing more.
fn divide(messages: &[Message], suspects: Vec<usize>, is_access: bool) -> Vec<Vec<usize>> {
    let half = suspects.len().div_ceil(2);
    let (first, second): (Vec<_>, Vec<_>) = if is_access {
        // The permission is that of the exchange, and jobs, replies and events have one each.
        let exchange = |place: usize| std::mem::discriminant(&messages[place].to);
        let first = suspects.first().map(|place| exchange(*place));
        suspects.into_iter().partition(|place| Some(exchange(*place)) == first)
    } else {
        let (first, second) = suspects.split_at(half);
        (first.to_vec(), second.to_vec())
    };
    if first.is_empty() || second.is_empty() { Vec::new() } else { vec![second, first] }
}

fn refused(to: &Address, is_access: bool, error: lapin::Error) -> QueueError {
    let (kind, sentence) = match to {
        Address::Lane(_) if is_access => (
            QueueErrorKind::Access,
            "RabbitMQ does not let this user publish jobs: give it the permission to write to the exchange `errand`",
        ),
        Address::Reply(_) if is_access => (
            QueueErrorKind::Refused,
            "RabbitMQ does not let this user publish replies: give it the permission to write to `amq.default`",
        ),
        Address::Events(_) if is_access => (
            QueueErrorKind::Access,
            "RabbitMQ does not let this user publish events: give it the permission to write to the exchange `errand.events`",
        ),
        Address::Lane(_) | Address::Reply(_) | Address::Events(_) => (
            QueueErrorKind::TooLarge,
            "RabbitMQ does not take the message: it is probably larger than the broker's max_message_size",
        ),
    };
    QueueError::new(kind, sentence).with_source(error)
}
