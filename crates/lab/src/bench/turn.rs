//! One turn of one party: how fast it works through a full lane, or how soon it starts jobs that come
//! at an even pace.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use errand::{
    app,
    config::Config,
    job::JobId,
    queue::{Queue as _, QueueError},
    store::SharedStore,
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Backend, Party, Plan,
    child::{Process, Role},
    jobs::{message, now_micros, spec},
    report::{Latency, Rate, percentile},
    stage::Stage,
    stub::StubProcess,
};

/// Messages of one publication.
const CHUNK: usize = 1_000;

/// How often the parent looks. It looks at a count that the stub keeps, which costs next to nothing.
const LOOK: Duration = Duration::from_millis(20);

/// Without any progress for so long, a turn has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a party that was just started gets before jobs come at an even pace, and how long the
/// pace runs before it counts, so that connections and caches are there.
const SETTLE: Duration = Duration::from_secs(1);

/// One turn.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    pub(super) config: &'a Config,
    pub(super) plan: &'a Plan,
    pub(super) stub: &'a StubProcess,
    pub(super) party: Party,
}

impl Turn<'_> {
    /// Fills the lane, starts the party, and waits until it has done everything.
    pub(super) async fn rate(&self, stage: &Stage) -> Result<Rate> {
        let (plan, stub) = (self.plan, self.stub);
        self.prepare_tables(stage).await?;
        self.fill(stage).await?;
        let before = stub.calls().await?.answered;
        let arguments: &[String] = match (self.party, plan.backend) {
            // Nobody but the bare loop itself can fill a channel in its process.
            (Party::Bare, Backend::Embedded) => &["--feed".to_owned(), plan.jobs.to_string()],
            _ => &[],
        };
        let mut process = stage.start(self.role(), arguments, self.config, plan, stub)?;
        self.wait(stage, &mut process, before + plan.jobs as u64).await?;
        let usage = process.usage()?;
        let span = stage.store.span(self.party.table()).await?;
        process.stop().await?;
        Ok(Rate {
            party: self.party,
            jobs_per_second: span.succeeded as f64 / span.seconds.max(1e-6),
            seconds: span.seconds,
            cpu_seconds_per_1000: usage.cpu_seconds * 1000.0 / span.succeeded.max(1) as f64,
            peak_bytes: usage.peak_bytes,
        })
    }

    /// Lets jobs come in at an even pace, and compares the time of each with its claim.
    pub(super) async fn latency(&self, stage: &Stage, pace: f64) -> Result<Latency> {
        let (plan, stub) = (self.plan, self.stub);
        self.prepare_tables(stage).await?;
        let before = stub.calls().await?.answered;
        let total = (pace * (plan.latency + SETTLE).as_secs_f64()).ceil().max(1.0);
        let embedded = plan.backend == Backend::Embedded;
        // Jobs of the embedded queue come from the process itself.
        let arguments: &[String] = if embedded {
            &["--feed".into(), total.to_string(), "--pace".into(), pace.to_string()]
        } else {
            &[]
        };
        let mut process = stage.start(self.role(), arguments, self.config, plan, stub)?;
        let mut enqueued = HashMap::new();
        if !embedded {
            tokio::time::sleep(SETTLE).await;
            enqueued = publish_evenly(stage, pace, total as usize).await?;
        }
        self.wait(stage, &mut process, before + total as u64).await?;
        let mut starts = stage.store.starts(self.party.table()).await?;
        process.stop().await?;
        starts.sort_by_key(|start| start.id);
        let skip = (pace * SETTLE.as_secs_f64()) as usize;
        let mut waits: Vec<f64> = starts
            .iter()
            .skip(skip)
            .map(|start| {
                let since = enqueued.get(&start.id).copied().unwrap_or(start.created);
                (start.started - since).max(0) as f64 / 1000.0
            })
            .collect();
        waits.sort_by(f64::total_cmp);
        Ok(Latency {
            party: self.party,
            pace,
            jobs: waits.len(),
            p50_ms: percentile(&waits, 0.5),
            p99_ms: percentile(&waits, 0.99),
        })
    }

    fn role(&self) -> Role {
        match self.party {
            Party::Worker => Role::Worker,
            Party::Bare => Role::Bare,
        }
    }

    async fn prepare_tables(&self, stage: &Stage) -> Result<()> {
        if self.party == Party::Bare {
            return Ok(stage.store.create_bare().await?);
        }
        let store = self.open_store(stage)?;
        store.migrate().await?;
        store.close().await;
        Ok(())
    }

    fn open_store(&self, stage: &Stage) -> Result<SharedStore> {
        let mut config = self.config.clone();
        config.store.url = stage.url.clone();
        app::open_store(&config)
    }

    /// Puts all jobs where the party finds them: on the broker, or in the store, from where the
    /// worker's relay brings them.
    async fn fill(&self, stage: &Stage) -> Result<()> {
        let numbers: Vec<usize> = (0..self.plan.jobs).collect();
        if let Some(queue) = &stage.queue {
            for chunk in numbers.chunks(CHUNK) {
                let messages = chunk.iter().map(|n| message(&stage.lane, *n).1).collect();
                confirmed(queue.publish(messages).await)?;
            }
        } else if self.party == Party::Worker {
            let store = self.open_store(stage)?;
            for chunk in numbers.chunks(CHUNK) {
                let specs: Vec<_> = chunk.iter().map(|n| spec(&stage.lane, *n)).collect::<Result<_, _>>()?;
                store.insert(&specs, Duration::ZERO).await?;
            }
            store.close().await;
        }
        Ok(())
    }

    /// Waits until the stub has answered so many calls and everything is recorded.
    async fn wait(&self, stage: &Stage, process: &mut Process, calls: u64) -> Result<()> {
        let (mut answered, mut moved) = (0, Instant::now());
        loop {
            process.ensure_running()?;
            let now = self.stub.calls().await?.answered;
            if now >= calls && self.is_recorded(stage).await? {
                return Ok(());
            }
            if now != answered {
                (answered, moved) = (now, Instant::now());
            } else if moved.elapsed() > PATIENCE {
                let done = stage.store.span(self.party.table()).await?.succeeded;
                bail!(
                    "the {} stopped: the stub saw {answered} of {calls} calls, {done} jobs are recorded as succeeded",
                    self.party.name()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn is_recorded(&self, stage: &Stage) -> Result<bool> {
        let lane_is_empty = match &stage.queue {
            Some(queue) => queue.depth(&stage.lane).await?.ready == 0,
            None => true,
        };
        let unfinished = stage.store.unfinished(self.party.table()).await?;
        Ok(lane_is_empty && unfinished == 0)
    }
}

/// Publishes one job after the other, and says when each was, by the host's clock.
async fn publish_evenly(stage: &Stage, pace: f64, total: usize) -> Result<HashMap<Uuid, i64>> {
    let queue = stage.queue.as_ref().context("there is no broker")?;
    let mut enqueued = HashMap::with_capacity(total);
    // Each publication waits for the broker's confirmation; the next job does not.
    let mut publications = FuturesUnordered::new();
    let begin = Instant::now();
    for n in 0..total {
        let due = begin + Duration::from_secs_f64(n as f64 / pace);
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => break,
                Some(answers) = publications.next() => confirmed(answers)?,
            }
        }
        let (JobId(id), message) = message(&stage.lane, n);
        enqueued.insert(id, now_micros());
        publications.push(queue.publish(vec![message]));
        // A future does nothing before it is looked at for the first time.
        if let Some(Some(answers)) = publications.next().now_or_never() {
            confirmed(answers)?;
        }
    }
    while let Some(answers) = publications.next().await {
        confirmed(answers)?;
    }
    Ok(enqueued)
}

fn confirmed(answers: Vec<Result<(), QueueError>>) -> Result<()> {
    for answer in answers {
        answer.context("the broker did not take a job of the benchmark")?;
    }
    Ok(())
}
