//! A backup of the database that is put back later, with the tools of PostgreSQL: what `docs/backup.md` says of it.

use std::process::Command;

use errand_testbed::factory::{Envelope as _, read, send};
use serde_json::Value;

use crate::{
    harness::{Harness, PATIENCE},
    support::wait::until,
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
