//! The history of rare decisions about a job.

use async_trait::async_trait;
use sqlx::{PgConnection, Row};

use super::{PostgresStore, batch::column, fetch, read_time};
use crate::{
    bounds::MAX_HISTORY,
    job::JobId,
    store::{
        History, HistoryEntry, StoreError,
        convert::{to_i32, to_limit},
        history::{HistoryRow, Note},
    },
};

const HISTORY: &str = "select at, kind, by, attempt, what, detail from (
        select * from job_history where job_id = $1 order by seq desc limit $2) newest
    order by seq";

const NOTE: &str = "insert into job_history (job_id, kind, by, attempt, what, detail)
    select * from unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[])";

/// A statement that lets the held jobs of `page` go and notes who decided so, in `$by`. The page names them as
/// `page_id`, has their accounts as `page_account`, and holds their rows.
macro_rules! release {
    (page: [$($page:tt)*], to: [$($to:tt)*], how: $how:literal, by: $by:literal) => {
        concat!(
            "with page as (",
            $($page)*,
            "),
            released as (
                update jobs set ",
            $($to)*,
            " from page where id = page_id returning id, state, account, page_account),
            noted as (
                insert into job_history (job_id, kind, by, what, detail)
                select id, 'released', ",
            $by,
            "::text, '",
            $how,
            "', null from released
                union all
                select id, 'account_forgotten', ",
            $by,
            "::text, null, left(page_account, 2000) from released where account is distinct from page_account)
            select state from released"
        )
    };
}
pub(super) use release;

#[async_trait]
impl History for PostgresStore {
    async fn history(&self, id: JobId) -> Result<Vec<HistoryEntry>, StoreError> {
        let query = sqlx::query(HISTORY).bind(id.0).bind(to_limit(MAX_HISTORY));
        let read = |row: &sqlx::postgres::PgRow| {
            HistoryRow {
                at: read_time(row, "at")?.unwrap_or_default(),
                kind: row.try_get("kind")?,
                by: row.try_get("by")?,
                attempt: row.try_get("attempt")?,
                what: row.try_get("what")?,
                detail: row.try_get("detail")?,
            }
            .entry()
        };
        fetch(&self.other, query).await?.iter().map(read).collect()
    }
}

/// Adds entries to the history in the transaction of what they record.
pub(super) async fn note(db: &mut PgConnection, notes: &[Note<'_>]) -> Result<(), StoreError> {
    if notes.is_empty() {
        return Ok(());
    }
    sqlx::query(NOTE)
        .bind(column(notes, |note| note.job.0))
        .bind(column(notes, |note| note.fact.kind().as_str()))
        .bind(column(notes, |note| note.by))
        .bind(column(notes, |note| note.attempt.map(to_i32)))
        .bind(column(notes, |note| note.fact.word()))
        .bind(column(notes, |note| note.fact.detail()))
        .execute(db)
        .await?;
    Ok(())
}
