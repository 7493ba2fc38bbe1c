//! The databases of the benchmark: one schema or file for each measurement, the statements of the baseline, and
//! the times that both contenders left behind.
//!
//! The baseline writes a table of five columns with one statement per batch and keeps nothing else,
//! so it is close to the most that a loop can do with the same durability.

use bytes::Bytes;
use errand::{
    config::Config,
    store::{StoreError, StoreErrorKind},
};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, PgPool, Row, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use url::Url;
use uuid::Uuid;

/// The parameter of a database URL that says which schemas a session looks into.
const SEARCH_PATH: &str = "options[search_path]";

/// Where the jobs of a contender are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// The worker's.
    Jobs,
    /// The baseline's.
    Baseline,
}

/// When a job of the baseline or of the worker was made and started, in microseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// The job.
    pub(crate) id: Uuid,
    /// When the store first saw it.
    pub(crate) created: i64,
    /// When it was claimed.
    pub(crate) started: i64,
}

/// What a contender has done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Jobs that succeeded.
    pub(crate) succeeded: u64,
    /// From the first claim to the last finish, by the database's clock.
    pub(crate) seconds: f64,
}

/// The database of one measurement.
#[derive(Debug, Clone)]
pub(crate) enum BenchStore {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

const PG_CREATE: &str =
    "create table baseline (id uuid primary key, body bytea not null, created timestamptz not null,
    result bytea, finished timestamptz) with (fillfactor = 80)";

const PG_INSERT: &str = "insert into baseline (id, body, created)
    select i.id, i.body, now() from unnest($1::uuid[], $2::bytea[]) as i (id, body) on conflict do nothing";

const PG_FINISH: &str = "update baseline b set result = i.result, finished = now()
    from unnest($1::uuid[], $2::bytea[]) as i (id, result) where b.id = i.id";

const PG_SPAN_JOBS: &str = "select count(*) filter (where state = 'succeeded'),
    coalesce(extract(epoch from max(finished_at) - min(started_at)), 0)::float8 from jobs";

const PG_SPAN_BASELINE: &str = "select count(finished),
    coalesce(extract(epoch from max(finished) - min(created)), 0)::float8 from baseline";

const PG_STARTS_JOBS: &str = "select id, (extract(epoch from created_at) * 1000000)::bigint,
    (extract(epoch from started_at) * 1000000)::bigint from jobs where started_at is not null";

const PG_STARTS_BASELINE: &str = "select id, (extract(epoch from created) * 1000000)::bigint,
    (extract(epoch from created) * 1000000)::bigint from baseline";

const PG_ENQUEUE: &str = "select enqueue($1::json)";

const LITE_CREATE: &str =
    "create table baseline (id blob primary key, body text not null, created integer not null,
    result text, finished integer) without rowid";

/// One statement for the whole batch, since a statement per row costs more than the row.
const LITE_INSERT: &str = "insert into baseline (id, body, created)
    select unhex(value ->> 0), value ->> 1, ?2 from json_each(?1) where true on conflict do nothing";

const LITE_FINISH: &str = "update baseline set result = i.value ->> 1, finished = ?2
    from json_each(?1) as i where baseline.id = unhex(i.value ->> 0)";

const LITE_SPAN_JOBS: &str = "select count(*) filter (where state = 'succeeded'),
    coalesce(max(finished_at) - min(started_at), 0) / 1000000.0 from jobs";

const LITE_SPAN_BASELINE: &str =
    "select count(finished), coalesce(max(finished) - min(created), 0) / 1000000.0 from baseline";

const LITE_STARTS_JOBS: &str = "select id, created_at, started_at from jobs where started_at is not null";

const LITE_STARTS_BASELINE: &str = "select id, created, created from baseline";

impl BenchStore {
    /// Opens the database that the URL names, with up to `connections` connections.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub(crate) fn open(url: &SecretString, connections: u32) -> Result<Self, StoreError> {
        let url = url.expose_secret();
        if let Some(path) = url.strip_prefix("sqlite://") {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full);
            let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
            return Ok(Self::Sqlite(pool.connect_lazy_with(options)));
        }
        // The reason is dropped, because it can quote a part of the URL.
        let options: PgConnectOptions = url
            .parse()
            .map_err(|_| StoreError::new(StoreErrorKind::Access, "the database URL cannot be understood"))?;
        // The same as for the worker: the tables are empty when the statements are planned.
        let options = options.application_name("errand-lab bench").options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
        ]);
        // A large table is filled by statements that take long.
        let options = options.disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
        Ok(Self::Postgres(pool.connect_lazy_with(options)))
    }

    /// Makes the table of the baseline.
    pub(crate) async fn create_baseline(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(pool) => sqlx::query(PG_CREATE).execute(pool).await.map(drop)?,
            Self::Sqlite(pool) => sqlx::query(LITE_CREATE).execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    /// Writes new jobs.
    pub(crate) async fn insert_baseline(
        &self,
        ids: &[Uuid],
        bodies: &[Bytes],
        now: i64,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(pool) => {
                let bodies: Vec<&[u8]> = bodies.iter().map(|body| &body[..]).collect();
                sqlx::query(PG_INSERT).bind(ids).bind(bodies).execute(pool).await.map(drop)?;
            }
            Self::Sqlite(pool) => {
                sqlx::query(LITE_INSERT).bind(pairs(ids, bodies)).bind(now).execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    /// Writes results.
    pub(crate) async fn finish_baseline(
        &self,
        ids: &[Uuid],
        results: &[Bytes],
        now: i64,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(pool) => {
                let results: Vec<&[u8]> = results.iter().map(|result| &result[..]).collect();
                sqlx::query(PG_FINISH).bind(ids).bind(results).execute(pool).await.map(drop)?;
            }
            Self::Sqlite(pool) => {
                sqlx::query(LITE_FINISH).bind(pairs(ids, results)).bind(now).execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    /// What is done so far.
    pub(crate) async fn span(&self, table: Table) -> Result<Span, StoreError> {
        let (succeeded, seconds): (i64, f64) = match self {
            Self::Postgres(pool) => {
                let sql = if table == Table::Jobs { PG_SPAN_JOBS } else { PG_SPAN_BASELINE };
                let row = sqlx::query(sql).fetch_one(pool).await?;
                (row.try_get(0)?, row.try_get(1)?)
            }
            Self::Sqlite(pool) => {
                let sql = if table == Table::Jobs { LITE_SPAN_JOBS } else { LITE_SPAN_BASELINE };
                let row = sqlx::query(sql).fetch_one(pool).await?;
                (row.try_get(0)?, row.try_get(1)?)
            }
        };
        Ok(Span { succeeded: u64::try_from(succeeded).unwrap_or(0), seconds })
    }

    /// Jobs that are not recorded as finished.
    pub(crate) async fn unfinished(&self, table: Table) -> Result<u64, StoreError> {
        let sql = match table {
            Table::Jobs => "select count(*) from jobs where finished_at is null",
            Table::Baseline => "select count(*) from baseline where finished is null",
        };
        let count: i64 = match self {
            Self::Postgres(pool) => sqlx::query(sql).fetch_one(pool).await?.try_get(0)?,
            Self::Sqlite(pool) => sqlx::query(sql).fetch_one(pool).await?.try_get(0)?,
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Jobs that run, as far as is recorded, for this worker.
    pub(crate) async fn running_of(&self, worker: Uuid) -> Result<u64, StoreError> {
        let count: i64 = match self {
            Self::Postgres(pool) => {
                let sql = "select count(*) from jobs where state = 'running' and worker_id = $1";
                sqlx::query(sql).bind(worker).fetch_one(pool).await?.try_get(0)?
            }
            Self::Sqlite(pool) => {
                let sql = "select count(*) from jobs where state = 'running' and worker_id = ?1";
                sqlx::query(sql).bind(worker).fetch_one(pool).await?.try_get(0)?
            }
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// When each job was started.
    pub(crate) async fn starts(&self, table: Table) -> Result<Vec<Start>, StoreError> {
        macro_rules! read {
            ($rows:expr) => {
                $rows
                    .iter()
                    .map(|row| {
                        Ok(Start { id: row.try_get(0)?, created: row.try_get(1)?, started: row.try_get(2)? })
                    })
                    .collect::<Result<Vec<_>, sqlx::Error>>()?
            };
        }
        Ok(match self {
            Self::Postgres(pool) => {
                let sql = if table == Table::Jobs { PG_STARTS_JOBS } else { PG_STARTS_BASELINE };
                read!(sqlx::query(sql).fetch_all(pool).await?)
            }
            Self::Sqlite(pool) => {
                let sql = if table == Table::Jobs { LITE_STARTS_JOBS } else { LITE_STARTS_BASELINE };
                read!(sqlx::query(sql).fetch_all(pool).await?)
            }
        })
    }

    /// Enqueues jobs in one transaction by the SQL function, and returns their IDs.
    ///
    /// # Errors
    /// It is not PostgreSQL, or the transaction failed.
    pub(crate) async fn enqueue(&self, envelopes: &[String]) -> Result<Vec<Uuid>, StoreError> {
        let Self::Postgres(pool) = self else {
            return Err(StoreError::new(StoreErrorKind::Schema, "the SQL function is one of PostgreSQL"));
        };
        let mut transaction = pool.begin().await?;
        let mut ids = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            ids.push(sqlx::query_scalar(PG_ENQUEUE).bind(envelope).fetch_one(&mut *transaction).await?);
        }
        transaction.commit().await?;
        Ok(ids)
    }

    /// Makes a schema for one measurement.
    pub(crate) async fn create_schema(&self, name: &str) -> Result<(), StoreError> {
        let Self::Postgres(pool) = self else { return Ok(()) };
        ensure_plain(name)?;
        let statement = format!("create schema {name}");
        sqlx::query(AssertSqlSafe(statement)).execute(pool).await?;
        Ok(())
    }

    /// Removes a schema with all that is in it.
    pub(crate) async fn drop_schema(&self, name: &str) -> Result<(), StoreError> {
        let Self::Postgres(pool) = self else { return Ok(()) };
        ensure_plain(name)?;
        let statement = format!("drop schema if exists {name} cascade");
        sqlx::query(AssertSqlSafe(statement)).execute(pool).await?;
        Ok(())
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite(pool) => pool.close().await,
        }
    }
}

/// The URL of the same database with this schema in front of nothing else, by which builds that have no setting for it
/// find it.
///
/// # Errors
/// It is not a URL.
pub(crate) fn with_schema(url: &SecretString, schema: &str) -> Result<SecretString, StoreError> {
    let mut url = Url::parse(url.expose_secret())
        .map_err(|_| StoreError::new(StoreErrorKind::Access, "the database URL cannot be understood"))?;
    url.query_pairs_mut().append_pair(SEARCH_PATH, schema);
    Ok(String::from(url).into())
}

/// Has this build work in the schema of a measurement, if the database URL names one.
pub(crate) fn use_schema_of_url(config: &mut Config) {
    let Ok(url) = Url::parse(config.store.url.expose_secret()) else { return };
    let named = url.query_pairs().find(|(name, _)| name == SEARCH_PATH).map(|(_, schema)| schema);
    if let Some(schema) = named.filter(|schema| ensure_plain(schema).is_ok()).and_then(|s| s.parse().ok()) {
        config.store.schema = schema;
    }
}

/// Names of schemas are pasted into statements, so they are ours or nothing.
fn ensure_plain(name: &str) -> Result<(), StoreError> {
    if name.starts_with("errand_bench_") {
        ensure_bare_word(name)
    } else {
        Err(StoreError::new(StoreErrorKind::Data, "not the name of a benchmark's schema"))
    }
}

/// Only letters, digits and underscores.
fn ensure_bare_word(name: &str) -> Result<(), StoreError> {
    if name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        Ok(())
    } else {
        Err(StoreError::new(StoreErrorKind::Data, "a name with other characters than a-z, 0-9 and _"))
    }
}

/// `[["<id>", "<text>"], ...]`
fn pairs(ids: &[Uuid], texts: &[Bytes]) -> String {
    let pairs: Vec<(String, std::borrow::Cow<'_, str>)> = ids
        .iter()
        .zip(texts)
        .map(|(id, text)| (id.simple().to_string(), String::from_utf8_lossy(text)))
        .collect();
    serde_json::to_string(&pairs).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bare_loops_statements_work_on_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("baseline.db").display()).into();
        let store = BenchStore::open(&url, 1).unwrap();
        store.create_baseline().await.unwrap();
        let ids = [Uuid::now_v7(), Uuid::now_v7()];
        let texts = [Bytes::from_static(b"{\"a\": \"b\"}"), Bytes::from_static(b"{}")];
        store.insert_baseline(&ids, &texts, 1_000_000).await.unwrap();
        store.insert_baseline(&ids[..1], &texts[..1], 9_000_000).await.unwrap();
        assert_eq!(store.span(Table::Baseline).await.unwrap().succeeded, 0);
        store.finish_baseline(&ids, &texts, 3_000_000).await.unwrap();
        let span = store.span(Table::Baseline).await.unwrap();
        assert_eq!((span.succeeded, span.seconds), (2, 2.0));
        let mut starts: Vec<Uuid> =
            store.starts(Table::Baseline).await.unwrap().iter().map(|start| start.id).collect();
        starts.sort();
        assert_eq!(starts, ids);
    }

    #[test]
    fn only_schemas_of_the_benchmark_are_touched() {
        assert!(ensure_plain("errand_bench_0a1").is_ok());
        assert!(ensure_plain("public").is_err());
        assert!(ensure_plain("errand_bench_x; drop table jobs").is_err());
    }

    #[test]
    fn the_schema_joins_the_other_parameters() {
        let url = "postgres://u:p@h/db?sslmode=disable".to_owned().into();
        let with = with_schema(&url, "errand_bench_1").unwrap();
        let parsed: PgConnectOptions = with.expose_secret().parse().unwrap();
        assert!(format!("{parsed:?}").contains("search_path=errand_bench_1"), "{parsed:?}");
        let mut config = errand::config::load(&errand::config::Sources::default()).unwrap().config;
        for (url, schema) in [(url, "errand"), (with, "errand_bench_1")] {
            config.store.url = url;
            use_schema_of_url(&mut config);
            assert_eq!(config.store.schema.as_str(), schema);
        }
    }
}
