//! Everything that a database keeps of errand, row by row.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection, sqlite::SqliteConnectOptions,
};
use tokio::sync::{Mutex, OnceCell};

use super::{Ids, MARK};
use crate::support::postgres::Database;

/// Tables and columns that say who is there, and not what there is.
const TABLES_APART: [&str; 2] = ["_sqlx_migrations", "workers"];
const COLUMN_APART: &str = "last_used_at";

/// The rows of a database, over a connection that is kept, because they are read again and again.
pub(super) struct Rows {
    db: Mutex<Db>,
    /// What reads them all.
    query: OnceCell<String>,
}

enum Db {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Rows {
    pub(super) async fn of_postgres(database: &Database) -> Self {
        Self::new(Db::Postgres(database.connect().await.unwrap()))
    }

    pub(super) async fn of_sqlite(file: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(file);
        Self::new(Db::Sqlite(SqliteConnection::connect_with(&options).await.unwrap()))
    }

    fn new(db: Db) -> Self {
        Self { db: Mutex::new(db), query: OnceCell::new() }
    }

    /// Each row of each table as text.
    pub(super) async fn all(&self) -> BTreeSet<String> {
        let query = self.query.get_or_init(async || self.query_without(&TABLES_APART).await).await;
        self.texts(query.clone()).await.into_iter().collect()
    }

    /// The same of every table.
    pub(super) async fn of_every_table(&self) -> BTreeSet<String> {
        let query = self.query_without(&[]).await;
        self.texts(query).await.into_iter().collect()
    }

    /// Those that tell of a tenant.
    pub(super) async fn of(&self, ids: &Ids) -> BTreeSet<String> {
        let tells = |row: &String| {
            // SQLite keeps IDs as bytes.
            let row = row.to_lowercase();
            // What another tenant named alike is not of this one.
            let is_told = |id: &String| row.contains(id.as_str()) || row.contains(&id.replace('-', ""));
            !row.contains("user-8") && (row.contains(MARK) || ids.all().any(|id| is_told(&id)))
        };
        self.all().await.into_iter().filter(tells).collect()
    }

    async fn query_without(&self, apart: &[&str]) -> String {
        let is_postgres = matches!(*self.db.lock().await, Db::Postgres(_));
        let tables = if is_postgres {
            "select table_name::text from information_schema.tables where table_schema = current_schema() and table_type = 'BASE TABLE'"
        } else {
            "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'"
        };
        let mut queries = Vec::new();
        for table in self.texts(tables.to_owned()).await {
            if apart.contains(&&*table) {
                continue;
            }
            let row = if is_postgres {
                format!("(to_jsonb(t) - '{COLUMN_APART}')::text")
            } else {
                let columns =
                    format!("select name from pragma_table_info('{table}') where name <> '{COLUMN_APART}'");
                let columns = self.texts(columns).await;
                let quoted: Vec<_> = columns.iter().map(|column| format!("quote({column})")).collect();
                quoted.join(" || ',' || ")
            };
            queries.push(format!("select '{table}: ' || {row} from {table} t"));
        }
        assert!(queries.len() > 8, "{queries:?}");
        queries.join(" union all ")
    }

    /// Keeps a message that no queue brings.
    pub(super) async fn reject(&self, id: &str, body: &Value) {
        let values = format!("'default', 'no_id', '{MARK}', {{}}, '{{}}', 1");
        let columns = "id, queue, reason, message, body, properties, seen, received_at";
        let is_postgres = matches!(*self.db.lock().await, Db::Postgres(_));
        match is_postgres {
            true => {
                let (body, values) = (format!("convert_to('{body}', 'UTF8')"), values.as_str());
                let values = values.replacen("{}", &body, 1);
                let sql = format!(
                    "insert into rejected ({columns}) values ('{id}', {values}, now()) returning reason"
                );
                self.texts(sql).await;
            }
            false => {
                let values = values.replacen("{}", &format!("cast('{body}' as blob)"), 1);
                let id = id.replace('-', "");
                let now = "unixepoch() * 1000000";
                let sql = format!(
                    "insert into rejected ({columns}) values (x'{id}', {values}, {now}) returning reason"
                );
                self.texts(sql).await;
            }
        }
    }

    /// Keeps a delivery that has failed, as a worker that sends callbacks leaves it.
    pub(super) async fn deliver(&self, id: &str) {
        let columns = "id, receiver, event_id, subject, owner_kind, owner_id, url, kind, event, position, state, due_at,
            finished_at, created_at, waiting_since";
        let is_postgres = matches!(*self.db.lock().await, Db::Postgres(_));
        let (id, now) = match is_postgres {
            // The newest of all, whatever is sent meanwhile.
            true => (format!("'{id}'"), "now() + interval '1 minute'"),
            false => (format!("x'{}'", id.replace('-', "")), "(unixepoch() + 60) * 1000000"),
        };
        let values = format!(
            "'user', 'user-7', 'https://{MARK}.example/', 'job.failed', '{{}}', 1, 'failed', null, {now}, {now}, {now}"
        );
        let sql = format!(
            "insert into deliveries ({columns}) values ({id}, {id}, {id}, {id}, {values}) returning kind"
        );
        self.texts(sql).await;
    }

    /// The first column of all rows.
    async fn texts(&self, sql: String) -> Vec<String> {
        let sql = AssertSqlSafe(sql);
        match &mut *self.db.lock().await {
            Db::Postgres(db) => {
                let rows = sqlx::query(sql).fetch_all(db).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Db::Sqlite(db) => {
                let rows = sqlx::query(sql).fetch_all(db).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }
}
