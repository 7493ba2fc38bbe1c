//! Where an earlier build made errand's tables, and their way into the schema that the settings name.
//!
//! Builds before migration 16 made them in the first schema of the session's `search_path`, which is `public` mostly,
//! among the tables of whoever else uses the database.

use std::collections::HashSet;

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction,
    migrate::{AppliedMigration, Migrate as _, Migration},
    postgres::PgRow,
};

use super::{SchemaName, failed_migration::Failed};
use crate::store::{
    Concern, Schema, StoreError, StoreErrorKind, Weight,
    migrations::{TABLE, are_errands, is_applied},
};

/// errand's migrations have four digits. A larger number in the same table is of somebody else, such as a date.
const LARGEST_NUMBER: i64 = 9_999;

/// The lease of workers of a build that did not tell the others its own, in milliseconds.
const USUAL_LEASE_MS: i64 = 30_000;

/// What the record of migrations says in a schema that the tables have left, so that an earlier build, which looks there,
/// finds migrations missing and fails to apply them instead of making a second set of tables.
const TOMBSTONE_VERSION: i64 = 1;
const TOMBSTONE_CHECKSUM: &[u8] = &[0];

/// A schema with errand's tables.
pub(super) struct Place {
    pub(super) schema: String,
    /// As statements have it.
    quoted: String,
    /// What was applied there; nothing where this role may not read it.
    applied: Option<Vec<AppliedMigration>>,
}

/// Whether errand's tables are in this schema.
pub(super) async fn is_here(
    db: &mut PgConnection,
    schema: &SchemaName,
    migrations: &[Migration],
) -> sqlx::Result<bool> {
    if !has_record(db, schema).await? {
        return Ok(false);
    }
    Ok(are_errands(migrations, &applied_in(db, &format!("\"{schema}\"")).await?))
}

/// Where errand's tables are beside this schema: in one of those that a session without errand's settings looks into.
pub(super) async fn elsewhere(
    db: &mut PgConnection,
    schema: &SchemaName,
    migrations: &[Migration],
) -> sqlx::Result<Option<Place>> {
    let path = "select current_schemas(false)::text[]";
    let path: Vec<String> = sqlx::query_scalar(path).fetch_one(&mut *db).await?;
    for candidate in path.iter().filter(|candidate| *candidate != schema.as_str()) {
        if let Some(place) = Place::find(db, candidate, migrations).await? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// Whether the schema has a table of migrations, whose ever it is.
async fn has_record(db: &mut PgConnection, schema: &SchemaName) -> sqlx::Result<bool> {
    let record = format!("\"{schema}\".{TABLE}");
    sqlx::query_scalar("select to_regclass($1) is not null").bind(record).fetch_one(db).await
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
    /// errand's tables in this schema, if they are there. What the role may not read counts, too, if there are tables of
    /// these names beside it.
    pub(super) async fn find(
        db: &mut PgConnection,
        schema: &str,
        migrations: &[Migration],
    ) -> sqlx::Result<Option<Self>> {
        let first = migrations.iter().take(1).flat_map(|first| made(first.sql.as_str()));
        let tables: Vec<&str> = first.filter(|(kind, _)| *kind == "table").map(|(_, name)| name).collect();
        let facts = format!(
            "select quote_ident(n.nspname) as quoted,
                has_schema_privilege(n.oid, 'usage') and has_table_privilege(record.oid, 'select') as is_readable,
                cardinality($2) = (select count(*) from pg_class t
                    where t.relnamespace = n.oid and t.relkind in ('r', 'p') and t.relname = any($2)) as has_tables
            from pg_namespace n join pg_class record on record.relnamespace = n.oid and record.relname = '{TABLE}'
            where n.nspname = $1 and 3 = (select count(*) from pg_attribute
                where attrelid = record.oid and attname in ('version', 'checksum', 'success'))"
        );
        let facts = sqlx::query(AssertSqlSafe(facts)).bind(schema).bind(tables).fetch_optional(&mut *db);
        let Some(facts) = facts.await? else { return Ok(None) };
        let quoted: String = facts.try_get("quoted")?;
        let applied = match facts.try_get("is_readable")? {
            true => Some(applied_in(db, &quoted).await?),
            false => None,
        };
        let is_errands = match &applied {
            Some(applied) => are_errands(migrations, applied),
            None => facts.try_get("has_tables")?,
        };
        Ok(is_errands.then(|| Self { schema: schema.to_owned(), quoted, applied }))
    }

    /// That the tables are here and not in the schema that the settings name. Those that this role may not read are an
    /// error, because nobody knows what they are.
    pub(super) fn instead(self) -> Result<Schema, StoreError> {
        self.applied()?;
        Ok(Schema::Elsewhere { can_stay: self.can_stay(), schema: self.schema })
    }

    /// Makes no second set of tables, nor takes these without being told.
    pub(super) fn refused(self) -> StoreError {
        match self.instead().map(|schema| schema.problem()) {
            Ok(problem) => {
                let (problem, advice) = problem.unwrap_or_default();
                StoreError::new(StoreErrorKind::Access, format!("{problem}; {advice}"))
            }
            Err(unreadable) => unreadable,
        }
    }

    /// That there are tables here, too.
    pub(super) fn beside(&self) -> Concern {
        Concern {
            weight: Weight::Risk,
            message: format!(
                "errand's tables are in the schema `{}`, too: where a restored backup or an earlier build has made them, \
                 workers of both take jobs from the same queues, and a job that comes to both is called twice",
                self.schema
            ),
            advice: "stop all workers, find out which of both have the jobs that count, and drop the others; if they are \
                     another installation's, with queues of its own, take that schema out of the `search_path` of this \
                     one's role",
        }
    }

    /// Whether `store.schema` may be what this one is called.
    fn can_stay(&self) -> bool {
        self.schema.parse::<SchemaName>().is_ok()
    }

    /// The other way, where there is one.
    fn or_stay(&self) -> String {
        match self.can_stay() {
            true => format!(", or leave the tables where they are by `store.schema = \"{}\"`", self.schema),
            false => String::new(),
        }
    }

    /// Moves everything that errand's migrations have made here, and their record, in one transaction. What others have
    /// in this schema stays, also their rows of the table of migrations.
    pub(super) async fn move_to(
        &self,
        db: &mut PgConnection,
        schema: &SchemaName,
        migrations: &[Migration],
    ) -> Result<(), Failed> {
        let applied = self.applied()?;
        self.refuse_newer(schema, migrations, applied)?;
        let applied: Vec<&Migration> =
            migrations.iter().filter(|migration| is_applied(migration, applied)).collect();
        let mut transaction = db.begin().await?;
        match self.moved(&mut transaction, schema, &applied).await {
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
        applied: &[&Migration],
    ) -> Result<(), Failed> {
        let from = &self.quoted;
        let mut made: Vec<(&str, &str)> =
            applied.iter().flat_map(|migration| made(migration.sql.as_str())).collect();
        // What a later migration replaces is one thing.
        let mut known = HashSet::new();
        made.retain(|thing| known.insert(*thing));
        execute(db, format!("lock table {from}.{TABLE} in access exclusive mode")).await?;
        if made.contains(&("table", "workers")) {
            // A worker that beats meanwhile waits, and then finds no table.
            execute(db, format!("lock table {from}.workers in access exclusive mode")).await?;
            self.refuse_while_a_worker_beats(db, schema).await?;
        }
        make_schema(db, schema).await?;
        for (kind, name) in made {
            // The kinds that migrations may take away again.
            let if_there = if ["domain", "function"].contains(&kind) { "" } else { "if exists" };
            execute(db, format!("alter {kind} {if_there} {from}.{name} set schema \"{schema}\"")).await?;
        }
        let versions: Vec<i64> = applied.iter().map(|migration| migration.version).collect();
        self.move_record(db, schema, &versions).await
    }

    /// Takes errand's own rows of the table of migrations along. Where others have none in it, what stays is a tombstone.
    async fn move_record(
        &self,
        db: &mut Transaction<'_, Postgres>,
        schema: &SchemaName,
        versions: &[i64],
    ) -> Result<(), Failed> {
        let from = &self.quoted;
        execute(db, format!("set local search_path = '{schema}'")).await?;
        if has_record(db, schema).await? {
            let forget = format!("delete from \"{schema}\".{TABLE} where version = $1 and checksum = $2");
            let forget = sqlx::query(AssertSqlSafe(forget)).bind(TOMBSTONE_VERSION).bind(TOMBSTONE_CHECKSUM);
            forget.execute(&mut **db).await?;
        } else {
            db.ensure_migrations_table(TABLE).await?;
            self.copy_rights(db, schema).await?;
        }
        let columns = "version, description, installed_on, success, checksum, execution_time";
        let move_rows = format!(
            "with gone as (delete from {from}.{TABLE} where version = any($1) returning {columns})
            insert into \"{schema}\".{TABLE} ({columns}) select {columns} from gone"
        );
        sqlx::query(AssertSqlSafe(move_rows)).bind(versions).execute(&mut **db).await?;
        // Other applications do not bear migrations that they do not know.
        let tombstone = format!(
            "insert into {from}.{TABLE} (version, description, success, checksum, execution_time)
            select $1, 'moved to schema {schema}', true, $2, 0 where not exists (select from {from}.{TABLE})"
        );
        let tombstone =
            sqlx::query(AssertSqlSafe(tombstone)).bind(TOMBSTONE_VERSION).bind(TOMBSTONE_CHECKSUM);
        tombstone.execute(&mut **db).await?;
        Ok(())
    }

    /// Gives the new table of migrations to whom errand's other tables belong, and to read to those who could.
    async fn copy_rights(
        &self,
        db: &mut Transaction<'_, Postgres>,
        schema: &SchemaName,
    ) -> Result<(), Failed> {
        let statements = format!(
            "select format('grant %s on {TABLE} to %s', privilege_type,
                case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
            from pg_class, aclexplode(relacl) where oid = '{from}.{TABLE}'::regclass and grantee <> relowner
            union all select format('alter table {TABLE} owner to %I', pg_get_userbyid(relowner))
            from pg_class where oid = '\"{schema}\".jobs'::regclass",
            from = self.quoted.replace('\'', "''"),
        );
        let statements: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(statements)).fetch_all(&mut **db).await?;
        for statement in statements {
            execute(db, statement).await?;
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
        Err(refusal(format!(
            "errand's tables move from the schema `{}` to `{schema}`, but only while no worker runs, and the worker \
             `{name}` has beaten {age:.0} s ago: stop all workers and run this again (one that was killed counts for \
             {lease:.0} s){}",
            self.schema,
            self.or_stay()
        )))
    }

    /// What was applied, or an error that says how the role comes to read it.
    fn applied(&self) -> Result<&[AppliedMigration], StoreError> {
        let message = || {
            format!(
                "tables that are called like errand's are in the schema `{schema}`, and this role may not read `{TABLE}` \
                 there: run this as their owner, or let the owner execute `grant select on {quoted}.{TABLE} to ROLE`; if \
                 they are another installation's, take that schema out of the `search_path` of this one's role",
                schema = self.schema,
                quoted = self.quoted
            )
        };
        self.applied.as_deref().ok_or_else(|| StoreError::new(StoreErrorKind::Access, message()))
    }

    /// What a newer build has made, this one does not know, and would leave behind.
    fn refuse_newer(
        &self,
        schema: &SchemaName,
        migrations: &[Migration],
        applied: &[AppliedMigration],
    ) -> Result<(), Failed> {
        let is_newer = |applied: &&AppliedMigration| {
            applied.version <= LARGEST_NUMBER
                && migrations.iter().all(|known| known.version != applied.version)
        };
        let Some(newer) = applied.iter().find(is_newer) else { return Ok(()) };
        Err(refusal(format!(
            "errand's tables are in the schema `{}` and would move to `{schema}`, but migration {} there is unknown to \
             this build: move them with the newer build{}",
            self.schema,
            newer.version,
            self.or_stay()
        )))
    }
}

/// What a migration makes, by kind and name, or signature.
fn made(sql: &str) -> impl Iterator<Item = (&str, &str)> {
    sql.lines().filter_map(|line| {
        let rest = line.strip_prefix("create ")?;
        let (kind, rest) = rest.strip_prefix("or replace ").unwrap_or(rest).split_once(' ')?;
        let rest = rest.strip_prefix("if not exists ").unwrap_or(rest);
        let name = match kind {
            // Somebody else's may have the same name.
            "function" => &rest[..=rest.find(')')?],
            _ => rest.split([' ', '(', ';']).next()?,
        };
        // Indexes and sequences go with their tables.
        ["table", "domain", "view", "function"].contains(&kind).then_some((kind, name))
    })
}

async fn execute(db: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(db).await.map(drop)
}

pub(super) fn refusal(message: String) -> Failed {
    StoreError::new(StoreErrorKind::Access, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_migration_makes_is_read_from_it() {
        let sql = "-- create table no\ncreate domain d as text;\ncreate table t (\n    a int\n);\n\
            create unique index i on t (a);\ncreate or replace view v as\n    select a from t;\n\
            create function f(a int) returns int language sql\nreturn a;\n";
        assert_eq!(
            made(sql).collect::<Vec<_>>(),
            [("domain", "d"), ("table", "t"), ("view", "v"), ("function", "f(a int)")]
        );
    }
}
