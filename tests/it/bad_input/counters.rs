//! Counters at their end.

use errand_testbed::factory::{self, Envelope as _, id};

use super::{
    backends::{Backends, Place},
    read,
};

on_both_pairs! {
    counters_at_their_maximum_keep_nobody_waiting [],
}

/// A job that waits for tomorrow.
fn later(id: &str) -> String {
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    factory::read("u-alice").named(id).with("run_at", tomorrow.to_string()).to_string()
}

async fn counters_at_their_maximum_keep_nobody_waiting(pair: Backends) {
    let (tried, published, lost) = (id(), id(), id());
    let all = [&tried, &published, &lost];
    pair.submit(&all.map(|job| later(job))).await;
    for job in all {
        pair.job_in(job, &["scheduled"]).await;
    }
    let set = async |job: &str, columns: &str| {
        pair.execute(&format!("update jobs set {columns} where id = {}", pair.literal(job))).await;
    };
    set(&tried, "attempt = 2147483647, spent = 2147483647").await;
    let past = if matches!(pair.place, Place::Services(_)) { "now()" } else { "1" };
    set(&published, &format!("published = 2147483647, due_at = {past}")).await;
    // Its worker is gone, and was when it had been given as many attempts as can be counted.
    let (worker, request) = (pair.literal(&id()), pair.literal(&id()));
    set(
        &lost,
        &format!(
            "attempt = 2147483647, spent = 2147483647, state = 'running', due_at = null, fence = 5, worker_id = {worker}, \
             request_id = {request}, started_at = {past}, toolkit = 'github', toolkit_version = '20251027_00', \
             pinned_by = 'env', account = 'ca_alice_new', frozen_effect = 'safe'"
        ),
    )
    .await;
    if let Place::Services(_) = pair.place {
        let claimed =
            format!("insert into claims (worker_id, job_ids) values ({worker}, array['{lost}'::uuid])");
        pair.execute(&claimed).await;
    }
    pair.says(&["jobs", "retry", "--now", &tried]);
    let good: Vec<String> = (0..20).map(|_| id()).collect();
    pair.submit(&good.iter().map(|job| read(job)).collect::<Vec<_>>()).await;
    for job in good.iter().chain([&tried, &published]) {
        pair.job_in(job, &["succeeded"]).await;
    }
    let shown = pair.job_in(&tried, &["succeeded"]).await;
    assert_eq!(shown["attempts"][0]["number"], 2_147_483_647);
    let shown = pair.job_in(&lost, &["failed"]).await;
    assert_eq!(shown["error"]["kind"], "worker_lost", "{shown}");
    assert_eq!(pair.front.bodies_of(&tried).len(), 1);
    pair.metric_is("errand_rescued_jobs_total", "to=\"failed\"", 1.0).await;

    let listed = pair.says(&["jobs", "list", "--state", "failed", "--json"]);
    assert_eq!(listed.lines().count(), 1);
}
