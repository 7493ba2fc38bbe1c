//! Lets jobs go on that are held because their owner has to connect an account, and ends those whose time passes first.
//! The looking can be switched off; the ending cannot.
//!
//! The tool API is asked once for all jobs of the same owner, toolkit and named account, ever less often. An account that
//! calls were refused with although the API says it is active is tried with one job first: the provider may have taken
//! back a grant that the API still believes in.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rounds;
use crate::{
    backoff::Intervals,
    failure::chain,
    services::Services,
    store::{Awaited, StoreError},
    sync::lock,
    telemetry::metrics,
    tool::{ToolError, account},
};

/// What a process that died had taken is taken again after this; longer than any look-up takes.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// Jobs that are let go, or given up, in one write.
const PAGE: usize = 500;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether the tool API is asked at all; without it only the time of jobs is watched.
    pub enabled: bool,
    pub poll: Duration,
    pub batch: usize,
    /// Waits between the look-ups of one connection.
    pub intervals: Intervals,
}

#[derive(Debug)]
pub struct Connections {
    services: Services,
    options: Options,
    /// The API asked for a pause, or could not be asked.
    quiet_until: Mutex<Option<Instant>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    ReleaseAll,
    /// One job goes on, and shows whether the others can.
    ReleaseOne,
    Wait,
}

/// `active` is the account that jobs would use, if there is one.
fn next(active: Option<&str>, doubted: Option<&str>) -> Step {
    match active {
        None => Step::Wait,
        Some(account) if doubted == Some(account) => Step::ReleaseOne,
        Some(_) => Step::ReleaseAll,
    }
}

impl Connections {
    /// Asks the tool API about held jobs; wakes the relay when it made jobs due.
    pub fn new(services: &Services, options: Options) -> Self {
        Self { services: services.clone(), options, quiet_until: Mutex::default() }
    }

    /// Looks until `stop`, never more than one batch per poll.
    pub async fn run(self, stop: CancellationToken) {
        // Look-ups may take long, and one that is cut off is made again by the next process.
        let round = || async { stop.run_until_cancelled(self.run_once()).await.unwrap_or(Ok(0)) };
        // A full batch is no reason to go on at once: the API's rate limit belongs to the calls.
        rounds(&stop, self.options.poll, usize::MAX, "the look for connections", round).await;
    }

    /// One round; returns how many connections were taken.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        self.expire().await?;
        let is_quiet = lock(&self.quiet_until).is_some_and(|until| Instant::now() < until);
        if !self.options.enabled || is_quiet {
            return Ok(0);
        }
        let taken = self.services.store.take_awaited(self.options.batch, TAKEN_FOR).await?;
        for (place, awaited) in taken.iter().enumerate() {
            if awaited.lookups == 0 {
                // Whoever held the first job has just asked.
                self.put_off(awaited, true).await?;
                continue;
            }
            let Awaited { owner, toolkit, account, .. } = awaited;
            match account::active(&*self.services.api, owner, toolkit, account.as_deref()).await {
                Ok(active) => self.follow(awaited, active.as_deref()).await?,
                Err(error) => {
                    metrics::CONNECTION_LOOKUPS.add(["failed"], 1);
                    tracing::info!(error = %chain(&error), "connections cannot be looked for; looking again later");
                    self.be_quiet(&error);
                    for awaited in &taken[place..] {
                        self.put_off(awaited, true).await?;
                    }
                    break;
                }
            }
        }
        Ok(taken.len())
    }

    async fn follow(&self, awaited: &Awaited, active: Option<&str>) -> Result<(), StoreError> {
        let step = next(active, awaited.doubted.as_deref());
        metrics::CONNECTION_LOOKUPS.add([if step == Step::Wait { "missing" } else { "active" }], 1);
        match step {
            Step::Wait => self.put_off(awaited, false).await,
            Step::ReleaseOne => {
                // The doubt is forgotten first, because the job brings it back if it is refused.
                self.put_off(awaited, false).await?;
                self.release(awaited, 1).await.map(drop)
            }
            Step::ReleaseAll => {
                // Jobs that are held meanwhile must not wait until what was taken is taken again.
                self.put_off(awaited, false).await?;
                let mut jobs = 0;
                loop {
                    let page = self.release(awaited, PAGE).await?;
                    jobs += page;
                    if page < PAGE as u64 {
                        break;
                    }
                }
                tracing::info!(
                    owner.kind = %awaited.owner.kind(),
                    toolkit = awaited.toolkit,
                    jobs,
                    "the connection is there; held jobs go on"
                );
                Ok(())
            }
        }
    }

    async fn release(&self, awaited: &Awaited, limit: usize) -> Result<u64, StoreError> {
        let released = self.services.store.release_awaited(awaited, limit).await?;
        if released > 0 {
            metrics::CONNECTION_RELEASED.add([], released);
            self.services.relay_wake.notify_one();
        }
        Ok(released)
    }

    async fn put_off(&self, awaited: &Awaited, keep_doubt: bool) -> Result<(), StoreError> {
        let after = self.options.intervals.wait(awaited.lookups.saturating_add(1), fastrand::f64());
        self.services.store.put_off_awaited(awaited, after, keep_doubt).await
    }

    async fn expire(&self) -> Result<(), StoreError> {
        loop {
            let expired = self.services.store.expire_awaiting(PAGE).await?;
            if expired > 0 {
                metrics::CONNECTION_EXPIRED.add([], expired);
                self.services.relay_wake.notify_one();
                tracing::info!(jobs = expired, "jobs failed because their time passed without a connection");
            }
            if expired < PAGE as u64 {
                return Ok(());
            }
        }
    }

    /// Asks nothing for as long as the API wants, up to the longest interval, or else for the first interval.
    fn be_quiet(&self, error: &ToolError) {
        let Intervals { initial, max, .. } = self.options.intervals;
        let wait = match error {
            ToolError::Throttled { retry_after: Some(asked) } => (*asked).clamp(initial.min(max), max),
            _ => initial,
        };
        *lock(&self.quiet_until) = Some(Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_calls_were_refused_with_is_tried_with_one_job() {
        for (active, doubted, step) in [
            (Some("ca_1"), None, Step::ReleaseAll),
            (Some("ca_1"), Some("ca_0"), Step::ReleaseAll),
            (Some("ca_1"), Some("ca_1"), Step::ReleaseOne),
            (None, None, Step::Wait),
            (None, Some("ca_1"), Step::Wait),
        ] {
            assert_eq!(next(active, doubted), step, "{active:?} {doubted:?}");
        }
    }
}
