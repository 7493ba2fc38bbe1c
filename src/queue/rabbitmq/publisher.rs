//! Publishing with confirms.
//!
//! A publisher owns one channel and works in batches: it publishes all messages of the requests that wait, and answers
//! when the broker has confirmed every one. Requests that arrive meanwhile make the next batch, so load makes batches
//! larger, and a few publishers side by side keep the connection busy.
//!
//! The batch is what makes the answers right. The broker returns an unroutable message before it confirms it, but the
//! client library hands it out with whichever confirm completes next. At the end of a batch every returned message has
//! surfaced, and belongs to the message that has its address and ID.

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
    connector::Session,
    error::{bounded, failed, repeat},
    shared::Shared,
    wire::{self, Route},
};
use crate::{
    failure::chain,
    queue::{BROKER_TIMEOUT, Message, QueueError, QueueErrorKind},
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
        let mut results = publisher.publish(messages.into_iter().flatten().collect()).await.into_iter();
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
    async fn publish(&mut self, messages: Vec<Message>) -> Answer {
        if messages.is_empty() {
            return Answer::new();
        }
        let (session, channel) = match self.channel().await {
            Ok(ready) => ready,
            Err(error) => return repeat(error.kind(), &chain(&error), messages.len()),
        };
        let mut batch = ConfirmBatch::new(messages);
        let finished = batch.run(&channel).await;
        if batch.unroutable_lanes() {
            // The queue or the exchange of a lane is gone: the next batch declares it again.
            session.declared.store(false, Relaxed);
        }
        if finished && channel.status().connected() {
            self.channel = Some((session, channel));
        } else {
            session.declared.store(false, Relaxed);
            // A blocked connection comes back to life by itself, and could not even be closed now.
            if !finished && session.blocked().is_none() {
                self.shared.publishing.discard(&session);
            }
        }
        batch.answer()
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

struct ConfirmBatch {
    messages: Vec<Message>,
    routes: Vec<Route>,
    /// `None` while a message is not confirmed. One that is confirmed may have been returned before.
    results: Vec<Option<Result<(), QueueError>>>,
    returned: HashSet<(Route, Option<ShortString>)>,
}

impl ConfirmBatch {
    fn new(messages: Vec<Message>) -> Self {
        let route = |message: &Message| match wire::route(&message.to) {
            Ok(route) => (route, None),
            Err(error) => (Route::default(), Some(Err(error))),
        };
        let (routes, results) = messages.iter().map(route).unzip();
        Self { messages, routes, results, returned: HashSet::new() }
    }

    /// Publishes all messages and waits for the confirms. Returns false if some did not come in time.
    async fn run(&mut self, channel: &Channel) -> bool {
        let deadline = Instant::now() + BROKER_TIMEOUT;
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
                Err(error) => self.results[index] = Some(Err(error)),
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
            let (result, returned) = match confirmation {
                Ok(Confirmation::Ack(returned)) => (Ok(()), returned),
                Ok(Confirmation::Nack(returned)) => {
                    let sentence = "RabbitMQ refused the message: its queue is full or cannot store it now";
                    (Err(QueueError::new(QueueErrorKind::Full, sentence)), returned)
                }
                Ok(Confirmation::NotRequested) => {
                    (Err(unconfirmed("RabbitMQ did not confirm the message")), None)
                }
                Err(error) => (Err(unconfirmed(chain(&failed("confirm the message", error)))), None),
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

    fn unroutable_lanes(&self) -> bool {
        self.returned.iter().any(|(route, _)| route.exchange.as_str() == wire::EXCHANGE)
    }

    fn answer(self) -> Answer {
        let returned = self.returned;
        let conclude = |((message, route), result): ((Message, Route), Option<_>)| {
            let sentence =
                || format!("RabbitMQ did not confirm the message within {} s", BROKER_TIMEOUT.as_secs());
            result.unwrap_or_else(|| Err(unconfirmed(sentence())))?;
            let id = message.properties.message_id.and_then(|id| ShortString::try_new(id).ok());
            let lookup = (route, id);
            if returned.contains(&lookup) { Err(unroutable(&lookup.0)) } else { Ok(()) }
        };
        self.messages.into_iter().zip(self.routes).zip(self.results).map(conclude).collect()
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
