//! Queues that are paused.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    job::{Principal, QueueName},
    store::{
        ChangeKind, Decider, PausedQueue, Pauses, Result,
        changes::NewChange,
        columns::ChangeColumns,
        history::refuse_decider,
        pauses::{PAUSED, paused, refuse_pause},
        read::readable,
        sql::{One, statements},
    },
};

statements! { Postgres:
    paused_queues() = PAUSED;
    pause(change: One<'_, ChangeColumns>, queue: &str, reason: &str) = "with paused as (
        insert into paused_queues (queue, by, reason, since) values ({queue}, {decider}, {reason}, now())
        on conflict do nothing returning *),
    logged as ({log}, null, null, queue, null, jsonb_build_object('reason', reason)::text from paused)
    select queue from paused";
    resume(change: One<'_, ChangeColumns>, queue: &str) = "with resumed as (
        delete from paused_queues where queue = {queue} returning *),
    logged as ({log}, null, null, queue, jsonb_build_object('reason', reason)::text, null from resumed)
    select queue from resumed";
}

#[async_trait]
impl Pauses for PostgresStore {
    async fn paused_queues(&self) -> Result<Vec<PausedQueue>> {
        Ok(readable(&self.other.fetch(sql::paused_queues()).await?, paused))
    }

    async fn pause_queue(&self, queue: &QueueName, by: &Decider, reason: &str) -> Result<bool> {
        refuse_pause(by, reason)?;
        let change = NewChange::new(ChangeKind::QueuePaused, &Principal::Operator, by);
        let query = sql::pause(One(&change), queue.as_str(), reason);
        Ok(self.other.fetch_first(query).await?.is_some())
    }

    async fn resume_queue(&self, queue: &QueueName, by: &Decider) -> Result<bool> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::QueueResumed, &Principal::Operator, by);
        Ok(self.other.fetch_first(sql::resume(One(&change), queue.as_str())).await?.is_some())
    }
}
