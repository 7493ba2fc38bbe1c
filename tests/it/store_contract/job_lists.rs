//! Lists of jobs, which look at a bounded number of them.

use std::collections::{BTreeMap, BTreeSet};

use errand::{
    bounds::{MAX_LOOK, MAX_LOOK_SCATTERED},
    job::{AttemptOutcome, Effect, ErrorKind, HeldReason, JobId, Principal, State},
    store::{JobFilter, JobView, Looked, Statement, all_jobs, postgres::PostgresStore},
};
use jiff::SignedDuration;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::{
    OPERATOR, Place, TestStore, binding, connections::park, fail, hold, job, on_every_backend, succeed,
};

/// The places of what was found among these jobs.
fn places(found: &[JobView], specs: &[JobId]) -> Vec<usize> {
    found.iter().map(|view| specs.iter().position(|id| *id == view.spec.id).unwrap()).collect()
}

on_every_backend!(jobs_are_listed_newest_first_by_every_filter, async |t| {
    let specs = [
        job(json!({"tool": "A", "tags": {"team": "x", "a.b": "1"}})),
        job(json!({"tool": "B", "queue": "bulk", "version": "20260101_00", "effect": "safe"})),
        job(json!({"tool": "A", "org_id": "o", "tags": {"team": "x"}})),
        job(json!({"tool": "B", "org_id": "o"})),
        job(json!({"tool": "C"})),
        job(json!({"tool": "D"})),
        job(json!({"tool": "E"})),
    ];
    let ids: Vec<JobId> = specs.iter().map(|spec| spec.id).collect();
    for spec in &specs[..4] {
        t.insert(spec).await;
    }
    t.finish(&t.run(&specs[0]).await.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    let run = t.run(&specs[2]).await;
    t.store.bind(&[run.bind(&binding("20260202_00"))]).await.unwrap();
    t.claim(&park(&specs[4], "github")).await;
    t.finish(&t.run(&specs[5]).await.end(fail(), AttemptOutcome::ToolFailed)).await;
    t.finish(&t.run(&specs[6]).await.end(hold(), AttemptOutcome::Unknown)).await;

    let all = JobFilter::default;
    let tags = |tags: &[(&str, &str)]| -> BTreeMap<String, String> {
        tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let at = t.view(ids[2]).await.created_at;
    let error_kind = Some(ErrorKind::NeedsConnection);
    let reason = Some(HeldReason::Connection);
    for (filter, expected) in [
        (all(), vec![6, 5, 4, 3, 2, 1, 0]),
        (JobFilter { state: Some(State::Available), ..all() }, vec![3, 1]),
        (JobFilter { state: Some(State::Held), ..all() }, vec![6, 4]),
        (JobFilter { tool: Some("A".into()), ..all() }, vec![2, 0]),
        (JobFilter { owner: Some("org:o".parse().unwrap()), ..all() }, vec![3, 2]),
        (JobFilter { owner: Some("user:o".parse().unwrap()), ..all() }, vec![]),
        (JobFilter { queue: Some("bulk".parse().unwrap()), ..all() }, vec![1]),
        (JobFilter { toolkit: Some("github".into()), ..all() }, vec![4, 2]),
        (JobFilter { tags: tags(&[("team", "x")]), ..all() }, vec![2, 0]),
        (JobFilter { tags: tags(&[("team", "x"), ("a.b", "1")]), ..all() }, vec![0]),
        (JobFilter { tags: tags(&[("team", "y")]), ..all() }, vec![]),
        (JobFilter { since: Some(at), ..all() }, vec![6, 5, 4, 3, 2]),
        (JobFilter { until: Some(at), ..all() }, vec![1, 0]),
        (JobFilter { error_kind: Some(ErrorKind::ToolFailed), ..all() }, vec![5]),
        (JobFilter { error_kind, ..all() }, vec![4]),
        (JobFilter { held_reason: reason, ..all() }, vec![4]),
        (JobFilter { held_reason: reason, owner: Some("org:o".parse().unwrap()), ..all() }, vec![]),
        (JobFilter { outcome_unknown: true, ..all() }, vec![6]),
        (JobFilter { version: Some("20260202_00".into()), ..all() }, vec![2]),
        (JobFilter { version: Some("20260101_00".into()), ..all() }, vec![1]),
        (JobFilter { effect: Some(Effect::Safe), ..all() }, vec![1]),
        (JobFilter { effect: Some(Effect::Once), ..all() }, vec![2]),
        (
            JobFilter {
                owner: Some("org:o".parse().unwrap()),
                state: Some(State::Running),
                tool: Some("A".into()),
                ..all()
            },
            vec![2],
        ),
    ] {
        let found = t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap();
        assert_eq!(places(&found.items, &ids), expected, "{filter:?}");
        assert!(found.items.iter().all(|view| view.result.is_none()), "lists are without results");
        assert_eq!(found.next, None, "{filter:?}");
        let glances = t.store.glances(&Principal::Operator, &filter, None, true).await.unwrap().items;
        assert!(glances.iter().map(|job| job.id).eq(found.items.iter().map(|job| job.spec.id)), "{filter:?}");
    }
});

on_every_backend!(a_list_goes_on_where_it_ended, async |t| {
    // Those of one write have the same time.
    let specs: Vec<_> = (0..7).map(|_| job(json!({}))).collect();
    t.store.insert(&specs, std::time::Duration::ZERO).await.unwrap();
    for owner in [None, Some("user:u-1".parse().unwrap())] {
        let filter = JobFilter { owner, ..JobFilter::default() };
        let whole = t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap().items;
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let Looked { items, next, .. } =
                t.store.jobs(&Principal::Operator, &filter, before, 2).await.unwrap();
            assert!(items.len() <= 2);
            seen.extend(items.iter().map(|job| job.spec.id));
            before = next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 7);
        assert!(seen.iter().eq(whole.iter().map(|job| &job.spec.id)));
    }
});

on_every_backend!(a_list_looks_at_a_bounded_number_of_jobs_and_says_where_to_go_on, async |t| {
    let old = job(json!({"tool": "OLD", "user_id": "bulk"}));
    let held = job(json!({"tool": "OLD"}));
    t.insert(&old).await;
    t.finish(&t.run(&held).await.end(hold(), AttemptOutcome::Unknown)).await;
    let long_ago =
        if t.is_postgres() { "now() - interval '1 day'" } else { "(unixepoch() - 86400) * 1000000" };
    t.execute(&format!("update jobs set created_at = {long_ago}")).await;
    t.fill(2 * MAX_LOOK + 10).await;

    let filter = JobFilter { tool: Some("OLD".into()), ..JobFilter::default() };
    let of_owner = JobFilter { owner: Some("user:bulk".parse().unwrap()), ..filter.clone() };
    let all = 2 * MAX_LOOK as u64 + 10;
    for (filter, most, jobs, expected) in [
        (&filter, MAX_LOOK, all + 2, vec![old.id, held.id]),
        (&of_owner, MAX_LOOK_SCATTERED, all + 1, vec![old.id]),
    ] {
        let (mut looked_at, mut before, mut found) = (0, None, BTreeSet::new());
        loop {
            let page = t.store.jobs(&Principal::Operator, filter, before, 10).await.unwrap();
            looked_at += page.looked_at;
            found.extend(page.items.iter().map(|job| job.spec.id));
            let Some(next) = page.next else { break };
            assert_eq!((page.items.len(), page.looked_at), (0, most as u64), "{filter:?}");
            before = Some(next);
        }
        assert_eq!((looked_at, &found), (jobs, &expected.iter().copied().collect()), "{filter:?}");
        assert_eq!(
            all_jobs(&*t.store, &Principal::Operator, filter, 10).await.unwrap().len(),
            expected.len()
        );
        assert_eq!(
            t.store.glances(&Principal::Operator, filter, before, true).await.unwrap().items.len(),
            expected.len()
        );
    }
    // How far it looked is told in the order of creation.
    let first = t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap();
    let back = jiff::Timestamp::now().duration_since(first.next.unwrap().time().unwrap());
    let looked = SignedDuration::from_secs(MAX_LOOK as i64);
    assert!(back >= looked && back < looked + SignedDuration::from_mins(2), "{back:?}");
    // Held jobs are few among many, and found at once.
    for filter in [
        JobFilter { state: Some(State::Held), ..JobFilter::default() },
        JobFilter { held_reason: Some(HeldReason::UnknownOutcome), ..filter.clone() },
    ] {
        let found = t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap();
        assert_eq!((found.items.len(), found.looked_at, found.next), (1, 1, None), "{filter:?}");
    }
});

on_every_backend!(a_glance_says_what_became_of_the_last_call, async |t| {
    let run = t.run_bound(json!({})).await;
    t.finish(&run.end(fail(), AttemptOutcome::Unknown)).await;
    let done = t.in_state(State::Succeeded).await;
    let waiting = t.in_state(State::Available).await;
    let glances =
        t.store.glances(&Principal::Operator, &JobFilter::default(), None, true).await.unwrap().items;
    let of = |id: JobId| glances.iter().find(|job| job.id == id).unwrap();
    let (unknown, done, waiting) = (of(run.id), of(done), of(waiting));
    assert_eq!((unknown.last_outcome, unknown.may_have_acted), (Some(AttemptOutcome::Unknown), true));
    assert_eq!((unknown.effect, unknown.version.as_deref()), (Some(Effect::Once), Some("20260101_00")));
    assert!(unknown.finished_for.is_some());
    assert_eq!((done.last_outcome, done.may_have_acted), (Some(AttemptOutcome::Succeeded), false));
    assert_eq!((waiting.last_outcome, waiting.finished_for), (None, None));
    t.store.cancel(&Principal::Operator, waiting.id, OPERATOR).await.unwrap();
    let glances =
        t.store.glances(&Principal::Operator, &JobFilter::default(), None, false).await.unwrap().items;
    assert!(glances.iter().all(|job| job.last_outcome.is_none() && !job.may_have_acted));
});

/// Whatever the planner believes of the jobs, no list may read or sort the table.
#[tokio::test]
async fn lists_walk_an_index_of_the_order_of_creation() {
    let t = TestStore::postgres().await;
    t.fill(3 * MAX_LOOK).await;
    let Place::Postgres(database) = &t.place else { unreachable!("it was just made") };
    let mut db = database.connect().await.unwrap();
    db.execute("analyze jobs; set plan_cache_mode = force_generic_plan").await.unwrap();
    let mut seen = 0;
    for Statement { name, text, types } in PostgresStore::statements() {
        let walked = match *name {
            "window" | "jobs" | "glances" => "jobs_in_order",
            "window_of_held" | "jobs_of_held" | "glances_of_held" => "jobs_held_in_order",
            "window_of_owner" | "jobs_of_owner" | "glances_of_owner" => "jobs_owner_in_order",
            _ => continue,
        };
        seen += 1;
        db.execute(AssertSqlSafe(format!("prepare walk_{name} ({}) as {text}", types.join(", "))))
            .await
            .unwrap();
        let nulls = vec!["null"; types.len()].join(", ");
        let plan =
            db.fetch_all(AssertSqlSafe(format!("explain execute walk_{name} ({nulls})"))).await.unwrap();
        let plan: String = plan.iter().map(|row| row.get::<String, _>(0) + "\n").collect();
        assert!(plan.contains(&format!("using {walked} on jobs")), "{name}:\n{plan}");
        assert!(!plan.contains("Seq Scan on jobs"), "{name}:\n{plan}");
    }
    assert_eq!(seen, 9);
}
