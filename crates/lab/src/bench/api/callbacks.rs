//! Callbacks: how many a second a worker sends to receivers that take 50 ms, alone and beside one that never answers.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

use super::{Bench, fill::CALLED_OWNERS, spread};
use crate::bench::{
    child::{Role, this_program},
    environment::Environment,
    statistics::Spread,
    stub::StubProcess,
};

/// How long a receiver takes for its answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(50);

/// What waits for a receiver that never answers, for each callback that is measured.
const WAITING_FOR_THE_DEAD: i64 = 5;

/// All callbacks have been sent so long after the worker began, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(180);

const LOOK: Duration = Duration::from_millis(200);

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Callbacks {
    /// Events of each measurement, each of which is sent to one receiver.
    pub(super) events: i64,
    pub(super) owners: i64,
    /// Callbacks per second that were taken.
    pub(super) alone: Spread,
    /// The same, while so many wait for a receiver that never answers.
    pub(super) waiting: i64,
    pub(super) beside_the_dead: Spread,
    /// The second by the first, in one round.
    pub(super) ratio: Spread,
}

pub(super) async fn measure(bench: Bench<'_>, progress: &impl Fn(&str)) -> Result<Callbacks> {
    let (rounds, events) = (bench.plan.rounds, bench.plan.callbacks);
    let waiting = WAITING_FOR_THE_DEAD * events;
    let receivers = StubProcess::start(ANSWERS_AFTER).await?;
    // Whoever connects waits in its backlog for ever.
    let dead = TcpListener::bind("127.0.0.1:0").await?;
    let dead = format!("http://{}/", dead.local_addr()?);
    let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        progress(&format!("callbacks, round {round} of {rounds}"));
        let url = receivers.base_url();
        let first =
            bench.with(async |environment: &Environment| rate(environment, &url, events, None).await).await?;
        let second = bench
            .with(async |environment: &Environment| {
                rate(environment, &url, events, Some((&dead, waiting))).await
            })
            .await?;
        alone.push(first);
        beside.push(second);
        ratios.push(second / first);
    }
    Ok(Callbacks {
        events,
        owners: CALLED_OWNERS,
        alone: spread(alone)?,
        waiting,
        beside_the_dead: spread(beside)?,
        ratio: spread(ratios)?,
    })
}

/// Callbacks per second that were taken, from the first to the last, by the database's clock.
async fn rate(environment: &Environment, url: &str, events: i64, dead: Option<(&str, i64)>) -> Result<f64> {
    environment.run(&this_program()?, &["migrate"]).await?;
    if let Some((dead, waiting)) = dead {
        environment.store.wait_for(dead, waiting).await?;
    }
    environment.store.call(url, events).await?;
    let settings =
        [("ERRAND__CALLBACKS__ENABLED", "true"), ("ERRAND__CALLBACKS__ALLOWED_NETWORKS", "127.0.0.0/8")];
    let mut worker = environment.start_with(&this_program()?, Role::Worker, &[], &settings)?;
    let begun = Instant::now();
    let rate = loop {
        if let Some((taken, seconds)) = environment.store.taken().await?
            && taken == events
        {
            break taken as f64 / seconds;
        }
        worker.ensure_running()?;
        ensure!(begun.elapsed() < PATIENCE, "not all of {events} callbacks were taken");
        sleep(LOOK).await;
    };
    worker.stop().await?;
    Ok(rate)
}
