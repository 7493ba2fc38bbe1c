//! The migrations of both backends, which are embedded in the binary.

use sqlx::{
    SqlSafeStr as _,
    migrate::{AppliedMigration, MigrateError, Migration, MigrationType},
};

use super::{Result, Schema, read::StoreRow};

pub(super) const TABLE: &str = "_sqlx_migrations";

/// A migration whose text begins so is executed outside of a transaction.
const NO_TRANSACTION: &str = "-- no-transaction";

/// The given migrations: version, name and statements.
pub(super) fn all(migrations: &[(i64, &'static str, &'static str)]) -> Vec<Migration> {
    let migration = |(version, name, sql): &(i64, &'static str, &'static str)| {
        let outside = sql.starts_with(NO_TRANSACTION);
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), outside)
    };
    migrations.iter().map(migration).collect()
}

/// Those that are not applied yet. A database that a newer build has migrated is fine, because migrations only add.
pub(super) fn missing(
    all: Vec<Migration>,
    applied: &[AppliedMigration],
) -> Result<Vec<Migration>, MigrateError> {
    let find = |version| applied.iter().find(|applied| applied.version == version);
    let mut missing = Vec::new();
    for migration in all {
        match find(migration.version) {
            None => missing.push(migration),
            Some(applied) if applied.checksum == migration.checksum => {}
            Some(_) => return Err(MigrateError::VersionMismatch(migration.version)),
        }
    }
    Ok(missing)
}

/// What was applied, from rows with `version` and `checksum`.
pub(super) fn applied(rows: &[impl StoreRow]) -> Result<Vec<AppliedMigration>> {
    let applied = rows.iter().map(|row| {
        let checksum: Vec<u8> = row.read("checksum")?;
        Ok(AppliedMigration { version: row.read("version")?, checksum: checksum.into() })
    });
    applied.collect()
}

/// Whether what was applied under the number of this migration is this one, and not one of another application that
/// has the same table.
pub(super) fn is_applied(migration: &Migration, applied: &[AppliedMigration]) -> bool {
    applied.iter().any(|row| row.version == migration.version && row.checksum == migration.checksum)
}

/// Whether errand's tables are where this was applied.
pub(super) fn are_errands(all: &[Migration], applied: &[AppliedMigration]) -> bool {
    all.first().is_some_and(|first| is_applied(first, applied))
}

/// What was applied, and what that means for this build.
pub(super) fn compare(all: &[Migration], applied: &[AppliedMigration]) -> Schema {
    let missing = all.iter().filter(|migration| !is_applied(migration, applied)).count();
    let newer = applied.iter().any(|row| all.iter().all(|known| known.version != row.version));
    match (missing, newer) {
        (0, false) => Schema::Current,
        (0, true) => Schema::Ahead,
        (missing, _) => Schema::Behind { missing },
    }
}
