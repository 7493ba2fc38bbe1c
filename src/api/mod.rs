//! The HTTP listener for operators: metrics and health.
//!
//! `/metrics` is Prometheus' text format. `/health/live` answers while the event loop runs and asks
//! nobody else. `/health/ready` is 200 only while the worker really consumes, the store answers and
//! nothing drains; otherwise 503, with the reason as JSON.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    health::{Health, Readiness},
    telemetry::metrics::UPKEEP,
};

#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    state: Shared,
}

#[derive(Debug, Clone)]
struct Shared {
    metrics: PrometheusHandle,
    process: metrics_process::Collector,
    health: Arc<Health>,
}

impl Api {
    /// Binds the address, so that a port in use is known before anything else starts.
    pub async fn bind(
        address: SocketAddr,
        metrics: PrometheusHandle,
        health: Arc<Health>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let process = metrics_process::Collector::default();
        process.describe();
        Ok(Self { listener, state: Shared { metrics, process, health } })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Metrics are the last thing to go, so that a shutdown can be watched.
    pub async fn run(self, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(serve_metrics))
            .route("/health/live", get(|| async { "alive\n" }))
            .route("/health/ready", get(ready))
            .with_state(self.state);
        axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// Drains the samples of histograms, which would pile up between scrapes.
pub async fn metrics_maintenance(metrics: PrometheusHandle, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(UPKEEP) => metrics.run_upkeep(),
        }
    }
}

async fn serve_metrics(State(shared): State<Shared>) -> impl IntoResponse {
    shared.health.refresh_gauges();
    let render = move || {
        shared.process.collect();
        shared.metrics.render()
    };
    match tokio::task::spawn_blocking(render).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, Json<Readiness>) {
    let readiness = shared.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
