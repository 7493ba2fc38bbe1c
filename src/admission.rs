//! The one door: a job that does not come through a queue is born here.
//!
//! A job is inserted into the store first and handed to the queue second. If the hand-over fails, the relay of any worker
//! publishes it; so what the caller was told is true whatever happens to the broker.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    bounds::CLAIM_BATCH,
    clock::SharedClock,
    failure::chain,
    job::{EnvelopeError, ErrorKind, JobError, JobId, JobSpec, Rules, State, encode},
    queue::{Address, Message, Properties, SharedQueue},
    store::{Conflict, Inserted, Repeat, Repeated, SharedStore, StoreError},
};

#[derive(Debug, Clone)]
pub enum Enqueued {
    /// It is stored, and the store or the queue will bring it to a worker.
    New(JobId),
    /// It was enqueued before; this is the job that stands for it.
    Duplicate(JobId),
    /// It may not run; nothing was stored.
    Refused(JobError),
    /// Its ID or idempotency key is taken; nothing was stored.
    Conflict(Conflict),
}

#[derive(Debug, Clone)]
pub struct Admission {
    store: SharedStore,
    queue: Option<SharedQueue>,
    clock: SharedClock,
    rules: Rules,
    unclaimed_after: Duration,
}

impl Admission {
    /// A door into `store`. With a `queue`, jobs are handed over at once and the relay looks after
    /// those that nobody claimed within `unclaimed_after`; without one, the relay publishes them.
    pub fn new(
        store: SharedStore,
        queue: Option<SharedQueue>,
        clock: SharedClock,
        rules: Rules,
        unclaimed_after: Duration,
    ) -> Self {
        Self { store, queue, clock, rules, unclaimed_after }
    }

    /// Enqueues a batch; answers are in its order. After an error of the store, it may be enqueued again as it is.
    pub async fn enqueue(&self, batch: &[Arc<JobSpec>]) -> Result<Vec<Enqueued>, StoreError> {
        let mut answers = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(CLAIM_BATCH) {
            answers.extend(self.enqueue_chunk(chunk).await?);
        }
        Ok(answers)
    }

    async fn enqueue_chunk(&self, chunk: &[Arc<JobSpec>]) -> Result<Vec<Enqueued>, StoreError> {
        let now = self.clock.now();
        let checked: Vec<_> = chunk.iter().map(|spec| self.check(spec, now)).collect();
        let fits = chunk.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let fit: Vec<Arc<JobSpec>> = fits.map(|(spec, _)| spec.clone()).collect();
        let unclaimed_after = if self.queue.is_some() { self.unclaimed_after } else { Duration::ZERO };
        let inserted = self.store.insert(&fit, unclaimed_after).await?;
        self.hand_over(&fit, &inserted).await;
        let jobs: Vec<JobId> = fit
            .iter()
            .zip(&inserted)
            .map(|(spec, answer)| match answer {
                Inserted::Duplicate(Repeated { id, .. }) => *id,
                Inserted::New { .. } | Inserted::Conflict(_) => spec.id,
            })
            .collect();
        self.note_other_ids(&fit, &jobs).await;
        let mut inserted = fit.iter().zip(inserted);
        Ok(checked
            .into_iter()
            .filter_map(|checked| match checked {
                Err(error) => Some(Enqueued::Refused(error)),
                Ok(()) => inserted.next().map(|(spec, answer)| match answer {
                    Inserted::New { .. } => Enqueued::New(spec.id),
                    Inserted::Duplicate(repeated) => Enqueued::Duplicate(repeated.id),
                    Inserted::Conflict(conflict) => Enqueued::Conflict(conflict),
                }),
            })
            .collect())
    }

    /// Checks a job by itself, by what the settings allow.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check(&self, spec: &JobSpec, now: Timestamp) -> Result<(), JobError> {
        self.rules.check(spec, now)?;
        let refused = |error: EnvelopeError| JobError::new(ErrorKind::InvalidJob, error.message);
        self.rules.replies.check(spec).map_err(refused)
    }

    /// Lets the first job be found by the IDs of those that repeat it, of which each stands beside its job. The caller is told
    /// the first ID, so that no failure here is one of enqueueing.
    pub async fn note_other_ids(&self, specs: &[Arc<JobSpec>], jobs: &[JobId]) {
        let renamed = specs.iter().zip(jobs).filter(|(spec, job)| **job != spec.id && spec.is_named);
        let repeats: Vec<Repeat> =
            renamed.map(|(spec, job)| Repeat { job: *job, id: spec.id, asked: None }).collect();
        if !repeats.is_empty()
            && let Err(error) = self.store.note_repeats(&repeats).await
        {
            tracing::warn!(jobs = repeats.len(), error = %chain(&error), "jobs cannot be found by the other IDs that repeat them");
        }
    }

    /// Publishes what was just stored. No failure here is one of enqueueing: the relay looks after jobs that nobody claims.
    async fn hand_over(&self, specs: &[Arc<JobSpec>], inserted: &[Inserted]) {
        let Some(queue) = &self.queue else { return };
        let is_available = |answer: &Inserted| matches!(answer, Inserted::New { state: State::Available });
        let available = specs.iter().zip(inserted).filter(|(_, answer)| is_available(answer));
        let (ids, messages): (Vec<JobId>, _) = available.map(|(spec, _)| (spec.id, message(spec))).unzip();
        let published = ids.into_iter().zip(queue.publish(messages).await);
        let (failed, errors): (Vec<JobId>, Vec<_>) =
            published.filter_map(|(id, answer)| Some((id, answer.err()?))).unzip();
        if let Some(error) = errors.first() {
            let what = "stored jobs could not be handed to the broker; the relay of a worker publishes them";
            tracing::warn!(jobs = failed.len(), job.id = %failed[0], error = %chain(error), "{what}");
        }
        if !failed.is_empty()
            && let Err(error) = self.store.defer(&failed, Duration::ZERO).await
        {
            tracing::warn!(jobs = failed.len(), error = %chain(&error), "stored jobs are published only when the relay misses them");
        }
    }
}

/// The message that carries a stored job to a worker.
pub fn message(spec: &JobSpec) -> Message {
    Message {
        to: Address::Lane(spec.queue.clone()),
        body: encode(spec).into(),
        properties: Properties {
            message_id: Some(spec.id.to_string()),
            correlation_id: spec.correlation_id.clone(),
            reply_to: spec.reply_to.clone(),
            user_id: None,
            content_type: Some("application/json".into()),
            traceparent: spec.traceparent.clone(),
            reply: None,
            timestamp: None,
            died_in: None,
            from_store: true,
            unreadable: None,
            other: BTreeMap::new(),
        },
        priority: u8::try_from(spec.priority).unwrap_or(0),
    }
}
