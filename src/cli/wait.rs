//! Waiting for a job to end.

use std::time::{Duration, Instant};

use crate::{
    backoff::Intervals,
    job::{JobId, Principal},
    store::{JobView, SharedStore, StoreError},
};

/// Quick at first, because most calls take a second; then gentle to the database.
const POLLS: Intervals = Intervals {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(2),
    multiplier: 1.3,
    jitter: 0.2,
};

/// Asks for a job until it is final or held, or until `budget` is spent. Returns what was seen last.
pub(super) async fn until_settled(
    store: &SharedStore,
    id: JobId,
    budget: Duration,
) -> Result<Option<JobView>, StoreError> {
    let started = Instant::now();
    let mut step = 1;
    loop {
        let seen = store.job(&Principal::Operator, id).await?;
        let left = budget.saturating_sub(started.elapsed());
        match &seen {
            Some(job) if job.state.is_settled() => return Ok(seen),
            None => return Ok(None),
            Some(_) if left.is_zero() => return Ok(seen),
            Some(_) => tokio::time::sleep(POLLS.wait(step, fastrand::f64()).min(left)).await,
        }
        step += 1;
    }
}
