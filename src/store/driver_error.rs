//! What an error of a database driver means to callers.

use sqlx::{error::DatabaseError, migrate::MigrateError, postgres::PgDatabaseError, sqlite::SqliteError};

use super::{
    StoreError, StoreErrorKind,
    postgres::{self, TOO_MANY_CONNECTIONS, TransactionPooler},
    sqlite,
};

/// Sorts every error, so that `?` works in the backends. Details that the server sends are dropped,
/// because they quote rows.
impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use StoreErrorKind::{Access, Corrupt, Data, Unavailable};
        match error {
            sqlx::Error::Database(error) => refused(&*error),
            sqlx::Error::PoolTimedOut => {
                Self::new(Unavailable, "the database does not answer: no connection became free in time")
            }
            sqlx::Error::PoolClosed => Self::new(Unavailable, "the store is closed"),
            sqlx::Error::Encode(_) => {
                Self::new(Data, "the database cannot store a value, such as a text with a NUL character")
            }
            sqlx::Error::ColumnDecode { index, .. } => Self::corrupt(&index),
            sqlx::Error::ColumnNotFound(column) => Self::corrupt(&column),
            sqlx::Error::Decode(_) | sqlx::Error::RowNotFound | sqlx::Error::TypeNotFound { .. } => {
                Self::new(Corrupt, "the database holds what errand never writes")
            }
            sqlx::Error::Configuration(error) if error.is::<TransactionPooler>() => {
                Self::new(Access, error.to_string())
            }
            sqlx::Error::Configuration(_) => {
                Self::new(Access, "the address of the database is not usable; check DATABASE_URL")
            }
            sqlx::Error::Migrate(error) => Self::from(*error),
            error => Self::new(Unavailable, "the database cannot be reached").with_source(error),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Self::from(error),
            error => Self::new(StoreErrorKind::Schema, "the database cannot be migrated").with_source(error),
        }
    }
}

/// The kind of an error that the database itself reports decides what of its text may be shown: a
/// refused value may be quoted in the message, so that message is dropped.
fn refused(error: &dyn DatabaseError) -> StoreError {
    let (kind, code) = if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        (postgres::kind_of(error), error.code().to_owned())
    } else if let Some(error) = error.try_downcast_ref::<SqliteError>() {
        (sqlite::kind_of(error), error.code().unwrap_or_default().into_owned())
    } else {
        (StoreErrorKind::Unavailable, String::new())
    };
    let message = error.message();
    let told = match kind {
        StoreErrorKind::Data => format!("the database refused a value (code {code})"),
        StoreErrorKind::Schema => format!("the schema is missing or too old: {message} (code {code})"),
        StoreErrorKind::Access if error.try_downcast_ref::<SqliteError>().is_some() => {
            format!(
                "the database file cannot be used: {message} (code {code}); check DATABASE_URL, and who may read and write \
                 the file and its folder"
            )
        }
        StoreErrorKind::Access => format!(
            "the database denies access: {message} (code {code}); check DATABASE_URL and the rights of its role, or run \
             `errand doctor`"
        ),
        StoreErrorKind::Unavailable if code == TOO_MANY_CONNECTIONS => format!(
            "the database has no connection left: {message} (code {code}); lower `store.hot_connections` and \
             `store.other_connections` of the workers, or raise what limits them"
        ),
        StoreErrorKind::Locked => format!(
            "another session has locked what is to be written: {message} (code {code}); `pg_blocking_pids` and \
             `pg_stat_activity` say which"
        ),
        // What somebody's own trigger says may quote the row.
        StoreErrorKind::Unavailable if code.starts_with("P0") => {
            format!("a function or trigger in the database raised an error (code {code})")
        }
        StoreErrorKind::Unavailable => format!("the database cannot answer now: {message} (code {code})"),
        StoreErrorKind::Corrupt => {
            format!("the database answers what errand cannot read: {message} (code {code})")
        }
    };
    StoreError::new(kind, told)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_broken_connection_leaves_open_what_became_of_a_statement() {
        let broken = sqlx::Error::Io(io::ErrorKind::ConnectionReset.into());
        assert!(StoreError::from(broken).is_unanswered());
        for nothing_was_sent in [sqlx::Error::PoolTimedOut, sqlx::Error::PoolClosed] {
            assert!(!StoreError::from(nothing_was_sent).is_unanswered());
        }
    }
}
