//! How long the running jobs of a worker that disappeared take to be taken over.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use errand::{
    app,
    bounds::CLAIM_BATCH,
    config::Config,
    job::{Binding, Effect, JobSpec, PinnedBy, RequestId, WorkerId},
    store::{Claim, Claimed, SharedStore},
};
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    child::{Role, this_program},
    database::use_schema_of_url,
    environment::Environment,
    jobs::{TOOLKIT, VERSION, spec},
    plan::Plan,
};

/// How often the database is asked, and how exact the times are. Each question reads the whole table.
const LOOK: Duration = Duration::from_millis(100);

/// A recovery that takes longer than this after the end of the lease has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Recovery {
    /// Jobs of the lost worker.
    pub(super) jobs: usize,
    /// From the end of its lease until another worker has taken over the first of them.
    pub(super) first_seconds: f64,
    /// Until all of them are taken over.
    pub(super) all_seconds: f64,
}

/// Claims `plan.recover` jobs for a worker that beats once and never again, and watches another worker, with
/// the settings that are the defaults, take them over.
pub(super) async fn measure(config: &Config, plan: &Plan, environment: &Environment) -> Result<Recovery> {
    let mut settings = config.clone();
    settings.store.url = environment.url.clone();
    use_schema_of_url(&mut settings);
    let store = app::open_store(&settings)?;
    store.migrate().await?;
    let lost = WorkerId::new();
    let lease = Duration::from_secs(settings.worker.lease_secs);
    store.beat(lost, "lost", lease).await?;
    claim(&store, lost, environment, plan.recover).await?;
    let beaten = Instant::now();
    store.beat(lost, "lost", lease).await?;
    store.close().await;
    let lease_end = beaten + lease;

    // A worker that has been there for a while when the lease ends.
    let process = environment.start(&this_program()?, Role::Worker, &[], false)?;
    sleep_until(lease_end).await;
    let mut first = None;
    loop {
        let left = environment.store.running_of(lost.0).await?;
        let since = lease_end.elapsed();
        if left < plan.recover as u64 {
            first.get_or_insert(since);
        }
        if left == 0 {
            break;
        }
        ensure!(since < PATIENCE, "{left} jobs of a lost worker were not taken over");
        sleep(LOOK).await;
    }
    let all = lease_end.elapsed();
    process.stop().await?;
    Ok(Recovery {
        jobs: plan.recover,
        first_seconds: first.unwrap_or(all).as_secs_f64(),
        all_seconds: all.as_secs_f64(),
    })
}

async fn claim(store: &SharedStore, worker: WorkerId, environment: &Environment, jobs: usize) -> Result<()> {
    let numbers: Vec<usize> = (0..jobs).collect();
    for chunk in numbers.chunks(CLAIM_BATCH) {
        let claims =
            chunk.iter().map(|n| Ok(claim_of(spec(&environment.lane, *n)?))).collect::<Result<Vec<_>>>()?;
        let answers = store.claim(worker, &claims).await.context("cannot claim the jobs of a lost worker")?;
        ensure!(answers.iter().all(|answer| matches!(answer, Claimed::Running(_))), "a job was not claimed");
    }
    Ok(())
}

fn claim_of(spec: Arc<JobSpec>) -> Claim {
    let binding = Binding {
        toolkit: TOOLKIT.to_owned(),
        version: VERSION.to_owned(),
        pinned_by: PinnedBy::Config,
        account: None,
        effect: Effect::Once,
    };
    let request_id = RequestId::new();
    Claim { spec, request_id, binding: Some(binding), stop: None, from_store: false, published_at: None }
}
