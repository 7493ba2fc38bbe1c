//! The store in PostgreSQL 15 or newer.
//!
//! Claims and finishes are single statements over arrays, which commit by themselves, so that there
//! is nothing to roll back; what they leave over (known jobs, conflicts, late results) pays for
//! further statements. Every write runs in a task of its own: a dropped future never leaves a
//! connection in the middle of an exchange.
//!
//! There are three pools, so that reports and lists cannot keep claims and finishes waiting, and none of them the
//! heartbeat, which has a connection of its own. A fourth answers owners where a second lock keeps them apart
//! (`owner_lock`). Times are the server's.

use std::{fmt, sync::Arc, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgDatabaseError},
};

pub(super) use self::session::{TOO_MANY_CONNECTIONS, TransactionPooler};
use self::{
    pool::{Pool, Shelves},
    session::Session,
};
pub use self::{
    role_name::{NoRoleName, RoleName},
    schema_name::{NoSchemaName, SchemaName},
};
use super::{Result, Statement, Store, StoreError, StoreErrorKind, sql::all_statements};

mod access_keys;
mod actions;
mod admin;
mod answers;
mod audit;
mod batch;
mod batches;
mod callbacks;
mod changes;
mod checks;
mod claims;
mod connections;
mod events;
mod failed_migration;
mod finishes;
mod follow_up;
mod fragments;
mod history;
mod job_control;
mod job_inbox;
mod job_lists;
mod jobs;
mod leases;
mod migrate;
mod owner_lock;
mod pauses;
mod pins;
mod pool;
mod publications;
mod rejections;
mod relocation;
mod retention;
mod role_name;
mod schema_name;
mod session;

/// The longest that a heartbeat may take, so that one which gets stuck does not cost the lease by keeping the next ones.
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database?...`
    pub url: SecretString,
    /// Where errand's tables are. No session of errand looks into another schema.
    pub schema: SchemaName,
    /// The role as which the database answers owners, and by which it keeps them apart. `None`: errand alone does.
    pub tenant_role: Option<RoleName>,
    /// Connections for claims and finishes.
    pub hot_connections: u32,
    /// Connections for everything else but the heartbeat, which has one of its own. As many again are for what owners ask
    /// where there is a role for that.
    pub other_connections: u32,
    /// What the server's activity view shows.
    pub application_name: String,
    /// The server gives up on a statement after this; migrations are exempt.
    pub statement_timeout: Duration,
    /// Whether what this store writes is recorded as [`events`](super::Events).
    pub records_events: bool,
}

#[derive(Clone)]
pub struct PostgresStore {
    beat: Pool,
    hot: Pool,
    other: Pool,
    /// For sessions without the settings of the pools'.
    plain: PgConnectOptions,
    schema: SchemaName,
    tenant_role: Option<RoleName>,
    records_events: bool,
    /// Whose turn it is in this process to give positions to events.
    placing: Arc<tokio::sync::Mutex<()>>,
}

impl PostgresStore {
    /// A store that connects with the first call. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`StoreErrorKind::Access`] when the URL cannot be understood.
    pub fn new(options: PostgresOptions) -> Result<Self> {
        let PostgresOptions {
            url,
            schema,
            tenant_role,
            hot_connections,
            other_connections,
            application_name,
            statement_timeout,
            records_events,
        } = options;
        // The reason is dropped, because it can quote a part of the URL.
        let parsed: PgConnectOptions = url.expose_secret().parse().map_err(|_| {
            StoreError::new(
                StoreErrorKind::Access,
                "the database URL cannot be understood; it looks like `postgres://user:password@host:5432/database`",
            )
        })?;
        // No column has a type that the digits concern, and poolers refuse a session that asks for them.
        let plain =
            parsed.application_name(&application_name).extra_float_digits(None).disable_statement_logging();
        let shelves = Shelves::default();
        let pool = |part, connections, statement_timeout, more: &[_]| {
            Pool::new(connections, Session::new(part, &plain, &schema, statement_timeout, more), &shelves)
        };
        let beat = pool("heartbeats", 1, BEAT_TIMEOUT.min(statement_timeout), &[]).keeping();
        // Statements of the hot path address rows by their keys. A plan that was made while the
        // tables were empty would read them whole, and would be kept until statistics catch up.
        let keyed = [
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
        ];
        let hot = pool("claims and finishes", hot_connections, statement_timeout, &keyed);
        // Optional filters need plans that know which are given.
        let planned = [("plan_cache_mode", "force_custom_plan")];
        let mut other = pool("everything else", other_connections, statement_timeout, &planned);
        if let Some(role) = &tenant_role {
            let [plans] = planned;
            let settings = [plans, ("role", role.as_str())];
            other = other.with_owners_apart(pool("owners", other_connections, statement_timeout, &settings));
        }
        Ok(Self { beat, hot, other, plain, schema, tenant_role, records_events, placing: Arc::default() })
    }

    pub fn statements() -> impl Iterator<Item = &'static Statement> {
        all_statements!(follow_up job_inbox)
    }
}

impl Store for PostgresStore {}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

/// Sorts an error by its SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(super) fn kind_of(error: &PgDatabaseError) -> StoreErrorKind {
    kind_of_code(error.code())
}

/// What says nothing about the values that were sent must not be `Data`: a good job would be rejected for it.
fn kind_of_code(code: &str) -> StoreErrorKind {
    match code {
        "42P01" | "42703" | "42883" | "3F000" => return StoreErrorKind::Schema,
        "42501" | "3D000" => return StoreErrorKind::Access,
        "55P03" => return StoreErrorKind::Locked,
        // Limits of what one value or one statement may be.
        "54000" | "54001" | "54011" | "54023" => return StoreErrorKind::Data,
        _ => {}
    }
    match code.get(..2) {
        Some("22" | "23") => StoreErrorKind::Data,
        Some("28") => StoreErrorKind::Access,
        Some("42") => StoreErrorKind::Schema,
        Some("XX") => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeating_cannot_help_is_told_from_conditions_of_the_server() {
        for (code, condition) in [
            ("08006", "the connection broke"),
            ("25006", "read-only, as after a failover"),
            ("26000", "a prepared statement was lost behind a proxy"),
            ("40001", "serialization failure"),
            ("40P01", "deadlock"),
            ("53000", "insufficient resources"),
            ("53100", "disk full"),
            ("53200", "out of memory"),
            ("53300", "too many connections"),
            ("53400", "a limit of the configuration"),
            ("57014", "cancelled, by a person or by the statement timeout"),
            ("57P01", "the backend was terminated"),
            ("57P02", "the server crashed"),
            ("57P03", "the server is starting or stopping"),
            ("58030", "an I/O error"),
            ("P0001", "a trigger of somebody else objects"),
            ("", "nothing is known"),
        ] {
            assert_eq!(kind_of_code(code), StoreErrorKind::Unavailable, "{code}: {condition}");
        }
        for (code, kind) in [
            ("22P05", StoreErrorKind::Data),
            ("22021", StoreErrorKind::Data),
            ("23514", StoreErrorKind::Data),
            ("54000", StoreErrorKind::Data),
            ("28P01", StoreErrorKind::Access),
            ("3D000", StoreErrorKind::Access),
            ("42501", StoreErrorKind::Access),
            ("42P01", StoreErrorKind::Schema),
            ("42703", StoreErrorKind::Schema),
            ("XX001", StoreErrorKind::Corrupt),
            ("55P03", StoreErrorKind::Locked),
        ] {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }
}
