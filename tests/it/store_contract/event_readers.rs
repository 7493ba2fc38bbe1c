//! Whoever follows events, and the removal of those that are old.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use errand::{
    clock,
    job::{AttemptOutcome, ErrorKind, HeldReason, JobId, Owner, Principal, Release, State, Stop},
    store::{
        Claim, Event, EventKind, EventsAfter, EventsOf, Finish, SharedStore,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use serde_json::json;

use super::{
    FORCE, LEASE, OPERATOR, Place, RunningJob, TestStore, applied,
    batches::{batch, new, specs},
    claim, error,
    events::{WHO, all, complete, edited, kinds, of_batch, of_job, page, sequences},
    fail, hold, job, on_every_backend, postgres_options, running, succeed,
};
use crate::support::wait::until;

use EventKind::{BatchCompleted, JobCancelled, JobReleased, JobRetried, JobSucceeded};

const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn positions(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.position).collect()
}

fn grow(events: &[Event]) -> bool {
    events.windows(2).all(|pair| pair[0].position < pair[1].position)
}

impl TestStore {
    /// Calls off new jobs, each of which is an event.
    pub(super) async fn call_off(&self, jobs: usize) {
        for _ in 0..jobs {
            self.in_state(State::Cancelled).await;
        }
    }

    /// The same store, as a process has it open that records nothing.
    pub(super) fn silent(&self) -> SharedStore {
        match &self.place {
            Place::Postgres(database) => {
                let options = PostgresOptions { records_events: false, ..postgres_options(&database.url) };
                Arc::new(PostgresStore::new(options).unwrap())
            }
            Place::Sqlite(dir) => Arc::new(SqliteStore::new(SqliteOptions {
                path: dir.path().join("errand.db"),
                clock: clock::system(),
                records_events: false,
            })),
        }
    }
}

on_every_backend!(events_are_read_page_by_page_and_those_behind_the_last_are_to_come, async |t| {
    let user = Principal::Owner("user:u-1".parse().unwrap());
    assert_eq!(t.store.last_event().await.unwrap(), 0);
    for who in [WHO, &user] {
        for after in [None, Some(0)] {
            let nothing = EventsAfter::Are { events: vec![], next: 0 };
            assert_eq!(t.store.events(who, EventsOf::All, after, 10).await.unwrap(), nothing);
        }
        assert_eq!(t.store.events(who, EventsOf::All, Some(1), 10).await.unwrap(), EventsAfter::ToCome);
    }
    t.call_off(7).await;
    assert_eq!(all(&t).await.len(), 7);
    let events = all(&t).await;
    assert!(grow(&events) && events[0].position > 0);
    for limit in [1, 3, 7, 100] {
        let (mut walked, mut after) = (Vec::new(), 0);
        loop {
            let page = page(&t.other, &user, after, limit).await;
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = last.position;
            walked.extend(page);
        }
        assert_eq!(walked, events, "{limit} a page");
    }
    let last = events[6].position;
    assert_eq!(t.other.last_event().await.unwrap(), last);
    for who in [WHO, &user] {
        for (place, event) in events.iter().enumerate() {
            assert_eq!(page(&t.store, who, event.position, 100).await, events[place + 1..]);
        }
        assert_eq!(page(&t.store, who, 0, 0).await, []);
        for after in [last + 1, u64::MAX] {
            assert_eq!(
                t.store.events(who, EventsOf::All, Some(after), 10).await.unwrap(),
                EventsAfter::ToCome,
                "{after}"
            );
        }
    }
    // What nobody has read counts, too.
    t.call_off(1).await;
    let next = t.store.last_event().await.unwrap();
    assert!(next > last, "{next}");
    assert_eq!(positions(&page(&t.store, WHO, last, 10).await), [next]);
});

on_every_backend!(old_events_are_removed_in_order_and_a_reader_is_told_what_it_missed, async |t| {
    t.call_off(6).await;
    let user = Principal::Owner("user:u-1".parse().unwrap());
    let at = positions(&all(&t).await);
    assert_eq!(t.store.remove_events(HOUR, 10).await.unwrap(), 0);
    let earlier = if t.is_postgres() { "at - interval '2 hours'" } else { "at - 7200000000" };
    t.execute(&format!("update events set at = {earlier} where position <> {}", at[4])).await;

    assert_eq!(t.store.remove_events(HOUR, 3).await.unwrap(), 3);
    for who in [WHO, &user] {
        for after in [0, at[0], at[1]] {
            let told = t.store.events(who, EventsOf::All, Some(after), 10).await.unwrap();
            assert_eq!(told, EventsAfter::Removed { up_to: at[2] }, "behind {after}");
        }
        for after in [0, at[2]] {
            assert_eq!(positions(&page(&t.store, who, after, 10).await), at[3..], "behind {after}");
        }
    }
    // The last one is old, and the one before it is not.
    assert_eq!(t.store.remove_events(HOUR, 10).await.unwrap(), 1);
    assert_eq!(t.store.remove_events(HOUR, 10).await.unwrap(), 0);
    assert_eq!(positions(&all(&t).await), at[4..]);
    assert_eq!(
        t.other.events(WHO, EventsOf::All, Some(at[2]), 10).await.unwrap(),
        EventsAfter::Removed { up_to: at[3] }
    );

    // The store's clock has microseconds.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(t.store.remove_events(Duration::ZERO, 10).await.unwrap(), 2);
    assert_eq!(all(&t).await, []);
    assert_eq!(page(&t.store, WHO, at[5], 10).await, []);
    assert_eq!(t.store.last_event().await.unwrap(), at[5], "it was given");
    t.call_off(1).await;
    let events = all(&t).await;
    assert!(events.len() == 1 && events[0].position > at[5], "{events:?}");
    assert_eq!(page(&t.store, WHO, at[5], 10).await, events);
});

on_every_backend!(the_events_of_an_owner_are_removed_and_those_of_others_stay, async |t| {
    let owners: [Owner; 3] = ["user:a", "org:a", "user:b"].map(|owner| owner.parse().unwrap());
    for owner in owners.iter().chain(&owners).chain(&owners) {
        let spec = job(json!({owner.kind().field(): owner.id()}));
        t.insert(&spec).await;
        t.store.cancel(WHO, spec.id, OPERATOR).await.unwrap();
    }
    // Nobody has read any.
    for removed in [2, 1, 0] {
        assert_eq!(t.store.remove_events_of(&owners[0], 2).await.unwrap(), removed);
    }
    let events = all(&t).await;
    let found: Vec<&Owner> = events.iter().filter_map(|event| event.owner.as_ref()).collect();
    assert_eq!(found, [&owners[1], &owners[2]].repeat(3));
    assert_eq!(page(&t.store, &Principal::Owner(owners[0].clone()), 0, 10).await, []);
    // None of them was old.
    for (place, event) in events.iter().enumerate() {
        assert_eq!(page(&t.store, WHO, event.position, 10).await, events[place + 1..]);
    }
});

/// Goes on behind the last event that was read, until there is no more and all is written.
async fn follow(store: SharedStore, is_written: Arc<AtomicBool>) -> Vec<Event> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let is_over = is_written.load(Ordering::SeqCst);
        let page = page(&store, WHO, after, 7).await;
        if let Some(last) = page.last() {
            after = last.position;
        } else if is_over {
            return all;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        all.extend(page);
    }
}

on_every_backend!(whoever_follows_reads_each_event_once_however_commits_overtake_each_other, async |t| {
    let specs: Vec<_> = (0..400).map(|_| job(json!({}))).collect();
    let claims: Vec<Claim> = specs.iter().map(claim).collect();
    let answers = t.store.claim(t.worker, &claims).await.unwrap();
    let finishes = claims.iter().zip(answers).enumerate().map(|(n, (claim, answer))| {
        let (id, request_id, receipt) = (claim.spec.id, claim.request_id, running(answer));
        let run = RunningJob { id, request_id, receipt };
        // Some have more to write behind their event.
        if n % 3 == 0 {
            run.end(hold(), AttemptOutcome::Unknown)
        } else {
            run.end(succeed("1"), AttemptOutcome::Succeeded)
        }
    });
    let finishes: Vec<Finish> = finishes.collect();
    let is_written = Arc::new(AtomicBool::new(false));
    let readers =
        [&t.store, &t.other].map(|store| tokio::spawn(follow(Arc::clone(store), Arc::clone(&is_written))));
    let writers: Vec<_> = finishes
        .chunks(100)
        .zip([1, 2, 9, 30])
        .enumerate()
        .map(|(n, (part, together))| {
            let store = Arc::clone(if n % 2 == 0 { &t.store } else { &t.other });
            let part = part.to_vec();
            tokio::spawn(async move {
                for batch in part.chunks(together) {
                    store.finish(batch).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    is_written.store(true, Ordering::SeqCst);
    let events = all(&t).await;
    assert_eq!(events.len(), 400);
    for reader in readers {
        let read = reader.await.unwrap();
        assert!(grow(&read));
        let jobs: HashSet<JobId> = read.iter().filter_map(|event| event.job).collect();
        assert_eq!((read.len(), jobs.len()), (400, 400));
        assert!(read == events, "everybody reads the same");
    }
});

on_every_backend!(events_of_a_job_are_in_order_although_many_decide_about_it_at_once, async |t| {
    let id = t.in_state(State::Available).await;
    let people: Vec<_> = [&t.store, &t.other, &t.store, &t.other]
        .into_iter()
        .map(|store| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for _ in 0..15 {
                    // Whoever comes too late, or in between too often, changes nothing.
                    drop(store.cancel(WHO, id, OPERATOR).await);
                    drop(store.restart(WHO, id, OPERATOR, FORCE).await);
                }
            })
        })
        .collect();
    for person in people {
        person.await.unwrap();
    }
    let events = of_job(&t, id).await;
    assert!(!events.is_empty() && grow(&events));
    for ((sequence, event), kind) in (1..).zip(&events).zip([JobCancelled, JobRetried].iter().cycle()) {
        assert_eq!((event.sequence, event.kind), (sequence, *kind));
    }
});

/// One that writes its event at first and commits at last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_committed_late_is_behind_those_that_were_read_before() {
    let t = TestStore::postgres().await;
    let slow = t.run(&job(json!({}))).await;
    let finish = [slow.end(hold(), AttemptOutcome::Unknown)];
    let lock = t.lock("lock table job_history in share mode").await;
    let store = Arc::clone(&t.store);
    let finishing = tokio::spawn(async move {
        for _ in 0..20 {
            // It waits for a lock for a second only.
            if let Ok(answers) = store.finish(&finish).await {
                return answers;
            }
        }
        panic!("it was not applied")
    });
    until("its history waits", LEASE, async || {
        let waiting =
            "select count(*) from pg_locks where not granted and relation = 'job_history'::regclass";
        (t.count(waiting).await > 0).then_some(())
    })
    .await;
    let quick = t.in_state(State::Succeeded).await;
    let read = all(&t).await;
    assert_eq!((read.len(), read[0].job), (1, Some(quick)));
    drop(lock);
    assert_eq!(finishing.await.unwrap(), [applied(State::Held)]);
    let read = page(&t.store, WHO, read[0].position, 10).await;
    assert_eq!((read.len(), read[0].job), (1, Some(slow.id)));
}

on_every_backend!(a_store_that_does_not_record_adds_none_and_leaves_gaps, async |t| {
    let silent = t.silent();
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    silent.finish(&[run.end(hold(), AttemptOutcome::Unknown)]).await.unwrap();
    assert_eq!(all(&t).await, []);
    t.store.release(WHO, spec.id, Release::Retry, OPERATOR).await.unwrap();
    silent.cancel(WHO, spec.id, OPERATOR).await.unwrap();
    silent.restart(WHO, spec.id, OPERATOR, FORCE).await.unwrap();
    silent.edit(WHO, &edited(&t, spec.id).await, OPERATOR).await.unwrap();
    let run = t.run(&t.view(spec.id).await.spec).await;
    silent.cancel(WHO, spec.id, OPERATOR).await.unwrap();
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    let events = of_job(&t, spec.id).await;
    assert_eq!(kinds(&events), [JobReleased, JobSucceeded]);
    assert_eq!(sequences(&events), [2, 7]);

    let stay = Stop::Hold { reason: HeldReason::Unidentified, error: error(ErrorKind::UnknownOutcome) };
    let stopped = Claim { stop: Some(stay), ..claim(&job(json!({}))) };
    silent.claim(t.worker, std::slice::from_ref(&stopped)).await.unwrap();
    t.store.cancel(WHO, stopped.spec.id, OPERATOR).await.unwrap();
    let events = of_job(&t, stopped.spec.id).await;
    assert_eq!((kinds(&events), sequences(&events)), (vec![JobCancelled], vec![2]));

    let own = Principal::Owner("user:user-1".parse().unwrap());
    let (empty, full, items) = (batch(&own), batch(&own), specs(1));
    new(silent.add_batch(&empty, &[]).await.unwrap());
    new(silent.add_batch(&full, &items).await.unwrap());
    let run = t.run(&items[0]).await;
    t.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
    silent.cancel_batch(&own, full.id, OPERATOR).await.unwrap();
    complete(&t, full.id).await;
    assert_eq!(of_batch(&t, empty.id).await, []);
    let events = of_batch(&t, full.id).await;
    assert_eq!((kinds(&events), sequences(&events)), (vec![BatchCompleted], vec![2]));
    assert_eq!(page(&silent, WHO, 0, 100).await, all(&t).await, "it reads those of others");
});
