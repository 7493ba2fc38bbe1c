//! What cannot be enqueued by the function in PostgreSQL, by whom it cannot, and what becomes of it. The real binary on real
//! services.

use std::collections::BTreeSet;

use errand_testbed::factory::{Envelope as _, id, post, read, send, spread};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    access_keys::tomorrow,
    enqueue_by_sql::{Role, all_are_taken_in, became, enqueue, execute, left, try_enqueue},
    event_exchange::listed,
    event_streams::{RECORDS, text},
    harness::{Harness, PATIENCE, run},
    poison::{break_rows, heal},
    publishers::{publishers, rejected},
    support::wait::until,
};

const ENQUEUER: &str = include_str!("../../deploy/postgres/enqueue.sql");
const BACK: &str = include_str!("../../deploy/postgres/back_to_public.sql");

/// What no error may tell.
const SECRET: &str = "hunter2-hunter2";

/// The largest envelope.
const LARGEST: usize = 1024 * 1024 - 1024;

/// The SQLSTATE of an error of the database.
fn code(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap_or_else(|| panic!("{error:?}")).code().unwrap().into_owned()
}

/// What is refused at once, with words for what is wrong with it.
fn unfit() -> Vec<(String, &'static str)> {
    let mut all: Vec<(String, &str)> = Vec::new();
    for whole in ["[]", r#"["hunter2-hunter2"]"#, r#""hunter2-hunter2""#, "null", "7", "true"] {
        all.push((whole.to_owned(), "the envelope is no JSON object"));
    }
    let with =
        |fields: &str| format!(r#"{{"requested_by":"{SECRET}","idempotency_key":"{SECRET}",{fields}}}"#);
    let long_owner = format!(r#""tool":"T","org_id":"{}""#, "o".repeat(257));
    let long_key = format!(r#""version":"{}""#, "x".repeat(257));
    let long_tool = format!(r#""user_id":"user-1","tool":"{}""#, "T".repeat(129));
    for (fields, words) in [
        (r#""tool":"T""#, "give either `user_id` or `org_id`"),
        (r#""tool":"T","user_id":null,"org_id":null"#, "give either `user_id` or `org_id`"),
        (r#""tool":"T","user_id":"user-1","org_id":"org-1""#, "give either `user_id` or `org_id`"),
        (r#""tool":"T","user_id":"""#, "the owner is empty"),
        (r#""tool":"T","org_id":"  ""#, "the owner is empty"),
        (long_owner.as_str(), "the ID of the owner is longer than 256 bytes"),
        (r#""tool":"T","user_id":7"#, "`user_id` is no text"),
        (r#""user_id":"user-1""#, "`tool` is missing"),
        (r#""user_id":"user-1","tool":null"#, "`tool` is missing"),
        (r#""user_id":"user-1","tool":"""#, "`tool` must have 1 to 128 characters"),
        (r#""user_id":"user-1","tool":["T"]"#, "`tool` is no text"),
        (long_tool.as_str(), "`tool` must have 1 to 128 characters"),
    ] {
        all.push((with(fields), words));
    }
    for (field, words) in [
        (r#""usr_id":"user-1""#, "`usr_id` is not a field of an envelope"),
        (r#""reply_to":"theirs""#, "`reply_to` is not a field of an envelope"),
        (r#""tool":"T""#, "`tool` is there twice"),
        (r#""to\u006fl":"T""#, "`tool` is there twice"),
        (r#""user_id":null"#, "`user_id` is there twice"),
        (r#""priority":"5""#, "`priority` is no number"),
        (r#""max_attempts":true"#, "`max_attempts` is no number"),
        (r#""timeout_ms":"1s""#, "`timeout_ms` is no number"),
        (r#""max_age_ms":{}"#, "`max_age_ms` is no number"),
        (r#""priority":99"#, "`priority` must be from 0 to 9"),
        (r#""priority":-1"#, "`priority` is no whole number"),
        (r#""max_attempts":1.5"#, "`max_attempts` is no whole number"),
        (r#""timeout_ms":1e3"#, "`timeout_ms` is no whole number"),
        (r#""run_at":"in an hour""#, "`run_at` is no time such as 2030-01-02T03:04:05Z"),
        (r#""expires_at":"2030-01-01T00:00:00""#, "`expires_at` is no time such as"),
        (r#""effect":"maybe""#, "`effect` must be safe, idempotent or once"),
        (long_key.as_str(), "`version` is longer than 256 bytes"),
        (r#""tags":[1]"#, "`tags` is no object"),
        (r#""arguments":[1]"#, "`arguments` is no object"),
        (r#""arguments":"{}""#, "`arguments` is no object"),
        (r#""tags":7"#, "`tags` is no object"),
        (r#""callback":"https://app.example/hunter2-hunter2""#, "`callback` must be an object such as"),
        (r#""callback":{"url":["https://app.example/"]}"#, "`callback` must be an object such as"),
        (r#""callback":{}"#, "`callback` must be an object such as"),
        (r#""text":7"#, "`text` is no text"),
        (r#""run_at":1700000000"#, "`run_at` is no text"),
        (r#""queue":["bulk"]"#, "`queue` is no text"),
        (r#""effect":{}"#, "`effect` is no text"),
        (r#""id":17"#, "`id` is no text"),
        (r#""id":"""#, "`id` is not a UUID"),
        (r#""id":"order-17""#, "`id` is not a UUID"),
        (r#""id":"0190b0a0-0000-8000-8000-000000000001""#, "`id` is a UUID of version 8"),
        (r#""id":"{0190B0A0-0000-8000-8000-000000000001}""#, "`id` is a UUID of version 8"),
        (r#""id":"0190b0a0000080008000000000000001""#, "`id` is a UUID of version 8"),
    ] {
        all.push((with(&format!(r#""user_id":"user-1","tool":"T",{field}"#)), words));
    }
    all
}

/// What no text of the database can hold.
fn unreadable() -> Vec<String> {
    let with = |fields: &str| format!(r#"{{"user_id":"user-1","tool":"T",{fields}}}"#);
    let mut all = vec![
        r#"{"user_id":"user-\u00001","tool":"T"}"#.to_owned(),
        r#"{"user_id":"user-1","tool":"T\u0000"}"#.to_owned(),
        r#"{"user_id":"user-1","tool":"T""#.to_owned(),
        String::new(),
    ];
    for fields in [
        r#""text":"a\u0000b""#,
        r#""text":"\ud800""#,
        r#""idempotency_key":"\u0000""#,
        r#""te\u0000xt":"a""#,
        r#""tags":{"team":"a\u0000b"}"#,
        r#""id":"0190b0a0-0000-7000-8000-000000000001\u0000""#,
    ] {
        all.push(with(fields));
    }
    all
}

/// A job that is to run tomorrow, whose envelope has so many bytes.
fn of_size(bytes: usize) -> String {
    let job = send("user-1").with("run_at", tomorrow());
    let room = bytes - job.to_string().len();
    let mut arguments = job["arguments"].clone();
    arguments["body"] = "b".repeat(1 + room).into();
    let envelope = job.with("arguments", arguments).to_string();
    assert_eq!(envelope.len(), bytes);
    envelope
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_can_judge_is_refused_at_once_and_told_without_what_else_is_in_the_envelope() {
    let harness = Harness::new("sql-unfit", "").await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    for (envelope, words) in &unfit() {
        let error = try_enqueue(&mut db, "errand", envelope).await.expect_err(envelope);
        assert_eq!(code(&error), "22023", "{envelope}: {error:?}");
        let message = error.as_database_error().unwrap().message();
        assert!(message.starts_with("errand: ") && message.contains(words), "{envelope}: {message}");
        assert!(!format!("{error:?}").contains(SECRET), "{envelope}: {error:?}");
        assert_eq!(left(&harness).await, 0, "{envelope}");
    }
    let nothing = sqlx::raw_sql("select errand.enqueue(null)").execute(&mut db).await.unwrap_err();
    assert_eq!(code(&nothing), "22023", "{nothing:?}");
    for envelope in &unreadable() {
        let error = try_enqueue(&mut db, "errand", envelope).await.expect_err(envelope);
        assert!(code(&error).starts_with("22"), "{envelope}: {error:?}");
        assert_eq!(left(&harness).await, 0, "{envelope}");
    }
    let error = try_enqueue(&mut db, "errand", &of_size(LARGEST + 1)).await.unwrap_err();
    let message = error.as_database_error().unwrap().message();
    let words = format!("the envelope has {} bytes; it may have {LARGEST}", LARGEST + 1);
    assert!(code(&error) == "54000" && message.contains(&words), "{error:?}");
    assert_eq!(left(&harness).await, 0);

    // What is right to the last byte is taken, and so is what says nothing.
    let largest = try_enqueue(&mut db, "errand", &of_size(LARGEST)).await.unwrap();
    let mut sparse = read("user-1").nameless();
    for field in ["id", "org_id", "queue", "priority", "run_at", "tags", "text", "effect", "idempotency_key"]
    {
        sparse[field] = Value::Null;
    }
    let sparse = enqueue(&mut db, &sparse).await;
    assert_eq!(left(&harness).await, 2);
    let worker = harness.worker(&[]).await;
    harness.job_in(&largest, &["scheduled"]).await;
    harness.job_in(&sparse, &["succeeded"]).await;
    harness.called(1).await;
    worker.metric_reaches(&became("new"), 2.0).await;
}

/// What is wrong in a way that SQL cannot judge, with the kind of the error, or else the reason for which it is no job, and the
/// field that is named.
fn wrong() -> Vec<(Value, &'static str, &'static str)> {
    let long = "x".repeat(257);
    let with = |field: &str, value: Value| read("user-1").with(field, value);
    let ends_before = with("run_at", json!("2030-01-02T00:00:00Z"));
    vec![
        (with("text", json!("read the repository")), "invalid_job", "`text`"),
        (read("default"), "owner_refused", "`user_id`"),
        (with("callback", json!({"url": "https://app.example/"})), "invalid_job", "`callback`"),
        (ends_before.with("expires_at", "2030-01-01T00:00:00Z"), "bad_value", "`expires_at`"),
        (with("run_at", json!("2030-13-01T00:00:00Z")), "malformed", "`run_at`"),
        (with("queue", json!("nowhere")), "bad_value", "`queue`"),
        (with("queue", json!("Not A Queue")), "bad_value", "`queue`"),
        (with("timeout_ms", json!(0)), "bad_value", "`timeout_ms`"),
        (with("tags", json!({"team": long})), "bad_value", "`tags`"),
        (with("callback", json!({"url": "ftp://app.example/"})), "bad_value", "`callback`"),
    ]
}

/// How many of them are jobs.
const UNFIT: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_errand_can_judge_fails_the_job_that_was_returned_or_is_kept_as_rejected() {
    let harness = Harness::new("sql-wrong", "").await;
    let worker = harness.worker(&[(RECORDS[0], RECORDS[1])]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    let (wrong, mut ids) = (wrong(), Vec::new());
    execute(&mut db, "begin").await;
    for (place, (job, ..)) in wrong.iter().enumerate() {
        // Whether or not it brings one.
        let job = if place % 2 == 0 { job.clone().nameless() } else { job.clone() };
        ids.push(enqueue(&mut db, &job).await);
    }
    let good = enqueue(&mut db, &read("user-2").nameless()).await;
    execute(&mut db, "commit").await;
    harness.job_in(&good, &["succeeded"]).await;
    all_are_taken_in(&harness).await;
    for (id, (job, kind, field)) in ids.iter().zip(&wrong).take(UNFIT) {
        let failed = harness.job_in(id, &["failed"]).await;
        assert_eq!((&failed["id"], &failed["error"]["kind"]), (&json!(id), &json!(kind)), "{job}: {failed}");
        let message = text(&failed["error"], "message");
        assert!(message.contains(field), "{job}: {message}");
        assert_eq!((&failed["owner"]["id"], &failed["tool"]), (&job["user_id"], &job["tool"]), "{failed}");
    }
    for (id, (job, reason, field)) in ids.iter().zip(&wrong).skip(UNFIT) {
        let listed = harness.errand(&["rejected", "list", "--job", id, "--json"]);
        let kept: Value = serde_json::from_slice(&listed.stdout).expect("it is found by its ID");
        assert_eq!(text(&kept, "reason"), *reason, "{job}: {kept}");
        assert!(text(&kept, "message").contains(field), "{job}: {kept}");
    }
    harness.called(1).await;
    let events = listed(&harness);
    let failed = events.iter().filter(|event| event["type"] == "job.failed");
    let told: BTreeSet<&str> = failed.map(|event| text(event, "job_id")).collect();
    assert_eq!(told, ids[..UNFIT].iter().map(String::as_str).collect::<BTreeSet<_>>());
    worker.metric_reaches(&became("failed"), UNFIT as f64).await;
    worker.metric_reaches(&became("rejected"), (wrong.len() - UNFIT) as f64).await;
    assert_eq!(worker.metric_sum("errand_sql_jobs_total").await, wrong.len() as f64 + 1.0);
}

/// What a role that may enqueue may not do besides.
const FORBIDDEN: &[&str] = &[
    "select count(*) from errand.job_inbox",
    "insert into errand.job_inbox (job_id, envelope, caller) values (gen_random_uuid(), '{}', 'errand')",
    "update errand.job_inbox set caller = 'errand'",
    "delete from errand.job_inbox",
    "truncate errand.job_inbox",
    "select nextval('errand.job_inbox_id_seq')",
    "select errand.envelope_id('{\"user_id\": \"user-1\", \"tool\": \"T\"}')",
    "select count(*) from errand.jobs",
    "insert into errand.jobs (id) values (gen_random_uuid())",
    "update errand.jobs set state = 'cancelled'",
    "delete from errand.jobs",
    "select count(*) from errand.job_list",
    "select count(*) from errand.rejected",
    "create table errand.mine (id int)",
    "create function errand.mine() returns int language sql return 1",
    "create or replace function errand.enqueue(envelope json) returns uuid language sql return null",
    "alter function errand.enqueue(json) security invoker",
    "drop function errand.enqueue(json)",
];

/// Things of a caller's own, which are called like those that the function needs. A type that is called like one of the
/// language says whose rights it is made with.
const SHADOWS: &str = "create temporary table job_inbox (id bigint, job_id uuid, envelope json, caller text);
    create function pg_temp.envelope_id(json) returns uuid language sql as 'select null::pg_catalog.uuid';
    create function pg_temp.spy(pg_catalog.text) returns boolean language plpgsql as
        $$ begin perform set_config('spy.role', current_user, false); return true; end $$;
    create domain pg_temp.uuid as pg_catalog.uuid check (pg_temp.spy(value::pg_catalog.text));
    set search_path = pg_temp, public";

async fn is_denied(db: &mut PgConnection, sql: &str) {
    let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await else {
        panic!("it may: {sql}")
    };
    assert_eq!(code(&error), "42501", "{sql}: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_enqueue_may_do_nothing_else_and_nobody_may_who_was_not_let() {
    let harness = Harness::new("sql-rights", "").await;
    let [shop, stranger, nobody] = [
        Role::new(&harness, "shop").await,
        Role::new(&harness, "stranger").await,
        Role::new(&harness, "nobody").await,
    ];
    harness.execute(&format!("grant usage on schema errand to {}", stranger.name)).await;
    for _ in 0..2 {
        harness.execute(ENQUEUER).await;
    }
    let job = json!({"user_id": "user-1", "tool": "T"});
    let call = format!("select errand.enqueue('{job}')");
    for role in [&shop, &stranger, &nobody] {
        is_denied(&mut role.connect().await, &call).await;
    }
    harness.execute(&format!("grant errand_enqueuer to {}", shop.name)).await;
    let mut db = shop.connect().await;
    for sql in FORBIDDEN {
        is_denied(&mut db, sql).await;
    }
    enqueue(&mut db, &job).await;

    let mut db = shop.connect().await;
    execute(&mut db, SHADOWS).await;
    enqueue(&mut db, &job).await;
    let seen =
        "select coalesce(current_setting('spy.role', true), '') || (select count(*) from pg_temp.job_inbox)";
    let seen: String = sqlx::query_scalar(seen).fetch_one(&mut db).await.unwrap();
    assert_eq!(seen, "0", "what is the caller's own is looked at, as this role");
    let callers = harness.text("select string_agg(caller, ' ') from errand.job_inbox").await.unwrap();
    assert_eq!(callers, format!("{0} {0}", shop.name));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_setting_publishers_a_role_enqueues_for_its_owners_only_whatever_role_it_takes_on() {
    let harness = Harness::new("sql-tied", "").await;
    let [shop, crm, plain] = [
        Role::that_enqueues(&harness, "shop").await,
        Role::that_enqueues(&harness, "crm").await,
        Role::that_enqueues(&harness, "plain").await,
    ];
    harness.execute(&format!("grant {}, {} to {}", crm.name, plain.name, shop.name)).await;
    let table = format!("[publishers]\n{} = [\"org:org-1\"]\n{} = [\"*\"]\n", shop.name, crm.name);
    let (name, file) = publishers(&harness, &table);
    let worker = harness.worker(&[(name, &file)]).await;
    let [mut db, mut of_crm, mut of_plain] =
        [shop.connect().await, crm.connect().await, plain.connect().await];
    let mine = enqueue(&mut db, &post("org-1").nameless()).await;
    let all = [enqueue(&mut of_crm, &post("org-3")).await, enqueue(&mut of_crm, &read("user-1")).await];
    harness.job_in(&mine, &["succeeded"]).await;

    // The session is whose it was.
    execute(&mut db, &format!("set role {}", plain.name)).await;
    let still_mine = enqueue(&mut db, &post("org-1")).await;
    execute(&mut db, &format!("set role {}", crm.name)).await;
    let mut refused = vec![enqueue(&mut db, &post("org-2").nameless()).await];
    execute(&mut db, "reset role").await;
    for job in [
        post("org-2"),
        post("org-1").nameless().with("org_id", Value::Null).with("user_id", "org-1"),
        // What may not run besides becomes no job of theirs that has failed, and what is theirs is not told.
        post("org-2").with("text", "as well"),
        post("org-3").named(&all[0]),
    ] {
        refused.push(enqueue(&mut db, &job).await);
    }
    for job in [post("org-1"), post("org-1").named(&mine)] {
        refused.push(enqueue(&mut of_plain, &job).await);
    }
    harness.job_in(&still_mine, &["succeeded"]).await;
    all_are_taken_in(&harness).await;
    harness.counts("state = 'succeeded'", 4).await;
    assert_eq!(harness.settled(4).await, [("succeeded".to_owned(), 4)]);
    assert_eq!(harness.count("owner_id = 'org-2' or (owner_kind, owner_id) = ('user', 'org-1')").await, 0);
    harness.called(4).await;
    let kept = rejected(&harness);
    assert_eq!(kept.len(), refused.len());
    assert!(kept.iter().all(|(_, reason)| reason == "publisher_refused"), "{kept:?}");
    worker.metric_reaches(&became("rejected"), refused.len() as f64).await;
    a_person_may_vouch_for_it(&harness, (name, &file), &refused[0]).await;
}

/// And it is the job whose ID was returned.
async fn a_person_may_vouch_for_it(harness: &Harness, (name, file): (&str, &str), job: &str) {
    let env = [harness.env(), vec![(name.to_owned(), file.to_owned())]].concat();
    let listed = run(&["rejected", "list", "--job", job, "--json"], &env);
    let kept: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let refused = run(&["rejected", "requeue", text(&kept, "id")], &env);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stdout).contains("--any-publisher"));
    assert!(run(&["rejected", "requeue", "--any-publisher", text(&kept, "id")], &env).status.success());
    let done = harness.job_in(job, &["succeeded"]).await;
    assert_eq!((&done["id"], &done["owner"]["id"]), (&json!(job), &json!("org-2")), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_goes_with_the_tables_to_another_schema_and_back() {
    let harness = Harness::without_tables("sql-moved", "").await;
    let lease = ("ERRAND__WORKER__LEASE_SECS", "20");
    let in_public = [("ERRAND__STORE__SCHEMA", "public"), lease];
    let mut worker = harness.worker(&in_public).await;
    let shop = Role::new(&harness, "shop").await;
    harness.execute(&format!("grant execute on function public.enqueue(json) to {}", shop.name)).await;
    let mut db = shop.connect().await;
    let jobs: Vec<String> = spread(5, send).iter().map(Value::to_string).collect();
    try_enqueue(&mut db, "public", &jobs[0]).await.unwrap();
    harness.counts("state = 'succeeded'", 1).await;
    assert!(worker.stop().await.success());
    // One that waits moves along.
    try_enqueue(&mut db, "public", &jobs[1]).await.unwrap();
    let moved = harness.errand(&["migrate", "--move-from", "public"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    harness.execute(&format!("grant usage on schema errand to {}", shop.name)).await;
    let mut db = shop.connect().await;
    try_enqueue(&mut db, "errand", &jobs[2]).await.unwrap();
    assert_eq!(code(&try_enqueue(&mut db, "public", &jobs[2]).await.unwrap_err()), "42883", "it has left");
    let mut worker = harness.worker(&[lease]).await;
    harness.all_ran_once(3).await;
    assert!(worker.stop().await.success());

    try_enqueue(&mut db, "errand", &jobs[3]).await.unwrap();
    harness.execute(BACK).await;
    let mut db = shop.connect().await;
    try_enqueue(&mut db, "public", &jobs[4]).await.unwrap();
    let _worker = harness.worker(&in_public).await;
    harness.all_ran_once(5).await;
}

/// Puts an entry into the table, past the function.
async fn put(db: &mut PgConnection, envelope: &str, job: &str) {
    let sql = "insert into errand.job_inbox (job_id, envelope) values ($1::uuid, $2::json)";
    sqlx::query(sql).bind(job.to_owned()).bind(envelope.to_owned()).execute(db).await.unwrap();
}

/// Puts entries there, and good jobs between them.
async fn mixed(db: &mut PgConnection, entries: &[(&str, &str)]) {
    execute(db, "begin").await;
    for (envelope, job) in entries {
        put(db, envelope, job).await;
        enqueue(db, &send("user-1")).await;
    }
    execute(db, "commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_no_job_is_kept_as_rejected_and_keeps_no_other_waiting() {
    let harness = Harness::new("sql-odd", "").await;
    let worker = harness.worker(&[]).await;
    let mut db = harness.database.connect().await.unwrap();
    let [seven, eight] = ["0190b0a0-0000-7000-8000-000000000001", "0190b0a0-0000-8000-8000-000000000002"];
    let odd = [
        (r#"{"tool": 1}"#, seven),
        ("[]", seven),
        (r#""text""#, seven),
        ("{}", seven),
        (r#"{"user_id": "user-1", "tool": "a\nb"}"#, seven),
        (r#"{"user_id": "user-1", "tool": "GITHUB_GET_REPO"}"#, eight),
    ];
    mixed(&mut db, &odd).await;
    all_are_taken_in(&harness).await;
    let mut reasons: Vec<String> = rejected(&harness).into_iter().map(|(_, reason)| reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["bad_owner", "bad_value", "bad_value", "malformed", "malformed", "malformed"]);

    // One that the database does not take, which is found out when it is among others.
    let job = read("user-2").nameless();
    let early = job.clone().with("run_at", "-009998-01-02T00:00:00Z");
    execute(&mut db, "begin").await;
    for job in spread(5, send) {
        enqueue(&mut db, &job).await;
    }
    let id = id();
    put(&mut db, &early.to_string(), &id).await;
    for job in spread(5, send) {
        enqueue(&mut db, &job).await;
    }
    execute(&mut db, "commit").await;
    all_are_taken_in(&harness).await;
    harness.counts("state = 'succeeded'", 16).await;
    let listed = harness.errand(&["rejected", "list", "--job", &id, "--json"]);
    let kept: Value = serde_json::from_slice(&listed.stdout).expect("it is found by its ID");
    assert_eq!(text(&kept, "reason"), "bad_value", "{kept}");
    assert!(text(&kept, "message").contains("refuses the job"), "it is told why: {kept}");
    worker.metric_reaches(&became("rejected"), 7.0).await;
    // Mended, it is the job whose ID was returned.
    let file = harness.journal_dir().with_file_name("mended.json");
    std::fs::write(&file, job.to_string()).unwrap();
    let body = file.to_str().unwrap();
    let requeued = harness.errand(&["rejected", "requeue", text(&kept, "id"), "--body", body]);
    assert!(requeued.status.success(), "{}", String::from_utf8_lossy(&requeued.stdout));
    harness.job_in(&id, &["succeeded"]).await;
    harness.called(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_database_does_not_take_at_present_keeps_no_other_waiting_and_is_made_then() {
    let harness = Harness::new("sql-poison", "").await;
    let _worker = harness.worker(&[]).await;
    let mut db = Role::that_enqueues(&harness, "shop").await.connect().await;
    let jobs = spread(31, send);
    break_rows(&harness, "jobs", "insert", &format!("new.id = '{}'", jobs[10].id())).await;
    for (jobs, run) in [(&jobs[..21], 20), (&jobs[21..], 30)] {
        execute(&mut db, "begin").await;
        for job in jobs {
            enqueue(&mut db, job).await;
        }
        execute(&mut db, "commit").await;
        harness.counts("state = 'succeeded'", run).await;
    }
    until("it waits alone", PATIENCE, async || (left(&harness).await == 1).then_some(())).await;
    heal(&harness, "jobs").await;
    harness.job_in(jobs[10].id(), &["succeeded"]).await;
    all_are_taken_in(&harness).await;
    harness.all_ran_once(31).await;
}
