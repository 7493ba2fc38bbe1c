//! The HTTP listener for operators: metrics and health.
//!
//! `/metrics` is Prometheus' text format. `/health/live` answers while the event loop runs and asks
//! nobody else. `/health/ready` is 200 only while the worker really consumes, the store answers and
//! nothing drains; otherwise 503, with the reason as JSON.
//!
//! Each request has a connection of its own. Connections are few and short, so that nobody who sends half a request, or
//! who reads slowly, uses up files that jobs need, or keeps others from being answered.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::{Health, Readiness},
    telemetry::metrics::UPKEEP,
};

/// How long a request may take, from the connection to the end of the answer. Nobody who scrapes waits longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections may be open. A further one takes the place of the eldest.
const MAX_CONNECTIONS: usize = 64;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Monitoring {
    listener: TcpListener,
    state: Shared,
}

#[derive(Debug, Clone)]
struct Shared {
    metrics: PrometheusHandle,
    process: metrics_process::Collector,
    /// None in a process that runs no jobs.
    health: Option<Arc<Health>>,
    /// The turn to write metrics down, which takes a thread and processor time from jobs.
    rendering: Arc<Semaphore>,
}

impl Monitoring {
    /// Binds the address, so that a port in use is known before anything else starts.
    pub async fn bind(
        address: SocketAddr,
        metrics: PrometheusHandle,
        health: Option<Arc<Health>>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let process = metrics_process::Collector::default();
        process.describe();
        let rendering = Arc::new(Semaphore::new(1));
        Ok(Self { listener, state: Shared { metrics, process, health, rendering } })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Metrics are the last thing to go, so that a shutdown can be watched.
    pub async fn run(self, stop: CancellationToken) {
        let mut router = Router::new()
            .route("/metrics", get(serve_metrics))
            .route("/health/live", get(|| async { "alive\n" }));
        if let Some(health) = self.state.health.clone() {
            router = router.route("/health/ready", get(move || ready(health.clone())));
        }
        let router = router.with_state(self.state);
        // The eldest first.
        let mut open: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(MAX_CONNECTIONS);
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                // As when the process is out of files.
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
                continue;
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MAX_CONNECTIONS {
                // Whoever asks properly was answered long ago.
                if let Some(eldest) = open.pop_front() {
                    eldest.abort();
                }
            }
            open.push_back(tokio::spawn(serve(stream, router.clone())));
        }
        drop(self.listener);
        for connection in open {
            // It ends in time, or was aborted.
            drop(connection.await);
        }
    }
}

/// Answers one request, and closes the connection, however slowly the other side sends or reads.
async fn serve(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // What goes wrong with a connection is nothing that an operator could mend here.
    let ended = tokio::time::timeout(REQUEST_TIMEOUT, serving).await;
    tracing::trace!(?ended, "a request for metrics or health is over");
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
    if let Some(health) = &shared.health {
        health.refresh_gauges();
    }
    // One at a time, also after a client has gone: what waits for its turn ends with its connection.
    let Ok(turn) = shared.rendering.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let render = move || {
        shared.process.collect();
        let text = shared.metrics.render();
        drop(turn);
        text
    };
    match tokio::task::spawn_blocking(render).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(health: Arc<Health>) -> (StatusCode, Json<Readiness>) {
    let readiness = health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
