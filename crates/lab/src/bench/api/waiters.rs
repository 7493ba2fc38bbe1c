//! Requests that wait for jobs: how busy they keep the database, and how much memory they take.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{Plan, client::Client, fill::Rows, server::Api};
use crate::bench::{child::this_program, environment::Environment, jobs::spec};

/// Before the first of them is answered, the time that they only wait is over.
const MARGIN: Duration = Duration::from_secs(2);

/// Requests that begin to wait at the same time.
const AT_ONCE: usize = 64;

/// Jobs of one insert.
const CHUNK: usize = 1_000;

/// How often the parent looks whether all wait.
const LOOK: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Waiters {
    pub(super) waiters: usize,
    /// How long they only waited, in seconds.
    pub(super) seconds: f64,
    /// The time that sessions of the database executed statements meanwhile, divided by that.
    pub(super) database_share: f64,
    /// The same from the first question to the last answer.
    pub(super) database_share_in_all: f64,
    /// The processor time of the API while they only waited, divided by that time.
    pub(super) processor_share: f64,
    /// Resident memory of the API without them, and what each of them adds.
    pub(super) idle_bytes: u64,
    pub(super) bytes_each: f64,
}

pub(super) async fn measure(environment: &Environment, plan: &Plan) -> Result<Waiters> {
    let Plan { waiters, wait, .. } = *plan;
    environment.run(&this_program()?, &["migrate"]).await?;
    let jobs = jobs(environment, waiters).await?;
    let api = Api::start(environment, true).await?;
    let (idle, active_before, begun) =
        (api.usage()?, environment.store.active_seconds().await?, Instant::now());

    let asked = jobs.iter().enumerate().map(async |(n, job)| {
        let mut client = Client::connect(api.host, n).await?;
        client.ask(&format!("/v1/jobs/{job}?wait={}", wait.as_secs())).await?;
        Ok::<Client, anyhow::Error>(client)
    });
    let mut clients: Vec<Client> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let end = begun + wait.saturating_sub(MARGIN);
    while api.metric("errand_api_waiting_requests").await? < waiters as f64 {
        ensure!(Instant::now() < end, "it takes too long until {waiters} requests wait");
        sleep(LOOK).await;
    }
    let (all_wait, used, active) = (Instant::now(), api.usage()?, environment.store.active_seconds().await?);
    sleep_until(end).await;
    let (waited, still_used) = (all_wait.elapsed().as_secs_f64(), api.usage()?);
    let active_while_waiting = environment.store.active_seconds().await? - active;

    for client in &mut clients {
        client.answer().await?.expect(202)?;
    }
    let in_all = begun.elapsed().as_secs_f64();
    // When the sessions of the API have ended, all that they did is counted.
    api.stop().await?;
    let active_in_all = environment.store.active_seconds().await? - active_before;
    let grown = still_used.resident_bytes.saturating_sub(idle.resident_bytes);
    Ok(Waiters {
        waiters,
        seconds: waited,
        database_share: active_while_waiting / waited,
        database_share_in_all: active_in_all / in_all,
        processor_share: (still_used.cpu_seconds - used.cpu_seconds) / waited,
        idle_bytes: idle.resident_bytes,
        bytes_each: grown as f64 / waiters.max(1) as f64,
    })
}

/// Jobs that nobody runs, one for each who waits, which is the most work for who looks after them.
async fn jobs(environment: &Environment, waiters: usize) -> Result<Vec<Uuid>> {
    let mut jobs = Vec::with_capacity(waiters);
    let numbers: Vec<usize> = (0..waiters).collect();
    for chunk in numbers.chunks(CHUNK) {
        let specs = chunk.iter().map(|n| Ok(spec(&environment.lane, *n)?)).collect::<Result<Vec<_>>>()?;
        let rows = Rows::of(&specs, Uuid::now_v7());
        environment.store.insert_rows(&rows).await?;
        jobs.extend_from_slice(rows.ids());
    }
    Ok(jobs)
}
