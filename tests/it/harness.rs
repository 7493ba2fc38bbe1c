//! The real `errand` binary as a process, and a harness for it: a database, a vhost and a sandbox.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use errand_sandbox::{DEFAULT_WORLD, Options, Running, Sandbox, World};
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, postgres, rabbitmq, wait::until};

/// How long anything on a harness may take. Generous, because the machine is shared, and longer than the minute
/// after which a job is published again whose worker was killed while it published (`relay.unclaimed_secs`).
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a worker needs around it.
pub(crate) struct Harness {
    pub(crate) database: postgres::Database,
    pub(crate) vhost: rabbitmq::Vhost,
    pub(crate) sandbox: Running,
    folder: TempDir,
}

impl Harness {
    /// A fresh harness, whose database has errand's tables. `faults` is TOML that is added to the sandbox's default world.
    pub(crate) async fn new(hint: &str, faults: &str) -> Self {
        let (database, vhost) = tokio::join!(crate::migrated::postgres(hint), support::vhost(hint));
        Self::of(database, vhost, sandbox(faults).await)
    }

    /// The same, of servers that a test may break.
    pub(crate) fn of(database: postgres::Database, vhost: rabbitmq::Vhost, sandbox: Running) -> Self {
        Self { database, vhost, sandbox, folder: in_memory("errand-harness-") }
    }

    /// The environment that points errand at this harness.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        [
            ("DATABASE_URL", self.database.url.clone()),
            ("AMQP_URL", self.vhost.amqp_url.clone()),
            ("ERRAND__STORE__MIGRATE_AT_START", "true".into()),
            ("COMPOSIO_BASE_URL", self.sandbox.base_url()),
            ("COMPOSIO_API_KEY", "ak_test_good".into()),
            ("COMPOSIO_TOOLKIT_VERSION_GITHUB", "20251027_00".into()),
            ("ERRAND__TOOLKIT_VERSIONS__GMAIL", "20251112_00".into()),
            ("ERRAND__TOOLKIT_VERSIONS__LINEAR", "20251020_00".into()),
            ("ERRAND__TOOLKIT_VERSIONS__SLACK", "20251104_01".into()),
            ("ERRAND__TOOLKIT_VERSIONS__HACKERNEWS", "20250909_00".into()),
            ("ERRAND__RETRY__INITIAL_MS", "50".into()),
            ("ERRAND__RETRY__MAX_MS", "500".into()),
            ("ERRAND__RELAY__POLL_MS", "100".into()),
            ("ERRAND__CIRCUIT_BREAKER__FIRST_MS", "100".into()),
            ("ERRAND__CIRCUIT_BREAKER__MAX_MS", "500".into()),
            // Tests of unknown outcomes say for themselves when the log is asked.
            ("ERRAND__VERIFY__ENABLED", "false".into()),
            // Tests of held jobs decide for themselves when these go on.
            ("ERRAND__CONNECTIONS__ENABLED", "false".into()),
            ("ERRAND__LOG__LEVEL", "info,errand=debug".into()),
            ("ERRAND__WORKER__JOURNAL_DIR", self.journal_dir().display().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    /// The folder that the workers of this harness share for their journals.
    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// A worker that is ready.
    pub(crate) async fn worker(&self, extra: &[(&str, &str)]) -> Process {
        let process = self.start_worker(extra);
        process.logged("worker ready").await;
        process
    }

    /// A worker that was just started.
    pub(crate) fn start_worker(&self, extra: &[(&str, &str)]) -> Process {
        let mut env = self.env();
        env.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Process::start(&["worker", "--listen", "127.0.0.1:0"], &env)
    }

    /// Publishes envelopes to the default lane, confirmed, as any AMQP client would.
    pub(crate) async fn publish(&self, jobs: &[Value]) {
        let bodies = jobs.iter().map(|job| serde_json::to_vec(job).unwrap()).collect::<Vec<_>>();
        self.publish_raw(&bodies, BasicProperties::default().with_delivery_mode(2)).await;
    }

    /// Publishes any bytes with the given properties.
    pub(crate) async fn publish_raw(&self, bodies: &[Vec<u8>], properties: BasicProperties) {
        self.publish_to("default", bodies, properties).await;
    }

    /// Publishes any bytes to a lane.
    pub(crate) async fn publish_to(&self, lane: &str, bodies: &[Vec<u8>], properties: BasicProperties) {
        let connection = self.vhost.connect().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mut confirms = Vec::new();
        for body in bodies {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirm = channel
                .basic_publish("errand".into(), lane.into(), options, body, properties.clone())
                .await
                .unwrap();
            confirms.push(confirm);
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
        connection.close(200, "done".into()).await.unwrap();
    }

    /// Runs a command to its end.
    pub(crate) fn errand(&self, args: &[&str]) -> Output {
        run(args, &self.env())
    }

    /// `jobs show ID --json`, asked again while a machine that stands still makes the database unreachable (exit code 4).
    pub(crate) fn show(&self, id: &str) -> Value {
        let (begun, show) = (std::time::Instant::now(), || self.errand(&["jobs", "show", id, "--json"]));
        let mut output = show();
        while output.status.code() == Some(4) && begun.elapsed() < PATIENCE {
            output = show();
        }
        assert!(output.status.success(), "jobs show {id}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until a job is in one of these states, and shows it.
    pub(crate) async fn job_in(&self, id: &str, states: &[&str]) -> Value {
        let sql = format!("select state from jobs where id = '{id}'");
        until(&format!("job {id} in {states:?}"), PATIENCE, async || {
            let state = self.text(&sql).await?;
            states.contains(&state.as_str()).then_some(())
        })
        .await;
        self.show(id)
    }

    /// Waits until no job is scheduled, available, running or retryable, and counts the jobs by state.
    pub(crate) async fn settled(&self, expected: u64) -> Vec<(String, u64)> {
        until(&format!("{expected} settled jobs"), PATIENCE, async || {
            let sql =
                "select count(*)::text from jobs where state in ('succeeded', 'failed', 'cancelled', 'held')";
            (self.text(sql).await?.parse::<u64>().ok()? >= expected).then_some(())
        })
        .await;
        let sql = "select string_agg(state || '=' || n, ',' order by state) from \
                   (select state, count(*) as n from jobs group by state) as counted";
        let counted = self.text(sql).await.unwrap_or_default();
        let parse = |pair: &str| {
            let (state, n) = pair.split_once('=')?;
            Some((state.to_owned(), n.parse().ok()?))
        };
        counted.split(',').filter_map(parse).collect()
    }

    /// How many jobs meet a condition.
    pub(crate) async fn count(&self, condition: &str) -> u64 {
        let sql = format!("select count(*)::text from jobs where {condition}");
        self.text(&sql).await.unwrap().parse().unwrap()
    }

    /// Waits until exactly so many do.
    pub(crate) async fn counts(&self, condition: &str, jobs: u64) {
        until(&format!("{jobs} jobs with {condition}"), PATIENCE, async || {
            (self.count(condition).await == jobs).then_some(())
        })
        .await;
    }

    /// Waits until the sandbox has received exactly so many calls.
    pub(crate) async fn called(&self, calls: u64) {
        until(&format!("{calls} calls"), PATIENCE, async || {
            (self.sandbox.ledger_summary().calls == calls).then_some(())
        })
        .await;
    }

    /// Ends all faults of the sandbox.
    pub(crate) async fn heal(&self) {
        let url = format!("{}/_sandbox/faults", self.sandbox.base_url());
        support::http::client().delete(url).send().await.unwrap().error_for_status().unwrap();
    }

    /// Does to the database what errand never does.
    pub(crate) async fn execute(&self, sql: &str) {
        use sqlx::Executor as _;
        self.database.connect().await.unwrap().execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    /// Waits until so many jobs have succeeded, and makes sure that there are no others, that each took effect
    /// exactly once, and that nothing was rejected.
    pub(crate) async fn all_ran_once(&self, jobs: u64) {
        assert_eq!(self.settled(jobs).await, [("succeeded".to_owned(), jobs)]);
        let ledger = self.sandbox.ledger_summary();
        assert_eq!((ledger.effects, ledger.jobs_repeated), (jobs, 0), "{ledger:?}");
        assert_eq!(self.text("select count(*)::text from rejected").await.as_deref(), Some("0"));
    }

    /// Switches an account of the sandbox on or off.
    pub(crate) async fn set_account(&self, account: &str, enabled: bool) {
        let url = format!("{}/api/v3/connected_accounts/{account}/status", self.sandbox.base_url());
        let request = support::http::client().patch(url).header("x-api-key", "ak_test_good");
        let answer = request.json(&serde_json::json!({"enabled": enabled})).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    pub(crate) async fn delete_account(&self, account: &str) {
        let url = format!("{}/api/v3/connected_accounts/{account}", self.sandbox.base_url());
        let request = support::http::client().delete(url).header("x-api-key", "ak_test_good");
        assert!(request.send().await.unwrap().status().is_success());
    }

    /// Connects a new account, as a person would on the hosted page.
    pub(crate) async fn connect(&self, user: &str, auth_config: &str) {
        let url = format!("{}/api/v3/connected_accounts/link", self.sandbox.base_url());
        let request = support::http::client().post(url).header("x-api-key", "ak_test_good");
        let body = serde_json::json!({"auth_config_id": auth_config, "user_id": user});
        let link: Value = request.json(&body).send().await.unwrap().json().await.unwrap();
        let page = link["redirect_url"].as_str().unwrap();
        assert!(support::http::client().get(page).send().await.unwrap().status().is_success());
    }

    /// The first column of the first row, as text.
    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        use sqlx::Row as _;
        let mut connection = self.database.connect().await.unwrap();
        let row =
            sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_optional(&mut connection).await.ok()??;
        row.try_get::<Option<String>, _>(0).ok()?
    }
}

/// A folder in memory, if the machine has such. A journal has to be on the disk before a shutdown ends, and a disk that
/// others use may stand still for longer than that.
pub(crate) fn in_memory(prefix: &str) -> TempDir {
    tempfile::Builder::new().prefix(prefix).tempdir_in(memory()).unwrap()
}

fn memory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    // `tests/run` names a folder that it removes whatever happens.
    let disk = || std::env::var_os("ERRAND_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    if memory.is_dir() { memory.to_owned() } else { disk() }
}

/// The port of a service, for a proxy in front of it.
pub(crate) fn port(url: &str) -> u16 {
    url::Url::parse(url).unwrap().port().unwrap()
}

/// A sandbox with extra faults.
pub(crate) async fn sandbox(faults: &str) -> Running {
    let world = World::from_toml(&format!("{DEFAULT_WORLD}\n{faults}")).unwrap();
    Sandbox::new(world, Options::default()).bind(([127, 0, 0, 1], 0).into()).await.unwrap()
}

/// Runs `errand` to its end with nothing in the environment but `env`.
pub(crate) fn run(args: &[&str], env: &[(String, String)]) -> Output {
    command(args, env).stdin(Stdio::null()).output().unwrap()
}

fn command(args: &[&str], env: &[(String, String)]) -> Command {
    command_of(&[], args, env)
}

/// The same, started by a program that gives its place to it, such as `prlimit`.
fn command_of(starter: &[&str], args: &[&str], env: &[(String, String)]) -> Command {
    let words = [starter, &[env!("CARGO_BIN_EXE_errand")], args].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_clear().envs(env.iter().cloned());
    // A folder without an errand.toml, so that nobody's own settings leak into a test.
    command.current_dir(std::env::temp_dir());
    command
}

/// A running `errand`. Killed when it is dropped.
///
/// It logs to a file and not to a pipe: what it logged before anything that a test sees of it, such as an answer or a
/// metric, is there to be read.
pub(crate) struct Process {
    child: Child,
    log: File,
}

impl Process {
    pub(crate) fn start(args: &[&str], env: &[(String, String)]) -> Self {
        Self::start_by(&[], args, env)
    }

    /// Started as `nohup` does it.
    pub(crate) fn start_ignoring_hangups(args: &[&str], env: &[(String, String)]) -> Self {
        Self::start_by(&["/bin/sh", "-c", r#"trap "" HUP; exec "$0" "$@""#], args, env)
    }

    /// Started by a program that gives its place to it, such as `prlimit`.
    pub(crate) fn start_by(starter: &[&str], args: &[&str], env: &[(String, String)]) -> Self {
        let log = tempfile::tempfile_in(memory()).unwrap();
        let child = command_of(starter, args, env)
            .env("ERRAND__LOG__FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Sets a limit of the running process, as `prlimit` does.
    pub(crate) fn limit(&self, limit: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, limit]).status().unwrap();
        assert!(status.success(), "prlimit {limit}");
    }

    /// The most memory that it has had at once so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The lines that it has logged so far.
    pub(crate) fn log(&self) -> String {
        let mut log = vec![0; self.log.metadata().unwrap().len() as usize];
        self.log.read_exact_at(&mut log, 0).unwrap();
        log.truncate(log.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
        String::from_utf8(log).unwrap()
    }

    /// The lines that say exactly this, with their fields.
    pub(crate) fn lines(&self, message: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }

    /// The lines of which the message begins like this.
    pub(crate) fn lines_like(&self, beginning: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["message"].as_str().is_some_and(|said| said.starts_with(beginning)))
            .collect()
    }

    /// Waits until a line contains `text`, which is what the test is about or what scripts rely on. For anything
    /// else there is a state, a metric or the store.
    pub(crate) async fn logged(&self, text: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(tokio::time::Instant::now() < deadline, "`{text}` was not logged:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// The address of its metrics and health, from its log.
    pub(crate) async fn address(&self) -> std::net::SocketAddr {
        const SERVED: &str = "metrics and health are served";
        self.logged(SERVED).await;
        self.lines(SERVED)[0]["address"].as_str().unwrap().parse().unwrap()
    }

    /// Its metrics, as text.
    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.address().await);
        support::http::client().get(url).send().await.unwrap().text().await.unwrap()
    }

    /// The value of a series in its metrics, written with its labels; 0 as long as there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a series has at least this value.
    pub(crate) async fn metric_reaches(&self, series: &str, value: f64) {
        until(&format!("{series} of at least {value}"), PATIENCE, async || {
            (self.metric(series).await >= value).then_some(())
        })
        .await;
    }

    /// The sum of all series of a metric.
    pub(crate) async fn metric_sum(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        let series =
            metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|s| s.starts_with('{')));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// What `/health/ready` says. Its status says the same.
    pub(crate) async fn readiness(&self) -> Value {
        let url = format!("http://{}/health/ready", self.address().await);
        let answer = support::http::client().get(url).send().await.unwrap();
        let status = answer.status();
        let readiness: Value = answer.json().await.unwrap();
        assert_eq!(readiness["ready"], status == 200);
        readiness
    }

    /// Waits until it is ready, or not ready.
    pub(crate) async fn becomes_ready(&self, ready: bool) {
        until(&format!("ready = {ready}"), PATIENCE, async || {
            (self.readiness().await["ready"] == ready).then_some(())
        })
        .await;
    }

    /// Waits until it is in a phase of its life.
    pub(crate) async fn in_phase(&self, phase: &str) {
        until(&format!("phase {phase}"), PATIENCE, async || {
            (self.readiness().await["phase"] == phase).then_some(())
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, by the name that the shell has for it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "errand does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- log of errand ---\n{}", self.log());
        }
    }
}

/// The Python with the packages of `tests/run`.
pub(crate) fn python_path() -> String {
    std::env::var("ERRAND_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Runs a script of this folder with these packages, and gives it and gets from it JSON.
pub(crate) async fn python(script: &str, asked: Value) -> Value {
    let python = python_path();
    let script = format!("{}/tests/it/{script}", env!("CARGO_MANIFEST_DIR"));
    let run = move || {
        let mut child = Command::new(&python)
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a Python with packages; tests/run makes one");
        child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{script} failed; tests/run makes its Python with packages");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}
