//! Lets jobs go on that are held because their owner has to connect an account, and ends those whose time passes first.
//! The looking can be switched off; the ending cannot.
//!
//! The tool API is asked once for all jobs of the same owner, toolkit and named account, ever less often, and with one
//! request for several owners of a toolkit whose jobs name no account. What bounds the looking is requests. An account
//! that calls were refused with although the API says it is active is tried with one job first: the provider may have
//! taken back a grant that the API still believes in.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{quiet::Quiet, rounds};
use crate::{
    backoff::Intervals,
    clock::millis,
    failure::chain,
    services::Services,
    store::{Awaited, StoreError, TakeAwaited},
    telemetry::metrics,
    tool::{
        ToolError,
        account::{self, Asked},
    },
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
    /// The most requests per round. What a round needs beyond it, as for a list of many pages, is waited for.
    pub batch: usize,
    /// Waits between the look-ups of one connection.
    pub intervals: Intervals,
}

#[derive(Debug)]
pub struct Connections {
    services: Services,
    options: Options,
    /// The API asked for a pause, or could not be asked.
    quiet: Quiet,
    /// Whether those come next that can be asked about together. The kinds take turns, so that neither waits for the other.
    together: AtomicBool,
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
        let (quiet, together) = (Quiet::default(), AtomicBool::new(true));
        Self { services: services.clone(), options, quiet, together }
    }

    /// Looks until `stop`, never with more than one batch of requests per poll.
    pub async fn run(self, stop: CancellationToken) {
        // Look-ups may take long, and one that is cut off is made again by the next process.
        let round = || async { stop.run_until_cancelled(self.run_once()).await.unwrap_or(Ok(0)) };
        // A full batch is no reason to go on at once: the API's rate limit belongs to the calls.
        rounds(&stop, self.options.poll, usize::MAX, "the look for connections", round).await;
    }

    /// One round; returns how many requests it made.
    pub async fn run_once(&self) -> Result<usize, StoreError> {
        let Options { enabled, poll, batch, .. } = self.options;
        self.expire().await?;
        let mut requests = 0;
        while enabled && requests < batch && !self.quiet.is_now() {
            self.quiet.spare(&self.services.api_status);
            let taken = self.take().await?;
            if taken.is_empty() {
                break;
            }
            requests += self.look_for(&taken, batch - requests).await?;
        }
        if requests > batch {
            let rounds = (requests - batch).div_ceil(batch);
            self.quiet.wait(poll.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)));
        }
        Ok(requests)
    }

    /// Takes what one request can be about, of the kind whose turn it is or, if none of it is due, of the other.
    async fn take(&self) -> Result<Vec<Awaited>, StoreError> {
        let turn = self.together.fetch_xor(true, Ordering::Relaxed);
        for together in [turn, !turn] {
            let take = TakeAwaited {
                together,
                limit: account::TOGETHER,
                first_after: self.options.intervals.interval(1),
                again_after: TAKEN_FOR,
            };
            let taken = self.services.store.take_awaited(take).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        Ok(Vec::new())
    }

    /// Looks for what was taken together, with about so many requests, but at least one for each answer; returns with how
    /// many. What there was no request for is given back.
    async fn look_for(&self, taken: &[Awaited], most: usize) -> Result<usize, StoreError> {
        let (taken, unasked) = taken.split_at(account::fitting(taken.iter().map(|awaited| &awaited.owner)));
        self.give_back(unasked).await?;
        if taken.len() == 1 {
            return self.look_for_each(taken, most).await;
        }
        let owners: Vec<_> = taken.iter().map(|awaited| &awaited.owner).collect();
        let asked = account::active_of_each(&*self.services.api, &owners, &taken[0].toolkit).await;
        let spent = match asked {
            Ok(Asked { found: Some(active), requests }) => {
                let found: Vec<_> = taken.iter().zip(active.iter().map(Option::as_deref)).collect();
                self.follow(&found).await?;
                return Ok(requests);
            }
            Err(error @ ToolError::Throttled { .. }) => {
                self.be_quiet(&error);
                self.give_back(taken).await?;
                return Ok(1);
            }
            Ok(Asked { found: None, requests }) => requests,
            // One owner may be all that is wrong. Whether it is the API tells the next request.
            Err(_) => 1,
        };
        Ok(spent + self.look_for_each(taken, most.saturating_sub(spent).max(1)).await?)
    }

    /// Looks for each with requests of its own.
    async fn look_for_each(&self, taken: &[Awaited], most: usize) -> Result<usize, StoreError> {
        let mut requests = 0;
        for (place, awaited) in taken.iter().enumerate() {
            if requests >= most {
                self.give_back(&taken[place..]).await?;
                break;
            }
            let Awaited { owner, toolkit, account, .. } = awaited;
            match account::active(&*self.services.api, owner, toolkit, account.as_deref()).await {
                Ok(asked) => {
                    requests += asked.requests;
                    self.follow(&[(awaited, asked.found.as_deref())]).await?;
                }
                Err(error) => {
                    requests += 1;
                    self.put_off(&[awaited], true).await?;
                    // That the API refuses this one says nothing about others.
                    if !matches!(error, ToolError::NotFound(_) | ToolError::Refused { .. }) {
                        self.be_quiet(&error);
                        self.give_back(&taken[place + 1..]).await?;
                        break;
                    }
                    metrics::CONNECTION_LOOKUPS.add(["failed"], 1);
                }
            }
        }
        Ok(requests)
    }

    fn be_quiet(&self, error: &ToolError) {
        metrics::CONNECTION_LOOKUPS.add(["failed"], 1);
        let wait = self.quiet.heed(error, &self.options.intervals);
        tracing::info!(
            api = self.services.api.address(), error = %chain(error), wait_ms = millis(wait),
            "connections cannot be looked for; looking again later"
        );
    }

    /// Does what follows from the account that the jobs of each would use, if there is one.
    async fn follow(&self, found: &[(&Awaited, Option<&str>)]) -> Result<(), StoreError> {
        let steps =
            found.iter().map(|(awaited, active)| (*awaited, next(*active, awaited.doubted.as_deref())));
        let (missing, active): (Vec<_>, Vec<_>) = steps.partition(|(_, step)| *step == Step::Wait);
        metrics::CONNECTION_LOOKUPS.add(["missing"], missing.len() as u64);
        metrics::CONNECTION_LOOKUPS.add(["active"], active.len() as u64);
        let missing: Vec<_> = missing.into_iter().map(|(awaited, _)| awaited).collect();
        self.put_off(&missing, false).await?;
        for (awaited, step) in active {
            // Put off first: one job brings back the doubt if it is refused, and jobs that are held while all go must not
            // wait until what was taken is taken again.
            self.put_off(&[awaited], false).await?;
            if step == Step::ReleaseOne {
                self.release(awaited, 1).await?;
            } else {
                self.release_all(awaited).await?;
            }
        }
        Ok(())
    }

    async fn release_all(&self, awaited: &Awaited) -> Result<(), StoreError> {
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

    async fn release(&self, awaited: &Awaited, limit: usize) -> Result<u64, StoreError> {
        let released = self.services.store.release_awaited(awaited, limit).await?;
        if released > 0 {
            metrics::CONNECTION_RELEASED.add([], released);
            self.services.relay_wake.notify_one();
        }
        Ok(released)
    }

    async fn put_off(&self, awaited: &[&Awaited], keep_doubt: bool) -> Result<(), StoreError> {
        if awaited.is_empty() {
            return Ok(());
        }
        // The first interval has passed before the first look-up.
        let wait = |lookups: u32| self.options.intervals.wait(lookups.saturating_add(2), fastrand::f64());
        let put_off: Vec<_> =
            awaited.iter().map(|&awaited| (awaited.clone(), wait(awaited.lookups))).collect();
        self.services.store.put_off_awaited(&put_off, keep_doubt).await
    }

    async fn give_back(&self, unasked: &[Awaited]) -> Result<(), StoreError> {
        if unasked.is_empty() {
            return Ok(());
        }
        self.services.store.give_back_awaited(unasked).await
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
