//! The exchanges and the queues that errand declares on the broker: one exchange for jobs with one queue for each lane, and
//! one exchange for events, to which whoever wants them binds queues.
//!
//! Each declaration has its own channel, because the broker answers a refusal by ending the channel. A user without the
//! permission to configure may use what exists: then it is only looked at, and what cannot even be looked at is taken
//! for granted, since consuming and publishing say precisely what is missing.
//!
//! Queues have as few arguments as possible, because arguments can never be changed; the rest belongs into a policy.
//! Beside the type there is the delivery limit of quorum queues: RabbitMQ 4 drops a message silently after 20 deliveries
//! that were not acknowledged, which a worker in a crash loop reaches soon. A policy with the limit would need an
//! administrator (and may still lower it), and 3.10 refuses the `-1` of RabbitMQ 4.
//!
//! Where an operator wants limits, a policy dead-letters to the queue `errand.dead`, which is declared like a lane and
//! which workers empty. Whether a policy does so, only the management API tells (`management`).

use std::{collections::HashMap, fmt, sync::Arc};

use futures_util::future::join_all;
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{sync::Mutex, time::timeout};

use super::{
    connector::Session,
    error::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, failed, reply_code},
    wire,
};
use crate::{
    job::{QueueName, QueueType},
    queue::{BROKER_TIMEOUT, Depth, QueueError, QueueErrorKind},
    sync::lock,
};

/// The delivery limit of quorum queues, which no message reaches.
const DELIVERY_LIMIT: i32 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Topology {
    queue_type: QueueType,
    declare: bool,
    /// For each lane, whose turn it is to declare it.
    declaring: std::sync::Mutex<HashMap<QueueName, Arc<Mutex<()>>>>,
}

impl Topology {
    pub(super) fn new(queue_type: QueueType, declare: bool) -> Self {
        Self { queue_type, declare, declaring: std::sync::Mutex::default() }
    }

    /// Makes sure that the exchange and the queues of these lanes exist.
    pub(super) async fn ensure(&self, session: &Session, lanes: &[QueueName]) -> Result<(), QueueError> {
        self.ensure_each(session, lanes).await?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Does the same, and returns the lanes that cannot be used, each with its error. An error of the whole says that no
    /// lane can be, because of the exchange or of the connection.
    pub(super) async fn ensure_each(
        &self,
        session: &Session,
        lanes: &[QueueName],
    ) -> Result<Vec<(QueueName, QueueError)>, QueueError> {
        self.ensure_resource(session, &Resource::LaneExchange).await?;
        // Side by side, so that queues that do not answer take no longer than one of them.
        let ensured = join_all(lanes.iter().map(|lane| self.ensure_lane(session, lane))).await;
        let failed =
            lanes.iter().zip(ensured).filter_map(|(lane, ensured)| Some((lane.clone(), ensured.err()?)));
        let mut failed: Vec<_> = failed.collect();
        let unavailable = failed.iter().position(|(_, error)| error.kind() == QueueErrorKind::Unavailable);
        if let Some(place) = unavailable
            && !session.answers().await
        {
            return Err(failed.swap_remove(place).1);
        }
        Ok(failed)
    }

    /// Makes sure that the exchange for events exists.
    pub(super) async fn ensure_event_exchange(&self, session: &Session) -> Result<(), QueueError> {
        self.ensure_resource(session, &Resource::EventExchange).await
    }

    async fn ensure_lane(&self, session: &Session, lane: &QueueName) -> Result<(), QueueError> {
        // RabbitMQ 3.10 says that a quorum queue is there while another connection is still declaring it, and ends the
        // connection that consumes too early. Among processes this can still happen, and consuming again helps.
        let turn = Arc::clone(lock(&self.declaring).entry(lane.clone()).or_default());
        // Where the turn does not come in time, nothing is lost by declaring beside the other: the broker answers both.
        let _turn = timeout(BROKER_TIMEOUT, turn.lock()).await.ok();
        let name = lane_queue(lane)?;
        self.ensure_resource(session, &Resource::Queue(name.clone())).await?;
        // What is dead-lettered comes through the default exchange, and nobody publishes there.
        if self.declare && lane.as_str() != QueueName::DEAD {
            self.bind(session, lane, name).await?;
        }
        Ok(())
    }

    /// Declares the resource, or checks that it exists, or both. The error says what an operator has to do.
    async fn ensure_resource(&self, session: &Session, resource: &Resource) -> Result<(), QueueError> {
        if self.declare {
            match resource.declare_or_probe(session, Some(self.arguments(resource))).await? {
                Outcome::Exists(_) => return Ok(()),
                Outcome::Differs(error) => {
                    let type_hint = match resource {
                        Resource::Queue(_) => "set `amqp.queue_type` to the type that it has, or ",
                        Resource::LaneExchange | Resource::EventExchange => "",
                    };
                    let sentence = format!(
                        "RabbitMQ has the {resource} with another type or other arguments than errand declares: \
                         {type_hint}set `amqp.declare = false` to use it as it is, or delete it"
                    );
                    return Err(QueueError::new(QueueErrorKind::Topology, sentence).with_source(error));
                }
                Outcome::Missing(error) => return Err(failed(&format!("declare the {resource}"), error)),
                Outcome::Refused => {}
            }
        }
        match resource.declare_or_probe(session, None).await? {
            // Some versions refuse even to look without the permission to configure.
            Outcome::Exists(_) | Outcome::Refused => Ok(()),
            Outcome::Missing(error) | Outcome::Differs(error) => {
                let refused = if self.declare {
                    let sentence = format!(
                        "RabbitMQ has no {resource}, and this user may not create it: create it, or give the user the \
                         permission to configure `errand.*`"
                    );
                    QueueError::new(QueueErrorKind::Access, sentence)
                } else {
                    let sentence = format!(
                        "RabbitMQ has no usable {resource}: create it, or set `amqp.declare = true` so that errand does"
                    );
                    QueueError::new(QueueErrorKind::Topology, sentence)
                };
                Err(refused.with_source(error))
            }
        }
    }

    async fn bind(&self, session: &Session, lane: &QueueName, name: ShortString) -> Result<(), QueueError> {
        let channel = session.channel().await?;
        let what = format!("binding of queue `{name}`");
        let (exchange, key) = (wire::EXCHANGE.into(), lane.as_str().into());
        let bound =
            channel.queue_bind(name, exchange, key, QueueBindOptions::default(), FieldTable::default());
        match outcome(&what, timeout(BROKER_TIMEOUT, bound).await)? {
            // A binding cannot be looked at; without it, publishing says that the lane is unroutable.
            Outcome::Exists(()) | Outcome::Refused => Ok(()),
            Outcome::Missing(error) | Outcome::Differs(error) => {
                Err(failed(&format!("make the {what}"), error))
            }
        }
    }

    fn arguments(&self, resource: &Resource) -> FieldTable {
        let mut arguments = FieldTable::default();
        if let Resource::Queue(_) = resource {
            if self.queue_type == QueueType::Quorum {
                arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
            }
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(self.queue_type.as_str().into()));
        }
        arguments
    }
}

enum Resource {
    LaneExchange,
    EventExchange,
    Queue(ShortString),
}

impl Resource {
    /// Declares the resource with these arguments, or only asks whether it exists. An exchange has no depth.
    async fn declare_or_probe(
        &self,
        session: &Session,
        declare: Option<FieldTable>,
    ) -> Result<Outcome<Depth>, QueueError> {
        let channel = session.channel().await?;
        let passive = declare.is_none();
        let arguments = declare.unwrap_or_default();
        let asked = async {
            match self {
                Resource::LaneExchange | Resource::EventExchange => {
                    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                    let (name, kind) = match self {
                        Resource::EventExchange => (wire::EVENT_EXCHANGE, ExchangeKind::Topic),
                        _ => (wire::EXCHANGE, ExchangeKind::Direct),
                    };
                    channel.exchange_declare(name.into(), kind, options, arguments).await?;
                    Ok(Depth::default())
                }
                Resource::Queue(name) => {
                    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
                    let queue = channel.queue_declare(name.clone(), options, arguments).await?;
                    Ok(Depth {
                        ready: queue.message_count().into(),
                        consumers: queue.consumer_count().into(),
                    })
                }
            }
        };
        outcome(self, timeout(BROKER_TIMEOUT, asked).await)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::LaneExchange => write!(f, "exchange `{}`", wire::EXCHANGE),
            Resource::EventExchange => write!(f, "exchange `{}`", wire::EVENT_EXCHANGE),
            Resource::Queue(name) => write!(f, "queue `{name}`"),
        }
    }
}

pub(super) async fn exchange_is_missing(session: &Session) -> Result<bool, QueueError> {
    Ok(matches!(Resource::LaneExchange.declare_or_probe(session, None).await?, Outcome::Missing(_)))
}

/// Returns the depth of a lane, if its queue and the exchange exist.
pub(super) async fn depth(session: &Session, lane: &QueueName) -> Result<Depth, QueueError> {
    if let Outcome::Missing(error) = Resource::LaneExchange.declare_or_probe(session, None).await? {
        return Err(failed(&format!("find the {}", Resource::LaneExchange), error));
    }
    let queue = Resource::Queue(lane_queue(lane)?);
    match queue.declare_or_probe(session, None).await? {
        Outcome::Exists(depth) => Ok(depth),
        Outcome::Missing(error) | Outcome::Differs(error) => Err(failed(&format!("find the {queue}"), error)),
        Outcome::Refused => Err(QueueError::new(
            QueueErrorKind::Access,
            format!("RabbitMQ does not let this user look at the {queue}"),
        )),
    }
}

/// The answer of the broker to a declaration.
enum Outcome<T> {
    Exists(T),
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
        Ok(there) => Ok(Outcome::Exists(there)),
        Err(error) => match reply_code(&error) {
            Some(ACCESS_REFUSED) => Ok(Outcome::Refused),
            Some(NOT_FOUND) => Ok(Outcome::Missing(error)),
            Some(PRECONDITION_FAILED) => Ok(Outcome::Differs(error)),
            _ => Err(failed(&format!("declare the {what}"), error)),
        },
    }
}

fn lane_queue(lane: &QueueName) -> Result<ShortString, QueueError> {
    ShortString::try_new(wire::queue_name(lane.as_str())).map_err(|error| {
        QueueError::new(QueueErrorKind::Unroutable, "the lane's name is too long").with_source(error)
    })
}
