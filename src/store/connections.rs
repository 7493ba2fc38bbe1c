//! Connections that held jobs wait for.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::Result;
use crate::job::Owner;

/// Jobs that are held until their owner has connected a toolkit
/// ([`Stop::Connect`](crate::job::Stop::Connect)). Those of the same owner, toolkit and named account wait
/// together, and are asked about together.
#[async_trait]
pub trait Connections: fmt::Debug + Send + Sync {
    /// Takes up to `limit` connections for which the tool API should be asked now, longest due first.
    ///
    /// * A connection is awaited from the moment at which the first of its jobs is held, and can be
    ///   taken at once; as soon as no job waits for it any more it is forgotten instead of given out.
    /// * Each is taken again after `again_after`, unless it was put off until then.
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>>;

    /// Records that the connection is still missing, or was not found out about: it is asked for again
    /// after `again_after`. What [`Awaited::doubted`] says is forgotten unless `keep_doubt` says otherwise
    /// or more jobs were held meanwhile.
    async fn put_off_awaited(&self, awaited: &Awaited, again_after: Duration, keep_doubt: bool)
    -> Result<()>;

    /// Lets up to `limit` of the jobs go that wait for this connection, oldest first, as
    /// [`JobControl::release`](super::JobControl::release) does with
    /// [`Release::Retry`](crate::job::Release::Retry), and returns how many. Fewer than `limit` means that none is
    /// left; then the connection is no longer awaited, unless more jobs were held meanwhile.
    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64>;

    /// Ends up to `limit` jobs that wait for a connection and whose `expires_at` or `max_age_ms` has
    /// passed: they become `failed` with the kind of error that they had and a message that says so.
    /// Returns how many.
    async fn expire_awaiting(&self, limit: usize) -> Result<u64>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    pub owner: Owner,
    pub toolkit: String,
    /// The account that the jobs name, if they do.
    pub account: Option<String>,
    /// The account that a call of these jobs was last refused with: that the tool API says it is active
    /// proves nothing.
    pub doubted: Option<String>,
    /// How often it was put off before.
    pub lookups: u32,
    /// The row, and how often jobs were parked in it.
    pub(crate) id: i64,
    pub(crate) parked: i64,
}
