//! The history of rare decisions about a job.

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::PostgresStore;
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
        sql::{One, Rows, statements},
    },
};

statements! { Postgres:
    history(principal: One<'_, PrincipalColumns>, job_id: Uuid, limit: i64) = HISTORY;

    note(entries: Rows<'_, Entry>) = "insert into job_history ({entry}) select {i.entry} from {rows}";
}

#[async_trait]
impl History for PostgresStore {
    async fn history(&self, principal: &Principal, id: JobId) -> Result<Vec<HistoryEntry>> {
        let found = self.other.fetch(sql::history(One(principal), id.0, to_limit(MAX_HISTORY))).await?;
        Ok(readable(&found, rows::entry))
    }
}

/// Adds entries to the history in the transaction of what they record.
pub(super) async fn note(db: &mut PgConnection, notes: &[Note<'_>]) -> Result<()> {
    if !notes.is_empty() {
        let entries: Vec<&Note<'_>> = notes.iter().collect();
        sql::note(Rows(&entries)).execute(db).await?;
    }
    Ok(())
}
