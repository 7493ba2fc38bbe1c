//! What the figures need of the database beside the API: rows without it, and how busy the database is.

use std::sync::Arc;

use anyhow::{Result, bail};
use errand::job::JobSpec;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use crate::bench::database::BenchStore;

/// The rows of a batch, as the store of errand writes them: the columns that an envelope fills, and the few that say where a
/// new job is. They go into the table of errand itself, with all its indexes and constraints.
const INSERT: &str = "insert into jobs (id, digest, owner_kind, owner_id, tool, arguments, queue, priority, tags, batch_id,
        state, created_at, due_at, first_due_at, published)
    select i.id, i.digest, i.owner_kind, i.owner_id, i.tool, i.arguments::json, i.queue, i.priority, '{}', $9, 'available',
        now(), now(), now(), 0
    from unnest($1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::smallint[])
        as i (id, digest, owner_kind, owner_id, tool, arguments, queue, priority)";

/// Finished jobs of the last thirty days, evenly and in order, as a service leaves them: most succeeded, some failed, and few
/// were cancelled. What has the word `old` in it is among the first thousandth only. IDs begin with the time, as those do that
/// apps make.
const FINISHED: &str = "insert into jobs (id, digest, owner_kind, owner_id, tool, arguments, queue, priority, tags, batch_id,
        toolkit, toolkit_version, pinned_by, frozen_effect, state, created_at, published, fence, attempt, spent, request_id,
        started_at, error_kind, error_message, result, log_id, http_status, finished_at)
    select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8'
            || substr(hash, 4, 15))::uuid,
        decode(hash, 'hex'), case when n % 10 = 0 then 'org' else 'user' end,
        case when is_old then 'old' else 'owner-' || n * 7919 % 1000 end,
        case when is_old then 'OLD_TOOL' else 'BENCH_TOOL_' || n % 20 end,
        json_build_object('record_id', n, 'title', 'A title that a person gave to a record of theirs'),
        case when is_old then 'old' when n % 10 = 3 then 'bulk' else 'default' end, 0,
        case when is_old then '{\"era\": \"old\"}' else jsonb_build_object('team', 'team-' || n % 50) end,
        case when is_old then $4 when n % 10 = 5 then md5((n / 10000)::text)::uuid end,
        case when is_old then 'old' else 'toolkit-' || n % 5 end,
        case when is_old then '20200101_00' else '20250101_00' end, 'config',
        case n % 3 when 0 then 'safe' when 1 then 'idempotent' else 'once' end,
        state, at, 1, 1, 1, 1, gen_random_uuid(), at + interval '1 second',
        case when state = 'failed' then case when is_old then 'expired' when n % 2 = 0 then 'refused' else 'tool_failed' end end,
        case when state = 'failed' then 'the tool says that there is no such record' end,
        case when state = 'succeeded' then json_build_object('id', n, 'full_name', 'acme/bench', 'open_issues', 17) end,
        'log_' || n, case when state = 'succeeded' then 200 end, at + interval '2 seconds'
    from (
        select n, n <= $3 / 1000 as is_old, md5(n::text) as hash,
            now() - interval '30 days' * (1 - n::float8 / $3) as at,
            case when n % 100 < 90 then 'succeeded' when n % 100 < 98 then 'failed' else 'cancelled' end as state
        from generate_series($1::bigint, $2::bigint) as n) s";

/// Jobs that are held, one for every thousand that have ended.
const HELD: &str = "insert into jobs (id, digest, owner_kind, owner_id, tool, arguments, queue, priority, tags, state, created_at,
        held_reason, error_kind, error_message)
    select gen_random_uuid(), decode(md5(n::text), 'hex'), 'user', 'owner-' || n % 1000, 'BENCH_TOOL_' || n % 20, '{}',
        'default', 0, '{}', 'held', now() - interval '30 days' * (1 - n::float8 / $1), 'connection', 'needs_connection',
        'connect the toolkit'
    from generate_series(1, $1::bigint) as n";

/// Owners to whose receivers callbacks are sent.
pub(super) const CALLED_OWNERS: i64 = 20;

/// Owners with a callback each, whose receivers are all at one URL.
const CALLBACKS: &str = "insert into callbacks (owner_kind, owner_id, url, secret)
    select 'user', 'called-' || n, $1 || 'called-' || n, decode(md5(n::text) || md5(n::text), 'hex')
    from generate_series(1, $2) as n";

/// Their jobs, which have ended.
const CALLED_JOBS: &str = "insert into jobs (id, digest, owner_kind, owner_id, tool, arguments, queue, priority, tags, toolkit,
        toolkit_version, pinned_by, frozen_effect, state, created_at, published, fence, attempt, spent, request_id, started_at,
        result, log_id, http_status, finished_at, events)
    select md5('called' || n)::uuid, decode(md5(n::text), 'hex'), 'user', 'called-' || n % $2 + 1, 'BENCH_TOOL',
        json_build_object('record_id', n), 'default', 0, '{}', 'toolkit', '20250101_00', 'config', 'once', 'succeeded', now(), 1, 1, 1, 1,
        gen_random_uuid(), now(), json_build_object('id', n, 'full_name', 'acme/bench'), 'log_' || n, 200, now(), 1
    from generate_series(1, $1) as n";

/// What became of them.
const CALLED_EVENTS: &str = "with placed as (
        insert into events (position, at, kind, sequence, job_id, owner_kind, owner_id, tool, toolkit, queue, attempt)
        select row_number() over (), finished_at, 'job.succeeded', 1, id, owner_kind, owner_id, tool, toolkit, queue, attempt
        from jobs where owner_id like 'called-%' returning position)
    update event_positions set last = (select max(position) from placed)";

/// From the first event on.
const FROM_THE_FIRST: &str = "insert into event_listeners (name, position) values ('callbacks', 0)";

/// An owner whose receiver has not taken anything yet.
const UNTAKEN: &str = "with owner as (
        insert into callbacks (owner_kind, owner_id, url, secret) values ('user', 'untaken', $1, decode(md5('') || md5(''), 'hex'))),
    receiver as (
        insert into receivers (id, owner_kind, owner_id, next_at) values (md5('receiver')::uuid, 'user', 'untaken', now()))
    insert into deliveries (id, receiver, owner_kind, owner_id, url, event_id, kind, event, subject, position)
    select md5('untaken' || n)::uuid, md5('receiver')::uuid, 'user', 'untaken', $1, gen_random_uuid(), 'job.succeeded',
        '{\"type\":\"job.succeeded\",\"at\":\"2026-01-31T12:00:00Z\",\"attempt\":1}', gen_random_uuid(), 1
    from generate_series(1, $2) as n";

/// Whether something waits for others; to count what was taken costs the database what it is measured for.
const IS_WAITED_FOR: &str =
    "select exists (select 1 from receivers where next_at is not null and owner_id <> 'untaken')";

const TAKEN: &str =
    "select count(*), coalesce(extract(epoch from max(finished_at) - min(finished_at)), 0)::float8
    from deliveries where state = 'delivered' and owner_id <> 'untaken'";

/// As many jobs as a page has, where nothing is asked.
const NEWEST: &str = "select * from jobs order by created_at desc, id desc limit 50";

/// For how long sessions of this database have executed statements, in seconds.
const ACTIVE: &str = "select active_time / 1000 from pg_stat_database where datname = current_database()";

/// Jobs of one statement.
const CHUNK: u64 = 250_000;

/// The batch of the jobs that are old.
pub(super) const OLD_BATCH: Uuid = Uuid::from_u128(0x0190_b0a0_0000_7000_8000_0000_0000_0001);

/// The rows of a batch, column by column.
#[derive(Debug, Default)]
pub(super) struct Rows {
    batch: Uuid,
    ids: Vec<Uuid>,
    digests: Vec<Vec<u8>>,
    owner_kinds: Vec<&'static str>,
    owner_ids: Vec<String>,
    tools: Vec<String>,
    arguments: Vec<Option<String>>,
    queues: Vec<String>,
    priorities: Vec<i16>,
}

impl Rows {
    pub(super) fn of(specs: &[Arc<JobSpec>], batch: Uuid) -> Self {
        let mut rows = Self { batch, ..Self::default() };
        for spec in specs {
            rows.ids.push(spec.id.0);
            rows.digests.push(spec.digest.0.to_vec());
            rows.owner_kinds.push(spec.owner.kind().as_str());
            rows.owner_ids.push(spec.owner.id().to_owned());
            rows.tools.push(spec.tool.clone());
            rows.arguments.push(spec.arguments.as_ref().map(|arguments| arguments.get().to_owned()));
            rows.queues.push(spec.queue.as_str().to_owned());
            rows.priorities.push(spec.priority);
        }
        rows
    }

    pub(super) fn ids(&self) -> &[Uuid] {
        &self.ids
    }
}

impl BenchStore {
    fn postgres(&self) -> Result<&PgPool> {
        match self {
            Self::Postgres(pool) => Ok(pool),
            Self::Sqlite(_) => bail!("the benchmark of the API needs PostgreSQL"),
        }
    }

    /// Inserts the rows of a batch in one statement.
    pub(super) async fn insert_rows(&self, rows: &Rows) -> Result<()> {
        sqlx::query(INSERT)
            .bind(&rows.ids)
            .bind(&rows.digests)
            .bind(&rows.owner_kinds)
            .bind(&rows.owner_ids)
            .bind(&rows.tools)
            .bind(&rows.arguments)
            .bind(&rows.queues)
            .bind(&rows.priorities)
            .bind(rows.batch)
            .execute(self.postgres()?)
            .await?;
        Ok(())
    }

    /// How many jobs there are.
    pub(super) async fn jobs(&self) -> Result<u64> {
        let count: i64 =
            sqlx::query("select count(*) from jobs").fetch_one(self.postgres()?).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Fills the table with jobs that have ended, telling how many are there, and has it analyzed.
    pub(super) async fn fill(&self, finished: u64, progress: impl Fn(u64)) -> Result<()> {
        let (pool, all) = (self.postgres()?, i64::try_from(finished)?);
        for first in (1..=finished).step_by(usize::try_from(CHUNK)?) {
            let last = finished.min(first + CHUNK - 1);
            let statement = sqlx::query(FINISHED).bind(i64::try_from(first)?).bind(i64::try_from(last)?);
            statement.bind(all).bind(OLD_BATCH).execute(pool).await?;
            progress(last);
        }
        sqlx::query(HELD).bind(all / 1000).execute(pool).await?;
        sqlx::query("analyze jobs").execute(pool).await?;
        Ok(())
    }

    /// Fills the tables with events that are to be sent to this URL.
    pub(super) async fn call(&self, url: &str, events: i64) -> Result<()> {
        let pool = self.postgres()?;
        sqlx::query(CALLBACKS).bind(format!("{url}/")).bind(CALLED_OWNERS).execute(pool).await?;
        sqlx::query(CALLED_JOBS).bind(events).bind(CALLED_OWNERS).execute(pool).await?;
        for statement in [CALLED_EVENTS, FROM_THE_FIRST, "analyze jobs, events"] {
            sqlx::query(statement).execute(pool).await?;
        }
        Ok(())
    }

    /// Lets deliveries wait for a receiver.
    pub(super) async fn wait_for(&self, url: &str, deliveries: i64) -> Result<()> {
        sqlx::query(UNTAKEN).bind(url).bind(deliveries).execute(self.postgres()?).await?;
        sqlx::query("analyze deliveries").execute(self.postgres()?).await?;
        Ok(())
    }

    /// How many callbacks were taken, and in how many seconds; `None` while some wait.
    pub(super) async fn taken(&self) -> Result<Option<(i64, f64)>> {
        if sqlx::query_scalar(IS_WAITED_FOR).fetch_one(self.postgres()?).await? {
            return Ok(None);
        }
        let row = sqlx::query(TAKEN).fetch_one(self.postgres()?).await?;
        Ok(Some((row.try_get(0)?, row.try_get(1)?)))
    }

    /// Reads the newest fifty jobs, as a list without a filter does.
    pub(super) async fn newest(&self) -> Result<usize> {
        Ok(sqlx::query(NEWEST).fetch_all(self.postgres()?).await?.len())
    }

    /// For how long sessions of this database have executed statements, in seconds. A session that is still there may keep back
    /// its last second.
    pub(super) async fn active_seconds(&self) -> Result<f64> {
        Ok(sqlx::query(ACTIVE).fetch_one(self.postgres()?).await?.try_get(0)?)
    }
}
