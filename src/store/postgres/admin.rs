//! The database itself.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{Connection as _, migrate::AppliedMigration, postgres::PgRow};
use tokio::time::timeout;

use super::{
    PostgresStore, SchemaName, migrate, owner_lock,
    relocation::{self, Place},
    session,
};
use crate::store::{
    Admin, Concern, Migrated, Result, Schema, StoreError, StoreErrorKind, Weight,
    admin::APPLIED,
    detached::detached,
    migrations::{self, TABLE},
    read::StoreRow as _,
    sql::statements,
};

/// How long a goodbye to the server may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The same numbers and names as for SQLite.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "jobs", include_str!("../../../migrations/postgres/0001_jobs.sql")),
    (2, "job_control", include_str!("../../../migrations/postgres/0002_job_control.sql")),
    (3, "connections", include_str!("../../../migrations/postgres/0003_connections.sql")),
    (4, "job_history", include_str!("../../../migrations/postgres/0004_job_history.sql")),
    (5, "words", include_str!("../../../migrations/postgres/0005_words.sql")),
    (6, "replies", include_str!("../../../migrations/postgres/0006_replies.sql")),
    (9, "cancelled_checks", include_str!("../../../migrations/postgres/0009_cancelled_checks.sql")),
    (10, "postponed_and_leases", include_str!("../../../migrations/postgres/0010_postponed_and_leases.sql")),
    (11, "order_of_creation", include_str!("../../../migrations/postgres/0011_order_of_creation.sql")),
    (12, "postponements", include_str!("../../../migrations/postgres/0012_postponements.sql")),
    (13, "first_due", include_str!("../../../migrations/postgres/0013_first_due.sql")),
    (14, "answers", include_str!("../../../migrations/postgres/0014_answers.sql")),
    (15, "builds", include_str!("../../../migrations/postgres/0015_builds.sql")),
    (16, "views", include_str!("../../../migrations/postgres/0016_views.sql")),
    (17, "access_keys", include_str!("../../../migrations/postgres/0017_access_keys.sql")),
    (18, "batches", include_str!("../../../migrations/postgres/0018_batches.sql")),
    (19, "actions", include_str!("../../../migrations/postgres/0019_actions.sql")),
    (20, "edits_and_pauses", include_str!("../../../migrations/postgres/0020_edits_and_pauses.sql")),
    (21, "changes", include_str!("../../../migrations/postgres/0021_changes.sql")),
    (22, "open_batches", include_str!("../../../migrations/postgres/0022_open_batches.sql")),
    (23, "events", include_str!("../../../migrations/postgres/0023_events.sql")),
    (24, "sealing_secret", include_str!("../../../migrations/postgres/0024_sealing_secret.sql")),
    (25, "events_of_one", include_str!("../../../migrations/postgres/0025_events_of_one.sql")),
    (26, "event_listeners", include_str!("../../../migrations/postgres/0026_event_listeners.sql")),
    (27, "enqueue_function", include_str!("../../../migrations/postgres/0027_enqueue_function.sql")),
    (28, "tasks", include_str!("../../../migrations/postgres/0028_tasks.sql")),
    (29, "callbacks", include_str!("../../../migrations/postgres/0029_callbacks.sql")),
    (30, "event_callbacks", include_str!("../../../migrations/postgres/0030_event_callbacks.sql")),
];

statements! { Postgres:
    /// The table in the schema, the only one that is looked into. One that may not be used is passed over.
    place(schema: &str, table: &str) = "select to_regclass({table}) is not null as is_there,
        current_user::text as role, not exists (select from pg_namespace
            where nspname = {schema} and not has_schema_privilege(oid, 'usage')) as is_usable";
    applied() = APPLIED;
    now() = "select clock_timestamp() as now";
    /// A base backup is no standby.
    condition() = "select pg_encoding_to_char(encoding)::text as encoding, current_setting('fsync') as fsync,
        current_setting('full_page_writes') as full_page_writes,
        current_setting('synchronous_standby_names') as synchronous_standby_names,
        pg_is_in_recovery() or current_setting('transaction_read_only')::boolean as read_only,
        (select count(*) from pg_stat_replication where state is distinct from 'backup') as standbys
    from pg_database where datname = current_database()";
    version() = "select current_setting('server_version') as version";
}

#[async_trait]
impl Admin for PostgresStore {
    fn backend(&self) -> &'static str {
        "PostgreSQL"
    }

    fn address(&self) -> String {
        self.other.address()
    }

    /// On a connection of its own, which is closed in every case and takes the lock with it.
    async fn migrate(&self) -> Result<Migrated> {
        self.run(None, MIGRATIONS).await
    }

    async fn move_from(&self, schema: &str) -> Result<Migrated> {
        self.run(Some(schema.to_owned()), MIGRATIONS).await
    }

    async fn inspect(&self) -> Result<Vec<Concern>> {
        let refused = session::refuse_transaction_pooler(&self.plain).await.map_err(sqlx::Error::from);
        refused.map_err(|error| self.other.named(error.into()))?;
        let found = self.other.fetch_first(sql::condition()).await?;
        let found = found.ok_or_else(|| StoreError::corrupt("encoding"))?;
        let mut concerns = condition(&found).map_err(|error| self.other.named(error))?;
        // What this role may not read, or cannot now, `schema` tells of.
        let all = migrations::all(MIGRATIONS);
        if let Ok(applied) = self.applied().await
            && migrations::are_errands(&all, &applied)
        {
            if let Ok(Some(place)) = self.elsewhere().await {
                concerns.push(place.beside());
            }
            if !matches!(migrations::compare(&all, &applied), Schema::Behind { .. }) {
                concerns.extend(self.about_owner_lock().await?);
            }
        }
        Ok(concerns)
    }

    async fn schema(&self) -> Result<Schema> {
        let all = migrations::all(MIGRATIONS);
        let applied = self.applied().await?;
        if migrations::are_errands(&all, &applied) {
            return Ok(migrations::compare(&all, &applied));
        }
        match self.elsewhere().await? {
            Some(place) => place.instead().map_err(|error| self.other.named(error)),
            None => Ok(migrations::compare(&all, &applied)),
        }
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
        tokio::join!(self.other.close(), self.hot.close(), self.beat.close());
    }
}

impl PostgresStore {
    /// Applies those of these migrations (number, name, statements) that are missing, and returns how many these were. A
    /// migration whose text begins with `-- no-transaction` is executed statement by statement, each of which ends a
    /// line with `;`. It may be begun again at any time, and must bear that.
    ///
    /// # Errors
    /// The database cannot be reached or not be used, or a migration fails.
    pub async fn apply(&self, migrations: &'static [(i64, &'static str, &'static str)]) -> Result<usize> {
        Ok(self.run(None, migrations).await?.applied)
    }

    /// Applies them after tables of another schema have moved, if one is given.
    async fn run(
        &self,
        from: Option<String>,
        migrations: &'static [(i64, &'static str, &'static str)],
    ) -> Result<Migrated> {
        self.inspect().await?;
        let (schema, role) = (self.schema.clone(), self.tenant_role.clone());
        let migrating = migrate::run(self.plain.clone(), schema, role, from, migrations);
        detached(migrating).await.map_err(|error| self.other.named(error))
    }

    /// What was applied in the schema of the settings.
    async fn applied(&self) -> Result<Vec<AppliedMigration>> {
        let place = self.other.fetch_first(sql::place(self.schema.as_str(), TABLE)).await?;
        let place = place.ok_or_else(|| StoreError::corrupt("is_there"))?;
        if !place.read::<bool>("is_usable")? {
            return Err(self.other.named(may_not_use(&self.schema, &place.read::<String>("role")?)));
        }
        if !place.read("is_there")? {
            return Ok(Vec::new());
        }
        migrations::applied(&self.other.fetch(sql::applied()).await?)
    }

    /// Where the second lock between owners is not as the settings say.
    async fn about_owner_lock(&self) -> Result<Vec<Concern>> {
        let (schema, role) = (self.schema.clone(), self.tenant_role.clone());
        let look = self.other.transaction(move |db| {
            Box::pin(async move { Ok(owner_lock::concerns(db, &schema, role.as_ref()).await?) })
        });
        look.await
    }

    /// Looks by a session that has not errand's settings.
    async fn elsewhere(&self) -> Result<Option<Place>> {
        let (plain, schema) = (self.plain.clone(), self.schema.clone());
        let looking = detached(async move {
            let mut db = session::login(&plain).await.map_err(sqlx::Error::from)?;
            let place = relocation::elsewhere(&mut db, &schema, &migrations::all(MIGRATIONS)).await?;
            drop(timeout(GOODBYE, db.close()).await);
            Ok::<_, StoreError>(place)
        });
        looking.await.map_err(|error| self.other.named(error))
    }
}

fn may_not_use(schema: &SchemaName, role: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Access,
        format!(
            "the role `{role}` may not use the schema `{schema}`, where errand keeps its tables: let its owner or a \
             superuser execute `grant usage on schema \"{schema}\" to \"{role}\"`"
        ),
    )
}

/// What stands in the way of errand, or may cost what was committed.
fn condition(row: &PgRow) -> Result<Vec<Concern>> {
    let encoding: String = row.read("encoding")?;
    // In SQL_ASCII every text is kept as it is.
    if !["UTF8", "SQL_ASCII"].contains(&encoding.as_str()) {
        return Err(StoreError::new(
            StoreErrorKind::Access,
            format!(
                "the encoding of this database is {encoding}, which lacks most characters, so that good jobs and \
                 results would be refused: use a database that is made with `create database ... encoding 'UTF8' \
                 template template0`"
            ),
        ));
    }
    let mut concerns = Vec::new();
    for setting in ["fsync", "full_page_writes"] {
        if row.read::<String>(setting)? == "off" {
            concerns.push(Concern {
                weight: Weight::Risk,
                message: format!(
                    "{setting} is off: a crash of its host may lose or damage what was committed"
                ),
                advice: "switch it on, unless the storage makes up for it",
            });
        }
    }
    if row.read::<bool>("read_only")? {
        concerns.push(Concern {
            weight: Weight::Risk,
            message:
                "the database takes no writes now: it is a standby, or default_transaction_read_only is on"
                    .into(),
            advice: "use the address of the primary, or find out who has made it read-only, and why",
        });
    }
    let standbys = row.total("standbys")?;
    if standbys > 0 && row.read::<String>("synchronous_standby_names")?.is_empty() {
        concerns.push(Concern {
            weight: Weight::Risk,
            message: format!(
                "standbys that may lag behind: {standbys}. A failover to one loses what was committed last: jobs that \
                 were acknowledged, and that a `once` call was made, so that it is made again"
            ),
            advice: "set synchronous_standby_names, or take that into account",
        });
    }
    Ok(concerns)
}
