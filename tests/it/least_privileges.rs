//! The privileges that errand is given in PostgreSQL and RabbitMQ are enough, and no more.

use errand_testbed::factory::{Envelope as _, read};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::{
    harness::{Harness, PATIENCE, Process, run},
    support::{self, postgres::Database, wait::until},
};

const PRIVILEGES: &str = include_str!("../../deploy/postgres/privileges.sql");
const PERMISSIONS: &str = include_str!("../../deploy/rabbitmq/permissions.json");

const PASSWORD: &str = "of-a-test";

/// The roles of `privileges.sql` in the harness's database.
async fn make_roles(harness: &Harness) {
    for _ in 0..2 {
        harness.execute(PRIVILEGES).await;
    }
    for role in ["errand_owner", "errand_worker", "errand_reader"] {
        harness.execute(&format!("alter role {role} password '{PASSWORD}'")).await;
    }
}

fn database_url(database: &Database, role: &str) -> String {
    let (_, place) = database.url.split_once("//").unwrap();
    let place = place.split_once('@').map_or(place, |(_, place)| place);
    format!("postgres://{role}:{PASSWORD}@{place}")
}

/// The users of `permissions.json` in the harness's vhost.
async fn make_users(harness: &Harness) {
    let mut file: Value = serde_json::from_str(PERMISSIONS).unwrap();
    for permission in file["permissions"].as_array_mut().unwrap() {
        support::control(&["add_user", permission["user"].as_str().unwrap(), PASSWORD]).await;
        permission["vhost"] = harness.vhost.name.as_str().into();
    }
    let definitions = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(&definitions, &file).unwrap();
    support::control(&["import_definitions", definitions.path().to_str().unwrap()]).await;
}

fn amqp_url(harness: &Harness, user: &str) -> String {
    harness.vhost.amqp_url.replace("guest:guest", &format!("{user}:{PASSWORD}"))
}

/// Whether the role may not do this.
async fn is_denied(database: &Database, role: &str, sql: &str) -> bool {
    let mut connection = support::postgres::connect(&database_url(database, role)).await.unwrap();
    match connection.execute(AssertSqlSafe(sql.to_owned())).await {
        Ok(_) => false,
        Err(error) => error.as_database_error().unwrap().code().as_deref() == Some("42501"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_privileges_are_enough_for_each_part_and_for_nothing_else() {
    let harness = Harness::without_tables("least", "").await;
    make_roles(&harness).await;
    make_users(&harness).await;
    let env_of = |role: &str| {
        let mut env = harness.env();
        env.push(("DATABASE_URL".into(), database_url(&harness.database, role)));
        env.push(("AMQP_URL".into(), amqp_url(&harness, "errand")));
        env.push(("ERRAND__STORE__MIGRATE_AT_START".into(), "false".into()));
        env
    };
    let refused = run(&["migrate"], &env_of("errand_worker"));
    assert!(!refused.status.success(), "a worker may not change the schema");
    let migrated = run(&["migrate"], &env_of("errand_owner"));
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

    let worker = Process::start(&["worker", "--listen", "127.0.0.1:0"], &env_of("errand_worker"));
    worker.logged("worker ready").await;
    let told = run(&["doctor"], &env_of("errand_worker"));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));

    // An app publishes as itself, and gets its reply in a queue of its own.
    let app =
        Connection::connect(&amqp_url(&harness, "shop"), ConnectionProperties::default()).await.unwrap();
    let channel = app.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (durable, none) = (QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default);
    channel.queue_declare("shop.replies".into(), durable, none()).await.unwrap();
    let named = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let named = channel.queue_declare("".into(), named, none()).await.unwrap().name().to_string();
    for replies in ["shop.replies", &named] {
        let job = read("u-alice");
        let properties = BasicProperties::default().with_delivery_mode(2).with_user_id("shop".into());
        let (properties, body) = (properties.with_reply_to(replies.into()), job.to_string());
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            channel.basic_publish("errand".into(), "default".into(), mandatory, body.as_bytes(), properties);
        assert!(confirm.await.unwrap().await.unwrap().is_ack());
        let reply = until("the reply", PATIENCE, async || {
            channel.basic_get(replies.into(), BasicGetOptions { no_ack: true }).await.unwrap()
        })
        .await;
        let reply: Value = serde_json::from_slice(&reply.delivery.data).unwrap();
        assert_eq!((reply["id"].as_str(), reply["state"].as_str()), (Some(job.id()), Some("succeeded")));
    }
    // It may read no lane, and write to none but by the exchange.
    for theirs in ["errand.default", "errand.dead"] {
        let channel = app.create_channel().await.unwrap();
        let get = channel.basic_get(theirs.into(), BasicGetOptions { no_ack: true }).await;
        assert!(get.unwrap_err().to_string().contains("ACCESS"), "{theirs} can be read");
    }

    for (role, sql) in [
        ("errand_worker", "create table mine (id int)"),
        ("errand_worker", "drop table jobs"),
        ("errand_worker", "alter table jobs add column mine int"),
        ("errand_worker", "create temporary table mine (id int)"),
        ("errand_reader", "delete from jobs"),
        ("errand_reader", "update pins set version = 'x'"),
    ] {
        assert!(is_denied(&harness.database, role, sql).await, "{role} may {sql}");
    }
    assert!(!is_denied(&harness.database, "errand_reader", "select * from jobs").await);
    let backup = std::process::Command::new("pg_dump")
        .args(["--file", "/dev/null", &database_url(&harness.database, "errand_reader")])
        .output()
        .unwrap();
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    // Here, because the roles are the whole server's.
    a_second_lock_between_owners_leaves_the_roles_as_they_were(&harness, &env_of).await;
    a_schema_of_others_stays_theirs().await;
}

/// With the statements of `docs/operations.md`, which are for the administrator.
async fn a_second_lock_between_owners_leaves_the_roles_as_they_were(
    harness: &Harness,
    env_of: &impl Fn(&str) -> Vec<(String, String)>,
) {
    let version = harness.text("show server_version_num").await.unwrap().parse::<u32>().unwrap();
    let grant = match version {
        160_000.. => "grant errand_tenant to errand_worker with inherit false, set true",
        _ => "alter role errand_worker noinherit; grant errand_tenant to errand_worker",
    };
    harness.execute(&format!("create role errand_tenant nologin; {grant}")).await;
    let env_of = |role: &str| {
        let mut env = env_of(role);
        env.push(("ERRAND__STORE__TENANT_ROLE".to_owned(), "errand_tenant".to_owned()));
        env
    };
    let doctor = || String::from_utf8(run(&["doctor"], &env_of("errand_worker")).stdout).unwrap();
    let missing = "FAIL  database       row-level security is not there for the role `errand_tenant`";
    assert!(doctor().contains(missing), "owners are answered with errors: {}", doctor());
    for done in ["was granted its rights", "is up to date"] {
        let migrated = run(&["migrate"], &env_of("errand_owner"));
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let said = String::from_utf8(migrated.stdout).unwrap();
        assert!(
            said.contains("the schema is up to date\n") && said.contains("role `errand_tenant`"),
            "{said}"
        );
        assert!(said.contains(done), "{said}");
    }
    let there = "OK    database       row-level security keeps owners apart for the role `errand_tenant`";
    assert!(doctor().contains(there), "{}", doctor());

    let count = "select count(*) from jobs";
    let mut jobs = Vec::new();
    for role in ["errand_owner", "errand_worker", "errand_reader"] {
        let mut db = support::postgres::connect(&database_url(&harness.database, role)).await.unwrap();
        jobs.push(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut db).await.unwrap());
    }
    assert_eq!(jobs, [2; 3], "each sees all");
    for (role, sql) in [
        ("errand_reader", "set role errand_tenant"),
        ("errand_worker", "set role errand_tenant; select * from claims"),
        ("errand_worker", "set role errand_tenant; delete from jobs"),
    ] {
        assert!(is_denied(&harness.database, role, sql).await, "{role} may {sql}");
    }
    let backup = std::process::Command::new("pg_dump")
        .args(["--enable-row-security", "--data-only", "--table", "errand.jobs"])
        .arg(database_url(&harness.database, "errand_reader"))
        .output()
        .unwrap();
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    assert_eq!(String::from_utf8_lossy(&backup.stdout).matches("u-alice").count(), 2, "a dump has all rows");
    let key =
        run(&["keys", "create", "--user", "u-alice", "--scope", "read", "--json"], &env_of("errand_worker"));
    assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
}

/// The variant of `privileges.sql` for `store.schema = "public"`, as its comment describes it.
async fn a_schema_of_others_stays_theirs() {
    let database = support::database("least-public").await;
    let mut db = sqlx::PgConnection::connect(&database.url).await.unwrap();
    db.execute("create table public.orders (id int)").await.unwrap();
    let is_left_out = |line: &&str| {
        line.starts_with("create schema") || line.starts_with("alter schema") || line.contains(" on all ")
    };
    let kept: Vec<&str> = PRIVILEGES.lines().filter(|line| !is_left_out(line)).collect();
    let variant = kept.join("\n").replace("schema errand ", "schema public ");
    db.execute(AssertSqlSafe(variant)).await.unwrap();
    db.execute("grant create on schema public to errand_owner").await.unwrap();
    for (role, command) in [("errand_owner", &["migrate"][..]), ("errand_worker", &["jobs", "list"])] {
        let ran = run(
            command,
            &[
                ("DATABASE_URL".to_owned(), database_url(&database, role)),
                ("ERRAND__STORE__SCHEMA".to_owned(), "public".to_owned()),
            ],
        );
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    assert!(!is_denied(&database, "errand_reader", "select * from public.jobs").await);
    for (role, sql) in [
        ("errand_owner", "drop schema public cascade"),
        ("errand_worker", "select * from public.orders"),
        ("errand_reader", "select * from public.orders"),
    ] {
        assert!(is_denied(&database, role, sql).await, "{role} may {sql}");
    }
}
