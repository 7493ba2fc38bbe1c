//! `errand queues`: what waits in each lane, in the broker and in the database, and how fast it goes.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{
    context::Context,
    exit::Exit,
    output::{self, Format},
};
use crate::{
    app,
    failure::chain,
    job::{Principal, QueueName, State},
    queue::Depth,
    store::{Census, JobFilter, SharedStore},
};

const EXAMPLES: &str = "\
MESSAGES and CONSUMERS are the broker's. An app's message has no row in the database before a
worker takes it, so WAITING does not count it. DONE counts jobs that ended in the last minute
and hour, among the newest jobs; what it looked at is said below the table.";

/// List queues: what waits, runs and is held, who consumes, and how many jobs end.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    format: Format,
}

/// The longest that the broker may take to answer for one lane.
const PATIENCE: Duration = Duration::from_secs(5);

/// Windows of jobs that are looked at for the rates; a second of work.
const WINDOWS: usize = 20;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// What is known of one lane.
#[derive(Debug, Default)]
struct Lane {
    depth: Option<Depth>,
    by_state: BTreeMap<State, u64>,
    oldest_due: Option<Duration>,
    last_minute: u64,
    last_hour: u64,
}

impl Lane {
    fn of(&self, states: &[State]) -> u64 {
        states.iter().filter_map(|state| self.by_state.get(state)).sum()
    }

    fn waiting(&self) -> u64 {
        self.of(&[State::Scheduled, State::Available, State::Retryable])
    }
}

type Lanes = BTreeMap<QueueName, Lane>;

pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    let mut lanes: Lanes =
        context.config().queues.keys().map(|lane| (lane.clone(), Lane::default())).collect();
    let Census { jobs, oldest_due, .. } = store.census().await?;
    for (lane, state, jobs) in jobs {
        lanes.entry(lane).or_default().by_state.insert(state, jobs);
    }
    for (lane, age) in oldest_due {
        lanes.entry(lane).or_default().oldest_due = Some(age);
    }
    let (looked_at, complete) = count_finished(&store, &mut lanes).await?;
    store.close().await;
    ask_broker(context, &mut lanes).await?;
    if args.format.json {
        let lines =
            lanes.iter().map(|(name, lane)| as_json(name, lane, looked_at, complete).to_string() + "\n");
        output::print(&lines.collect::<String>())?;
        return Ok(Exit::Success);
    }
    let header =
        ["QUEUE", "MESSAGES", "CONSUMERS", "WAITING", "RUNNING", "HELD", "OLDEST DUE", "DONE/MIN", "DONE/H"];
    output::print_table(&header, lanes.iter().map(|(name, lane)| row(name, lane)).collect())?;
    let is_busy = |lane: &Lane| {
        lane.depth.as_ref().is_some_and(|depth| depth.ready > 0 && depth.consumers == 0)
            && lane.of(&[State::Running]) > 0
    };
    if lanes.values().any(is_busy) {
        output::note(
            "a worker whose slots are all busy is no consumer in the eyes of the broker: see `errand workers`",
        );
    }
    if lanes.values().any(|lane| lane.depth.as_ref().is_some_and(|depth| depth.ready > 0)) {
        output::note(
            "OLDEST DUE is of jobs in the database; errand_oldest_due_age_seconds tells how long messages wait in the broker",
        );
    }
    let jobs = output::count(looked_at, "newest job", "newest jobs");
    output::note(match complete {
        true => format!("DONE is counted among all {jobs}"),
        false => format!("DONE is counted among the {jobs}; older ones that ended meanwhile are left out"),
    });
    Ok(Exit::Success)
}

/// Counts what ended lately among the newest jobs; returns how many these were, and whether there are no others.
async fn count_finished(store: &SharedStore, lanes: &mut Lanes) -> anyhow::Result<(u64, bool)> {
    let (mut looked_at, mut before) = (0, None);
    for _ in 0..WINDOWS {
        let page = store.glances(&Principal::Operator, &JobFilter::default(), before, false).await?;
        looked_at += page.looked_at;
        for job in page.items {
            let Some(ago) = job.finished_for.filter(|ago| *ago <= HOUR) else { continue };
            let lane = lanes.entry(job.queue).or_default();
            lane.last_hour += 1;
            lane.last_minute += u64::from(ago <= MINUTE);
        }
        before = page.next;
        if before.is_none() {
            return Ok((looked_at, true));
        }
    }
    Ok((looked_at, false))
}

/// Asks the broker, if there is one. What it does not tell is left out and said.
async fn ask_broker(context: &Context, lanes: &mut Lanes) -> anyhow::Result<()> {
    if !context.config().uses_broker() {
        return Ok(());
    }
    let queue = app::open_queue(context.config())?;
    for (name, lane) in lanes.iter_mut() {
        match tokio::time::timeout(PATIENCE, queue.depth(name)).await {
            Ok(Ok(depth)) => lane.depth = Some(depth),
            Ok(Err(error)) => output::note(format!("queue {name}: {}", output::clean(&chain(&error)))),
            Err(_) => {
                output::note("the broker does not answer; `errand doctor` says more");
                break;
            }
        }
    }
    queue.close().await;
    Ok(())
}

fn row(name: &QueueName, lane: &Lane) -> Vec<String> {
    let of_broker =
        |figure: fn(&Depth) -> u64| lane.depth.as_ref().map_or("-".to_owned(), |d| figure(d).to_string());
    vec![
        name.to_string(),
        of_broker(|depth| depth.ready),
        of_broker(|depth| depth.consumers),
        lane.waiting().to_string(),
        lane.of(&[State::Running]).to_string(),
        lane.of(&[State::Held]).to_string(),
        lane.oldest_due.map_or("-".to_owned(), |age| format!("{:.0} s", age.as_secs_f64())),
        lane.last_minute.to_string(),
        lane.last_hour.to_string(),
    ]
}

fn as_json(name: &QueueName, lane: &Lane, looked_at: u64, complete: bool) -> serde_json::Value {
    json!({
        "queue": name,
        "messages": lane.depth.as_ref().map(|depth| depth.ready),
        "consumers": lane.depth.as_ref().map(|depth| depth.consumers),
        "waiting": lane.waiting(),
        "states": lane.by_state,
        "running": lane.of(&[State::Running]),
        "held": lane.of(&[State::Held]),
        "oldest_due_ms": lane.oldest_due.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "finished_last_minute": lane.last_minute,
        "finished_last_hour": lane.last_hour,
        "looked_at": looked_at,
        "complete": complete,
    })
}
