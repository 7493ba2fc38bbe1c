//! An older build and this one on one database, one after the other and side by side: what a rolling upgrade and its
//! rollback do.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use errand_sandbox::{DEFAULT_WORLD, Options, Running, Sandbox, World};
use errand_testbed::{
    factory::{read, send, spread},
    services::{
        Place,
        postgres::{self, Database, Postgres},
        rabbitmq::{self, RabbitMq, Vhost},
    },
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// Jobs of one stage.
const JOBS: usize = 120;

/// How long a stage may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls take a while, so that workers are killed in the middle of some.
const FAULTS: &str = "[[fault]]\nkind = \"latency\"\nmin_ms = 20\nmax_ms = 200\n";

/// One database, one broker and one tool API, which both builds use.
struct Stage {
    database: Database,
    vhost: Vhost,
    sandbox: Running,
    folder: TempDir,
    old: PathBuf,
    old_has_schema: bool,
    published: usize,
    _servers: (Postgres, RabbitMq),
}

/// Plays all stages, and returns a line for each. `old` and `new` are programs like `errand`.
///
/// # Errors
/// A stage did not end as it should, or the services do not start.
pub(crate) async fn run(old: &Path, new: &Path, progress: impl Fn(&str)) -> Result<()> {
    progress("both ways round, from the older schema");
    let mut stage = Stage::new(old).await?;
    stage.command(old, &["migrate"]).await?;
    let mut first = stage.worker(old, 1)?;
    stage.batch("the older build alone").await?;

    // What the older build left half done is there when the newer one comes.
    stage.publish().await?;
    stage.command(new, &["migrate"]).await?;
    let mut second = stage.worker(new, 2)?;
    stage.settle("a migration under an older worker").await?;
    progress("  a migration under an older worker: all jobs ran once");

    for (name, kills_old) in [("the older one is killed", true), ("the newer one is killed", false)] {
        stage.publish().await?;
        sleep(Duration::from_millis(400)).await;
        let (dies, program, number) = if kills_old { (&mut first, old, 1) } else { (&mut second, new, 2) };
        dies.kill().await.context("cannot kill a worker")?;
        stage.settle(name).await?;
        *dies = stage.worker(program, number)?;
        progress(&format!("  {name}: the other took its jobs over, all ran once"));
    }

    second.kill().await?;
    stage.batch("a rollback to the older build").await?;
    progress("  a rollback to the older build on the newer schema: all jobs ran once");
    first.kill().await?;

    progress("the older build on a database that the newer one made");
    let mut stage = Stage::new(old).await?;
    stage.command(new, &["migrate"]).await?;
    let mut worker = stage.worker(old, 1)?;
    stage.batch("the older build on a newer schema").await?;
    worker.kill().await?;
    progress("  all jobs ran once");
    Ok(())
}

/// Whether a build has a setting for the schema of its tables.
async fn has_schema(program: &Path) -> Result<bool> {
    let manual =
        Command::new(program).args(["config", "default"]).env_clear().stdin(Stdio::null()).output().await;
    let manual = manual.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&manual.stdout).lines().any(|line| line.starts_with("schema = ")))
}

impl Stage {
    async fn new(old: &Path) -> Result<Self> {
        let place = Place::default();
        let (postgres, rabbitmq) = tokio::try_join!(
            Postgres::start(&place, postgres::Options::default()),
            RabbitMq::start(&place, rabbitmq::Options::default()),
        )?;
        let (database, vhost) = tokio::try_join!(postgres.database("compat"), rabbitmq.vhost("compat"))?;
        let world = World::from_toml(&format!("{DEFAULT_WORLD}\n{FAULTS}"))
            .context("the sandbox's world is damaged")?;
        let sandbox = Sandbox::new(world, Options::default()).bind(([127, 0, 0, 1], 0).into()).await?;
        let folder = tempfile::Builder::new().prefix("errand-compat-").tempdir()?;
        Ok(Self {
            database,
            vhost,
            sandbox,
            folder,
            old: old.to_owned(),
            old_has_schema: has_schema(old).await?,
            published: 0,
            _servers: (postgres, rabbitmq),
        })
    }

    /// The settings of a build. The older one may not know that errand has a schema of its own, and then the newer one
    /// leaves the tables where that makes them, because a worker that runs has to find them.
    fn env(&self, program: &Path) -> Vec<(&'static str, String)> {
        let schema = (!self.old_has_schema && program != self.old).then(|| "public".to_owned());
        let mut env = vec![
            ("DATABASE_URL", self.database.url.clone()),
            ("AMQP_URL", self.vhost.amqp_url.clone()),
            ("COMPOSIO_BASE_URL", self.sandbox.base_url()),
            ("COMPOSIO_API_KEY", "ak_test_good".into()),
            ("ERRAND__PINS__UNPINNED", "freeze".into()),
            ("ERRAND__RETRY__INITIAL_MS", "50".into()),
            ("ERRAND__RETRY__MAX_MS", "500".into()),
            ("ERRAND__WORKER__LEASE_SECS", "5".into()),
            ("ERRAND__WORKER__HEARTBEAT_SECS", "1".into()),
            ("ERRAND__COMPOSIO__TIMEOUT_MS", "2000".into()),
            ("ERRAND__COMPOSIO__CONNECT_TIMEOUT_MS", "1000".into()),
            ("ERRAND__VERIFY__POLL_MS", "200".into()),
            ("ERRAND__VERIFY__FIRST_MS", "300".into()),
            ("ERRAND__VERIFY__MAX_MS", "1000".into()),
            ("ERRAND__VERIFY__LOG_DELAY_SECS", "3".into()),
            ("ERRAND__VERIFY__GIVE_UP_SECS", "60".into()),
            ("ERRAND__WORKER__JOURNAL_DIR", self.folder.path().join("journal").display().to_string()),
            ("ERRAND__HTTP__LISTEN", String::new()),
        ];
        env.extend(schema.map(|schema| ("ERRAND__STORE__SCHEMA", schema)));
        env
    }

    async fn command(&self, program: &Path, args: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(self.env(program))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        let output = command.output().await.with_context(|| format!("cannot run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {}: {said}", program.display(), args.join(" "));
        Ok(())
    }

    fn worker(&self, program: &Path, number: u32) -> Result<Child> {
        let log: PathBuf = self.folder.path().join(format!("worker-{number}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.arg("worker").env_clear().envs(self.env(program)).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start {}", program.display()))
    }

    /// Enqueues jobs that only read and jobs that count.
    async fn publish(&mut self) -> Result<()> {
        self.enqueue(&[spread(JOBS / 2, read), spread(JOBS / 2, send)].concat()).await
    }

    /// Enqueues with the older build, since apps are not upgraded together with workers.
    async fn enqueue(&mut self, jobs: &[Value]) -> Result<()> {
        let lines: Vec<String> = jobs.iter().map(Value::to_string).collect();
        let file = self.folder.path().join("jobs.jsonl");
        std::fs::write(&file, lines.join("\n"))?;
        self.command(&self.old, &["enqueue-bulk", &file.display().to_string()]).await?;
        self.published += jobs.len();
        Ok(())
    }

    async fn batch(&mut self, what: &str) -> Result<()> {
        self.publish().await?;
        self.settle(what).await
    }

    /// Waits until all jobs have succeeded, each with one effect where it counts.
    async fn settle(&mut self, what: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let states = self.states().await?;
            if states == [("succeeded".to_owned(), self.published as i64)] {
                break;
            }
            if Instant::now() > until {
                let kept = self.folder.path().display();
                bail!("{what}: of {} jobs there are {states:?} (the logs are in {kept})", self.published);
            }
            sleep(Duration::from_secs(1)).await;
            if states.iter().any(|(state, _)| state == "held") {
                // Only a call that was sent later shows that the log has not stopped.
                self.enqueue(&spread(1, read)).await?;
            }
        }
        let ledger = self.sandbox.ledger_summary();
        ensure!(ledger.jobs_repeated_once == 0, "{what}: calls that count were made twice: {ledger:?}");
        Ok(())
    }

    async fn states(&self) -> Result<Vec<(String, i64)>> {
        let mut connection = self.database.connect().await?;
        let sql = "select state::text, count(*) from jobs group by state order by state";
        let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}
