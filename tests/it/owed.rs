//! What apps get back where it cannot be written at once, or where what they were told before is true no more. The real
//! binary on real services.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use errand_testbed::factory::{Envelope as _, read, send};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    answers::{App, owed},
    harness::{Harness, PATIENCE},
    poison::{SETTINGS, break_rows, heal},
    support::wait::until,
    verify::{QUICK, logs_are},
};

/// Repeats a finished job, while the store takes no answers, as it was asked for before and `others` times otherwise. Other
/// jobs go on meanwhile.
async fn ask_while_no_answer_is_taken(app: &App<'_>, done: &Value, others: usize) {
    app.ask("done", done).await;
    for n in 0..others {
        app.ask(&format!("again {n}"), done).await;
    }
    let begun = Instant::now();
    for _ in 0..3 {
        app.ask("good", &read("u-alice")).await;
        app.reply("final", "good").await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "the lane waited for {:?}", begun.elapsed());
}

/// Waits for the answers to all that was asked meanwhile.
async fn hears_all(app: &App<'_>, others: usize) {
    let mut heard = BTreeSet::new();
    while heard.len() <= others {
        let message = until("a duplicate", PATIENCE, async || app.get().await).await;
        let properties = &message.delivery.properties;
        assert_eq!(properties.kind().as_ref().unwrap().as_str(), "duplicate");
        heard.insert(properties.correlation_id().as_ref().unwrap().to_string());
    }
    assert!(heard.contains("done"), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_repeated_messages_outlive_a_store_that_fails() {
    let harness = Harness::new("failing", "").await;
    let worker = harness.worker(&SETTINGS).await;
    let app = App::new(&harness).await;
    let done = read("u-alice");
    app.ask("done", &done).await;
    app.reply("final", "done").await;
    break_rows(&harness, "answers", "insert", "true").await;
    ask_while_no_answer_is_taken(&app, &done, 20).await;
    assert_eq!(owed(&harness).await, 0);
    worker.becomes_ready(true).await;
    heal(&harness, "answers").await;
    hears_all(&app, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_of_answers_keeps_no_job_waiting() {
    let harness = Harness::new("lockedanswers", "").await;
    let worker = harness.worker(&SETTINGS).await;
    let app = App::new(&harness).await;
    let done = read("u-alice");
    app.ask("done", &done).await;
    app.reply("final", "done").await;
    let mut locking = harness.database.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table answers in access exclusive mode").execute(&mut locking).await.unwrap();
    ask_while_no_answer_is_taken(&app, &done, 60).await;
    worker.becomes_ready(true).await;
    locking.close().await.unwrap();
    hears_all(&app, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_look_up_is_told_when_it_gives_up() {
    let faults = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";
    let harness = Harness::new("gaveup", faults).await;
    logs_are(&harness, &json!({"refuse_status": 503})).await;
    let _worker = harness.worker(&QUICK).await;
    let app = App::new(&harness).await;
    let one = send("u-alice");
    app.ask("one", &one).await;
    let told = async || {
        let reply = app.reply("held", "one").await;
        assert_eq!(reply.text("held_reason"), Some("unknown_outcome"));
        reply.body["error"]["message"].as_str().unwrap().to_owned()
    };
    let early = told().await;
    assert!(early.contains("errand looks for the request ID"), "{early}");
    let late = told().await;
    assert!(late.ends_with("release the job with --succeeded, --failed or --retry"), "{late}");
    assert!(harness.errand(&["jobs", "release", one.id(), "--succeeded"]).status.success());
    assert_eq!(app.reply("final", "one").await.text("state"), Some("succeeded"));
    app.hears_nothing_more().await;
}
