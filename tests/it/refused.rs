//! What becomes of others when the broker refuses a message: nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use errand::{
    job::QueueType,
    queue::{
        Address, Message, Queue, QueueErrorKind,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
};
use errand_testbed::factory::{Envelope as _, browse, read, send, spread};
use lapin::{
    BasicProperties, Channel,
    options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, sandbox},
    queue_contract::{
        helpers::{LIMIT, consume, lane, message, message_to, publish, receive},
        options, rabbit,
    },
    support::{
        self,
        rabbitmq::{self, Vhost},
        wait::until,
    },
};

/// The largest message of the brokers in these tests, in bytes.
const MAX_MESSAGE: usize = 65_536;

async fn small_broker() -> rabbitmq::RabbitMq {
    let conf = format!("max_message_size = {MAX_MESSAGE}\n");
    support::start_rabbitmq(rabbitmq::Options { conf, ..Default::default() }).await
}

fn large(message: Message) -> Message {
    Message { body: Bytes::from(vec![b' '; MAX_MESSAGE + 1]), ..message }
}

/// The kinds of the errors in answers, by place.
pub(crate) fn kinds(answers: Vec<Result<(), errand::queue::QueueError>>) -> Vec<(usize, QueueErrorKind)> {
    let failed = answers.into_iter().enumerate().filter_map(|(place, answer)| Some((place, answer.err()?)));
    failed.map(|(place, error)| (place, error.kind())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_fails_alone_and_all_others_are_published() {
    let broker = small_broker().await;
    let queue = rabbit(&broker.url());
    let places = [0, 77, 78, 255, 256, 300];
    let started = std::time::Instant::now();
    let batch = (0..600).map(|place| {
        let message = message("default", &format!("m{place}"));
        if places.contains(&place) { large(message) } else { message }
    });
    let answers = kinds(queue.publish(batch.collect()).await);
    assert_eq!(answers, places.map(|place| (place, QueueErrorKind::TooLarge)));
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    assert_eq!(queue.reconnects(), 0, "the connection is nobody's to lose");

    // All of them, and one alone.
    let batch = (0..8).map(|n| large(message("default", &format!("l{n}")))).collect();
    assert_eq!(kinds(queue.publish(batch).await).len(), 8);
    let alone = queue.publish(vec![large(message("default", "alone"))]).await.remove(0).unwrap_err();
    assert_eq!(alone.kind(), QueueErrorKind::TooLarge);
    assert!(alone.to_string().contains("max_message_size"), "{alone}");
    queue.publish(vec![message("default", "after")]).await.remove(0).unwrap();
    queue.close().await;
}

/// Declares a queue for replies that holds one message and refuses more.
async fn full_queue(channel: &Channel, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_its_own_messages_only() {
    let vhost = support::vhost("full-replies").await;
    let queue = rabbit(&vhost.amqp_url);
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    full_queue(&channel, "full").await;
    let reply = |id: &str| message_to(Address::Reply("full".into()), id);
    until("the queue refuses more", LIMIT, async || {
        queue.publish(vec![reply("r")]).await.remove(0).is_err().then_some(())
    })
    .await;
    let answers = queue.publish(vec![message("default", "a"), reply("b"), message("default", "c")]).await;
    assert_eq!(kinds(answers), [(1, QueueErrorKind::Refused)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_may_not_be_published_keep_no_job_waiting() {
    let vhost = support::vhost("forbidden-replies").await;
    rabbit(&vhost.amqp_url).check().await.unwrap();
    let user = vhost.name.replace('/', "-");
    let account = json!({"password": "p", "tags": ""});
    vhost.manage(Method::PUT, &format!("users/{user}"), Some(account)).await.unwrap();
    let path = format!("permissions/{}/{user}", vhost.encoded_name());
    let permit = async |write: &str| {
        let permissions = json!({"configure": "^errand.*", "write": write, "read": ".*"});
        vhost.manage(Method::PUT, &path, Some(permissions)).await.unwrap();
    };
    permit("^errand.*").await;
    let queue = rabbit(&vhost.amqp_url.replace("guest:guest", &format!("{user}:p")));
    let batch = || {
        let to = |n: usize| {
            if n.is_multiple_of(3) { Address::Reply("app".into()) } else { Address::Lane(lane("default")) }
        };
        (0..60).map(|n| message_to(to(n), &format!("m{n}"))).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (0..60).step_by(3).map(|n| (n, QueueErrorKind::Refused)).collect();
    let answers = queue.publish(batch()).await;
    let told = format!("{answers:?}");
    assert_eq!(kinds(answers), expected, "{told}");
    let error = queue.publish(batch()).await.remove(0).unwrap_err();
    assert!(error.to_string().contains("amq.default"), "{error}");
    // Without the permission for jobs, it is the jobs that wait.
    permit("^amq.default$").await;
    until("the broker has forgotten what was permitted", LIMIT, async || {
        (kinds(queue.publish(batch()).await)
            .iter()
            .filter(|(_, kind)| *kind == QueueErrorKind::Access)
            .count()
            == 40)
            .then_some(())
    })
    .await;
    vhost.manage(Method::DELETE, &format!("users/{user}"), None).await.unwrap();
}

/// Has a queue of the shared broker work or not. One that does not takes and confirms nothing, as a quorum queue without
/// a majority of its members.
pub(crate) async fn set_working(vhost: &Vhost, queue: &str, works: bool) {
    let change = if works { "resume" } else { "suspend" };
    let name = &vhost.name;
    let script = format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{name}">>, queue, <<"{queue}">>)),
           sys:{change}(amqqueue:get_pid(Q))."#
    );
    support::control(&["eval", &script]).await;
}

fn queue_of_type(vhost: &Vhost, queue_type: QueueType) -> RabbitQueue {
    RabbitQueue::new(RabbitOptions { queue_type, ..options(&vhost.amqp_url) }).unwrap()
}

/// A batch for one lane that works, and for a lane and a reply queue that confirm nothing for a while. Returns what
/// became of the first batch that meets them.
async fn batches_with_two_stuck(hint: &str, queue_type: QueueType) -> Vec<(usize, QueueErrorKind)> {
    let vhost = support::vhost(hint).await;
    let queue = queue_of_type(&vhost, queue_type);
    queue.check().await.unwrap();
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.as_str().into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("app".into(), durable, arguments).await.unwrap();
    let batch = |round: usize| {
        let to = [Address::Lane(lane("default")), Address::Lane(lane("bulk")), Address::Reply("app".into())];
        to.into_iter().enumerate().map(|(n, to)| message_to(to, &format!("m{round}-{n}"))).collect::<Vec<_>>()
    };
    assert_eq!(kinds(queue.publish(batch(0)).await), []);
    for stuck in ["errand.bulk", "app"] {
        set_working(&vhost, stuck, false).await;
    }
    let first = kinds(queue.publish(batch(1)).await);
    let answers = queue.publish(batch(2)).await;
    for (place, name) in [(1, "`errand.bulk`"), (2, "`app`")] {
        let error = answers[place].as_ref().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("members"), "{error}");
    }
    assert_eq!(kinds(answers), [(1, QueueErrorKind::Stuck), (2, QueueErrorKind::Stuck)]);
    // They are known by now, so nobody waits for them.
    let started = Instant::now();
    let answers = queue.publish((3..103).flat_map(batch).collect()).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    for stuck in ["errand.bulk", "app"] {
        set_working(&vhost, stuck, true).await;
    }
    until("they are tried again", LIMIT, async || {
        queue.publish(batch(103)).await.iter().all(Result::is_ok).then_some(())
    })
    .await;
    assert_eq!(kinds(queue.publish((104..204).flat_map(batch).collect()).await), []);
    assert_eq!(queue.reconnects(), 0, "the connection is nobody's to lose");
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_confirm_nothing_hold_up_their_own_messages_and_no_connection() {
    let first = batches_with_two_stuck("stuck-classic", QueueType::Classic).await;
    assert_eq!(
        first,
        [1, 2].map(|place| (place, QueueErrorKind::Unconfirmed)),
        "which one it is, is not clear yet"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_the_broker_holds_up_for_a_queue_holds_up_others_once() {
    let first = batches_with_two_stuck("stuck-quorum", QueueType::Quorum).await;
    assert!(first.iter().all(|(_, kind)| *kind == QueueErrorKind::Unconfirmed), "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_confirms_nothing_is_known_also_where_nothing_else_is_published() {
    for queue_type in [QueueType::Classic, QueueType::Quorum] {
        let vhost = support::vhost("stuck-alone").await;
        let queue = queue_of_type(&vhost, queue_type);
        queue.check().await.unwrap();
        set_working(&vhost, "errand.bulk", false).await;
        let batch = || (0..256).map(|n| message("bulk", &format!("m{n}"))).collect::<Vec<_>>();
        let first = kinds(queue.publish(batch()).await);
        assert!(
            first.len() == 256 && first.iter().all(|(_, kind)| *kind == QueueErrorKind::Stuck),
            "{first:?}"
        );
        let started = Instant::now();
        let second = kinds(queue.publish(batch()).await);
        assert!(second.iter().all(|(_, kind)| *kind == QueueErrorKind::Stuck), "{second:?}");
        assert!(second.len() == 256 && started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        set_working(&vhost, "errand.bulk", true).await;
        assert_eq!(queue.reconnects(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_does_not_answer_ends_no_subscription_of_another() {
    let vhost = support::vhost("hanging").await;
    // The broker asks a classic queue before it answers that it exists.
    let queue = queue_of_type(&vhost, QueueType::Classic);
    queue.check().await.unwrap();
    let mut consumer = consume(&queue, 1).await;
    set_working(&vhost, "errand.bulk", false).await;
    let error = queue.consume(&lane("bulk"), 1).await.unwrap_err();
    assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{error}");
    publish(&queue, ["m".to_owned()]).await;
    receive(&mut *consumer, 1).await;
    set_working(&vhost, "errand.bulk", true).await;
    queue.consume(&lane("bulk"), 1).await.unwrap();
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_hangs_while_it_is_declared_lets_others_be_consumed() {
    let vhost = support::vhost("hangs").await;
    queue_of_type(&vhost, QueueType::Classic).check().await.unwrap();
    set_working(&vhost, "errand.bulk", false).await;
    let queue = Arc::new(queue_of_type(&vhost, QueueType::Classic));
    let declaring = Arc::clone(&queue);
    let publishing = tokio::spawn(async move { declaring.publish(vec![message("bulk", "m")]).await });
    until("it is connected", LIMIT, async || queue.connected().then_some(())).await;
    let started = Instant::now();
    let mut consumer = consume(&*queue, 1).await;
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(!publishing.is_finished(), "it still waits for the lane that hangs");
    assert_eq!(kinds(publishing.await.unwrap()), [(0, QueueErrorKind::Stuck)]);
    publish(&*queue, ["n".to_owned()]).await;
    receive(&mut *consumer, 1).await;
    set_working(&vhost, "errand.bulk", true).await;
    until("the lane takes messages again", LIMIT, async || {
        queue.publish(vec![message("bulk", "m")]).await.remove(0).ok()
    })
    .await;
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_that_the_broker_closed_tell_no_lane_the_error_of_another() {
    let vhost = support::vhost("closed-channels").await;
    let queue = rabbit(&format!("{}?channel_max=50", vhost.amqp_url));
    queue.check().await.unwrap();
    // Each look at the missing lane costs a channel, until the numbers of channels are used up.
    let used_up = async || {
        let missing = queue.depth(&lane("missing")).await.unwrap_err();
        if missing.kind() == QueueErrorKind::Unroutable {
            let error = queue.depth(&lane("default")).await.err()?;
            assert_eq!(error.kind(), QueueErrorKind::Unavailable, "{error}");
        }
        Some(())
    };
    until("the connection is used up", LIMIT, used_up).await;
    queue.publish(vec![message("default", "m")]).await.remove(0).unwrap();
    assert_eq!(queue.reconnects(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_cannot_be_declared_keeps_no_other_waiting() {
    let vhost = support::vhost("differs").await;
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    // An operator has made one lane's queue anew, of another type than errand declares.
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    for name in ["errand.bulk", "app"] {
        channel.queue_declare(name.into(), durable, FieldTable::default()).await.unwrap();
    }
    let queue = rabbit(&vhost.amqp_url);
    let batch = |round: usize| {
        let to = [Address::Lane(lane("bulk")), Address::Lane(lane("default")), Address::Reply("app".into())];
        to.into_iter().enumerate().map(|(n, to)| message_to(to, &format!("m{round}-{n}"))).collect::<Vec<_>>()
    };
    for round in 0..2 {
        let answers = queue.publish(batch(round)).await;
        let told = answers[0].as_ref().unwrap_err().to_string();
        assert!(told.contains("`errand.bulk`") && told.contains("amqp.queue_type"), "{told}");
        assert_eq!(kinds(answers), [(0, QueueErrorKind::Topology)]);
    }
    // A broker that is busy may answer 0.
    until("both wait", LIMIT, async || {
        (queue.depth(&lane("default")).await.unwrap().ready == 2).then_some(())
    })
    .await;
    assert_eq!(queue.check().await.unwrap_err().kind(), QueueErrorKind::Topology);
    vhost
        .manage(Method::DELETE, &format!("queues/{}/errand.bulk", vhost.encoded_name()), None)
        .await
        .unwrap();
    assert_eq!(kinds(queue.publish(batch(2)).await), []);
    assert_eq!(queue.reconnects(), 0);
}

/// The replies that have arrived, by their jobs, in a queue that the caller consumes.
async fn replied(replies: &mut lapin::Consumer, jobs: usize) -> BTreeMap<String, Value> {
    use futures_util::StreamExt as _;
    let mut seen = BTreeMap::new();
    while seen.len() < jobs {
        let delivery = tokio::time::timeout(PATIENCE, replies.next());
        let delivery = delivery.await.unwrap_or_else(|_| panic!("{} replies of {jobs}", seen.len()));
        let delivery = delivery.unwrap().unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let reply: Value = serde_json::from_slice(&delivery.data).unwrap();
        seen.insert(reply["id"].as_str().unwrap().to_owned(), reply);
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reply_or_job_that_is_too_large_keeps_no_other_waiting() {
    let broker = small_broker().await;
    // Every answer about a repository is larger than the broker takes.
    let faults = "[[fault]]\nkind = \"large\"\ntool = \"GITHUB_GET_REPO\"\nbytes = 100000\n";
    let harness = Harness::of(
        support::database("large").await,
        broker.vhost("large").await.unwrap(),
        sandbox(faults).await,
    );
    let worker = harness.worker(&[("ERRAND__REPLIES__ALLOWED", "app.")]).await;
    let connection = harness.vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("app.replies".into(), options, FieldTable::default()).await.unwrap();
    let (consume, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut replies = channel.basic_consume("app.replies".into(), "".into(), consume, none).await.unwrap();

    let (poison, good) = (read("u-alice"), spread(40, send));
    let jobs = [&good[..20], std::slice::from_ref(&poison), &good[20..]].concat();
    let bodies: Vec<_> = jobs.iter().map(|job| serde_json::to_vec(job).unwrap()).collect();
    let properties = BasicProperties::default().with_delivery_mode(2).with_reply_to("app.replies".into());
    harness.publish_raw(&bodies, properties).await;
    let expected: BTreeSet<_> = jobs.iter().map(|job| job.id().to_owned()).collect();
    let mut told = replied(&mut replies, 41).await;
    assert!(told.keys().eq(&expected));
    // Whoever waits for a result that is too large learns where it is.
    let large = told.remove(poison.id()).unwrap();
    let at = &large["result_at"];
    assert_eq!((&large["state"], &large["result"]), (&json!("succeeded"), &Value::Null), "{large}");
    assert_eq!(at["path"], format!("/v1/jobs/{}", poison.id()), "{large}");
    assert!(at["bytes"].as_u64().unwrap() > MAX_MESSAGE as u64, "{large}");
    assert!(harness.show(poison.id())["result"].is_object(), "its result is in the store");
    for reply in told.values() {
        assert!(reply["result"].is_object() && reply["result_at"].is_null(), "{reply}");
    }
    assert_eq!(worker.metric("errand_replies_total{reply=\"final\",result=\"shortened\"}").await, 1.0);

    // Enqueued jobs come to the queue through the same publisher and, where that fails, through the relay.
    let mut huge = browse("u-alice");
    huge["arguments"] = json!({"text": "x".repeat(MAX_MESSAGE)});
    let batch = [&spread(20, send)[..], std::slice::from_ref(&huge), &spread(20, send)[..]].concat();
    let lines: String = batch.iter().map(|job| format!("{job}\n")).collect();
    let file = harness.journal_dir().with_file_name("jobs.ndjson");
    std::fs::write(&file, lines).unwrap();
    let enqueued = harness.errand(&["enqueue-bulk", file.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&enqueued.stderr);
    assert!(enqueued.status.success(), "{told}");
    harness.counts("state = 'succeeded'", 81).await;
    let waits = format!("state = 'available' and id = '{}'", huge.id());
    harness.counts(&waits, 1).await;
    worker.metric_reaches("errand_relay_failed_total{kind=\"too_large\"}", 1.0).await;
    worker.logged("the broker refuses jobs").await;
    let told = worker.lines("the broker refuses jobs; each is published again after ever longer waits");
    assert_eq!((told[0]["job.id"].as_str(), told[0]["count"].as_u64()), (Some(huge.id()), Some(1)));
    assert_eq!(worker.metric("errand_broker_reconnects_total").await, 0.0);
}
