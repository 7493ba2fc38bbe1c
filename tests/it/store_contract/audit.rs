//! The audit and its repairs.

use std::time::Duration;

use errand::{
    job::{AttemptOutcome, Ending, ErrorKind, JobId, LookResult, Principal, Release, State, WorkerId},
    store::{AuditLimits, Finding, FindingKind, PutOff},
};
use jiff::SignedDuration;
use serde_json::json;

use super::{
    LEASE, OPERATOR, Place, TestStore, error, hold, job, job_with_reply, late, on_every_backend, one, retry,
    succeed,
};

/// Limits that no test reaches.
pub(super) const PATIENT: AuditLimits = AuditLimits {
    lease: Duration::from_secs(3600),
    lost: Duration::from_secs(3600),
    timeout: Duration::from_secs(3600),
    overrun: Duration::from_secs(3600),
    overdue: Duration::from_secs(3600),
    publications: 100,
    verified: false,
};

/// Limits that everything has passed at once.
const IMPATIENT: AuditLimits = AuditLimits {
    lease: Duration::ZERO,
    lost: Duration::ZERO,
    timeout: Duration::ZERO,
    overrun: Duration::ZERO,
    overdue: Duration::ZERO,
    publications: 5,
    verified: true,
};

impl TestStore {
    /// All findings, in pages of three jobs.
    pub(super) async fn audit(&self, limits: &AuditLimits) -> Vec<(FindingKind, JobId)> {
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

on_every_backend!(an_audit_sees_every_job_once_and_finds_nothing_in_a_sound_store, async |t| {
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    assert_eq!(t.audit(&PATIENT).await, []);
    for state in State::ALL.iter().copied().chain([State::Succeeded, State::Running]) {
        t.in_state(state).await;
    }
    // A second attempt is recorded in another way than a first one that succeeds.
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let run = t.run(&spec).await;
    assert_eq!(t.audit(&PATIENT).await, []);
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.audit(&PATIENT).await, []);
    let (mut seen, mut after) = (0, None);
    while let page = t.store.audit(after, 4, &PATIENT).await.unwrap()
        && page.last.is_some()
    {
        seen += page.seen;
        after = page.last;
    }
    assert_eq!(seen, 11);
});

on_every_backend!(a_running_job_without_a_worker_is_found_and_made_findable, async |t| {
    let lost = AuditLimits { lost: Duration::ZERO, ..PATIENT };
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.in_state(State::Succeeded).await;
    assert_eq!(t.audit(&PATIENT).await, [], "its worker may not have beaten yet");
    let without_worker = [(FindingKind::RunningWithoutWorker, spec.id)];
    assert_eq!(t.audit(&lost).await, without_worker, "nobody knows its worker");
    t.store.beat(t.worker, "w", Duration::ZERO).await.unwrap();
    assert_eq!(t.audit(&lost).await, without_worker, "its worker is lost");
    assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "the rescue finds it anyhow");

    if let Place::Postgres(_) = t.place {
        t.execute("delete from claims").await;
        assert_eq!(t.store.lost_jobs(LEASE, 10).await.unwrap().len(), 0, "the rescue is blind");
        assert_eq!(t.audit(&lost).await, without_worker);
        let without_claim = [(FindingKind::RunningWithoutClaim, spec.id)];
        assert_eq!(t.audit(&PATIENT).await, without_claim, "its worker lives, but might not for ever");
        assert_eq!(t.store.make_findable(&[spec.id, JobId::new()]).await.unwrap(), [spec.id]);
        assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "again");
        assert_eq!(t.audit(&PATIENT).await, []);
    }
    let found = one(t.store.lost_jobs(LEASE, 10).await.unwrap());
    assert_eq!(
        (found.id, found.receipt.fence, found.request_id),
        (spec.id, run.receipt.fence, run.request_id)
    );
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.audit(&lost).await, []);
    assert_eq!(t.store.make_findable(&[spec.id]).await.unwrap(), [], "it does not run any more");
    t.store.forget_workers(Duration::ZERO).await.unwrap();
});

on_every_backend!(a_running_job_that_outlives_its_timeout_is_found, async |t| {
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
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
});

on_every_backend!(what_is_overdue_is_found, async |t| {
    for state in [State::Scheduled, State::Retryable, State::Failed, State::Cancelled] {
        t.in_state(state).await;
    }
    assert_eq!(t.audit(&IMPATIENT).await, [], "what is due later, or never, is not late");
    let due = t.in_state(State::Available).await;

    let replied = job_with_reply(json!({}), Some("replies"));
    let run = t.run(&replied).await;
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;

    let asked = job(json!({}));
    let run = t.run(&asked).await;
    let verify = Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) };
    t.finish(&run.end(verify, AttemptOutcome::Unknown)).await;
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
        checks: check.checks,
        again_after: None,
        look: LookResult::Unclear,
        detail: None,
    };
    assert!(t.store.put_off(&gave_up).await.unwrap());
    assert_eq!(t.audit(&IMPATIENT).await, [(FindingKind::NotLookedUp, never_asked)]);
});

on_every_backend!(a_job_that_nobody_claims_is_found_and_made_due, async |t| {
    let limits = AuditLimits { publications: 3, ..PATIENT };
    let (spec, running) = (job(json!({})), t.in_state(State::Running).await);
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
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
});

on_every_backend!(attempts_without_an_outcome_are_found, async |t| {
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    let sound = t.in_state(State::Failed).await;
    for damage in [
        "delete from attempts where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set outcome = 'perhaps' where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set number = 7 where job_id in (select id from jobs where tool = 'DAMAGED')",
        "update attempts set request_id = job_id where job_id in (select id from jobs where tool = 'DAMAGED')",
    ] {
        let spec = job(json!({"tool": "DAMAGED"}));
        let run = t.run(&spec).await;
        t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
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
});

on_every_backend!(rows_that_break_a_rule_are_found_and_left_alone, async |t| {
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
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
});

on_every_backend!(the_eldest_living_worker_is_known, async |t| {
    let younger = WorkerId::new();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), None);
    t.store.beat(t.worker, "elder", LEASE).await.unwrap();
    t.store.beat(younger, "younger", LEASE).await.unwrap();
    t.store.beat(t.worker, "elder", LEASE).await.unwrap();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), Some(t.worker));
    assert_eq!(t.other.eldest_worker(LEASE).await.unwrap(), Some(t.worker), "all agree");
    assert_eq!(
        t.store.eldest_worker(Duration::ZERO).await.unwrap(),
        Some(t.worker),
        "each has its own lease"
    );
    t.store.beat(t.worker, "elder", Duration::ZERO).await.unwrap();
    assert_eq!(
        t.store.eldest_worker(LEASE).await.unwrap(),
        Some(younger),
        "the elder has not beaten in time"
    );
    t.store.retire(t.worker).await.unwrap();
    assert_eq!(t.store.eldest_worker(LEASE).await.unwrap(), Some(younger));
});

on_every_backend!(what_succeeded_by_a_call_is_told_from_what_a_person_said, async |t| {
    let mut expected = vec![t.in_state(State::Succeeded).await];
    t.in_state(State::Failed).await;
    let by_a_person = t.in_state(State::Held).await;
    t.store.release(&Principal::Operator, by_a_person, Release::Succeeded, OPERATOR).await.unwrap();
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(
        t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await,
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
});
