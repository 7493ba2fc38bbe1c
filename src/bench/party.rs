//! The processes of the benchmark from the inside.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{bare, child::Role, jobs::spec, stub};
use crate::{
    admission::Admission,
    app::{self, App},
    child::parent_is_gone,
    config::Config,
    job::QueueName,
    shutdown::Shutdown,
};

/// What a child is told.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// What it is.
    pub(crate) role: Role,
    /// How long the stub takes.
    pub(crate) stub: Duration,
    /// Jobs that it makes itself.
    pub(crate) feed: usize,
    /// How many of them per second; 0 is all at once.
    pub(crate) pace: f64,
}

/// Plays a part until the parent is gone.
///
/// # Errors
/// Whatever ends it early.
pub(crate) async fn play(part: &Part, config: Option<Config>) -> Result<()> {
    match (part.role, config) {
        (Role::Stub, _) | (_, None) => stub::serve(part.stub).await,
        (Role::Worker, Some(config)) => worker(part, config).await,
        (Role::Bare, Some(config)) => bare::run(config, part.feed).await,
    }
}

/// The same as `errand worker`, except that it also ends when the parent does.
async fn worker(part: &Part, config: Config) -> Result<()> {
    let metrics = app::install_metrics()?;
    let lanes = config.worker.queues.clone();
    let app = App::new(config)?;
    let shutdown = Shutdown::default();
    let stop = shutdown.stop.clone();
    tokio::spawn(async move {
        parent_is_gone().await;
        stop.cancel();
    });
    if let (Some(lane), 1..) = (lanes.into_iter().next(), part.feed) {
        let (door, feed, pace) = (app.door(), part.feed, part.pace);
        tokio::spawn(async move {
            if let Err(error) = enqueue_evenly(&door, &lane, feed, pace).await {
                tracing::error!("jobs could not be enqueued: {error:#}");
            }
        });
    }
    app.run(metrics, shutdown).await?;
    Ok(())
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
