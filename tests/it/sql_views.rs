//! The views that others read by SQL: their columns, what they show, and who may read them.

use std::collections::BTreeSet;

use errand_testbed::factory::{Envelope as _, read, send};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _, SqliteConnection};

use crate::{harness::Harness, support};

const DOCS: &str = include_str!("../../docs/sql.md");
const READ_ONLY: &str = include_str!("../../deploy/postgres/read_only.sql");

/// Keys of a job's JSON that no list has: contents, what was asked for where another column has what the job got, and what
/// is about its message, its queue, its look-ups and its worker.
const NOT_IN_LISTS: &[&str] = &[
    "result",
    "attempts",
    "history",
    "known_as",
    "asked_effect",
    "asked_version",
    "asked_connected_account_id",
    "timeout_ms",
    "max_attempts",
    "max_age_ms",
    "idempotency_key",
    "worker",
    "publications",
    "queue_paused_since",
    "cancel_requested",
    "request_id",
    "check_at",
    "checks",
    "unknown_since",
    "reply_to",
    "publisher",
    "correlation_id",
    "message_id",
    "traceparent",
    "callback",
];

/// The columns of a view by the page about them, with their types.
fn documented(view: &str) -> Vec<(String, String)> {
    let section = DOCS.split_once(&format!("\n## {view}\n")).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, rest)| (name.to_owned(), rest.split(" |").next().unwrap().to_owned())).collect()
}

/// The keys of an object as a view has them: `owner.id` is `owner_id`. What has contents is in no list.
fn columns_of(json: &Value) -> BTreeSet<String> {
    let own = |key: &str| !NOT_IN_LISTS.contains(&key);
    let mut columns = BTreeSet::new();
    for (key, value) in json.as_object().unwrap().iter().filter(|(key, _)| own(key)) {
        match (key.as_str(), value.as_object()) {
            ("error", _) => columns.extend(["error_kind", "error_code", "error_slug"].map(str::to_owned)),
            ("tags", _) => drop(columns.insert(key.clone())),
            (_, Some(inner)) => columns.extend(inner.keys().map(|inner| format!("{key}_{inner}"))),
            _ => drop(columns.insert(key.clone())),
        }
    }
    columns
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_have_the_columns_that_are_documented_and_those_of_the_json() {
    let harness = Harness::new("views", "").await;
    let _worker = harness.worker(&[]).await;
    let refused = read("user-1").with("tool", "GITHUB_NO_SUCH_TOOL").with("max_attempts", 1);
    let jobs = [send("user-1").with("tags", serde_json::json!({"team": "a"})), refused];
    harness.publish(&jobs).await;
    harness.settled(2).await;

    let sqlite = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", sqlite.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url.clone())];
    assert!(crate::harness::run(&["migrate"], &env).status.success());
    let mut sqlite = SqliteConnection::connect(&url).await.unwrap();
    for view in ["job_list", "attempt_list", "job_contents"] {
        let columns = format!(
            "select string_agg(attname || ' ' || format_type(atttypid, null), ',' order by attnum) from pg_attribute
            where attrelid = 'errand.{view}'::regclass and attnum > 0"
        );
        let columns =
            harness.text(&columns).await.unwrap().replace("timestamp with time zone", "timestamptz");
        let written = documented(view);
        let written: Vec<String> = written.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        assert_eq!(columns.split(',').collect::<Vec<_>>(), written, "{view}");
        let table = format!("select name from pragma_table_info('{view}')");
        let same = sqlite.fetch_all(AssertSqlSafe(table)).await.unwrap();
        let same: Vec<String> = same.iter().map(|row| row.get(0)).collect();
        assert!(same.iter().eq(documented(view).iter().map(|(name, _)| name)), "{view}: {same:?}");
    }

    let names = |view| documented(view).into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
    for job in &jobs {
        let shown = harness.show(job.id());
        assert!(columns_of(&shown).is_subset(&names("job_list")), "{shown}");
        for attempt in shown["attempts"].as_array().unwrap() {
            assert!(columns_of(attempt).is_subset(&names("attempt_list")), "{attempt}");
        }
        let row = format!("select row_to_json(j)::text from errand.job_list j where id = '{}'", job.id());
        let row: Value = serde_json::from_str(&harness.text(&row).await.unwrap()).unwrap();
        for key in
            ["id", "state", "tool", "toolkit", "version", "pinned_by", "connected_account_id", "log_id"]
        {
            assert_eq!(row[key], shown[key], "{key} of {row}");
        }
        assert_eq!((&row["owner_kind"], &row["owner_id"]), (&shown["owner"]["kind"], &shown["owner"]["id"]));
        assert_eq!(row["error_kind"], shown["error"]["kind"]);
    }
    // The first attempt that succeeds is in no row of the table.
    let first = format!(
        "select number || outcome || http_status || (log_id is not null) from errand.attempt_list where job_id = '{}'",
        jobs[0].id()
    );
    assert_eq!(harness.text(&first).await.as_deref(), Some("1succeeded200true"));
    let tagged = "select count(*)::text from errand.job_list where tags ->> 'team' = 'a'";
    assert_eq!(harness.text(tagged).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_of_sqlite_show_ids_and_times_as_the_json_does() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url.clone())];
    assert!(crate::harness::run(&["migrate"], &env).status.success());
    let args = ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-1", "--args", "{}", "--json"];
    assert!(crate::harness::run(&args, &env).status.success());
    let listed = crate::harness::run(&["jobs", "list", "--json"], &env);
    let listed: Value = serde_json::from_slice(listed.stdout.split(|b| *b == b'\n').next().unwrap()).unwrap();
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    let row = db.fetch_one("select id, created_at, owner_id, state from job_list").await.unwrap();
    let text = |at: usize| row.get::<String, _>(at);
    assert_eq!((Some(&*text(0)), Some(&*text(3))), (listed["id"].as_str(), listed["state"].as_str()));
    assert_eq!(text(2), "u-1");
    let shown = listed["created_at"].as_str().unwrap();
    assert_eq!(text(1).parse::<Timestamp>().unwrap(), shown.parse().unwrap());

    // A time is exact, and sorts as text, whatever its digits are.
    for (micros, written) in [
        (1_767_225_600_000_000_i64, "2026-01-01T00:00:00.000000Z"),
        (1_767_225_600_000_001, "2026-01-01T00:00:00.000001Z"),
        (1_767_225_609_129_999, "2026-01-01T00:00:09.129999Z"),
        (1_767_225_659_999_999, "2026-01-01T00:00:59.999999Z"),
    ] {
        db.execute(AssertSqlSafe(format!("update jobs set created_at = {micros}"))).await.unwrap();
        let row = db.fetch_one("select created_at from job_list").await.unwrap();
        assert_eq!(row.get::<String, _>(0), written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_read_only_role_reads_the_lists_and_nothing_else() {
    let harness = Harness::new("viewer", "").await;
    let worker = harness.worker(&[]).await;
    harness.publish(&[send("user-1")]).await;
    harness.settled(1).await;
    for _ in 0..2 {
        harness.execute(READ_ONLY).await;
    }
    let url = harness.database.url.replace("//errand@", "//errand_viewer@");
    let mut viewer = support::postgres::connect(&url).await.unwrap();
    for view in ["errand.job_list", "errand.attempt_list"] {
        let count = format!("select count(*) from {view}");
        assert_eq!(viewer.fetch_one(AssertSqlSafe(count)).await.unwrap().get::<i64, _>(0), 1, "{view}");
    }
    for sql in [
        "select * from errand.job_contents",
        "select * from errand.jobs",
        "select * from errand.attempts",
        "select * from errand._sqlx_migrations",
        "delete from errand.job_list",
        "update errand.job_list set queue = 'x'",
        "create table errand.mine (id int)",
    ] {
        let error = viewer.execute(sql).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{sql}: {error}");
    }
    drop(worker);
}
