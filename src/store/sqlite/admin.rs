//! The database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::migrate::Migrate as _;

use super::SqliteStore;
use crate::{
    failure::chain,
    store::{
        Admin, Concern, Migrated, Result, Schema, StoreError, StoreErrorKind,
        admin::APPLIED,
        migrations::{self, TABLE},
        read::StoreRow as _,
        sql::statements,
    },
};

/// The same numbers and names as for PostgreSQL.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/sqlite/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/sqlite/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/sqlite/0003_connections.sql")),
    (4, "job_history", include_str!("../../../migrations/sqlite/0004_job_history.sql")),
    (5, "words", include_str!("../../../migrations/sqlite/0005_words.sql")),
    (6, "replies", include_str!("../../../migrations/sqlite/0006_replies.sql")),
    (9, "cancelled_checks", include_str!("../../../migrations/sqlite/0009_cancelled_checks.sql")),
    (10, "postponed_and_leases", include_str!("../../../migrations/sqlite/0010_postponed_and_leases.sql")),
    (11, "order_of_creation", include_str!("../../../migrations/sqlite/0011_order_of_creation.sql")),
    (12, "postponements", include_str!("../../../migrations/sqlite/0012_postponements.sql")),
    (13, "first_due", include_str!("../../../migrations/sqlite/0013_first_due.sql")),
    (14, "answers", include_str!("../../../migrations/sqlite/0014_answers.sql")),
    (15, "builds", include_str!("../../../migrations/sqlite/0015_builds.sql")),
    (16, "views", include_str!("../../../migrations/sqlite/0016_views.sql")),
    (17, "access_keys", include_str!("../../../migrations/sqlite/0017_access_keys.sql")),
    (18, "batches", include_str!("../../../migrations/sqlite/0018_batches.sql")),
    (19, "actions", include_str!("../../../migrations/sqlite/0019_actions.sql")),
    (20, "edits_and_pauses", include_str!("../../../migrations/sqlite/0020_edits_and_pauses.sql")),
    (21, "changes", include_str!("../../../migrations/sqlite/0021_changes.sql")),
    (22, "open_batches", include_str!("../../../migrations/sqlite/0022_open_batches.sql")),
    (23, "events", include_str!("../../../migrations/sqlite/0023_events.sql")),
    (24, "sealing_secret", include_str!("../../../migrations/sqlite/0024_sealing_secret.sql")),
    (25, "events_of_one", include_str!("../../../migrations/sqlite/0025_events_of_one.sql")),
    (26, "event_listeners", include_str!("../../../migrations/sqlite/0026_event_listeners.sql")),
    (27, "enqueue_function", include_str!("../../../migrations/sqlite/0027_enqueue_function.sql")),
    (28, "tasks", include_str!("../../../migrations/sqlite/0028_tasks.sql")),
    (29, "callbacks", include_str!("../../../migrations/sqlite/0029_callbacks.sql")),
    (30, "event_callbacks", include_str!("../../../migrations/sqlite/0030_event_callbacks.sql")),
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

    fn address(&self) -> String {
        self.path.display().to_string()
    }

    /// All missing migrations are one write transaction, so that processes wait for each other.
    async fn migrate(&self) -> Result<Migrated> {
        self.writer.create()?;
        self.write(move |db, _| {
            Box::pin(async move {
                db.ensure_migrations_table(TABLE).await?;
                let applied = db.list_applied_migrations(TABLE).await?;
                let missing = migrations::missing(migrations::all(MIGRATIONS), &applied)?;
                for migration in &missing {
                    db.apply(TABLE, migration).await?;
                }
                Ok(Migrated { applied: missing.len(), is_lock_changed: false })
            })
        })
        .await
        .map_err(|error| if error.kind() == StoreErrorKind::Schema { not_ours(&error) } else { error })
    }

    async fn move_from(&self, _: &str) -> Result<Migrated> {
        let message = "a SQLite database has no schemas, so that nothing is moved";
        Err(StoreError::new(StoreErrorKind::Access, message))
    }

    async fn inspect(&self) -> Result<Vec<Concern>> {
        Ok(Vec::new())
    }

    async fn schema(&self) -> Result<Schema> {
        let all = migrations::all(MIGRATIONS);
        if !self.reader.exists() || self.reader.fetch_one(sql::tables(TABLE)).await?.total("tables")? == 0 {
            return Ok(migrations::compare(&all, &[]));
        }
        let applied = migrations::applied(&self.reader.fetch(sql::applied()).await?)?;
        Ok(migrations::compare(&all, &applied))
    }

    async fn now(&self) -> Result<Timestamp> {
        self.reader.fetch(sql::ping()).await?;
        Ok(self.clock.now())
    }

    async fn version(&self) -> Result<String> {
        self.reader.fetch_one(sql::version()).await?.read("version")
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// To migrate again would not help.
fn not_ours(error: &StoreError) -> StoreError {
    let message = format!(
        "errand's tables cannot be made or changed in this file: {}; if it is another application's, use a file of errand's \
         own, and if it is errand's, restore a backup",
        chain(error)
    );
    StoreError::new(StoreErrorKind::Access, message)
}
