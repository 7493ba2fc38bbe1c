//! Jobs that did not come through a queue, and what stands in the way of a job.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::{
    PostgresStore,
    batch::{
        MAX_ROUNDS, Specs, column, jobs_kept_changing, spec_arrays, spec_columns, spec_values, take_complete,
        unanswered,
    },
    fetch, read_time,
};
use crate::{
    job::JobSpec,
    store::{
        Inserted, Jobs, StoreError,
        convert::{micros, parse_column},
        replay::Known,
        rows::read_known,
    },
};

const INSERT: &str = concat!(
    "insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, published) select ",
    spec_values!(),
    ", case when i.run_at > now() then 'scheduled' else 'available' end, now(),
        case when i.run_at > now() then i.run_at else now() + $24::bigint * interval '1 microsecond' end,
        case when i.run_at > now() or $24 = 0 then 0 else 1 end
    from unnest(",
    spec_arrays!(),
    ") as i (",
    spec_columns!(),
    ") on conflict do nothing
    returning id, state"
);

/// What stands in the way, by ID, or by idempotency key where the ID is new.
const KNOWN: &str = "with i as (
        select * from unnest($1::integer[], $2::uuid[], $3::text[], $4::text[], $5::text[])
            as i (place, id, owner_kind, owner_id, idempotency_key)),
    found as (
        select i.place, false as by_key, j.id from i join jobs j on j.id = i.id
        union all
        select i.place, true, j.id from i join jobs j on j.owner_kind = i.owner_kind and j.owner_id = i.owner_id
            and j.idempotency_key = i.idempotency_key
        where not exists (select 1 from jobs k where k.id = i.id))
    select f.place, f.by_key, j.id, j.owner_kind, j.owner_id, j.digest, j.state, j.error_kind, j.worker_id,
        j.request_id, j.settled_by, j.fence, j.attempt, j.spent, j.toolkit, j.toolkit_version, j.pinned_by, j.account,
        j.frozen_effect, j.created_at, (extract(epoch from now() - j.created_at) * 1000000)::bigint as age
    from found f join jobs j on j.id = f.id";

#[async_trait]
impl Jobs for PostgresStore {
    async fn insert(
        &self,
        batch: &[Arc<JobSpec>],
        unclaimed_after: Duration,
    ) -> Result<Vec<Inserted>, StoreError> {
        let mut answers: Vec<Option<Inserted>> = vec![None; batch.len()];
        for _ in 0..MAX_ROUNDS {
            let open = first_of_each(answers.iter().map(Option::is_none), batch);
            let specs = Specs::new(open.iter().map(|place| &*batch[*place]));
            let inserted =
                fetch(&self.hot, specs.bind(sqlx::query(INSERT)).bind(micros(unclaimed_after))).await?;
            let places: HashMap<Uuid, usize> =
                open.iter().map(|place| (batch[*place].id.0, *place)).collect();
            for row in &inserted {
                let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
                if let Some(place) = places.get(&id) {
                    answers[*place] = Some(Inserted::New { state: parse_column("state", &state)? });
                }
            }
            let left = unanswered(&answers);
            for (place, known) in self.known(left.iter().map(|place| (*place, &*batch[*place]))).await? {
                answers[place] = Some(known.inserted(&batch[place]));
            }
            if let Some(answers) = take_complete(&mut answers) {
                return Ok(answers);
            }
        }
        Err(jobs_kept_changing())
    }
}

impl PostgresStore {
    /// What stands in the way of the given specs, by their place.
    pub(super) async fn known<'a>(
        &self,
        specs: impl Iterator<Item = (usize, &'a JobSpec)> + Send,
    ) -> Result<HashMap<usize, Known>, StoreError> {
        let specs: Vec<(usize, &JobSpec)> = specs.collect();
        if specs.is_empty() {
            return Ok(HashMap::new());
        }
        let query = sqlx::query(KNOWN)
            .bind(column(&specs, |(place, _)| i32::try_from(*place).unwrap_or(i32::MAX)))
            .bind(column(&specs, |(_, spec)| spec.id.0))
            .bind(column(&specs, |(_, spec)| spec.owner.kind().as_str()))
            .bind(column(&specs, |(_, spec)| spec.owner.id()))
            .bind(column(&specs, |(_, spec)| spec.idempotency_key.as_deref()));
        let mut found = HashMap::new();
        for row in &fetch(&self.hot, query).await? {
            let place: i32 = row.try_get("place")?;
            let place = usize::try_from(place).map_err(|_| StoreError::corrupt("place"))?;
            found.insert(place, read_known!(row, read_time, row.try_get("by_key")?, row.try_get("age")?));
        }
        Ok(found)
    }
}

/// The first open place of every ID, in the order of the IDs, so that concurrent batches wait for
/// each other in one direction.
fn first_of_each(open: impl Iterator<Item = bool>, batch: &[Arc<JobSpec>]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(batch.len());
    let mut places: Vec<usize> = open
        .enumerate()
        .filter(|(place, open)| *open && seen.insert(batch[*place].id))
        .map(|(place, _)| place)
        .collect();
    places.sort_unstable_by_key(|place| batch[*place].id);
    places
}
