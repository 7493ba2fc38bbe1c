//! What runs again when a batch is retried, and what follows each of its generations.

use std::collections::BTreeSet;

use errand_testbed::factory::{Envelope as _, create, post, read, send};
use reqwest::StatusCode;
use serde_json::{Value, json};

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
