//! Actions.

use std::{collections::BTreeMap, time::Duration};

use errand::{
    bounds::{MAX_ENDED_ACTIONS, MAX_FILTER_BYTES, MAX_OPEN_ACTIONS},
    job::{JobId, Owner, Principal, Release, State},
    store::{
        Action, ActionDecision, ActionKind, ActionStatus, Confirmed, Decider, Deciding, Force, JobFilter,
        MadeAction, NewAction, Preview, PreviewKind, Progress, SharedStore, Skip, Step, StoreErrorKind,
        TakenAction, Then,
    },
};
use futures_util::future::join_all;
use jiff::SignedDuration;
use uuid::Uuid;

use super::{LEASE, OPERATOR as BY, TestStore, on_every_backend};

const OPERATOR: Principal = Principal::Operator;
const HOUR: Duration = Duration::from_secs(3_600);

fn owner(owner: &str) -> Principal {
    Principal::Owner(owner.parse().unwrap())
}

fn by(name: &'static str) -> Decider {
    Decider::at_command_line(name)
}

pub(super) fn new_action(decision: ActionDecision) -> NewAction {
    NewAction {
        id: Uuid::now_v7(),
        decision,
        filter: JobFilter { tool: Some("T".into()), ..JobFilter::default() },
        until: None,
        force: Force::default(),
        preview: None,
        by: BY.by.to_string(),
    }
}

fn preview(may_have_acted: u64) -> Preview {
    let kind = PreviewKind { state: State::Failed, effect: None, last_outcome: None, jobs: 3 };
    Preview { total: 3, may_have_acted, at_least: false, kinds: vec![kind] }
}

fn made(made: MadeAction) -> Action {
    match made {
        MadeAction::New(action) => action,
        other => panic!("{other:?}"),
    }
}

fn now(confirmed: Confirmed) -> Action {
    match confirmed {
        Confirmed::Now(action) => *action,
        other => panic!("{other:?}"),
    }
}

async fn make(store: &SharedStore, principal: &Principal) -> Action {
    made(store.make_action(principal, &new_action(ActionDecision::Cancel), HOUR).await.unwrap())
}

async fn start(store: &SharedStore, principal: &Principal) -> Action {
    confirmed(store, principal, &new_action(ActionDecision::Cancel)).await
}

async fn confirmed(store: &SharedStore, principal: &Principal, new: &NewAction) -> Action {
    made(store.make_action(principal, new, HOUR).await.unwrap());
    now(store.confirm_action(principal, new.id, BY, false).await.unwrap())
}

async fn take(store: &SharedStore) -> Option<TakenAction> {
    store.take_action(None, LEASE).await.unwrap()
}

fn progress(done: u64) -> Progress {
    Progress { looked_at: done + 2, done, running: 0, skipped: BTreeMap::from([(Skip::Early, 2)]) }
}

fn decide(done: u64, jobs: &[JobId], lease: Duration) -> Step {
    let next = Deciding { jobs: jobs.to_vec(), to: None, since: None };
    Step { progress: progress(done), place: None, then: Then::Decide { next, lease } }
}

fn end(done: u64) -> Step {
    Step { progress: progress(done), place: None, then: Then::End }
}

fn give_back() -> Step {
    Step { progress: Progress::default(), place: None, then: Then::GiveBack }
}

async fn shown(store: &SharedStore, id: Uuid) -> Action {
    store.action(&OPERATOR, id).await.unwrap().unwrap()
}

on_every_backend!(an_action_is_carried_out_when_it_is_confirmed_and_once, and behind the lock, async |t| {
    let new = NewAction { preview: Some(preview(0)), ..new_action(ActionDecision::Release(Release::Failed)) };
    let action = made(t.store.make_action(&OPERATOR, &new, HOUR).await.unwrap());
    assert_eq!((action.id, &action.filter, &action.preview), (new.id, &new.filter, &new.preview));
    assert_eq!((action.status, &*action.made_by), (ActionStatus::Previewed, &*BY.by));
    assert_eq!(action.expires_at, Some(action.created_at + HOUR));
    assert_eq!(t.other.action(&OPERATOR, new.id).await.unwrap(), Some(action.clone()));
    assert!(take(&t.store).await.is_none(), "nobody has confirmed it");
    assert_eq!(t.store.actions_under_way().await.unwrap(), BTreeMap::new());

    let confirmed = now(t.store.confirm_action(&OPERATOR, new.id, &by("alice"), false).await.unwrap());
    assert_eq!(
        (confirmed.status, confirmed.confirmed_by.as_deref()),
        (ActionStatus::Confirmed, Some("alice"))
    );
    let again = now(t.other.confirm_action(&OPERATOR, new.id, &by("bob"), true).await.unwrap());
    assert_eq!(again, confirmed, "twice is as once");
    assert_eq!(t.store.actions_under_way().await.unwrap(), BTreeMap::from([(ActionKind::Release, 1)]));

    let taken = take(&t.store).await.unwrap();
    assert_eq!((&taken.action, taken.fence, taken.place), (&confirmed, 1, None));
    assert!(taken.unsettled.is_none());
    assert!(take(&t.other).await.is_none(), "it is carried out");
    let unknown = Uuid::now_v7();
    assert_eq!(t.store.ended_actions(&[new.id, unknown]).await.unwrap(), [unknown]);
    assert!(t.other.take_action(Some(new.id), LEASE).await.unwrap().is_none());
    assert!(t.store.keep_action(new.id, taken.fence, LEASE).await.unwrap());
    assert!(t.store.record_action(new.id, taken.fence, &decide(1, &[JobId::new()], LEASE)).await.unwrap());
    assert_eq!(shown(&t.other, new.id).await.progress, progress(1));
    assert!(!t.store.record_action(new.id, taken.fence, &end(2)).await.unwrap(), "that was all");
    let done = shown(&t.store, new.id).await;
    assert_eq!((done.status, done.has_ended(), &done.progress), (ActionStatus::Done, true, &progress(2)));
    assert_eq!(t.store.ended_actions(&[new.id, unknown]).await.unwrap(), [new.id, unknown]);
    assert!(take(&t.store).await.is_none());
    assert_eq!(t.store.abort_action(&OPERATOR, new.id, BY).await.unwrap().as_ref(), Some(&done));
    assert_eq!(
        t.store.confirm_action(&OPERATOR, new.id, BY, false).await.unwrap(),
        Confirmed::Now(Box::new(done))
    );
});

on_every_backend!(an_action_that_is_made_again_is_the_same_and_another_one_is_refused, and behind the lock, async |t| {
    let new = new_action(ActionDecision::Cancel);
    let action = made(t.store.make_action(&OPERATOR, &new, HOUR).await.unwrap());
    let again = NewAction { preview: Some(preview(1)), by: "bob".into(), ..new.clone() };
    assert_eq!(
        t.other.make_action(&OPERATOR, &again, HOUR).await.unwrap(),
        MadeAction::Known(action.clone())
    );
    for other in [
        NewAction { decision: ActionDecision::Retry, ..new.clone() },
        NewAction { filter: JobFilter::default(), ..new.clone() },
        NewAction { force: Force { effect: true, early: false }, ..new.clone() },
    ] {
        assert_eq!(t.store.make_action(&OPERATOR, &other, HOUR).await.unwrap(), MadeAction::Conflict);
    }
    assert_eq!(t.store.make_action(&owner("org:a"), &new, HOUR).await.unwrap(), MadeAction::Conflict);
    assert_eq!(shown(&t.store, new.id).await, action);
});

on_every_backend!(an_action_that_several_make_at_once_is_one_action, and behind the lock, async |t| {
    for principal in [OPERATOR, owner("org:a")] {
        let new = new_action(ActionDecision::Cancel);
        let stores = [&t.store, &t.other, &t.store, &t.other];
        let making = stores.map(|store| store.make_action(&principal, &new, HOUR));
        let (mut made, mut known) = (Vec::new(), Vec::new());
        for answer in join_all(making).await {
            match answer.unwrap() {
                MadeAction::New(action) => made.push(action),
                MadeAction::Known(action) => known.push(action),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((made.len(), known.len()), (1, 3));
        assert!(known.iter().all(|action| *action == made[0]), "{made:?}, {known:?}");
        assert_eq!(t.store.actions(&principal, None, 10).await.unwrap()[0], made[0]);
    }
    assert_eq!(t.count("select count(*) from actions").await, 2);
});

on_every_backend!(only_jobs_are_meant_that_were_there_when_it_was_made, async |t| {
    let action = make(&t.store, &OPERATOR).await;
    assert_eq!((action.until, action.meant().until), (action.created_at, Some(action.created_at)));
    let later = Some(action.created_at + SignedDuration::from_hours(1));
    let new = NewAction { until: later, ..new_action(ActionDecision::Cancel) };
    let action = made(t.store.make_action(&OPERATOR, &new, HOUR).await.unwrap());
    assert_eq!(action.until, action.created_at);
    let earlier = action.created_at - SignedDuration::from_hours(1);
    let new = NewAction { until: Some(earlier), ..new_action(ActionDecision::Cancel) };
    let action = confirmed(&t.store, &OPERATOR, &new).await;
    assert_eq!((action.until, action.meant().until), (earlier, Some(earlier)));
    assert_eq!(action.filter.until, None, "it is shown as it was asked for");
});

on_every_backend!(effects_are_repeated_only_where_the_confirmation_says_so, async |t| {
    let force = Force { effect: true, early: true };
    let forced = |preview, decision| NewAction { force, preview, ..new_action(decision) };
    let unsure = Preview { at_least: true, ..preview(0) };
    for (new, is_needed) in [
        (forced(Some(preview(1)), ActionDecision::Retry), true),
        (forced(Some(unsure), ActionDecision::Release(Release::Retry)), true),
        (forced(None, ActionDecision::Retry), true),
        (forced(Some(preview(0)), ActionDecision::Retry), false),
        (forced(Some(preview(1)), ActionDecision::Cancel), false),
        (forced(Some(preview(1)), ActionDecision::Release(Release::Succeeded)), false),
        (NewAction { preview: Some(preview(1)), ..new_action(ActionDecision::Retry) }, false),
    ] {
        t.store.make_action(&OPERATOR, &new, HOUR).await.unwrap();
        let plain = t.store.confirm_action(&OPERATOR, new.id, BY, false).await.unwrap();
        if is_needed {
            assert_eq!(plain, Confirmed::NeedsForce, "{new:?}");
            let confirmed = now(t.store.confirm_action(&OPERATOR, new.id, BY, true).await.unwrap());
            assert_eq!(confirmed.force, force);
        } else {
            assert_eq!(now(plain).force, Force { effect: false, early: new.force.early });
        }
    }
});

on_every_backend!(a_confirmation_that_comes_too_late_is_refused_and_the_action_goes, async |t| {
    let (late, kept) = (new_action(ActionDecision::Cancel), make(&t.store, &OPERATOR).await);
    made(t.store.make_action(&OPERATOR, &late, Duration::ZERO).await.unwrap());
    assert_eq!(t.store.confirm_action(&OPERATOR, late.id, BY, false).await.unwrap(), Confirmed::Expired);
    assert_eq!(t.store.prune_actions(HOUR, 10).await.unwrap(), 1);
    assert_eq!(t.store.action(&OPERATOR, late.id).await.unwrap(), None);
    assert_eq!(t.store.confirm_action(&OPERATOR, late.id, BY, false).await.unwrap(), Confirmed::Unknown);

    let aborted = t.store.abort_action(&OPERATOR, kept.id, &by("alice")).await.unwrap().unwrap();
    assert_eq!((aborted.status, aborted.aborted_by.as_deref()), (ActionStatus::Aborted, Some("alice")));
    assert_eq!(t.store.confirm_action(&OPERATOR, kept.id, BY, false).await.unwrap(), Confirmed::Aborted);
    assert_eq!(t.store.prune_actions(HOUR, 10).await.unwrap(), 0);
    assert_eq!(t.store.prune_actions(Duration::ZERO, 10).await.unwrap(), 1);
    assert_eq!(t.store.abort_action(&OPERATOR, kept.id, BY).await.unwrap(), None);
});

on_every_backend!(whoever_is_late_changes_nothing_and_the_next_learns_what_was_being_decided, async |t| {
    let action = start(&t.store, &OPERATOR).await;
    assert_eq!((action.status, action.confirmed_by.as_deref()), (ActionStatus::Confirmed, Some(&*BY.by)));
    let first = t.store.take_action(None, Duration::ZERO).await.unwrap().unwrap();
    let jobs = [JobId::new(), JobId::new()];
    assert!(t.store.record_action(action.id, first.fence, &decide(1, &jobs, Duration::ZERO)).await.unwrap());
    let second = take(&t.other).await.unwrap();
    assert_eq!((second.fence, &second.action.progress), (first.fence + 1, &progress(1)));
    let unsettled = second.unsettled.unwrap();
    assert_eq!((&*unsettled.jobs, unsettled.to), (&jobs[..], None));
    assert!(unsettled.since.unwrap() >= action.created_at);

    assert!(!t.store.keep_action(action.id, first.fence, LEASE).await.unwrap());
    for step in [decide(7, &[], LEASE), end(7)] {
        assert!(!t.store.record_action(action.id, first.fence, &step).await.unwrap());
        assert_eq!(shown(&t.store, action.id).await.progress, progress(1));
    }
    assert!(t.other.record_action(action.id, second.fence, &give_back()).await.unwrap());
    assert!(take(&t.store).await.unwrap().unsettled.is_none(), "that was settled");
});

on_every_backend!(an_action_that_is_aborted_stops_and_keeps_what_was_done, async |t| {
    let action = start(&t.store, &OPERATOR).await;
    let taken = take(&t.store).await.unwrap();
    t.store.record_action(action.id, taken.fence, &decide(1, &[JobId::new()], LEASE)).await.unwrap();
    let aborted = t.other.abort_action(&OPERATOR, action.id, &by("alice")).await.unwrap().unwrap();
    assert!(aborted.finished_at.is_some());
    assert!(!t.store.keep_action(action.id, taken.fence, LEASE).await.unwrap());
    assert!(!t.store.record_action(action.id, taken.fence, &end(3)).await.unwrap());
    let kept = shown(&t.store, action.id).await;
    assert_eq!((kept.status, &kept.progress), (ActionStatus::Aborted, &progress(3)));
    assert_eq!(kept.finished_at, aborted.finished_at);
    assert!(take(&t.store).await.is_none());
    assert_eq!(t.store.abort_action(&OPERATOR, action.id, &by("bob")).await.unwrap(), Some(kept));
});

on_every_backend!(owners_take_turns_however_many_actions_each_has, and behind the lock, async |t| {
    let (a, b) = (owner("org:a"), owner("user:a"));
    let mut of_a = Vec::new();
    for _ in 0..3 {
        of_a.push(start(&t.store, &a).await.id);
    }
    let of_b = start(&t.store, &b).await.id;
    let of_operator = start(&t.store, &OPERATOR).await.id;
    let mut turns = Vec::new();
    for _ in 0..9 {
        let taken = take(&t.store).await.unwrap();
        turns.push(taken.action.id);
        t.store.record_action(taken.action.id, taken.fence, &give_back()).await.unwrap();
    }
    let every_third = |of: Uuid| turns.chunks(3).all(|round| round.contains(&of));
    assert!(every_third(of_b) && every_third(of_operator), "{turns:?} of {of_b} and {of_operator}");
    assert!(of_a.iter().all(|id| turns.contains(id)), "and each of an owner's has its turn: {turns:?}");

    // Nor does it help to have many short ones.
    for _ in 0..3 {
        let taken = t.store.take_action(Some(start(&t.store, &a).await.id), LEASE).await.unwrap().unwrap();
        t.store.record_action(taken.action.id, taken.fence, &end(0)).await.unwrap();
    }
    start(&t.store, &a).await;
    assert!(take(&t.store).await.unwrap().action.principal != a);
});

on_every_backend!(an_action_of_a_newer_version_is_left_to_others, async |t| {
    for change in ["kind = 'quantum'", "filter = '{\"planet\":\"x\"}'"] {
        let newer = start(&t.store, &OPERATOR).await;
        t.execute(&format!("update actions set {change}")).await;
        assert!(take(&t.store).await.is_none());
        let readable = start(&t.store, &OPERATOR).await;
        let mut found = None;
        for _ in 0..2 {
            found = found.or(take(&t.store).await);
        }
        assert_eq!(found.unwrap().action.id, readable.id, "it keeps no other waiting");
        let listed = t.store.actions(&OPERATOR, None, 10).await.unwrap();
        assert_eq!(listed.iter().map(|action| action.id).collect::<Vec<_>>(), [readable.id]);
        assert_eq!(t.count("select count(*) from actions where leased_until is null").await, 1);
        assert!(t.store.action(&OPERATOR, newer.id).await.is_err());
        t.execute("delete from actions").await;
    }
});

on_every_backend!(an_owner_sees_and_decides_about_its_own_actions_only, and behind the lock, async |t| {
    let owners = ["user:a", "org:a", "user:b"].map(owner);
    let mut all = Vec::new();
    for principal in owners.iter().chain([&OPERATOR]) {
        all.push(make(&t.store, principal).await);
        assert_eq!(all.last().unwrap().principal, *principal);
    }
    all.reverse();
    assert_eq!(t.store.actions(&OPERATOR, None, 10).await.unwrap(), all, "the newest first");
    let first = t.store.actions(&OPERATOR, None, 3).await.unwrap();
    let rest = t.store.actions(&OPERATOR, Some(first[2].place()), 3).await.unwrap();
    assert_eq!([first, rest].concat(), all);
    for who in &owners {
        let (own, others): (Vec<_>, Vec<_>) =
            all.iter().cloned().partition(|action| action.principal == *who);
        assert_eq!(t.store.actions(who, None, 10).await.unwrap(), own);
        assert_eq!(t.store.action(who, own[0].id).await.unwrap().as_ref(), Some(&own[0]));
        for other in others {
            assert_eq!(t.store.action(who, other.id).await.unwrap(), None);
            assert_eq!(t.store.confirm_action(who, other.id, BY, true).await.unwrap(), Confirmed::Unknown);
            assert_eq!(t.store.abort_action(who, other.id, BY).await.unwrap(), None);
            assert_eq!(shown(&t.store, other.id).await, other, "nothing is changed");
        }
    }
    let own = t.store.actions(&owners[0], None, 1).await.unwrap().remove(0);
    now(t.store.confirm_action(&owners[0], own.id, BY, false).await.unwrap());
    assert!(t.store.abort_action(&OPERATOR, own.id, BY).await.unwrap().unwrap().has_ended());
});

on_every_backend!(actions_are_bounded_and_go_with_their_owner, and behind the lock, async |t| {
    let (org, user) = (owner("org:a"), owner("user:a"));
    for _ in 0..MAX_OPEN_ACTIONS {
        make(&t.store, &org).await;
    }
    let more = new_action(ActionDecision::Cancel);
    assert_eq!(t.store.make_action(&org, &more, HOUR).await.unwrap(), MadeAction::TooMany);
    make(&t.store, &user).await;
    make(&t.store, &OPERATOR).await;
    let expire = if t.is_postgres() { "now()" } else { "1" };
    t.execute(&format!("update actions set expires_at = {expire} where status = 'previewed'")).await;
    made(t.store.make_action(&org, &more, HOUR).await.unwrap());

    let ended = MAX_ENDED_ACTIONS + 5;
    let rows = if t.is_postgres() {
        format!(
            "select gen_random_uuid(), 'org', 'a', 'cancel', false, false, false, '{{}}', now(), 'done', 'x',
                now() - n * interval '1 minute', now(), '{{}}' from generate_series(1, {ended}) as n"
        )
    } else {
        format!(
            "with recursive s (n) as (select 1 union all select n + 1 from s where n < {ended})
             select randomblob(16), 'org', 'a', 'cancel', 0, 0, 0, '{{}}', 1, 'done', 'x',
                1000000 * (unixepoch() - n * 60), 1000000 * unixepoch(), '{{}}' from s"
        )
    };
    t.execute(&format!(
        "insert into actions (id, owner_kind, owner_id, kind, force, asked_force, early, filter, created_before, status,
            made_by, created_at, finished_at, progress) {rows}"
    ))
    .await;
    start(&t.store, &org).await;
    let ended = "select count(*) from actions where finished_at is not null";
    assert_eq!(t.count(ended).await, i64::try_from(MAX_ENDED_ACTIONS).unwrap());

    // What names an owner and has ended goes with the owner.
    let names = |id: &str| NewAction {
        filter: JobFilter { owner: Some(id.parse().unwrap()), ..JobFilter::default() },
        ..new_action(ActionDecision::Cancel)
    };
    let of_operator = ["org:a", "user:a"].map(names);
    for new in &of_operator {
        made(t.store.make_action(&OPERATOR, new, HOUR).await.unwrap());
    }
    let a: Owner = "org:a".parse().unwrap();
    t.store.remove_actions(&a).await.unwrap();
    assert!(t.store.actions(&org, None, 10).await.unwrap().is_empty());
    assert_eq!(shown(&t.store, of_operator[0].id).await.filter, of_operator[0].filter, "it has not ended");
    t.store.abort_action(&OPERATOR, of_operator[0].id, BY).await.unwrap();
    assert_eq!(t.store.remove_actions(&a).await.unwrap(), 1);
    assert_eq!(t.store.action(&OPERATOR, of_operator[0].id).await.unwrap(), None);
    assert_eq!(shown(&t.store, of_operator[1].id).await.filter, of_operator[1].filter);
    assert_eq!(t.store.actions(&user, None, 10).await.unwrap().len(), 1);
});

on_every_backend!(what_cannot_be_kept_of_an_action_is_refused, async |t| {
    let long = JobFilter { tool: Some("x".repeat(MAX_FILTER_BYTES)), ..JobFilter::default() };
    for wrong in [
        NewAction { by: "errand: batches".into(), ..new_action(ActionDecision::Cancel) },
        NewAction { filter: long, ..new_action(ActionDecision::Cancel) },
    ] {
        let error = t.store.make_action(&OPERATOR, &wrong, HOUR).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Data);
    }
    let action = make(&t.store, &OPERATOR).await;
    for error in [
        t.store.confirm_action(&OPERATOR, action.id, &by(""), false).await.unwrap_err(),
        t.store.abort_action(&OPERATOR, action.id, &by("a\nb")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Data);
    }
    assert_eq!(shown(&t.store, action.id).await, action);
});
