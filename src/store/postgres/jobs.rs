//! Jobs that did not come through a queue, and what stands in the way of a job.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{
    PostgresStore,
    batch::{MAX_ROUNDS, jobs_kept_changing, place_among_new, take_complete, unanswered},
};
use crate::{
    job::{JobId, JobSpec},
    store::{
        Beginning, Inserted, Jobs, Result,
        columns::{Name, Spec},
        convert::micros,
        read::StoreRow as _,
        replay::FoundJob,
        rows,
        sql::{Rows, statements},
    },
};

statements! { Postgres:
    insert(specs: Rows<'_, Spec>, unclaimed_after: i64) = "insert into jobs ({spec}, state, created_at, due_at,
        first_due_at, published)
    select {i.spec}, case when i.run_at > now() then 'scheduled' else 'available' end, now(),
        case when i.run_at > now() then i.run_at else now() + {unclaimed_after}::bigint * interval '1 microsecond' end,
        greatest(now(), i.run_at),
        case when i.run_at > now() or {unclaimed_after} = 0 then 0 else 1 end
    from {rows} on conflict do nothing
    returning id, state, created_at, due_at, first_due_at, published";

    /// The others are locked here until the statement ends. The updates, which are of no row, wait for locks of a table
    /// that let rows be locked and not written, such as that of an index which is built.
    locked(ids: Vec<Uuid>) = "with writable as (update jobs set state = state where false),
    with_attempts as (update attempts set number = number where false),
    with_claims as (update claims set worker_id = worker_id where false),
    free as materialized (
        select id from jobs where id = any({ids}) for no key update skip locked)
    select id from jobs where id = any({ids}) and id not in (select id from free)";

    /// What stands in the way, by ID, or by idempotency key where the ID is new.
    find(names: Rows<'_, Name>) = "with i as (select * from {rows}),
    found as (
        select i.place, false as by_key, j.id from i join jobs j on j.id = i.id
        union all
        select i.place, true, j.id from i join jobs j on j.owner_kind = i.owner_kind and j.owner_id = i.owner_id
            and j.idempotency_key = i.idempotency_key
        where not exists (select 1 from jobs k where k.id = i.id))
    select f.place, f.by_key, j.id, j.owner_kind, j.owner_id, j.digest, j.asked_digest, j.state, j.error_kind, j.worker_id,
        j.request_id, j.ended_by, j.reply_to, j.correlation_id, j.message_id,
        {receipt of j}
    from found f join jobs j on j.id = f.id";
}

#[async_trait]
impl Jobs for PostgresStore {
    async fn insert(&self, batch: &[Arc<JobSpec>], unclaimed_after: Duration) -> Result<Vec<Inserted>> {
        let mut answers: Vec<Option<Inserted>> = vec![None; batch.len()];
        for _ in 0..MAX_ROUNDS {
            let open = first_of_each(answers.iter().map(Option::is_none), batch);
            let specs: Vec<&JobSpec> = open.iter().map(|place| &*batch[*place]).collect();
            let inserted = self.hot.fetch(sql::insert(Rows(&specs), micros(unclaimed_after))).await?;
            let places: HashMap<Uuid, usize> =
                open.iter().map(|place| (batch[*place].id.0, *place)).collect();
            for row in &inserted {
                if let Some(place) = places.get(&row.read("id")?) {
                    answers[*place] = Some(Inserted::New(beginning(row)?));
                }
            }
            let left = unanswered(&answers);
            for (place, found) in self.find(left.iter().map(|place| (*place, &*batch[*place]))).await? {
                answers[place] = Some(found.inserted(&batch[place]));
            }
            if let Some(answers) = take_complete(&mut answers) {
                return Ok(answers);
            }
        }
        Err(jobs_kept_changing())
    }

    async fn known(&self, spec: &JobSpec) -> Result<Option<Inserted>> {
        let found = self.find(std::iter::once((0, spec))).await?;
        Ok(found.get(&0).map(|found| found.inserted(spec)))
    }

    async fn locked(&self, jobs: &[JobId]) -> Result<HashSet<JobId>> {
        let ids = jobs.iter().map(|id| id.0).collect();
        let locked = self.hot.fetch(sql::locked(ids)).await?;
        locked.iter().map(|row| Ok(JobId(row.read("id")?))).collect()
    }
}

impl PostgresStore {
    /// What stands in the way of the given specs, by their place.
    pub(super) async fn find<'a>(
        &self,
        specs: impl Iterator<Item = (usize, &'a JobSpec)> + Send,
    ) -> Result<HashMap<usize, FoundJob>> {
        let names: Vec<(usize, &JobSpec)> = specs.collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self.hot.fetch(sql::find(Rows(&names))).await?;
        rows.iter()
            .map(|row| Ok((row.count("place")? as usize, rows::found(row, row.read("by_key")?)?)))
            .collect()
    }
}

fn beginning(row: &PgRow) -> Result<Beginning> {
    Ok(Beginning {
        state: row.parse("state")?,
        created_at: row.time("created_at")?,
        due_at: row.time("due_at")?,
        first_due_at: row.time("first_due_at")?,
        publications: row.count("published")?,
    })
}

/// The first open place of every ID, in the order in which they are inserted.
fn first_of_each(open: impl Iterator<Item = bool>, batch: &[Arc<JobSpec>]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(batch.len());
    let mut places: Vec<usize> = open
        .enumerate()
        .filter(|(place, open)| *open && seen.insert(batch[*place].id))
        .map(|(place, _)| place)
        .collect();
    places.sort_unstable_by(|one, other| place_among_new(&batch[*one]).cmp(&place_among_new(&batch[*other])));
    places
}
