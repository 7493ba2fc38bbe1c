//! An in-process queue, for development, demonstrations and machines without a broker.
//!
//! Messages live in memory and end with the process: the relay publishes again whatever the store still has. A lane holds
//! a bounded number of messages: those that wait and those that are not settled. There are no priorities.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    Address, Consumer, Delivery, Depth, Message, PolicyRisk, Properties, Queue, QueueError, QueueErrorKind,
    Settler, Token,
};
use crate::{job::QueueName, sync::lock};

/// How long a batch of messages may wait for room before the rest of it is refused as [`QueueErrorKind::Full`].
pub const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

/// Lanes in memory, shared by all parts of this process.
#[derive(Debug)]
pub struct EmbeddedQueue {
    capacity: usize,
    closed: AtomicBool,
    lanes: Mutex<BTreeMap<QueueName, Arc<Lane>>>,
    replies: Mutex<HashMap<String, mpsc::Sender<Message>>>,
}

impl EmbeddedQueue {
    /// A queue with these lanes, each of up to `capacity` messages.
    pub fn new(lanes: impl IntoIterator<Item = QueueName>, capacity: usize) -> Self {
        let lanes = lanes.into_iter().map(|name| (name, Arc::new(Lane::new(capacity)))).collect();
        Self {
            capacity,
            closed: AtomicBool::new(false),
            lanes: Mutex::new(lanes),
            replies: Mutex::new(HashMap::new()),
        }
    }

    /// Creates a reply queue, in place of one of this name, until the receiver is dropped. It holds as much as a lane.
    pub fn reply_queue(&self, name: impl Into<String>) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(self.capacity.max(1));
        let mut replies = lock(&self.replies);
        replies.retain(|_, sender| !sender.is_closed());
        replies.insert(name.into(), sender);
        receiver
    }

    fn lane(&self, name: &QueueName) -> Option<Arc<Lane>> {
        lock(&self.lanes).get(name).cloned()
    }

    fn ensure_open(&self) -> Result<(), QueueError> {
        if self.closed.load(Relaxed) { Err(closed()) } else { Ok(()) }
    }

    async fn publish_one(&self, message: Message, deadline: Instant) -> Result<(), QueueError> {
        self.ensure_open()?;
        let full = |_| QueueError::new(QueueErrorKind::Full, "the embedded queue has no room");
        match &message.to {
            Address::Lane(name) => {
                let lane = self.lane(name).ok_or_else(|| unroutable("lane", name))?;
                timeout_at(deadline, lane.push(message)).await.map_err(full)?
            }
            Address::Reply(name) => {
                let sender = lock(&self.replies).get(name).cloned();
                let sender = sender.ok_or_else(|| unroutable("reply queue", name))?;
                let name = name.clone();
                let sent = timeout_at(deadline, sender.send(message)).await.map_err(full)?;
                sent.map_err(|_closed| unroutable("reply queue", &name))
            }
            Address::Events(_) => Err(no_event_exchange()),
        }
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    fn backend(&self) -> &'static str {
        "embedded"
    }

    fn survives_restart(&self) -> bool {
        false
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<(), QueueError>> {
        let deadline = Instant::now() + ROOM_TIMEOUT;
        let mut answers = Vec::with_capacity(batch.len());
        for message in batch {
            answers.push(self.publish_one(message, deadline).await);
        }
        answers
    }

    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        self.ensure_open()?;
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(queue.clone()).or_insert_with(|| Arc::new(Lane::new(self.capacity)));
        lane.state().consumers += 1;
        let subscription = Subscription {
            lane: Arc::clone(lane),
            prefetch: usize::from(prefetch.max(1)),
            unsettled: Mutex::new(Unsettled::default()),
        };
        Ok(Box::new(EmbeddedConsumer { subscription: Arc::new(subscription), stopped: false }))
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        let lane = self.lane(queue).ok_or_else(|| unroutable("lane", queue))?;
        let state = lane.state();
        Ok(Depth { ready: state.ready.len() as u64, consumers: state.consumers as u64 })
    }

    async fn check(&self) -> Result<String, QueueError> {
        self.ensure_open()?;
        Ok("embedded queue".to_owned())
    }

    async fn check_events(&self) -> Result<(), QueueError> {
        Err(no_event_exchange())
    }

    async fn policy_risks(&self) -> Result<Option<Vec<PolicyRisk>>, QueueError> {
        Ok(Some(Vec::new()))
    }

    fn connected(&self) -> bool {
        !self.closed.load(Relaxed)
    }

    fn reconnects(&self) -> u64 {
        0
    }

    async fn close(&self) {
        self.closed.store(true, Relaxed);
        lock(&self.replies).clear();
        for lane in lock(&self.lanes).values() {
            lane.state().closed = true;
            lane.changed.notify_waiters();
        }
    }
}

/// One lane. `changed` is notified whenever a waiting publisher or consumer may go on.
#[derive(Debug)]
struct Lane {
    capacity: usize,
    state: Mutex<LaneState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct LaneState {
    /// The tokens of waiting messages mean nothing.
    ready: VecDeque<Delivery>,
    unsettled: usize,
    consumers: usize,
    closed: bool,
}

impl Lane {
    fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        lock(&self.state)
    }

    async fn push(&self, message: Message) -> Result<(), QueueError> {
        // A broker keeps the properties that it knows; `other` is only for what arrives.
        let properties = Properties { other: BTreeMap::new(), ..message.properties };
        let mut stored =
            Some(Delivery { token: Token(0), body: message.body, properties, redelivered: false });
        self.wait_for(|| {
            let mut state = self.state();
            if state.closed {
                return Some(Err(closed()));
            }
            if state.ready.len() + state.unsettled >= self.capacity {
                return None;
            }
            state.ready.extend(stored.take());
            self.changed.notify_waiters();
            Some(Ok(()))
        })
        .await
    }

    /// Repeats `attempt` whenever the lane has changed, until it answers. No message is taken before: it may be dropped.
    async fn wait_for<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the attempt, so that a change in between is not missed.
            changed.as_mut().enable();
            if let Some(answer) = attempt() {
                return answer;
            }
            changed.await;
        }
    }

    /// Returns deliveries to the head of the lane, in the order in which they left it.
    fn put_back(&self, returned: BTreeMap<Token, Delivery>) {
        let mut state = self.state();
        state.unsettled -= returned.len();
        for delivery in returned.into_values().rev() {
            state.ready.push_front(Delivery { redelivered: true, ..delivery });
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

#[derive(Debug)]
struct Subscription {
    lane: Arc<Lane>,
    prefetch: usize,
    /// Locked before the lane's state, never after.
    unsettled: Mutex<Unsettled>,
}

#[derive(Debug, Default)]
struct Unsettled {
    last: u64,
    deliveries: BTreeMap<Token, Delivery>,
}

impl Subscription {
    /// Takes up to `max` messages of the lane, as far as the prefetch allows.
    fn take(&self, max: usize) -> Vec<Delivery> {
        let mut unsettled = lock(&self.unsettled);
        let mut state = self.lane.state();
        let room = self.prefetch.saturating_sub(unsettled.deliveries.len());
        let count = room.min(max.max(1)).min(state.ready.len());
        let deliveries = state.ready.drain(..count).map(|waiting| unsettled.deliver(waiting)).collect();
        state.unsettled += count;
        deliveries
    }
}

#[async_trait]
impl Settler for Subscription {
    async fn ack(&self, tokens: Vec<Token>) -> Result<(), QueueError> {
        let mut unsettled = lock(&self.unsettled);
        let settled = tokens.iter().filter(|token| unsettled.deliveries.remove(token).is_some()).count();
        self.lane.state().unsettled -= settled;
        drop(unsettled);
        self.lane.changed.notify_waiters();
        Ok(())
    }

    async fn give_back(&self, tokens: Vec<Token>) -> Result<(), QueueError> {
        let mut unsettled = lock(&self.unsettled);
        let returned = tokens.iter().filter_map(|token| unsettled.deliveries.remove_entry(token)).collect();
        self.lane.put_back(returned);
        Ok(())
    }
}

impl Unsettled {
    fn deliver(&mut self, waiting: Delivery) -> Delivery {
        self.last += 1;
        let delivery = Delivery { token: Token(self.last), ..waiting };
        self.deliveries.insert(delivery.token, delivery.clone());
        delivery
    }
}

#[derive(Debug)]
struct EmbeddedConsumer {
    subscription: Arc<Subscription>,
    stopped: bool,
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, QueueError> {
        let Subscription { lane, .. } = &*self.subscription;
        if self.stopped {
            return Err(QueueError::new(QueueErrorKind::Unavailable, "the subscription was stopped"));
        }
        lane.wait_for(|| {
            if lane.state().closed {
                return Some(Err(closed()));
            }
            let deliveries = self.subscription.take(max);
            if deliveries.is_empty() { None } else { Some(Ok(deliveries)) }
        })
        .await
    }

    fn settler(&self) -> Arc<dyn Settler> {
        self.subscription.clone()
    }

    async fn stop(&mut self) -> Vec<Delivery> {
        self.leave();
        // Deliveries leave the lane only through `next`.
        Vec::new()
    }
}

impl EmbeddedConsumer {
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.subscription.lane.state().consumers -= 1;
        }
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.leave();
        let mut unsettled = lock(&self.subscription.unsettled);
        self.subscription.lane.put_back(std::mem::take(&mut unsettled.deliveries));
    }
}

fn closed() -> QueueError {
    QueueError::new(QueueErrorKind::Unavailable, "the embedded queue is closed")
}

fn no_event_exchange() -> QueueError {
    QueueError::new(
        QueueErrorKind::Unroutable,
        "the embedded queue has no exchange for events: that needs RabbitMQ",
    )
}

fn unroutable(what: &str, name: &(dyn fmt::Display + Sync)) -> QueueError {
    QueueError::new(QueueErrorKind::Unroutable, format!("there is no {what} `{name}`"))
}
