//! The HTTP API as a process of its own.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio_util::sync::CancellationToken;

use super::{install_metrics, open_queue, open_store, open_tool_api, options, rules};
use crate::{
    admission::Admission,
    api::{Api, Monitoring, Parts, metrics_maintenance},
    clock::{self, SharedClock},
    config::Config,
    queue::SharedQueue,
    resolver::Resolver,
    store::SharedStore,
    tool::SharedToolApi,
};

/// Where the API listens, unless said otherwise.
pub const API_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));

/// Serves the HTTP API until `stop`. Workers are other processes.
///
/// # Errors
/// The listener cannot be bound, or an address of a service cannot be used.
pub async fn serve_api(
    config: &Config,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    stop: CancellationToken,
) -> Result<()> {
    if let Some(address) = metrics {
        serve_metrics(address, stop.clone()).await?;
    }
    let store = open_store(config)?;
    let looking = tokio::spawn(warn_of_schema(store.clone()));
    // Without a broker, the relay of the worker that shares the file publishes what is stored.
    let queue = config.uses_broker().then(|| open_queue(config)).transpose()?;
    let unclaimed = Duration::from_secs(config.relay.unclaimed_secs);
    let admission = Admission::new(store.clone(), queue.clone(), clock::system(), rules(config), unclaimed);
    let tool_api = config.require_api_key().is_ok().then(|| open_tool_api(config)).transpose()?;
    bind(config, address, store.clone(), admission, clock::system(), queue.clone(), tool_api)
        .await?
        .run(stop)
        .await;
    if let Some(queue) = queue {
        queue.close().await;
    }
    looking.abort();
    store.close().await;
    tracing::info!("the API stopped");
    Ok(())
}

/// Says at the start what keeps every request from being answered. A database that is away says so at the first request.
async fn warn_of_schema(store: SharedStore) {
    if let Ok(Some((problem, advice))) = store.schema().await.map(|schema| schema.problem()) {
        tracing::warn!("requests cannot be answered yet: {problem}; {advice}");
    }
}

/// Serves the metrics of a process that runs no jobs, until `stop`.
async fn serve_metrics(address: SocketAddr, stop: CancellationToken) -> Result<()> {
    let metrics = install_metrics()?;
    let monitoring = Monitoring::bind(address, metrics.clone(), None)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another address with --metrics"))?;
    tracing::info!(address = %monitoring.address()?, "metrics are served");
    tokio::spawn(metrics_maintenance(metrics, stop.clone()));
    tokio::spawn(monitoring.run(stop));
    Ok(())
}

/// The API on its address, which is not served yet.
pub(super) async fn bind(
    config: &Config,
    address: SocketAddr,
    store: SharedStore,
    admission: Admission,
    clock: SharedClock,
    queue: Option<SharedQueue>,
    tool_api: Option<SharedToolApi>,
) -> Result<Api> {
    let resolver = tool_api.clone().map(|api| Resolver::new(api, options::resolver(config)));
    let lease = Duration::from_secs(config.worker.lease_secs);
    let lanes = config.queues.keys().cloned().collect();
    let records_events = config.records_events();
    let sends_callbacks = config.callbacks.enabled;
    let parts = Parts {
        store,
        admission,
        clock,
        resolver,
        lanes,
        tool_api,
        lease,
        queue,
        records_events,
        sends_callbacks,
    };
    let api = Api::bind(address, parts, options::api(config)).await.with_context(|| {
        format!(
            "the API cannot be served on {address}; choose another address with api.listen or --listen, or correct \
             api.tls_certificate and api.tls_key"
        )
    })?;
    tracing::info!(address = %api.address()?, "the API is served");
    Ok(api)
}
