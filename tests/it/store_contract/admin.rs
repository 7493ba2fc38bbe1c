//! The database itself: migrations, schema, loss and access.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use errand::{
    job::{JobId, Principal, WorkerId},
    store::{
        Schema, Statement, StoreErrorKind,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::SqliteStore,
    },
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqlSafeStr as _, SqliteConnection};

use super::{Place, TestStore, claim, job, on_every_backend, one, postgres_options, running};
use crate::support::{self, wait::until};

on_every_backend!(migrations_run_once_however_many_start_them, async |t| {
    assert_eq!(t.store.migrate().await.unwrap().applied, 0, "again");
    let bare = t.bare().await;
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &bare.store } else { &bare.other });
            tokio::spawn(async move { store.migrate().await.unwrap().applied })
        })
        .collect();
    let mut applied = Vec::new();
    for task in tasks {
        applied.push(task.await.unwrap());
    }
    assert_eq!(applied.iter().filter(|count| **count > 0).count(), 1, "{applied:?}");
    assert_eq!(bare.store.schema().await.unwrap(), Schema::Current);
});

on_every_backend!(the_schema_is_compared_with_this_build, async |t| {
    assert_eq!(t.store.schema().await.unwrap(), Schema::Current);
    t.execute(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
        values (9999, 'of a newer build', true, '', 0)",
    )
    .await;
    assert_eq!(t.store.schema().await.unwrap(), Schema::Ahead);
    assert_eq!(t.store.migrate().await.unwrap().applied, 0, "a newer database is fine");
    t.execute("delete from _sqlx_migrations where version = 2").await;
    assert_eq!(t.store.schema().await.unwrap(), Schema::Behind { missing: 1 });
    let bare = t.bare().await;
    assert!(matches!(bare.store.schema().await.unwrap(), Schema::Behind { missing } if missing > 1));
});

on_every_backend!(every_statement_can_be_prepared, async |t| {
    let prepared = match &t.place {
        Place::Postgres(database) => {
            let mut db = database.connect().await.unwrap();
            let mut prepared = 0;
            for Statement { name, text, types } in PostgresStore::statements() {
                let types = if types.is_empty() { String::new() } else { format!("({})", types.join(", ")) };
                let prepare = format!("prepare statement_{prepared} {types} as {text}");
                let answer = db.execute(AssertSqlSafe(prepare)).await;
                assert!(answer.is_ok(), "{name}: {text}: {answer:?}");
                prepared += 1;
            }
            prepared
        }
        Place::Sqlite(dir) => {
            let url = format!("sqlite://{}", dir.path().join("errand.db").display());
            let mut db = SqliteConnection::connect(&url).await.unwrap();
            let mut prepared = 0;
            for Statement { name, text, .. } in SqliteStore::statements() {
                let answer = (&mut db).prepare(AssertSqlSafe(text.clone()).into_sql_str()).await;
                assert!(answer.is_ok(), "{name}: {text}: {answer:?}");
                prepared += 1;
            }
            prepared
        }
    };
    assert!(prepared > 50, "{prepared} statements");
});

on_every_backend!(missing_tables_are_a_schema_error, async |t| {
    let bare = t.bare().await;
    let claims = [claim(&job(json!({})))];
    assert_eq!(bare.store.claim(t.worker, &claims).await.unwrap_err().kind(), StoreErrorKind::Schema);
    assert_eq!(bare.store.census().await.unwrap_err().kind(), StoreErrorKind::Schema);
    assert!(bare.store.now().await.is_ok());
    assert!(!bare.store.version().await.unwrap().is_empty());
});

on_every_backend!(a_closed_store_says_that_it_is_unavailable, async |t| {
    t.store.close().await;
    let error = t.store.job(&Principal::Operator, JobId::new()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(["PostgreSQL", "SQLite"].contains(&t.store.backend()));
});

#[tokio::test]
async fn a_wrong_password_is_an_access_error_that_does_not_show_it() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(rules.path(), "host all locked all scram-sha-256\nhost all all all trust\n").unwrap();
    std::fs::set_permissions(rules.path(), Permissions::from_mode(0o644)).unwrap();
    let settings = vec![("hba_file", rules.path().display().to_string())];
    let server = support::start_postgres(support::postgres::Options { settings, ..Default::default() }).await;
    let database = server.database("contract").await.unwrap();
    database.connect().await.unwrap().execute("create role locked login password 'right'").await.unwrap();
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username("locked").unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let store = PostgresStore::new(postgres_options(url.as_str())).unwrap();
    let error = errand::store::Admin::now(&store).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Access, "{error}");
    assert!(!format!("{error} {error:?} {store:?}").contains("hunter2"));
    for url in ["", "nonsense", "postgres://app:hunter2@[x/db", "postgres://app:hunter2@h/db?sslmode=hunter2"]
    {
        let error = PostgresStore::new(postgres_options(url)).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Access);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_unavailable_and_recovers() {
    let server = support::start_postgres(support::postgres::Options::default()).await;
    let database = server.database("contract").await.unwrap();
    let store = PostgresStore::new(postgres_options(&database.url)).unwrap();
    errand::store::Admin::migrate(&store).await.unwrap();
    let claims = [claim(&job(json!({})))];
    server.kill9().await.unwrap();
    let error = errand::store::Claims::claim(&store, WorkerId::new(), &claims).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    server.restart().await.unwrap();
    let worker = WorkerId::new();
    let answer = support::wait::until("the store to recover", Duration::from_secs(60), async || {
        errand::store::Claims::claim(&store, worker, &claims).await.ok()
    })
    .await;
    running(one(answer));
}

/// As behind a gateway that forgot a connection: nothing comes, and nothing ends it.
#[tokio::test]
async fn a_connection_on_which_nothing_comes_any_more_holds_up_nobody_for_ever() {
    let database = support::database("silence").await;
    let port = database.url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    let proxy = support::start_proxy(port).await;
    let store = PostgresStore::new(PostgresOptions {
        hot_connections: 1,
        statement_timeout: Duration::from_secs(10),
        ..postgres_options(&proxy.url(&database.url).unwrap())
    })
    .unwrap();
    errand::store::Admin::migrate(&store).await.unwrap();
    let claims = [claim(&job(json!({})))];
    let worker = WorkerId::new();
    let claiming = || errand::store::Claims::claim(&store, worker, &claims);
    // The lock has the answer come when the way is closed already.
    let mut other = database.connect().await.unwrap();
    let hold = "create function hold() returns trigger language plpgsql set lock_timeout = 0 as
         $$ begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
         create trigger hold before insert on jobs for each row execute function hold();
         select pg_advisory_lock(7)";
    sqlx::raw_sql(hold).execute(&mut other).await.unwrap();
    let closing = async {
        let waits = "select 1 from pg_locks where not granted and database =
            (select oid from pg_database where datname = current_database())";
        until("the claim to wait", Duration::from_secs(9), async || {
            sqlx::query(waits).fetch_optional(&mut other).await.unwrap()
        })
        .await;
        proxy.stall();
        sqlx::raw_sql("select pg_advisory_unlock(7)").execute(&mut other).await.unwrap();
    };
    let both = async { tokio::join!(claiming(), closing).0 };
    let silent = tokio::time::timeout(Duration::from_secs(60), both).await.expect("the wait ends");
    assert_eq!(silent.unwrap_err().kind(), StoreErrorKind::Unavailable);
    proxy.heal().await.unwrap();
    let answer = until("the store to recover", Duration::from_secs(60), async || claiming().await.ok()).await;
    running(one(answer));
}
