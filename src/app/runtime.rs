//! The life of a process: it waits for its services, works until it is told to stop, and closes what it opened.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::options;
use crate::{
    admission::Admission,
    api::Api,
    backoff::RECONNECT,
    callback::{AddressRules, CallbackClient},
    clock::millis,
    config::{Callbacks, Config},
    failure::chain,
    health::{Health, Phase, Service},
    in_flight::InFlight,
    job::{QueueName, WorkerId},
    lane_head::LaneHeads,
    maintenance::{
        Turns, actions::Actions, audit::Audit, batches::Batches, connections::Connections, gauges::Gauges,
        key_file::KeyFile, policies::Policies, prune::Prune, rescue::Rescue, tool_api::ToolApiWatch,
        verify::Verify,
    },
    relay::{CallbackSender, EventPublisher, Inbox, Relay},
    resolver::Resolver,
    services::Services,
    shutdown::{Countdown, Shutdown},
    store::{Concern, Migrated, Weight},
    supervisor::Supervisor,
    worker::{CrashPlan, Report, Worker},
};

/// How often gauges are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// How long each part may take to end, once nothing is running any more; less where the shutdown's budget
/// is nearly used up.
const CLOSING: Duration = Duration::from_secs(5);

/// The worker of a process and everything around it, ready to run.
#[derive(Debug)]
pub struct Runtime {
    services: Services,
    config: Config,
    worker: Worker,
    background: Background,
    api: Option<Api>,
}

/// What the parts beside the worker are made of.
#[derive(Debug)]
struct Background {
    resolver: Arc<Resolver>,
    /// All lanes that are configured, whoever consumes them.
    lanes: Vec<QueueName>,
    heads: Arc<LaneHeads>,
    turns: Turns,
    in_flight: Arc<InFlight>,
    health: Arc<Health>,
}

impl Runtime {
    pub(super) fn new(services: Services, config: Config, crash: Option<CrashPlan>) -> Self {
        let lanes = options::lanes(&config);
        let all_lanes = config.queues.keys().cloned().chain([QueueName::dead()]).collect();
        let resolver = Arc::new(Resolver::new(services.api.clone(), options::resolver(&config)));
        let options = crate::worker::Options { crash, ..options::worker(&config, lanes) };
        let turns = Turns { worker: options.id, lease: options.lease };
        let worker = Worker::new(services.clone(), resolver.clone(), options);
        let (in_flight, health, heads) = (worker.in_flight(), worker.health(), worker.heads());
        let background = Background { resolver, lanes: all_lanes, heads, turns, in_flight, health };
        Self { services, config, worker, background, api: None }
    }

    /// Serves the API for apps, too, from when the services are there until nothing runs any more.
    pub(super) fn serving(self, api: Option<Api>) -> Self {
        Self { api, ..self }
    }

    /// Whether the worker is alive and ready, for the health endpoint.
    pub fn health(&self) -> Arc<Health> {
        self.worker.health()
    }

    /// Waits for the services, works until `shutdown`, drains, and closes queue and store. Returns what is
    /// left of the time for shutting down, too.
    ///
    /// # Errors
    /// The store's schema does not fit and may not be migrated, or a part of the process ended by itself.
    pub async fn run(self, shutdown: Shutdown, supervisor: &Supervisor) -> (Result<Report>, Countdown) {
        let Self { services, config, worker, background, api } = self;
        let health = worker.health();
        let waiting_since = Instant::now();
        let ready = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => Ok(false),
            ready = prepare(&services, &config, &background.resolver, &health) => ready.map(|()| true),
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let budget = Duration::from_secs(config.worker.drain_secs);
        let (report, mut countdown) = match ready {
            Ok(true) => {
                let parts = background.parts(&services, &config, waiting_since, &stop);
                let api = api.map(|api| ("the HTTP API", api.run(stop.clone()).boxed()));
                for (name, part) in parts.into_iter().chain(api) {
                    tasks.spawn(supervisor.clone().watch(name, stop.clone(), part));
                }
                let (report, countdown) = worker.run(shutdown, supervisor).await;
                (Ok(report), countdown)
            }
            Ok(false) => (Ok(Report::default()), Countdown::begin(budget, shutdown.abort)),
            Err(error) => (Err(error), Countdown::begin(budget, shutdown.abort)),
        };
        let report = report.and_then(|report| match supervisor.failed() {
            None => Ok(report),
            Some(part) => {
                Err(anyhow!("{part} ended by itself, which is a bug in errand: report it with the log"))
            }
        });
        health.enter(Phase::Closing);
        tracing::info!(phase = Phase::Closing.as_str(), "shutting down: connections are closed");
        stop.cancel();
        tasks.close();
        let Services { queue, store, .. } = services;
        // What is cut off here is looked at again by the next process.
        within(&mut countdown, 4, "the relay and its neighbours", tasks.wait()).await;
        within(&mut countdown, 3, queue.backend(), queue.close()).await;
        within(&mut countdown, 2, store.backend(), store.close()).await;
        let left = report.as_ref().map_or(0, |report| report.left.len());
        let journaled = report.as_ref().map_or(0, |report| report.journaled);
        tracing::info!(left, journaled, "worker stopped");
        (report, countdown)
    }
}

impl Background {
    /// Everything that runs beside the worker, until `stop`.
    fn parts(
        self,
        services: &Services,
        config: &Config,
        waiting_since: Instant,
        stop: &CancellationToken,
    ) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let Self { resolver, lanes, heads, turns, in_flight, health } = self;
        let stop = || stop.clone();
        let rescue = Rescue::new(services, options::rescue(config), waiting_since);
        let rescue = rescue.watching(turns.worker, in_flight);
        let lease = Duration::from_secs(config.worker.lease_secs);
        let gauges = Gauges::new(services, lanes, heads, GAUGES_EVERY, lease);
        let connections = Connections::new(services, options::connections(config));
        let mut parts = vec![
            (
                "the reading of pins",
                resolver.refresh_pins(services.store.clone(), health.clone(), stop()).boxed(),
            ),
            (
                "the carrying out of actions",
                Actions::new(services.store.clone(), services.relay_wake.clone()).run(stop()).boxed(),
            ),
            ("the relay", Relay::new(services, options::relay(config)).run(stop()).boxed()),
            ("the watch over the store", Relay::watch(services.clone(), stop()).boxed()),
            ("the rescue", rescue.run(stop()).boxed()),
            ("the looking for connections", connections.run(stop()).boxed()),
            ("the watch over batches", Batches::new(services).run(stop()).boxed()),
            ("the reading of gauges", gauges.run(stop()).boxed()),
            ("the watch of the tool API", ToolApiWatch::new(services, health).run(stop()).boxed()),
            ("the reading of policies", Policies::new(services.queue.clone()).run(stop()).boxed()),
        ];
        if config.api_key_file.is_some() {
            parts.push(("the watch of the key's file", KeyFile::new(services).run(stop()).boxed()));
        }
        if !config.store_is_sqlite() {
            let (admission, lanes) = (admission(services, config), config.queues.keys().cloned().collect());
            let inbox = Inbox::new(services, admission, lanes, turns.worker);
            parts.push(("the taking in of jobs from SQL", inbox.run(stop()).boxed()));
        }
        if config.events.exchange {
            let publisher = EventPublisher::new(services, turns.worker);
            parts.push(("the publishing of events", publisher.run(stop()).boxed()));
        }
        if config.callbacks.enabled {
            parts.push(("the sending of callbacks", callbacks(services, config, turns.worker, stop())));
        }
        if config.verify.enabled {
            let verify = Verify::new(services, options::verify(config));
            parts.push(("the look-up of unknown outcomes", verify.run(stop()).boxed()));
        }
        if config.audit.enabled {
            let Services { store, queue, relay_wake, .. } = services.clone();
            let audit = Audit::new(store, Some(queue), relay_wake, options::audit(config));
            let every = Duration::from_secs(config.audit.every_secs);
            parts.push(("the audit", audit.run(every, turns, stop()).boxed()));
        }
        let prune = Prune::new(services.store.clone(), options::prune(config));
        let every = Duration::from_secs(config.retention.every_secs);
        parts.push(("the removal of old jobs", prune.run(every, turns, stop()).boxed()));
        parts
    }
}

/// Sends callbacks, or waits for `stop` where there is no client for them.
fn callbacks(
    services: &Services,
    config: &Config,
    worker: WorkerId,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    let Callbacks { allowed_networks, refused_networks, timeout_ms, .. } = &config.callbacks;
    let rules = AddressRules { allowed: allowed_networks.clone(), refused: refused_networks.clone() };
    let timeout = Duration::from_millis(*timeout_ms);
    match CallbackClient::new(rules, timeout) {
        Ok(client) => CallbackSender::new(services, Arc::new(client), worker).run(stop).boxed(),
        Err(error) => {
            tracing::error!(error = %chain(&error), "no callbacks are sent by this worker");
            async move { stop.cancelled().await }.boxed()
        }
    }
}

/// The admission of jobs that a worker enqueues itself.
pub(super) fn admission(services: &Services, config: &Config) -> Admission {
    let unclaimed = Duration::from_secs(config.relay.unclaimed_secs);
    let Services { store, queue, clock, .. } = services.clone();
    Admission::new(store, Some(queue), clock, options::rules(config), unclaimed)
}

/// Waits for the store and the broker, saying what is waited for, sees to the schema and reads the pins.
async fn prepare(services: &Services, config: &Config, resolver: &Resolver, health: &Health) -> Result<()> {
    let Services { store, queue, .. } = services;
    let mut waiting = Waiting::default();
    loop {
        match store.inspect().await {
            Ok(concerns) => {
                health.store_answered();
                let unfit = concerns.into_iter().filter(|concern| concern.weight != Weight::Fine);
                for Concern { message, advice, .. } in unfit {
                    tracing::warn!("{}: {message}; {advice}", store.backend());
                }
                break;
            }
            Err(error) => {
                let why = chain(&error);
                health.store_failed(why.clone());
                waiting.pause(store.backend(), &why).await;
            }
        }
    }
    while let Err(problem) = see_to_schema(services, config, health).await {
        health.fails(Service::Migrations, problem.clone());
        waiting.pause(store.backend(), &problem).await;
    }
    health.works(Service::Migrations);
    waiting = Waiting::default();
    loop {
        match queue.check().await {
            Ok(broker) => {
                health.works(Service::Broker);
                tracing::info!(broker, store = store.backend(), "services are there");
                break;
            }
            Err(error) => {
                let why = chain(&error);
                health.fails(Service::Broker, why.clone());
                waiting.pause(queue.backend(), &why).await;
            }
        }
    }
    waiting = Waiting::default();
    // The first jobs must already see the pins: what a job is bound to stays.
    while let Err(error) = resolver.load_pins(store).await {
        let why = chain(&error);
        health.store_failed(why.clone());
        waiting.pause("the pins", &why).await;
    }
    health.store_answered();
    Ok(())
}

/// The error is why the schema is not what this build expects, or not known.
async fn see_to_schema(services: &Services, config: &Config, health: &Health) -> Result<(), String> {
    let store = &services.store;
    match store.schema().await {
        Ok(schema) => match schema.problem() {
            None => Ok(()),
            Some(_) if config.store.migrate_at_start => match store.migrate().await {
                Ok(Migrated { applied, .. }) => {
                    tracing::info!(applied, "the database is migrated");
                    Ok(())
                }
                Err(error) => Err(format!("it cannot be migrated: {}", chain(&error))),
            },
            Some((problem, advice)) => Err(format!("{problem}; {advice}")),
        },
        Err(error) => {
            let why = chain(&error);
            if error.kind().is_of_the_whole_store() {
                health.store_failed(why.clone());
            }
            Err(why)
        }
    }
}

/// The waits for one service at the start.
#[derive(Debug, Default)]
struct Waiting {
    failures: u32,
}

impl Waiting {
    /// Says what is waited for, and waits.
    async fn pause(&mut self, service: &str, why: &str) {
        self.failures += 1;
        let wait = RECONNECT.wait(self.failures, fastrand::f64()).min(Duration::from_secs(5));
        tracing::warn!(error = why, wait_ms = millis(wait), "waiting for {service}");
        tokio::time::sleep(wait).await;
    }
}

/// Waits for a part to end, but no longer than its share of what is left of the budget: a service that
/// stalls must not keep the process, nor the parts that come after it. `parts` are still to end.
async fn within(countdown: &mut Countdown, parts: u32, part: &str, end: impl Future<Output = ()>) {
    let until = Instant::now() + CLOSING.min(countdown.left() / parts);
    if countdown.within(|times| times.end.min(until), end).await.is_none() {
        tracing::warn!(
            "{part}: not closed within the time of the shutdown, so it is cut off; nothing is lost by that"
        );
    }
}
