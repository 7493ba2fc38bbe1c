//! Calls whose outcome is unknown are looked up in the tool API's log: the real binary on real
//! services against the sandbox.

use std::time::Duration;

use errand_testbed::factory::{Envelope as _, id, post, send, spread};
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE},
    support::{http, wait::until},
};

/// A log that is asked early and often.
pub(crate) const QUICK: [(&str, &str); 7] = [
    ("ERRAND__VERIFY__ENABLED", "true"),
    ("ERRAND__VERIFY__POLL_MS", "100"),
    ("ERRAND__VERIFY__FIRST_MS", "100"),
    ("ERRAND__VERIFY__MAX_MS", "400"),
    ("ERRAND__VERIFY__BATCH", "50"),
    ("ERRAND__VERIFY__LOG_DELAY_SECS", "3"),
    ("ERRAND__VERIFY__GIVE_UP_SECS", "20"),
];

/// A call of another tool that succeeds, by which the log shows that it knows our request IDs.
async fn another_success(harness: &Harness) {
    let one = id();
    harness.publish(&[post("org-1").named(&one)]).await;
    harness.job_in(&one, &["succeeded"]).await;
}

/// The same, sent when all calls that are in doubt must have ended by what errand assumes: half of the time that the log
/// has, and this timeout, after their outcome became unknown.
async fn later_success(harness: &Harness, timeout: Duration) {
    let wait = (timeout + Duration::from_millis(1_500)).as_millis();
    until("the calls in doubt must have ended", PATIENCE, async || {
        let sql = format!("select (max(unknown_since) < now() - interval '{wait} ms')::text from jobs");
        (harness.text(&sql).await? == "true").then_some(())
    })
    .await;
    another_success(harness).await;
}

/// Makes the sandbox's logs late, lossy or closed.
pub(crate) async fn logs_are(harness: &Harness, settings: &Value) {
    let url = format!("{}/_sandbox/logs", harness.sandbox.base_url());
    let request = http::client().put(url).json(settings);
    request.send().await.unwrap().error_for_status().unwrap();
}

/// The only attempt of a job.
fn attempt(shown: &Value) -> &Value {
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{shown}");
    &attempts[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_has_is_taken_as_the_answer_that_did_not_arrive() {
    let faults = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";
    let harness = Harness::new("adopt", faults).await;
    logs_are(&harness, &json!({"delay_ms": 8000})).await;
    // A log that is late, and by less than it may be.
    let patient = [("ERRAND__VERIFY__LOG_DELAY_SECS", "20"), ("ERRAND__VERIFY__GIVE_UP_SECS", "60")];
    let worker = harness.worker(&[&QUICK[..], &patient].concat()).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    let shown = harness.job_in(&one, &["held"]).await;
    assert_eq!(
        (&shown["held_reason"], &attempt(&shown)["outcome"]),
        (&json!("unknown_outcome"), &json!("unknown"))
    );

    let shown = harness.job_in(&one, &["succeeded"]).await;
    assert!(shown["result"].is_object() && shown["error"].is_null(), "{shown}");
    assert!(shown["log_id"].is_string());
    assert_eq!(attempt(&shown)["outcome"], "succeeded");
    assert_eq!(attempt(&shown)["log_id"], shown["log_id"]);
    assert_eq!(harness.sandbox.job_effects(&one), 1);

    // Each look says what it found, and when the next one is.
    let looks = until("the last look is told", PATIENCE, async || {
        let looks = worker.lines("looked for a call in the execution log");
        (looks.last()?["result"] == "succeeded").then_some(looks)
    })
    .await;
    let (last, earlier) = looks.split_last().unwrap();
    assert_eq!((&last["result"], &last["why"]), (&json!("succeeded"), &json!("ended")), "{last}");
    assert_eq!((&last["log_id"], last.get("next_ms")), (&shown["log_id"], None));
    assert!(!earlier.is_empty() && earlier.iter().all(|look| look["next_ms"].is_u64()), "{earlier:?}");
    assert!(earlier.iter().all(|look| look["result"] == "again" && look["why"] == "absent"), "{earlier:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_never_arrived_is_made_again_once_the_log_has_settled() {
    let faults =
        "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = false\nfirst = 1\n";
    let harness = Harness::new("absent", faults).await;
    let _worker = harness.worker(&QUICK).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.job_in(&one, &["held"]).await;
    later_success(&harness, Duration::ZERO).await;
    let shown = harness.job_in(&one, &["succeeded"]).await;
    let outcomes: Vec<_> =
        shown["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].clone()).collect();
    assert_eq!(outcomes, ["not_sent", "succeeded"]);
    assert_eq!(harness.sandbox.job_effects(&one), 1);
    let waited = "select (extract(epoch from a2.started_at - a1.started_at) >= 3)::text \
                  from attempts a1 join attempts a2 on a2.job_id = a1.job_id and a2.number = 2 where a1.number = 1";
    assert_eq!(harness.text(waited).await.as_deref(), Some("true"), "not before the log had time to settle");
}

/// Held, and left to a person after the log was asked for as long as it is allowed.
async fn is_left_to_a_person(harness: &Harness, job: &str, evidence: &str) {
    until("a person has to decide", PATIENCE, async || {
        let sql = format!("select (state = 'held' and check_at is null)::text from jobs where id = '{job}'");
        (harness.text(&sql).await? == "true").then_some(())
    })
    .await;
    let shown = harness.show(job);
    let message = shown["error"]["message"].as_str().unwrap();
    assert!(message.contains(evidence) && message.contains("--succeeded"), "{message}");
    assert!(message.contains(attempt(&shown)["request_id"].as_str().unwrap()) || !evidence.contains("entry"));
    assert_eq!(harness.sandbox.job_effects(job), 1, "nothing was repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_entries_proves_nothing() {
    let faults = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\nfirst = 1\n";
    let harness = Harness::new("blind", faults).await;
    logs_are(&harness, &json!({"lose_rate": 1.0})).await;
    let _worker = harness.worker(&QUICK).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.job_in(&one, &["held"]).await;
    later_success(&harness, Duration::ZERO).await;
    is_left_to_a_person(&harness, &one, "proves nothing").await;
    let released = harness.errand(&["jobs", "release", &one, "--succeeded"]);
    assert!(released.status.success());
    assert_eq!(harness.show(&one)["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_stopped_since_proves_nothing() {
    let faults = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\nfirst = 1\n";
    let harness = Harness::new("stopped", faults).await;
    let _worker = harness.worker(&QUICK).await;
    another_success(&harness).await;
    logs_are(&harness, &json!({"delay_ms": 3_600_000})).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.job_in(&one, &["held"]).await;
    later_success(&harness, Duration::ZERO).await;
    is_left_to_a_person(&harness, &one, "proves nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_leaves_the_decision_to_a_person() {
    let faults = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";
    let harness = Harness::new("closed", faults).await;
    logs_are(&harness, &json!({"refuse_status": 503})).await;
    let worker = harness.worker(&QUICK).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    is_left_to_a_person(&harness, &one, "could not be read").await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_every_call_that_counts_is_made_once_and_every_job_ends() {
    // Slow enough that most of them are still to be done when the worker is killed.
    let faults = "[[fault]]\nkind = \"latency\"\nmin_ms = 200\nmax_ms = 600\n";
    let harness = Harness::new("verified", faults).await;
    let mut settings = QUICK.to_vec();
    settings.extend([
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20"),
        ("ERRAND__WORKER__LEASE_SECS", "5"),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__RESCUE__POLL_SECS", "1"),
        ("ERRAND__VERIFY__GIVE_UP_SECS", "60"),
        // The worker could live and still wait for its calls; the log settles after that.
        ("ERRAND__COMPOSIO__TIMEOUT_MS", "2000"),
        ("ERRAND__COMPOSIO__CONNECT_TIMEOUT_MS", "2000"),
    ]);
    let mut first = harness.worker(&settings).await;
    harness.publish(&spread(300, send)).await;
    until("the worker is in the middle of it", PATIENCE, async || {
        let done = harness.text("select count(*)::text from jobs where state = 'succeeded'").await?;
        (done.parse::<u32>().ok()? > 20).then_some(())
    })
    .await;
    first.kill9();
    assert_ne!(
        harness.text("select count(*)::text from jobs where state = 'running'").await.as_deref(),
        Some("0")
    );
    let dead = harness.text("select id::text from workers").await.unwrap();
    let _second = harness.worker(&settings).await;
    harness.counts(&format!("state = 'running' and worker_id = '{dead}'"), 0).await;
    // By this the log shows that it has not stopped since.
    later_success(&harness, Duration::from_secs(2)).await;
    harness.counts("state = 'succeeded'", 301).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.jobs_repeated_once, ledger.effects), (0, 301), "{ledger:?}");
}
