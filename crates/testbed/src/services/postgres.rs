//! Private PostgreSQL servers.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};

use super::{
    guard::{Guard, Process},
    machine,
    place::Place,
    server::{self, Installation as _, Server},
};

/// Long enough for recovery with fsync on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Of the log of a server, what is written over rather than made anew: as much as it may grow by default between two
/// checkpoints. One file has 16 MB.
const RECYCLED_MB: usize = 1024;
const LOG_FILE_MB: usize = 16;

/// How a private server is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether a commit waits for the disk. Tests leave it off, because killing a process loses nothing that
    /// the kernel has already; a benchmark turns it on and says so.
    pub fsync: bool,
    /// More settings, as in `postgresql.conf`.
    pub settings: Vec<(&'static str, String)>,
}

/// A database of its own. It is gone with its server, or when the server makes other ones after the last clone was dropped.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its URL, as `DATABASE_URL` takes it.
    pub url: String,
    /// Its name in the server.
    pub name: String,
    #[expect(dead_code, reason = "it tells by being dropped that the database is used no more")]
    used: Arc<Used>,
}

/// A name that is among those that are left once it is dropped.
#[derive(Debug)]
struct Used {
    name: String,
    left: Left,
}

/// The databases that nobody uses any more. A run of tests makes a thousand, of ten megabytes each.
type Left = Arc<Mutex<Vec<String>>>;

impl Drop for Used {
    fn drop(&mut self) {
        lock(&self.left).push(std::mem::take(&mut self.name));
    }
}

fn lock(left: &Left) -> MutexGuard<'_, Vec<String>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Database {
    /// The same database, by another URL.
    #[must_use]
    pub fn by(&self, url: String) -> Self {
        Self { url, ..self.clone() }
    }

    /// One connection, for looking at what the code under test has written, which finds errand's tables.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        connect(&self.url).await
    }
}

/// A connection that finds errand's tables in errand's schema, and all others as usual. The code under test is given the
/// plain URL.
///
/// # Errors
/// The server does not answer.
pub async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    PgConnection::connect_with(&options.options([("search_path", "errand,public")])).await
}

/// A server that is gone, with its data, when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Postgres {
    server: Server<Installation>,
    left: Left,
}

impl Postgres {
    /// Starts a server, and returns when it answers.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub async fn start(place: &Place, options: Options) -> Result<Postgres> {
        let place = place.clone();
        machine::blocking(move || Postgres::start_blocking(&place, &options)).await
    }

    /// The same, for a thread that may wait.
    ///
    /// # Errors
    /// As for `start`.
    pub fn start_blocking(place: &Place, options: &Options) -> Result<Postgres> {
        let directories = machine::versions(Path::new("/usr/lib/postgresql"), "bin");
        let postgres = machine::program("postgres", "postgresql", &directories)?;
        let start = || Server::start(Installation::create(place, &postgres, options)?);
        let server = machine::start_with_retries(Installation::SERVICE, start)?;
        Ok(Self { server, left: Left::default() })
    }

    /// The URL of the database `postgres`. It stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.installation().url("postgres")
    }

    /// The loopback port, for a proxy in front of the server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.installation().port
    }

    /// Creates an empty database, whose name begins with the hint.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn database(&self, hint: &str) -> Result<Database> {
        self.copy_of("template1", hint).await
    }

    /// Creates a copy of a database to which nobody is connected, whose name begins with the hint.
    ///
    /// # Errors
    /// The server does not answer, or somebody stays connected to the original for seconds.
    pub async fn copy_of(&self, original: &str, hint: &str) -> Result<Database> {
        let name = self.server.name(hint);
        let left = lock(&self.left).pop();
        create_database(&self.url(), &name, original, left.as_deref()).await.context("create a database")?;
        let used = Arc::new(Used { name: name.clone(), left: self.left.clone() });
        Ok(Database { url: self.server.installation().url(&name), name, used })
    }

    /// Has a process follow what the server writes, as an asynchronous standby does, for as long as the server is there.
    ///
    /// # Errors
    /// `pg_receivewal`, which comes with the server, does not start.
    pub async fn follow(&self) -> Result<Process> {
        let server = self.clone();
        machine::blocking(move || {
            let Installation { guard, postgres, port, .. } = server.server.installation();
            let args = ["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "errand", "-D", "."];
            guard.launch(&postgres.with_file_name("pg_receivewal"), &args.map(str::to_owned), &[])
        })
        .await
    }

    /// Has the server write over the files of its log, as one does that has run for a while, instead of making each when it
    /// is needed, which holds up every commit. A benchmark of a new server would measure that.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn recycle_log(&self) -> Result<()> {
        let mut connection = connect(&self.url()).await?;
        for statement in [
            format!("alter system set min_wal_size = '{RECYCLED_MB}MB'"),
            "select pg_reload_conf()".to_owned(),
        ] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        for _ in 0..RECYCLED_MB / LOG_FILE_MB {
            let statement = "select pg_logical_emit_message(false, 'errand', ''), pg_switch_wal()";
            sqlx::query(statement).execute(&mut connection).await?;
        }
        sqlx::query("checkpoint").execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Kills the server and all its backends with SIGKILL, and returns when they are gone.
    ///
    /// # Errors
    /// They cannot be killed.
    pub async fn kill9(&self) -> Result<()> {
        self.server.kill9().await
    }

    /// Shuts down cleanly; open connections are closed. Kills what has not ended after 20 seconds.
    ///
    /// # Errors
    /// The server cannot be stopped.
    pub async fn stop(&self) -> Result<()> {
        self.server.stop().await
    }

    /// Starts again on the same data and port, after a clean stop if the server runs.
    ///
    /// # Errors
    /// The server does not stop or does not start.
    pub async fn restart(&self) -> Result<()> {
        self.server.restart().await
    }

    /// Stops all processes of the server where they are; connections stay open and nothing answers.
    ///
    /// # Errors
    /// No signal can be sent.
    pub async fn pause(&self) -> Result<()> {
        self.server.pause().await
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// No signal can be sent.
    pub async fn resume(&self) -> Result<()> {
        self.server.resume().await
    }
}

/// What stays the same over restarts.
#[derive(Debug)]
struct Installation {
    guard: Guard,
    postgres: PathBuf,
    port: u16,
    settings: Vec<String>,
}

impl Installation {
    fn create(place: &Place, postgres: &Path, options: &Options) -> Result<Installation> {
        let guard = Guard::new(place, "pg", machine::unprivileged()?)?;
        let directory = guard.directory().display().to_string();
        ensure!(directory.len() < 90, "{directory} is too long a path for a socket in it");
        initialize(&guard, &postgres.with_file_name("initdb"))?;
        let settings = settings(options, &directory);
        Ok(Installation { guard, postgres: postgres.to_owned(), port: place.free_port()?, settings })
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://errand@127.0.0.1:{}/{database}", self.port)
    }
}

impl server::Installation for Installation {
    const SERVICE: &'static str = "PostgreSQL";
    const STOP_SIGNAL: &'static str = "INT";
    const STOP_LIMIT: Duration = Duration::from_secs(20);

    fn run(&self) -> Result<Process> {
        let mut args = vec!["-D".to_owned(), "data".to_owned(), "-p".to_owned(), self.port.to_string()];
        args.extend(self.settings.iter().flat_map(|setting| ["-c".to_owned(), setting.clone()]));
        let mut process = self.guard.launch(&self.postgres, &args, &[])?;
        process
            .wait_ready(START_LIMIT, || answers(self.port))
            .with_context(|| format!("the server wrote:\n{}\nand", self.guard.output()))?;
        Ok(process)
    }
}

/// Creates a copy of a database in the server of this URL, after one that is left was removed, with whoever is still
/// connected to it; where that fails, it goes with its server. The files are copied, which PostgreSQL 15 has to be told, because it would else write each page a second
/// time, into its log. The names are those that [`machine::name`] made, so they have no quotes of their own; they are quoted
/// because a word may be one of the language.
async fn create_database(url: &str, name: &str, original: &str, left: Option<&str>) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    if let Some(name) = left {
        let statement = format!("drop database if exists \"{name}\" with (force)");
        drop(sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await);
    }
    let statement = format!("create database \"{name}\" template \"{original}\" strategy file_copy");
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

fn initialize(guard: &Guard, initdb: &Path) -> Result<()> {
    let args = ["-D", "data", "-U", "errand", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"];
    let status = guard.launch(initdb, &args.map(str::to_owned), &[])?.wait(START_LIMIT)?;
    match status {
        Some(status) if status.success() => Ok(()),
        _ => bail!("initdb failed ({status:?})\n{}", guard.output()),
    }
}

fn settings(options: &Options, directory: &str) -> Vec<String> {
    let fsync = if options.fsync { "on" } else { "off" };
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("unix_socket_directories={directory}"),
        format!("fsync={fsync}"),
        // `synchronous_commit` stays on: without it a killed server loses rows that it has confirmed.
        "max_connections=300".to_owned(),
        // Tests start several servers and need little; a benchmark gets what servers have by default.
        format!("shared_buffers={}", if options.fsync { "128MB" } else { "64MB" }),
    ];
    settings.extend(options.settings.iter().map(|(name, value)| format!("{name}={value}")));
    settings
}

/// Whether a session can be opened: a server that still recovers accepts connections and refuses sessions.
fn answers(port: u16) -> bool {
    let parameters = b"\0\x03\0\0user\0errand\0database\0postgres\0\0";
    let mut request = (parameters.len() as u32 + 4).to_be_bytes().to_vec();
    request.extend_from_slice(parameters);
    machine::ask(port, &request) == Some(*b"R")
}
