//! One measurement of a contender: how fast it works through a full lane, or how soon it starts jobs that come
//! at an even pace.

use std::{collections::HashMap, io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use errand::{
    job::JobId,
    queue::{Queue as _, QueueError},
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    child::{Process, Role, this_program},
    environment::{Base, Environment},
    jobs::{line, message, now_micros},
    plan::{Backend, Contender},
    report::{Latency, Rate},
    statistics::percentile,
};

/// Messages of one publication.
const CHUNK: usize = 1_000;

/// How often the parent looks. It looks at a count that the stub keeps, which costs next to nothing.
const LOOK: Duration = Duration::from_millis(20);

/// A measurement without any progress for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a contender that was just started gets before jobs come at an even pace, and how long the
/// pace runs before it counts, so that connections and caches are there.
const SETTLE: Duration = Duration::from_secs(1);

/// One measurement.
#[derive(Clone, Copy)]
pub(super) struct Measurement<'a> {
    pub(super) base: Base<'a>,
    pub(super) contender: Contender,
}

impl Measurement<'_> {
    /// Fills the lane, starts the contender, and waits until it has done everything.
    pub(super) async fn rate(&self, environment: &Environment, round: usize) -> Result<Rate> {
        let Base { plan, stub, .. } = self.base;
        self.prepare_tables(environment).await?;
        self.fill(environment).await?;
        let before = stub.calls().await?.answered;
        let arguments: &[String] = match (self.contender, plan.backend) {
            // Nobody but the baseline itself can fill a channel in its process.
            (Contender::Baseline, Backend::Embedded) => &["--feed".to_owned(), plan.jobs.to_string()],
            _ => &[],
        };
        let mut process =
            environment.start(&self.program()?, self.role(), arguments, self.records_events())?;
        self.wait(environment, &mut process, before + plan.jobs as u64).await?;
        let usage = process.usage()?;
        let span = environment.store.span(self.contender.table()).await?;
        process.stop().await?;
        Ok(Rate {
            contender: self.contender,
            round,
            jobs_per_second: span.succeeded as f64 / span.seconds.max(1e-6),
            seconds: span.seconds,
            cpu_seconds_per_1000: usage.cpu_seconds * 1000.0 / span.succeeded.max(1) as f64,
            peak_bytes: usage.peak_bytes,
        })
    }

    /// Lets jobs come in at an even pace, and compares the time of each with its claim.
    pub(super) async fn latency(&self, environment: &Environment, pace: f64) -> Result<Latency> {
        let Base { plan, stub, .. } = self.base;
        self.prepare_tables(environment).await?;
        let before = stub.calls().await?.answered;
        let total = (pace * (plan.latency + SETTLE).as_secs_f64()).ceil().max(1.0);
        let embedded = plan.backend == Backend::Embedded;
        // Jobs of the embedded queue come from the process itself.
        let arguments: &[String] = if embedded {
            &["--feed".into(), total.to_string(), "--pace".into(), pace.to_string()]
        } else {
            &[]
        };
        let mut process =
            environment.start(&self.program()?, self.role(), arguments, self.records_events())?;
        let mut enqueued = HashMap::new();
        if !embedded {
            tokio::time::sleep(SETTLE).await;
            enqueued = publish_evenly(environment, pace, total as usize).await?;
        }
        self.wait(environment, &mut process, before + total as u64).await?;
        let mut starts = environment.store.starts(self.contender.table()).await?;
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
            contender: self.contender,
            pace,
            jobs: waits.len(),
            p50_ms: percentile(&waits, 0.5),
            p99_ms: percentile(&waits, 0.99),
        })
    }

    fn role(&self) -> Role {
        match self.contender {
            Contender::Worker | Contender::Other => Role::Worker,
            Contender::Baseline => Role::Baseline,
        }
    }

    fn records_events(&self) -> bool {
        self.base.plan.events && self.contender == Contender::Worker
    }

    /// What is started as this contender.
    fn program(&self) -> Result<PathBuf> {
        match (self.contender, &self.base.plan.other) {
            (Contender::Other, Some(other)) => Ok(other.clone()),
            _ => this_program(),
        }
    }

    /// A worker finds the tables that its own build makes.
    async fn prepare_tables(&self, environment: &Environment) -> Result<()> {
        match self.contender {
            Contender::Baseline => Ok(environment.store.create_baseline().await?),
            Contender::Worker | Contender::Other => environment.run(&self.program()?, &["migrate"]).await,
        }
    }

    /// Puts all jobs where the contender finds them: on the broker, or in the store, from where the
    /// worker's relay brings them.
    async fn fill(&self, environment: &Environment) -> Result<()> {
        let jobs = self.base.plan.jobs;
        if let Some(queue) = &environment.queue {
            let numbers: Vec<usize> = (0..jobs).collect();
            for chunk in numbers.chunks(CHUNK) {
                let messages = chunk.iter().map(|n| message(&environment.lane, *n).1).collect();
                confirmed(queue.publish(messages).await)?;
            }
        } else if self.contender != Contender::Baseline {
            let file = environment.folder().join("jobs.jsonl");
            let mut lines = std::io::BufWriter::new(std::fs::File::create(&file)?);
            for n in 0..jobs {
                writeln!(lines, "{}", line(&environment.lane, n))?;
            }
            lines.flush()?;
            let file = file.to_str().context("the temporary folder has a strange name")?;
            environment.run(&self.program()?, &["enqueue-bulk", file]).await?;
        }
        Ok(())
    }

    /// Waits until the stub has answered this many calls and everything is recorded.
    async fn wait(&self, environment: &Environment, process: &mut Process, calls: u64) -> Result<()> {
        let (mut answered, mut moved) = (0, Instant::now());
        loop {
            process.ensure_running()?;
            let now = self.base.stub.calls().await?.answered;
            if now >= calls && self.is_recorded(environment).await? {
                return Ok(());
            }
            if now != answered {
                (answered, moved) = (now, Instant::now());
            } else if moved.elapsed() > PATIENCE {
                let done = environment.store.span(self.contender.table()).await?.succeeded;
                bail!(
                    "the {} stopped: the stub saw {answered} of {calls} calls, {done} jobs are recorded as succeeded",
                    self.contender.name()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn is_recorded(&self, environment: &Environment) -> Result<bool> {
        let lane_is_empty = match &environment.queue {
            Some(queue) => queue.depth(&environment.lane).await?.ready == 0,
            None => true,
        };
        let unfinished = environment.store.unfinished(self.contender.table()).await?;
        Ok(lane_is_empty && unfinished == 0)
    }
}

/// Publishes one job after the other, and says when each was, by the host's clock.
async fn publish_evenly(environment: &Environment, pace: f64, total: usize) -> Result<HashMap<Uuid, i64>> {
    let queue = environment.queue.as_ref().context("there is no broker")?;
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
        let (JobId(id), message) = message(&environment.lane, n);
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
