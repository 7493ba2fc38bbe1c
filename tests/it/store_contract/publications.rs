//! Publications and replies.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    bounds::MAX_BATCH_BYTES,
    job::{AttemptOutcome, JobId, Principal, State},
    store::{Force, MAX_UNCLAIMED_WAIT},
};
use jiff::SignedDuration;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    LEASE, OPERATOR, Place, TestStore, fail, in_hours, job, job_with_reply, on_every_backend, one, retry,
    succeed,
};
use crate::support;

on_every_backend!(due_jobs_come_by_priority_and_then_by_time, async |t| {
    let low = job(json!({"run_at": in_hours(-3)}));
    let high = job(json!({"priority": 9}));
    let middle_new = job(json!({"priority": 5}));
    let later = job(json!({"priority": 9, "run_at": in_hours(1)}));
    let run = t.run(&job(json!({"priority": 5}))).await;
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    for spec in [&low, &middle_new, &high, &later] {
        t.insert(spec).await;
    }
    let due = t.store.take_due(3, LEASE).await.unwrap();
    let order: Vec<_> = due.iter().map(|due| (due.spec.id, due.was)).collect();
    assert_eq!(
        order,
        [(high.id, State::Available), (run.id, State::Retryable), (middle_new.id, State::Available)]
    );
    let rest = t.store.take_due(3, LEASE).await.unwrap();
    assert_eq!(one(rest.iter().map(|due| due.spec.id).collect()), low.id);
    assert!(t.store.take_due(3, LEASE).await.unwrap().is_empty());
    assert!(t.store.take_due(0, LEASE).await.unwrap().is_empty());
    assert_eq!(t.state(run.id).await, State::Available);
    assert_eq!(t.state(later.id).await, State::Scheduled);
});

on_every_backend!(a_due_job_is_given_to_one_process, async |t| {
    let specs: Vec<_> = (0..200).map(|n| job(json!({"priority": n % 3}))).collect();
    t.store.insert(&specs, Duration::ZERO).await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &t.store } else { &t.other });
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..20 {
                    taken.extend(store.take_due(20, LEASE).await.unwrap().into_iter().map(|due| due.spec.id));
                }
                taken
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    assert_eq!(taken.len(), 200);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 200);
});

on_every_backend!(an_unclaimed_job_comes_back_after_ever_longer_waits, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    for doubling in 0..4 {
        let before = t.store.now().await.unwrap();
        let due = support::wait::until("the job to be due again", Duration::from_secs(60), async || {
            t.store.take_due(10, Duration::from_millis(50)).await.unwrap().pop()
        })
        .await;
        assert_eq!(due.spec.id, spec.id);
        let after = t.store.now().await.unwrap();
        let (due_at, wait) = (t.view(spec.id).await.due_at.unwrap(), Duration::from_millis(50 << doubling));
        assert!(due_at >= before + wait && due_at <= after + wait, "{doubling}");
    }
    // A claim starts afresh, and no wait is longer than the maximum.
    t.store.republish_all().await.unwrap();
    let run = t.run(&spec).await;
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.store.take_due(10, Duration::from_millis(1)).await.unwrap();
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_millis(1), "{wait:?}");
    t.store.republish_all().await.unwrap();
    t.store.take_due(10, MAX_UNCLAIMED_WAIT * 10).await.unwrap();
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_hours(1) && wait > SignedDuration::from_mins(59), "{wait:?}");
});

on_every_backend!(a_job_that_could_not_be_published_comes_back_when_asked, async |t| {
    let (spec, claimed) = (job(json!({})), job(json!({})));
    t.insert(&spec).await;
    t.insert(&claimed).await;
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
    t.run(&claimed).await;
    t.store.defer(&[spec.id, claimed.id, JobId::new()], Duration::ZERO).await.unwrap();
    let due = one(t.store.take_due(10, Duration::from_secs(100)).await.unwrap());
    assert_eq!(due.spec.id, spec.id);
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_secs(100), "the failed publication did not double it: {wait:?}");
    assert_eq!(t.state(claimed.id).await, State::Running);
});

on_every_backend!(all_available_jobs_can_be_published_again, async |t| {
    let specs: Vec<_> = (0..3).map(|_| job(json!({}))).collect();
    t.store.insert(&specs, LEASE).await.unwrap();
    t.run(&specs[0]).await;
    t.insert(&job(json!({"run_at": in_hours(1)}))).await;
    assert!(t.store.take_due(10, LEASE).await.unwrap().is_empty());
    assert_eq!(t.store.republish_all().await.unwrap(), 2);
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
});

on_every_backend!(the_next_due_time_is_known, async |t| {
    assert_eq!(t.store.next_due_in().await.unwrap(), None);
    t.insert(&job(json!({"run_at": in_hours(2)}))).await;
    t.insert(&job(json!({"run_at": in_hours(1), "priority": 4}))).await;
    let next = t.store.next_due_in().await.unwrap().unwrap();
    assert!(next > Duration::from_secs(3590) && next <= Duration::from_secs(3600), "{next:?}");
    t.insert(&job(json!({}))).await;
    assert_eq!(t.store.next_due_in().await.unwrap(), Some(Duration::ZERO));
});

on_every_backend!(a_reply_is_offered_until_it_is_published, async |t| {
    let spec = job_with_reply(json!({}), Some("amq.gen-1"));
    let run = t.run(&spec).await;
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "it is not finished");
    t.finish(&run.end(succeed(r#"{"x":1}"#), AttemptOutcome::Succeeded)).await;
    t.finish(&t.run(&job(json!({}))).await.end(fail(), AttemptOutcome::Refused)).await;
    let reply = one(t.store.take_replies(10, Duration::ZERO).await.unwrap());
    assert_eq!(reply.spec.reply_to.as_deref(), Some("amq.gen-1"));
    assert_eq!(reply.spec.correlation_id.as_deref(), Some("c-1"));
    assert_eq!((reply.spec.id, reply.state), (spec.id, State::Succeeded));
    assert_eq!(reply.result.unwrap().get(), r#"{"x":1}"#);
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1, "offered again");
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "but not before its time");
    t.store.defer_replies(&[spec.id, JobId::new()], Duration::ZERO).await.unwrap();
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1, "or when asked");
    t.store.replied(&[spec.id, JobId::new()]).await.unwrap();
    t.store.defer_replies(&[spec.id], Duration::ZERO).await.unwrap();
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "it is not owed any more");

    // A job that is run again owes its reply again.
    let failed = job_with_reply(json!({}), Some("amq.gen-1"));
    t.finish(&t.run(&failed).await.end(fail(), AttemptOutcome::Refused)).await;
    t.store.restart(&Principal::Operator, failed.id, OPERATOR, Force::default()).await.unwrap();
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "it is not final any more");
    t.store.cancel(&Principal::Operator, failed.id, OPERATOR).await.unwrap();
    assert_eq!(one(t.store.take_replies(10, LEASE).await.unwrap()).state, State::Cancelled);
});

/// How many bytes of text a job or a result of these tests has: three of them do not fit into one page.
const LARGE: usize = MAX_BATCH_BYTES * 2 / 5;

on_every_backend!(a_page_of_due_jobs_is_bounded_in_bytes, async |t| {
    // The largest that an app may send, with and without what compresses well.
    let text = |n: usize| if n.is_multiple_of(2) { "x".repeat(1_000_000) } else { noise(1_000_000) };
    let specs: Vec<_> = (0..20).map(|n| job(json!({"text": text(n), "priority": n % 2}))).collect();
    for spec in &specs {
        t.insert(spec).await;
    }
    let mut taken = Vec::new();
    while taken.len() < specs.len() {
        let page = t.store.take_due(100, LEASE).await.unwrap();
        let bytes: usize = page.iter().filter_map(|due| due.spec.text.as_ref()).map(String::len).sum();
        assert!(bytes <= MAX_BATCH_BYTES, "{bytes}");
        assert!(
            page.len() == 8 || taken.len() + page.len() == specs.len(),
            "{} of {}",
            page.len(),
            taken.len()
        );
        taken.extend(page.into_iter().map(|due| due.spec.id));
    }
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), specs.len());
    assert!(t.store.take_due(100, LEASE).await.unwrap().is_empty());
});

on_every_backend!(a_page_of_replies_is_bounded_in_bytes_and_never_empty, async |t| {
    let mut expected = HashSet::new();
    for bytes in [LARGE, LARGE, LARGE, MAX_BATCH_BYTES + 1, 10, 10] {
        let run = t.run(&job_with_reply(json!({}), Some("amq.gen-1"))).await;
        let result = format!("{:?}", noise(bytes));
        t.finish(&run.end(succeed(&result), AttemptOutcome::Succeeded)).await;
        expected.insert(run.id);
    }
    let mut pages = Vec::new();
    while !expected.is_empty() {
        let page = t.store.take_replies(100, LEASE).await.unwrap();
        assert!(page.iter().all(|job| expected.remove(&job.spec.id)));
        pages.push(page.len());
    }
    assert_eq!(pages, [2, 1, 1, 2]);
});

on_every_backend!(a_refused_reply_is_offered_after_ever_longer_waits_and_then_given_up, async |t| {
    let spec = job_with_reply(json!({}), Some("amq.gen-1"));
    let run = t.run(&spec).await;
    t.finish(&run.end(succeed("{}"), AttemptOutcome::Succeeded)).await;
    let first = Duration::from_millis(200);
    for refusal in 0..3 {
        t.store.defer_replies(&[spec.id], Duration::ZERO).await.unwrap();
        assert_eq!(one(t.store.take_replies(10, LEASE).await.unwrap()).spec.id, spec.id);
        let before = std::time::Instant::now();
        let given_up = t.store.put_off_replies(&[spec.id, JobId::new()], first, 4).await.unwrap();
        assert!(given_up.is_empty());
        let early = t.store.take_replies(10, LEASE).await.unwrap();
        assert!(early.is_empty() || before.elapsed() >= first * (1 << refusal), "refusal {refusal}");
        t.store.put_off_replies(&[], first, 4).await.unwrap();
        if early.is_empty() {
            support::wait::until("the reply to be offered", Duration::from_secs(60), async || {
                t.store.take_replies(10, LEASE).await.unwrap().pop()
            })
            .await;
        }
    }
    t.store.put_off_replies(&[spec.id], Duration::ZERO, 5).await.unwrap();
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1);
    let given_up = t.store.put_off_replies(&[spec.id], first, 5).await.unwrap();
    assert_eq!(given_up, [spec.id]);
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty());
    let job = t.view(spec.id).await;
    assert_eq!((job.state, job.result.unwrap().get()), (State::Succeeded, "{}"), "the result stays");
    assert!(
        t.store.put_off_replies(&[spec.id], first, 1).await.unwrap().is_empty(),
        "it was given up before"
    );
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_locked_keeps_no_other_job_or_reply_waiting() {
    let t = TestStore::postgres().await;
    let Place::Postgres(database) = &t.place else { unreachable!("it is PostgreSQL") };
    let (locked, free) = (job(json!({})), job(json!({})));
    let (locked_reply, free_reply) =
        (job_with_reply(json!({}), Some("amq.gen-1")), job_with_reply(json!({}), Some("amq.gen-1")));
    for spec in [&locked, &free, &locked_reply, &free_reply] {
        t.insert(spec).await;
    }
    let (jobs, replies) = ([locked.id, free.id], [locked_reply.id, free_reply.id]);
    for id in replies {
        t.store.cancel(&Principal::Operator, id, OPERATOR).await.unwrap();
    }
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 2);
    let mut locking = database.connect().await.unwrap();
    let sql =
        format!("begin; select id from jobs where id in ('{}', '{}') for update", locked.id, locked_reply.id);
    locking.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();

    t.store.defer(&jobs, Duration::ZERO).await.unwrap();
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, free.id);
    t.store.defer_replies(&replies, Duration::ZERO).await.unwrap();
    assert_eq!(one(t.store.take_replies(10, LEASE).await.unwrap()).spec.id, free_reply.id);
    assert!(t.store.put_off_replies(&replies, Duration::ZERO, 5).await.unwrap().is_empty());
    assert_eq!(one(t.store.take_replies(10, LEASE).await.unwrap()).spec.id, free_reply.id);
    t.store.replied(&replies).await.unwrap();
    locking.close().await.unwrap();
    assert_eq!(t.count("select count(*) from jobs where reply_due_at is not null").await, 1);
}

/// Letters that do not compress.
fn noise(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

/// A worker that is woken by what it writes itself would look for due jobs all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_woken_by_another_process_and_not_by_its_own() {
    let t = TestStore::sqlite().await;
    let (watching, wake) = (Arc::clone(&t.store), Arc::new(Notify::new()));
    let woken = Arc::clone(&wake);
    let watch = tokio::spawn(async move { watching.watch(&woken).await });
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        t.insert(&job(json!({}))).await;
    }
    timeout(Duration::from_millis(100), wake.notified()).await.unwrap_err();
    // It may not have begun to watch.
    support::wait::until("it is woken", Duration::from_secs(60), async || {
        t.other.insert(&[job(json!({}))], Duration::ZERO).await.unwrap();
        timeout(Duration::from_millis(500), wake.notified()).await.ok()
    })
    .await;
    watch.abort();
}
