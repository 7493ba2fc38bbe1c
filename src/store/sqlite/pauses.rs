//! Queues that are paused.

use async_trait::async_trait;

use super::SqliteStore;
use crate::{
    job::QueueName,
    store::{
        PausedQueue, Pauses, Result,
        pauses::{PAUSED, RESUME, paused, refuse_pause},
        read::readable,
        sql::statements,
    },
};

statements! { Sqlite:
    paused_queues() = PAUSED;
    pause(queue: &str, by: &str, reason: &str, now: i64) = "insert into paused_queues (queue, by, reason, since)
    values ({queue}, {by}, {reason}, {now}) on conflict do nothing";
    resume(queue: &str) = RESUME;
}

#[async_trait]
impl Pauses for SqliteStore {
    async fn paused_queues(&self) -> Result<Vec<PausedQueue>> {
        Ok(readable(&self.reader.fetch(sql::paused_queues()).await?, paused))
    }

    async fn pause_queue(&self, queue: &QueueName, by: &str, reason: &str) -> Result<bool> {
        refuse_pause(by, reason)?;
        let (queue, by, reason) = (queue.clone(), by.to_owned(), reason.to_owned());
        Ok(self.write_one(move |now| sql::pause(queue.as_str(), &by, &reason, now)).await? > 0)
    }

    async fn resume_queue(&self, queue: &QueueName) -> Result<bool> {
        let query = sql::resume(queue.as_str());
        Ok(self.write_one(|_| query).await? > 0)
    }
}
