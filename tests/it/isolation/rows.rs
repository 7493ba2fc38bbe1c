//! Everything that a database keeps of errand, row by row.

use std::{collections::BTreeSet, path::PathBuf};

use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use serde_json::Value;

use super::{Ids, MARK};
use crate::support::postgres::Database;

/// Tables and columns that say who is there, and not what there is.
const TABLES_APART: [&str; 2] = ["_sqlx_migrations", "workers"];
const COLUMN_APART: &str = "last_used_at";

pub(super) enum Rows {
    Postgres(Database),
    Sqlite(PathBuf),
}

impl Rows {
    /// Each row of each table as text.
    pub(super) async fn all(&self) -> BTreeSet<String> {
        let mut rows = BTreeSet::new();
        for (table, query) in self.queries().await {
            rows.extend(self.texts(query).await.into_iter().map(|row| format!("{table}: {row}")));
        }
        rows
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

    async fn queries(&self) -> Vec<(String, String)> {
        let tables = match self {
            Self::Postgres(_) => {
                "select table_name::text from information_schema.tables where table_schema = current_schema() and table_type = 'BASE TABLE'"
            }
            Self::Sqlite(_) => {
                "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'"
            }
        };
        let mut queries = Vec::new();
        for table in self.texts(tables.to_owned()).await {
            if TABLES_APART.contains(&&*table) {
                continue;
            }
            let query = match self {
                Self::Postgres(_) => format!("select (to_jsonb(t) - '{COLUMN_APART}')::text from {table} t"),
                Self::Sqlite(_) => {
                    let columns = format!(
                        "select name from pragma_table_info('{table}') where name <> '{COLUMN_APART}'"
                    );
                    let columns = self.texts(columns).await;
                    let quoted: Vec<_> = columns.iter().map(|column| format!("quote({column})")).collect();
                    format!("select {} from {table}", quoted.join(" || ',' || "))
                }
            };
            queries.push((table, query));
        }
        assert!(queries.len() > 8, "{queries:?}");
        queries
    }

    /// Keeps a message that no queue brings.
    pub(super) async fn reject(&self, id: &str, body: &Value) {
        let values = format!("'default', 'no_id', '{MARK}', {{}}, '{{}}', 1");
        let columns = "id, queue, reason, message, body, properties, seen, received_at";
        match self {
            Self::Postgres(_) => {
                let (body, values) = (format!("convert_to('{body}', 'UTF8')"), values.as_str());
                let values = values.replacen("{}", &body, 1);
                let sql = format!(
                    "insert into rejected ({columns}) values ('{id}', {values}, now()) returning reason"
                );
                self.texts(sql).await;
            }
            Self::Sqlite(_) => {
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

    /// The first column of all rows.
    async fn texts(&self, sql: String) -> Vec<String> {
        let sql = AssertSqlSafe(sql);
        match self {
            Self::Postgres(database) => {
                let mut db = database.connect().await.unwrap();
                let rows = sqlx::query(sql).fetch_all(&mut db).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Self::Sqlite(file) => {
                let options = SqliteConnectOptions::new().filename(file);
                let mut db = SqliteConnection::connect_with(&options).await.unwrap();
                let rows = sqlx::query(sql).fetch_all(&mut db).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }
}
