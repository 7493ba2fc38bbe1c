//! Why a job waits, and how many do, as it is told over HTTP to whoever may read it.

use errand_testbed::factory::{Envelope as _, create, read, send};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    access_keys::database,
    api::{Api, kind},
    harness::{Harness, PATIENCE, run},
    support::{machine, wait::until},
};

/// A call that is throttled, one that fails, and one of which nobody knows the end.
const FAULTS: &str = r#"
    [[fault]]
    kind = "throttle"
    form = "org"
    retry_after = "600"
    tool = "LINEAR_CREATE_ISSUE"

    [[fault]]
    kind = "status"
    status = 503
    tool = "GITHUB_LIST_STARGAZERS"

    [[fault]]
    kind = "reset"
    after_effect = true
    tool = "GMAIL_SEND_EMAIL"
"#;

/// What waits does so for as long as the test takes.
const PATIENT: [(&str, &str); 5] = [
    ("ERRAND__RETRY__INITIAL_MS", "600000"),
    ("ERRAND__RETRY__MAX_MS", "600000"),
    ("ERRAND__VERIFY__ENABLED", "true"),
    ("ERRAND__VERIFY__FIRST_MS", "600000"),
    ("ERRAND__VERIFY__MAX_MS", "600000"),
];

/// What is told of a job that waits.
struct Told {
    job: Value,
    state: &'static str,
    held_reason: Option<&'static str>,
    /// The kind of its error, and some of what that says to people.
    error: Option<(&'static str, &'static [&'static str])>,
    /// The key with the time of what happens next by itself; `None` where a person or the owner is waited for.
    next: Option<&'static str>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_says_for_what_and_when_it_goes_on() {
    let harness = Harness::new("waiting", FAULTS).await;
    assert!(harness.errand(&["migrate"]).status.success());
    let api = Api::start(&harness.env()).await;
    let (status, _) = api.post("/v1/queues/bulk/pause", &json!({"reason": "a repair"})).await;
    assert_eq!(status, StatusCode::OK);
    let _worker = harness.worker(&PATIENT).await;
    let later = (Timestamp::now() + SignedDuration::from_hours(1)).to_string();
    let all = [
        Told {
            job: read("user-1").with("run_at", &*later),
            state: "scheduled",
            held_reason: None,
            error: None,
            next: Some("due_at"),
        },
        Told {
            job: read("user-2").with("queue", "bulk"),
            state: "available",
            held_reason: None,
            error: None,
            next: None,
        },
        Told {
            job: read("u-nobody"),
            state: "held",
            held_reason: Some("connection"),
            error: Some(("needs_connection", &["`user_id` \"u-nobody\"", "`github`", "connect"])),
            next: None,
        },
        Told {
            job: read("user-3").with("tool", "GITHUB_LIST_STARGAZERS"),
            state: "retryable",
            held_reason: None,
            error: Some(("unknown_outcome", &["503"])),
            next: Some("due_at"),
        },
        Told {
            job: create("user-4"),
            state: "retryable",
            held_reason: None,
            error: Some(("throttled", &["limit"])),
            next: Some("due_at"),
        },
        Told {
            job: send("user-5"),
            state: "held",
            held_reason: Some("unknown_outcome"),
            error: Some(("unknown_outcome", &["errand looks for the request ID"])),
            next: Some("check_at"),
        },
    ];
    for Told { job, .. } in &all {
        let (status, told) = api.post("/v1/jobs", job).await;
        assert_eq!(status, StatusCode::CREATED, "{told}");
    }
    for Told { job, state, held_reason, error, next } in &all {
        let path = format!("/v1/jobs/{}", job.id());
        let found = until(&format!("a job that is {state}"), PATIENCE, async || {
            let (_, found) = api.get(&path).await;
            (found["state"] == *state).then_some(found)
        })
        .await;
        assert_eq!(found["held_reason"].as_str(), *held_reason, "{found}");
        assert_eq!(found["error"]["kind"].as_str(), error.map(|(kind, _)| kind), "{found}");
        let message = found["error"]["message"].as_str().unwrap_or_default();
        let words = error.map(|(_, words)| words).unwrap_or_default();
        assert!(words.iter().all(|words| message.contains(words)), "{found}");
        for key in ["due_at", "check_at"] {
            let at = found[key].as_str().map(|at| at.parse::<Timestamp>().unwrap());
            let is_to_come = at.is_some_and(|at| at > Timestamp::now() + SignedDuration::from_mins(5));
            assert_eq!(is_to_come, *next == Some(key), "{key}: {found}");
        }
    }
    let toolkit = api.get(&format!("/v1/jobs/{}", all[2].job.id())).await.1["toolkit"].clone();
    assert_eq!(toolkit, "github", "what is to be connected");
    let (_, queues) = api.get("/v1/queues").await;
    let bulk = queues["items"].as_array().unwrap().iter().find(|queue| queue["queue"] == "bulk").unwrap();
    let pause = &bulk["paused"];
    assert_eq!((&pause["by"], &pause["reason"]), (&json!("api"), &json!("a repair")), "{bulk}");
    assert!(pause["since"].is_string() && bulk["waiting"] == 1, "{bulk}");
    for Told { job, .. } in &all {
        let since = if job["queue"] == "bulk" { &pause["since"] } else { &Value::Null };
        let (_, told) = api.get(&format!("/v1/jobs/{}", job.id())).await;
        assert_eq!(told["queue_paused_since"], *since, "{told}");
    }
    let shown = harness.errand(&["jobs", "show", all[1].job.id()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("bulk, paused since "), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_without_an_answer_of_the_tool_api_says_that_the_job_would_wait() {
    let (_folder, mut env) = database();
    let nowhere = format!("http://127.0.0.1:{}", machine::free_port());
    env.extend([
        ("COMPOSIO_BASE_URL".to_owned(), nowhere),
        ("COMPOSIO_API_KEY".to_owned(), "ak_test_good".to_owned()),
    ]);
    let api = Api::start(&env).await;
    let job = read("user-1");
    let (status, told) = api.post("/v1/jobs?dry_run=true", &job).await;
    assert_eq!((status, &told["would"]), (StatusCode::OK, &json!("wait")), "{told}");
    assert_eq!((&told["id"], &told["problems"][0]["kind"]), (&json!(job.id()), &json!("not_sent")), "{told}");
    for unknown in ["version", "pinned_by", "connected_account_id", "effect", "held_reason"] {
        assert_eq!(told[unknown], Value::Null, "{unknown}: {told}");
    }
    assert_eq!(api.get("/v1/jobs").await.1["items"], json!([]), "nothing is stored");
}

/// What is told of a queue, in either list.
fn of<'a>(list: &'a Value, queue: &str) -> &'a Value {
    let queues = list.get("queues").unwrap_or(&list["items"]).as_array().unwrap();
    queues.iter().find(|told| told["queue"] == queue).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_queue_of_the_settings_is_counted_with_zeros_where_it_is_empty() {
    const THIRD: (&str, &str) = ("ERRAND__QUEUES__THIRD__CONCURRENCY", "20");
    let harness = Harness::new("queue-counts", "").await;
    let mut env = harness.env();
    env.push((THIRD.0.into(), THIRD.1.into()));
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    let none = json!({"scheduled": 0, "available": 0, "running": 0, "retryable": 0, "held": 0});
    let empty = |queue: &str| json!({"queue": queue, "paused": false, "waiting": 0, "states": none, "oldest_due_ms": null});
    let (status, stats) = api.get("/v1/stats").await;
    let all = ["bulk", "default", "third"];
    assert_eq!((status, stats), (StatusCode::OK, json!({"queues": all.map(empty)})));
    // Where the broker is slow, it tells nothing at first.
    let queues = until("what the broker tells", PATIENCE, async || {
        let (_, queues) = api.get("/v1/queues").await;
        let told = all.iter().all(|queue| of(&queues, queue)["messages"].is_u64());
        told.then_some(queues)
    })
    .await;
    let empty_one = |queue: &str| {
        json!({
            "queue": queue, "paused": null, "messages": 0, "consumers": 0, "waiting": 0, "running": 0, "held": 0,
            "states": none, "oldest_due_ms": null, "finished_last_minute": 0, "finished_last_hour": 0,
            "looked_at": 0, "complete": true
        })
    };
    assert_eq!(queues, json!({"items": all.map(empty_one), "next": null}));

    let later = (Timestamp::now() + SignedDuration::from_hours(1)).to_string();
    let scheduled = read("user-1").with("queue", "bulk").with("run_at", &*later);
    for job in [&read("user-1"), &read("user-2"), &read("u-nobody"), &scheduled] {
        let (status, told) = api.post("/v1/jobs", job).await;
        assert_eq!(status, StatusCode::CREATED, "{told}");
    }
    // One look serves whoever asks within a second.
    let stats = until("a look at the jobs", PATIENCE, async || {
        let (_, stats) = api.get("/v1/stats").await;
        (of(&stats, "bulk")["waiting"] == 1).then_some(stats)
    })
    .await;
    let due = of(&stats, "default");
    assert_eq!((&due["waiting"], &due["states"]), (&json!(3), &none.clone().with("available", 3)), "{due}");
    assert!(due["oldest_due_ms"].is_u64(), "{due}");
    let mut bulk = empty("bulk").with("waiting", 1);
    bulk["states"]["scheduled"] = json!(1);
    assert_eq!((of(&stats, "bulk"), of(&stats, "third")), (&bulk, &empty("third")));

    let _worker = harness.worker(&[THIRD]).await;
    harness.counts("state = 'succeeded'", 2).await;
    harness.counts("state = 'held'", 1).await;
    let (_, queues) = api.get("/v1/queues").await;
    for (queue, waiting, held, finished) in [("bulk", 1, 0, 0), ("default", 0, 1, 2), ("third", 0, 0, 0)] {
        let told = of(&queues, queue);
        let counts =
            ["waiting", "running", "held", "finished_last_hour"].map(|name| told[name].as_u64().unwrap());
        assert_eq!(counts, [waiting, 0, held, finished], "{told}");
        let states = none.clone().with("scheduled", waiting).with("held", held);
        assert_eq!((&told["states"], &told["oldest_due_ms"]), (&states, &Value::Null), "{told}");
        assert_eq!((&told["looked_at"], &told["complete"]), (&json!(4), &json!(true)), "{told}");
    }
    for path in ["/v1/queues", "/v1/stats"] {
        let (status, problem) = api.get(&format!("{path}?queue=bulk")).await;
        assert_eq!((status, kind(&problem)), (StatusCode::BAD_REQUEST, "bad-request"), "{problem}");
    }
}
