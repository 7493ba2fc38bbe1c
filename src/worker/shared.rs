//! What the parts of one worker share: its settings, and what it has under way.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    circuit_breaker::{CircuitBreakers, Policy as CircuitBreakerPolicy},
    crash::{Crash, CrashPlan},
    group_commit::{self, GroupCommit, Runner},
    lease::LeaseClock,
    pauses::Pauses,
};
use crate::{
    bounds::{CLAIM_BATCH, FINISH_BATCH},
    health::Health,
    in_flight::InFlight,
    job::{Asked, QueueName, RetryPolicy, WorkerId},
    lane_head::LaneHeads,
    resolver::Resolver,
    services::Services,
    store::{Bind, Finish, Finished, Repeat, StoreError},
    sync::lock,
};

#[derive(Debug, Clone)]
pub struct Options {
    /// Fresh for every process.
    pub id: WorkerId,
    pub name: String,
    /// The lanes to consume and the most jobs in flight of each.
    pub lanes: Vec<(QueueName, u32)>,
    /// Age of a heartbeat from which others rescue our jobs.
    pub lease: Duration,
    pub heartbeat: Duration,
    /// How long a whole shutdown may take, see [`crate::shutdown::Timeline`].
    pub shutdown: Duration,
    /// Where results are kept that a shutdown could not write; `None` leaves them to the rescue.
    pub journal_dir: Option<PathBuf>,
    /// Run messages that have no ID; redelivered ones are held.
    pub accept_unidentified: bool,
    pub retry: RetryPolicy,
    pub circuit_breaker: CircuitBreakerPolicy,
    /// How long after an unknown outcome the tool API's log is asked first; `None` leaves it to a person.
    pub first_check: Option<Duration>,
    /// Per attempt, for jobs that do not say.
    pub timeout: Duration,
    /// Bytes of results that may wait to be written before no more jobs are taken.
    pub max_buffered_bytes: u64,
    /// Where to crash, for tests of what a crash leaves behind.
    pub crash: Option<CrashPlan>,
}

/// Whether a binding is recorded or fenced off, or why the database refuses what it contains.
pub(super) type Bound = Result<bool, StoreError>;

/// What became of the record of an ended attempt.
#[derive(Debug)]
pub(super) enum Recorded {
    Done(Finished),
    /// It could not be written with others, which must not wait for it: whoever submitted it writes it alone.
    NotWithOthers(Box<Finish>),
}

#[derive(Debug)]
pub(super) struct Runners {
    pub(super) finishes: Runner<Finish, Recorded>,
    pub(super) bindings: Runner<Bind, Bound>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) services: Services,
    pub(super) resolver: Arc<Resolver>,
    pub(super) options: Options,
    pub(super) health: Arc<Health>,
    pub(super) lease: LeaseClock,
    pub(super) pauses: Pauses,
    pub(super) breakers: CircuitBreakers,
    /// The claims that are not finished.
    pub(super) in_flight: Arc<InFlight>,
    /// How long messages wait in the lanes that this worker takes from.
    pub(super) heads: Arc<LaneHeads>,
    pub(super) tasks: TaskTracker,
    /// Set once when the drain begins: when it ends.
    pub(super) drain_until: OnceLock<Instant>,
    /// Ends calls that outlast the drain.
    pub(super) interrupt: CancellationToken,
    /// Ends every wait for the store, when nothing more can be done.
    pub(super) give_up: CancellationToken,
    pub(super) crash: Crash,
    /// Bytes of results, and ended attempts, that wait to be written.
    pub(super) buffered: AtomicU64,
    pub(super) waiting: AtomicUsize,
    /// Answers that the store did not take, to messages that were given back.
    pub(super) unanswered: Unanswered,
    /// Ended attempts that the store did not take before the worker gave up, for the journal.
    pub(super) unwritten: Mutex<Vec<Finish>>,
    pub(super) finishes: GroupCommit<Finish, Recorded>,
    pub(super) bindings: GroupCommit<Bind, Bound>,
    /// The turn of a result that is written by itself.
    pub(super) alone: tokio::sync::Mutex<()>,
}

/// The IDs of answers that could not be noted. Their messages were given back, and when the broker delivers one again, it
/// does not say whether it was answered. What another process gets, or this one after a restart, is unknown there.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Mutex<HashSet<Uuid>>);

impl Unanswered {
    /// With more, those of before are forgotten.
    const MOST: usize = 10_000;

    pub(super) fn has(&self, id: Uuid) -> bool {
        lock(&self.0).contains(&id)
    }

    /// Notes whether the message that repeats a job is without its answer.
    pub(super) fn set(&self, repeat: &Repeat, is_unanswered: bool) {
        let Some(Asked { id, .. }) = &repeat.asked else { return };
        let mut ids = lock(&self.0);
        if !is_unanswered {
            ids.remove(id);
            return;
        }
        if ids.len() >= Self::MOST {
            ids.clear();
        }
        ids.insert(*id);
    }
}

impl Shared {
    pub(super) fn new(services: Services, resolver: Arc<Resolver>, options: Options) -> (Self, Runners) {
        let (finishes, finish_runner) = group_commit::group_commit(FINISH_BATCH);
        let (bindings, binding_runner) = group_commit::group_commit(CLAIM_BATCH);
        let lanes = options.lanes.iter().map(|(name, _)| name.clone()).collect();
        let shared = Self {
            health: Arc::new(Health::new(lanes, services.store.address())),
            lease: LeaseClock::new(options.lease),
            pauses: Pauses::default(),
            breakers: CircuitBreakers::new(options.circuit_breaker),
            in_flight: Arc::default(),
            heads: Arc::default(),
            tasks: TaskTracker::new(),
            drain_until: OnceLock::new(),
            interrupt: CancellationToken::new(),
            give_up: CancellationToken::new(),
            crash: Crash::new(options.crash),
            buffered: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            unanswered: Unanswered::default(),
            unwritten: Mutex::default(),
            finishes,
            bindings,
            alone: tokio::sync::Mutex::default(),
            services,
            resolver,
            options,
        };
        (shared, Runners { finishes: finish_runner, bindings: binding_runner })
    }

    /// Waits for a service until running calls are interrupted (`None`); what is not settled then is delivered again.
    pub(super) async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.interrupt.cancelled() => None,
        }
    }

    /// Whether results that wait to be written leave room for more.
    pub(super) fn has_buffer_room(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) < self.options.max_buffered_bytes
    }
}
