//! The history of rare decisions.

use std::time::Duration;

use errand::{
    bounds::{MAX_DECIDER_CHARS, MAX_HISTORY},
    job::{
        AttemptOutcome, Ending, ErrorKind, Fence, HeldReason, JobId, LookResult, Principal, Release, State,
        Stop,
    },
    store::{By, Claim, Decider, Finish, Finished, Force, HistoryFact, PutOff, StoreErrorKind},
};
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, applied, binding, claim,
    connections::{park, take_all},
    error, fail, hold, job, late, on_every_backend, retry, running, succeed,
};

const UNKNOWN: HistoryFact = HistoryFact::Held { reason: HeldReason::UnknownOutcome };

fn verify() -> Ending {
    Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) }
}

fn connect() -> Ending {
    Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
}

fn put_off(run: &RunningJob, checks: u32, again_after: Option<Duration>, detail: Option<&str>) -> PutOff {
    let look = if detail.is_some() { LookResult::Closed } else { LookResult::Absent };
    let detail = detail.map(str::to_owned);
    PutOff { id: run.id, fence: run.receipt.fence, checks, again_after, look, detail }
}

fn looked_up(run: &RunningJob, ending: Ending, outcome: AttemptOutcome) -> Finish {
    Finish { by: By::LookUp, ..run.end(ending, outcome) }
}

fn released(how: Release) -> HistoryFact {
    HistoryFact::Released { how }
}

impl TestStore {
    /// Who decided what, about which attempt.
    async fn decided(&self, id: JobId) -> Vec<(String, Option<u32>, HistoryFact)> {
        let history = self.store.history(&Principal::Operator, id).await.unwrap();
        assert!(history.is_sorted_by_key(|entry| entry.at));
        history.into_iter().map(|entry| (entry.by, entry.attempt, entry.fact)).collect()
    }

    async fn facts(&self, id: JobId) -> Vec<HistoryFact> {
        self.decided(id).await.into_iter().map(|(_, _, fact)| fact).collect()
    }

    /// Runs a job that is bound to the account `ca_1`, unless it names one.
    pub(super) async fn run_bound(&self, fields: serde_json::Value) -> RunningJob {
        let spec = job(fields);
        let claim = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
        let receipt = running(self.claim(&claim).await);
        RunningJob { id: spec.id, request_id: claim.request_id, receipt }
    }
}

on_every_backend!(rare_decisions_are_in_the_history_in_order_with_who_made_them, async |t| {
    let spec = job(json!({}));
    t.claim(&park(&spec, "github")).await;
    t.store
        .release(&Principal::Operator, spec.id, Release::Retry, &Decider::at_command_line("alice"))
        .await
        .unwrap();
    let first = t.run(&spec).await;
    t.finish(&first.end(verify(), AttemptOutcome::Unknown)).await;
    t.store.put_off(&put_off(&first, 0, Some(LEASE), Some("it says 503"))).await.unwrap();
    t.store.put_off(&put_off(&first, 1, None, None)).await.unwrap();
    t.store
        .release(&Principal::Operator, spec.id, Release::Retry, &Decider::at_command_line("bob"))
        .await
        .unwrap();
    let second = t.run(&spec).await;
    t.store.cancel(&Principal::Operator, spec.id, &Decider::at_command_line("carol")).await.unwrap();
    t.finish(&second.end(fail(), AttemptOutcome::ToolFailed)).await;
    t.store
        .restart(&Principal::Operator, spec.id, &Decider::at_command_line("dave"), Force::default())
        .await
        .unwrap();
    let third = t.run(&spec).await;
    t.finish(&third.rescue(verify())).await;
    t.finish(&looked_up(&third, succeed("1"), AttemptOutcome::Succeeded)).await;

    let (person, at) = (|name: &str, fact| (name.to_owned(), None, fact), |n| Some(n));
    let errand = |part: &str, attempt, fact| (format!("errand: {part}"), attempt, fact);
    let closed = HistoryFact::LookedUp { found: LookResult::Closed, detail: Some("it says 503".into()) };
    let absent = HistoryFact::LookedUp { found: LookResult::Absent, detail: None };
    assert_eq!(
        t.decided(spec.id).await,
        [
            errand("admission", None, HistoryFact::Held { reason: HeldReason::Connection }),
            person("alice", released(Release::Retry)),
            errand("worker", at(1), HistoryFact::Unknown),
            errand("look-up", at(1), closed),
            errand("look-up", at(1), absent),
            errand("look-up", at(1), UNKNOWN),
            person("bob", released(Release::Retry)),
            person("carol", HistoryFact::Cancelled),
            person("dave", HistoryFact::Retried),
            errand("rescue", at(3), HistoryFact::Unknown),
            errand("look-up", at(3), HistoryFact::Adopted { outcome: AttemptOutcome::Succeeded }),
        ]
    );
    assert!(t.store.history(&Principal::Operator, JobId::new()).await.unwrap().is_empty());
});

on_every_backend!(a_write_that_is_sent_again_adds_no_entry, async |t| {
    let refused = Claim {
        stop: Some(Stop::Hold { reason: HeldReason::Unidentified, error: error(ErrorKind::InvalidJob) }),
        ..claim(&job(json!({})))
    };
    let known = job(json!({}));
    t.insert(&known).await;
    for claim in [&refused, &park(&known, "github")] {
        for _ in 0..2 {
            t.claim(claim).await;
        }
        assert_eq!(t.facts(claim.spec.id).await.len(), 1);
    }

    for ending in [verify(), hold(), connect()] {
        let run = t.run(&job(json!({}))).await;
        let finish = run.end(ending, AttemptOutcome::Unknown);
        for _ in 0..2 {
            assert_eq!(t.finish(&finish).await, applied(State::Held));
        }
        assert_eq!(t.facts(run.id).await.len(), 1);
    }
    let run = t.run(&job(json!({}))).await;
    for finish in [run.rescue(verify()), looked_up(&run, retry(LEASE), AttemptOutcome::NotSent)] {
        for _ in 0..2 {
            t.finish(&finish).await;
        }
    }
    let adopted = HistoryFact::Adopted { outcome: AttemptOutcome::NotSent };
    assert_eq!(t.facts(run.id).await, [HistoryFact::Unknown, adopted]);

    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(verify(), AttemptOutcome::Unknown)).await;
    for (checks, again_after) in [(0, Some(LEASE)), (1, None)] {
        for is_recorded in [true, false] {
            let put_off = put_off(&run, checks, again_after, None);
            assert_eq!(t.store.put_off(&put_off).await.unwrap(), is_recorded);
        }
    }
    let absent = HistoryFact::LookedUp { found: LookResult::Absent, detail: None };
    assert_eq!(t.facts(run.id).await, [HistoryFact::Unknown, absent.clone(), absent, UNKNOWN]);

    let called_off = t.in_state(State::Running).await;
    let restarted = t.in_state(State::Failed).await;
    let let_go = t.in_state(State::Held).await;
    for _ in 0..2 {
        t.store.cancel(&Principal::Operator, called_off, OPERATOR).await.unwrap();
        t.store.restart(&Principal::Operator, restarted, OPERATOR, Force::default()).await.unwrap();
        t.store.release(&Principal::Operator, let_go, Release::Succeeded, OPERATOR).await.unwrap();
    }
    assert_eq!(t.facts(called_off).await, [HistoryFact::Cancelled]);
    assert_eq!(t.facts(restarted).await, [HistoryFact::Retried]);
    assert_eq!(t.facts(let_go).await, [UNKNOWN, released(Release::Succeeded)]);
});

on_every_backend!(an_ordinary_path_leaves_nothing_in_the_history, async |t| {
    for state in [
        State::Scheduled,
        State::Available,
        State::Running,
        State::Retryable,
        State::Succeeded,
        State::Failed,
    ] {
        let id = t.in_state(state).await;
        assert_eq!(t.facts(id).await, [], "{state}");
    }
    let snooze = Ending::Snooze { after: Duration::ZERO, error: None };
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(snooze, AttemptOutcome::Throttled)).await;
    let refused =
        Claim { stop: Some(Stop::Fail { error: error(ErrorKind::Unpinned) }), ..claim(&job(json!({}))) };
    t.claim(&refused).await;
    assert_eq!((t.facts(run.id).await, t.facts(refused.spec.id).await), (vec![], vec![]));
});

on_every_backend!(what_is_not_applied_is_not_in_the_history, async |t| {
    // Somebody called it off while it ran.
    let run = t.run(&job(json!({}))).await;
    t.store.cancel(&Principal::Operator, run.id, OPERATOR).await.unwrap();
    assert_eq!(t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await, applied(State::Cancelled));
    assert_eq!(t.facts(run.id).await, [HistoryFact::Cancelled]);

    // Its claim is over.
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    t.finish(&first.rescue(retry(Duration::ZERO))).await;
    t.publish().await;
    t.run(&spec).await;
    assert_eq!(t.finish(&first.end(verify(), AttemptOutcome::Unknown)).await, Finished::Fenced);
    let put_off = PutOff { fence: Fence(9), ..put_off(&first, 0, None, None) };
    assert!(!t.store.put_off(&put_off).await.unwrap());
    assert_eq!(t.facts(spec.id).await, []);

    // The database refuses another item of the batch.
    let (held, unfit) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    let mut refused = unfit.end(fail(), AttemptOutcome::ToolFailed);
    refused.attempt.log_id = Some("a\0b".into());
    let batch = [held.end(hold(), AttemptOutcome::Unknown), refused];
    assert_eq!(t.store.finish(&batch).await.unwrap_err().kind(), StoreErrorKind::Data);
    assert_eq!((t.state(held.id).await, t.facts(held.id).await), (State::Running, vec![]));
});

on_every_backend!(an_answer_of_the_log_is_told_from_one_that_came_late, async |t| {
    let (told, answered) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    for run in [&told, &answered] {
        t.finish(&run.rescue(verify())).await;
    }
    let fails = looked_up(&told, connect(), AttemptOutcome::ToolFailed);
    assert_eq!(t.finish(&fails).await, late(State::Held));
    let answer = answered.end(succeed("1"), AttemptOutcome::Succeeded);
    assert_eq!(t.finish(&answer).await, late(State::Succeeded));
    let adopted = HistoryFact::Adopted { outcome: AttemptOutcome::ToolFailed };
    let waits = HistoryFact::Held { reason: HeldReason::Connection };
    assert_eq!(t.facts(told.id).await, [HistoryFact::Unknown, adopted, waits]);
    assert_eq!(t.facts(answered.id).await, [HistoryFact::Unknown]);
});

on_every_backend!(a_release_that_forgets_an_account_says_which, async |t| {
    let waits = HistoryFact::Held { reason: HeldReason::Connection };
    let forgotten = HistoryFact::AccountForgotten { account: "ca_1".into() };
    let by_errand = t.run_bound(json!({})).await;
    let by_person = t.run_bound(json!({"user_id": "u-3"})).await;
    let named = t.run_bound(json!({"connected_account_id": "ca_1"})).await;
    for run in [&by_errand, &by_person, &named] {
        t.finish(&run.end(connect(), AttemptOutcome::Refused)).await;
    }
    for awaited in take_all(&t).await {
        if awaited.owner.id() == "u-1" {
            assert_eq!(t.store.release_awaited(&awaited, 10).await.unwrap(), 1);
        }
    }
    t.store.release(&Principal::Operator, by_person.id, Release::Retry, OPERATOR).await.unwrap();

    let go_on = released(Release::Retry);
    for run in [&by_errand, &by_person] {
        assert_eq!(t.view(run.id).await.binding.unwrap().account, None);
        assert_eq!(t.facts(run.id).await, [waits.clone(), go_on.clone(), forgotten.clone()]);
    }
    assert_eq!(t.facts(named.id).await, [waits, go_on]);
    let by = async |run: &RunningJob| t.decided(run.id).await.swap_remove(1).0;
    assert_eq!((&*by(&by_errand).await, &*by(&by_person).await), ("errand: connections", &*OPERATOR.by));
});

on_every_backend!(a_decision_without_a_name_of_a_person_is_refused, async |t| {
    let (running, failed, held) =
        (t.in_state(State::Running).await, t.in_state(State::Failed).await, t.in_state(State::Held).await);
    let long = "ü".repeat(MAX_DECIDER_CHARS);
    for by in ["", " ", "a\0b", "a\nb", "errand: worker", &format!("{long}x")] {
        let by = &Decider::at_command_line(by.to_owned());
        let refusals = [
            t.store.cancel(&Principal::Operator, running, by).await.unwrap_err(),
            t.store.restart(&Principal::Operator, failed, by, Force::default()).await.unwrap_err(),
            t.store.release(&Principal::Operator, held, Release::Retry, by).await.unwrap_err(),
        ];
        assert!(refusals.iter().all(|refusal| refusal.kind() == StoreErrorKind::Data), "{by:?}");
    }
    assert!(!t.view(running).await.cancel_requested);
    assert_eq!((t.state(failed).await, t.state(held).await), (State::Failed, State::Held));
    t.store
        .release(&Principal::Operator, held, Release::Failed, &Decider::at_command_line(long.clone()))
        .await
        .unwrap();
    assert_eq!(t.decided(held).await[1], (long, None, released(Release::Failed)));
});

on_every_backend!(a_long_history_is_read_from_its_newest_end, async |t| {
    let id = t.in_state(State::Held).await;
    let job = t.literal(id);
    t.execute(&format!(
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < {MAX_HISTORY})
        insert into job_history (job_id, at, kind, by)
        select id, created_at, 'retried', 'p' || i from jobs cross join n where id = {job} order by i"
    ))
    .await;
    let history = t.store.history(&Principal::Operator, id).await.unwrap();
    assert_eq!(history.len(), MAX_HISTORY, "the oldest, that it is held, is left out");
    assert_eq!((&*history[0].by, &*history[MAX_HISTORY - 1].by), ("p1", &*format!("p{MAX_HISTORY}")));
});
