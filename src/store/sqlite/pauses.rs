//! Queues that are paused.

use async_trait::async_trait;

use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    job::{Principal, QueueName},
    store::{
        ChangeKind, Decider, PausedQueue, Pauses, Result,
        changes::NewChange,
        history::refuse_decider,
        pauses::{PAUSED, paused, refuse_pause},
        read::{StoreRow as _, readable},
        sql::statements,
    },
};

statements! { Sqlite:
    paused_queues() = PAUSED;
    pause(queue: &str, by: &str, reason: &str, now: i64) = "insert into paused_queues (queue, by, reason, since)
    values ({queue}, {by}, {reason}, {now}) on conflict do nothing";
    resume(queue: &str) = "delete from paused_queues where queue = {queue} returning reason";
}

#[async_trait]
impl Pauses for SqliteStore {
    async fn paused_queues(&self) -> Result<Vec<PausedQueue>> {
        Ok(readable(&self.reader.fetch(sql::paused_queues()).await?, paused))
    }

    async fn pause_queue(&self, queue: &QueueName, by: &Decider, reason: &str) -> Result<bool> {
        refuse_pause(by, reason)?;
        let (queue, by, reason) = (queue.clone(), by.clone(), reason.to_owned());
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sql::pause(queue.as_str(), &by.by, &reason, now);
                let is_new = query.execute(&mut *db).await?.rows_affected() > 0;
                if is_new {
                    let change = NewChange::new(ChangeKind::QueuePaused, &Principal::Operator, &by);
                    log_pause(db, now, &change, &queue, [None, Some(&reason)]).await?;
                }
                Ok(is_new)
            })
        })
        .await
    }

    async fn resume_queue(&self, queue: &QueueName, by: &Decider) -> Result<bool> {
        refuse_decider(by)?;
        let (queue, by) = (queue.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let resumed = sql::resume(queue.as_str()).fetch_optional(&mut *db).await?;
                let Some(row) = resumed else { return Ok(false) };
                let reason: String = row.read("reason")?;
                let change = NewChange::new(ChangeKind::QueueResumed, &Principal::Operator, &by);
                log_pause(db, now, &change, &queue, [Some(&reason), None]).await?;
                Ok(true)
            })
        })
        .await
    }
}

async fn log_pause(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    queue: &QueueName,
    reasons: [Option<&str>; 2],
) -> Result<()> {
    let [before, after] = reasons.map(|reason| reason.map(|reason| json!({"reason": reason}).to_string()));
    let about = About {
        object: Some(queue.as_str()),
        before: before.as_deref(),
        after: after.as_deref(),
        ..About::default()
    };
    log(db, now, change, about).await
}
