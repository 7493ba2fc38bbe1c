//! The environment of one measurement: a schema or a file, and a lane, which are removed when the measurement is
//! over, however it ended.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use errand::{
    config::Config,
    job::QueueName,
    queue::{
        Queue as _,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
};
use lapin::{Connection, ConnectionProperties, options::QueueDeleteOptions};
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    child::{self, Process, Role},
    database::{BenchStore, with_schema},
    jobs::{TOOLKIT, VERSION, random_word},
    plan::{Backend, Http, Plan},
    stub::StubProcess,
};

/// Connections for looking at what the contenders do.
const CONNECTIONS: u32 = 2;

/// What one measurement has for itself.
#[derive(Debug)]
pub(super) struct Environment {
    /// The measurement's own database.
    pub(super) url: SecretString,
    /// The same, to read what is in it.
    pub(super) store: BenchStore,
    /// The measurement's own lane.
    pub(super) lane: QueueName,
    /// The broker, unless the backend is embedded.
    pub(super) queue: Option<RabbitQueue>,
    amqp_url: SecretString,
    /// The database around it, and the name of the schema.
    around: Option<(BenchStore, String)>,
    /// The file with the settings of the contenders.
    settings: PathBuf,
    folder: TempDir,
}

/// What the measurements of the worker are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    /// The settings of this process.
    pub(super) config: &'a Config,
    pub(super) plan: &'a Plan,
    pub(super) stub: &'a StubProcess,
}

impl<'a> Base<'a> {
    /// What their environments are made from.
    pub(super) fn around(self) -> Around<'a> {
        let Self { config, plan, stub } = self;
        let Plan { backend, concurrency, http, .. } = *plan;
        Around { config, backend, concurrency, http, tool_api: stub.base_url() }
    }
}

/// What an environment is made from.
#[derive(Debug)]
pub(super) struct Around<'a> {
    /// The settings of this process.
    pub(super) config: &'a Config,
    pub(super) backend: Backend,
    /// Jobs in flight at once.
    pub(super) concurrency: u32,
    pub(super) http: Http,
    /// The URL of the tool API.
    pub(super) tool_api: String,
}

impl Environment {
    /// Runs `work` in a fresh environment, and removes it afterwards.
    pub(super) async fn with<T>(
        around: Around<'_>,
        stop: &CancellationToken,
        work: impl AsyncFnOnce(&Environment) -> Result<T>,
    ) -> Result<T> {
        let environment = Self::build(&around)?;
        let done = tokio::select! {
            done = async { environment.prepare().await?; work(&environment).await } => done,
            () = stop.cancelled() => Err(anyhow::anyhow!("the benchmark was stopped")),
        };
        let cleared = environment.clear().await;
        let done = done?;
        cleared.context("what the benchmark created could not be removed")?;
        Ok(done)
    }

    fn build(around: &Around<'_>) -> Result<Self> {
        let Around { config, backend, .. } = *around;
        let word = random_word();
        let folder = tempfile::Builder::new().prefix("errand-bench-").tempdir()?;
        let lane: QueueName = format!("bench-{word}").parse()?;
        let file = folder.path().join("errand.toml");
        std::fs::write(&file, settings(around, &lane))?;
        if backend == Backend::Embedded {
            let url: SecretString = format!("sqlite://{}", folder.path().join("bench.db").display()).into();
            let store = BenchStore::open(&url, CONNECTIONS)?;
            let amqp_url = String::new().into();
            return Ok(Self {
                url,
                store,
                lane,
                queue: None,
                amqp_url,
                around: None,
                settings: file,
                folder,
            });
        }
        if config.store_is_sqlite() || config.store.url.expose_secret().is_empty() || !config.has_amqp() {
            bail!(
                "set DATABASE_URL (PostgreSQL) and AMQP_URL, or use --backend embedded, which needs neither"
            );
        }
        // What is created is removed over a connection of the benchmark's own, which speaks no TLS.
        if !config.amqp.url.expose_secret().starts_with("amqp://") {
            bail!("the benchmark needs a broker without TLS: an AMQP_URL that begins with amqp://");
        }
        let schema = format!("errand_bench_{word}");
        let url = with_schema(&config.store.url, &schema)?;
        let options = RabbitOptions {
            url: config.amqp.url.clone(),
            queue_type: config.amqp.queue_type,
            declare: true,
            management_url: String::new().into(),
            lanes: vec![lane.clone()],
            connection_name: "errand-lab bench".into(),
            heartbeat: Duration::from_secs(config.amqp.heartbeat_secs.into()),
        };
        Ok(Self {
            store: BenchStore::open(&url, CONNECTIONS)?,
            queue: Some(RabbitQueue::new(options)?),
            amqp_url: config.amqp.url.clone(),
            around: Some((BenchStore::open(&config.store.url, 1)?, schema)),
            url,
            lane,
            settings: file,
            folder,
        })
    }

    async fn prepare(&self) -> Result<()> {
        if let Some((around, schema)) = &self.around {
            around.create_schema(schema).await.context("cannot create a schema for the benchmark")?;
        }
        if let Some(queue) = &self.queue {
            queue.check().await?;
        }
        Ok(())
    }

    async fn clear(&self) -> Result<()> {
        let mut cleared = Ok(());
        if let Some(queue) = &self.queue {
            cleared = delete_lane(&self.amqp_url, &self.lane).await;
            queue.close().await;
        }
        self.store.close().await;
        if let Some((around, schema)) = &self.around {
            cleared = cleared.and(around.drop_schema(schema).await.map_err(anyhow::Error::from));
            around.close().await;
        }
        cleared
    }

    /// Starts a contender here.
    pub(super) fn start(
        &self,
        program: &Path,
        role: Role,
        arguments: &[String],
        records_events: bool,
    ) -> Result<Process> {
        let is_published = if self.queue.is_some() { "true" } else { "false" };
        let recording = [("ERRAND__EVENTS__RECORD", "all"), ("ERRAND__EVENTS__EXCHANGE", is_published)];
        let settings: &[_] = if records_events { &recording } else { &[] };
        self.start_with(program, role, arguments, settings)
    }

    /// Starts a contender here, with settings of its own.
    pub(super) fn start_with(
        &self,
        program: &Path,
        role: Role,
        arguments: &[String],
        settings: &[(&'static str, &str)],
    ) -> Result<Process> {
        let mut variables = self.variables()?.to_vec();
        variables.extend_from_slice(settings);
        Process::start(program, role, arguments, &variables)
    }

    /// Runs a command of a contender's program here, to its end.
    pub(super) async fn run(&self, program: &Path, arguments: &[&str]) -> Result<()> {
        child::run(program, arguments, &self.variables()?).await
    }

    /// The environment's own folder.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn variables(&self) -> Result<[(&'static str, &str); 4]> {
        Ok([
            ("ERRAND_CONFIG", self.settings.to_str().context("the temporary folder has a strange name")?),
            ("DATABASE_URL", self.url.expose_secret()),
            ("AMQP_URL", self.amqp_url.expose_secret()),
            ("COMPOSIO_API_KEY", "bench"),
        ])
    }
}

/// The settings of the contenders: the usual ones, with this lane and this stub. They are few and old, so that
/// other builds know them, too.
fn settings(around: &Around<'_>, lane: &QueueName) -> String {
    let Around { config, concurrency, http, tool_api, .. } = around;
    let (threads, http) = (config.runtime.threads, http.as_str());
    let queue_type = config.amqp.queue_type;
    format!(
        r#"[queues.{lane}]
concurrency = {concurrency}
[worker]
queues = ["{lane}"]
journal_dir = ""
[composio]
base_url = "{tool_api}"
http_version = "{http}"
[toolkit_versions]
{TOOLKIT} = "{VERSION}"
[http]
listen = "127.0.0.1:0"
[log]
level = "warn"
[amqp]
queue_type = "{queue_type}"
[runtime]
threads = {threads}
"#
    )
}

/// Deletes the queue of a lane with all its messages. One that is not there is no error to the broker.
async fn delete_lane(url: &SecretString, lane: &QueueName) -> Result<()> {
    let connection = Connection::connect(url.expose_secret(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(format!("errand.{lane}").into(), QueueDeleteOptions::default()).await?;
    Ok(connection.close(200, "done".into()).await?)
}
