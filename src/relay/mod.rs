//! The relay brings due and unclaimed jobs from the store to the queue, and replies to the apps that asked for them. Beside it,
//! [`EventPublisher`] and [`CallbackSender`] bring events to those who listen, and [`Inbox`] makes jobs of what apps enqueue by SQL.
//!
//! First start, retry, rescue and release all take this path. Several processes may run it at once; the store gives each
//! row to one of them. A publication that is not confirmed leaves the job due.
//!
//! What the broker refuses by itself, or does not confirm while it answers, waits by itself, longer each time: a
//! job until it is published, a reply until its offers are used up; its result stays in the store. What fails because the
//! connection broke, or because the broker takes nothing, is tried again soon and does not count as published. A round
//! reads a bounded number of bytes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    admission::message,
    backoff::RECONNECT,
    bounds::MAX_BATCH_BYTES,
    failure::chain,
    job::{JobId, ReplyRules},
    queue::{Message, QueueError, QueueErrorKind},
    services::Services,
    store::StoreError,
    telemetry::metrics,
};

mod callbacks;
mod events;
mod inbox;
mod replies;

pub use self::{
    callbacks::{CallbackSender, MAX_BODY_BYTES, PATIENCE, SCHEDULE},
    events::EventPublisher,
    inbox::Inbox,
};

/// How soon jobs and replies are tried again that were not published because the broker takes nothing at present.
const DEFER: Duration = Duration::from_secs(2);

/// How soon jobs are tried again whose queue confirms nothing, while they are few.
const STUCK_AGAIN: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub struct Options {
    /// The longest time between two looks at the store.
    pub poll: Duration,
    pub batch: usize,
    /// When an available job that nobody claimed is published again.
    pub unclaimed: Duration,
    /// Where replies may go. Admission asks the same, but a row may be older than the rules.
    pub replies: ReplyRules,
    /// Whether apps are told that their jobs are held.
    pub held: bool,
}

/// What became of a page of jobs or replies, or of both.
#[derive(Default)]
struct Round {
    /// More may be due than one page had room for.
    more: bool,
    /// What is still to be published because the broker takes nothing at present.
    failed: usize,
}

#[derive(Debug)]
pub struct Relay {
    services: Services,
    options: Options,
}

impl Relay {
    /// A relay between store and queue, which `relay_wake` makes look before its time.
    pub fn new(services: &Services, options: Options) -> Self {
        Self { services: services.clone(), options }
    }

    pub async fn run(self, stop: CancellationToken) {
        if !self.services.queue.survives_restart() {
            // The messages of the last process are gone with it, so nothing that is available has one.
            let mut failures = 0;
            while let Err(error) = self.services.store.republish_all().await {
                tracing::warn!(error = %chain(&error), "the relay cannot read the store; trying again");
                failures += 1;
                let wait = tokio::time::sleep(RECONNECT.wait(failures, fastrand::f64()));
                if stop.run_until_cancelled(wait).await.is_none() {
                    return;
                }
            }
        }
        let mut failures = 0;
        while !stop.is_cancelled() {
            let wait = match self.run_once().await {
                Ok(round) if round.failed > 0 => {
                    failures += 1;
                    RECONNECT.wait(failures, fastrand::f64())
                }
                Ok(round) if round.more => {
                    failures = 0;
                    continue;
                }
                Ok(_) => {
                    failures = 0;
                    self.until_next_due().await
                }
                Err(error) => {
                    failures += 1;
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    if failures == 1 {
                        tracing::warn!(error = %chain(&error), "the relay cannot reach the store; trying again");
                    }
                    RECONNECT.wait(failures, fastrand::f64())
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                // A wake-up cannot make a failing service answer, so backoff is not cut short by it.
                () = self.services.relay_wake.notified(), if failures == 0 => {}
            }
        }
    }

    /// Wakes the relays of these services whenever somebody else writes to the store, as far as the store can tell.
    pub async fn watch(services: Services, stop: CancellationToken) {
        let Services { store, relay_wake, .. } = services;
        let mut failures = 0;
        while let Some(Err(error)) = stop.run_until_cancelled(store.watch(&relay_wake)).await {
            // Whoever looks for jobs says that the store is away.
            tracing::debug!(error = %chain(&error), "the store cannot be watched; trying again");
            failures += 1;
            stop.run_until_cancelled(tokio::time::sleep(RECONNECT.wait(failures, fastrand::f64()))).await;
        }
    }

    /// One round: publishes what is due, then replies. After an error, what was taken is looked at again in time.
    async fn run_once(&self) -> Result<Round, StoreError> {
        let [jobs, results, answers] =
            [self.publish_jobs().await?, self.publish_results().await?, self.publish_answers().await?];
        Ok(Round {
            more: jobs.more || results.more || answers.more,
            failed: jobs.failed + results.failed + answers.failed,
        })
    }

    async fn publish_jobs(&self) -> Result<Round, StoreError> {
        let due = self.services.store.take_due(self.options.batch, self.options.unclaimed).await?;
        let messages: Vec<Message> = due.iter().map(|due| message(&due.spec)).collect();
        let sizes: Vec<usize> = messages.iter().map(|message| message.body.len()).collect();
        let more = self.fills_a_page(&messages);
        let (mut failed, mut refused) = (Failures::default(), Failures::default());
        let (mut published, mut cut_off) = (0, Vec::new());
        let (mut stuck, mut stuck_bytes) = (Vec::new(), 0);
        for ((due, answer), size) in due.iter().zip(self.services.queue.publish(messages).await).zip(sizes) {
            let id = due.spec.id;
            let Err(error) = answer else {
                published += 1;
                metrics::RELAY_PUBLISHED.add([due.was.as_str()], 1);
                continue;
            };
            metrics::RELAY_FAILED.add([error.kind().as_str()], 1);
            if error.kind().concerns_one_message() {
                if error.kind() == QueueErrorKind::Stuck {
                    stuck.push(id);
                    stuck_bytes += size;
                }
                refused.add(id, error);
                continue;
            }
            if matches!(error.kind(), QueueErrorKind::Unavailable | QueueErrorKind::Unconfirmed) {
                cut_off.push(id);
            }
            failed.add(id, error);
        }
        failed.log("jobs could not be published; they stay due");
        // A refused job waits as one that nobody claims, so longer with every publication.
        refused.log("the broker refuses jobs; each is published again after ever longer waits");
        // Where others got through, those that a broken connection cut off are tried again soon. What else failed has a
        // lane that does not take it, and waits as a job that nobody claims.
        let again = if published == 0 { &failed.ids } else { &cut_off };
        if !again.is_empty() {
            self.services.store.defer(again, DEFER).await?;
        }
        // All queues may be silent for a moment, and a few jobs can ask again soon. So many that they fill pages would keep
        // those behind them waiting.
        let few = stuck.len() <= self.options.batch / 2 && stuck_bytes <= MAX_BATCH_BYTES / 4;
        if few && !stuck.is_empty() {
            self.services.store.defer(&stuck, STUCK_AGAIN).await?;
        }
        Ok(Round { more, failed: failed.ids.len() })
    }

    /// Whether a page had no room for more, or hardly any.
    fn fills_a_page<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) -> bool {
        let (mut count, mut bytes) = (0, 0);
        for message in messages {
            count += 1;
            bytes += message.body.len();
        }
        count == self.options.batch || bytes > MAX_BATCH_BYTES / 2
    }

    async fn until_next_due(&self) -> Duration {
        let next = self.services.store.next_due_in().await.ok().flatten();
        // A little later than the exact time costs less than finding nothing and asking again.
        next.map_or(self.options.poll, |next| (next + Duration::from_millis(1)).min(self.options.poll))
    }
}

/// What was not published for the same kind of reason.
#[derive(Default)]
struct Failures {
    ids: Vec<JobId>,
    first: Option<QueueError>,
}

impl Failures {
    fn add(&mut self, id: JobId, error: QueueError) {
        self.ids.push(id);
        self.first.get_or_insert(error);
    }

    /// One line for all, with the first of them and its error.
    fn log(&self, what: &'static str) {
        if let (Some(id), Some(error)) = (self.ids.first(), &self.first) {
            tracing::warn!(job.id = %id, count = self.ids.len(), error = %chain(error), "{what}");
        }
    }
}
