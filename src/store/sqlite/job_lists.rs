//! Lists of jobs, which look at a bounded number of them.

use async_trait::async_trait;
use sqlx::Sqlite;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::Principal,
    store::{
        Glance, JobFilter, JobLists, JobView, Looked, Place, Result,
        columns::{Filter, PrincipalColumns, StretchColumns},
        convert::to_limit,
        job_filter::{Stretch, Walk, Window},
        read::readable,
        rows,
        sql::{Bound, One, statements},
    },
};

statements! { Sqlite:
    window(stretch: One<'_, StretchColumns>, limit: i64) = "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs indexed by jobs_in_order where {in_order}
        order by created_at desc, id desc limit +{limit}) w
    order by created_at, id limit 1";

    window_of_held(stretch: One<'_, StretchColumns>, limit: i64) = "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs indexed by jobs_held_in_order where {in_order} and state = 'held'
        order by created_at desc, id desc limit +{limit}) w
    order by created_at, id limit 1";

    window_of_owner(stretch: One<'_, StretchColumns>, limit: i64, owner_kind: &str, owner_id: &str) =
    "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs indexed by jobs_owner_in_order
        where {in_order} and owner_kind = {owner_kind} and owner_id = {owner_id}
        order by created_at desc, id desc limit +{limit}) w
    order by created_at, id limit 1";

    window_of_batch(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, limit: i64, batch: Uuid) =
    "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs indexed by jobs_batch where batch_id = {batch} and {in_order} and {may_see_batch}
        order by created_at desc, id desc limit +{limit}) w
    order by created_at, id limit 1";

    jobs(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, limit: i64) = "select {job}, null as result
    from jobs indexed by jobs_in_order where {in_order} and {matches} order by created_at desc, id desc limit +{limit}";

    jobs_of_held(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, limit: i64) = "select {job}, null as result
    from jobs indexed by jobs_held_in_order where {in_order} and state = 'held' and {matches}
    order by created_at desc, id desc limit +{limit}";

    jobs_of_owner(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, limit: i64) = "select {job}, null as result
    from jobs indexed by jobs_owner_in_order
    where {in_order} and owner_kind = {owner_kind} and owner_id = {owner_id} and {matches}
    order by created_at desc, id desc limit +{limit}";

    jobs_of_batch(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, limit: i64) = "select {job}, null as result
    from jobs indexed by jobs_batch where batch_id = {batch} and {in_order} and {matches}
    order by created_at desc, id desc limit +{limit}";

    glances(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, outcomes: bool, now: i64) = "select {glance}
    from jobs indexed by jobs_in_order where {in_order} and {matches} order by created_at desc, id desc";

    glances_of_held(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, outcomes: bool, now: i64) = "select {glance}
    from jobs indexed by jobs_held_in_order where {in_order} and state = 'held' and {matches}
    order by created_at desc, id desc";

    glances_of_owner(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, outcomes: bool, now: i64) = "select {glance}
    from jobs indexed by jobs_owner_in_order
    where {in_order} and owner_kind = {owner_kind} and owner_id = {owner_id} and {matches}
    order by created_at desc, id desc";

    glances_of_batch(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, outcomes: bool, now: i64) = "select {glance}
    from jobs indexed by jobs_batch where batch_id = {batch} and {in_order} and {matches}
    order by created_at desc, id desc";
}

#[async_trait]
impl JobLists for SqliteStore {
    async fn jobs(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Looked<JobView>> {
        let Some((filter, walk)) = filter.seen_by(principal) else { return Ok(Looked::nothing()) };
        let Some(window) = self.job_window(principal, &filter, walk, before).await? else {
            return Ok(Looked::nothing());
        };
        let (one, stretch) = (One(&*filter), One(&window.stretch));
        let query = match walk {
            Walk::All => sql::jobs(one, stretch, to_limit(limit)),
            Walk::Held => sql::jobs_of_held(one, stretch, to_limit(limit)),
            Walk::Owner(_) => sql::jobs_of_owner(one, stretch, to_limit(limit)),
            Walk::Batch(_) => sql::jobs_of_batch(one, stretch, to_limit(limit)),
        };
        let found = self.reader.fetch(query).await?;
        window.looked(&found, limit, readable(&found, rows::job))
    }

    async fn glances(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        before: Option<Place>,
        outcomes: bool,
    ) -> Result<Looked<Glance>> {
        let Some((filter, walk)) = filter.seen_by(principal) else { return Ok(Looked::nothing()) };
        let Some(window) = self.job_window(principal, &filter, walk, before).await? else {
            return Ok(Looked::nothing());
        };
        let (one, stretch) = (One(&*filter), One(&window.stretch));
        let query = match walk {
            Walk::All => sql::glances(one, stretch, outcomes, self.now_micros()),
            Walk::Held => sql::glances_of_held(one, stretch, outcomes, self.now_micros()),
            Walk::Owner(_) => sql::glances_of_owner(one, stretch, outcomes, self.now_micros()),
            Walk::Batch(_) => sql::glances_of_batch(one, stretch, outcomes, self.now_micros()),
        };
        let found = self.reader.fetch(query).await?;
        window.looked(&found, usize::MAX, readable(&found, rows::glance))
    }
}

impl SqliteStore {
    /// The next jobs to look at, which are found in the index alone.
    async fn job_window(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        walk: Walk<'_>,
        before: Option<Place>,
    ) -> Result<Option<Window>> {
        let stretch = filter.stretch(before);
        let oldest = self.reader.fetch_first(window(principal, walk, &stretch)).await?;
        Window::of(stretch, oldest.as_ref(), walk.most())
    }
}

fn window(principal: &Principal, walk: Walk<'_>, stretch: &Stretch) -> Bound<Sqlite> {
    let (stretch, limit) = (One(stretch), to_limit(walk.most()));
    match walk {
        Walk::All => sql::window(stretch, limit),
        Walk::Held => sql::window_of_held(stretch, limit),
        Walk::Owner(owner) => sql::window_of_owner(stretch, limit, owner.kind().as_str(), owner.id()),
        Walk::Batch(batch) => sql::window_of_batch(One(principal), stretch, limit, batch.0),
    }
}
