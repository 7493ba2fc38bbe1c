//! A short benchmark of the HTTP API, whose figures mean nothing.

use std::process::{Command, Stdio};

use errand_testbed::support;
use serde_json::Value;

const SHORT: [&str; 20] = [
    "bench-api",
    "--json",
    "--rounds",
    "1",
    "--secs",
    "1",
    "--connections",
    "4",
    "--batches",
    "1",
    "--waiters",
    "20",
    "--streams",
    "20",
    "--wait-secs",
    "4",
    "--finished",
    "2000",
    "--reads=1",
    "--callbacks=200",
];

#[tokio::test(flavor = "multi_thread")]
async fn each_figure_of_the_api_is_measured_and_nothing_is_left_behind() {
    let (database, vhost) = tokio::join!(support::database("bench-api"), support::vhost("bench-api"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand-lab"));
    command.args(SHORT).env_clear().stdin(Stdio::null()).current_dir(std::env::temp_dir());
    command.env("DATABASE_URL", &database.url).env("AMQP_URL", &vhost.amqp_url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for figure in ["enqueue", "batches"] {
        let ratio = &report[figure]["ratio"];
        assert_eq!(ratio["count"], 1, "{report}");
        assert!(ratio["median"].as_f64().unwrap() > 0.0, "{report}");
    }
    let beside = &report["callbacks"]["ratio"];
    assert!(beside["median"].as_f64().unwrap() > 0.0, "{report}");
    let p99 = &report["enqueue"]["latency"]["p99"];
    assert!(p99["median"].as_f64().unwrap() > 0.0, "{report}");
    for figure in ["waiters", "streams"] {
        assert!(report[figure]["bytes_each"].as_f64().is_some(), "{report}");
    }
    let lists = report["lists"]["lists"].as_array().unwrap();
    let list = |end: &str| lists.iter().find(|list| list["path"].as_str().unwrap().ends_with(end)).unwrap();
    assert_eq!(list("/v1/jobs?")["items"], 50);
    assert_eq!(list("/v1/jobs?tool=NO_TOOL")["items"], 0);
    assert_eq!(list("&batch=0190b0a0-0000-7000-8000-000000000001")["items"], 2);

    let mut connection = database.connect().await.unwrap();
    let schemas = "select count(*) from pg_namespace where nspname like 'errand%'";
    let left: i64 = sqlx::query_scalar(schemas).fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 0);
}
