//! Is this worker alive, and is it ready? Ready means that it really consumes, that the services which it needs are there,
//! and that it is not draining. What is not as it should be has a reason.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use crate::{job::QueueName, string_enum::string_enum, sync::lock, telemetry::metrics};

string_enum! {
    /// Where a worker is in its life. A shutdown goes through the phases in this order, and may leave some out.
    Phase {
        /// It waits for its services, or writes what an earlier process journaled.
        Starting = "starting",
        /// It takes jobs.
        Running = "running",
        /// It takes no more jobs; running calls go on.
        Draining = "draining",
        /// Calls that outlast the drain are interrupted, and what is known is written.
        Interrupting = "interrupting",
        /// What the store did not take goes to the journal.
        Journaling = "journaling",
        /// Nothing runs; connections are closed.
        Closing = "closing",
    }
}

impl Phase {
    pub fn is_shutdown(self) -> bool {
        self >= Self::Draining
    }
}

string_enum! {
    /// What a worker needs, beside a store that answers.
    Service {
        Broker = "broker",
        ApiKey = "api_key",
        Migrations = "migrations",
    }
}

/// How often the store has to be asked something, and how long its answer may take: together less than five seconds, in
/// which whoever looks at readiness sees that it is away.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);
const MAX_SILENCE: Duration = Duration::from_millis(2_500);

/// Why something is not known to be as it should be right after the start.
const NOT_ASKED: &str = "not asked yet";

#[derive(Debug)]
pub struct Health {
    /// Which lanes take jobs, and why others do not, if that is known.
    lanes: Mutex<BTreeMap<QueueName, Result<(), Option<String>>>>,
    store: Mutex<StoreSeen>,
    /// Why the store takes no results, if it takes none.
    not_writing: Mutex<Option<String>>,
    /// Which services do not work, and why.
    failing: Mutex<BTreeMap<Service, String>>,
    /// The last heartbeat that the store took; none while the worker waits for its services at the start.
    beaten: Mutex<Option<Instant>>,
    phase: Mutex<Phase>,
}

/// What was last seen of the store.
#[derive(Debug)]
struct StoreSeen {
    /// Host and port, or the file.
    address: String,
    answered: Option<Instant>,
    /// When the question was asked that has no answer yet.
    asked: Option<Instant>,
    /// Why it did not answer, unless it has answered since.
    failure: Option<String>,
}

/// The answer of `/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// All of the below is as it should be.
    pub ready: bool,
    /// The worker really consumes each of its lanes.
    pub consuming: BTreeMap<QueueName, bool>,
    /// Nothing has shown that the broker is away since a lane was last consumed.
    pub broker: bool,
    /// The store answers.
    pub store: bool,
    /// The store takes results, or there were none since it last did.
    pub writing: bool,
    /// The schema of the store was found to be the one that this build expects, or a newer one.
    pub migrations: bool,
    /// The tool API has not refused errand's key.
    pub api_key: bool,
    pub draining: bool,
    pub phase: Phase,
    /// Why what is `false` above is so, by its name, or `consuming.` and the name of the lane; with hosts and causes.
    pub reasons: BTreeMap<String, String>,
}

impl Health {
    pub(crate) fn new(lanes: Vec<QueueName>, store: String) -> Self {
        for lane in &lanes {
            metrics::CONSUMING.set([lane.as_str()], 0.0);
        }
        publish(Phase::Starting);
        let unknown = [Service::Broker, Service::Migrations].map(|service| (service, NOT_ASKED.to_owned()));
        Self {
            lanes: Mutex::new(lanes.into_iter().map(|lane| (lane, Err(None))).collect()),
            store: Mutex::new(StoreSeen {
                address: store,
                answered: None,
                asked: None,
                failure: Some(NOT_ASKED.to_owned()),
            }),
            not_writing: Mutex::default(),
            failing: Mutex::new(unknown.into()),
            beaten: Mutex::default(),
            phase: Mutex::new(Phase::Starting),
        }
    }

    pub fn readiness(&self) -> Readiness {
        let failing = lock(&self.failing).clone();
        let mut reasons: BTreeMap<String, String> =
            failing.iter().map(|(service, why)| (service.to_string(), why.clone())).collect();
        let mut consuming = BTreeMap::new();
        for (lane, taking) in &*lock(&self.lanes) {
            consuming.insert(lane.clone(), taking.is_ok());
            if let Err(Some(why)) = taking {
                reasons.insert(format!("consuming.{lane}"), why.clone());
            }
        }
        let (store, writing) = (lock(&self.store).trouble(), lock(&self.not_writing).clone());
        let is_fine = |name: &str, trouble: Option<String>, reasons: &mut BTreeMap<String, String>| {
            trouble.is_none_or(|why| reasons.insert(name.to_owned(), why).is_some())
        };
        let (store, writing) =
            (is_fine("store", store, &mut reasons), is_fine("writing", writing, &mut reasons));
        let phase = self.phase();
        let draining = phase.is_shutdown();
        let works = |service| !failing.contains_key(&service);
        let ready = !draining
            && store
            && writing
            && failing.is_empty()
            && consuming.values().all(|consuming| *consuming);
        Readiness {
            ready,
            consuming,
            broker: works(Service::Broker),
            store,
            writing,
            migrations: works(Service::Migrations),
            api_key: works(Service::ApiKey),
            draining,
            phase,
            reasons,
        }
    }

    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        publish(phase);
    }

    /// Sets the gauges that would be stale if they were only set when something happens.
    pub fn refresh_gauges(&self) {
        if let Some(beaten) = *lock(&self.beaten) {
            metrics::HEARTBEAT_AGE.set([], beaten.elapsed().as_secs_f64());
        }
    }

    pub(crate) fn beat(&self, sent: Instant) {
        *lock(&self.beaten) = Some(sent);
        self.store_answered();
    }

    /// Notes that a lane takes jobs: it is consumed, and claims do not fail. `true` is returned when this was the last lane
    /// to start.
    pub(crate) fn takes(&self, lane: &QueueName) -> bool {
        let mut lanes = lock(&self.lanes);
        let before = lanes.values().all(Result::is_ok);
        if let Some(entry) = lanes.get_mut(lane) {
            *entry = Ok(());
            metrics::CONSUMING.set([lane.as_str()], 1.0);
        }
        !before && lanes.values().all(Result::is_ok)
    }

    /// Notes that a lane takes no jobs, and why if that is known.
    pub(crate) fn takes_none(&self, lane: &QueueName, why: Option<String>) {
        if let Some(entry) = lock(&self.lanes).get_mut(lane) {
            *entry = Err(why);
            metrics::CONSUMING.set([lane.as_str()], 0.0);
        }
    }

    /// Notes why the store does not take what is not a claim: results and bindings; or that it does.
    pub(crate) fn set_writing(&self, writing: Result<(), String>) {
        *lock(&self.not_writing) = writing.err();
    }

    pub(crate) fn works(&self, service: Service) {
        lock(&self.failing).remove(&service);
    }

    pub(crate) fn fails(&self, service: Service, why: String) {
        lock(&self.failing).insert(service, why);
    }

    /// Whether the store has answered anything after this moment.
    pub(crate) fn store_answered_since(&self, moment: Instant) -> bool {
        lock(&self.store).answered.is_some_and(|seen| seen > moment)
    }

    pub(crate) fn store_answered(&self) {
        metrics::STORE_REACHABLE.set([], 1.0);
        let mut store = lock(&self.store);
        store.answered = Some(Instant::now());
        store.failure = None;
    }

    /// Notes that the store could not be asked, or gave no answer.
    pub(crate) fn store_failed(&self, why: String) {
        metrics::STORE_REACHABLE.set([], 0.0);
        lock(&self.store).failure = Some(why);
    }

    /// Waits for an answer of the store by which is judged whether it answers at all.
    pub(crate) async fn asking_store<T>(&self, question: impl Future<Output = T>) -> T {
        lock(&self.store).asked = Some(Instant::now());
        let answer = question.await;
        lock(&self.store).asked = None;
        answer
    }
}

impl StoreSeen {
    /// Why it does not answer, if it does not.
    fn trouble(&self) -> Option<String> {
        let waiting = self.asked.filter(|asked| self.answered.is_none_or(|answered| answered < *asked));
        let silence = waiting.map(|asked| asked.elapsed()).filter(|silence| *silence >= MAX_SILENCE);
        let silent = || {
            silence.map(|silence| format!("{}: no answer for {:.1} s", self.address, silence.as_secs_f64()))
        };
        self.failure.clone().or_else(silent)
    }
}

/// Shows the phase in the gauges: one series per phase, of which one is 1.
fn publish(present: Phase) {
    for phase in Phase::ALL {
        metrics::PHASE.set([phase.as_str()], f64::from(u8::from(*phase == present)));
    }
    metrics::DRAINING.set([], f64::from(u8::from(present.is_shutdown())));
}
