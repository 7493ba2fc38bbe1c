//! Connections that held jobs wait for.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, Ending, ErrorKind, HeldReason, JobSpec, Release, State, Stop},
    store::{Awaited, Claim, Claimed},
};
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, applied, binding, claim, error, in_hours, job, job_with_reply,
    late, on_every_backend, one, retry, running,
};

/// Held because the toolkit has to be connected, in the ways in which that can happen.
fn connect(toolkit: &str) -> Ending {
    Stop::Connect { toolkit: toolkit.into(), error: error(ErrorKind::NeedsConnection) }.into()
}

pub(super) fn park(spec: &Arc<JobSpec>, toolkit: &str) -> Claim {
    let stop = Stop::Connect { toolkit: toolkit.into(), error: error(ErrorKind::NeedsConnection) };
    Claim { stop: Some(stop), ..claim(spec) }
}

on_every_backend!(jobs_that_wait_for_the_same_connection_are_asked_about_together, async |t| {
    let (new, known) = (job(json!({})), job(json!({})));
    t.insert(&known).await;
    let parked = [park(&new, "github"), park(&known, "github")];
    for answer in t.store.claim(t.worker, &parked).await.unwrap() {
        assert!(matches!(answer, Claimed::Ended { state: State::Held, kind: ErrorKind::NeedsConnection }));
    }
    for ending in [connect("github"), connect("github")] {
        let run = t.run(&job(json!({}))).await;
        assert_eq!(t.finish(&run.end(ending, AttemptOutcome::Refused)).await, applied(State::Held));
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
    t.store.cancel(called_off.id, OPERATOR).await.unwrap();
    t.finish(&called_off.end(connect("slack"), AttemptOutcome::Refused)).await;
    t.claim(&Claim {
        stop: Some(Stop::Hold { reason: HeldReason::Connection, error: error(ErrorKind::NeedsConnection) }),
        ..claim(&job(json!({"user_id": "u-4"})))
    })
    .await;

    let taken = t.store.take_awaited(10, LEASE).await.unwrap();
    let mut seen: Vec<_> =
        taken.iter().map(|a| (a.owner.to_string(), &*a.toolkit, a.account.as_deref(), a.lookups)).collect();
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
});

/// The only connection that is awaited.
pub(super) async fn awaited(t: &TestStore) -> Awaited {
    one(t.store.take_awaited(10, Duration::ZERO).await.unwrap())
}

on_every_backend!(an_awaited_connection_is_given_to_one_process, async |t| {
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
    assert_eq!((&again.owner, again.lookups), (&here[0].owner, 1));
    assert_eq!(awaited(&t).await.lookups, 1, "what was taken and not decided is taken again");
});

on_every_backend!(a_connection_that_is_there_lets_its_jobs_go_in_pages, async |t| {
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
    let run = RunningJob {
        id: named.id,
        request_id: offered.request_id,
        receipt: running(t.claim(&offered).await),
    };
    t.finish(&run.end(connect("github"), AttemptOutcome::Refused)).await;

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
});

on_every_backend!(a_connection_is_doubted_after_a_call_was_refused_with_it, async |t| {
    let refused = async || {
        let spec = job(json!({}));
        let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
        let run = RunningJob {
            id: spec.id,
            request_id: offered.request_id,
            receipt: running(t.claim(&offered).await),
        };
        t.finish(&run.end(connect("github"), AttemptOutcome::Refused)).await;
        spec.id
    };
    t.claim(&park(&job(json!({})), "github")).await;
    assert_eq!(awaited(&t).await.doubted, None);
    let id = refused().await;
    let doubted = awaited(&t).await;
    assert_eq!(doubted.doubted.as_deref(), Some("ca_1"));
    t.claim(&park(&job(json!({})), "github")).await;
    t.store.put_off_awaited(&doubted, Duration::ZERO, false).await.unwrap();
    assert!(awaited(&t).await.doubted.is_some(), "another job was run meanwhile");
    t.store.put_off_awaited(&awaited(&t).await, Duration::ZERO, true).await.unwrap();
    assert!(awaited(&t).await.doubted.is_some());
    t.store.put_off_awaited(&awaited(&t).await, Duration::ZERO, false).await.unwrap();
    assert_eq!(awaited(&t).await.doubted, None);
    assert_eq!(t.store.release_awaited(&awaited(&t).await, 9).await.unwrap(), 3);
    assert_eq!(t.view(id).await.binding.unwrap().account, None, "the new connection is another account");
});

on_every_backend!(a_connection_that_nobody_waits_for_is_forgotten, async |t| {
    let specs = [job(json!({})), job(json!({})), job(json!({}))];
    for spec in &specs {
        t.claim(&park(spec, "github")).await;
    }
    t.store.release(specs[0].id, Release::Retry, OPERATOR).await.unwrap();
    t.store.release(specs[1].id, Release::Failed, OPERATOR).await.unwrap();
    let before = awaited(&t).await;
    t.store.cancel(specs[2].id, OPERATOR).await.unwrap();
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
    assert!(t.store.census().await.unwrap().held.is_empty(), "no job is run without being awaited");
});

on_every_backend!(a_job_waits_for_a_connection_until_its_time_has_passed, async |t| {
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
                        let run = RunningJob { id: spec.id, request_id: first.request_id, receipt };
                        t.finish(&run.end(connect("github"), AttemptOutcome::Refused)).await;
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
});
