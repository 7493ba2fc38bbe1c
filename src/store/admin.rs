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

    /// Applies the migrations that are missing; returns how many. Several processes may call it at once.
    async fn migrate(&self) -> Result<usize>;

    async fn schema(&self) -> Result<Schema>;

    /// Answers if the store can be read, with its clock.
    async fn now(&self) -> Result<Timestamp>;

    async fn version(&self) -> Result<String>;

    async fn close(&self);
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
