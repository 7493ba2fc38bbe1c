//! Answers that are too large, that no database keeps, or that floating point would change.

use errand_testbed::{factory::id, scripted_api::Answer};
use serde_json::json;

use super::{
    backends::{Backends, Place},
    message, read, read_with, send,
};
use crate::{
    harness::{Harness, PATIENCE},
    support::wait::until,
};

on_both_pairs! {
    an_answer_larger_than_the_limit_is_not_read_to_its_end [("ERRAND__COMPOSIO__MAX_RESPONSE_BYTES", "1048576")],
    numbers_arrive_and_come_back_digit_by_digit [],
    what_json_can_say_and_databases_cannot_arrives_and_comes_back [],
    what_a_gateway_forbids_or_does_not_find_fails_no_job [],
}

/// How the body of a success begins that does not end.
const BLOB: &str = r#"{"successful":true,"error":null,"log_id":"log_front","data":{"blob":""#;

fn json_answer(status: &str, body: String) -> Answer {
    Answer::new(status, body).header("content-type", "application/json")
}

fn success(data: &str) -> Answer {
    json_answer("200 OK", format!(r#"{{"data":{data},"successful":true,"error":null,"log_id":"log_front"}}"#))
}

async fn an_answer_larger_than_the_limit_is_not_read_to_its_end(pair: Backends) {
    let warm = id();
    pair.submit(&[read(&warm)]).await;
    pair.job_in(&warm, &["succeeded"]).await;
    let before = pair.worker.peak_memory();
    let (endless, announced, next) = (id(), id(), id());
    pair.front.answer_job(&endless, Answer::endless(None, BLOB));
    pair.front.answer_job(&announced, Answer::endless(Some(1 << 40), BLOB));
    pair.submit(&[send(&endless), send(&announced), read(&next)]).await;
    for job in [&endless, &announced] {
        let shown = pair.job_in(job, &["failed", "succeeded", "held"]).await;
        assert_eq!(
            (&shown["state"], &shown["error"]["kind"]),
            (&json!("failed"), &json!("result_too_large"))
        );
        for part in ["`GMAIL_SEND_EMAIL` ran", "composio.max_response_bytes", "has run already"] {
            assert!(message(&shown).contains(part), "{part} in {}", message(&shown));
        }
        let attempts = shown["attempts"].as_array().unwrap();
        assert_eq!((attempts.len(), &attempts[0]["http_status"]), (1, &json!(200)), "{shown}");
        assert!(attempts[0]["request_id"].is_string());
        assert_eq!((pair.front.bodies_of(job).len(), pair.effects(job)), (1, 1), "it ran once");
    }
    pair.job_in(&next, &["succeeded"]).await;
    pair.metric_is("errand_jobs_finished_total", "outcome=\"failed\"", 2.0).await;
    // The limit is 1 MiB; the rest is what fits between two sockets and two processes.
    let (taken, grown) = (pair.front.endless_bytes(), pair.worker.peak_memory() - before);
    assert!(taken < 64 << 20, "{taken} bytes were taken of endless answers");
    assert!(grown < 48 << 20, "memory grew by {grown} bytes");
}

/// It happens to look-ups first, and then to calls, which the API behind it sees all the same.
async fn what_a_gateway_forbids_or_does_not_find_fails_no_job(pair: Backends) {
    let in_between = || {
        [
            ("403 Forbidden", "<html>Just a moment...</html>"),
            ("403 Forbidden", ""),
            ("403 Forbidden", r#"{"error":{"code":"403","message":"Forbidden","id":"x"}}"#),
            ("404 Not Found", r#"{"message":"no Route matched with those values"}"#),
            ("404 Not Found", r#"{"error":{"code":10404,"slug":"HTTP_NotFound","message":"no such route"}}"#),
        ]
        .map(|(status, body)| Answer::new(status, body))
    };
    for _ in 0..2 {
        let (reads, sends) = (id(), id());
        pair.front.script(in_between().into_iter().chain(in_between()).chain([Answer::theirs()]));
        pair.submit(&[read(&reads), send(&sends)]).await;
        for job in [&reads, &sends] {
            let shown = pair.job_in(job, &["succeeded", "failed", "held"]).await;
            assert_eq!(shown["state"], "succeeded", "{shown}");
        }
    }
}

/// Numbers that floating point cannot hold, and spellings that it would change.
const NUMBERS: &str = r#"{"owner":"o","repo":"r","a":9007199254740993,"b":18446744073709551616,"c":1e400,"d":-0.0,"e":0.1000000000000000055511151231257827,"f":1.10,"g":-9223372036854775809,"h":1E+2,"i":123456789012345678901234567890.123456789e-400}"#;

async fn numbers_arrive_and_come_back_digit_by_digit(pair: Backends) {
    let (published, enqueued, bulk) = (id(), id(), id());
    for job in [&published, &enqueued, &bulk] {
        pair.front.answer_job(job, success(NUMBERS));
    }
    pair.submit(&[read_with(&published, NUMBERS)]).await;
    let args = ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", NUMBERS, "--id", &enqueued];
    let waited = pair.says(&[&args[..], &["--wait", "--json"]].concat());
    assert!(waited.contains(NUMBERS), "{waited}");
    assert!(pair.bulk(&[read_with(&bulk, NUMBERS)]).status.success());
    let mut jobs = vec![published.clone(), enqueued, bulk];
    if let Place::Services(harness) = &pair.place {
        jobs.push(requeued(harness, &pair).await);
    }
    for job in &jobs {
        pair.job_in(job, &["succeeded"]).await;
        assert_eq!(pair.front.bodies_of(job).len(), 1);
        assert!(
            pair.front.bodies_of(job)[0].contains(&format!("\"arguments\":{NUMBERS}")),
            "{:?}",
            pair.front.bodies_of(job)
        );
    }
    for job in &jobs[..3] {
        let shown = pair.says(&["jobs", "show", job, "--json"]);
        assert!(shown.contains(&format!("\"result\":{NUMBERS}")), "{shown}");
        assert!(pair.says(&["jobs", "show", job]).contains(NUMBERS));
    }

    // A neighbour that floating point cannot tell apart is another body.
    let neighbour = read_with(&published, &NUMBERS.replace("9007199254740993", "9007199254740992"));
    if let Place::Services(harness) = &pair.place {
        pair.submit(&[neighbour]).await;
        until("the conflict is kept", PATIENCE, async || {
            let sql = "select count(*)::text from rejected where reason = 'body_conflict'";
            (harness.text(sql).await? == "1").then_some(())
        })
        .await;
    } else {
        let refused = pair.bulk(&[neighbour]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("known with another body"), "{refused:?}");
    }
    let same = read_with(&published, &NUMBERS.replace(",\"c\"", " ,\n \"c\"")).replace('\n', " ");
    pair.submit(&[same]).await;
    let next = id();
    pair.submit(&[read(&next)]).await;
    pair.job_in(&next, &["succeeded"]).await;
    assert_eq!(pair.front.bodies_of(&published).len(), 1, "the same body is the same job");
}

/// Publishes a job without an ID, puts it back, and returns what it became.
async fn requeued(harness: &Harness, pair: &Backends) -> String {
    let nameless = format!(r#"{{"user_id":"u-alice","tool":"GITHUB_GET_REPO","arguments":{NUMBERS}}}"#);
    pair.submit(&[nameless]).await;
    let rejected = until("it is kept", PATIENCE, async || {
        harness.text("select id::text from rejected where reason = 'no_id'").await
    })
    .await;
    // It gets the ID under which it was kept.
    pair.front.answer_job(&rejected, success(NUMBERS));
    let said = pair.says(&["rejected", "requeue", &rejected]);
    said.split(" is job ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

async fn what_json_can_say_and_databases_cannot_arrives_and_comes_back(pair: Backends) {
    const ODD: &str = r#"{"owner":"o","repo":"r","nul":"a\u0000b","half":"\ud800","other half":"\udc00x","\u0000":"\ud800\ud800","both":"\ud83d\ude00"}"#;
    let (verbatim, log, failing, refused, next) = (id(), id(), id(), id(), id());
    pair.front.answer_job(&verbatim, success(ODD));
    let body = |id: &str, error: &str| {
        format!(r#"{{"data":{ODD},"successful":{},"error":{error},"log_id":"{id}"}}"#, error == "null")
    };
    pair.front.answer_job(&log, json_answer("200 OK", body(r"log\u0000_\u0000", "null")));
    pair.front.answer_job(&failing, json_answer("200 OK", body("log_1", r#""it \u0000 broke""#)));
    let error =
        r#"{"error":{"message":"no \u0000\ud800","slug":"A\u0000B","code":400,"request_id":"\u0000"}}"#;
    pair.front.answer_job(&refused, json_answer("400 Bad Request", error.to_owned()));
    let jobs = [&verbatim, &log, &failing, &refused].map(|job| read_with(job, ODD));
    pair.submit(&jobs).await;
    pair.submit(&[read(&next)]).await;
    for (job, log_id) in [(&verbatim, "log_front"), (&log, "log_")] {
        let shown = pair.job_in(job, &["succeeded", "failed"]).await;
        assert_eq!((&shown["state"], &shown["log_id"]), (&json!("succeeded"), &json!(log_id)), "{shown}");
        assert!(pair.says(&["jobs", "show", job, "--json"]).contains(&format!("\"result\":{ODD}")));
        assert!(pair.front.bodies_of(job)[0].contains(ODD), "{:?}", pair.front.bodies_of(job));
    }
    for (job, part) in [(&failing, "it  broke"), (&refused, "no ")] {
        let shown = pair.job_in(job, &["failed"]).await;
        assert!(message(&shown).contains(part), "{shown}");
        assert!(!message(&shown).contains('\0'), "{shown}");
        assert!(pair.says(&["jobs", "show", job]).contains("failed"));
    }
    pair.job_in(&next, &["succeeded"]).await;
    pair.metric_is("errand_jobs_finished_total", "outcome=\"failed\"", 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_database_refuses_fails_its_job_alone_and_keeps_its_log_id() {
    let pair = Backends::services("unstorable", &[]).await;
    let (deep, next) = (id(), id());
    // Parsing it takes more stack than PostgreSQL allows itself.
    let data = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    pair.front.answer_job(&deep, success(&data));
    let together: Vec<String> = (0..20).map(|_| id()).collect();
    let mut jobs: Vec<String> = together.iter().map(|job| read(job)).collect();
    jobs.insert(10, send(&deep));
    pair.submit(&jobs).await;
    let shown = pair.job_in(&deep, &["failed", "succeeded", "held"]).await;
    assert_eq!((&shown["state"], &shown["error"]["kind"]), (&json!("failed"), &json!("internal")));
    assert_eq!(
        (&shown["log_id"], &shown["attempts"][0]["log_id"]),
        (&json!("log_front"), &json!("log_front"))
    );
    for part in ["the database refuses to keep the answer", "may have run", "tool API's log"] {
        assert!(message(&shown).contains(part), "{part} in {}", message(&shown));
    }
    assert_eq!(pair.effects(&deep), 1);
    pair.submit(&[read(&next)]).await;
    for job in together.iter().chain([&next]) {
        pair.job_in(job, &["succeeded"]).await;
    }
    assert!(pair.metric("errand_store_errors_total", "kind=\"data\"").await >= 1.0);
    pair.metric_is("errand_jobs_finished_total", "outcome=\"failed\"", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_end_the_database_refuses_altogether_takes_no_other_with_it() {
    let pair = Backends::services("unendable", &[]).await;
    let bad = id();
    // Nothing that errand writes breaks a rule of its own tables, so this one is another's.
    let rule =
        format!("alter table jobs add constraint foreign_rule check (id <> '{bad}' or finished_at is null)");
    pair.execute(&rule).await;
    let good: Vec<String> = (0..40).map(|_| id()).collect();
    let mut jobs: Vec<String> = good.iter().map(|job| read(job)).collect();
    jobs.insert(5, send(&bad));
    pair.submit(&jobs).await;
    for job in &good {
        pair.job_in(job, &["succeeded"]).await;
    }
    pair.worker.metric_reaches("errand_store_errors_total{kind=\"data\"}", 2.0).await;
    pair.worker.logged("the database refuses even to record").await;
    assert_eq!(pair.job_in(&bad, &["running"]).await["state"], "running", "it is kept");
    let next = id();
    pair.submit(&[read(&next)]).await;
    pair.job_in(&next, &["succeeded"]).await;
}
