//! A private pgbouncer in front of a PostgreSQL server.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    guard::{Guard, Process},
    machine,
    place::Place,
    postgres::Database,
};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A pooler that one test owns. It is gone when the value is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    #[expect(dead_code, reason = "what runs in it ends when this is dropped")]
    guard: Guard,
    #[expect(dead_code, reason = "it is reaped when this is dropped")]
    process: Process,
    port: u16,
}

impl PgBouncer {
    /// Starts a pooler before the server of this port, and returns when it answers. `settings` are those of its
    /// section `[pgbouncer]`, such as `pool_mode=session`.
    ///
    /// # Errors
    /// pgbouncer is not installed, or does not start.
    pub async fn start(place: &Place, server: u16, settings: &[&str]) -> Result<PgBouncer> {
        let (place, settings) = (place.clone(), settings.join("\n"));
        machine::blocking(move || {
            machine::start_with_retries("pgbouncer", || PgBouncer::start_blocking(&place, server, &settings))
        })
        .await
    }

    /// The URL of a database of the server by way of this pooler.
    #[must_use]
    pub fn url(&self, database: &Database) -> String {
        format!("postgres://errand@127.0.0.1:{}/{}", self.port, database.name)
    }

    fn start_blocking(place: &Place, server: u16, settings: &str) -> Result<PgBouncer> {
        let program = machine::program("pgbouncer", "pgbouncer", &[Path::new("/usr/sbin").to_owned()])?;
        let guard = Guard::new(place, "pgbouncer", machine::unprivileged()?)?;
        let port = place.free_port()?;
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=errand\n\n\
             [pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n{settings}\n"
        );
        let path = guard.directory().join("pgbouncer.ini");
        fs::write(&path, config)?;
        let mut process = guard.launch(&program, &[path.display().to_string()], &[])?;
        // It answers a request for encryption with one letter.
        let request = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        process
            .wait_ready(START_LIMIT, || machine::ask(port, &request) == Some(*b"N"))
            .with_context(|| format!("it wrote:\n{}\nand", guard.output()))?;
        Ok(PgBouncer { guard, process, port })
    }
}
