//! A backup of the database that is put back later, with the tools of PostgreSQL: what `docs/backup.md` says of it.

use std::process::Command;

use errand::{
    job::{Pin, Principal},
    store::{
        Admin as _, Decider, Pins as _, Schema,
        postgres::{PostgresOptions, PostgresStore},
    },
};
use errand_testbed::factory::{Envelope as _, read, send};
use serde_json::Value;
use sqlx::Executor as _;

use crate::{
    harness::{Harness, PATIENCE},
    store_contract::postgres_options,
    support::{self, postgres::Database, wait::until},
};

fn postgres_tool(name: &str, args: &[&str]) {
    let output = Command::new(name).args(args).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

fn enqueue(harness: &Harness, jobs: &[Value]) {
    let file = harness.journal_dir().with_file_name("jobs.json");
    let lines: String = jobs.iter().map(|job| format!("{}\n", job.clone().with("queue", "bulk"))).collect();
    std::fs::write(&file, lines).unwrap();
    assert!(harness.errand(&["enqueue-bulk", file.to_str().unwrap()]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_only_what_the_backup_does_not_know_as_done_runs_again_and_cancelling_keeps_it_from_that()
 {
    let harness = Harness::new("backup", "").await;
    let only =
        |lane: &'static str| [("ERRAND__WORKER__QUEUES", lane), ("ERRAND__RELAY__UNCLAIMED_SECS", "1")];
    let mut worker = harness.worker(&only("default")).await;
    let done: Vec<Value> = (0..5).map(|_| send("user-1")).collect();
    harness.publish(&done).await;
    harness.settled(5).await;
    let waiting = [send("user-1"), send("user-1")];
    enqueue(&harness, &waiting);
    let file = harness.journal_dir().with_file_name("backup.dump");
    let file = file.to_str().unwrap();
    postgres_tool("pg_dump", &["--format=custom", "--file", file, &harness.database.url]);

    // What the backup does not know: that the two ran, a job of an app, and one that waits with its message.
    let later = read("user-2");
    harness.publish(std::slice::from_ref(&later)).await;
    harness.settled(6).await;
    worker.stop().await;
    let mut worker = harness.worker(&only("bulk")).await;
    harness.settled(8).await;
    worker.stop().await;
    let unknown = send("user-2");
    enqueue(&harness, std::slice::from_ref(&unknown));
    assert_eq!(harness.sandbox.ledger_summary().calls, 8);

    postgres_tool("pg_restore", &["--clean", "--if-exists", "--dbname", &harness.database.url, file]);
    assert!(harness.errand(&["migrate", "--check"]).status.success());
    assert_eq!(harness.errand(&["audit"]).status.code(), Some(0));
    assert_eq!(harness.errand(&["jobs", "show", later.id()]).status.code(), Some(1));
    assert_eq!(harness.count("state = 'available'").await, 2);
    // A person knows of one that it ran.
    assert!(harness.errand(&["jobs", "cancel", waiting[0].id()]).status.success());
    let everything = [("ERRAND__RELAY__UNCLAIMED_SECS", "1")];
    let _worker = harness.worker(&everything).await;
    harness.job_in(waiting[1].id(), &["succeeded"]).await;
    until("the message without a row to be kept", PATIENCE, async || {
        (harness.text("select reason from rejected").await.as_deref() == Some("unknown_job")).then_some(())
    })
    .await;
    assert_eq!(harness.settled(7).await, [("cancelled".to_owned(), 1), ("succeeded".to_owned(), 6)]);
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.jobs_repeated), (9, 1), "{ledger:?}");
    // An app that publishes again what it knows of has it run again.
    harness.publish(&[later.clone(), done[0].clone()]).await;
    harness.job_in(later.id(), &["succeeded"]).await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 10, "what the backup knows as done does not run");
}

fn store(database: &Database, schema: &str) -> PostgresStore {
    let options = postgres_options(&database.url);
    PostgresStore::new(PostgresOptions { schema: schema.parse().unwrap(), ..options }).unwrap()
}

async fn pin(store: &PostgresStore) {
    store.migrate().await.unwrap();
    let pin = Pin { owner: None, toolkit: "gmail".into(), version: "20251001_00".into() };
    store.set_pin(&Principal::Operator, &pin, &Decider::at_command_line("a test")).await.unwrap();
}

async fn execute(database: &Database, sql: &'static str) {
    database.connect().await.unwrap().execute(sql).await.unwrap();
}

/// A file for a dump, in a folder that goes with it.
fn dump() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("errand.dump").display().to_string();
    (folder, file)
}

const RESTORE: [&str; 3] = ["--clean", "--if-exists", "--dbname"];

#[tokio::test]
async fn of_a_shared_database_errands_schema_alone_is_restored_there_and_into_a_new_one() {
    let database = support::database("backup-shared").await;
    let errand = store(&database, "errand");
    pin(&errand).await;
    execute(&database, "create table public.orders (id int)").await;
    let (_folder, file) = dump();
    postgres_tool("pg_dump", &["--format=custom", "--schema", "errand", "--file", &file, &database.url]);
    execute(&database, "delete from errand.pins; insert into public.orders values (1)").await;
    errand.close().await;
    let new = support::database("backup-new").await;
    for database in [&database, &new] {
        postgres_tool("pg_restore", &[&RESTORE[..], &[&database.url, &file]].concat());
        let restored = store(database, "errand");
        assert_eq!(restored.schema().await.unwrap(), Schema::Current);
        assert_eq!(restored.pins().await.unwrap().len(), 1);
    }
    let mut db = database.connect().await.unwrap();
    let orders: i64 =
        sqlx::query_scalar("select count(*) from public.orders").fetch_one(&mut db).await.unwrap();
    assert_eq!(orders, 1, "what others have is as it was");
}

#[tokio::test]
async fn a_backup_from_before_the_move_is_restored_and_moves_again() {
    let database = support::database("backup-before").await;
    let public = store(&database, "public");
    pin(&public).await;
    public.close().await;
    let (_folder, file) = dump();
    postgres_tool("pg_dump", &["--format=custom", "--file", &file, &database.url]);
    let errand = store(&database, "errand");
    errand.move_from("public").await.unwrap();
    execute(&database, "delete from errand.pins").await;
    // What docs/backup.md says to do before.
    execute(&database, "drop schema errand cascade").await;
    postgres_tool("pg_restore", &[&RESTORE[..], &[&database.url, &file]].concat());
    let in_public = Schema::Elsewhere { schema: "public".to_owned(), can_stay: true };
    assert_eq!(errand.schema().await.unwrap(), in_public);
    errand.move_from("public").await.unwrap();
    assert_eq!(errand.schema().await.unwrap(), Schema::Current);
    assert_eq!(errand.pins().await.unwrap().len(), 1);
}
