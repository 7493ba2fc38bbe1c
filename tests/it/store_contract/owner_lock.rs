//! Row-level security as a second lock between owners, which only PostgreSQL has. What the first one promises is tested
//! behind it, too, where tests of other files say so.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use errand::{
    access::NewKey,
    job::{BatchId, Digest, JobId, Owner, Principal},
    store::{
        Admin as _, BatchDecided, DeliveryFilter, NewBatch, Recovery, SharedStore, StoreErrorKind, Weight,
        postgres::{PostgresOptions, PostgresStore, RoleName},
    },
};
use jiff::Timestamp;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};
use uuid::Uuid;

use super::{
    OPERATOR, Place, TestStore,
    callbacks::{URL, secret, url},
    deliveries::delivery,
    job, postgres_options,
    principals::{CALLS, Kind, Things, ask, seen},
};
use crate::support::{self, postgres::Database};

/// Tables of which no statement of a principal needs anything, so that the role may do nothing there.
const APART: [&str; 13] = [
    "_sqlx_migrations",
    "access_keys_required",
    "answers",
    "awaited",
    "claims",
    "event_listeners",
    "event_positions",
    "job_inbox",
    "paused_queues",
    // Whoever may set an owner's pin names the owner, and the API has compared it.
    "pins",
    "sealing_secret",
    "tasks",
    "workers",
];

/// A role as an administrator makes it.
pub(crate) async fn made_role(database: &Database) -> RoleName {
    let role = format!("tenant_{}", Uuid::now_v7().simple());
    execute(database, &format!("create role {role} nologin")).await;
    role.parse().unwrap()
}

async fn execute(database: &Database, sql: &str) {
    database.connect().await.unwrap().execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

fn store(database: &Database, role: Option<&RoleName>) -> PostgresStore {
    PostgresStore::new(PostgresOptions { tenant_role: role.cloned(), ..postgres_options(&database.url) })
        .unwrap()
}

/// What is told against the lock. Servers for tests are faster than they are safe, and say so.
async fn told(store: &PostgresStore) -> Vec<String> {
    let concerns = store.inspect().await.unwrap().into_iter();
    let unfit = concerns.filter(|concern| concern.weight != Weight::Fine).map(|concern| concern.message);
    unfit.filter(|message| !message.starts_with("fsync")).collect()
}

/// How much the first thing that is told of the lock weighs, if anything is.
async fn weight(store: &PostgresStore) -> Option<Weight> {
    let concerns = store.inspect().await.unwrap().into_iter();
    concerns.filter(|concern| !concern.message.starts_with("fsync")).map(|concern| concern.weight).next()
}

/// A store whose own role may do nothing but become the other one.
async fn blind(database: &Database, tenant: &RoleName) -> (SharedStore, String) {
    let role = format!("blind_{}", Uuid::now_v7().simple());
    let make = format!(
        "create role {role} login noinherit; grant usage on schema errand to {role}; grant {tenant} to {role}"
    );
    execute(database, &make).await;
    let (_, place) = database.url.split_once('@').unwrap();
    let url = format!("postgres://{role}@{place}");
    let options = PostgresOptions { tenant_role: Some(tenant.clone()), ..postgres_options(&url) };
    (Arc::new(PostgresStore::new(options).unwrap()), role)
}

impl TestStore {
    fn database(&self) -> &Database {
        let Place::Postgres(database) = &self.place else { panic!("SQLite has no roles") };
        database
    }

    async fn tenant_role(&self) -> RoleName {
        let ask = "select r.rolname::text from pg_policy p join pg_roles r on r.oid = any(p.polroles)
            where p.polrelid = 'jobs'::regclass";
        texts(&mut self.database().connect().await.unwrap(), ask).await[0].parse().unwrap()
    }

    /// A session that asks as this owner, without a condition of errand's.
    async fn session_of(&self, owner: Option<&Owner>) -> PgConnection {
        let mut db = self.database().connect().await.unwrap();
        let role = self.tenant_role().await;
        db.execute(AssertSqlSafe(format!("set role {role}"))).await.unwrap();
        if let Some(owner) = owner {
            let tell =
                "select set_config('errand.owner_kind', $1, false), set_config('errand.owner_id', $2, false)";
            sqlx::query(tell).bind(owner.kind().as_str()).bind(owner.id()).execute(&mut db).await.unwrap();
        }
        db
    }

    /// A key and a batch of two items with a failed job, beside all else that an owner has.
    async fn everything_of(&self, owner: &Owner) -> (Things, NewKey, BatchId) {
        let (things, who) = (Things::of(owner, self).await, Principal::Owner(owner.clone()));
        let (key, _) = NewKey::generate(who.clone(), "manage".parse().unwrap(), None).unwrap();
        self.store.add_key(&who, &key, OPERATOR).await.unwrap();
        let id = BatchId(Uuid::now_v7());
        let batch = NewBatch {
            id,
            principal: who,
            digest: Digest([7; 16]),
            is_sealed: false,
            deadline: None,
            stop: None,
            follow_up: None,
            callback: None,
        };
        let items = [(); 2].map(|()| job(json!({owner.kind().field(): owner.id()})));
        self.store.add_batch(&batch, &items).await.unwrap();
        self.set(owner, Some(URL), 1).await;
        self.store.add_deliveries(&[delivery(owner, URL, items[0].id, 1)]).await.unwrap();
        // Whoever reads gives them their places.
        self.store.last_event().await.unwrap();
        (things, key, id)
    }
}

async fn texts(db: &mut PgConnection, sql: &str) -> Vec<String> {
    let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(db).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The tables where the role may do this.
async fn tables_to(t: &TestStore, verb: &str) -> Vec<String> {
    let role = t.tenant_role().await;
    let ask = format!(
        "select relname::text from pg_class where relnamespace = 'errand'::regnamespace and relkind in ('r', 'p', 'v', 'm')
            and has_table_privilege('{role}', oid, '{verb}') order by 1"
    );
    texts(&mut t.database().connect().await.unwrap(), &ask).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_lock_alone_keeps_owners_apart_in_every_table() {
    let t = TestStore::locked().await;
    let owners = ["user:a", "org:a", "user:b'; --"].map(|owner| owner.parse::<Owner>().unwrap());
    for owner in &owners {
        t.everything_of(owner).await;
    }
    let nobody: Owner = "user:nobody".parse().unwrap();
    for table in tables_to(&t, "select").await {
        let rows = format!("select to_jsonb(t)::text from {table} t");
        let mut seen = BTreeSet::new();
        for owner in &owners {
            let own = texts(&mut t.session_of(Some(owner)).await, &rows).await;
            assert_eq!(own.is_empty(), table == "rejected", "{owner} sees its own rows of {table}");
            for row in own {
                assert!(seen.insert(row.clone()), "{table}: two owners see {row}");
            }
        }
        for owner in [None, Some(&nobody)] {
            let mut db = t.session_of(owner).await;
            assert_eq!(texts(&mut db, &rows).await, [] as [String; 0], "{owner:?} sees rows of {table}");
        }
    }
    for table in tables_to(&t, "update").await {
        let column = format!(
            "select attname::text from pg_attribute where attrelid = 'errand.{table}'::regclass and attnum > 0 limit 1"
        );
        let column = texts(&mut t.database().connect().await.unwrap(), &column).await.remove(0);
        let update = format!("update {table} set {column} = {column} returning '{table}'");
        assert_nothing(&t, &nobody, &update).await;
    }
    for table in tables_to(&t, "delete").await {
        assert_nothing(&t, &nobody, &format!("delete from {table} returning '{table}'")).await;
    }
    // What an owner writes is its own.
    let (own, other) = (&owners[0], &owners[1]);
    for foreign in [
        format!("update jobs set owner_kind = '{}', owner_id = '{}'", other.kind(), other.id()),
        "insert into job_history (job_id, kind, by) values (gen_random_uuid(), 'cancelled', 'x')".to_owned(),
        format!("update deliveries set owner_kind = '{}', owner_id = '{}'", other.kind(), other.id()),
        format!(
            "insert into callbacks (owner_kind, owner_id, secret) values ('{}', 'nobody yet', '\\x00')",
            other.kind()
        ),
        format!(
            "insert into changes (change_id, what, decider, origin, as_operator, owner_kind, owner_id)
            values (gen_random_uuid(), 'x', 'x', '', true, '{}', '{}')",
            other.kind(),
            other.id()
        ),
        format!(
            "insert into event_inbox (kinds, sequences, job_ids, batch_ids, owner_kinds, owner_ids, tools, toolkits, queues,
                attempts, held_reasons, error_kinds)
            values ('{{x}}', '{{1}}', '{{null}}', '{{null}}', '{{{}}}', '{{{}}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}')",
            other.kind(),
            other.id()
        ),
    ] {
        let refused =
            t.session_of(Some(own)).await.execute(AssertSqlSafe(foreign.clone())).await.unwrap_err();
        let refused = refused.as_database_error().unwrap();
        assert_eq!(refused.code().as_deref(), Some("42501"), "{foreign}: {refused}");
    }
}

async fn assert_nothing(t: &TestStore, owner: &Owner, statement: &str) {
    for owner in [None, Some(owner)] {
        let changed = texts(&mut t.session_of(owner).await, statement).await;
        assert_eq!(changed, [] as [String; 0], "{owner:?}: {statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_is_behind_the_second_lock_or_out_of_the_roles_reach() {
    let t = TestStore::locked().await;
    let role = t.tenant_role().await;
    let mut db = t.database().connect().await.unwrap();
    let reach = format!(
        "select c.relname::text from pg_class c where c.relnamespace = 'errand'::regnamespace
            and c.relkind in ('r', 'p', 'v', 'm') and has_table_privilege('{role}', c.oid, 'select, insert, update, delete, truncate')"
    );
    let behind = "select c.relname::text from pg_class c join pg_policy p on p.polrelid = c.oid
        where c.relnamespace = 'errand'::regnamespace and c.relrowsecurity and not p.polpermissive and p.polcmd = '*'";
    let mut reached = texts(&mut db, &reach).await;
    let mut locked = texts(&mut db, behind).await;
    reached.sort();
    locked.sort();
    assert_eq!(reached, locked, "what the role may touch and what a policy restricts");
    let all = "select relname::text from pg_class where relnamespace = 'errand'::regnamespace and relkind in ('r', 'p')";
    for table in texts(&mut db, all).await {
        assert!(
            locked.contains(&table) || APART.contains(&&*table),
            "say in src/store/postgres/owner_lock.rs whose the rows of {table} are, or here that no owner asks for them"
        );
    }
    let owned = "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'errand'::regnamespace and c.relkind in ('r', 'p') and a.attname = 'owner_kind'";
    for table in texts(&mut db, owned).await {
        let is_apart = ["awaited", "pins"].contains(&&*table);
        assert!(locked.contains(&table) || is_apart, "{table} has owners and no policy");
    }
}

/// The store's own role has no right to any table, so whatever is answered was asked as the role of owners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_owner_asks_and_decides_runs_as_the_role_of_owners() {
    let t = TestStore::locked().await;
    let (blind, role) = blind(t.database(), &t.tenant_role().await).await;
    let owner: Owner = "user:a".parse().unwrap();
    let who = &Principal::Owner(owner.clone());
    let (things, key, batch) = t.everything_of(&owner).await;
    let refused = blind.job(&Principal::Operator, JobId::new()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Access, "{refused:?}");
    // Jobs that are pruned are seen by the operator first.
    for (kind, call) in CALLS.iter().filter(|(_, call)| *call != "seen_jobs") {
        let answer = ask(call, &blind, who, &things).await;
        let of_nothing = ask(call, &blind, who, &Things::of_nobody()).await;
        assert_eq!(answer == of_nothing, *kind == Kind::Message, "{call}: {answer}");
    }
    assert!(!blind.seen_jobs(who, &seen(&t.store, &things).await).await.unwrap().is_empty());
    assert_eq!(blind.actions(who, None, 10).await.unwrap().len(), 2);
    assert_eq!(blind.keys(who, None, 10).await.unwrap().len(), 1);
    assert!(blind.key(who, key.id).await.unwrap().is_some());
    assert_eq!(blind.batches(who, None, 10).await.unwrap().len(), 1);
    assert_eq!(blind.batch(who, batch, true).await.unwrap().unwrap().counts.available, 2);
    assert_eq!(blind.batch_items(who, batch, 0, 10).await.unwrap().len(), 2);
    let jobs = errand::store::JobFilter { batch: Some(batch), ..Default::default() };
    assert_eq!(blind.jobs(who, &jobs, None, 10).await.unwrap().items.len(), 2);
    assert_eq!(blind.glances(who, &jobs, None, false).await.unwrap().items.len(), 2);
    assert!(blind.seal_batch(who, batch).await.unwrap().is_some());
    assert!(matches!(blind.cancel_batch(who, batch, OPERATOR).await.unwrap(), BatchDecided::Begun(_)));
    assert!(matches!(
        blind.retry_batch(who, batch, OPERATOR, true, None).await.unwrap(),
        BatchDecided::Unchanged(_)
    ));
    assert!(blind.set_callback(who, &owner, Some(url(URL)), &secret(1), OPERATOR).await.unwrap().is_some());
    assert_eq!(blind.callbacks(who, None, 10).await.unwrap().len(), 1);
    assert_eq!(blind.deliveries(who, &DeliveryFilter::default(), None, 10).await.unwrap().len(), 1);
    let recovery = Recovery { since: Timestamp::UNIX_EPOCH, before: None, delivered: true };
    assert_eq!(blind.recover_deliveries(who, &owner, &recovery, 10, OPERATOR).await.unwrap(), (0, None));
    // A secret is made by errand, whoever asks for it first.
    execute(t.database(), &format!("grant select, insert on callbacks to {role}")).await;
    for replaced in [None, Some(Duration::ZERO)] {
        let secrets = blind.callback_secrets(who, &owner, &secret(2), replaced, OPERATOR).await.unwrap();
        assert!(secrets.is_some());
    }
    // Ended keys are removed on the way, of whomever they are.
    execute(t.database(), &format!("grant select, delete on access_keys to {role}")).await;
    let (new, _) = NewKey::generate(who.clone(), "read".parse().unwrap(), None).unwrap();
    assert!(blind.rotate_key(who, key.id, &new, Duration::ZERO, OPERATOR).await.unwrap().is_some());
    assert!(blind.revoke_key(who, new.id, OPERATOR).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_lock_comes_and_goes_with_the_setting_and_leaves_nothing() {
    let database = support::database("on-off").await;
    let (first, second) = (made_role(&database).await, made_role(&database).await);
    store(&database, None).migrate().await.unwrap();
    // A policy of somebody else's keeps what it needs.
    execute(
        &database,
        "alter table jobs enable row level security; create policy theirs on jobs using (true)",
    )
    .await;
    let mut db = database.connect().await.unwrap();
    let facts = "select concat_ws(' ', relname, relrowsecurity, relacl,
            (select string_agg(concat_ws(' ', polname, polroles::regrole[]), ', ' order by polname) from pg_policy where polrelid = c.oid))
        from pg_class c where relnamespace = 'errand'::regnamespace and relkind = 'r' order by 1";
    let bare = texts(&mut db, facts).await;
    let mut before = None;
    for role in [Some(&first), Some(&first), None, Some(&first), Some(&second), None] {
        let store = store(&database, role);
        let is_lock_changed = store.migrate().await.unwrap().is_lock_changed;
        assert_eq!(is_lock_changed, before != role, "{before:?}, then {role:?}");
        before = role;
        assert_eq!(told(&store).await, [] as [String; 0], "the setting and the database fit");
        assert_eq!(weight(&store).await, role.map(|_| Weight::Fine));
        let found = texts(&mut db, facts).await;
        let about = |role: &RoleName| found.iter().filter(|fact| fact.contains(role.as_str())).count();
        let expected = [&first, &second].map(|one| if role == Some(one) { 15 } else { 0 });
        assert_eq!([&first, &second].map(about), expected, "{role:?}: {found:#?}");
        if role.is_none() {
            let plain = |facts: &[String]| facts.iter().map(|fact| without_rights(fact)).collect::<Vec<_>>();
            assert_eq!(plain(&found), plain(&bare));
        }
        store.close().await;
    }
}

/// The rights of a table are told where they were ever changed, also where they are again what they were.
fn without_rights(fact: &str) -> String {
    let rights = |word: &&str| !word.starts_with('{') || word.contains("errand_");
    fact.split(' ').filter(rights).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_cannot_stand_for_owners_is_refused_and_told() {
    let database = support::database("roles").await;
    let none: RoleName = format!("tenant_{}", Uuid::now_v7().simple()).parse().unwrap();
    let is_refused = async |role: &RoleName, why: &str| {
        let store = store(&database, Some(role));
        let refused = store.migrate().await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Access, "{refused}");
        let told = told(&store).await;
        assert!(refused.to_string().contains(why) && told[0].contains(why), "{refused}: {told:?}");
    };
    is_refused(&none, "there is no role").await;
    let above = made_role(&database).await;
    execute(&database, &format!("alter role {above} bypassrls")).await;
    is_refused(&above, "row-level security does not concern it").await;
    // A worker's role that has the rights of the other one without becoming it would see one owner's jobs only.
    let (role, heir) = (made_role(&database).await, made_role(&database).await);
    execute(&database, &format!("grant {role} to {heir}")).await;
    is_refused(&role, &format!("the role `{heir}` has the rights of `{role}`")).await;
    execute(&database, &format!("alter role {heir} noinherit")).await;

    // Nothing was applied so far, and one setting without the other is told.
    let (on, off) = (store(&database, Some(&role)), store(&database, None));
    assert!(told(&on).await[0].contains("row-level security is not there for the role"));
    on.migrate().await.unwrap();
    assert_eq!(told(&on).await, [] as [String; 0]);
    assert!(told(&off).await[0].contains("`store.tenant_role` is empty"));
    assert_eq!(weight(&off).await, Some(Weight::Risk));
    let worker = format!("worker_{}", Uuid::now_v7().simple());
    execute(
        &database,
        &format!(
            "create role {worker} login noinherit; grant usage on schema errand to {worker};
        grant select on _sqlx_migrations to {worker}"
        ),
    )
    .await;
    let (_, place) = database.url.split_once('@').unwrap();
    let options = postgres_options(&format!("postgres://{worker}@{place}"));
    let worker = PostgresStore::new(PostgresOptions { tenant_role: Some(role.clone()), ..options }).unwrap();
    assert!(told(&worker).await[0].contains("errand's role may not become"));
    assert_eq!(weight(&worker).await, Some(Weight::Fault), "owners are answered with errors");
    // What owners ask fails then, and nothing is answered without the lock.
    let owner = Principal::Owner("user:a".parse().unwrap());
    let refused = errand::store::JobControl::job(&worker, &owner, JobId::new()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Access, "{refused}");
}
