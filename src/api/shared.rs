//! What the requests of one API share.

use std::sync::Arc;

use axum::body::Bytes;

use tokio::sync::Semaphore;

use super::{
    problem::{Kind, Problem},
    waiters::Waiters,
};
use crate::{
    admission::Admission,
    clock::SharedClock,
    job::{JobSpec, QueueName},
    resolver::Resolver,
    store::SharedStore,
};

/// What an API works with.
#[derive(Debug)]
pub struct Parts {
    pub store: SharedStore,
    pub admission: Admission,
    pub clock: SharedClock,
    /// What jobs are bound to, for dry runs; none where the tool API is unknown.
    pub resolver: Option<Resolver>,
    /// The lanes there are.
    pub lanes: Vec<QueueName>,
}

#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) parts: Arc<Parts>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) description: Description,
    /// One for each request that may add items to batches at the same time.
    pub(super) chunks: Arc<Semaphore>,
}

impl Shared {
    /// Refuses a job for a queue that there is not.
    pub(super) fn has_lane(&self, spec: &JobSpec) -> Result<(), Problem> {
        if self.parts.lanes.contains(&spec.queue) {
            return Ok(());
        }
        let known: Vec<_> = self.parts.lanes.iter().map(QueueName::as_str).collect();
        let detail = format!("there is no queue of this name; use one of {}", known.join(", "));
        Err(Problem::new(Kind::InvalidJob, detail))
    }
}

/// What the API says of itself, as it is served.
#[derive(Debug, Clone)]
pub(super) struct Description {
    /// The OpenAPI document.
    pub(super) document: Bytes,
    /// The same as a page in HTML.
    pub(super) page: Bytes,
}
