//! The jobs of a round, as apps enqueue them: some through the broker, some through the store, some twice,
//! and each again until it is confirmed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use errand::{
    admission::{Admission, Enqueued},
    clock,
    job::{Arrival, JobId, JobSpec, Rules, decode, encode},
    queue::{Address, Message, Properties},
};
use serde_json::json;
use tokio::time::Instant;

use super::{environment::AppAccess, tool_api::ToolApi};

/// Jobs that are enqueued together.
const CHUNK: usize = 10;

/// How long a chunk may take, with all its repetitions. A broker that was killed takes long to start on a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The pause before what was not confirmed is enqueued again.
const PAUSE: Duration = Duration::from_millis(300);

/// How jobs come in.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) access: AppAccess,
    pub(super) api: Arc<ToolApi>,
    pub(super) jobs: usize,
    /// How long they take to come in.
    pub(super) span: Duration,
    /// Whether messages are used where there is a broker.
    pub(super) by_message: bool,
    /// Whether some jobs that may be repeated allow their first calls a few milliseconds only.
    pub(super) impatient: bool,
}

/// What was confirmed: every job, and whether its call must not be repeated.
pub(super) type Accepted = HashMap<JobId, bool>;

impl Load {
    /// Enqueues all jobs at an even pace, and returns when the last is confirmed.
    pub(super) async fn enqueue(self, mut rng: fastrand::Rng) -> Result<Accepted> {
        let mut accepted = Accepted::new();
        let chunks = self.jobs.div_ceil(CHUNK);
        let begin = Instant::now();
        for chunk in 0..chunks {
            tokio::time::sleep_until(begin + self.span.mul_f64(chunk as f64 / chunks as f64)).await;
            let numbers = chunk * CHUNK..self.jobs.min((chunk + 1) * CHUNK);
            let jobs = numbers.map(|n| self.job(n, &mut rng)).collect::<Result<Vec<_>>>()?;
            accepted.extend(jobs.iter().map(|(spec, once)| (spec.id, *once)));
            let specs: Vec<_> = jobs.into_iter().map(|(spec, _)| spec).collect();
            let by_message = self.by_message && rng.u8(..4) > 0;
            let twice = rng.u8(..8) == 0;
            for _ in 0..=usize::from(twice) {
                tokio::time::timeout(PATIENCE, self.accept(&specs, by_message))
                    .await
                    .context("jobs could not be enqueued for four minutes")??;
            }
        }
        Ok(accepted)
    }

    fn job(&self, n: usize, rng: &mut fastrand::Rng) -> Result<(Arc<JobSpec>, bool)> {
        let mut errand = self.api.errand(JobId::new(), n);
        if rng.u8(..10) == 0 {
            errand.body["priority"] = json!(rng.u8(1..=9));
        }
        if self.impatient && !errand.once {
            // Each attempt ends too early, until the job is made again without it.
            errand.body["timeout_ms"] = json!(rng.u32(100..=400));
        }
        let body = serde_json::to_vec(&errand.body)?;
        let spec = decode(&body, &Arrival::new(&self.access.lane)).context("a job of ours is no job")?;
        Ok((Arc::new(spec), errand.once))
    }

    /// Enqueues until all are confirmed. Repetitions have the same IDs, so they are the same jobs.
    async fn accept(&self, specs: &[Arc<JobSpec>], by_message: bool) -> Result<()> {
        let mut left = specs.to_vec();
        loop {
            left = match (&self.access.queue, by_message) {
                (Some(queue), true) => {
                    let answers = queue.publish(left.iter().map(|spec| message(spec)).collect()).await;
                    left.into_iter()
                        .zip(answers)
                        .filter(|(_, answer)| answer.is_err())
                        .map(|(spec, _)| spec)
                        .collect()
                }
                _ => self.through_the_store(left).await?,
            };
            if left.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns what was not accepted, which is all or nothing.
    async fn through_the_store(&self, specs: Vec<Arc<JobSpec>>) -> Result<Vec<Arc<JobSpec>>> {
        let door = Admission::new(
            self.access.store.clone(),
            None,
            clock::system(),
            Rules::default(),
            Duration::ZERO,
        );
        let Ok(answers) = door.enqueue(&specs).await else { return Ok(specs) };
        for answer in answers {
            if let Enqueued::Refused(_) | Enqueued::Conflict(_) = answer {
                bail!("a job of ours was not taken: {answer:?}");
            }
        }
        Ok(Vec::new())
    }
}

/// The message that an app would publish.
fn message(spec: &JobSpec) -> Message {
    let properties = Properties {
        message_id: Some(spec.id.to_string()),
        content_type: Some("application/json".into()),
        other: BTreeMap::new(),
        ..Properties::default()
    };
    let priority = u8::try_from(spec.priority).unwrap_or(0);
    Message { to: Address::Lane(spec.queue.clone()), body: encode(spec).into(), properties, priority }
}
