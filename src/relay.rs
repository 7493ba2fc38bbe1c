//! The relay brings due and unclaimed jobs from the store to the queue, and results to the apps that asked for a reply.
//!
//! First start, retry, rescue and release all take this path. Several processes may run it at once; the store gives each
//! row to one of them. A publication that is not confirmed leaves the job due.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    admission::message,
    backoff::RECONNECT,
    failure::chain,
    job::JobId,
    job_json,
    queue::{Address, Message, Properties, QueueErrorKind},
    services::Services,
    store::StoreError,
    telemetry::metrics,
};

/// How soon a job is tried again whose publication was not confirmed.
const DEFER: Duration = Duration::from_secs(2);

/// When a reply is offered again that was taken by a process which then vanished.
const REPLY_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The longest time between two looks at the store.
    pub poll: Duration,
    pub batch: usize,
    /// When an available job that nobody claimed is published again.
    pub unclaimed: Duration,
}

/// How many jobs a round brought to the queue, and how many stay due.
#[derive(Default)]
struct Round {
    published: usize,
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
                Ok(round) if round.published == self.options.batch => {
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

    /// One round: publishes what is due, then replies. After an error, what was taken is looked at again in time.
    async fn run_once(&self) -> Result<Round, StoreError> {
        let due = self.services.store.take_due(self.options.batch, self.options.unclaimed).await?;
        let messages = due.iter().map(|due| message(&due.spec)).collect();
        let mut round = Round::default();
        let mut failed: Vec<JobId> = Vec::new();
        for (due, answer) in due.iter().zip(self.services.queue.publish(messages).await) {
            match answer {
                Ok(()) => {
                    round.published += 1;
                    metrics::RELAY_PUBLISHED.add([due.was.as_str()], 1);
                }
                Err(error) => {
                    if failed.is_empty() {
                        tracing::warn!(queue = %due.spec.queue, error = %chain(&error), "jobs could not be published; they stay due");
                    }
                    metrics::RELAY_FAILED.add([error.kind().as_str()], 1);
                    failed.push(due.spec.id);
                }
            }
        }
        if !failed.is_empty() {
            round.failed = failed.len();
            self.services.store.defer(&failed, DEFER).await?;
        }
        self.reply().await?;
        Ok(round)
    }

    async fn until_next_due(&self) -> Duration {
        let next = self.services.store.next_due_in().await.ok().flatten();
        // A little later than the exact time costs less than finding nothing and asking again.
        next.map_or(self.options.poll, |next| (next + Duration::from_millis(1)).min(self.options.poll))
    }

    async fn reply(&self) -> Result<(), StoreError> {
        let replies = self.services.store.take_replies(self.options.batch, REPLY_AGAIN).await?;
        if replies.is_empty() {
            return Ok(());
        }
        let messages = replies
            .iter()
            .map(|job| Message {
                // The store takes no job without an address; if it did, the broker would say that there is no such queue.
                to: Address::Reply(job.spec.reply_to.clone().unwrap_or_default()),
                body: serde_json::to_vec(&job_json::job_json(job, None)).unwrap_or_default().into(),
                properties: Properties {
                    message_id: Some(job.spec.id.to_string()),
                    correlation_id: job.spec.correlation_id.clone(),
                    content_type: Some("application/json".into()),
                    traceparent: job.spec.traceparent.clone(),
                    ..Properties::default()
                },
                priority: 0,
            })
            .collect();
        let mut done = Vec::new();
        for (job, answer) in replies.iter().zip(self.services.queue.publish(messages).await) {
            match answer {
                Ok(()) => {
                    metrics::REPLIES.add(["sent"], 1);
                    done.push(job.spec.id);
                }
                // Nobody listens any more; the result stays readable in the store.
                Err(error) if error.kind() == QueueErrorKind::Unroutable => {
                    metrics::REPLIES.add(["dropped"], 1);
                    tracing::info!(job.id = %job.spec.id, "the reply queue is gone; the result is in the store");
                    done.push(job.spec.id);
                }
                Err(_) => {}
            }
        }
        if !done.is_empty() {
            self.services.store.replied(&done).await?;
        }
        Ok(())
    }
}
