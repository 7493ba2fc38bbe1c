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
    job::{
        Arrival, Edit, EnvelopeError, ErrorKind, JobId, JobSpec, Principal, QueueName, Rules, State, Unfit,
        decode, encode, named_queue,
    },
    queue::{Address, Message, Properties, SharedQueue},
    store::{
        Beginning, Conflict, Decided, Decider, Edited, Inserted, JobView, RejectedView, Repeat, Repeated,
        SharedStore, StoreError,
    },
    telemetry::seldom::Seldom,
};

#[derive(Debug, Clone)]
pub enum Enqueued {
    /// It is stored, and the store or the queue will bring it to a worker.
    New { id: JobId, beginning: Beginning },
    /// It was enqueued before; this is the job that stands for it.
    Duplicate(JobId),
    /// It may not run; nothing was stored.
    Refused(Unfit),
    /// Its ID or idempotency key is taken; nothing was stored.
    Conflict(Conflict),
}

/// Jobs that are stored, of which the queue does not know yet.
#[derive(Debug)]
pub struct Stored {
    jobs: Vec<Arc<JobSpec>>,
    inserted: Vec<Inserted>,
}

impl Stored {
    /// Those that are new and may run now.
    fn available(&self) -> impl Iterator<Item = &Arc<JobSpec>> {
        let is_available =
            |answer: &Inserted| matches!(answer, Inserted::New(Beginning { state: State::Available, .. }));
        self.jobs
            .iter()
            .zip(&self.inserted)
            .filter(move |(_, answer)| is_available(answer))
            .map(|(spec, _)| spec)
    }
}

/// What became of a change of a job that waits.
#[derive(Debug, Clone)]
pub enum EditAnswer {
    Decided(Decided),
    /// It may not be like that; nothing changed.
    Refused(Unfit),
    /// It is not the job that whoever asks has read; nothing changed.
    Unexpected,
}

/// How a rejected message is read again, and who says so.
#[derive(Debug, Clone, Copy)]
pub struct Requeue<'a> {
    /// Whether its job runs without a reply.
    pub without_reply: bool,
    /// Whether its job runs whoever published it.
    pub any_publisher: bool,
    /// The body that is taken instead of its own.
    pub corrected: Option<&'a [u8]>,
    pub by: &'a Decider,
}

impl Requeue<'_> {
    /// The queue that the job of a message will be in.
    pub fn queue(&self, view: &RejectedView) -> QueueName {
        self.corrected.and_then(named_queue).unwrap_or_else(|| view.message.queue.clone())
    }
}

/// What a rejected message is now.
#[derive(Debug, Clone)]
pub enum Requeued {
    New(JobId),
    /// It was this job before; nothing new is enqueued.
    Known(JobId),
    /// It was requeued before; nothing changed.
    Before,
    /// It stays rejected, for this reason.
    Refused(String),
}

static NOT_HANDED_OVER: Seldom = Seldom::new();
static NOT_BROUGHT_FORWARD: Seldom = Seldom::new();
static NOT_NOTED: Seldom = Seldom::new();

/// How often a change is tried anew, because the job was another one when it was made.
const EDIT_TRIES: usize = 5;

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
        let (answers, stored) = self.insert(chunk).await?;
        self.hand_over(&stored).await;
        Ok(answers)
    }

    /// Stores a batch of up to [`CLAIM_BATCH`] jobs; answers are in its order. What is new waits for [`Self::hand_over`], or
    /// else for the relay.
    pub async fn insert(&self, batch: &[Arc<JobSpec>]) -> Result<(Vec<Enqueued>, Stored), StoreError> {
        let now = self.clock.now();
        let checked: Vec<_> = batch.iter().map(|spec| self.check(spec, now)).collect();
        let fits = batch.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let fit: Vec<Arc<JobSpec>> = fits.map(|(spec, _)| spec.clone()).collect();
        let unclaimed_after = if self.queue.is_some() { self.unclaimed_after } else { Duration::ZERO };
        let inserted = match fit.as_slice() {
            [] => Vec::new(),
            fit => self.store.insert(fit, unclaimed_after).await?,
        };
        let jobs: Vec<JobId> = fit
            .iter()
            .zip(&inserted)
            .map(|(spec, answer)| match answer {
                Inserted::Duplicate(Repeated { id, .. }) => *id,
                Inserted::New(_) | Inserted::Conflict(_) => spec.id,
            })
            .collect();
        self.note_other_ids(&fit, &jobs).await;
        let mut answers = fit.iter().zip(&inserted);
        let answers = checked
            .into_iter()
            .filter_map(|checked| match checked {
                Err(unfit) => Some(Enqueued::Refused(unfit)),
                Ok(()) => answers.next().map(|(spec, answer)| match answer {
                    Inserted::New(beginning) => Enqueued::New { id: spec.id, beginning: *beginning },
                    Inserted::Duplicate(repeated) => Enqueued::Duplicate(repeated.id),
                    Inserted::Conflict(conflict) => Enqueued::Conflict(*conflict),
                }),
            })
            .collect();
        Ok((answers, Stored { jobs: fit, inserted }))
    }

    /// Reads a rejected message again and enqueues it. For the operator, who has found the message.
    pub async fn requeue(&self, view: &RejectedView, how: &Requeue<'_>) -> Result<Requeued, StoreError> {
        let RejectedView { message, requeued_at, .. } = view;
        if requeued_at.is_some() {
            return Ok(Requeued::Before);
        }
        let mut properties: Properties = serde_json::from_str(&message.properties).unwrap_or_default();
        if how.without_reply {
            properties.reply_to = None;
        }
        // The message's own ID, so that a requeue that was interrupted makes one job, not two.
        let arrival = properties.arrival(&message.queue, Some(JobId(message.id)));
        // What the store sent has an ID and an owner that were taken before.
        let arrival = Arrival { known: properties.from_store, ..arrival };
        let spec = match decode(how.corrected.unwrap_or(&message.body), &arrival) {
            Ok(spec) => Arc::new(spec),
            Err(error) => return Ok(Requeued::Refused(error.message)),
        };
        if !how.any_publisher
            && let Err(error) = self.check_publisher(&spec)
        {
            let message =
                format!("{}; with `any_publisher` (--any-publisher) it runs all the same", error.message);
            return Ok(Requeued::Refused(message));
        }
        let done = match self.enqueue(&[spec]).await?.into_iter().next() {
            Some(Enqueued::New { id, .. }) => Requeued::New(id),
            Some(Enqueued::Duplicate(job)) => Requeued::Known(job),
            Some(Enqueued::Refused(unfit)) => {
                return Ok(Requeued::Refused(unfit.error.message().to_owned()));
            }
            Some(Enqueued::Conflict(conflict)) => {
                return Ok(Requeued::Refused(conflict.message()));
            }
            None => return Ok(Requeued::Refused("the database gave no answer; try again".to_owned())),
        };
        let corrected = how.corrected.map(<[u8]>::to_vec);
        self.store.mark_requeued(&Principal::Operator, message.id, how.by, corrected).await?;
        Ok(done)
    }

    /// Changes when, where or until when a job runs that waits. `is_expected` judges the job as it is read, in each try.
    /// A job that is like that already stays as it is.
    pub async fn edit(
        &self,
        principal: &Principal,
        id: JobId,
        edit: &Edit,
        by: &Decider,
        is_expected: impl Fn(&JobView) -> bool,
    ) -> Result<EditAnswer, StoreError> {
        for _ in 0..EDIT_TRIES {
            let Some(job) = self.store.job(principal, id).await? else {
                return Ok(EditAnswer::Decided(Decided::Unknown));
            };
            if !is_expected(&job) {
                return Ok(EditAnswer::Unexpected);
            }
            let now = self.store.now().await?;
            let after = match job.spec.edited(edit) {
                Ok(after) => after,
                Err(error) => return Ok(EditAnswer::Refused(error.into())),
            };
            if let Err(unfit) = self.rules.check(&after, now) {
                return Ok(EditAnswer::Refused(unfit));
            }
            let edited = Edited::new(&job, after, now);
            if let Err(illegal) = edited.transition().apply(job.state) {
                return Ok(EditAnswer::Decided(Decided::Illegal(illegal)));
            }
            if edited.before.changes(&edited.after).is_empty() {
                return Ok(EditAnswer::Decided(Decided::Now(job.state)));
            }
            match self.store.edit(principal, &edited, by).await? {
                Decided::Changed => {}
                decided => return Ok(EditAnswer::Decided(decided)),
            }
        }
        Ok(EditAnswer::Decided(Decided::Changed))
    }

    /// Checks whether its publisher may enqueue jobs of its owner.
    pub fn check_publisher(&self, spec: &JobSpec) -> Result<(), EnvelopeError> {
        self.rules.publishers.check(spec)
    }

    /// Checks a job by itself, by what the settings allow.
    pub fn check(&self, spec: &JobSpec, now: Timestamp) -> Result<(), Unfit> {
        self.rules.check(spec, now)?;
        if spec.callback.is_some() && !self.rules.sends_callbacks {
            let what = "`callback` would tell nothing, because no callbacks are sent (`callbacks.enabled`); leave it out, or ask the operator";
            return Err(Unfit::new("callback", ErrorKind::InvalidJob, what));
        }
        let refused = |error: EnvelopeError| Unfit::new("reply_to", ErrorKind::InvalidJob, error.message);
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
            && let Some(jobs) = NOT_NOTED.due(repeats.len())
        {
            tracing::warn!(jobs, error = %chain(&error), "jobs cannot be found by the other IDs that repeat them");
        }
    }

    /// Publishes what was just stored. No failure here is one of enqueueing: the relay looks after jobs that nobody claims.
    pub async fn hand_over(&self, stored: &Stored) {
        let Some(queue) = &self.queue else { return };
        let (ids, messages): (Vec<JobId>, _) =
            stored.available().map(|spec| (spec.id, message(spec))).unzip();
        let published = ids.into_iter().zip(queue.publish(messages).await);
        let (failed, errors): (Vec<JobId>, Vec<_>) =
            published.filter_map(|(id, answer)| Some((id, answer.err()?))).unzip();
        if let Some(error) = errors.first()
            && let Some(jobs) = NOT_HANDED_OVER.due(failed.len())
        {
            let what = "stored jobs could not be handed to the broker; the relay of a worker publishes them";
            tracing::warn!(jobs, job.id = %failed[0], error = %chain(error), "{what}");
        }
        self.bring_forward(&failed).await;
    }

    /// Lets the relay publish at once what was just stored, instead of handing it over.
    pub async fn leave_to_relay(&self, stored: &Stored) {
        // Without a broker it does so anyway.
        if self.queue.is_some() {
            self.bring_forward(&stored.available().map(|spec| spec.id).collect::<Vec<_>>()).await;
        }
    }

    /// Makes jobs due that the relay would only look for when nobody claims them.
    async fn bring_forward(&self, jobs: &[JobId]) {
        if !jobs.is_empty()
            && let Err(error) = self.store.defer(jobs, Duration::ZERO).await
            && let Some(jobs) = NOT_BROUGHT_FORWARD.due(jobs.len())
        {
            tracing::warn!(jobs, error = %chain(&error), "stored jobs are published only when the relay misses them");
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
            kind: None,
            timestamp: None,
            died_in: None,
            from_store: true,
            unreadable: None,
            other: BTreeMap::new(),
        },
        priority: u8::try_from(spec.priority).unwrap_or(0),
    }
}
