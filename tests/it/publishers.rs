//! What a publisher cannot make errand do: write into the queues of others, or forget a job.

use errand_testbed::factory::{Envelope as _, read, send};
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// The messages that are kept, with their reasons.
fn rejected(harness: &Harness) -> Vec<(String, String)> {
    let listed = harness.errand(&["rejected", "list", "--json"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    lines.map(|line| (of(&line, "id"), of(&line, "reason"))).collect()
}

/// Publishes one job with these properties.
async fn publish(harness: &Harness, job: &Value, properties: BasicProperties) {
    harness.publish_raw(&[job.to_string().into_bytes()], properties.with_delivery_mode(2)).await;
}

fn reply_to(queue: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(queue.into()).with_correlation_id("chosen".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_only_where_its_publisher_may_have_one() {
    let harness = Harness::new("deputy", "").await;
    let worker = harness.worker(&[]).await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for queue in ["victim.replies", "guest.replies"] {
        channel
            .queue_declare(queue.into(), QueueDeclareOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }
    let asked = [read("u-alice"), read("u-alice"), read("u-alice")];
    for (job, queue) in asked.iter().zip(["victim.replies", "errand.bulk", "guest.replies"]) {
        publish(&harness, job, reply_to(queue)).await;
    }
    let allowed = read("u-alice");
    publish(&harness, &allowed, reply_to("guest.replies").with_user_id("guest".into())).await;
    let reply = until("the reply that is allowed", PATIENCE, async || {
        channel.basic_get("guest.replies".into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    let reply: Value = serde_json::from_slice(&reply.delivery.data).unwrap();
    assert_eq!((reply["id"].as_str(), reply["state"].as_str()), (Some(allowed.id()), Some("succeeded")));

    let kept = until("the others to be kept", PATIENCE, async || {
        let kept = rejected(&harness);
        (kept.len() == 3).then_some(kept)
    })
    .await;
    assert!(kept.iter().all(|(_, reason)| reason == "reply_refused"), "{kept:?}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 1, "nothing runs that was refused");
    assert_eq!(worker.metric("errand_rejected_messages_total{reason=\"reply_refused\"}").await, 3.0);
    let (id, _) = &kept[0];
    let shown = String::from_utf8(harness.errand(&["rejected", "show", id]).stdout).unwrap();
    assert!(shown.contains("`replies.allowed`"), "{shown}");

    // A person meets the same rule, and can do without the replies.
    let refused = harness.errand(&["rejected", "requeue", id]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stdout).contains("`replies.allowed`"));
    for (id, _) in &kept {
        assert!(harness.errand(&["rejected", "requeue", "--without-reply", id]).status.success());
    }
    for job in &asked {
        harness.job_in(job.id(), &["succeeded"]).await;
    }
    let victim = channel.basic_get("victim.replies".into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert!(victim.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_of_an_older_row_is_judged_before_it_is_published() {
    let harness = Harness::new("oldrow", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let job = read("u-alice");
    let file = harness.journal_dir().with_file_name("job.json");
    std::fs::write(&file, format!("{job}\n")).unwrap();
    assert!(harness.errand(&["enqueue-bulk", file.to_str().unwrap()]).status.success());
    harness.execute("update jobs set reply_to = 'victim.replies'").await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::default();
    channel.queue_declare("victim.replies".into(), options, FieldTable::default()).await.unwrap();
    let worker = harness.worker(&[]).await;
    harness.job_in(job.id(), &["succeeded"]).await;
    worker.metric_reaches("errand_replies_total{reply=\"final\",result=\"forbidden\"}", 1.0).await;
    harness.counts("reply_due_at is null", 1).await;
    let victim = channel.basic_get("victim.replies".into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert!(victim.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_job_the_database_does_not_know_is_kept_and_runs_when_a_person_says_so() {
    let harness = Harness::new("unknown", "").await;
    let worker = harness.worker(&[]).await;
    let mut headers = FieldTable::default();
    headers.insert("x-errand-known".into(), AMQPValue::Boolean(true));
    let job = send("u-alice");
    for _ in 0..2 {
        publish(&harness, &job, BasicProperties::default().with_headers(headers.clone())).await;
    }
    worker.metric_reaches("errand_claims_total{queue=\"default\",result=\"gone\"}", 2.0).await;
    let kept = until("it to be kept", PATIENCE, async || rejected(&harness).pop()).await;
    assert_eq!(rejected(&harness).len(), 1, "the same message is one row");
    assert_eq!(kept.1, "unknown_job");
    let told = worker.lines("message rejected and kept");
    assert_eq!((&told[0]["level"], &told[0]["rejected.id"]), (&json!("WARN"), &json!(kept.0)));
    assert_eq!(harness.sandbox.ledger_summary().calls, 0, "it may have run, which nobody here knows");
    let shown = String::from_utf8(harness.errand(&["rejected", "show", &kept.0]).stdout).unwrap();
    assert!(shown.contains("restored"), "{shown}");

    let requeued = run(&["rejected", "requeue", &kept.0], &harness.env());
    assert!(requeued.status.success(), "{}", String::from_utf8_lossy(&requeued.stdout));
    harness.job_in(job.id(), &["succeeded"]).await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 1);
}
