//! The history of rare decisions about a job.

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    bounds::MAX_HISTORY,
    job::{JobId, Principal},
    store::{
        History, HistoryEntry, Result,
        columns::{Entry, PrincipalColumns},
        convert::to_limit,
        history::{HISTORY, Note},
        read::readable,
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    history(principal: One<'_, PrincipalColumns>, job_id: Uuid, limit: i64) = HISTORY;

    note(entry: One<'_, Entry>, now: i64) = "insert into job_history ({entry}, at) values ({values entry}, {now})";
}

#[async_trait]
impl History for SqliteStore {
    async fn history(&self, principal: &Principal, id: JobId) -> Result<Vec<HistoryEntry>> {
        let found = self.reader.fetch(sql::history(One(principal), id.0, to_limit(MAX_HISTORY))).await?;
        Ok(readable(&found, rows::entry))
    }
}

/// Adds an entry to the history in the transaction of what it records.
pub(super) async fn note(db: &mut SqliteConnection, now: i64, note: &Note<'_>) -> Result<()> {
    sql::note(One(note), now).execute(db).await?;
    Ok(())
}
