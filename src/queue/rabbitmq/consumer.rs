//! Subscriptions to lanes, each with a channel, its prefetch, and the acknowledgements of its deliveries.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::time::{Instant, timeout_at};

use super::{
    ack_tracker::{AckFrame, AckTracker},
    connector::Session,
    error::{bounded, failed, has_ended},
    shared::Shared,
    wire,
};
use crate::{
    failure::chain,
    job::QueueName,
    queue::{BROKER_TIMEOUT, Consumer, Delivery, QueueError, QueueErrorKind, Settler, Token},
    sync::lock,
};

pub(super) struct RabbitConsumer {
    deliveries: lapin::Consumer,
    settler: Arc<ChannelSettler>,
    /// Why no more deliveries will come.
    ended: Option<String>,
}

/// Settles deliveries of one channel, and only of this one: after it has ended, settling does nothing.
struct ChannelSettler {
    shared: Arc<Shared>,
    session: Arc<Session>,
    state: Mutex<SettlerState>,
}

struct SettlerState {
    tracker: AckTracker,
    /// `None` when the subscription was dropped.
    channel: Option<Channel>,
}

impl RabbitConsumer {
    /// Subscribes to a lane that was declared.
    pub(super) async fn start(
        shared: Arc<Shared>,
        session: Arc<Session>,
        lane: &QueueName,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        // Zero would mean no limit.
        let prefetch = prefetch.max(1);
        let channel = session.channel().await?;
        bounded("limit the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let queue = ShortString::try_new(wire::queue_name(lane.as_str())).unwrap_or_default();
        let tag = format!("{}-{lane}-{}", shared.endpoint.connection_name, channel.id());
        // Without a tag, because ours is too long, the broker chooses one.
        let tag = ShortString::try_new(tag).unwrap_or_default();
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue, tag, options, FieldTable::default());
        let deliveries = bounded("start to deliver", consume).await?;
        let state = SettlerState { tracker: AckTracker::new(prefetch), channel: Some(channel) };
        let settler = ChannelSettler { shared, session, state: Mutex::new(state) };
        Ok(Self { deliveries, settler: Arc::new(settler), ended: None })
    }

    fn over(&self, why: &str) -> QueueError {
        self.settler.shared.named(QueueError::new(QueueErrorKind::Unavailable, why))
    }

    fn accept(&self, delivery: lapin::message::Delivery) -> Delivery {
        lock(&self.settler.state).tracker.received(delivery.delivery_tag);
        Delivery {
            token: Token(delivery.delivery_tag),
            properties: wire::from_amqp(&delivery.properties),
            body: Bytes::from(delivery.data),
            redelivered: delivery.redelivered,
        }
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, QueueError> {
        if let Some(ended) = &self.ended {
            return Err(self.over(ended));
        }
        // This is the only await, and nothing has been taken from the stream before it.
        let mut next = Some(self.deliveries.next().await);
        let mut batch = Vec::new();
        while let Some(arrived) = next {
            let ended = match arrived {
                Some(Ok(delivery)) => {
                    batch.push(self.accept(delivery));
                    next = if batch.len() < max { self.deliveries.next().now_or_never() } else { None };
                    continue;
                }
                Some(Err(error)) => chain(&failed("keep the subscription", error)),
                None => "RabbitMQ ended the subscription: its queue was deleted or moved".to_owned(),
            };
            self.ended = Some(ended.clone());
            if batch.is_empty() {
                return Err(self.over(&ended));
            }
            break;
        }
        Ok(batch)
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::clone(&self.settler) as Arc<dyn Settler>
    }

    async fn stop(&mut self) -> Vec<Delivery> {
        let mut unseen = Vec::new();
        if self.ended.replace("the subscription was stopped".to_owned()).is_some() {
            return unseen;
        }
        let Some(channel) = lock(&self.settler.state).channel.clone() else { return unseen };
        let cancel = channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        if bounded("end the subscription", cancel).await.is_err() {
            // Then the channel is of no use either, and ends with everything that is unsettled.
            lock(&self.settler.state).channel = None;
            self.settler.shared.consuming.discard_if_silent(&self.settler.session).await;
            return unseen;
        }
        // The stream ends behind what was received before the broker agreed to stop.
        let deadline = Instant::now() + BROKER_TIMEOUT;
        while let Ok(Some(Ok(delivery))) = timeout_at(deadline, self.deliveries.next()).await {
            unseen.push(self.accept(delivery));
        }
        unseen
    }
}

impl Drop for RabbitConsumer {
    fn drop(&mut self) {
        // The channel closes with its last handle, and the broker takes back what is unsettled.
        lock(&self.settler.state).channel = None;
    }
}

#[async_trait]
impl Settler for ChannelSettler {
    async fn ack(&self, tokens: Vec<Token>) -> Result<(), QueueError> {
        self.settle(|tracker, frames| tracker.ack(tokens.iter().map(|token| token.0), frames)).await
    }

    async fn give_back(&self, tokens: Vec<Token>) -> Result<(), QueueError> {
        self.settle(|tracker, frames| tracker.give_back(tokens.iter().map(|token| token.0), frames)).await
    }
}

impl ChannelSettler {
    async fn settle(
        &self,
        decide: impl FnOnce(&mut AckTracker, &mut Vec<AckFrame>) + Send,
    ) -> Result<(), QueueError> {
        let writes = self.start_writes(decide);
        let all = async {
            for write in writes {
                match write.await {
                    // A channel that has ended meanwhile has given everything back, which is no error.
                    Err(error) if has_ended(&error) => return Ok(()),
                    written => written?,
                }
            }
            Ok(())
        };
        let written = bounded("take acknowledgements", all).await;
        written.map_err(|error| {
            self.shared.consuming.discard(&self.session);
            self.shared.named(error)
        })
    }

    /// Decides and starts to write under one lock, because the broker must see frames in the order in
    /// which they were decided. A started write happens even if nobody waits for it.
    fn start_writes(&self, decide: impl FnOnce(&mut AckTracker, &mut Vec<AckFrame>)) -> Vec<Write> {
        let mut state = lock(&self.state);
        let SettlerState { tracker, channel } = &mut *state;
        let Some(channel) = channel.as_ref().filter(|channel| channel.status().connected()) else {
            return Vec::new();
        };
        let mut frames = Vec::new();
        decide(tracker, &mut frames);
        let mut writes = Vec::with_capacity(frames.len());
        for frame in frames {
            let mut write = write(channel.clone(), frame);
            match (&mut write).now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => writes.push(std::future::ready(Err(error)).boxed()),
                None => writes.push(write),
            }
        }
        writes
    }
}

type Write = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

fn write(channel: Channel, frame: AckFrame) -> Write {
    async move {
        match frame {
            AckFrame::AckThrough(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
            AckFrame::AckOne(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
            AckFrame::Requeue(tag) => {
                channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
            }
        }
    }
    .boxed()
}

impl fmt::Debug for RabbitConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConsumer")
            .field("tag", &self.deliveries.tag())
            .field("ended", &self.ended)
            .finish()
    }
}

impl fmt::Debug for ChannelSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSettler").finish_non_exhaustive()
    }
}
