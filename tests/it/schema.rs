//! The schema of errand's own in PostgreSQL, and the way there from where an earlier build made the tables.

use errand::store::{Admin as _, Leases as _, Schema, StoreError, StoreErrorKind, postgres::PostgresStore};
use errand_testbed::factory::{Envelope as _, send};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::{
    harness::{Harness, PATIENCE, Process, run},
    store_contract::postgres_options,
    support::{self, postgres::Database, wait::until},
};

const MOVE: &[&str] = &["--move-from", "public"];
const BACK: &str = include_str!("../../deploy/postgres/back_to_public.sql");

/// What is in a schema: relations, domains and functions, by name.
const THINGS: &str = "select coalesce(string_agg(name, ' ' order by name), '') from (
    select relname::text as name from pg_class where relnamespace = to_regnamespace(quote_ident($1)) and relkind <> 't'
    union all select typname from pg_type where typnamespace = to_regnamespace(quote_ident($1)) and typtype in ('d', 'e')
    union all select proname from pg_proc where pronamespace = to_regnamespace(quote_ident($1))) as things (name)";

fn store(database: &Database, schema: &str) -> PostgresStore {
    let options = postgres_options(&database.url);
    PostgresStore::new(errand::store::postgres::PostgresOptions {
        schema: schema.parse().unwrap(),
        tenant_role: None,
        ..options
    })
    .unwrap()
}

/// A database as an earlier build left it.
async fn earlier(hint: &str) -> Database {
    let database = support::database(hint).await;
    let store = store(&database, "public");
    store.migrate().await.unwrap();
    store.close().await;
    database
}

async fn execute(database: &Database, sql: &str) {
    database.connect().await.unwrap().execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

async fn text(database: &Database, sql: &str) -> String {
    let mut db = database.connect().await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut db).await.unwrap()
}

async fn things(database: &Database, schema: &str) -> String {
    let mut db = PgConnection::connect(&database.url).await.unwrap();
    sqlx::query(THINGS).bind(schema).fetch_one(&mut db).await.unwrap().get(0)
}

/// What stays of the table of migrations where the tables were.
const TOMBSTONE: &str = "_sqlx_migrations _sqlx_migrations_pkey";

/// The database as another role sees it, which it makes.
async fn seen_by(database: &Database, hint: &str) -> (String, Database) {
    let role = format!("{hint}_{}", database.name);
    execute(database, &format!("create role {role} login")).await;
    let url = database.url.replace("//errand@", &format!("//{role}@"));
    (role, database.by(url))
}

/// What is said of a second set of tables.
const OTHERS: &str = "errand's tables are in the schema `public`, too";

async fn tells_of_others(store: &PostgresStore) -> bool {
    store.inspect().await.unwrap().iter().any(|concern| concern.message.starts_with(OTHERS))
}

fn env(database: &Database) -> Vec<(String, String)> {
    vec![("DATABASE_URL".to_owned(), database.url.clone())]
}

/// Runs `errand migrate`, and returns what it said.
fn migrate(database: &Database, args: &[&str], succeeds: bool) -> String {
    let output = run(&[&["migrate"], args].concat(), &env(database));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.success(), succeeds, "{said}");
    said
}

fn refused(error: &StoreError, words: &[&str]) {
    assert_eq!(error.kind(), StoreErrorKind::Access, "{error}");
    let said = error.to_string();
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("run `errand migrate`;"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_errand_are_in_a_schema_of_their_own_whatever_else_is_in_the_database() {
    let harness = Harness::without_tables("schema", "").await;
    // An application with the same names, and another that uses sqlx.
    execute(
        &harness.database,
        "create table public.jobs (mine int); create domain public.effect as int; create view public.job_list as select 1;
        create table public._sqlx_migrations (version bigint primary key, description text not null,
            installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
            execution_time bigint not null);
        insert into public._sqlx_migrations (version, description, success, checksum, execution_time)
        select n, 'theirs', true, '\\x00', 1 from generate_series(1, 3) as n",
    )
    .await;
    let theirs = things(&harness.database, "public").await;
    // Also where the role or the database has another search path.
    execute(&harness.database, &format!("alter database {} set search_path = public", harness.database.name))
        .await;
    assert!(migrate(&harness.database, &["--check"], false).contains("migrations are missing"));
    assert!(migrate(&harness.database, &[], true).contains("migrations applied"));
    assert!(migrate(&harness.database, &["--check"], true).contains("up to date"));
    let worker = harness.worker(&[("ERRAND__STORE__MIGRATE_AT_START", "false")]).await;
    harness.publish(&[send("user-1"), send("user-2")]).await;
    harness.all_ran_once(2).await;
    drop(worker);
    assert_eq!(things(&harness.database, "public").await, theirs, "theirs is as it was");
    let foreign =
        "select string_agg(version || description, ' ' order by version) from public._sqlx_migrations";
    assert_eq!(text(&harness.database, foreign).await, "1theirs 2theirs 3theirs");

    // What somebody else has is named, instead of sending a person round in circles.
    let error = store(&harness.database, "public").migrate().await.unwrap_err();
    refused(
        &error,
        &["migration 1 in the table `_sqlx_migrations` of the schema `public`", "set `store.schema`"],
    );
    execute(&harness.database, "drop table public._sqlx_migrations").await;
    let error = store(&harness.database, "public").migrate().await.unwrap_err();
    refused(&error, &["schema `public` is there already", "effect", "set `store.schema`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_an_earlier_build_move_with_their_rows_and_back() {
    let harness = Harness::without_tables("moving", "").await;
    let in_public = [("ERRAND__STORE__SCHEMA", "public"), ("ERRAND__WORKER__LEASE_SECS", "20")];
    let mut earlier = harness.worker(&in_public).await;
    let jobs = [send("user-1"), send("user-2")];
    harness.publish(&jobs).await;
    harness.settled(2).await;
    let made = things(&harness.database, "public").await;
    assert!(
        made.contains("jobs_pkey") && made.contains("owner_kind") && made.contains("awaited_id_seq"),
        "{made}"
    );

    // A worker that runs would lose its tables.
    let said = migrate(&harness.database, MOVE, false);
    assert!(said.contains("has beaten") && said.contains("stop all workers"), "{said}");
    assert!(said.contains("store.schema = \"public\""), "{said}");
    assert!(earlier.stop().await.success());
    // Nothing moves without being told, also where workers migrate by themselves.
    for args in [&["--check"][..], &[]] {
        let said = migrate(&harness.database, args, false);
        assert!(said.contains("in the schema `public`") && said.contains("stop all workers"), "{said}");
        assert!(
            said.contains("--move-from 'public'") && said.contains("store.schema = \"public\""),
            "{said}"
        );
    }
    let later = harness.start_worker(&[("ERRAND__STORE__MIGRATE_AT_START", "true")]);
    later.logged("it cannot be migrated").await;
    later.logged("errand's tables are in the schema `public`").await;
    assert_eq!(things(&harness.database, "errand").await, "");

    for _ in 0..2 {
        let said = migrate(&harness.database, MOVE, true);
        assert!(said.contains("in the schema `errand`") && said.contains("up to date"), "{said}");
    }
    assert_eq!(things(&harness.database, "errand").await, made, "everything is there");
    assert_eq!(things(&harness.database, "public").await, TOMBSTONE, "and nothing is left");
    later.logged("worker ready").await;
    assert_eq!(harness.show(jobs[0].id())["state"], "succeeded");
    harness.publish(&[jobs[1].clone(), send("user-3")]).await;
    harness.all_ran_once(3).await;

    let mut db = harness.database.connect().await.unwrap();
    assert!(db.execute(BACK).await.unwrap_err().to_string().contains("a worker still runs"));
    let mut later = later;
    assert!(later.stop().await.success());
    db.execute("rollback").await.unwrap();
    db.execute(BACK).await.unwrap();
    assert_eq!(things(&harness.database, "public").await, made);
    // A role that is called like it would look into it first.
    let left = text(&harness.database, "select coalesce(to_regnamespace('errand')::text, 'none')").await;
    assert_eq!(left, "none");
    assert_eq!(store(&harness.database, "public").schema().await.unwrap(), Schema::Current);
    let mut earlier = harness.worker(&in_public).await;
    harness.publish(&[send("user-4")]).await;
    harness.all_ran_once(4).await;
    assert!(earlier.stop().await.success());
    // The tables go where the settings say, whatever that is.
    let tools = store(&harness.database, "tools");
    let in_public = Schema::Elsewhere { schema: "public".to_owned(), can_stay: true };
    assert_eq!(tools.schema().await.unwrap(), in_public);
    assert_eq!(tools.move_from("public").await.unwrap().applied, 0);
    assert_eq!(things(&harness.database, "tools").await, made);
    let other = store(&harness.database, "errand").schema().await.unwrap();
    assert!(matches!(other, Schema::Behind { .. }), "other installations are left alone: {other:?}");
}

#[tokio::test]
async fn of_a_table_of_migrations_that_is_shared_only_errands_rows_move_and_return() {
    let database = earlier("shared").await;
    execute(
        &database,
        "insert into public._sqlx_migrations (version, description, success, checksum, execution_time)
        values (20250101000000, 'theirs', true, '\\x00', 1); create table public.orders (id int)",
    )
    .await;
    let errand = store(&database, "errand");
    assert_eq!(errand.move_from("public").await.unwrap().applied, 0);
    assert_eq!(errand.schema().await.unwrap(), Schema::Current);
    assert_eq!(things(&database, "public").await, format!("{TOMBSTONE} orders"));
    let left = "select string_agg(version::text, ' ') from public._sqlx_migrations";
    assert_eq!(text(&database, left).await, "20250101000000");
    // Back among theirs, which leaves orders alone.
    execute(&database, BACK).await;
    assert_eq!(store(&database, "public").schema().await.unwrap(), Schema::Ahead, "theirs seem to be newer");
    let in_public = Schema::Elsewhere { schema: "public".to_owned(), can_stay: true };
    assert_eq!(errand.schema().await.unwrap(), in_public);
}

#[tokio::test]
async fn what_a_newer_build_has_made_stays_until_that_build_moves_it() {
    let database = earlier("newer").await;
    execute(
        &database,
        "insert into public._sqlx_migrations (version, description, success, checksum, execution_time)
        values (9999, 'newer', true, '\\x00', 1)",
    )
    .await;
    let error = store(&database, "errand").move_from("public").await.unwrap_err();
    refused(&error, &["migration 9999", "with the newer build", "store.schema = \"public\""]);
    assert_eq!(things(&database, "errand").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_killed_has_moved_nothing_and_two_at_once_move_once() {
    let database = earlier("killed").await;
    let made = things(&database, "public").await;
    // The last table of the move is locked, so that the others have moved already, as far as the move can see.
    let mut reporting = database.connect().await.unwrap();
    reporting.execute("begin; lock table public.job_history in access share mode").await.unwrap();
    let mut killed = Process::start(&["migrate", MOVE[0], MOVE[1]], &env(&database));
    killed.logged("waits for the table public.job_history").await;
    killed.kill9();
    until("its session is gone", PATIENCE, async || {
        let waits = "select count(*)::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        (text(&database, waits).await == "0").then_some(())
    })
    .await;
    assert_eq!(things(&database, "public").await, made);
    assert_eq!(things(&database, "errand").await, "");

    let mut both = [0, 1].map(|_| Process::start(&["migrate", MOVE[0], MOVE[1]], &env(&database)));
    for migrating in &both {
        migrating.logged("waits for").await;
    }
    reporting.execute("rollback").await.unwrap();
    for migrating in &mut both {
        assert!(migrating.ended().await.success(), "{}", migrating.log());
    }
    assert_eq!(things(&database, "errand").await, made);
    assert_eq!(things(&database, "public").await, TOMBSTONE);
}

#[tokio::test]
async fn a_worker_of_a_build_that_told_no_lease_counts_and_one_that_is_gone_does_not() {
    let database = earlier("beating").await;
    let worker = errand::job::WorkerId::new();
    store(&database, "public").beat(worker, "old-host", std::time::Duration::from_secs(5)).await.unwrap();
    // As before migration 10, of which this build knows the rest.
    execute(&database, "alter table public.workers drop column lease_ms").await;
    let errand = store(&database, "errand");
    refused(&errand.move_from("public").await.unwrap_err(), &["`old-host` has beaten", "counts for 30 s"]);
    execute(&database, "update public.workers set beat_at = now() - interval '15 seconds'").await;
    refused(&errand.move_from("public").await.unwrap_err(), &["`old-host` has beaten"]);
    execute(&database, "update public.workers set beat_at = now() - interval '31 seconds'").await;
    errand.move_from("public").await.unwrap();
}

#[tokio::test]
async fn a_role_that_lacks_a_right_is_told_which_grant_it_needs() {
    let database = support::database("granted").await;
    let (role, poor) = seen_by(&database, "poor").await;
    // Of another application, whose it is: not errand's concern.
    execute(
        &database,
        "create table public._sqlx_migrations (version bigint); create table public.jobs (id int)",
    )
    .await;
    let errand = store(&poor, "errand");
    let create = format!("create schema \"errand\" authorization \"{role}\"");
    refused(&errand.migrate().await.unwrap_err(), &[&role, &create]);
    execute(&database, "create schema errand").await;
    let usage = format!("grant usage on schema \"errand\" to \"{role}\"");
    refused(&errand.schema().await.unwrap_err(), &[&usage]);
    refused(&errand.migrate().await.unwrap_err(), &["grant usage, create on schema \"errand\""]);
    execute(&database, &format!("grant usage, create on schema errand to {role}")).await;
    assert!(errand.migrate().await.unwrap().applied > 0);
    assert_eq!(errand.schema().await.unwrap(), Schema::Current);
}

#[tokio::test]
async fn tables_that_the_role_may_not_read_are_not_taken_for_none() {
    let database = earlier("unread").await;
    let (role, poor) = seen_by(&database, "poor").await;
    execute(&database, &format!("grant create on database {} to {role}", database.name)).await;
    let errand = store(&poor, "errand");
    let words =
        ["called like errand's are in the schema `public`", "grant select on public._sqlx_migrations"];
    for error in [
        errand.schema().await.unwrap_err(),
        errand.migrate().await.unwrap_err(),
        errand.move_from("public").await.unwrap_err(),
    ] {
        refused(&error, &words);
    }
    assert_eq!(things(&database, "errand").await, "", "no second set is made");
    // Another installation's are passed over by a role that does not look there.
    execute(&database, &format!("alter role {role} in database {} set search_path = errand", database.name))
        .await;
    assert!(errand.migrate().await.unwrap().applied > 0);
    assert_eq!(errand.schema().await.unwrap(), Schema::Current);
    assert_eq!(store(&database, "public").schema().await.unwrap(), Schema::Current);
}

#[tokio::test]
async fn an_earlier_build_makes_no_second_set_of_tables_after_a_move() {
    let database = earlier("tombstone").await;
    // The role of these tests is called like the schema.
    execute(&database, &format!("alter database {} set search_path = public", database.name)).await;
    let errand = store(&database, "errand");
    assert_eq!(errand.move_from("public").await.unwrap().applied, 0);
    // Earlier builds look at the versions, and apply migrations as sqlx does.
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres"));
    let earlier = sqlx::migrate::Migrator::new(folder).await.unwrap();
    let mut db = PgConnection::connect(&database.url).await.unwrap();
    let error = earlier.run(&mut db).await.unwrap_err();
    assert!(matches!(error, sqlx::migrate::MigrateError::VersionMismatch(1)), "{error}");
    // It would keep its turn for as long as it has its session.
    db.close().await.unwrap();
    let public = store(&database, "public");
    assert!(matches!(public.schema().await.unwrap(), Schema::Behind { .. }));
    refused(
        &public.migrate().await.unwrap_err(),
        &["migration 1", "`description`", "moved to another schema"],
    );
    assert_eq!(things(&database, "public").await, TOMBSTONE);
    assert_eq!(
        text(&database, "select description from public._sqlx_migrations").await,
        "moved to schema errand"
    );
    // It is no set of tables: nobody is warned, and the tables may come back.
    assert!(!tells_of_others(&errand).await);
    assert_eq!(public.move_from("errand").await.unwrap().applied, 0);
    assert_eq!(public.schema().await.unwrap(), Schema::Current);
    assert_eq!(things(&database, "errand").await, TOMBSTONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_set_of_tables_is_told_by_migrate_doctor_and_worker() {
    let harness = Harness::without_tables("twice", "").await;
    let tools = store(&harness.database, "tools");
    tools.migrate().await.unwrap();
    // As a restored backup leaves it.
    store(&harness.database, "public").migrate().await.unwrap();
    assert!(tells_of_others(&tools).await);
    let in_tools = ("ERRAND__STORE__SCHEMA", "tools");
    let env = [harness.env(), vec![(in_tools.0.to_owned(), in_tools.1.to_owned())]].concat();
    for command in ["migrate", "doctor"] {
        let output = run(&[command], &env);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && said.contains(OTHERS), "{command}: {said}");
    }
    let worker = harness.worker(&[in_tools]).await;
    worker.logged(OTHERS).await;
    let error = tools.move_from("public").await.unwrap_err();
    refused(&error, &["in the schema `tools` already", "`public`", "drop the others"]);
    let error = store(&harness.database, "third").move_from("nowhere").await.unwrap_err();
    refused(&error, &["not in the schema `nowhere`"]);
    // Of another installation that this one's role does not look at, nothing is said.
    let quiet = format!("alter database {} set search_path = tools", harness.database.name);
    execute(&harness.database, &quiet).await;
    assert!(!tells_of_others(&tools).await);
}

#[tokio::test]
async fn whoever_moves_the_tables_their_owner_and_readers_keep_their_rights() {
    let database = support::database("rights").await;
    let (owner, _) = seen_by(&database, "owner").await;
    let (reader, read) = seen_by(&database, "reader").await;
    let public = store(&database, "public");
    public.migrate().await.unwrap();
    execute(&database, &format!("grant select on all tables in schema public to {reader}")).await;
    execute(
        &database,
        &format!(
            "do $$ declare thing record; begin
                for thing in select relname as name, case relkind when 'v' then 'view' else 'table' end as kind
                    from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v') loop
                    execute format('alter %s public.%I owner to {owner}', thing.kind, thing.name);
                end loop;
            end $$"
        ),
    )
    .await;
    let owners = |schema: &str| {
        format!(
            "select string_agg(distinct relowner::regrole::text, ' ') from pg_class
            where relnamespace = '{schema}'::regnamespace and relkind in ('r', 'v')"
        )
    };
    assert_eq!(text(&database, &owners("public")).await, owner);
    // By a superuser.
    store(&database, "errand").move_from("public").await.unwrap();
    assert_eq!(text(&database, &owners("errand")).await, owner);
    execute(&database, &format!("grant usage on schema errand to {reader}")).await;
    assert_eq!(store(&read, "errand").schema().await.unwrap(), Schema::Current);
}

#[tokio::test]
async fn a_schema_that_the_settings_cannot_name_is_left_and_not_advised() {
    let database = earlier("unnamed").await;
    // A table of that name that is none of sqlx is nobody's concern.
    execute(
        &database,
        "alter schema public rename to \"Old Tools\"; create schema public; create table public._sqlx_migrations (id int)",
    )
    .await;
    execute(&database, &format!("alter database {} set search_path = public, \"Old Tools\"", database.name))
        .await;
    let errand = store(&database, "errand");
    let error = errand.migrate().await.unwrap_err();
    refused(&error, &["in the schema `Old Tools`", "--move-from 'Old Tools'"]);
    assert!(!error.to_string().contains("store.schema = "), "{error}");
    let made = things(&database, "Old Tools").await;
    assert_eq!(errand.move_from("Old Tools").await.unwrap().applied, 0);
    assert_eq!(errand.schema().await.unwrap(), Schema::Current);
    assert_eq!(things(&database, "errand").await, made);
    assert_eq!(things(&database, "Old Tools").await, TOMBSTONE);
    assert_eq!(things(&database, "public").await, "_sqlx_migrations");
}
