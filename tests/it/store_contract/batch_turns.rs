//! Batches of several owners, none of whom waits for all that another has.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    job::{BatchId, Principal},
    store::{Added, BatchDecided, NewBatch, NotAdded},
};
use errand_testbed::factory::read;

use super::{OPERATOR, TestStore, batches::open, on_every_backend};
use crate::jobs::{Properties, decode};

const TOGETHER: usize = 4;
const LEASE: Duration = Duration::from_secs(60);

fn owner(owner: &str) -> Principal {
    Principal::Owner(owner.parse().unwrap())
}

async fn add(t: &TestStore, batch: &NewBatch) -> BatchId {
    assert!(matches!(t.store.add_batch(batch, &[]).await.unwrap(), Added::New(..)));
    batch.id
}

async fn take(t: &TestStore) -> Vec<BatchId> {
    t.store.take_batches(TOGETHER, LEASE).await.unwrap().iter().map(|taken| taken.batch.id).collect()
}

on_every_backend!(owners_take_turns_however_many_batches_each_has, async |t| {
    let (many, few) = (owner("org:many"), owner("user:many"));
    let mut of_many = Vec::new();
    for _ in 0..10 {
        of_many.push(add(&t, &open(&many)).await);
    }
    let of_few = [add(&t, &open(&few)).await, add(&t, &open(&few)).await];
    let of_operator = add(&t, &open(&Principal::Operator)).await;

    let first = take(&t).await;
    assert_eq!(first.len(), TOGETHER);
    assert!(
        first.contains(&of_many[0]) && first.contains(&of_few[0]) && first.contains(&of_operator),
        "{first:?}"
    );

    let mut all = first;
    while let others @ [_, ..] = take(&t).await.as_slice() {
        all.extend(others);
    }
    assert_eq!(all.len(), of_many.len() + of_few.len() + 1, "each is taken once");
    let all: HashSet<BatchId> = all.into_iter().collect();
    assert_eq!(all, of_many.into_iter().chain(of_few).chain([of_operator]).collect());
});

on_every_backend!(an_owner_has_no_more_open_batches_than_are_allowed, async |t| {
    let own = owner("org:many");
    let ended = open(&own);
    let job = decode(&read("user-1").to_string(), Properties::default()).unwrap();
    assert!(matches!(t.store.add_batch(&ended, &[Arc::new(job)]).await.unwrap(), Added::New(..)));
    t.execute(
        "update jobs set state = 'failed', due_at = null, finished_at = created_at, error_kind = 'tool_failed',
            error_message = 'no'",
    )
    .await;
    t.execute(
        "update batches set failed = 1, sealed_at = created_at, completed_at = created_at, look_at = null",
    )
    .await;
    let first = open(&own);
    add(&t, &first).await;
    let id = if t.is_postgres() { "gen_random_uuid()" } else { "randomblob(16)" };
    t.execute(&format!(
        "insert into batches (id, digest, owner_kind, owner_id, created_at, changed_at)
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 998)
        select {id}, digest, owner_kind, owner_id, created_at, changed_at from batches, n
        where batches.items = 0"
    ))
    .await;

    let last = open(&own);
    add(&t, &last).await;
    let another = open(&own);
    let refused = t.store.add_batch(&another, &[]).await.unwrap();
    assert!(matches!(refused, Added::Not(NotAdded::TooMany)), "{refused:?}");
    assert!(t.store.batch(&own, another.id, false).await.unwrap().is_none());
    let retried = t.store.retry_batch(&own, ended.id, OPERATOR, false, None).await.unwrap();
    assert!(matches!(retried, BatchDecided::Unchanged(_)), "it would be one more: {retried:?}");
    assert!(matches!(t.store.add_batch(&last, &[]).await.unwrap(), Added::Known(_)), "what is there is told");

    // A user of the same ID is another owner, and the operator's are not counted.
    add(&t, &open(&owner("user:many"))).await;
    add(&t, &open(&Principal::Operator)).await;

    // One that is complete makes room for one that is made or run again.
    let freed = t.store.seal_batch(&own, first.id).await.unwrap().unwrap().id;
    let taken = t.store.take_batches(10, LEASE).await.unwrap();
    let freed = taken.iter().find(|taken| taken.batch.id == freed).unwrap();
    t.store.count_batch(first.id, 100).await.unwrap();
    assert!(t.store.complete_batch(freed).await.unwrap());
    let retried = t.store.retry_batch(&own, ended.id, OPERATOR, false, None).await.unwrap();
    assert!(matches!(retried, BatchDecided::Begun(_)), "{retried:?}");
    assert!(matches!(t.store.add_batch(&another, &[]).await.unwrap(), Added::Not(NotAdded::TooMany)));
});
