//! Publishing with confirms.
//!
//! A publisher owns one channel and works in windows, as [`AckWindow`](super::window) does on the
//! other side: it takes the requests that wait, publishes all their messages without waiting in
//! between, waits until the broker has confirmed every one, and only then answers. Requests that
//! arrive meanwhile make the next window, so load makes windows larger instead of slower, and a few
//! publishers side by side keep the connection busy.
//!
//! The window is what makes the answers right. The broker returns an unroutable message before it
//! confirms it, but the client library hands returned messages out in order of arrival to whichever
//! confirms complete next, so a returned message can surface with the confirm of another one. At
//! the end of a window every message has been confirmed, so every returned message has surfaced
//! somewhere in it, and belongs to the message that has its address and ID.

use std::{collections::HashSet, sync::Arc, sync::atomic::Ordering::Relaxed};

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
    Shared,
    failure::{bounded, failed},
    link::{Generation, or_discard},
    wire::{self, Route},
};
use crate::{
    failure::chain,
    queue::{BROKER_TIMEOUT, Message, QueueError, QueueErrorKind},
};

/// Publishers side by side, each with its own channel.
pub(super) const PUBLISHERS: usize = 3;

/// Most messages of one request; a window ends with the request that reaches it.
pub(super) const WINDOW: usize = 256;

/// What became of the messages of a request, in their order.
pub(super) type Answer = Vec<Result<(), QueueError>>;

/// Messages that somebody waits for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) batch: Vec<Message>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Requests, shared by all publishers.
pub(super) type Requests = Arc<Mutex<mpsc::Receiver<Request>>>;

/// Publishes until nobody can ask any more.
pub(super) async fn run(shared: Arc<Shared>, requests: Requests) {
    let mut publisher = Publisher { shared, channel: None };
    while let Some(window) = take_window(&requests).await {
        // Whoever gave up waiting was told that nothing is certain; better not to send it at all.
        let (sizes, messages): (Vec<_>, Vec<_>) = window
            .into_iter()
            .filter(|request| !request.answer.is_closed())
            .map(|request| ((request.batch.len(), request.answer), request.batch))
            .unzip();
        let mut results = publisher.publish(messages.into_iter().flatten().collect()).await.into_iter();
        for (size, answer) in sizes {
            // Nobody waits for the answer any more if this fails.
            drop(answer.send(results.by_ref().take(size).collect()));
        }
    }
}

async fn take_window(requests: &Requests) -> Option<Vec<Request>> {
    let mut requests = requests.lock().await;
    let first = requests.recv().await?;
    let mut messages = first.batch.len();
    let mut window = vec![first];
    while messages < WINDOW
        && let Ok(request) = requests.try_recv()
    {
        messages += request.batch.len();
        window.push(request);
    }
    Some(window)
}

struct Publisher {
    shared: Arc<Shared>,
    /// A channel in confirm mode on which nothing is outstanding, with the connection it belongs to.
    channel: Option<(Arc<Generation>, Channel)>,
}

impl Publisher {
    async fn publish(&mut self, messages: Vec<Message>) -> Answer {
        if messages.is_empty() {
            return Answer::new();
        }
        let (generation, channel) = match self.channel().await {
            Ok(ready) => ready,
            Err(error) => return messages.iter().map(|_| Err(copy(&error))).collect(),
        };
        let mut window = Window::new(messages);
        let finished = window.run(&channel).await;
        if window.unroutable_lanes() {
            // The queue or the exchange of a lane is gone: the next window declares it again.
            generation.declared.store(false, Relaxed);
        }
        if finished && channel.status().connected() {
            self.channel = Some((generation, channel));
        } else {
            generation.declared.store(false, Relaxed);
            // A blocked connection comes back to life by itself, and could not even be closed now.
            if !finished && generation.blocked().is_none() {
                self.shared.publishing.discard(&generation);
            }
        }
        window.answer()
    }

    /// Takes the channel, or opens one. It is put back only when nothing is outstanding on it.
    async fn channel(&mut self) -> Result<(Arc<Generation>, Channel), QueueError> {
        let link = &self.shared.publishing;
        let generation = link.get().await?;
        if let Some(reason) = generation.blocked() {
            let sentence = format!("RabbitMQ takes no messages at present: {reason}");
            return Err(QueueError::new(QueueErrorKind::Full, sentence));
        }
        or_discard(link, &generation, async {
            if !generation.declared.load(Relaxed) {
                self.shared.topology.ensure(&generation, &self.shared.lanes).await?;
                generation.declared.store(true, Relaxed);
            }
            let kept = self
                .channel
                .take()
                .filter(|(owner, channel)| Arc::ptr_eq(owner, &generation) && channel.status().connected());
            if let Some((_, channel)) = kept {
                return Ok(channel);
            }
            let channel = generation.channel().await?;
            let confirm = channel.confirm_select(ConfirmSelectOptions::default());
            bounded("confirm messages", confirm).await?;
            Ok(channel)
        })
        .await
        .map(|channel| (Arc::clone(&generation), channel))
    }
}

/// Messages that are published together.
struct Window {
    messages: Vec<Message>,
    results: Vec<State>,
    returned: HashSet<(Route, Option<ShortString>)>,
}

/// What is known about one message.
enum State {
    /// Published, not confirmed.
    Pending(Route),
    /// Confirmed; it may have been returned before.
    Confirmed(Route),
    Failed(QueueError),
}

impl Window {
    fn new(messages: Vec<Message>) -> Self {
        let results = messages
            .iter()
            .map(|message| match wire::route(&message.to) {
                Ok(route) => State::Pending(route),
                Err(error) => State::Failed(error),
            })
            .collect();
        Self { messages, results, returned: HashSet::new() }
    }

    /// Publishes everything and waits for the confirms. False if some did not come in time.
    async fn run(&mut self, channel: &Channel) -> bool {
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let mut confirms = FuturesUnordered::new();
        for (index, (message, state)) in self.messages.iter().zip(&mut self.results).enumerate() {
            let State::Pending(route) = &*state else { continue };
            let options = BasicPublishOptions { mandatory: route.tells_unroutable(), ..Default::default() };
            let (exchange, key) = (route.exchange.clone(), route.key.clone());
            match wire::to_amqp(message) {
                Ok(properties) => confirms.push(async move {
                    let confirm = channel.basic_publish(exchange, key, options, &message.body, properties);
                    let confirmation = async { confirm.await?.await }.await;
                    (index, confirmation)
                }),
                Err(error) => *state = State::Failed(error),
            }
        }
        let mut finished = true;
        loop {
            let next = match timeout_at(deadline, confirms.next()).await {
                Ok(next) => next,
                // What is there is taken, whatever the clock says.
                Err(_elapsed) => match confirms.next().now_or_never() {
                    Some(next) => next,
                    None => {
                        finished = false;
                        break;
                    }
                },
            };
            let Some((index, confirmation)) = next else { break };
            let returned = match confirmation {
                Ok(Confirmation::Ack(returned)) => {
                    self.results[index].confirm();
                    returned
                }
                Ok(Confirmation::Nack(returned)) => {
                    let sentence = "RabbitMQ refused the message: its queue is full or cannot store it now";
                    self.results[index] = State::Failed(QueueError::new(QueueErrorKind::Full, sentence));
                    returned
                }
                Ok(Confirmation::NotRequested) => {
                    self.results[index] = State::Failed(unconfirmed("RabbitMQ did not confirm the message"));
                    None
                }
                Err(error) => {
                    let cause = chain(&failed("confirm the message", error));
                    self.results[index] = State::Failed(unconfirmed(cause));
                    None
                }
            };
            if let Some(returned) = returned {
                let delivery = returned.delivery;
                let route = Route { exchange: delivery.exchange, key: delivery.routing_key };
                self.returned.insert((route, delivery.properties.message_id().clone()));
            }
        }
        finished
    }

    fn unroutable_lanes(&self) -> bool {
        self.returned.iter().any(|(route, _)| route.exchange.as_str() == wire::EXCHANGE)
    }

    fn answer(self) -> Answer {
        let returned = self.returned;
        let conclude = |(message, state): (Message, State)| match state {
            State::Confirmed(route) => {
                let id = message.properties.message_id.and_then(|id| ShortString::try_new(id).ok());
                let lookup = (route, id);
                if returned.contains(&lookup) { Err(unroutable(&lookup.0)) } else { Ok(()) }
            }
            State::Pending(_) => Err(unconfirmed(format!(
                "RabbitMQ did not confirm the message within {} s",
                BROKER_TIMEOUT.as_secs()
            ))),
            State::Failed(error) => Err(error),
        };
        self.messages.into_iter().zip(self.results).map(conclude).collect()
    }
}

impl State {
    fn confirm(&mut self) {
        if let State::Pending(route) = self {
            let route =
                Route { exchange: std::mem::take(&mut route.exchange), key: std::mem::take(&mut route.key) };
            *self = State::Confirmed(route);
        }
    }
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

/// The same error for another message.
fn copy(error: &QueueError) -> QueueError {
    QueueError::new(error.kind(), chain(error))
}
