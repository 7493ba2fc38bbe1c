//! The migrations of both backends, which are embedded in the binary.

use sqlx::{
    SqlSafeStr as _,
    migrate::{AppliedMigration, MigrateError, Migration, MigrationType},
};

use super::Schema;

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

/// What the applied versions mean for this build.
pub(super) fn compare(migrations: &[(i64, &str, &str)], applied: &[i64]) -> Schema {
    let missing = migrations.iter().filter(|(version, ..)| !applied.contains(version)).count();
    let newer = applied.iter().any(|version| migrations.iter().all(|(known, ..)| known != version));
    match (missing, newer) {
        (0, false) => Schema::Current,
        (0, true) => Schema::Ahead,
        (missing, _) => Schema::Behind { missing },
    }
}
