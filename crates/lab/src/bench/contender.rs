//! The processes of the benchmark from the inside.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use errand::{
    admission::Admission,
    app::{self, App},
    config::Config,
    failure::chain,
    job::QueueName,
    shutdown::Shutdown,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{baseline, child::Role, jobs::spec, stub};
use crate::child::parent_is_gone;

/// What a child process is to do.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// What it is.
    pub(crate) role: Role,
    /// How long the stub takes.
    pub(crate) stub: Duration,
    /// Jobs that it makes itself.
    pub(crate) feed: usize,
    /// How many of them per second; 0 is all at once.
    pub(crate) pace: f64,
    /// Where the API listens.
    pub(crate) listen: Option<SocketAddr>,
    /// Where the API serves its metrics.
    pub(crate) metrics: Option<SocketAddr>,
}

/// Does its task until the parent is gone.
///
/// # Errors
/// Whatever ends it early.
pub(crate) async fn run(task: &Task, config: Option<Config>) -> Result<()> {
    match (task.role, config) {
        (Role::Stub, _) | (_, None) => stub::serve(task.stub).await,
        (Role::Worker, Some(config)) => Box::pin(worker(task, config)).await,
        (Role::Baseline, Some(config)) => baseline::run(config, task.feed).await,
        (Role::Api, Some(config)) => api(task, &config).await,
    }
}

/// The same as `errand api`, except that it also ends when the parent does.
async fn api(task: &Task, config: &Config) -> Result<()> {
    let listen = task.listen.unwrap_or(app::API_ADDRESS);
    app::serve_api(config, listen, task.metrics, until_parent_is_gone()).await
}

/// The same as `errand worker`, except that it also ends when the parent does.
async fn worker(task: &Task, config: Config) -> Result<()> {
    let metrics = app::install_metrics()?;
    let lanes = config.worker.queues.clone();
    let app = App::new(config)?;
    let shutdown = Shutdown { stop: until_parent_is_gone(), ..Shutdown::default() };
    if let (Some(lane), 1..) = (lanes.into_iter().next(), task.feed) {
        let (door, feed, pace) = (app.admission(), task.feed, task.pace);
        tokio::spawn(async move {
            if let Err(error) = enqueue_evenly(&door, &lane, feed, pace).await {
                tracing::error!(error = %chain(&*error), "jobs could not be enqueued");
            }
        });
    }
    app.run(metrics, shutdown).await?;
    Ok(())
}

/// Is cancelled when the parent is gone.
fn until_parent_is_gone() -> CancellationToken {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        parent_is_gone().await;
        stopped.cancel();
    });
    stop
}

/// Enqueues jobs through the door, as an app in the same process would.
async fn enqueue_evenly(door: &Admission, lane: &QueueName, feed: usize, pace: f64) -> Result<()> {
    // The worker needs a moment to start.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    for n in 0..feed {
        tokio::time::sleep_until(begin + Duration::from_secs_f64(n as f64 / pace.max(0.001))).await;
        door.enqueue(&[spec(lane, n)?]).await?;
    }
    Ok(())
}
