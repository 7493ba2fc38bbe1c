//! What follows on the claims and finishes of some batches, in the same transaction. Most have nothing of it, and are single
//! statements that pay for none.

use std::collections::HashMap;

use sqlx::{Postgres, postgres::PgRow};
use uuid::Uuid;

use super::{PostgresStore, answers::owe_held, connections::note_awaited, history::note};
use crate::{
    job::State,
    store::{
        Result,
        history::Note,
        read::StoreRow as _,
        sql::{Bound, statements},
    },
};

statements! { Postgres:
    /// The record of a snooze takes the place of that before if this was one for the same cause.
    fold_snoozes(jobs: Vec<Uuid>) = "with same as (
        select n.job_id, n.number, a.times, a.started_at
        from jobs j join attempts n on n.job_id = j.id and n.number = j.attempt
            join attempts a on a.job_id = j.id and a.number = j.attempt - 1
        where j.id = any({jobs}) and a.outcome = n.outcome and a.error_kind is not distinct from n.error_kind and {is_snooze}),
    replaced as (delete from attempts a using same where a.job_id = same.job_id and a.number = same.number - 1)
    update attempts a set times = same.times + a.times, started_at = same.started_at
    from same where a.job_id = same.job_id and a.number = same.number";
}

#[derive(Default)]
pub(super) struct FollowUp {
    /// Jobs that may end up waiting for a connection.
    pub(super) waiting: Vec<Uuid>,
    /// Jobs of which the last attempt may only have postponed them.
    pub(super) snoozed: Vec<Uuid>,
    /// Entries of the history, each with the state of its job if it happens. Every job that is held has one.
    pub(super) notes: Vec<(State, Note<'static>)>,
}

impl FollowUp {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.snoozed.is_empty() && self.notes.is_empty()
    }
}

impl PostgresStore {
    /// Executes a statement that returns `id` and `state` of the jobs that it changes, and what follows on that.
    pub(super) async fn fetch_and_follow_up(
        &self,
        query: Bound<Postgres>,
        follow_up: FollowUp,
    ) -> Result<Vec<PgRow>> {
        if follow_up.is_empty() {
            return self.hot.fetch(query).await;
        }
        let FollowUp { waiting, mut snoozed, notes } = follow_up;
        let work = self.hot.transaction(move |db| {
            Box::pin(async move {
                let rows = query.fetch_all(&mut *db).await?;
                let mut changed: HashMap<Uuid, State> = HashMap::with_capacity(rows.len());
                for row in &rows {
                    changed.insert(row.read("id")?, row.parse("state")?);
                }
                let happened = |(state, note): (State, Note<'static>)| {
                    (changed.get(&note.job.0) == Some(&state)).then_some(note)
                };
                let notes: Vec<_> = notes.into_iter().filter_map(happened).collect();
                note(db, &notes).await?;
                let held = changed.iter().filter(|(_, state)| **state == State::Held);
                owe_held(db, held.map(|(id, _)| *id).collect()).await?;
                note_awaited(db, waiting).await?;
                // One that was called off meanwhile is not postponed.
                snoozed.retain(|id| changed.get(id) == Some(&State::Retryable));
                if !snoozed.is_empty() {
                    sql::fold_snoozes(snoozed).execute(db).await?;
                }
                Ok(rows)
            })
        });
        work.await
    }
}
