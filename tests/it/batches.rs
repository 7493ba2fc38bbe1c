//! Batches, as an app meets them over HTTP.

use errand_testbed::factory::{Envelope as _, read, send};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

impl Api {
    pub(crate) async fn make(&self, body: &Value) -> (StatusCode, Value) {
        self.post("/v1/batches", body).await
    }

    async fn add(&self, id: &str, from: usize, lines: &str) -> (StatusCode, Value) {
        let path = format!("/v1/batches/{id}/items?from={from}");
        let request = self.request(Method::POST, &path).header("content-type", "application/x-ndjson");
        read_answer(request.body(lines.to_owned()).send().await.unwrap()).await
    }

    /// Waits until it is complete.
    pub(crate) async fn completed(&self, id: &str) -> Value {
        let path = format!("/v1/batches/{id}?wait=20");
        until("a complete batch", PATIENCE, async || {
            let (status, batch) = self.get(&path).await;
            (status == StatusCode::OK).then_some(batch)
        })
        .await
    }
}

fn id(batch: &Value) -> &str {
    batch["id"].as_str().unwrap()
}

fn lines(items: &[Value]) -> String {
    items.iter().map(|item| format!("{item}\n")).collect()
}

/// Unknown outcomes are looked up, and soon.
const LOOKS_UP: &[(&str, &str)] = &[
    ("ERRAND__VERIFY__ENABLED", "true"),
    ("ERRAND__VERIFY__POLL_MS", "100"),
    ("ERRAND__VERIFY__FIRST_MS", "200"),
    ("ERRAND__VERIFY__MAX_MS", "1000"),
    ("ERRAND__VERIFY__LOG_DELAY_SECS", "3"),
];

/// Services with tables, for which no worker has to see.
async fn migrated(name: &str) -> Harness {
    let harness = Harness::new(name, "").await;
    assert!(run(&["migrate"], &harness.env()).status.success());
    harness
}

/// Jobs without an ID.
fn nameless(count: usize) -> Vec<Value> {
    let read = |n: usize| json!({"user_id": format!("user-{}", n % 20 + 1), "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": "r"}});
    (0..count).map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_enqueued_watched_and_followed_to_its_end() {
    let harness = Harness::new("batches", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let follow_up = json!({"user_id": "user-1", "tool": "GMAIL_SEND_EMAIL", "arguments": {"recipient_email": "ann@example.com", "subject": "s", "body": "all done"}});
    let mut items = nameless(40);
    items.push(json!({"user_id": "user-1", "tool": "GITHUB_NO_SUCH_TOOL"}));
    let wanted = json!({"items": items, "follow_up": follow_up});
    let request =
        || api.request(Method::POST, "/v1/batches").header("idempotency-key", "night-1").json(&wanted);
    let answer = request().send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let (status, made) = read_answer(answer).await;
    assert_eq!((status, &made["total"], &made["sealed"]), (StatusCode::CREATED, &json!(41), &json!(true)));
    assert_eq!(location, format!("/v1/batches/{}", id(&made)));
    let (status, again) = read_answer(request().send().await.unwrap()).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &made["id"]));
    let done = api.completed(id(&made)).await;
    assert_eq!((&done["counts"]["succeeded"], &done["counts"]["failed"]), (&json!(40), &json!(1)), "{done}");
    let follow_up = done["follow_up_id"].as_str().unwrap();
    let (_, followed) = api.get(&format!("/v1/jobs/{follow_up}?wait=60")).await;
    assert_eq!(followed["state"], "succeeded", "{followed}");
    harness.called(41).await;

    let (status, page) = api.get(&format!("/v1/batches/{}/items?from=39", id(&made))).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let states: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| item["state"].clone()).collect();
    assert_eq!((states, &page["next"]), (vec![json!("succeeded"), json!("failed")], &Value::Null));
    let (_, failed) = api.get(&format!("/v1/jobs?batch={}&state=failed", id(&made))).await;
    assert_eq!(failed["items"][0]["id"], page["items"][1]["job_id"]);
    assert_eq!(failed["items"][0]["batch_id"], made["id"]);
    let (_, list) = api.get("/v1/batches").await;
    assert_eq!((&list["items"][0], list["items"].as_array().unwrap().len()), (&done, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_filled_by_chunks_that_may_be_sent_again() {
    let harness = migrated("batch-chunks").await;
    let api = Api::start(&harness.env()).await;
    let (status, made) = api.make(&json!({"sealed": false})).await;
    assert_eq!((status, &made["sealed"], &made["total"]), (StatusCode::CREATED, &json!(false), &json!(0)));
    let items = nameless(1_500);
    let body = lines(&items);
    let (status, filled) = api.add(id(&made), 0, &body).await;
    assert_eq!((status, &filled["total"]), (StatusCode::CREATED, &json!(1_500)), "{filled}");
    assert_eq!(filled["counts"]["available"], 1_500);
    let (status, again) = api.add(id(&made), 0, &format!("\n{body}\n")).await;
    assert_eq!((status, &again), (StatusCode::OK, &filled));
    let (status, gap) = api.add(id(&made), 1_501, &body).await;
    assert_eq!((status, kind(&gap)), (StatusCode::CONFLICT, "out-of-order"));
    assert!(gap["detail"].as_str().unwrap().contains("from=1500"), "{gap}");
    for (from, others) in [(1_000, &body), (0, &lines(&[read("user-1")]))] {
        let (status, other) = api.add(id(&made), from, others).await;
        assert_eq!((status, kind(&other)), (StatusCode::CONFLICT, "out-of-order"), "{other}");
    }
    let _worker = harness.worker(&[]).await;
    for _ in 0..2 {
        let (status, sealed) = api.post(&format!("/v1/batches/{}/seal", id(&made)), &json!({})).await;
        assert_eq!((status, &sealed["sealed"]), (StatusCode::OK, &json!(true)), "{sealed}");
    }
    let (status, late) = api.add(id(&made), 1_500, &lines(&nameless(1))).await;
    assert_eq!((status, kind(&late)), (StatusCode::CONFLICT, "wrong-state"));
    assert_eq!(api.completed(id(&made)).await["counts"]["succeeded"], 1_500);
    harness.called(1_500).await;
}

/// Every item of a list that is read one by one, each page at what the one before it says.
async fn one_by_one(api: &Api, path: &str, parameter: &str) -> Vec<Value> {
    let (mut all, mut query) = (Vec::new(), "limit=1".to_owned());
    loop {
        let (status, page) = api.get(&format!("{path}?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 1, "{page}");
        all.extend(items.iter().cloned());
        let next = match &page["next"] {
            Value::Null => return all,
            Value::String(next) => next.clone(),
            next => next.to_string(),
        };
        query = format!("limit=1&{parameter}={next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_and_their_items_are_read_page_by_page_to_the_end() {
    let harness = migrated("batch-pages").await;
    let api = Api::start(&harness.env()).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(api.make(&json!({"sealed": false})).await.1);
    }
    made.reverse();
    assert_eq!(one_by_one(&api, "/v1/batches", "cursor").await, made, "the newest first");
    // What is counted together ends within these pages.
    let path = format!("/v1/batches/{}/items", id(&made[0]));
    let items: Vec<Value> = (0..5).map(|_| read("user-1")).collect();
    for (from, chunk) in [(0, &items[..2]), (2, &items[2..3]), (3, &items[3..])] {
        assert_eq!(api.add(id(&made[0]), from, &lines(chunk)).await.0, StatusCode::CREATED);
    }
    let expected: Vec<Value> = items
        .iter()
        .enumerate()
        .map(|(index, item)| json!({"index": index, "job_id": item.id(), "state": "available"}))
        .collect();
    assert_eq!(one_by_one(&api, &path, "from").await, expected);
    assert_eq!(api.get(&path).await.1, json!({"items": expected, "next": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_refused_with_every_item_that_is_wrong() {
    let harness = migrated("batch-refused").await;
    let api = Api::start(&harness.env()).await;
    let (known, foreign) = (read("user-1"), read("user-2"));
    for job in [&known, &foreign] {
        assert_eq!(api.post("/v1/jobs", job).await.0, StatusCode::CREATED);
    }
    let mut items = nameless(10);
    items[1]["priorty"] = json!(1);
    items[2]["priority"] = json!(11);
    items[3]["queue"] = json!("nowhere");
    items[4]["text"] = json!("and arguments");
    items[5] = json!([]);
    items[6]["run_at"] = json!("9999-01-01T00:00:00Z");
    items[7]["user_id"] = json!("default");
    items[8]["run_at"] = json!("tomorrow");
    items[9]["user_id"] = json!("");
    let (status, refused) = api.make(&json!({"items": items})).await;
    assert_eq!((status, kind(&refused)), (StatusCode::UNPROCESSABLE_ENTITY, "invalid-batch"), "{refused}");
    let pointers: Vec<_> = refused["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(
        pointers,
        [
            "/items/1",
            "/items/2/priority",
            "/items/3/queue",
            "/items/4/text",
            "/items/5",
            "/items/6/run_at",
            "/items/7/user_id",
            "/items/8/run_at",
            "/items/9/user_id"
        ],
        "{refused}"
    );
    let mut items = nameless(3);
    items[1] = known.clone().with("priority", 3);
    items[2] = read("user-1").named(foreign["id"].as_str().unwrap());
    let (_, refused) = api.make(&json!({"items": items})).await;
    assert_eq!(kind(&refused), "invalid-batch");
    let (body, foreign) = (&refused["errors"][0], &refused["errors"][1]);
    assert_eq!(
        (&body["detail"], &body["pointer"]),
        (&foreign["detail"], &json!("/items/1/id")),
        "nothing is told"
    );
    let (_, list) = api.get("/v1/jobs").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "nothing of them is stored");

    let (_, many) = api.make(&json!({"items": vec![json!({}); 150]})).await;
    assert_eq!(many["errors"].as_array().unwrap().len(), 100);
    assert!(many["detail"].as_str().unwrap().contains("the first 100 of 150 items"), "{many}");
    for (wanted, status, kind_of) in [
        (json!({"items": vec![json!({}); 10_001]}), StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        (json!({"item": []}), StatusCode::BAD_REQUEST, "bad-request"),
        (json!([[]]), StatusCode::BAD_REQUEST, "bad-request"),
        (
            json!({"items": [], "stop_when": {"failed_percent": 0, "of_at_least": 1}}),
            StatusCode::BAD_REQUEST,
            "bad-request",
        ),
        (
            json!({"items": [], "follow_up": read("user-1")}),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-batch",
        ),
        (json!({"items": [], "user_id": "a", "org_id": "b"}), StatusCode::BAD_REQUEST, "bad-request"),
    ] {
        let (answered, problem) = api.make(&wanted).await;
        assert_eq!((answered, kind(&problem)), (status, kind_of), "{problem}");
    }
    let (status, empty) = api.make(&json!({"items": []})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert!(empty["completed_at"].is_string(), "{empty}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_batch_is_called_off_and_its_failures_are_run_again() {
    let harness = migrated("batch-rest").await;
    let api = Api::start(&harness.env()).await;
    let mut items = vec![json!({"user_id": "user-1", "tool": "GITHUB_NO_SUCH_TOOL"})];
    items.extend(nameless(30).into_iter().map(|job| job.with("run_at", "2200-01-01T00:00:00Z")));
    let now = jiff::Timestamp::now();
    let far = now + jiff::SignedDuration::from_hours(24);
    for item in &mut items[1..] {
        item["run_at"] = json!(far.to_string());
    }
    let (_, made) = api.make(&json!({"items": items})).await;
    let _worker = harness.worker(&[]).await;
    let (status, early) = api.post(&format!("/v1/batches/{}/retry", id(&made)), &json!({})).await;
    assert_eq!((status, kind(&early)), (StatusCode::CONFLICT, "wrong-state"), "{early}");
    for _ in 0..2 {
        let (status, cancelled) = api.post(&format!("/v1/batches/{}/cancel", id(&made)), &json!({})).await;
        assert_eq!((status, &cancelled["cancelled_by"]), (StatusCode::OK, &json!("api")), "{cancelled}");
    }
    let done = api.completed(id(&made)).await;
    assert_eq!((&done["counts"]["cancelled"], &done["generation"]), (&json!(30), &json!(1)), "{done}");
    let (status, again) = api.post(&format!("/v1/batches/{}/retry", id(&made)), &json!({})).await;
    assert_eq!(
        (status, &again["generation"], &again["completed_at"]),
        (StatusCode::OK, &json!(2), &Value::Null)
    );
    let done = api.completed(id(&made)).await;
    assert_eq!((&done["counts"]["failed"], &done["generation"]), (&json!(1), &json!(2)), "{done}");
    let job = done["id"].as_str().unwrap();
    let (_, page) = api.get(&format!("/v1/batches/{job}/items?limit=1")).await;
    let history = harness.show(page["items"][0]["job_id"].as_str().unwrap())["history"].clone();
    assert_eq!((&history[0]["kind"], &history[0]["by"]), (&json!("retried"), &json!("api")), "{history}");
    harness.called(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_stops_when_too_many_fail_and_at_its_deadline() {
    let harness = Harness::new("batch-stops", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let wrong = json!({"user_id": "user-1", "tool": "GITHUB_NO_SUCH_TOOL"});
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
    let waiting = send("user-1").with("run_at", later.as_str());
    let stop = json!({"failed_percent": 50, "of_at_least": 2});
    let (_, failing) = api.make(&json!({"items": [wrong, wrong, waiting], "stop_when": stop})).await;
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1)).to_string();
    let (_, late) =
        api.make(&json!({"items": [send("user-1").with("run_at", later.as_str())], "deadline": soon})).await;
    for (batch, by) in [(failing, "failures in the batch"), (late, "deadline of the batch")] {
        let done = api.completed(id(&batch)).await;
        assert!(batch["stop_when"].is_null() || batch["stop_when"] == stop, "as it was asked for: {batch}");
        assert_eq!((&done["cancelled_by"], &done["counts"]["cancelled"]), (&json!(by), &json!(1)), "{done}");
    }
    harness.called(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_jobs_keep_a_batch_open_until_its_deadline_and_then_only_what_nobody_knows_stays_held() {
    let unknown = "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = true\n";
    let harness = Harness::new("batch-deadline", unknown).await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
    let (unconnected, sent) = (read("u-nobody"), send("user-2"));
    let items = json!([read("user-1"), unconnected, sent]);
    let (status, made) = api.make(&json!({"items": items, "deadline": later})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = format!("/v1/batches/{}", id(&made));
    until("two held jobs, and one that has succeeded", PATIENCE, async || {
        let (_, batch) = api.get(&path).await;
        (batch["counts"]["held"] == 2 && batch["counts"]["succeeded"] == 1).then_some(())
    })
    .await;
    let (status, open) = api.get(&format!("{path}?wait=60")).await;
    assert_eq!((status, &open["completed_at"]), (StatusCode::ACCEPTED, &Value::Null), "{open}");
    assert_eq!(open["cancelled_by"], Value::Null, "{open}");

    // Now it passes.
    harness.execute(&format!("update batches set deadline = now() where id = '{}'", id(&made))).await;
    let done = api.completed(id(&made)).await;
    let counts = ["succeeded", "cancelled", "held"].map(|state| &done["counts"][state]);
    assert_eq!(counts, [&json!(1); 3], "{done}");
    assert_eq!(done["cancelled_by"], "deadline of the batch");
    let (_, called_off) = api.get(&format!("/v1/jobs/{}", unconnected.id())).await;
    assert_eq!(called_off["state"], "cancelled", "{called_off}");
    let (_, held) = api.get(&format!("/v1/jobs/{}", sent.id())).await;
    assert_eq!((&held["state"], &held["held_reason"]), (&json!("held"), &json!("unknown_outcome")), "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_somebody_has_locked_keeps_only_itself_from_being_called_off() {
    let harness = migrated("batch-locked").await;
    let api = Api::start(&harness.env()).await;
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
    let waiting = |user: &str, count| -> Vec<Value> {
        (0..count).map(|_| send(user).with("run_at", later.as_str())).collect()
    };
    let items = waiting("user-1", 10);
    let (_, made) = api.make(&json!({"items": items})).await;
    let (_, other) = api.make(&json!({"items": waiting("user-2", 3)})).await;
    // The newest is decided about first.
    let newest = items.iter().map(|item| item["id"].as_str().unwrap()).max().unwrap();
    let mut locking = harness.database.connect().await.unwrap();
    let sql = format!("begin; select id from jobs where id = '{newest}' for update");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut locking).await.unwrap();
    for batch in [&made, &other] {
        let (status, answer) = api.post(&format!("/v1/batches/{}/cancel", id(batch)), &json!({})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let worker = harness.worker(&[]).await;
    let done = api.completed(id(&other)).await;
    assert_eq!(done["counts"]["cancelled"], 3, "{done}");
    harness.counts("state = 'cancelled'", 12).await;
    worker.metric_reaches("errand_store_errors_total{kind=\"locked\"}", 1.0).await;
    locking.close().await.unwrap();
    let done = api.completed(id(&made)).await;
    assert_eq!(done["counts"]["cancelled"], 10, "{done}");
    harness.called(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_is_run_once_though_answers_are_lost_and_a_worker_dies() {
    let harness = migrated("batch-lost").await;
    let api = Api::start(&harness.env()).await;
    let items: Vec<Value> = (0..300).map(|_| send("user-1")).collect();
    let wanted = json!({"items": items});
    // Some of the answers are never read.
    let post = || api.request(Method::POST, "/v1/batches").header("idempotency-key", "k").json(&wanted);
    let cut = post().timeout(std::time::Duration::from_millis(30)).send().await;
    drop(cut);
    let mut worker = harness.worker(LOOKS_UP).await;
    let (status, made) = read_answer(post().send().await.unwrap()).await;
    assert!(status == StatusCode::CREATED || status == StatusCode::OK, "{made}");
    until("some jobs have ended", PATIENCE, async || {
        let (_, batch) = api.get(&format!("/v1/batches/{}", id(&made))).await;
        (batch["counts"]["succeeded"].as_u64().unwrap() > 20).then_some(())
    })
    .await;
    worker.kill9();
    let _next = harness.worker(LOOKS_UP).await;
    // That a call never arrived is known by one that was sent after it was given up.
    let path = format!("/v1/batches/{}?wait=5", id(&made));
    let mut others = 0;
    let done = until("a complete batch", 2 * PATIENCE, async || {
        assert_eq!(api.post("/v1/jobs", &send("user-2")).await.0, StatusCode::CREATED);
        others += 1;
        let (status, batch) = api.get(&path).await;
        (status == StatusCode::OK).then_some(batch)
    })
    .await;
    assert_eq!(done["counts"]["succeeded"], 300, "{done}");
    harness.called(300 + others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_batch_of_which_only_held_jobs_are_left_ends_and_says_so() {
    let harness = Harness::new("batch-held", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let (_, made) = api.make(&json!({"items": [read("user-1"), read("u-nobody")]})).await;
    let wait = ["batches", "show", id(&made), "--wait=600"];
    let far = [("HOME".to_owned(), std::env::temp_dir().display().to_string())];
    for (at, env) in [(&[][..], &harness.env()[..]), (&["--server", &*api.base], &far)] {
        let waited = run(&[at, &wait].concat(), env);
        let [out, err] = [waited.stdout, waited.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_eq!(waited.status.code(), Some(1), "{out}{err}");
        assert!(out.contains("1 held, 1 succeeded"), "{out}");
        let list = format!("{} jobs list --batch {} --state held` says why\n", at.join(" "), id(&made));
        assert!(err.lines().count() == 1 && err.ends_with(&list), "{err}");
    }
    let begun = std::time::Instant::now();
    let (status, held) = api.get(&format!("/v1/batches/{}?wait=60", id(&made))).await;
    assert_eq!((status, &held["counts"]["held"]), (StatusCode::ACCEPTED, &json!(1)), "{held}");
    assert!(begun.elapsed().as_secs() < 50, "it does not wait for its whole time");
    let listed = harness.errand(&["jobs", "list", "--batch", id(&made), "--state", "held"]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains("held (connection)"));

    harness.connect("u-nobody", "ac_1").await;
    assert!(harness.errand(&["jobs", "release", "--batch", id(&made), "--retry", "--yes"]).status.success());
    assert!(harness.errand(&wait).status.success());
    harness.all_ran_once(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_worker_looks_at_while_it_stops_is_for_the_next_one_at_once() {
    let harness = migrated("batch-stopped").await;
    let api = Api::start(&harness.env()).await;
    let (status, made) = api.make(&json!({"sealed": false})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let mut worker = harness.worker(&[]).await;
    let mut keeper = harness.database.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table batch_parts in exclusive mode").execute(&mut keeper).await.unwrap();
    until("a look that does not end", PATIENCE, async || {
        let sql = "select count(*)::text from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock'";
        (harness.text(sql).await? == "1").then_some(())
    })
    .await;
    assert!(worker.stop().await.success(), "{}", worker.log());
    // A look that the lock ended before is repeated in ten seconds; one that a process left is after a minute.
    let soon = harness.text("select (look_at < now() + interval '15 seconds')::text from batches").await;
    assert_eq!(soon.as_deref(), Some("true"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nobody_seals_is_sealed_after_a_week() {
    let harness = Harness::new("batch-week", "").await;
    let _worker = harness.worker(&[]).await;
    let api = Api::start(&harness.env()).await;
    let (_, old) = api.make(&json!({"sealed": false, "items": [read("user-1")]})).await;
    let (_, younger) = api.make(&json!({"sealed": false, "items": [read("user-2")]})).await;
    for (batch, days) in [(&younger, 6), (&old, 8)] {
        let aged = format!("created_at = now() - interval '{days} days', look_at = now()");
        harness.execute(&format!("update batches set {aged} where id = '{}'", id(batch))).await;
    }
    let done = api.completed(id(&old)).await;
    assert_eq!((&done["sealed"], &done["counts"]["succeeded"]), (&json!(true), &json!(1)), "{done}");
    until("a look at the younger one that has ended", PATIENCE, async || {
        // While it is looked at, the next look is a minute away.
        let soon = "look_at > now() and look_at < now() + interval '15 seconds'";
        let sql = format!("select ({soon})::text from batches where id = '{}'", id(&younger));
        (harness.text(&sql).await? == "true").then_some(())
    })
    .await;
    let (_, younger) = api.get(&format!("/v1/batches/{}", id(&younger))).await;
    assert_eq!((&younger["sealed"], &younger["completed_at"]), (&json!(false), &Value::Null), "{younger}");
}
