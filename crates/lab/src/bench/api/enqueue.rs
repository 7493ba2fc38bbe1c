//! Jobs that are enqueued one by one, beside the same route without the store, and beside database and broker alone.

use std::time::Duration;

use anyhow::Result;
use errand::job::QueueName;
use serde::Serialize;
use serde_json::json;

use super::{Bench, bare, client::Load, in_turn, server::Api, spread};
use crate::bench::{
    child::this_program,
    environment::Environment,
    jobs::line,
    statistics::{Spread, percentile},
};

/// What is not counted: connections are made, and the caches of the database fill.
const SETTLE: Duration = Duration::from_secs(1);

/// The even pace, as a share of the median rate.
const PACE: f64 = 0.5;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Enqueue {
    pub(super) connections: usize,
    /// Jobs per second with the store.
    pub(super) stored: Spread,
    /// Requests per second without it.
    pub(super) refused: Spread,
    /// The former divided by the latter, round by round.
    pub(super) ratio: Spread,
    /// Jobs per second that the database and the broker take without the API.
    pub(super) bare: Spread,
    /// Those with the store divided by these, round by round.
    pub(super) ratio_to_bare: Spread,
    /// At an even pace.
    pub(super) latency: Latency,
}

#[derive(Debug, Serialize)]
pub(super) struct Latency {
    /// Jobs per second.
    pub(super) pace: f64,
    pub(super) jobs: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) highest_ms: f64,
}

/// What a job becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Stored,
    /// It is judged after everything that is done without the store: it was read, decoded and let through by the
    /// key. The answer is a problem.
    Refused,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "enqueued",
            Self::Refused => "refused before the store",
        }
    }

    fn status(self) -> u16 {
        match self {
            Self::Stored => 201,
            Self::Refused => 422,
        }
    }

    /// The same job, but that of the refused is to run later than any job may.
    fn body(self, lane: QueueName) -> impl Fn(usize) -> String + Send + Sync + 'static {
        move |n| {
            let mut job = line(&lane, n);
            if self == Self::Refused {
                job["run_at"] = json!("9999-01-01T00:00:00Z");
            }
            job.to_string()
        }
    }
}

pub(super) async fn measure(bench: Bench<'_>, progress: &impl Fn(&str)) -> Result<Enqueue> {
    let plan = bench.plan;
    let load = |api: &Api, wanted: Wanted| Load {
        host: api.host,
        connections: plan.connections,
        path: "/v1/jobs",
        status: wanted.status(),
    };
    let (mut stored, mut refused, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        for wanted in in_turn([Wanted::Refused, Wanted::Stored], round) {
            progress(&format!("jobs one by one, round {round} of {}: {}", plan.rounds, wanted.name()));
            let measured = async |environment: &Environment| {
                environment.run(&this_program()?, &["migrate"]).await?;
                let api = Api::start(environment, false).await?;
                let body = wanted.body(environment.lane.clone());
                let rate = load(&api, wanted).rate(SETTLE, plan.time, body).await?;
                api.stop().await?;
                Ok(rate)
            };
            let rate = bench.with(measured).await?;
            if wanted == Wanted::Stored { &mut stored } else { &mut refused }.push(rate);
        }
        progress(&format!("jobs one by one, round {round} of {}: database and broker alone", plan.rounds));
        let measured = async |environment: &Environment| {
            environment.run(&this_program()?, &["migrate"]).await?;
            bare::rate(environment, plan.connections, SETTLE, plan.time).await
        };
        bare.push(bench.with(measured).await?);
    }
    let ratios = |others: &[f64]| spread(stored.iter().zip(others).map(|(one, other)| one / other).collect());
    let (ratio, ratio_to_bare) = (ratios(&refused)?, ratios(&bare)?);
    let stored = spread(stored)?;
    let pace = stored.median * PACE;
    progress(&format!("jobs one by one at {pace:.0} jobs/s"));
    let latency = async |environment: &Environment| {
        environment.run(&this_program()?, &["migrate"]).await?;
        let api = Api::start(environment, false).await?;
        let body = Wanted::Stored.body(environment.lane.clone());
        let latencies = load(&api, Wanted::Stored).latencies(pace, SETTLE, plan.time, body).await?;
        api.stop().await?;
        Ok(Latency {
            pace,
            jobs: latencies.len(),
            p50_ms: percentile(&latencies, 0.5),
            p99_ms: percentile(&latencies, 0.99),
            highest_ms: percentile(&latencies, 1.0),
        })
    };
    let latency = bench.with(latency).await?;
    Ok(Enqueue {
        connections: plan.connections,
        stored,
        refused: spread(refused)?,
        ratio,
        bare: spread(bare)?,
        ratio_to_bare,
        latency,
    })
}
