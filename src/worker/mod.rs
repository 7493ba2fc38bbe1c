//! The worker: takes deliveries from the queue, claims them in the store, calls the tool API and
//! records what came of it. The modules follow a job's way: `lane` (admit and claim), `execute`,
//! `classify`, `finish`; `heartbeat` keeps the lease meanwhile.
//!
//! Guarantees:
//! * A delivery is acknowledged only after the store has committed what became of it.
//! * A job occupies one permit of its lane from before its delivery is taken until its attempt is
//!   recorded, so concurrency, memory and unwritten results are bounded by one number.
//! * The permit is owned by the job's task: a panic releases it, and the job still ends.
//! * A worker whose lease is stale neither claims nor starts calls.
//!
//! The worker does not publish jobs: whatever has to run again is written to the store, and the
//! relay brings it back.

pub mod classify;

mod batch;
pub(crate) mod execute;
mod finish;
mod health;
mod heartbeat;
mod lane;
mod resolve;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use health::{Health, Readiness};
pub use resolve::Resolver;

use self::{batch::GroupCommit, heartbeat::LeaseClock};
use crate::{
    clock::SharedClock,
    job::{JobId, QueueName, RetryPolicy, WorkerId},
    queue::SharedQueue,
    store::{Finish, Finished, Freeze, SharedStore},
    telemetry::metrics,
    tool::SharedToolApi,
};

/// What a worker needs of the rest of errand.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The truth.
    pub store: SharedStore,
    /// Transport.
    pub queue: SharedQueue,
    /// Who runs the tools.
    pub api: SharedToolApi,
    /// Decides pin, account and effect.
    pub resolver: Arc<Resolver>,
    /// For the times of attempts.
    pub clock: SharedClock,
    /// Woken when a job was written that will be due soon, or that has a reply to send.
    pub relay_wake: Arc<Notify>,
}

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// Fresh for every process.
    pub id: WorkerId,
    /// For people.
    pub name: String,
    /// The lanes to consume and the most jobs to hold of each.
    pub lanes: Vec<(QueueName, u32)>,
    /// Age of a heartbeat from which others rescue our jobs.
    pub lease: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How long a shutdown waits for running calls.
    pub drain: Duration,
    /// Run messages that have no ID; redelivered ones are held.
    pub accept_unidentified: bool,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long after an unknown outcome the tool API's log is asked for the first time; `None` leaves
    /// unknown outcomes to a person.
    pub first_check: Option<Duration>,
    /// Per attempt, for jobs that do not say.
    pub timeout: Duration,
    /// Bytes of results that may wait to be written before no more jobs are taken.
    pub max_buffered_bytes: u64,
}

/// What a worker left behind when it stopped.
#[derive(Debug, Default)]
pub struct Report {
    /// Jobs that it still held: their attempts could not be recorded. Rescue takes them over when
    /// the lease ends.
    pub left: Vec<JobId>,
}

/// A worker, ready to run.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    finish_loop: batch::Runner<Finish, Finished>,
    freeze_loop: batch::Runner<Freeze, bool>,
}

/// What the parts of one worker share.
#[derive(Debug)]
struct Shared {
    deps: Deps,
    options: Options,
    health: Arc<Health>,
    lease: LeaseClock,
    /// The jobs that are held at the moment, for the list of what a shutdown leaves behind.
    held: Mutex<HashMap<JobId, ()>>,
    tasks: TaskTracker,
    /// Set once when the drain begins: when it ends.
    drain_until: OnceLock<Instant>,
    /// Ends calls that outlast the drain.
    interrupt: CancellationToken,
    /// Ends every wait for the store, when nothing more can be done.
    give_up: CancellationToken,
    buffered: AtomicU64,
    finisher: GroupCommit<Finish, Finished>,
    freezer: GroupCommit<Freeze, bool>,
}

impl Worker {
    /// Prepares a worker; nothing happens before [`Self::run`].
    pub fn new(deps: Deps, options: Options) -> Self {
        let (finisher, finish_loop) = batch::group_commit(crate::bounds::FINISH_BATCH);
        let (freezer, freeze_loop) = batch::group_commit(crate::bounds::CLAIM_BATCH);
        let lanes = options.lanes.iter().map(|(name, _)| name.clone()).collect();
        let shared = Arc::new(Shared {
            health: Arc::new(Health::new(lanes, options.heartbeat * 3)),
            lease: LeaseClock::new(options.lease),
            held: Mutex::default(),
            tasks: TaskTracker::new(),
            drain_until: OnceLock::new(),
            interrupt: CancellationToken::new(),
            give_up: CancellationToken::new(),
            buffered: AtomicU64::new(0),
            finisher,
            freezer,
            deps,
            options,
        });
        Self { shared, finish_loop, freeze_loop }
    }

    /// Whether the worker is alive and ready, for the health endpoint.
    pub fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    /// Works until `stop` is cancelled, then drains: intake ends, running calls get the drain time,
    /// those that outlast it are interrupted, and everything known is written. `abort` cuts the
    /// drain short; nothing is lost by it, because the store still knows what is running.
    pub async fn run(self, stop: CancellationToken, abort: CancellationToken) -> Report {
        let Self { shared, finish_loop, freeze_loop } = self;
        let heart = CancellationToken::new();
        let heartbeat = tokio::spawn(heartbeat::run(shared.clone(), heart.clone()));
        let finisher = tokio::spawn(finish::run(shared.clone(), finish_loop));
        let freezer = tokio::spawn(finish::run_freezer(shared.clone(), freeze_loop));

        let lanes = TaskTracker::new();
        for (name, concurrency) in &shared.options.lanes {
            metrics::CONCURRENCY.set1(name.as_str(), f64::from(*concurrency));
            lanes.spawn(lane::run(shared.clone(), name.clone(), *concurrency, stop.clone()));
        }
        lanes.close();

        stop.cancelled().await;
        let drain = shared.options.drain;
        let until = *shared.drain_until.get_or_init(|| Instant::now() + drain);
        shared.health.set_draining();
        metrics::DRAINING.set(1.0);
        tracing::info!(
            running = shared.held_jobs(),
            drain_secs = drain.as_secs(),
            "draining: intake stopped"
        );

        // A claim that is being written when the stop comes still starts its jobs, so lanes end
        // before the count of tasks means anything.
        let ended = |tracker: TaskTracker, until: Instant, cut: CancellationToken| async move {
            tokio::select! {
                biased;
                () = tracker.wait() => true,
                () = tokio::time::sleep_until(until) => false,
                () = cut.cancelled() => false,
            }
        };
        if !ended(lanes.clone(), until, abort.clone()).await {
            shared.give_up.cancel();
            lanes.wait().await;
        }
        shared.tasks.close();
        if !ended(shared.tasks.clone(), until, abort.clone()).await {
            tracing::warn!(
                running = shared.held_jobs(),
                "draining: interrupting calls that outlast the drain"
            );
            shared.interrupt.cancel();
            let flush = Instant::now() + FLUSH;
            if !ended(shared.tasks.clone(), flush, CancellationToken::new()).await {
                shared.give_up.cancel();
                shared.tasks.wait().await;
            }
        }

        let left = shared.take_held();
        heart.cancel();
        shared.finisher.close();
        shared.freezer.close();
        for task in [heartbeat, finisher, freezer] {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the worker ended abnormally");
            }
        }
        if left.is_empty() {
            let retired = tokio::time::timeout(FLUSH, shared.deps.store.retire(shared.options.id)).await;
            if !matches!(retired, Ok(Ok(()))) {
                tracing::warn!("the worker's heartbeat row could not be removed; it will be forgotten later");
            }
        } else {
            for id in &left {
                tracing::warn!(job.id = %id, "left behind: still recorded as running; rescue takes it over");
            }
        }
        tracing::info!(left = left.len(), "worker stopped");
        Report { left }
    }
}

/// How long interrupted calls may take to be written.
const FLUSH: Duration = Duration::from_secs(5);

impl Shared {
    fn held_jobs(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take_held(&self) -> Vec<JobId> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.drain().map(|(id, ())| id).collect()
    }

    fn note_held(&self, ids: impl Iterator<Item = JobId>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).extend(ids.map(|id| (id, ())));
    }

    fn note_ended(&self, id: JobId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Whether results that wait to be written leave room for more.
    fn has_buffer_room(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) < self.options.max_buffered_bytes
    }
}
