//! The two pairs of backends with the real binary: RabbitMQ with PostgreSQL, and the in-process queue with SQLite.

use std::{collections::BTreeMap, process::Output};

use errand_sandbox::Running;
use errand_testbed::scripted_api::ScriptedApi;
use lapin::BasicProperties;
use serde_json::{Value, value::RawValue};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use tempfile::TempDir;

use crate::{
    harness::{Harness, PATIENCE, Process, run, sandbox},
    support::wait::until,
};

/// A worker on one pair, with a scripted API in front of its sandbox.
pub(super) struct Backends {
    pub(super) front: ScriptedApi,
    pub(super) worker: Process,
    pub(super) place: Place,
    env: Vec<(String, String)>,
    /// For the files of bulk jobs, and for SQLite.
    folder: TempDir,
}

pub(super) enum Place {
    Services(Box<Harness>),
    Embedded(Running),
}

const SETTINGS: [(&str, &str); 8] = [
    ("COMPOSIO_API_KEY", "ak_test_good"),
    ("COMPOSIO_TOOLKIT_VERSION_GITHUB", "20251027_00"),
    ("ERRAND__TOOLKIT_VERSIONS__GMAIL", "20251112_00"),
    ("ERRAND__RETRY__INITIAL_MS", "50"),
    ("ERRAND__RETRY__MAX_MS", "200"),
    ("ERRAND__RELAY__POLL_MS", "100"),
    ("ERRAND__RESCUE__POLL_SECS", "1"),
    ("ERRAND__VERIFY__ENABLED", "false"),
];

impl Backends {
    pub(super) async fn services(hint: &str, settings: &[(&str, &str)]) -> Self {
        let harness = Harness::new(hint, "").await;
        let front = ScriptedApi::in_front_of(&harness.sandbox.base_url()).await;
        let mut env = harness.env();
        env.extend(owned(&SETTINGS));
        env.push(("COMPOSIO_BASE_URL".into(), front.url()));
        env.extend(owned(settings));
        let worker = Process::start(&["worker", "--listen", "127.0.0.1:0"], &env);
        worker.logged("worker ready").await;
        let folder = tempfile::tempdir().unwrap();
        Self { front, worker, place: Place::Services(Box::new(harness)), env, folder }
    }

    pub(super) async fn embedded(_hint: &str, settings: &[(&str, &str)]) -> Self {
        let sandbox = sandbox("").await;
        let front = ScriptedApi::in_front_of(&sandbox.base_url()).await;
        let folder = tempfile::tempdir().unwrap();
        let mut env = owned(&SETTINGS);
        env.push(("COMPOSIO_BASE_URL".into(), front.url()));
        env.extend(owned(settings));
        let data = folder.path().to_str().unwrap();
        let worker = Process::start(
            &["dev", "--real", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"],
            &env,
        );
        worker.logged("worker ready").await;
        env.push(("DATABASE_URL".into(), format!("sqlite://{data}/errand.db")));
        Self { front, worker, place: Place::Embedded(sandbox), env, folder }
    }

    /// Publishes envelopes, where there is a broker, and enqueues them elsewhere.
    pub(super) async fn submit(&self, jobs: &[String]) {
        match &self.place {
            Place::Services(harness) => {
                let bodies: Vec<Vec<u8>> = jobs.iter().map(|job| job.clone().into_bytes()).collect();
                harness.publish_raw(&bodies, BasicProperties::default().with_delivery_mode(2)).await;
            }
            Place::Embedded(_) => {
                let output = self.bulk(jobs);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    /// Enqueues envelopes from a file.
    pub(super) fn bulk(&self, jobs: &[String]) -> Output {
        let file = self.folder.path().join("jobs.jsonl");
        std::fs::write(&file, jobs.join("\n")).unwrap();
        self.errand(&["enqueue-bulk", file.to_str().unwrap()])
    }

    pub(super) fn errand(&self, args: &[&str]) -> Output {
        run(args, &self.env)
    }

    /// What a command prints, which must succeed.
    pub(super) fn says(&self, args: &[&str]) -> String {
        let output = self.errand(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a job is in one of these states, and shows it without its result, which this test's own
    /// decoder may not understand.
    pub(super) async fn job_in(&self, id: &str, states: &[&str]) -> Value {
        until(&format!("job {id} in {states:?}"), PATIENCE, async || {
            let output = self.errand(&["jobs", "show", id, "--json"]);
            let mut shown: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&output.stdout).ok()?;
            shown.remove("result");
            let shown: Value = serde_json::from_str(&serde_json::to_string(&shown).ok()?).ok()?;
            states.contains(&shown["state"].as_str()?).then_some(shown)
        })
        .await
    }

    /// Does what errand never does.
    pub(super) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Services(harness) => {
                harness.database.connect().await.unwrap().execute(sql).await.unwrap();
            }
            Place::Embedded(_) => {
                let url = format!("sqlite://{}/errand.db", self.folder.path().display());
                SqliteConnection::connect(&url).await.unwrap().execute(sql).await.unwrap();
            }
        }
    }

    /// A UUID as it stands in a statement.
    pub(super) fn literal(&self, id: &str) -> String {
        match &self.place {
            Place::Services(_) => format!("'{id}'"),
            Place::Embedded(_) => format!("x'{}'", id.replace('-', "")),
        }
    }

    /// Effects that the job has had.
    pub(super) fn effects(&self, job: &str) -> u32 {
        match &self.place {
            Place::Services(harness) => harness.sandbox.job_effects(job),
            Place::Embedded(sandbox) => sandbox.job_effects(job),
        }
    }

    /// The sum of the series of a metric whose labels contain `labels`.
    pub(super) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let metrics = self.worker.metrics().await;
        let series = metrics.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until it has this value. What is counted is so after it was written.
    pub(super) async fn metric_is(&self, name: &str, labels: &str, value: f64) {
        let known = async || (self.metric(name, labels).await == value).then_some(());
        until(&format!("{name} of {value}"), PATIENCE, known).await;
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
