//! Private PostgreSQL servers: one that all tests share, and those that a test breaks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::guard::{Guard, Process};
use super::machine;

/// Long enough for recovery with fsync on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How a private server is set up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Whether a commit waits for the disk. Tests leave it off, because killing a process loses nothing that
    /// the kernel has already; a benchmark turns it on and says so.
    pub(crate) fsync: bool,
    /// More settings, as in `postgresql.conf`.
    pub(crate) settings: Vec<(&'static str, String)>,
}

/// A database of its own, in a server that lives at least as long as the test.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Database {
    /// One connection, for looking at what the code under test has written.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("connect to the test database")
    }
}

/// The server that all tests of this process share. It cannot be stopped or paused.
#[derive(Debug)]
pub(crate) struct Shared(Postgres);

impl Shared {
    /// Creates an empty database.
    pub(crate) async fn database(&self, hint: &str) -> Database {
        self.0.database(hint).await
    }
}

/// Starts the shared server when the first test asks for it.
pub(crate) async fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    machine::blocking(|| SHARED.get_or_init(|| Shared(Postgres::start_blocking(Options::default())))).await
}

/// A server that one test owns. It is gone, with its data, when the value is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Postgres {
    server: Arc<Server>,
}

impl Postgres {
    pub(crate) async fn start(options: Options) -> Postgres {
        machine::blocking(|| Postgres::start_blocking(options)).await
    }

    fn start_blocking(options: Options) -> Postgres {
        let server = machine::start_with_retries("PostgreSQL", || Server::start(&options));
        Postgres { server: Arc::new(server) }
    }

    /// The URL of the database `postgres`. It stays the same over restarts.
    pub(crate) fn url(&self) -> String {
        self.server.installation.url("postgres")
    }

    /// The loopback port, for a proxy in front of the server.
    pub(crate) fn port(&self) -> u16 {
        self.server.installation.port
    }

    /// Creates an empty database.
    pub(crate) async fn database(&self, hint: &str) -> Database {
        let name = machine::unique(hint);
        let mut admin = PgConnection::connect(&self.url()).await.expect("connect to PostgreSQL");
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
            .execute(&mut admin)
            .await
            .expect("create a database");
        admin.close().await.expect("close the connection");
        Database { url: self.server.installation.url(&name), name }
    }

    /// Kills the server and all its backends with SIGKILL, and returns when they are gone.
    pub(crate) async fn kill9(&self) {
        self.with_server(|server| server.process().kill()).await;
    }

    /// Shuts down cleanly; open connections are closed.
    pub(crate) async fn stop(&self) {
        self.with_server(|server| {
            let mut process = server.process();
            process.signal("INT");
            // A paused server would never notice.
            process.signal_tree("CONT");
            process.wait(STOP_LIMIT);
        })
        .await;
    }

    /// Starts again on the same data and port, after a clean stop if the server runs.
    pub(crate) async fn restart(&self) {
        self.stop().await;
        self.with_server(|server| {
            let process = server
                .installation
                .run()
                .unwrap_or_else(|error| panic!("PostgreSQL does not restart: {error}"));
            *server.process() = process;
        })
        .await;
    }

    /// Stops all processes of the server where they are; connections stay open and nothing answers.
    pub(crate) async fn pause(&self) {
        self.with_server(|server| server.process().signal_tree("STOP")).await;
    }

    /// Lets a paused server go on.
    pub(crate) async fn resume(&self) {
        self.with_server(|server| server.process().signal_tree("CONT")).await;
    }

    async fn with_server(&self, work: impl FnOnce(&Server) + Send + 'static) {
        let server = Arc::clone(&self.server);
        machine::blocking(move || work(&server)).await;
    }
}

#[derive(Debug)]
struct Server {
    /// Dropped first, so that the process is dead when it is reaped.
    installation: Installation,
    process: Mutex<Process>,
}

/// What stays the same over restarts.
#[derive(Debug)]
struct Installation {
    guard: Guard,
    postgres: PathBuf,
    port: u16,
    settings: Vec<String>,
}

impl Server {
    fn start(options: &Options) -> Result<Server, String> {
        let installation = Installation::create(options)?;
        let process = Mutex::new(installation.run()?);
        Ok(Server { installation, process })
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().expect("no panic while it is locked")
    }
}

impl Installation {
    fn create(options: &Options) -> Result<Installation, String> {
        let directories = machine::versions("/usr/lib/postgresql", "bin");
        let postgres = machine::program("postgres", "postgresql", &directories);
        let guard = Guard::new("pg", machine::unprivileged()).map_err(|error| error.to_string())?;
        let directory = guard.directory().display().to_string();
        assert!(directory.len() < 90, "{directory} is too long a path for a socket in it");
        initialize(&guard, &postgres.with_file_name("initdb"))?;
        let settings = settings(options, &directory);
        Ok(Installation { guard, postgres, port: machine::free_port(), settings })
    }

    fn run(&self) -> Result<Process, String> {
        let mut args = vec!["-D".to_owned(), "data".to_owned(), "-p".to_owned(), self.port.to_string()];
        args.extend(self.settings.iter().flat_map(|setting| ["-c".to_owned(), setting.clone()]));
        let mut process =
            self.guard.launch(&self.postgres, &args, &[]).map_err(|error| format!("launch: {error}"))?;
        process
            .wait_ready(START_LIMIT, || answers(self.port))
            .map_err(|error| format!("{error}\n{}", self.guard.output()))?;
        Ok(process)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://errand@127.0.0.1:{}/{database}", self.port)
    }
}

fn initialize(guard: &Guard, initdb: &Path) -> Result<(), String> {
    let args = ["-D", "data", "-U", "errand", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"];
    let status = guard
        .launch(initdb, &args.map(str::to_owned), &[])
        .map_err(|error| format!("launch: {error}"))?
        .wait(START_LIMIT);
    match status {
        Some(status) if status.success() => Ok(()),
        _ => Err(format!("initdb failed ({status:?})\n{}", guard.output())),
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
