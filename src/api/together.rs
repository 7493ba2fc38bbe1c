//! Jobs that are enqueued one by one, by many at once: those that come while others are stored are stored together next.
//!
//! There is no timer: a job that comes alone is stored at once. What is wrong with one costs no other: where the database
//! refuses several, each is stored by itself. Whoever asks is answered when the job is stored; it is handed to the broker
//! behind that, because the relay looks after what the broker does not get. When the API ends, nobody waits for the broker any
//! more: what is stored then is the relay's.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{Admission, Enqueued},
    bounds::{CLAIM_BATCH, MAX_BATCH_BYTES},
    failure::chain,
    job::JobSpec,
    store::StoreError,
    sync::lock,
};

/// Jobs on their way to the broker at once, a large one counted for several: each for one and for its [`PIECE`]s. A broker
/// that is slower than that slows the door down.
const HANDED_OVER: u32 = 1_024;

/// Bytes of a job on its way to the broker that count as another job.
const PIECE: usize = 8 * 1024;

type Answer = Result<Enqueued, StoreError>;

/// Enqueues jobs together that come one by one.
#[derive(Debug)]
pub(super) struct Together {
    admission: Admission,
    waiting: Mutex<Vec<Waiting>>,
    /// One write at a time: what comes meanwhile is the next, and a write of many jobs costs each of them less.
    turn: tokio::sync::Mutex<()>,
    /// What may yet be on its way to the broker. It is never closed.
    hands: Arc<Semaphore>,
    stop: CancellationToken,
}

/// A job that waits for a turn, and who waits for it.
#[derive(Debug)]
struct Waiting {
    spec: Arc<JobSpec>,
    asker: oneshot::Sender<Answer>,
}

impl Together {
    /// After `stop`, jobs are left to the relay.
    pub(super) fn new(admission: Admission, stop: CancellationToken) -> Arc<Self> {
        let hands = Arc::new(Semaphore::new(HANDED_OVER as usize));
        Arc::new(Self {
            admission,
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            hands,
            stop,
        })
    }

    /// Enqueues a job. `None` where errand failed. What is begun is finished although nobody waits for the answer any more: a
    /// job that is stored is handed over, and not only found by the relay later.
    pub(super) async fn enqueue(self: &Arc<Self>, spec: Arc<JobSpec>) -> Option<Answer> {
        let (asker, answer) = oneshot::channel();
        let is_first = {
            let mut waiting = lock(&self.waiting);
            waiting.push(Waiting { spec, asker });
            waiting.len() == 1
        };
        if is_first {
            self.queue_for_turn();
        }
        answer.await.ok()
    }

    /// Lets one more turn come. While anything waits, there is one to come.
    fn queue_for_turn(self: &Arc<Self>) {
        let this = self.clone();
        tokio::spawn(async move { this.take_turn().await });
    }

    /// Waits until the broker has what was stored, or was tried in vain, which leaves it to the relay.
    pub(super) async fn handed_over(&self) {
        drop(self.hands.acquire_many(HANDED_OVER).await);
    }

    /// Stores what waits, as much as one write may carry.
    async fn take_turn(self: &Arc<Self>) {
        let turn = self.turn.lock().await;
        let (together, is_all) = {
            let mut waiting = lock(&self.waiting);
            (first(&mut waiting), waiting.is_empty())
        };
        if !is_all {
            self.queue_for_turn();
        }
        let (specs, askers): (Vec<_>, Vec<_>) =
            together.into_iter().map(|Waiting { spec, asker }| (spec, asker)).unzip();
        let answers = self.store(&specs).await;
        // The next write is on its way to the database while these answers are written.
        drop(turn);
        for (asker, answer) in askers.into_iter().zip(answers) {
            // Who went away is not interested.
            drop(asker.send(answer));
        }
    }

    async fn store(self: &Arc<Self>, specs: &[Arc<JobSpec>]) -> Vec<Answer> {
        match specs {
            [] => Vec::new(),
            [one] => vec![self.store_one(one).await],
            several => match self.insert(several).await {
                Ok(answers) => answers.into_iter().map(Ok).collect(),
                Err(error) if error.is_unanswered() => {
                    let told = || StoreError::new(error.kind(), chain(&error));
                    several.iter().map(|_| Err(told())).collect()
                }
                Err(_) => join_all(several.iter().map(|one| self.store_one(one))).await,
            },
        }
    }

    async fn store_one(self: &Arc<Self>, spec: &Arc<JobSpec>) -> Answer {
        let answers = self.insert(std::slice::from_ref(spec)).await?;
        answers.into_iter().next().ok_or_else(|| StoreError::corrupt("id"))
    }

    /// Stores jobs, and lets them be handed over.
    async fn insert(self: &Arc<Self>, specs: &[Arc<JobSpec>]) -> Result<Vec<Enqueued>, StoreError> {
        // It is taken before the write, so that a slow broker keeps jobs from being stored rather than from being handed over.
        let hand = self.hands.clone().acquire_many_owned(handed_over(specs));
        let hand = self.stop.run_until_cancelled(hand).await;
        let (answers, stored) = self.admission.insert(specs).await?;
        if hand.is_none() {
            self.admission.leave_to_relay(&stored).await;
            return Ok(answers);
        }
        let this = self.clone();
        tokio::spawn(async move {
            // The next write and the answers come first: whoever asked waits for them.
            tokio::task::yield_now().await;
            this.admission.hand_over(&stored).await;
            drop(hand);
        });
        Ok(answers)
    }
}

/// What jobs count for on their way to the broker.
fn handed_over(specs: &[Arc<JobSpec>]) -> u32 {
    let counted: usize = specs.iter().map(|spec| 1 + spec.weight() / PIECE).sum();
    u32::try_from(counted).unwrap_or(HANDED_OVER).min(HANDED_OVER)
}

/// Takes the first that wait, as many as one write may carry, and at least one if any does.
fn first(waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
    let mut bytes = 0_usize;
    let mut is_first = true;
    let fits = waiting.iter().take(CLAIM_BATCH).take_while(|job| {
        bytes = bytes.saturating_add(job.spec.weight());
        std::mem::take(&mut is_first) || bytes <= MAX_BATCH_BYTES
    });
    let count = fits.count();
    waiting.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        clock,
        job::{Arrival, JobId, QueueName, Rules, decode},
        store::{
            Admin as _,
            sqlite::{SqliteOptions, SqliteStore},
        },
    };

    fn spec() -> Arc<JobSpec> {
        let queue = QueueName::default();
        let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
        let body = br#"{"user_id":"user-1","tool":"GITHUB_GET_REPO","arguments":{}}"#;
        Arc::new(decode(body, &arrival).unwrap())
    }

    #[tokio::test]
    async fn however_many_jobs_wait_one_turn_is_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions {
            path: folder.path().join("errand.db"),
            clock: clock::system(),
            records_events: false,
        };
        let store = Arc::new(SqliteStore::new(options));
        store.migrate().await.unwrap();
        let admission =
            Admission::new(store, None, clock::system(), Rules::default(), std::time::Duration::ZERO);
        let together = Together::new(admission, CancellationToken::new());
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let others = tasks();

        let turn = together.turn.lock().await;
        // More than two writes carry.
        let mut asked: Vec<_> = (0..=2 * CLAIM_BATCH).map(|_| Box::pin(together.enqueue(spec()))).collect();
        assert!(asked.iter_mut().all(|asked| asked.as_mut().now_or_never().is_none()));
        assert_eq!(tasks() - others, 1);

        drop(turn);
        for asked in asked {
            assert!(matches!(asked.await, Some(Ok(Enqueued::New { .. }))));
        }
        // What comes when nothing waits any more has its turn, too.
        assert!(matches!(together.enqueue(spec()).await, Some(Ok(Enqueued::New { .. }))));
    }
}
