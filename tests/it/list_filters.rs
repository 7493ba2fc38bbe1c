//! What each filter of the list of jobs means over HTTP: of two jobs that differ in one thing, exactly one fits.

use errand_testbed::factory::{Envelope as _, browse, read, send};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    api::Api,
    harness::{Harness, PATIENCE},
    support::wait::until,
};

/// A call of which nobody knows what became.
const UNKNOWN: &str = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";

/// How far back a list goes that names no time.
const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Two jobs, with the states that they come to.
struct Pair {
    filter: &'static str,
    fits: (Value, &'static str),
    other: (Value, &'static str),
}

fn pairs() -> Vec<Pair> {
    let far = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
    let later = |job: Value| (job.with("run_at", far.as_str()), "scheduled");
    let pair = |filter, fits, other| Pair { filter, fits, other };
    let unknown = || (send("user-1"), "held");
    let unconnected = || (read("u-nobody"), "held");
    vec![
        pair("state=scheduled", later(read("user-1")), (read("user-1"), "succeeded")),
        pair("owner=user:user-1", later(read("user-1")), later(read("user-2"))),
        // The same ID is another owner's where it is an organization's.
        pair(
            "owner=user:org-7",
            later(read("org-7").with("org_id", Value::Null).with("user_id", "org-7")),
            later(read("org-7")),
        ),
        pair("tool=GITHUB_GET_REPO", later(read("user-1")), later(send("user-1"))),
        pair("toolkit=hackernews", (browse("user-1"), "succeeded"), (read("user-1"), "succeeded")),
        pair("queue=bulk", later(read("user-1").with("queue", "bulk")), later(read("user-1"))),
        pair(
            "error_kind=unknown_tool",
            (read("user-1").with("tool", "GITHUB_NO_SUCH_TOOL"), "failed"),
            unconnected(),
        ),
        pair("error_kind=needs_connection", unconnected(), unknown()),
        pair("held_reason=connection", unconnected(), unknown()),
        pair("held_reason=unknown_outcome", unknown(), unconnected()),
        pair("outcome_unknown=true", unknown(), unconnected()),
        pair(
            "version=20251027_00",
            later(read("user-1").with("version", "20251027_00")),
            later(read("user-1")),
        ),
        pair(
            "effect=once",
            later(read("user-1").with("effect", "once")),
            later(read("user-1").with("effect", "safe")),
        ),
    ]
}

async fn enqueue(api: &Api, job: &Value) {
    let (status, told) = api.post("/v1/jobs", job).await;
    assert_eq!(status, StatusCode::CREATED, "{told}");
}

/// The IDs of the jobs that fit, and the whole answer.
async fn listed(api: &Api, query: &str) -> (Vec<String>, Value) {
    let (status, list) = api.get(&format!("/v1/jobs{query}")).await;
    assert_eq!(status, StatusCode::OK, "{query}: {list}");
    let ids = list["items"].as_array().unwrap().iter().map(|job| job.id().to_owned()).collect();
    (ids, list)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_jobs_a_filter_lists_the_one_that_fits() {
    let harness = Harness::new("list-filters", UNKNOWN).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let mut pairs = pairs();
    for (number, Pair { fits, other, .. }) in pairs.iter_mut().enumerate() {
        for (job, _) in [fits, other] {
            job["tags"] = json!({"pair": number.to_string()});
            enqueue(&api, job).await;
        }
    }
    for (number, Pair { filter, fits, other }) in pairs.iter().enumerate() {
        for (job, state) in [fits, other] {
            let path = format!("/v1/jobs/{}", job.id());
            until(&format!("{filter}: a job that is {state}"), PATIENCE, async || {
                (api.get(&path).await.1["state"] == *state).then_some(())
            })
            .await;
        }
        let (both, _) = listed(&api, &format!("?tag=pair={number}")).await;
        assert_eq!(both, [other.0.id(), fits.0.id()], "newest first");
        let (found, list) = listed(&api, &format!("?tag=pair={number}&{filter}")).await;
        assert_eq!(found, [fits.0.id()], "{filter}: {list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_the_batch_and_the_time_of_creation_tell_jobs_apart() {
    let harness = Harness::new("list-filters-more", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    let first = read("user-1").with("tags", json!({"team": "a", "tier": "x"}));
    let second = read("user-1").with("tags", json!({"team": "b", "tier": "x"}));
    for job in [&first, &second] {
        enqueue(&api, job).await;
    }
    let (item, foreign) = (read("user-1"), read("user-1"));
    // A job that was there before is an item, too, and keeps the batch that it had: none.
    let (status, batch) = api.post("/v1/batches", &json!({"items": [item, first]})).await;
    assert_eq!(status, StatusCode::CREATED, "{batch}");
    let (status, other) = api.post("/v1/batches", &json!({"items": [foreign]})).await;
    assert_eq!(status, StatusCode::CREATED, "{other}");
    let created = async |job: &Value| {
        let (_, told) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        told["created_at"].as_str().unwrap().to_owned()
    };
    let (at, later) = (created(&second).await, created(&item).await);
    for (query, fits) in [
        ("?tag=team=a".to_owned(), &first),
        ("?tag=tier=x&tag=team=b".to_owned(), &second),
        (format!("?batch={}", batch.id()), &item),
        (format!("?until={at}"), &first),
        (format!("?since={at}&until={later}"), &second),
    ] {
        let (found, list) = listed(&api, &query).await;
        assert_eq!(found, [fits.id()], "{query}: {list}");
    }
    let (none, _) = listed(&api, "?tag=team=a&tag=tier=y").await;
    assert!(none.is_empty(), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_a_time_goes_back_seven_days_and_says_so() {
    let harness = Harness::new("list-window", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    let (old, new) = (read("user-1"), read("user-1"));
    for job in [&old, &new] {
        enqueue(&api, job).await;
    }
    let aged = format!("update jobs set created_at = now() - interval '8 days' where id = '{}'", old.id());
    harness.execute(&aged).await;
    let asked = Timestamp::now() - WINDOW;
    let (found, list) = listed(&api, "").await;
    let told = Timestamp::now() - WINDOW;
    assert_eq!(found, [new.id()]);
    let since: Timestamp = list["window"]["since"].as_str().unwrap().parse().unwrap();
    assert!((asked.as_second()..=told.as_second()).contains(&since.as_second()), "{asked} {since} {told}");
    assert_eq!(list["window"]["until"], Value::Null);

    let month_ago = Timestamp::now() - SignedDuration::from_hours(30 * 24);
    let (found, list) = listed(&api, &format!("?since={month_ago}")).await;
    assert_eq!(found, [new.id(), old.id()]);
    assert_eq!(list["window"]["since"], json!(month_ago.to_string()), "as it was asked for");
}
