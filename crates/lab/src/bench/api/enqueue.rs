//! Jobs that are enqueued one by one, beside the same route without the store, and beside database and broker alone.

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand::{job::QueueName, queue::rabbitmq::RabbitQueue};
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use super::{Bench, bare, client::Load, in_turn, server::Api, spread};
use crate::bench::{
    child::this_program,
    environment::Environment,
    jobs::{line, message},
    statistics::{Spread, percentile},
};

/// What is not counted: connections are made, and the caches of the database fill.
const SETTLE: Duration = Duration::from_secs(1);

/// The even pace, as a share of the median rate.
const PACE: f64 = 0.5;

/// Who publishes at the same time where the API does not, and how many jobs may wait for them: as many as the API lets wait.
const PUBLISHERS: usize = 4;
const UNPUBLISHED: usize = 1_024;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Enqueue {
    pub(super) connections: usize,
    /// Jobs per second with the store.
    pub(super) stored: Spread,
    /// Jobs per second without it.
    pub(super) unstored: Spread,
    /// The former divided by the latter, round by round.
    pub(super) ratio: Spread,
    /// Requests per second that are refused before the store, and not published either.
    pub(super) refused: Spread,
    /// Those with the store divided by these, round by round.
    pub(super) ratio_to_refused: Spread,
    /// Jobs per second that the database and the broker take without the API.
    pub(super) bare: Spread,
    /// Those with the store divided by these, round by round.
    pub(super) ratio_to_bare: Spread,
    /// Jobs per second of the even pace.
    pub(super) pace: f64,
    pub(super) latency: Latency,
    /// How long the database takes at that pace, without the API.
    pub(super) latency_bare: Latency,
}

/// How long jobs took, in milliseconds, round by round.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: Spread,
    pub(super) p99: Spread,
    pub(super) highest: Spread,
}

impl Latency {
    /// Those of each round are sorted.
    fn of(rounds: &[Vec<f64>]) -> Result<Self> {
        let at = |share| spread(rounds.iter().map(|latencies| percentile(latencies, share)).collect());
        Ok(Self { p50: at(0.5)?, p99: at(0.99)?, highest: at(1.0)? })
    }
}

/// What is done of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    /// All: it is enqueued at the API.
    Stored,
    /// All but the store: the API refuses it, and it is published by whoever asked.
    Unstored,
    /// The API refuses it by the last check before the store: it was read, decoded and let through by the key. The answer is
    /// a problem.
    Refused,
    /// It is inserted and published without the API.
    Bare,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "enqueued",
            Self::Unstored => "all but the store",
            Self::Refused => "refused before the store",
            Self::Bare => "database and broker alone",
        }
    }

    fn load(self, api: &Api, connections: usize) -> Load {
        let status = if self == Self::Stored { 201 } else { 422 };
        Load { host: api.host, connections, path: "/v1/jobs", status }
    }

    /// The same job, but that of the refused is to run later than any job may.
    fn body(self, lane: QueueName) -> impl Fn(usize) -> String + Send + Sync + 'static {
        move |n| {
            let mut job = line(&lane, n);
            if self != Self::Stored {
                job["run_at"] = json!("9999-01-01T00:00:00Z");
            }
            job.to_string()
        }
    }

    /// How long each job took at an even pace, in milliseconds, from the shortest to the longest.
    async fn latencies(
        self,
        environment: &Environment,
        connections: usize,
        pace: f64,
        time: Duration,
    ) -> Result<Vec<f64>> {
        environment.run(&this_program()?, &["migrate"]).await?;
        if self == Self::Bare {
            return bare::latencies(environment, pace, SETTLE, time).await;
        }
        let api = Api::start(environment, false).await?;
        let load = self.load(&api, connections);
        let latencies = load.latencies(pace, SETTLE, time, self.body(environment.lane.clone())).await?;
        api.stop().await?;
        Ok(latencies)
    }

    /// Jobs per second.
    async fn rate(self, environment: &Environment, connections: usize, time: Duration) -> Result<f64> {
        environment.run(&this_program()?, &["migrate"]).await?;
        if self == Self::Bare {
            return bare::rate(environment, connections, SETTLE, time).await;
        }
        let api = Api::start(environment, false).await?;
        let load = self.load(&api, connections);
        let body = self.body(environment.lane.clone());
        let rate = if self == Self::Unstored {
            let queue = environment.queue.as_ref().context("the benchmark of the API needs a broker")?;
            let (answered, unpublished) = mpsc::channel(UNPUBLISHED);
            let (rate, ()) = tokio::try_join!(
                load.rate(SETTLE, time, body, Some(answered)),
                publish(queue, &environment.lane, unpublished),
            )?;
            rate
        } else {
            load.rate(SETTLE, time, body, None).await?
        };
        api.stop().await?;
        Ok(rate)
    }
}

/// Publishes a job for each number, those that wait together.
async fn publish(queue: &RabbitQueue, lane: &QueueName, numbers: mpsc::Receiver<usize>) -> Result<()> {
    let numbers = Mutex::new(numbers);
    let publisher = async |_: usize| {
        loop {
            let mut together = Vec::new();
            if numbers.lock().await.recv_many(&mut together, UNPUBLISHED / PUBLISHERS).await == 0 {
                return Ok::<(), anyhow::Error>(());
            }
            bare::publish(queue, together.into_iter().map(|n| message(lane, n).1).collect()).await?;
        }
    };
    try_join_all((0..PUBLISHERS).map(publisher)).await.map(drop)
}

pub(super) async fn measure(bench: Bench<'_>, progress: &impl Fn(&str)) -> Result<Enqueue> {
    let plan = bench.plan;
    let contenders = [Contender::Unstored, Contender::Stored, Contender::Refused, Contender::Bare];
    let mut rates: Vec<(Contender, f64)> = Vec::new();
    for round in 1..=plan.rounds {
        for contender in in_turn(contenders, round) {
            progress(&format!("jobs one by one, round {round} of {}: {}", plan.rounds, contender.name()));
            let measured = async |environment: &Environment| {
                contender.rate(environment, plan.connections, plan.time).await
            };
            rates.push((contender, bench.with(measured).await?));
        }
    }
    let of = |wanted: Contender| -> Vec<f64> {
        rates.iter().filter(|(contender, _)| *contender == wanted).map(|(_, rate)| *rate).collect()
    };
    let stored = of(Contender::Stored);
    let ratio_to =
        |other: Contender| spread(stored.iter().zip(of(other)).map(|(one, other)| one / other).collect());
    let pace = spread(stored.clone())?.median * PACE;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        for contender in in_turn([Contender::Stored, Contender::Bare], round) {
            progress(&format!("at {pace:.0} jobs/s, round {round} of {}: {}", plan.rounds, contender.name()));
            let measured = async |environment: &Environment| {
                contender.latencies(environment, plan.connections, pace, plan.time).await
            };
            let of_contender = if contender == Contender::Bare { &mut without } else { &mut with };
            of_contender.push(bench.with(measured).await?);
        }
    }
    Ok(Enqueue {
        connections: plan.connections,
        unstored: spread(of(Contender::Unstored))?,
        ratio: ratio_to(Contender::Unstored)?,
        refused: spread(of(Contender::Refused))?,
        ratio_to_refused: ratio_to(Contender::Refused)?,
        bare: spread(of(Contender::Bare))?,
        ratio_to_bare: ratio_to(Contender::Bare)?,
        pace,
        latency: Latency::of(&with)?,
        latency_bare: Latency::of(&without)?,
        stored: spread(stored)?,
    })
}
