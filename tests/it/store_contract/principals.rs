//! What an owner sees of others: nothing.

use std::time::Duration;

use errand::{
    bounds::MAX_LOOK_SCATTERED,
    job::{
        AttemptOutcome, Edit, Effect, EnvelopeReason, ErrorKind, HeldReason, JobId, Owner, Pin, Principal,
        Release, State,
    },
    store::{
        ActionDecision, AsRead, ChangeFilter, Edited, JobDecision, JobFilter, NewAction, Rejected,
        RejectedFilter, Repeat, SeenJob, SharedStore,
    },
};
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::{FORCE, OPERATOR, TestStore, fail, hold, job, on_every_backend};

const EDIT: Edit = Edit { run_at: None, queue: None, priority: Some(9), expires_at: None };

/// The first two have the same ID.
fn owners() -> [Owner; 3] {
    ["user:a", "org:a", "user:b"].map(|owner| owner.parse().unwrap())
}

/// What one owner has. Its tool is that of no other jobs, and so is the queue of its rejected message.
pub(super) struct Things {
    tool: String,
    held: [JobId; 4],
    failed: JobId,
    running: JobId,
    /// Another ID of the first held job.
    alias: JobId,
    message: Uuid,
    actions: [Uuid; 2],
    /// What the first held job is to be.
    edited: Edited,
}

impl Things {
    /// What nobody has.
    pub(super) fn of_nobody() -> Self {
        let (tool, message) = (format!("T{}", Uuid::now_v7().simple()), Uuid::now_v7());
        let [failed, running, alias] = std::array::from_fn(|_| JobId::new());
        let (held, actions) =
            (std::array::from_fn(|_| JobId::new()), std::array::from_fn(|_| Uuid::now_v7()));
        let before = job(json!({}));
        let edited = Edited {
            read: AsRead {
                state: State::Held,
                attempt: 1,
                digest: before.digest,
                first_due_at: None,
                finished_at: None,
            },
            after: Arc::new(before.edited(&EDIT).unwrap()),
            before,
            later: None,
        };
        Self { tool, held, failed, running, alias, message, actions, edited }
    }

    pub(super) async fn of(owner: &Owner, t: &TestStore) -> Self {
        let (mut things, kind) = (Self::of_nobody(), owner.kind().field());
        let fields = json!({kind: owner.id(), "tool": things.tool, "tags": {"team": "x"}});
        let run = async || t.run_bound(fields.clone()).await;
        for id in &mut things.held {
            let held = run().await;
            t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
            *id = held.id;
        }
        let failed = run().await;
        t.finish(&failed.end(fail(), AttemptOutcome::ToolFailed)).await;
        (things.failed, things.running) = (failed.id, run().await.id);
        let pin =
            Pin { owner: Some(owner.clone()), toolkit: things.tool.to_lowercase(), version: "1".into() };
        t.store.set_pin(&Principal::Operator, &pin, OPERATOR).await.unwrap();
        let repeat = Repeat { job: things.held[0], id: things.alias, asked: None };
        t.store.note_repeats(&[repeat]).await.unwrap();
        let message = Rejected {
            id: things.message,
            queue: things.tool.to_lowercase().parse().unwrap(),
            reason: EnvelopeReason::BadValue,
            message: "`priority` is wrong".into(),
            body: json!({kind: owner.id()}).to_string().into_bytes(),
            properties: "{}".into(),
            job: Some(things.held[0]),
            asked: None,
        };
        t.store.reject(&[message]).await.unwrap();
        for id in things.actions {
            let action = NewAction {
                id,
                decision: ActionDecision::Cancel,
                filter: things.jobs(),
                until: None,
                force: FORCE,
                preview: None,
                by: OPERATOR.by.to_string(),
            };
            let who = Principal::Owner(owner.clone());
            t.store.make_action(&who, &action, Duration::from_secs(3_600)).await.unwrap();
        }
        let read = t.view(things.held[0]).await;
        things.edited = Edited::new(&read, read.spec.edited(&EDIT).unwrap(), t.store.now().await.unwrap());
        things
    }

    fn ids(&self) -> [JobId; 6] {
        let [first, second, third, fourth] = self.held;
        [first, second, third, fourth, self.failed, self.running]
    }

    fn jobs(&self) -> JobFilter {
        JobFilter { tool: Some(self.tool.clone()), ..JobFilter::default() }
    }

    fn changes(&self) -> ChangeFilter {
        ChangeFilter { object: Some(self.tool.to_lowercase()), ..ChangeFilter::default() }
    }

    fn messages(&self) -> RejectedFilter {
        RejectedFilter { queue: Some(self.tool.to_lowercase().parse().unwrap()), ..RejectedFilter::default() }
    }
}

/// What is asked and decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Read,
    Decision,
    /// About a message, which no owner sees.
    Message,
}
use Kind::{Decision, Message, Read};

/// Makes a table of questions and decisions, and a function that makes the call of a line.
macro_rules! calls {
    (|$store:ident, $who:ident, $of:ident| $($kind:ident $name:ident = $call:expr;)*) => {
        pub(super) const CALLS: &[(Kind, &str)] = &[$(($kind, stringify!($name))),*];

        /// What this principal is answered about these things.
        pub(super) async fn ask(name: &str, $store: &SharedStore, $who: &Principal, $of: &Things) -> String {
            match name {
                $(stringify!($name) => format!("{:?}", $call.await.unwrap()),)*
                _ => panic!("{name} is no line of the table"),
            }
        }
    };
}

// Every method of the store that takes a principal, but for those with tests of their own, which `tidy/principals.rs` names.
// A decision is about a job that allows it and that no other line changes.
calls! { |store, who, of|
    Read job = store.job(who, of.held[0]);
    Read attempts = store.attempts(who, of.held[0]);
    Read attempts_of_running = store.attempts(who, of.running);
    Read history = store.history(who, of.held[0]);
    Read job_known_as = store.job_known_as(who, of.alias);
    Read known_as = store.known_as(who, of.held[0]);
    Read jobs = store.jobs(who, &of.jobs(), None, 10);
    Read glances = store.glances(who, &of.jobs(), None, true);
    Decision cancel = store.cancel(who, of.running, OPERATOR);
    Decision edit = store.edit(who, &of.edited, OPERATOR);
    Decision restart = store.restart(who, of.failed, OPERATOR, FORCE);
    Decision release = store.release(who, of.held[0], Release::Retry, OPERATOR);
    Decision release_as_succeeded = store.release(who, of.held[1], Release::Succeeded, OPERATOR);
    Decision release_as_failed = store.release(who, of.held[2], Release::Failed, OPERATOR);
    Decision decide = store.decide(who, of.held[3], JobDecision::ReleaseToRun(FORCE), None, OPERATOR);
    Read seen_jobs = store.seen_jobs(who, &seen(store, of).await);
    Read action = store.action(who, of.actions[0]);
    Decision confirm_action = store.confirm_action(who, of.actions[0], OPERATOR, true);
    Read abort_action = store.abort_action(who, of.actions[1], OPERATOR);
    Read changes = store.changes(who, &of.changes(), None, 10);
    Message rejected = store.rejected(who, &of.messages(), None, 10);
    Message rejected_message = store.rejected_message(who, of.message);
    Message rejected_as = store.rejected_as(who, of.held[0]);
    Message mark_requeued = store.mark_requeued(who, of.message, OPERATOR, None);
}

/// The jobs, as the operator sees them.
pub(super) async fn seen(store: &SharedStore, of: &Things) -> Vec<SeenJob> {
    let jobs = store.glances(&Principal::Operator, &of.jobs(), None, false).await.unwrap().items;
    jobs.iter().map(|job| job.seen).collect()
}

/// What a decision might change of these things, as the operator sees it.
async fn state_of(t: &TestStore, of: &Things) -> String {
    let who = &Principal::Operator;
    let mut all = format!("{:?}", t.store.rejected_message(who, of.message).await.unwrap());
    for id in of.actions {
        all += &format!("{:?}", t.store.action(who, id).await.unwrap());
    }
    for id in of.ids() {
        let (job, history) = (t.view(id).await, t.store.history(who, id).await.unwrap());
        all += &format!("{job:?} {history:?} {:?}", t.store.attempts(who, id).await.unwrap());
    }
    all
}

on_every_backend!(a_principal_sees_and_decides_about_its_own_and_nothing_of_others, and behind the lock, async |t| {
    let nothing = Things::of_nobody();
    for owner in owners() {
        for who in [Principal::Owner(owner.clone()), Principal::Operator] {
            let things = Things::of(&owner, &t).await;
            let before = state_of(&t, &things).await;
            for other in owners().into_iter().filter(|other| *other != owner).map(Principal::Owner) {
                for (_, call) in CALLS {
                    let answer = ask(call, &t.store, &other, &things).await;
                    let of_nothing = ask(call, &t.store, &other, &nothing).await;
                    assert_eq!(answer, of_nothing, "{call} of what {owner} has, for {other:?}");
                }
            }
            assert_eq!(state_of(&t, &things).await, before, "others change nothing of what {owner} has");
            for (kind, call) in CALLS {
                let answer = ask(call, &t.store, &who, &things).await;
                let is_seen = answer != ask(call, &t.store, &who, &nothing).await;
                let may_see = *kind != Message || who == Principal::Operator;
                assert_eq!(is_seen, may_see, "{call} of what {owner} has, for {who:?}: {answer}");
                assert!(*kind != Decision || answer.starts_with("Now("), "{call} for {who:?}: {answer}");
            }
        }
    }
});

on_every_backend!(an_id_that_stands_for_jobs_of_several_owners_stands_for_each_ones_own, and behind the lock, async |t| {
    let alias = JobId::new();
    for round in 0..2 {
        for owner in owners() {
            let of = Things::of(&owner, &t).await;
            let who = Principal::Owner(owner);
            if round == 0 {
                assert_eq!(t.store.job_known_as(&who, alias).await.unwrap(), None);
            }
            let repeat = Repeat { job: of.held[0], id: alias, asked: None };
            t.store.note_repeats(&[repeat]).await.unwrap();
            assert_eq!(t.store.job_known_as(&who, alias).await.unwrap(), Some(of.held[0]));
        }
    }
});

on_every_backend!(a_list_of_an_owner_is_as_if_there_were_no_other_jobs, and behind the lock, async |t| {
    let mut all = Vec::new();
    for owner in owners().into_iter().chain(owners()) {
        let things = Things::of(&owner, &t).await;
        all.extend(things.ids().map(|id| (owner.clone(), id)));
    }
    let none = JobFilter::default;
    let at = t.view(all[5].1).await.created_at;
    let filters = [
        none(),
        JobFilter { state: Some(State::Held), ..none() },
        JobFilter { tool: Some(t.view(all[0].1).await.spec.tool.clone()), ..none() },
        JobFilter { toolkit: Some("github".into()), ..none() },
        JobFilter { queue: Some("default".parse().unwrap()), ..none() },
        JobFilter { tags: [("team".to_owned(), "x".to_owned())].into(), ..none() },
        JobFilter { since: Some(at), ..none() },
        JobFilter { until: Some(at), ..none() },
        JobFilter { error_kind: Some(ErrorKind::ToolFailed), ..none() },
        JobFilter { held_reason: Some(HeldReason::UnknownOutcome), ..none() },
        JobFilter { outcome_unknown: true, ..none() },
        JobFilter { version: Some("20260101_00".into()), ..none() },
        JobFilter { effect: Some(Effect::Once), ..none() },
    ];
    let operator = &Principal::Operator;
    for filter in filters {
        assert!(!t.store.jobs(operator, &filter, None, 100).await.unwrap().items.is_empty(), "{filter:?}");
        for owner in owners() {
            let who = &Principal::Owner(owner.clone());
            let of = |owner: &Owner| JobFilter { owner: Some(owner.clone()), ..filter.clone() };
            let expected = t.store.jobs(operator, &of(&owner), None, 100).await.unwrap().items;
            let expected: Vec<JobId> = expected.iter().map(|job| job.spec.id).collect();
            let walked =
                JobFilter { since: filter.since, until: filter.until, owner: Some(owner.clone()), ..none() };
            let walked = t.store.jobs(operator, &walked, None, 100).await.unwrap().looked_at;
            for filter in [&filter, &of(&owner)] {
                let jobs = t.store.jobs(who, filter, None, 100).await.unwrap();
                assert!(jobs.items.iter().map(|job| job.spec.id).eq(expected.iter().copied()), "{filter:?}");
                let glances = t.store.glances(who, filter, None, true).await.unwrap();
                assert!(glances.items.iter().map(|job| job.id).eq(expected.iter().copied()), "{filter:?}");
                let far = [(jobs.looked_at, jobs.next), (glances.looked_at, glances.next)];
                assert_eq!(far, [(walked, None); 2], "{filter:?}");
            }
            for other in owners().iter().filter(|other| **other != owner) {
                let jobs = t.store.jobs(who, &of(other), None, 100).await.unwrap();
                assert_eq!((jobs.items.len(), jobs.looked_at, jobs.next), (0, 0, None), "{filter:?}");
                let glances = t.store.glances(who, &of(other), None, true).await.unwrap();
                assert_eq!(
                    (glances.items.len(), glances.looked_at, glances.next),
                    (0, 0, None),
                    "{filter:?}"
                );
            }
        }
    }
});

on_every_backend!(a_place_among_jobs_of_others_tells_an_owner_nothing, and behind the lock, async |t| {
    let mut all = Vec::new();
    for owner in owners().into_iter().chain(owners()) {
        let things = Things::of(&owner, &t).await;
        for id in things.ids() {
            all.push((t.view(id).await.created_at, id, owner.clone()));
        }
    }
    all.sort_by_key(|(at, id, _)| (*at, *id));
    all.reverse();
    let filter = JobFilter::default();
    for owner in owners() {
        let who = &Principal::Owner(owner.clone());
        let own = |jobs: &[(_, JobId, Owner)]| -> Vec<JobId> {
            jobs.iter().filter(|(.., of)| *of == owner).map(|(_, id, _)| *id).collect()
        };
        for (place, (at, id, _)) in all.iter().enumerate() {
            let before = format!("{}.{id}", at.as_microsecond()).parse().unwrap();
            let found = t.store.jobs(who, &filter, Some(before), 100).await.unwrap();
            let older = own(&all[place + 1..]);
            assert!(found.items.iter().map(|job| job.spec.id).eq(older.iter().copied()), "{before}");
            assert_eq!((found.looked_at, found.next), (older.len() as u64, None), "{before}");
        }
        // Where a list goes on is the place of a job of its own.
        let (own, mut seen, mut before) = (own(&all), Vec::new(), None);
        loop {
            let page = t.store.jobs(who, &filter, before, 1).await.unwrap();
            seen.extend(page.items.iter().map(|job| job.spec.id));
            before = page.next;
            let Some(next) = before else { break };
            assert!(own.iter().any(|id| next.to_string().ends_with(&id.to_string())), "{next}");
        }
        assert_eq!(seen, own);
    }
});

on_every_backend!(however_many_jobs_a_namesake_of_another_kind_has_an_owner_does_not_notice, and behind the lock, async |t| {
    let owner: Owner = "org:bulk".parse().unwrap();
    let first = Things::of(&owner, &t).await;
    let long_ago =
        if t.is_postgres() { "now() - interval '1 day'" } else { "(unixepoch() - 86400) * 1000000" };
    t.execute(&format!("update jobs set created_at = {long_ago}")).await;
    t.fill(2 * MAX_LOOK_SCATTERED).await;
    let who = &Principal::Owner(owner);
    let jobs = t.store.jobs(who, &first.jobs(), None, 10).await.unwrap();
    assert_eq!((jobs.items.len(), jobs.looked_at, jobs.next), (6, 6, None));
    let glances = t.store.glances(who, &first.jobs(), None, true).await.unwrap();
    assert_eq!((glances.items.len(), glances.looked_at, glances.next), (6, 6, None));
});
