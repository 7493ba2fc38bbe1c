//! The database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{Row, migrate::Migrate as _};

use super::SqliteStore;
use crate::store::{
    Admin, Schema, StoreError,
    migrations::{self, TABLE},
};

/// The same numbers and names as for PostgreSQL.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/sqlite/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/sqlite/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/sqlite/0003_connections.sql")),
    (4, "job_history", include_str!("../../../migrations/sqlite/0004_job_history.sql")),
];

const HAS_TABLE: &str = "select count(*) from sqlite_master where type = 'table' and name = ?1";

const APPLIED: &str = "select version from _sqlx_migrations where success order by version";

#[async_trait]
impl Admin for SqliteStore {
    fn backend(&self) -> &'static str {
        "SQLite"
    }

    /// All missing migrations are one write transaction, so that processes wait for each other.
    async fn migrate(&self) -> Result<usize, StoreError> {
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

    async fn schema(&self) -> Result<Schema, StoreError> {
        let mut db = self.reader.acquire().await?;
        let tables: i64 = sqlx::query(HAS_TABLE).bind(TABLE).fetch_one(&mut *db).await?.try_get(0)?;
        if tables == 0 {
            return Ok(migrations::compare(MIGRATIONS, &[]));
        }
        let rows = sqlx::query(APPLIED).fetch_all(&mut *db).await?;
        let applied = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        Ok(migrations::compare(MIGRATIONS, &applied))
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        sqlx::query("select 1").execute(&self.reader).await?;
        Ok(self.clock.now())
    }

    async fn version(&self) -> Result<String, StoreError> {
        Ok(sqlx::query("select sqlite_version()").fetch_one(&self.reader).await?.try_get(0)?)
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}
