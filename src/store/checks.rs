//! Checks of unknown outcomes in the tool API's log.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{JobView, Result};
use crate::job::{Fence, JobId, LookResult, RequestId};

/// Jobs whose last call may or may not have run, while the tool API's log may still tell
/// ([`Ending::Verify`](crate::job::Ending::Verify)). What the log tells is written with
/// [`Finishes::finish`](super::Finishes::finish), as what the holder of the claim learned late.
#[async_trait]
pub trait Checks: fmt::Debug + Send + Sync {
    /// Takes up to `limit` jobs about which the log should be asked now, longest due first. Each is
    /// taken again after `again_after`, unless something was decided until then.
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>>;

    /// Records that the log did not tell. Where nobody asks it again and the job is held, its app is owed an answer once
    /// more ([`Answers`](super::Answers)), because what it was told before says that errand looks. Changes nothing where the job was released, cancelled or finished
    /// meanwhile, or where this look-up or a later one is recorded already, which is `false`.
    async fn put_off(&self, put_off: &PutOff) -> Result<bool>;

    /// The request ID of a call that succeeded and was sent after this time, by which a log can show that it knows our
    /// request IDs and had not stopped by then: of the job that was created first after it, because a log may be late.
    async fn known_success(&self, after: Timestamp) -> Result<Option<RequestId>>;

    /// The request ID of a call that succeeded and was sent before this time, by which a log can show that it is the one
    /// in which errand's calls were by then: of the job that was created last, among the last 10,000.
    async fn known_success_before(&self, before: Timestamp) -> Result<Option<RequestId>>;
}

#[derive(Debug, Clone)]
pub struct Check {
    pub job: JobView,
    /// The claim of the attempt.
    pub fence: Fence,
    pub request_id: RequestId,
    /// How often the log was asked before.
    pub checks: u32,
    /// Since when the outcome is unknown: the call was sent before.
    pub unknown_for: Duration,
    pub age: Duration,
}

/// What becomes of a job about which the log did not tell.
#[derive(Debug, Clone)]
pub struct PutOff {
    pub id: JobId,
    /// The claim of the attempt.
    pub fence: Fence,
    /// How often the log was asked before, by which a repetition is recognized.
    pub checks: u32,
    /// When the log is asked again; `None` leaves the decision to a person.
    pub again_after: Option<Duration>,
    pub look: LookResult,
    /// Why it could not be read, if it could not.
    pub detail: Option<String>,
}
