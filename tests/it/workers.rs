//! The life of a worker, as a process on RabbitMQ and PostgreSQL: how it starts, what it survives, what it shows.

use std::time::Duration;

use errand_testbed::factory::{Envelope as _, browse, id, read, send, spread, update};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, PATIENCE, port, sandbox},
    support::{self, machine, rabbitmq, wait::until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_flight_loses_nothing_and_repeats_nothing_that_counts() {
    // Slow enough that most of them are still to be done when the worker is killed.
    let faults = "[[fault]]\nkind = \"latency\"\nmin_ms = 500\nmax_ms = 1500\n";
    let harness = Harness::new("sigkill", faults).await;
    let short_lease = [
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "40"),
        ("ERRAND__WORKER__LEASE_SECS", "5"),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__RESCUE__POLL_SECS", "1"),
    ];
    let mut first = harness.worker(&short_lease).await;
    let jobs: Vec<Value> = (0..400)
        .map(|n| if n % 2 == 0 { send(&format!("user-{}", n % 20 + 1)) } else { read("u-alice") })
        .collect();
    harness.publish(&jobs).await;
    until("the worker is in the middle of it", PATIENCE, async || {
        let done = harness.text("select count(*)::text from jobs where state = 'succeeded'").await?;
        (done.parse::<u32>().ok()? > 20).then_some(())
    })
    .await;
    first.kill9();
    let running = harness.text("select count(*)::text from jobs where state = 'running'").await.unwrap();
    assert_ne!(running, "0", "the kill met calls in flight");

    let _second = harness.worker(&short_lease).await;
    let counts = harness.settled(400).await;
    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    assert_eq!(total, 400, "{counts:?}");
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!(ledger.jobs_repeated_once, 0, "{ledger:?}");
    let unexplained = "select count(*)::text from jobs where state not in ('succeeded') \
                       and not (state = 'held' and held_reason = 'unknown_outcome' and effect_known)";
    let unexplained = unexplained.replace("effect_known", "frozen_effect = 'once'");
    assert_eq!(harness.text(&unexplained).await.as_deref(), Some("0"), "{counts:?}");
    let lost =
        harness.text("select count(*)::text from attempts where outcome in ('lost', 'interrupted')").await;
    assert_ne!(lost.as_deref(), Some("0"), "rescued jobs have the lost attempt on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_load_and_a_drained_one_leaves_nothing_running() {
    let faults = "[[fault]]\nkind = \"latency\"\nfixed_ms = 150\n";
    let harness = Harness::new("share", faults).await;
    let few = [("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "8")];
    let (mut one, two) = tokio::join!(harness.worker(&few), harness.worker(&few));
    let jobs = spread(160, send);
    harness.publish(&jobs).await;
    for worker in [&one, &two] {
        until("both run jobs", PATIENCE, async || {
            let metrics = worker.metrics().await;
            metrics.lines().find(|l| l.starts_with("errand_claims_total{") && l.contains("running"))?;
            Some(())
        })
        .await;
    }
    let status = one.stop().await;
    assert!(status.success(), "{}", one.log());
    harness.settled(160).await;
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.effects_once, ledger.jobs_repeated_once), (160, 0));
    let succeeded = harness.text("select count(*)::text from jobs where state = 'succeeded'").await;
    assert_eq!(succeeded.as_deref(), Some("160"), "draining interrupts nothing that fits its time");
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_falls_while_a_worker_drains_and_the_call_in_flight_is_recorded() {
    let faults = "[[fault]]\nkind = \"latency\"\nfixed_ms = 6000\n";
    let harness = Harness::new("drain", faults).await;
    let mut worker = harness.worker(&[]).await;
    worker.becomes_ready(true).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.called(1).await;
    worker.terminate();
    worker.becomes_ready(false).await;
    assert!(worker.ended().await.success());
    assert_eq!(harness.show(&one)["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_services_with_a_clear_message() {
    let harness = Harness::new("wait", "").await;
    let (database, broker) = tokio::join!(
        support::start_proxy(port(&harness.database.url)),
        support::start_proxy(port(&harness.vhost.amqp_url)),
    );
    database.cut().await.unwrap();
    broker.cut().await.unwrap();
    let (database_url, amqp_url) =
        (database.url(&harness.database.url).unwrap(), broker.url(&harness.vhost.amqp_url).unwrap());
    let mut worker = harness.start_worker(&[("DATABASE_URL", &database_url), ("AMQP_URL", &amqp_url)]);
    worker.logged("waiting for PostgreSQL").await;
    database.heal().await.unwrap();
    worker.logged("waiting for RabbitMQ").await;
    broker.heal().await.unwrap();
    worker.becomes_ready(true).await;
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_while_the_database_is_away_gives_the_others_a_lease_to_beat() {
    let harness = Harness::new("patient-start", "[[fault]]\nkind = \"latency\"\nfixed_ms = 8000\n").await;
    let lease = [("ERRAND__WORKER__HEARTBEAT_SECS", "1"), ("ERRAND__WORKER__LEASE_SECS", "15")];
    let first = harness.worker(&lease).await;
    harness.publish(&spread(10, send)).await;
    harness.called(10).await;
    // Nobody can beat.
    first.signal("STOP");
    let database = support::start_proxy(port(&harness.database.url)).await;
    database.cut().await.unwrap();
    let url = database.url(&harness.database.url).unwrap();
    let second = harness.start_worker(&[&lease[..], &[("DATABASE_URL", url.as_str())]].concat());
    second.logged("waiting for PostgreSQL").await;
    until("the lease has ended long ago", PATIENCE, async || {
        let sql = "select count(*)::text from workers where beat_at < now() - interval '20 seconds'";
        (harness.text(sql).await? == "1").then_some(())
    })
    .await;
    database.heal().await.unwrap();
    second.logged("other workers have a lease to beat again").await;
    first.signal("CONT");
    harness.all_ran_once(10).await;
    assert_eq!(second.metric_sum("errand_rescued_jobs_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_never_reach_logs_or_metrics() {
    let harness = Harness::new("secrets", "").await;
    let worker = harness.worker(&[("ERRAND__LOG__LEVEL", "debug")]).await;
    let jobs = [send("user-1"), read("u-alice")];
    harness.publish(&jobs).await;
    harness.settled(2).await;
    let seen = worker.log() + &worker.metrics().await;
    for secret in ["ak_test_good", "ann@example.com", "guest:guest"] {
        assert!(!seen.contains(secret), "{secret} was shown");
    }
    assert!(!worker.metrics().await.contains("user-1"), "owners are no labels");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_returns_data_of_a_real_worker() {
    let faults = "[[fault]]\nkind = \"provider_failure\"\ntool = \"LINEAR_UPDATE_ISSUE\"\nprovider_status = 503\nfirst = 1\n";
    let node = support::start_rabbitmq(rabbitmq::Options { prometheus: true, ..Default::default() }).await;
    let vhost = node.vhost("dashboard").await.unwrap();
    let harness = Harness::of(support::database("dashboard").await, vhost, sandbox(faults).await);
    let worker = harness.worker(&[("ERRAND__RETENTION__EVERY_SECS", "1")]).await;
    let address = worker.address().await;
    let publishing = async {
        // Rates need events between two scrapes, so jobs keep coming while the queries are tried.
        loop {
            harness.publish(&[read("u-alice"), update("user-1"), read("u-nobody")]).await;
            harness.publish_raw(&[b"{}".to_vec()], BasicProperties::default()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        () = publishing => {}
        () = crate::dashboards::every_query_returns_data(address, port(&node.prometheus_url())) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_database_stalls_still_ends_and_leaves_its_job_to_the_rescue() {
    let faults = "[[fault]]\nkind = \"latency\"\nfixed_ms = 3000\n";
    let harness = Harness::new("stall", faults).await;
    let database = support::start_proxy(port(&harness.database.url)).await;
    let url = database.url(&harness.database.url).unwrap();
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("ERRAND__WORKER__DRAIN_SECS", "10"),
        ("ERRAND__WORKER__JOURNAL_DIR", ""),
        ("ERRAND__WORKER__LEASE_SECS", "5"),
        ("ERRAND__WORKER__HEARTBEAT_SECS", "1"),
        ("ERRAND__RESCUE__POLL_SECS", "1"),
    ];
    let mut worker = harness.worker(&settings).await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.called(1).await;
    database.stall();
    let status = worker.stop().await;
    assert!(!status.success(), "something was left behind");
    assert!(worker.log().contains("left behind"), "{}", worker.log());

    let _next = harness.worker(&settings[1..]).await;
    let held = harness.job_in(&one, &["held"]).await;
    assert_eq!(held["held_reason"], "unknown_outcome");
    assert_eq!(harness.sandbox.job_effects(&one), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn e_mail_addresses_as_owners_are_warned_about_once_and_never_shown() {
    let harness = Harness::new("email", "").await;
    let worker = harness.worker(&[]).await;
    harness.publish(&[(); 3].map(|()| browse("ann@example.com"))).await;
    harness.settled(3).await;
    assert_eq!(worker.log().matches("owners.refuse_email").count(), 1, "{}", worker.log());
    assert!(!worker.log().contains("ann@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_consumes_again_after_its_broker_was_killed_and_restarted() {
    let broker = support::start_rabbitmq(rabbitmq::Options::default()).await;
    let harness = Harness::of(
        support::database("broker").await,
        broker.vhost("broker").await.unwrap(),
        sandbox("").await,
    );
    let worker = harness.worker(&[]).await;
    worker.becomes_ready(true).await;
    harness.publish(&[read("u-alice")]).await;
    harness.settled(1).await;
    broker.kill9().await.unwrap();
    worker.becomes_ready(false).await;
    broker.restart().await.unwrap();
    worker.becomes_ready(true).await;
    harness.publish(&[read("u-alice")]).await;
    harness.settled(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_speaks_tls_with_a_broker_that_its_host_trusts_and_with_no_other() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name).display().to_string();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(file("certificate"), own.cert.pem()).unwrap();
    std::fs::write(file("key"), own.signing_key.serialize_pem()).unwrap();
    let port = machine::free_port();
    let conf = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
        file("certificate"),
        file("key"),
    );
    let broker = support::start_rabbitmq(rabbitmq::Options { conf, ..rabbitmq::Options::default() }).await;
    let harness =
        Harness::of(support::database("tls").await, broker.vhost("tls").await.unwrap(), sandbox("").await);
    let plain = format!("amqp://guest:guest@127.0.0.1:{}", broker.port());
    let encrypted = harness.vhost.amqp_url.replace(&plain, &format!("amqps://guest:guest@127.0.0.1:{port}"));
    let distrusting = harness.start_worker(&[("AMQP_URL", &encrypted)]);
    distrusting.logged("no TLS certificate that this host trusts").await;
    let _worker = harness.worker(&[("AMQP_URL", &encrypted), ("SSL_CERT_FILE", &file("certificate"))]).await;
    let jobs = spread(100, send);
    harness.publish(&jobs).await;
    harness.all_ran_once(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_decided_before_the_pins_are_read() {
    let harness = Harness::new("pins", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    assert!(harness.errand(&["pins", "set", "gmail", "20251001_00"]).status.success());
    harness.execute("insert into pins values ('user', ' ', 'gmail', '20250909_00')").await;
    harness.execute("alter table pins rename to away").await;
    let worker = harness.start_worker(&[]);
    worker.logged("waiting for the pins").await;
    let one = id();
    harness.publish(&[send("user-1").named(&one)]).await;
    harness.execute("alter table away rename to pins").await;
    let shown = harness.job_in(&one, &["succeeded", "failed"]).await;
    assert_eq!(
        (&shown["version"], &shown["pinned_by"]),
        (&json!("20251001_00"), &json!("global")),
        "{shown}"
    );
}

/// What a log on a full disk says to whoever writes to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_harms_no_job() {
    let harness = Harness::new("full-log", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut worker = std::process::Command::new(env!("CARGO_BIN_EXE_errand"));
    worker.args(["worker", "--listen", "127.0.0.1:0"]).env_clear().envs(harness.env()).stderr(full);
    let mut worker = worker.current_dir(std::env::temp_dir()).spawn().unwrap();
    let one = id();
    let job = send("user-1").named(&one);
    let arguments = job["arguments"].to_string();
    let enqueued = ["enqueue", "--id", &one, "--user-id", "user-1", "--args", &arguments, "GMAIL_SEND_EMAIL"];
    assert!(harness.errand(&enqueued).status.success());
    harness.job_in(&one, &["succeeded"]).await;
    assert!(worker.try_wait().unwrap().is_none(), "it goes on");
    worker.kill().unwrap();
    worker.wait().unwrap();
}
