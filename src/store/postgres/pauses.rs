//! Queues that are paused.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    job::QueueName,
    store::{
        PausedQueue, Pauses, Result,
        pauses::{PAUSED, RESUME, paused, refuse_pause},
        read::readable,
        sql::statements,
    },
};

statements! { Postgres:
    paused_queues() = PAUSED;
    pause(queue: &str, by: &str, reason: &str) = "insert into paused_queues (queue, by, reason, since)
    values ({queue}, {by}, {reason}, now()) on conflict do nothing returning queue";
    resume(queue: &str) = RESUME;
}

#[async_trait]
impl Pauses for PostgresStore {
    async fn paused_queues(&self) -> Result<Vec<PausedQueue>> {
        Ok(readable(&self.other.fetch(sql::paused_queues()).await?, paused))
    }

    async fn pause_queue(&self, queue: &QueueName, by: &str, reason: &str) -> Result<bool> {
        refuse_pause(by, reason)?;
        Ok(self.other.fetch_first(sql::pause(queue.as_str(), by, reason)).await?.is_some())
    }

    async fn resume_queue(&self, queue: &QueueName) -> Result<bool> {
        Ok(self.other.fetch_first(sql::resume(queue.as_str())).await?.is_some())
    }
}
