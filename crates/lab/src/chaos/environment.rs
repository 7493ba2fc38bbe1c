//! The environment of one round: its own database and lane, its own tool API, and its workers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use errand::{
    app,
    config::Config,
    job::{QueueName, QueueType},
    queue::{
        SharedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
    store::{Recording, SharedStore},
    worker::CrashPlan,
};
use errand_testbed::services::{
    postgres::{self, Database},
    proxy::Proxy,
    rabbitmq::Vhost,
};
use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    cluster::{Cluster, Services},
    plan::Plan,
    process::Process,
    tool_api::ToolApi,
};

/// The lane of all jobs.
pub(super) const LANE: &str = "default";

/// A worker whose beat is older than this is lost. Short, so that rescue is seen within a round.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// From when on a log without an entry says that a call never arrived. Longer than any call goes on after the
/// worker has stopped waiting for it, and than any log is late.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// From when on a person has to decide about an unknown outcome.
pub(super) const GIVE_UP: Duration = Duration::from_secs(15);

/// How long a worker that was told to end may take.
pub(super) const DRAIN: Duration = Duration::from_secs(5);

/// How long the services may take to be usable at the beginning of a round.
const PREPARATION: Duration = Duration::from_secs(60);

/// What one round has for itself. Each worker is behind proxies of its own.
#[derive(Debug)]
pub(super) struct Environment {
    /// The tool API, and what stands before it.
    pub(super) api: Arc<ToolApi>,
    pub(super) api_proxy: Proxy,
    pub(super) slots: Vec<Slot>,
    /// How apps reach the broker and the database, past all proxies.
    pub(super) access: AppAccess,
    /// The round's own virtual host on the broker.
    pub(super) vhost: Option<Vhost>,
    /// The database file of the embedded pair.
    pub(super) database_file: Option<PathBuf>,
    /// The role of the workers and apps on PostgreSQL, to which limits apply, and the database as its superuser sees it, which
    /// the server keeps as long as this lives.
    pub(super) role: Option<String>,
    database: Option<Database>,
    folder: TempDir,
}

/// How jobs get in, and how their states are read.
#[derive(Debug, Clone)]
pub(super) struct AppAccess {
    pub(super) store: SharedStore,
    pub(super) queue: Option<SharedQueue>,
    pub(super) lane: QueueName,
}

/// A worker and its connections.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) database: Option<Proxy>,
    pub(super) broker: Option<Proxy>,
    pub(super) process: Option<Process>,
    env: Vec<(String, String)>,
    logs: PathBuf,
    starts: u32,
}

impl Slot {
    /// Starts the worker if it does not run.
    pub(super) async fn start(&mut self, crash: Option<CrashPlan>) -> Result<()> {
        if let Some(process) = &mut self.process
            && !process.has_ended()?
        {
            return Ok(());
        }
        self.starts += 1;
        let log = self.logs.with_extension(format!("{}.log", self.starts));
        self.process = Some(Process::start(&self.env, crash, &log)?);
        Ok(())
    }

    /// Kills the worker if it runs.
    pub(super) async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Tells the worker to end, and waits for it.
    ///
    /// # Errors
    /// It takes longer than it may.
    pub(super) async fn stop(&mut self, limit: Duration) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal("TERM").await?;
        let ended = process.ended_within(limit).await?;
        ensure!(ended.is_some(), "a worker did not end within {} s of SIGTERM", limit.as_secs());
        Ok(())
    }
}

impl Environment {
    pub(super) async fn build(plan: &Plan, cluster: &Cluster, seed: u64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("errand-chaos-").tempdir()?;
        let api = Arc::new(ToolApi::start(plan.api, seed).await?);
        let api_proxy = Proxy::start(&cluster.place, api.port()).await?;
        let mut common = settings(&api_proxy, api.key());
        let journals = folder.path().join("journals");
        common.push(("ERRAND__WORKER__JOURNAL_DIR".into(), journals.display().to_string()));
        let lane: QueueName = LANE.parse()?;
        let environment = match &cluster.services {
            None => {
                let file = folder.path().join("errand.db");
                let url = format!("sqlite://{}", file.display());
                let access = AppAccess { store: open_store(&plan.config, &url)?, queue: None, lane };
                common.push(("DATABASE_URL".into(), url));
                let slots = vec![slot(1, folder.path(), common, None, None)];
                let file = Some(file);
                let (role, database) = (None, None);
                Self {
                    api,
                    api_proxy,
                    slots,
                    access,
                    vhost: None,
                    database_file: file,
                    role,
                    database,
                    folder,
                }
            }
            Some(Services { postgres: server, rabbitmq }) => {
                let (database, vhost) = tokio::try_join!(server.database("chaos"), rabbitmq.vhost("chaos"))?;
                let role = format!("role_{}", database.name);
                execute(&database.url, &format!("create role {role} login")).await?;
                execute(&database.url, &format!("alter database {} owner to {role}", database.name)).await?;
                let url = database.url.replace("//errand@", &format!("//{role}@"));
                let mut slots = Vec::new();
                for number in 1..=2 {
                    let to_database = Proxy::start(&cluster.place, server.port()).await?;
                    let to_broker = Proxy::start(&cluster.place, rabbitmq.port()).await?;
                    let mut env = common.clone();
                    env.push(("DATABASE_URL".into(), to_database.url(&url)?));
                    env.push(("AMQP_URL".into(), to_broker.url(&vhost.amqp_url)?));
                    env.push(("ERRAND__EVENTS__EXCHANGE".into(), "true".into()));
                    slots.push(slot(number, folder.path(), env, Some(to_database), Some(to_broker)));
                }
                let store = open_store(&plan.config, &url)?;
                let queue = open_queue(&vhost.amqp_url, &lane)?;
                let access = AppAccess { store, queue: Some(queue), lane };
                let (role, database) = (Some(role), Some(database));
                let vhost = Some(vhost);
                Self { api, api_proxy, slots, access, vhost, database_file: None, role, database, folder }
            }
        };
        let AppAccess { store, queue, .. } = &environment.access;
        patiently(|| store.migrate()).await.context("cannot migrate the database of a round")?;
        if let Some(queue) = queue {
            patiently(|| queue.check()).await.context("cannot use the broker of a round")?;
        }
        Ok(environment)
    }

    /// Does to the round's database what errand never does.
    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        match (&self.database_file, &self.database) {
            (Some(file), _) => {
                let options = SqliteConnectOptions::new().filename(file).busy_timeout(PREPARATION);
                let mut connection =
                    options.connect().await.context("cannot open the database file of a round")?;
                sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
                Ok(connection.close().await?)
            }
            (None, Some(database)) => execute(&database.url, sql).await,
            (None, None) => Ok(()),
        }
    }

    /// The same as a superuser of PostgreSQL.
    pub(super) async fn administer(&self, sql: &str) -> Result<()> {
        match &self.database {
            Some(database) => execute(&database.url, sql).await,
            None => Ok(()),
        }
    }

    /// The folder with the workers' logs.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts every worker that does not run.
    pub(super) async fn start_workers(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            slot.start(None).await?;
        }
        Ok(())
    }

    /// Ends everything that is connected.
    pub(super) async fn close(&self) {
        if let Some(queue) = &self.access.queue {
            queue.close().await;
        }
        self.access.store.close().await;
    }
}

/// Tries again for a while: the services may have just come back from the fault of the round before, and a broker
/// sometimes answers the first declaration on a new virtual host with an internal error.
pub(super) async fn patiently<'a, T, E>(work: impl Fn() -> BoxFuture<'a, Result<T, E>>) -> Result<T, E> {
    let until = Instant::now() + PREPARATION;
    loop {
        match work().await {
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(500)).await,
            answer => return answer,
        }
    }
}

async fn execute(url: &str, sql: &str) -> Result<()> {
    let mut connection = postgres::connect(url).await.context("cannot reach the database of a round")?;
    sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

fn slot(
    number: u32,
    folder: &Path,
    env: Vec<(String, String)>,
    database: Option<Proxy>,
    broker: Option<Proxy>,
) -> Slot {
    let logs = folder.join(format!("worker-{number}"));
    Slot { database, broker, process: None, env, logs, starts: 0 }
}

/// What all workers are told: everything happens sooner than usual, so that a round is short.
fn settings(api: &Proxy, key: &str) -> Vec<(String, String)> {
    let secs = |duration: Duration| duration.as_secs().to_string();
    [
        ("COMPOSIO_BASE_URL", format!("http://127.0.0.1:{}", api.port())),
        ("COMPOSIO_API_KEY", key.to_owned()),
        ("ERRAND__COMPOSIO__TIMEOUT_MS", "2000".into()),
        ("ERRAND__COMPOSIO__CONNECT_TIMEOUT_MS", "1000".into()),
        ("ERRAND__PINS__UNPINNED", "freeze".into()),
        ("ERRAND__STORE__STATEMENT_TIMEOUT_MS", "3000".into()),
        ("ERRAND__AMQP__HEARTBEAT_SECS", "2".into()),
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "32".into()),
        ("ERRAND__WORKER__QUEUES", LANE.into()),
        ("ERRAND__WORKER__LEASE_SECS", secs(LEASE)),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1".into()),
        ("ERRAND__WORKER__DRAIN_SECS", secs(DRAIN)),
        ("ERRAND__RELAY__POLL_MS", "200".into()),
        ("ERRAND__RELAY__UNCLAIMED_SECS", "2".into()),
        ("ERRAND__RESCUE__POLL_SECS", "1".into()),
        ("ERRAND__VERIFY__POLL_MS", "200".into()),
        ("ERRAND__VERIFY__FIRST_MS", "300".into()),
        ("ERRAND__VERIFY__MAX_MS", "1000".into()),
        ("ERRAND__VERIFY__LOG_DELAY_SECS", secs(SETTLE)),
        ("ERRAND__VERIFY__GIVE_UP_SECS", secs(GIVE_UP)),
        ("ERRAND__RETRY__INITIAL_MS", "50".into()),
        ("ERRAND__RETRY__MAX_MS", "1000".into()),
        ("ERRAND__RETRY__MAX_RETRY_AFTER_SECS", "2".into()),
        ("ERRAND__RETRY__MAX_ATTEMPTS", "100".into()),
        ("ERRAND__CIRCUIT_BREAKER__FIRST_MS", "200".into()),
        ("ERRAND__CIRCUIT_BREAKER__MAX_MS", "1000".into()),
        ("ERRAND__EVENTS__RECORD", "all".into()),
        ("ERRAND__CALLBACKS__ENABLED", "true".into()),
        ("ERRAND__CALLBACKS__ALLOWED_NETWORKS", "127.0.0.0/8".into()),
        ("ERRAND__CALLBACKS__TIMEOUT_MS", "2000".into()),
        ("ERRAND__HTTP__LISTEN", String::new()),
        ("ERRAND__LOG__FORMAT", "json".into()),
        ("ERRAND__RUNTIME__THREADS", "2".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn open_store(config: &Config, url: &str) -> Result<SharedStore> {
    let mut config = config.clone();
    config.store.url = url.to_owned().into();
    config.store.statement_timeout_ms = 5_000;
    config.events.record = Recording::All;
    app::open_store(&config)
}

fn open_queue(url: &str, lane: &QueueName) -> Result<SharedQueue> {
    let options = RabbitOptions {
        url: url.to_owned().into(),
        queue_type: QueueType::Quorum,
        declare: true,
        management_url: String::new().into(),
        lanes: vec![lane.clone()],
        connection_name: "errand-lab chaos".into(),
        heartbeat: Duration::from_secs(5),
    };
    Ok(Arc::new(RabbitQueue::new(options)?))
}
