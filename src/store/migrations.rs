//! The migrations of both backends, which are embedded in the binary.

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

use super::Schema;

pub(super) const TABLE: &str = "_sqlx_migrations";

/// What applies the given migrations: version, name and statements. The caller holds the lock. A
/// database that a newer build has migrated is fine, because migrations only add.
pub(super) fn migrator(migrations: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migrations = migrations
        .iter()
        .map(|(version, name, sql)| {
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
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
