//! The SQL function is one of PostgreSQL, and here there is nothing to be found.

use async_trait::async_trait;

use super::SqliteStore;
use crate::store::{InboxEntry, JobInbox, Result};

#[async_trait]
impl JobInbox for SqliteStore {
    async fn inbox(&self, _behind: i64, _limit: usize) -> Result<Vec<InboxEntry>> {
        Ok(Vec::new())
    }

    async fn clear_inbox(&self, _ids: &[i64]) -> Result<()> {
        Ok(())
    }
}
