//! What the whole store keeps, whichever of its traits is called.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use errand::{
    clock,
    job::{
        AttemptOutcome, Ending, EnvelopeReason, ErrorKind, Fence, JobSpec, LookResult, Principal, Release,
        State, Stop, Transition, WorkerId,
    },
    store::{
        Claim, Claimed, Decided, Finished, Force, PutOff, Rejected, RejectedFilter, Repeated, SharedStore,
        StoreErrorKind,
    },
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use uuid::Uuid;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, applied,
    audit::PATIENT,
    binding, claim,
    connections::{awaited, put_off_now},
    error, fail, hold, is_new, job, job_with_reply, late, on_every_backend, one, retry, running, sqlite,
    succeed,
};

/// A person who does not wait for the time of a scheduled job.
const NOW: Force = Force { effect: false, early: true };

on_every_backend!(counts_stay_at_their_maximum, async |t| {
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

    // Claims.
    let tried = job(json!({}));
    t.insert(&tried).await;
    set(&tried, "attempt = 2147483646").await;
    for fence in 1..=2 {
        let run = t.run(&tried).await;
        assert_eq!((run.receipt.attempt, run.receipt.fence), (MAX, Fence(fence)));
        t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
        t.publish().await;
    }

    // Attempts that count, ended in time and late.
    let spent = job(json!({}));
    let run = t.run(&spent).await;
    set(&spent, "attempt = 2147483647, spent = 2147483647").await;
    let mut finish = run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed);
    finish.attempt.number = MAX;
    let good = t.run(&job(json!({}))).await.end(succeed("{}"), AttemptOutcome::Succeeded);
    let answers = t.store.finish(&[finish, good]).await.unwrap();
    assert_eq!(answers, [applied(State::Retryable), applied(State::Succeeded)]);
    assert_eq!(t.view(spent.id).await.spent, MAX);
    let mut late_finish = run.end(fail(), AttemptOutcome::ToolFailed);
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
        checks: MAX,
        again_after: Some(Duration::ZERO),
        look: LookResult::Unclear,
        detail: None,
    };
    assert!(t.store.put_off(&put_off).await.unwrap());
    assert_eq!(one(t.store.take_checks(10, LEASE).await.unwrap()).checks, MAX);

    // Looks for connections, and jobs that wait for them.
    let connect = || -> Ending {
        Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
    };
    let waiting = t.run(&job(json!({}))).await;
    t.finish(&waiting.end(connect(), AttemptOutcome::Interrupted)).await;
    t.execute("update awaited set lookups = 2147483647, parked = 9223372036854775807").await;
    let more = t.run(&job(json!({}))).await;
    assert_eq!(t.finish(&more.end(connect(), AttemptOutcome::Interrupted)).await, applied(State::Held));
    let found = awaited(&t).await;
    put_off_now(&t, &found, false).await;
    let found = awaited(&t).await;
    assert_eq!(found.lookups, MAX);
    assert_eq!(t.store.release_awaited(&found, 10).await.unwrap(), 2);

    // Deliveries of what is no job.
    let message = Rejected {
        id: Uuid::from_u128(1),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "no".into(),
        body: b"x".to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    t.store.reject(std::slice::from_ref(&message)).await.unwrap();
    t.execute("update rejected set seen = 2147483646").await;
    for _ in 0..2 {
        t.store.reject(&[message.clone(), message.clone()]).await.unwrap();
        assert_eq!(
            one(t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 10).await.unwrap())
                .seen,
            MAX
        );
    }
});

on_every_backend!(a_value_that_cannot_be_stored_is_refused_alone, async |t| {
    let spec = job(json!({}));
    let good = claim(&spec);
    let bad = Claim { binding: Some(binding("a\0b")), ..claim(&job(json!({}))) };
    let error = t.store.claim(t.worker, &[good.clone(), bad.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Data);
    assert!(t.store.claim(t.worker, std::slice::from_ref(&bad)).await.is_err());
    assert!(t.store.job(&Principal::Operator, bad.spec.id).await.unwrap().is_none());
    let receipt = running(t.claim(&good).await);

    let run = RunningJob { id: spec.id, request_id: good.request_id, receipt };
    let mut finish = run.end(succeed("{}"), AttemptOutcome::Succeeded);
    finish.attempt.log_id = Some("secret of a customer\0".into());
    let error = t.store.finish(std::slice::from_ref(&finish)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Data);
    assert!(!format!("{error} {error:?}").contains("customer"), "{error:?}");
    assert_eq!(t.state(spec.id).await, State::Running);
    let text = Arc::new(JobSpec { text: Some("\0".into()), ..(*job(json!({}))).clone() });
    assert_eq!(t.store.insert(&[text], LEASE).await.unwrap_err().kind(), StoreErrorKind::Data);
    assert_eq!(t.store.bind(&[run.bind(&binding("\0"))]).await.unwrap_err().kind(), StoreErrorKind::Data);
    finish.attempt.log_id = None;
    assert_eq!(t.finish(&finish).await, applied(State::Succeeded));
});

on_every_backend!(dropped_futures_do_no_harm, async |t| {
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
        drop(tokio::time::timeout(wait, t.store.cancel(&Principal::Operator, spec.id, OPERATOR)).await);
        specs.push((batch, finishes));
    }
    for (batch, finishes) in specs {
        t.store.claim(t.worker, &batch).await.unwrap();
        assert_eq!(t.finish(&finishes[0]).await, applied(State::Failed));
        assert_eq!(t.outcomes(finishes[0].id).await.len(), 1);
        // Another process sees it, so nothing is stuck in an open transaction.
        assert_eq!(
            t.other.job(&Principal::Operator, finishes[0].id).await.unwrap().unwrap().state,
            State::Failed
        );
    }
});

// Walks jobs through random operations and checks every step against [`Transition`].
on_every_backend!(random_histories_keep_the_rules, async |t| {
    let mut random = fastrand::Rng::with_seed(0x6572_7261_6e64);
    for _ in 0..25 {
        let spec = job_with_reply(json!({}), Some("replies"));
        t.insert(&spec).await;
        let (mut state, mut cancelled) = (State::Available, false);
        let mut claims: Vec<RunningJob> = Vec::new();
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
                            claims.push(RunningJob { id: spec.id, request_id: claim.request_id, receipt });
                            Transition::Claim.apply(state)
                        }
                        Claimed::Duplicate(Repeated { state: is, .. }) => Ok(is.unwrap()),
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
                        matches!(
                            t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap(),
                            Decided::Now(_)
                        ),
                        moved.is_ok()
                    );
                    Ok(moved.unwrap_or(state))
                }
                4 => {
                    let moved = Transition::Restart.apply(state);
                    cancelled &= moved.is_err();
                    assert_eq!(
                        matches!(
                            t.store.restart(&Principal::Operator, spec.id, OPERATOR, NOW).await.unwrap(),
                            Decided::Now(_)
                        ),
                        moved.is_ok()
                    );
                    Ok(moved.unwrap_or(state))
                }
                5 => {
                    let release = [Release::Retry, Release::Succeeded, Release::Failed][random.usize(..3)];
                    let moved = Transition::Release(release).apply(state);
                    let answer =
                        t.store.release(&Principal::Operator, spec.id, release, OPERATOR).await.unwrap();
                    assert_eq!(matches!(answer, Decided::Now(_)), moved.is_ok());
                    Ok(moved.unwrap_or(state))
                }
                _ if claims.is_empty() => Ok(state),
                _ => {
                    let run = &claims[random.usize(..claims.len())];
                    let finish = if step == 6 {
                        run.rescue(ending.clone())
                    } else {
                        run.end(
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
            let attempts = t.store.attempts(&Principal::Operator, spec.id).await.unwrap();
            let mut last = 0;
            for attempt in &attempts {
                last += attempt.times;
                assert_eq!(attempt.number, last, "{history:?}");
            }
            assert_eq!(last, view.attempt, "{history:?}");
            assert_eq!(
                attempts.iter().filter(|attempt| attempt.outcome.is_none()).count(),
                usize::from(state == State::Running),
                "{history:?}"
            );
            assert!(view.spent <= view.attempt);
        }
        assert_eq!(t.audit(&PATIENT).await, [], "{history:?}");
    }
});

#[tokio::test]
async fn a_sqlite_store_lives_in_the_time_of_its_clock() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(HandClock(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap())));
    let store: SharedStore = Arc::new(sqlite(&dir, clock.clone()));
    store.migrate().await.unwrap();
    assert_eq!(store.now().await.unwrap(), "2026-01-01T00:00:00Z".parse().unwrap());
    let spec = job(json!({"run_at": "2026-01-01T01:00:00Z", "expires_at": "2026-01-01T02:00:00Z"}));
    let inserted = one(store.insert(std::slice::from_ref(&spec), LEASE).await.unwrap());
    assert!(is_new(&inserted, State::Scheduled));
    assert_eq!(store.next_due_in().await.unwrap(), Some(Duration::from_secs(3600)));
    assert!(store.take_due(1, LEASE).await.unwrap().is_empty());

    clock.advance(SignedDuration::from_mins(61));
    let due = one(store.take_due(1, LEASE).await.unwrap());
    assert_eq!(due.was, State::Scheduled);
    let worker = WorkerId::new();
    store.beat(worker, "w", LEASE).await.unwrap();
    let first = Claim { from_store: true, ..claim(&spec) };
    let receipt = running(one(store.claim(worker, std::slice::from_ref(&first)).await.unwrap()));
    assert_eq!(receipt.age, Duration::from_secs(3660));
    assert!(store.lost_jobs(LEASE, 10).await.unwrap().is_empty());

    clock.advance(SignedDuration::from_mins(60));
    let lost = one(store.lost_jobs(LEASE, 10).await.unwrap());
    assert_eq!(lost.receipt.age, Duration::from_secs(7260));
    let run = RunningJob { id: spec.id, request_id: first.request_id, receipt };
    let rescued = store.finish(&[run.rescue(retry(Duration::ZERO))]).await.unwrap();
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
