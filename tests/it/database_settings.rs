//! Databases that are set up otherwise than errand needs it, and poolers in front of them.

use errand::{
    job::{AttemptOutcome, Pin, Principal, State, WorkerId},
    store::{
        Admin as _, Claims as _, Concern, Decider, Finishes as _, JobControl as _, Leases as _, Pins as _,
        StoreErrorKind, postgres::PostgresStore,
    },
};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions,
};

use crate::{
    harness::{Harness, PATIENCE, run},
    jobs::claim,
    store_contract::{RunningJob, job, postgres_options, running, succeed},
    support::{self, postgres::Database, wait::until},
};

fn open(url: &str) -> PostgresStore {
    PostgresStore::new(postgres_options(url)).unwrap()
}

/// Settings that make errand forget what it has acknowledged, or refuse good jobs.
const HARMFUL: [(&str, &str); 6] = [
    ("synchronous_commit", "off"),
    ("default_transaction_isolation", "serializable"),
    ("lock_timeout", "1ms"),
    ("statement_timeout", "1s"),
    ("idle_session_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "1s"),
];

/// Triggers note what the sessions of each pool are like.
const WATCH: &str = "create table seen (tbl text, name text, setting text);
    create function note() returns trigger language plpgsql as $$ begin
        insert into seen select tg_table_name, name, setting from pg_settings;
        return null;
    end $$;
    create trigger note after insert on workers for each statement execute function note();
    create trigger note after insert on jobs for each statement execute function note();
    create trigger note after insert on pins for each statement execute function note()";

async fn overrules_the_databases_settings(database: &Database, url: &str) {
    open(url).migrate().await.unwrap();
    let mut admin = database.connect().await.unwrap();
    sqlx::raw_sql(WATCH).execute(&mut admin).await.unwrap();
    let known = "select current_setting('transaction_timeout', true) is not null";
    let newest = sqlx::query_scalar::<_, bool>(known).fetch_one(&mut admin).await.unwrap();
    for (name, value) in HARMFUL.into_iter().chain(newest.then_some(("transaction_timeout", "1s"))) {
        let alter = format!("alter database {} set {name} = '{value}'", database.name);
        admin.execute(AssertSqlSafe(alter)).await.unwrap();
    }
    let store = open(url);
    let worker = WorkerId::new();
    store.beat(worker, "w", std::time::Duration::from_secs(60)).await.unwrap();
    store.claim(worker, &[claim(&job(json!({})))]).await.unwrap();
    store
        .set_pin(
            &Principal::Operator,
            &Pin { owner: None, toolkit: "github".into(), version: "20260101_00".into() },
            &Decider::at_command_line("a test"),
        )
        .await
        .unwrap();
    for table in ["workers", "jobs", "pins"] {
        let timeout = if table == "workers" { "3000" } else { "20000" };
        for (name, wanted) in [
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            ("lock_timeout", "1000"),
            ("statement_timeout", timeout),
            ("idle_session_timeout", "0"),
            ("idle_in_transaction_session_timeout", "10000"),
            ("transaction_timeout", "0"),
        ] {
            if name == "transaction_timeout" && !newest {
                continue;
            }
            let seen: String =
                sqlx::query_scalar("select setting from seen where tbl = $1 and name = $2 limit 1")
                    .bind(table)
                    .bind(name)
                    .fetch_one(&mut admin)
                    .await
                    .unwrap();
            assert_eq!(seen, wanted, "{name} where {table} is written");
        }
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_committed_whatever_the_database_has_set() {
    let database = support::database("settings").await;
    overrules_the_databases_settings(&database, &database.url).await;
}

#[tokio::test]
async fn what_is_acknowledged_is_committed_behind_a_pooler_that_lets_no_settings_pass() {
    for passes in ["", "ignore_startup_parameters=options"] {
        let database = support::database("settings").await;
        let pooler = support::start_pgbouncer(&database, &["pool_mode=session", passes]).await;
        overrules_the_databases_settings(&database, &pooler.url(&database)).await;
    }
}

/// Has a pooler by transaction open so many sessions.
async fn open_sessions(url: &str, sessions: usize) {
    let options = url.parse::<PgConnectOptions>().unwrap().extra_float_digits(None);
    let mut clients = Vec::new();
    for _ in 1..sessions {
        let mut client = PgConnection::connect_with(&options).await.unwrap();
        client.execute("begin").await.unwrap();
        clients.push(client);
    }
    let mut last = PgConnection::connect_with(&options).await.unwrap();
    last.execute("select 1").await.unwrap();
    for client in &mut clients {
        client.execute("rollback").await.unwrap();
    }
}

#[tokio::test]
async fn a_pooler_by_transaction_is_refused_in_words_that_name_it() {
    let database = support::database("pooler").await;
    open(&database.url).migrate().await.unwrap();
    // With how many sessions the pooler has, from which it may choose.
    for (settings, sessions) in [
        (&["pool_mode=transaction"][..], 1),
        (&["pool_mode=transaction"], 3),
        (&["pool_mode=statement"], 1),
        (&["pool_mode=transaction", "default_pool_size=1"], 1),
        (&["pool_mode=transaction", "server_round_robin=1"], 2),
        (&["pool_mode=transaction", "server_round_robin=1"], 3),
        (&["pool_mode=transaction", "ignore_startup_parameters=options"], 3),
    ] {
        let pooler = support::start_pgbouncer(&database, settings).await;
        let url = pooler.url(&database);
        open_sessions(&url, sessions).await;
        let store = open(&url);
        for error in [
            store.inspect().await.unwrap_err(),
            store.migrate().await.unwrap_err(),
            store.now().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), StoreErrorKind::Access, "{settings:?}: {error}");
            let told = error.to_string();
            assert!(told.contains("pgbouncer") && told.contains("pool_mode = session"), "{told}");
        }
        // Its settings are in nobody's session.
        let mut direct = PgConnection::connect(&database.url).await.unwrap();
        let row = direct.fetch_one("select current_setting('enable_seqscan')").await.unwrap();
        assert_eq!(row.get::<String, _>(0), "on");
    }
}

#[tokio::test]
async fn a_worker_behind_a_pooler_by_transaction_waits_and_says_why() {
    let harness = Harness::new("pooled", "").await;
    let pooler = support::start_pgbouncer(&harness.database, &["pool_mode=transaction"]).await;
    let url = pooler.url(&harness.database);
    let mut worker = harness.start_worker(&[("DATABASE_URL", &url)]);
    worker.logged("pool_mode = session").await;
    assert!(worker.stop().await.success());
    let mut env = harness.env();
    env.push(("DATABASE_URL".into(), url));
    for command in [&["migrate"][..], &["jobs", "list"], &["doctor"]] {
        let output = run(command, &env);
        let text = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&text).contains("pool_mode = session"), "{command:?}");
        assert_ne!(output.status.code(), Some(0), "{command:?}");
    }
}

async fn in_encoding(encoding: &str) -> Database {
    let database = support::database("encoding").await;
    let name = format!("{}_{}", database.name, encoding.to_lowercase());
    let create = format!("create database {name} encoding '{encoding}' template template0");
    database.connect().await.unwrap().execute(AssertSqlSafe(create)).await.unwrap();
    database.by(database.url.replace(&database.name, &name))
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_character_is_refused_and_says_what_to_do() {
    let database = in_encoding("LATIN1").await;
    let store = open(&database.url);
    for error in [store.migrate().await.unwrap_err(), store.inspect().await.unwrap_err()] {
        assert_eq!(error.kind(), StoreErrorKind::Access);
        assert!(
            error.to_string().contains("LATIN1") && error.to_string().contains("encoding 'UTF8'"),
            "{error}"
        );
    }
    let env = [("DATABASE_URL".to_owned(), database.url.clone())];
    let doctor = run(&["doctor"], &env);
    let text = String::from_utf8(doctor.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("the encoding of this database is LATIN1"));
    assert!(line.is_some_and(|line| line.starts_with("FAIL  database       ")), "{text}");
}

#[tokio::test]
async fn a_database_without_an_encoding_keeps_every_character() {
    let database = in_encoding("SQL_ASCII").await;
    let store = open(&database.url);
    store.migrate().await.unwrap();
    let worker = WorkerId::new();
    let spec = job(json!({"tags": {"é": "☃ 🦀"}, "arguments": {"text": "\u{1f980} \u{7f} é"}}));
    let claim = claim(&spec);
    let receipt = running(store.claim(worker, std::slice::from_ref(&claim)).await.unwrap().remove(0));
    let run = RunningJob { id: spec.id, request_id: claim.request_id, receipt };
    store.finish(&[run.end(succeed("{\"a\":\"🦀\"}"), AttemptOutcome::Succeeded)]).await.unwrap();
    let view = store.job(&Principal::Operator, spec.id).await.unwrap().unwrap();
    assert_eq!(view.state, State::Succeeded);
    assert_eq!(view.result.unwrap().get(), "{\"a\":\"🦀\"}");
}

fn told(concerns: &[Concern]) -> String {
    concerns.iter().map(|concern| format!("{}; {}\n", concern.message, concern.advice)).collect()
}

#[tokio::test]
async fn what_may_cost_committed_work_is_told() {
    let settings = vec![("full_page_writes", "off".to_owned())];
    let server = support::start_postgres(support::postgres::Options { fsync: false, settings }).await;
    let database = server.database("durability").await.unwrap();
    let store = open(&database.url);
    let concerns = told(&store.inspect().await.unwrap());
    assert!(concerns.contains("fsync is off") && concerns.contains("full_page_writes is off"), "{concerns}");
    assert!(!concerns.contains("standby"), "{concerns}");

    let _follower = server.follow().await.unwrap();
    until("the standby is told", PATIENCE, async || {
        told(&store.inspect().await.unwrap()).contains("standbys that may lag behind: 1").then_some(())
    })
    .await;

    let durable =
        support::start_postgres(support::postgres::Options { fsync: true, ..Default::default() }).await;
    let database = durable.database("durability").await.unwrap();
    assert_eq!(open(&database.url).inspect().await.unwrap(), []);
    let read_only = format!("alter database {} set default_transaction_read_only = on", database.name);
    database.connect().await.unwrap().execute(AssertSqlSafe(read_only)).await.unwrap();
    let concerns = told(&open(&database.url).inspect().await.unwrap());
    assert!(concerns.contains("takes no writes"), "{concerns}");
}

/// The servers of the tests do not wait for the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_and_the_doctor_warn_of_what_may_cost_committed_work() {
    let harness = Harness::new("durability", "").await;
    let worker = harness.worker(&[]).await;
    assert!(worker.log().contains("PostgreSQL: fsync is off"), "{}", worker.log());
    let doctor = String::from_utf8(harness.errand(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("WARN  database       fsync is off"), "{doctor}");
}
