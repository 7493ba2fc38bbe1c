//! Why a step of a migration did not succeed, and what to do about it.

use sqlx::migrate::MigrateError;

use super::SchemaName;
use crate::{
    failure::chain,
    store::{StoreError, StoreErrorKind, migrations::TABLE},
};

/// Why a step of a migration did not succeed.
pub(super) enum Failed {
    Driver(MigrateError),
    /// What says itself what to do.
    Refused(StoreError),
}

impl Failed {
    pub(super) fn is_about_locks(&self) -> bool {
        self.refused_by_server().is_some_and(|(code, _)| ["55P03", "40P01"].contains(&&*code))
    }

    /// The code and the message of the server.
    fn refused_by_server(&self) -> Option<(String, &str)> {
        let Self::Driver(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = self
        else {
            return None;
        };
        let error = error.as_database_error()?;
        Some((error.code()?.into_owned(), error.message()))
    }

    /// The error that says what to do, which is never to migrate.
    pub(super) fn explained(self, schema: &SchemaName) -> StoreError {
        let own =
            "give errand a schema of its own: set `store.schema` to a name that nothing in the database has";
        let message = match (self.refused_by_server(), &self) {
            // A table, domain or other object of that name is there.
            (Some((code, message)), _) if ["42P07", "42710", "42723"].contains(&&*code) => format!(
                "what errand wants to make in the schema `{schema}` is there already, and not errand's: {message} \
                 (code {code}); {own}"
            ),
            (Some((code, message)), _) if code == "42501" => format!(
                "the role of errand may not change the schema `{schema}` or what errand has in the database: {message} \
                 (code {code}); run `errand migrate` as the role that owns errand's tables, which needs `grant usage, \
                 create on schema \"{schema}\"`"
            ),
            (_, Self::Driver(MigrateError::VersionMismatch(version))) => format!(
                "migration {version} in the table `{TABLE}` of the schema `{schema}` is not errand's, or was changed: \
                 either its `description` says that errand's tables have moved to another schema, which `store.schema` \
                 should name, or another application keeps its own there; {own}"
            ),
            _ => {
                let error = match self {
                    Self::Refused(error) => return error,
                    Self::Driver(error) => StoreError::from(error),
                };
                if error.kind() != StoreErrorKind::Schema {
                    return error;
                }
                format!("the schema `{schema}` cannot be brought up to date: {}", chain(&error))
            }
        };
        StoreError::new(StoreErrorKind::Access, message)
    }
}

impl From<MigrateError> for Failed {
    fn from(error: MigrateError) -> Self {
        Self::Driver(error)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error.into())
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}
