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

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    connector::Session,
    error::{ACCESS_REFUSED, PRECONDITION_FAILED, bounded, failed, has_ended, repeat, reply_code},
    shared::Shared,
    wire::{self, Route},
};
use crate::{
    failure::chain,
    queue::{Address, BROKER_TIMEOUT, Message, QueueError, QueueErrorKind},
    telemetry::metrics,
};

pub(super) const PUBLISHERS: usize = 3;

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
        let mut windows: Vec<Vec<usize>> = vec![(0..messages.len()).collect()];
        let mut declared_anew = false;
        while let Some(window) = windows.pop() {
            if window.is_empty() {
                continue;
            }
            let batch = ConfirmBatch::new(window.iter().map(|place| &messages[*place]).collect());
            let (mut suspects, mut lost) = (Vec::new(), Vec::new());
            for (place, outcome) in window.into_iter().zip(self.publish_window(batch, deadline).await) {
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

    async fn publish_window(&mut self, mut batch: ConfirmBatch<'_>, deadline: Instant) -> Vec<Outcome> {
        let size = batch.messages.len();
        let ready = if Instant::now() < deadline {
            self.channel().await
        } else {
            // What another message has taken along, and there is no time to publish it again.
            Err(unconfirmed("RabbitMQ closed the channel because of another message"))
        };
        let (session, channel) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // What concerns the queue of one lane, such as one whose node is down, says nothing about these messages.
                let kind = if error.kind().concerns_one_message() {
                    QueueErrorKind::Unavailable
                } else {
                    error.kind()
                };
                let answers = repeat(kind, &chain(&error), size);
                return answers.into_iter().map(Outcome::Answered).collect();
            }
        };
        let finished = batch.run(&channel, deadline).await;
        if batch.unroutable_lanes() {
            // The queue or the exchange of a lane is gone: the next batch declares it again.
            session.declared.store(false, Relaxed);
        }
        if finished && channel.status().connected() {
            self.channel = Some((session, channel));
        } else if !batch.was_refused() {
            session.declared.store(false, Relaxed);
            // A blocked connection comes back to life by itself, and could not even be closed now.
            if !finished && session.blocked().is_none() {
                self.shared.publishing.discard(&session);
            }
        }
        batch.outcomes()
    }

    /// Takes the channel, or opens one. It is put back only when all messages on it are confirmed.
    async fn channel(&mut self) -> Result<(Arc<Session>, Channel), QueueError> {
        let connector = &self.shared.publishing;
        let session = connector.get().await?;
        if let Some(reason) = session.blocked() {
            let sentence = format!("RabbitMQ takes no messages at present: {reason}");
            return Err(QueueError::new(QueueErrorKind::Full, sentence));
        }
        connector
            .run_on(&session, async {
                if !session.declared.load(Relaxed) {
                    self.shared.topology.ensure(&session, &self.shared.lanes).await?;
                    session.declared.store(true, Relaxed);
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

/// What became of a message of a batch.
enum Outcome {
    Answered(Result<(), QueueError>),
    /// The broker closed the channel because of this message or of another one that it had not confirmed either.
    Suspect(lapin::Error),
}

/// Messages that are published together on one channel.
struct ConfirmBatch<'a> {
    messages: Vec<&'a Message>,
    routes: Vec<Route>,
    /// `None` while a message is not confirmed. One that is confirmed may have been returned before.
    results: Vec<Option<Result<(), Unpublished>>>,
    returned: HashSet<(Route, Option<ShortString>)>,
}

/// Why a message is not published: errand says so, or the channel has failed.
enum Unpublished {
    Told(QueueError),
    Failed(lapin::Error),
}

impl<'a> ConfirmBatch<'a> {
    fn new(messages: Vec<&'a Message>) -> Self {
        let route = |message: &&Message| match wire::route(&message.to) {
            Ok(route) => (route, None),
            Err(error) => (Route::default(), Some(Err(Unpublished::Told(error)))),
        };
        let (routes, results) = messages.iter().map(route).unzip();
        Self { messages, routes, results, returned: HashSet::new() }
    }

    /// Publishes all messages and waits for the confirms. Returns false if some did not come in time.
    async fn run(&mut self, channel: &Channel, deadline: Instant) -> bool {
        let mut confirms = FuturesUnordered::new();
        for (index, (message, route)) in self.messages.iter().zip(&self.routes).enumerate() {
            if self.results[index].is_some() {
                continue;
            }
            let options = BasicPublishOptions { mandatory: route.is_mandatory(), ..Default::default() };
            let (exchange, key) = (route.exchange.clone(), route.key.clone());
            match wire::to_amqp(message) {
                Ok(properties) => confirms.push(async move {
                    let confirm = channel.basic_publish(exchange, key, options, &message.body, properties);
                    let confirmation = async { confirm.await?.await }.await;
                    (index, confirmation)
                }),
                Err(error) => self.results[index] = Some(Err(Unpublished::Told(error))),
            }
        }
        let mut finished = true;
        loop {
            let next = match timeout_at(deadline, confirms.next()).await {
                Ok(next) => next,
                // Confirms that have arrived count, whatever the clock says.
                Err(_elapsed) => match confirms.next().now_or_never() {
                    Some(next) => next,
                    None => {
                        finished = false;
                        break;
                    }
                },
            };
            let Some((index, confirmation)) = next else { break };
            let told = |error| Err(Unpublished::Told(error));
            let (result, returned) = match confirmation {
                Ok(Confirmation::Ack(returned)) => (Ok(()), returned),
                Ok(Confirmation::Nack(returned)) => {
                    let sentence = "RabbitMQ refused the message: its queue is full or cannot store it now";
                    (told(QueueError::new(QueueErrorKind::Refused, sentence)), returned)
                }
                Ok(Confirmation::NotRequested) => {
                    (told(unconfirmed("RabbitMQ did not confirm the message")), None)
                }
                Err(error) => (Err(Unpublished::Failed(error)), None),
            };
            self.results[index] = Some(result);
            if let Some(returned) = returned {
                let delivery = returned.delivery;
                let route = Route { exchange: delivery.exchange, key: delivery.routing_key };
                self.returned.insert((route, delivery.properties.message_id().clone()));
            }
        }
        finished
    }

    /// Whether the broker closed the channel because of what a message is, or where it should go.
    fn was_refused(&self) -> bool {
        let refused = |result: &Result<(), Unpublished>| matches!(result, Err(Unpublished::Failed(error)) if is_refusal(error));
        self.results.iter().flatten().any(refused)
    }

    fn unroutable_lanes(&self) -> bool {
        self.returned.iter().any(|(route, _)| route.exchange.as_str() == wire::EXCHANGE)
    }

    fn outcomes(self) -> Vec<Outcome> {
        let was_refused = self.was_refused();
        let returned = self.returned;
        let conclude = |((message, route), result): ((&Message, Route), Option<_>)| {
            let answer = match result {
                Some(Ok(())) => Ok(()),
                Some(Err(Unpublished::Told(error))) => Err(error),
                Some(Err(Unpublished::Failed(error)))
                    if was_refused && (is_refusal(&error) || has_ended(&error)) =>
                {
                    return Outcome::Suspect(error);
                }
                Some(Err(Unpublished::Failed(error))) => {
                    Err(unconfirmed(chain(&failed("confirm the message", error))))
                }
                None => {
                    let limit = BROKER_TIMEOUT.as_secs();
                    Err(unconfirmed(format!("RabbitMQ did not confirm the message within {limit} s")))
                }
            };
            let is_returned = |route: Route| {
                let id = message.properties.message_id.as_ref();
                let lookup = (route, id.and_then(|id| ShortString::try_new(id.as_str()).ok()));
                if returned.contains(&lookup) { Err(unroutable(&lookup.0)) } else { Ok(()) }
            };
            Outcome::Answered(answer.and_then(|()| is_returned(route)))
        };
        self.messages.into_iter().zip(self.routes).zip(self.results).map(conclude).collect()
    }
}

/// The windows in which messages are published again of which one made the broker close the channel. None where that
/// can find out nothing more.
fn divide(messages: &[Message], suspects: Vec<usize>, is_access: bool) -> Vec<Vec<usize>> {
    let half = suspects.len().div_ceil(2);
    let (first, second): (Vec<_>, Vec<_>) = if is_access {
        // Replies go to one exchange and jobs to another, and the permission is that of the exchange.
        suspects.into_iter().partition(|place| matches!(messages[*place].to, Address::Reply(_)))
    } else {
        let (first, second) = suspects.split_at(half);
        (first.to_vec(), second.to_vec())
    };
    if first.is_empty() || second.is_empty() { Vec::new() } else { vec![second, first] }
}

/// Whether the broker closed the channel, and not the connection, because of a message.
fn is_refusal(error: &lapin::Error) -> bool {
    matches!(reply_code(error), Some(ACCESS_REFUSED | PRECONDITION_FAILED))
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
        Address::Lane(_) | Address::Reply(_) => (
            QueueErrorKind::Refused,
            "RabbitMQ does not take the message: it is probably larger than the broker's max_message_size",
        ),
    };
    QueueError::new(kind, sentence).with_source(error)
}

fn unconfirmed(message: impl Into<String>) -> QueueError {
    QueueError::new(QueueErrorKind::Unconfirmed, message)
}

fn unroutable(route: &Route) -> QueueError {
    let Route { exchange, key } = route;
    let sentence = if exchange.as_str().is_empty() {
        format!("RabbitMQ has no queue `{key}`")
    } else {
        format!("RabbitMQ has no queue bound to the exchange `{exchange}` for `{key}`")
    };
    QueueError::new(QueueErrorKind::Unroutable, sentence)
}
