//! What the database and the broker do of an enqueued job, without the API before them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand::{admission::message, queue::Queue as _};
use futures_util::future::try_join_all;
use tokio::time::Instant;
use uuid::Uuid;

use super::fill::Rows;
use crate::bench::{environment::Environment, jobs::spec};

/// Who inserts and publishes at the same time, so that the database works while the broker does.
const TASKS: usize = 4;

/// Jobs per second, from `settle` on and for `time`: `connections` of them are under way at once, and those of one task are
/// inserted by one statement, and published when it has ended.
pub(super) async fn rate(
    environment: &Environment,
    connections: usize,
    settle: Duration,
    time: Duration,
) -> Result<f64> {
    let queue = environment.queue.as_ref().context("the benchmark of the API needs a broker")?;
    let together = (connections / TASKS).max(1);
    let counts_from = Instant::now() + settle;
    let until = counts_from + time;
    let task = async |task: usize| {
        let (mut counted, mut next) = (0, task);
        loop {
            let numbers = (0..together).map(|place| next + place * TASKS);
            let specs = numbers.map(|n| Ok(spec(&environment.lane, n)?)).collect::<Result<Vec<_>>>()?;
            next += together * TASKS;
            environment.store.insert_rows(&Rows::of(&specs, Uuid::now_v7())).await?;
            let messages = specs.iter().map(|spec| message(spec)).collect();
            for answer in queue.publish(messages).await {
                answer.context("the broker did not take a job of the benchmark")?;
            }
            let now = Instant::now();
            if now >= until {
                return Ok::<usize, anyhow::Error>(counted);
            }
            counted += if now >= counts_from { together } else { 0 };
        }
    };
    let counted: usize = try_join_all((0..TASKS).map(task)).await?.into_iter().sum();
    Ok(counted as f64 / time.as_secs_f64())
}
