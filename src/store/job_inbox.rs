//! Jobs that apps enqueue by the SQL function, in transactions of their own.

use std::fmt;

use async_trait::async_trait;

use super::Result;
use crate::job::JobId;

/// What the SQL function took and no job is made of yet. A store whose functions other programs cannot call has nothing.
#[async_trait]
pub trait JobInbox: fmt::Debug + Send + Sync {
    /// The first up to `limit` behind this ID, which stay there. Their envelopes together have up to
    /// [`MAX_BATCH_BYTES`](crate::bounds::MAX_BATCH_BYTES), unless the first alone has more.
    ///
    /// * What a transaction enqueued can be read when that has committed, and never otherwise.
    async fn inbox(&self, behind: i64, limit: usize) -> Result<Vec<InboxEntry>>;

    /// Forgets entries of which jobs were made, or that were kept as rejected.
    async fn clear_inbox(&self, ids: &[i64]) -> Result<()>;
}

/// A job as an app has enqueued it by SQL.
#[derive(Clone)]
pub struct InboxEntry {
    pub id: i64,
    /// What the function has returned.
    pub job: JobId,
    pub envelope: String,
    /// The role of the database that called it.
    pub caller: String,
}

/// What a job says is a customer's data, which must not reach a log by way of `{:?}`.
impl fmt::Debug for InboxEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxEntry").field("id", &self.id).field("job", &self.job).finish_non_exhaustive()
    }
}
