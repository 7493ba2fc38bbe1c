//! Wires the parts together. The only place that names a concrete backend.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::ExposeSecret as _;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{Admission, Rules},
    api::{self, Api},
    backoff::{Intervals, RECONNECT},
    clock::{self, SharedClock},
    config::{self, Config},
    failure::chain,
    health::{Health, Phase},
    job::{OwnerPolicy, QueueName, RetryPolicy, WorkerId},
    maintenance::{
        audit::{self, Audit},
        connections::{self, Connections},
        gauges::Gauges,
        rescue::{self, Rescue},
        verify::{self, Verify},
    },
    queue::{
        SharedQueue,
        embedded::EmbeddedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
    relay::{self, Relay},
    shutdown::{Countdown, Shutdown},
    store::{
        AuditLimits, Schema, SharedStore,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
    telemetry::metrics,
    tool::{SharedToolApi, composio},
    worker::{CircuitBreakerPolicy, CrashPlan, Deps, Options, Report, Resolver, ResolverOptions, Worker},
};

/// Messages that the in-process queue holds per lane; what is more waits in the store.
const EMBEDDED_CAPACITY: usize = 10_000;

/// How often gauges are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// Jobs that an audit looks at with one statement, and the time between two of them, in which a worker's
/// database does other things.
pub(crate) const AUDIT_PAGE: usize = 1_000;
const AUDIT_PAUSE: Duration = Duration::from_millis(20);

/// What rescue, relay and look-ups may take beyond their own times before an audit reports it.
const AUDIT_MARGIN: Duration = Duration::from_secs(60);
const OVERDUE: Duration = Duration::from_secs(10 * 60);

/// An attempt may run so much longer than its timeout: looking tool and account up, and writing the result
/// of a call while the store is away.
const OVERRUN: Duration = Duration::from_secs(15 * 60);

/// With the waits in between, about a quarter of an hour by default.
const UNCLAIMED_PUBLICATIONS: u32 = 5;

/// How long each part may take to end, once nothing is running any more; less where the shutdown's budget
/// is nearly used up.
const CLOSING: Duration = Duration::from_secs(5);

/// What one process works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The truth.
    pub store: SharedStore,
    /// Transport.
    pub queue: SharedQueue,
    /// Who runs the tools.
    pub api: SharedToolApi,
    /// The process's own time.
    pub clock: SharedClock,
}

/// One process: what it works with, and how.
#[derive(Debug)]
pub struct App {
    /// The truth.
    pub store: SharedStore,
    /// Transport.
    pub queue: SharedQueue,
    /// Who runs the tools.
    pub api: SharedToolApi,
    config: Config,
    clock: SharedClock,
    relay_wake: Arc<Notify>,
    crash: Option<CrashPlan>,
}

/// The worker of a process and everything around it, ready to run.
#[derive(Debug)]
pub struct Crew {
    app: App,
    worker: Worker,
    resolver: Arc<Resolver>,
    lanes: Vec<QueueName>,
    turns: audit::Turns,
}

impl App {
    /// The parts that the configuration names; nothing connects yet.
    ///
    /// # Errors
    /// An address cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let parts = Parts {
            store: open_store(&config)?,
            queue: open_queue(&config)?,
            api: open_tool_api(&config)?,
            clock: clock::system(),
        };
        Ok(Self::of(parts, config))
    }

    /// A process of these parts. The addresses in the configuration are not looked at.
    pub fn of(parts: Parts, config: Config) -> Self {
        let Parts { store, queue, api, clock } = parts;
        Self { store, queue, api, config, clock, relay_wake: Arc::new(Notify::new()), crash: None }
    }

    /// Lets the worker crash at a point on a job's way, for tests of what that leaves behind.
    #[must_use]
    pub fn crashing(self, crash: Option<CrashPlan>) -> Self {
        Self { crash, ..self }
    }

    /// A door for jobs that this process enqueues itself.
    pub fn door(&self) -> Admission {
        let unclaimed = Duration::from_secs(self.config.relay.unclaimed_secs);
        Admission::new(self.store.clone(), Some(self.queue.clone()), rules(&self.config), unclaimed)
    }

    /// Runs a worker with everything around it until `shutdown`, then drains. Waits for the services
    /// at start, saying what it waits for. Serves metrics and health meanwhile.
    ///
    /// # Errors
    /// The listener cannot be bound, or the store's schema does not fit and may not be migrated.
    pub async fn run(self, metrics: PrometheusHandle, shutdown: Shutdown) -> Result<Report> {
        let address = self.config.http.listen;
        let crew = self.crew();
        // The listener outlives everything else, so that a shutdown can be watched.
        let serving = CancellationToken::new();
        let listener = match address {
            Some(address) => {
                let api = Api::bind(address, metrics.clone(), crew.health()).await.with_context(|| {
                    format!("cannot listen on {address}; choose another address with --listen or http.listen")
                })?;
                tracing::info!(address = %api.address()?, "metrics and health are served");
                Some(tokio::spawn(api.run(serving.clone())))
            }
            None => None,
        };
        let maintenance = tokio::spawn(api::metrics_maintenance(metrics, serving.clone()));
        let (report, mut countdown) = crew.run(shutdown).await;
        serving.cancel();
        maintenance.await?;
        if let Some(listener) = listener {
            let ended = async { listener.await?.context("the listener for metrics and health failed") };
            // A client that does not read its answer must not keep the process either.
            countdown.within(|times| times.end, ended).await.unwrap_or(Ok(()))?;
        }
        report
    }

    /// The worker and everything around it; nothing happens before [`Crew::run`].
    pub fn crew(self) -> Crew {
        let lanes = lanes(&self.config);
        let names = lanes.iter().map(|(name, _)| name.clone()).collect();
        let resolver = Arc::new(Resolver::new(self.api.clone(), resolver_options(&self.config)));
        let deps = Deps {
            store: self.store.clone(),
            queue: self.queue.clone(),
            api: self.api.clone(),
            resolver: resolver.clone(),
            clock: self.clock.clone(),
            relay_wake: self.relay_wake.clone(),
        };
        let options = Options { crash: self.crash, ..worker_options(&self.config, lanes) };
        let turns = audit::Turns {
            every: Duration::from_secs(self.config.audit.every_secs),
            worker: options.id,
            lease: options.lease,
        };
        Crew { worker: Worker::new(deps, options), app: self, resolver, lanes: names, turns }
    }
}

impl Crew {
    /// Whether the worker is alive and ready, for the health endpoint.
    pub fn health(&self) -> Arc<Health> {
        self.worker.health()
    }

    /// Waits for the services, works until `shutdown`, drains, and closes queue and store. Returns what is
    /// left of the time for shutting down, too.
    ///
    /// # Errors
    /// The store's schema does not fit and may not be migrated.
    pub async fn run(self, shutdown: Shutdown) -> (Result<Report>, Countdown) {
        let Self { app, worker, resolver, lanes, turns } = self;
        let App { store, queue, api, config, clock, relay_wake, crash: _ } = app;
        let health = worker.health();
        let ready = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => Ok(false),
            ready = prepare(&store, &queue, &config, &resolver) => ready.map(|()| true),
        };
        let background = CancellationToken::new();
        let tasks = TaskTracker::new();
        let budget = Duration::from_secs(config.worker.drain_secs);
        let (report, mut countdown) = match ready {
            Ok(true) => {
                let audit_wake = relay_wake.clone();
                let stop = background.clone();
                tasks.spawn(resolver.refresh_pins(store.clone(), stop.clone()));
                tasks.spawn(
                    Relay::new(store.clone(), queue.clone(), relay_wake.clone(), relay_options(&config))
                        .run(stop.clone()),
                );
                tasks.spawn(
                    Rescue::new(store.clone(), clock.clone(), relay_wake.clone(), rescue_options(&config))
                        .run(stop.clone()),
                );
                if config.verify.enabled {
                    tasks.spawn(
                        Verify::new(
                            store.clone(),
                            api.clone(),
                            clock,
                            relay_wake.clone(),
                            verify_options(&config),
                        )
                        .run(stop.clone()),
                    );
                }
                tasks.spawn(
                    Connections::new(store.clone(), api, relay_wake, connections_options(&config))
                        .run(stop.clone()),
                );
                if config.audit.enabled {
                    let options = audit::Options {
                        page: AUDIT_PAGE,
                        pause: AUDIT_PAUSE,
                        limits: audit_limits(&config),
                        repair: config.audit.repair,
                        named: audit::NAMED_IN_LOG,
                    };
                    tasks.spawn(
                        Audit::new(store.clone(), Some(queue.clone()), audit_wake, options)
                            .run(turns, stop.clone()),
                    );
                }
                tasks.spawn(Gauges::new(store.clone(), queue.clone(), lanes, GAUGES_EVERY).run(stop));
                let (report, countdown) = worker.run(shutdown).await;
                (Ok(report), countdown)
            }
            Ok(false) => (Ok(Report::default()), Countdown::begin(budget, shutdown.abort)),
            Err(error) => (Err(error), Countdown::begin(budget, shutdown.abort)),
        };
        health.enter(Phase::Closing);
        tracing::info!(phase = Phase::Closing.as_str(), "shutting down");
        background.cancel();
        tasks.close();
        // What is cut off here is looked at again by the next process.
        within(&mut countdown, 4, "the relay and its neighbours", tasks.wait()).await;
        within(&mut countdown, 3, queue.backend(), queue.close()).await;
        within(&mut countdown, 2, store.backend(), store.close()).await;
        (report, countdown)
    }
}

/// Waits for the store and the broker, saying what is waited for, sees to the schema and reads the pins.
async fn prepare(
    store: &SharedStore,
    queue: &SharedQueue,
    config: &Config,
    resolver: &Resolver,
) -> Result<()> {
    let mut failures = 0;
    loop {
        let problem = match store.schema().await {
            Ok(Schema::Current | Schema::Ahead) => break,
            Ok(Schema::Behind { missing }) if config.store.migrate_at_start => match store.migrate().await {
                Ok(applied) => {
                    tracing::info!(applied, missing, "the database is migrated");
                    break;
                }
                Err(error) => format!("cannot migrate {}: {}", store.backend(), chain(&error)),
            },
            Ok(Schema::Behind { missing }) => {
                format!("{missing} migrations are missing; run `errand migrate`")
            }
            Err(error) => format!("waiting for {}: {}", store.backend(), chain(&error)),
        };
        failures = pause(failures, &problem).await;
    }
    failures = 0;
    loop {
        match queue.check().await {
            Ok(broker) => {
                tracing::info!(broker, store = store.backend(), "services are there");
                // The first jobs must already see the pins.
                resolver.load_pins(store).await;
                return Ok(());
            }
            Err(error) => {
                let problem = format!("waiting for {}: {}", queue.backend(), chain(&error));
                failures = pause(failures, &problem).await;
            }
        }
    }
}

/// Waits for a part to end, but no longer than its share of what is left of the budget: a service that
/// stalls must not keep the process, nor the parts that come after it. `parts` are still to end.
async fn within(countdown: &mut Countdown, parts: u32, part: &str, end: impl Future<Output = ()>) {
    let until = Instant::now() + CLOSING.min(countdown.left() / parts);
    if countdown.within(|times| times.end.min(until), end).await.is_none() {
        tracing::warn!("{part} did not end in time and is left as it is");
    }
}

async fn pause(failures: u32, problem: &str) -> u32 {
    let wait = RECONNECT.wait(failures + 1, fastrand::f64()).min(Duration::from_secs(5));
    tracing::warn!(wait_ms = wait.as_millis(), "{problem}");
    tokio::time::sleep(wait).await;
    failures + 1
}

/// The store that the configuration names. Connects when it is first used.
///
/// # Errors
/// The address cannot be used.
pub fn open_store(config: &Config) -> Result<SharedStore> {
    let url = config.store.url.expose_secret();
    if let Some(path) = url.strip_prefix("sqlite://") {
        let options = SqliteOptions { path: Path::new(path).to_owned(), clock: clock::system() };
        return Ok(Arc::new(SqliteStore::new(options)?));
    }
    let options = PostgresOptions {
        url: config.store.url.clone(),
        hot_connections: config.store.hot_connections,
        other_connections: config.store.other_connections,
        application_name: "errand".into(),
        statement_timeout: Duration::from_millis(config.store.statement_timeout_ms),
    };
    Ok(Arc::new(PostgresStore::new(options)?))
}

/// The queue that the configuration names: RabbitMQ, or the one inside this process when no broker
/// is configured. Connects when it is first used.
///
/// # Errors
/// The address cannot be used.
pub fn open_queue(config: &Config) -> Result<SharedQueue> {
    let names: Vec<QueueName> = config.queues.keys().cloned().collect();
    if config.amqp.url.expose_secret().is_empty() {
        return Ok(Arc::new(EmbeddedQueue::new(names, EMBEDDED_CAPACITY)));
    }
    let options = RabbitOptions {
        url: config.amqp.url.clone(),
        queue_type: config.amqp.queue_type,
        declare: config.amqp.declare,
        lanes: names,
        connection_name: worker_name(config),
        heartbeat: Duration::from_secs(config.amqp.heartbeat_secs.into()),
    };
    Ok(Arc::new(RabbitQueue::new(options)?))
}

/// The tool API that the configuration names.
///
/// # Errors
/// The address or the key cannot be used.
pub fn open_tool_api(config: &Config) -> Result<SharedToolApi> {
    Ok(Arc::new(composio::Composio::new(tool_api_options(config)?)?))
}

/// How to reach the tool API that the configuration names.
///
/// # Errors
/// The address cannot be used.
pub fn tool_api_options(config: &Config) -> Result<composio::Options> {
    let composio = &config.composio;
    Ok(composio::Options {
        base_url: composio.base_url.parse().context("composio.base_url is not a URL")?,
        api_key: composio.api_key.clone(),
        api_path: composio.api_path.clone(),
        connect_timeout: Duration::from_millis(composio.connect_timeout_ms),
        max_response_bytes: composio.max_response_bytes,
        http_version: composio.http_version,
        max_calls: config.queues.values().map(|lane| lane.concurrency as usize).sum::<usize>().min(4096),
        user_agent: concat!("errand/", env!("CARGO_PKG_VERSION")).into(),
        clock: clock::system(),
    })
}

/// The rules of admission that the configuration names.
pub fn rules(config: &Config) -> Rules {
    Rules {
        owners: OwnerPolicy {
            allow_default: config.owners.allow_default,
            refuse_email: config.owners.refuse_email,
        },
        owned_by: config
            .toolkits
            .iter()
            .filter_map(|(slug, toolkit)| toolkit.owned_by.map(|kind| (slug.clone(), kind)))
            .collect(),
    }
}

/// Installs the metrics of this process.
///
/// # Errors
/// They are installed already.
pub fn install_metrics() -> Result<PrometheusHandle> {
    metrics::install().context("metrics can be installed once per process")
}

fn lanes(config: &Config) -> Vec<(QueueName, u32)> {
    let chosen = |name: &QueueName| config.worker.queues.is_empty() || config.worker.queues.contains(name);
    let lanes = config.queues.iter().filter(|(name, _)| chosen(name));
    lanes.map(|(name, lane)| (name.clone(), lane.concurrency)).collect()
}

/// The configured name, or the host's.
fn worker_name(config: &Config) -> String {
    if !config.worker.name.is_empty() {
        return config.worker.name.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "errand".into() } else { host.into() }
}

fn retry_policy(retry: &config::Retry) -> RetryPolicy {
    RetryPolicy {
        intervals: Intervals {
            initial: Duration::from_millis(retry.initial_ms),
            max: Duration::from_millis(retry.max_ms),
            multiplier: retry.multiplier,
            jitter: retry.jitter,
        },
        max_attempts: retry.max_attempts,
        max_retry_after: Duration::from_secs(retry.max_retry_after_secs),
        max_throttled_age: Duration::from_secs(retry.max_throttled_secs),
    }
}

fn worker_options(config: &Config, lanes: Vec<(QueueName, u32)>) -> Options {
    Options {
        id: WorkerId::new(),
        name: worker_name(config),
        lanes,
        lease: Duration::from_secs(config.worker.lease_secs),
        heartbeat: Duration::from_secs(config.worker.heartbeat_secs),
        shutdown: Duration::from_secs(config.worker.drain_secs),
        journal_dir: config.worker.journal_dir.clone(),
        accept_unidentified: config.worker.accept_unidentified,
        retry: retry_policy(&config.retry),
        circuit_breaker: CircuitBreakerPolicy {
            after: config.outage.after,
            intervals: Intervals {
                initial: Duration::from_millis(config.outage.first_ms),
                max: Duration::from_millis(config.outage.max_ms),
                multiplier: 2.0,
                jitter: 0.2,
            },
            max_retry_after: Duration::from_secs(config.retry.max_retry_after_secs),
        },
        first_check: first_check(config),
        timeout: Duration::from_millis(config.composio.timeout_ms),
        max_buffered_bytes: config.worker.max_buffered_bytes,
        crash: None,
    }
}

fn resolver_options(config: &Config) -> ResolverOptions {
    ResolverOptions {
        rules: rules(config),
        unpinned: config.pins.unpinned,
        config_pins: config.toolkit_versions.clone(),
        env_pins: config.env_pins.clone(),
        tool_ttl: Duration::from_secs(config.composio.tool_cache_secs),
        account_ttl: Duration::from_secs(config.composio.account_cache_secs),
    }
}

fn relay_options(config: &Config) -> relay::Options {
    relay::Options {
        poll: Duration::from_millis(config.relay.poll_ms),
        batch: config.relay.batch,
        unclaimed: Duration::from_secs(config.relay.unclaimed_secs),
    }
}

/// `None` where a person decides about every unknown outcome.
fn first_check(config: &Config) -> Option<Duration> {
    config.verify.enabled.then(|| Duration::from_millis(config.verify.first_ms))
}

fn verify_options(config: &Config) -> verify::Options {
    let verify = &config.verify;
    verify::Options {
        poll: Duration::from_millis(verify.poll_ms),
        batch: verify.batch,
        policy: verify::Policy {
            intervals: Intervals {
                initial: Duration::from_millis(verify.first_ms),
                max: Duration::from_millis(verify.max_ms),
                multiplier: 2.0,
                jitter: 0.2,
            },
            settle: Duration::from_secs(verify.settle_secs),
            give_up: Duration::from_secs(verify.give_up_secs),
        },
        retry: retry_policy(&config.retry),
        timeout: Duration::from_millis(config.composio.timeout_ms),
    }
}

/// From when on an audit reports what the flow should have done by itself.
pub fn audit_limits(config: &Config) -> AuditLimits {
    let lease = Duration::from_secs(config.worker.lease_secs);
    AuditLimits {
        lost: lease + 2 * Duration::from_secs(config.rescue.poll_secs) + AUDIT_MARGIN,
        timeout: Duration::from_millis(config.composio.timeout_ms),
        overrun: OVERRUN,
        overdue: OVERDUE,
        publications: UNCLAIMED_PUBLICATIONS,
        verified: config.verify.enabled,
    }
}

fn connections_options(config: &Config) -> connections::Options {
    let connections = &config.connections;
    connections::Options {
        looks: connections.enabled,
        poll: Duration::from_millis(connections.poll_ms),
        batch: connections.batch,
        intervals: Intervals {
            initial: Duration::from_millis(connections.first_ms),
            max: Duration::from_millis(connections.max_ms),
            multiplier: 2.0,
            jitter: 0.3,
        },
    }
}

fn rescue_options(config: &Config) -> rescue::Options {
    rescue::Options {
        poll: Duration::from_secs(config.rescue.poll_secs),
        batch: config.rescue.batch,
        lease: Duration::from_secs(config.worker.lease_secs),
        first_check: first_check(config),
        retry: retry_policy(&config.retry),
    }
}
