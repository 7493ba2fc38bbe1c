//! What a job's own time says right before its call, whatever took so long before.

use errand_testbed::factory::{Envelope as _, send};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::harness::Harness;

/// Recording what a job is bound to takes longer than the time of the jobs below.
const SLOW: &str = "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(9); return new; end $$;
    create trigger slow before update on jobs for each row
    when (old.toolkit is null and new.toolkit is not null) execute function slow()";
const TIME: SignedDuration = SignedDuration::from_secs(6);

/// A job that is in time when it is claimed, and too late when it could be called.
async fn is_claimed_and_not_called(job: impl FnOnce() -> Value) {
    let harness = Harness::new("expiry", "").await;
    let _worker = harness.worker(&[]).await;
    harness.execute(SLOW).await;
    let job = job();
    let id = job.id().to_owned();
    harness.publish(&[job]).await;
    let shown = harness.job_in(&id, &["failed", "succeeded"]).await;
    assert_eq!((&shown["state"], &shown["error"]["kind"]), (&json!("failed"), &json!("expired")), "{shown}");
    assert_eq!(shown["attempts"][0]["outcome"], "not_sent", "it was in time when it was claimed");
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_expires_before_its_call_is_not_called() {
    is_claimed_and_not_called(|| send("user-1").with("expires_at", (Timestamp::now() + TIME).to_string()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_grows_too_old_before_its_call_is_not_called() {
    is_claimed_and_not_called(|| send("user-1").with("max_age_ms", TIME.as_secs() * 1_000)).await;
}
