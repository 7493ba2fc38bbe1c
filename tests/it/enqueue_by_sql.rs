//! Jobs that apps enqueue in transactions of their own, by the function in PostgreSQL. The real binary on real services.

use errand_testbed::factory::{Envelope as _, id, read, send, spread};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    access_keys::tomorrow,
    harness::{Harness, PATIENCE, Process, port},
    poison::{break_rows, heal},
    publishers::rejected,
    support::{self, wait::until},
};

/// A role of an app in the harness's database.
pub(crate) struct Role {
    pub(crate) name: String,
    url: String,
}

impl Role {
    /// One that may do nothing yet.
    pub(crate) async fn new(harness: &Harness, hint: &str) -> Self {
        let name = format!("{hint}_{}", harness.database.name);
        harness.execute(&format!("create role {name} login")).await;
        let url = harness.database.url.replace("//errand@", &format!("//{name}@"));
        assert_ne!(url, harness.database.url);
        Self { name, url }
    }

    /// One that may enqueue.
    pub(crate) async fn that_enqueues(harness: &Harness, hint: &str) -> Self {
        let role = Self::new(harness, hint).await;
        let grants = format!(
            "grant usage on schema errand to {0}; grant execute on function errand.enqueue(json) to {0}",
            role.name
        );
        harness.execute(&grants).await;
        role
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        support::postgres::connect(&self.url).await.unwrap()
    }
}

/// Executes what the database takes.
pub(crate) async fn execute(db: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.unwrap();
}

/// What the function in this schema makes of an envelope.
pub(crate) async fn try_enqueue(db: &mut PgConnection, schema: &str, envelope: &str) -> sqlx::Result<String> {
    let sql = AssertSqlSafe(format!("select {schema}.enqueue($1::json)::text"));
    sqlx::query_scalar(sql).bind(envelope.to_owned()).fetch_one(db).await
}

/// The ID that is returned for a job.
pub(crate) async fn enqueue(db: &mut PgConnection, job: &Value) -> String {
    try_enqueue(db, "errand", &job.to_string()).await.unwrap()
}

/// Ten jobs in one transaction, which ends like this.
async fn ten(db: &mut PgConnection, end: &str) {
    execute(db, "begin").await;
    for job in spread(10, send) {
        enqueue(db, &job).await;
    }
    execute(db, end).await;
}

/// How many have committed of which no job is made yet.
pub(crate) async fn left(harness: &Harness) -> u64 {
    harness.text("select count(*)::text from job_inbox").await.unwrap().parse().unwrap()
}

/// Waits until something was made of each that has committed.
pub(crate) async fn all_are_taken_in(harness: &Harness) {
    until("nothing is left", PATIENCE, async || (left(harness).await == 0).then_some(())).await;
}

/// The series that counts what became of them.
pub(crate) fn became(result: &str) -> String {
    format!("errand_sql_jobs_total{{result=\"{result}\"}}")
}

/// Lets these workers take nothing from the lane.
async fn pause(harness: &Harness, workers: &[&Process]) {
    assert!(harness.errand(&["queues", "pause", "default", "--reason", "a test"]).status.success());
    for worker in workers {
        worker.logged("the queue is paused: nothing is taken from it").await;
    }
}

/// The IDs of jobs of transactions that do not commit: one is taken back, one has failed when it would commit, and one loses
/// its connection.
async fn undone(db: &mut PgConnection, mut lost: PgConnection) -> Vec<String> {
    execute(db, "begin").await;
    let taken_back = enqueue(db, &send("user-1").nameless()).await;
    execute(db, "rollback").await;
    execute(db, "begin").await;
    let failed = enqueue(db, &send("user-2")).await;
    try_enqueue(db, "errand", r#"{"user_id": "user-2"}"#).await.unwrap_err();
    execute(db, "commit").await;
    execute(&mut lost, "begin").await;
    let cut_off = enqueue(&mut lost, &send("user-3")).await;
    vec![taken_back, failed, cut_off]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_there_if_and_only_if_the_transaction_commits_that_enqueued_it() {
    let harness = Harness::new("sql-commit", "").await;
    let worker = harness.worker(&[]).await;
    let shop = Role::that_enqueues(&harness, "shop").await;
    let [mut open, mut db] = [shop.connect().await, shop.connect().await];
    // It comes before all others and stays open.
    execute(&mut open, "begin").await;
    let late = enqueue(&mut open, &send("user-1")).await;
    let mut undone = undone(&mut db, shop.connect().await).await;

    let named = send("user-4");
    execute(&mut db, "begin").await;
    let mut kept = vec![enqueue(&mut db, &named).await];
    assert_eq!(kept[0], named.id());
    execute(&mut db, "savepoint one").await;
    undone.push(enqueue(&mut db, &send("user-5").nameless()).await);
    execute(&mut db, "rollback to one").await;
    kept.push(enqueue(&mut db, &send("user-6").nameless()).await);
    execute(&mut db, "savepoint two").await;
    kept.push(enqueue(&mut db, &send("user-7").nameless()).await);
    execute(&mut db, "release two").await;
    let five = "select errand.enqueue(json_build_object('user_id', 'user-' || n, 'tool', 'GMAIL_SEND_EMAIL', 'arguments',
        json_build_object('recipient_email', 'ann@example.com', 'subject', 's', 'body', 'b')))::text
        from generate_series(1, 5) as n";
    kept.extend(sqlx::query_scalar::<_, String>(five).fetch_all(&mut db).await.unwrap());
    assert_eq!((left(&harness).await, harness.count("true").await), (0, 0), "nothing has committed");
    execute(&mut db, "commit").await;

    // Nobody waits for the one that is open.
    harness.counts("state = 'succeeded'", 8).await;
    for id in &kept {
        let shown = harness.show(id);
        assert_eq!((&shown["id"], &shown["publisher"]), (&json!(id), &json!(shop.name)), "{shown}");
    }
    for id in undone.iter().chain([&late]) {
        assert_eq!(harness.count(&format!("id = '{id}'")).await, 0, "{id} is there");
    }
    assert_eq!(harness.sandbox.ledger_summary().calls, 8);
    execute(&mut open, "commit").await;
    harness.job_in(&late, &["succeeded"]).await;
    harness.all_ran_once(9).await;
    all_are_taken_in(&harness).await;
    worker.metric_reaches(&became("new"), 9.0).await;
    assert_eq!(worker.metric_sum("errand_sql_jobs_total").await, 9.0);
}

/// So many connections at once, each with so many transactions that commit, and as many that do not.
async fn many(shop: &Role, connections: usize, transactions: usize) {
    let write = async || {
        let mut db = shop.connect().await;
        for _ in 0..transactions {
            ten(&mut db, "rollback").await;
            ten(&mut db, "commit").await;
        }
    };
    join_all((0..connections).map(|_| write())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_many_transactions_run_once_although_the_worker_dies_that_takes_them_in() {
    let harness = Harness::new("sql-killed", "").await;
    let settings = [
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__WORKER__LEASE_SECS", "10"),
        ("ERRAND__RELAY__UNCLAIMED_SECS", "5"),
    ];
    let mut first = harness.worker(&settings).await;
    let second = harness.worker(&settings).await;
    let shop = Role::that_enqueues(&harness, "shop").await;
    // No call is under way when it dies, which nobody could tell the outcome of.
    pause(&harness, &[&first, &second]).await;
    // It makes jobs and cannot forget what it has made them of.
    break_rows(&harness, "job_inbox", "delete", "true").await;
    many(&shop, 8, 3).await;
    harness.counts("state = 'available'", 240).await;
    tokio::join!(many(&shop, 8, 3), async {
        until("more have come", PATIENCE, async || (left(&harness).await > 240).then_some(())).await;
        first.kill9();
    });
    assert_eq!(left(&harness).await, 480, "all of them are met again");

    heal(&harness, "job_inbox").await;
    all_are_taken_in(&harness).await;
    let counted = until("all are counted", PATIENCE, async || {
        let counted = [second.metric(&became("new")).await, second.metric(&became("known")).await];
        (counted[0] + counted[1] >= 480.0).then_some(counted)
    })
    .await;
    assert!(counted[1] >= 240.0 && counted[0] + counted[1] == 480.0, "{counted:?}");
    assert_eq!(second.metric_sum("errand_sql_jobs_total").await, 480.0);
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
    assert!(harness.errand(&["queues", "resume", "default"]).status.success());
    harness.all_ran_once(480).await;
    assert_eq!(left(&harness).await, 0);
}

/// The same job, by its ID and by its key.
async fn the_same_again(harness: &Harness, worker: &Process, db: &mut PgConnection, job: &Value) {
    execute(db, "begin").await;
    for _ in 0..2 {
        assert_eq!(enqueue(db, job).await, job.id());
    }
    execute(db, "commit").await;
    harness.job_in(job.id(), &["succeeded"]).await;
    let spaced = serde_json::to_string_pretty(job).unwrap();
    assert_eq!(try_enqueue(db, "errand", &spaced).await.unwrap(), job.id());
    worker.metric_reaches(&became("known"), 2.0).await;
    // It is the same by another way in, too.
    harness.publish(std::slice::from_ref(job)).await;
    worker.metric_reaches("errand_claims_total{queue=\"default\",result=\"duplicate\"}", 1.0).await;

    let keyed = send("user-2").with("idempotency_key", "order-17").nameless();
    let first = enqueue(db, &keyed).await;
    harness.job_in(&first, &["succeeded"]).await;
    let second = enqueue(db, &keyed).await;
    assert_ne!(first, second);
    worker.metric_reaches(&became("known"), 3.0).await;
    let shown = harness.show(&second);
    assert_eq!((&shown["id"], &shown["known_as"]), (&json!(first), &json!([second])), "{shown}");
    // Of two at once, either may be the job.
    let keyed = send("user-2").with("idempotency_key", "order-18").nameless();
    execute(db, "begin").await;
    let both = [enqueue(db, &keyed).await, enqueue(db, &keyed).await];
    execute(db, "commit").await;
    worker.metric_reaches(&became("known"), 4.0).await;
    let shown = both.each_ref().map(|id| harness.show(id)["id"].clone());
    assert!(shown[0] == shown[1] && both.iter().any(|id| shown[0] == **id), "{shown:?} of {both:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_again_is_that_job_and_another_one_of_its_name_is_kept_as_rejected() {
    let harness = Harness::new("sql-again", "").await;
    let worker = harness.worker(&[]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    let job = send("user-1");
    the_same_again(&harness, &worker, &mut db, &job).await;

    let arguments = json!({"recipient_email": "eve@example.com", "subject": "another", "body": "b"});
    let another = job.clone().with("arguments", arguments);
    let theirs = send("user-3").named(job.id());
    let keyed = send("user-2").with("idempotency_key", "order-17").with("priority", 5);
    for job in [&another, &theirs, &keyed] {
        assert_eq!(enqueue(&mut db, job).await, job.id());
    }
    all_are_taken_in(&harness).await;
    let kept = rejected(&harness);
    let mut reasons: Vec<&str> = kept.iter().map(|(_, reason)| reason.as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["body_conflict", "key_conflict", "owner_conflict"]);
    let (body_conflict, _) = kept.iter().find(|(_, reason)| reason == "body_conflict").unwrap();
    let body = harness.errand(&["rejected", "show", body_conflict, "--body"]);
    assert_eq!(String::from_utf8(body.stdout).unwrap().trim_end(), another.to_string());
    let listed = harness.errand(&["rejected", "list", "--job", job.id(), "--json"]);
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), 2, "both with its ID");
    let shown = harness.errand(&["jobs", "show", keyed.id()]);
    let (key_conflict, _) = kept.iter().find(|(_, reason)| reason == "key_conflict").unwrap();
    let told = String::from_utf8_lossy(&shown.stderr);
    let advice = format!("its message was rejected; see `errand rejected show {key_conflict}`");
    assert!(shown.status.code() == Some(1) && told.contains(&advice), "{told}");

    worker.metric_reaches(&became("rejected"), 3.0).await;
    for (_, reason) in &kept {
        let counted = worker.metric(&format!("errand_rejected_messages_total{{reason=\"{reason}\"}}")).await;
        assert_eq!(counted, 1.0, "{reason}");
    }
    assert_eq!(worker.metric(&became("new")).await, 3.0);
    assert!(!worker.log().contains("eve@example.com"));
    assert_eq!(harness.settled(3).await, [("succeeded".to_owned(), 3)]);
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.jobs_repeated), (3, 0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_goes_on_whatever_comes_with_its_id() {
    let harness = Harness::new("sql-waits", "").await;
    let worker = harness.worker(&[]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    pause(&harness, &[&worker]).await;
    // Without what is wrong, and what else the first does not have, both are the same.
    let job = json!({"id": id(), "user_id": "user-1", "tool": "GITHUB_GET_REPO"});
    let other = job.clone().with("timeout_ms", 0).with("arguments", json!({"owner": "o", "repo": "r"}));
    enqueue(&mut db, &job).await;
    harness.job_in(job.id(), &["available"]).await;
    assert_eq!(enqueue(&mut db, &other).await, job.id());
    all_are_taken_in(&harness).await;
    let shown = harness.show(job.id());
    assert_eq!((&shown["state"], &shown["error"]), (&json!("available"), &Value::Null), "{shown}");
    assert_eq!(rejected(&harness).len(), 1, "what is wrong is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_starts_a_job_when_it_is_due_and_none_that_has_expired() {
    let harness = Harness::new("sql-due", "").await;
    let worker = harness.worker(&[]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    // Nothing else happens here.
    let first = enqueue(&mut db, &read("user-1").nameless()).await;
    harness.job_in(&first, &["succeeded"]).await;

    let soon = (Timestamp::now() + SignedDuration::from_secs(2)).to_string();
    let [soon, later, late] = [
        send("user-1").with("run_at", soon),
        send("user-2").with("run_at", tomorrow()),
        send("user-3").with("expires_at", "2020-01-01T00:00:00Z"),
    ];
    for job in [&soon, &later, &late] {
        assert_eq!(enqueue(&mut db, job).await, job.id());
    }
    let failed = harness.job_in(late.id(), &["failed"]).await;
    assert_eq!(failed["error"]["kind"], "expired", "{failed}");
    harness.job_in(soon.id(), &["succeeded"]).await;
    let waits = harness.show(later.id());
    let due: Timestamp = waits["due_at"].as_str().unwrap().parse().unwrap();
    let run_at: Timestamp = later["run_at"].as_str().unwrap().parse().unwrap();
    assert_eq!((&waits["state"], due.as_second()), (&json!("scheduled"), run_at.as_second()), "{waits}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 2);
    worker.metric_reaches(&became("new"), 4.0).await;
    assert_eq!(worker.metric_sum("errand_sql_jobs_total").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_away_or_silent_jobs_are_made_which_run_when_it_is_back() {
    let harness = Harness::new("sql-outage", "").await;
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let url = broker.url(&harness.vhost.amqp_url).unwrap();
    let worker = harness.worker(&[("AMQP_URL", &url)]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;

    broker.cut().await.unwrap();
    worker.becomes_ready(false).await;
    // What comes later does not wait for what could not be handed over.
    for jobs in [10, 20] {
        ten(&mut db, "rollback").await;
        ten(&mut db, "commit").await;
        harness.counts("state = 'available'", jobs).await;
        all_are_taken_in(&harness).await;
    }
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
    broker.heal().await.unwrap();
    harness.all_ran_once(20).await;

    worker.becomes_ready(true).await;
    broker.stall();
    for jobs in [10, 20] {
        ten(&mut db, "commit").await;
        harness.counts("state = 'available'", jobs).await;
    }
    assert_eq!(harness.sandbox.ledger_summary().calls, 20);
    broker.heal().await.unwrap();
    harness.all_ran_once(40).await;
    all_are_taken_in(&harness).await;
    worker.metric_reaches(&became("new"), 40.0).await;
    assert_eq!(worker.metric_sum("errand_sql_jobs_total").await, 40.0);
}
