//! The guarantees of `errand::store`, each tested on every backend.

use std::{
    collections::HashSet,
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use errand::{
    clock,
    job::{
        Arrival, Attempt, AttemptOutcome, Binding, Effect, Ending, EnvelopeReason, ErrorKind, Fence,
        HeldReason, JobError, JobId, JobSpec, LookResult, Owner, PinnedBy, QueueName, Release, RequestId,
        State, Stop, Transition, WorkerId, decode, encode,
    },
    store::{
        AuditLimits, Awaited, Bind, By, Claim, ClaimReceipt, Claimed, Conflict, Decided, Finding,
        FindingKind, Finish, Finished, HeldFilter, Inserted, JobFilter, JobView, MAX_UNCLAIMED_WAIT, PinRow,
        PutOff, Rejected, Schema, SharedStore, StoreErrorKind,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json, value::RawValue};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    harness::PATIENCE,
    support::{self, wait::until},
};

/// Runs every function of the list on every backend.
macro_rules! on_every_backend {
    ($($name:ident,)*) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                Box::pin(super::$name(super::Bench::postgres().await)).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                Box::pin(super::$name(super::Bench::sqlite().await)).await;
            })*
        }
    };
}

on_every_backend! {
    an_inserted_job_is_available_or_scheduled_by_the_stores_clock,
    an_insert_repeated_changes_nothing,
    an_insert_with_another_meaning_is_a_conflict,
    an_idempotency_key_belongs_to_one_owner_and_one_body,
    an_unknown_job_is_inserted_and_claimed_in_one_step,
    a_claim_repeated_gets_its_first_answer,
    a_known_job_is_claimed_with_the_next_fence_and_attempt,
    a_claim_of_another_meaning_is_a_conflict,
    a_claim_with_a_used_idempotency_key_is_a_duplicate_or_a_conflict,
    a_job_that_is_not_available_is_a_duplicate,
    a_relayed_job_that_was_removed_is_gone,
    a_claim_before_its_time_is_scheduled_and_one_after_its_time_fails,
    a_job_made_due_by_a_person_runs_before_its_time,
    a_refused_job_fails_and_a_held_job_is_parked,
    a_job_that_cannot_be_counted_any_further_ends_and_no_other_with_it,
    counts_stay_at_their_maximum,
    what_was_frozen_first_wins,
    the_first_claim_of_a_batch_wins,
    exactly_one_of_concurrent_claims_wins,
    a_freeze_counts_only_under_the_current_fence,
    an_ending_leads_to_its_state,
    an_unknown_outcome_is_looked_up_until_it_is_told_or_a_person_decides,
    a_decision_ends_the_looking_up,
    jobs_that_wait_for_the_same_connection_are_asked_about_together,
    an_awaited_connection_is_given_to_one_process,
    a_connection_that_is_there_lets_its_jobs_go_in_pages,
    a_connection_is_doubted_after_a_call_was_refused_with_it,
    a_connection_that_nobody_waits_for_is_forgotten,
    a_job_waits_for_a_connection_until_its_time_has_passed,
    held_jobs_are_released_by_a_filter,
    a_first_attempt_that_succeeds_is_an_attempt_like_any_other,
    a_finish_repeated_gets_its_first_answer,
    a_finish_under_an_old_fence_only_records_its_attempt,
    a_late_result_counts_while_nobody_has_claimed_since,
    a_late_result_is_not_charged_twice,
    a_late_result_of_a_cancelled_job_is_fenced,
    a_rescue_leaves_living_workers_alone,
    a_rescue_that_missed_the_freeze_changes_nothing,
    a_rescue_that_comes_after_the_result_changes_nothing,
    a_running_job_that_was_cancelled_does_not_run_again,
    a_value_that_cannot_be_stored_is_refused_alone,
    what_was_asked_for_comes_back_unchanged,
    a_batch_of_512_large_results_is_finished_at_once,
    dropped_futures_do_no_harm,
    due_jobs_come_by_priority_and_then_by_time,
    a_due_job_is_given_to_one_process,
    an_unclaimed_job_comes_back_after_ever_longer_waits,
    a_job_that_could_not_be_published_comes_back_when_asked,
    all_available_jobs_can_be_published_again,
    the_next_due_time_is_known,
    a_reply_is_offered_until_it_is_published,
    the_jobs_of_lost_workers_are_found,
    idle_workers_are_forgotten,
    an_audit_sees_every_job_once_and_finds_nothing_in_a_sound_store,
    a_running_job_without_a_worker_is_found_and_made_findable,
    a_running_job_that_outlives_its_timeout_is_found,
    what_is_overdue_is_found,
    a_job_that_nobody_claims_is_found_and_made_due,
    attempts_without_an_outcome_are_found,
    rows_that_break_a_rule_are_found_and_left_alone,
    the_eldest_living_worker_is_known,
    what_succeeded_by_a_call_is_told_from_what_a_person_said,
    a_decision_obeys_the_transitions_in_every_state,
    a_restarted_job_has_a_fresh_budget,
    a_released_job_shows_what_a_person_decided,
    a_running_attempt_is_listed_without_an_outcome,
    jobs_are_listed_newest_first_by_every_filter,
    a_census_counts_what_is_not_final,
    pins_are_set_replaced_and_removed,
    a_rejected_message_seen_again_is_the_same_row,
    a_rejection_that_cannot_be_kept_can_be_kept_without_its_texts,
    migrations_run_once_however_many_start_them,
    the_schema_is_compared_with_this_build,
    missing_tables_are_a_schema_error,
    a_closed_store_says_that_it_is_unavailable,
    random_histories_keep_the_rules,
}

// ---------------------------------------------------------------------------------------------
// The bench.

/// An empty store, seen from two processes.
struct Bench {
    store: SharedStore,
    other: SharedStore,
    worker: WorkerId,
    place: Place,
}

enum Place {
    Postgres(support::postgres::Database),
    Sqlite(TempDir),
}

impl Bench {
    async fn postgres() -> Self {
        let bench = Self::bare_postgres().await;
        bench.store.migrate().await.unwrap();
        bench
    }

    async fn bare_postgres() -> Self {
        let database = support::postgres::shared().await.database("contract").await;
        let open = || Arc::new(PostgresStore::new(postgres_options(&database.url)).unwrap());
        Self { store: open(), other: open(), worker: WorkerId::new(), place: Place::Postgres(database) }
    }

    async fn sqlite() -> Self {
        let bench = Self::bare_sqlite();
        bench.store.migrate().await.unwrap();
        bench
    }

    fn bare_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(sqlite(&dir, clock::system()));
        Self { store: open(), other: open(), worker: WorkerId::new(), place: Place::Sqlite(dir) }
    }

    /// A store without tables beside this one.
    async fn bare(&self) -> Self {
        match &self.place {
            Place::Postgres(_) => Self::bare_postgres().await,
            Place::Sqlite(_) => Self::bare_sqlite(),
        }
    }

    /// Does what errand never does.
    async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Postgres(database) => {
                database.connect().await.execute(sql).await.unwrap();
            }
            Place::Sqlite(dir) => {
                let url = format!("sqlite://{}", dir.path().join("errand.db").display());
                SqliteConnection::connect(&url).await.unwrap().execute(sql).await.unwrap();
            }
        }
    }

    /// The ID of a job as it stands in a statement.
    fn literal(&self, id: JobId) -> String {
        match &self.place {
            Place::Postgres(_) => format!("'{id}'"),
            Place::Sqlite(_) => format!("x'{}'", id.0.simple()),
        }
    }

    async fn insert(&self, spec: &Arc<JobSpec>) -> Inserted {
        one(self.store.insert(std::slice::from_ref(spec), Duration::ZERO).await.unwrap())
    }

    async fn claim(&self, claim: &Claim) -> Claimed {
        one(self.store.claim(self.worker, std::slice::from_ref(claim)).await.unwrap())
    }

    /// Claims a job that can be claimed.
    async fn run(&self, spec: &Arc<JobSpec>) -> Held {
        let claim = claim(spec);
        let receipt = running(self.claim(&claim).await);
        Held { id: spec.id, request_id: claim.request_id, receipt }
    }

    async fn finish(&self, finish: &Finish) -> Finished {
        one(self.store.finish(std::slice::from_ref(finish)).await.unwrap())
    }

    async fn view(&self, id: JobId) -> JobView {
        self.store.job(id).await.unwrap().unwrap()
    }

    async fn state(&self, id: JobId) -> State {
        self.view(id).await.state
    }

    async fn outcomes(&self, id: JobId) -> Vec<Option<AttemptOutcome>> {
        self.store.attempts(id).await.unwrap().into_iter().map(|attempt| attempt.outcome).collect()
    }

    /// Takes everything that is due, as the relay does.
    async fn publish(&self) {
        self.store.take_due(100, Duration::from_secs(60)).await.unwrap();
    }

    /// A job in the given state, which has had an attempt where the state allows it.
    async fn in_state(&self, state: State) -> JobId {
        let spec = match state {
            State::Scheduled => job(json!({"run_at": in_hours(1)})),
            _ => job(json!({})),
        };
        match state {
            State::Scheduled | State::Available => {
                self.insert(&spec).await;
            }
            State::Running => {
                self.run(&spec).await;
            }
            State::Retryable => {
                let held = self.run(&spec).await;
                self.finish(&held.end(retry(Duration::from_secs(60)), AttemptOutcome::ToolFailed)).await;
            }
            State::Held => {
                let held = self.run(&spec).await;
                self.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
            }
            State::Succeeded => {
                let held = self.run(&spec).await;
                self.finish(&held.end(succeed("{}"), AttemptOutcome::Succeeded)).await;
            }
            State::Failed => {
                let held = self.run(&spec).await;
                self.finish(&held.end(fail(), AttemptOutcome::ToolFailed)).await;
            }
            State::Cancelled => {
                self.insert(&spec).await;
                self.store.cancel(spec.id).await.unwrap();
            }
        }
        assert_eq!(self.state(spec.id).await, state);
        spec.id
    }
}

fn postgres_options(url: &str) -> PostgresOptions {
    PostgresOptions {
        url: url.to_owned().into(),
        hot_connections: 3,
        other_connections: 2,
        application_name: "errand-tests".into(),
        statement_timeout: Duration::from_secs(20),
    }
}

fn sqlite(dir: &TempDir, clock: clock::SharedClock) -> SqliteStore {
    SqliteStore::new(SqliteOptions { path: dir.path().join("errand.db"), clock }).unwrap()
}

/// A claim that runs.
struct Held {
    id: JobId,
    request_id: RequestId,
    receipt: ClaimReceipt,
}

impl Held {
    fn end(&self, ending: Ending, outcome: AttemptOutcome) -> Finish {
        let attempt = Attempt {
            number: self.receipt.attempt,
            request_id: self.request_id,
            outcome,
            http_status: Some(200),
            log_id: Some(format!("log-{outcome}")),
            version: Some("20260101_00".into()),
            error: ending.error().cloned(),
            started_at: Timestamp::now(),
            finished_at: Timestamp::now(),
        };
        Finish { id: self.id, fence: self.receipt.fence, by: By::Holder, attempt, ending }
    }

    fn rescue(&self, ending: Ending) -> Finish {
        Finish {
            by: By::Rescuer { lease: Duration::from_secs(30) },
            ..self.end(ending, AttemptOutcome::Lost)
        }
    }

    fn bind(&self, binding: &Binding) -> Bind {
        Bind { id: self.id, fence: self.receipt.fence, binding: binding.clone() }
    }
}

/// A job of `u-1` with the given fields.
fn job(fields: Value) -> Arc<JobSpec> {
    job_with_reply(fields, None)
}

fn job_with_reply(fields: Value, reply_to: Option<&str>) -> Arc<JobSpec> {
    let mut envelope = json!({"user_id": "u-1", "tool": "GITHUB_GET_REPO", "arguments": {"name": "errand"}});
    for (name, value) in fields.as_object().unwrap() {
        envelope[name] = value.clone();
    }
    if !envelope["org_id"].is_null() {
        envelope.as_object_mut().unwrap().remove("user_id");
    }
    let queue = envelope["queue"].as_str().unwrap_or("default").parse().unwrap();
    from_json(&envelope.to_string(), &queue, reply_to)
}

fn from_json(envelope: &str, queue: &QueueName, reply_to: Option<&str>) -> Arc<JobSpec> {
    let arrival = Arrival {
        queue,
        message_id: None,
        reply_to,
        correlation_id: reply_to.map(|_| "c-1"),
        traceparent: None,
        fallback_id: Some(JobId::new()),
    };
    Arc::new(decode(envelope.as_bytes(), &arrival).unwrap())
}

/// The same job with another ID.
fn renamed(spec: &JobSpec) -> Arc<JobSpec> {
    Arc::new(JobSpec { id: JobId::new(), ..spec.clone() })
}

fn claim(spec: &Arc<JobSpec>) -> Claim {
    Claim {
        spec: Arc::clone(spec),
        request_id: RequestId::new(),
        binding: None,
        stop: None,
        from_store: false,
    }
}

fn binding(version: &str) -> Binding {
    Binding {
        toolkit: "github".into(),
        version: version.into(),
        pinned_by: PinnedBy::Global,
        account: Some("ca_1".into()),
        effect: Effect::Once,
    }
}

fn succeed(result: &str) -> Ending {
    Ending::Succeed { result: raw(result) }
}

fn fail() -> Ending {
    Stop::Fail { error: error(ErrorKind::ToolFailed) }.into()
}

fn retry(after: Duration) -> Ending {
    Ending::Retry { after, error: error(ErrorKind::ToolFailed) }
}

fn hold() -> Ending {
    Stop::Hold { reason: HeldReason::UnknownOutcome, error: error(ErrorKind::UnknownOutcome) }.into()
}

fn error(kind: ErrorKind) -> JobError {
    JobError::new(kind, "it did not work").with_code(Some(4711), Some("Tool_Failed".into()))
}

fn raw(json: &str) -> Arc<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap().into()
}

/// Stores keep microseconds.
fn in_hours(hours: i64) -> String {
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap();
    (now + SignedDuration::from_hours(hours)).to_string()
}

fn one<T>(mut answers: Vec<T>) -> T {
    assert_eq!(answers.len(), 1, "one answer for one item");
    answers.remove(0)
}

fn running(claimed: Claimed) -> ClaimReceipt {
    match claimed {
        Claimed::Running(receipt) => receipt,
        other => panic!("not running: {other:?}"),
    }
}

fn applied(state: State) -> Finished {
    Finished::Applied { state, late: false }
}

fn late(state: State) -> Finished {
    Finished::Applied { state, late: true }
}

const LEASE: Duration = Duration::from_secs(30);

// ---------------------------------------------------------------------------------------------
// Insert.

async fn an_inserted_job_is_available_or_scheduled_by_the_stores_clock(t: Bench) {
    for (fields, state) in [
        (json!({}), State::Available),
        (json!({"run_at": in_hours(-1)}), State::Available),
        (json!({"run_at": in_hours(1)}), State::Scheduled),
    ] {
        let spec = job(fields);
        assert_eq!(t.insert(&spec).await, Inserted::New { state });
        let view = t.view(spec.id).await;
        assert_eq!(view.state, state);
        assert_eq!((view.attempt, view.spent), (0, 0));
        if state == State::Scheduled {
            assert_eq!(view.due_at, spec.run_at);
        } else {
            assert_eq!(view.due_at, Some(view.created_at), "the relay looks at once");
        }
    }
    let spec = job(json!({}));
    let wait = Duration::from_secs(60);
    t.store.insert(std::slice::from_ref(&spec), wait).await.unwrap();
    let view = t.view(spec.id).await;
    assert_eq!(view.due_at, Some(view.created_at + wait));
    assert!(t.store.insert(&[], wait).await.unwrap().is_empty());
}

async fn an_insert_repeated_changes_nothing(t: Bench) {
    let spec = job(json!({}));
    let batch = [Arc::clone(&spec), Arc::clone(&spec)];
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    let duplicate = Inserted::Duplicate { id: spec.id, state: State::Available };
    assert_eq!(answers, [Inserted::New { state: State::Available }, duplicate.clone()]);
    let first = t.view(spec.id).await;
    assert_eq!(t.insert(&spec).await, duplicate);
    assert_eq!(t.view(spec.id).await.due_at, first.due_at);
    t.run(&spec).await;
    assert_eq!(t.insert(&spec).await, Inserted::Duplicate { id: spec.id, state: State::Running });
}

async fn an_insert_with_another_meaning_is_a_conflict(t: Bench) {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let body = job(json!({"id": spec.id.to_string(), "tool": "OTHER"}));
    let owner = job(json!({"id": spec.id.to_string(), "org_id": "u-1"}));
    assert_eq!(t.insert(&body).await, Inserted::Conflict(Conflict::Body));
    assert_eq!(t.insert(&owner).await, Inserted::Conflict(Conflict::Owner));
    assert_eq!(t.view(spec.id).await.spec.tool, spec.tool);
}

async fn an_idempotency_key_belongs_to_one_owner_and_one_body(t: Bench) {
    let first = job(json!({"idempotency_key": "k"}));
    let same = renamed(&first);
    let other = job(json!({"idempotency_key": "k", "tool": "OTHER"}));
    let org = job(json!({"idempotency_key": "k", "org_id": "u-1"}));
    let mut batch = vec![first.clone(), same.clone(), other.clone(), org];
    let answers = t.store.insert(&batch[..1], Duration::ZERO).await.unwrap();
    assert_eq!(answers, [Inserted::New { state: State::Available }]);
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    let duplicate = Inserted::Duplicate { id: first.id, state: State::Available };
    assert_eq!(answers[0], duplicate);
    assert_eq!(answers[1], duplicate, "the first job stands for the second");
    assert_eq!(answers[2], Inserted::Conflict(Conflict::Key));
    assert_eq!(answers[3], Inserted::New { state: State::Available });
    assert!(t.store.job(same.id).await.unwrap().is_none());
    assert!(t.store.job(other.id).await.unwrap().is_none());

    // Two of one batch, of which neither was known.
    batch = vec![job(json!({"idempotency_key": "k2"}))];
    batch.push(renamed(&batch[0]));
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Inserted::New { .. })).count(), 1);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Inserted::Duplicate { .. })).count(), 1);
}

// ---------------------------------------------------------------------------------------------
// Claim.

async fn an_unknown_job_is_inserted_and_claimed_in_one_step(t: Bench) {
    let spec = job(json!({}));
    let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
    let receipt = running(t.claim(&offered).await);
    assert_eq!((receipt.fence, receipt.attempt, receipt.spent), (Fence(1), 1, 0));
    assert_eq!(receipt.binding, Some(binding("1")));
    let view = t.view(spec.id).await;
    assert_eq!(view.state, State::Running);
    assert_eq!(view.created_at, receipt.created_at);
    assert_eq!(view.binding, Some(binding("1")));
    assert_eq!((view.attempt, view.spent, view.due_at), (1, 0, None));
    assert!(view.started_at.is_some());
    assert!(t.store.claim(t.worker, &[]).await.unwrap().is_empty());
}

async fn a_claim_repeated_gets_its_first_answer(t: Bench) {
    let specs: Vec<_> = (0..4).map(|n| job(json!({"priority": n}))).collect();
    let later = job(json!({"run_at": in_hours(1)}));
    t.insert(&specs[1]).await;
    let batch = [
        Claim { binding: Some(binding("1")), ..claim(&specs[0]) },
        Claim { from_store: true, ..claim(&specs[1]) },
        Claim { stop: Some(Stop::Fail { error: error(ErrorKind::InvalidJob) }), ..claim(&specs[2]) },
        Claim {
            stop: Some(Stop::Hold {
                reason: HeldReason::Connection,
                error: error(ErrorKind::NeedsConnection),
            }),
            ..claim(&specs[3])
        },
        claim(&later),
    ];
    let first = t.store.claim(t.worker, &batch).await.unwrap();
    let second = t.store.claim(t.worker, &batch).await.unwrap();
    for (first, second) in first.iter().zip(&second) {
        match (first, second) {
            (Claimed::Running(first), Claimed::Running(second)) => {
                assert!(second.age >= first.age);
                assert_eq!(*first, ClaimReceipt { age: first.age, ..second.clone() });
            }
            (first, second) => assert_eq!(format!("{first:?}"), format!("{second:?}")),
        }
    }
    assert!(matches!(first[2], Claimed::Ended { state: State::Failed, kind: ErrorKind::InvalidJob }));
    assert!(matches!(first[3], Claimed::Ended { state: State::Held, kind: ErrorKind::NeedsConnection }));
    assert!(matches!(first[4], Claimed::Scheduled));

    // The same request ID in the hands of another worker is not the same claim.
    let other = one(t.store.claim(WorkerId::new(), &batch[..1]).await.unwrap());
    assert!(matches!(other, Claimed::Duplicate { state: State::Running }));
}

async fn a_known_job_is_claimed_with_the_next_fence_and_attempt(t: Bench) {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let first = t.run(&spec).await;
    assert_eq!((first.receipt.fence, first.receipt.attempt), (Fence(1), 1));
    t.finish(&first.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let relayed = Claim { from_store: true, ..claim(&spec) };
    let second = running(t.claim(&relayed).await);
    assert_eq!((second.fence, second.attempt, second.spent), (Fence(2), 2, 1));
    assert_eq!(second.created_at, first.receipt.created_at);
    assert!(second.age > Duration::ZERO);
    assert_eq!(t.view(spec.id).await.error.map(|error| error.kind()), Some(ErrorKind::ToolFailed));
}

async fn a_claim_of_another_meaning_is_a_conflict(t: Bench) {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let body = claim(&job(json!({"id": spec.id.to_string(), "tool": "OTHER"})));
    let owner = claim(&job(json!({"id": spec.id.to_string(), "user_id": "u-2"})));
    for known in [false, true] {
        let answer = t.claim(&Claim { from_store: known, ..body.clone() }).await;
        assert!(matches!(answer, Claimed::Conflict(Conflict::Body)), "{answer:?}");
        let answer = t.claim(&Claim { from_store: known, ..owner.clone() }).await;
        assert!(matches!(answer, Claimed::Conflict(Conflict::Owner)), "{answer:?}");
    }
    assert_eq!(t.state(spec.id).await, State::Available);
}

async fn a_claim_with_a_used_idempotency_key_is_a_duplicate_or_a_conflict(t: Bench) {
    let spec = job(json!({"idempotency_key": "k"}));
    t.run(&spec).await;
    let answer = t.claim(&claim(&renamed(&spec))).await;
    assert!(matches!(answer, Claimed::Duplicate { state: State::Running }), "{answer:?}");
    let other = job(json!({"idempotency_key": "k", "tool": "OTHER"}));
    let answer = t.claim(&claim(&other)).await;
    assert!(matches!(answer, Claimed::Conflict(Conflict::Key)), "{answer:?}");
    assert!(t.store.job(other.id).await.unwrap().is_none());
}

async fn a_job_that_is_not_available_is_a_duplicate(t: Bench) {
    for state in State::ALL.iter().copied().filter(|state| *state != State::Available) {
        let id = t.in_state(state).await;
        let spec = t.view(id).await.spec;
        let before = format!("{:?}", t.view(id).await);
        for known in [false, true] {
            let answer = t.claim(&Claim { from_store: known, ..claim(&spec) }).await;
            assert!(matches!(answer, Claimed::Duplicate { state: is } if is == state), "{state}: {answer:?}");
        }
        assert_eq!(format!("{:?}", t.view(id).await), before);
    }
}

async fn a_relayed_job_that_was_removed_is_gone(t: Bench) {
    let spec = job(json!({}));
    let answer = t.claim(&Claim { from_store: true, ..claim(&spec) }).await;
    assert!(matches!(answer, Claimed::Gone), "{answer:?}");
    assert!(t.store.job(spec.id).await.unwrap().is_none());
}

async fn a_claim_before_its_time_is_scheduled_and_one_after_its_time_fails(t: Bench) {
    let later = job(json!({"run_at": in_hours(1)}));
    assert!(matches!(t.claim(&claim(&later)).await, Claimed::Scheduled));
    let view = t.view(later.id).await;
    assert_eq!((view.state, view.due_at, view.attempt), (State::Scheduled, later.run_at, 0));

    let expired = job_with_reply(json!({"expires_at": in_hours(-1)}), Some("replies"));
    let known = renamed(&expired);
    t.insert(&known).await;
    for spec in [expired, known] {
        let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
        let answer = t.claim(&offered).await;
        assert!(
            matches!(answer, Claimed::Ended { state: State::Failed, kind: ErrorKind::Expired }),
            "{answer:?}"
        );
        let view = t.view(spec.id).await;
        assert_eq!((view.state, view.attempt, view.binding), (State::Failed, 0, None));
        assert_eq!(view.error.map(|error| error.kind()), Some(ErrorKind::Expired));
        assert!(view.finished_at.is_some());
    }
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 2, "its app is told");
}

async fn a_job_made_due_by_a_person_runs_before_its_time(t: Bench) {
    let spec = job(json!({"run_at": in_hours(1)}));
    t.insert(&spec).await;
    assert_eq!(t.store.restart(spec.id).await.unwrap(), Decided::Now(State::Available));
    t.publish().await;
    running(t.claim(&Claim { from_store: true, ..claim(&spec) }).await);
}

async fn a_refused_job_fails_and_a_held_job_is_parked(t: Bench) {
    let refuse = Stop::Fail { error: error(ErrorKind::OwnerRefused) };
    let hold = Stop::Hold { reason: HeldReason::Unidentified, error: error(ErrorKind::UnknownOutcome) };
    for known in [false, true] {
        for (stop, state) in [(&refuse, State::Failed), (&hold, State::Held)] {
            // The stop comes before schedule and expiry.
            let spec = job_with_reply(json!({"expires_at": in_hours(-1)}), Some("replies"));
            if known {
                t.insert(&spec).await;
            }
            let judged = Claim { stop: Some(stop.clone()), from_store: known, ..claim(&spec) };
            let answer = t.claim(&judged).await;
            assert!(matches!(answer, Claimed::Ended { state: is, .. } if is == state), "{answer:?}");
            let view = t.view(spec.id).await;
            assert_eq!((view.state, view.attempt, view.due_at), (state, 0, None));
            assert_eq!(view.error.unwrap().code(), Some(4711));
            assert_eq!(view.held_reason, (state == State::Held).then_some(HeldReason::Unidentified));
            let replies = t.store.take_replies(10, LEASE).await.unwrap();
            assert_eq!(replies.len(), usize::from(state == State::Failed));
        }
    }
}

async fn a_job_that_cannot_be_counted_any_further_ends_and_no_other_with_it(t: Bench) {
    let (tired, fenced, good) = (job_with_reply(json!({}), Some("replies")), job(json!({})), job(json!({})));
    for (spec, columns) in [
        (&tired, "attempt = 2147483647, error_kind = 'tool_failed', error_message = 'busy'"),
        (&fenced, "fence = 9223372036854775807"),
        (&good, "attempt = 2147483646, fence = 9223372036854775806"),
    ] {
        t.insert(spec).await;
        t.execute(&format!("update jobs set {columns} where id = {}", t.literal(spec.id))).await;
    }
    // One that may not run anyway is told why not.
    let refused = job(json!({}));
    t.insert(&refused).await;
    t.execute(&format!("update jobs set attempt = 2147483647 where id = {}", t.literal(refused.id))).await;
    let refusal = Stop::Fail { error: error(ErrorKind::Unpinned) };
    let batch = [
        claim(&tired),
        claim(&good),
        Claim { from_store: true, ..claim(&fenced) },
        Claim { stop: Some(refusal), ..claim(&refused) },
    ];
    let answers = t.store.claim(t.worker, &batch).await.unwrap();
    let ended = |answer: &Claimed, expected: ErrorKind| matches!(answer, Claimed::Ended { state: State::Failed, kind } if *kind == expected);
    assert!(ended(&answers[0], ErrorKind::Internal), "{answers:?}");
    assert!(ended(&answers[2], ErrorKind::Internal), "{answers:?}");
    assert!(ended(&answers[3], ErrorKind::Unpinned), "{answers:?}");
    let Claimed::Running(receipt) = &answers[1] else { panic!("{answers:?}") };
    assert_eq!((receipt.attempt, receipt.fence), (2_147_483_647, Fence(i64::MAX)));
    let again = t.store.claim(t.worker, &batch).await.unwrap();
    assert!(ended(&again[0], ErrorKind::Internal), "a repetition gets the same answer: {again:?}");
    let again = running(again[1].clone());
    assert_eq!((again.attempt, again.fence), (receipt.attempt, receipt.fence));

    let view = t.view(tired.id).await;
    let told = view.error.as_ref().unwrap().message();
    assert!(told.contains("another `id`") && told.ends_with("its last error: busy"), "{told}");
    assert!(view.finished_at.is_some() && view.due_at.is_none());
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1);
    assert!(t.store.take_due(10, LEASE).await.unwrap().is_empty());

    // Run again by a person, it ends again.
    assert_eq!(t.store.restart(tired.id).await.unwrap(), Decided::Now(State::Available));
    assert!(ended(&t.claim(&claim(&tired)).await, ErrorKind::Internal));
    let held = Held { id: good.id, request_id: batch[1].request_id, receipt: receipt.clone() };
    assert_eq!(
        t.finish(&held.end(succeed("{}"), AttemptOutcome::Succeeded)).await,
        applied(State::Succeeded)
    );
    assert_eq!(t.store.attempts(good.id).await.unwrap()[0].number, 2_147_483_647);
}

async fn counts_stay_at_their_maximum(t: Bench) {
    const MAX: u32 = i32::MAX.unsigned_abs();
    let set = async |spec: &JobSpec, columns: &str| {
        t.execute(&format!("update jobs set {columns} where id = {}", t.literal(spec.id))).await;
    };
    // Publications.
    let (published, other) = (job(json!({})), job(json!({})));
    t.insert(&published).await;
    t.insert(&other).await;
    set(&published, "published = 2147483647").await;
    for _ in 0..2 {
        assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
        t.store.defer(&[published.id, other.id], Duration::ZERO).await.unwrap();
        set(&published, "published = 2147483647").await;
    }

    // Attempts that count, ended in time and late.
    let spent = job(json!({}));
    let held = t.run(&spent).await;
    set(&spent, "attempt = 2147483647, spent = 2147483647").await;
    let mut finish = held.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed);
    finish.attempt.number = MAX;
    let good = t.run(&job(json!({}))).await.end(succeed("{}"), AttemptOutcome::Succeeded);
    let answers = t.store.finish(&[finish, good]).await.unwrap();
    assert_eq!(answers, [applied(State::Retryable), applied(State::Succeeded)]);
    assert_eq!(t.view(spent.id).await.spent, MAX);
    let mut late_finish = held.end(fail(), AttemptOutcome::ToolFailed);
    late_finish.attempt.number = MAX;
    late_finish.attempt.outcome = AttemptOutcome::Refused;
    assert_eq!(t.finish(&late_finish).await, late(State::Failed));
    assert_eq!(t.view(spent.id).await.spent, MAX);

    // Looks into the log.
    let looked = t.run(&job(json!({}))).await;
    let undecided = Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) };
    t.finish(&looked.end(undecided, AttemptOutcome::Unknown)).await;
    t.execute(&format!("update jobs set checks = 2147483647 where id = {}", t.literal(looked.id))).await;
    let put_off = PutOff {
        id: looked.id,
        fence: looked.receipt.fence,
        again_after: Some(Duration::ZERO),
        look: LookResult::Unclear,
        detail: None,
        error: error(ErrorKind::UnknownOutcome),
    };
    assert!(t.store.put_off(&put_off).await.unwrap());
    assert_eq!(one(t.store.take_checks(10, LEASE).await.unwrap()).checks, MAX);

    // Looks for connections, and jobs that wait for them.
    let connect = || -> Ending {
        Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
    };
    let waiting = t.run(&job(json!({}))).await;
    t.finish(&waiting.end(connect(), AttemptOutcome::Interrupted)).await;
    t.execute("update awaited set looks = 2147483647, parked = 9223372036854775807").await;
    let more = t.run(&job(json!({}))).await;
    assert_eq!(t.finish(&more.end(connect(), AttemptOutcome::Interrupted)).await, applied(State::Held));
    let found = awaited(&t).await;
    t.store.put_off_awaited(&found, Duration::ZERO, false).await.unwrap();
    let found = awaited(&t).await;
    assert_eq!(found.looks, MAX);
    assert_eq!(t.store.release_awaited(&found, 10).await.unwrap(), 2);

    // Deliveries of what is no job.
    let message = Rejected {
        id: Uuid::from_u128(1),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "no".into(),
        body: b"x".to_vec(),
        properties: "{}".into(),
    };
    t.store.reject(std::slice::from_ref(&message)).await.unwrap();
    t.execute("update rejected set seen = 2147483646").await;
    for _ in 0..2 {
        t.store.reject(&[message.clone(), message.clone()]).await.unwrap();
        assert_eq!(one(t.store.rejected(10).await.unwrap()).seen, MAX);
    }
}

async fn what_was_frozen_first_wins(t: Bench) {
    let spec = job(json!({}));
    let first = Claim { binding: Some(binding("1")), ..claim(&spec) };
    let receipt = running(t.claim(&first).await);
    let held = Held { id: spec.id, request_id: first.request_id, receipt };
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let second = Claim { binding: Some(binding("2")), from_store: true, ..claim(&spec) };
    assert_eq!(running(t.claim(&second).await).binding, Some(binding("1")));

    let spec = job(json!({}));
    t.insert(&spec).await;
    let offered = Claim { binding: Some(binding("3")), ..claim(&spec) };
    assert_eq!(running(t.claim(&offered).await).binding, Some(binding("3")), "nothing was frozen before");
}

async fn the_first_claim_of_a_batch_wins(t: Bench) {
    let (new, known) = (job(json!({})), job(json!({})));
    t.insert(&known).await;
    let other = job(json!({"id": new.id.to_string(), "tool": "OTHER"}));
    let first = claim(&new);
    let batch = [first.clone(), claim(&known), claim(&new), claim(&known), first.clone(), claim(&other)];
    let answers = t.store.claim(t.worker, &batch).await.unwrap();
    assert_eq!(running(answers[0].clone()).fence, Fence(1));
    assert_eq!(running(answers[1].clone()).fence, Fence(1));
    for answer in &answers[2..5] {
        assert!(matches!(answer, Claimed::Duplicate { state: State::Running }), "{answer:?}");
    }
    assert!(matches!(answers[5], Claimed::Conflict(Conflict::Body)), "{:?}", answers[5]);
}

async fn exactly_one_of_concurrent_claims_wins(t: Bench) {
    for known in [false, true] {
        let specs: Vec<_> = (0..40).map(|_| job(json!({}))).collect();
        if known {
            t.store.insert(&specs, Duration::ZERO).await.unwrap();
        }
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let store = Arc::clone(if n % 2 == 0 { &t.store } else { &t.other });
                let mut batch: Vec<Claim> = specs.iter().map(claim).collect();
                if n >= 2 {
                    batch.reverse();
                }
                tokio::spawn(async move {
                    let answers = store.claim(WorkerId::new(), &batch).await.unwrap();
                    let won = batch.iter().zip(answers).filter(|(_, answer)| match answer {
                        Claimed::Running(_) => true,
                        Claimed::Duplicate { state: State::Running } => false,
                        other => panic!("{other:?}"),
                    });
                    won.map(|(claim, _)| claim.spec.id).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut won = Vec::new();
        for task in tasks {
            won.extend(task.await.unwrap());
        }
        assert_eq!(won.len(), specs.len());
        assert_eq!(won.iter().collect::<HashSet<_>>().len(), specs.len());
    }
}

// ---------------------------------------------------------------------------------------------
// Freeze and finish.

async fn a_freeze_counts_only_under_the_current_fence(t: Bench) {
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    let bind = held.bind(&binding("1"));
    let stale = Bind { fence: Fence(0), ..bind.clone() };
    let unknown = Bind { id: JobId::new(), ..bind.clone() };
    let answers = t.store.bind(&[stale, bind.clone(), unknown]).await.unwrap();
    assert_eq!(answers, [false, true, false]);
    assert_eq!(t.view(spec.id).await.binding, Some(binding("1")));
    assert_eq!(t.store.bind(&[bind]).await.unwrap(), [true], "a repetition gets the same answer");
    assert_eq!(t.store.bind(&[held.bind(&binding("2"))]).await.unwrap(), [false], "it never changes");
    assert_eq!(t.view(spec.id).await.binding, Some(binding("1")));
    let bare = Binding { account: None, ..binding("1") };
    let held = t.run(&job(json!({}))).await;
    assert_eq!(t.store.bind(&[held.bind(&bare), held.bind(&bare)]).await.unwrap(), [true, true]);
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    assert_eq!(t.store.bind(&[held.bind(&bare)]).await.unwrap(), [false], "it is not held any more");
    assert!(t.store.bind(&[]).await.unwrap().is_empty());
}

async fn a_first_attempt_that_succeeds_is_an_attempt_like_any_other(t: Bench) {
    let spec = job(json!({}));
    let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
    let held =
        Held { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) };
    let finish = held.end(succeed("1"), AttemptOutcome::Succeeded);
    for _ in 0..2 {
        assert_eq!(t.finish(&finish).await, applied(State::Succeeded), "a repetition gets the same answer");
    }
    assert_eq!(t.finish(&held.rescue(retry(LEASE))).await, Finished::Fenced);
    let other = held.end(fail(), AttemptOutcome::ToolFailed);
    assert_eq!(t.finish(&other).await, Finished::Fenced, "it was definite");
    let view = t.view(spec.id).await;
    assert_eq!((view.state, view.spent, view.attempt), (State::Succeeded, 1, 1));
    let attempt = one(t.store.attempts(spec.id).await.unwrap());
    assert_eq!((attempt.number, attempt.request_id), (1, held.request_id));
    assert_eq!((attempt.outcome, attempt.http_status), (Some(AttemptOutcome::Succeeded), Some(200)));
    assert_eq!((attempt.log_id, attempt.version), (finish.attempt.log_id, finish.attempt.version));
    assert_eq!((attempt.error, attempt.finished_at), (None, view.finished_at));
}

fn verify(after: Duration) -> Ending {
    Ending::Verify { after, error: error(ErrorKind::UnknownOutcome) }
}

async fn an_unknown_outcome_is_looked_up_until_it_is_told_or_a_person_decides(t: Bench) {
    assert!(t.store.known_success().await.unwrap().is_none());
    let (now, later) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    t.finish(&now.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    t.finish(&later.end(verify(LEASE), AttemptOutcome::Unknown)).await;
    assert_eq!(t.view(now.id).await.held_reason, Some(HeldReason::UnknownOutcome));

    let check = one(t.store.take_checks(10, LEASE).await.unwrap());
    assert_eq!((check.job.spec.id, check.request_id), (now.id, now.request_id));
    assert_eq!((check.fence, check.checks, check.job.attempt), (now.receipt.fence, 0, 1));
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty(), "it is taken");

    let put_off = |again_after| PutOff {
        id: now.id,
        fence: now.receipt.fence,
        again_after,
        look: LookResult::Unclear,
        detail: None,
        error: error(ErrorKind::UnknownOutcome),
    };
    assert!(!t.store.put_off(&PutOff { fence: Fence(9), ..put_off(None) }).await.unwrap());
    assert!(t.store.put_off(&put_off(Some(Duration::ZERO))).await.unwrap());
    assert_eq!(one(t.store.take_checks(10, LEASE).await.unwrap()).checks, 1);
    assert!(t.store.put_off(&put_off(None)).await.unwrap());
    assert!(!t.store.put_off(&put_off(Some(Duration::ZERO))).await.unwrap(), "a person decides now");
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());
    assert_eq!(t.state(now.id).await, State::Held);

    // What the log told is a late result of the same claim.
    let told = Attempt { http_status: None, ..later.end(succeed("1"), AttemptOutcome::Succeeded).attempt };
    let told = Finish { attempt: told, ..later.end(succeed("1"), AttemptOutcome::Succeeded) };
    let answer = Finished::Applied { state: State::Succeeded, late: true };
    assert_eq!(t.finish(&told).await, answer);
    assert_eq!(t.finish(&told).await, answer, "a repetition gets the same answer");
    let view = t.view(later.id).await;
    assert_eq!((view.state, view.spent, view.held_reason), (State::Succeeded, 1, None));
    assert_eq!(t.outcomes(later.id).await, [Some(AttemptOutcome::Succeeded)]);

    let spec = job(json!({}));
    let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
    let held =
        Held { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) };
    t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.store.known_success().await.unwrap(), Some(held.request_id));
}

async fn a_decision_ends_the_looking_up(t: Bench) {
    let unknown = async || {
        let held = t.run(&job(json!({}))).await;
        t.finish(&held.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
        held.id
    };
    t.store.release(unknown().await, Release::Retry).await.unwrap();
    t.store.release(unknown().await, Release::Succeeded).await.unwrap();
    t.store.release(unknown().await, Release::Failed).await.unwrap();
    t.store.cancel(unknown().await).await.unwrap();
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());

    // A job that somebody called off while it ran is not looked up either.
    let held = t.run(&job(json!({}))).await;
    t.store.cancel(held.id).await.unwrap();
    t.finish(&held.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    assert_eq!(t.state(held.id).await, State::Cancelled);
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());
}

/// Held because the toolkit has to be connected, in the ways in which that can happen.
fn connect(toolkit: &str) -> Ending {
    Stop::Connect { toolkit: toolkit.into(), error: error(ErrorKind::NeedsConnection) }.into()
}

fn park(spec: &Arc<JobSpec>, toolkit: &str) -> Claim {
    let stop = Stop::Connect { toolkit: toolkit.into(), error: error(ErrorKind::NeedsConnection) };
    Claim { stop: Some(stop), ..claim(spec) }
}

async fn jobs_that_wait_for_the_same_connection_are_asked_about_together(t: Bench) {
    let (new, known) = (job(json!({})), job(json!({})));
    t.insert(&known).await;
    let parked = [park(&new, "github"), park(&known, "github")];
    for answer in t.store.claim(t.worker, &parked).await.unwrap() {
        assert!(matches!(answer, Claimed::Ended { state: State::Held, kind: ErrorKind::NeedsConnection }));
    }
    for ending in [connect("github"), connect("github")] {
        let held = t.run(&job(json!({}))).await;
        assert_eq!(t.finish(&held.end(ending, AttemptOutcome::Refused)).await, applied(State::Held));
    }
    let others = [
        (job(json!({})), "gmail"),
        (job(json!({"org_id": "u-1"})), "github"),
        (job(json!({"connected_account_id": "ca_1"})), "github"),
    ];
    for (spec, toolkit) in &others {
        t.claim(&park(spec, toolkit)).await;
    }
    // What was rescued meanwhile, called off while it ran, or held for something else.
    let late_one = t.run(&job(json!({"user_id": "u-2"}))).await;
    t.finish(&late_one.rescue(retry(Duration::ZERO))).await;
    assert_eq!(t.finish(&late_one.end(connect("slack"), AttemptOutcome::Refused)).await, late(State::Held));
    let called_off = t.run(&job(json!({"user_id": "u-3"}))).await;
    t.store.cancel(called_off.id).await.unwrap();
    t.finish(&called_off.end(connect("slack"), AttemptOutcome::Refused)).await;
    t.claim(&Claim {
        stop: Some(Stop::Hold { reason: HeldReason::Connection, error: error(ErrorKind::NeedsConnection) }),
        ..claim(&job(json!({"user_id": "u-4"})))
    })
    .await;

    let taken = t.store.take_awaited(10, LEASE).await.unwrap();
    let mut seen: Vec<_> =
        taken.iter().map(|a| (a.owner.to_string(), &*a.toolkit, a.account.as_deref(), a.looks)).collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            ("org:u-1".to_owned(), "github", None, 0),
            ("user:u-1".to_owned(), "github", None, 0),
            ("user:u-1".to_owned(), "github", Some("ca_1"), 0),
            ("user:u-1".to_owned(), "gmail", None, 0),
            ("user:u-2".to_owned(), "slack", None, 0),
        ]
    );
    assert_eq!(t.store.census().await.unwrap().held, [(HeldReason::Connection, 9)]);
}

/// The only connection that is awaited.
async fn awaited(t: &Bench) -> Awaited {
    one(t.store.take_awaited(10, Duration::ZERO).await.unwrap())
}

async fn an_awaited_connection_is_given_to_one_process(t: Bench) {
    for n in 0..20 {
        t.claim(&park(&job(json!({"user_id": format!("u-{n}")})), "github")).await;
    }
    let (here, there) = tokio::join!(t.store.take_awaited(12, LEASE), t.other.take_awaited(12, LEASE));
    let (here, there) = (here.unwrap(), there.unwrap());
    let rest = t.store.take_awaited(20, LEASE).await.unwrap();
    let owners: HashSet<String> =
        here.iter().chain(&there).chain(&rest).map(|awaited| awaited.owner.to_string()).collect();
    assert_eq!((here.len() + there.len() + rest.len(), owners.len()), (20, 20), "each once");
    assert!(t.store.take_awaited(20, LEASE).await.unwrap().is_empty());

    t.store.put_off_awaited(&here[0], Duration::ZERO, true).await.unwrap();
    t.store.put_off_awaited(&here[1], LEASE, true).await.unwrap();
    let again = awaited(&t).await;
    assert_eq!((&again.owner, again.looks), (&here[0].owner, 1));
    assert_eq!(awaited(&t).await.looks, 1, "what was taken and not decided is taken again");
}

async fn a_connection_that_is_there_lets_its_jobs_go_in_pages(t: Bench) {
    let mut ids = Vec::new();
    for n in 0..5 {
        let spec = job(json!({"arguments": {"n": n}}));
        t.claim(&park(&spec, "github")).await;
        ids.push(spec.id);
    }
    let stranger = job(json!({"user_id": "u-2"}));
    t.claim(&park(&stranger, "github")).await;
    let named = job(json!({"connected_account_id": "ca_1"}));
    let offered = Claim { binding: Some(binding("1")), ..claim(&named) };
    let held =
        Held { id: named.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) };
    t.finish(&held.end(connect("github"), AttemptOutcome::Refused)).await;

    let all = t.store.take_awaited(10, Duration::ZERO).await.unwrap();
    let of = |owner: &str, account| {
        all.iter().find(|a| a.owner.to_string() == owner && a.account.as_deref() == account).unwrap()
    };
    let mine = of("user:u-1", None);
    assert_eq!(t.store.release_awaited(mine, 2).await.unwrap(), 2);
    for (place, id) in ids.iter().enumerate() {
        let state = if place < 2 { State::Available } else { State::Held };
        assert_eq!(t.state(*id).await, state, "oldest first");
    }
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2, "they are due");
    assert_eq!(t.store.release_awaited(mine, 2).await.unwrap(), 2);
    assert_eq!(t.store.release_awaited(mine, 2).await.unwrap(), 1);
    assert_eq!(t.store.release_awaited(mine, 2).await.unwrap(), 0);
    assert_eq!(t.state(stranger.id).await, State::Held);
    let view = t.view(ids[0]).await;
    assert_eq!((view.held_reason, view.attempt, view.spent), (None, 0, 0));

    assert_eq!(t.store.release_awaited(of("user:u-1", Some("ca_1")), 9).await.unwrap(), 1);
    assert_eq!(t.view(named.id).await.binding.unwrap().account.as_deref(), Some("ca_1"), "the job named it");
    assert_eq!(awaited(&t).await.owner.to_string(), "user:u-2", "the others are not awaited any more");
}

async fn a_connection_is_doubted_after_a_call_was_refused_with_it(t: Bench) {
    let refused = async || {
        let spec = job(json!({}));
        let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
        let held =
            Held { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) };
        t.finish(&held.end(connect("github"), AttemptOutcome::Refused)).await;
        spec.id
    };
    t.claim(&park(&job(json!({})), "github")).await;
    assert_eq!(awaited(&t).await.doubted, None);
    let id = refused().await;
    let doubted = awaited(&t).await;
    assert_eq!(doubted.doubted.as_deref(), Some("ca_1"));
    t.claim(&park(&job(json!({})), "github")).await;
    t.store.put_off_awaited(&doubted, Duration::ZERO, false).await.unwrap();
    assert!(awaited(&t).await.doubted.is_some(), "another job was held meanwhile");
    t.store.put_off_awaited(&awaited(&t).await, Duration::ZERO, true).await.unwrap();
    assert!(awaited(&t).await.doubted.is_some());
    t.store.put_off_awaited(&awaited(&t).await, Duration::ZERO, false).await.unwrap();
    assert_eq!(awaited(&t).await.doubted, None);
    assert_eq!(t.store.release_awaited(&awaited(&t).await, 9).await.unwrap(), 3);
    assert_eq!(t.view(id).await.binding.unwrap().account, None, "the new connection is another account");
}

async fn a_connection_that_nobody_waits_for_is_forgotten(t: Bench) {
    let specs = [job(json!({})), job(json!({})), job(json!({}))];
    for spec in &specs {
        t.claim(&park(spec, "github")).await;
    }
    t.store.release(specs[0].id, Release::Retry).await.unwrap();
    t.store.release(specs[1].id, Release::Failed).await.unwrap();
    let before = awaited(&t).await;
    t.store.cancel(specs[2].id).await.unwrap();
    assert!(t.store.take_awaited(10, Duration::ZERO).await.unwrap().is_empty());

    // One that is held while the last one goes is awaited like the first.
    t.claim(&park(&job(json!({})), "github")).await;
    assert_eq!(t.store.release_awaited(&before, 10).await.unwrap(), 0, "that was another wait");
    assert_eq!(t.store.release_awaited(&awaited(&t).await, 10).await.unwrap(), 1);
    let parked: Vec<_> = (0..40).map(|_| park(&job(json!({})), "github")).collect();
    for pair in parked.chunks(2) {
        let (first, second) = (t.store.claim(t.worker, &pair[..1]), t.other.claim(t.worker, &pair[1..]));
        let release = async {
            for awaited in t.store.take_awaited(1, Duration::ZERO).await.unwrap() {
                t.store.release_awaited(&awaited, 10).await.unwrap();
            }
        };
        let (first, second, ()) = tokio::join!(first, second, release);
        first.unwrap();
        second.unwrap();
    }
    while let [left] = &t.store.take_awaited(1, Duration::ZERO).await.unwrap()[..] {
        t.store.release_awaited(left, 10).await.unwrap();
    }
    assert!(t.store.census().await.unwrap().held.is_empty(), "no job is held without being awaited");
}

async fn a_job_waits_for_a_connection_until_its_time_has_passed(t: Bench) {
    let jobs = [
        (json!({"max_age_ms": 1}), true),
        (json!({"expires_at": in_hours(-1)}), true),
        (json!({"expires_at": in_hours(1), "max_age_ms": 1}), true),
        (json!({"expires_at": in_hours(-1), "max_age_ms": 3_600_000}), true),
        (json!({"expires_at": in_hours(1), "max_age_ms": 3_600_000}), false),
        (json!({}), false),
    ];
    let mut specs = Vec::new();
    for (fields, passes) in &jobs {
        for called in [false, true] {
            let spec = job_with_reply(fields.clone(), Some("replies"));
            if called {
                let mut first = claim(&spec);
                // A job that has expired is not claimed any more.
                if fields["expires_at"].as_str().is_some_and(|at| at < in_hours(0).as_str()) {
                    first = park(&spec, "github");
                }
                match t.claim(&first).await {
                    Claimed::Running(receipt) => {
                        let held = Held { id: spec.id, request_id: first.request_id, receipt };
                        t.finish(&held.end(connect("github"), AttemptOutcome::Refused)).await;
                    }
                    answer => {
                        assert!(matches!(answer, Claimed::Ended { state: State::Held, .. }), "{answer:?}")
                    }
                }
            } else {
                t.claim(&park(&spec, "github")).await;
            }
            specs.push((spec.id, *passes));
        }
    }
    let due = specs.iter().filter(|(_, passes)| *passes).count() as u64;
    let mut expired = 0;
    crate::support::wait::until("the short ages have passed", LEASE, async || {
        expired += t.store.expire_awaiting(3).await.unwrap();
        (expired == due).then_some(())
    })
    .await;
    assert_eq!(t.store.expire_awaiting(10).await.unwrap(), 0);
    for (id, passes) in specs {
        let view = t.view(id).await;
        assert_eq!(view.state, if passes { State::Failed } else { State::Held });
        let error = view.error.unwrap();
        assert_eq!(error.kind(), ErrorKind::NeedsConnection);
        assert_eq!(
            error.message().contains("passed before the account was connected: it did"),
            passes,
            "{error:?}"
        );
    }
    assert_eq!(t.store.take_replies(20, LEASE).await.unwrap().len() as u64, due);
}

async fn held_jobs_are_released_by_a_filter(t: Bench) {
    let held = async |fields: Value, toolkit: &str| {
        let spec = job(fields);
        t.claim(&park(&spec, toolkit)).await;
        spec.id
    };
    let mine = held(json!({}), "github").await;
    let mail = held(json!({}), "gmail").await;
    let others = held(json!({"org_id": "u-1"}), "github").await;
    let unknown = t.in_state(State::Held).await;
    let filter = |owner: Option<&str>, toolkit: Option<&str>| HeldFilter {
        reason: HeldReason::Connection,
        owner: owner.map(|owner| owner.parse().unwrap()),
        toolkit: toolkit.map(str::to_owned),
    };
    for (filter, matching) in [
        (filter(None, None), 3),
        (filter(Some("user:u-1"), None), 2),
        (filter(None, Some("github")), 2),
        (filter(Some("user:u-1"), Some("github")), 1),
        (filter(Some("user:u-2"), None), 0),
        (HeldFilter { reason: HeldReason::UnknownOutcome, ..filter(None, None) }, 1),
    ] {
        assert_eq!(t.store.count_held(&filter).await.unwrap(), matching, "{filter:?}");
    }
    let one_owner = filter(Some("user:u-1"), None);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, 1).await.unwrap(), 1);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, 5).await.unwrap(), 1);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, 5).await.unwrap(), 0);
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
    assert_eq!((t.state(mine).await, t.state(mail).await), (State::Available, State::Available));
    assert_eq!((t.state(others).await, t.state(unknown).await), (State::Held, State::Held));

    let unknown_ones = HeldFilter { reason: HeldReason::UnknownOutcome, ..filter(None, None) };
    t.store.release_held(&unknown_ones, Release::Succeeded, 5).await.unwrap();
    assert_eq!(t.view(unknown).await.result.unwrap().get(), "null");
    let unknown = t.in_state(State::Held).await;
    t.store.release_held(&unknown_ones, Release::Failed, 5).await.unwrap();
    assert_eq!(t.view(unknown).await.error.map(|error| error.kind()), Some(ErrorKind::MarkedFailed));
}

async fn an_ending_leads_to_its_state(t: Bench) {
    let minute = Duration::from_secs(60);
    let endings = [
        (succeed(r#"{"b":1,"a":1e400}"#), AttemptOutcome::Succeeded),
        (fail(), AttemptOutcome::ToolFailed),
        (retry(minute), AttemptOutcome::NotSent),
        (Ending::Snooze { after: minute, error: None }, AttemptOutcome::Throttled),
        (hold(), AttemptOutcome::Unknown),
    ];
    let mut batch = Vec::new();
    for (ending, outcome) in &endings {
        let spec = job_with_reply(json!({}), Some("replies"));
        batch.push(t.run(&spec).await.end(ending.clone(), *outcome));
    }
    let answers = t.store.finish(&batch).await.unwrap();
    for (finish, answer) in batch.iter().zip(answers) {
        let (view, state) = (t.view(finish.id).await, finish.ending.state());
        assert_eq!(answer, applied(state));
        assert_eq!(view.state, state);
        assert_eq!(view.spent, u32::from(finish.ending.spends_attempt()));
        assert_eq!(view.finished_at.is_some(), state.is_final());
        assert_eq!(view.error.as_ref(), finish.ending.error());
        assert_eq!(view.log_id, finish.attempt.log_id);
        assert_eq!(view.held_reason, (state == State::Held).then_some(HeldReason::UnknownOutcome));
        assert_eq!(view.due_at.is_some(), state == State::Retryable);
        if let Some(due_at) = view.due_at {
            let wait = due_at.duration_since(t.store.now().await.unwrap());
            assert!(
                wait > SignedDuration::from_secs(50) && wait <= SignedDuration::from_secs(60),
                "{wait:?}"
            );
        }
        let result = view.result.as_ref().map(|result| result.get());
        assert_eq!(result, (state == State::Succeeded).then_some(r#"{"b":1,"a":1e400}"#));
        let attempt = one(t.store.attempts(finish.id).await.unwrap());
        assert_eq!(attempt.outcome, Some(finish.attempt.outcome));
        assert_eq!(attempt.request_id, finish.attempt.request_id);
        assert_eq!((attempt.number, attempt.http_status), (1, Some(200)));
        assert_eq!(
            (attempt.log_id, attempt.version),
            (finish.attempt.log_id.clone(), finish.attempt.version.clone())
        );
        assert_eq!(attempt.error, finish.attempt.error);
        assert_eq!(
            attempt.finished_at.unwrap().as_millisecond(),
            finish.attempt.finished_at.as_millisecond()
        );
    }
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 2);

    // A snooze that tells nothing leaves what the attempt before it told.
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let held = t.run(&spec).await;
    t.finish(&held.end(Ending::Snooze { after: minute, error: None }, AttemptOutcome::Throttled)).await;
    let view = t.view(spec.id).await;
    assert_eq!((view.spent, view.attempt), (1, 2));
    assert_eq!(view.error, Some(error(ErrorKind::ToolFailed)));
    assert!(t.store.finish(&[]).await.unwrap().is_empty());
}

async fn a_finish_repeated_gets_its_first_answer(t: Bench) {
    let endings = [
        (succeed("{}"), AttemptOutcome::Succeeded),
        (fail(), AttemptOutcome::ToolFailed),
        (retry(Duration::ZERO), AttemptOutcome::NotSent),
        (hold(), AttemptOutcome::Unknown),
    ];
    let mut batch = Vec::new();
    for (ending, outcome) in endings {
        batch.push(t.run(&job(json!({}))).await.end(ending, outcome));
    }
    // Within a batch and in the next one, and after the relay has seen it.
    let doubled: Vec<_> = batch.iter().chain(&batch).cloned().collect();
    let answers = t.store.finish(&doubled).await.unwrap();
    assert_eq!(answers[..4], answers[4..]);
    t.publish().await;
    assert_eq!(t.store.finish(&batch).await.unwrap(), answers[..4]);
    for finish in &batch {
        let view = t.view(finish.id).await;
        assert_eq!(view.spent, u32::from(finish.ending.spends_attempt()));
        assert_eq!(t.outcomes(finish.id).await.len(), 1);
    }
    assert_eq!(t.state(batch[2].id).await, State::Available, "it was not put back by the repetition");
}

async fn a_finish_under_an_old_fence_only_records_its_attempt(t: Bench) {
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    assert_eq!(t.finish(&first.rescue(retry(Duration::ZERO))).await, applied(State::Retryable));
    t.publish().await;
    let second = t.run(&spec).await;
    let result = first.end(succeed("1"), AttemptOutcome::Succeeded);
    assert_eq!(t.finish(&result).await, Finished::Fenced);
    assert_eq!(t.finish(&result).await, Finished::Fenced, "again");
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded), None]);
    let view = t.view(spec.id).await;
    assert_eq!((view.state, view.attempt, view.log_id.as_deref()), (State::Running, 2, Some("log-lost")));
    // What is definite stays.
    let other = first.end(fail(), AttemptOutcome::ToolFailed);
    assert_eq!(t.finish(&other).await, Finished::Fenced);
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded), None]);
    assert_eq!(
        t.finish(&second.end(succeed("2"), AttemptOutcome::Succeeded)).await,
        applied(State::Succeeded)
    );
    assert_eq!(t.view(spec.id).await.result.unwrap().get(), "2");

    // A job that nobody knows has no attempts.
    let unknown = Finish { id: JobId::new(), ..result };
    assert_eq!(t.finish(&unknown).await, Finished::Fenced);
    assert!(t.outcomes(unknown.id).await.is_empty());
}

async fn a_late_result_counts_while_nobody_has_claimed_since(t: Bench) {
    let rescues = [retry(LEASE), retry(Duration::ZERO), hold()];
    for (n, rescue) in rescues.into_iter().enumerate() {
        let endings =
            [succeed("1"), fail(), retry(LEASE), Ending::Snooze { after: LEASE, error: None }, hold()];
        for ending in endings {
            let spec = job_with_reply(json!({}), Some("replies"));
            let held = t.run(&spec).await;
            t.finish(&held.rescue(rescue.clone())).await;
            if n == 1 {
                t.publish().await;
                assert_eq!(t.state(spec.id).await, State::Available);
            }
            let finish = held.end(ending.clone(), AttemptOutcome::Succeeded);
            assert_eq!(t.finish(&finish).await, late(ending.state()));
            assert_eq!(t.finish(&finish).await, late(ending.state()), "again");
            let view = t.view(spec.id).await;
            assert_eq!((view.state, view.attempt), (ending.state(), 1));
            assert_eq!(view.log_id.as_deref(), Some("log-succeeded"));
            assert_eq!(
                t.outcomes(spec.id).await,
                [Some(AttemptOutcome::Succeeded)],
                "the record is replaced"
            );
            let replies = t.store.take_replies(10, LEASE).await.unwrap();
            assert_eq!(replies.len(), usize::from(ending.state().is_final()));
        }
    }
    // An answer that verification finds for a held job is such a result too.
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await, late(State::Succeeded));
}

async fn a_late_result_is_not_charged_twice(t: Bench) {
    for (rescue, ending, spent) in [
        (retry(LEASE), succeed("1"), 1),
        (retry(LEASE), Ending::Snooze { after: LEASE, error: None }, 0),
        (hold(), fail(), 1),
        (hold(), hold(), 0),
    ] {
        let spec = job(json!({}));
        let held = t.run(&spec).await;
        t.finish(&held.rescue(rescue)).await;
        t.finish(&held.end(ending, AttemptOutcome::Throttled)).await;
        assert_eq!(t.view(spec.id).await.spent, spent);
    }
    // A person has forgiven what the rescue charged.
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.rescue(fail())).await;
    t.store.restart(spec.id).await.unwrap();
    t.finish(&held.end(retry(LEASE), AttemptOutcome::ToolFailed)).await;
    assert_eq!((t.state(spec.id).await, t.view(spec.id).await.spent), (State::Retryable, 0));
}

async fn a_late_result_of_a_cancelled_job_is_fenced(t: Bench) {
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.rescue(retry(LEASE))).await;
    t.store.cancel(spec.id).await.unwrap();
    assert_eq!(t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Cancelled);
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded)], "what the tool did is known");
}

async fn a_rescue_leaves_living_workers_alone(t: Bench) {
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.store.beat(t.worker, "w").await.unwrap();
    assert_eq!(t.finish(&held.rescue(retry(LEASE))).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Running);
    assert_eq!(t.outcomes(spec.id).await, [None], "nothing is recorded about an attempt that runs");
    assert_eq!(t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await, applied(State::Succeeded));
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded)]);
}

/// The rescuer saw a job that was not frozen, of which nothing can have been sent; then its worker came back.
async fn a_rescue_that_missed_the_freeze_changes_nothing(t: Bench) {
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    let nothing_sent = |held: &Held| {
        let ending = Ending::Snooze { after: Duration::ZERO, error: None };
        Finish { by: By::Rescuer { lease: LEASE }, ..held.end(ending, AttemptOutcome::Interrupted) }
    };
    let too_late = nothing_sent(&held);
    assert_eq!(t.store.bind(&[held.bind(&binding("20260101_00"))]).await.unwrap(), [true]);
    assert_eq!(t.finish(&too_late).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Running);
    assert_eq!(t.outcomes(spec.id).await, [None]);
    assert_eq!(t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await, applied(State::Succeeded));

    let spec = job(json!({}));
    let held = t.run(&spec).await;
    assert_eq!(t.finish(&nothing_sent(&held)).await, applied(State::Retryable));
    assert_eq!(
        t.store.bind(&[held.bind(&binding("20260101_00"))]).await.unwrap(),
        [false],
        "nothing is sent now"
    );
}

async fn a_rescue_that_comes_after_the_result_changes_nothing(t: Bench) {
    for ending in [succeed("1"), retry(Duration::ZERO), hold()] {
        let spec = job(json!({}));
        let held = t.run(&spec).await;
        t.finish(&held.end(ending.clone(), AttemptOutcome::ToolFailed)).await;
        assert_eq!(t.finish(&held.rescue(retry(LEASE))).await, Finished::Fenced);
        assert_eq!(t.state(spec.id).await, ending.state());
        assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::ToolFailed)]);
    }
}

async fn a_running_job_that_was_cancelled_does_not_run_again(t: Bench) {
    let snooze = Ending::Snooze { after: LEASE, error: None };
    for (ending, state) in [
        (retry(LEASE), State::Cancelled),
        (snooze, State::Cancelled),
        (hold(), State::Cancelled),
        (succeed("1"), State::Succeeded),
        (fail(), State::Failed),
    ] {
        let spec = job_with_reply(json!({}), Some("replies"));
        let held = t.run(&spec).await;
        assert_eq!(t.store.cancel(spec.id).await.unwrap(), Decided::Now(State::Running));
        assert!(t.view(spec.id).await.cancel_requested);
        assert_eq!(t.finish(&held.end(ending, AttemptOutcome::Unknown)).await, applied(state));
        let view = t.view(spec.id).await;
        assert_eq!((view.state, view.due_at, view.held_reason), (state, None, None));
        assert!(view.finished_at.is_some());
        assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1);
    }
}

async fn a_value_that_cannot_be_stored_is_refused_alone(t: Bench) {
    let spec = job(json!({}));
    let good = claim(&spec);
    let bad = Claim { binding: Some(binding("a\0b")), ..claim(&job(json!({}))) };
    let error = t.store.claim(t.worker, &[good.clone(), bad.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Data);
    assert!(t.store.claim(t.worker, std::slice::from_ref(&bad)).await.is_err());
    assert!(t.store.job(bad.spec.id).await.unwrap().is_none());
    let receipt = running(t.claim(&good).await);

    let held = Held { id: spec.id, request_id: good.request_id, receipt };
    let mut finish = held.end(succeed("{}"), AttemptOutcome::Succeeded);
    finish.attempt.log_id = Some("secret of a customer\0".into());
    let error = t.store.finish(std::slice::from_ref(&finish)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Data);
    assert!(!format!("{error} {error:?}").contains("customer"), "{error:?}");
    assert_eq!(t.state(spec.id).await, State::Running);
    let text = Arc::new(JobSpec { text: Some("\0".into()), ..(*job(json!({}))).clone() });
    assert_eq!(t.store.insert(&[text], LEASE).await.unwrap_err().kind(), StoreErrorKind::Data);
    assert_eq!(t.store.bind(&[held.bind(&binding("\0"))]).await.unwrap_err().kind(), StoreErrorKind::Data);
    finish.attempt.log_id = None;
    assert_eq!(t.finish(&finish).await, applied(State::Succeeded));
}

async fn what_was_asked_for_comes_back_unchanged(t: Bench) {
    let arguments = r#"{ "z": 1, "a": 12345678901234567890123456789.000, "nul": "\u0000", "half": "\ud800", "e": 1E400, "z": 2 }"#;
    let envelope = format!(
        r#"{{"org_id": "acme", "requested_by": "bo", "tool": "T", "arguments": {arguments}, "version": "v1",
            "connected_account_id": "ca_9", "queue": "bulk", "priority": 7, "run_at": "2026-01-02T03:04:05.123456Z",
            "expires_at": "2099-01-02T03:04:05.654321Z", "timeout_ms": 1500, "max_attempts": 9,
            "max_age_ms": 3600000, "effect": "safe", "idempotency_key": "k", "tags": {{"b": "ä\"", "a": ""}}}}"#
    );
    let queue = "bulk".parse().unwrap();
    let full = from_json(&envelope, &queue, Some("replies"));
    let text = from_json(r#"{"user_id": "ü", "tool": "T", "text": "do\nit"}"#, &queue, None);
    for spec in [full, text] {
        t.insert(&spec).await;
        let view = t.view(spec.id).await;
        assert_eq!(format!("{:?}", view.spec), format!("{spec:?}"));
        let due = one(t.store.take_due(10, LEASE).await.unwrap());
        assert_eq!(due.was, State::Available);
        assert_eq!(format!("{:?}", due.spec), format!("{spec:?}"));
        // The worker that gets the relayed message sees the same job.
        let arrival = Arrival {
            queue: &queue,
            message_id: None,
            reply_to: spec.reply_to.as_deref(),
            correlation_id: spec.correlation_id.as_deref(),
            traceparent: None,
            fallback_id: None,
        };
        let relayed = Arc::new(decode(&encode(&due.spec), &arrival).unwrap());
        running(t.claim(&Claim { from_store: true, ..claim(&relayed) }).await);
    }
}

async fn a_batch_of_512_large_results_is_finished_at_once(t: Bench) {
    let specs: Vec<_> = (0..512).map(|_| job(json!({}))).collect();
    let claims: Vec<_> = specs.iter().map(claim).collect();
    let answers = t.store.claim(t.worker, &claims).await.unwrap();
    let result = format!("\"{}\"", "x".repeat(30_000));
    let batch: Vec<_> = claims
        .iter()
        .zip(answers)
        .map(|(claim, answer)| {
            let held = Held { id: claim.spec.id, request_id: claim.request_id, receipt: running(answer) };
            held.end(succeed(&result), AttemptOutcome::Succeeded)
        })
        .collect();
    let answers = t.store.finish(&batch).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == applied(State::Succeeded)));
    assert_eq!(t.view(specs[511].id).await.result.unwrap().get(), result);
}

async fn dropped_futures_do_no_harm(t: Bench) {
    let mut specs = Vec::new();
    for n in 0..60u64 {
        let spec = job(json!({}));
        let (batch, finishes) =
            ([claim(&spec)], [t.run(&job(json!({}))).await.end(fail(), AttemptOutcome::Refused)]);
        let wait = Duration::from_micros(n * 40);
        drop(tokio::time::timeout(wait, t.store.claim(t.worker, &batch)).await);
        drop(tokio::time::timeout(wait, t.store.finish(&finishes)).await);
        drop(tokio::time::timeout(wait, t.store.finish(&finishes)).await);
        drop(tokio::time::timeout(wait, t.store.take_due(5, LEASE)).await);
        drop(tokio::time::timeout(wait, t.store.cancel(spec.id)).await);
        specs.push((batch, finishes));
    }
    for (batch, finishes) in specs {
        t.store.claim(t.worker, &batch).await.unwrap();
        assert_eq!(t.finish(&finishes[0]).await, applied(State::Failed));
        assert_eq!(t.outcomes(finishes[0].id).await.len(), 1);
        // Another process sees it, so nothing is stuck in an open transaction.
        assert_eq!(t.other.job(finishes[0].id).await.unwrap().unwrap().state, State::Failed);
    }
}

// ---------------------------------------------------------------------------------------------
// The relay.

async fn due_jobs_come_by_priority_and_then_by_time(t: Bench) {
    let low = job(json!({"run_at": in_hours(-3)}));
    let high = job(json!({"priority": 9}));
    let middle_new = job(json!({"priority": 5}));
    let later = job(json!({"priority": 9, "run_at": in_hours(1)}));
    let held = t.run(&job(json!({"priority": 5}))).await;
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    for spec in [&low, &middle_new, &high, &later] {
        t.insert(spec).await;
    }
    let due = t.store.take_due(3, LEASE).await.unwrap();
    let order: Vec<_> = due.iter().map(|due| (due.spec.id, due.was)).collect();
    assert_eq!(
        order,
        [(high.id, State::Available), (held.id, State::Retryable), (middle_new.id, State::Available)]
    );
    let rest = t.store.take_due(3, LEASE).await.unwrap();
    assert_eq!(one(rest.iter().map(|due| due.spec.id).collect()), low.id);
    assert!(t.store.take_due(3, LEASE).await.unwrap().is_empty());
    assert!(t.store.take_due(0, LEASE).await.unwrap().is_empty());
    assert_eq!(t.state(held.id).await, State::Available);
    assert_eq!(t.state(later.id).await, State::Scheduled);
}

async fn a_due_job_is_given_to_one_process(t: Bench) {
    let specs: Vec<_> = (0..200).map(|n| job(json!({"priority": n % 3}))).collect();
    t.store.insert(&specs, Duration::ZERO).await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &t.store } else { &t.other });
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..20 {
                    taken.extend(store.take_due(20, LEASE).await.unwrap().into_iter().map(|due| due.spec.id));
                }
                taken
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    assert_eq!(taken.len(), 200);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 200);
}

async fn an_unclaimed_job_comes_back_after_ever_longer_waits(t: Bench) {
    let spec = job(json!({}));
    t.insert(&spec).await;
    for doubling in 0..4 {
        let before = t.store.now().await.unwrap();
        let due = support::wait::until("the job to be due again", Duration::from_secs(20), async || {
            t.store.take_due(10, Duration::from_millis(50)).await.unwrap().pop()
        })
        .await;
        assert_eq!(due.spec.id, spec.id);
        let after = t.store.now().await.unwrap();
        let (due_at, wait) = (t.view(spec.id).await.due_at.unwrap(), Duration::from_millis(50 << doubling));
        assert!(due_at >= before + wait && due_at <= after + wait, "{doubling}");
    }
    // A claim starts afresh, and no wait is longer than the maximum.
    t.store.republish_all().await.unwrap();
    let held = t.run(&spec).await;
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.store.take_due(10, Duration::from_millis(1)).await.unwrap();
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_millis(1), "{wait:?}");
    t.store.republish_all().await.unwrap();
    t.store.take_due(10, MAX_UNCLAIMED_WAIT * 10).await.unwrap();
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_hours(1) && wait > SignedDuration::from_mins(59), "{wait:?}");
}

async fn a_job_that_could_not_be_published_comes_back_when_asked(t: Bench) {
    let (spec, claimed) = (job(json!({})), job(json!({})));
    t.insert(&spec).await;
    t.insert(&claimed).await;
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
    t.run(&claimed).await;
    t.store.defer(&[spec.id, claimed.id, JobId::new()], Duration::ZERO).await.unwrap();
    let due = one(t.store.take_due(10, Duration::from_secs(100)).await.unwrap());
    assert_eq!(due.spec.id, spec.id);
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::from_secs(100), "the failed publication did not double it: {wait:?}");
    assert_eq!(t.state(claimed.id).await, State::Running);
}

async fn all_available_jobs_can_be_published_again(t: Bench) {
    let specs: Vec<_> = (0..3).map(|_| job(json!({}))).collect();
    t.store.insert(&specs, LEASE).await.unwrap();
    t.run(&specs[0]).await;
    t.insert(&job(json!({"run_at": in_hours(1)}))).await;
    assert!(t.store.take_due(10, LEASE).await.unwrap().is_empty());
    assert_eq!(t.store.republish_all().await.unwrap(), 2);
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
}

async fn the_next_due_time_is_known(t: Bench) {
    assert_eq!(t.store.next_due_in().await.unwrap(), None);
    t.insert(&job(json!({"run_at": in_hours(2)}))).await;
    t.insert(&job(json!({"run_at": in_hours(1), "priority": 4}))).await;
    let next = t.store.next_due_in().await.unwrap().unwrap();
    assert!(next > Duration::from_secs(3590) && next <= Duration::from_secs(3600), "{next:?}");
    t.insert(&job(json!({}))).await;
    assert_eq!(t.store.next_due_in().await.unwrap(), Some(Duration::ZERO));
}

async fn a_reply_is_offered_until_it_is_published(t: Bench) {
    let spec = job_with_reply(json!({}), Some("amq.gen-1"));
    let held = t.run(&spec).await;
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "it is not finished");
    t.finish(&held.end(succeed(r#"{"x":1}"#), AttemptOutcome::Succeeded)).await;
    t.finish(&t.run(&job(json!({}))).await.end(fail(), AttemptOutcome::Refused)).await;
    let reply = one(t.store.take_replies(10, Duration::ZERO).await.unwrap());
    assert_eq!((reply.reply_to.as_str(), reply.correlation_id.as_deref()), ("amq.gen-1", Some("c-1")));
    assert_eq!((reply.job.spec.id, reply.job.state), (spec.id, State::Succeeded));
    assert_eq!(reply.job.result.unwrap().get(), r#"{"x":1}"#);
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1, "offered again");
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "but not before its time");
    t.store.replied(&[spec.id, JobId::new()]).await.unwrap();

    // A job that is run again owes its reply again.
    let failed = job_with_reply(json!({}), Some("amq.gen-1"));
    t.finish(&t.run(&failed).await.end(fail(), AttemptOutcome::Refused)).await;
    t.store.restart(failed.id).await.unwrap();
    assert!(t.store.take_replies(10, LEASE).await.unwrap().is_empty(), "it is not final any more");
    t.store.cancel(failed.id).await.unwrap();
    assert_eq!(one(t.store.take_replies(10, LEASE).await.unwrap()).job.state, State::Cancelled);
}

// ---------------------------------------------------------------------------------------------
// Leases.

async fn the_jobs_of_lost_workers_are_found(t: Bench) {
    let spec = job(json!({"max_attempts": 3, "max_age_ms": 60_000}));
    let held = t.run(&spec).await;
    let lost = one(t.store.lost_jobs(LEASE, 10).await.unwrap());
    assert_eq!((lost.id, lost.fence, lost.request_id), (spec.id, held.receipt.fence, held.request_id));
    assert_eq!((lost.attempt, lost.spent, lost.binding, lost.budget), (1, 0, None, spec.budget));
    assert_eq!(Some(lost.started_at), t.view(spec.id).await.started_at);
    assert!(lost.age < LEASE);

    t.store.beat(t.worker, "w").await.unwrap();
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty(), "its worker lives");
    t.store.bind(&[held.bind(&binding("1"))]).await.unwrap();
    let next = t.run(&job(json!({}))).await;
    let lost = t.store.lost_jobs(Duration::ZERO, 10).await.unwrap();
    assert_eq!(lost.iter().map(|lost| lost.id).collect::<Vec<_>>(), [spec.id, next.id], "oldest first");
    assert_eq!(lost[0].binding, Some(binding("1")));
    assert_eq!(t.store.lost_jobs(Duration::ZERO, 1).await.unwrap().len(), 1);

    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 2, "nobody knows its worker");
    let rescue = Finish { by: By::Rescuer { lease: LEASE }, ..held.rescue(hold()) };
    assert_eq!(t.finish(&rescue).await, applied(State::Held));
    assert_eq!(t.finish(&rescue).await, applied(State::Held), "again");
    assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 1);
}

async fn idle_workers_are_forgotten(t: Bench) {
    let idle = WorkerId::new();
    t.store.beat(t.worker, "busy").await.unwrap();
    t.store.beat(idle, "idle").await.unwrap();
    let held = t.run(&job(json!({}))).await;
    assert_eq!(t.store.forget_workers(LEASE).await.unwrap(), 0);
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 1, "only the idle one");
    assert!(t.store.lost_jobs(LEASE, 10).await.unwrap().is_empty());
    t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.store.forget_workers(Duration::ZERO).await.unwrap(), 1);
}

// ---------------------------------------------------------------------------------------------
// The audit.

/// Limits that no test reaches.
const PATIENT: AuditLimits = AuditLimits {
    lost: Duration::from_secs(3600),
    timeout: Duration::from_secs(3600),
    overrun: Duration::from_secs(3600),
    overdue: Duration::from_secs(3600),
    publications: 100,
    verified: false,
};

/// Limits that everything has passed at once.
const IMPATIENT: AuditLimits = AuditLimits {
    lost: Duration::ZERO,
    timeout: Duration::ZERO,
    overrun: Duration::ZERO,
    overdue: Duration::ZERO,
    publications: 5,
    verified: true,
};

impl Bench {
    /// All findings, in pages of three jobs.
    async fn audit(&self, limits: &AuditLimits) -> Vec<(FindingKind, JobId)> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.audit(after, 3, limits).await.unwrap();
            found.extend(page.items.into_iter().map(|Finding { kind, id, queue }| {
                assert_eq!(queue, "default");
                (kind, id)
            }));
            match page.last {
                Some(last) => {
                    assert!(page.seen > 0 && page.seen <= 3 && Some(last) > after);
                    after = Some(last);
                }
                None => {
                    assert_eq!(page.seen, 0);
                    return found;
                }
            }
        }
    }

    /// Writes what the constraints of `jobs` with these names forbid.
    async fn plant(&self, constraints: &[&str], sql: &str) {
        let freely = match &self.place {
            Place::Postgres(_) => constraints
                .iter()
                .map(|name| format!("alter table jobs drop constraint if exists jobs_{name};"))
                .collect(),
            Place::Sqlite(_) => "pragma ignore_check_constraints = on;".to_owned(),
        };
        self.execute(&format!("{freely} {sql}")).await;
    }
}

async fn an_audit_sees_every_job_once_and_finds_nothing_in_a_sound_store(t: Bench) {
    t.store.beat(t.worker, "w").await.unwrap();
    assert_eq!(t.audit(&PATIENT).await, []);
    for state in State::ALL.iter().copied().chain([State::Succeeded, State::Running]) {
        t.in_state(state).await;
    }
    // A second attempt is recorded in another way than a first one that succeeds.
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let held = t.run(&spec).await;
    assert_eq!(t.audit(&PATIENT).await, []);
    t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.audit(&PATIENT).await, []);
    let (mut seen, mut after) = (0, None);
    while let page = t.store.audit(after, 4, &PATIENT).await.unwrap()
        && page.last.is_some()
    {
        seen += page.seen;
        after = page.last;
    }
    assert_eq!(seen, 11);
}

async fn a_running_job_without_a_worker_is_found_and_made_findable(t: Bench) {
    let lost = AuditLimits { lost: Duration::ZERO, ..PATIENT };
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.in_state(State::Succeeded).await;
    assert_eq!(t.audit(&PATIENT).await, [], "its worker may not have beaten yet");
    let without_worker = [(FindingKind::RunningWithoutWorker, spec.id)];
    assert_eq!(t.audit(&lost).await, without_worker, "nobody knows its worker");
    t.store.beat(t.worker, "w").await.unwrap();
    assert_eq!(t.audit(&lost).await, without_worker, "its worker is lost");
    assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "the rescue finds it anyhow");

    if let Place::Postgres(_) = t.place {
        t.execute("delete from claims").await;
        assert_eq!(t.store.lost_jobs(Duration::ZERO, 10).await.unwrap().len(), 0, "the rescue is blind");
        assert_eq!(t.audit(&lost).await, without_worker);
        let without_claim = [(FindingKind::RunningWithoutClaim, spec.id)];
        assert_eq!(t.audit(&PATIENT).await, without_claim, "its worker lives, but might not for ever");
        assert_eq!(t.store.make_findable(&[spec.id, JobId::new()]).await.unwrap(), [spec.id]);
        assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "again");
        assert_eq!(t.audit(&PATIENT).await, []);
    }
    let found = one(t.store.lost_jobs(Duration::ZERO, 10).await.unwrap());
    assert_eq!((found.id, found.fence, found.request_id), (spec.id, held.receipt.fence, held.request_id));
    t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.audit(&lost).await, []);
    assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "it does not run any more");
    t.store.forget_workers(Duration::ZERO).await.unwrap();
}

async fn a_running_job_that_outlives_its_timeout_is_found(t: Bench) {
    t.store.beat(t.worker, "w").await.unwrap();
    let (own, default) = (job(json!({"timeout_ms": 600_000})), job(json!({})));
    t.run(&own).await;
    t.run(&default).await;
    let short = AuditLimits { timeout: Duration::ZERO, overrun: Duration::ZERO, ..PATIENT };
    assert_eq!(t.audit(&short).await, [(FindingKind::RunningTooLong, default.id)]);
    assert_eq!(t.audit(&AuditLimits { overrun: Duration::from_secs(60), ..short }).await, []);
    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.audit(&short).await, [(FindingKind::RunningTooLong, default.id)], "not lost for long");
    let lost = AuditLimits { lost: Duration::ZERO, ..short };
    let kinds: Vec<_> = t.audit(&lost).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [FindingKind::RunningWithoutWorker; 2], "that its worker is lost says it all");
}

async fn what_is_overdue_is_found(t: Bench) {
    for state in [State::Scheduled, State::Retryable, State::Failed, State::Cancelled] {
        t.in_state(state).await;
    }
    assert_eq!(t.audit(&IMPATIENT).await, [], "what is due later, or never, is not late");
    let due = t.in_state(State::Available).await;

    let replied = job_with_reply(json!({}), Some("replies"));
    let held = t.run(&replied).await;
    t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await;

    let asked = job(json!({}));
    let held = t.run(&asked).await;
    let verify = Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) };
    t.finish(&held.end(verify, AttemptOutcome::Unknown)).await;
    let never_asked = t.in_state(State::Held).await;

    let mut found = t.audit(&IMPATIENT).await;
    found.sort_unstable();
    let mut expected = [
        (FindingKind::NotPublished, due),
        (FindingKind::NotLookedUp, asked.id),
        (FindingKind::NotLookedUp, never_asked),
        (FindingKind::ReplyOverdue, replied.id),
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(t.audit(&PATIENT).await, [], "all of it may still come");

    // Each is taken care of, or left to a person.
    t.publish().await;
    t.store.take_replies(10, Duration::from_secs(60)).await.unwrap();
    let check = one(t.store.take_checks(10, Duration::from_secs(60)).await.unwrap());
    let unverified = AuditLimits { verified: false, ..IMPATIENT };
    assert_eq!(t.audit(&unverified).await, []);
    let gave_up = PutOff {
        id: asked.id,
        fence: check.fence,
        again_after: None,
        look: LookResult::Unclear,
        detail: None,
        error: error(ErrorKind::UnknownOutcome),
    };
    assert!(t.store.put_off(&gave_up).await.unwrap());
    assert_eq!(t.audit(&IMPATIENT).await, [(FindingKind::NotLookedUp, never_asked)]);
}

async fn a_job_that_nobody_claims_is_found_and_made_due(t: Bench) {
    let limits = AuditLimits { publications: 3, ..PATIENT };
    let (spec, running) = (job(json!({})), t.in_state(State::Running).await);
    t.store.beat(t.worker, "w").await.unwrap();
    t.insert(&spec).await;
    for _ in 0..2 {
        t.store.take_due(10, Duration::ZERO).await.unwrap();
    }
    t.publish().await;
    assert_eq!(t.audit(&AuditLimits { publications: 4, ..limits }).await, []);
    assert_eq!(t.audit(&limits).await, [(FindingKind::NotClaimed, spec.id)]);
    assert!(t.store.take_due(10, LEASE).await.unwrap().is_empty());
    let ids = [spec.id, running, JobId::new()];
    assert_eq!(t.store.make_due(&ids).await.unwrap(), [spec.id], "only what is available");
    assert_eq!(t.audit(&limits).await, []);
    let due = one(t.store.take_due(10, LEASE).await.unwrap());
    assert_eq!((due.spec.id, due.was), (spec.id, State::Available));
    let wait = t.view(spec.id).await.due_at.unwrap().duration_since(t.store.now().await.unwrap());
    assert!(wait <= SignedDuration::try_from(LEASE).unwrap(), "it is as if it had never been published");
    t.run(&spec).await;
    assert_eq!(t.store.make_due(&ids).await.unwrap(), []);
}

async fn attempts_without_an_outcome_are_found(t: Bench) {
    t.store.beat(t.worker, "w").await.unwrap();
    let sound = t.in_state(State::Failed).await;
    for damage in [
        "delete from attempts where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set outcome = 'perhaps' where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set number = 7 where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set request_id = job_id where job_id in (select id from jobs where tool = 'DAMAGED')",
    ] {
        let spec = job(json!({"tool": "DAMAGED"}));
        let held = t.run(&spec).await;
        t.finish(&held.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
        assert_eq!(t.audit(&PATIENT).await, []);
        t.execute(damage).await;
        assert_eq!(t.audit(&PATIENT).await, [(FindingKind::AttemptWithoutOutcome, spec.id)], "{damage}");
        // One that is under way does not hide the one before. Only the request ID of the last is known.
        t.publish().await;
        t.run(&spec).await;
        if !damage.contains("request_id") {
            assert_eq!(t.audit(&PATIENT).await, [(FindingKind::AttemptWithoutOutcome, spec.id)], "{damage}");
        }
        t.execute("delete from attempts where job_id in (select id from jobs where tool = 'DAMAGED')").await;
        t.execute("delete from jobs where tool = 'DAMAGED'").await;
    }
    assert_eq!(t.outcomes(sound).await, [Some(AttemptOutcome::ToolFailed)], "nothing else was touched");
}

async fn rows_that_break_a_rule_are_found_and_left_alone(t: Bench) {
    t.store.beat(t.worker, "w").await.unwrap();
    for (constraints, state, damage, kind) in [
        (&["held_has_reason"][..], State::Held, "held_reason = null", FindingKind::HeldWithoutReason),
        (&["held_has_reason"], State::Failed, "held_reason = 'connection'", FindingKind::HeldWithoutReason),
        (&["final_is_finished"], State::Succeeded, "finished_at = null", FindingKind::BrokenRule),
        (&["succeeded_has_result"], State::Succeeded, "result = null", FindingKind::BrokenRule),
        (&["waiting_is_due"], State::Scheduled, "due_at = null", FindingKind::BrokenRule),
        (&["error_fits"], State::Failed, "error_kind = null", FindingKind::BrokenRule),
        (&["spent_is_bounded"], State::Failed, "spent = 99", FindingKind::BrokenRule),
    ] {
        let (sound, id) = (t.in_state(state).await, t.in_state(state).await);
        let other = match t.place {
            Place::Postgres(_) => format!("'{sound}'"),
            Place::Sqlite(_) => format!("x'{}'", sound.0.simple()),
        };
        t.plant(constraints, &format!("update jobs set {damage} where id <> {other}")).await;
        assert_eq!(t.audit(&PATIENT).await, [(kind, id)], "{damage}");
        assert_eq!(t.audit(&PATIENT).await, [(kind, id)], "it is not repaired");
        assert_eq!(t.state(sound).await, state);
        t.execute("delete from attempts").await;
        t.execute("delete from jobs").await;
    }

    // A row that no worker holds is one that no rescue can find.
    let id = t.in_state(State::Running).await;
    t.plant(&["running_has_worker"], "update jobs set worker_id = null").await;
    let mut kinds: Vec<_> = t
        .audit(&AuditLimits { lost: Duration::ZERO, ..PATIENT })
        .await
        .into_iter()
        .map(|(kind, found)| {
            assert_eq!(found, id);
            kind
        })
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [FindingKind::RunningWithoutWorker, FindingKind::BrokenRule]);
    assert_eq!(t.store.make_findable(&[id]).await.unwrap(), []);
}

async fn the_eldest_living_worker_is_known(t: Bench) {
    let younger = WorkerId::new();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), None);
    t.store.beat(t.worker, "elder").await.unwrap();
    t.store.beat(younger, "younger").await.unwrap();
    t.store.beat(t.worker, "elder").await.unwrap();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), Some(t.worker));
    assert_eq!(t.other.eldest_worker(LEASE).await.unwrap(), Some(t.worker), "all agree");
    assert_eq!(t.store.eldest_worker(Duration::ZERO).await.unwrap(), None, "none has beaten in time");
    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), Some(younger));
}

async fn what_succeeded_by_a_call_is_told_from_what_a_person_said(t: Bench) {
    let mut expected = vec![t.in_state(State::Succeeded).await];
    t.in_state(State::Failed).await;
    let by_a_person = t.in_state(State::Held).await;
    t.store.release(by_a_person, Release::Succeeded).await.unwrap();
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(
        t.finish(&held.end(succeed("1"), AttemptOutcome::Succeeded)).await,
        late(State::Succeeded),
        "as the look-up tells it"
    );
    expected.push(spec.id);
    expected.sort_unstable();
    let (mut found, mut after) = (Vec::new(), None);
    while let page = t.store.succeeded_by_call(after, 2).await.unwrap()
        && page.last.is_some()
    {
        found.extend(page.items);
        after = page.last;
    }
    found.sort_unstable();
    assert_eq!(found, expected);
}

// ---------------------------------------------------------------------------------------------
// The desk.

async fn a_decision_obeys_the_transitions_in_every_state(t: Bench) {
    let decisions = [
        Transition::Cancel,
        Transition::Restart,
        Transition::Release(Release::Retry),
        Transition::Release(Release::Succeeded),
        Transition::Release(Release::Failed),
    ];
    let decide = async |decision: &Transition, id: JobId| match decision {
        Transition::Cancel => t.store.cancel(id).await.unwrap(),
        Transition::Restart => t.store.restart(id).await.unwrap(),
        Transition::Release(release) => t.store.release(id, *release).await.unwrap(),
        other => panic!("{other:?} is nobody's decision"),
    };
    for decision in &decisions {
        for from in State::ALL.iter().copied() {
            let id = t.in_state(from).await;
            let before = format!("{:?}", t.view(id).await);
            let answer = decide(decision, id).await;
            let view = t.view(id).await;
            match decision.apply(from) {
                Ok(to) => {
                    assert_eq!(answer, Decided::Now(to), "{decision:?} of a {from} job");
                    assert_eq!(view.state, to);
                    assert_eq!(view.finished_at.is_some(), to.is_final());
                    assert_eq!(view.due_at.is_some(), to == State::Available);
                }
                Err(illegal) => {
                    assert_eq!(answer, Decided::Illegal(illegal));
                    assert_eq!(format!("{view:?}"), before, "{decision:?} of a {from} job");
                }
            }
        }
        assert_eq!(decide(decision, JobId::new()).await, Decided::Unknown);
    }
}

async fn a_restarted_job_has_a_fresh_budget(t: Bench) {
    let spec = job(json!({}));
    let held = t.run(&spec).await;
    t.store.cancel(spec.id).await.unwrap();
    t.finish(&held.end(fail(), AttemptOutcome::ToolFailed)).await;
    assert_eq!(t.store.restart(spec.id).await.unwrap(), Decided::Now(State::Available));
    let view = t.view(spec.id).await;
    assert_eq!((view.spent, view.attempt, view.cancel_requested), (0, 1, false));
    assert_eq!((view.error, view.result.is_none(), view.finished_at), (None, true, None));
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, spec.id, "it is due now");
    let again = t.run(&spec).await;
    assert_eq!((again.receipt.fence, again.receipt.attempt, again.receipt.spent), (Fence(2), 2, 0));
}

async fn a_released_job_shows_what_a_person_decided(t: Bench) {
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Succeeded).await.unwrap();
    let view = t.view(id).await;
    assert_eq!((view.result.unwrap().get(), view.error, view.held_reason), ("null", None, None));
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Failed).await.unwrap();
    assert_eq!(t.view(id).await.error.map(|error| error.kind()), Some(ErrorKind::MarkedFailed));
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Retry).await.unwrap();
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, id);
    assert_eq!(t.view(id).await.held_reason, None);
}

async fn a_running_attempt_is_listed_without_an_outcome(t: Bench) {
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    t.finish(&first.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.publish().await;
    let second = t.run(&spec).await;
    let attempts = t.store.attempts(spec.id).await.unwrap();
    let seen: Vec<_> = attempts.iter().map(|a| (a.number, a.request_id, a.outcome)).collect();
    assert_eq!(seen, [(1, first.request_id, Some(AttemptOutcome::NotSent)), (2, second.request_id, None)]);
    assert_eq!(Some(attempts[1].started_at), t.view(spec.id).await.started_at);
    assert_eq!(attempts[1].finished_at, None);
    assert!(t.store.attempts(JobId::new()).await.unwrap().is_empty());
}

async fn jobs_are_listed_newest_first_by_every_filter(t: Bench) {
    let specs = [
        job(json!({"tool": "A"})),
        job(json!({"tool": "B"})),
        job(json!({"tool": "A", "org_id": "o"})),
        job(json!({"tool": "B", "org_id": "o"})),
    ];
    for spec in &specs {
        t.insert(spec).await;
    }
    t.finish(&t.run(&specs[0]).await.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    t.run(&specs[2]).await;
    let (user, org): (Owner, Owner) = ("user:u-1".parse().unwrap(), "org:o".parse().unwrap());
    let all = JobFilter { limit: 10, ..JobFilter::default() };
    for (filter, expected) in [
        (all.clone(), vec![3, 2, 1, 0]),
        (JobFilter { limit: 2, ..all.clone() }, vec![3, 2]),
        (JobFilter { state: Some(State::Available), ..all.clone() }, vec![3, 1]),
        (JobFilter { state: Some(State::Held), ..all.clone() }, vec![]),
        (JobFilter { tool: Some("A".into()), ..all.clone() }, vec![2, 0]),
        (JobFilter { owner: Some(user.clone()), ..all.clone() }, vec![1, 0]),
        (
            JobFilter {
                owner: Some(org),
                state: Some(State::Running),
                tool: Some("A".into()),
                ..all.clone()
            },
            vec![2],
        ),
    ] {
        let found = t.store.jobs(&filter).await.unwrap();
        let places: Vec<_> =
            found.iter().map(|view| specs.iter().position(|spec| spec.id == view.spec.id).unwrap()).collect();
        assert_eq!(places, expected, "{filter:?}");
        assert!(found.iter().all(|view| view.result.is_none()), "lists are without results");
    }
}

async fn a_census_counts_what_is_not_final(t: Bench) {
    for state in State::ALL.iter().copied() {
        t.in_state(state).await;
    }
    t.insert(&job(json!({"queue": "bulk", "run_at": in_hours(-2)}))).await;
    t.execute("update jobs set due_at = run_at where queue = 'bulk'").await;
    let census = t.store.census().await.unwrap();
    let queue = |name: &str| -> QueueName { name.parse().unwrap() };
    let mut jobs = census.jobs.clone();
    jobs.sort();
    let mut expected = vec![(queue("bulk"), State::Available, 1)];
    for state in State::ALL.iter().copied().filter(|state| !state.is_final()) {
        expected.push((queue("default"), state, 1));
    }
    assert_eq!(jobs, expected);
    assert_eq!(census.held, [(HeldReason::UnknownOutcome, 1)]);
    let oldest = |name| census.oldest_due.iter().find(|(is, _)| *is == queue(name)).unwrap().1;
    assert!(oldest("bulk") >= Duration::from_secs(7200));
    assert!(oldest("default") < LEASE, "what is scheduled does not wait yet");
}

// ---------------------------------------------------------------------------------------------
// Pins, rejections, the database.

async fn pins_are_set_replaced_and_removed(t: Bench) {
    let pin = |owner: Option<&str>, toolkit: &str, version: &str| PinRow {
        owner: owner.map(|owner| owner.parse().unwrap()),
        toolkit: toolkit.into(),
        version: version.into(),
    };
    let pins = [
        pin(Some("user:a"), "github", "3"),
        pin(None, "slack", "2"),
        pin(Some("org:a"), "github", "4"),
        pin(None, "github", "1"),
    ];
    for pin in &pins {
        t.store.set_pin(pin).await.unwrap();
    }
    let [user, slack, org, github] = pins;
    assert_eq!(t.store.pins().await.unwrap(), [github, slack, org.clone(), user.clone()]);
    t.store.set_pin(&pin(None, "github", "9")).await.unwrap();
    assert_eq!(t.store.pins().await.unwrap()[0].version, "9");
    assert_eq!(t.store.pins().await.unwrap().len(), 4);
    assert!(t.store.unset_pin(None, "github").await.unwrap());
    assert!(!t.store.unset_pin(None, "github").await.unwrap());
    assert!(t.store.unset_pin(user.owner.as_ref(), "github").await.unwrap());
    assert_eq!(t.store.pins().await.unwrap().len(), 2);
}

async fn a_rejection_that_cannot_be_kept_can_be_kept_without_its_texts(t: Bench) {
    let unfit = Rejected {
        id: Uuid::from_u128(3),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "a\0b".into(),
        body: b"\0\xff".to_vec(),
        properties: "{}".into(),
    };
    let refused = t.store.reject(std::slice::from_ref(&unfit)).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Data);
    assert!(!unfit.is_plain());
    let plain = unfit.clone().into_plain();
    assert!(plain.is_plain());
    t.store.reject(&[plain]).await.unwrap();
    let kept = t.store.rejected_message(unfit.id).await.unwrap().unwrap();
    assert_eq!((kept.message.body, kept.message.reason), (unfit.body, unfit.reason), "the message is whole");
}

async fn a_rejected_message_seen_again_is_the_same_row(t: Bench) {
    let message = |n: u128, body: &[u8]| Rejected {
        id: Uuid::from_u128(n),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "the envelope is not a valid job".into(),
        body: body.to_vec(),
        properties: r#"{"message_id":"m"}"#.into(),
    };
    let (first, second) = (message(2, b"\0\xff{"), message(1, b""));
    t.store.reject(&[first.clone(), first.clone()]).await.unwrap();
    t.store.reject(&[second, first.clone()]).await.unwrap();
    t.store.reject(&[]).await.unwrap();
    let list = t.store.rejected(10).await.unwrap();
    assert_eq!(list.iter().map(|view| view.message.id.as_u128()).collect::<Vec<_>>(), [1, 2], "newest first");
    assert_eq!((list[1].seen, list[1].size, list[1].message.body.len()), (3, 3, 0));
    assert_eq!(t.store.rejected(1).await.unwrap().len(), 1);
    let whole = t.store.rejected_message(first.id).await.unwrap().unwrap();
    assert_eq!(whole.message.body, first.body);
    assert_eq!(
        (whole.message.properties, whole.message.message),
        (first.properties.clone(), first.message.clone())
    );
    assert_eq!((whole.message.reason, whole.requeued_at), (EnvelopeReason::Malformed, None));

    assert!(t.store.mark_requeued(first.id).await.unwrap());
    assert!(!t.store.mark_requeued(first.id).await.unwrap());
    assert!(!t.store.mark_requeued(Uuid::from_u128(9)).await.unwrap());
    assert_eq!(t.store.rejected(10).await.unwrap().len(), 1);
    assert!(t.store.rejected_message(first.id).await.unwrap().unwrap().requeued_at.is_some());
    t.store.reject(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(t.store.rejected(10).await.unwrap().len(), 2, "rejected once more, so it is listed again");
    assert!(t.store.rejected_message(Uuid::from_u128(9)).await.unwrap().is_none());
}

async fn migrations_run_once_however_many_start_them(t: Bench) {
    assert_eq!(t.store.migrate().await.unwrap(), 0, "again");
    let bare = t.bare().await;
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &bare.store } else { &bare.other });
            tokio::spawn(async move { store.migrate().await.unwrap() })
        })
        .collect();
    let mut applied = Vec::new();
    for task in tasks {
        applied.push(task.await.unwrap());
    }
    assert_eq!(applied.iter().filter(|count| **count > 0).count(), 1, "{applied:?}");
    assert_eq!(bare.store.schema().await.unwrap(), Schema::Current);
}

async fn the_schema_is_compared_with_this_build(t: Bench) {
    assert_eq!(t.store.schema().await.unwrap(), Schema::Current);
    t.execute(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
        values (9999, 'of a newer build', true, '', 0)",
    )
    .await;
    assert_eq!(t.store.schema().await.unwrap(), Schema::Ahead);
    assert_eq!(t.store.migrate().await.unwrap(), 0, "a newer database is fine");
    t.execute("delete from _sqlx_migrations where version = 2").await;
    assert_eq!(t.store.schema().await.unwrap(), Schema::Behind { missing: 1 });
    let bare = t.bare().await;
    assert!(matches!(bare.store.schema().await.unwrap(), Schema::Behind { missing } if missing > 1));
}

async fn missing_tables_are_a_schema_error(t: Bench) {
    let bare = t.bare().await;
    let claims = [claim(&job(json!({})))];
    assert_eq!(bare.store.claim(t.worker, &claims).await.unwrap_err().kind(), StoreErrorKind::Schema);
    assert_eq!(bare.store.census().await.unwrap_err().kind(), StoreErrorKind::Schema);
    assert!(bare.store.now().await.is_ok());
    assert!(!bare.store.version().await.unwrap().is_empty());
}

async fn a_closed_store_says_that_it_is_unavailable(t: Bench) {
    t.store.close().await;
    let error = t.store.job(JobId::new()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(["PostgreSQL", "SQLite"].contains(&t.store.backend()));
}

/// Walks jobs through random operations and checks every step against [`Transition`].
async fn random_histories_keep_the_rules(t: Bench) {
    let mut random = fastrand::Rng::with_seed(0x6572_7261_6e64);
    for _ in 0..25 {
        let spec = job_with_reply(json!({}), Some("replies"));
        t.insert(&spec).await;
        let (mut state, mut cancelled) = (State::Available, false);
        let mut claims: Vec<Held> = Vec::new();
        let mut history = Vec::new();
        for _ in 0..20 {
            let endings = [
                succeed("1"),
                fail(),
                retry(Duration::ZERO),
                Ending::Snooze { after: Duration::ZERO, error: None },
                hold(),
            ];
            let ending = endings[random.usize(..5)].clone();
            let step = random.usize(..9);
            let expected = match step {
                0 | 1 => {
                    let claim = Claim { from_store: true, ..claim(&spec) };
                    match t.claim(&claim).await {
                        Claimed::Running(receipt) => {
                            claims.push(Held { id: spec.id, request_id: claim.request_id, receipt });
                            Transition::Claim.apply(state)
                        }
                        Claimed::Duplicate { state: is } => Ok(is),
                        other => panic!("{other:?}"),
                    }
                }
                2 => {
                    let found = t.store.take_due(10, Duration::ZERO).await.unwrap();
                    let found = found.iter().any(|due| due.spec.id == spec.id);
                    if found { Transition::Publish.apply(state) } else { Ok(state) }
                }
                3 => {
                    let moved = Transition::Cancel.apply(state);
                    cancelled |= state == State::Running;
                    assert_eq!(
                        matches!(t.store.cancel(spec.id).await.unwrap(), Decided::Now(_)),
                        moved.is_ok()
                    );
                    Ok(moved.unwrap_or(state))
                }
                4 => {
                    let moved = Transition::Restart.apply(state);
                    cancelled &= moved.is_err();
                    assert_eq!(
                        matches!(t.store.restart(spec.id).await.unwrap(), Decided::Now(_)),
                        moved.is_ok()
                    );
                    Ok(moved.unwrap_or(state))
                }
                5 => {
                    let release = [Release::Retry, Release::Succeeded, Release::Failed][random.usize(..3)];
                    let moved = Transition::Release(release).apply(state);
                    let answer = t.store.release(spec.id, release).await.unwrap();
                    assert_eq!(matches!(answer, Decided::Now(_)), moved.is_ok());
                    Ok(moved.unwrap_or(state))
                }
                _ if claims.is_empty() => Ok(state),
                _ => {
                    let held = &claims[random.usize(..claims.len())];
                    let finish = if step == 6 {
                        held.rescue(ending.clone())
                    } else {
                        held.end(
                            ending.clone(),
                            AttemptOutcome::ALL[random.usize(..AttemptOutcome::ALL.len())],
                        )
                    };
                    match t.finish(&finish).await {
                        Finished::Fenced => Ok(state),
                        // A repetition by chance, or the truth.
                        Finished::Applied { state: to, late } => {
                            let is = t.state(spec.id).await;
                            let legal = if late {
                                Transition::EndLate(ending.clone()).apply(state)
                            } else {
                                Transition::End(ending.clone()).apply(state)
                            };
                            let called_off = cancelled && matches!(to, State::Cancelled);
                            match legal {
                                Ok(next) if next == is || called_off => Ok(is),
                                _ => Ok(state),
                            }
                        }
                    }
                }
            };
            let view = t.view(spec.id).await;
            history.push((step, view.state));
            assert_eq!(expected.as_ref().ok(), Some(&view.state), "{history:?}");
            state = view.state;
            let attempts = t.store.attempts(spec.id).await.unwrap();
            let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (1..=view.attempt).collect::<Vec<_>>(), "{history:?}");
            assert_eq!(
                attempts.iter().filter(|attempt| attempt.outcome.is_none()).count(),
                usize::from(state == State::Running),
                "{history:?}"
            );
            assert!(view.spent <= view.attempt);
        }
        assert_eq!(t.audit(&PATIENT).await, [], "{history:?}");
    }
}

// ---------------------------------------------------------------------------------------------
// What only one backend has.

#[tokio::test]
async fn a_wrong_password_is_an_access_error_that_does_not_show_it() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(rules.path(), "host all locked all scram-sha-256\nhost all all all trust\n").unwrap();
    std::fs::set_permissions(rules.path(), Permissions::from_mode(0o644)).unwrap();
    let settings = vec![("hba_file", rules.path().display().to_string())];
    let server =
        support::Postgres::start(support::postgres::Options { settings, ..Default::default() }).await;
    let database = server.database("contract").await;
    database.connect().await.execute("create role locked login password 'right'").await.unwrap();
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username("locked").unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let store = PostgresStore::new(postgres_options(url.as_str())).unwrap();
    let error = errand::store::Admin::now(&store).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Access, "{error}");
    assert!(!format!("{error} {error:?} {store:?}").contains("hunter2"));
    for url in ["", "nonsense", "postgres://app:hunter2@[x/db", "postgres://app:hunter2@h/db?sslmode=hunter2"]
    {
        let error = PostgresStore::new(postgres_options(url)).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Access);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_unavailable_and_recovers() {
    let server = support::Postgres::start(support::postgres::Options::default()).await;
    let database = server.database("contract").await;
    let store = PostgresStore::new(postgres_options(&database.url)).unwrap();
    errand::store::Admin::migrate(&store).await.unwrap();
    let claims = [claim(&job(json!({})))];
    server.kill9().await;
    let error = errand::store::Jobs::claim(&store, WorkerId::new(), &claims).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    server.restart().await;
    let worker = WorkerId::new();
    let answer = support::wait::until("the store to recover", Duration::from_secs(20), async || {
        errand::store::Jobs::claim(&store, worker, &claims).await.ok()
    })
    .await;
    running(one(answer));
}

/// As behind a gateway that forgot a connection: nothing comes, and nothing ends it.
#[tokio::test]
async fn a_connection_on_which_nothing_comes_any_more_holds_up_nobody_for_ever() {
    let database = support::postgres::shared().await.database("silence").await;
    let port = database.url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    let proxy = support::Proxy::start(port).await;
    let store = PostgresStore::new(PostgresOptions {
        hot_connections: 1,
        statement_timeout: Duration::from_secs(5),
        ..postgres_options(&proxy.url(&database.url))
    })
    .unwrap();
    errand::store::Admin::migrate(&store).await.unwrap();
    let claims = [claim(&job(json!({})))];
    let worker = WorkerId::new();
    let claiming = || errand::store::Jobs::claim(&store, worker, &claims);
    // The lock has the answer come when the way is closed already.
    let mut other = database.connect().await;
    sqlx::raw_sql("begin; lock table jobs in access exclusive mode").execute(&mut other).await.unwrap();
    let closing = async {
        let waits = "select 1 from pg_locks where not granted and database =
            (select oid from pg_database where datname = current_database())";
        until("the claim to wait", Duration::from_secs(4), async || {
            sqlx::query(waits).fetch_optional(&mut other).await.unwrap()
        })
        .await;
        proxy.stall();
        sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    };
    let both = async { tokio::join!(claiming(), closing).0 };
    let silent = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the wait ends");
    assert_eq!(silent.unwrap_err().kind(), StoreErrorKind::Unavailable);
    proxy.heal().await;
    let answer = until("the store to recover", Duration::from_secs(20), async || claiming().await.ok()).await;
    running(one(answer));
}

/// Without the statistics, PostgreSQL would compare each job with each claimed ID.
#[tokio::test]
async fn the_jobs_of_a_lost_worker_are_found_by_their_keys_before_statistics_know_of_them() {
    const JOBS: usize = 3_000;
    let t = Bench::postgres().await;
    t.execute("alter table jobs set (autovacuum_enabled = false)").await;
    t.execute("alter table claims set (autovacuum_enabled = false)").await;
    let specs: Vec<_> = (0..JOBS).map(|_| job(json!({}))).collect();
    for specs in specs.chunks(500) {
        let claims: Vec<_> = specs.iter().map(claim).collect();
        t.store.claim(t.worker, &claims).await.unwrap();
    }
    assert_eq!(t.store.lost_jobs(Duration::ZERO, JOBS * 2).await.unwrap().len(), JOBS);
    assert_eq!(t.store.forget_workers(LEASE).await.unwrap(), 0);
    t.store.close().await;
    let Place::Postgres(database) = &t.place else { unreachable!("that is the backend") };
    // What a session did is counted when it has ended.
    let read_whole = until("the looks are counted", PATIENCE, async || {
        let sql = "select idx_scan, seq_tup_read from pg_stat_user_tables where relname = 'jobs'";
        let row = database.connect().await.fetch_one(sql).await.unwrap();
        let (by_key, read_whole): (i64, i64) = (row.get(0), row.get(1));
        (by_key >= i64::try_from(JOBS).unwrap()).then_some(read_whole)
    })
    .await;
    assert_eq!(read_whole, 0, "rows that were read to find others");
}

#[tokio::test]
async fn a_sqlite_store_lives_in_the_time_of_its_clock() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(HandClock(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap())));
    let store: SharedStore = Arc::new(sqlite(&dir, clock.clone()));
    store.migrate().await.unwrap();
    assert_eq!(store.now().await.unwrap(), "2026-01-01T00:00:00Z".parse().unwrap());
    let spec = job(json!({"run_at": "2026-01-01T01:00:00Z", "expires_at": "2026-01-01T02:00:00Z"}));
    let state = one(store.insert(std::slice::from_ref(&spec), LEASE).await.unwrap());
    assert_eq!(state, Inserted::New { state: State::Scheduled });
    assert_eq!(store.next_due_in().await.unwrap(), Some(Duration::from_secs(3600)));
    assert!(store.take_due(1, LEASE).await.unwrap().is_empty());

    clock.advance(SignedDuration::from_mins(61));
    let due = one(store.take_due(1, LEASE).await.unwrap());
    assert_eq!(due.was, State::Scheduled);
    let worker = WorkerId::new();
    store.beat(worker, "w").await.unwrap();
    let first = Claim { from_store: true, ..claim(&spec) };
    let receipt = running(one(store.claim(worker, std::slice::from_ref(&first)).await.unwrap()));
    assert_eq!(receipt.age, Duration::from_secs(3660));
    assert!(store.lost_jobs(LEASE, 10).await.unwrap().is_empty());

    clock.advance(SignedDuration::from_mins(60));
    let lost = one(store.lost_jobs(LEASE, 10).await.unwrap());
    assert_eq!(lost.age, Duration::from_secs(7260));
    let held = Held { id: spec.id, request_id: first.request_id, receipt };
    let rescued = store.finish(&[held.rescue(retry(Duration::ZERO))]).await.unwrap();
    assert_eq!(rescued, [applied(State::Retryable)]);
    store.take_due(1, LEASE).await.unwrap();
    let second = Claim { from_store: true, ..claim(&spec) };
    let answer = one(store.claim(worker, &[second]).await.unwrap());
    assert!(matches!(answer, Claimed::Ended { kind: ErrorKind::Expired, .. }), "{answer:?}");
}

#[derive(Debug)]
struct HandClock(Mutex<Timestamp>);

impl HandClock {
    fn advance(&self, by: SignedDuration) {
        let mut now = self.0.lock().unwrap();
        *now += by;
    }
}

impl clock::Clock for HandClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}
