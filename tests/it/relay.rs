//! When the relay publishes again what could not be published.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use errand::{
    clock,
    job::{JobId, Principal, QueueType, ReplyRules},
    queue::{
        Queue, SharedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
    relay::{Options, Relay},
    services::Services,
};
use errand_testbed::scripted_api::{Answer, ScriptedApi};
use lapin::{
    options::{BasicGetOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    queue_contract::{
        helpers::{LIMIT, lane, message},
        options,
    },
    refused::set_working,
    store_contract::{OPERATOR, TestStore, job, job_with_reply},
    support::{self, rabbitmq::Vhost, wait::until},
    tool_api::client,
};

/// When a job that was published and that nobody claims is published again.
const UNCLAIMED: Duration = Duration::from_secs(3_600);

struct Running {
    t: TestStore,
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

impl Running {
    async fn start(t: TestStore, queue: SharedQueue) -> Self {
        let nobody = ScriptedApi::responding(|_| Answer::new("500 None", String::new())).await;
        let services = Services::new(t.store.clone(), queue, Arc::new(client(&nobody)), clock::system());
        let poll = Duration::from_millis(100);
        let replies = ReplyRules::new(vec!["amq.gen-".to_owned()]);
        let options = Options { poll, batch: 10, unclaimed: UNCLAIMED, replies, held: true };
        let stop = CancellationToken::new();
        let relay = tokio::spawn(Relay::new(&services, options).run(stop.clone()));
        Self { t, stop, relay }
    }

    /// In how many seconds a job is due.
    async fn due_in(&self, id: JobId) -> Option<i64> {
        let due_at = self.t.store.job(&Principal::Operator, id).await.unwrap().unwrap().due_at?;
        Some(due_at.duration_since(self.t.store.now().await.unwrap()).as_secs())
    }

    /// Waits until a job is due in a time within these bounds, in seconds.
    async fn due_within(&self, id: JobId, seconds: std::ops::Range<i64>) {
        until(&format!("a job is due in {seconds:?} s"), LIMIT, async || {
            seconds.contains(&self.due_in(id).await?).then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.relay.await.unwrap();
    }
}

/// A broker on which `errand.bulk` confirms nothing.
async fn with_silent_bulk(hint: &str) -> (Vhost, Arc<RabbitQueue>) {
    let vhost = support::vhost(hint).await;
    let queue = Arc::new(RabbitQueue::new(options(&vhost.amqp_url)).unwrap());
    queue.check().await.unwrap();
    set_working(&vhost, "errand.bulk", false).await;
    (vhost, queue)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_connection_cut_off_is_published_again_soon_though_others_got_through() {
    let vhost = support::vhost("cut-off").await;
    let port = url::Url::parse(&vhost.amqp_url).unwrap().port().unwrap();
    let proxy = support::start_proxy(port).await;
    // Of classic queues, one that does not confirm keeps no other from doing so.
    let classic = |url: &str| {
        RabbitQueue::new(RabbitOptions { queue_type: QueueType::Classic, ..options(url) }).unwrap()
    };
    let (queue, watcher) =
        (Arc::new(classic(&proxy.url(&vhost.amqp_url).unwrap())), classic(&vhost.amqp_url));
    watcher.check().await.unwrap();
    queue.publish(vec![message("default", "declares all lanes")]).await.remove(0).unwrap();
    set_working(&vhost, "errand.bulk", false).await;
    let t = TestStore::sqlite().await;
    let (good, cut_off) = (job(json!({})), job(json!({"queue": "bulk"})));
    t.store.insert(&[good, cut_off.clone()], Duration::ZERO).await.unwrap();
    let running = Running::start(t, queue).await;
    until("one of both is published", LIMIT, async || {
        (watcher.depth(&lane("default")).await.unwrap().ready == 2).then_some(())
    })
    .await;
    running.due_within(cut_off.id, 1_800..3_601).await;
    proxy.cut().await.unwrap();
    running.due_within(cut_off.id, -60..60).await;
    set_working(&vhost, "errand.bulk", true).await;
    proxy.heal().await.unwrap();
    // And then it waits as what was published for the first time.
    running.due_within(cut_off.id, 1_800..3_601).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_for_a_queue_that_confirms_nothing_keeps_no_other_lane_waiting() {
    let (vhost, queue) = with_silent_bulk("backlog").await;
    let t = TestStore::sqlite().await;
    let backlog: Vec<_> = (0..300).map(|_| job(json!({"queue": "bulk", "priority": 9}))).collect();
    t.store.insert(&backlog, Duration::ZERO).await.unwrap();
    t.store.insert(&[job(json!({}))], Duration::ZERO).await.unwrap();
    let started = Instant::now();
    let running = Running::start(t, Arc::clone(&queue) as SharedQueue).await;
    until("the other lane's job is published", LIMIT, async || {
        (queue.depth(&lane("default")).await.unwrap().ready == 1).then_some(())
    })
    .await;
    // The first page waits for ten seconds, and no other does.
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    for job in &backlog {
        running.due_within(job.id, 1_800..3_601).await;
    }
    set_working(&vhost, "errand.bulk", true).await;
    running.stop().await;
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_queue_was_silent_for_a_moment_is_published_again_soon() {
    let (vhost, queue) = with_silent_bulk("silent").await;
    let t = TestStore::sqlite().await;
    let silent = job(json!({"queue": "bulk"}));
    t.store.insert(std::slice::from_ref(&silent), Duration::ZERO).await.unwrap();
    let running = Running::start(t, Arc::clone(&queue) as SharedQueue).await;
    running.due_within(silent.id, 1_800..3_601).await;
    running.due_within(silent.id, 5..20).await;
    set_working(&vhost, "errand.bulk", true).await;
    running.due_within(silent.id, 1_800..3_601).await;
    until("it is published", LIMIT, async || {
        (queue.depth(&lane("bulk")).await.unwrap().ready > 0).then_some(())
    })
    .await;
    running.stop().await;
    assert_eq!(queue.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_jobs_whose_queue_is_silent_wait_longer_though_few_fill_a_page() {
    let (vhost, queue) = with_silent_bulk("large-silent").await;
    let t = TestStore::sqlite().await;
    let text = "x".repeat(900_000);
    let large: Vec<_> = (0..4).map(|_| job(json!({"queue": "bulk", "arguments": {"text": text}}))).collect();
    t.store.insert(&large, Duration::ZERO).await.unwrap();
    let running = Running::start(t, Arc::clone(&queue) as SharedQueue).await;
    running.due_within(large[0].id, 1_800..3_601).await;
    // What is published later is published in a later round.
    running.t.store.insert(&[job(json!({}))], Duration::ZERO).await.unwrap();
    until("the other lane's job is published", LIMIT, async || {
        (queue.depth(&lane("default")).await.unwrap().ready == 1).then_some(())
    })
    .await;
    for job in &large {
        assert!(running.due_in(job.id).await > Some(1_800));
    }
    set_working(&vhost, "errand.bulk", true).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_a_broken_connection_cut_off_is_published_again_soon() {
    let vhost = support::vhost("cut-off-reply").await;
    let port = url::Url::parse(&vhost.amqp_url).unwrap().port().unwrap();
    let proxy = support::start_proxy(port).await;
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let own = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let replies = channel.queue_declare("".into(), own, FieldTable::default()).await.unwrap().name().clone();
    let t = TestStore::sqlite().await;
    let spec = job_with_reply(json!({}), Some(replies.as_str()));
    t.store.insert(std::slice::from_ref(&spec), Duration::ZERO).await.unwrap();
    t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    let offered_at = async |t: &TestStore| t.count("select reply_due_at from jobs").await;
    let first = offered_at(&t).await;
    proxy.cut().await.unwrap();
    let queue = RabbitQueue::new(options(&proxy.url(&vhost.amqp_url).unwrap())).unwrap();
    let running = Running::start(t, Arc::new(queue)).await;
    until("the reply is taken", LIMIT, async || (offered_at(&running.t).await != first).then_some(())).await;
    proxy.heal().await.unwrap();
    // One that was taken by a process which then vanished would come after a minute.
    until("the reply arrives", Duration::from_secs(30), async || {
        channel.basic_get(replies.clone(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    running.stop().await;
}
