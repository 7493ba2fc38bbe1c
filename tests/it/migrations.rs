//! Migrations beside the traffic of others.

use std::time::Duration;

use errand::store::{Admin as _, Schema, postgres::PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::time::{Instant, timeout};

use crate::{
    harness::{PATIENCE, Process},
    store_contract::postgres_options,
    support::{self, wait::until},
};

type Migrations = &'static [(i64, &'static str, &'static str)];

/// As an earlier build left the schema.
const EARLIER: Migrations = &[
    (1, "jobs", include_str!("../../migrations/postgres/0001_jobs.sql")),
    (2, "job_control", include_str!("../../migrations/postgres/0002_job_control.sql")),
    (3, "connections", include_str!("../../migrations/postgres/0003_connections.sql")),
    (4, "job_history", include_str!("../../migrations/postgres/0004_job_history.sql")),
];

fn open(database: &support::postgres::Database) -> PostgresStore {
    PostgresStore::new(postgres_options(&database.url)).unwrap()
}

fn migrate(database: &support::postgres::Database) -> Process {
    Process::start(&["migrate"], &[("DATABASE_URL".to_owned(), database.url.clone())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_a_table_lets_others_pass_and_says_for_whom_it_waits() {
    let database = support::database("migrating").await;
    let store = open(&database);
    assert_eq!(store.apply(EARLIER).await.unwrap(), 4);
    let mut reporting = database.connect().await.unwrap();
    reporting
        .execute("set application_name = 'a long report'; begin; select count(*) from jobs")
        .await
        .unwrap();
    let mut migrating = migrate(&database);
    for _ in 0..2 {
        let mark = migrating.log().len();
        until("it says what it waits for", PATIENCE, async || {
            let log = migrating.log();
            let said = &log[mark..];
            (said.contains("waits for the table errand.jobs")
                && said.contains("a long report, idle in transaction"))
            .then_some(())
        })
        .await;
    }
    // Whoever came later waits no longer than the migration does before it gives way.
    let mut traffic = database.connect().await.unwrap();
    for _ in 0..20 {
        let begun = Instant::now();
        traffic.execute("select count(*) from jobs").await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(matches!(store.schema().await.unwrap(), Schema::Behind { .. }));
    reporting.execute("rollback").await.unwrap();
    assert!(migrating.ended().await.success());
    assert_eq!(store.schema().await.unwrap(), Schema::Current);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_another_migration_says_so_and_ends_when_asked() {
    let database = support::database("migrating").await;
    let mut other = database.connect().await.unwrap();
    other.execute("set application_name = 'the other one'").await.unwrap();
    sqlx::migrate::Migrate::lock(&mut other).await.unwrap();
    let (first, mut second) = (migrate(&database), migrate(&database));
    for waiting in [&first, &second] {
        waiting.logged("waits for another `errand migrate`: session").await;
        waiting.logged("the other one, idle").await;
    }
    assert!(!second.stop().await.success());
    drop(other);
    let mut first = first;
    assert!(first.ended().await.success());
    assert_eq!(open(&database).schema().await.unwrap(), Schema::Current);
}

const OUTSIDE: Migrations = &[
    (1, "table", "create table things (a int); insert into things select generate_series(1, 1000);"),
    (
        2,
        "index",
        "-- no-transaction\ndrop index concurrently if exists things_a;\n\
         create index concurrently things_a on things (a);\n",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_while_others_write() {
    let database = support::database("migrating").await;
    let store = open(&database);
    assert_eq!(store.apply(&OUTSIDE[..1]).await.unwrap(), 1);
    // The build waits for transactions that began before it.
    let mut eldest = database.connect().await.unwrap();
    eldest.execute("begin isolation level repeatable read; select count(*) from things").await.unwrap();
    let building = tokio::spawn({
        let store = store.clone();
        async move { store.apply(OUTSIDE).await }
    });
    let mut writing = database.connect().await.unwrap();
    let waits = "select 1 from pg_stat_activity where query like 'create index concurrently%' and wait_event = 'virtualxid'
        and datname = current_database()";
    until("the build waits", PATIENCE, async || {
        sqlx::query(waits).fetch_optional(&mut writing).await.unwrap()
    })
    .await;
    for _ in 0..10 {
        let write = writing.execute("insert into things values (1)");
        timeout(Duration::from_secs(30), write).await.expect("a write waits for nobody").unwrap();
    }
    assert!(!building.is_finished());
    eldest.execute("rollback").await.unwrap();
    assert_eq!(building.await.unwrap().unwrap(), 1);
    let valid = "select indisvalid from pg_index where indexrelid = 'things_a'::regclass";
    assert!(sqlx::query_scalar::<_, bool>(valid).fetch_one(&mut writing).await.unwrap());
    assert_eq!(store.apply(OUTSIDE).await.unwrap(), 0, "it is noted");
    writing.close().await.unwrap();
}

/// The build that a crash interrupted has left an index that nobody can use.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_left_half_built_is_built_anew() {
    let database = support::database("migrating").await;
    let store = open(&database);
    store.apply(&OUTSIDE[..1]).await.unwrap();
    let mut db = database.connect().await.unwrap();
    for statement in [
        "create index things_a on things (a)",
        "update pg_index set indisvalid = false where indexrelid = 'things_a'::regclass",
    ] {
        db.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    assert_eq!(store.apply(OUTSIDE).await.unwrap(), 1);
    let valid = "select indisvalid from pg_index where indexrelid = 'things_a'::regclass";
    assert!(sqlx::query_scalar::<_, bool>(valid).fetch_one(&mut db).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_migrates_only_where_it_is_told_to_and_otherwise_says_what_to_run() {
    let harness = crate::harness::Harness::without_tables("unmigrated", "").await;
    let worker = harness.start_worker(&[("ERRAND__STORE__MIGRATE_AT_START", "false")]);
    worker.logged("migrations are missing; run `errand migrate`").await;
    assert!(harness.errand(&["migrate"]).status.success());
    worker.becomes_ready(true).await;

    let plain = errand::config::load(&errand::config::Sources::default()).unwrap().config;
    assert!(!plain.store.migrate_at_start, "a person decides when the schema changes");
}
