//! What is kept for long enough is removed, whatever becomes of the removal of other data.

use std::time::Duration;

use errand::{
    job::EnvelopeReason,
    maintenance::prune::{JobRetention, Options, Prune},
    store::{ActionDecision, Rejected},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    OPERATOR, TestStore,
    actions::new_action,
    batches::{batch, new, specs},
    callbacks::{DAY, URL, owner},
    deliveries::{HOUR, delivery, ids, job_of},
    events::{WHO, all},
    job, on_every_backend,
};

/// What has rows of its own that are removed.
const TABLES: [&str; 7] = ["jobs", "batches", "actions", "changes", "events", "rejected", "deliveries"];

impl TestStore {
    /// Makes something of each kind that is old enough.
    async fn grow_old(&self) {
        let spec = job(json!({}));
        self.insert(&spec).await;
        self.store.cancel(WHO, spec.id, OPERATOR).await.unwrap();
        new(self.store.add_batch(&batch(WHO), &specs(1)).await.unwrap());
        self.store.make_action(WHO, &new_action(ActionDecision::Cancel), HOUR).await.unwrap();
        let message = Rejected {
            id: Uuid::now_v7(),
            queue: "default".parse().unwrap(),
            reason: EnvelopeReason::Malformed,
            message: "no".into(),
            body: b"no job".to_vec(),
            properties: "{}".into(),
            job: None,
            asked: None,
        };
        self.store.reject(&[message]).await.unwrap();
        let sent = [delivery(&owner("user:a"), URL, job_of(1), 1)];
        self.store.add_deliveries(&sent).await.unwrap();
        self.give_up(&ids(&sent)).await;
        // They have their place in the order of events.
        all(self).await;

        // The job of the batch waits, and is never over.
        self.execute("delete from jobs where finished_at is null").await;
        let long_ago = if self.is_postgres() { "timestamptz 'epoch'" } else { "0" };
        for (table, columns) in [
            ("jobs", &["created_at", "finished_at"][..]),
            ("batches", &["created_at", "completed_at"]),
            ("actions", &["expires_at"]),
            ("changes", &["at"]),
            ("events", &["at"]),
            ("rejected", &["received_at"]),
            ("deliveries", &["finished_at"]),
        ] {
            let set: Vec<_> = columns.iter().map(|column| format!("{column} = {long_ago}")).collect();
            self.execute(&format!("update {table} set {}", set.join(", "))).await;
        }
    }

    /// The tables that have rows.
    async fn filled(&self) -> Vec<&'static str> {
        let mut filled = Vec::new();
        for table in TABLES {
            if self.count(&format!("select count(*) from {table}")).await > 0 {
                filled.push(table);
            }
        }
        filled
    }
}

on_every_backend!(what_cannot_be_removed_keeps_nothing_else_from_being_removed, async |t| {
    let age: Option<Duration> = Some(DAY);
    let jobs = JobRetention { succeeded: age, failed: age, cancelled: age };
    let options =
        Options { jobs, rejected_for: age, changes_for: age, events_for: age, ..Options::default() };
    let prune = Prune::new(t.store.clone(), options);
    for kept in TABLES {
        t.grow_old().await;
        assert_eq!(t.filled().await, TABLES);
        // Jobs go with their histories.
        let away = if kept == "jobs" { "job_history" } else { kept };
        t.execute(&format!("alter table {away} rename to away")).await;
        let round = prune.run_once().await;
        t.execute(&format!("alter table away rename to {away}")).await;
        assert!(round.is_err(), "{kept}: {round:?}");
        assert_eq!(t.filled().await, [kept], "all else is removed");
        prune.run_once().await.unwrap();
        assert!(t.filled().await.is_empty(), "{kept} is removed, too");
    }
});
