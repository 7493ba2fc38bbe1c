//! Pauses: queues from which nothing is taken until somebody lets them go on.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Decider, Result, history::refuse_decider, read::StoreRow};
use crate::{
    bounds::MAX_REASON_CHARS,
    job::QueueName,
    store::{StoreError, StoreErrorKind},
};

pub(super) const PAUSED: &str = "select queue, by, reason, since from paused_queues order by queue";

/// Which queues are paused. Workers look every second.
///
/// * What is paused stays so until it is resumed, whatever restarts.
/// * Nothing else about a job or a message changes by it.
#[async_trait]
pub trait Pauses: fmt::Debug + Send + Sync {
    /// The queues that are paused, by name.
    async fn paused_queues(&self) -> Result<Vec<PausedQueue>>;

    /// Pauses a queue. `false` for one that is paused already, which stays so by whom and why it was.
    async fn pause_queue(&self, queue: &QueueName, by: &Decider, reason: &str) -> Result<bool>;

    /// Lets a queue go on. `false` for one that is not paused.
    async fn resume_queue(&self, queue: &QueueName, by: &Decider) -> Result<bool>;
}

/// A queue that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedQueue {
    pub queue: QueueName,
    pub pause: Pause,
}

/// Who paused a queue, since when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pause {
    pub by: String,
    pub since: Timestamp,
    pub reason: String,
}

impl fmt::Display for Pause {
    /// Continues "it is".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, since, reason } = self;
        write!(f, "paused by {by} since {} because: {reason}", since.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Refuses what cannot stand as the reason of a pause.
///
/// # Errors
/// A sentence that says what a reason is.
pub fn check_reason(reason: &str) -> std::result::Result<(), String> {
    let length = reason.chars().count();
    if reason.trim().is_empty() || length > MAX_REASON_CHARS || reason.contains(char::is_control) {
        return Err(format!(
            "say why, in a line of up to {MAX_REASON_CHARS} characters without control characters"
        ));
    }
    Ok(())
}

/// The same for the methods of a store, with who says it.
pub(super) fn refuse_pause(by: &Decider, reason: &str) -> Result<()> {
    refuse_decider(by)?;
    check_reason(reason).map_err(|why| StoreError::new(StoreErrorKind::Data, why))
}

pub(super) fn paused(row: &impl StoreRow) -> Result<PausedQueue> {
    let pause = Pause { by: row.read("by")?, since: row.time("since")?, reason: row.read("reason")? };
    Ok(PausedQueue { queue: row.parse("queue")?, pause })
}
