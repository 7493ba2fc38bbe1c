//! The second lock between owners: row-level security of PostgreSQL.
//!
//! The first lock is in the statements, which leave out what a principal may not see. With `store.tenant_role` what an
//! owner asks runs in sessions of that role, too. It may use the tables that [`TABLES`] lists and no others, and a
//! restrictive policy shows it the rows of the owner that the session was told of; nothing before it was told. Everybody
//! else has a policy that allows everything, so that workers and readers notice nothing.
//!
//! It keeps apart what a forgotten or mistaken condition of a statement would mix. It does not keep out whoever can send
//! statements of their own by errand's role, and it is not about the way in: jobs, items of batches and pins are written
//! as errand's role, and the door has compared their owners.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::{RoleName, SchemaName, failed_migration::Failed};
use crate::{
    job::Owner,
    store::{Concern, StoreError, StoreErrorKind, Weight},
};

/// The policy that restricts the role. Its comment is the rule that it was made of, by which a later build sees whether
/// it is the same.
const POLICY: &str = "errand_owners";

/// The policy without which row-level security hides everything from everybody.
const EVERYBODY: &str = "errand_everybody";

/// That a row belongs to the owner whom the session was told of. The settings are read once for a statement, and not for
/// each row, so that an index can be used.
const IS_OWN: &str = "owner_kind = (select current_setting('errand.owner_kind', true)) \
    and owner_id = (select current_setting('errand.owner_id', true))";

/// Each asks for the row that it belongs to, whose own policy decides. It is asked as a value, because `exists` may be
/// planned as a table that is read whole.
const IS_OF_JOB: &str = "(select true from jobs where jobs.id = job_id)";
const IS_OF_BATCH: &str = "(select true from batches where batches.id = batch_id)";

/// What is the operator's alone. Questions of owners are answered as if there were nothing.
const IS_NOBODYS: &str = "false";

/// That what is recorded is one event of the owner's own.
const IS_OWN_EVENT: &str = "cardinality(owner_ids) = 1 \
    and owner_kinds[1] = (select current_setting('errand.owner_kind', true)) \
    and owner_ids[1] = (select current_setting('errand.owner_id', true))";

/// What the statements that take a principal need: the tables, what they do there, and whose the rows are. The busiest
/// table comes last, so that it is locked for the shortest time.
const TABLES: [(&str, &str, &str); 15] = [
    ("access_keys", "select, insert, update", IS_OWN),
    ("actions", "select, insert, update, delete", IS_OWN),
    ("rejected", "select, update", IS_NOBODYS),
    ("changes", "select, insert", IS_OWN),
    ("callbacks", "select, insert, update", IS_OWN),
    ("deliveries", "select, update", IS_OWN),
    ("receivers", "select, update", IS_OWN),
    ("events", "select", IS_OWN),
    ("event_inbox", "insert", IS_OWN_EVENT),
    ("known_as", "select", IS_OF_JOB),
    ("batch_parts", "select", IS_OF_BATCH),
    ("batches", "select, update", IS_OWN),
    ("job_history", "select, insert", IS_OF_JOB),
    ("attempts", "select", IS_OF_JOB),
    ("jobs", "select, update", IS_OWN),
];

/// What each connection says before the first statement of another owner.
const TELL: &str =
    "select set_config('errand.owner_kind', $1, false), set_config('errand.owner_id', $2, false)";

/// How many tables an application of the lock waits for, one after the other.
pub(super) const LOCKED_TABLES: u32 = TABLES.len() as u32;

/// Tells a session who asks from now on.
pub(super) async fn tell(db: &mut PgConnection, owner: &Owner) -> sqlx::Result<()> {
    sqlx::query(TELL).bind(owner.kind().as_str()).bind(owner.id()).execute(db).await.map(drop)
}

/// What the database has of the lock.
struct Found {
    /// Tables where it is not as it should be.
    unlocked: Vec<String>,
    /// Roles and tables with a policy of the lock.
    locked: Vec<(String, String)>,
    /// Those of these tables that have policies of others, too.
    shared: Vec<String>,
}

/// What the database says of the role.
struct Role {
    is_there: bool,
    /// Whether this session may become it.
    is_settable: bool,
    /// Whether it may do what the tables' owner may, so that no policy concerns it.
    is_above: bool,
    /// Roles that have its rights without becoming it, so that its policies concern them, too.
    heirs: Vec<String>,
}

/// Makes the lock as it should be for this role, or takes it away where there is none; returns whether that changed
/// anything. One transaction; it waits for nothing where all is as it should be.
pub(super) async fn apply(
    db: &mut PgConnection,
    schema: &SchemaName,
    role: Option<&RoleName>,
) -> Result<bool, Failed> {
    if let Some(role) = role {
        let found = look_at_role(db, schema, role).await?;
        if let Some(problem) = found.problem(role) {
            return Err(StoreError::new(StoreErrorKind::Access, problem).into());
        }
    }
    let found = look_at_tables(db, schema, role).await?;
    let is_wanted = |(other, _): &(String, String)| role.is_some_and(|role| role.as_str() == other);
    if found.unlocked.is_empty() && found.locked.iter().all(is_wanted) {
        return Ok(false);
    }
    let mut script = take_away(schema, &found);
    if let Some(role) = role {
        script.push_str(&put_on(schema, role));
    }
    let mut transaction = db.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    let Some(role) = role else {
        tracing::info!("row-level security keeps owners apart no more, because `store.tenant_role` is empty");
        return Ok(true);
    };
    // A right that one may not give is refused by a notice only.
    if let Some(table) = look_at_tables(db, schema, Some(role)).await?.unlocked.first() {
        let message = format!(
            "the role `{role}` has not got its rights on the schema `{schema}` and the table `{table}`: run `errand migrate` \
             as their owner, or let a superuser execute `grant usage on schema \"{schema}\" to \"{role}\"`"
        );
        return Err(StoreError::new(StoreErrorKind::Access, message).into());
    }
    tracing::info!(role = role.as_str(), "row-level security keeps owners apart");
    Ok(true)
}

/// Where the settings and the database do not fit, as a role sees it that works with the tables.
pub(super) async fn concerns(
    db: &mut PgConnection,
    schema: &SchemaName,
    role: Option<&RoleName>,
) -> sqlx::Result<Vec<Concern>> {
    let found = look_at_tables(db, schema, role).await?;
    let Some(role) = role else {
        let left = found.locked.first().map(|(role, _)| Concern {
            weight: Weight::Risk,
            message: format!(
                "row-level security keeps owners apart for the role `{role}`, and `store.tenant_role` is empty, so that \
                 nothing runs as that role"
            ),
            advice: "set `store.tenant_role`, or run `errand migrate`, which takes the lock away",
        });
        return Ok(left.into_iter().collect());
    };
    let of_role = look_at_role(db, schema, role).await?;
    let message = match (of_role.problem(role), found.unlocked.first()) {
        (Some(problem), _) => problem,
        (None, Some(table)) => {
            format!(
                "row-level security is not there for the role `{role}`, or is another build's: see the table `{table}`"
            )
        }
        (None, None) if !of_role.is_settable => format!(
            "errand's role may not become `{role}`: as a superuser, `grant \"{role}\" to` errand's role, {}",
            without_inheriting()
        ),
        (None, None) => {
            let message = format!("row-level security keeps owners apart for the role `{role}`");
            return Ok(vec![Concern { weight: Weight::Fine, message, advice: "" }]);
        }
    };
    let advice = "until then owners are answered with errors (`store.tenant_role`); once roles are as they should be, run \
        `errand migrate`";
    Ok(vec![Concern { weight: Weight::Fault, message, advice }])
}

impl Role {
    /// Why it cannot stand for owners, and what to do.
    fn problem(&self, role: &RoleName) -> Option<String> {
        if !self.is_there {
            return Some(format!(
                "there is no role `{role}`, which `store.tenant_role` names: as a superuser, `create role \"{role}\" nologin`"
            ));
        }
        if self.is_above {
            return Some(format!(
                "the role `{role}` is a superuser, has `bypassrls` or the rights of the tables' owner, so that row-level \
                 security does not concern it: name another role in `store.tenant_role`"
            ));
        }
        let heir = self.heirs.first()?;
        Some(format!(
            "the role `{heir}` has the rights of `{role}` without becoming it, so that it would see one owner's rows only: \
             grant `{role}` {}",
            without_inheriting()
        ))
    }
}

fn without_inheriting() -> &'static str {
    "`with inherit false, set true`, or before PostgreSQL 16 make errand's role `noinherit`"
}

async fn look_at_role(db: &mut PgConnection, schema: &SchemaName, role: &RoleName) -> sqlx::Result<Role> {
    // Whoever owns the tables, or is above all rows, is not concerned by policies.
    let ask = format!(
        "with t as (select oid, rolsuper or rolbypassrls as is_above from pg_roles where rolname = $1),
        o as (select relowner as oid from pg_class where oid = to_regclass('\"{schema}\".jobs'))
        select exists (select from t) as is_there,
            coalesce((select pg_has_role(t.oid, case when current_setting('server_version_num')::integer < 160000
                then 'member' else 'set' end) from t), false) as is_settable,
            coalesce((select t.is_above or pg_has_role(t.oid, o.oid, 'usage') from t, o), false) as is_above,
            array(select r.rolname::text from t, o, pg_roles r
                where pg_has_role(r.oid, t.oid, 'usage') and r.oid <> t.oid and not r.rolsuper and not r.rolbypassrls
                    and not pg_has_role(r.oid, o.oid, 'usage') order by 1) as heirs"
    );
    let row = sqlx::query(AssertSqlSafe(ask)).bind(role.as_str()).fetch_one(db).await?;
    Ok(Role {
        is_there: row.try_get("is_there")?,
        is_settable: row.try_get("is_settable")?,
        is_above: row.try_get("is_above")?,
        heirs: row.try_get("heirs")?,
    })
}

async fn look_at_tables(
    db: &mut PgConnection,
    schema: &SchemaName,
    role: Option<&RoleName>,
) -> sqlx::Result<Found> {
    let tables = format!("c.relnamespace = to_regnamespace('\"{schema}\"') and c.relkind in ('r', 'p')");
    let ask = format!(
        "select c.relname::text, r.rolname::text, exists (select from pg_policy other where other.polrelid = c.oid
                and other.polname not in ('{POLICY}', '{EVERYBODY}'))
        from pg_policy p join pg_class c on c.oid = p.polrelid left join pg_roles r on r.oid = any(p.polroles)
        where {tables} and p.polname = '{POLICY}'"
    );
    let mut found = Found { unlocked: Vec::new(), locked: Vec::new(), shared: Vec::new() };
    for row in sqlx::query(AssertSqlSafe(ask)).fetch_all(&mut *db).await? {
        let (table, role): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            found.shared.push(table.clone());
        }
        found.locked.push((role.unwrap_or_default(), table));
    }
    let Some(role) = role else { return Ok(found) };
    let wanted = TABLES
        .map(|(table, rights, rule)| format!("('{table}', '{rights}', '{}')", rule.replace('\'', "''")));
    let ask = format!(
        "with t as (select oid from pg_roles where rolname = $1)
        select w.name from (values {}) as w (name, rights, rule)
        where not exists (select from t, pg_class c
                join pg_policy p on p.polrelid = c.oid and p.polname = '{POLICY}' and not p.polpermissive
                join pg_policy e on e.polrelid = c.oid and e.polname = '{EVERYBODY}'
            where {tables} and c.relname = w.name and c.relrowsecurity and p.polroles = array[t.oid]
                and obj_description(p.oid, 'pg_policy') = w.rule and has_schema_privilege(t.oid, c.relnamespace, 'usage')
                and (select bool_and(has_table_privilege(t.oid, c.oid, verb))
                    from unnest(string_to_array(w.rights, ', ')) as verb))
        order by w.name",
        wanted.join(", ")
    );
    let rows = sqlx::query(AssertSqlSafe(ask)).bind(role.as_str()).fetch_all(db).await?;
    found.unlocked = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
    Ok(found)
}

/// The statements that leave nothing of the lock. Policies of others stay, and so does what they need.
fn take_away(schema: &SchemaName, found: &Found) -> String {
    let mut script = String::new();
    for (role, table) in &found.locked {
        script.push_str(&format!(
            "drop policy {POLICY} on \"{schema}\".{table}; drop policy if exists {EVERYBODY} on \"{schema}\".{table}; "
        ));
        if !found.shared.contains(table) {
            script.push_str(&format!("alter table \"{schema}\".{table} disable row level security; "));
        }
        if !role.is_empty() {
            let role = role.replace('"', "\"\"");
            script.push_str(&format!("revoke all on \"{schema}\".{table} from \"{role}\"; "));
        }
    }
    script
}

fn put_on(schema: &SchemaName, role: &RoleName) -> String {
    let mut script = format!("grant usage on schema \"{schema}\" to \"{role}\"; ");
    for (table, rights, rule) in TABLES {
        let comment = rule.replace('\'', "''");
        script.push_str(&format!(
            "alter table {table} enable row level security; \
             create policy {EVERYBODY} on {table} using (true); \
             create policy {POLICY} on {table} as restrictive to \"{role}\" using ({rule}); \
             comment on policy {POLICY} on {table} is '{comment}'; \
             grant {rights} on {table} to \"{role}\"; "
        ));
    }
    script
}
