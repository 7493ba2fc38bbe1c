//! What is known of each lane: what waits, in the broker and in the database, whether it is paused, and how fast it goes.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    failure::chain,
    job::{Principal, QueueName, State},
    queue::{Depth, SharedQueue},
    store::{Census, JobFilter, Pause, Result, SharedStore},
};

/// The longest that the broker may take to answer for one lane.
const PATIENCE: Duration = Duration::from_secs(5);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// What is known of one lane.
#[derive(Debug, Default)]
pub struct LaneView {
    /// `None` where there is no broker, or it does not tell.
    pub depth: Option<Depth>,
    pub by_state: BTreeMap<State, u64>,
    pub oldest_due: Option<Duration>,
    pub last_minute: u64,
    pub last_hour: u64,
    pub pause: Option<Pause>,
}

/// What was looked at, lane by lane.
#[derive(Debug, Default)]
pub struct LaneViews {
    pub lanes: BTreeMap<QueueName, LaneView>,
    /// Among how many of the newest jobs those were counted that ended lately, and whether there are no others.
    pub looked_at: u64,
    pub complete: bool,
    /// What could not be asked, for people.
    pub remarks: Vec<String>,
}

/// One lane as JSON. The names are an interface.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Queue, description = "A queue, and what is in it.")]
pub struct LaneJson<'a> {
    pub queue: &'a str,
    /// Who paused it, since when and why; `null` unless it is paused.
    pub paused: Option<&'a Pause>,
    /// Messages that wait in the broker, and who consumes them; `null` where there is no broker, or it does not tell.
    pub messages: Option<u64>,
    pub consumers: Option<u64>,
    /// Jobs in the database that are scheduled, available or retryable.
    pub waiting: u64,
    pub running: u64,
    pub held: u64,
    /// Jobs that are not final, by state.
    #[schema(value_type = Counts)]
    pub states: BTreeMap<State, u64>,
    /// How long the job has waited that should have run first.
    pub oldest_due_ms: Option<u64>,
    /// Jobs that ended, among the newest `looked_at`; all of them, if that is `complete`.
    pub finished_last_minute: u64,
    pub finished_last_hour: u64,
    pub looked_at: u64,
    pub complete: bool,
}

/// The schema of counts by state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "How many jobs are in each state that is not final.")]
pub struct Counts {
    pub scheduled: u64,
    pub available: u64,
    pub running: u64,
    pub retryable: u64,
    pub held: u64,
}

/// The states that are counted; a final one only grows.
fn counted() -> impl Iterator<Item = State> {
    State::ALL.iter().copied().filter(|state| !state.is_final())
}

/// With zero for each state that has none.
pub fn counts(by_state: &BTreeMap<State, u64>) -> BTreeMap<State, u64> {
    counted().map(|state| (state, by_state.get(&state).copied().unwrap_or(0))).collect()
}

impl LaneView {
    pub fn of(&self, states: &[State]) -> u64 {
        states.iter().filter_map(|state| self.by_state.get(state)).sum()
    }

    pub fn waiting(&self) -> u64 {
        self.of(&[State::Scheduled, State::Available, State::Retryable])
    }
}

impl LaneViews {
    /// Looks at these lanes and those that the store knows. Those that ended lately are counted in this many windows of the
    /// newest jobs, each of [`MAX_LOOK`](crate::bounds::MAX_LOOK).
    pub async fn look(
        store: &SharedStore,
        queue: Option<&SharedQueue>,
        lanes: impl IntoIterator<Item = QueueName>,
        windows: usize,
    ) -> Result<Self> {
        let mut views = Self::of(store, lanes).await?;
        views.count_finished(store, windows).await?;
        if let Some(queue) = queue {
            views.ask_broker(queue).await;
        }
        Ok(views)
    }

    /// Counts what waits, runs and is held, and nothing else.
    pub async fn of(store: &SharedStore, lanes: impl IntoIterator<Item = QueueName>) -> Result<Self> {
        let mut views = Self::default();
        views.lanes.extend(lanes.into_iter().map(|lane| (lane, LaneView::default())));
        let Census { jobs, oldest_due, .. } = store.census().await?;
        for (lane, state, jobs) in jobs {
            views.lanes.entry(lane).or_default().by_state.insert(state, jobs);
        }
        for (lane, age) in oldest_due {
            views.lanes.entry(lane).or_default().oldest_due = Some(age);
        }
        for paused in store.paused_queues().await? {
            views.lanes.entry(paused.queue).or_default().pause = Some(paused.pause);
        }
        Ok(views)
    }

    /// Counts what ended lately among the newest jobs.
    async fn count_finished(&mut self, store: &SharedStore, windows: usize) -> Result<()> {
        let mut before = None;
        for _ in 0..windows {
            let page = store.glances(&Principal::Operator, &JobFilter::default(), before, false).await?;
            self.looked_at += page.looked_at;
            for job in page.items {
                let Some(ago) = job.finished_for.filter(|ago| *ago <= HOUR) else { continue };
                let lane = self.lanes.entry(job.queue).or_default();
                lane.last_hour += 1;
                lane.last_minute += u64::from(ago <= MINUTE);
            }
            before = page.next;
            if before.is_none() {
                self.complete = true;
                break;
            }
        }
        Ok(())
    }

    /// Asks the broker. What it does not tell is left out and said.
    async fn ask_broker(&mut self, queue: &SharedQueue) {
        for (name, lane) in &mut self.lanes {
            match tokio::time::timeout(PATIENCE, queue.depth(name)).await {
                Ok(Ok(depth)) => lane.depth = Some(depth),
                Ok(Err(error)) => self.remarks.push(format!("queue {name}: {}", chain(&error))),
                Err(_) => {
                    self.remarks.push("the broker does not answer; `errand doctor` says more".to_owned());
                    break;
                }
            }
        }
    }

    /// Each lane as JSON.
    pub fn json(&self) -> impl Iterator<Item = LaneJson<'_>> {
        self.lanes.iter().map(|(name, lane)| LaneJson {
            queue: name.as_str(),
            paused: lane.pause.as_ref(),
            messages: lane.depth.as_ref().map(|depth| depth.ready),
            consumers: lane.depth.as_ref().map(|depth| depth.consumers),
            waiting: lane.waiting(),
            running: lane.of(&[State::Running]),
            held: lane.of(&[State::Held]),
            states: counts(&lane.by_state),
            oldest_due_ms: lane.oldest_due.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            finished_last_minute: lane.last_minute,
            finished_last_hour: lane.last_hour,
            looked_at: self.looked_at,
            complete: self.complete,
        })
    }
}
