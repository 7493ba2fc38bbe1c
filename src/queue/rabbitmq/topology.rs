//! What errand needs on the broker: one exchange, and one queue for each lane.
//!
//! Each declaration has its own channel, because the broker answers a refusal by ending the
//! channel. A user without the permission to configure may use what exists: then it is only looked
//! at, and what cannot even be looked at is taken for granted, since consuming and publishing say
//! precisely what is missing.
//!
//! Queues are declared with as few arguments as possible, because arguments can never be changed;
//! whatever else a queue should have belongs into a policy. The one exception besides the type is
//! the delivery limit of quorum queues: RabbitMQ 4 drops a message silently after 20 deliveries that
//! were not acknowledged, which a worker in a crash loop reaches soon, and a lane must not lose
//! messages. The limit is an argument rather than a policy, since a policy needs an administrator;
//! it is a large number rather than the `-1` of RabbitMQ 4, since 3.10 refuses that. A dead-letter
//! queue instead would need more permissions and somebody to look at it, and errand keeps what
//! cannot be run in its store anyway. A policy may still lower the limit.

use std::fmt;

use lapin::{
    ExchangeKind, Queue,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use tokio::{sync::Mutex, time::timeout};

use super::{
    QueueType,
    failure::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, failed, reply_code},
    link::Generation,
    wire,
};
use crate::{
    job::QueueName,
    queue::{BROKER_TIMEOUT, Depth, QueueError, QueueErrorKind},
};

/// So many deliveries that no message reaches them.
const DELIVERY_LIMIT: i32 = 1_000_000_000;

/// How queues are declared.
#[derive(Debug)]
pub(super) struct Topology {
    queue_type: QueueType,
    /// Whether anything is created at all.
    declare: bool,
    turn: Mutex<()>,
}

impl Topology {
    pub(super) fn new(queue_type: QueueType, declare: bool) -> Self {
        Self { queue_type, declare, turn: Mutex::new(()) }
    }

    /// Makes sure of the exchange and the queues of these lanes.
    pub(super) async fn ensure(
        &self,
        generation: &Generation,
        lanes: &[QueueName],
    ) -> Result<(), QueueError> {
        // RabbitMQ 3.10 says that a quorum queue is there while another connection is still declaring
        // it, and ends the connection that consumes from it too early with an internal error. Among
        // processes this can still happen, once, and consuming again helps; so a long wait is not worth it.
        let _turn = timeout(BROKER_TIMEOUT, self.turn.lock()).await.ok();
        self.settle(generation, &Thing::Exchange).await?;
        for lane in lanes {
            self.lane(generation, lane).await?;
        }
        Ok(())
    }

    async fn lane(&self, generation: &Generation, lane: &QueueName) -> Result<(), QueueError> {
        let name = queue(lane)?;
        self.settle(generation, &Thing::Queue(name.clone())).await?;
        if self.declare {
            self.bind(generation, lane, name).await?;
        }
        Ok(())
    }

    /// Declares, or looks, or both, and says what to do when neither helps.
    async fn settle(&self, generation: &Generation, what: &Thing) -> Result<(), QueueError> {
        if self.declare {
            match what.ask(generation, Some(self.arguments(what))).await? {
                Outcome::There(()) => return Ok(()),
                Outcome::Differs(error) => {
                    let type_hint = match what {
                        Thing::Queue(_) => "set `amqp.queue_type` to the type that it has, or ",
                        Thing::Exchange => "",
                    };
                    let sentence = format!(
                        "RabbitMQ has the {what} with another type or other arguments than errand declares: \
                         {type_hint}set `amqp.declare = false` to use it as it is, or delete it"
                    );
                    return Err(QueueError::new(QueueErrorKind::Topology, sentence).with_source(error));
                }
                Outcome::Missing(error) => return Err(failed(&format!("declare the {what}"), error)),
                Outcome::Refused => {}
            }
        }
        match what.ask(generation, None).await? {
            // Some versions refuse even to look without the permission to configure.
            Outcome::There(()) | Outcome::Refused => Ok(()),
            Outcome::Missing(error) | Outcome::Differs(error) => {
                let (kind, sentence) = if self.declare {
                    let sentence = format!(
                        "RabbitMQ has no {what}, and this user may not create it: create it, or give the user the \
                         permission to configure `errand.*`"
                    );
                    (QueueErrorKind::Access, sentence)
                } else {
                    let sentence = format!(
                        "RabbitMQ has no usable {what}: create it, or set `amqp.declare = true` so that errand does"
                    );
                    (QueueErrorKind::Topology, sentence)
                };
                Err(QueueError::new(kind, sentence).with_source(error))
            }
        }
    }

    async fn bind(
        &self,
        generation: &Generation,
        lane: &QueueName,
        name: ShortString,
    ) -> Result<(), QueueError> {
        let channel = generation.channel().await?;
        let what = format!("binding of queue `{name}`");
        let (exchange, key) = (wire::EXCHANGE.into(), lane.as_str().into());
        let bound =
            channel.queue_bind(name, exchange, key, QueueBindOptions::default(), FieldTable::default());
        match outcome(&what, timeout(BROKER_TIMEOUT, bound).await)? {
            // A binding cannot be looked at; without it, publishing says that the lane is unroutable.
            Outcome::There(()) | Outcome::Refused => Ok(()),
            Outcome::Missing(error) | Outcome::Differs(error) => {
                Err(failed(&format!("make the {what}"), error))
            }
        }
    }

    fn arguments(&self, what: &Thing) -> FieldTable {
        let mut arguments = FieldTable::default();
        if let Thing::Queue(_) = what {
            let queue_type = match self.queue_type {
                QueueType::Quorum => {
                    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
                    "quorum"
                }
                QueueType::Classic => "classic",
            };
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.into()));
        }
        arguments
    }
}

/// Something that errand needs on the broker.
enum Thing {
    Exchange,
    Queue(ShortString),
}

impl Thing {
    /// Declares it with these arguments, or only looks whether it is there.
    async fn ask(
        &self,
        generation: &Generation,
        declare: Option<FieldTable>,
    ) -> Result<Outcome<()>, QueueError> {
        let channel = generation.channel().await?;
        let passive = declare.is_none();
        let arguments = declare.unwrap_or_default();
        let asked = async {
            match self {
                Thing::Exchange => {
                    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                    let (name, kind) = (wire::EXCHANGE.into(), ExchangeKind::Direct);
                    channel.exchange_declare(name, kind, options, arguments).await
                }
                Thing::Queue(name) => {
                    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
                    channel.queue_declare(name.clone(), options, arguments).await.map(drop)
                }
            }
        };
        outcome(self, timeout(BROKER_TIMEOUT, asked).await)
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Exchange => write!(f, "exchange `{}`", wire::EXCHANGE),
            Thing::Queue(name) => write!(f, "queue `{name}`"),
        }
    }
}

/// Whether the exchange is known not to be there.
pub(super) async fn exchange_is_missing(generation: &Generation) -> Result<bool, QueueError> {
    Ok(matches!(Thing::Exchange.ask(generation, None).await?, Outcome::Missing(_)))
}

/// Looks at the queue of a lane, and whether the exchange is there that feeds it.
pub(super) async fn depth(generation: &Generation, lane: &QueueName) -> Result<Depth, QueueError> {
    if let Outcome::Missing(error) = Thing::Exchange.ask(generation, None).await? {
        return Err(failed(&format!("find the {}", Thing::Exchange), error));
    }
    let name = queue(lane)?;
    let what = Thing::Queue(name.clone());
    let channel = generation.channel().await?;
    let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    let declared = channel.queue_declare(name, options, FieldTable::default());
    match outcome::<Queue>(&what, timeout(BROKER_TIMEOUT, declared).await)? {
        Outcome::There(queue) => Ok(Depth {
            ready: u64::from(queue.message_count()),
            consumers: u64::from(queue.consumer_count()),
        }),
        Outcome::Missing(error) | Outcome::Differs(error) => Err(failed(&format!("find the {what}"), error)),
        Outcome::Refused => Err(QueueError::new(
            QueueErrorKind::Access,
            format!("RabbitMQ does not let this user look at the {what}"),
        )),
    }
}

/// What the broker says to a declaration.
enum Outcome<T> {
    There(T),
    Missing(lapin::Error),
    Differs(lapin::Error),
    Refused,
}

fn outcome<T>(
    what: &(dyn fmt::Display + Sync),
    result: Result<lapin::Result<T>, tokio::time::error::Elapsed>,
) -> Result<Outcome<T>, QueueError> {
    let Ok(result) = result else {
        let sentence = format!("RabbitMQ did not answer about the {what} in time");
        return Err(QueueError::new(QueueErrorKind::Unavailable, sentence));
    };
    match result {
        Ok(there) => Ok(Outcome::There(there)),
        Err(error) => match reply_code(&error) {
            Some(ACCESS_REFUSED) => Ok(Outcome::Refused),
            Some(NOT_FOUND) => Ok(Outcome::Missing(error)),
            Some(PRECONDITION_FAILED) => Ok(Outcome::Differs(error)),
            _ => Err(failed(&format!("declare the {what}"), error)),
        },
    }
}

fn queue(lane: &QueueName) -> Result<ShortString, QueueError> {
    ShortString::try_new(wire::queue_name(lane.as_str())).map_err(|error| {
        QueueError::new(QueueErrorKind::Unroutable, "the lane's name is too long").with_source(error)
    })
}
