//! What becomes of jobs while PostgreSQL lives and refuses, and after that. One worker lives through all of it,
//! and every job counts, so that a repetition would be seen.

use std::time::{Duration, Instant};

use errand_testbed::factory::{send, spread};
use reqwest::Method;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{
    harness::{Harness, PATIENCE, Process},
    support::wait::until,
};

/// Unready soon, and no lease that ends during a test.
const SETTINGS: [(&str, &str); 3] = [
    ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
    ("ERRAND__WORKER__LEASE_SECS", "120"),
    ("ERRAND__RELAY__UNCLAIMED_SECS", "2"),
];

const SLOW: &str = "[[fault]]\nkind = \"latency\"\nfixed_ms = 1500\n";

/// How long an outage lasts at least, so that what spins would show.
const LASTS: Duration = Duration::from_secs(3);

/// A harness whose worker has a role of its own, without the rights of a superuser, to whom limits do not apply.
pub(crate) struct Limited {
    pub(crate) harness: Harness,
    pub(crate) role: String,
    /// A connection of the superuser to another database of the server.
    admin: PgConnection,
}

impl Limited {
    pub(crate) async fn new(hint: &str, faults: &str) -> Self {
        let harness = Harness::without_tables(hint, faults).await;
        let elsewhere = harness.database.url.replace(&format!("/{}", harness.database.name), "/postgres");
        let admin = PgConnection::connect(&elsewhere).await.unwrap();
        let mut limited = Self { role: format!("worker_{}", harness.database.name), harness, admin };
        let (role, database) = (limited.role.clone(), limited.harness.database.name.clone());
        limited.execute(&format!("create role {role} login")).await;
        limited.execute(&format!("alter database {database} owner to {role}")).await;
        limited
    }

    /// The address of the database for the worker's role.
    pub(crate) fn url(&self) -> String {
        let url = self.harness.database.url.replace("//errand@", &format!("//{}@", self.role));
        assert_ne!(url, self.harness.database.url);
        url
    }

    async fn worker(&self) -> Process {
        let url = self.url();
        self.harness.worker(&[&SETTINGS[..], &[("DATABASE_URL", url.as_str())]].concat()).await
    }

    pub(crate) async fn execute(&mut self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut self.admin).await.unwrap();
    }

    /// Does something to each of the worker's backends.
    async fn each_backend(&mut self, function: &str) {
        let role = self.role.clone();
        self.execute(&format!("select {function}(pid) from pg_stat_activity where usename = '{role}'")).await;
    }
}

/// Twenty calls are in flight when the outage begins, and twenty jobs are published while it lasts. Says what
/// an outage of every kind has in common.
async fn lives_through(
    limited: &mut Limited,
    begin: impl AsyncFnOnce(&mut Limited),
    said: &str,
    end: impl AsyncFnOnce(&mut Limited),
) {
    let worker = limited.worker().await;
    limited.harness.publish(&spread(20, send)).await;
    limited.harness.called(20).await;
    let (begun, mark) = (Instant::now(), worker.log().len());
    begin(limited).await;
    limited.harness.publish(&spread(20, send)).await;
    worker.becomes_ready(false).await;
    worker.metric_reaches("errand_finish_batch_jobs_count", 1.0).await;
    worker.logged(said).await;
    // Each message is still the broker's: it waits, or is not acknowledged.
    let queue = format!("queues/{}/errand.default", limited.harness.vhost.encoded_name());
    until("the broker keeps 20 messages", PATIENCE, async || {
        let shown = limited.harness.vhost.manage(Method::GET, &queue, None).await.unwrap();
        (shown["messages"] == 20).then_some(())
    })
    .await;
    tokio::time::sleep(LASTS.saturating_sub(begun.elapsed())).await;
    let ledger = limited.harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.effects), (20, 20), "nothing that is not recorded is called");
    assert_eq!(worker.readiness().await["ready"], false);
    assert_ne!(worker.metric("errand_store_errors_total{kind=\"unavailable\"}").await, 0.0);
    let (lines, seconds) = (worker.log()[mark..].lines().count(), begun.elapsed().as_secs() as usize);
    assert!(lines < 60 + 20 * seconds, "{lines} lines in {seconds} s:\n{}", worker.log());

    end(limited).await;
    worker.becomes_ready(true).await;
    limited.harness.all_ran_once(40).await;
    assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0, "nothing had to be rescued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_out_of_connections_loses_and_repeats_nothing() {
    let mut limited = Limited::new("connections", SLOW).await;
    let role = limited.role.clone();
    lives_through(
        &mut limited,
        async |limited| {
            limited.execute(&format!("alter role {role} connection limit 0")).await;
            limited.each_backend("pg_terminate_backend").await;
        },
        "too many connections",
        async |limited| limited.execute(&format!("alter role {role} connection limit -1")).await,
    )
    .await;
}

/// Sessions that begin while the database is read-only stay so, as those to a demoted primary do.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_becomes_read_only_as_in_a_failover_loses_and_repeats_nothing() {
    let mut limited = Limited::new("read_only", SLOW).await;
    let alter =
        format!("alter database {} set default_transaction_read_only =", limited.harness.database.name);
    lives_through(
        &mut limited,
        async |limited| {
            limited.execute(&format!("{alter} on")).await;
            limited.each_backend("pg_terminate_backend").await;
        },
        "read-only transaction",
        async |limited| limited.execute(&format!("{alter} off")).await,
    )
    .await;
}

/// A trigger stands for the disk: it refuses every write of a job with the error that PostgreSQL reports when it
/// cannot extend a file (`53100`). Heartbeats still succeed, as they may on a full disk, since they change rows in
/// place.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_disk_is_full_loses_and_repeats_nothing() {
    let mut limited = Limited::new("disk_full", SLOW).await;
    lives_through(
        &mut limited,
        async |limited| {
            let mut inside = limited.harness.database.connect().await.unwrap();
            let full = "create function no_space() returns trigger language plpgsql as $$ begin
                            raise exception 'could not extend file \"base/1/2\": No space left on device'
                                using errcode = '53100';
                        end $$;
                        create trigger no_space before insert or update on jobs execute function no_space()";
            sqlx::raw_sql(full).execute(&mut inside).await.unwrap();
        },
        "No space left on device",
        async |limited| {
            let mut inside = limited.harness.database.connect().await.unwrap();
            sqlx::raw_sql("drop trigger no_space on jobs").execute(&mut inside).await.unwrap();
        },
    )
    .await;
}

/// Writers wait for a lock, so that there is always a statement to end.
async fn survives_attacks_on_its_backends(hint: &str, function: &str, said: &str) {
    let faults = r#"
        [[fault]]
        kind = "latency"
        min_ms = 10
        max_ms = 300
        [[fault]]
        kind = "throttle"
        form = "org"
        retry_after = "0.1"
        rate = 0.1
        first = 1
    "#;
    let mut limited = Limited::new(hint, faults).await;
    let worker = limited.worker().await;
    limited.harness.publish(&spread(60, send)).await;
    until("some are done", PATIENCE, async || {
        (limited.harness.sandbox.ledger_summary().effects > 5).then_some(())
    })
    .await;
    let (begun, mark) = (Instant::now(), worker.log().len());
    let mut locking = limited.harness.database.connect().await.unwrap();
    let mut published = 60;
    while begun.elapsed() < LASTS {
        sqlx::raw_sql("begin; lock table jobs in exclusive mode").execute(&mut locking).await.unwrap();
        limited.harness.publish(&spread(5, send)).await;
        published += 5;
        for _ in 0..10 {
            limited.each_backend(function).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        sqlx::raw_sql("rollback").execute(&mut locking).await.unwrap();
    }
    worker.logged(said).await;
    let (lines, seconds) = (worker.log()[mark..].lines().count(), begun.elapsed().as_secs() as usize);
    assert!(lines < 240 + 20 * seconds, "{lines} lines in {seconds} s:\n{}", worker.log());
    limited.harness.all_ran_once(published).await;
    worker.becomes_ready(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_cancelled_again_and_again_lose_and_repeat_nothing() {
    survives_attacks_on_its_backends("cancelled", "pg_cancel_backend", "57014").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_are_terminated_again_and_again_lose_and_repeat_nothing() {
    survives_attacks_on_its_backends("terminated", "pg_terminate_backend", "57P01").await;
}
