//! Jobs that are enqueued by the SQL function: how many a second, and how soon after the commit a worker starts them.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{Bench, Plan, spread};
use crate::bench::{
    child::{Role, this_program},
    database::{BenchStore, Table},
    environment::Environment,
    jobs::{line, now_micros},
    statistics::{Spread, percentile},
    stub::StubProcess,
};

/// Jobs of a transaction, where it is measured how many are enqueued.
const PER_TRANSACTION: usize = 10;

/// Sessions that enqueue at once.
const CONNECTIONS: usize = 8;

/// Jobs per second, where it is measured how soon they start.
const PACE: f64 = 100.0;

/// Before anything counts, connections are made, and the worker has looked whose turn it is.
const SETTLE: Duration = Duration::from_secs(5);

/// All jobs have ended so long after the last was enqueued, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct BySql {
    pub(super) connections: usize,
    pub(super) per_transaction: usize,
    /// Jobs per second that were enqueued and committed, without a worker.
    pub(super) rate: Spread,
    /// Jobs per second, one in a transaction, of which the worker's starts were taken.
    pub(super) pace: f64,
    /// Milliseconds from the commit to the claim, of each round.
    pub(super) p50: Spread,
    pub(super) p99: Spread,
}

pub(super) async fn measure(bench: Bench<'_>, progress: &impl Fn(&str)) -> Result<BySql> {
    let plan = bench.plan;
    let stub = StubProcess::start(Duration::ZERO).await?;
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        progress(&format!("jobs by SQL, round {round} of {}", plan.rounds));
        rates.push(bench.with(async |environment: &Environment| rate(environment, plan).await).await?);
        let measured = async |environment: &Environment| starts(environment, plan).await;
        let waits = bench.calling(stub.base_url(), measured).await?;
        p50.push(percentile(&waits, 0.5));
        p99.push(percentile(&waits, 0.99));
    }
    Ok(BySql {
        connections: CONNECTIONS,
        per_transaction: PER_TRANSACTION,
        rate: spread(rates)?,
        pace: PACE,
        p50: spread(p50)?,
        p99: spread(p99)?,
    })
}

async fn rate(environment: &Environment, plan: &Plan) -> Result<f64> {
    environment.run(&this_program()?, &["migrate"]).await?;
    let sessions = BenchStore::open(&environment.url, CONNECTIONS as u32)?;
    let counts_from = Instant::now() + SETTLE / 5;
    let until = counts_from + plan.time;
    let enqueue = async |session: usize| {
        let (mut counted, mut n) = (0, session * 1_000_000);
        loop {
            let jobs: Vec<String> =
                (n..n + PER_TRANSACTION).map(|n| line(&environment.lane, n).to_string()).collect();
            sessions.enqueue(&jobs).await?;
            n += PER_TRANSACTION;
            let now = Instant::now();
            if now >= until {
                return Ok::<usize, anyhow::Error>(counted);
            }
            counted += if now >= counts_from { PER_TRANSACTION } else { 0 };
        }
    };
    let counted: usize = try_join_all((0..CONNECTIONS).map(enqueue)).await?.into_iter().sum();
    sessions.close().await;
    Ok(counted as f64 / plan.time.as_secs_f64())
}

/// How long each job waited from its commit until it was claimed, in milliseconds, in ascending order.
async fn starts(environment: &Environment, plan: &Plan) -> Result<Vec<f64>> {
    environment.run(&this_program()?, &["migrate"]).await?;
    let mut worker = environment.start(&this_program()?, Role::Worker, &[], false)?;
    let sessions = BenchStore::open(&environment.url, CONNECTIONS as u32)?;
    let total = (PACE * (SETTLE + plan.time).as_secs_f64()) as usize;
    let skip = (PACE * SETTLE.as_secs_f64()) as usize;
    let begin = Instant::now();
    let enqueue = async |session: usize| {
        let mut committed = Vec::new();
        for n in (session..total).step_by(CONNECTIONS) {
            sleep_until(begin + Duration::from_secs_f64(n as f64 / PACE)).await;
            let ids = sessions.enqueue(&[line(&environment.lane, n).to_string()]).await?;
            committed.extend(ids.into_iter().filter(|_| n >= skip).map(|id| (id, now_micros())));
        }
        Ok::<Vec<(Uuid, i64)>, anyhow::Error>(committed)
    };
    let committed: HashMap<Uuid, i64> =
        try_join_all((0..CONNECTIONS).map(enqueue)).await?.into_iter().flatten().collect();
    let enqueued = Instant::now();
    let starts = loop {
        let starts = environment.store.starts(Table::Jobs).await?;
        if starts.len() == total && environment.store.unfinished(Table::Jobs).await? == 0 {
            break starts;
        }
        worker.ensure_running()?;
        ensure!(enqueued.elapsed() < PATIENCE, "{} of {total} jobs were started", starts.len());
        sleep(LOOK).await;
    };
    worker.stop().await?;
    sessions.close().await;
    let mut waits: Vec<f64> = starts
        .iter()
        .filter_map(|start| Some((start.started - committed.get(&start.id)?).max(0) as f64 / 1000.0))
        .collect();
    waits.sort_by(f64::total_cmp);
    Ok(waits)
}
