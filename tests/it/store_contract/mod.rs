//! The guarantees of `errand::store`, each tested on every backend. A noun has the same file name here and in
//! `src/store`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use errand::{
    clock,
    job::{
        Attempt, AttemptOutcome, Binding, Effect, Ending, ErrorKind, HeldReason, JobError, JobId, JobSpec,
        PinnedBy, Principal, RequestId, State, Stop, WorkerId,
    },
    store::{
        Beginning, Bind, By, COMMAND_LINE, Claim, ClaimReceipt, Claimed, Decider, Finish, Finished, Force,
        Inserted, JobView, SharedStore,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use errand_testbed::factory::{self, Envelope as _};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json, value::RawValue};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::{
    jobs::{Properties, claim, decode},
    migrated, support,
};

mod access_keys;
mod actions;
mod admin;
mod answers;
mod audit;
mod batch_bounds;
mod batch_turns;
mod batches;
mod callbacks;
mod called_events;
mod carried_out;
mod changes;
mod checks;
mod claims;
mod connections;
mod deliveries;
mod doors;
mod edits;
mod event_listeners;
mod event_readers;
mod events;
mod finishes;
mod histories;
mod history;
mod job_control;
mod job_lists;
mod jobs;
mod leases;
mod newer;
pub(crate) mod owner_lock;
mod pins;
mod principals;
mod pruned;
mod publications;
mod receivers;
mod rejections;
mod retention;
mod tasks;

/// A test of a guarantee, which runs on every backend: `name, async |t| { ... }`. With `and behind the lock` after the
/// name also where row-level security is a second lock between owners.
macro_rules! on_every_backend {
    ($name:ident, async |$t:ident| $body:block) => {
        on_every_backend!(@ $name, $t, $body,);
    };
    ($name:ident, and behind the lock, async |$t:ident| $body:block) => {
        on_every_backend!(@ $name, $t, $body,
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_behind_the_lock() {
                Box::pin(test(TestStore::locked().await)).await;
            }
        );
    };
    (@ $name:ident, $t:ident, $body:block, $($more:item)?) => {
        mod $name {
            use super::*;

            async fn test($t: TestStore) $body

            $($more)?

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                Box::pin(test(TestStore::postgres().await)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                Box::pin(test(TestStore::sqlite().await)).await;
            }
        }
    };
}
use on_every_backend;

/// An empty store, seen from two processes.
pub(crate) struct TestStore {
    pub(crate) store: SharedStore,
    other: SharedStore,
    pub(crate) worker: WorkerId,
    place: Place,
}

enum Place {
    Postgres(support::postgres::Database),
    Sqlite(TempDir),
}

impl TestStore {
    async fn postgres() -> Self {
        Self::of_postgres(migrated::postgres("contract").await)
    }

    async fn bare_postgres() -> Self {
        Self::of_postgres(support::database("contract").await)
    }

    fn of_postgres(database: support::postgres::Database) -> Self {
        let open = || Arc::new(PostgresStore::new(postgres_options(&database.url)).unwrap());
        Self { store: open(), other: open(), worker: WorkerId::new(), place: Place::Postgres(database) }
    }

    /// In PostgreSQL, where what owners ask runs as a role of its own.
    async fn locked() -> Self {
        let database = support::database("locked").await;
        let role = owner_lock::made_role(&database).await;
        let options =
            || PostgresOptions { tenant_role: Some(role.clone()), ..postgres_options(&database.url) };
        let open = || Arc::new(PostgresStore::new(options()).unwrap());
        let bench =
            Self { store: open(), other: open(), worker: WorkerId::new(), place: Place::Postgres(database) };
        bench.store.migrate().await.unwrap();
        bench
    }

    pub(crate) async fn sqlite() -> Self {
        let bench = Self::bare_sqlite();
        let Place::Sqlite(dir) = &bench.place else { unreachable!("it was just made") };
        migrated::sqlite(&dir.path().join("errand.db")).await;
        bench
    }

    fn bare_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(sqlite(&dir, clock::system()));
        Self { store: open(), other: open(), worker: WorkerId::new(), place: Place::Sqlite(dir) }
    }

    /// A store without tables beside this one.
    async fn bare(&self) -> Self {
        match &self.place {
            Place::Postgres(_) => Self::bare_postgres().await,
            Place::Sqlite(_) => {
                let bare = Self::bare_sqlite();
                let Place::Sqlite(dir) = &bare.place else { unreachable!("it was just made") };
                // Where there is no file, there is no database at all.
                std::fs::write(dir.path().join("errand.db"), "").unwrap();
                bare
            }
        }
    }

    /// Does what errand never does.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Postgres(database) => {
                database.connect().await.unwrap().execute(sql).await.unwrap();
            }
            Place::Sqlite(dir) => {
                let url = format!("sqlite://{}", dir.path().join("errand.db").display());
                SqliteConnection::connect(&url).await.unwrap().execute(sql).await.unwrap();
            }
        }
    }

    /// Locks something in PostgreSQL until the connection is closed.
    async fn lock(&self, sql: &str) -> PgConnection {
        let Place::Postgres(database) = &self.place else { panic!("SQLite has no such locks") };
        let mut connection = database.connect().await.unwrap();
        connection.execute(AssertSqlSafe(format!("begin; {sql}"))).await.unwrap();
        connection
    }

    /// The number that a query of errand's tables answers.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        use sqlx::Row as _;
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Postgres(database) => {
                database.connect().await.unwrap().fetch_one(sql).await.unwrap().get(0)
            }
            Place::Sqlite(dir) => {
                let url = format!("sqlite://{}", dir.path().join("errand.db").display());
                SqliteConnection::connect(&url).await.unwrap().fetch_one(sql).await.unwrap().get(0)
            }
        }
    }

    /// Adds finished jobs of the owner `user:bulk`, each created a second before the one before it and all before now.
    async fn fill(&self, jobs: usize) {
        let columns = "id, digest, owner_kind, owner_id, tool, queue, priority, tags, toolkit, toolkit_version, pinned_by,
            frozen_effect, state, created_at, fence, attempt, spent, request_id, started_at, result, http_status,
            finished_at";
        let job = |id: &str, digest: &str, at: &str| {
            format!(
                "{id}, {digest}, 'user', 'bulk', 'T', 'default', 0, '{{}}', 't', '20260101_00', 'latest', 'safe',
                'succeeded', {at}, 1, 1, 1, {id}, {at}, '1', 200, {at}"
            )
        };
        let rows = if self.is_postgres() {
            let at = "now() - n * interval '1 second'";
            let job = job("gen_random_uuid()", "'\\x00112233445566778899aabbccddeeff'", at);
            format!("select {job} from generate_series(1, {jobs}) as n")
        } else {
            let at = "(unixepoch() - n) * 1000000";
            let job = job("randomblob(16)", "x'00112233445566778899aabbccddeeff'", at);
            format!(
                "with recursive s (n) as (select 1 union all select n + 1 from s where n < {jobs}) select {job} from s"
            )
        };
        self.execute(&format!("insert into jobs ({columns}) {rows}")).await;
    }

    fn is_postgres(&self) -> bool {
        matches!(self.place, Place::Postgres(_))
    }

    /// The ID of a job as it stands in a statement.
    fn literal(&self, id: JobId) -> String {
        match &self.place {
            Place::Postgres(_) => format!("'{id}'"),
            Place::Sqlite(_) => format!("x'{}'", id.0.simple()),
        }
    }

    async fn insert(&self, spec: &Arc<JobSpec>) -> Inserted {
        one(self.store.insert(std::slice::from_ref(spec), Duration::ZERO).await.unwrap())
    }

    pub(crate) async fn claim(&self, claim: &Claim) -> Claimed {
        one(self.store.claim(self.worker, std::slice::from_ref(claim)).await.unwrap())
    }

    /// Claims a job that can be claimed.
    async fn run(&self, spec: &Arc<JobSpec>) -> RunningJob {
        let claim = claim(spec);
        let receipt = running(self.claim(&claim).await);
        RunningJob { id: spec.id, request_id: claim.request_id, receipt }
    }

    pub(crate) async fn finish(&self, finish: &Finish) -> Finished {
        one(self.store.finish(std::slice::from_ref(finish)).await.unwrap())
    }

    async fn view(&self, id: JobId) -> JobView {
        self.store.job(&Principal::Operator, id).await.unwrap().unwrap()
    }

    pub(crate) async fn state(&self, id: JobId) -> State {
        self.view(id).await.state
    }

    async fn outcomes(&self, id: JobId) -> Vec<Option<AttemptOutcome>> {
        self.store
            .attempts(&Principal::Operator, id)
            .await
            .unwrap()
            .into_iter()
            .map(|attempt| attempt.outcome)
            .collect()
    }

    /// Takes everything that is due, as the relay does.
    async fn publish(&self) {
        self.store.take_due(100, Duration::from_secs(60)).await.unwrap();
    }

    /// A job in the given state, which has had an attempt where the state allows it.
    async fn in_state(&self, state: State) -> JobId {
        let spec = match state {
            State::Scheduled => job(json!({"run_at": in_hours(1)})),
            _ => job(json!({})),
        };
        match state {
            State::Scheduled | State::Available => {
                self.insert(&spec).await;
            }
            State::Running => {
                self.run(&spec).await;
            }
            State::Retryable => {
                let run = self.run(&spec).await;
                self.finish(&run.end(retry(Duration::from_secs(60)), AttemptOutcome::ToolFailed)).await;
            }
            State::Held => {
                let run = self.run(&spec).await;
                self.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
            }
            State::Succeeded => {
                let run = self.run(&spec).await;
                self.finish(&run.end(succeed("{}"), AttemptOutcome::Succeeded)).await;
            }
            State::Failed => {
                let run = self.run(&spec).await;
                self.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
            }
            State::Cancelled => {
                self.insert(&spec).await;
                self.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
            }
        }
        assert_eq!(self.state(spec.id).await, state);
        spec.id
    }
}

/// Whatever stands in the way of running a job again.
const FORCE: Force = Force { effect: true, early: true };

pub(crate) fn postgres_options(url: &str) -> PostgresOptions {
    PostgresOptions {
        url: url.to_owned().into(),
        schema: "errand".parse().unwrap(),
        tenant_role: None,
        hot_connections: 3,
        other_connections: 2,
        application_name: "errand-tests".into(),
        statement_timeout: Duration::from_secs(20),
        records_events: true,
    }
}

fn sqlite(dir: &TempDir, clock: clock::SharedClock) -> SqliteStore {
    SqliteStore::new(SqliteOptions { path: dir.path().join("errand.db"), clock, records_events: true })
}

/// A claim that runs.
pub(crate) struct RunningJob {
    pub(crate) id: JobId,
    pub(crate) request_id: RequestId,
    pub(crate) receipt: ClaimReceipt,
}

impl RunningJob {
    pub(crate) fn end(&self, ending: Ending, outcome: AttemptOutcome) -> Finish {
        let attempt = Attempt {
            number: self.receipt.attempt,
            request_id: self.request_id,
            outcome,
            http_status: Some(200),
            log_id: Some(format!("log-{outcome}")),
            version: Some("20260101_00".into()),
            error: ending.error().cloned(),
            started_at: Timestamp::now(),
            finished_at: Timestamp::now(),
        };
        Finish { id: self.id, fence: self.receipt.fence, by: By::Holder, attempt, ending }
    }

    fn rescue(&self, ending: Ending) -> Finish {
        Finish {
            by: By::Rescuer { lease: Duration::from_secs(30) },
            ..self.end(ending, AttemptOutcome::Lost)
        }
    }

    fn bind(&self, binding: &Binding) -> Bind {
        Bind { id: self.id, fence: self.receipt.fence, binding: binding.clone() }
    }
}

/// A job of `u-1` with the given fields.
pub(crate) fn job(fields: Value) -> Arc<JobSpec> {
    job_with_reply(fields, None)
}

pub(crate) fn job_with_reply(fields: Value, reply_to: Option<&str>) -> Arc<JobSpec> {
    let owner = if fields["org_id"].is_null() { "u-1" } else { "org" };
    let Value::Object(fields) = fields else { panic!("fields are an object: {fields}") };
    let plain = factory::read(owner);
    let envelope = fields.into_iter().fold(plain, |envelope, (name, value)| envelope.with(&name, value));
    from_json(&envelope.to_string(), reply_to)
}

fn from_json(envelope: &str, reply_to: Option<&str>) -> Arc<JobSpec> {
    Arc::new(decode(envelope, Properties { reply_to, ..Properties::default() }).unwrap())
}

/// The same job with another ID.
fn renamed(spec: &JobSpec) -> Arc<JobSpec> {
    Arc::new(JobSpec { id: JobId::new(), ..spec.clone() })
}

pub(crate) fn binding(version: &str) -> Binding {
    Binding {
        toolkit: "github".into(),
        version: version.into(),
        pinned_by: PinnedBy::Global,
        account: Some("ca_1".into()),
        effect: Effect::Once,
    }
}

pub(crate) fn succeed(result: &str) -> Ending {
    Ending::Succeed { result: raw(result) }
}

fn fail() -> Ending {
    Stop::Fail { error: error(ErrorKind::ToolFailed) }.into()
}

fn retry(after: Duration) -> Ending {
    Ending::Retry { after, error: error(ErrorKind::ToolFailed) }
}

fn hold() -> Ending {
    Stop::Hold { reason: HeldReason::UnknownOutcome, error: error(ErrorKind::UnknownOutcome) }.into()
}

pub(crate) fn error(kind: ErrorKind) -> JobError {
    JobError::new(kind, "it did not work").with_code(Some(4711), Some("Tool_Failed".into()))
}

fn raw(json: &str) -> Arc<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap().into()
}

/// Stores keep microseconds.
fn in_hours(hours: i64) -> String {
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap();
    (now + SignedDuration::from_hours(hours)).to_string()
}

fn is_new(inserted: &Inserted, as_state: State) -> bool {
    matches!(inserted, Inserted::New(Beginning { state, .. }) if *state == as_state)
}

fn one<T>(mut answers: Vec<T>) -> T {
    assert_eq!(answers.len(), 1, "one answer for one item");
    answers.remove(0)
}

pub(crate) fn running(claimed: Claimed) -> ClaimReceipt {
    match claimed {
        Claimed::Running(receipt) => receipt,
        other => panic!("not running: {other:?}"),
    }
}

fn applied(state: State) -> Finished {
    Finished::Applied { state, late: false }
}

fn late(state: State) -> Finished {
    Finished::Applied { state, late: true }
}

const LEASE: Duration = Duration::from_secs(30);

/// Who decides in tests.
pub(crate) const OPERATOR: &Decider =
    &Decider { by: Cow::Borrowed("an operator"), origin: Cow::Borrowed(COMMAND_LINE) };
