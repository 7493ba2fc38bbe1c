//! The API under measurement.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use errand_testbed::services::Place;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::client::Client;
use crate::{
    bench::{
        child::{Process, Role, this_program},
        environment::Environment,
    },
    child::Usage,
};

/// How long the API may take until it listens.
const START: Duration = Duration::from_secs(30);

/// The API as a process.
#[derive(Debug)]
pub(super) struct Api {
    process: Process,
    /// Where it listens.
    pub(super) host: SocketAddr,
    metrics: Option<SocketAddr>,
}

impl Api {
    /// Starts it on the tables of an environment, and returns when it answers.
    pub(super) async fn start(environment: &Environment, with_metrics: bool) -> Result<Self> {
        let place = Place::default();
        let address = || Ok::<_, anyhow::Error>(SocketAddr::from((Ipv4Addr::LOCALHOST, place.free_port()?)));
        let host = address()?;
        let metrics = with_metrics.then(address).transpose()?;
        let mut arguments = vec!["--listen".to_owned(), host.to_string()];
        if let Some(metrics) = metrics {
            arguments.extend(["--metrics".to_owned(), metrics.to_string()]);
        }
        let mut process = environment.start(&this_program()?, Role::Api, &arguments, true)?;
        let begun = Instant::now();
        while TcpStream::connect(host).await.is_err() {
            process.ensure_running()?;
            ensure!(begun.elapsed() < START, "the API does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Client::connect(host, 0).await?.get("/v1/jobs?limit=1").await?.expect(200)?;
        Ok(Self { process, host, metrics })
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// The value of a metric without labels.
    pub(super) async fn metric(&self, name: &str) -> Result<f64> {
        let address = self.metrics.context("the API serves no metrics")?;
        let answer = Client::connect(address, 0).await?.get("/metrics").await?.expect(200)?;
        let text = String::from_utf8_lossy(&answer.body);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}
