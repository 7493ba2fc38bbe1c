//! The real SQLite store, with faults on the way to it and back.
//!
//! A call is atomic in simulated time: it runs to its end on a thread of its own while everything else
//! stands still. Before and after it, time may pass, the call may fail without having been made, or its
//! answer may be lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use errand::{
    access::{AccessKey, NewKey, RANDOM_BYTES, Shown},
    callback::Secret,
    job::{
        BatchId, CallbackUrl, Fence, JobId, JobSpec, Owner, Pin, Principal, QueueName, RequestId, WorkerId,
    },
    store::{
        AccessKeys, Action, ActionKind, Actions, Added, AddedKey, Admin, Answer, Answers, AsRead,
        AttemptView, Audit, AuditLimits, AuditPage, Awaited, BatchDecided, BatchItem, BatchView, Batches,
        Bind, By, Callback, CallbackAnswer, Callbacks, CalledEvent, CalledJob, Census, Change, ChangeFilter,
        Changes, Check, Checks, Claim, Claimed, Claims, Concern, Confirmed, Connections, Counted, Decided,
        Decider, Delivery, DeliveryFilter, Due, DueDelivery, Edited, EventListener, Events, EventsAfter,
        EventsOf, Finding, Finish, Finished, Finishes, Glance, Heard, History, HistoryEntry, InboxEntry,
        Inserted, JobControl, JobDecision, JobFilter, JobInbox, JobLists, JobView, Jobs, Leases, Looked,
        LostJob, MadeAction, Migrated, NewAction, NewBatch, NewDelivery, OldJob, OldMessage, OtherId, Page,
        PausedQueue, Pauses, Pins, Place, Publications, PutOff, Recovery, Rejected, RejectedFilter,
        RejectedView, Rejections, Repeat, Retention, Schema, Secrets, SeenJob, Step, Store, StoreError,
        StoreErrorKind, TakeAwaited, TakenAction, TakenBatch, Task, TriedDelivery, UsedKey, Which,
        WorkerView,
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    clock::StoreClock,
    rng::SeededRng,
    world::{Life, Theme, World},
};

/// A real store on a thread of its own, for one thread of simulations; its worlds use it one after the other.
/// The store's own tasks need a runtime that runs while the simulated one stands still.
///
/// It is opened once, because opening it and preparing its statements takes a fifth of the time of a world.
#[derive(Clone)]
pub(super) struct StoreThread {
    calls: mpsc::Sender<BoxFuture<'static, ()>>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) clock: Arc<StoreClock>,
    sweeper: Arc<tokio::sync::Mutex<SqliteConnection>>,
}

impl StoreThread {
    /// Opens a new database in this directory.
    pub(super) fn start(directory: &Path) -> Self {
        let (calls, received) = mpsc::channel::<BoxFuture<'static, ()>>();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            received.into_iter().for_each(|call| runtime.block_on(call));
        };
        thread::Builder::new().name("simulated-store".to_owned()).spawn(run).unwrap();
        let clock = Arc::new(StoreClock::default());
        let path = directory.join(format!("{}.db", Uuid::new_v4()));
        let options = SqliteOptions { path: path.clone(), clock: clock.clone(), records_events: true };
        let (store, sweeper) = run_on(&calls, async move {
            let store = SqliteStore::new(options);
            store.migrate().await.unwrap();
            let sweeper = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
            (Arc::new(store), Arc::new(tokio::sync::Mutex::new(sweeper)))
        });
        Self { calls, store, clock, sweeper }
    }

    /// Leaves nothing of the world before: no row, and no number that was given to a row.
    pub(super) fn sweep(&self) {
        let sweeper = self.sweeper.clone();
        self.run(async move {
            let mut db = sweeper.lock().await;
            let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *db).await.unwrap();
            let deletes: String = tables.iter().map(|table| format!("delete from {table}; ")).collect();
            let sweep = AssertSqlSafe(format!("begin immediate; {deletes} commit"));
            sqlx::raw_sql(sweep).execute(&mut *db).await.unwrap();
        });
    }

    /// Runs one call to its end.
    pub(super) fn run<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> T {
        run_on(&self.calls, call)
    }
}

fn run_on<T: Send + 'static>(
    thread: &mpsc::Sender<BoxFuture<'static, ()>>,
    call: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, answer) = mpsc::sync_channel(1);
    thread.send(Box::pin(async move { sender.send(call.await).unwrap() })).unwrap();
    answer.recv().unwrap()
}

/// All tables, SQLite's own of the numbers it gave included, but for that of the migrations.
const TABLES: &str = "select name from sqlite_master where type = 'table' and name <> '_sqlx_migrations'";

impl fmt::Debug for StoreThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreThread")
    }
}

/// How the way to the store is, until the world is calm.
#[derive(Debug)]
pub(super) struct StoreWeather {
    /// Share of calls that are not made.
    fails: f64,
    /// Share of calls whose answer is lost.
    loses: f64,
    /// Share of calls that take long, before or after they are made.
    slow: f64,
    outages: Vec<Outage>,
}

/// A time in which nothing gets through.
#[derive(Debug)]
struct Outage {
    /// Whom it concerns; everybody, if nobody is named.
    slot: Option<usize>,
    from: Duration,
    to: Duration,
    /// Calls wait for the end instead of failing at once.
    hangs: bool,
}

const SLOWEST: Duration = Duration::from_secs(25);

impl StoreWeather {
    pub(super) fn draw(rng: &SeededRng, calm_at: Duration, theme: Theme) -> Self {
        if theme == Theme::Partition {
            let from = rng.between(calm_at / 10, calm_at / 2);
            let to = from + rng.between(SLOWEST * 4, SLOWEST * 10);
            let outages = vec![Outage { slot: Some(0), from, to, hangs: rng.chance(0.5) }];
            return Self { fails: 0.0, loses: 0.0, slow: 0.0, outages };
        }
        let share = || rng.pick(&[0.0, 0.02, 0.15]);
        let outages = (0..rng.below(4))
            .map(|_| {
                let from = rng.up_to(calm_at);
                let to = (from + rng.between(SLOWEST, SLOWEST * 8)).min(calm_at);
                Outage { slot: rng.pick(&[None, Some(0), Some(1)]), from, to, hangs: rng.chance(0.4) }
            })
            .collect();
        Self { fails: share(), loses: share(), slow: share(), outages }
    }
}

/// What happens to one call.
#[derive(Debug, Default)]
struct Way {
    before: Duration,
    fails: bool,
    after: Duration,
    loses: bool,
}

impl Way {
    fn draw(world: &World, life: &Life) -> Self {
        let now = world.now();
        if now >= world.calm_at {
            return Self::default();
        }
        let (weather, rng) = (&world.store_weather, &world.store_dice);
        let hit = weather.outages.iter().find(|outage| {
            outage.slot.is_none_or(|slot| slot == life.slot) && (outage.from..outage.to).contains(&now)
        });
        if let Some(outage) = hit {
            let wait = if outage.hangs { outage.to.saturating_sub(now) } else { rng.up_to(SLOWEST / 10) };
            return Self { before: wait, fails: rng.chance(0.8), ..Self::default() };
        }
        let slow = || if rng.chance(weather.slow) { rng.up_to(SLOWEST) } else { Duration::ZERO };
        Self {
            before: slow(),
            fails: rng.chance(weather.fails),
            after: slow(),
            loses: rng.chance(weather.loses),
        }
    }
}

/// One process's way to the store.
#[derive(Debug, Clone)]
pub(super) struct Faulty {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

impl Faulty {
    /// Makes a call, `told` in the trace. As with a real store, a call that was begun goes on when its
    /// caller stops waiting; and a process that was killed hears of nothing any more.
    async fn call<T, C>(&self, told: String, call: C) -> Result<T, StoreError>
    where
        T: fmt::Debug + Send + 'static,
        C: AsyncCall<T>,
    {
        let Self { world, life } = self.clone();
        if life.is_dead() {
            return std::future::pending().await;
        }
        let way = Way::draw(&world, &life);
        let (sender, answer) = oneshot::channel();
        let (world, caller) = (world.clone(), life.clone());
        tokio::spawn(async move {
            tokio::time::sleep(way.before).await;
            // What a killed process had begun ends with it or not, as if by chance.
            if caller.is_dead() && world.store_dice.chance(0.5) {
                return;
            }
            let mut answer =
                if way.fails { Err(lost("the way to the store is closed")) } else { world.apply(call) };
            world.tell_store(&caller, &told, &answer, way.loses);
            tokio::time::sleep(way.after).await;
            if way.loses && answer.is_ok() {
                answer = Err(lost("the answer of the store was lost"));
            }
            drop(sender.send(answer));
        });
        match answer.await {
            Ok(answer) if !life.is_dead() => answer,
            _ => std::future::pending().await,
        }
    }
}

fn lost(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, message)
}

/// A call of the real store, with everything it needs.
pub(super) trait AsyncCall<T>:
    FnOnce(Arc<SqliteStore>) -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static
{
}

impl<T, C> AsyncCall<T> for C where
    C: FnOnce(Arc<SqliteStore>) -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static
{
}

/// Implements a trait of the store by passing every call on. `&name: Type` is an argument that the trait
/// takes by reference.
macro_rules! pass_on {
    ($trait:ident {
        $(fn $method:ident(&self $(, $(&$by_ref:ident: $ref_type:tt)? $($by_value:ident: $type:ty)?)*) -> $answer:ty;)*
    }) => {
        #[async_trait]
        impl $trait for Faulty {
            $(async fn $method(&self $(, $($by_ref: &$ref_type)? $($by_value: $type)?)*) -> Result<$answer, StoreError> {
                let told = String::from(stringify!($method)) $(+ &format!(
                    " {:?}", $($by_ref)? $($by_value)?
                ))*;
                $($(let $by_ref = $by_ref.to_owned();)?)*
                self.call(told, move |store: Arc<SqliteStore>| -> BoxFuture<'static, Result<$answer, StoreError>> {
                    Box::pin(async move { store.$method($($(&$by_ref)? $($by_value)?),*).await })
                })
                .await
            })*
        }
    };
}

/// The path of a job, watched for what no caller can see: whether one claim really excludes another.
#[async_trait]
impl Jobs for Faulty {
    async fn insert(
        &self,
        batch: &[Arc<JobSpec>],
        unclaimed_after: Duration,
    ) -> Result<Vec<Inserted>, StoreError> {
        let batch = batch.to_vec();
        self.call(format!("insert {batch:?}"), move |store| {
            Box::pin(async move { store.insert(&batch, unclaimed_after).await })
        })
        .await
    }

    async fn known(&self, spec: &JobSpec) -> Result<Option<Inserted>, StoreError> {
        let spec = spec.clone();
        self.call(format!("known {spec:?}"), move |store| Box::pin(async move { store.known(&spec).await }))
            .await
    }

    async fn locked(&self, jobs: &[JobId]) -> Result<HashSet<JobId>, StoreError> {
        let jobs = jobs.to_vec();
        self.call(format!("locked {jobs:?}"), move |store| Box::pin(async move { store.locked(&jobs).await }))
            .await
    }
}

impl Store for Faulty {}

#[async_trait]
impl Claims for Faulty {
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>, StoreError> {
        let (batch, world) = (batch.to_vec(), self.world.clone());
        self.call(format!("claim {worker:?} {batch:?}"), move |store| {
            Box::pin(async move {
                let answers = store.claim(worker, &batch).await?;
                batch
                    .iter()
                    .zip(&answers)
                    .for_each(|(claim, answer)| world.claims.saw_claim(&world, claim, answer));
                Ok(answers)
            })
        })
        .await
    }

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>, StoreError> {
        let batch = batch.to_vec();
        self.call(format!("bind {batch:?}"), move |store| Box::pin(async move { store.bind(&batch).await }))
            .await
    }
}

#[async_trait]
impl Finishes for Faulty {
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError> {
        let (batch, world) = (batch.to_vec(), self.world.clone());
        self.call(format!("finish {batch:?}"), move |store| {
            Box::pin(async move {
                let answers = store.finish(&batch).await?;
                batch
                    .iter()
                    .zip(&answers)
                    .for_each(|(finish, answer)| world.claims.saw_finish(&world, finish, *answer));
                Ok(answers)
            })
        })
        .await
    }
}

/// The claims of all processes, as the store granted them.
#[derive(Debug, Default)]
pub(super) struct GrantedClaims {
    held: Mutex<BTreeMap<JobId, Held>>,
    /// The finishes that were applied.
    applied: Mutex<BTreeSet<RequestId>>,
    /// The attempts that were charged by a rescue.
    charged: Mutex<BTreeMap<JobId, u32>>,
}

#[derive(Debug)]
struct Held {
    fence: Fence,
    request: RequestId,
    runs: bool,
}

impl GrantedClaims {
    fn saw_claim(&self, world: &World, claim: &Claim, answer: &Claimed) {
        let Claimed::Running(receipt) = answer else { return };
        let (id, fence, request) = (claim.spec.id, receipt.fence, claim.request_id);
        let held = self.held.lock().unwrap().insert(id, Held { fence, request, runs: true });
        // The same claim again gets the same answer.
        if let Some(held) = held.filter(|held| held.request != request)
            && (held.runs || held.fence >= fence)
        {
            world.is_broken(format!("{id} was claimed under fence {} while it was held: {held:?}", fence.0));
        }
    }

    /// How often a rescue charged the job for an attempt.
    pub(super) fn charged_by_rescues(&self, id: JobId) -> u32 {
        self.charged.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    fn saw_finish(&self, world: &World, finish: &Finish, answer: Finished) {
        let Finished::Applied { .. } = answer else { return };
        if matches!(finish.by, By::Rescuer { .. }) && finish.ending.spends_attempt() {
            *self.charged.lock().unwrap().entry(finish.id).or_default() += 1;
        }
        let mut all = self.held.lock().unwrap();
        let is_first = self.applied.lock().unwrap().insert(finish.attempt.request_id);
        match all.get_mut(&finish.id) {
            Some(held) if held.fence == finish.fence => held.runs = false,
            // A repetition gets the answer of the first time.
            Some(held) if held.fence > finish.fence && !is_first => {}
            held => world
                .is_broken(format!("{} was finished under fence {}: {held:?}", finish.id, finish.fence.0)),
        }
    }
}

pass_on!(Publications {
    fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Vec<Due>;
    fn defer(&self, &ids: [JobId], after: Duration) -> ();
    fn republish_all(&self) -> u64;
    fn next_due_in(&self) -> Option<Duration>;
    fn take_replies(&self, limit: usize, again_after: Duration) -> Vec<JobView>;
    fn replied(&self, &ids: [JobId]) -> ();
    fn defer_replies(&self, &ids: [JobId], after: Duration) -> ();
    fn put_off_replies(&self, &ids: [JobId], first: Duration, most: u32) -> Vec<JobId>;
});

pass_on!(Answers {
    fn note_repeats(&self, &batch: [Repeat]) -> ();
    fn take_answers(&self, limit: usize, again_after: Duration) -> Vec<Answer>;
    fn answered(&self, &ids: [Uuid]) -> ();
    fn defer_answers(&self, &ids: [Uuid], after: Duration) -> ();
    fn put_off_answers(&self, &ids: [Uuid], first: Duration, most: u32) -> Vec<Uuid>;
    fn job_known_as(&self, &principal: Principal, id: JobId) -> Option<JobId>;
    fn known_as(&self, &principal: Principal, id: JobId) -> Vec<JobId>;
});

pass_on!(Leases {
    fn beat(&self, worker: WorkerId, &name: str, lease: Duration) -> ();
    fn retire(&self, worker: WorkerId) -> ();
    fn take_task(&self, task: Task, worker: WorkerId, lease: Duration) -> bool;
    fn leave_task(&self, task: Task, worker: WorkerId) -> ();
    fn lost_jobs(&self, lease: Duration, limit: usize) -> Vec<LostJob>;
    fn running_jobs(&self, worker: WorkerId, limit: usize) -> Vec<LostJob>;
    fn forget_workers(&self, after: Duration) -> u64;
    fn workers(&self) -> Vec<WorkerView>;
    fn live_builds(&self, lease: Duration) -> u64;
});

pass_on!(Pauses {
    fn paused_queues(&self) -> Vec<PausedQueue>;
    fn pause_queue(&self, &queue: QueueName, &by: Decider, &reason: str) -> bool;
    fn resume_queue(&self, &queue: QueueName, &by: Decider) -> bool;
});

pass_on!(Checks {
    fn take_checks(&self, limit: usize, again_after: Duration) -> Vec<Check>;
    fn put_off(&self, &put_off: PutOff) -> bool;
    fn known_success(&self, after: Timestamp) -> Option<RequestId>;
    fn known_success_before(&self, before: Timestamp) -> Option<RequestId>;
});

pass_on!(Connections {
    fn take_awaited(&self, take: TakeAwaited) -> Vec<Awaited>;
    fn put_off_awaited(&self, &put_off: [(Awaited, Duration)], keep_doubt: bool) -> ();
    fn give_back_awaited(&self, &awaited: [Awaited]) -> ();
    fn release_awaited(&self, &awaited: Awaited, limit: usize) -> u64;
    fn expire_awaiting(&self, limit: usize) -> u64;
});

pass_on!(Audit {
    fn audit(&self, after: Option<JobId>, limit: usize, &limits: AuditLimits) -> AuditPage<Finding>;
    fn make_findable(&self, &ids: [JobId]) -> Vec<JobId>;
    fn make_due(&self, &ids: [JobId]) -> Vec<JobId>;
    fn eldest_worker(&self, lease: Duration) -> Option<WorkerId>;
    fn succeeded_by_call(&self, after: Option<JobId>, limit: usize) -> AuditPage<JobId>;
});

pass_on!(Rejections {
    fn reject(&self, &batch: [Rejected]) -> ();
    fn rejected(&self, &principal: Principal, &filter: RejectedFilter, before: Option<Place>, limit: usize)
        -> Vec<RejectedView>;
    fn rejected_message(&self, &principal: Principal, id: Uuid) -> Option<RejectedView>;
    fn rejected_as(&self, &principal: Principal, job: JobId) -> Option<Uuid>;
    fn mark_requeued(&self, &principal: Principal, id: Uuid, &by: Decider, corrected: Option<Vec<u8>>) -> bool;
});

pass_on!(Changes {
    fn changes(&self, &principal: Principal, &filter: ChangeFilter, before: Option<Place>, limit: usize) -> Vec<Change>;
    fn note_erasure(&self, &owner: Owner, &by: Decider) -> ();
    fn forget_owner(&self, &owner: Owner, limit: usize) -> u64;
    fn remove_changes(&self, age: Duration, limit: usize) -> u64;
});

pass_on!(JobInbox {
    fn inbox(&self, behind: i64, limit: usize) -> Vec<InboxEntry>;
    fn clear_inbox(&self, &ids: [i64]) -> ();
});

pass_on!(Events {
    fn events(&self, &principal: Principal, of: EventsOf, after: Option<u64>, limit: usize) -> EventsAfter;
    fn last_event(&self) -> u64;
    fn heard(&self, listener: EventListener) -> Heard;
    fn note_heard(&self, listener: EventListener, up_to: u64) -> ();
    fn remove_events(&self, age: Duration, limit: usize) -> u64;
    fn remove_events_of(&self, &owner: Owner, limit: usize) -> u64;
});

pass_on!(Callbacks {
    fn set_callback(&self, &principal: Principal, &owner: Owner, url: Option<CallbackUrl>, &fresh: Secret, &by: Decider)
        -> Option<Callback>;
    fn callback_secrets(&self, &principal: Principal, &owner: Owner, &fresh: Secret, replaced: Option<Duration>, &by: Decider)
        -> Option<Secrets>;
    fn callbacks(&self, &principal: Principal, behind: Option<Owner>, limit: usize) -> Vec<Callback>;
    fn called_events(&self, after: u64, limit: usize) -> EventsAfter<CalledEvent>;
    fn add_deliveries(&self, &deliveries: [NewDelivery]) -> ();
    fn due_deliveries(&self, &full: [Uuid], &open: [Uuid], most: usize, limit: usize) -> Vec<DueDelivery>;
    fn called_jobs(&self, &jobs: [JobId], most: usize) -> Vec<CalledJob>;
    fn note_deliveries(&self, &tried: [TriedDelivery]) -> ();
    fn note_receivers(&self, &answers: [(Uuid, bool)]) -> ();
    fn note_callback(&self, &owner: Owner, &url: str, answer: CallbackAnswer, patience: Duration) -> bool;
    fn deliveries(&self, &principal: Principal, &filter: DeliveryFilter, before: Option<Place>, limit: usize) -> Vec<Delivery>;
    fn recover_deliveries(&self, &principal: Principal, &owner: Owner, &recovery: Recovery, limit: usize, &by: Decider)
        -> (u64, Option<Place>);
    fn expire_deliveries(&self, waited: Duration, limit: usize) -> u64;
    fn remove_deliveries(&self, ended_for: Duration, limit: usize) -> u64;
    fn remove_deliveries_of(&self, &owner: Owner, limit: usize) -> u64;
    fn remove_callback_of(&self, &owner: Owner) -> bool;
});

pass_on!(Retention {
    fn old_jobs(&self, &which: Which, after: Option<Place>, limit: usize) -> Page<OldJob>;
    fn seen_jobs(&self, &principal: Principal, &seen: [SeenJob]) -> Vec<OldJob>;
    fn remove_jobs(&self, &jobs: [OldJob]) -> Vec<JobId>;
    fn old_messages(&self, before: Option<Place>, limit: usize) -> Page<OldMessage>;
    fn remove_messages(&self, &messages: [OldMessage]) -> Vec<Uuid>;
    fn sweep_other_ids(&self, after: Option<OtherId>, limit: usize) -> Option<OtherId>;
    fn forget_awaited(&self, &owner: Owner) -> u64;
});

// What follows is either only read, every few seconds and to no effect on jobs, or belongs to the database
// and not to a process. It is not worth the time of thousands of worlds.

#[async_trait]
impl JobControl for Faulty {
    async fn job(&self, principal: &Principal, id: JobId) -> Result<Option<JobView>, StoreError> {
        let principal = principal.clone();
        self.world.apply(move |store| Box::pin(async move { store.job(&principal, id).await }))
    }

    async fn settled(&self, jobs: &[JobId]) -> Result<HashSet<JobId>, StoreError> {
        let jobs = jobs.to_vec();
        self.world.apply(move |store| Box::pin(async move { store.settled(&jobs).await }))
    }

    async fn attempts(&self, principal: &Principal, id: JobId) -> Result<Vec<AttemptView>, StoreError> {
        let principal = principal.clone();
        self.world.apply(move |store| Box::pin(async move { store.attempts(&principal, id).await }))
    }

    async fn decide(
        &self,
        principal: &Principal,
        id: JobId,
        decision: JobDecision,
        as_read: Option<&AsRead>,
        by: &Decider,
    ) -> Result<Decided, StoreError> {
        let told = format!("decide {decision:?} about {id}");
        let (principal, as_read, by) = (principal.clone(), as_read.copied(), by.to_owned());
        self.call(told, move |store| {
            Box::pin(async move { store.decide(&principal, id, decision, as_read.as_ref(), &by).await })
        })
        .await
    }

    async fn edit(
        &self,
        principal: &Principal,
        edited: &Edited,
        by: &Decider,
    ) -> Result<Decided, StoreError> {
        let told = format!("edit {}", edited.before.id);
        let (principal, edited, by) = (principal.clone(), edited.clone(), by.to_owned());
        self.call(told, move |store| Box::pin(async move { store.edit(&principal, &edited, &by).await }))
            .await
    }

    async fn census(&self) -> Result<Census, StoreError> {
        Ok(Census::default())
    }
}

#[async_trait]
impl JobLists for Faulty {
    async fn jobs(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Looked<JobView>, StoreError> {
        let (principal, filter) = (principal.clone(), filter.clone());
        self.world
            .apply(move |store| Box::pin(async move { store.jobs(&principal, &filter, before, limit).await }))
    }

    async fn glances(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        outcomes: bool,
    ) -> Result<Looked<Glance>, StoreError> {
        let (principal, filter) = (principal.clone(), filter.clone());
        self.world.apply(move |store| {
            Box::pin(async move { store.glances(&principal, &filter, before, outcomes).await })
        })
    }
}

#[async_trait]
impl History for Faulty {
    async fn history(&self, principal: &Principal, id: JobId) -> Result<Vec<HistoryEntry>, StoreError> {
        let principal = principal.clone();
        self.world.apply(move |store| Box::pin(async move { store.history(&principal, id).await }))
    }
}

pass_on! { Batches {
    fn add_batch(&self, &batch: NewBatch, &items: [Arc<JobSpec>]) -> Added;
    fn add_items(&self, &principal: Principal, id: BatchId, from: u64, &items: [Arc<JobSpec>]) -> Added;
    fn seal_batch(&self, &principal: Principal, id: BatchId) -> Option<BatchView>;
    fn batch(&self, &principal: Principal, id: BatchId, live: bool) -> Option<BatchView>;
    fn batch_items(&self, &principal: Principal, id: BatchId, from: u64, limit: usize) -> Vec<BatchItem>;
    fn batches(&self, &principal: Principal, before: Option<Place>, limit: usize) -> Vec<BatchView>;
    fn settled_batches(&self, &ids: [BatchId]) -> Vec<BatchId>;
    fn cancel_batch(&self, &principal: Principal, id: BatchId, &by: Decider) -> BatchDecided;
    fn retry_batch(&self, &principal: Principal, id: BatchId, &by: Decider, force: bool, generation: Option<u32>) -> BatchDecided;
    fn take_batches(&self, limit: usize, lease: Duration) -> Vec<TakenBatch>;
    fn count_batch(&self, id: BatchId, most: usize) -> Option<Counted>;
    fn advance_batch(&self, &taken: TakenBatch, place: Option<Place>) -> ();
    fn complete_batch(&self, &taken: TakenBatch) -> bool;
    fn put_off_batch(&self, &taken: TakenBatch, after: Duration) -> ();
    fn remove_batches(&self, completed_for: Duration, limit: usize) -> u64;
    fn remove_batches_of(&self, &owner: Owner) -> u64;
}}

pass_on! { AccessKeys {
    fn add_key(&self, &principal: Principal, &key: NewKey, &by: Decider) -> AddedKey;
    fn keys(&self, &principal: Principal, before: Option<Uuid>, limit: usize) -> Vec<AccessKey>;
    fn key(&self, &principal: Principal, id: Uuid) -> Option<AccessKey>;
    fn rotate_key(&self, &principal: Principal, id: Uuid, &key: NewKey, overlap: Duration, &by: Decider) -> Option<AccessKey>;
    fn revoke_key(&self, &principal: Principal, id: Uuid, &by: Decider) -> Option<AccessKey>;
    fn remove_keys(&self, &owner: Owner) -> u64;
    fn use_key(&self, &shown: Shown) -> UsedKey;
    fn valid_key(&self, id: Uuid) -> Option<AccessKey>;
    fn sealing_secret(&self, new: [u8; RANDOM_BYTES]) -> Vec<u8>;
    fn has_keys(&self) -> bool;
}}

/// Nobody makes any in a simulation, so there is nothing to carry out.
#[async_trait]
impl Actions for Faulty {
    async fn make_action(&self, _: &Principal, _: &NewAction, _: Duration) -> Result<MadeAction, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn confirm_action(
        &self,
        _: &Principal,
        _: Uuid,
        _: &Decider,
        _: bool,
    ) -> Result<Confirmed, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn abort_action(&self, _: &Principal, _: Uuid, _: &Decider) -> Result<Option<Action>, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn action(&self, _: &Principal, _: Uuid) -> Result<Option<Action>, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn ended_actions(&self, _: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn actions(&self, _: &Principal, _: Option<Place>, _: usize) -> Result<Vec<Action>, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn take_action(&self, _: Option<Uuid>, _: Duration) -> Result<Option<TakenAction>, StoreError> {
        Ok(None)
    }

    async fn keep_action(&self, _: Uuid, _: i64, _: Duration) -> Result<bool, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn record_action(&self, _: Uuid, _: i64, _: &Step) -> Result<bool, StoreError> {
        unreachable!("nobody makes actions here")
    }

    async fn actions_under_way(&self) -> Result<BTreeMap<ActionKind, u64>, StoreError> {
        Ok(BTreeMap::new())
    }

    async fn prune_actions(&self, _: Duration, _: usize) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn remove_actions(&self, _: &Owner) -> Result<u64, StoreError> {
        unreachable!("nobody is erased here")
    }
}

#[async_trait]
impl Pins for Faulty {
    async fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        Ok(Vec::new())
    }

    async fn set_pin(&self, _: &Principal, _: &Pin, _: &Decider) -> Result<(), StoreError> {
        unreachable!("nobody pins anything at run time here")
    }

    async fn unset_pin(
        &self,
        _: &Principal,
        _: Option<&Owner>,
        _: &str,
        _: &Decider,
    ) -> Result<bool, StoreError> {
        unreachable!("nobody pins anything at run time here")
    }
}

#[async_trait]
impl Admin for Faulty {
    fn backend(&self) -> &'static str {
        "SQLite"
    }

    fn address(&self) -> String {
        "simulated".to_owned()
    }

    async fn migrate(&self) -> Result<Migrated, StoreError> {
        unreachable!("the file of a world is a copy of a migrated one")
    }

    async fn move_from(&self, _: &str) -> Result<Migrated, StoreError> {
        unreachable!("nothing is moved in a simulation")
    }

    async fn inspect(&self) -> Result<Vec<Concern>, StoreError> {
        Ok(Vec::new())
    }

    async fn schema(&self) -> Result<Schema, StoreError> {
        self.call("schema".into(), |store| Box::pin(async move { store.schema().await })).await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.call("now".into(), |store| Box::pin(async move { store.now().await })).await
    }

    async fn version(&self) -> Result<String, StoreError> {
        self.call("version".into(), |store| Box::pin(async move { store.version().await })).await
    }

    async fn close(&self) {}
}
