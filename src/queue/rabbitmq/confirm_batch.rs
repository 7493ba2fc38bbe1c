//! Messages that are published together, and what the broker says about each.

use std::collections::HashSet;

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use lapin::{Channel, Confirmation, options::BasicPublishOptions, types::ShortString};
use tokio::time::{Instant, timeout_at};

use super::{
    error::{ACCESS_REFUSED, PRECONDITION_FAILED, failed, has_ended, reply_code},
    wire::{self, Route},
};
use crate::{
    failure::chain,
    job::QueueName,
    queue::{Address, Message, QueueError, QueueErrorKind},
};

/// What became of a message of a batch.
pub(super) enum Outcome {
    Answered(Result<(), QueueError>),
    /// The broker closed the channel because of this message or of another one that it had not confirmed either.
    Suspect(lapin::Error),
}

/// Messages that are published together on one channel.
pub(super) struct ConfirmBatch<'a> {
    pub(super) messages: Vec<&'a Message>,
    routes: Vec<Route>,
    /// `None` while a message is not confirmed. One that is confirmed may have been returned before.
    results: Vec<Option<Result<(), Unpublished>>>,
    returned: HashSet<(Route, Option<ShortString>)>,
    /// The address that is to blame for messages that are not confirmed in time, while the broker answers.
    pub(super) stuck: Option<&'a Address>,
}

/// Why a message is not published: errand says so, or the channel has failed.
enum Unpublished {
    Told(QueueError),
    Failed(lapin::Error),
}

impl<'a> ConfirmBatch<'a> {
    pub(super) fn new(messages: Vec<&'a Message>) -> Self {
        let route = |message: &&Message| match wire::route(&message.to) {
            Ok(route) => (route, None),
            Err(error) => (Route::default(), Some(Err(Unpublished::Told(error)))),
        };
        let (routes, results) = messages.iter().map(route).unzip();
        Self { messages, routes, results, returned: HashSet::new(), stuck: None }
    }

    /// Whether a message goes to such an address.
    pub(super) fn any_to(&self, is_such: impl Fn(&Address) -> bool) -> bool {
        self.messages.iter().any(|message| is_such(&message.to))
    }

    /// Answers all messages to a lane that cannot be declared.
    pub(super) fn fail_lane(&mut self, lane: &QueueName, error: &QueueError) {
        let kind = match error.kind() {
            QueueErrorKind::Unavailable => QueueErrorKind::Stuck,
            // It would have to be created by somebody else.
            QueueErrorKind::Access => QueueErrorKind::Unroutable,
            kind => kind,
        };
        self.fail(kind, error, |to| matches!(to, Address::Lane(to) if to == lane));
    }

    /// Answers all events, because their exchange cannot be declared.
    pub(super) fn fail_events(&mut self, error: &QueueError) {
        self.fail(error.kind(), error, Address::is_of_events);
    }

    fn fail(&mut self, kind: QueueErrorKind, error: &QueueError, concerns: impl Fn(&Address) -> bool) {
        for (message, result) in self.messages.iter().zip(&mut self.results) {
            if concerns(&message.to) {
                *result = Some(Err(Unpublished::Told(QueueError::new(kind, chain(error)))));
            }
        }
    }

    /// Publishes all messages and waits for the confirms. Returns false if some did not come in time.
    pub(super) async fn run(&mut self, channel: &Channel, deadline: Instant) -> bool {
        let mut confirming = FuturesUnordered::new();
        for (index, (message, route)) in self.messages.iter().zip(&self.routes).enumerate() {
            if self.results[index].is_some() {
                continue;
            }
            let options = BasicPublishOptions { mandatory: route.is_mandatory(), ..Default::default() };
            let (exchange, key) = (route.exchange.clone(), route.key.clone());
            match wire::to_amqp(message) {
                Ok(properties) => confirming.push(async move {
                    let confirm = channel.basic_publish(exchange, key, options, &message.body, properties);
                    let confirmation = async { confirm.await?.await }.await;
                    (index, confirmation)
                }),
                Err(error) => self.results[index] = Some(Err(Unpublished::Told(error))),
            }
        }
        let mut finished = true;
        loop {
            let next = match timeout_at(deadline, confirming.next()).await {
                Ok(next) => next,
                // Confirms that have arrived count, whatever the clock says.
                Err(_elapsed) => match confirming.next().now_or_never() {
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
                Ok(Confirmation::Nack(returned)) => (told(nacked(&self.messages[index].to)), returned),
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
    pub(super) fn was_refused(&self) -> bool {
        let refused = |result: &Result<(), Unpublished>| matches!(result, Err(Unpublished::Failed(error)) if is_refusal(error));
        self.results.iter().flatten().any(refused)
    }

    pub(super) fn confirmed(&self) -> impl Iterator<Item = &'a Address> {
        let confirmed =
            self.messages.iter().zip(&self.results).filter(|(_, result)| matches!(result, Some(Ok(()))));
        confirmed.map(|(message, _)| &message.to)
    }

    /// The addresses of messages that are not answered.
    pub(super) fn unanswered(&self) -> HashSet<&'a Address> {
        let unanswered = self.messages.iter().zip(&self.results).filter(|(_, result)| result.is_none());
        unanswered.map(|(message, _)| &message.to).collect()
    }

    /// The address that is to blame for what is not answered: the only one, if it has confirmed nothing. One that has is
    /// slow, or holds up others, or is held up.
    pub(super) fn silent(&self) -> Option<&'a Address> {
        let unanswered = self.unanswered();
        let mut blamed = unanswered.iter().copied().filter(|_| unanswered.len() == 1);
        blamed.find(|to| !self.confirmed().any(|confirmed| confirmed == *to))
    }

    pub(super) fn unroutable_lanes(&self) -> bool {
        self.returned.iter().any(|(route, _)| route.exchange.as_str() == wire::EXCHANGE)
    }

    pub(super) fn outcomes(self) -> Vec<Outcome> {
        let was_refused = self.was_refused();
        let Self { messages, routes, results, returned, stuck: blamed } = self;
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
                None if blamed == Some(&message.to) => Err(stuck(&message.to)),
                None => Err(unconfirmed("RabbitMQ did not confirm the message in time")),
            };
            let is_returned = |route: Route| {
                let id = message.properties.message_id.as_ref();
                let lookup = (route, id.and_then(|id| ShortString::try_new(id.as_str()).ok()));
                if returned.contains(&lookup) { Err(unroutable(&lookup.0)) } else { Ok(()) }
            };
            Outcome::Answered(answer.and_then(|()| is_returned(route)))
        };
        messages.into_iter().zip(routes).zip(results).map(conclude).collect()
    }
}

/// Whether the broker closed the channel, and not the connection, because of a message.
fn is_refusal(error: &lapin::Error) -> bool {
    matches!(reply_code(error), Some(ACCESS_REFUSED | PRECONDITION_FAILED))
}

pub(super) fn unconfirmed(message: impl Into<String>) -> QueueError {
    QueueError::new(QueueErrorKind::Unconfirmed, message)
}

/// The error of a message that the broker does not take while it takes others.
fn nacked(to: &Address) -> QueueError {
    let sentence = match to {
        Address::Lane(_) | Address::Reply(_) => {
            "RabbitMQ refused the message: its queue is full or cannot store it now".to_owned()
        }
        Address::Events(key) => format!(
            "RabbitMQ refused an event: a queue that is bound to the exchange `{}` for `{key}` is full or cannot store it now",
            wire::EVENT_EXCHANGE
        ),
    };
    QueueError::new(QueueErrorKind::Refused, sentence)
}

/// The error of a message whose queue does not confirm it, while the broker answers.
pub(super) fn stuck(to: &Address) -> QueueError {
    let whom = match to {
        Address::Lane(lane) => format!("the queue `{}`", wire::queue_name(lane.as_str())),
        Address::Reply(name) => format!("the queue `{name}`"),
        Address::Events(key) => {
            format!("a queue that is bound to the exchange `{}` for `{key}`", wire::EVENT_EXCHANGE)
        }
    };
    let sentence = format!(
        "RabbitMQ answers, and does not confirm messages to {whom}: see whether most of the queue's members \
         are online (`rabbitmq-queues quorum_status`) and whether their disks are full or slow"
    );
    QueueError::new(QueueErrorKind::Stuck, sentence)
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
