//! Lists of jobs, which look at a bounded number of them.

use async_trait::async_trait;
use sqlx::Postgres;
use uuid::Uuid;

use super::PostgresStore;
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

statements! { Postgres:
    window(stretch: One<'_, StretchColumns>, limit: i64) = "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs where {in_order} order by created_at desc, id desc limit {limit}) w
    order by created_at, id limit 1";

    window_of_held(stretch: One<'_, StretchColumns>, limit: i64) = "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs where {in_order} and held_reason is not null
        order by created_at desc, id desc limit {limit}) w
    order by created_at, id limit 1";

    window_of_owner(stretch: One<'_, StretchColumns>, limit: i64, owner_kind: &str, owner_id: &str) =
    "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs where {in_order_of_owner}
        order by owner_kind desc, owner_id desc, created_at desc, id desc limit {limit}) w
    order by created_at, id limit 1";

    window_of_batch(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, limit: i64, batch: Uuid) =
    "select count(*) over () as looked_at, created_at, id from (
        select created_at, id from jobs where batch_id = {batch} and {in_order} and {may_see_batch}
        order by created_at desc, id desc limit {limit}) w
    order by created_at, id limit 1";

    /// What matches is looked for in a part of its own: asked for both at once, the planner may believe that so little
    /// matches that it is worth while to read another index from end to end.
    jobs(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, limit: i64) =
    "select {job}, null::text as result from (
        select * from jobs where {in_order} order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc limit {limit}";

    jobs_of_held(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, limit: i64) =
    "select {job}, null::text as result from (
        select * from jobs where {in_order} and held_reason is not null
        order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc limit {limit}";

    jobs_of_owner(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, limit: i64) =
    "select {job}, null::text as result from (
        select * from jobs where {in_order_of_owner} order by owner_kind desc, owner_id desc, created_at desc, id desc limit {most}) jobs
    where {matches} order by owner_kind desc, owner_id desc, created_at desc, id desc limit {limit}";

    jobs_of_batch(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, limit: i64) =
    "select {job}, null::text as result from (
        select * from jobs where batch_id = {batch} and {in_order} order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc limit {limit}";

    glances(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, outcomes: bool) =
    "select {glance} from (
        select * from jobs where {in_order} order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc";

    glances_of_held(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, outcomes: bool) =
    "select {glance} from (
        select * from jobs where {in_order} and held_reason is not null
        order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc";

    glances_of_owner(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, outcomes: bool) =
    "select {glance} from (
        select * from jobs where {in_order_of_owner} order by owner_kind desc, owner_id desc, created_at desc, id desc limit {most}) jobs
    where {matches} order by owner_kind desc, owner_id desc, created_at desc, id desc";

    glances_of_batch(filter: One<'_, Filter>, stretch: One<'_, StretchColumns>, most: i64, outcomes: bool) =
    "select {glance} from (
        select * from jobs where batch_id = {batch} and {in_order} order by created_at desc, id desc limit {most}) jobs
    where {matches} order by created_at desc, id desc";
}

#[async_trait]
impl JobLists for PostgresStore {
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
        let (one, stretch, most) = (One(&*filter), One(&window.stretch), to_limit(walk.most()));
        let query = match walk {
            Walk::All => sql::jobs(one, stretch, most, to_limit(limit)),
            Walk::Held => sql::jobs_of_held(one, stretch, most, to_limit(limit)),
            Walk::Owner(_) => sql::jobs_of_owner(one, stretch, most, to_limit(limit)),
            Walk::Batch(_) => sql::jobs_of_batch(one, stretch, most, to_limit(limit)),
        };
        let found = self.other.fetch(query.asked_by(principal.owner())).await?;
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
        let (one, stretch, most) = (One(&*filter), One(&window.stretch), to_limit(walk.most()));
        let query = match walk {
            Walk::All => sql::glances(one, stretch, most, outcomes),
            Walk::Held => sql::glances_of_held(one, stretch, most, outcomes),
            Walk::Owner(_) => sql::glances_of_owner(one, stretch, most, outcomes),
            Walk::Batch(_) => sql::glances_of_batch(one, stretch, most, outcomes),
        };
        let found = self.other.fetch(query.asked_by(principal.owner())).await?;
        window.looked(&found, usize::MAX, readable(&found, rows::glance))
    }
}

impl PostgresStore {
    /// The next jobs to look at, which are found in the index alone.
    async fn job_window(
        &self,
        principal: &Principal,
        filter: &JobFilter,
        walk: Walk<'_>,
        before: Option<Place>,
    ) -> Result<Option<Window>> {
        let stretch = filter.stretch(before);
        let query = window(principal, walk, &stretch).asked_by(principal.owner());
        let oldest = self.other.fetch_first(query).await?;
        Window::of(stretch, oldest.as_ref(), walk.most())
    }
}

fn window(principal: &Principal, walk: Walk<'_>, stretch: &Stretch) -> Bound<Postgres> {
    let (stretch, limit) = (One(stretch), to_limit(walk.most()));
    match walk {
        Walk::All => sql::window(stretch, limit),
        Walk::Held => sql::window_of_held(stretch, limit),
        Walk::Owner(owner) => sql::window_of_owner(stretch, limit, owner.kind().as_str(), owner.id()),
        Walk::Batch(batch) => sql::window_of_batch(One(principal), stretch, limit, batch.0),
    }
}
