//! What a publisher cannot make errand do: write into the queues of others, forget a job, or run one of another's owner.

use errand_testbed::factory::{Envelope as _, read, send};
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::{
    api::{kind, served_by},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// The messages that are kept, with their reasons.
pub(crate) fn rejected(harness: &Harness) -> Vec<(String, String)> {
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

/// A file with what users of the broker and roles of the database may publish, as the environment names it.
pub(crate) fn publishers(harness: &Harness, table: &str) -> (&'static str, String) {
    let file = harness.journal_dir().with_file_name("publishers.toml");
    std::fs::write(&file, table).unwrap();
    ("ERRAND_CONFIG", file.to_str().unwrap().to_owned())
}

fn by_guest() -> BasicProperties {
    BasicProperties::default().with_user_id("guest".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_for_the_owners_of_their_publisher_only() {
    let harness = Harness::new("tied", "").await;
    let (name, file) = publishers(&harness, "[publishers]\nguest = [\"user:u-al*\"]\n");
    let worker = harness.worker(&[(name, &file)]).await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::default();
    channel.queue_declare("guest.replies".into(), options, FieldTable::default()).await.unwrap();

    let (allowed, foreign, nameless) = (read("u-alice"), read("u-bob"), read("u-alice"));
    publish(&harness, &allowed, by_guest()).await;
    publish(&harness, &foreign, by_guest().with_reply_to("guest.replies".into())).await;
    publish(&harness, &nameless, BasicProperties::default()).await;
    harness.job_in(allowed.id(), &["succeeded"]).await;
    let kept = until("the others to be kept", PATIENCE, async || {
        let kept = rejected(&harness);
        (kept.len() == 2).then_some(kept)
    })
    .await;
    assert!(kept.iter().all(|(_, reason)| reason == "publisher_refused"), "{kept:?}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 1, "nothing runs that was refused");
    assert_eq!(worker.metric("errand_rejected_messages_total{reason=\"publisher_refused\"}").await, 2.0);

    // It is answered like any other message that is no job.
    let reply = until("the answer", PATIENCE, async || {
        channel.basic_get("guest.replies".into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    let reply: Value = serde_json::from_slice(&reply.delivery.data).unwrap();
    assert_eq!(
        (&reply["reply"], &reply["reason"]),
        (&json!("rejected"), &json!("publisher_refused")),
        "{reply}"
    );
    assert!(reply["message"].as_str().unwrap().contains("`publishers`"), "{reply}");

    // A person meets the same rule, and may vouch for it.
    let mut env = harness.env();
    env.push((name.to_owned(), file));
    for (id, _) in &kept {
        let refused = run(&["rejected", "requeue", id], &env);
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stdout).contains("--any-publisher"));
        assert!(
            run(&["rejected", "requeue", "--any-publisher", "--without-reply", id], &env).status.success()
        );
    }
    harness.job_in(foreign.id(), &["succeeded", "held"]).await;
    harness.job_in(nameless.id(), &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_store_has_is_not_judged_by_who_brings_its_message() {
    let harness = Harness::new("stored", "[[fault]]\nkind = \"provider_failure\"\ntool = \"GITHUB_GET_REPO\"\nprovider_status = 503\nfirst = 1\n").await;
    let (name, file) = publishers(&harness, "[publishers]\nguest = [\"user:u-alice\"]\n");
    let _worker = harness.worker(&[(name, &file)]).await;
    // Retried, so that the relay publishes it, which names no user.
    let retried = read("u-alice");
    publish(&harness, &retried, by_guest()).await;
    // Enqueued by a person for an owner that no publisher has.
    let file = harness.journal_dir().with_file_name("job.json");
    let enqueued = read("u-bob");
    std::fs::write(&file, format!("{enqueued}\n")).unwrap();
    assert!(harness.errand(&["enqueue-bulk", file.to_str().unwrap()]).status.success());
    let done = harness.job_in(retried.id(), &["succeeded"]).await;
    assert_eq!(done["attempts"].as_array().unwrap().len(), 2, "{done}");
    harness.job_in(enqueued.id(), &["succeeded", "held"]).await;
    assert!(rejected(&harness).is_empty());

    // What the broker dead-lettered is judged by who published it, and not by the broker.
    let mut headers = FieldTable::default();
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString("errand.default".into()));
    headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
    let (dead, foreign) = (read("u-alice"), read("u-bob"));
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for job in [&dead, &foreign] {
        let properties = by_guest().with_delivery_mode(2).with_headers(headers.clone());
        let (options, body) = (BasicPublishOptions::default(), job.to_string());
        channel
            .basic_publish("".into(), "errand.dead".into(), options, body.as_bytes(), properties)
            .await
            .unwrap()
            .await
            .unwrap();
    }
    harness.job_in(dead.id(), &["succeeded"]).await;
    let kept = until("the foreign one to be kept", PATIENCE, async || rejected(&harness).pop()).await;
    assert_eq!(kept.1, "publisher_refused");
}

/// What comes over HTTP has no publisher: there it is the key that says for whom.
#[tokio::test(flavor = "multi_thread")]
async fn over_http_jobs_have_no_publisher_and_the_operator_may_vouch_for_one_of_the_broker() {
    let harness = Harness::new("vouched", "").await;
    let (name, file) = publishers(&harness, "[publishers]\nguest = [\"user:u-alice\"]\n");
    let api = ("ERRAND__API__LISTEN", "127.0.0.1:0");
    let api = served_by(harness.worker(&[(name, &*file), api]).await).await;
    let enqueued = read("user-2");
    let (status, told) = api.post("/v1/jobs", &enqueued).await;
    assert_eq!(status, 201, "{told}");
    harness.job_in(enqueued.id(), &["succeeded"]).await;
    assert!(rejected(&harness).is_empty());

    let foreign = read("user-3");
    publish(&harness, &foreign, by_guest()).await;
    let kept = until("it to be kept", PATIENCE, async || rejected(&harness).pop()).await;
    assert_eq!(kept.1, "publisher_refused");
    let path = format!("/v1/rejected/{}/requeue", kept.0);
    for body in [json!({}), json!({"any_publisher": false}), json!({"without_reply": true})] {
        let (status, refused) = api.post(&path, &body).await;
        assert_eq!((status.as_u16(), kind(&refused)), (409, "wrong-state"), "{body}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains("`any_publisher`"), "{refused}");
    }
    assert_eq!(harness.count("true").await, 1, "it stays rejected");
    let (status, requeued) = api.post(&path, &json!({"any_publisher": true})).await;
    assert_eq!((status.as_u16(), requeued), (200, json!({"job": foreign.id(), "new": true})));
    harness.job_in(foreign.id(), &["succeeded"]).await;
}
