//! One item that the database does not take, for a reason that says nothing about what it contains: it costs itself
//! only, and goes on when the database takes it.

use errand_testbed::factory::{Envelope as _, read, send, spread};
use futures_util::future::join_all;
use lapin::BasicProperties;
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

use crate::{
    api::Api,
    harness::{Harness, PATIENCE, Process, port},
    support::{self, wait::until},
};

/// The heartbeat shows soon that the store answers others.
pub(crate) const SETTINGS: [(&str, &str); 2] =
    [("ERRAND__WORKER__HEARTBEAT_SECS", "1"), ("ERRAND__WORKER__LEASE_SECS", "120")];

/// Lets every statement fail that writes such a row, as an I/O error does.
pub(crate) async fn break_rows(harness: &Harness, table: &str, event: &str, condition: &str) {
    harness
        .execute(&format!(
            "create function broken() returns trigger language plpgsql as
             $$ begin raise exception 'broken' using errcode = '58030'; end $$;
             create trigger broken before {event} on {table} for each row when ({condition})
             execute function broken()"
        ))
        .await;
}

pub(crate) async fn heal(harness: &Harness, table: &str) {
    harness.execute(&format!("drop trigger broken on {table}")).await;
}

/// A worker among forty jobs, of which the first is the one that the database does not take.
struct Poisoned {
    harness: Harness,
    worker: Process,
    jobs: Vec<Value>,
}

impl Poisoned {
    async fn new(hint: &str, event: &str, condition: &str) -> Self {
        let harness = Harness::new(hint, "").await;
        let worker = harness.worker(&SETTINGS).await;
        let jobs = spread(40, send);
        break_rows(&harness, "jobs", event, &format!("new.id = '{}' and {condition}", jobs[0].id())).await;
        harness.publish(&jobs).await;
        Self { harness, worker, jobs }
    }

    /// The others go on, also those that come later, and the worker is ready all the while.
    async fn costs_itself_only(&self) {
        self.harness.counts("state = 'succeeded'", 39).await;
        self.harness.publish(&spread(10, send)).await;
        self.harness.counts("state = 'succeeded'", 49).await;
        self.worker.becomes_ready(true).await;
    }

    async fn ends_well(&self) {
        heal(&self.harness, "jobs").await;
        self.harness.job_in(self.jobs[0].id(), &["succeeded"]).await;
        self.harness.all_ran_once(50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_the_database_does_not_take_costs_itself_only() {
    let poisoned = Poisoned::new("poisoned-claim", "insert", "true").await;
    poisoned.costs_itself_only().await;
    assert_eq!(poisoned.harness.count(&format!("id = '{}'", poisoned.jobs[0].id())).await, 0);
    poisoned.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_the_database_does_not_take_costs_itself_only() {
    let condition = "old.toolkit is null and new.toolkit is not null";
    let poisoned = Poisoned::new("poisoned-binding", "update", condition).await;
    poisoned.costs_itself_only().await;
    poisoned.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_database_does_not_take_costs_itself_only() {
    let poisoned = Poisoned::new("poisoned-finish", "update", "new.state = 'succeeded'").await;
    poisoned.costs_itself_only().await;
    assert_eq!(poisoned.harness.count("state = 'running'").await, 1, "the worker holds it");
    poisoned.ends_well().await;
    assert_eq!(poisoned.worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
}

/// Locks the rows of these jobs until the transaction ends, as a person may who has forgotten it.
async fn lock_rows(connection: &mut PgConnection, jobs: &[Value]) {
    let ids: Vec<_> = jobs.iter().map(|job| format!("'{}'", job.id())).collect();
    let sql = format!("begin; select id from jobs where id in ({}) for update", ids.join(", "));
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_jobs_that_others_have_locked_keep_nobody_waiting() {
    let faults =
        "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n[[fault]]\nkind = \"large\"\nbytes = 10000\n";
    let harness = Harness::new("locked-results", faults).await;
    // Those that are locked are larger together than what may wait to be written.
    let narrow =
        [("ERRAND__WORKER__MAX_BUFFERED_BYTES", "65536"), ("ERRAND__COMPOSIO__MAX_RESPONSE_BYTES", "65536")];
    let worker = harness.worker(&[SETTINGS, narrow].concat()).await;
    let jobs = spread(40, send);
    harness.publish(&jobs).await;
    harness.called(40).await;
    let mut locking = harness.database.connect().await.unwrap();
    lock_rows(&mut locking, &jobs[10..30]).await;
    harness.counts("state = 'succeeded'", 20).await;
    harness.publish(&spread(10, send)).await;
    harness.counts("state = 'succeeded'", 30).await;
    worker.becomes_ready(true).await;
    assert_eq!(harness.count("state = 'running'").await, 20, "the worker holds them");
    worker.metric_reaches("errand_store_errors_total{kind=\"locked\"}", 1.0).await;
    locking.close().await.unwrap();
    harness.all_ran_once(50).await;
    assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
}

/// A harness with forty jobs that wait in the queue and that the database knows.
async fn enqueued(hint: &str) -> (Harness, Vec<Value>) {
    let harness = Harness::new(hint, "").await;
    // A worker declares the queue.
    assert!(harness.worker(&SETTINGS).await.stop().await.success());
    let jobs = spread(40, send);
    let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    let file = harness.journal_dir().with_file_name("jobs.ndjson");
    std::fs::write(&file, lines).unwrap();
    assert!(harness.errand(&["enqueue-bulk", file.to_str().unwrap()]).status.success());
    (harness, jobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_others_have_locked_keep_nobody_waiting() {
    let (harness, jobs) = enqueued("locked-claims").await;
    let mut locking = harness.database.connect().await.unwrap();
    // More than the broker sends ahead, before all others.
    lock_rows(&mut locking, &jobs[..20]).await;
    let worker =
        harness.worker(&[&SETTINGS[..], &[("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "8")]].concat()).await;
    harness.counts("state = 'succeeded'", 20).await;
    // The same ID with another body is no job that the database knows.
    harness.publish(&[send("user-2").named(jobs[0].id())]).await;
    harness.publish(&spread(10, send)).await;
    harness.counts("state = 'succeeded'", 30).await;
    worker.becomes_ready(true).await;
    assert_eq!(harness.count("state = 'available'").await, 20);
    // As if `relay.unclaimed_secs` had passed.
    sqlx::raw_sql("update jobs set due_at = now() where state = 'available'; commit")
        .execute(&mut locking)
        .await
        .unwrap();
    assert_eq!(harness.settled(50).await, [("succeeded".to_owned(), 50)]);
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects, ledger.jobs_repeated), (50, 0), "{ledger:?}");
    until("the other body is kept", PATIENCE, async || {
        let reason = harness.text("select string_agg(reason, ',') from rejected").await?;
        (reason == "owner_conflict").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_the_workers_own_lost_claim_has_locked_are_not_given_back() {
    let (harness, _) = enqueued("hanging-claim").await;
    // Claims hang in their commit, as they do while a synchronous standby is away; the session goes on when its client is gone.
    harness
        .execute(
            "create function hang() returns trigger language plpgsql set lock_timeout = 0 as
             $$ begin perform pg_advisory_xact_lock_shared(7); return null; end $$;
             create constraint trigger hang after update on jobs deferrable initially deferred for each row
             when (new.state = 'running' and old.state = 'available') execute function hang()",
        )
        .await;
    let mut keeper = harness.database.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(7)").execute(&mut keeper).await.unwrap();
    let proxy = support::start_proxy(port(&harness.database.url)).await;
    let url = proxy.url(&harness.database.url).unwrap();
    let worker = harness.worker(&[&SETTINGS[..], &[("DATABASE_URL", url.as_str())]].concat()).await;
    until("a claim hangs", PATIENCE, async || {
        let sql = "select count(*)::text from pg_stat_activity where datname = current_database() and wait_event = 'advisory'";
        (harness.text(sql).await? != "0").then_some(())
    })
    .await;
    proxy.cut().await.unwrap();
    proxy.heal().await.unwrap();
    worker.metric_reaches("errand_store_errors_total{kind=\"locked\"}", 4.0).await;
    assert_eq!(harness.count("state = 'available'").await, 40);
    keeper.close().await.unwrap();
    harness.all_ran_once(40).await;
    assert_eq!(worker.metric_sum("errand_rescued_jobs_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_that_the_database_does_not_take_costs_itself_only() {
    let harness = Harness::new("poisoned-rejection", "").await;
    let worker = harness.worker(&SETTINGS).await;
    break_rows(&harness, "rejected", "insert", "new.body = 'poison'").await;
    let bad = |body: &str| body.as_bytes().to_vec();
    harness.publish_raw(&[bad("poison"), bad("other")], BasicProperties::default()).await;
    harness.publish(&spread(10, send)).await;
    harness.counts("state = 'succeeded'", 10).await;
    let rejected = async |expected: &str| {
        until("the rejected messages are kept", PATIENCE, async || {
            let kept = harness
                .text("select string_agg(encode(body, 'escape'), ',' order by body) from rejected")
                .await?;
            (kept == expected).then_some(())
        })
        .await;
    };
    rejected("other").await;
    worker.becomes_ready(true).await;
    heal(&harness, "rejected").await;
    rejected("other,poison").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_only_the_store_says_is_running_is_taken_over() {
    let harness = Harness::new("stray", "").await;
    let quick = [("ERRAND__WORKER__HEARTBEAT_SECS", "1"), ("ERRAND__WORKER__LEASE_SECS", "5")];
    let worker = harness.worker(&quick).await;
    let (once, safe) = (send("user-1"), read("u-alice"));
    harness.publish(&[once.clone(), safe.clone()]).await;
    harness.settled(2).await;
    // As if the answers to their claims had been lost for good.
    harness
        .execute(
            "update jobs set state = 'running', worker_id = (select id from workers), fence = fence + 1, attempt = attempt + 1,
                 request_id = gen_random_uuid(), result = null, http_status = null, finished_at = null, log_id = null;
             insert into claims (worker_id, job_ids) select (select id from workers), array_agg(id) from jobs",
        )
        .await;
    let held = harness.job_in(once.id(), &["held"]).await;
    assert_eq!(held["held_reason"], "unknown_outcome", "{held}");
    harness.job_in(safe.id(), &["succeeded"]).await;
    until("both are counted", PATIENCE, async || {
        (worker.metric_sum("errand_rescued_jobs_total").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(harness.sandbox.job_effects(once.id()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_job_that_the_database_does_not_take_costs_itself_only() {
    let harness = Harness::new("poisoned-rescue", "[[fault]]\nkind = \"latency\"\nfixed_ms = 6000\n").await;
    let quick = [("ERRAND__WORKER__HEARTBEAT_SECS", "1"), ("ERRAND__WORKER__LEASE_SECS", "5")];
    let mut first = harness.worker(&quick).await;
    let jobs: Vec<Value> = (0..10).map(|_| read("u-alice")).collect();
    harness.publish(&jobs).await;
    harness.counts("state = 'running'", 10).await;
    first.kill9();
    break_rows(&harness, "jobs", "update", &format!("new.id = '{}'", jobs[0].id())).await;
    // Nor does it matter that nothing can be forgotten.
    harness.execute("create trigger kept before delete on claims execute function broken()").await;
    let _second = harness.worker(&quick).await;
    harness.counts("state = 'succeeded'", 9).await;
    assert_eq!(harness.count("state = 'running'").await, 1);
    harness.execute("drop trigger kept on claims").await;
    // Meanwhile claims of which nothing runs any more are forgotten.
    let more: Vec<Value> = (0..10).map(|_| read("u-alice")).collect();
    harness.publish(&more).await;
    harness.counts("state = 'succeeded'", 19).await;
    until("all claims but one are forgotten", PATIENCE, async || {
        (harness.text("select count(*)::text from claims").await? == "1").then_some(())
    })
    .await;
    heal(&harness, "jobs").await;
    harness.job_in(jobs[0].id(), &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_over_http_that_the_database_does_not_take_costs_itself_only() {
    let harness = Harness::new("poison-http", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let jobs = spread(40, send);
    break_rows(&harness, "jobs", "insert", &format!("new.id = '{}'", jobs[0].id())).await;
    let answers = join_all(jobs.iter().map(|job| api.post("/v1/jobs", job))).await;
    for ((status, answer), n) in answers.into_iter().zip(0..) {
        let expected = if n == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CREATED };
        assert_eq!(status, expected, "{answer}");
    }
    heal(&harness, "jobs").await;
    assert_eq!(api.post("/v1/jobs", &jobs[0]).await.0, StatusCode::CREATED);
    harness.all_ran_once(40).await;
}
