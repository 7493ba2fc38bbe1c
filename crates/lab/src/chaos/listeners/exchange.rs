//! The listener with a queue of its own at the exchange for events.

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand_testbed::services::rabbitmq::Vhost;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::{
    ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::told::Heard;
use crate::chaos::environment::patiently;

/// The exchange, as errand declares it.
const EXCHANGE: &str = "errand.events";

/// The queue. Its name is none that a policy for errand's own queues is about.
const QUEUE: &str = "listener";

/// How many messages are on their way that are not acknowledged.
const PREFETCH: u16 = 100;

/// The pause before it connects again, and how long it may take to leave what is broken.
const PAUSE: Duration = Duration::from_millis(300);
const LEAVE: Duration = Duration::from_secs(1);

/// Consumes its queue and acknowledges what it has heard, whatever breaks, for as long as this lives.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) heard: Heard,
    _following: AbortOnDropHandle<()>,
}

impl Exchange {
    /// Begins with the next event that is published.
    pub(super) async fn start(vhost: &Vhost) -> Result<Self> {
        patiently(|| bind(vhost).boxed()).await.context("cannot bind a queue to the exchange for events")?;
        let heard = Heard::default();
        let following = tokio::spawn(follow(vhost.clone(), heard.clone()));
        Ok(Self { heard, _following: AbortOnDropHandle::new(following) })
    }
}

async fn bind(vhost: &Vhost) -> lapin::Result<()> {
    let connection = vhost.connect().await?;
    let channel = connection.create_channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    // A quorum queue keeps what was confirmed also when the broker is killed.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "#".into(), options, none).await?;
    connection.close(200, "bound".into()).await
}

async fn follow(vhost: Vhost, heard: Heard) {
    loop {
        // An error is a fault of the round.
        drop(consume(&vhost, &heard).await);
        sleep(PAUSE).await;
    }
}

/// Consumes until something breaks.
async fn consume(vhost: &Vhost, heard: &Heard) -> lapin::Result<()> {
    let connection = vhost.connect().await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel.basic_consume(QUEUE.into(), "".into(), options, none).await?;
    let consumed = async {
        while let Some(delivery) = deliveries.next().await {
            let delivery = delivery?;
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
            heard.read(&id.unwrap_or_default(), serde_json::from_slice(&delivery.data));
            delivery.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    };
    let consumed = consumed.await;
    // Otherwise the broker might keep for this connection what was not acknowledged.
    drop(timeout(LEAVE, connection.close(200, "broken".into())).await);
    consumed
}
