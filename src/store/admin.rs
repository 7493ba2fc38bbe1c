//! The database itself.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;

use super::Result;

pub(super) const APPLIED: &str = "select version from _sqlx_migrations where success order by version";

#[async_trait]
pub trait Admin: fmt::Debug + Send + Sync {
    /// What kind of database this is, for people: `PostgreSQL` or `SQLite`.
    fn backend(&self) -> &'static str;

    /// Host and port, or the file, for people.
    fn address(&self) -> String;

    /// Applies the migrations that are missing; returns how many. Several processes may call it at once. It waits for
    /// others as long as it takes, and logs again and again what it waits for.
    async fn migrate(&self) -> Result<usize>;

    /// Looks at what the database is like, whatever its schema is. An error of kind `Access` says that errand cannot
    /// work with it until somebody acts; a concern says what may cost committed work, or stops it for now.
    async fn inspect(&self) -> Result<Vec<Concern>>;

    async fn schema(&self) -> Result<Schema>;

    /// Answers if the store can be read, with its clock.
    async fn now(&self) -> Result<Timestamp>;

    async fn version(&self) -> Result<String>;

    async fn close(&self);
}

/// What an operator should know of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    pub message: String,
    pub advice: &'static str,
}

/// Whether the schema is what this build expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    Current,
    Behind {
        missing: usize,
    },
    /// The database was migrated by a newer build, which is fine: migrations only add.
    Ahead,
}
