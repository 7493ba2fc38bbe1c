//! The database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, migrate::Migrate as _};

use super::PostgresStore;
use crate::store::{
    Admin, Result, Schema, StoreError,
    admin::APPLIED,
    detached::detached,
    migrations::{self, TABLE},
    read::StoreRow as _,
    sql::statements,
};

/// The same numbers and names as for SQLite.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/postgres/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/postgres/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/postgres/0003_connections.sql")),
    (4, "job_history", include_str!("../../../migrations/postgres/0004_job_history.sql")),
    (5, "words", include_str!("../../../migrations/postgres/0005_words.sql")),
    (6, "replies", include_str!("../../../migrations/postgres/0006_replies.sql")),
];

statements! { Postgres:
    has_table(name: &str) = "select to_regclass({name}) is not null as is_there";
    applied() = APPLIED;
    now() = "select clock_timestamp() as now";
    version() = "select current_setting('server_version') as version";
}

#[async_trait]
impl Admin for PostgresStore {
    fn backend(&self) -> &'static str {
        "PostgreSQL"
    }

    /// On a connection of its own, which is closed in every case and takes the lock with it.
    async fn migrate(&self) -> Result<usize> {
        let options = self.patient.clone();
        detached(async move {
            let mut db = options.connect().await?;
            let applied = migrate(&mut db).await;
            db.close().await?;
            applied
        })
        .await
    }

    async fn schema(&self) -> Result<Schema> {
        let exists = self.other.fetch_first(sql::has_table(TABLE)).await?;
        if !exists.map_or(Ok(false), |row| row.read("is_there"))? {
            return Ok(migrations::compare(MIGRATIONS, &[]));
        }
        let applied = self.other.fetch(sql::applied()).await?;
        let applied = applied.iter().map(|row| row.read("version")).collect::<Result<Vec<i64>, _>>()?;
        Ok(migrations::compare(MIGRATIONS, &applied))
    }

    async fn now(&self) -> Result<Timestamp> {
        let now = self.other.fetch_first(sql::now()).await?;
        now.ok_or_else(|| StoreError::corrupt("now"))?.time("now")
    }

    async fn version(&self) -> Result<String> {
        let version = self.other.fetch_first(sql::version()).await?;
        version.ok_or_else(|| StoreError::corrupt("version"))?.read("version")
    }

    async fn close(&self) {
        self.other.close().await;
        self.hot.close().await;
    }
}

async fn migrate(db: &mut PgConnection) -> Result<usize> {
    db.lock().await?;
    db.ensure_migrations_table(TABLE).await?;
    let before = db.list_applied_migrations(TABLE).await?.len();
    migrations::migrator(MIGRATIONS).run_direct(None, &mut *db, false).await?;
    Ok(db.list_applied_migrations(TABLE).await?.len() - before)
}
