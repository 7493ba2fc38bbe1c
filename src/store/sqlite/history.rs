//! The history of rare decisions about a job.

use async_trait::async_trait;
use sqlx::{
    Row,
    sqlite::{SqliteConnection, SqliteRow},
};

use super::{SqliteStore, read_time, refuse_nul};
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
        select * from job_history where job_id = ?1 order by seq desc limit +?2)
    order by seq";

const NOTE: &str = "insert into job_history (job_id, at, kind, by, attempt, what, detail)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

#[async_trait]
impl History for SqliteStore {
    async fn history(&self, id: JobId) -> Result<Vec<HistoryEntry>, StoreError> {
        let query = sqlx::query(HISTORY).bind(id.0).bind(to_limit(MAX_HISTORY));
        let read = |row: &SqliteRow| {
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
        query.fetch_all(&self.reader).await?.iter().map(read).collect()
    }
}

/// Adds an entry to the history in the transaction of what it records.
pub(super) async fn note(db: &mut SqliteConnection, now: i64, note: &Note<'_>) -> Result<(), StoreError> {
    refuse_nul([Some(note.by), note.fact.detail()])?;
    sqlx::query(NOTE)
        .bind(note.job.0)
        .bind(now)
        .bind(note.fact.kind().as_str())
        .bind(note.by)
        .bind(note.attempt.map(to_i32))
        .bind(note.fact.word())
        .bind(note.fact.detail())
        .execute(db)
        .await?;
    Ok(())
}
