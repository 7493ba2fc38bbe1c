//! Wires the parts together: the only module that names a concrete backend.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

pub use self::{
    http_api::{API_ADDRESS, serve_api},
    open::{open_queue, open_store, open_tool_api, tool_api_options},
    options::{AUDIT_PAGE, audit_limits, prune, rules},
    runtime::Runtime,
};
use crate::{
    admission::Admission,
    api::{self, Monitoring},
    clock,
    config::Config,
    services::Services,
    shutdown::Shutdown,
    supervisor::Supervisor,
    telemetry::metrics,
    worker::{CrashPlan, Report},
};

mod http_api;
mod open;
mod options;
mod runtime;

#[derive(Debug)]
pub struct App {
    pub services: Services,
    config: Config,
    crash: Option<CrashPlan>,
}

impl App {
    /// With the backends that the configuration names; nothing connects yet. An address that cannot be used is an error.
    pub fn new(config: Config) -> Result<Self> {
        let (store, queue, api) = (open_store(&config)?, open_queue(&config)?, open_tool_api(&config)?);
        Ok(Self::of(Services::new(store, queue, api, clock::system()), config))
    }

    /// With these backends. The addresses in the configuration are not looked at.
    pub fn of(services: Services, config: Config) -> Self {
        Self { services, config, crash: None }
    }

    /// Lets the worker crash at a point on a job's way, for tests of what that leaves behind.
    #[must_use]
    pub fn crashing(self, crash: Option<CrashPlan>) -> Self {
        Self { crash, ..self }
    }

    /// The admission of jobs that this process enqueues itself.
    pub fn admission(&self) -> Admission {
        runtime::admission(&self.services, &self.config)
    }

    /// Runs a worker with everything around it until `shutdown`, then drains. Waits for the services
    /// at start, saying what it waits for. Serves metrics and health meanwhile.
    ///
    /// # Errors
    /// The listener cannot be bound, or the store's schema does not fit and may not be migrated.
    pub async fn run(self, metrics: PrometheusHandle, shutdown: Shutdown) -> Result<Report> {
        let address = self.config.http.listen;
        let api = match self.config.api.listen {
            Some(address) => {
                let Services { store, clock, queue, api, .. } = self.services.clone();
                let admission = self.admission();
                let (config, queue) = (&self.config, Some(queue));
                Some(http_api::bind(config, address, store, admission, clock, queue, Some(api)).await?)
            }
            None => None,
        };
        let runtime = self.runtime().serving(api);
        // The listener outlives everything else, so that a shutdown can be watched.
        let serving = CancellationToken::new();
        let supervisor = Supervisor::new(shutdown.stop.clone());
        let listener = match address {
            Some(address) => {
                let monitoring = Monitoring::bind(address, metrics.clone(), Some(runtime.health()))
                    .await
                    .with_context(|| cannot_listen(address))?;
                tracing::info!(address = %monitoring.address()?, "metrics and health are served");
                let listening = monitoring.run(serving.clone());
                Some(tokio::spawn(supervisor.clone().watch(
                    "the listener for metrics and health",
                    serving.clone(),
                    listening,
                )))
            }
            None => None,
        };
        let maintenance = api::metrics_maintenance(metrics, serving.clone());
        let maintenance =
            tokio::spawn(supervisor.clone().watch("the upkeep of metrics", serving.clone(), maintenance));
        let (report, mut countdown) = runtime.run(shutdown, &supervisor).await;
        serving.cancel();
        maintenance.await?;
        if let Some(listener) = listener {
            // A client that does not read its answer must not keep the process either.
            countdown.within(|times| times.end, listener).await.unwrap_or(Ok(()))?;
        }
        report
    }

    /// The worker and everything around it; nothing happens before [`Runtime::run`].
    pub fn runtime(self) -> Runtime {
        Runtime::new(self.services, self.config, self.crash)
    }
}

/// What is said about an address for metrics and health that cannot be used.
pub fn cannot_listen(address: SocketAddr) -> String {
    format!("cannot listen on {address}; choose another address with --listen or http.listen")
}

/// Installs the metrics of this process; an error if they are installed already.
pub fn install_metrics() -> Result<PrometheusHandle> {
    metrics::install().context("metrics can be installed once per process")
}
