//! What the database and the broker do of an enqueued job, without the API before them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use errand::{
    admission::message,
    job::JobSpec,
    queue::{Message, Queue as _, rabbitmq::RabbitQueue},
};
use futures_util::future::try_join_all;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};
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
    let bare = Bare::of(environment)?;
    let together = (connections / TASKS).max(1);
    let counts_from = Instant::now() + settle;
    let until = counts_from + time;
    let task = async |task: usize| {
        let (mut counted, mut next) = (0, task);
        loop {
            let end = next + together * TASKS;
            bare.publish(&bare.insert((next..end).step_by(TASKS)).await?).await?;
            next = end;
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

/// How long each job took from when it was due until it was inserted, in milliseconds, without those of `settle`. They are due
/// at an even pace, those that are due are inserted by one statement, and all are published.
pub(super) async fn latencies(
    environment: &Environment,
    pace: f64,
    settle: Duration,
    time: Duration,
) -> Result<Vec<f64>> {
    let bare = Bare::of(environment)?;
    let total = (pace * (settle + time).as_secs_f64()) as usize;
    let skip = (pace * settle.as_secs_f64()) as usize;
    let begin = Instant::now();
    let due = |n: usize| begin + Duration::from_secs_f64(n as f64 / pace);
    let next = Mutex::new(0_usize);
    let task = async |_: usize| {
        let mut latencies = Vec::new();
        loop {
            let numbers = {
                let mut next = next.lock().await;
                let from = *next;
                if from >= total {
                    return Ok::<Vec<f64>, anyhow::Error>(latencies);
                }
                sleep_until(due(from)).await;
                let due_now = (begin.elapsed().as_secs_f64() * pace) as usize + 1;
                *next = due_now.clamp(from + 1, total);
                from..*next
            };
            let specs = bare.insert(numbers.clone()).await?;
            latencies.extend(numbers.filter(|n| *n >= skip).map(|n| due(n).elapsed().as_secs_f64() * 1000.0));
            bare.publish(&specs).await?;
        }
    };
    let mut latencies = try_join_all((0..TASKS).map(task)).await?.concat();
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// The database and the broker.
struct Bare<'a> {
    environment: &'a Environment,
    queue: &'a RabbitQueue,
}

impl<'a> Bare<'a> {
    fn of(environment: &'a Environment) -> Result<Self> {
        let queue = environment.queue.as_ref().context("the benchmark of the API needs a broker")?;
        Ok(Self { environment, queue })
    }

    /// Inserts the jobs of these numbers by one statement.
    async fn insert(&self, numbers: impl Iterator<Item = usize>) -> Result<Vec<Arc<JobSpec>>> {
        let specs = numbers.map(|n| Ok(spec(&self.environment.lane, n)?)).collect::<Result<Vec<_>>>()?;
        self.environment.store.insert_rows(&Rows::of(&specs, Uuid::now_v7())).await?;
        Ok(specs)
    }

    async fn publish(&self, specs: &[Arc<JobSpec>]) -> Result<()> {
        publish(self.queue, specs.iter().map(|spec| message(spec)).collect()).await
    }
}

/// Publishes messages until the broker has confirmed each.
pub(super) async fn publish(queue: &RabbitQueue, messages: Vec<Message>) -> Result<()> {
    for answer in queue.publish(messages).await {
        answer.context("the broker did not take a job of the benchmark")?;
    }
    Ok(())
}
