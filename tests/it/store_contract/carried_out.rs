//! Actions as they are carried out, whatever happens to who does it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use errand::{
    actions::{CONFIRM_WITHIN, Extent, narrow, preview},
    job::{AttemptOutcome, HeldReason, JobId, JobSpec, Principal, Release, State},
    maintenance::actions::Actions,
    store::{
        Action, ActionDecision, ActionStatus, Confirmed, Decider, Deciding, Force, JobFilter, MadeAction,
        NewAction, Preview, Progress, SharedStore, Skip, Step, Then,
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{FORCE, OPERATOR as BY, TestStore, fail, hold, job, job_with_reply, on_every_backend, succeed};

const OPERATOR: Principal = Principal::Operator;

/// Who confirms in these tests.
const ALICE: &str = "alice";

impl TestStore {
    async fn make(&self, who: &Principal, decision: ActionDecision, force: Force) -> Action {
        let filter = narrow(decision, JobFilter::default()).unwrap();
        let until = Some(self.store.now().await.unwrap());
        let meant = JobFilter { until, ..filter.clone() };
        let found = preview(&self.store, who, decision, &meant, Extent::Bounded).await.unwrap();
        let (id, by) = (Uuid::now_v7(), BY.by.to_string());
        let new = NewAction { id, decision, filter, until, force, preview: Some(found), by };
        self.made(who, &new).await
    }

    async fn made(&self, who: &Principal, new: &NewAction) -> Action {
        match self.store.make_action(who, new, CONFIRM_WITHIN).await.unwrap() {
            MadeAction::New(action) => action,
            other => panic!("{other:?}"),
        }
    }

    async fn confirm(&self, action: &Action) -> Uuid {
        let force = action.force.effect;
        let answer = self
            .store
            .confirm_action(&action.principal, action.id, &Decider::at_command_line(ALICE), force)
            .await
            .unwrap();
        assert!(matches!(answer, Confirmed::Now(_)), "{answer:?}");
        action.id
    }

    async fn confirmed(&self, who: &Principal, decision: ActionDecision, force: Force) -> Uuid {
        let action = self.make(who, decision, force).await;
        self.confirm(&action).await
    }

    /// Carries out what there is, and tells what became of this one.
    async fn carry_out(&self, id: Uuid) -> Progress {
        let carrying = Actions::new(self.other.clone(), Arc::default());
        while carrying.run_once().await.unwrap() > 0 {}
        let action = self.store.action(&OPERATOR, id).await.unwrap().unwrap();
        assert_eq!(action.status, ActionStatus::Done);
        action.progress
    }

    /// What was decided about a job in the name of who confirmed.
    async fn times_decided(&self, id: JobId) -> usize {
        let history = self.store.history(&OPERATOR, id).await.unwrap();
        history.iter().filter(|entry| entry.by == ALICE).count()
    }

    async fn failed(&self) -> Arc<JobSpec> {
        let spec = job(json!({}));
        self.fails(&spec).await;
        spec
    }

    async fn fails(&self, spec: &Arc<JobSpec>) {
        let run = self.run(spec).await;
        self.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
    }

    async fn waiting(&self, jobs: usize) -> Vec<JobId> {
        let specs: Vec<_> = (0..jobs).map(|_| job(json!({}))).collect();
        self.store.insert(&specs, Duration::ZERO).await.unwrap();
        specs.iter().map(|spec| spec.id).collect()
    }
}

fn progress(done: u64, skipped: &[(Skip, u64)]) -> Progress {
    let skipped: BTreeMap<Skip, u64> = skipped.iter().copied().collect();
    Progress { looked_at: done + skipped.values().sum::<u64>(), done, running: 0, skipped }
}

on_every_backend!(an_action_decides_about_each_job_as_a_person_does, async |t| {
    for decision in [
        ActionDecision::Cancel,
        ActionDecision::Retry,
        ActionDecision::Release(Release::Failed),
        ActionDecision::Prune,
    ] {
        let mut jobs = Vec::new();
        for state in State::ALL {
            jobs.push((*state, t.in_state(*state).await));
        }
        let held = matches!(decision, ActionDecision::Release(_));
        // What is held without a binding is held for an unknown outcome here.
        let held_reason = held.then_some(HeldReason::UnknownOutcome);
        let filter = narrow(decision, JobFilter { held_reason, ..JobFilter::default() }).unwrap();
        let found = preview(&t.store, &OPERATOR, decision, &filter, Extent::Whole).await.unwrap();
        let until = Some(t.store.now().await.unwrap());
        let (id, force, by) = (Uuid::now_v7(), Force::default(), ALICE.to_owned());
        let new = NewAction { id, decision, filter, until, force, preview: Some(found.clone()), by };
        t.confirm(&t.made(&OPERATOR, &new).await).await;
        let done = t.carry_out(id).await;
        let expected = |state: State| match decision {
            ActionDecision::Cancel if state == State::Running => Some(State::Running),
            ActionDecision::Cancel => Some(if state.is_final() { state } else { State::Cancelled }),
            ActionDecision::Retry => Some(if state == State::Failed { State::Available } else { state }),
            ActionDecision::Release(_) => Some(if state == State::Held { State::Failed } else { state }),
            ActionDecision::Prune => (!state.is_final()).then_some(state),
        };
        for (state, id) in &jobs {
            let now = t.store.job(&OPERATOR, *id).await.unwrap().map(|job| job.state);
            assert_eq!(now, expected(*state), "{decision:?} of a {state} job");
        }
        assert_eq!((done.looked_at, done.done), (found.total, found.total), "{decision:?}: {done:?}");
        assert_eq!(done.running, u64::from(decision == ActionDecision::Cancel));
        t.execute("delete from jobs").await;
    }
});

on_every_backend!(an_action_is_about_the_jobs_that_were_there_as_they_are_when_it_comes_to_them, async |t| {
    let [kept, retried] = [t.failed().await, t.failed().await];
    let running = job(json!({}));
    let run = t.run(&running).await;
    let action = t.make(&OPERATOR, ActionDecision::Retry, Force::default()).await;
    let Preview { total, .. } = action.preview.clone().unwrap();
    assert_eq!(total, 2);
    t.store.restart(&OPERATOR, retried.id, BY, FORCE).await.unwrap();
    t.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
    let later = t.failed().await;
    let id = t.confirm(&action).await;
    assert_eq!(t.carry_out(id).await, progress(2, &[]));
    for (spec, state, decided) in [
        (&kept, State::Available, 1),
        (&retried, State::Available, 0),
        (&running, State::Available, 1),
        (&later, State::Failed, 0),
    ] {
        assert_eq!((t.state(spec.id).await, t.times_decided(spec.id).await), (state, decided));
    }
});

on_every_backend!(an_owners_action_touches_nothing_of_others, and behind the lock, async |t| {
    let mut jobs = Vec::new();
    for fields in [json!({"org_id": "u-1"}), json!({}), json!({"org_id": "u-2"})] {
        let spec = Arc::new(JobSpec {
            owner: fields["org_id"]
                .as_str()
                .map_or_else(|| "user:u-1".parse().unwrap(), |id| format!("org:{id}").parse().unwrap()),
            ..(*job(json!({}))).clone()
        });
        t.insert(&spec).await;
        jobs.push(spec.id);
    }
    let who = Principal::Owner("org:u-1".parse().unwrap());
    let id = t.confirmed(&who, ActionDecision::Cancel, Force::default()).await;
    assert_eq!(t.carry_out(id).await, progress(1, &[]));
    let mut states = Vec::new();
    for id in jobs {
        states.push(t.state(id).await);
    }
    assert_eq!(states, [State::Cancelled, State::Available, State::Available]);
});

on_every_backend!(what_may_have_acted_is_not_run_again_unless_that_is_forced, async |t| {
    let unclear = async |ending| {
        let run = t.run_bound(json!({})).await;
        t.finish(&run.end(ending, AttemptOutcome::Unknown)).await;
        run.id
    };
    let (failed, held) = (unclear(fail()).await, unclear(hold()).await);
    let plain = t.failed().await.id;
    let id = t.confirmed(&OPERATOR, ActionDecision::Retry, Force::default()).await;
    assert_eq!(t.carry_out(id).await, progress(1, &[(Skip::NeedsForce, 1)]));
    assert_eq!((t.state(failed).await, t.state(plain).await), (State::Failed, State::Available));

    let release = |force| {
        let filter = JobFilter { held_reason: Some(HeldReason::UnknownOutcome), ..JobFilter::default() };
        let decision = ActionDecision::Release(Release::Retry);
        let (id, by) = (Uuid::now_v7(), ALICE.to_owned());
        NewAction { id, decision, filter, until: None, force, preview: None, by }
    };
    for (force, expected, state) in [
        (Force::default(), progress(0, &[(Skip::NeedsForce, 1)]), State::Held),
        (FORCE, progress(1, &[]), State::Available),
    ] {
        let new = release(force);
        t.confirm(&t.made(&OPERATOR, &new).await).await;
        assert_eq!((t.carry_out(new.id).await, t.state(held).await), (expected, state));
    }
    let id = t.confirmed(&OPERATOR, ActionDecision::Retry, FORCE).await;
    assert_eq!((t.carry_out(id).await, t.state(failed).await), (progress(1, &[]), State::Available));
});

on_every_backend!(whoever_goes_on_after_a_process_died_decides_about_the_rest_and_nothing_twice, async |t| {
    let mut specs = Vec::new();
    for _ in 0..10 {
        specs.push(t.failed().await);
    }
    let id = t.confirmed(&OPERATOR, ActionDecision::Retry, Force::default()).await;
    let taken = t.store.take_action(None, Duration::ZERO).await.unwrap().unwrap();
    let seen = t.store.glances(&OPERATOR, &taken.action.meant(), None, false).await.unwrap().items;
    assert_eq!(seen.len(), 10);
    let chunk = &seen[..6];
    let next = Deciding {
        jobs: chunk.iter().map(|job| job.id).collect(),
        to: chunk.last().map(|job| job.place),
        since: None,
    };
    let then = Then::Decide { next, lease: Duration::ZERO };
    let step = Step { progress: Progress::default(), place: None, then };
    assert!(t.store.record_action(id, taken.fence, &step).await.unwrap());
    let spec = |id: JobId| specs.iter().find(|spec| spec.id == id).unwrap();
    for job in &chunk[..3] {
        t.store.restart(&OPERATOR, job.id, &Decider::at_command_line(ALICE), Force::default()).await.unwrap();
    }
    // It dies here. One that it has retried fails again, and a person has called another one off.
    t.fails(spec(chunk[0].id)).await;
    t.store.restart(&OPERATOR, chunk[4].id, BY, FORCE).await.unwrap();
    t.store.cancel(&OPERATOR, chunk[4].id, BY).await.unwrap();

    assert_eq!(t.carry_out(id).await, progress(9, &[(Skip::Changed, 1)]));
    for (place, job) in seen.iter().enumerate() {
        let expected = match place {
            0 => (State::Failed, 1),
            4 => (State::Cancelled, 0),
            _ => (State::Available, 1),
        };
        assert_eq!((t.state(job.id).await, t.times_decided(job.id).await), expected, "{place}");
    }
});

on_every_backend!(jobs_that_a_process_removed_before_it_died_count_as_removed, async |t| {
    let specs = [t.failed().await, t.failed().await, t.failed().await];
    let id = t.confirmed(&OPERATOR, ActionDecision::Prune, Force::default()).await;
    let taken = t.store.take_action(None, Duration::ZERO).await.unwrap().unwrap();
    let seen = t.store.glances(&OPERATOR, &taken.action.meant(), None, false).await.unwrap().items;
    let next = Deciding { jobs: seen.iter().map(|job| job.id).collect(), to: None, since: None };
    let then = Then::Decide { next, lease: Duration::ZERO };
    let step = Step { progress: Progress::default(), place: None, then };
    assert!(t.store.record_action(id, taken.fence, &step).await.unwrap());
    let old = t.store.seen_jobs(&OPERATOR, &[seen[0].seen]).await.unwrap();
    assert_eq!(t.store.remove_jobs(&old).await.unwrap().len(), 1);
    assert_eq!(t.carry_out(id).await, progress(3, &[]));
    for spec in specs {
        assert!(t.store.job(&OPERATOR, spec.id).await.unwrap().is_none());
    }
});

on_every_backend!(a_job_stays_whose_reply_is_owed, async |t| {
    let owed = job_with_reply(json!({}), Some("replies"));
    let run = t.run(&owed).await;
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    let gone = t.failed().await;
    let id = t.confirmed(&OPERATOR, ActionDecision::Prune, Force::default()).await;
    assert_eq!(t.carry_out(id).await, progress(1, &[(Skip::Pending, 1)]));
    assert_eq!(t.state(owed.id).await, State::Succeeded);
    assert!(t.store.job(&OPERATOR, gone.id).await.unwrap().is_none());
});

on_every_backend!(a_process_that_stops_gives_the_action_back_and_another_goes_on_there, async |t| {
    t.waiting(150).await;
    let id = t.confirmed(&OPERATOR, ActionDecision::Cancel, Force::default()).await;
    let stop = CancellationToken::new();
    stop.cancel();
    let stopping = Actions::new(t.store.clone(), Arc::default()).only(id, stop);
    assert_eq!(stopping.run_once().await.unwrap(), 1);
    let begun = t.store.action(&OPERATOR, id).await.unwrap().unwrap();
    let done = begun.progress.done;
    assert!(begun.status == ActionStatus::Confirmed && (1..150).contains(&done), "{begun:?}");
    let cancelled = "select count(*) from jobs where state = 'cancelled'";
    assert_eq!(t.count(cancelled).await, i64::try_from(done).unwrap());
    assert_eq!(t.carry_out(id).await, progress(150, &[]));
    assert_eq!(t.count(cancelled).await, 150);
});

on_every_backend!(an_action_that_is_aborted_in_the_middle_leaves_the_rest, async |t| {
    t.waiting(150).await;
    let id = t.confirmed(&OPERATOR, ActionDecision::Cancel, Force::default()).await;
    let stop = CancellationToken::new();
    stop.cancel();
    Actions::new(t.store.clone(), Arc::default()).only(id, stop).run_once().await.unwrap();
    let aborted = t.store.abort_action(&OPERATOR, id, BY).await.unwrap().unwrap();
    let carrying = Actions::new(t.other.clone(), Arc::default());
    assert_eq!(carrying.run_once().await.unwrap(), 0);
    let cancelled = "select count(*) from jobs where state = 'cancelled'";
    let count = t.count(cancelled).await;
    assert!((1..150).contains(&count), "{count}");
    assert_eq!(i64::try_from(aborted.progress.done).unwrap(), count);

    // While it is being carried out, too, and what was done is told.
    let id = t.confirmed(&OPERATOR, ActionDecision::Cancel, Force::default()).await;
    let turn = carrying.run_once();
    let abort = async {
        while t.count(cancelled).await == count {
            tokio::task::yield_now().await;
        }
        t.store.abort_action(&OPERATOR, id, BY).await.unwrap();
    };
    let (turn, ()) = tokio::join!(turn, abort);
    turn.unwrap();
    let ended = t.store.action(&OPERATOR, id).await.unwrap().unwrap();
    assert!(ended.has_ended());
    assert_eq!(i64::try_from(ended.progress.done).unwrap(), t.count(cancelled).await - count);
});

on_every_backend!(several_processes_share_actions_and_each_job_is_decided_about_once, and behind the lock, async |t| {
    let mut jobs = Vec::new();
    let mut actions = Vec::new();
    for owner in ["user:u-1", "org:o-1", "org:o-2"] {
        let owner: errand::job::Owner = owner.parse().unwrap();
        let specs: Vec<_> = (0..80)
            .map(|_| Arc::new(JobSpec { owner: owner.clone(), ..(*job(json!({}))).clone() }))
            .collect();
        t.store.insert(&specs, Duration::ZERO).await.unwrap();
        jobs.extend(specs.iter().map(|spec| spec.id));
        let who = Principal::Owner(owner);
        actions.push(t.confirmed(&who, ActionDecision::Cancel, Force::default()).await);
    }
    let carry = async |store: &SharedStore| {
        let carrying = Actions::new(store.clone(), Arc::default());
        let mut turns = 0;
        while carrying.run_once().await.unwrap() > 0 {
            turns += 1;
        }
        turns
    };
    tokio::join!(carry(&t.store), carry(&t.other));
    // The last one that was taken may have been under way when the other one saw nothing to take.
    for id in actions {
        assert_eq!(t.carry_out(id).await, progress(80, &[]));
    }
    for id in jobs {
        assert_eq!((t.state(id).await, t.times_decided(id).await), (State::Cancelled, 1));
    }
});
