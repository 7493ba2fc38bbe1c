//! Nothing grows for ever: what workers and people remove, on the real services.

use errand::{
    job::{Attempt, AttemptOutcome, Ending, Fence, RequestId},
    store::{By, Finish},
};
use errand_testbed::factory::{Envelope as _, create, read, send};
use jiff::Timestamp;
use lapin::BasicProperties;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    api::{Api, read_answer},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

/// Rounds that follow each other quickly.
const QUICK: (&str, &str) = ("ERRAND__RETENTION__EVERY_SECS", "1");

/// Makes jobs older that meet a condition.
async fn age(harness: &Harness, days: u32, condition: &str) {
    harness
        .execute(&format!(
            "update jobs set created_at = created_at - interval '{days} days',
                finished_at = finished_at - interval '{days} days' where {condition}"
        ))
        .await;
}

/// Runs a command that answers JSON, with these settings.
fn answer(harness: &Harness, args: &[&str], settings: &[(&str, &str)]) -> Value {
    let mut env = harness.env();
    env.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let output = run(args, &env);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

async fn rejected(harness: &Harness) -> u64 {
    harness.text("select count(*)::text from rejected").await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_for_long_enough_is_removed_by_one_of_the_workers() {
    let failing =
        "[[fault]]\nkind = \"provider_failure\"\nprovider_status = 400\ntool = \"LINEAR_CREATE_ISSUE\"\n";
    let harness = Harness::new("retention", failing).await;
    let workers = [harness.worker(&[QUICK]).await, harness.worker(&[QUICK]).await];
    let jobs: Vec<Value> =
        (0..30).map(|n| if n % 3 == 0 { create("user-1") } else { read("user-2") }).collect();
    harness.publish(&jobs).await;
    assert_eq!(harness.settled(30).await, [("failed".to_owned(), 10), ("succeeded".to_owned(), 20)]);
    // The successes are over, and the failures are not.
    age(&harness, 8, "true").await;
    harness.counts("true", 10).await;
    harness.counts("state = 'failed'", 10).await;
    let removed = async |state: &str| {
        let series = format!("errand_pruned_jobs_total{{state=\"{state}\"}}");
        [workers[0].metric(&series).await, workers[1].metric(&series).await]
    };
    until("the count of the one that started first", PATIENCE, async || {
        (removed("succeeded").await == [20.0, 0.0]).then_some(())
    })
    .await;
    age(&harness, 23, "state = 'failed'").await;
    harness.counts("true", 0).await;
    until("the count", PATIENCE, async || (removed("failed").await == [10.0, 0.0]).then_some(())).await;
    // Nor does an ID stay of a job that was removed by a build which does not know of such IDs.
    harness.execute("insert into known_as (job_id, id) values (gen_random_uuid(), gen_random_uuid())").await;
    until("it is swept", PATIENCE, async || {
        (harness.text("select count(*)::text from known_as").await? == "0").then_some(())
    })
    .await;
    let left = "select (select count(*) from attempts) || ' ' || (select count(*) from job_history)";
    assert_eq!(harness.text(left).await.as_deref(), Some("0 0"));
    // The same ID is a new job now.
    harness.publish(&jobs[1..2]).await;
    harness.job_in(jobs[1].id(), &["succeeded"]).await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 31, "it was called again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_after_it_was_removed_is_new_whether_by_its_id_or_its_key() {
    let folder = crate::harness::in_memory("errand-again-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    let errand = |args: &[&str]| assert!(run(args, &env).status.success(), "{args:?}");
    errand(&["migrate"]);
    let api = Api::start(&env).await;
    let job = read("user-1").with("idempotency_key", "k");
    let other_body = job.clone().with("tool", "GITHUB_LIST_STARGAZERS");
    let batch = json!({"user_id": "user-1", "items": [read("user-1").nameless()]});
    let batched = async || {
        let request = api.request(Method::POST, "/v1/batches").header("idempotency-key", "night-1");
        read_answer(request.json(&batch).send().await.unwrap()).await
    };
    let prune = ["prune", "--state", "cancelled", "--yes"];
    let erase = ["erase", "--owner", "user:user-1"];
    for (body, removed) in [(&job, &prune[..]), (&job, &erase), (&other_body, &prune), (&job, &erase)] {
        let path = format!("/v1/jobs/{}", body.id());
        assert_eq!(api.post("/v1/jobs", body).await.0, StatusCode::CREATED, "{removed:?}");
        assert_eq!(api.post("/v1/jobs", body).await.0, StatusCode::OK, "{removed:?}");
        // As long as a batch is kept it is known, whatever became of its jobs.
        let (status, made) = batched().await;
        assert_eq!(status, if removed == erase { StatusCode::OK } else { StatusCode::CREATED }, "{made}");
        errand(&["jobs", "cancel", "--owner", "user:user-1", "--yes"]);
        errand(removed);
        assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND, "{removed:?}");
        let known = api.get(&format!("/v1/batches/{}", made["id"].as_str().unwrap())).await.0;
        assert_eq!(known == StatusCode::OK, removed == prune, "{removed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_by_hand_says_what_it_removes_and_a_dry_one_changes_nothing() {
    let harness = Harness::new("byhand", "").await;
    let mut worker = harness.worker(&[]).await;
    let mut jobs: Vec<Value> = (0..10).map(|_| read("user-1")).collect();
    jobs.extend((0..5).map(|_| read("user-2")));
    harness.publish(&jobs).await;
    harness.settled(15).await;
    worker.stop().await;
    let nothing = json!({"succeeded": 0, "failed": 0, "cancelled": 0});
    assert_eq!(answer(&harness, &["prune", "--json"], &[])["jobs"], nothing);
    age(&harness, 3, "true").await;
    // One owner's jobs are kept for two days, those of the others for seven.
    let file = harness.journal_dir().with_file_name("errand.toml");
    std::fs::write(&file, "[owner_retention]\n\"user:user-2\" = { succeeded_days = 2 }\n").unwrap();
    let file = ["--config", file.to_str().unwrap()];
    let of_owner = json!({"succeeded": 5, "failed": 0, "cancelled": 0});
    let dry = answer(&harness, &[&file[..], &["prune", "--dry-run", "--json"]].concat(), &[]);
    assert_eq!((&dry["jobs"], &dry["dry_run"]), (&of_owner, &json!(true)), "{dry}");
    assert_eq!(harness.count("true").await, 15);
    assert_eq!(answer(&harness, &[&file[..], &["prune", "--json"]].concat(), &[])["jobs"], of_owner);
    assert_eq!(harness.count("owner_id = 'user-1'").await, 10);
    assert_eq!(harness.count("true").await, 10);
    // 0 keeps them for ever.
    age(&harness, 3_000, "true").await;
    let kept = answer(&harness, &["prune", "--json"], &[("ERRAND__RETENTION__SUCCEEDED_DAYS", "0")]);
    assert_eq!(kept["jobs"], nothing);
    let output = harness.errand(&["prune"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("succeeded jobs") && text.contains("10 jobs looked at"), "{text}");
    assert_eq!(harness.count("true").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_job_was_removed_never_runs_and_is_kept() {
    let harness = Harness::new("outlived", "").await;
    let mut worker = harness.worker(&[("ERRAND__WORKER__QUEUES", "default")]).await;
    // Nobody consumes its lane, so that its message waits for longer than its job is kept.
    let job = send("u-alice");
    let file = harness.journal_dir().with_file_name("job.json");
    std::fs::write(&file, format!("{}\n", job.clone().with("queue", "bulk"))).unwrap();
    assert!(harness.errand(&["enqueue-bulk", file.to_str().unwrap()]).status.success());
    harness.counts("published > 0", 1).await;
    assert!(harness.errand(&["jobs", "cancel", job.id()]).status.success());
    age(&harness, 31, "true").await;
    assert_eq!(answer(&harness, &["prune", "--json"], &[])["jobs"]["cancelled"], 1);
    worker.stop().await;
    let worker = harness.worker(&[("ERRAND__WORKER__QUEUES", "bulk")]).await;
    worker.metric_reaches("errand_claims_total{queue=\"bulk\",result=\"gone\"}", 1.0).await;
    until("it to be kept", PATIENCE, async || (rejected(&harness).await == 1).then_some(())).await;
    let reason = harness.text("select reason from rejected").await;
    assert_eq!(reason.as_deref(), Some("unknown_job"));
    assert_eq!((harness.count("true").await, harness.sandbox.ledger_summary().calls), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_messages_are_bounded_by_age_count_and_bytes_and_the_oldest_go_with_a_warning() {
    let harness = Harness::new("garbage", "").await;
    let limits =
        [QUICK, ("ERRAND__RETENTION__REJECTED_COUNT", "10"), ("ERRAND__RETENTION__REJECTED_BYTES", "5000")];
    let worker = harness.worker(&limits).await;
    let garbage = |n: usize, size: usize| format!("{n}:{}", "x".repeat(size)).into_bytes();
    harness.publish_raw(&[garbage(0, 10)], BasicProperties::default()).await;
    until("one to be kept", PATIENCE, async || (rejected(&harness).await == 1).then_some(())).await;
    harness.execute("update rejected set received_at = received_at - interval '31 days'").await;
    worker.metric_reaches("errand_pruned_rejected_messages_total{by=\"age\"}", 1.0).await;

    let many: Vec<Vec<u8>> = (1..=25).map(|n| garbage(n, 10)).collect();
    harness.publish_raw(&many, BasicProperties::default()).await;
    worker.metric_reaches("errand_pruned_rejected_messages_total{by=\"count\"}", 15.0).await;
    until("ten to be left", PATIENCE, async || (rejected(&harness).await == 10).then_some(())).await;
    worker.logged("rejected messages were removed before their time").await;

    harness.publish_raw(&[garbage(30, 4_000)], BasicProperties::default()).await;
    harness.publish_raw(&[garbage(31, 4_000)], BasicProperties::default()).await;
    worker.metric_reaches("errand_pruned_rejected_messages_total{by=\"bytes\"}", 1.0).await;
    let newest = "select coalesce(string_agg(left(encode(body, 'escape'), 3), ' '), '') from rejected";
    until("the newest to be left", PATIENCE, async || {
        (harness.text(newest).await.as_deref() == Some("31:")).then_some(())
    })
    .await;
}

/// A journal with a result of each of these jobs, as a worker leaves it behind whose database was away.
fn journal(harness: &Harness, jobs: &[&str]) {
    let result = |id: &&str| {
        let attempt = Attempt {
            number: 1,
            request_id: RequestId::new(),
            outcome: AttemptOutcome::Succeeded,
            http_status: Some(200),
            log_id: None,
            version: None,
            error: None,
            started_at: Timestamp::now(),
            finished_at: Timestamp::now(),
        };
        let ending = Ending::Snooze { after: std::time::Duration::ZERO, error: None };
        Finish { id: id.parse().unwrap(), fence: Fence(1), by: By::Holder, attempt, ending }
    };
    let results = serde_json::to_string(&jobs.iter().map(result).collect::<Vec<_>>()).unwrap();
    let checksum: String = Sha256::digest(&results).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::create_dir_all(harness.journal_dir()).unwrap();
    let text = format!(r#"{{"version":1,"results":{results},"checksum":"{checksum}"}}"#);
    std::fs::write(harness.journal_dir().join("w.json"), text).unwrap();
}

/// In how many rows of all tables this text stands.
async fn mentions(harness: &Harness, text: &str) -> u64 {
    let mut rows = 0;
    let tables = harness
        .text(
            "select string_agg(relname, ' ') from pg_class
            where relkind = 'r' and relnamespace = current_schema()::regnamespace",
        )
        .await
        .unwrap();
    for table in tables.split(' ') {
        // A body is bytes.
        let row = if table == "rejected" { "encode(t.body, 'escape') || t::text" } else { "t::text" };
        let found =
            harness.text(&format!("select count(*)::text from {table} t where {row} like '%{text}%'")).await;
        rows += found.unwrap().parse::<u64>().unwrap();
    }
    rows
}

fn erase(harness: &Harness, flags: &[&str]) -> (i32, Value) {
    let output = harness.errand(&[&["erase", "--user", "user-1", "--json"][..], flags].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answer = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (output.status.code().unwrap(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_owner_stays_once_their_jobs_are_final() {
    let harness = Harness::new("erase", "").await;
    let mut worker = harness.worker(&[("ERRAND__EVENTS__RECORD", "all")]).await;
    let run: Vec<Value> = (0..6).map(|n| read(if n % 2 == 0 { "user-1" } else { "user-2" })).collect();
    let waits =
        read("user-1").with("run_at", (Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string());
    harness.publish(&run).await;
    harness.publish(std::slice::from_ref(&waits)).await;
    let invalid = read("user-1").with("priority", 99).to_string().into_bytes();
    let others = read("user-2").with("priority", 99).to_string().into_bytes();
    harness.publish_raw(&[invalid, others, b"no json".to_vec()], BasicProperties::default()).await;
    harness.settled(6).await;
    harness.job_in(waits.id(), &["scheduled"]).await;
    until("three to be kept", PATIENCE, async || (rejected(&harness).await == 3).then_some(())).await;
    worker.stop().await;
    for owner in ["user:user-1", "user:user-2"] {
        assert!(harness.errand(&["pins", "set", "github", "20251027_00", "--owner", owner]).status.success());
        let (_, id) = owner.split_once(':').unwrap();
        assert!(harness.errand(&["keys", "create", "--user", id, "--scope", "read"]).status.success());
        let set = ["callbacks", "set", "--user", id, "--url", &format!("https://app.example/{id}")];
        assert!(harness.errand(&set).status.success());
        harness
            .execute(&format!(
                "with added as (insert into deliveries (id, receiver, owner_kind, owner_id, url, event_id, kind, event, subject, position)
                    values (gen_random_uuid(), gen_random_uuid(), 'user', '{id}', 'https://app.example/', gen_random_uuid(), 'job.failed', '{{}}',
                        gen_random_uuid(), 1) returning *)
                insert into receivers (id, owner_kind, owner_id) select receiver, owner_kind, owner_id from added"
            ))
            .await;
        harness
            .execute(&format!(
                "insert into actions (id, owner_kind, owner_id, kind, force, asked_force, early, filter, created_before, status,
                    made_by, created_at, confirmed_by, confirmed_at, progress)
                 values (gen_random_uuid(), 'user', '{id}', 'prune', false, false, false, '{{}}', now(), 'confirmed', 'x', now(),
                    'x', now(), '{{}}')"
            ))
            .await;
        harness
            .execute(&format!(
                "insert into batches (id, digest, owner_kind, owner_id, created_at, follow_up, changed_at)
                 values (gen_random_uuid(), '\\x00112233445566778899aabbccddeeff', 'user', '{id}', now(), '{{\"user_id\": \"{id}\"}}', now())"
            ))
            .await;
    }
    journal(&harness, &[run[0].id(), run[1].id(), waits.id(), &errand_testbed::factory::id()]);

    // Whoever reads events gives them their places.
    assert!(harness.errand(&["events"]).status.success());
    let before = mentions(&harness, "user-1").await;
    let (code, dry) = erase(&harness, &["--dry-run"]);
    let removed = json!({
        "jobs": {"succeeded": 3}, "rejected": 1, "pins": 1, "keys": 1, "batches": 1, "actions": 1, "connections": 0, "events": 3,
        "deliveries": 1, "journal": 1,
    });
    assert_eq!((code, &dry["removed"]), (1, &removed), "{dry}");
    assert_eq!(mentions(&harness, "user-1").await, before, "a dry run changes nothing");
    let (code, answer) = erase(&harness, &[]);
    assert_eq!((code, &answer["removed"]), (1, &removed), "{answer}");
    let left = &answer["left"][0];
    assert_eq!(
        (&left["why"], &left["state"], &left["jobs"]),
        (&json!("under_way"), &json!("scheduled"), &json!(1))
    );
    assert_eq!(answer["left_in_journal"], 1);
    let unknown = json!({"rejected": 1, "journal": 1, "journal_files": 0});
    assert_eq!(answer["not_known_whose"], unknown);
    assert_eq!(mentions(&harness, "user-1").await, 1, "the job that waits");

    assert!(harness.errand(&["jobs", "cancel", waits.id()]).status.success());
    let (code, answer) = erase(&harness, &[]);
    assert_eq!(
        (code, &answer["removed"]["jobs"], &answer["removed"]["journal"]),
        (0, &json!({"cancelled": 1}), &json!(1))
    );
    assert_eq!(mentions(&harness, "user-1").await, 0);
    assert_eq!(mentions(&harness, waits.id()).await, 0);
    // Others are untouched.
    assert_eq!((harness.count("owner_id = 'user-2'").await, rejected(&harness).await), (3, 2));
    let of_others = "select concat_ws(' ', (select count(*) from pins), (select count(*) from actions), (select count(*) from batches))";
    assert_eq!(harness.text(of_others).await.as_deref(), Some("1 1 1"));
    let text = String::from_utf8(harness.errand(&["erase", "--org", "nobody"]).stdout).unwrap();
    assert!(text.contains("not known whose: 1 rejected messages"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_for_a_tool_api_that_is_away_add_no_rows() {
    let harness = Harness::new("away", "").await;
    let _worker = harness.worker(&[("COMPOSIO_BASE_URL", "http://127.0.0.1:9")]).await;
    let jobs: Vec<Value> = (0..20).map(|n| read(&format!("user-{n}"))).collect();
    harness.publish(&jobs).await;
    until("many attempts of each", PATIENCE, async || {
        let enough = "select (sum(attempt) >= 400 and min(attempt) > 10 and count(*) = 20)::text from jobs";
        (harness.text(enough).await? == "true").then_some(())
    })
    .await;
    let rows = harness.text("select count(*)::text from attempts").await.unwrap().parse::<u32>().unwrap();
    assert!((20..=80).contains(&rows), "{rows} rows");
    let job = harness.show(jobs[0].id());
    let told: u64 =
        job["attempts"].as_array().unwrap().iter().map(|attempt| attempt["times"].as_u64().unwrap()).sum();
    assert!(told >= 10, "{job}");
    let text = String::from_utf8(harness.errand(&["jobs", "show", jobs[0].id()]).stdout).unwrap();
    assert!(text.contains(" times"), "{text}");
    let audited = answer(&harness, &["audit", "--json"], &[]);
    assert_eq!(audited["findings"], json!([]), "{audited}");
}
