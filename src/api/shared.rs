//! What the requests of one API share.

use std::sync::Arc;

use axum::body::Bytes;

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
    pub(super) description: Description,
}

/// What the API says of itself, as it is served.
#[derive(Debug, Clone)]
pub(super) struct Description {
    /// The OpenAPI document.
    pub(super) document: Bytes,
    /// The same as a page in HTML.
    pub(super) page: Bytes,
}
