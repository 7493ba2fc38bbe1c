//! The database itself.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;

use super::Result;

pub(super) const APPLIED: &str =
    "select version, checksum from _sqlx_migrations where success order by version";

#[async_trait]
pub trait Admin: fmt::Debug + Send + Sync {
    /// What kind of database this is, for people: `PostgreSQL` or `SQLite`.
    fn backend(&self) -> &'static str;

    /// Host and port, or the file, for people.
    fn address(&self) -> String;

    /// Applies the migrations that are missing, and makes the second lock between owners as the settings want it. Several
    /// processes may call it at once. It waits for others as long as it takes, and logs again and again what it waits for.
    /// Where the tables are [`Schema::Elsewhere`], it makes no others: an error of kind `Access` says what to do.
    async fn migrate(&self) -> Result<Migrated>;

    /// Moves the tables from this schema of the database to the one of the settings, whole or not at all, unless they are
    /// there already, and then migrates. An error of kind `Access` says what to do where they cannot be moved now.
    async fn move_from(&self, schema: &str) -> Result<Migrated>;

    /// Looks at what the database is like, whatever its schema is. An error of kind `Access` says that errand cannot
    /// work with it until somebody acts; a concern says what may cost committed work, or stops it for now, or that a
    /// protection that was asked for is there.
    async fn inspect(&self) -> Result<Vec<Concern>>;

    async fn schema(&self) -> Result<Schema>;

    /// Answers if the store can be read, with its clock.
    async fn now(&self) -> Result<Timestamp>;

    async fn version(&self) -> Result<String>;

    async fn close(&self);
}

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// How many migrations were missing.
    pub applied: usize,
    /// Whether the second lock between owners was made, made anew, or taken away.
    pub is_lock_changed: bool,
}

/// What an operator should know of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    pub weight: Weight,
    pub message: String,
    /// What to do; empty where nothing is to be done.
    pub advice: &'static str,
}

/// How much something weighs that an operator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It is as the settings want it.
    Fine,
    /// It may go wrong.
    Risk,
    /// Somebody is answered with errors until it is mended.
    Fault,
}

/// Whether the schema is what this build expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schema {
    Current,
    Behind {
        missing: usize,
    },
    /// The database was migrated by a newer build, which is fine: migrations only add.
    Ahead,
    /// The tables are in this schema of the database, where an earlier build made them, and not in the one that the
    /// settings name.
    Elsewhere {
        schema: String,
        /// Whether the settings can name it.
        can_stay: bool,
    },
}

impl Schema {
    /// What keeps this build from working with it, and what to do, as one sentence each.
    pub fn problem(&self) -> Option<(String, String)> {
        match self {
            Self::Current | Self::Ahead => None,
            Self::Behind { missing: 1 } => {
                Some(("1 migration is missing".to_owned(), "run `errand migrate`".to_owned()))
            }
            Self::Behind { missing } => {
                Some((format!("{missing} migrations are missing"), "run `errand migrate`".to_owned()))
            }
            Self::Elsewhere { schema, can_stay } => {
                let problem = format!(
                    "errand's tables are in the schema `{schema}` of the database, where an earlier build or another installation made them, \
                     and `store.schema` names another"
                );
                let stay = match can_stay {
                    true => format!(", or leave them there by `store.schema = \"{schema}\"`"),
                    false => String::new(),
                };
                let advice = format!(
                    "stop all workers and run `errand migrate --move-from '{schema}'`{stay}; if they are another \
                     installation's, take that schema out of the `search_path` of this one's role"
                );
                Some((problem, advice))
            }
        }
    }
}
