//! What was finished or rejected long ago, and its removal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, Ending, EnvelopeReason, ErrorKind, JobId, JobSpec, Principal, State, Stop},
    store::{Conflict, Inserted, JobFilter, OldJob, OldMessage, Pending, Place, Rejected, Repeat, Which},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    FORCE, LEASE, OPERATOR, TestStore, error, hold, is_new, job, job_with_reply, on_every_backend, renamed,
    succeed,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

impl TestStore {
    /// Makes all jobs and messages older.
    pub(crate) async fn age(&self, days: u32) {
        let earlier = |column: &str| {
            if self.is_postgres() {
                format!("{column} = {column} - interval '{days} days'")
            } else {
                format!("{column} = {column} - {days} * 86400000000")
            }
        };
        self.execute(&format!("update jobs set {}, {}", earlier("created_at"), earlier("finished_at"))).await;
        self.execute(&format!("update rejected set {}", earlier("received_at"))).await;
    }

    /// All jobs of a walk, in its order, with pages of this many rows.
    async fn walk(&self, which: &Which, rows: usize) -> Vec<OldJob> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.old_jobs(which, after, rows).await.unwrap();
            assert!(page.items.len() <= rows);
            all.extend(page.items);
            after = page.end;
            if after.is_none() {
                return all;
            }
        }
    }

    async fn old(&self, id: JobId) -> OldJob {
        let all = self.walk(&EVERYTHING, 100).await;
        all.into_iter().find(|job| job.id == id).unwrap()
    }

    async fn messages(&self, rows: usize) -> Vec<OldMessage> {
        let (mut all, mut before): (_, Option<Place>) = (Vec::new(), None);
        loop {
            let page = self.store.old_messages(before, rows).await.unwrap();
            all.extend(page.items);
            before = page.end;
            if before.is_none() {
                return all;
            }
        }
    }

    async fn rows_of(&self, table: &str, column: &str, id: JobId) -> i64 {
        self.count(&format!("select count(*) from {table} where {column} = {}", self.literal(id))).await
    }
}

const EVERYTHING: Which = Which { owner: None, age: Duration::ZERO };

fn ids(jobs: &[OldJob]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

fn message(n: u128, body: &[u8]) -> Rejected {
    Rejected {
        id: Uuid::from_u128(n),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "no".into(),
        body: body.to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    }
}

on_every_backend!(a_walk_reads_every_job_once_in_the_order_of_creation, async |t| {
    assert!(t.walk(&EVERYTHING, 3).await.is_empty());
    // The ten of a batch are created in the same instant.
    let mut specs: Vec<Arc<JobSpec>> = (0..10).map(|_| job(json!({}))).collect();
    t.store.insert(&specs, LEASE).await.unwrap();
    let later = job(json!({}));
    t.insert(&later).await;
    specs.sort_by_key(|spec| spec.id);
    let mut expected: Vec<JobId> = specs.iter().map(|spec| spec.id).collect();
    expected.push(later.id);
    for rows in [1, 3, 11, 100] {
        assert_eq!(ids(&t.walk(&EVERYTHING, rows).await), expected, "{rows} rows a page");
    }
    // Of one owner, and only what is old enough.
    let other = job(json!({"org_id": "org"}));
    t.insert(&other).await;
    let of_owner = Which { owner: Some(other.owner.clone()), age: Duration::ZERO };
    assert_eq!(ids(&t.walk(&of_owner, 1).await), [other.id]);
    let old = Which { owner: None, age: DAY };
    assert!(t.walk(&old, 10).await.is_empty());
    t.age(1).await;
    assert_eq!(t.walk(&old, 10).await.len(), 12);
    // What was removed meanwhile does not disturb the walk.
    let first = t.store.old_jobs(&EVERYTHING, None, 5).await.unwrap();
    t.execute(&format!("delete from jobs where id = {}", t.literal(expected[4]))).await;
    let second = t.store.old_jobs(&EVERYTHING, first.end, 5).await.unwrap();
    assert_eq!(ids(&second.items), expected[5..10]);
});

on_every_backend!(a_walk_says_what_each_job_is_and_what_keeps_it, async |t| {
    for state in State::ALL {
        let id = t.in_state(*state).await;
        let old = t.old(id).await;
        assert_eq!((old.state, old.may_go()), (*state, state.is_final()), "{state}");
        assert_eq!(old.finished_for.is_some(), state.is_final(), "{state}");
    }
    t.age(3).await;
    let done = t.in_state(State::Succeeded).await;
    t.age(2).await;
    let since = t.old(done).await.finished_for.unwrap();
    assert!((2 * DAY..2 * DAY + LEASE).contains(&since), "{since:?}");

    let replying = job_with_reply(json!({}), Some("replies"));
    let run = t.run(&replying).await;
    t.finish(&run.end(succeed(r#"{"much":"of it"}"#), AttemptOutcome::Succeeded)).await;
    let old = t.old(replying.id).await;
    assert_eq!((old.pending, old.may_go()), (Some(Pending::Reply), false));
    assert!(old.bytes >= 16, "{}", old.bytes);
    t.store.replied(&[replying.id]).await.unwrap();
    assert!(t.old(replying.id).await.may_go());

    let unknown = t.run(&job(json!({}))).await;
    let verify = Ending::Verify { after: LEASE, error: error(ErrorKind::UnknownOutcome) };
    t.finish(&unknown.end(verify, AttemptOutcome::Unknown)).await;
    t.store.cancel(&Principal::Operator, unknown.id, OPERATOR).await.unwrap();
    let old = t.old(unknown.id).await;
    assert_eq!((old.state, old.pending), (State::Cancelled, Some(Pending::LookUp)));
    assert!(t.store.remove_jobs(&[old]).await.unwrap().is_empty());
});

on_every_backend!(a_job_goes_with_its_attempts_its_history_and_its_key, async |t| {
    let spec = job(json!({"idempotency_key": "k"}));
    let run = t.run(&spec).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    t.store.release(&Principal::Operator, spec.id, errand::job::Release::Failed, OPERATOR).await.unwrap();
    let stays = t.in_state(State::Failed).await;
    for (table, column) in [("attempts", "job_id"), ("job_history", "job_id"), ("jobs", "id")] {
        assert!(t.rows_of(table, column, spec.id).await > 0, "{table}");
    }
    let old = t.old(spec.id).await;
    assert_eq!(t.store.remove_jobs(std::slice::from_ref(&old)).await.unwrap(), [spec.id]);
    for (table, column) in [("attempts", "job_id"), ("job_history", "job_id"), ("jobs", "id")] {
        assert_eq!(t.rows_of(table, column, spec.id).await, 0, "{table}");
    }
    assert_eq!(t.rows_of("attempts", "job_id", stays).await, 1, "the neighbour stays");
    assert!(t.store.remove_jobs(&[old]).await.unwrap().is_empty(), "again");
    assert!(t.store.remove_jobs(&[]).await.unwrap().is_empty());
    // The ID and the key are free again.
    assert!(is_new(&t.insert(&spec).await, State::Available));
    // A late report of what is gone leaves nothing.
    t.execute("delete from jobs").await;
    t.finish(&run.end(succeed("{}"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.rows_of("attempts", "job_id", spec.id).await, 0);
});

on_every_backend!(an_id_and_a_key_mean_nothing_any_more_when_their_job_is_gone, async |t| {
    let first = job(json!({"idempotency_key": "k"}));
    let (id, again) = (first.id.to_string(), renamed(&first));
    let body = job(json!({"id": id, "tool": "OTHER"}));
    let owner = job(json!({"id": id, "org_id": "org"}));
    let key = job(json!({"idempotency_key": "k", "tool": "OTHER"}));
    t.insert(&first).await;
    t.store.note_repeats(&[Repeat { job: first.id, id: again.id, asked: None }]).await.unwrap();
    let taken = [t.insert(&body).await, t.insert(&owner).await, t.insert(&key).await];
    assert_eq!(
        taken,
        [Conflict::Body, Conflict::Owner, Conflict::Key { first: Some(first.id) }].map(Inserted::Conflict)
    );
    t.store.cancel(&Principal::Operator, first.id, OPERATOR).await.unwrap();
    assert_eq!(t.store.remove_jobs(&[t.old(first.id).await]).await.unwrap(), [first.id]);
    for spec in [&body, &owner, &key, &again, &first] {
        assert!(is_new(&t.insert(spec).await, State::Available));
        assert_eq!(t.view(spec.id).await.spec.tool, spec.tool);
        t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
        assert_eq!(t.store.remove_jobs(&[t.old(spec.id).await]).await.unwrap(), [spec.id]);
    }
});

on_every_backend!(a_job_that_changed_since_it_was_seen_stays, async |t| {
    let retried = t.in_state(State::Failed).await;
    let seen = t.old(retried).await;
    t.store.restart(&Principal::Operator, retried, OPERATOR, FORCE).await.unwrap();
    assert!(t.store.remove_jobs(std::slice::from_ref(&seen)).await.unwrap().is_empty(), "it waits");
    t.store.cancel(&Principal::Operator, retried, OPERATOR).await.unwrap();
    assert!(t.store.remove_jobs(&[seen]).await.unwrap().is_empty(), "it ended anew");
    assert_eq!(t.store.remove_jobs(&[t.old(retried).await]).await.unwrap(), [retried]);
    for state in State::ALL.iter().filter(|state| !state.is_final()) {
        let id = t.in_state(*state).await;
        let seen = t.old(id).await;
        assert!(t.store.remove_jobs(&[seen]).await.unwrap().is_empty(), "{state}");
    }
});

on_every_backend!(jobs_are_removed_as_they_were_glanced_at, async |t| {
    let [kept, retried, gone] = [
        t.in_state(State::Failed).await,
        t.in_state(State::Failed).await,
        t.in_state(State::Cancelled).await,
    ];
    let waiting = t.in_state(State::Scheduled).await;
    let seen = t.store.glances(&Principal::Operator, &JobFilter::default(), None, false).await.unwrap().items;
    let seen: Vec<_> = seen.iter().map(|job| job.seen).collect();
    assert_eq!(seen.len(), 4);
    t.store.restart(&Principal::Operator, retried, OPERATOR, FORCE).await.unwrap();
    t.store.cancel(&Principal::Operator, retried, OPERATOR).await.unwrap();
    let other = Principal::Owner("org:u-1".parse().unwrap());
    assert!(t.store.seen_jobs(&other, &seen).await.unwrap().is_empty(), "they are of others");
    let mut found = ids(&t.store.seen_jobs(&Principal::Operator, &seen).await.unwrap());
    found.sort();
    assert_eq!(found, [kept, gone], "one has ended anew, one has not ended");
    let only: Vec<_> = seen.into_iter().filter(|job| [gone, waiting].contains(&job.id)).collect();
    let old = t.store.seen_jobs(&Principal::Operator, &only).await.unwrap();
    assert_eq!(t.store.remove_jobs(&old).await.unwrap(), [gone]);
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_somebody_has_locked_stays_and_keeps_nobody_waiting() {
    let t = TestStore::postgres().await;
    let (locked, free) = (t.in_state(State::Failed).await, t.in_state(State::Failed).await);
    let seen = t.walk(&EVERYTHING, 10).await;
    let lock = t.lock(&format!("select 1 from jobs where id = '{locked}' for update")).await;
    assert_eq!(t.store.remove_jobs(&seen).await.unwrap(), [free]);
    drop(lock);
}

on_every_backend!(rejected_messages_are_walked_from_the_newest_and_removed, async |t| {
    assert!(t.messages(2).await.is_empty());
    for n in 1..=5 {
        t.store.reject(&[message(n, &vec![b'x'; usize::try_from(n).unwrap() * 10])]).await.unwrap();
    }
    t.store.mark_requeued(&Principal::Operator, Uuid::from_u128(2), OPERATOR, None).await.unwrap();
    t.age(3).await;
    for rows in [1, 2, 5, 10] {
        let all = t.messages(rows).await;
        let found: Vec<_> = all.iter().map(|message| (message.id.as_u128(), message.bytes)).collect();
        assert_eq!(found, [(5, 50), (4, 40), (3, 30), (2, 20), (1, 10)], "{rows} rows a page");
        assert!(all.iter().all(|message| (3 * DAY..3 * DAY + LEASE).contains(&message.age)));
    }
    let mut some = t.messages(10).await;
    some.retain(|message| message.id.as_u128() <= 3);
    t.store.reject(&[message(3, b"again")]).await.unwrap();
    let mut gone = t.store.remove_messages(&some).await.unwrap();
    gone.sort();
    assert_eq!(gone, [1, 2].map(Uuid::from_u128), "one has come again");
    assert!(t.store.remove_messages(&some).await.unwrap().is_empty());
    assert_eq!(t.messages(10).await.len(), 3);
});

on_every_backend!(other_ids_of_jobs_that_are_gone_are_swept_page_by_page, async |t| {
    let kept = t.in_state(State::Failed).await;
    let quiet = |job, id| Repeat { job, id, asked: None };
    for _ in 0..3 {
        t.store.note_repeats(&[quiet(kept, JobId::new())]).await.unwrap();
    }
    // As a build leaves them that removes jobs and does not know of other IDs.
    for _ in 0..3 {
        let gone = t.in_state(State::Cancelled).await;
        let repeats: Vec<Repeat> = (0..2).map(|_| quiet(gone, JobId::new())).collect();
        t.store.note_repeats(&repeats).await.unwrap();
        t.execute("delete from jobs where state = 'cancelled'").await;
    }
    let (mut after, mut pages) = (None, 0);
    loop {
        after = t.store.sweep_other_ids(after, 4).await.unwrap();
        if after.is_none() {
            break;
        }
        pages += 1;
    }
    assert_eq!(pages, 3, "nine of them");
    assert_eq!(t.store.known_as(&Principal::Operator, kept).await.unwrap().len(), 3);
    assert_eq!(t.count("select count(*) from known_as").await, 3);
});

on_every_backend!(an_owners_awaited_connections_are_forgotten_unless_jobs_wait, async |t| {
    let connect = || -> Ending {
        Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
    };
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(connect(), AttemptOutcome::Interrupted)).await;
    assert_eq!(t.store.forget_awaited(&spec.owner).await.unwrap(), 0, "a job waits");
    t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    let other = job(json!({"org_id": "org"}));
    assert_eq!(t.store.forget_awaited(&other.owner).await.unwrap(), 0, "another's");
    assert_eq!(t.store.forget_awaited(&spec.owner).await.unwrap(), 1);
    assert_eq!(t.count("select count(*) from awaited").await, 0);
});

/// Every table, and what keeps it from growing for ever.
const BOUNDS: &[(&str, &str)] = &[
    ("jobs", "maintenance::prune, by [retention]"),
    ("attempts", "go with their job; a job has as many as its budget and its postponements"),
    ("job_history", "goes with its job"),
    ("rejected", "maintenance::prune, by days, count and bytes"),
    ("answers", "the relay, when they are published or given up; go with their job or message"),
    (
        "known_as",
        "go with their job, which has up to bounds::MAX_ALIASES; maintenance::prune sweeps the rest",
    ),
    ("claims", "Leases::forget_workers, when nothing of them runs"),
    ("changes", "maintenance::prune, by retention.audit_log_days"),
    ("events", "maintenance::prune, by retention.events_days"),
    ("event_inbox", "whoever reads or removes events, maintenance::prune among them, moves what is there"),
    ("event_listeners", "one for each store::EventListener"),
    ("event_positions", "one row"),
    ("tasks", "one for each store::Task"),
    ("job_inbox", "the relay, which makes jobs of what is there"),
    ("sealing_secret", "one row"),
    ("workers", "Leases::forget_workers, some time after the last beat"),
    ("awaited", "Connections::take_awaited, when no job waits"),
    ("pins", "as many as people set"),
    (
        "actions",
        "bounds::MAX_OPEN_ACTIONS and MAX_ENDED_ACTIONS of an owner; maintenance::prune, some time after their end",
    ),
    ("paused_queues", "one for each queue of the settings, at most"),
    ("access_keys_required", "one row"),
    ("access_keys", "bounds::MAX_KEYS valid ones of an owner; AccessKeys::add_key removes ended ones"),
    (
        "batches",
        "maintenance::prune, as long after their completion as jobs are kept; open ones are sealed after a week",
    ),
    ("batch_parts", "go with their batch, which has up to bounds::MAX_BATCH_PARTS"),
    ("callbacks", "one for each owner of whom events are sent; maintenance::erase"),
    ("receivers", "with the last of their deliveries"),
    ("deliveries", "maintenance::prune, by retention.events_days; each is sent for two days at most"),
    ("_sqlx_migrations", "a row for each migration of a build"),
    ("sqlite_sequence", "a row for each table that numbers its rows"),
];

on_every_backend!(every_table_has_a_bound, async |t| {
    let tables = if t.is_postgres() {
        "from pg_class where relkind in ('r', 'p') and relnamespace = current_schema()::regnamespace"
    } else {
        "from sqlite_master where type = 'table'"
    };
    let name = if t.is_postgres() { "relname::text" } else { "name" };
    let bounds: BTreeMap<&str, &str> = BOUNDS.iter().copied().collect();
    let known = bounds.keys().map(|table| format!("'{table}'")).collect::<Vec<_>>().join(", ");
    let unbounded = t.count(&format!("select count(*) {tables} and {name} not in ({known})")).await;
    assert_eq!(unbounded, 0, "a table is new: say in BOUNDS what keeps it from growing for ever");
    let known = t.count(&format!("select count(*) {tables}")).await;
    assert!(known >= 9, "{known} tables");
});
