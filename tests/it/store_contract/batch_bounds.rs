//! How many items a batch takes: with one request, and in all.

use errand::{
    bounds::{MAX_BATCH_ITEMS, MAX_BATCH_PARTS, MAX_CHUNK_ITEMS},
    job::{BatchId, JobId, Principal},
    store::{Added, Counts, NotAdded},
};

use super::{
    TestStore,
    batches::{batch, ids, new, not, open, specs},
    on_every_backend,
};

const ALL: Principal = Principal::Operator;

on_every_backend!(a_batch_takes_ten_thousand_items_at_once_and_counts_each, async |t| {
    let (new_batch, items) = (batch(&ALL), specs(MAX_CHUNK_ITEMS));
    let (added, jobs) = new(t.store.add_batch(&new_batch, &items).await.unwrap());
    assert_eq!(added.items, 10_000);
    assert!(jobs == ids(&items), "each item is the job of its place");
    let counts = Counts { available: 10_000, ..Counts::default() };
    assert_eq!(t.batch(new_batch.id).await.counts, counts);
    let counted = t.store.count_batch(new_batch.id, MAX_CHUNK_ITEMS).await.unwrap().unwrap();
    assert_eq!((counted.counts, counted.open), (counts, 10));
    let last = t.store.batch_items(&ALL, new_batch.id, 9_999, 10).await.unwrap();
    assert_eq!(
        last.iter().map(|item| (item.index, item.job)).collect::<Vec<_>>(),
        [(9_999, items[9_999].id)]
    );
    assert!(matches!(t.store.add_batch(&new_batch, &items).await.unwrap(), Added::Known(_)));
    assert_eq!(t.count("select count(*) from jobs").await, 10_000);
});

on_every_backend!(a_batch_has_a_million_items_and_ten_thousand_parts_at_most, async |t| {
    let opened = async || new(t.store.add_batch(&open(&ALL), &specs(1)).await.unwrap()).0.id;
    let add = async |id: BatchId, from: u64, items: usize| {
        t.store.add_items(&ALL, id, from, &specs(items)).await.unwrap()
    };

    let (large, items) = (opened().await, MAX_BATCH_ITEMS - 1);
    t.execute(&format!("update batches set items = {items}")).await;
    assert_eq!(not(add(large, items, 2).await), NotAdded::Full);
    assert_eq!(new(add(large, items, 1).await).0.items, MAX_BATCH_ITEMS);
    assert_eq!(not(add(large, MAX_BATCH_ITEMS, 1).await), NotAdded::Full);

    // Each request makes a part at least, so that small ones fill a batch, too.
    let (small, parts) = (opened().await, MAX_BATCH_PARTS - 1);
    let (id, last) = (t.literal(JobId(small.0)), parts - 1);
    let rows = if t.is_postgres() {
        format!(
            "select {id}, n, 1, '\\x00112233445566778899aabbccddeeff', '{{}}', now()
             from generate_series(1, {last}) as n"
        )
    } else {
        format!(
            "with recursive s (n) as (select 1 union all select n + 1 from s where n < {last})
             select {id}, n, 1, x'00112233445566778899aabbccddeeff', '[]', 0 from s"
        )
    };
    let columns = "batch_id, first, items, digest, job_ids, looked_at";
    t.execute(&format!("insert into batch_parts ({columns}) {rows}")).await;
    t.execute(&format!("update batches set items = {parts} where id = {id}")).await;
    assert_eq!(not(add(small, parts, 1_001).await), NotAdded::Full, "a part has a thousand items");
    assert_eq!(new(add(small, parts, 1).await).0.items, MAX_BATCH_PARTS);
    assert_eq!(not(add(small, MAX_BATCH_PARTS, 1).await), NotAdded::Full);
    assert_eq!(t.count("select count(*) from jobs").await, 4, "nothing of what was refused is there");
});
