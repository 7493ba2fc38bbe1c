//! What was finished or rejected long ago, and its removal.

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::{JobId, Owner, Principal},
    store::{
        OldJob, OldMessage, OtherId, Page, Place, Result, Retention, SeenJob, Which,
        columns::PrincipalColumns,
        convert::{micros, to_limit},
        read::StoreRow as _,
        retention::as_seen,
        sql::{One, statements},
    },
};

statements! { Postgres:
    /// What a large value takes is read from the reference to it, and the value is not.
    old_jobs(at: i64, id: Uuid, age: i64, limit: i64) = "select {old_job} from jobs
    where (created_at, id) > ({instant}, {id}) and created_at <= now() - {age}::bigint * interval '1 microsecond'
    order by created_at, id limit {limit}";

    old_jobs_of_owner(at: i64, id: Uuid, age: i64, limit: i64, owner_kind: &str, owner_id: &str) = "select {old_job} from jobs
    where (created_at, id) > ({instant}, {id}) and created_at <= now() - {age}::bigint * interval '1 microsecond'
        and owner_kind = {owner_kind} and owner_id = {owner_id}
    order by created_at, id limit {limit}";

    seen_jobs(principal: One<'_, PrincipalColumns>, ids: Vec<Uuid>) = "select {old_job} from jobs where {may_see} and id = any({ids})";

    remove(ids: Vec<Uuid>, finished: Vec<i64>) = "with old as materialized (
        select id from jobs where id = any({ids}) and finished_at is not null and reply_due_at is null and check_at is null
            and (id, (extract(epoch from finished_at) * 1000000)::bigint) in (
                select * from unnest({ids}::uuid[], {finished}::bigint[]))
        for update skip locked)
    delete from jobs where id = any(array(select id from old)) returning id";

    /// Whoever writes an attempt or an entry has the job's row locked. So these statements, which begin when the job is
    /// gone, see all that will ever be there.
    remove_attempts(ids: Vec<Uuid>) = "delete from attempts where job_id = any({ids})";

    remove_history(ids: Vec<Uuid>) = "delete from job_history where job_id = any({ids})";

    remove_answers(ids: Vec<Uuid>) = "with other_ids as (delete from known_as where job_id = any({ids}))
    delete from answers where job_id = any({ids})";

    old_messages(at: i64, id: Uuid, limit: i64) = "select id, (extract(epoch from received_at) * 1000000)::bigint as at,
        (extract(epoch from now() - received_at) * 1000000)::bigint as age, octet_length(body)::bigint + coalesce(octet_length(corrected), 0) as bytes
    from rejected where (received_at, id) < ({instant}, {id}) order by received_at desc, id desc limit {limit}";

    remove_messages(ids: Vec<Uuid>, received: Vec<i64>) = "with gone as (
        delete from rejected where id in (
            select id from rejected where id = any({ids}) and (id, (extract(epoch from received_at) * 1000000)::bigint) in (
                select * from unnest({ids}::uuid[], {received}::bigint[]))
            for update skip locked)
        returning id),
    unanswered as (delete from answers where rejected_id = any(array(select id from gone)))
    select id from gone";

    sweep_other_ids(after_job: Uuid, after_id: Uuid, limit: i64) = "with page as materialized (
        select job_id, id from known_as where (job_id, id) > ({after_job}, {after_id}) order by job_id, id limit {limit}),
    strays as (
        select k.ctid from known_as k join page p on (p.job_id, p.id) = (k.job_id, k.id)
        where not exists (select 1 from jobs j where j.id = k.job_id)
        for update of k skip locked),
    swept as (delete from known_as where ctid = any(array(select ctid from strays)))
    select job_id, id from page order by job_id desc, id desc limit 1";

    /// Whoever parks a job at the same time holds the row until the job can be seen, and it is looked at again then.
    forget_awaited(owner_kind: &str, owner_id: &str) = "delete from awaited a where a.id in (
            select id from awaited where owner_kind = {owner_kind} and owner_id = {owner_id} for update skip locked)
        and not exists (select 1 from jobs j where {is_job_of_awaited})
    returning a.id";
}

#[async_trait]
impl Retention for PostgresStore {
    async fn old_jobs(&self, which: &Which, after: Option<Place>, limit: usize) -> Result<Page<OldJob>> {
        let Place { at, id } = after.unwrap_or(Place::FIRST);
        let (age, limit) = (micros(which.age), to_limit(limit));
        let query = match &which.owner {
            Some(owner) => sql::old_jobs_of_owner(at, id, age, limit, owner.kind().as_str(), owner.id()),
            None => sql::old_jobs(at, id, age, limit),
        };
        Page::of_jobs(&self.other.fetch(query).await?)
    }

    async fn seen_jobs(&self, principal: &Principal, seen: &[SeenJob]) -> Result<Vec<OldJob>> {
        let ids = seen.iter().map(|job| job.id.0).collect();
        Ok(as_seen(&self.other.fetch(sql::seen_jobs(One(principal), ids)).await?, seen))
    }

    async fn remove_jobs(&self, jobs: &[OldJob]) -> Result<Vec<JobId>> {
        let (ids, finished): (Vec<Uuid>, Vec<i64>) =
            jobs.iter().filter_map(|job| Some((job.id.0, job.finished_at?))).unzip();
        let work = self.other.transaction(move |db| {
            Box::pin(async move {
                let gone = sql::remove(ids, finished).fetch_all(&mut *db).await?;
                let gone = gone.iter().map(|row| row.read("id")).collect::<Result<Vec<Uuid>>>()?;
                if !gone.is_empty() {
                    sql::remove_attempts(gone.clone()).execute(&mut *db).await?;
                    sql::remove_history(gone.clone()).execute(&mut *db).await?;
                    sql::remove_answers(gone.clone()).execute(&mut *db).await?;
                }
                Ok(gone)
            })
        });
        Ok(work.await?.into_iter().map(JobId).collect())
    }

    async fn old_messages(&self, before: Option<Place>, limit: usize) -> Result<Page<OldMessage>> {
        let Place { at, id } = before.unwrap_or(Place::LAST);
        Page::of_messages(&self.other.fetch(sql::old_messages(at, id, to_limit(limit))).await?)
    }

    async fn remove_messages(&self, messages: &[OldMessage]) -> Result<Vec<Uuid>> {
        let (ids, received) = messages.iter().map(|message| (message.id, message.received_at)).unzip();
        self.other
            .fetch(sql::remove_messages(ids, received))
            .await?
            .iter()
            .map(|row| row.read("id"))
            .collect()
    }

    async fn sweep_other_ids(&self, after: Option<OtherId>, limit: usize) -> Result<Option<OtherId>> {
        let OtherId { job, id } = after.unwrap_or(OtherId::FIRST);
        let last = self.other.fetch_first(sql::sweep_other_ids(job.0, id.0, to_limit(limit))).await?;
        last.as_ref().map(OtherId::read).transpose()
    }

    async fn forget_awaited(&self, owner: &Owner) -> Result<u64> {
        Ok(self.other.fetch(sql::forget_awaited(owner.kind().as_str(), owner.id())).await?.len() as u64)
    }
}
