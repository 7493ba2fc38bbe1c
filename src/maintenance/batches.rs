//! Looks after batches: counts their jobs, completes them, and carries out what was decided about them.
//!
//! What a batch is follows from its jobs, so nothing that works on a job has to know of batches, and nothing is lost when a
//! look is cut off. A batch is looked at often while its counts change, and ever less often while they do not.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::rounds;
use crate::{
    bounds::MAX_CHUNK_ITEMS,
    failure::chain,
    job::{Arrival, HeldReason, JobId, Principal, State, decode, named_queue},
    services::Services,
    store::{
        Decided, Decider, Doing, Force, Glance, Inserted, JobFilter, Orders, Place, Result, StoreError,
        TakenBatch,
    },
    telemetry::metrics,
};

/// How often the store is asked for batches that are to be looked at.
const POLL: Duration = Duration::from_millis(500);

/// Most batches that are taken together.
const TAKEN: usize = 20;

/// What a process that died had taken is taken again after this; longer than a look at all that are taken together.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// How long a process that stops tries to give back what it has taken.
const GIVING_BACK: Duration = Duration::from_secs(2);

/// The wait between two looks, which is an eighth of the time for which nothing has changed.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);
const SHARE: u32 = 8;

/// How long a batch takes items. Whoever forgets to seal one gets it sealed.
const OPEN_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Most decisions about jobs of one batch that are under way at once.
const DECIDED_TOGETHER: usize = 4;

/// Who calls off the rest of a batch by itself.
const BY_DEADLINE: &str = "deadline of the batch";
const BY_FAILURES: &str = "failures in the batch";

#[derive(Debug)]
pub struct Batches {
    services: Services,
}

/// Whether a batch is looked at again, and when.
enum Next {
    /// What changes it has said when.
    AsItSays,
    After(Duration),
}

impl Batches {
    /// Looks after the batches of this store; wakes the relay when it made jobs due.
    pub fn new(services: &Services) -> Self {
        Self { services: services.clone() }
    }

    /// Looks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        rounds(&stop, POLL, TAKEN, "the watch over batches", || self.run_once(&stop)).await;
    }

    /// Looks at the batches of which it is time; returns how many that were. At `stop`, those that it has not put off are for
    /// the next process at once.
    ///
    /// # Errors
    /// The store does not answer. Batches that were taken are taken again later.
    async fn run_once(&self, stop: &CancellationToken) -> Result<usize, StoreError> {
        let taken = self.services.store.take_batches(TAKEN, TAKEN_FOR).await?;
        if let Some(looked) = stop.run_until_cancelled(self.look_at_each(&taken)).await {
            looked?;
        } else {
            let given_back =
                taken.iter().map(|batch| self.services.store.put_off_batch(batch, Duration::ZERO));
            // Where the store does not answer, they are taken again later.
            drop(timeout(GIVING_BACK, join_all(given_back)).await);
        }
        Ok(taken.len())
    }

    async fn look_at_each(&self, taken: &[TakenBatch]) -> Result<(), StoreError> {
        for batch in taken {
            let next = match self.look(batch).await {
                Ok(next) => next,
                Err(error) if error.kind().is_of_the_whole_store() => return Err(error),
                // As while somebody has locked a job of it, for which no other batch waits.
                Err(error) => {
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    tracing::warn!(batch.id = %batch.batch.id, error = %chain(&error), "a batch is looked at again later");
                    Next::After(LONGEST)
                }
            };
            if let Next::After(after) = next {
                self.services.store.put_off_batch(batch, after).await?;
            }
        }
        Ok(())
    }

    async fn look(&self, taken: &TakenBatch) -> Result<Next> {
        let (store, batch) = (&self.services.store, &taken.batch);
        if let Some((doing, orders)) = &taken.doing {
            let place = self.carry_out(taken, *doing, orders).await?;
            store.advance_batch(taken, place).await?;
            return Ok(Next::After(Duration::ZERO));
        }
        if batch.sealed_at.is_none() && taken.age >= OPEN_FOR {
            store.seal_batch(&batch.principal, batch.id).await?;
            return Ok(Next::AsItSays);
        }
        let may_cancel = batch.cancelled.is_none() && batch.completed_at.is_none();
        if taken.is_past_deadline && may_cancel {
            store.cancel_batch(&batch.principal, batch.id, &by_itself(BY_DEADLINE)).await?;
            return Ok(Next::AsItSays);
        }
        let Some(counted) = store.count_batch(batch.id, MAX_CHUNK_ITEMS).await? else {
            return Ok(Next::AsItSays);
        };
        if may_cancel && counted.open > 0 && batch.stop.is_some_and(|stop| stop.applies(&counted.counts)) {
            store.cancel_batch(&batch.principal, batch.id, &by_itself(BY_FAILURES)).await?;
            return Ok(Next::AsItSays);
        }
        if counted.open == 0 && batch.sealed_at.is_some() {
            self.follow_up(taken).await?;
            if store.complete_batch(taken).await? {
                metrics::BATCHES_COMPLETED.add([], 1);
                return Ok(Next::AsItSays);
            }
        }
        Ok(Next::After((counted.unchanged_for / SHARE).clamp(SHORTEST, LONGEST)))
    }

    /// Decides about some jobs of a batch. Returns where to go on; `None` when all are decided about.
    async fn carry_out(&self, taken: &TakenBatch, doing: Doing, orders: &Orders) -> Result<Option<Place>> {
        let batch = &taken.batch;
        let filter = JobFilter { batch: Some(batch.id), ..JobFilter::default() };
        let page = self.services.store.glances(&batch.principal, &filter, orders.place, false).await?;
        let is_meant = |job: &Glance| match doing {
            Doing::Cancel => may_be_called_off(job),
            // One that failed since then has been run again.
            Doing::Retry => {
                job.state == State::Failed && job.finished_for.is_some_and(|since| since > orders.given_for)
            }
        };
        let mut meant = Vec::new();
        for job in &page.items {
            if is_meant(job) {
                meant.push(job.id);
            }
        }
        let mut passing = None;
        let by = Decider { by: orders.by.clone().into(), origin: format!("batch {}", batch.id).into() };
        for together in meant.chunks(DECIDED_TOGETHER) {
            let mut decisions = Vec::with_capacity(together.len());
            for job in together {
                decisions.push(self.decide(&batch.principal, *job, doing, &by, orders.force));
            }
            for (job, decided) in together.iter().zip(join_all(decisions).await) {
                let Err(error) = decided else { continue };
                if error.kind().is_of_the_whole_store() {
                    return Err(error);
                }
                if error.kind().passes() {
                    passing = Some(error);
                } else {
                    tracing::warn!(batch.id = %batch.id, job.id = %job, error = %chain(&error), "a batch leaves a job as it is");
                }
            }
        }
        if !meant.is_empty() {
            self.services.relay_wake.notify_one();
        }
        // The page is gone through again, for those of its jobs that could not be decided about.
        passing.map_or(Ok(page.next), Err)
    }

    async fn decide(
        &self,
        principal: &Principal,
        job: JobId,
        doing: Doing,
        by: &Decider,
        force: bool,
    ) -> Result<Decided> {
        let store = &self.services.store;
        match doing {
            Doing::Cancel => store.cancel(principal, job, by).await,
            Doing::Retry => {
                let force = Force { effect: force, early: true };
                store.restart(principal, job, by, force).await
            }
        }
    }

    /// Enqueues the job that follows a batch. It has an ID of its own, so that there is one, however often this is done.
    async fn follow_up(&self, taken: &TakenBatch) -> Result<()> {
        let (Some(envelope), Some(id)) = (&taken.follow_up, taken.batch.follow_up()) else { return Ok(()) };
        let batch = taken.batch.id;
        let queue = named_queue(envelope.as_bytes()).unwrap_or_default();
        let arrival = Arrival { fallback_id: Some(id), known: true, ..Arrival::new(&queue) };
        // If it cannot be enqueued the batch is complete all the same: there is nothing to wait for.
        let spec = match decode(envelope.as_bytes(), &arrival) {
            Ok(spec) => Arc::new(spec),
            Err(error) => {
                tracing::error!(batch.id = %batch, error = %chain(&error), "the job that follows a batch cannot be read");
                return Ok(());
            }
        };
        match self.services.store.insert(&[spec], Duration::ZERO).await?.first() {
            Some(Inserted::Conflict(_)) => {
                tracing::error!(batch.id = %batch, job.id = %id, "the job that follows a batch is not enqueued, because another has its ID");
            }
            _ => self.services.relay_wake.notify_one(),
        }
        Ok(())
    }
}

/// What errand decides because somebody has asked for it before.
fn by_itself(by: &'static str) -> Decider {
    Decider { by: by.into(), origin: "errand".into() }
}

/// What is not final, but for calls of which nobody knows what became.
fn may_be_called_off(job: &Glance) -> bool {
    match job.state {
        State::Scheduled | State::Available | State::Running | State::Retryable => true,
        State::Held => !job.held_reason.is_some_and(HeldReason::may_have_run),
        State::Succeeded | State::Failed | State::Cancelled => false,
    }
}
