//! Those who wait for jobs, batches and actions to end. One look at the store serves all of them, however many wait.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    backoff::Intervals,
    failure::chain,
    job::{BatchId, JobId},
    store::{SharedStore, StoreError},
    sync::lock,
    telemetry::metrics,
};

/// The shortest time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Most of them that one look asks for, so that it takes the database less than a millisecond. Who is due longest comes first,
/// and others are asked for by the next.
const MOST_AT_ONCE: usize = 250;

/// How long nobody asks again for what has not come about: soon at first, because most calls take a second, and rarely in the
/// end, because ten thousand may wait for what takes an hour.
const AGAIN: Intervals = Intervals {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(10),
    multiplier: 1.3,
    jitter: 0.2,
};

#[derive(Debug)]
pub(super) struct Waiters {
    store: SharedStore,
    awaited: Mutex<HashMap<Subject, Awaited>>,
    /// Woken when somebody begins to wait.
    begun: Notify,
    stop: CancellationToken,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// That it is settled.
    Job(JobId),
    /// That it does not go on.
    Batch(BatchId),
    /// That it has ended.
    Action(Uuid),
}

/// How somebody waits.
#[derive(Debug)]
struct Awaited {
    look_at: Instant,
    looks: u32,
    /// Dropped when it has come about.
    settled: watch::Sender<()>,
}

/// The answer to who has waited in vain, with when to ask again.
pub(super) fn not_yet(told: impl IntoResponse) -> Response {
    (StatusCode::ACCEPTED, [(header::RETRY_AFTER, HeaderValue::from_static("1"))], told).into_response()
}

impl Waiters {
    /// With nobody who waits. After `stop` nobody waits any longer.
    pub(super) fn new(store: SharedStore, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { store, awaited: Mutex::default(), begun: Notify::new(), stop })
    }

    /// Waits until it has come about or the subject is gone, or until `until`, or until the end of the API.
    pub(super) async fn wait(&self, subject: Subject, until: Instant) {
        let mut settled = match lock(&self.awaited).entry(subject) {
            Entry::Occupied(awaited) => awaited.get().settled.subscribe(),
            Entry::Vacant(place) => {
                let (settled, receiver) = watch::channel(());
                place.insert(Awaited { look_at: Instant::now() + LOOK_EVERY, looks: 0, settled });
                receiver
            }
        };
        self.begun.notify_one();
        let _counted = metrics::API_WAITERS.counted();
        // Nothing is ever sent; it ends when the sender is dropped.
        let waiting = timeout_at(until, settled.changed());
        let _settled_or_late = self.stop.run_until_cancelled(waiting).await;
    }

    /// Looks for those who wait.
    pub(super) async fn run(&self) {
        let looking = async {
            loop {
                if lock(&self.awaited).is_empty() {
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
        match AssertUnwindSafe(self.ended(&due)).catch_unwind().await {
            Ok(Ok(ended)) => lock(&self.awaited).retain(|subject, _| !ended.contains(subject)),
            // They wait until their time is over, and are told then that the database is away.
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "the store cannot be asked what has ended that is waited for")
            }
            // The next look is for all who wait, so that it must not be the last one.
            Err(_) => metrics::PANICS.add([], 1),
        }
    }

    async fn ended(&self, due: &[Subject]) -> Result<HashSet<Subject>, StoreError> {
        let (mut jobs, mut batches, mut actions) = (Vec::new(), Vec::new(), Vec::new());
        for subject in due {
            match subject {
                Subject::Job(job) => jobs.push(*job),
                Subject::Batch(batch) => batches.push(*batch),
                Subject::Action(action) => actions.push(*action),
            }
        }
        let mut ended = HashSet::new();
        if !jobs.is_empty() {
            ended.extend(self.store.settled(&jobs).await?.into_iter().map(Subject::Job));
        }
        if !batches.is_empty() {
            ended.extend(self.store.settled_batches(&batches).await?.into_iter().map(Subject::Batch));
        }
        if !actions.is_empty() {
            ended.extend(self.store.ended_actions(&actions).await?.into_iter().map(Subject::Action));
        }
        Ok(ended)
    }

    /// What to ask for now. What nobody waits for any more is forgotten.
    fn due(&self) -> Vec<Subject> {
        let now = Instant::now();
        let mut all = lock(&self.awaited);
        all.retain(|_, awaited| !awaited.settled.is_closed());
        let mut due: Vec<_> = all.iter_mut().filter(|(_, awaited)| awaited.look_at <= now).collect();
        if due.len() > MOST_AT_ONCE {
            due.select_nth_unstable_by_key(MOST_AT_ONCE, |(_, awaited)| awaited.look_at);
            due.truncate(MOST_AT_ONCE);
        }
        due.into_iter()
            .map(|(subject, awaited)| {
                awaited.looks = awaited.looks.saturating_add(1);
                awaited.look_at = now + AGAIN.wait(awaited.looks, fastrand::f64());
                *subject
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        clock,
        store::sqlite::{SqliteOptions, SqliteStore},
    };

    const MANY: usize = 500;

    /// With a store that nobody asks here.
    fn waiters() -> Arc<Waiters> {
        let options =
            SqliteOptions { path: "nowhere.db".into(), clock: clock::system(), records_events: false };
        Waiters::new(Arc::new(SqliteStore::new(options)), CancellationToken::new())
    }

    /// So many begin to wait, for what they say.
    async fn begin(waiters: &Arc<Waiters>, subject: impl Fn() -> Subject) -> JoinSet<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let mut waiting = JoinSet::new();
        for _ in 0..MANY {
            let (waiters, subject) = (waiters.clone(), subject());
            waiting.spawn(async move { waiters.wait(subject, until).await });
        }
        // Time passes when all of them wait.
        tokio::time::sleep(LOOK_EVERY).await;
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_serves_many_and_all_come_to_be_asked_for() {
        let waiters = waiters();
        let mut waiting = begin(&waiters, || Subject::Job(JobId::new())).await;
        let mut asked = Vec::new();
        for _ in 0..MANY / MOST_AT_ONCE {
            asked.push(waiters.due());
        }
        assert!(asked.iter().all(|due| due.len() == MOST_AT_ONCE));
        assert_eq!(
            asked.concat().into_iter().collect::<HashSet<_>>().len(),
            MANY,
            "nobody twice before others"
        );
        assert!(waiters.due().is_empty(), "all were asked for just now");

        // As `run` looks, for half a minute: ever less often, and never for more than one look takes.
        let mut asked = Vec::new();
        for _ in 0..300 {
            tokio::time::sleep(LOOK_EVERY).await;
            asked.push(waiters.due().len());
        }
        assert!(asked.iter().all(|due| *due <= MOST_AT_ONCE), "{asked:?}");
        let of_a_second = |looks: &[usize]| looks.iter().sum::<usize>();
        let (first, last) = (of_a_second(&asked[..10]), of_a_second(&asked[290..]));
        assert!(first >= MANY && last < first / 4, "{asked:?}");

        waiting.shutdown().await;
        assert!(waiters.due().is_empty() && lock(&waiters.awaited).is_empty(), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_ten_looks_a_second_at_most_however_many_wait_and_come() {
        let waiters = waiters();
        // It says at once that it is closed, so that a look takes no time.
        waiters.store.close().await;
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(begin(&waiters, || Subject::Job(JobId::new())).await);
        }
        let looking = tokio::spawn({
            let waiters = waiters.clone();
            async move { waiters.run().await }
        });
        let (begun, mut newcomers) = (Instant::now(), JoinSet::new());
        let until = begun + Duration::from_secs(60);
        for _ in 0..500 {
            let waiters = waiters.clone();
            newcomers.spawn(async move { waiters.wait(Subject::Job(JobId::new()), until).await });
            tokio::time::sleep(LOOK_EVERY / 10).await;
        }
        let seconds = begun.elapsed().as_secs();
        // There are so many that each look asks for as many as it may.
        let asked: u32 = lock(&waiters.awaited).values().map(|awaited| awaited.looks).sum();
        let looks = asked as usize / MOST_AT_ONCE;
        assert_eq!(asked as usize % MOST_AT_ONCE, 0, "{asked} were asked for");
        // The first is at the beginning.
        assert!(seconds == 5 && (45..=51).contains(&looks), "{looks} looks in {seconds} s");
        waiters.stop.cancel();
        looking.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_the_same_are_asked_for_once() {
        let waiters = waiters();
        let job = Subject::Job(JobId::new());
        let _waiting = begin(&waiters, || job).await;
        assert_eq!(waiters.due(), [job]);
    }
}
