//! Jobs that apps enqueue by the SQL function: each is judged, stored and handed to the queue.
//!
//! One worker at a time looks for them. Each becomes a job or is kept as rejected before it is forgotten, and is the same job
//! when it is read once more, so a process that dies, or two that look at once, repeat or lose none. What SQL could not judge is
//! judged here as if it had come by a queue: a job that may not run fails, and what is no job, or none of its caller's, is kept.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    admission::{Admission, Enqueued},
    backoff::RECONNECT,
    bounds::CLAIM_BATCH,
    failure::chain,
    job::{
        Arrival, EnvelopeError, EnvelopeReason, JobError, JobSpec, QueueName, RequestId, Stop, WorkerId,
        decode, named_queue,
    },
    queue::{Properties, SharedQueue},
    services::Services,
    store::{
        Claim, Claimed, Conflict, InboxEntry, Inserted, Rejected, SharedStore, StoreError, StoreErrorKind,
        Task,
    },
    task_lease::{ASKED_EVERY, TaskLease},
    telemetry::metrics,
};

/// How often the inbox is looked at for some time after something was there, and otherwise.
const BUSY: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_millis(250);
const STAYS_BUSY: Duration = Duration::from_secs(60);

/// How many entries behind the last one are looked at each time, because transactions commit in another order than they enqueued; and
/// how often all are, for the sake of transactions that stay open. What is gone from the table is passed over more slowly
/// while something keeps the database from cleaning up.
const COMMIT_LATER: i64 = 10_000;
const LOOKS_AT_ALL: Duration = Duration::from_secs(5);

/// How many entries of a page may stay where they are, because the database does not take them at present, until that is its own
/// fault and not theirs.
const MAX_LEFT: usize = 8;

/// Why an entry is rejected that errand cannot even look at.
const PANICKED: &str = "a bug in errand ended the reading of this job, and its log says where: report it, and requeue the job with a \
    build that has it mended";

/// The namespace of the IDs under which entries are kept as rejected.
const REJECTED_NAMESPACE: Uuid = Uuid::from_u128(0x0f7e_51a4_2b6d_5c1e_8e0f_9d43_7c5a_1b28);

#[derive(Debug)]
pub struct Inbox {
    store: SharedStore,
    queue: SharedQueue,
    admission: Admission,
    lanes: Vec<QueueName>,
    worker: WorkerId,
    lease: TaskLease,
    busy_until: Instant,
    /// The last entry that was forgotten, and when all are to be looked at again and not only those about it.
    last: i64,
    all_at: Instant,
}

/// What became of a job that may not run.
enum Unfit {
    Failed,
    /// It was there before, and is as it was.
    Known,
    NoJob(Box<Rejected>),
}

impl Inbox {
    /// Makes jobs through `admission`, for these lanes.
    pub fn new(services: &Services, admission: Admission, lanes: Vec<QueueName>, worker: WorkerId) -> Self {
        let Services { store, queue, .. } = services.clone();
        let lease = TaskLease::new(store.clone(), Task::TakeIn, worker);
        let now = Instant::now();
        Self { store, queue, admission, lanes, worker, lease, busy_until: now, last: 0, all_at: now }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let wait = match self.look().await {
                Ok(None) => {
                    failures = 0;
                    ASKED_EVERY
                }
                Ok(Some(taken)) => {
                    failures = 0;
                    if taken > 0 {
                        self.busy_until = Instant::now() + STAYS_BUSY;
                    }
                    match Instant::now() < self.busy_until {
                        _ if taken == CLAIM_BATCH => continue,
                        true => BUSY,
                        false => IDLE,
                    }
                }
                Err(error) => {
                    failures += 1;
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    if failures == 1 {
                        tracing::warn!(error = %chain(&error), "jobs that were enqueued by SQL cannot be read; trying again");
                    }
                    RECONNECT.wait(failures, fastrand::f64())
                }
            };
            stop.run_until_cancelled(sleep(wait)).await;
        }
        self.lease.leave().await;
    }

    /// Makes jobs of a page of entries, and says of how many; `None` while another worker has the task.
    async fn look(&mut self) -> Result<Option<usize>, StoreError> {
        if !self.lease.is_held().await? {
            return Ok(None);
        }
        let now = Instant::now();
        let looks_at_all = self.all_at <= now;
        let behind = if looks_at_all { 0 } else { self.last - COMMIT_LATER };
        let entries = self.store.inbox(behind, CLAIM_BATCH).await?;
        if looks_at_all && entries.len() < CLAIM_BATCH {
            self.all_at = now + LOOKS_AT_ALL;
        }
        let (mut parts, mut taken, mut left) = (vec![&entries[..]], 0, Vec::new());
        // One that the database does not take keeps no other back.
        while let Some(part) = parts.pop() {
            match (self.take(part).await, part) {
                (Ok(()), _) => taken += part.len(),
                (Err(error), [entry]) if error.kind() == StoreErrorKind::Data => {
                    self.refuse(entry, &error).await?;
                    taken += 1;
                }
                (Err(error), [_]) if left.len() < MAX_LEFT => left.push(error),
                (Err(error), _) => {
                    if error.is_unanswered() || part.len() == 1 {
                        return Err(error);
                    }
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        self.last = entries.iter().map(|entry| entry.id).fold(self.last, i64::max);
        // It is looked at again; if all failed, the store is to blame.
        match left.pop() {
            Some(error) if taken == 0 => Err(error),
            _ => Ok(Some(taken)),
        }
    }

    /// Keeps what the database does not take as a job.
    async fn refuse(&self, entry: &InboxEntry, why: &StoreError) -> Result<(), StoreError> {
        let what = format!("the database refuses the job: {}", chain(why));
        let rejected = rejected(entry, EnvelopeError::new(EnvelopeReason::BadValue, what));
        let kept = self.store.reject(std::slice::from_ref(&rejected)).await;
        if kept.is_err_and(|error| error.kind() == StoreErrorKind::Data) {
            self.store.reject(&[rejected.clone().into_plain()]).await?;
        }
        self.store.clear_inbox(&[entry.id]).await?;
        tell_rejected(&[rejected]);
        Ok(())
    }

    async fn take(&self, entries: &[InboxEntry]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (mut jobs, mut no_jobs) = (Vec::new(), Vec::new());
        for entry in entries {
            // One on which it panics would come again and again.
            match catch_unwind(AssertUnwindSafe(|| self.judge(entry))).unwrap_or_else(panicked) {
                Ok(spec) => jobs.push((entry, Arc::new(spec))),
                Err(error) => no_jobs.push(rejected(entry, error)),
            }
        }
        let specs: Vec<Arc<JobSpec>> = jobs.iter().map(|(_, spec)| spec.clone()).collect();
        let (answers, stored) = self.admission.insert(&specs).await?;
        let noted = self.note(entries, jobs, answers, no_jobs).await;
        // They are stored, whatever became of the others.
        if self.queue.connected() {
            self.admission.hand_over(&stored).await;
        } else {
            self.admission.leave_to_relay(&stored).await;
        }
        noted
    }

    /// Notes what became of entries, and forgets them.
    async fn note(
        &self,
        entries: &[InboxEntry],
        jobs: Vec<(&InboxEntry, Arc<JobSpec>)>,
        answers: Vec<Enqueued>,
        mut no_jobs: Vec<Rejected>,
    ) -> Result<(), StoreError> {
        let (mut new, mut known, mut unfit) = (0, 0, Vec::new());
        for ((entry, spec), answer) in jobs.into_iter().zip(answers) {
            match answer {
                Enqueued::New { .. } => new += 1,
                Enqueued::Duplicate(_) => known += 1,
                Enqueued::Refused(wrong) => unfit.push((entry, spec, wrong.error)),
                Enqueued::Conflict(conflict) => no_jobs.push(conflicting(entry, conflict)),
            }
        }
        let mut failed = 0;
        for (entry, spec, error) in unfit {
            match self.fail(entry, spec, error).await? {
                Unfit::Failed => failed += 1,
                Unfit::Known => known += 1,
                Unfit::NoJob(rejected) => no_jobs.push(*rejected),
            }
        }
        if !no_jobs.is_empty() {
            self.store.reject(&no_jobs).await?;
        }
        let ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
        self.store.clear_inbox(&ids).await?;
        tell_rejected(&no_jobs);
        for (result, jobs) in [("new", new), ("known", known), ("failed", failed)] {
            metrics::SQL_JOBS.add([result], jobs);
        }
        Ok(())
    }

    /// Stores a job that may not run as failed, unless it is known already.
    async fn fail(
        &self,
        entry: &InboxEntry,
        spec: Arc<JobSpec>,
        error: JobError,
    ) -> Result<Unfit, StoreError> {
        match self.store.known(&spec).await? {
            Some(Inserted::Conflict(conflict)) => {
                return Ok(Unfit::NoJob(Box::new(conflicting(entry, conflict))));
            }
            Some(_) => return Ok(Unfit::Known),
            None => {}
        }
        let stop = Some(Stop::Fail { error });
        let request_id = RequestId::new();
        let claim = Claim { spec, request_id, binding: None, stop, from_store: false, published_at: None };
        match self.store.claim(self.worker, &[claim]).await?.pop() {
            Some(Claimed::Conflict(conflict)) => Ok(Unfit::NoJob(Box::new(conflicting(entry, conflict)))),
            Some(Claimed::Duplicate(_)) => Ok(Unfit::Known),
            _ => Ok(Unfit::Failed),
        }
    }

    /// The job that an entry is, or why it is none.
    fn judge(&self, entry: &InboxEntry) -> Result<JobSpec, EnvelopeError> {
        let body = entry.envelope.as_bytes();
        let queue = named_queue(body).unwrap_or_default();
        let id = entry.job.to_string();
        let arrival =
            Arrival { message_id: Some(&id), publisher: Some(&entry.caller), ..Arrival::new(&queue) };
        let spec = decode(body, &arrival)?;
        self.admission.check_publisher(&spec)?;
        if !self.lanes.contains(&spec.queue) {
            let known: Vec<&str> = self.lanes.iter().map(QueueName::as_str).collect();
            let what = format!("`queue` names none that there is; use one of {}", known.join(", "));
            return Err(EnvelopeError::new(EnvelopeReason::BadValue, what));
        }
        Ok(spec)
    }
}

fn panicked(_: Box<dyn Any + Send>) -> Result<JobSpec, EnvelopeError> {
    metrics::PANICS.add([], 1);
    Err(EnvelopeError::new(EnvelopeReason::BadValue, PANICKED))
}

fn conflicting(entry: &InboxEntry, conflict: Conflict) -> Rejected {
    rejected(entry, EnvelopeError::new(conflict.reason(), conflict.message()))
}

fn tell_rejected(kept: &[Rejected]) {
    metrics::SQL_JOBS.add(["rejected"], kept.len() as u64);
    for rejected in kept {
        metrics::REJECTED.add([rejected.reason.as_str()], 1);
        tracing::warn!(
            rejected.id = %rejected.id,
            job.id = rejected.job.map(tracing::field::display),
            reason = %rejected.reason,
            error = rejected.message,
            "what was enqueued by SQL is no job, and kept"
        );
    }
}

/// An entry that is kept because no job can be made of it. A requeue meets the same ID and the same caller.
fn rejected(entry: &InboxEntry, error: EnvelopeError) -> Rejected {
    let EnvelopeError { reason, message, .. } = error;
    let properties = Properties {
        message_id: Some(entry.job.to_string()),
        user_id: Some(entry.caller.clone()),
        ..Properties::default()
    };
    Rejected {
        id: Uuid::new_v5(
            &REJECTED_NAMESPACE,
            &[&entry.id.to_be_bytes()[..], entry.job.0.as_bytes()].concat(),
        ),
        queue: named_queue(entry.envelope.as_bytes()).unwrap_or_default(),
        reason,
        message,
        body: entry.envelope.clone().into_bytes(),
        properties: serde_json::to_string(&properties).unwrap_or_else(|_| "{}".into()),
        job: Some(entry.job),
        asked: None,
    }
}
