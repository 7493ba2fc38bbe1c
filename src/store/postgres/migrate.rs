//! Applies migrations beside the traffic of others, and says what it waits for.
//!
//! A statement that changes a table waits for all who use it, and everybody who comes later waits behind it. So it gives
//! up after a moment, lets them pass and tries again, as often as it takes. What needs long runs outside of a
//! transaction and keeps nobody waiting, as `create index concurrently` does.

use std::{convert::Infallible, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _,
    migrate::{Migrate as _, MigrateError, Migration},
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    RoleName, SchemaName,
    failed_migration::Failed,
    owner_lock,
    relocation::{self, Place},
    session,
};
use crate::store::{
    Concern, Migrated, Result,
    migrations::{self, TABLE},
};

/// How long a migration waits for a lock, and others behind it, and the pauses until it tries again, which double.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long one attempt to become the one that migrates waits, and the pause after it. Who waits has a snapshot, and an
/// index that is built concurrently waits for everybody's. So nobody waits as long as PostgreSQL takes to call that a
/// deadlock.
const TURN: Duration = Duration::from_millis(400);
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// How often it is looked for what keeps a migration waiting, and told.
const LOOK: Duration = Duration::from_millis(500);
const TELL: Duration = Duration::from_secs(5);

/// How long such a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// Statements may take as long as they need. A host that is gone without a word must not keep the lock, though.
const SETTINGS: &str = "set statement_timeout = 0; set idle_session_timeout = 0; set lock_timeout = 0; \
    set idle_in_transaction_session_timeout = 0; set synchronous_commit = on; \
    set default_transaction_isolation = 'read committed'; \
    set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3";

/// Who keeps a session waiting, and at what. What they execute is not asked for, because it may quote customers' data.
const BLOCKERS: &str = "select b.pid, coalesce(nullif(b.application_name, ''), 'without a name') as name,
        coalesce(b.state, 'of another user') as state,
        coalesce(extract(epoch from clock_timestamp() - b.xact_start), 0)::bigint as seconds,
        (select case when l.relation is not null then 'the table ' || coalesce(
                (select relnamespace::regnamespace || '.' || relname from pg_class where oid = l.relation),
                l.relation::text)
            when l.locktype = 'advisory' then 'another `errand migrate`'
            else 'transactions that began earlier' end
        from pg_locks l where l.pid = $1 and not l.granted limit 1) as what
    from unnest(pg_blocking_pids($1)) as p (pid) join pg_stat_activity b on b.pid = p.pid limit 3";

/// Moves the tables from another schema first, if one is given. In the end the second lock between owners is for this role,
/// or is gone.
pub(super) async fn run(
    options: PgConnectOptions,
    schema: SchemaName,
    tenant_role: Option<RoleName>,
    from: Option<String>,
    migrations: &'static [(i64, &'static str, &'static str)],
) -> Result<Migrated> {
    let mut db = session::login(&options).await.map_err(sqlx::Error::from)?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut db).await?;
    let migrate = async {
        let applied = apply(&mut db, &schema, from.as_deref(), migrations).await?;
        let is_lock_changed = lock_in_turn(&mut db, &schema, tenant_role.as_ref()).await?;
        Ok::<_, Failed>(Migrated { applied, is_lock_changed })
    };
    let migrated = tokio::select! {
        biased;
        migrated = migrate => migrated,
        never = tell_what_is_waited_for(&options, pid) => match never {},
    };
    // The connection takes the lock with it, whether or not it can say goodbye.
    drop(timeout(LOOK_TIMEOUT, db.close()).await);
    migrated.map_err(|failed| failed.explained(&schema))
}

async fn apply(
    db: &mut PgConnection,
    schema: &SchemaName,
    from: Option<&str>,
    migrations: &'static [(i64, &'static str, &'static str)],
) -> Result<usize, Failed> {
    let settings = format!("{SETTINGS}; select {}", session::UNLIMITED);
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *db).await?;
    wait_for_turn(db).await?;
    let all = migrations::all(migrations);
    let mut is_here = relocation::is_here(db, schema, &all).await?;
    if let Some(from) = from {
        see_to_move(db, from, schema, &all, is_here).await?;
        is_here = true;
    }
    match relocation::elsewhere(db, schema, &all).await? {
        Some(place) if is_here => {
            let Concern { message, advice, .. } = place.beside();
            tracing::warn!("{message}; {advice}");
        }
        Some(place) => return Err(place.refused().into()),
        None => {}
    }
    relocation::make_schema(db, schema).await?;
    let search_path = format!("set search_path = '{schema}'");
    sqlx::raw_sql(AssertSqlSafe(search_path)).execute(&mut *db).await?;
    db.ensure_migrations_table(TABLE).await?;
    let applied = db.list_applied_migrations(TABLE).await?;
    let missing = migrations::missing(all, &applied)?;
    for migration in &missing {
        if migration.no_tx {
            apply_outside(db, migration).await?;
        } else {
            apply_in_turn(db, migration).await?;
        }
    }
    Ok(missing.len())
}

/// One process migrates at a time.
async fn wait_for_turn(db: &mut PgConnection) -> Result<(), Failed> {
    set_lock_timeout(db, TURN).await?;
    while let Err(error) = db.lock().await.map_err(Failed::from) {
        if !error.is_about_locks() {
            return Err(error);
        }
        sleep(TURN_PAUSE).await;
    }
    Ok(())
}

/// Moves the tables, unless a run before this one has.
async fn see_to_move(
    db: &mut PgConnection,
    from: &str,
    schema: &SchemaName,
    migrations: &[Migration],
    is_here: bool,
) -> Result<(), Failed> {
    let is_same = from == schema.as_str();
    match Place::find(db, from, migrations).await? {
        Some(place) if !is_here => move_in_turn(db, &place, schema, migrations).await,
        Some(_) if !is_same => Err(relocation::refusal(format!(
            "nothing moves, because errand's tables are in the schema `{schema}` already, and others in `{from}`: find out \
             which have the jobs that count, and drop the others"
        ))),
        None if !is_here => Err(relocation::refusal(format!(
            "errand's tables are not in the schema `{from}`: name the one that they are in after `--move-from`"
        ))),
        _ => Ok(()),
    }
}

/// In one transaction, as often as a lock was not to be had.
async fn move_in_turn(
    db: &mut PgConnection,
    place: &Place,
    schema: &SchemaName,
    migrations: &[Migration],
) -> Result<(), Failed> {
    set_lock_timeout(db, LOCK_TIMEOUT).await?;
    let mut pause = FIRST_PAUSE;
    while let Err(error) = place.move_to(db, schema, migrations).await {
        pause = pause_after(error, pause).await?;
    }
    tracing::info!(from = place.schema, to = schema.as_str(), "errand's tables have moved to another schema");
    Ok(())
}

/// In one transaction, as often as a lock was not to be had. It locks one table after the other, and all of them together
/// keep others waiting for as long as a migration does. Returns whether anything was changed.
async fn lock_in_turn(
    db: &mut PgConnection,
    schema: &SchemaName,
    role: Option<&RoleName>,
) -> Result<bool, Failed> {
    set_lock_timeout(db, LOCK_TIMEOUT / owner_lock::LOCKED_TABLES).await?;
    let mut pause = FIRST_PAUSE;
    loop {
        match owner_lock::apply(db, schema, role).await {
            Ok(is_changed) => return Ok(is_changed),
            Err(error) => pause = pause_after(error, pause).await?,
        }
    }
}

/// In one transaction, as often as a lock was not to be had.
async fn apply_in_turn(db: &mut PgConnection, migration: &Migration) -> Result<(), Failed> {
    set_lock_timeout(db, LOCK_TIMEOUT).await?;
    let mut pause = FIRST_PAUSE;
    while let Err(error) = db.apply(TABLE, migration).await {
        pause = pause_after(error.into(), pause).await?;
    }
    Ok(())
}

/// Statement by statement. Each keeps nobody waiting, so it may wait itself. It is begun again after a deadlock, as with
/// the `errand migrate` of a build that waits for its turn without pauses.
async fn apply_outside(db: &mut PgConnection, migration: &Migration) -> Result<(), Failed> {
    set_lock_timeout(db, Duration::ZERO).await?;
    let mut pause = FIRST_PAUSE;
    while let Err(error) = execute_each(db, migration).await {
        pause = pause_after(error.into(), pause).await?;
    }
    // Notes it as applied.
    Ok(db.skip(TABLE, migration).await?)
}

/// Lets others pass after an error that is about locks, and returns the next pause.
async fn pause_after(error: Failed, pause: Duration) -> Result<Duration, Failed> {
    if !error.is_about_locks() {
        return Err(error);
    }
    sleep(pause).await;
    Ok((2 * pause).min(LONGEST_PAUSE))
}

async fn execute_each(db: &mut PgConnection, migration: &Migration) -> Result<(), MigrateError> {
    for statement in migration.sql.as_str().split_inclusive(";\n") {
        let executed = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *db).await;
        executed.map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
    }
    Ok(())
}

async fn set_lock_timeout(db: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
    let set = format!("set lock_timeout = {}", limit.as_millis());
    db.execute(AssertSqlSafe(set)).await.map(drop)
}

/// Looks on from another connection for as long as the migration takes. Where there is none, nothing is told.
async fn tell_what_is_waited_for(options: &PgConnectOptions, pid: i32) -> Infallible {
    let (began, mut watch) = (Instant::now(), None);
    let mut next = began + LOOK;
    loop {
        sleep_until(next).await;
        next = Instant::now() + LOOK;
        if watch.is_none() {
            watch = session::login(options).await.ok();
        }
        let Some(db) = &mut watch else {
            next = Instant::now() + TELL;
            continue;
        };
        match timeout(LOOK_TIMEOUT, sqlx::query(BLOCKERS).bind(pid).fetch_all(db)).await {
            Ok(Ok(blockers)) if blockers.is_empty() => {}
            Ok(Ok(blockers)) => {
                next = Instant::now() + TELL;
                let what = blockers[0].try_get::<String, _>("what").unwrap_or_default();
                let blockers = blockers.iter().map(describe).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    waited_secs = began.elapsed().as_secs(),
                    "the migration waits for {what}: {blockers}"
                );
            }
            _ => watch = None,
        }
    }
}

fn describe(blocker: &sqlx::postgres::PgRow) -> String {
    let text = |column| blocker.try_get::<String, _>(column).unwrap_or_default();
    let number = blocker.try_get::<i32, _>("pid").unwrap_or_default();
    let seconds = blocker.try_get::<i64, _>("seconds").unwrap_or_default();
    format!("session {number} ({}, {}, for {seconds} s)", text("name"), text("state"))
}
