//! Requests that are held open: how busy they keep the database, and how much memory they take.

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
pub(super) struct Held {
    pub(super) requests: usize,
    /// How long they were only held, in seconds.
    pub(super) seconds: f64,
    /// The time that sessions of the database executed statements meanwhile, divided by that.
    pub(super) database_share: f64,
    /// The same from the first question to the last answer.
    pub(super) database_share_in_all: f64,
    /// The processor time of the API while they were only held, divided by that time.
    pub(super) processor_share: f64,
    /// Resident memory of the API without them, and what each of them adds.
    pub(super) idle_bytes: u64,
    pub(super) bytes_each: f64,
}

/// Requests that wait for jobs, each for another one.
pub(super) async fn waiters(environment: &Environment, plan: &Plan) -> Result<Held> {
    environment.run(&this_program()?, &["migrate"]).await?;
    let jobs = jobs(environment, plan.waiters).await?;
    let wait = plan.wait.as_secs();
    let asks = jobs.iter().map(|job| (format!("/v1/jobs/{job}?wait={wait}"), "application/json"));
    let answered = async |client: &mut Client| client.answer().await?.expect(202).map(drop);
    measure(environment, plan, "errand_api_waiting_requests", asks.collect(), answered).await
}

/// Streams of events, each of another owner, of which nothing happens.
pub(super) async fn streams(environment: &Environment, plan: &Plan) -> Result<Held> {
    environment.run(&this_program()?, &["migrate"]).await?;
    let asks = (0..plan.streams).map(|n| (format!("/v1/events?owner=user:{n}"), "text/event-stream"));
    let begun = async |client: &mut Client| client.begins(200).await;
    measure(environment, plan, "errand_api_event_streams", asks.collect(), begun).await
}

/// Sends all requests, and measures while they are held; `ended` tells whether one was answered as it should be.
async fn measure(
    environment: &Environment,
    plan: &Plan,
    gauge: &str,
    requests: Vec<(String, &'static str)>,
    ended: impl AsyncFn(&mut Client) -> Result<()>,
) -> Result<Held> {
    let api = Api::start(environment, true).await?;
    let (idle, active_before, begun) =
        (api.usage()?, environment.store.active_seconds().await?, Instant::now());

    let asked = requests.iter().enumerate().map(async |(n, (path, accepted))| {
        let mut client = Client::connect(api.host, n).await?;
        client.ask(path, accepted).await?;
        Ok::<Client, anyhow::Error>(client)
    });
    let mut clients: Vec<Client> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let end = begun + plan.wait.saturating_sub(MARGIN);
    while api.metric(gauge).await? < requests.len() as f64 {
        ensure!(Instant::now() < end, "it takes too long until {} requests are held", requests.len());
        sleep(LOOK).await;
    }
    let (all_held, used, active) = (Instant::now(), api.usage()?, environment.store.active_seconds().await?);
    sleep_until(end).await;
    let (held, still_used) = (all_held.elapsed().as_secs_f64(), api.usage()?);
    let active_meanwhile = environment.store.active_seconds().await? - active;

    for client in &mut clients {
        ended(client).await?;
    }
    let in_all = begun.elapsed().as_secs_f64();
    // When the sessions of the API have ended, all that they did is counted.
    api.stop().await?;
    let active_in_all = environment.store.active_seconds().await? - active_before;
    let grown = still_used.resident_bytes.saturating_sub(idle.resident_bytes);
    Ok(Held {
        requests: requests.len(),
        seconds: held,
        database_share: active_meanwhile / held,
        database_share_in_all: active_in_all / in_all,
        processor_share: (still_used.cpu_seconds - used.cpu_seconds) / held,
        idle_bytes: idle.resident_bytes,
        bytes_each: grown as f64 / requests.len().max(1) as f64,
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
