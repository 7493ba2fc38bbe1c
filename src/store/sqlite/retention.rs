//! What was finished or rejected long ago, and its removal.

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
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

statements! { Sqlite:
    /// The length in bytes is in the head of a row, and the value is not read for it.
    old_jobs(at: i64, id: Uuid, created_until: i64, limit: i64, now: i64) = "select {old_job} from jobs
    where (created_at, id) > ({at}, {id}) and created_at <= {created_until}
    order by created_at, id limit +{limit}";

    old_jobs_of_owner(at: i64, id: Uuid, created_until: i64, limit: i64, now: i64, owner_kind: &str, owner_id: &str) =
    "select {old_job} from jobs
    where (created_at, id) > ({at}, {id}) and created_at <= {created_until}
        and owner_kind = {owner_kind} and owner_id = {owner_id}
    order by created_at, id limit +{limit}";

    seen_job(principal: One<'_, PrincipalColumns>, id: Uuid, now: i64) = "select {old_job} from jobs where {may_see} and id = {id}";

    remove(id: Uuid, finished_at: i64) = "delete from jobs where id = {id} and finished_at = {finished_at}
        and reply_due_at is null and check_at is null";

    remove_attempts(id: Uuid) = "delete from attempts where job_id = {id}";

    remove_history(id: Uuid) = "delete from job_history where job_id = {id}";

    remove_answers(id: Uuid) = "delete from answers where job_id = {id}";

    remove_other_ids(id: Uuid) = "delete from known_as where job_id = {id}";

    old_messages(at: i64, id: Uuid, limit: i64, now: i64) = "select id, received_at as at, {now} - received_at as age,
        octet_length(body) + coalesce(octet_length(corrected), 0) as bytes
    from rejected where (received_at, id) < ({at}, {id}) order by received_at desc, id desc limit +{limit}";

    remove_message(id: Uuid, received_at: i64) = "delete from rejected where id = {id} and received_at = {received_at}";

    remove_answers_to(id: Uuid) = "delete from answers where rejected_id = {id}";

    other_ids(after_job: Uuid, after_id: Uuid, limit: i64) = "select k.job_id, k.id,
        not exists (select 1 from jobs j where j.id = k.job_id) as is_stray
    from known_as k where (k.job_id, k.id) > ({after_job}, {after_id}) order by k.job_id, k.id limit +{limit}";

    sweep_other_id(job_id: Uuid, id: Uuid) = "delete from known_as where job_id = {job_id} and id = {id}
        and not exists (select 1 from jobs j where j.id = {job_id})";

    forget_awaited(owner_kind: &str, owner_id: &str) = "delete from awaited as a
    where a.owner_kind = {owner_kind} and a.owner_id = {owner_id}
        and not exists (select 1 from jobs j where {is_job_of_awaited})";
}

#[async_trait]
impl Retention for SqliteStore {
    async fn old_jobs(&self, which: &Which, after: Option<Place>, limit: usize) -> Result<Page<OldJob>> {
        let Place { at, id } = after.unwrap_or(Place::FIRST);
        let (now, limit) = (self.now_micros(), to_limit(limit));
        let until = now - micros(which.age);
        let query = match &which.owner {
            Some(owner) => {
                sql::old_jobs_of_owner(at, id, until, limit, now, owner.kind().as_str(), owner.id())
            }
            None => sql::old_jobs(at, id, until, limit, now),
        };
        Page::of_jobs(&self.reader.fetch(query).await?)
    }

    async fn seen_jobs(&self, principal: &Principal, seen: &[SeenJob]) -> Result<Vec<OldJob>> {
        let (mut rows, now) = (Vec::with_capacity(seen.len()), self.now_micros());
        for job in seen {
            rows.extend(self.reader.fetch_first(sql::seen_job(One(principal), job.id.0, now)).await?);
        }
        Ok(as_seen(&rows, seen))
    }

    async fn remove_jobs(&self, jobs: &[OldJob]) -> Result<Vec<JobId>> {
        let jobs: Vec<_> = jobs.iter().filter_map(|job| Some((job.id, job.finished_at?))).collect();
        self.write(move |db, _| {
            Box::pin(async move {
                let mut gone = Vec::with_capacity(jobs.len());
                for (id, finished_at) in jobs {
                    if sql::remove(id.0, finished_at).execute(&mut *db).await?.rows_affected() > 0 {
                        sql::remove_attempts(id.0).execute(&mut *db).await?;
                        sql::remove_history(id.0).execute(&mut *db).await?;
                        sql::remove_answers(id.0).execute(&mut *db).await?;
                        sql::remove_other_ids(id.0).execute(&mut *db).await?;
                        gone.push(id);
                    }
                }
                Ok(gone)
            })
        })
        .await
    }

    async fn old_messages(&self, before: Option<Place>, limit: usize) -> Result<Page<OldMessage>> {
        let Place { at, id } = before.unwrap_or(Place::LAST);
        let query = sql::old_messages(at, id, to_limit(limit), self.now_micros());
        Page::of_messages(&self.reader.fetch(query).await?)
    }

    async fn remove_messages(&self, messages: &[OldMessage]) -> Result<Vec<Uuid>> {
        let messages = messages.to_vec();
        self.write(move |db, _| {
            Box::pin(async move {
                let mut gone = Vec::with_capacity(messages.len());
                for OldMessage { id, received_at, .. } in messages {
                    if sql::remove_message(id, received_at).execute(&mut *db).await?.rows_affected() > 0 {
                        sql::remove_answers_to(id).execute(&mut *db).await?;
                        gone.push(id);
                    }
                }
                Ok(gone)
            })
        })
        .await
    }

    async fn sweep_other_ids(&self, after: Option<OtherId>, limit: usize) -> Result<Option<OtherId>> {
        let OtherId { job, id } = after.unwrap_or(OtherId::FIRST);
        let (mut strays, mut last) = (Vec::new(), None);
        // A look that finds nothing to remove, as most do, takes no lock.
        for row in &self.reader.fetch(sql::other_ids(job.0, id.0, to_limit(limit))).await? {
            let other = OtherId::read(row)?;
            if row.read("is_stray")? {
                strays.push(other);
            }
            last = Some(other);
        }
        if !strays.is_empty() {
            self.write_each(strays, |stray, _| sql::sweep_other_id(stray.job.0, stray.id.0)).await?;
        }
        Ok(last)
    }

    async fn forget_awaited(&self, owner: &Owner) -> Result<u64> {
        let owner = owner.clone();
        self.write_one(move |_| sql::forget_awaited(owner.kind().as_str(), owner.id())).await
    }
}
