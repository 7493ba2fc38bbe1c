//! Connections that held jobs wait for.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, Ending, ErrorKind, HeldReason, JobSpec, Principal, Release, State, Stop},
    store::{Awaited, Claim, Claimed, TakeAwaited},
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

/// What can be asked about together, or the next one alone, from the moment at which it is awaited.
const TOGETHER: TakeAwaited =
    TakeAwaited { together: true, limit: 100, first_after: Duration::ZERO, again_after: LEASE };
const ALONE: TakeAwaited = TakeAwaited { together: false, ..TOGETHER };

/// Takes all that are due.
pub(super) async fn take_all(t: &TestStore) -> Vec<Awaited> {
    let mut all = Vec::new();
    for take in [TOGETHER, ALONE] {
        loop {
            let taken = t.store.take_awaited(take).await.unwrap();
            if taken.is_empty() {
                break;
            }
            all.extend(taken);
        }
    }
    all
}

/// All that are due, which they stay.
async fn see_all(t: &TestStore) -> Vec<Awaited> {
    let all = take_all(t).await;
    t.store.give_back_awaited(&all).await.unwrap();
    all
}

/// Puts one off, to be due at once.
pub(super) async fn put_off_now(t: &TestStore, awaited: &Awaited, keep_doubt: bool) {
    t.store.put_off_awaited(&[(awaited.clone(), Duration::ZERO)], keep_doubt).await.unwrap();
}

fn owners(awaited: &[Awaited]) -> Vec<String> {
    awaited.iter().map(|awaited| awaited.owner.id().to_owned()).collect()
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
    t.store.cancel(&Principal::Operator, called_off.id, OPERATOR).await.unwrap();
    t.finish(&called_off.end(connect("slack"), AttemptOutcome::Refused)).await;
    t.claim(&Claim {
        stop: Some(Stop::Hold { reason: HeldReason::Connection, error: error(ErrorKind::NeedsConnection) }),
        ..claim(&job(json!({"user_id": "u-4"})))
    })
    .await;

    let taken = take_all(&t).await;
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
    one(see_all(t).await)
}

on_every_backend!(an_awaited_connection_is_given_to_one_process, async |t| {
    for n in 0..20 {
        t.claim(&park(&job(json!({"user_id": format!("u-{n}")})), "github")).await;
    }
    let some = TakeAwaited { limit: 12, ..TOGETHER };
    let (here, there) = tokio::join!(t.store.take_awaited(some), t.other.take_awaited(some));
    let (here, there) = (here.unwrap(), there.unwrap());
    let rest = take_all(&t).await;
    let owners: HashSet<String> =
        here.iter().chain(&there).chain(&rest).map(|awaited| awaited.owner.to_string()).collect();
    assert_eq!((here.len() + there.len() + rest.len(), owners.len()), (20, 20), "each once");
    assert!(take_all(&t).await.is_empty());

    let all: Vec<Awaited> = here.into_iter().chain(there).chain(rest).collect();
    let put_off = [(all[0].clone(), Duration::ZERO), (all[1].clone(), LEASE)];
    t.store.put_off_awaited(&put_off, true).await.unwrap();
    let for_a_moment = TakeAwaited { again_after: Duration::ZERO, ..TOGETHER };
    let again = one(t.store.take_awaited(for_a_moment).await.unwrap());
    assert_eq!((&again.owner, again.lookups), (&all[0].owner, 1));
    assert_eq!(awaited(&t).await.lookups, 1, "what was taken and not decided is taken again");
});

on_every_backend!(connections_of_a_toolkit_are_taken_together_or_each_alone, async |t| {
    let park = async |fields: serde_json::Value, toolkit: &str| t.claim(&park(&job(fields), toolkit)).await;
    for n in 0..3 {
        park(json!({"user_id": format!("u-{n}"), "connected_account_id": "ca_1"}), "github").await;
        park(json!({"user_id": format!("u,{n}")}), "github").await;
    }
    park(json!({"user_id": "u-3"}), "github").await;
    park(json!({"user_id": "u-4"}), "gmail").await;
    for n in 5..8 {
        park(json!({"user_id": format!("u-{n}")}), "github").await;
    }
    park(json!({"org_id": "u-3"}), "gmail").await;
    let take = async |take| owners(&t.store.take_awaited(take).await.unwrap());
    assert_eq!(take(TakeAwaited { limit: 3, ..TOGETHER }).await, ["u-3", "u-5", "u-6"], "longest due first");
    assert_eq!(take(TOGETHER).await, ["u-4", "u-3"], "of the toolkit of the first");
    assert_eq!(take(TOGETHER).await, ["u-7"]);
    assert!(take(TOGETHER).await.is_empty());
    for owner in ["u-0", "u,0", "u-1", "u,1", "u-2", "u,2"] {
        assert_eq!(take(ALONE).await, [owner], "one at a time");
    }
    assert!(take(ALONE).await.is_empty());
});

on_every_backend!(a_connection_is_due_some_time_after_the_first_of_its_jobs_was_held, async |t| {
    for owner in ["u-1", "u-2"] {
        t.claim(&park(&job(json!({"user_id": owner})), "github")).await;
    }
    let later = TakeAwaited { first_after: LEASE, ..TOGETHER };
    assert!(t.store.take_awaited(later).await.unwrap().is_empty());
    let seen = see_all(&t).await;
    assert!(t.store.take_awaited(later).await.unwrap().is_empty(), "it was not asked about");
    put_off_now(&t, &seen[0], true).await;
    assert_eq!(owners(&t.store.take_awaited(later).await.unwrap()), ["u-1"], "it was");
});

on_every_backend!(what_was_not_asked_about_is_due_as_it_was_unless_it_was_put_off, async |t| {
    for owner in ["u-1", "u-2", "u-3"] {
        let spec = job(json!({"user_id": owner}));
        let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
        let receipt = running(t.claim(&offered).await);
        let run = RunningJob { id: spec.id, request_id: offered.request_id, receipt };
        t.finish(&run.end(connect("github"), AttemptOutcome::Refused)).await;
    }
    let before = take_all(&t).await;
    assert_eq!(owners(&before), ["u-1", "u-2", "u-3"]);
    t.claim(&park(&job(json!({"user_id": "u-4"})), "github")).await;
    t.store.put_off_awaited(&[(before[0].clone(), LEASE)], true).await.unwrap();
    t.store.give_back_awaited(&before).await.unwrap();
    let after = take_all(&t).await;
    assert_eq!(owners(&after), ["u-2", "u-3", "u-4"], "it keeps its place");
    assert_eq!(after[..2], before[1..], "nothing was found out");
    assert!(after[0].doubted.is_some());
});

on_every_backend!(connections_that_nobody_waits_for_hide_no_other, async |t| {
    for n in 0..5 {
        let spec = job(json!({"user_id": format!("u-{n}")}));
        t.claim(&park(&spec, "github")).await;
        t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    }
    t.claim(&park(&job(json!({"user_id": "u-5"})), "gmail")).await;
    let few = TakeAwaited { limit: 2, ..TOGETHER };
    assert_eq!(owners(&t.store.take_awaited(few).await.unwrap()), ["u-5"]);
    assert_eq!(t.count("select count(*) from awaited").await, 1);
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

    let all = see_all(&t).await;
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
    put_off_now(&t, &doubted, false).await;
    assert!(awaited(&t).await.doubted.is_some(), "another job was run meanwhile");
    put_off_now(&t, &awaited(&t).await, true).await;
    assert!(awaited(&t).await.doubted.is_some());
    put_off_now(&t, &awaited(&t).await, false).await;
    assert_eq!(awaited(&t).await.doubted, None);
    assert_eq!(t.store.release_awaited(&awaited(&t).await, 9).await.unwrap(), 3);
    assert_eq!(t.view(id).await.binding.unwrap().account, None, "the new connection is another account");
});

on_every_backend!(a_connection_that_nobody_waits_for_is_forgotten, async |t| {
    let specs = [job(json!({})), job(json!({})), job(json!({}))];
    for spec in &specs {
        t.claim(&park(spec, "github")).await;
    }
    t.store.release(&Principal::Operator, specs[0].id, Release::Retry, OPERATOR).await.unwrap();
    t.store.cancel(&Principal::Operator, specs[1].id, OPERATOR).await.unwrap();
    let before = awaited(&t).await;
    t.store.cancel(&Principal::Operator, specs[2].id, OPERATOR).await.unwrap();
    assert!(take_all(&t).await.is_empty());

    // One that is held while the last one goes is awaited like the first.
    t.claim(&park(&job(json!({})), "github")).await;
    assert_eq!(t.store.release_awaited(&before, 10).await.unwrap(), 0, "that was another wait");
    assert_eq!(t.store.release_awaited(&awaited(&t).await, 10).await.unwrap(), 1);
    let parked: Vec<_> = (0..40).map(|_| park(&job(json!({})), "github")).collect();
    for pair in parked.chunks(2) {
        let (first, second) = (t.store.claim(t.worker, &pair[..1]), t.other.claim(t.worker, &pair[1..]));
        let release = async {
            for awaited in see_all(&t).await {
                t.store.release_awaited(&awaited, 10).await.unwrap();
            }
        };
        let (first, second, ()) = tokio::join!(first, second, release);
        first.unwrap();
        second.unwrap();
    }
    while let [left] = &see_all(&t).await[..] {
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
