//! The jobs of a round, as apps enqueue them: some through the broker, some through the store, some as batches, some twice,
//! and each again until it is confirmed. Some that wait are changed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use errand::{
    admission::{Admission, Enqueued},
    clock,
    job::{
        Arrival, BatchId, CallbackUrl, Digest, Edit, JobId, JobSpec, Owner, OwnerKind, Principal, Rules,
        decode, encode,
    },
    queue::{Address, Message, Properties, SharedQueue},
    store::{Added, Decider, NewBatch},
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

/// When jobs run that are changed, and how often that happens.
const CHANGED_WITHIN: Duration = Duration::from_secs(3);
const CHANGES: i128 = 4;

/// How jobs come in.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) access: AppAccess,
    pub(super) api: Arc<ToolApi>,
    pub(super) jobs: usize,
    /// Where users ask for the events of their jobs. Organizations have set it.
    pub(super) callback: CallbackUrl,
    /// How long they take to come in.
    pub(super) span: Duration,
    /// Whether messages are used where there is a broker.
    pub(super) by_message: bool,
    /// Whether some jobs come as batches, and some are changed.
    pub(super) varied: bool,
    /// Whether some jobs that may be repeated allow their first calls a few milliseconds only.
    pub(super) impatient: bool,
}

/// What was confirmed: every job, and whether its call must not be repeated.
pub(super) type Accepted = HashMap<JobId, bool>;

/// How the jobs of a chunk come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Messages,
    Store,
    /// The same, and they are changed while they wait.
    Changed,
    /// A batch of each owner.
    Batches,
}

impl Load {
    /// Enqueues all jobs at an even pace, and returns when the last is confirmed.
    pub(super) async fn enqueue(self, mut rng: fastrand::Rng) -> Result<Accepted> {
        let mut accepted = Accepted::new();
        let chunks = self.jobs.div_ceil(CHUNK);
        let begin = Instant::now();
        for chunk in 0..chunks {
            tokio::time::sleep_until(begin + self.span.mul_f64(chunk as f64 / chunks as f64)).await;
            let way = self.way(&mut rng);
            let numbers = chunk * CHUNK..self.jobs.min((chunk + 1) * CHUNK);
            let jobs = numbers.map(|n| self.job(n, way, &mut rng)).collect::<Result<Vec<_>>>()?;
            accepted.extend(jobs.iter().map(|(spec, once)| (spec.id, *once)));
            let specs: Vec<_> = jobs.into_iter().map(|(spec, _)| spec).collect();
            let batches = if way == Way::Batches { self.batches(&specs) } else { Vec::new() };
            let twice = rng.u8(..8) == 0;
            for _ in 0..=usize::from(twice) {
                let accepting = async {
                    match (way, &self.access.queue) {
                        (Way::Batches, _) => self.accept_batches(&batches).await,
                        (Way::Messages, Some(queue)) => publish(queue, &specs).await,
                        _ => self.store(&specs).await,
                    }
                };
                tokio::time::timeout(PATIENCE, accepting)
                    .await
                    .context("jobs could not be enqueued for four minutes")??;
            }
            if way == Way::Changed {
                self.change(&specs).await;
            }
        }
        Ok(accepted)
    }

    fn way(&self, rng: &mut fastrand::Rng) -> Way {
        match rng.u8(..12) {
            6.. if self.by_message && self.access.queue.is_some() => Way::Messages,
            n if self.varied => [Way::Store, Way::Changed, Way::Batches][usize::from(n % 3)],
            _ => Way::Store,
        }
    }

    fn job(&self, n: usize, way: Way, rng: &mut fastrand::Rng) -> Result<(Arc<JobSpec>, bool)> {
        let mut errand = self.api.errand(JobId::new(), n);
        if rng.u8(..10) == 0 {
            errand.body["priority"] = json!(rng.u8(1..=9));
        }
        if self.impatient && !errand.once {
            // Each attempt ends too early, until the job is made again without it.
            errand.body["timeout_ms"] = json!(rng.u32(100..=400));
        }
        if way == Way::Changed {
            errand.body["run_at"] = json!(clock::system().now() + CHANGED_WITHIN);
        }
        if errand.body.get(OwnerKind::User.field()).is_some() {
            errand.body["callback"] = json!({ "url": self.callback.as_str() });
        }
        let body = serde_json::to_vec(&errand.body)?;
        let spec = decode(&body, &Arrival::new(&self.access.lane)).context("a job of ours is no job")?;
        Ok((Arc::new(spec), errand.once))
    }

    /// The jobs by owner.
    fn batches(&self, specs: &[Arc<JobSpec>]) -> Vec<(NewBatch, Vec<Arc<JobSpec>>)> {
        let mut of_owners = BTreeMap::<&Owner, Vec<Arc<JobSpec>>>::new();
        for spec in specs {
            of_owners.entry(&spec.owner).or_default().push(spec.clone());
        }
        let batch = |(owner, items): (&Owner, _)| {
            let batch = NewBatch {
                id: BatchId::new(),
                principal: Principal::Owner(owner.clone()),
                digest: Digest([0; 16]),
                is_sealed: true,
                deadline: None,
                stop: None,
                follow_up: None,
                callback: (owner.kind() == OwnerKind::User).then(|| self.callback.clone()),
            };
            (batch, items)
        };
        of_owners.into_iter().map(batch).collect()
    }

    async fn accept_batches(&self, batches: &[(NewBatch, Vec<Arc<JobSpec>>)]) -> Result<()> {
        for (batch, items) in batches {
            loop {
                match self.access.store.add_batch(batch, items).await {
                    Ok(Added::New(..) | Added::Known(_)) => break,
                    Ok(Added::Not(why)) => bail!("a batch of ours was not taken: {why:?}"),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        }
        Ok(())
    }

    /// Enqueues through the store until all are confirmed.
    async fn store(&self, specs: &[Arc<JobSpec>]) -> Result<()> {
        loop {
            let Ok(answers) = self.door().enqueue(specs).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            for answer in answers {
                if let Enqueued::Refused(_) | Enqueued::Conflict(_) = answer {
                    bail!("a job of ours was not taken: {answer:?}");
                }
            }
            return Ok(());
        }
    }

    /// Changes jobs that wait, in turns, as long as the store answers. What runs by now stays as it is.
    async fn change(&self, specs: &[Arc<JobSpec>]) {
        let (door, by) = (self.door(), Decider::at_command_line("errand-lab"));
        for priority in 1..=CHANGES {
            let edit = Edit { priority: Some(priority), ..Edit::default() };
            for spec in specs {
                if door.edit(&Principal::Operator, spec.id, &edit, &by, |_| true).await.is_err() {
                    return;
                }
            }
        }
    }

    fn door(&self) -> Admission {
        let rules = Rules { sends_callbacks: true, ..Rules::default() };
        Admission::new(self.access.store.clone(), None, clock::system(), rules, Duration::ZERO)
    }
}

/// Publishes until all are confirmed. Repetitions have the same IDs, so they are the same jobs.
async fn publish(queue: &SharedQueue, specs: &[Arc<JobSpec>]) -> Result<()> {
    let mut left = specs.to_vec();
    loop {
        let answers = queue.publish(left.iter().map(|spec| message(spec)).collect()).await;
        let answers = left.into_iter().zip(answers);
        left = answers.filter(|(_, answer)| answer.is_err()).map(|(spec, _)| spec).collect();
        if left.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
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
