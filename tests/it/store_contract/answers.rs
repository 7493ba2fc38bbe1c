//! Answers to messages, and the other IDs of jobs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use errand::{
    bounds::{MAX_ALIASES, MAX_BATCH_BYTES},
    job::{
        Asked, AttemptOutcome, Ending, EnvelopeReason, ErrorKind, HeldReason, JobId, JobSpec, LookResult,
        Principal, Release, ReplyKind, State, Stop,
    },
    store::{About, Answer, Claim, Claimed, Inserted, JobView, PutOff, Rejected, Repeat, Repeated, Which},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, claim, error, hold, job, job_with_reply, on_every_backend, one,
    renamed, retry, succeed,
};
use crate::support;

const QUEUE: &str = "amq.gen-1";

fn asked(correlation_id: &str) -> Asked {
    Asked {
        id: Uuid::now_v7(),
        reply_to: QUEUE.to_owned(),
        correlation_id: Some(correlation_id.to_owned()),
        message_id: Some("as it was sent".to_owned()),
        publisher: Some("shop".to_owned()),
        redelivered: false,
    }
}

/// A message that waits for its answer.
fn rejected(n: u128) -> Rejected {
    Rejected {
        id: Uuid::from_u128(n),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::BadValue,
        message: "`priority` is wrong".into(),
        body: b"{}".to_vec(),
        properties: "{}".into(),
        job: Some(JobId(Uuid::from_u128(n + 1000))),
        asked: Some(asked("c-7")),
    }
}

fn repeat(job: JobId, id: JobId) -> Repeat {
    Repeat { job, id, asked: Some(asked("c-7")) }
}

async fn take(t: &TestStore) -> Vec<Answer> {
    t.store.take_answers(100, LEASE).await.unwrap()
}

/// The job of which an answer tells.
fn told(answer: &Answer) -> &JobView {
    match &answer.about {
        About::Job(job) => job,
        other => panic!("it tells of no job: {other:?}"),
    }
}

fn connect() -> Stop {
    Stop::Hold { reason: HeldReason::Connection, error: error(ErrorKind::NeedsConnection) }
}

on_every_backend!(a_job_that_becomes_held_owes_an_answer, async |t| {
    let at_the_claim = job_with_reply(json!({}), Some(QUEUE));
    let stopped = Claim { stop: Some(connect()), ..claim(&at_the_claim) };
    assert!(matches!(t.claim(&stopped).await, Claimed::Ended { state: State::Held, .. }));
    let known = job_with_reply(json!({}), Some(QUEUE));
    t.insert(&known).await;
    let stopped = Claim { stop: Some(connect()), from_store: true, ..claim(&known) };
    assert!(matches!(t.claim(&stopped).await, Claimed::Ended { state: State::Held, .. }));
    // What the app calls its message comes back with the answer.
    let named = job_with_reply(json!({}), Some(QUEUE));
    let named = Arc::new(JobSpec { message_id: Some("order 17".to_owned()), ..(*named).clone() });
    let at_the_end = t.run(&named).await;
    let end = at_the_end.end(hold(), AttemptOutcome::Unknown);
    t.finish(&end).await;
    t.finish(&end).await;
    // Nobody waits for these.
    t.in_state(State::Held).await;
    let other = t.run(&job_with_reply(json!({}), Some(QUEUE))).await;
    t.finish(&other.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.run(&job_with_reply(json!({}), Some(QUEUE))).await;

    let answers = take(&t).await;
    let mut ids: Vec<JobId> = answers.iter().map(|answer| told(answer).spec.id).collect();
    ids.sort();
    let mut expected = vec![at_the_claim.id, known.id, at_the_end.id];
    expected.sort();
    assert_eq!(ids, expected);
    for answer in &answers {
        let job = told(answer);
        assert_eq!((answer.kind, job.state), (ReplyKind::Held, State::Held));
        assert!(job.held_reason.is_some() && job.error.is_some(), "{job:?}");
        assert_eq!(answer.asked.message_id, job.spec.message_id);
        assert_eq!(job.spec.message_id.is_some(), job.spec.id == named.id);
        assert_eq!((&*answer.asked.reply_to, answer.asked.correlation_id.as_deref()), (QUEUE, Some("c-1")));
    }
    t.store.answered(&answers.iter().map(|answer| answer.asked.id).collect::<Vec<_>>()).await.unwrap();

    // Held anew, it says so anew; and what is told is what is true by then.
    t.store.release(&Principal::Operator, at_the_end.id, Release::Retry, OPERATOR).await.unwrap();
    let again = t.run(&t.view(at_the_end.id).await.spec).await;
    t.finish(&again.end(hold(), AttemptOutcome::Unknown)).await;
    t.store.release(&Principal::Operator, at_the_end.id, Release::Retry, OPERATOR).await.unwrap();
    let answer = one(take(&t).await);
    assert_eq!((told(&answer).spec.id, told(&answer).held_reason), (at_the_end.id, None), "it goes on");
});

on_every_backend!(a_late_end_that_holds_a_job_owes_an_answer, async |t| {
    let run = t.run(&job_with_reply(json!({}), Some(QUEUE))).await;
    t.finish(&run.rescue(retry(Duration::ZERO))).await;
    t.finish(&run.end(connect().into(), AttemptOutcome::Refused)).await;
    let answer = one(take(&t).await);
    assert_eq!((answer.kind, told(&answer).state), (ReplyKind::Held, State::Held));
});

on_every_backend!(a_rejected_message_owes_an_answer, async |t| {
    let message = rejected(1);
    let quiet = Rejected { asked: None, ..rejected(2) };
    t.store.reject(&[message.clone(), quiet, message.clone()]).await.unwrap();
    // The same write again, whose answer was lost.
    t.store.reject(std::slice::from_ref(&message)).await.unwrap();
    let answer = one(take(&t).await);
    assert_eq!((answer.kind, &answer.asked), (ReplyKind::Rejected, message.asked.as_ref().unwrap()));
    let About::Message { id, job, reason, message: why } = &answer.about else { panic!("{answer:?}") };
    assert_eq!((*id, *job, *reason, why), (message.id, message.job, message.reason, &message.message));
    assert_eq!(
        t.store.rejected_as(&Principal::Operator, message.job.unwrap()).await.unwrap(),
        Some(message.id)
    );
    assert_eq!(t.store.rejected_as(&Principal::Operator, JobId::new()).await.unwrap(), None);
    t.store.answered(&[answer.asked.id]).await.unwrap();
    assert!(take(&t).await.is_empty());

    // What the broker delivers again was answered; what somebody publishes again is asked again.
    let again =
        |redelivered| Rejected { asked: Some(Asked { redelivered, ..asked("c-7") }), ..message.clone() };
    t.store.reject(&[again(true)]).await.unwrap();
    assert!(take(&t).await.is_empty());
    t.store.reject(&[again(false)]).await.unwrap();
    let answer = one(take(&t).await);
    t.store.answered(&[answer.asked.id]).await.unwrap();
    // Nor does it matter which of both is first in a batch.
    t.store.reject(&[again(true), again(false), again(true)]).await.unwrap();
    let answer = one(take(&t).await);
    t.store.answered(&[answer.asked.id]).await.unwrap();
    // Nobody knows whether one was answered that comes again and was not kept.
    let lost = Rejected { asked: Some(Asked { redelivered: true, ..asked("c-7") }), ..rejected(3) };
    t.store.reject(&[lost]).await.unwrap();
    assert_eq!(take(&t).await.len(), 1);
});

on_every_backend!(a_message_that_is_removed_takes_its_answers_along, async |t| {
    t.store.reject(&[rejected(1), rejected(2)]).await.unwrap();
    let page = t.store.old_messages(None, 10).await.unwrap();
    let first: Vec<_> = page.items.into_iter().filter(|message| message.id == Uuid::from_u128(1)).collect();
    assert_eq!(t.store.remove_messages(&first).await.unwrap(), [Uuid::from_u128(1)]);
    assert_eq!(t.count("select count(*) from answers").await, 1);
    let answer = one(take(&t).await);
    assert!(matches!(answer.about, About::Message { id, .. } if id == Uuid::from_u128(2)), "{answer:?}");
});

on_every_backend!(who_repeats_a_job_is_owed_an_answer, async |t| {
    let done = t.run(&job(json!({}))).await;
    t.finish(&done.end(succeed(r#"{"x":1}"#), AttemptOutcome::Succeeded)).await;
    let running = t.run(&job(json!({}))).await;
    let batch = [repeat(done.id, done.id), repeat(running.id, running.id)];
    t.store.note_repeats(&batch).await.unwrap();
    t.store.note_repeats(&batch).await.unwrap();
    t.store.note_repeats(&[]).await.unwrap();
    let answers = take(&t).await;
    assert_eq!(answers.len(), 2, "a write that is sent again owes nothing more");
    for (answer, (repeat, state)) in answers.iter().zip(batch.iter().zip([State::Succeeded, State::Running]))
    {
        assert_eq!((answer.kind, Some(&answer.asked)), (ReplyKind::Duplicate, repeat.asked.as_ref()));
        assert_eq!((told(answer).spec.id, told(answer).state), (repeat.job, state));
    }
    assert_eq!(told(&answers[0]).result.as_ref().unwrap().get(), r#"{"x":1}"#);
    assert!(
        t.store.known_as(&Principal::Operator, done.id).await.unwrap().is_empty(),
        "its own ID is no other one"
    );
});

on_every_backend!(who_asks_the_same_again_shares_the_answer_that_is_pending, async |t| {
    let done = t.run(&job(json!({}))).await;
    t.finish(&done.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    let (same, other) = (repeat(done.id, done.id), repeat(done.id, done.id));
    let flood: Vec<Repeat> = (0..100).map(|_| same.clone()).collect();
    t.store.note_repeats(&flood).await.unwrap();
    t.store.note_repeats(&flood).await.unwrap();
    t.store.note_repeats(std::slice::from_ref(&other)).await.unwrap();
    let ids = |answers: &[Answer]| answers.iter().map(|answer| answer.asked.id).collect::<Vec<_>>();
    let (same_id, other_id) = (same.asked.clone().unwrap().id, other.asked.unwrap().id);
    assert_eq!(ids(&take(&t).await), [same_id, other_id]);
    // It may have been published before it was asked for once more.
    t.store.note_repeats(&flood).await.unwrap();
    assert!(take(&t).await.is_empty(), "it is taken");
    t.store.answered(&[same_id, other_id]).await.unwrap();
    assert_eq!(ids(&take(&t).await), [same_id]);
    t.store.answered(&[same_id]).await.unwrap();
    assert_eq!(t.count("select count(*) from answers").await, 0);

    // So it is with messages that are rejected.
    let message = rejected(1);
    let again = || t.store.reject(std::slice::from_ref(&message));
    again().await.unwrap();
    let answer = one(take(&t).await);
    again().await.unwrap();
    t.store.answered(&[answer.asked.id]).await.unwrap();
    let answer = one(take(&t).await);
    t.store.answered(&[answer.asked.id]).await.unwrap();
    assert_eq!(t.count("select count(*) from answers").await, 0);
});

on_every_backend!(a_look_up_that_gives_up_owes_an_answer, async |t| {
    let unknown = async || {
        let run = t.run(&job_with_reply(json!({}), Some(QUEUE))).await;
        let verify = Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) };
        t.finish(&run.end(verify, AttemptOutcome::Unknown)).await;
        run
    };
    let (run, cancelled) = (unknown().await, unknown().await);
    assert_eq!(take(&t).await.len(), 2, "they say that errand looks");
    t.store.cancel(&Principal::Operator, cancelled.id, OPERATOR).await.unwrap();
    let put_off = |run: &RunningJob, checks, again_after| PutOff {
        id: run.id,
        fence: run.receipt.fence,
        checks,
        again_after,
        look: LookResult::Unclear,
        detail: None,
    };
    assert!(t.store.put_off(&put_off(&run, 0, Some(Duration::ZERO))).await.unwrap());
    assert!(take(&t).await.is_empty(), "errand looks again");
    assert!(t.store.put_off(&put_off(&cancelled, 0, None)).await.unwrap());
    assert!(take(&t).await.is_empty(), "nobody has to decide about one that is cancelled");
    let gives_up = put_off(&run, 1, None);
    assert!(t.store.put_off(&gives_up).await.unwrap());
    assert!(!t.store.put_off(&gives_up).await.unwrap());
    let answer = one(take(&t).await);
    assert_eq!((answer.kind, told(&answer).spec.id, told(&answer).check_at), (ReplyKind::Held, run.id, None));
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_others_have_locked_keep_nobody_waiting() {
    let t = TestStore::postgres().await;
    t.store.reject(&[rejected(1), rejected(2), rejected(3)]).await.unwrap();
    let ids: Vec<Uuid> = take(&t).await.into_iter().map(|answer| answer.asked.id).collect();
    let lock = t.lock(&format!("select 1 from answers where id = '{}' for update", ids[0])).await;
    t.store.defer_answers(&ids, Duration::ZERO).await.unwrap();
    assert_eq!(take(&t).await.len(), 2);
    assert_eq!(t.store.put_off_answers(&ids[..2], Duration::ZERO, 1).await.unwrap(), [ids[1]]);
    t.store.answered(&ids).await.unwrap();
    drop(lock);
    assert_eq!(t.count("select count(*) from answers").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_repeat_the_same_jobs_wait_for_each_other_in_one_direction() {
    let t = TestStore::postgres().await;
    for _ in 0..10 {
        let first = t.in_state(State::Succeeded).await;
        let repeats: Vec<Repeat> = (0..MAX_ALIASES).map(|_| repeat(first, JobId::new())).collect();
        let back: Vec<Repeat> = repeats.iter().rev().cloned().collect();
        let (one, other) = tokio::join!(t.store.note_repeats(&repeats), t.other.note_repeats(&back));
        one.unwrap();
        other.unwrap();
        assert_eq!(t.store.known_as(&Principal::Operator, first).await.unwrap().len(), MAX_ALIASES);
    }
}

on_every_backend!(a_job_is_known_by_the_ids_of_those_that_repeat_it, async |t| {
    let (first, other) = (t.in_state(State::Succeeded).await, t.in_state(State::Succeeded).await);
    let mut ids: Vec<JobId> = (0..MAX_ALIASES + 5).map(|_| JobId::new()).collect();
    let quiet = |job, id| Repeat { job, id, asked: None };
    for id in &ids {
        t.store.note_repeats(&[quiet(first, *id)]).await.unwrap();
    }
    t.store.note_repeats(&[quiet(first, ids[0]), quiet(JobId::new(), JobId::new())]).await.unwrap();
    let removed = quiet(JobId::new(), JobId::new());
    t.store.note_repeats(std::slice::from_ref(&removed)).await.unwrap();
    assert_eq!(
        t.store.job_known_as(&Principal::Operator, removed.id).await.unwrap(),
        None,
        "nothing stays behind a job that is gone"
    );
    ids.truncate(MAX_ALIASES);
    assert_eq!(t.store.known_as(&Principal::Operator, first).await.unwrap(), ids);
    for id in &ids {
        assert_eq!(t.store.job_known_as(&Principal::Operator, *id).await.unwrap(), Some(first));
    }
    assert_eq!(t.store.job_known_as(&Principal::Operator, first).await.unwrap(), None);
    assert!(t.store.known_as(&Principal::Operator, other).await.unwrap().is_empty());

    // They go with it, and so does what is owed about it.
    t.store.note_repeats(&[repeat(first, first), repeat(other, other)]).await.unwrap();
    let which = Which { owner: None, age: Duration::ZERO };
    let mut old = t.store.old_jobs(&which, None, 10).await.unwrap().items;
    old.retain(|job| job.id == first);
    assert_eq!(t.store.remove_jobs(&old).await.unwrap(), [first]);
    assert_eq!(t.count("select count(*) from known_as").await, 0);
    assert_eq!(told(&one(take(&t).await)).spec.id, other);
});

on_every_backend!(an_answer_about_what_is_gone_tells_nothing, async |t| {
    t.store
        .note_repeats(&[Repeat { job: JobId::new(), id: JobId::new(), asked: Some(asked("c-7")) }])
        .await
        .unwrap();
    let answer = one(take(&t).await);
    assert!(matches!(answer.about, About::Nothing), "{answer:?}");
});

on_every_backend!(an_answer_is_offered_until_it_is_done_with, async |t| {
    t.store.reject(&[rejected(1)]).await.unwrap();
    let answer = one(t.store.take_answers(10, Duration::ZERO).await.unwrap());
    let id = answer.asked.id;
    assert_eq!(take(&t).await.len(), 1, "offered again");
    assert!(take(&t).await.is_empty(), "but not before its time");
    t.store.defer_answers(&[id, Uuid::now_v7()], Duration::ZERO).await.unwrap();
    assert_eq!(take(&t).await.len(), 1, "or when asked");
    assert!(t.store.take_answers(0, LEASE).await.unwrap().is_empty());

    let first = Duration::from_millis(200);
    for refusal in 0..3 {
        t.store.defer_answers(&[id], Duration::ZERO).await.unwrap();
        assert_eq!(take(&t).await.len(), 1);
        let before = Instant::now();
        assert!(t.store.put_off_answers(&[id, Uuid::now_v7()], first, 4).await.unwrap().is_empty());
        let early = take(&t).await;
        assert!(early.is_empty() || before.elapsed() >= first * (1 << refusal), "refusal {refusal}");
        if early.is_empty() {
            support::wait::until("it to be offered", Duration::from_secs(60), async || take(&t).await.pop())
                .await;
        }
    }
    assert_eq!(t.store.put_off_answers(&[id], first, 4).await.unwrap(), [id]);
    assert!(t.store.put_off_answers(&[id], first, 4).await.unwrap().is_empty(), "it was given up before");
    t.store.defer_answers(&[id], Duration::ZERO).await.unwrap();
    assert!(take(&t).await.is_empty());
    assert_eq!(t.count("select count(*) from answers").await, 0);
});

on_every_backend!(an_answer_is_given_to_one_process, async |t| {
    let messages: Vec<Rejected> = (0..100).map(rejected).collect();
    t.store.reject(&messages).await.unwrap();
    let tasks = [Arc::clone(&t.store), Arc::clone(&t.other)].map(|store| {
        tokio::spawn(async move {
            let mut taken = Vec::new();
            for _ in 0..20 {
                taken.extend(store.take_answers(10, LEASE).await.unwrap().into_iter().map(|a| a.asked.id));
            }
            taken
        })
    });
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 100);
});

on_every_backend!(a_page_of_answers_is_bounded_in_bytes_and_never_empty, async |t| {
    let mut random = fastrand::Rng::with_seed(7);
    let large = MAX_BATCH_BYTES * 2 / 5;
    for bytes in [large, large, large, MAX_BATCH_BYTES + 1, 10, 10] {
        let run = t.run(&job(json!({}))).await;
        let noise: String = std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect();
        t.finish(&run.end(succeed(&format!("{noise:?}")), AttemptOutcome::Succeeded)).await;
        t.store.note_repeats(&[repeat(run.id, run.id)]).await.unwrap();
    }
    let (mut pages, mut left) = (Vec::new(), 6);
    while left > 0 {
        let page = take(&t).await;
        left -= page.len();
        pages.push(page.len());
    }
    assert_eq!(pages, [2, 1, 1, 2]);
});

on_every_backend!(a_repetition_says_whether_the_same_app_asks_for_the_same_answer, async |t| {
    let first = job_with_reply(json!({"idempotency_key": "k"}), Some(QUEUE));
    t.run(&first).await;
    let with = |change: fn(&mut JobSpec)| {
        let mut spec = (*first).clone();
        change(&mut spec);
        Arc::new(spec)
    };
    for (spec, same_asker) in [
        (Arc::clone(&first), true),
        (with(|spec| spec.reply_to = Some("amq.gen-2".to_owned())), false),
        (with(|spec| spec.reply_to = None), false),
        (with(|spec| spec.correlation_id = Some("c-2".to_owned())), false),
        (with(|spec| spec.message_id = Some("order 17".to_owned())), false),
        // Under another ID somebody waits for that one.
        (renamed(&first), false),
    ] {
        let expected = Repeated { id: first.id, state: Some(State::Running), same_asker };
        assert_eq!(t.insert(&spec).await, Inserted::Duplicate(expected.clone()));
        match t.claim(&claim(&spec)).await {
            Claimed::Duplicate(repeated) => assert_eq!(repeated, expected),
            other => panic!("{other:?}"),
        }
    }
});

#[test]
fn a_repetition_is_answered_unless_the_end_of_its_job_answers_it() {
    let id = JobId::new();
    for (state, same_asker, redelivered, is_answered) in [
        (Some(State::Running), true, false, false),
        (Some(State::Held), true, false, false),
        (Some(State::Succeeded), true, false, true),
        (Some(State::Succeeded), true, true, false),
        (Some(State::Running), false, false, true),
        (Some(State::Cancelled), false, true, true),
        (None, true, false, false),
    ] {
        let repeated = Repeated { id, state, same_asker };
        assert_eq!(repeated.is_answered(redelivered), is_answered, "{repeated:?} {redelivered}");
    }
}
