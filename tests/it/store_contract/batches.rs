//! Batches.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, BatchId, Digest, JobId, JobSpec, Principal, State},
    store::{
        Added, BatchDecided, BatchItem, BatchView, Conflict, Counts, Doing, JobFilter, NewBatch, NotAdded,
        StopRule, TakenBatch,
    },
};
use errand_testbed::factory::{Envelope as _, read};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{FORCE, OPERATOR, TestStore, connections::park, fail, hold, on_every_backend, succeed};
use crate::jobs::{Properties, claim, decode};

const ALL: Principal = Principal::Operator;
const LEASE: Duration = Duration::from_secs(60);

pub(super) fn batch(principal: &Principal) -> NewBatch {
    NewBatch {
        id: BatchId(Uuid::now_v7()),
        principal: principal.clone(),
        digest: Digest([7; 16]),
        is_sealed: true,
        deadline: None,
        stop: None,
        follow_up: None,
        callback: None,
    }
}

pub(super) fn open(principal: &Principal) -> NewBatch {
    NewBatch { is_sealed: false, ..batch(principal) }
}

fn spec(envelope: &Value) -> Arc<JobSpec> {
    Arc::new(decode(&envelope.to_string(), Properties::default()).unwrap())
}

pub(super) fn specs(count: usize) -> Vec<Arc<JobSpec>> {
    (0..count).map(|_| spec(&read("user-1"))).collect()
}

pub(super) fn ids(items: &[Arc<JobSpec>]) -> Vec<JobId> {
    items.iter().map(|item| item.id).collect()
}

pub(super) fn new(added: Added) -> (BatchView, Vec<JobId>) {
    match added {
        Added::New(batch, jobs) => (batch, jobs),
        other => panic!("{other:?}"),
    }
}

pub(super) fn not(added: Added) -> NotAdded {
    match added {
        Added::Not(why) => why,
        other => panic!("{other:?}"),
    }
}

impl TestStore {
    pub(super) async fn batch(&self, id: BatchId) -> BatchView {
        self.store.batch(&ALL, id, true).await.unwrap().unwrap()
    }

    async fn taken(&self, id: BatchId) -> Option<TakenBatch> {
        self.store.take_batches(100, LEASE).await.unwrap().into_iter().find(|taken| taken.batch.id == id)
    }

    async fn taken_now(&self, id: BatchId) -> TakenBatch {
        self.taken(id).await.expect("it is time to look at it")
    }

    /// Runs an item to its end.
    async fn run_item(&self, spec: &Arc<JobSpec>, fails: bool) {
        let run = self.run(spec).await;
        let end = if fails {
            run.end(fail(), AttemptOutcome::ToolFailed)
        } else {
            run.end(succeed("{}"), AttemptOutcome::Succeeded)
        };
        self.finish(&end).await;
    }
}

on_every_backend!(a_batch_has_its_items_and_their_jobs, async |t| {
    let items = specs(1_500);
    let new_batch = batch(&ALL);
    let (added, jobs) = new(t.store.add_batch(&new_batch, &items).await.unwrap());
    assert_eq!(jobs, ids(&items));
    assert_eq!((added.id, added.items, added.generation), (new_batch.id, 1_500, 1));
    let seen = t.batch(new_batch.id).await;
    assert_eq!(seen.counts, Counts { available: 1_500, ..Counts::default() });
    assert!(seen.sealed_at.is_some() && seen.completed_at.is_none());
    assert_eq!(t.view(items[3].id).await.batch, Some(new_batch.id));
    let found = t.store.batch_items(&ALL, new_batch.id, 999, 3).await.unwrap();
    let item = |index: u64| BatchItem {
        index,
        job: items[usize::try_from(index).unwrap()].id,
        state: Some(State::Available),
    };
    assert_eq!(found, [item(999), item(1_000), item(1_001)]);
    assert_eq!(t.store.batch_items(&ALL, new_batch.id, 1_500, 3).await.unwrap(), []);
    let filter = JobFilter { batch: Some(new_batch.id), ..JobFilter::default() };
    let listed = t.store.jobs(&ALL, &filter, None, 10).await.unwrap();
    assert_eq!(listed.items.len(), 10);
    assert_eq!(t.store.take_due(2_000, Duration::from_secs(60)).await.unwrap().len(), 1_500, "they are due");
});

on_every_backend!(an_item_that_is_a_known_job_is_that_job, async |t| {
    let ended = specs(1).remove(0);
    t.run_item(&ended, false).await;
    let keyed = spec(&read("user-1").with("idempotency_key", "k"));
    t.insert(&keyed).await;
    let again = spec(&read("user-1").with("idempotency_key", "k"));
    let items = [ended.clone(), specs(1).remove(0), again.clone(), again, ended.clone()];
    let new_batch = batch(&ALL);
    let (_, jobs) = new(t.store.add_batch(&new_batch, &items).await.unwrap());
    assert_eq!(jobs, [ended.id, items[1].id, keyed.id, keyed.id, ended.id]);
    let counts = t.batch(new_batch.id).await.counts;
    assert_eq!(counts, Counts { succeeded: 2, available: 3, ..Counts::default() });
    assert_eq!(t.view(ended.id).await.batch, None, "another enqueued it");
    let filter = JobFilter { batch: Some(new_batch.id), ..JobFilter::default() };
    assert_eq!(t.store.jobs(&ALL, &filter, None, 10).await.unwrap().items.len(), 1);
});

on_every_backend!(items_are_added_whole_or_not_at_all, async |t| {
    let (theirs, own) = (specs(1).remove(0), spec(&read("user-1").with("idempotency_key", "k")));
    t.insert(&theirs).await;
    t.insert(&own).await;
    let mut items = specs(3);
    items.push(spec(&read("user-2").named(&theirs.id.to_string())));
    items.push(spec(&read("user-1").with("priority", 3).named(&own.id.to_string())));
    items.push(spec(&read("user-1").with("priority", 3).with("idempotency_key", "k")));
    items.push(spec(&read("user-1").with("priority", 4).named(&items[0].id.to_string())));
    let within = vec![(6, Conflict::Body)];
    let refused = not(t.store.add_batch(&batch(&ALL), &items).await.unwrap());
    assert_eq!(refused, NotAdded::Items(within), "what contradicts itself is told first");
    items.pop();
    let new_batch = batch(&ALL);
    let taken = vec![(3, Conflict::Owner), (4, Conflict::Body), (5, Conflict::Key { first: Some(own.id) })];
    assert_eq!(not(t.store.add_batch(&new_batch, &items).await.unwrap()), NotAdded::Items(taken.clone()));
    assert!(t.store.batch(&ALL, new_batch.id, true).await.unwrap().is_none());
    let opened = open(&ALL);
    new(t.store.add_batch(&opened, &[]).await.unwrap());
    let refused = not(t.store.add_items(&ALL, opened.id, 0, &items).await.unwrap());
    assert_eq!(refused, NotAdded::Items(taken));
    assert_eq!(t.batch(opened.id).await.items, 0);
    for item in &items[..3] {
        assert!(t.store.job(&ALL, item.id).await.unwrap().is_none());
    }
});

on_every_backend!(what_is_sent_again_changes_nothing, and behind the lock, async |t| {
    let items = specs(1_200);
    let new_batch = batch(&ALL);
    let all = join_all((0..4).map(|n| {
        let store = if n % 2 == 0 { &t.store } else { &t.other };
        store.add_batch(&new_batch, &items)
    }))
    .await;
    let is_new = |added: &Added| matches!(added, Added::New(..));
    let added: Vec<Added> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(added.iter().filter(|added| is_new(added)).count(), 1, "{added:?}");
    assert!(added.iter().all(|added| is_new(added) || matches!(added, Added::Known(_))), "{added:?}");
    assert_eq!(t.batch(new_batch.id).await.items, 1_200);
    let other = NewBatch { digest: Digest([8; 16]), ..new_batch.clone() };
    assert_eq!(not(t.store.add_batch(&other, &items).await.unwrap()), NotAdded::Taken);
    assert_eq!(not(t.store.add_batch(&new_batch, &items[1..]).await.unwrap()), NotAdded::Taken);
    let foreign = NewBatch { principal: Principal::Owner("user:user-1".parse().unwrap()), ..new_batch };
    assert_eq!(not(t.store.add_batch(&foreign, &items).await.unwrap()), NotAdded::Taken);

    let opened = open(&ALL);
    new(t.store.add_batch(&opened, &items).await.unwrap());
    let more = specs(1_100);
    let add = async |from: u64, items: &[Arc<JobSpec>]| {
        t.store.add_items(&ALL, opened.id, from, items).await.unwrap()
    };
    assert_eq!(not(add(1_201, &more).await), NotAdded::Gap { next: 1_200 });
    new(add(1_200, &more).await);
    assert!(matches!(add(1_200, &more).await, Added::Known(_)));
    assert!(matches!(add(1_200, &more[..1_000]).await, Added::Known(_)), "the same part");
    assert_eq!(not(add(1_200, &items[..1_000]).await), NotAdded::Taken);
    assert_eq!(not(add(1_300, &more[..100]).await), NotAdded::Taken);
    assert_eq!(t.batch(opened.id).await.items, 2_300);
    for _ in 0..2 {
        assert!(t.store.seal_batch(&ALL, opened.id).await.unwrap().unwrap().sealed_at.is_some());
    }
    assert_eq!(not(add(2_300, &specs(1)).await), NotAdded::Sealed);
    assert!(matches!(add(1_200, &more).await, Added::Known(_)), "an answer that was lost");
});

on_every_backend!(batches_that_meet_in_their_items_enqueue_each_job_once, async |t| {
    let items = specs(600);
    let batches: Vec<NewBatch> = (0..4).map(|_| batch(&ALL)).collect();
    let backwards: Vec<_> = items.iter().rev().cloned().collect();
    let adding = batches.iter().enumerate().map(|(n, batch)| {
        let (store, items) =
            if n % 2 == 0 { (&t.store, items.as_slice()) } else { (&t.other, backwards.as_slice()) };
        store.add_batch(batch, items)
    });
    for added in join_all(adding).await {
        new(added.unwrap());
    }
    assert_eq!(t.count("select count(*) from jobs").await, 600);
    for batch in &batches {
        assert_eq!(t.batch(batch.id).await.counts.available, 600);
    }
});

on_every_backend!(batches_that_meet_in_their_keys_enqueue_each_job_once, async |t| {
    // Each has IDs of its own, by whose order the keys of half of the batches are the other way round.
    let keyed = |key: usize| spec(&read("user-1").with("idempotency_key", format!("k-{key}")));
    let in_order = || (0..600).map(keyed).collect::<Vec<_>>();
    let backwards = || (0..600).rev().map(keyed).collect::<Vec<_>>();
    let items = [in_order(), backwards(), backwards(), in_order()];
    let batches = items.map(|items| (batch(&ALL), items));
    let adding = batches.iter().enumerate().map(|(n, (batch, items))| {
        let store = if n % 2 == 0 { &t.store } else { &t.other };
        store.add_batch(batch, items)
    });
    let mut jobs = HashSet::new();
    for added in join_all(adding).await {
        jobs.extend(new(added.unwrap()).1);
    }
    assert_eq!((jobs.len(), t.count("select count(*) from jobs").await), (600, 600));
    for (batch, _) in &batches {
        assert_eq!(t.batch(batch.id).await.counts.available, 600);
    }
});

on_every_backend!(a_batch_is_complete_when_all_has_ended_once_a_generation, async |t| {
    let items = specs(3);
    let new_batch = open(&ALL);
    new(t.store.add_batch(&new_batch, &items).await.unwrap());
    t.run_item(&items[0], false).await;
    t.run_item(&items[1], true).await;
    let taken = t.taken_now(new_batch.id).await;
    assert!(t.taken(new_batch.id).await.is_none(), "another process has it");
    let counted = t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap();
    let counts = Counts { available: 1, succeeded: 1, failed: 1, ..Counts::default() };
    assert_eq!((counted.counts, counted.open), (counts, 1));
    assert_eq!(t.batch(new_batch.id).await.counts, counts);
    t.run_item(&items[2], false).await;
    assert_eq!(t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap().open, 0);
    assert!(!t.store.complete_batch(&taken).await.unwrap(), "it takes more");
    t.store.seal_batch(&ALL, new_batch.id).await.unwrap();
    let taken = t.taken_now(new_batch.id).await;
    for _ in 0..2 {
        assert!(t.store.complete_batch(&taken).await.unwrap());
    }
    let complete = t.batch(new_batch.id).await;
    assert!(complete.completed_at.is_some());
    assert_eq!(t.store.settled_batches(&[new_batch.id]).await.unwrap(), [new_batch.id]);
    assert!(t.taken(new_batch.id).await.is_none(), "nothing is left to be done");

    // A job that is run again by itself does not open it.
    t.store.restart(&ALL, items[1].id, OPERATOR, FORCE).await.unwrap();
    assert_eq!(t.batch(new_batch.id).await.counts, complete.counts);
    t.run_item(&items[1], true).await;

    let of_another = t.store.retry_batch(&ALL, new_batch.id, OPERATOR, false, Some(2)).await.unwrap();
    assert!(matches!(of_another, BatchDecided::Unchanged(_)), "{of_another:?}");
    let begun = t.store.retry_batch(&ALL, new_batch.id, OPERATOR, false, Some(1)).await.unwrap();
    let BatchDecided::Begun(begun) = begun else { panic!("{begun:?}") };
    assert_eq!((begun.generation, begun.doing, begun.completed_at), (2, Some(Doing::Retry), None));
    assert_eq!(t.store.settled_batches(&[new_batch.id]).await.unwrap(), []);
    assert!(
        matches!(
            t.store.retry_batch(&ALL, new_batch.id, OPERATOR, false, None).await.unwrap(),
            BatchDecided::Unchanged(_)
        ),
        "once"
    );
    let taken = t.taken_now(new_batch.id).await;
    assert!(!t.store.complete_batch(&taken).await.unwrap(), "the failed ones are still to be run again");
    t.store.restart(&ALL, items[1].id, OPERATOR, FORCE).await.unwrap();
    t.store.advance_batch(&taken, None).await.unwrap();
    assert_eq!(t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap().open, 1);
    t.run_item(&items[1], false).await;
    assert_eq!(t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap().open, 0);
    assert!(t.store.complete_batch(&taken).await.unwrap());
    assert_eq!(t.batch(new_batch.id).await.counts.succeeded, 3);
});

on_every_backend!(an_empty_sealed_batch_is_complete, async |t| {
    let (added, _) = new(t.store.add_batch(&batch(&ALL), &[]).await.unwrap());
    assert!(added.completed_at.is_some());
    let follow_up = Some(read("user-1").to_string());
    let (added, _) = new(t.store.add_batch(&NewBatch { follow_up, ..batch(&ALL) }, &[]).await.unwrap());
    assert!(added.completed_at.is_none(), "a job follows");
    assert!(t.taken_now(added.id).await.follow_up.is_some());
    assert_eq!(added.follow_up(), Some(added.id.follow_up(1)));
});

on_every_backend!(what_is_called_off_takes_no_more_and_counts_what_is_held_as_ended, async |t| {
    let items = specs(2);
    let new_batch = open(&ALL);
    new(t.store.add_batch(&new_batch, &items).await.unwrap());
    let held = t.run(&items[0]).await;
    t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap().open, 1);
    for is_first in [true, false] {
        let decided = t.store.cancel_batch(&ALL, new_batch.id, OPERATOR).await.unwrap();
        assert_eq!(matches!(decided, BatchDecided::Begun(_)), is_first, "{decided:?}");
    }
    assert_eq!(not(t.store.add_items(&ALL, new_batch.id, 2, &items).await.unwrap()), NotAdded::Sealed);
    let taken = t.taken_now(new_batch.id).await;
    let (doing, orders) = taken.doing.clone().unwrap();
    assert_eq!((doing, orders.by.as_str(), orders.place), (Doing::Cancel, &*OPERATOR.by, None));
    t.store.cancel(&ALL, items[1].id, OPERATOR).await.unwrap();
    let place = t.batch(new_batch.id).await.place();
    t.store.advance_batch(&taken, Some(place)).await.unwrap();
    t.store.put_off_batch(&taken, Duration::ZERO).await.unwrap();
    let taken = t.taken_now(new_batch.id).await;
    assert_eq!(taken.doing.as_ref().unwrap().1.place, Some(place));
    t.store.advance_batch(&taken, None).await.unwrap();
    let counted = t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap();
    assert_eq!((counted.open, counted.counts.held, counted.counts.cancelled), (0, 1, 1));
    assert!(t.store.complete_batch(&taken).await.unwrap());
});

on_every_backend!(a_held_job_is_not_final_before_the_deadline_and_an_unknown_one_ends_with_it, async |t| {
    let items = specs(2);
    let deadline = Some(Timestamp::now() + SignedDuration::from_hours(1));
    let new_batch = NewBatch { deadline, ..batch(&ALL) };
    new(t.store.add_batch(&new_batch, &items).await.unwrap());
    t.claim(&park(&items[0], "github")).await;
    let run = t.run(&items[1]).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    let taken = t.taken_now(new_batch.id).await;
    assert!(!taken.is_past_deadline);
    let counted = t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap();
    assert_eq!((counted.open, counted.counts.held), (1, 2));
    assert!(!t.store.complete_batch(&taken).await.unwrap(), "a held job is not final");

    let past = if t.is_postgres() { "now()" } else { "0" };
    t.execute(&format!("update batches set deadline = {past}")).await;
    t.store.put_off_batch(&taken, Duration::ZERO).await.unwrap();
    assert!(t.taken_now(new_batch.id).await.is_past_deadline);
    assert!(!t.store.complete_batch(&taken).await.unwrap(), "it is called off first");
    t.store.cancel_batch(&ALL, new_batch.id, OPERATOR).await.unwrap();
    let taken = t.taken_now(new_batch.id).await;
    t.store.cancel(&ALL, items[0].id, OPERATOR).await.unwrap();
    t.store.advance_batch(&taken, None).await.unwrap();
    let counted = t.store.count_batch(new_batch.id, 100).await.unwrap().unwrap();
    assert_eq!((counted.open, counted.counts.held, counted.counts.cancelled), (0, 1, 1));
    assert!(t.store.complete_batch(&taken).await.unwrap());
    assert_eq!((t.state(items[0].id).await, t.state(items[1].id).await), (State::Cancelled, State::Held));
});

on_every_backend!(what_changes_while_a_batch_is_looked_at_is_not_put_off, async |t| {
    let new_batch = open(&ALL);
    new(t.store.add_batch(&new_batch, &specs(1)).await.unwrap());
    let taken = t.taken_now(new_batch.id).await;
    t.store.put_off_batch(&taken, Duration::from_secs(3600)).await.unwrap();
    assert!(t.taken(new_batch.id).await.is_none());
    new(t.store.add_items(&ALL, new_batch.id, 1, &specs(1)).await.unwrap());
    t.store.put_off_batch(&taken, Duration::from_secs(3600)).await.unwrap();
    t.taken_now(new_batch.id).await;
});

on_every_backend!(large_batches_are_counted_by_and_by_and_seen_as_a_whole, async |t| {
    let items = specs(3_000);
    let new_batch = batch(&ALL);
    new(t.store.add_batch(&new_batch, &items).await.unwrap());
    let running: Vec<_> = items.iter().take(10).map(claim).collect();
    t.store.claim(t.worker, &running).await.unwrap();
    let counts = Counts { available: 2_990, running: 10, ..Counts::default() };
    assert_eq!(t.batch(new_batch.id).await.counts, counts);
    for (look, available) in [(1, 990), (2, 1_990), (3, 2_990)] {
        let counted = t.store.count_batch(new_batch.id, 1).await.unwrap().unwrap();
        assert_eq!(counted.counts.available + counted.counts.running, available + 10, "look {look}");
    }
    assert_eq!(t.store.count_batch(new_batch.id, 1).await.unwrap().unwrap().counts, counts);
});

/// Jobs of one batch that are claimed and finished at the same time do not wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_claim_nor_a_finish_writes_or_locks_a_row_of_its_batch() {
    const OF_BATCHES: &str = "select sum(xmin::text::bigint + xmax::text::bigint)::bigint from batches";
    const OF_PARTS: &str = "select sum(xmin::text::bigint + xmax::text::bigint)::bigint from batch_parts";
    let t = TestStore::postgres().await;
    let (new_batch, items) = (batch(&ALL), specs(3));
    new(t.store.add_batch(&new_batch, &items).await.unwrap());
    let versions = async || (t.count(OF_BATCHES).await, t.count(OF_PARTS).await);
    let before = versions().await;
    t.run_item(&items[0], false).await;
    t.run_item(&items[1], true).await;
    let held = t.run(&items[2]).await;
    t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(versions().await, before);
    // A count does.
    t.store.count_batch(new_batch.id, 100).await.unwrap();
    let counted = versions().await;
    assert!(counted.0 != before.0 && counted.1 != before.1, "{before:?}, {counted:?}");
}

on_every_backend!(nobody_else_sees_a_batch, and behind the lock, async |t| {
    let [own, other]: [Principal; 2] =
        ["user:user-1", "org:user-1"].map(|owner| Principal::Owner(owner.parse().unwrap()));
    let new_batch = open(&own);
    new(t.store.add_batch(&new_batch, &specs(2)).await.unwrap());
    let operators = batch(&ALL);
    new(t.store.add_batch(&operators, &specs(1)).await.unwrap());
    let listed = async |who: &Principal| -> HashSet<BatchId> {
        t.store.batches(who, None, 10).await.unwrap().iter().map(|batch| batch.id).collect()
    };
    assert_eq!(listed(&ALL).await, [new_batch.id, operators.id].into());
    assert_eq!(listed(&own).await, [new_batch.id].into());
    assert_eq!(listed(&other).await, [].into());
    let (first, second) = (t.batch(new_batch.id).await, t.batch(operators.id).await);
    let older = t.store.batches(&ALL, Some(second.place()), 10).await.unwrap();
    assert_eq!(older.iter().map(|batch| batch.id).collect::<Vec<_>>(), [first.id]);
    for (who, foreign) in [(&other, new_batch.id), (&own, operators.id), (&own, BatchId::new())] {
        assert!(t.store.batch(who, foreign, true).await.unwrap().is_none());
        assert!(t.store.seal_batch(who, foreign).await.unwrap().is_none());
        assert_eq!(not(t.store.add_items(who, foreign, 0, &specs(1)).await.unwrap()), NotAdded::Unknown);
        assert_eq!(t.store.batch_items(who, foreign, 0, 10).await.unwrap(), []);
        for decided in [
            t.store.cancel_batch(who, foreign, OPERATOR).await.unwrap(),
            t.store.retry_batch(who, foreign, OPERATOR, true, None).await.unwrap(),
        ] {
            assert!(matches!(decided, BatchDecided::Unknown), "{decided:?}");
        }
        let filter = JobFilter { batch: Some(foreign), ..JobFilter::default() };
        let jobs = t.store.jobs(who, &filter, None, 10).await.unwrap();
        assert_eq!((jobs.items.len(), jobs.looked_at, jobs.next), (0, 0, None));
    }
    let unchanged = t.batch(new_batch.id).await;
    assert_eq!((unchanged.sealed_at, unchanged.items, unchanged.doing), (None, 2, None));
    let filter = JobFilter { batch: Some(new_batch.id), ..JobFilter::default() };
    assert_eq!(t.store.jobs(&own, &filter, None, 10).await.unwrap().items.len(), 2);
});

on_every_backend!(batches_are_removed_and_their_jobs_stay, async |t| {
    let (own, items) = (Principal::Owner("user:user-1".parse().unwrap()), specs(1));
    let [first, second] = [batch(&own), batch(&own)];
    new(t.store.add_batch(&first, &items).await.unwrap());
    t.run_item(&items[0], false).await;
    let taken = t.taken_now(first.id).await;
    t.store.count_batch(first.id, 10).await.unwrap();
    assert!(t.store.complete_batch(&taken).await.unwrap());
    new(t.store.add_batch(&second, &specs(1)).await.unwrap());
    assert_eq!(t.store.remove_batches(Duration::from_secs(3600), 10).await.unwrap(), 0, "it is new");
    until_older().await;
    assert_eq!(t.store.remove_batches(Duration::ZERO, 10).await.unwrap(), 1, "the other is not complete");
    assert!(t.store.batch(&ALL, first.id, true).await.unwrap().is_none());
    assert_eq!(t.view(items[0].id).await.state, State::Succeeded);
    assert_eq!(t.store.remove_batches_of(own.owner().unwrap()).await.unwrap(), 1);
    assert_eq!(t.count("select count(*) from batch_parts").await, 0);
});

/// The store's clock has microseconds.
async fn until_older() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

#[test]
fn the_rest_is_called_off_when_enough_of_enough_have_failed() {
    let stop = StopRule { failed_percent: 50, of_at_least: 10 };
    for (succeeded, failed, applies) in
        [(0, 9, false), (0, 10, true), (5, 5, true), (6, 5, false), (100, 99, false), (100, 100, true)]
    {
        let counts = Counts { succeeded, failed, held: 1_000, ..Counts::default() };
        assert_eq!(stop.applies(&counts), applies, "{succeeded} {failed}");
    }
    let _json: Value = json!(stop);
}
