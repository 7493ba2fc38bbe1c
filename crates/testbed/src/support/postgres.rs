//! Private PostgreSQL servers: one that all tests share, and those that a test breaks.

use std::sync::OnceLock;

pub use crate::services::postgres::Options;
use crate::services::{self, machine::blocking};
use sqlx::{Connection, PgConnection};

use super::machine::place;

/// A database of its own, in a server that lives at least as long as the test.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its URL, as `DATABASE_URL` takes it.
    pub url: String,
    /// Its name in the server.
    pub name: String,
}

impl Database {
    /// One connection, for looking at what the code under test has written.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("connect to the test database")
    }
}

/// The server that all tests of this process share. It cannot be stopped or paused.
#[derive(Debug)]
pub struct Shared(Postgres);

impl Shared {
    /// Creates an empty database.
    pub async fn database(&self, hint: &str) -> Database {
        self.0.database(hint).await
    }
}

/// Starts the shared server when the first test asks for it.
pub async fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let start = || {
        let server = services::Postgres::start_blocking(place(), &Options::default()).unwrap();
        Shared(Postgres(server))
    };
    blocking(move || Ok(SHARED.get_or_init(start))).await.unwrap()
}

/// A server that one test owns. It is gone, with its data, when the value is dropped.
#[derive(Clone, Debug)]
pub struct Postgres(services::Postgres);

impl Postgres {
    /// Starts a server, and returns when it answers.
    pub async fn start(options: Options) -> Postgres {
        Postgres(services::Postgres::start(place(), options).await.unwrap())
    }

    /// The URL of the database `postgres`. It stays the same over restarts.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// The loopback port, for a proxy in front of the server.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Creates an empty database.
    pub async fn database(&self, hint: &str) -> Database {
        let services::postgres::Database { url, name } = self.0.database(hint).await.unwrap();
        Database { url, name }
    }

    /// Kills the server and all its backends with SIGKILL, and returns when they are gone.
    pub async fn kill9(&self) {
        self.0.kill9().await.unwrap();
    }

    /// Shuts down cleanly; open connections are closed.
    pub async fn stop(&self) {
        self.0.stop().await.unwrap();
    }

    /// Starts again on the same data and port, after a clean stop if the server runs.
    pub async fn restart(&self) {
        self.0.restart().await.unwrap();
    }

    /// Stops all processes of the server where they are; connections stay open and nothing answers.
    pub async fn pause(&self) {
        self.0.pause().await.unwrap();
    }

    /// Lets a paused server go on.
    pub async fn resume(&self) {
        self.0.resume().await.unwrap();
    }
}
