//! Batches of a thousand jobs in one request, beside a bare insert of the same rows.

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Bench, client::Client, fill::Rows, in_turn, server::Api, spread};
use crate::bench::{
    child::this_program,
    environment::Environment,
    jobs::{line, spec},
    statistics::Spread,
};

/// Jobs of a batch.
const ITEMS: usize = 1_000;

/// Batches that are not counted: connections are made, and statements are planned.
const SETTLE: usize = 2;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Batches {
    pub(super) items: usize,
    pub(super) batches: usize,
    /// Jobs per second through the API.
    pub(super) api: Spread,
    /// Rows per second of the bare insert.
    pub(super) insert: Spread,
    /// The former divided by the latter, round by round.
    pub(super) ratio: Spread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Insert,
    Api,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Insert => "a bare insert",
            Self::Api => "the API",
        }
    }

    /// Jobs per second, one batch after the other.
    async fn rate(self, environment: &Environment, batches: usize) -> Result<f64> {
        environment.run(&this_program()?, &["migrate"]).await?;
        match self {
            Self::Insert => insert(environment, batches).await,
            Self::Api => api(environment, batches).await,
        }
    }
}

pub(super) async fn measure(bench: Bench<'_>, progress: &impl Fn(&str)) -> Result<Batches> {
    let plan = bench.plan;
    let (mut api, mut insert) = (Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        for contender in in_turn([Contender::Insert, Contender::Api], round) {
            progress(&format!("batches, round {round} of {}: {}", plan.rounds, contender.name()));
            let measured = async |environment: &Environment| contender.rate(environment, plan.batches).await;
            let rate = bench.with(measured).await?;
            if contender == Contender::Api { &mut api } else { &mut insert }.push(rate);
        }
    }
    let ratios = api.iter().zip(&insert).map(|(api, insert)| api / insert).collect();
    Ok(Batches {
        items: ITEMS,
        batches: plan.batches,
        api: spread(api)?,
        insert: spread(insert)?,
        ratio: spread(ratios)?,
    })
}

async fn api(environment: &Environment, batches: usize) -> Result<f64> {
    let bodies: Vec<String> = (0..batches + SETTLE)
        .map(|batch| {
            let items: Vec<_> = (0..ITEMS).map(|n| line(&environment.lane, batch * ITEMS + n)).collect();
            json!({"items": items}).to_string()
        })
        .collect();
    let api = Api::start(environment, false).await?;
    let mut client = Client::connect(api.host, 0).await?;
    let mut begin = Instant::now();
    for (n, body) in bodies.iter().enumerate() {
        if n == SETTLE {
            begin = Instant::now();
        }
        client.post("/v1/batches", body).await?.expect(201)?;
    }
    let rate = rate(batches, begin);
    api.stop().await?;
    let stored = environment.store.jobs().await?;
    ensure!(stored == (bodies.len() * ITEMS) as u64, "{stored} jobs are there after all batches");
    Ok(rate)
}

async fn insert(environment: &Environment, batches: usize) -> Result<f64> {
    let batches_of_rows = (0..batches + SETTLE)
        .map(|batch| {
            let specs = (0..ITEMS).map(|n| Ok(spec(&environment.lane, batch * ITEMS + n)?));
            Ok(Rows::of(&specs.collect::<Result<Vec<_>>>()?, Uuid::now_v7()))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut begin = Instant::now();
    for (n, rows) in batches_of_rows.iter().enumerate() {
        if n == SETTLE {
            begin = Instant::now();
        }
        environment.store.insert_rows(rows).await?;
    }
    Ok(rate(batches, begin))
}

fn rate(batches: usize, begin: Instant) -> f64 {
    (batches * ITEMS) as f64 / begin.elapsed().as_secs_f64().max(1e-6)
}
