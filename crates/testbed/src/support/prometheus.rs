//! A private Prometheus server, for tests of what it scrapes and of alert rules.

use std::fs;
use std::time::Duration;

use crate::services::guard::{Guard, Process};
use crate::services::machine;
use anyhow::{Context as _, Result};

use super::machine::place;

const START_LIMIT: Duration = Duration::from_secs(60);

/// A server that one test owns. It is gone, with its data, when the value is dropped.
#[derive(Debug)]
pub struct Prometheus {
    #[expect(dead_code, reason = "what runs in it ends when this is dropped")]
    guard: Guard,
    #[expect(dead_code, reason = "it is reaped when this is dropped")]
    process: Process,
    port: u16,
}

impl Prometheus {
    /// Starts a server with the given configuration file. Files that it names need absolute paths.
    pub async fn start(config_yaml: &str) -> Prometheus {
        let config = config_yaml.to_owned();
        machine::blocking(move || {
            machine::start_with_retries("Prometheus", || Prometheus::start_blocking(&config))
        })
        .await
        .unwrap()
    }

    /// The root of its pages and its API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn start_blocking(config: &str) -> Result<Prometheus> {
        let program = machine::program("prometheus", "prometheus", &[])?;
        let guard = Guard::new(place(), "prometheus", None)?;
        fs::write(guard.directory().join("prometheus.yml"), config)?;
        let port = place().free_port()?;
        let args = [
            "--config.file=prometheus.yml".to_owned(),
            "--storage.tsdb.path=data".to_owned(),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let mut process = guard.launch(&program, &args, &[])?;
        process
            .wait_ready(START_LIMIT, || {
                machine::ask(port, b"GET /-/ready HTTP/1.0\r\n\r\n") == Some(*b"HTTP/1.0 200")
            })
            .with_context(|| guard.output())?;
        Ok(Prometheus { guard, process, port })
    }
}
