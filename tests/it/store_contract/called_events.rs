//! Which events are sent where, and what is told of their jobs.

use std::sync::Arc;

use errand::{
    job::{AttemptOutcome, JobId, JobSpec, Principal},
    store::{CalledEvent, EventKind, EventsAfter, NewBatch},
};
use serde_json::{Value, json};

use super::{
    OPERATOR, TestStore,
    batches::{batch, new},
    callbacks::{URL, owner, url},
    deliveries::HOUR,
    event_readers::positions,
    events::{WHO, all, complete},
    fail, job, on_every_backend, succeed,
};

const OF_JOB: &str = "https://app.example/job";
const OF_BATCH: &str = "https://app.example/batch";

/// A job that names a URL, or none.
fn calling(fields: Value, to: Option<&str>) -> Arc<JobSpec> {
    let mut fields = fields;
    if let Some(url) = to {
        fields["callback"] = json!({ "url": url });
    }
    job(fields)
}

/// What is told behind a position, and where to go on.
async fn page(t: &TestStore, after: u64, limit: usize) -> (Vec<CalledEvent>, u64) {
    match t.other.called_events(after, limit).await.unwrap() {
        EventsAfter::Are { events, next } => (events, next),
        other => panic!("behind {after}: {other:?}"),
    }
}

/// What is sent somewhere of what has happened behind a position: what it is, and where it is told.
async fn called_behind(t: &TestStore, after: u64) -> Vec<(EventKind, Vec<String>)> {
    let (events, _) = page(t, after, 1_000).await;
    events.into_iter().map(|called| (called.event.kind, called.urls)).collect()
}

async fn called(t: &TestStore) -> Vec<(EventKind, Vec<String>)> {
    called_behind(t, 0).await
}

fn to(kind: EventKind, urls: &[&str]) -> (EventKind, Vec<String>) {
    (kind, urls.iter().map(|url| (*url).to_owned()).collect())
}

impl TestStore {
    /// A new job of these that is called off.
    async fn called_off(&self, fields: Value, to: Option<&str>) -> JobId {
        let spec = calling(fields, to);
        self.insert(&spec).await;
        self.store.cancel(WHO, spec.id, OPERATOR).await.unwrap();
        spec.id
    }
}

on_every_backend!(an_event_is_sent_to_the_url_of_its_job_and_to_that_of_its_owner_once_each, async |t| {
    use EventKind::JobCancelled;
    assert_eq!(called(&t).await, []);
    t.called_off(json!({}), None).await;
    assert_eq!(called(&t).await, [], "nobody has asked for it");
    t.called_off(json!({}), Some(OF_JOB)).await;
    t.called_off(json!({"org_id": "u-1"}), None).await;
    assert_eq!(called(&t).await, [to(JobCancelled, &[OF_JOB])]);
    let (events, _) = page(&t, 0, 10).await;
    assert_eq!(events[0].event, all(&t).await[1], "the event as everybody reads it");

    let u1 = owner("user:u-1");
    // Behind what has happened before.
    let last = async || t.store.last_event().await.unwrap();
    let mut before = last().await;
    t.set(&u1, Some(URL), 1).await;
    // Others have nothing to do with it.
    t.set(&owner("user:u-2"), Some("https://other.example/"), 1).await;
    let ids = [t.called_off(json!({}), None).await, t.called_off(json!({}), Some(OF_JOB)).await];
    t.called_off(json!({"org_id": "u-1"}), None).await;
    assert_eq!(called_behind(&t, before).await, [to(JobCancelled, &[URL]), to(JobCancelled, &[OF_JOB, URL])]);
    let (events, _) = page(&t, before, 10).await;
    assert!(events.iter().map(|called| called.event.job).eq(ids.map(Some)));

    before = last().await;
    t.set(&u1, Some(OF_JOB), 1).await;
    for to in [None, Some(OF_JOB)] {
        t.called_off(json!({}), to).await;
    }
    assert_eq!(called_behind(&t, before).await, [(); 2].map(|()| to(JobCancelled, &[OF_JOB])), "once");

    before = last().await;
    t.set(&u1, None, 1).await;
    t.set(&owner("org:u-1"), Some(URL), 1).await;
    t.called_off(json!({}), None).await;
    t.called_off(json!({"org_id": "u-1"}), None).await;
    t.called_off(json!({}), Some(OF_JOB)).await;
    let expected = [to(JobCancelled, &[URL]), to(JobCancelled, &[OF_JOB])];
    assert_eq!(called_behind(&t, before).await, expected);
});

/// The events of a batch of two, of which the second names a URL and fails, that is retried and called off.
async fn batch_happens(t: &TestStore) -> Vec<(EventKind, Vec<String>)> {
    let before = t.store.last_event().await.unwrap();
    let own = Principal::Owner(owner("user:u-1"));
    let batch = NewBatch { callback: Some(url(OF_BATCH)), ..batch(&own) };
    let items = [calling(json!({}), None), calling(json!({}), Some(OF_JOB))];
    new(t.store.add_batch(&batch, &items).await.unwrap());
    for (spec, fails) in items.iter().zip([false, true]) {
        let run = t.run(spec).await;
        let ending = if fails { fail() } else { succeed("1") };
        t.finish(&run.end(ending, AttemptOutcome::Unknown)).await;
    }
    complete(t, batch.id).await;
    t.store.retry_batch(&own, batch.id, OPERATOR, true, None).await.unwrap();
    t.store.cancel_batch(&own, batch.id, OPERATOR).await.unwrap();
    called_behind(t, before).await
}

on_every_backend!(the_url_of_a_batch_gets_its_own_events_and_not_those_of_its_jobs, async |t| {
    use EventKind::{BatchCancelled, BatchCompleted, BatchRetried, JobFailed, JobSucceeded};
    let of_batch = [BatchCompleted, BatchRetried, BatchCancelled];
    let told = batch_happens(&t).await;
    assert_eq!(told[..2], [to(JobFailed, &[OF_JOB]), to(BatchCompleted, &[OF_BATCH])]);
    let is_of_batch = |told: &(EventKind, Vec<String>)| told.0.as_str().starts_with("batch.");
    let told: Vec<_> = told.into_iter().filter(is_of_batch).collect();
    assert_eq!(told, of_batch.map(|kind| to(kind, &[OF_BATCH])));

    t.set(&owner("user:u-1"), Some(URL), 1).await;
    let told = batch_happens(&t).await;
    let first = [
        to(JobSucceeded, &[URL]),
        to(JobFailed, &[OF_JOB, URL]),
        to(BatchCompleted, &[OF_BATCH, URL]),
        to(BatchRetried, &[OF_BATCH, URL]),
    ];
    assert_eq!(told[..4], first);
    t.set(&owner("user:u-1"), Some(OF_BATCH), 1).await;
    assert_eq!(batch_happens(&t).await[2], to(BatchCompleted, &[OF_BATCH]), "once");
});

on_every_backend!(what_has_no_owner_is_sent_nowhere, async |t| {
    let batch = NewBatch { callback: Some(url(OF_BATCH)), ..batch(WHO) };
    new(t.store.add_batch(&batch, &[]).await.unwrap());
    assert_eq!(all(&t).await.len(), 1);
    assert_eq!(called(&t).await, []);
});

on_every_backend!(that_a_callback_was_disabled_is_an_event_like_others, async |t| {
    use errand::store::CallbackAnswer::Gone;
    let of = owner("user:u-1");
    t.set(&of, Some(URL), 1).await;
    t.store.note_callback(&of, URL, Gone, HOUR).await.unwrap();
    assert_eq!(called(&t).await, [to(EventKind::CallbackDisabled, &[URL])]);
    t.set(&of, None, 1).await;
    assert_eq!(called(&t).await, []);
});

on_every_backend!(whoever_goes_on_where_a_page_ends_is_given_all_that_are_asked_for, async |t| {
    assert_eq!(page(&t, 0, 10).await.1, 0);
    assert!(matches!(t.store.called_events(1, 10).await.unwrap(), EventsAfter::ToCome));
    let mut asked = Vec::new();
    for n in 0..9 {
        let to = (n % 4 == 3).then_some(OF_JOB);
        let id = t.called_off(json!({}), to).await;
        asked.extend(to.map(|_| id));
    }
    let at = positions(&all(&t).await);
    for limit in [1, 2, 5, 9, 100] {
        let (mut found, mut after, mut pages) = (Vec::new(), 0, 0);
        while after < at[8] {
            let (events, next) = page(&t, after, limit).await;
            assert!(events.len() <= limit && next > after, "{limit} a page: {next} behind {after}");
            assert!(events.iter().all(|called| (after + 1..=next).contains(&called.event.position)));
            found.extend(events.into_iter().filter_map(|called| called.event.job));
            (after, pages) = (next, pages + 1);
        }
        assert_eq!((found, after), (asked.clone(), at[8]), "{limit} a page");
        assert!(pages <= 9, "{limit} a page: {pages}");
    }
    let (events, next) = page(&t, at[8], 10).await;
    assert_eq!((events.len(), next), (0, at[8]));
    for after in [at[8] + 1, u64::MAX] {
        assert!(matches!(t.store.called_events(after, 10).await.unwrap(), EventsAfter::ToCome), "{after}");
    }
    // What nobody has read counts, too.
    let id = t.called_off(json!({}), Some(OF_JOB)).await;
    let (events, next) = page(&t, at[8], 10).await;
    assert_eq!(events.iter().map(|called| called.event.job).collect::<Vec<_>>(), [Some(id)]);
    assert_eq!((events[0].event.position, next), (next, t.store.last_event().await.unwrap()));
});

on_every_backend!(whoever_comes_too_late_is_told_up_to_where_events_were_removed, async |t| {
    for _ in 0..5 {
        t.called_off(json!({}), Some(OF_JOB)).await;
    }
    let at = positions(&all(&t).await);
    let earlier = if t.is_postgres() { "at - interval '2 hours'" } else { "at - 7200000000" };
    t.execute(&format!("update events set at = {earlier} where position <= {}", at[2])).await;
    assert_eq!(t.store.remove_events(HOUR, 10).await.unwrap(), 3);
    for after in [0, at[0], at[1]] {
        let told = t.store.called_events(after, 10).await.unwrap();
        assert!(matches!(told, EventsAfter::Removed { up_to } if up_to == at[2]), "{after}: {told:?}");
    }
    assert_eq!(page(&t, at[2], 10).await.0.len(), 2);
});

on_every_backend!(jobs_of_events_are_told_without_a_result_that_is_too_large, async |t| {
    const MOST: usize = 100;
    let result = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let mut ids = Vec::new();
    for bytes in [2, MOST, MOST + 1, 5_000] {
        let run = t.run(&calling(json!({}), Some(OF_JOB))).await;
        t.finish(&run.end(succeed(&result(bytes)), AttemptOutcome::Succeeded)).await;
        ids.push(run.id);
    }
    let waits = calling(json!({}), Some(OF_JOB));
    t.insert(&waits).await;
    ids.push(waits.id);
    let told = t.store.called_jobs(&[&ids[..], &[JobId::new()]].concat(), MOST).await.unwrap();
    assert_eq!(told.len(), 5, "one is not there");
    let expected =
        [(Some(2), None), (Some(MOST), None), (None, Some(MOST + 1)), (None, Some(5_000)), (None, None)];
    for (id, (bytes, left_out)) in ids.iter().zip(expected) {
        let found = told.iter().find(|told| told.job.spec.id == *id).unwrap();
        let is_told = found.job.result.as_ref().map(|result| result.get().to_owned());
        assert_eq!((is_told, found.left_out), (bytes.map(result), left_out));
        // All else is there, but for what the job was given, which is not sent.
        let mut whole = t.view(*id).await;
        whole.result = found.job.result.clone();
        assert!(whole.spec.arguments.is_some());
        whole.spec = Arc::new(JobSpec { arguments: None, text: None, ..(*whole.spec).clone() });
        assert_eq!(format!("{:?}", found.job), format!("{whole:?}"));
        assert_eq!(found.job.spec.callback, Some(url(OF_JOB)));
    }
    assert!(t.store.called_jobs(&[], MOST).await.unwrap().is_empty());
    // Letters count as the bytes that are sent.
    let run = t.run(&job(json!({}))).await;
    let wide = format!("\"{}\"", "é".repeat(MOST / 2));
    t.finish(&run.end(succeed(&wide), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.store.called_jobs(&[run.id], MOST).await.unwrap()[0].left_out, Some(MOST + 2));
});
