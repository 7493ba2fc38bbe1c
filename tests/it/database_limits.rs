//! Databases that grant few connections, or keep some of them waiting: errand is slower and goes on.

use std::time::Duration;

use errand_testbed::factory::{send, spread};
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{
    harness::{Harness, PATIENCE, Process, run},
    outage_database::Limited,
    support::{self, wait::until},
};

/// What the log says where connections are few.
const ADVICE: &str = "lower `store.hot_connections` and `store.other_connections`";

async fn limited(hint: &str, connections: u32) -> Limited {
    let mut limited = Limited::new(hint, "").await;
    let role = limited.role.clone();
    limited.execute(&format!("alter role {role} connection limit {connections}")).await;
    limited
}

fn worker(limited: &Limited) -> Process {
    limited.harness.start_worker(&[("DATABASE_URL", &limited.url()), ("ERRAND__WORKER__HEARTBEAT_SECS", "1")])
}

fn lists(limited: &Limited) -> bool {
    let mut env = limited.harness.env();
    env.push(("DATABASE_URL".into(), limited.url()));
    run(&["jobs", "list"], &env).status.success()
}

async fn works_with(connections: u32) {
    let limited = limited("few", connections).await;
    let worker = worker(&limited);
    worker.logged("worker ready").await;
    let begun = Instant::now();
    limited.harness.publish(&spread(200, send)).await;
    limited.harness.all_ran_once(200).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    worker.becomes_ready(true).await;
    assert!(worker.metric("errand_heartbeat_age_seconds").await < 10.0);
    assert!(worker.log().contains(ADVICE), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_works_with_four_connections() {
    works_with(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_works_with_three_connections() {
    works_with(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_works_with_two_connections() {
    works_with(2).await;
}

async fn two_workers_share(connections: u32) {
    let limited = limited("shared", connections).await;
    let first = worker(&limited);
    first.logged("worker ready").await;
    limited.harness.publish(&spread(200, send)).await;
    let second = worker(&limited);
    second.logged("worker ready").await;
    limited.harness.publish(&spread(200, send)).await;
    limited.harness.all_ran_once(400).await;
    for worker in [&first, &second] {
        worker.becomes_ready(true).await;
        assert!(worker.metric("errand_heartbeat_age_seconds").await < 10.0);
        assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
    }
    until("the list is shown", PATIENCE, async || lists(&limited).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_eight_connections() {
    two_workers_share(8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_ten_connections() {
    two_workers_share(10).await;
}

/// As in a small hosted database, of which a worker could take everything.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_while_a_worker_has_all_but_a_share() {
    let limited = limited("listed", 7).await;
    let worker = worker(&limited);
    worker.logged("worker ready").await;
    for _ in 0..5 {
        limited.harness.publish(&spread(40, send)).await;
        until("the list is shown", Duration::from_secs(60), async || lists(&limited).then_some(())).await;
    }
    limited.harness.all_ran_once(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_works_behind_a_small_pooler_by_session() {
    let harness = Harness::new("sessions", "").await;
    let pooler =
        support::start_pgbouncer(&harness.database, &["pool_mode=session", "default_pool_size=6"]).await;
    let url = pooler.url(&harness.database);
    let settings = [("DATABASE_URL", url.as_str()), ("ERRAND__WORKER__HEARTBEAT_SECS", "1")];
    let first = harness.worker(&settings).await;
    harness.publish(&spread(200, send)).await;
    let second = harness.worker(&settings).await;
    harness.publish(&spread(200, send)).await;
    harness.all_ran_once(400).await;
    for worker in [&first, &second] {
        worker.becomes_ready(true).await;
        assert!(worker.metric("errand_heartbeat_age_seconds").await < 10.0);
        assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
    }
}

/// A report, a backup or a person locks `jobs`, and all lanes wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_of_jobs_costs_no_lease() {
    let lease = Duration::from_secs(6);
    let harness = Harness::new("locked", "[[fault]]\nkind = \"latency\"\nfixed_ms = 5000\n").await;
    let settings = [
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__WORKER__LEASE_SECS", "6"),
        ("ERRAND__RESCUE__POLL_SECS", "1"),
        ("ERRAND__QUEUES__THIRD__CONCURRENCY", "20"),
    ];
    let worker = harness.worker(&settings).await;
    // Calls that end while the table is locked, so that their results wait for it, too.
    harness.publish(&spread(20, send)).await;
    harness.called(20).await;
    let mut locking: PgConnection = harness.database.connect().await.unwrap();
    let mut transaction = locking.begin().await.unwrap();
    sqlx::raw_sql("lock table jobs in access exclusive mode").execute(&mut *transaction).await.unwrap();
    let begun = Instant::now();
    for lane in ["default", "bulk", "third"] {
        let bodies: Vec<_> = spread(20, send).iter().map(|job| serde_json::to_vec(job).unwrap()).collect();
        harness.publish_to(lane, &bodies, lapin::BasicProperties::default()).await;
    }
    let mut told = false;
    // Longer than the lease: every part that needs `jobs` waits by then.
    while begun.elapsed() < 3 * lease {
        let age = worker.metric("errand_heartbeat_age_seconds").await;
        assert!(age < 9.0, "{age} s after {:?}", begun.elapsed());
        told |= worker.readiness().await["writing"] == false;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(told, "a worker that can record nothing is not ready");
    transaction.rollback().await.unwrap();
    harness.all_ran_once(80).await;
    assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
}
