//! How a worker ends: within its budget whatever stalls, in phases that can be watched, and with nothing
//! lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use errand_testbed::factory::{Envelope as _, create, id, read, send};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, Executor as _, PgConnection};

use errand::shutdown::ONE_STOP;
use tokio::time::sleep;

use crate::{
    harness::{Harness, PATIENCE, Process, port, sandbox},
    support::{self, Postgres, http, postgres, wait::until},
};

/// What a busy machine may add to a budget.
const MARGIN: Duration = Duration::from_secs(10);

/// A budget of which 2.5 seconds are left for the journal, because the disk of a machine that has just compiled may take
/// more than one to sync a file. In seconds.
const JOURNALING: &str = "25";

/// A harness whose database can be killed.
async fn fragile(hint: &str, faults: &str) -> (Postgres, Harness) {
    let server = support::start_postgres(postgres::Options::default()).await;
    let harness =
        Harness::of(server.database(hint).await.unwrap(), support::vhost(hint).await, sandbox(faults).await);
    (server, harness)
}

/// The files of the journal's folder, with what is kept aside.
fn journal(harness: &Harness) -> Vec<PathBuf> {
    let entries = fs::read_dir(harness.journal_dir()).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The phases that a process has logged, in order.
fn phases(worker: &Process) -> Vec<String> {
    let named = worker.lines_like("shutting down: ");
    named.iter().map(|line| line["phase"].as_str().unwrap().to_owned()).collect()
}

fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().unwrap().iter().filter_map(|attempt| attempt["outcome"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_a_dead_database_cannot_take_are_written_by_the_next_worker() {
    let (server, harness) = fragile("journal", "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n").await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__DRAIN_SECS", JOURNALING)]).await;
    let ids: Vec<String> = (0..20).map(|_| id()).collect();
    harness.publish(&ids.iter().map(|id| send("user-1").named(id)).collect::<Vec<_>>()).await;
    harness.called(20).await;
    server.kill9().await.unwrap();
    let begun = Instant::now();
    let status = worker.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(25) + MARGIN, "{:?}", begun.elapsed());
    assert!(status.success(), "nothing is left: {}", worker.log());
    assert_eq!(phases(&worker), ["draining", "interrupting", "journaling", "closing"]);
    let files = journal(&harness);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!worker.log().contains("ann@example.com"));

    server.restart().await.unwrap();
    let next = harness.worker(&[]).await;
    assert_eq!(harness.settled(20).await, [("succeeded".to_owned(), 20)]);
    for id in &ids {
        let shown = harness.show(id);
        assert_eq!((harness.sandbox.job_effects(id), outcomes(&shown)), (1, vec!["succeeded"]));
        assert!(shown["log_id"].is_string() && shown["result"].is_object(), "{shown}");
    }
    assert_eq!(journal(&harness), Vec::<PathBuf>::new());
    let metrics = next.metrics().await;
    assert!(metrics.contains("errand_journal_records_total{result=\"replayed\"} 20"), "{metrics}");
}

/// A harness whose journal has the results of these calls.
async fn journaled(hint: &str) -> (Postgres, Harness, Vec<String>) {
    let (server, harness) = fragile(hint, "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n").await;
    // No rescue meanwhile.
    let settings = [("ERRAND__WORKER__DRAIN_SECS", JOURNALING), ("ERRAND__WORKER__LEASE_SECS", "300")];
    let mut worker = harness.worker(&settings).await;
    let ids: Vec<String> = (0..20).map(|_| id()).collect();
    harness.publish(&ids.iter().map(|id| send("user-1").named(id)).collect::<Vec<_>>()).await;
    harness.called(20).await;
    server.kill9().await.unwrap();
    assert!(worker.stop().await.success(), "nothing is left: {}", worker.log());
    assert_eq!(journal(&harness).len(), 1);
    server.restart().await.unwrap();
    (server, harness, ids)
}

/// Keeps every writer of jobs waiting until the connection is closed.
async fn lock_jobs(harness: &Harness) -> PgConnection {
    let mut keeper = harness.database.connect().await.unwrap();
    keeper.execute("begin").await.unwrap();
    keeper.execute("lock table jobs in share mode").await.unwrap();
    keeper
}

/// Waits until so many workers wait to write what they have read in a journal.
async fn replaying(harness: &Harness, workers: &str) {
    until(&format!("{workers} workers replay"), PATIENCE, async || {
        let sql = "select count(*)::text from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock' and query like 'with i as (%'";
        (harness.text(sql).await? == workers).then_some(())
    })
    .await;
}

async fn each_result_is_written_once(harness: &Harness, ids: &[String]) {
    until("the journal is replayed", PATIENCE, async || journal(harness).is_empty().then_some(())).await;
    assert_eq!(harness.settled(20).await, [("succeeded".to_owned(), 20)]);
    let written = "select count(*) || '/' || sum(spent) || '/' || (select count(*) from attempts) from jobs \
                   where result is not null and log_id is not null and attempt = 1";
    // A first attempt that succeeded is recorded with its job alone.
    assert_eq!(harness.text(written).await.as_deref(), Some("20/20/0"));
    for id in ids {
        assert_eq!((harness.sandbox.job_effects(id), outcomes(&harness.show(id))), (1, vec!["succeeded"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_that_replay_one_journal_at_once_write_each_result_once() {
    let (_server, harness, ids) = journaled("both-replay").await;
    let keeper = lock_jobs(&harness).await;
    let (one, other) = (harness.start_worker(&[]), harness.start_worker(&[]));
    replaying(&harness, "2").await;
    keeper.close().await.unwrap();
    for worker in [&one, &other] {
        worker.becomes_ready(true).await;
        assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    }
    each_result_is_written_once(&harness, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_it_replays_a_journal_leaves_it_to_the_next() {
    let (_server, harness, ids) = journaled("killed-replay").await;
    let keeper = lock_jobs(&harness).await;
    let mut killed = harness.start_worker(&[]);
    replaying(&harness, "1").await;
    killed.kill9();
    assert_eq!(journal(&harness).len(), 1, "it is still there");
    // The server may or may not write what it was asked to before it notices.
    keeper.close().await.unwrap();
    let next = harness.worker(&[]).await;
    each_result_is_written_once(&harness, &ids).await;
    assert!(!next.log().contains("ERROR"), "{}", next.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_a_journal_that_cannot_be_written_at_the_start_are_written_later() {
    let (_server, harness, ids) = journaled("late-replay").await;
    let mut keeper = harness.database.connect().await.unwrap();
    keeper.execute("begin").await.unwrap();
    keeper.execute("select id from jobs order by id limit 3 for update").await.unwrap();
    let worker = harness.worker(&[]).await;
    worker.becomes_ready(true).await;
    assert_eq!(harness.count("state = 'succeeded'").await, 17, "the others are written");
    assert_eq!(journal(&harness).len(), 1, "it is still there");
    keeper.close().await.unwrap();
    each_result_is_written_once(&harness, &ids).await;
    for (result, count) in [("replayed", 20.0), ("failing", 3.0), ("fenced", 0.0), ("unknown", 0.0)] {
        let metric = format!("errand_journal_records_total{{result=\"{result}\"}}");
        assert_eq!(worker.metric(&metric).await, count, "{metric}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_and_loses_nothing() {
    let faults = r#"
        [[fault]]
        kind = "latency"
        tool = "GMAIL_SEND_EMAIL"
        fixed_ms = 4000
        [[fault]]
        kind = "hang"
        tool = "LINEAR_CREATE_ISSUE"
        after_effect = true
    "#;
    let (server, harness) = fragile("abort", faults).await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__DRAIN_SECS", "600")]).await;
    let (sent, created): (Vec<String>, Vec<String>) = (0..10).map(|_| (id(), id())).unzip();
    harness.publish(&sent.iter().map(|id| send("user-1").named(id)).collect::<Vec<_>>()).await;
    harness.publish(&created.iter().map(|id| create("user-1").named(id)).collect::<Vec<_>>()).await;
    harness.called(20).await;
    server.kill9().await.unwrap();
    // What has ended is being written, to a database that is dead.
    worker.metric_reaches("errand_finish_batch_jobs_count", 1.0).await;
    until("all have taken effect", PATIENCE, async || {
        (harness.sandbox.ledger_summary().effects == 20).then_some(())
    })
    .await;
    worker.terminate();
    worker.in_phase("draining").await;
    sleep(ONE_STOP).await;
    worker.terminate();
    let begun = Instant::now();
    worker.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(1) + MARGIN, "{:?}", begun.elapsed());

    server.restart().await.unwrap();
    let _next = harness.worker(&[]).await;
    let counts = harness.settled(20).await;
    let [(held, _), (succeeded, _)] = counts.as_slice() else { panic!("{counts:?}") };
    assert_eq!((held.as_str(), succeeded.as_str()), ("held", "succeeded"));
    for id in sent.iter().chain(&created) {
        let shown = harness.show(id);
        assert!(shown["state"] == "succeeded" || shown["held_reason"] == "unknown_outcome", "{shown}");
        assert_eq!(harness.sandbox.job_effects(id), 1);
    }
    for id in &created {
        assert_eq!(harness.show(id)["state"], "held");
    }
    assert_eq!(journal(&harness), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_still_writes_to_a_database_that_answers() {
    let faults = "[[fault]]\nkind = \"hang\"\nafter_effect = true\nfirst = 1\n";
    let harness = Harness::new("abort-healthy", faults).await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__DRAIN_SECS", "600")]).await;
    let (counts, repeatable) = (id(), id());
    harness.publish(&[send("user-1").named(&counts), read("u-alice").named(&repeatable)]).await;
    harness.called(2).await;
    worker.terminate();
    worker.in_phase("draining").await;
    sleep(ONE_STOP).await;
    worker.terminate();
    assert!(worker.ended().await.success(), "nothing is left: {}", worker.log());
    assert_eq!(phases(&worker), ["draining", "interrupting", "closing"]);
    assert_eq!(harness.show(&counts)["held_reason"], "unknown_outcome");
    assert_eq!(journal(&harness), Vec::<PathBuf>::new());

    let _next = harness.worker(&[]).await;
    let shown = harness.job_in(&repeatable, &["succeeded"]).await;
    assert_eq!(outcomes(&shown), ["unknown", "succeeded"]);
    assert_eq!(harness.sandbox.job_effects(&counts), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_arrives_as_two_signals_is_one() {
    let harness = Harness::new("one-stop", "[[fault]]\nkind = \"latency\"\nfixed_ms = 3000\n").await;
    for (first, second, apart_ms) in [("TERM", "TERM", 3), ("INT", "TERM", 3), ("HUP", "INT", 30)] {
        let mut worker = harness.worker(&[]).await;
        let jobs: Vec<Value> = (0..4).map(|_| send("user-1")).collect();
        let called = harness.sandbox.ledger_summary().calls;
        harness.publish(&jobs).await;
        harness.called(called + 4).await;
        worker.signal(first);
        sleep(Duration::from_millis(apart_ms)).await;
        worker.signal(second);
        assert!(worker.ended().await.success(), "nothing is left: {}", worker.log());
        assert_eq!(phases(&worker), ["draining", "closing"], "{first}, {second}");
        for job in &jobs {
            assert_eq!(harness.show(job.id())["state"], "succeeded", "{first}, {second}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_that_a_terminal_or_a_manager_sends_has_an_answer_that_loses_nothing() {
    let harness = Harness::new("signals", "[[fault]]\nkind = \"latency\"\nfixed_ms = 6000\n").await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__DRAIN_SECS", "600")]).await;
    let one = send("user-1");
    harness.publish(std::slice::from_ref(&one)).await;
    harness.called(1).await;
    for ignored in ["PIPE", "USR1", "USR2", "WINCH", "TSTP", "CONT"] {
        worker.signal(ignored);
    }
    assert_eq!(harness.job_in(one.id(), &["succeeded", "held"]).await["state"], "succeeded");
    assert_eq!(worker.readiness().await["phase"], "running");
    // What counts and is interrupted is held, written by the worker itself.
    let two = send("user-2");
    harness.publish(std::slice::from_ref(&two)).await;
    harness.called(2).await;
    let begun = Instant::now();
    worker.signal("QUIT");
    assert!(worker.ended().await.success(), "nothing is left: {}", worker.log());
    assert!(begun.elapsed() < Duration::from_secs(1) + MARGIN, "{:?}", begun.elapsed());
    assert_eq!(harness.show(two.id())["held_reason"], "unknown_outcome");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_started_to_outlive_its_terminal_does() {
    let harness = Harness::new("nohup", "").await;
    let mut worker = Process::start_ignoring_hangups(&["worker", "--listen", "127.0.0.1:0"], &harness.env());
    worker.logged("worker ready").await;
    worker.signal("HUP");
    let one = read("u-alice");
    harness.publish(std::slice::from_ref(&one)).await;
    harness.job_in(one.id(), &["succeeded"]).await;
    assert_eq!(phases(&worker), Vec::<String>::new());
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_phases_of_a_shutdown_can_be_watched() {
    let harness = Harness::new("phases", "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n").await;
    let mut worker = harness.worker(&[]).await;
    let url = format!("http://{}/health/ready", worker.address().await);
    let client = http::client();
    let phase = async || {
        let answer = client.get(&url).send().await.ok()?;
        let ready = answer.status() == 200;
        let readiness: Value = answer.json().await.ok()?;
        assert_eq!(readiness["ready"], ready);
        assert_eq!(readiness["draining"], readiness["phase"] != "running");
        Some(readiness["phase"].as_str()?.to_owned())
    };
    assert_eq!(phase().await.as_deref(), Some("running"));
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.called(1).await;
    worker.terminate();
    worker.in_phase("draining").await;
    let metrics = worker.metrics().await;
    for line in
        ["errand_phase{phase=\"draining\"} 1", "errand_phase{phase=\"running\"} 0", "errand_draining 1"]
    {
        assert!(metrics.contains(line), "{line}");
    }
    assert!(worker.ended().await.success());
    assert_eq!(phases(&worker), ["draining", "closing"]);
    let drained = &worker.lines_like("shutting down: ")[0];
    assert_eq!((&drained["in_flight"], &drained["unwritten"]), (&json!(1), &json!(0)), "{drained}");
    assert_eq!(harness.show(&one)["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_draining_only_calls_that_can_finish_or_be_repeated_are_started() {
    let harness = Harness::new("fit", "").await;
    let api = support::start_proxy(port(&harness.sandbox.base_url())).await;
    let through = api.url(&harness.sandbox.base_url()).unwrap();
    let through = through.trim_end_matches('/');
    let mut worker =
        harness.worker(&[("COMPOSIO_BASE_URL", through), ("ERRAND__WORKER__DRAIN_SECS", "30")]).await;
    // The look-ups before the calls hang, so that the drain begins between claim and call.
    api.stall();
    let (long, short, repeatable) = (id(), id(), id());
    let with = |job: Value, timeout_ms: u32| job.with("timeout_ms", timeout_ms).with("max_attempts", 1);
    let jobs = [
        with(send("user-1").named(&long), 60_000),
        with(create("user-1").named(&short), 5_000),
        with(read("u-alice").named(&repeatable), 60_000),
    ];
    harness.publish(&jobs).await;
    for job in [&long, &short, &repeatable] {
        harness.job_in(job, &["running"]).await;
    }
    worker.terminate();
    worker.in_phase("draining").await;
    api.heal().await.unwrap();
    assert!(worker.ended().await.success(), "nothing is left: {}", worker.log());
    for job in [&short, &repeatable] {
        assert_eq!(harness.show(job)["state"], "succeeded");
    }
    assert_eq!(outcomes(&harness.show(&long)), ["interrupted"]);
    assert_eq!(harness.sandbox.ledger_summary().calls, 2, "it was not sent");

    let _next = harness.worker(&[]).await;
    let shown = harness.job_in(&long, &["succeeded", "failed"]).await;
    assert_eq!(shown["state"], "succeeded", "its only attempt was not spent: {shown}");
    assert_eq!(harness.sandbox.job_effects(&long), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_outlasts_the_budget_is_interrupted_in_time() {
    let harness = Harness::new("hang", "[[fault]]\nkind = \"hang\"\nafter_effect = true\nfirst = 1\n").await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__DRAIN_SECS", JOURNALING)]).await;
    let (counts, repeatable) = (id(), id());
    let once_only = read("u-alice").named(&repeatable).with("max_attempts", 1);
    harness.publish(&[send("user-1").named(&counts), once_only]).await;
    harness.called(2).await;
    let begun = Instant::now();
    assert!(worker.stop().await.success(), "nothing is left: {}", worker.log());
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(15) && took < Duration::from_secs(25) + MARGIN, "{took:?}");
    assert_eq!(phases(&worker), ["draining", "interrupting", "closing"]);
    let held = harness.show(&counts);
    assert_eq!((&held["state"], &held["held_reason"]), (&json!("held"), &json!("unknown_outcome")));

    let _next = harness.worker(&[]).await;
    let shown = harness.job_in(&repeatable, &["succeeded", "failed"]).await;
    assert_eq!(shown["state"], "succeeded", "its only attempt was not spent: {shown}");
    assert_eq!(harness.sandbox.job_effects(&counts), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_broker_stalls_ends_in_time_and_writes_what_it_has() {
    let harness = Harness::new("stalled-broker", "[[fault]]\nkind = \"latency\"\nfixed_ms = 4000\n").await;
    let broker = support::start_proxy(port(&harness.vhost.amqp_url)).await;
    let through = broker.url(&harness.vhost.amqp_url).unwrap();
    let mut worker = harness.worker(&[("AMQP_URL", &through), ("ERRAND__WORKER__DRAIN_SECS", "15")]).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.called(1).await;
    broker.stall();
    let begun = Instant::now();
    assert!(worker.stop().await.success(), "nothing is left: {}", worker.log());
    assert!(begun.elapsed() < Duration::from_secs(15) + MARGIN, "{:?}", begun.elapsed());
    assert_eq!(harness.show(&one)["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_database_stalls_ends_in_time_and_lists_claims_in_doubt() {
    let harness = Harness::new("stalled-database", "[[fault]]\nkind = \"latency\"\nfixed_ms = 4000\n").await;
    let database = support::start_proxy(port(&harness.database.url)).await;
    let through = database.url(&harness.database.url).unwrap();
    let settings = [
        ("DATABASE_URL", through.as_str()),
        ("ERRAND__WORKER__DRAIN_SECS", "10"),
        ("ERRAND__WORKER__LEASE_SECS", "20"),
    ];
    let mut worker = harness.worker(&settings).await;
    let (one, in_doubt) = (id(), id());
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.called(1).await;
    database.stall();
    harness.publish(&[read("u-alice").named(&in_doubt)]).await;
    until("the claim is under way", PATIENCE, async || {
        let metrics = worker.metrics().await;
        metrics.contains("errand_claim_batch_jobs_count 2").then_some(())
    })
    .await;
    let begun = Instant::now();
    let status = worker.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10) + MARGIN, "{:?}", begun.elapsed());
    assert!(!status.success(), "something was left");
    let log = worker.log();
    let left: Vec<&str> = log.lines().filter(|line| line.contains("left behind")).collect();
    assert!(left.len() == 1 && left[0].contains(&in_doubt), "{left:?}");
    assert_eq!(journal(&harness).len(), 1);

    // What the proxy holds back reaches the database after all, as packets in a network may.
    database.heal().await.unwrap();
    let _next =
        harness.worker(&[("ERRAND__WORKER__LEASE_SECS", "20"), ("ERRAND__RESCUE__POLL_SECS", "1")]).await;
    for job in [&one, &in_doubt] {
        assert_eq!(harness.job_in(job, &["succeeded", "failed", "held"]).await["state"], "succeeded");
    }
    assert_eq!(harness.sandbox.job_effects(&one), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_replayed_is_kept_and_does_not_stop_a_start() {
    let harness = Harness::new("damaged", "").await;
    fs::create_dir(harness.journal_dir()).unwrap();
    let path = |name: &str| harness.journal_dir().join(name);
    let file = |version: u32, results: &str| {
        let sum: String = Sha256::digest(results).iter().map(|byte| format!("{byte:02x}")).collect();
        format!(r#"{{"version":{version},"results":{results},"checksum":"{sum}"}}"#)
    };
    let elsewhere = json!([{"id": id(), "fence": 1, "by": "holder", "ending": {"succeed": {"result": {}}}, "attempt": {
        "number": 1, "request_id": id(), "outcome": "succeeded", "http_status": 200, "log_id": null, "version": null,
        "error": null, "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:01Z"}}]);
    let foreign = file(1, &elsewhere.to_string());
    fs::write(path("broken.json"), foreign.replace("succeeded", "succeedee")).unwrap();
    fs::write(path("foreign.json"), &foreign).unwrap();
    fs::write(path("newer.json"), file(2, "[]")).unwrap();

    let mut worker = harness.worker(&[]).await;
    let log = worker.log();
    for said in ["a journal is damaged", "this database does not know", "another version of errand"] {
        assert!(log.contains(said), "{said}: {log}");
    }
    let metrics = worker.metrics().await;
    for line in [
        "errand_unreadable_journals_total 2",
        "errand_journal_records_total{result=\"unknown\"} 1",
        "errand_journal_records_total{result=\"replayed\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let mut kept: Vec<String> = journal(&harness)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    kept.sort();
    assert_eq!(kept, ["broken.json.damaged", "foreign.json", "newer.json.damaged"]);
    assert_eq!(fs::read_to_string(path("foreign.json")).unwrap(), foreign);
    assert!(worker.stop().await.success());
}
