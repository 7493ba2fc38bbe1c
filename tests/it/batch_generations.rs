//! What runs again when a batch is retried, and what follows each of its generations.

use std::collections::BTreeSet;

use errand_testbed::factory::{Envelope as _, create, post, read, send, spread};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    api::{Api, kind},
    harness::{Harness, PATIENCE},
    support::wait::until,
};

/// The first call of each job: an e-mail is sent and its answer is too large to be read, and an issue is refused.
const FAULTS: &str = r#"
    [[fault]]
    kind = "large"
    bytes = 2000000
    tool = "GMAIL_SEND_EMAIL"
    first = 1

    [[fault]]
    kind = "provider_failure"
    provider_status = 400
    tool = "LINEAR_CREATE_ISSUE"
    first = 1
"#;

/// How often the call of a job has had its effect.
fn effects(harness: &Harness, job: &Value) -> u32 {
    harness.sandbox.job_effects(job.id())
}

/// Waits for the job that follows a generation which is complete, and returns its ID.
async fn followed(api: &Api, batch: &Value) -> String {
    let id = batch["follow_up_id"].as_str().unwrap().to_owned();
    let done = until("the job that follows", PATIENCE, async || {
        let (status, job) = api.get(&format!("/v1/jobs/{id}?wait=20")).await;
        (status == StatusCode::OK).then_some(job)
    })
    .await;
    assert_eq!(done["state"], "succeeded", "{done}");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_acted_runs_again_by_force_alone_and_each_generation_has_one_follow_up() {
    let harness = Harness::new("generations", FAULTS).await;
    let _worker = harness.worker(&[("ERRAND__COMPOSIO__MAX_RESPONSE_BYTES", "1000000")]).await;
    let api = Api::start(&harness.env()).await;
    let (done, refused) = (read("user-1"), create("user-2"));
    let unclear = [send("user-3"), send("user-4")];
    let items = json!([done, refused, unclear[0], unclear[1]]);
    let (status, made) = api.make(&json!({"items": items, "follow_up": post("org-1").nameless()})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let id = made["id"].as_str().unwrap();
    let retry = format!("/v1/batches/{id}/retry");
    // How many have succeeded and failed, in which generation.
    let counts = |batch: &Value| {
        let count = |state: &str| batch["counts"][state].as_u64().unwrap();
        (batch["generation"].as_u64().unwrap(), count("succeeded"), count("failed"))
    };

    let first = api.completed(id).await;
    assert_eq!(counts(&first), (1, 1, 3), "{first}");
    let mut follow_ups = vec![followed(&api, &first).await];
    for job in &unclear {
        let (_, failed) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!(
            (&failed["state"], &failed["error"]["kind"], &failed["attempts"][0]["outcome"]),
            (&json!("failed"), &json!("result_too_large"), &json!("unknown")),
            "{failed}"
        );
        assert_eq!(effects(&harness, job), 1);
    }

    // Without force, what surely had no effect runs again, and nothing else.
    let (status, begun) = api.post(&retry, &json!({})).await;
    assert_eq!((status, &begun["generation"]), (StatusCode::OK, &json!(2)), "{begun}");
    assert_ne!(begun["follow_up_id"], first["follow_up_id"], "it is known from the beginning");
    let second = api.completed(id).await;
    assert_eq!(counts(&second), (2, 2, 2), "{second}");
    assert_eq!(second["follow_up_id"], begun["follow_up_id"]);
    follow_ups.push(followed(&api, &second).await);
    assert_eq!(effects(&harness, &refused), 1);
    for job in &unclear {
        let (_, stayed) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!((&stayed["state"], &stayed["history"]), (&json!("failed"), &json!([])), "{stayed}");
        assert_eq!(effects(&harness, job), 1, "nothing is repeated that nobody wants repeated");
    }

    let third_time = json!({"force": true, "generation": 2});
    let (status, begun) = api.post(&retry, &third_time).await;
    assert_eq!((status, &begun["generation"]), (StatusCode::OK, &json!(3)), "{begun}");
    let third = api.completed(id).await;
    // Whoever has lost the answer sends the same again, and nothing is repeated once more.
    let (status, again) = api.post(&retry, &third_time).await;
    assert_eq!((status, kind(&again)), (StatusCode::CONFLICT, "wrong-state"), "{again}");
    assert!(again["detail"].as_str().unwrap().contains("generation 3"), "{again}");
    assert_eq!(counts(&third), (3, 4, 0), "{third}");
    follow_ups.push(followed(&api, &third).await);
    for job in &unclear {
        let (_, again) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        let history = again["history"].as_array().unwrap();
        assert_eq!((history.len(), &history[0]["kind"]), (1, &json!("retried")), "{again}");
        assert_eq!(effects(&harness, job), 2, "as it was forced");
    }
    assert_eq!([effects(&harness, &done), effects(&harness, &refused)], [1, 1]);
    let (status, nothing) = api.post(&retry, &json!({"force": true})).await;
    assert_eq!((status, kind(&nothing)), (StatusCode::CONFLICT, "wrong-state"), "{nothing}");

    // There is one for each generation, and none of them ran again with a later one.
    assert_eq!(follow_ups.iter().collect::<BTreeSet<_>>().len(), 3, "{follow_ups:?}");
    assert!(follow_ups.iter().all(|job| harness.sandbox.job_effects(job) == 1));
    assert_eq!(harness.count("tool = 'SLACK_SEND_MESSAGE'").await, 3);
    // Five calls with the first generation, two with the second, and three with the third.
    harness.called(10).await;
}

/// Lets the completion of batches wait for whoever has the lock, and its session go on when its client is gone.
const WAITS: &str = "
    create function waits() returns trigger language plpgsql set lock_timeout = 0 as
    $$ begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
    create trigger waits before update of completed_at on batches for each row
    when (new.completed_at is not null) execute function waits()";

/// Waits until so many sessions wait for that lock, and returns which.
async fn waiting(harness: &Harness, sessions: usize) -> Vec<String> {
    let sql = "select string_agg(pid::text, ' ') from pg_stat_activity \
               where datname = current_database() and wait_event = 'advisory'";
    until(&format!("{sessions} completions that wait"), PATIENCE, async || {
        let pids: Vec<String> = harness.text(sql).await?.split(' ').map(str::to_owned).collect();
        (pids.len() == sessions).then_some(pids)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_followed_once_each_though_a_worker_dies_between_the_follow_up_and_the_completion() {
    const BATCHES: u64 = 30;
    // A completion waits for as long as the test has it wait.
    const PATIENT: (&str, &str) = ("ERRAND__STORE__STATEMENT_TIMEOUT_MS", "600000");
    let harness = Harness::new("followed-once", "").await;
    harness.execute(WAITS).await;
    let mut keeper = harness.database.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(7)").execute(&mut keeper).await.unwrap();
    let api = Api::start(&harness.env()).await;
    let mut made = Vec::new();
    for job in spread(BATCHES as usize, read) {
        let follow_up = post("org-1").nameless().with("queue", "bulk");
        let (status, batch) = api.post("/v1/batches", &json!({"items": [job], "follow_up": follow_up})).await;
        assert_eq!(status, StatusCode::CREATED, "{batch}");
        made.push(batch);
    }
    // It calls nothing that follows, so that no call is cut off when it dies.
    let mut first = harness.worker(&[PATIENT, ("ERRAND__WORKER__QUEUES", "default")]).await;
    let cut_off = waiting(&harness, 1).await.remove(0);
    let _second = harness.worker(&[PATIENT]).await;
    waiting(&harness, 2).await;
    harness.counts("tool = 'GITHUB_GET_REPO' and state = 'succeeded'", BATCHES).await;
    assert_eq!(harness.count("queue = 'bulk'").await, 2, "each of them has begun with one");
    first.kill9();
    // Its completion never is.
    let ended = harness.text(&format!("select pg_terminate_backend({cut_off})::text")).await;
    assert_eq!(ended.as_deref(), Some("true"));
    waiting(&harness, 1).await;
    keeper.close().await.unwrap();
    // A minute later, the other one looks at what it had taken.
    harness.execute("update batches set look_at = look_at - interval '1 minute'").await;

    for batch in &made {
        let complete = api.completed(batch.id()).await;
        assert_eq!(complete["follow_up_id"], batch["follow_up_id"]);
        assert_eq!(harness.sandbox.job_effects(&followed(&api, &complete).await), 1, "{complete}");
    }
    assert_eq!(harness.count("queue = 'bulk'").await, BATCHES);
    assert_eq!(harness.sandbox.ledger_summary().effects_once, BATCHES);
}
