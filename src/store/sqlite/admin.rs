//! The database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::migrate::Migrate as _;

use super::SqliteStore;
use crate::store::{
    Admin, Result, Schema,
    admin::APPLIED,
    migrations::{self, TABLE},
    read::StoreRow as _,
    sql::statements,
};

/// The same numbers and names as for PostgreSQL.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/sqlite/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/sqlite/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/sqlite/0003_connections.sql")),
    (4, "job_history", include_str!("../../../migrations/sqlite/0004_job_history.sql")),
    (5, "words", include_str!("../../../migrations/sqlite/0005_words.sql")),
    (6, "replies", include_str!("../../../migrations/sqlite/0006_replies.sql")),
];

statements! { Sqlite:
    tables(name: &str) = "select count(*) as tables from sqlite_master where type = 'table' and name = {name}";
    applied() = APPLIED;
    ping() = "select 1";
    version() = "select sqlite_version() as version";
}

#[async_trait]
impl Admin for SqliteStore {
    fn backend(&self) -> &'static str {
        "SQLite"
    }

    /// All missing migrations are one write transaction, so that processes wait for each other.
    async fn migrate(&self) -> Result<usize> {
        self.write(move |db, _| {
            Box::pin(async move {
                let migrator = migrations::migrator(MIGRATIONS);
                db.ensure_migrations_table(TABLE).await?;
                let before = db.list_applied_migrations(TABLE).await?.len();
                migrator.run_direct(None, &mut *db, false).await?;
                Ok(db.list_applied_migrations(TABLE).await?.len() - before)
            })
        })
        .await
    }

    async fn schema(&self) -> Result<Schema> {
        let mut db = self.reader.acquire().await?;
        if sql::tables(TABLE).fetch_one(&mut *db).await?.total("tables")? == 0 {
            return Ok(migrations::compare(MIGRATIONS, &[]));
        }
        let applied = sql::applied().fetch_all(&mut *db).await?;
        let applied = applied.iter().map(|row| row.read("version")).collect::<Result<Vec<i64>, _>>()?;
        Ok(migrations::compare(MIGRATIONS, &applied))
    }

    async fn now(&self) -> Result<Timestamp> {
        sql::ping().execute(&self.reader).await?;
        Ok(self.clock.now())
    }

    async fn version(&self) -> Result<String> {
        sql::version().fetch_one(&self.reader).await?.read("version")
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}
