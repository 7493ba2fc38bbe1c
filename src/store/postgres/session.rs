//! How a session of the database begins, and what it is told about itself.

use std::{
    error::Error,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _, postgres::PgConnectOptions};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout, timeout_at},
};

use super::SchemaName;

pub(in crate::store) const TOO_MANY_CONNECTIONS: &str = "53300";

/// After this the server ends a session that stopped in the middle of a transaction.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// How long a login may take, and then the first answer. A pooler lets a client in and has it wait where the
/// connections to the server are used up.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a statement waits for a lock that another session holds. errand's own transactions are much shorter, so a
/// lock that is held for longer is somebody else's, and the rest of a batch must not wait for it. Half of the statement
/// timeout where that is less, because an end by that would not say that it was a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a session says of itself that took the settings of its start.
const MARK: &str = "errand.told";

/// Takes away the limit of a transaction, which servers before PostgreSQL 17 do not know.
pub(super) const UNLIMITED: &str = "case when current_setting('transaction_timeout', true) is null then true \
    else set_config('transaction_timeout', '0', false) is not null end";

/// How often both clients of [`refuse_transaction_pooler`] ask. Where a pooler has other traffic, chance may give each of
/// them the same session a few times.
const ROUNDS: usize = 3;

/// How to begin the sessions of a pool.
pub(super) struct Session {
    part: &'static str,
    /// As the URL says.
    plain: PgConnectOptions,
    /// With the settings, which overrule those of the role and of the database.
    told: PgConnectOptions,
    settings: Vec<(&'static str, String)>,
    statement_timeout: Duration,
    /// What stands between does not let settings pass, so they are made afterwards.
    tell_later: AtomicBool,
    /// Whether it was seen that what stands between keeps sessions apart.
    kept_apart: OnceCell<()>,
}

/// Why there is no connection.
pub(super) enum NoConnection {
    /// The server has none left for this client, or a pooler for all of its clients.
    Refused(sqlx::Error),
    /// The server is starting, nobody listens, or nothing answers.
    Away(sqlx::Error),
    Other(sqlx::Error),
}

impl Session {
    /// `more` are settings of this part alone, by name: how statements are planned, and as which role they run.
    pub(super) fn new(
        part: &'static str,
        plain: &PgConnectOptions,
        schema: &SchemaName,
        statement_timeout: Duration,
        more: &[(&'static str, &str)],
    ) -> Self {
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut settings = vec![
            // What was acknowledged or called must outlive a crash, also where the database or the role trades that
            // for speed.
            ("synchronous_commit", "on".to_owned()),
            ("statement_timeout", millis(statement_timeout)),
            ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION)),
            // Statements rely on seeing what others have committed meanwhile, and on waiting for their locks.
            ("default_transaction_isolation", "read committed".to_owned()),
            ("lock_timeout", millis(LOCK_TIMEOUT.min(statement_timeout / 2))),
            ("idle_session_timeout", "0".to_owned()),
            // Whatever else is in the database, tables of that name in other schemas are not errand's.
            ("search_path", schema.to_string()),
        ];
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        // `default_transaction_read_only` stays as it is: hosts set it when a disk is nearly full.
        let told = settings.iter().map(|(name, value)| (*name, value.as_str()));
        let told = plain.clone().options(told).options([(MARK, "on")]);
        let (tell_later, kept_apart) = (AtomicBool::default(), OnceCell::new());
        Self { part, plain: plain.clone(), told, settings, statement_timeout, tell_later, kept_apart }
    }

    /// For which part of errand the connections are.
    pub(super) fn part(&self) -> &'static str {
        self.part
    }

    /// Host and port of the database, or its socket, for people.
    pub(super) fn address(&self) -> String {
        match self.plain.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.plain.get_host(), self.plain.get_port()),
        }
    }

    pub(super) fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    pub(super) async fn connect(&self) -> Result<PgConnection, NoConnection> {
        if !self.tell_later.load(Ordering::Relaxed) {
            match login(&self.told).await {
                Err(error) if is_about_settings(&error) => self.tell_later.store(true, Ordering::Relaxed),
                connected => {
                    let mut connection = connected?;
                    let told = format!("current_setting('{MARK}', true) is not distinct from 'on'");
                    let ask = format!("select case when {told} then {UNLIMITED} else false end");
                    if first_answer(&mut connection, ask).await? {
                        return Ok(connection);
                    }
                    self.tell_later.store(true, Ordering::Relaxed);
                }
            }
        }
        // Settings must not be made in sessions that are other clients', too.
        self.kept_apart.get_or_try_init(|| refuse_transaction_pooler(&self.plain)).await?;
        let mut connection = login(&self.plain).await?;
        let mut set =
            self.settings.iter().map(|(name, value)| format!("set {name} = '{value}'; ")).collect::<String>();
        set.push_str(&format!("select {UNLIMITED}"));
        first_answer(&mut connection, set).await?;
        Ok(connection)
    }
}

/// The settings that the operator's role or database has, and no others.
pub(super) async fn login(options: &PgConnectOptions) -> Result<PgConnection, NoConnection> {
    match timeout(LOGIN_TIMEOUT, options.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(NoConnection::Away(sqlx::Error::PoolTimedOut)),
    }
}

async fn first_answer(connection: &mut PgConnection, statements: String) -> Result<bool, NoConnection> {
    // Unprepared, because a pooler may hand the next statement to another session.
    let asked = sqlx::raw_sql(AssertSqlSafe(statements)).fetch_one(connection);
    match timeout(FIRST_ANSWER_TIMEOUT, asked).await {
        Ok(row) => Ok(row?.try_get(0)?),
        Err(_) => Err(NoConnection::Refused(sqlx::Error::PoolTimedOut)),
    }
}

/// An error if a pooler stands between that gives each transaction, or each statement, to any session. Two clients ask
/// which session answers them. Sessions that are kept apart are never the same for both and never change; a pooler by
/// transaction that is idle answers both from one session, or in turn from several.
pub(super) async fn refuse_transaction_pooler(options: &PgConnectOptions) -> Result<(), NoConnection> {
    let mut clients = [
        login(options).await?,
        match login(options).await {
            Ok(second) => second,
            // With one connection nothing can be told.
            Err(_) => return Ok(()),
        },
    ];
    let deadline = Instant::now() + FIRST_ANSWER_TIMEOUT;
    let mut seen: [Option<String>; 2] = [None, None];
    for turn in 0..ROUNDS * 4 {
        let client = turn / 2 % 2;
        let ask = "select pg_backend_pid() || '@' || pg_postmaster_start_time()";
        let answered = timeout_at(deadline, sqlx::raw_sql(ask).fetch_one(&mut clients[client])).await;
        // A pooler by session has the second client wait where it has one connection only.
        let Ok(row) = answered else { return Ok(()) };
        let session = Some(row?.try_get::<String, _>(0)?);
        if seen[1 - client] == session || seen[client].is_some() && seen[client] != session {
            return Err(NoConnection::Other(sqlx::Error::Configuration(TransactionPooler.into())));
        }
        seen[client] = session;
    }
    Ok(())
}

/// A pooler that cannot be used.
#[derive(Debug)]
pub(in crate::store) struct TransactionPooler;

impl fmt::Display for TransactionPooler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a pooler such as pgbouncer stands before the database and gives every transaction to another session, \
             with which errand cannot work: set `pool_mode = session` for this database and user, or use the \
             database's own address",
        )
    }
}

impl Error for TransactionPooler {}

impl From<sqlx::Error> for NoConnection {
    fn from(error: sqlx::Error) -> Self {
        let database = error.as_database_error();
        // The second is pgbouncer's, which has no code of its own for it.
        if database.is_some_and(|error| {
            error.code().as_deref() == Some(TOO_MANY_CONNECTIONS)
                || error.message().starts_with("no more connections allowed")
        }) {
            return Self::Refused(error);
        }
        let away = match &error {
            sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            _ => database.is_some_and(|error| error.is_transient_in_connect_phase()),
        };
        if away {
            return Self::Away(error);
        }
        // Whatever a login refuses, it is not the values of a statement that was not sent yet.
        match database {
            Some(refused)
                if refused.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
            {
                Self::Other(sqlx::Error::Protocol(refused.message().to_owned()))
            }
            _ => Self::Other(error),
        }
    }
}

impl From<NoConnection> for sqlx::Error {
    fn from(error: NoConnection) -> Self {
        let (NoConnection::Refused(error) | NoConnection::Away(error) | NoConnection::Other(error)) = error;
        error
    }
}

/// Whether a pooler refuses the client for its settings.
fn is_about_settings(error: &NoConnection) -> bool {
    let NoConnection::Other(error) = error else { return false };
    error
        .as_database_error()
        .is_some_and(|error| error.message().starts_with("unsupported startup parameter"))
}
