//! Where an earlier build made errand's tables, and their way into the schema that the settings name.
//!
//! Builds before migration 16 made them in the first schema of the session's `search_path`, which is `public` mostly,
//! among the tables of whoever else uses the database.

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction,
    migrate::{AppliedMigration, Migrate as _, Migration},
    postgres::PgRow,
};

use super::{SchemaName, failed_migration::Failed};
use crate::store::{
    StoreError, StoreErrorKind,
    migrations::{TABLE, are_errands, is_applied},
};

/// errand's migrations have four digits. A larger number in the same table is of somebody else, such as a date.
const LARGEST_NUMBER: i64 = 9_999;

/// The lease of workers of a build that did not tell the others its own, in milliseconds.
const USUAL_LEASE_MS: i64 = 30_000;

/// A schema with errand's tables.
pub(super) struct Place {
    /// Its name, for people.
    pub(super) schema: String,
    /// As statements have it.
    quoted: String,
    applied: Vec<AppliedMigration>,
}

/// Where errand's tables are, if this schema has none of them: in one of those that a session without errand's settings
/// looks into.
pub(super) async fn elsewhere(
    db: &mut PgConnection,
    schema: &SchemaName,
    migrations: &[Migration],
) -> sqlx::Result<Option<Place>> {
    let is_there = "select to_regclass($1) is not null";
    let here = format!("\"{schema}\".{TABLE}");
    if sqlx::query_scalar(is_there).bind(here).fetch_one(&mut *db).await? {
        let applied = applied_in(db, &format!("\"{schema}\"")).await?;
        if are_errands(migrations, &applied) {
            return Ok(None);
        }
    }
    let candidates = format!(
        "select schema::text as schema, quote_ident(schema) as quoted
        from unnest(current_schemas(false)) with ordinality as path (schema, place)
        where schema <> $1 and has_table_privilege(to_regclass(format('%I.%I', schema, '{TABLE}'))::oid, 'select')
        order by place"
    );
    let candidates = sqlx::query(AssertSqlSafe(candidates)).bind(schema.as_str());
    for row in candidates.fetch_all(&mut *db).await? {
        let (schema, quoted): (String, String) = (row.try_get("schema")?, row.try_get("quoted")?);
        let applied = applied_in(db, &quoted).await?;
        if are_errands(migrations, &applied) {
            return Ok(Some(Place { schema, quoted, applied }));
        }
    }
    Ok(None)
}

async fn applied_in(db: &mut PgConnection, quoted: &str) -> sqlx::Result<Vec<AppliedMigration>> {
    let applied = format!("select version, checksum from {quoted}.{TABLE} where success");
    let applied = sqlx::query(AssertSqlSafe(applied)).fetch_all(db).await?;
    let applied = applied.iter().map(|row| {
        let checksum: Vec<u8> = row.try_get("checksum")?;
        Ok(AppliedMigration { version: row.try_get("version")?, checksum: checksum.into() })
    });
    applied.collect()
}

/// Makes the schema if it is not there, which is looked at first because even `if not exists` needs the right to.
pub(super) async fn make_schema(db: &mut PgConnection, schema: &SchemaName) -> Result<(), Failed> {
    let facts = "select current_user::text as role, current_database()::text as database,
        exists (select from pg_namespace where nspname = $1) as is_there";
    let facts = sqlx::query(facts).bind(schema.as_str()).fetch_one(&mut *db).await?;
    if facts.try_get("is_there")? {
        return Ok(());
    }
    let create = format!("create schema if not exists \"{schema}\"");
    let Err(error) = sqlx::raw_sql(AssertSqlSafe(create)).execute(db).await else { return Ok(()) };
    if error.as_database_error().and_then(|error| error.code()).as_deref() != Some("42501") {
        return Err(error.into());
    }
    let (role, database): (String, String) = (facts.try_get("role")?, facts.try_get("database")?);
    Err(refusal(format!(
        "the role `{role}` may not make the schema `{schema}`, where errand keeps its tables: let the owner of the \
         database or a superuser execute `create schema \"{schema}\" authorization \"{role}\"`, or `grant create on \
         database \"{database}\" to \"{role}\"`"
    )))
}

impl Place {
    /// Moves everything that errand's migrations have made here, and their record, in one transaction. What others have
    /// in this schema stays, also their rows of the table of migrations.
    pub(super) async fn move_to(
        &self,
        db: &mut PgConnection,
        schema: &SchemaName,
        migrations: &[Migration],
    ) -> Result<(), Failed> {
        self.refuse_newer(schema, migrations)?;
        let mut transaction = db.begin().await?;
        match self.moved(&mut transaction, schema, migrations).await {
            Ok(()) => Ok(transaction.commit().await?),
            Err(failed) => {
                // Not only dropped, because then it would hold its locks until the next statement.
                transaction.rollback().await?;
                Err(failed)
            }
        }
    }

    async fn moved(
        &self,
        db: &mut Transaction<'_, Postgres>,
        schema: &SchemaName,
        migrations: &[Migration],
    ) -> Result<(), Failed> {
        let from = &self.quoted;
        let applied: Vec<&Migration> =
            migrations.iter().filter(|migration| is_applied(migration, &self.applied)).collect();
        let made: Vec<(&str, &str)> =
            applied.iter().flat_map(|migration| made(migration.sql.as_str())).collect();
        execute(db, format!("lock table {from}.{TABLE} in access exclusive mode")).await?;
        if made.contains(&("table", "workers")) {
            // A worker that beats meanwhile waits, and then finds no table.
            execute(db, format!("lock table {from}.workers in access exclusive mode")).await?;
            self.refuse_while_a_worker_beats(db, schema).await?;
        }
        make_schema(db, schema).await?;
        for (kind, name) in made {
            // The kinds that migrations may take away again.
            let if_there = if kind == "domain" { "" } else { "if exists" };
            execute(db, format!("alter {kind} {if_there} {from}.{name} set schema \"{schema}\"")).await?;
        }
        let versions: Vec<i64> = applied.iter().map(|migration| migration.version).collect();
        self.move_record(db, schema, &versions).await
    }

    /// Takes errand's own rows of the table of migrations along, and the table where it has no others.
    async fn move_record(
        &self,
        db: &mut Transaction<'_, Postgres>,
        schema: &SchemaName,
        versions: &[i64],
    ) -> Result<(), Failed> {
        let from = &self.quoted;
        execute(db, format!("set local search_path = '{schema}'")).await?;
        db.ensure_migrations_table(TABLE).await?;
        let columns = "version, description, installed_on, success, checksum, execution_time";
        let move_rows = format!(
            "with gone as (delete from {from}.{TABLE} where version = any($1) returning {columns})
            insert into \"{schema}\".{TABLE} ({columns}) select {columns} from gone"
        );
        sqlx::query(AssertSqlSafe(move_rows)).bind(versions).execute(&mut **db).await?;
        let is_shared = format!("select exists (select from {from}.{TABLE})");
        if !sqlx::query_scalar::<_, bool>(AssertSqlSafe(is_shared)).fetch_one(&mut **db).await? {
            execute(db, format!("drop table {from}.{TABLE}")).await?;
        }
        Ok(())
    }

    /// Workers have the place of their tables from their start on.
    async fn refuse_while_a_worker_beats(
        &self,
        db: &mut PgConnection,
        schema: &SchemaName,
    ) -> Result<(), Failed> {
        // The lease is read from the row as JSON, because builds before migration 10 have no such column.
        let beating = format!(
            "select name, age, lease from (
                select name, extract(epoch from clock_timestamp() - beat_at)::float8 as age,
                    coalesce((to_jsonb(w) ->> 'lease_ms')::bigint, {USUAL_LEASE_MS}) / 1000.0::float8 as lease
                from {}.workers w) as beats
            where age < lease order by age limit 1",
            self.quoted
        );
        let beating: Option<PgRow> = sqlx::query(AssertSqlSafe(beating)).fetch_optional(db).await?;
        let Some(row) = beating else { return Ok(()) };
        let name: String = row.try_get("name")?;
        let (age, lease): (f64, f64) = (row.try_get("age")?, row.try_get("lease")?);
        let from = &self.schema;
        Err(refusal(format!(
            "errand's tables move from the schema `{from}` to `{schema}`, but only while no worker runs, and the worker \
             `{name}` has beaten {age:.0} s ago: stop all workers and run `errand migrate` again (one that was killed \
             counts for {lease:.0} s), or leave the tables where they are by `store.schema = \"{from}\"`"
        )))
    }

    /// What a newer build has made, this one does not know, and would leave behind.
    fn refuse_newer(&self, schema: &SchemaName, migrations: &[Migration]) -> Result<(), Failed> {
        let is_newer = |applied: &&AppliedMigration| {
            applied.version <= LARGEST_NUMBER
                && migrations.iter().all(|known| known.version != applied.version)
        };
        let Some(newer) = self.applied.iter().find(is_newer) else { return Ok(()) };
        let (from, version) = (&self.schema, newer.version);
        Err(refusal(format!(
            "errand's tables are in the schema `{from}` and would move to `{schema}`, but migration {version} there is \
             unknown to this build: run `errand migrate` of the newer build, or leave the tables where they are by \
             `store.schema = \"{from}\"`"
        )))
    }
}

/// What a migration makes, by kind and name.
fn made(sql: &str) -> impl Iterator<Item = (&str, &str)> {
    sql.lines().filter_map(|line| {
        let rest = line.strip_prefix("create ")?;
        let (kind, rest) = rest.strip_prefix("or replace ").unwrap_or(rest).split_once(' ')?;
        let name = rest.strip_prefix("if not exists ").unwrap_or(rest).split([' ', '(', ';']).next()?;
        // Indexes and sequences go with their tables.
        ["table", "domain", "view"].contains(&kind).then_some((kind, name))
    })
}

async fn execute(db: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(db).await.map(drop)
}

fn refusal(message: String) -> Failed {
    StoreError::new(StoreErrorKind::Access, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_migration_makes_is_read_from_it() {
        let sql = "-- create table no\ncreate domain d as text;\ncreate table t (\n    a int\n);\n\
            create unique index i on t (a);\ncreate or replace view v as\n    select a from t;\n";
        assert_eq!(made(sql).collect::<Vec<_>>(), [("domain", "d"), ("table", "t"), ("view", "v")]);
    }
}
