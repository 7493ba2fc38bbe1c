//! The database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row, migrate::Migrate as _};

use super::{PostgresStore, fetch, read_time};
use crate::store::{
    Admin, Schema, StoreError, StoreErrorKind,
    detached::detached,
    migrations::{self, TABLE},
};

/// The same numbers and names as for SQLite.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/postgres/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/postgres/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/postgres/0003_connections.sql")),
];

const HAS_TABLE: &str = "select to_regclass($1) is not null";

const APPLIED: &str = "select version from _sqlx_migrations where success order by version";

#[async_trait]
impl Admin for PostgresStore {
    fn backend(&self) -> &'static str {
        "PostgreSQL"
    }

    /// On a connection of its own, which is closed in every case and takes the lock with it.
    async fn migrate(&self) -> Result<usize, StoreError> {
        let options = self.patient.clone();
        detached(async move {
            let mut db = options.connect().await?;
            let applied = migrate(&mut db).await;
            db.close().await?;
            applied
        })
        .await
    }

    async fn schema(&self) -> Result<Schema, StoreError> {
        let exists = match fetch(&self.other, sqlx::query(HAS_TABLE).bind(TABLE)).await?.first() {
            Some(row) => row.try_get(0)?,
            None => false,
        };
        if !exists {
            return Ok(migrations::compare(MIGRATIONS, &[]));
        }
        let found = fetch(&self.other, sqlx::query(APPLIED)).await?;
        let applied = found.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        Ok(migrations::compare(MIGRATIONS, &applied))
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        let found = fetch(&self.other, sqlx::query("select clock_timestamp() as now")).await?;
        let now = found.first().map(|row| read_time(row, "now")).transpose()?.flatten();
        now.ok_or_else(|| StoreError::new(StoreErrorKind::Corrupt, "the database does not tell the time"))
    }

    async fn version(&self) -> Result<String, StoreError> {
        let found = fetch(&self.other, sqlx::query("select current_setting('server_version')")).await?;
        match found.first() {
            Some(row) => Ok(row.try_get(0)?),
            None => Err(StoreError::corrupt("server_version")),
        }
    }

    async fn close(&self) {
        self.other.close().await;
        self.hot.close().await;
    }
}

async fn migrate(db: &mut PgConnection) -> Result<usize, StoreError> {
    db.lock().await?;
    db.ensure_migrations_table(TABLE).await?;
    let before = db.list_applied_migrations(TABLE).await?.len();
    migrations::migrator(MIGRATIONS).run_direct(None, &mut *db, false).await?;
    Ok(db.list_applied_migrations(TABLE).await?.len() - before)
}
