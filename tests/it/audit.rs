//! The audit of a store that was really used: the real binary on real services, against the sandbox and
//! its ledger.

use errand_testbed::factory::{Envelope as _, id, read, send, update};
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE},
    support::{http, wait::until},
};

/// When a worker last completed an audit; 0 before its first.
const COMPLETED: &str = "errand_audit_completed_timestamp_seconds";

/// Runs `errand audit` with these flags, and returns its exit code and its answer.
fn audit(harness: &Harness, flags: &[&str]) -> (i32, Value) {
    let output = harness.errand(&[&["audit", "--json"][..], flags].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answer = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (output.status.code().unwrap(), answer)
}

/// The findings of one kind.
fn found<'a>(answer: &'a Value, kind: &str) -> &'a Value {
    let findings = answer["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["kind"] == kind).unwrap_or(&Value::Null)
}

/// Makes the call of an attempt again, as somebody would who had its request ID.
async fn call(harness: &Harness, job: &str, request_id: &str, user: &str) {
    let url = format!("{}/api/v3.1/tools/execute/GMAIL_SEND_EMAIL", harness.sandbox.base_url());
    let body = json!({"user_id": user, "version": "20251112_00",
                      "arguments": {"recipient_email": "a@example.com", "subject": "s", "body": "b"}});
    let request = http::client().post(url).json(&body).header("x-api-key", "ak_test_good");
    let request = request.header("x-request-id", request_id).header("x-errand-job-id", job);
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_busy_and_lost_a_worker_has_no_finding() {
    let faults = "
        [[fault]]\nkind = \"latency\"\nmean_ms = 20
        [[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\nrate = 0.1
        [[fault]]\nkind = \"status\"\nstatus = 503\ntool = \"GITHUB_GET_REPO\"\nrate = 0.2
        [[fault]]\nkind = \"provider_failure\"\nprovider_status = 400\ntool = \"LINEAR_UPDATE_ISSUE\"\nrate = 0.2\n";
    let harness = Harness::new("busy", faults).await;
    let quick = [
        ("ERRAND__WORKER__LEASE_SECS", "5"),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__RESCUE__POLL_SECS", "1"),
        ("ERRAND__AUDIT__EVERY_SECS", "1"),
        // What the first worker has taken to publish and never published comes again after this.
        ("ERRAND__RELAY__UNCLAIMED_SECS", "5"),
    ];
    let mut doomed = harness.worker(&quick).await;
    let jobs: Vec<Value> = (0..400)
        .map(|n| match (n % 4, format!("user-{}", n % 20 + 1)) {
            (0, user) => send(&user),
            (1, user) => update(&user),
            (2, _) if n % 40 == 2 => read("u-nobody"),
            (_, user) => read(&user),
        })
        .collect();
    harness.publish(&jobs).await;
    until("some calls are made", PATIENCE, async || {
        (harness.sandbox.ledger_summary().calls > 100).then_some(())
    })
    .await;
    doomed.kill9();
    let worker = harness.worker(&quick).await;
    harness.settled(400).await;

    let ledger = harness.sandbox.base_url();
    // What the first worker had not acknowledged comes again, also of jobs that have ended.
    let (code, answer) = until("no message waits", PATIENCE, async || {
        let (code, answer) = audit(&harness, &["--ledger", &ledger]);
        let queues = answer["queues"].as_array().unwrap();
        queues.iter().all(|queue| queue["difference"] == 0).then_some((code, answer))
    })
    .await;
    assert_eq!((code, &answer["clean"], &answer["jobs"]), (0, &json!(true), &json!(400)), "{answer}");
    assert_eq!(answer["findings"], json!([]));
    let effects = harness.sandbox.ledger_summary().effects;
    assert_eq!(answer["ledger"], json!({"effects": effects, "without_job": 0, "complete": true}));

    // The worker finds the same, all by itself.
    let settled = jiff::Timestamp::now().as_second() + 1;
    worker.metric_reaches(COMPLETED, settled as f64).await;
    for metric in ["errand_audit_findings", "errand_audit_repairs_total"] {
        assert_eq!(worker.metric_sum(metric).await, 0.0, "{metric}: {}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_that_the_rescue_cannot_see_is_brought_back_by_a_worker() {
    let harness =
        Harness::new("orphan", "[[fault]]\nkind = \"hang\"\nafter_effect = false\nfirst = 1\n").await;
    let mut doomed = harness.worker(&[]).await;
    let one = id();
    harness.publish(&[read("user-1").named(&one)]).await;
    until("the call is made", PATIENCE, async || (harness.sandbox.ledger_summary().calls > 0).then_some(()))
        .await;
    doomed.kill9();
    // As after a restore, or a hand that was too thorough.
    harness
        .execute(
            "delete from claims; update workers set beat_at = beat_at - interval '1 hour';
        update jobs set started_at = started_at - interval '1 hour'",
        )
        .await;

    let (code, answer) = audit(&harness, &[]);
    assert_eq!((code, &answer["clean"]), (1, &json!(false)));
    let finding = found(&answer, "running_without_worker");
    assert_eq!((&finding["found"], &finding["repaired"]), (&json!(1), &json!(0)));
    assert_eq!(finding["jobs"], json!([one]));
    assert_eq!(harness.text("select count(*)::text from claims").await.unwrap(), "0", "it only looked");

    let worker =
        harness.worker(&[("ERRAND__AUDIT__EVERY_SECS", "1"), ("ERRAND__RESCUE__POLL_SECS", "1")]).await;
    harness.job_in(&one, &["succeeded"]).await;
    until("the audit shows that all is well", PATIENCE, async || {
        let metrics = worker.metrics().await;
        (metrics.contains("errand_audit_repairs_total{kind=\"running_without_worker\"} 1\n")
            && metrics.contains("errand_audit_findings{kind=\"running_without_worker\"} 0\n"))
        .then_some(())
    })
    .await;
    assert!(worker.log().contains(&one), "the repaired job is named: {}", worker.log());
    let (code, answer) = audit(&harness, &[]);
    assert_eq!((code, &answer["findings"]), (0, &json!([])), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_repair_only_reports() {
    let harness = Harness::new("norepair", "").await;
    let settings = [("ERRAND__AUDIT__EVERY_SECS", "1"), ("ERRAND__AUDIT__REPAIR", "false")];
    let worker = harness.worker(&settings).await;
    let one = id();
    harness.publish(&[read("user-1").named(&one)]).await;
    harness.job_in(&one, &["succeeded"]).await;
    harness
        .execute("alter table jobs drop constraint jobs_succeeded_has_result; update jobs set result = null")
        .await;
    worker.metric_reaches("errand_audit_findings{kind=\"broken_rule\"}", 1.0).await;
    assert_eq!(worker.metric_sum("errand_audit_repairs_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_the_elder_audits_and_the_younger_takes_over() {
    let harness = Harness::new("elder", "").await;
    let quick = [
        ("ERRAND__WORKER__LEASE_SECS", "15"),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__AUDIT__EVERY_SECS", "1"),
    ];
    let mut elder = harness.worker(&quick).await;
    elder.metric_reaches(COMPLETED, 1.0).await;
    let younger = harness.worker(&quick).await;
    let before = elder.metric(COMPLETED).await;
    // Several audits later.
    elder.metric_reaches(COMPLETED, before + 4.0).await;
    assert_eq!(younger.metric(COMPLETED).await, 0.0);
    elder.kill9();
    younger.metric_reaches(COMPLETED, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_messages_are_lost_are_published_again_on_demand() {
    let harness = Harness::new("message", "").await;
    // A worker of another lane makes schema and queues.
    let mut other = harness.worker(&[("ERRAND__WORKER__QUEUES", "bulk")]).await;
    let one = id();
    let args = r#"{"owner":"o","repo":"r"}"#;
    let enqueued =
        harness.errand(&["enqueue", "GITHUB_GET_REPO", "--id", &one, "--user-id", "user-1", "--args", args]);
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    other.stop().await;
    // Published so often that the next time is far away.
    harness.execute("update jobs set published = 9, due_at = now() + interval '1 hour'").await;

    let (code, answer) = audit(&harness, &["--repair"]);
    assert_eq!((code, &answer["findings"]), (0, &json!([])), "its message still waits: {answer}");
    let lane =
        &answer["queues"].as_array().unwrap().iter().find(|queue| queue["queue"] == "default").unwrap();
    assert_eq!(
        (&lane["available"], &lane["messages"], &lane["difference"]),
        (&json!(1), &json!(1), &json!(0))
    );

    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_purge("errand.default".into(), lapin::options::QueuePurgeOptions::default()).await.unwrap();
    let (code, answer) = audit(&harness, &[]);
    assert_eq!((code, &found(&answer, "not_claimed")["found"]), (1, &json!(1)), "{answer}");
    let (code, answer) = audit(&harness, &["--repair"]);
    let finding = found(&answer, "not_claimed");
    assert_eq!((code, &answer["clean"]), (0, &json!(true)), "all of it is repaired");
    assert_eq!((&finding["found"], &finding["repaired"]), (&json!(1), &json!(1)));

    let _worker = harness.worker(&[]).await;
    harness.job_in(&one, &["succeeded"]).await;
    let (code, _) = audit(&harness, &[]);
    assert_eq!(code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_tells_what_errand_does_not_know() {
    let harness = Harness::new("ledger", "").await;
    let _worker = harness.worker(&[]).await;
    let ledger = harness.sandbox.base_url();
    let (twice, strange, believed, fine) = (id(), id(), id(), id());
    let jobs: Vec<Value> =
        [&twice, &strange, &believed, &fine].iter().map(|id| send("user-1").named(id)).collect();
    harness.publish(&jobs).await;
    for job in [&twice, &strange, &fine] {
        harness.job_in(job, &["succeeded"]).await;
    }
    harness.job_in(&believed, &["succeeded"]).await;
    let (code, answer) = audit(&harness, &["--ledger", &ledger]);
    assert_eq!((code, &answer["findings"]), (0, &json!([])), "{answer}");

    let request_id = |job: &str| harness.show(job)["attempts"][0]["request_id"].as_str().unwrap().to_owned();
    // The same attempt twice, an attempt that nobody made, and a job that nobody knows.
    call(&harness, &twice, &request_id(&twice), "user-1").await;
    call(&harness, &strange, &id(), "user-1").await;
    let unknown = id();
    call(&harness, &unknown, &id(), "user-1").await;
    let (code, answer) = audit(&harness, &["--ledger", &format!("{ledger}/"), "--limit", "10"]);
    assert_eq!(code, 1);
    let jobs = |kind: &str| {
        let mut jobs: Vec<String> = serde_json::from_value(found(&answer, kind)["jobs"].clone()).unwrap();
        jobs.sort_unstable();
        jobs
    };
    let sorted = |mut jobs: Vec<&String>| {
        jobs.sort_unstable();
        jobs.into_iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(jobs("repeated_effect"), sorted(vec![&twice, &strange]));
    assert_eq!(jobs("effect_without_record"), sorted(vec![&strange, &unknown]));
    assert_eq!(found(&answer, "success_without_effect"), &Value::Null);
    assert_eq!(answer["ledger"]["effects"], 7);

    // An effect in an attempt of which errand says that nothing ran, and successes that had none.
    harness.execute(&format!("update jobs set state = 'failed', http_status = null, result = null,
            error_kind = 'refused', error_message = 'm' where id = '{fine}';
        insert into attempts (job_id, number, request_id, outcome, started_at, finished_at, reported_by, ended_as,
            late, charged)
        select id, 1, request_id, 'refused', started_at, finished_at, 'holder', 'failed', false, true
        from jobs where id = '{fine}'")).await;
    let (_, answer) = audit(&harness, &["--ledger", &ledger, "--limit", "10"]);
    assert!(found(&answer, "effect_without_record")["jobs"].to_string().contains(&fine), "{answer}");
    harness.sandbox.clear_ledger();
    call(&harness, &twice, &request_id(&twice), "user-1").await;
    let (_, answer) = audit(&harness, &["--ledger", &ledger, "--limit", "1"]);
    let missing = found(&answer, "success_without_effect");
    assert_eq!((&missing["found"], missing["jobs"].as_array().unwrap().len()), (&json!(2), 1), "{answer}");
    assert_eq!(answer["findings"].as_array().unwrap().len(), 1);
}
