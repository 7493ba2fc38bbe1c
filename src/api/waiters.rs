//! Those who wait for jobs to end. One look at the store serves all of them, however many wait.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Intervals, failure::chain, job::JobId, store::SharedStore, sync::lock};

/// The shortest time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Most jobs that one look asks for; others are asked for by the next.
const MOST_AT_ONCE: usize = 2_000;

/// How long a job is not asked for again that was not settled: soon at first, because most calls take a second.
const AGAIN: Intervals = Intervals {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(5),
    multiplier: 1.3,
    jitter: 0.2,
};

#[derive(Debug)]
pub(super) struct Waiters {
    store: SharedStore,
    jobs: Mutex<HashMap<JobId, Awaited>>,
    /// Woken when somebody begins to wait.
    begun: Notify,
    stop: CancellationToken,
}

/// A job that somebody waits for.
#[derive(Debug)]
struct Awaited {
    look_at: Instant,
    looks: u32,
    /// Dropped when the job is settled.
    settled: watch::Sender<()>,
}

impl Waiters {
    /// With nobody who waits. After `stop` nobody waits any longer.
    pub(super) fn new(store: SharedStore, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { store, jobs: Mutex::default(), begun: Notify::new(), stop })
    }

    /// Waits until the job is settled or gone, or until `until`, or until the end of the API.
    pub(super) async fn wait(&self, job: JobId, until: Instant) {
        let mut settled = match lock(&self.jobs).entry(job) {
            Entry::Occupied(awaited) => awaited.get().settled.subscribe(),
            Entry::Vacant(place) => {
                let (settled, receiver) = watch::channel(());
                place.insert(Awaited { look_at: Instant::now() + LOOK_EVERY, looks: 0, settled });
                receiver
            }
        };
        self.begun.notify_one();
        // Nothing is ever sent; it ends when the sender is dropped.
        let waiting = timeout_at(until, settled.changed());
        let _settled_or_late = self.stop.run_until_cancelled(waiting).await;
    }

    /// Looks for those who wait.
    pub(super) async fn run(&self) {
        let looking = async {
            loop {
                if lock(&self.jobs).is_empty() {
                    self.begun.notified().await;
                } else {
                    self.look().await;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        };
        let _stopped: Option<()> = self.stop.run_until_cancelled(looking).await;
    }

    async fn look(&self) {
        let due = self.due();
        if due.is_empty() {
            return;
        }
        match self.store.settled(&due).await {
            Ok(settled) => {
                let mut jobs = lock(&self.jobs);
                jobs.retain(|job, _| !settled.contains(job));
            }
            // They wait until their time is over, and are told then that the database is away.
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the store cannot be asked which jobs are settled")
            }
        }
    }

    /// The jobs to ask for now. Those that nobody waits for any more are forgotten.
    fn due(&self) -> Vec<JobId> {
        let now = Instant::now();
        let mut jobs = lock(&self.jobs);
        jobs.retain(|_, awaited| !awaited.settled.is_closed());
        let due = jobs.iter_mut().filter(|(_, awaited)| awaited.look_at <= now).take(MOST_AT_ONCE);
        due.map(|(job, awaited)| {
            awaited.looks = awaited.looks.saturating_add(1);
            awaited.look_at = now + AGAIN.wait(awaited.looks, fastrand::f64());
            *job
        })
        .collect()
    }
}
