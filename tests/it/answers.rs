//! What apps get back: every message that was confirmed and has a reply queue is answered. The real binary on real
//! services; replies are checked against the published schema.

use std::collections::BTreeMap;

use errand_testbed::factory::{Envelope as _, id, job, read, send};
use jsonschema::Validator;
use lapin::{
    BasicProperties, Channel, Connection,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, Process, run},
    support::{self, wait::until},
};

const SCHEMA: &str = include_str!("../../docs/reply.schema.json");

fn schema() -> Validator {
    let schema = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

/// An app with a reply queue of its own, for as long as this lives.
pub(crate) struct App<'a> {
    harness: &'a Harness,
    _connection: Connection,
    channel: Channel,
    queue: String,
    schema: Validator,
}

impl<'a> App<'a> {
    pub(crate) async fn new(harness: &'a Harness) -> Self {
        let connection = harness.vhost.connect().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let queue = queue.name().to_string();
        Self { harness, _connection: connection, channel, queue, schema: schema() }
    }

    fn properties(&self, correlation_id: &str) -> BasicProperties {
        BasicProperties::default()
            .with_delivery_mode(2)
            .with_reply_to(self.queue.as_str().into())
            .with_correlation_id(correlation_id.into())
    }

    pub(crate) async fn ask(&self, correlation_id: &str, body: impl ToString) {
        self.ask_with(self.properties(correlation_id), body).await;
    }

    async fn ask_with(&self, properties: BasicProperties, body: impl ToString) {
        self.harness.publish_raw(&[body.to_string().into_bytes()], properties).await;
    }

    pub(crate) async fn get(&self) -> Option<BasicGetMessage> {
        self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    }

    /// The next reply, which says of what kind it is and to which message.
    pub(crate) async fn reply(&self, kind: &str, correlation_id: &str) -> Reply {
        let what = format!("the reply `{kind}` to {correlation_id}");
        let message = until(&what, PATIENCE, async || self.get().await).await;
        let properties = &message.delivery.properties;
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|value| value.to_string());
        let body: Value = serde_json::from_slice(&message.delivery.data).unwrap();
        let wrong: Vec<_> = self.schema.iter_errors(&body).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{wrong:?} in {body}");
        assert_eq!(
            (body["reply"].as_str(), text(properties.kind()), text(properties.correlation_id())),
            (Some(kind), Some(kind.to_owned()), Some(correlation_id.to_owned())),
            "{what}: {body}"
        );
        Reply { body, message_id: text(properties.message_id()).unwrap() }
    }

    /// Makes sure that nothing more comes, and nothing is owed: another job is answered, and only that one.
    pub(crate) async fn hears_nothing_more(&self) {
        let last = read("u-alice");
        self.ask("last", &last).await;
        self.reply("final", "last").await;
        until("nothing is owed", PATIENCE, async || (owed(self.harness).await == 0).then_some(())).await;
        assert!(self.get().await.is_none());
    }
}

pub(crate) struct Reply {
    pub(crate) body: Value,
    message_id: String,
}

impl Reply {
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.body[key].as_str()
    }
}

pub(crate) async fn owed(harness: &Harness) -> u64 {
    harness.text("select count(*)::text from answers").await.unwrap().parse().unwrap()
}

async fn sent(worker: &Process, kind: &str) -> f64 {
    worker.metric(&format!("errand_replies_total{{reply=\"{kind}\",result=\"sent\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_no_jobs_are_answered_with_the_reason() {
    let harness = Harness::new("answers", "").await;
    let worker = harness.worker(&[]).await;
    let app = App::new(&harness).await;

    app.ask_with(app.properties("malformed").with_message_id("no UUID".into()), "{\"user_id\"").await;
    let reply = app.reply("rejected", "malformed").await;
    assert_eq!((reply.text("reason"), reply.text("id")), (Some("malformed"), None));
    assert_eq!(reply.message_id, "no UUID", "as it was sent");
    let kept = reply.text("rejected_id").unwrap();
    let shown = String::from_utf8(harness.errand(&["rejected", "show", kept]).stdout).unwrap();
    assert!(shown.contains(reply.text("message").unwrap()), "{shown}");

    let bad = read("u-alice").with("priority", json!(99));
    app.ask("bad value", &bad).await;
    let reply = app.reply("rejected", "bad value").await;
    assert_eq!((reply.text("reason"), reply.text("id")), (Some("bad_value"), Some(bad.id())));
    assert!(reply.text("message").unwrap().contains("`priority`"), "{}", reply.body);
    assert_eq!(reply.message_id, bad.id());
    let shown = harness.errand(&["jobs", "show", bad.id()]);
    let told = String::from_utf8_lossy(&shown.stderr);
    let advice = format!(
        "its message was rejected; see `errand rejected show {}`",
        reply.text("rejected_id").unwrap()
    );
    assert!(shown.status.code() == Some(1) && told.contains(&advice), "{told}");

    let mut anonymous = read("u-alice");
    anonymous.as_object_mut().unwrap().remove("id");
    app.ask("no ID", &anonymous).await;
    let reply = app.reply("rejected", "no ID").await;
    assert_eq!((reply.text("reason"), reply.text("id")), (Some("no_id"), None));
    assert_eq!(Some(&*reply.message_id), reply.text("rejected_id"), "there is no other name for it");
    // Somebody who asks again is answered again.
    app.ask("no ID", &anonymous).await;
    app.reply("rejected", "no ID").await;

    // An ID of somebody else tells nothing about their job.
    let theirs = send("u-alice");
    app.ask("theirs", &theirs).await;
    app.reply("final", "theirs").await;
    let mine = read("u-bob").with("id", theirs["id"].clone());
    app.ask("mine", &mine).await;
    let reply = app.reply("rejected", "mine").await;
    assert_eq!(reply.text("reason"), Some("owner_conflict"));
    assert_eq!(
        reply.text("message"),
        Some("this `id` is already used by another job; give every job an ID of its own")
    );
    let keys: Vec<&String> = reply.body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "message", "reason", "rejected_id", "reply"]);
    let other = theirs.clone().with("arguments", json!({"subject": "another"}));
    app.ask("other body", &other).await;
    assert_eq!(app.reply("rejected", "other body").await.text("reason"), Some("body_conflict"));

    // What may not be answered is not.
    app.ask_with(app.properties("deputy").with_reply_to("victim.replies".into()), &read("u-alice")).await;
    app.ask_with(app.properties("deputy").with_reply_to("errand.bulk".into()), "no job").await;
    worker.metric_reaches("errand_rejected_messages_total{reason=\"reply_refused\"}", 1.0).await;
    worker.metric_reaches("errand_rejected_messages_total{reason=\"malformed\"}", 2.0).await;
    app.hears_nothing_more().await;
    assert_eq!(sent(&worker, "rejected").await, 6.0);
    assert!(worker.metrics().await.lines().all(|line| !line.contains("result=\"forbidden\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_answered_when_it_is_final() {
    let harness = Harness::new("final", "").await;
    let _worker = harness.worker(&[]).await;
    let app = App::new(&harness).await;
    let good = read("u-alice");
    app.ask("good", &good).await;
    let reply = app.reply("final", "good").await;
    assert_eq!((reply.text("id"), reply.text("state")), (Some(good.id()), Some("succeeded")));
    assert_eq!(reply.message_id, good.id());
    assert!(reply.body["result"].is_object(), "{}", reply.body);
    // What an app calls its message comes back with the result, also where it is no UUID.
    let mut named = read("u-alice");
    named.as_object_mut().unwrap().remove("id");
    app.ask_with(app.properties("named").with_message_id("order 17".into()), &named).await;
    assert_eq!(app.reply("final", "named").await.message_id, "order 17");
    let bad = job("u-alice", "NO_SUCH_TOOL", &json!({}));
    app.ask("bad", &bad).await;
    let reply = app.reply("final", "bad").await;
    assert_eq!(
        (reply.text("state"), reply.body["error"]["kind"].as_str()),
        (Some("failed"), Some("unknown_tool"))
    );
    // Also one that may not run.
    let late = read("u-alice").with("expires_at", json!("2020-01-01T00:00:00Z"));
    app.ask("late", &late).await;
    assert_eq!(app.reply("final", "late").await.body["error"]["kind"], "expired");
    app.hears_nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_job_is_answered_and_again_when_it_is_final() {
    let harness = Harness::new("heldreply", "").await;
    let quick = [
        ("ERRAND__CONNECTIONS__ENABLED", "true"),
        ("ERRAND__CONNECTIONS__POLL_MS", "50"),
        ("ERRAND__CONNECTIONS__FIRST_MS", "200"),
        ("ERRAND__CONNECTIONS__MAX_MS", "1000"),
        ("ERRAND__COMPOSIO__ACCOUNT_CACHE_SECS", "1"),
    ];
    let worker = harness.worker(&quick).await;
    harness.set_account("ca_bob", false).await;
    let app = App::new(&harness).await;
    // The first finds out at its end, the second at its claim.
    for name in ["first", "second"] {
        let waiting = read("u-bob");
        app.ask(name, &waiting).await;
        let reply = app.reply("held", name).await;
        assert_eq!((reply.text("id"), reply.text("held_reason")), (Some(waiting.id()), Some("connection")));
        let message = reply.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("connect") && message.contains("`github`"), "{message}");
    }
    harness.set_account("ca_bob", true).await;
    let mut ended = BTreeMap::new();
    for _ in 0..2 {
        let message = until("a result", PATIENCE, async || app.get().await).await;
        let body: Value = serde_json::from_slice(&message.delivery.data).unwrap();
        assert_eq!((&body["reply"], &body["state"]), (&json!("final"), &json!("succeeded")));
        let correlation_id = message.delivery.properties.correlation_id().clone().unwrap().to_string();
        ended.insert(correlation_id, ());
    }
    assert!(ended.into_keys().eq(["first", "second"]));
    app.hears_nothing_more().await;
    assert_eq!(sent(&worker, "held").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_jobs_are_held_where_that_is_switched_off() {
    let harness = Harness::new("heldoff", "").await;
    let worker = harness.worker(&[("ERRAND__REPLIES__HELD", "false")]).await;
    harness.set_account("ca_bob", false).await;
    let app = App::new(&harness).await;
    let waiting = read("u-bob");
    app.ask("waiting", &waiting).await;
    harness.job_in(waiting.id(), &["held"]).await;
    app.hears_nothing_more().await;
    assert_eq!(sent(&worker, "held").await, 0.0);
    assert!(harness.errand(&["jobs", "cancel", waiting.id()]).status.success());
    assert_eq!(app.reply("final", "waiting").await.text("state"), Some("cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_repeats_a_job_is_told_of_the_first() {
    let faults = "[[fault]]\nkind = \"latency\"\ntool = \"GMAIL_SEND_EMAIL\"\nfixed_ms = 3000\n";
    let harness = Harness::new("repeats", faults).await;
    let worker = harness.worker(&[]).await;
    let (app, restarted) = (App::new(&harness).await, App::new(&harness).await);

    let slow = send("u-alice").with("idempotency_key", json!("order-17"));
    app.ask("slow", &slow).await;
    harness.job_in(slow.id(), &["running"]).await;
    // The end of the job is the answer to both, and nobody hears it twice.
    app.ask("slow", &slow).await;
    worker.metric_reaches("errand_claims_total{queue=\"default\",result=\"duplicate\"}", 1.0).await;
    // But an app that was started anew has another queue, and is told at once.
    restarted.ask("slow", &slow).await;
    let reply = restarted.reply("duplicate", "slow").await;
    assert_eq!((reply.text("id"), reply.text("state")), (Some(slow.id()), Some("running")));
    assert!(reply.body["result"].is_null());
    // So is one that asks for something else to know it by, or under another ID.
    app.ask("slow again", &slow).await;
    assert_eq!(app.reply("duplicate", "slow again").await.text("id"), Some(slow.id()));
    let second = slow.clone().with("id", json!(id()));
    app.ask("slow", &second).await;
    let reply = app.reply("duplicate", "slow").await;
    assert_eq!((reply.text("id"), reply.text("state")), (Some(slow.id()), Some("running")));

    assert_eq!(app.reply("final", "slow").await.text("id"), Some(slow.id()));
    // After the end, its result comes with the answer, to whoever asks.
    for (app, correlation_id) in [(&app, "slow"), (&app, "later"), (&restarted, "slow")] {
        app.ask(correlation_id, &slow).await;
        let reply = app.reply("duplicate", correlation_id).await;
        assert_eq!((reply.text("id"), reply.text("state")), (Some(slow.id()), Some("succeeded")));
        assert!(reply.body["result"].is_object(), "{}", reply.body);
    }
    let third = slow.clone().with("id", json!(id()));
    app.ask_with(app.properties("third").with_message_id(third.id().into()), &third).await;
    let reply = app.reply("duplicate", "third").await;
    assert_eq!((reply.text("id"), &*reply.message_id), (Some(slow.id()), third.id()), "as it was sent");
    app.hears_nothing_more().await;
    restarted.hears_nothing_more().await;
    assert_eq!(harness.sandbox.ledger_summary().jobs_repeated, 0);

    // The first ID is found by the others.
    let shown = harness.show(second.id());
    assert_eq!((&shown["id"], &shown["known_as"]), (&slow["id"], &json!([second["id"], third["id"]])));
    let table = String::from_utf8(harness.errand(&["jobs", "show", third.id()]).stdout).unwrap();
    assert!(table.contains("known as") && table.contains(second.id()), "{table}");
    assert!(harness.show(slow.id())["known_as"].is_array());
}

/// Publishes a message while no worker is there, and lets the broker deliver it for the second time.
async fn deliver_again(app: &App<'_>, correlation_id: &str, body: &Value) {
    app.ask(correlation_id, body).await;
    let lane = "errand.default".into();
    let message = app.channel.basic_get(lane, BasicGetOptions::default()).await.unwrap().unwrap();
    let nack = BasicNackOptions { requeue: true, ..Default::default() };
    message.delivery.acker.nack(nack).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_delivers_again_makes_no_noise() {
    let harness = Harness::new("noise", "").await;
    let mut worker = harness.worker(&[]).await;
    let app = App::new(&harness).await;
    let (job, bad) = (read("u-alice"), read("u-alice").with("priority", json!(99)));
    app.ask("job", &job).await;
    app.reply("final", "job").await;
    app.ask("bad", &bad).await;
    app.reply("rejected", "bad").await;
    assert!(worker.stop().await.success());

    // As after a connection that broke before the acknowledgement.
    let taken = [
        "errand_claims_total{queue=\"default\",result=\"duplicate\"}",
        "errand_rejected_messages_total{reason=\"bad_value\"}",
    ];
    for ((correlation_id, body), taken) in [("job", &job), ("bad", &bad)].into_iter().zip(taken) {
        deliver_again(&app, correlation_id, body).await;
        worker = harness.worker(&[]).await;
        worker.metric_reaches(taken, 1.0).await;
        assert!(worker.stop().await.success());
    }
    deliver_again(&app, "new queue", &job).await;
    let worker = harness.worker(&[]).await;
    // Whoever asks elsewhere has no answer yet.
    app.reply("duplicate", "new queue").await;
    app.hears_nothing_more().await;
    assert_eq!((sent(&worker, "duplicate").await, sent(&worker, "rejected").await), (1.0, 0.0));
    assert_eq!(harness.text("select max(seen)::text from rejected").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_outlives_a_worker_that_dies_before_it_is_published() {
    let harness = Harness::new("outlives", "").await;
    let mut worker = harness.worker(&[]).await;
    harness.set_account("ca_bob", false).await;
    let app = App::new(&harness).await;
    let done = read("u-alice");
    app.ask("done", &done).await;
    app.reply("final", "done").await;
    // What is owed from now on is committed, and not due.
    harness
        .execute(
            "create function later() returns trigger language plpgsql as
                'begin new.due_at := now() + interval ''1 hour''; return new; end';
             create trigger later before insert on answers for each row execute function later()",
        )
        .await;
    app.ask("bad", &read("u-alice").with("priority", json!(99))).await;
    app.ask("again", &done).await;
    app.ask("held", &read("u-bob")).await;
    until("all are owed", PATIENCE, async || (owed(&harness).await == 3).then_some(())).await;
    worker.kill9();
    harness.execute("drop trigger later on answers; update answers set due_at = now()").await;
    let _worker = harness.worker(&[]).await;
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let message = until("an answer", PATIENCE, async || app.get().await).await;
        kinds.push(message.delivery.properties.kind().clone().unwrap().to_string());
    }
    kinds.sort();
    assert_eq!(kinds, ["duplicate", "held", "rejected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_queue_that_is_gone_is_dropped_and_keeps_nobody_waiting() {
    let harness = Harness::new("gone", "").await;
    let worker = harness.worker(&[]).await;
    let (gone, app) = (App::new(&harness).await, App::new(&harness).await);
    let done = read("u-alice");
    gone.ask("done", &done).await;
    gone.reply("final", "done").await;
    gone.channel.queue_delete(gone.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    gone.ask("again", &done).await;
    gone.ask("bad", "no job").await;
    for kind in ["duplicate", "rejected"] {
        worker
            .metric_reaches(&format!("errand_replies_total{{reply=\"{kind}\",result=\"dropped\"}}"), 1.0)
            .await;
    }
    app.ask("good", &read("u-alice")).await;
    app.reply("final", "good").await;
    until("nothing is owed", PATIENCE, async || (owed(&harness).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_the_store_does_not_take_keep_no_job_waiting() {
    let harness = Harness::new("answerless", "").await;
    let worker = harness.worker(&[]).await;
    let app = App::new(&harness).await;
    let done = read("u-alice");
    app.ask("done", &done).await;
    app.reply("final", "done").await;
    harness
        .execute(
            "create function no() returns trigger language plpgsql as
                'begin raise exception ''no'' using errcode = ''check_violation''; end';
             create trigger no before insert on answers for each row execute function no()",
        )
        .await;
    app.ask("again", &done).await;
    app.ask("bad", &read("u-alice").with("priority", json!(99))).await;
    app.ask("good", &read("u-alice")).await;
    app.reply("final", "good").await;
    worker.logged("a message that repeats a job stays without an answer").await;
    until("the rejected message is kept without its text", PATIENCE, async || {
        (harness.text("select count(*)::text from rejected").await? == "1").then_some(())
    })
    .await;
    app.channel.queue_purge(app.queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    app.hears_nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_to_publish_replies_is_named() {
    let harness = Harness::new("mute", "").await;
    let user = "mute-errand";
    support::control(&["add_user", user, "of-a-test"]).await;
    let vhost = harness.vhost.name.as_str();
    support::control(&["set_permissions", "-p", vhost, user, ".*", "^errand.*$", ".*"]).await;
    let mut env = harness.env();
    env.push((
        "AMQP_URL".into(),
        harness.vhost.amqp_url.replace("guest:guest", &format!("{user}:of-a-test")),
    ));
    let worker = Process::start(&["worker", "--listen", "127.0.0.1:0"], &env);
    worker.logged("worker ready").await;
    let told = String::from_utf8(run(&["doctor"], &env).stdout).unwrap();
    assert!(told.contains("give it the permission to write to `amq.default`"), "{told}");

    let app = App::new(&harness).await;
    app.ask("good", &read("u-alice")).await;
    app.ask("bad", "no job").await;
    for kind in ["final", "rejected"] {
        worker
            .metric_reaches(&format!("errand_replies_total{{reply=\"{kind}\",result=\"refused\"}}"), 1.0)
            .await;
    }
    assert!(worker.log().contains("give it the permission to write to `amq.default`"));
    support::control(&["set_permissions", "-p", vhost, user, ".*", "^(errand.*|amq\\.default)$", ".*"]).await;
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let message = until("a reply", PATIENCE, async || app.get().await).await;
        kinds.push(message.delivery.properties.kind().clone().unwrap().to_string());
    }
    kinds.sort();
    assert_eq!(kinds, ["final", "rejected"]);
    let told = String::from_utf8(run(&["doctor"], &env).stdout).unwrap();
    assert!(!told.contains("amq.default"), "{told}");
}

#[test]
fn the_schema_knows_every_word() {
    use errand::job::{EnvelopeReason, HeldReason, PinnedBy, ReplyKind, State};
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let words = |pointer: &str| -> Vec<String> {
        let words = schema.pointer(pointer).unwrap().as_array().unwrap().iter();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let job = "/$defs/job/properties";
    assert_eq!(words(&format!("{job}/state/enum")), State::WORDS);
    assert_eq!(words(&format!("{job}/held_reason/enum")), HeldReason::WORDS);
    assert_eq!(words(&format!("{job}/pinned_by/enum")), PinnedBy::WORDS);
    assert_eq!(words("/oneOf/3/properties/reason/enum"), EnvelopeReason::WORDS);
    let mut kinds: Vec<&str> =
        (0..4).map(|n| schema["oneOf"][n]["properties"]["reply"]["const"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    let mut known = ReplyKind::WORDS.to_vec();
    known.sort_unstable();
    assert_eq!(kinds, known);
}
