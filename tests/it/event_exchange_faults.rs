//! Events for the exchange while the broker, or a queue that somebody has bound, does not take them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use errand::{
    job::{Edit, JobSpec, Principal, State},
    store::{Decided, Edited, SharedStore, postgres::PostgresStore},
};
use errand_testbed::factory::{read, send, spread};
use lapin::types::{AMQPValue, FieldTable};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    access_keys::tomorrow,
    answers::App,
    event_exchange::{Listener, PUBLISHES, SENT, WAITING, all_are_published, are, begins, bind, listed},
    event_streams::text,
    harness::{Harness, PATIENCE, Process, sandbox},
    migrated,
    store_contract::{OPERATOR, job, postgres_options},
    support::{
        self,
        rabbitmq::{self, Vhost},
        wait::until,
    },
};

const FAILED: &str = "errand_event_messages_total{result=\"failed\"}";
const PASSED_OVER: &str = "errand_event_messages_total{result=\"passed_over\"}";

/// Names of the broker without that of the exchange for events.
pub(crate) const OTHERS: &str = "^(?!errand\\.events$)";

/// Makes a user of the broker, who may do everything but with the exchange for events, and returns the URL for that user.
pub(crate) async fn restricted(vhost: &Vhost) -> String {
    let user = user(vhost);
    let account = json!({"password": "p", "tags": ""});
    vhost.manage(Method::PUT, &format!("users/{user}"), Some(account)).await.unwrap();
    permit(vhost, OTHERS, OTHERS).await;
    vhost.amqp_url.replace("guest:guest", &format!("{user}:p"))
}

/// Lets the user configure and write to what has such a name.
pub(crate) async fn permit(vhost: &Vhost, configure: &str, write: &str) {
    let path = format!("permissions/{}/{}", vhost.encoded_name(), user(vhost));
    let permissions = json!({"configure": configure, "write": write, "read": ".*"});
    vhost.manage(Method::PUT, &path, Some(permissions)).await.unwrap();
}

fn user(vhost: &Vhost) -> String {
    vhost.name.replace('/', "-")
}

/// Has a queue hold so many messages and refuse more.
pub(crate) fn at_most(messages: i32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(messages));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments
}

/// Waits until it is logged why events are not published.
async fn why_is_logged(worker: &Process, reason: &str) {
    until(reason, PATIENCE, async || {
        let lines = worker.lines("events cannot be published; trying again");
        lines.iter().any(|line| text(line, "error").contains(reason)).then_some(())
    })
    .await;
}

/// Changes jobs that wait until tomorrow, one after the other, until it is over. Each change is an event, for which nobody needs
/// the broker.
async fn change(store: SharedStore, is_over: Arc<AtomicBool>) {
    let who = &Principal::Operator;
    let specs: Vec<Arc<JobSpec>> = (0..20).map(|_| job(json!({"run_at": tomorrow()}))).collect();
    store.insert(&specs, Duration::ZERO).await.unwrap();
    for priority in (1..=9).cycle() {
        for spec in &specs {
            if is_over.load(Ordering::SeqCst) {
                return;
            }
            let read = store.job(who, spec.id).await.unwrap().unwrap();
            let after = read.spec.edited(&Edit { priority: Some(priority), ..Edit::default() }).unwrap();
            let edited = Edited::new(&read, after, store.now().await.unwrap());
            let decided = store.edit(who, &edited, OPERATOR).await.unwrap();
            assert_eq!(decided, Decided::Now(State::Scheduled));
            // The worker needs the processor, too.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_cut_off_and_killed_has_each_event_in_the_order_of_its_job_in_the_end() {
    let broker = support::start_rabbitmq(rabbitmq::Options::default()).await;
    let harness = Harness::of(
        migrated::postgres("exchange-cut").await,
        broker.vhost("exchange-cut").await.unwrap(),
        sandbox("").await,
    );
    let proxy = support::start_proxy(broker.port()).await;
    let url = proxy.url(&harness.vhost.amqp_url).unwrap();
    let worker = harness.worker(&[&PUBLISHES[..], &[("AMQP_URL", url.as_str())]].concat()).await;
    begins(&harness).await;
    bind(&harness.vhost, "all", &["#"], FieldTable::default()).await;
    let store = Arc::new(PostgresStore::new(postgres_options(&harness.database.url)).unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let changing = tokio::spawn(change(store, Arc::clone(&is_over)));
    let more = async |series: &str, count: f64| {
        let before = worker.metric(series).await;
        worker.metric_reaches(series, before + count).await;
    };
    for _ in 0..3 {
        more(SENT, 50.0).await;
        proxy.cut().await.unwrap();
        more(FAILED, 1.0).await;
        worker.metric_reaches(WAITING, 1.0).await;
        proxy.heal().await.unwrap();
    }
    more(SENT, 50.0).await;
    broker.kill9().await.unwrap();
    more(FAILED, 1.0).await;
    broker.restart().await.unwrap();
    more(SENT, 50.0).await;
    is_over.store(true, Ordering::SeqCst);
    changing.await.unwrap();

    let list = listed(&harness);
    let mut all = Listener::of(&harness.vhost, "all").await;
    are(&all.until_has(&list).await, &list);
    all_are_published(&worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_events_wait_until_retention_removes_them_and_jobs_and_replies_go_on() {
    let harness = Harness::new("exchange-forbidden", "").await;
    let url = restricted(&harness.vhost).await;
    let worker = harness.worker(&[&PUBLISHES[..], &[("AMQP_URL", url.as_str())]].concat()).await;
    begins(&harness).await;
    let app = App::new(&harness).await;
    let goes_on = async |name: &str| {
        app.ask(name, &read("u-alice")).await;
        app.reply("final", name).await;
    };
    goes_on("first").await;
    harness.publish(&spread(20, send)).await;
    harness.counts("state = 'succeeded'", 21).await;
    // There is no exchange, and the user may not make it.
    why_is_logged(&worker, "no exchange `errand.events`, and this user may not create it").await;
    worker.metric_reaches(WAITING, 21.0).await;

    // An app makes it, and the user may not write to it.
    bind(&harness.vhost, "all", &["#"], FieldTable::default()).await;
    worker.metric_reaches(FAILED, 1.0).await;
    goes_on("second").await;
    worker.metric_reaches(WAITING, 22.0).await;
    assert_eq!(listed(&harness).len(), 22);
    harness.execute("update events set at = at - interval '8 days'").await;
    assert!(harness.errand(&["prune"]).status.success());
    worker.metric_reaches(PASSED_OVER, 22.0).await;
    worker.logged("events were removed for their age before they could be published").await;
    goes_on("third").await;
    why_is_logged(&worker, "give it the permission to write to the exchange `errand.events`").await;
    harness.publish(&spread(20, send)).await;
    harness.counts("state = 'succeeded'", 43).await;
    assert_eq!((worker.metric(SENT).await, worker.metric(PASSED_OVER).await), (0.0, 22.0));

    permit(&harness.vhost, ".*", ".*").await;
    let list = listed(&harness);
    let mut all = Listener::of(&harness.vhost, "all").await;
    let told = all.take(21).await;
    are(&told, &list);
    all_are_published(&worker).await;
    assert_eq!((worker.metric(SENT).await, worker.metric(PASSED_OVER).await), (21.0, 22.0));
    app.hears_nothing_more().await;
    harness.vhost.manage(Method::DELETE, &format!("users/{}", user(&harness.vhost)), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_of_a_listener_holds_up_no_job_and_gets_what_waited_when_it_has_room() {
    let harness = Harness::new("exchange-full", "").await;
    let worker = harness.worker(&PUBLISHES).await;
    begins(&harness).await;
    bind(&harness.vhost, "small", &["job.succeeded.gmail"], at_most(3)).await;
    let mut all = Listener::new(&harness.vhost, "all", &["#"]).await;
    let app = App::new(&harness).await;
    harness.publish(&[spread(30, send), spread(30, read)].concat()).await;
    harness.counts("state = 'succeeded'", 60).await;
    why_is_logged(&worker, "bound to the exchange `errand.events` for `job.succeeded.gmail` is full").await;
    worker.metric_reaches(FAILED, 1.0).await;
    app.ask("meanwhile", &read("u-alice")).await;
    app.reply("final", "meanwhile").await;
    // Those that no full queue is bound for get through beside them.
    let list = listed(&harness);
    let (mails, others): (Vec<Value>, Vec<Value>) =
        list.iter().cloned().partition(|event| event["toolkit"] == "gmail");
    assert_eq!((mails.len(), others.len()), (30, 31));
    let mut told = all.until_has(&others).await;
    worker.metric_reaches(WAITING, 1.0).await;

    let mut small = Listener::of(&harness.vhost, "small").await;
    are(&small.until_has(&mails).await, &mails);
    let missing: Vec<Value> = list.iter().filter(|event| !told.contains(event)).cloned().collect();
    told.extend(all.until_has(&missing).await);
    are(&told, &list);
    all_are_published(&worker).await;
}
