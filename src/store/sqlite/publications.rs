//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, read_time};
use crate::{
    job::{JobId, JobSpec},
    store::{
        Due, MAX_UNCLAIMED_WAIT, Publications, Reply, StoreError,
        convert::{micros, parse_column, to_duration, to_limit},
        rows::read_job,
    },
};

/// The most urgent first.
macro_rules! priorities {
    () => {
        "(select column1 as p from (values (9), (8), (7), (6), (5), (4), (3), (2), (1), (0)))"
    };
}

/// Which priorities have anything due, so that a look that finds nothing is one statement.
const DUE_PRIORITIES: &str = concat!(
    "select p from ",
    priorities!(),
    " where exists (select 1 from jobs where due_at is not null and priority = p and due_at <= ?1) order by p desc"
);

/// One range of the index for each priority; a single ordered scan would walk past everything that
/// is not due yet.
const DUE: &str = concat!(
    "select ",
    super::job_control::job_columns!(),
    ", null as result, published from jobs where due_at is not null and priority = ?1 and due_at <= ?2 order by due_at limit +?3"
);

const PUBLISH: &str =
    "update jobs set state = 'available', due_at = ?2, published = min(published, 2147483646) + 1
    where id = ?1 and due_at is not null";

const DEFER: &str = "update jobs set due_at = ?2, published = max(0, published - 1)
    where id = ?1 and state = 'available'";

const REPUBLISH_ALL: &str = "update jobs set due_at = ?1, published = 0
    where due_at is not null and state = 'available'";

const NEXT_DUE: &str = concat!(
    "select min((select min(due_at) from jobs where due_at is not null and priority = p)) from ",
    priorities!()
);

const REPLIES: &str = concat!(
    "select ",
    super::job_control::job_columns!(),
    ", result from jobs where reply_due_at is not null and reply_due_at <= ?1 order by reply_due_at limit +?2"
);

const OFFER_REPLY: &str = "update jobs set reply_due_at = ?2 where id = ?1 and reply_due_at is not null";

const REPLIED: &str = "update jobs set reply_due_at = null where id = ?1 and reply_due_at is not null";

/// After so many doublings every wait has reached its ceiling.
const MAX_DOUBLINGS: u32 = 20;

#[async_trait]
impl Publications for SqliteStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut taken = Vec::new();
                for found in sqlx::query(DUE_PRIORITIES).bind(now).fetch_all(&mut *db).await? {
                    let priority: i16 = found.try_get(0)?;
                    let room = to_limit(limit.saturating_sub(taken.len()));
                    if room == 0 {
                        break;
                    }
                    let query = sqlx::query(DUE).bind(priority).bind(now).bind(room);
                    for row in query.fetch_all(&mut *db).await? {
                        let state: String = row.try_get("state")?;
                        let published: u32 = row.try_get("published")?;
                        let wait = unclaimed_after.saturating_mul(1 << published.min(MAX_DOUBLINGS));
                        let spec: Arc<JobSpec> = read_job!(&row, read_time).view()?.spec;
                        sqlx::query(PUBLISH)
                            .bind(spec.id.0)
                            .bind(now + micros(wait.min(MAX_UNCLAIMED_WAIT)))
                            .execute(&mut *db)
                            .await?;
                        taken.push(Due { spec, was: parse_column("state", &state)? });
                    }
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<(), StoreError> {
        let ids = ids.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for id in ids {
                    sqlx::query(DEFER).bind(id.0).bind(now + micros(after)).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn republish_all(&self) -> Result<u64, StoreError> {
        self.write(move |db, now| {
            Box::pin(
                async move { Ok(sqlx::query(REPUBLISH_ALL).bind(now).execute(db).await?.rows_affected()) },
            )
        })
        .await
    }

    async fn next_due_in(&self) -> Result<Option<Duration>, StoreError> {
        let next: Option<i64> = sqlx::query(NEXT_DUE).fetch_one(&self.reader).await?.try_get(0)?;
        Ok(next.map(|due_at| to_duration(due_at - self.now_micros())))
    }

    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<Reply>, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let rows = sqlx::query(REPLIES).bind(now).bind(to_limit(limit)).fetch_all(&mut *db).await?;
                let mut taken = Vec::with_capacity(rows.len());
                for row in rows {
                    let job = read_job!(&row, read_time).view()?;
                    sqlx::query(OFFER_REPLY)
                        .bind(job.spec.id.0)
                        .bind(now + micros(again_after))
                        .execute(&mut *db)
                        .await?;
                    taken.extend(Reply::of(job));
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn replied(&self, ids: &[JobId]) -> Result<(), StoreError> {
        let ids = ids.to_vec();
        self.write(move |db, _| {
            Box::pin(async move {
                for id in ids {
                    sqlx::query(REPLIED).bind(id.0).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }
}
