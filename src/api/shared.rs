//! What the requests of one API share.

use std::sync::Arc;

use super::waiters::Waiters;
use crate::{
    admission::Admission, clock::SharedClock, job::QueueName, resolver::Resolver, store::SharedStore,
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
}
