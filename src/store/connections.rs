//! Connections that held jobs wait for.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use jiff::Timestamp;

use super::Result;
use crate::job::Owner;

/// How many of the connections that are due longest are searched for those that can be asked about together.
pub const SEARCHED_FOR_TOGETHER: u32 = 1_000;

/// Jobs that are held until their owner has connected a toolkit
/// ([`Stop::Connect`](crate::job::Stop::Connect)). Those of the same owner, toolkit and named account wait
/// together, and are asked about together.
#[async_trait]
pub trait Connections: fmt::Debug + Send + Sync {
    /// Takes connections for which the tool API should be asked now with one request: of those that `take` is about,
    /// the one that is due longest, and others of the same toolkit if they can be asked about together, longest due
    /// first. None are taken only when none is due.
    ///
    /// * A connection is awaited from the moment at which the first of its jobs is held, and is due
    ///   [`first_after`](TakeAwaited::first_after) that; as soon as no job waits for it any more it is forgotten
    ///   instead of given out.
    /// * The others are among the [`SEARCHED_FOR_TOGETHER`] that are due longest.
    /// * Each is taken again after [`again_after`](TakeAwaited::again_after), unless it was put off until then or given
    ///   back.
    async fn take_awaited(&self, take: TakeAwaited) -> Result<Vec<Awaited>>;

    /// Records that these connections are still missing, or were not found out about: each is asked for again after its
    /// time. What [`Awaited::doubted`] says is forgotten unless `keep_doubt` says otherwise or more jobs were held
    /// meanwhile.
    async fn put_off_awaited(&self, put_off: &[(Awaited, Duration)], keep_doubt: bool) -> Result<()>;

    /// Makes connections that were taken and not asked about due again, as long as they were; nothing else changes. One
    /// that somebody has put off meanwhile stays so.
    async fn give_back_awaited(&self, awaited: &[Awaited]) -> Result<()>;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeAwaited {
    /// Whether the tool API can be asked about them together: they name no account, and their owner's ID has no comma. If
    /// not, only those are taken that it must be asked about alone, one at a time. Neither kind waits behind the other.
    pub together: bool,
    /// The most that are taken.
    pub limit: usize,
    /// How long after the first of its jobs was held a connection is asked about first: whoever held it has just asked.
    pub first_after: Duration,
    pub again_after: Duration,
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
    /// The row, how often jobs were parked in it, and when it was noted or should have been asked about.
    pub(crate) id: i64,
    pub(crate) parked: i64,
    pub(crate) due_since: Timestamp,
}
