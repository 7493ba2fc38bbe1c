//! Changes of jobs over HTTP, and what of a job is told only where it is asked for.

use errand_testbed::factory::{Envelope as _, read};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    api::{Api, kind, read_answer, served_by},
    harness::{Harness, in_memory, run},
};

fn in_hours(hours: i64) -> String {
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    (at + SignedDuration::from_hours(hours)).to_string()
}

async fn patch(api: &Api, path: &str, etag: Option<&str>, body: &Value) -> (u16, Value) {
    let mut request = api.request(Method::PATCH, path).json(body);
    if let Some(etag) = etag {
        request = request.header("if-match", etag);
    }
    let (status, answer) = read_answer(request.send().await.unwrap()).await;
    (status.as_u16(), answer)
}

async fn etag(api: &Api, path: &str) -> String {
    let answer = api.request(Method::GET, path).send().await.unwrap();
    answer.headers()["etag"].to_str().unwrap().to_owned()
}

async fn database() -> (tempfile::TempDir, Api) {
    let folder = in_memory("errand-edits-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (folder, Api::start(&env).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_is_changed_and_not_by_who_has_read_another_one() {
    let (_folder, api) = database().await;
    let job = read("user-1");
    let path = format!("/v1/jobs/{}", job.id());
    assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
    let first = etag(&api, &path).await;
    assert_eq!(etag(&api, &path).await, first, "reading changes nothing");
    let wanted = json!({"run_at": in_hours(1), "queue": "bulk", "priority": 5, "expires_at": in_hours(2)});
    let (status, changed) = patch(&api, &path, Some(&first), &wanted).await;
    assert_eq!((status, &changed["state"]), (200, &json!("scheduled")), "{changed}");
    for field in ["run_at", "queue", "priority", "expires_at"] {
        assert_eq!(changed[field], wanted[field], "{changed}");
    }
    assert_eq!((&changed["due_at"], &changed["history"][0]["kind"]), (&wanted["run_at"], &json!("edited")));
    assert!(
        changed["history"][0]["changes"].as_str().unwrap().contains("queue: default -> bulk"),
        "{changed}"
    );

    let (status, stale) = patch(&api, &path, Some(&first), &json!({"priority": 1})).await;
    assert_eq!((status, kind(&stale)), (412, "edited-meanwhile"));
    let second = etag(&api, &path).await;
    assert_ne!(second, first);
    for tags in ["*".to_owned(), format!("{first}, {second}")] {
        assert_eq!(patch(&api, &path, Some(&tags), &json!({"priority": 5})).await.0, 200, "{tags}");
    }
    assert_eq!(etag(&api, &path).await, second, "nothing was to be changed");
    assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::OK, "the job that was asked for is this one");
    let other = job.clone().with("priority", 8);
    assert_eq!(api.post("/v1/jobs", &other).await.0, StatusCode::UNPROCESSABLE_ENTITY);

    let far = in_hours(24 * 400);
    for (body, pointer) in [
        (json!({"priority": 10}), "/priority"),
        (json!({"queue": "nowhere"}), "/queue"),
        (json!({"expires_at": in_hours(0)}), "/expires_at"),
        (json!({"run_at": far, "expires_at": null}), "/run_at"),
    ] {
        let (told, problem) = patch(&api, &path, None, &body).await;
        assert_eq!((told, kind(&problem)), (422, "invalid-job"), "{body}: {problem}");
        let error = json!({"pointer": pointer, "type": problem["type"], "detail": problem["detail"]});
        assert_eq!(problem["errors"], json!([error]), "{body}");
    }
    for (body, status, expected) in [
        (json!({}), 400, "bad-request"),
        (json!({"run_at": far}), 422, "invalid-job"),
        (json!({"run_at": "tomorrow"}), 400, "bad-request"),
        (json!({"tool": "OTHER"}), 400, "bad-request"),
    ] {
        let (told, problem) = patch(&api, &path, None, &body).await;
        assert_eq!((told, kind(&problem)), (status, expected), "{body}: {problem}");
    }
    assert_eq!(patch(&api, &path, Some("x"), &json!({"priority": 1})).await.0, 400);
    let (status, due) = patch(&api, &path, None, &json!({"run_at": null, "expires_at": null})).await;
    assert_eq!(
        (status, &due["state"], &due["expires_at"]),
        (200, &json!("available"), &Value::Null),
        "{due}"
    );
    assert_eq!(due["priority"], 5, "what is left out stays");

    assert_eq!(api.post(&format!("{path}/cancel"), &json!({})).await.0, StatusCode::OK);
    let (status, done) = patch(&api, &path, None, &json!({"priority": 1})).await;
    assert_eq!((status, kind(&done)), (409, "wrong-state"), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_sent_again_is_not_made_about_the_call_that_it_led_to() {
    let harness = Harness::new("decided-once", "").await;
    let api = served_by(harness.worker(&[("ERRAND__API__LISTEN", "127.0.0.1:0")]).await).await;
    let job = read("user-1").with("tool", "GITHUB_NO_SUCH_TOOL");
    let path = format!("/v1/jobs/{}", job.id());
    assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
    harness.counts("state = 'failed' and attempt = 1", 1).await;
    let read = etag(&api, &path).await;
    let retry = async || {
        let request = api.request(Method::POST, &format!("{path}/retry")).header("if-match", &read);
        read_answer(request.json(&json!({})).send().await.unwrap()).await
    };
    assert_eq!(retry().await.0, StatusCode::OK);
    harness.counts("state = 'failed' and attempt = 2", 1).await;
    let (status, refused) = retry().await;
    assert_eq!((status, kind(&refused)), (StatusCode::PRECONDITION_FAILED, "edited-meanwhile"), "{refused}");
    for verb in ["cancel", "release"] {
        let request = api.request(Method::POST, &format!("{path}/{verb}")).header("if-match", "\"x\"");
        let body = if verb == "release" { json!({"how": "retry"}) } else { json!({}) };
        assert_eq!(
            request.json(&body).send().await.unwrap().status(),
            StatusCode::PRECONDITION_FAILED,
            "{verb}"
        );
    }
    assert_eq!(harness.count("state = 'failed' and attempt = 2").await, 1, "nothing was decided");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_results_are_told_where_they_are_asked_for_and_a_page_is_bounded() {
    let (_folder, api) = database().await;
    let large = "x".repeat(900 * 1024);
    let mut ids = Vec::new();
    for _ in 0..12 {
        let job = read("user-1").with("arguments", json!({"owner": "o", "repo": large}));
        let job = job.with("run_at", in_hours(1));
        assert_eq!(api.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
        ids.push(job.id().to_owned());
    }
    let (_, plain) = api.get("/v1/jobs").await;
    assert!(plain["items"].as_array().unwrap().iter().all(|job| job.get("arguments").is_none()));
    let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (status, page) = api.get(&format!("/v1/jobs?fields=arguments,result{cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        assert!(page.to_string().len() < 9 * 1024 * 1024, "a page is bounded");
        for job in page["items"].as_array().unwrap() {
            assert_eq!((job["arguments"]["repo"].as_str(), &job["result"]), (Some(&*large), &Value::Null));
            assert!(job.get("text").is_none());
            found.push(job["id"].as_str().unwrap().to_owned());
        }
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    found.reverse();
    assert_eq!((found, pages), (ids.clone(), 2));
    let path = format!("/v1/jobs/{}", ids[0]);
    assert!(api.get(&path).await.1.get("arguments").is_none());
    assert_eq!(api.get(&format!("{path}?fields=arguments")).await.1["arguments"]["owner"], "o");
    for wrong in ["?fields=", "?fields=history", "?fields=text&fields=text"] {
        assert_eq!(api.get(&format!("{path}{wrong}")).await.0, StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert_eq!(api.get(&format!("{path}/attempts")).await.1, json!({"items": [], "next": null}));
    for decision in ["cancel", "retry", "release"] {
        let (status, problem) = api.post(&format!("{path}/{decision}?force=true"), &json!({})).await;
        assert_eq!((status, kind(&problem)), (StatusCode::BAD_REQUEST, "bad-request"), "{decision}");
    }
    assert_eq!(api.post(&format!("{path}/cancel"), &json!({})).await.0, StatusCode::OK);
    let (_, history) = api.get(&format!("{path}/history")).await;
    assert_eq!(history["items"][0]["kind"], "cancelled", "{history}");
}
