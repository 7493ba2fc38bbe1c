//! The worker: takes deliveries from the queue, claims them in the store, calls the tool API and
//! records what came of it. The modules follow a job's way: `lane` (admit and claim), `execute`,
//! `finish`; `heartbeat` keeps the lease meanwhile, and `journal` keeps what could not be
//! written before a shutdown ended.
//!
//! Guarantees:
//! * A delivery is acknowledged only after the store has committed what became of it.
//! * A job occupies one permit of its lane from before its delivery is taken until its attempt is
//!   recorded, so concurrency, memory and unwritten results are bounded by one number.
//! * The permit is owned by the job's task: a panic releases it, and the job still ends.
//! * A worker whose lease is stale neither claims nor starts calls.
//! * A shutdown keeps to its budget, whichever service stalls. What ended and was not written is in the
//!   journal; what was not even that is listed by ID.
//!
//! The worker does not publish jobs: whatever has to run again is written to the store, and the
//! relay brings it back.

mod circuit_breaker;
mod crash;
pub(crate) mod execute;
mod finish;
mod group_commit;
mod heartbeat;
mod journal;
mod lane;
mod resolve;
mod stall_detector;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use circuit_breaker::Policy as CircuitBreakerPolicy;
pub use crash::{CrashPlan, CrashPoint};
pub use journal::{Unreadable as UnreadableJournal, decode as decode_journal};
pub use resolve::{Options as ResolverOptions, Resolver};

use self::{
    circuit_breaker::CircuitBreakers, crash::Crash, finish::BindOutcome, group_commit::GroupCommit,
    heartbeat::LeaseClock,
};
use crate::{
    failure::chain,
    health::{Health, Phase},
    job::{JobId, QueueName, RetryPolicy, WorkerId},
    services::Services,
    shutdown::{Countdown, Shutdown},
    store::{Bind, Finish, Finished},
    sync::lock,
    telemetry::metrics,
};

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
    /// How long a whole shutdown may take, see [`crate::shutdown::Timeline`].
    pub shutdown: Duration,
    /// Where results are kept that could not be written before a shutdown ended; `None` leaves them to the
    /// rescue.
    pub journal_dir: Option<PathBuf>,
    /// Run messages that have no ID; redelivered ones are held.
    pub accept_unidentified: bool,
    /// When to try again.
    pub retry: RetryPolicy,
    /// When calls are kept back because the tool API does not answer them.
    pub circuit_breaker: CircuitBreakerPolicy,
    /// How long after an unknown outcome the tool API's log is asked for the first time; `None` leaves
    /// unknown outcomes to a person.
    pub first_check: Option<Duration>,
    /// Per attempt, for jobs that do not say.
    pub timeout: Duration,
    /// Bytes of results that may wait to be written before no more jobs are taken.
    pub max_buffered_bytes: u64,
    /// Where to crash, for tests of what a crash leaves behind.
    pub crash: Option<CrashPlan>,
}

/// How a worker stopped.
#[derive(Debug, Default)]
pub struct Report {
    /// Jobs that it still held, or may have claimed at the last moment: their attempts could not be recorded
    /// anywhere. Rescue takes them over when the lease ends.
    pub left: Vec<JobId>,
    /// How many ended attempts are in the journal, for the next start to write.
    pub journaled: usize,
}

/// How long a worker that holds nothing tries to say so. Others forget it in time all the same.
const RETIRE: Duration = Duration::from_secs(2);

/// A worker, ready to run.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    finish_loop: group_commit::Runner<Finish, Finished>,
    bind_loop: group_commit::Runner<Bind, BindOutcome>,
}

/// What the parts of one worker share.
#[derive(Debug)]
struct Shared {
    deps: Services,
    /// Decides version, account and effect.
    resolver: Arc<Resolver>,
    options: Options,
    health: Arc<Health>,
    lease: LeaseClock,
    breakers: CircuitBreakers,
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
    crash: Crash,
    /// Ended attempts that wait to be written.
    waiting: AtomicUsize,
    /// Ended attempts that the store did not take before the worker gave up.
    unwritten: Mutex<Vec<Finish>>,
    finisher: GroupCommit<Finish, Finished>,
    binder: GroupCommit<Bind, BindOutcome>,
}

impl Worker {
    /// Prepares a worker; nothing happens before [`Self::run`].
    pub fn new(deps: Services, resolver: Arc<Resolver>, options: Options) -> Self {
        let (finisher, finish_loop) = group_commit::group_commit(crate::bounds::FINISH_BATCH);
        let (binder, bind_loop) = group_commit::group_commit(crate::bounds::CLAIM_BATCH);
        let lanes = options.lanes.iter().map(|(name, _)| name.clone()).collect();
        let shared = Arc::new(Shared {
            health: Arc::new(Health::new(lanes, options.heartbeat * 3)),
            lease: LeaseClock::new(options.lease),
            breakers: CircuitBreakers::new(options.circuit_breaker),
            held: Mutex::default(),
            tasks: TaskTracker::new(),
            drain_until: OnceLock::new(),
            interrupt: CancellationToken::new(),
            give_up: CancellationToken::new(),
            buffered: AtomicU64::new(0),
            crash: Crash::new(options.crash),
            waiting: AtomicUsize::new(0),
            unwritten: Mutex::default(),
            finisher,
            binder,
            deps,
            resolver,
            options,
        });
        Self { shared, finish_loop, bind_loop }
    }

    /// Whether the worker is alive and ready, for the health endpoint.
    pub fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    /// Writes what an earlier process journaled, then works until `shutdown.stop` is cancelled, then drains:
    /// intake ends, running calls go on while the budget lasts, those that outlast it are interrupted, and
    /// everything known is written, to the journal if the store does not take it. `shutdown.abort` uses the
    /// budget up; nothing is lost by it. Whoever closes the rest has what is left of the countdown.
    pub async fn run(self, shutdown: Shutdown) -> (Report, Countdown) {
        let Self { shared, finish_loop, bind_loop } = self;
        let Shutdown { stop, abort } = shutdown;
        let heart = CancellationToken::new();
        let heartbeat = tokio::spawn(heartbeat::run(shared.clone(), heart.clone()));
        let finisher = tokio::spawn(finish::run(shared.clone(), finish_loop));
        let binder = tokio::spawn(finish::run_binder(shared.clone(), bind_loop));
        let replayed = tokio::select! {
            biased;
            () = journal::replay(&shared) => true,
            () = stop.cancelled() => false,
        };
        let lanes = TaskTracker::new();
        if replayed {
            shared.health.enter(Phase::Running);
            for (name, concurrency) in &shared.options.lanes {
                metrics::CONCURRENCY.set1(name.as_str(), f64::from(*concurrency));
                lanes.spawn(lane::run(shared.clone(), name.clone(), *concurrency, stop.clone()));
            }
        }
        lanes.close();

        stop.cancelled().await;
        let mut countdown = Countdown::begin(shared.options.shutdown, abort);
        shared.drain(&mut countdown, &lanes).await;
        shared.finisher.close();
        shared.binder.close();
        for writer in [finisher, binder] {
            shared.writer_ended(&mut countdown, writer).await;
        }
        let mut left = shared.take_held();
        let journaled = shared.journal(&mut countdown, &mut left).await;
        heart.cancel();
        if left.is_empty() && journaled == 0 {
            shared.retire(&mut countdown, heartbeat).await;
        }
        for id in &left {
            tracing::warn!(job.id = %id, "left behind: if it is recorded as running, the rescue takes it over");
        }
        tracing::info!(left = left.len(), journaled, "worker stopped");
        (Report { left, journaled }, countdown)
    }
}

impl Shared {
    /// Ends everything that runs, in order: intake, then calls, then waiting for the store.
    async fn drain(&self, countdown: &mut Countdown, lanes: &TaskTracker) {
        let _set_once = self.drain_until.set(countdown.times().drain_until);
        self.enter(Phase::Draining);
        // A claim that is being written when the stop comes still starts its jobs, so lanes end before the
        // count of tasks means anything.
        let all_ended = || async {
            lanes.wait().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        if countdown.within(|times| times.drain_until, all_ended()).await.is_some() {
            return;
        }
        self.enter(Phase::Interrupting);
        self.interrupt.cancel();
        if countdown.within(|times| times.write_until, all_ended()).await.is_some() {
            return;
        }
        // Nothing waits for a service any more, so that this takes a moment at most.
        self.give_up.cancel();
        if countdown.within(|times| times.end, all_ended()).await.is_none() {
            tracing::error!("some tasks do not end and are left as they are");
        }
    }

    async fn writer_ended(&self, countdown: &mut Countdown, writer: JoinHandle<()>) {
        match countdown.within(|times| times.end, writer).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!(error = %chain(&error), "a part of the worker ended abnormally")
            }
            None => tracing::error!("a part of the worker does not end and is left as it is"),
        }
    }

    /// Puts what the store did not take into the journal, and takes it off the list of what is `left`;
    /// returns how much it is.
    async fn journal(&self, countdown: &mut Countdown, left: &mut Vec<JobId>) -> usize {
        let unwritten = std::mem::take(&mut *lock(&self.unwritten));
        if unwritten.is_empty() {
            return 0;
        }
        self.enter(Phase::Journaling);
        let ids: HashSet<JobId> = unwritten.iter().map(|finish| finish.id).collect();
        let results = unwritten.len();
        let written = countdown.within(|times| times.end, journal::write(self, unwritten)).await;
        match written.unwrap_or_else(|| Err("the disk takes too long".to_owned())) {
            Ok(file) => {
                left.retain(|id| !ids.contains(id));
                tracing::warn!(
                    file = %file.display(), results,
                    "the store did not take these results, so they are journaled; the next worker that starts with \
                     this folder writes them"
                );
                results
            }
            Err(why) => {
                tracing::error!(
                    error = %why,
                    results,
                    "results could not be journaled and are left to the rescue"
                );
                0
            }
        }
    }

    /// Removes the heartbeat row of a worker that holds nothing.
    async fn retire(&self, countdown: &mut Countdown, heartbeat: JoinHandle<()>) {
        let begun = Instant::now();
        let retire = async {
            // A beat that is under way would bring the row back.
            let _ended = heartbeat.await;
            self.deps.store.retire(self.options.id).await
        };
        let retired = countdown.within(|times| times.end.min(begun + RETIRE), retire).await;
        if !matches!(retired, Some(Ok(()))) {
            tracing::warn!("the worker's heartbeat row could not be removed; it will be forgotten later");
        }
    }

    /// Begins a phase of the shutdown, and says so.
    fn enter(&self, phase: Phase) {
        self.health.enter(phase);
        tracing::info!(
            phase = phase.as_str(),
            held = self.held_jobs(),
            unwritten = self.waiting.load(Ordering::Relaxed),
            "shutting down"
        );
    }

    fn held_jobs(&self) -> usize {
        lock(&self.held).len()
    }

    fn take_held(&self) -> Vec<JobId> {
        let mut held = lock(&self.held);
        held.drain().map(|(id, ())| id).collect()
    }

    fn note_held(&self, ids: impl Iterator<Item = JobId>) {
        lock(&self.held).extend(ids.map(|id| (id, ())));
    }

    fn note_ended(&self, id: JobId) {
        lock(&self.held).remove(&id);
    }

    /// Keeps what could not be written for the journal.
    fn keep_unwritten(&self, finishes: Vec<Finish>) {
        lock(&self.unwritten).extend(finishes);
    }

    /// Waits for the broker, but not beyond the moment when running calls are interrupted: what it has not
    /// settled by then it delivers again. `None` when that moment came.
    async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.interrupt.cancelled() => None,
        }
    }

    /// Whether results that wait to be written leave room for more.
    fn has_buffer_room(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) < self.options.max_buffered_bytes
    }
}
