//! How long entries of the audit log are kept: `retention.audit_log_days`, by the real binary on either database.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use tempfile::TempDir;

use crate::{
    access_keys::made,
    harness::{Harness, PATIENCE, Process, in_memory, run},
    support::{machine::free_port, wait::until},
};

type Env = Vec<(String, String)>;

const DAYS: &str = "ERRAND__RETENTION__AUDIT_LOG_DAYS";

/// Rounds that follow each other quickly, and keep entries for a month.
const QUICK: [(&str, &str); 2] = [("ERRAND__RETENTION__EVERY_SECS", "1"), (DAYS, "30")];

/// A database with errand's tables.
enum Database {
    Postgres(Box<Harness>),
    /// In a file of this folder, as that of `errand dev` is.
    Sqlite(TempDir),
}

impl Database {
    async fn postgres() -> Self {
        Self::Postgres(Box::new(Harness::new("audit-log-days", "").await))
    }

    fn sqlite() -> Self {
        let database = Self::Sqlite(in_memory("errand-audit-log-days-"));
        assert!(run(&["migrate"], &database.env()).status.success());
        database
    }

    fn env(&self) -> Env {
        match self {
            Self::Postgres(harness) => harness.env(),
            Self::Sqlite(folder) => vec![("DATABASE_URL".to_owned(), url(folder))],
        }
    }

    /// A worker of it that is ready.
    async fn worker(&self) -> Process {
        match self {
            Self::Postgres(harness) => harness.worker(&QUICK).await,
            Self::Sqlite(folder) => {
                let (data, sandbox) = (folder.path().to_str().unwrap(), format!("127.0.0.1:{}", free_port()));
                let args = ["dev", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
                let settings = QUICK.map(|(name, value)| (name.to_owned(), value.to_owned()));
                let process =
                    Process::start(&[&args[..], &["--sandbox-listen", &sandbox]].concat(), &settings);
                process.logged("worker ready").await;
                process
            }
        }
    }

    /// Makes the entries older that somebody has made.
    async fn age(&self, by: &str, days: u32) {
        match self {
            Self::Postgres(harness) => {
                let sql =
                    format!("update changes set at = at - interval '{days} days' where decider = '{by}'");
                harness.execute(&sql).await;
            }
            Self::Sqlite(folder) => {
                // Times are microseconds.
                let sql = format!("update changes set at = at - {days} * 86400000000 where decider = '{by}'");
                let mut connection = SqliteConnection::connect(&url(folder)).await.unwrap();
                connection.execute(AssertSqlSafe(sql)).await.unwrap();
            }
        }
    }

    /// Who has made the entries that there are, in alphabetical order.
    fn makers(&self) -> Vec<String> {
        let output = run(&["audit-log", "--json"], &self.env());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let maker = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap();
            entry["by"].as_str().unwrap().to_owned()
        };
        let mut makers: Vec<String> = text.lines().map(maker).collect();
        makers.sort();
        makers
    }

    /// Waits until these are all that are left.
    async fn keeps(&self, makers: &[&str]) {
        until(&format!("{makers:?} to be left"), PATIENCE, async || (self.makers() == makers).then_some(()))
            .await;
    }

    /// A round by hand, with this setting or the default.
    fn prune(&self, days: Option<&str>, args: &[&str]) {
        let mut env = self.env();
        env.extend(days.map(|days| (DAYS.to_owned(), days.to_owned())));
        let output = run(&[&["prune"], args].concat(), &env);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn old_entries_go_and_young_ones_stay(&self) {
        const ALL: [&str; 3] = ["ann", "ben", "eve"];
        for by in ALL {
            made(&self.env(), &["--operator", "--scope", "read", "--by", by]);
        }
        self.age("ann", 31).await;
        self.age("ben", 29).await;
        // 0 is for ever, a dry run removes nothing, and the default is more than a year.
        self.prune(Some("0"), &[]);
        self.prune(Some("30"), &["--dry-run"]);
        self.prune(None, &[]);
        assert_eq!(self.makers(), ALL);

        let mut worker = self.worker().await;
        self.keeps(&["ben", "eve"]).await;
        self.age("ben", 2).await;
        self.keeps(&["eve"]).await;
        assert!(worker.stop().await.success(), "{}", worker.log());

        self.age("eve", 399).await;
        self.prune(None, &[]);
        assert_eq!(self.makers(), ["eve"], "the default is 400 days");
        self.age("eve", 2).await;
        self.prune(None, &[]);
        assert!(self.makers().is_empty());
    }
}

fn url(folder: &TempDir) -> String {
    format!("sqlite://{}", folder.path().join("errand.db").display())
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_after_their_days_and_younger_ones_stay_with_postgresql() {
    Database::postgres().await.old_entries_go_and_young_ones_stay().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_after_their_days_and_younger_ones_stay_with_sqlite() {
    Database::sqlite().old_entries_go_and_young_ones_stay().await;
}
