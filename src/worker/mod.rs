//! The worker: takes deliveries from the queue, claims them in the store, calls the tool API and records what came of
//! it. ARCHITECTURE.md lists the modules in the order of a job's way.
//!
//! Guarantees:
//! * A delivery is acknowledged only after the store has committed what became of it.
//! * A job occupies one slot of its lane from before its delivery is taken until its attempt is recorded, so one number
//!   bounds concurrency, memory and unwritten results. Its task owns the slot: a panic releases it, and the job ends.
//! * A worker whose lease is stale neither claims nor starts calls.
//! * A shutdown keeps to its budget, whichever service stalls. What ended and was not written is in the journal; what
//!   was not even that is listed by ID.
//!
//! The worker does not publish jobs: the relay brings back from the store what has to run again.

mod admit;
mod attempt;
mod binding;
mod circuit_breaker;
mod crash;
mod dead_letters;
mod drain;
mod ending;
mod group_commit;
mod heartbeat;
mod intake;
mod journal;
mod lane;
mod lease;
mod pauses;
mod persist;
mod published;
mod record;
mod running_job;
mod shared;
mod stall_detector;

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use circuit_breaker::Policy as CircuitBreakerPolicy;
pub use crash::{CrashPlan, CrashPoint};
pub use journal::{
    Contents as JournalContents, Journals, Unreadable as UnreadableJournal, decode as decode_journal,
};
pub use shared::Options;

use self::shared::{Runners, Shared};
use crate::{
    health::{Health, Phase},
    in_flight::InFlight,
    job::JobId,
    lane_head::LaneHeads,
    resolver::Resolver,
    services::Services,
    shutdown::{Countdown, Shutdown},
    supervisor::Supervisor,
    telemetry::metrics,
};

#[derive(Debug, Default)]
pub struct Report {
    /// Jobs that were in flight, or may have been claimed at the last moment: their attempts could not be recorded
    /// anywhere. Rescue takes them over when the lease ends.
    pub left: Vec<JobId>,
    /// How many ended attempts are in the journal, for the next start to write.
    pub journaled: usize,
}

#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    runners: Runners,
}

impl Worker {
    /// Prepares a worker; nothing happens before [`Self::run`].
    pub fn new(services: Services, resolver: Arc<Resolver>, options: Options) -> Self {
        let (shared, runners) = Shared::new(services, resolver, options);
        Self { shared: Arc::new(shared), runners }
    }

    /// The claims that this worker has not finished.
    pub fn in_flight(&self) -> Arc<InFlight> {
        self.shared.in_flight.clone()
    }

    /// How long messages wait in the lanes that this worker takes from.
    pub fn heads(&self) -> Arc<LaneHeads> {
        self.shared.heads.clone()
    }

    /// Whether the worker is alive and ready, for the health endpoint.
    pub fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    /// Writes what an earlier process journaled (what the store does not take at once, it goes on trying), works until
    /// `shutdown.stop`, then drains: intake ends, calls that outlast the budget are interrupted, and everything known is
    /// written, to the journal if the store does not take it. `shutdown.abort` uses the budget up, and loses nothing.
    /// Whoever closes the rest has what is left of the countdown.
    pub async fn run(self, shutdown: Shutdown, supervisor: &Supervisor) -> (Report, Countdown) {
        let Self { shared, runners } = self;
        let Shutdown { stop, abort } = shutdown;
        let heart = CancellationToken::new();
        let watch = |part, may_end: &CancellationToken, work: BoxFuture<'static, ()>| {
            tokio::spawn(supervisor.clone().watch(part, may_end.clone(), work))
        };
        let heartbeat = watch("the heartbeat", &heart, heartbeat::run(shared.clone(), heart.clone()).boxed());
        let writers = [
            watch(
                "the writer of results",
                &stop,
                persist::run_finishes(shared.clone(), runners.finishes).boxed(),
            ),
            watch(
                "the writer of bindings",
                &stop,
                persist::run_bindings(shared.clone(), runners.bindings).boxed(),
            ),
        ];
        let rests = stop.run_until_cancelled(journal::replay(&shared)).await;
        let lanes = TaskTracker::new();
        let known = match rests {
            Some(rests) => stop
                .run_until_cancelled(pauses::first_look(&shared.services.store, &shared.pauses))
                .await
                .map(|()| rests),
            None => None,
        };
        if let Some(rests) = known {
            shared.health.enter(Phase::Running);
            let rests = journal::write_rests(shared.clone(), rests, stop.clone());
            lanes.spawn(supervisor.clone().watch("the writer of journaled results", stop.clone(), rests));
            for (name, concurrency) in &shared.options.lanes {
                metrics::CONCURRENCY.set([name.as_str()], f64::from(*concurrency));
                let lane = lane::run(shared.clone(), name.clone(), *concurrency, stop.clone());
                lanes.spawn(supervisor.clone().watch("a lane", stop.clone(), lane));
            }
            let (looking, end) = (shared.clone(), stop.clone());
            let looking = async move { pauses::run(&looking.services.store, &looking.pauses, end).await };
            lanes.spawn(supervisor.clone().watch("the look at pauses", stop.clone(), looking));
            if shared.services.queue.survives_restart() {
                let letters = dead_letters::run(shared.clone(), stop.clone());
                lanes.spawn(supervisor.clone().watch("the consumer of dead letters", stop.clone(), letters));
            }
        }
        lanes.close();

        stop.cancelled().await;
        let mut countdown = Countdown::begin(shared.options.shutdown, abort);
        drain::drain(&shared, &mut countdown, &lanes).await;
        shared.finishes.close();
        shared.bindings.close();
        for writer in writers {
            drain::writer_ended(&mut countdown, writer).await;
        }
        let mut left: Vec<JobId> = shared.in_flight.jobs();
        let journaled = drain::journal(&shared, &mut countdown, &mut left).await;
        heart.cancel();
        if left.is_empty() && journaled == 0 {
            drain::retire(&shared, &mut countdown, heartbeat).await;
        }
        for id in &left {
            tracing::warn!(job.id = %id, "left behind: if it is recorded as running, the rescue takes it over");
        }
        (Report { left, journaled }, countdown)
    }
}
