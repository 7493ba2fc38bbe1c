//! Lists of jobs, which look at a bounded number of them, however many there are.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::{JobFilter, JobView, Looked, Place, Result, SeenJob};
use crate::job::{AttemptOutcome, Effect, ErrorKind, HeldReason, JobId, Owner, Principal, QueueName, State};

/// Jobs by a filter, newest first. One call looks at up to [`MAX_LOOK_SCATTERED`](crate::bounds::MAX_LOOK_SCATTERED) of the held jobs where the filter asks for
/// such, or of the owner's where it names one, and else at up to [`MAX_LOOK`](crate::bounds::MAX_LOOK) of all. What it
/// returns says where to go on.
///
/// * For an owner it is as if the filter named them, also where it asks for held jobs. They see nothing of the jobs of
///   others: neither how many there are nor where. A filter that names another owner finds nothing.
#[async_trait]
pub trait JobLists: fmt::Debug + Send + Sync {
    /// Up to `limit` matching jobs older than `before`, without `result`.
    async fn jobs(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Looked<JobView>>;

    /// All matching jobs among the next, with the little by which they are counted and decided about. What
    /// became of their last call is read from other rows, and only where `outcomes` asks for it.
    async fn glances(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        outcomes: bool,
    ) -> Result<Looked<Glance>>;
}

/// A job as it is counted.
#[derive(Debug, Clone)]
pub struct Glance {
    pub id: JobId,
    /// Its place among jobs.
    pub place: Place,
    pub state: State,
    pub held_reason: Option<HeldReason>,
    pub owner: Owner,
    pub queue: QueueName,
    pub tool: String,
    /// The toolkit version that it is bound to.
    pub version: Option<String>,
    /// What it is bound to, or asks for as long as that is not decided.
    pub effect: Option<Effect>,
    pub error_kind: Option<ErrorKind>,
    /// How long ago it became final, by the store's clock.
    pub finished_for: Option<Duration>,
    /// Itself, for whoever removes it as it was seen.
    pub seen: SeenJob,
    /// How its last call ended, if it was asked for, and as far as there was one that ended.
    pub last_outcome: Option<AttemptOutcome>,
    /// Whether running it again might repeat an effect; `false` if it was not asked for.
    pub may_have_acted: bool,
}

/// All matching jobs, newest first, up to `limit`, for those who know that there are not many.
pub async fn all_jobs<S: JobLists + ?Sized>(
    store: &S,
    principal: &Principal,
    filter: &JobFilter,
    limit: usize,
) -> Result<Vec<JobView>> {
    let (mut jobs, mut before) = (Vec::new(), None);
    loop {
        let page = store.jobs(principal, filter, before, limit - jobs.len()).await?;
        jobs.extend(page.items);
        before = page.next;
        if before.is_none() || jobs.len() >= limit {
            return Ok(jobs);
        }
    }
}

/// What is read of a job to count it.
pub(super) const GLANCE: &str =
    "id, created_at, state, held_reason, owner_kind, owner_id, queue, tool, toolkit_version,
    coalesce(frozen_effect, effect) as effect, error_kind,
    {finished_for} as finished_for, {finished_micros} as finished_micros,
    case when {outcomes} then coalesce(
        (select a.outcome from attempts a where a.job_id = jobs.id and a.number = jobs.attempt),
        case when http_status is not null then 'succeeded' end) end as last_outcome,
    {outcomes} and {may_have_acted} as may_have_acted";

/// Whether nobody knows what became of the last call of a job.
pub(super) const IS_UNKNOWN: &str = "(coalesce(held_reason = 'unknown_outcome' or error_kind = 'unknown_outcome', false) or check_at is not null)";
