//! Leases of workers, and their lost jobs.

use std::time::Duration;

use errand::{
    job::{AttemptOutcome, State, WorkerId},
    store::{AuditLimits, By, FindingKind, Finish, Finished, build},
};
use serde_json::json;
use sqlx::{Executor as _, Row as _};

use super::{
    LEASE, Place, TestStore, applied, audit::PATIENT, binding, claim, hold, job, on_every_backend, one,
    succeed,
};
use crate::{harness::PATIENCE, support::wait::until};

on_every_backend!(the_jobs_of_lost_workers_are_found, async |t| {
    let spec = job(json!({"max_attempts": 3, "max_age_ms": 60_000}));
    let run = t.run(&spec).await;
    let lost = one(t.store.lost_jobs(LEASE, 10).await.unwrap());
    assert_eq!((lost.id, lost.receipt.fence, lost.request_id), (spec.id, run.receipt.fence, run.request_id));
    let receipt = lost.receipt;
    assert_eq!((receipt.attempt, receipt.spent, receipt.binding, lost.budget), (1, 0, None, spec.budget));
    assert_eq!(Some(lost.started_at), t.view(spec.id).await.started_at);
    assert!(receipt.age < LEASE);

    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty(), "its worker lives");
    t.store.bind(&[run.bind(&binding("1"))]).await.unwrap();
    let next = t.run(&job(json!({}))).await;
    t.store.beat(t.worker, "w", Duration::ZERO).await.unwrap();
    let lost = t.store.lost_jobs(LEASE, 10).await.unwrap();
    assert_eq!(lost.iter().map(|lost| lost.id).collect::<Vec<_>>(), [spec.id, next.id], "oldest first");
    assert_eq!(lost[0].receipt.binding, Some(binding("1")));
    assert_eq!(t.store.lost_jobs(LEASE, 1).await.unwrap().len(), 1);

    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 2, "nobody knows its worker");
    let rescue = Finish { by: By::Rescuer { lease: LEASE }, ..run.rescue(hold()) };
    assert_eq!(t.finish(&rescue).await, applied(State::Held));
    assert_eq!(t.finish(&rescue).await, applied(State::Held), "again");
    assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 1);
});

on_every_backend!(a_worker_is_lost_by_its_own_lease_and_not_by_that_of_the_rescuer, async |t| {
    let run = t.run(&job(json!({}))).await;
    let rescue = |lease| Finish { by: By::Rescuer { lease }, ..run.rescue(hold()) };
    let shorter = Duration::from_micros(1);
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    assert!(t.store.lost_jobs(shorter, 10).await.unwrap().is_empty(), "its own lease is not over");
    assert_eq!(t.finish(&rescue(shorter)).await, Finished::Fenced);
    assert_eq!(t.store.forget_workers(shorter).await.unwrap(), 0);
    let impatient = AuditLimits { lease: shorter, lost: Duration::ZERO, ..PATIENT };
    assert_eq!(t.audit(&impatient).await, []);

    // Of a build that does not say it.
    t.execute("update workers set lease_ms = null").await;
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty());
    assert_eq!(t.store.lost_jobs(shorter, 10).await.unwrap().len(), 1, "only the rescuer's is known");
    assert_eq!(t.store.eldest_worker(shorter).await.unwrap(), None);
    assert_eq!(t.audit(&impatient).await, [(FindingKind::RunningWithoutWorker, run.id)]);

    t.store.beat(t.worker, "w", Duration::ZERO).await.unwrap();
    assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 1, "its own lease is over");
    assert_eq!(t.finish(&rescue(LEASE)).await, applied(State::Held));
});

on_every_backend!(a_worker_that_holds_nothing_is_not_forgotten_before_its_lease_is_over, async |t| {
    t.store.beat(t.worker, "patient", LEASE).await.unwrap();
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 0);
    t.run(&job(json!({}))).await;
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty(), "it is known when it claims");
});

on_every_backend!(a_worker_can_take_over_its_own_jobs_while_it_beats, async |t| {
    let run = t.run(&job(json!({}))).await;
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    let own = Finish { by: By::Rescuer { lease: Duration::ZERO }, ..run.rescue(hold()) };
    assert_eq!(t.finish(&own).await, applied(State::Held));
});

on_every_backend!(idle_workers_are_forgotten, async |t| {
    let idle = WorkerId::new();
    t.store.beat(t.worker, "busy", LEASE).await.unwrap();
    t.store.beat(idle, "idle", Duration::ZERO).await.unwrap();
    let run = t.run(&job(json!({}))).await;
    assert_eq!(t.store.forget_workers(LEASE).await.unwrap(), 0);
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 1, "only the idle one");
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty());
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    t.store.beat(t.worker, "busy", Duration::ZERO).await.unwrap();
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 1);
});

#[tokio::test]
async fn however_many_claims_are_over_they_are_forgotten_at_once() {
    let t = TestStore::postgres().await;
    let worker = WorkerId::new();
    t.store.beat(worker, "w", Duration::ZERO).await.unwrap();
    t.execute(&format!(
        "insert into claims (worker_id, job_ids) select '{}', array[gen_random_uuid()] from generate_series(1, 12000)",
        worker.0
    ))
    .await;
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(t.count("select count(*) from claims").await, 0);
}

/// Without the statistics, PostgreSQL would compare each job with each claimed ID.
#[tokio::test]
async fn the_jobs_of_a_lost_worker_are_found_by_their_keys_before_statistics_know_of_them() {
    const JOBS: usize = 3_000;
    let t = TestStore::postgres().await;
    t.execute("alter table jobs set (autovacuum_enabled = false)").await;
    t.execute("alter table claims set (autovacuum_enabled = false)").await;
    let specs: Vec<_> = (0..JOBS).map(|_| job(json!({}))).collect();
    for specs in specs.chunks(500) {
        let claims: Vec<_> = specs.iter().map(claim).collect();
        t.store.claim(t.worker, &claims).await.unwrap();
    }
    assert_eq!(t.store.lost_jobs(Duration::ZERO, JOBS * 2).await.unwrap().len(), JOBS);
    assert_eq!(t.store.forget_workers(LEASE).await.unwrap(), 0);
    t.store.close().await;
    let Place::Postgres(database) = &t.place else { unreachable!("that is the backend") };
    // What a session did is counted when it has ended.
    let read_whole = until("the looks are counted", PATIENCE, async || {
        let sql = "select idx_scan, seq_tup_read from pg_stat_user_tables where relname = 'jobs'";
        let row = database.connect().await.unwrap().fetch_one(sql).await.unwrap();
        let (by_key, read_whole): (i64, i64) = (row.get(0), row.get(1));
        (by_key >= i64::try_from(JOBS).unwrap()).then_some(read_whole)
    })
    .await;
    assert_eq!(read_whole, 0, "rows that were read to find others");
}

on_every_backend!(workers_are_listed_with_their_build_and_what_they_hold, async |t| {
    let other = WorkerId::new();
    t.store.beat(t.worker, "mine", LEASE).await.unwrap();
    t.store.beat(other, "other", LEASE).await.unwrap();
    t.run(&job(json!({}))).await;
    t.run(&job(json!({}))).await;
    let workers = t.store.workers().await.unwrap();
    let [mine, idle] = &workers[..] else { panic!("{workers:?}") };
    assert_eq!((mine.id, &*mine.name, mine.build.as_deref()), (t.worker, "mine", Some(&*build())));
    assert_eq!((mine.running.clone(), mine.lease), (vec![("default".parse().unwrap(), 2)], Some(LEASE)));
    assert!(mine.silent_for < LEASE && idle.running.is_empty(), "{workers:?}");
    assert_eq!(t.store.live_builds(LEASE).await.unwrap(), 1);

    // One of a build before, which says nothing of itself; then a third that has stopped.
    t.execute("update workers set build = null, lease_ms = null where name = 'other'").await;
    assert_eq!(t.store.live_builds(LEASE).await.unwrap(), 2);
    assert_eq!(t.store.workers().await.unwrap()[1].build, None);
    assert_eq!(t.store.live_builds(Duration::ZERO).await.unwrap(), 1, "the other does not live");
    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.store.workers().await.unwrap().len(), 1);
});
