//! Batches as JSON.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    job::{BatchId, JobId, Owner, State},
    store::{BatchView, Counts, Doing, StopRule},
};

/// A batch. Every key is always there.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Batch {
    #[schema(value_type = Uuid)]
    id: BatchId,
    /// `null`: the operator's.
    owner: Option<Owner>,
    created_at: Timestamp,
    /// Whether it takes no more items.
    sealed: bool,
    /// How many items it has.
    total: u64,
    /// 1, and one more each time that its failed jobs were run again.
    generation: u32,
    /// Since when it is sealed and all of its jobs have ended.
    completed_at: Option<Timestamp>,
    /// How many items are in each state; after its completion, how many were then.
    counts: Counts,
    deadline: Option<Timestamp>,
    stop_when: Option<StopRule>,
    /// Who called off its rest.
    cancelled_by: Option<String>,
    cancelled_at: Option<Timestamp>,
    /// What is being done with its jobs.
    doing: Option<Doing>,
    /// The job that is enqueued once it is complete.
    follow_up_id: Option<JobId>,
}

impl From<BatchView> for Batch {
    fn from(batch: BatchView) -> Self {
        let follow_up_id = batch.follow_up();
        let (cancelled_by, cancelled_at) = batch.cancelled.unzip();
        Self {
            id: batch.id,
            owner: batch.principal.owner().cloned(),
            created_at: batch.created_at,
            sealed: batch.sealed_at.is_some(),
            total: batch.items,
            generation: batch.generation,
            completed_at: batch.completed_at,
            counts: batch.counts,
            deadline: batch.deadline,
            stop_when: batch.stop,
            cancelled_by,
            cancelled_at,
            doing: batch.doing,
            follow_up_id,
        }
    }
}

/// A page of batches, newest first, with the counts of a moment ago.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct BatchPage {
    pub(super) items: Vec<Batch>,
    /// The `cursor` of the next page, and `null` where there is none.
    pub(super) next: Option<String>,
}

/// Items of a batch in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ItemPage {
    pub(super) items: Vec<Item>,
    /// The `from` of the next page, and `null` where there is none.
    pub(super) next: Option<u64>,
}

/// An item of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Item {
    pub(super) index: u64,
    pub(super) job_id: JobId,
    /// `null`: the job was removed.
    pub(super) state: Option<State>,
}
