//! One rule for every way in: what repeats a job, and what contradicts it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use errand::{
    job::{AttemptOutcome, BatchId, Digest, JobId, JobSpec, Principal, State},
    store::{Added, Claim, Claimed, Conflict, Inserted, NewBatch, NotAdded},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{TestStore, claim, fail, job, on_every_backend, succeed};

/// The ways in: a request or a command, a message, a batch that has its items with it, and one that is filled.
#[derive(Debug, Clone, Copy)]
enum Door {
    Insert,
    Message,
    Batch,
    Chunk,
}

/// What becomes of a job that comes second.
#[derive(Debug, PartialEq)]
enum Answer {
    New,
    TheFirst,
    Conflict(Conflict),
}

/// What the second job has in common with the first.
#[derive(Debug, Clone, Copy)]
struct Common {
    id: bool,
    /// `None`: it has no idempotency key.
    key: Option<bool>,
    body: bool,
    owner: bool,
}

impl Common {
    fn all() -> impl Iterator<Item = Self> {
        let flags = [true, false];
        flags.into_iter().flat_map(move |id| {
            [Some(true), Some(false), None].into_iter().flat_map(move |key| {
                flags
                    .into_iter()
                    .flat_map(move |body| flags.into_iter().map(move |owner| Self { id, key, body, owner }))
            })
        })
    }

    fn second(self, first: &JobSpec) -> Arc<JobSpec> {
        let mut fields = json!({"tool": if self.body { &first.tool } else { "OTHER" }});
        let mut put = |name: &str, value: Value| fields[name] = value;
        if self.id {
            put("id", json!(first.id));
        }
        match self.key {
            Some(true) => put("idempotency_key", json!(first.idempotency_key)),
            Some(false) => put("idempotency_key", json!(Uuid::now_v7())),
            None => {}
        }
        if !self.owner {
            put("org_id", json!("o-1"));
        }
        job(fields)
    }
}

impl Door {
    const ALL: [Self; 4] = [Self::Insert, Self::Message, Self::Batch, Self::Chunk];

    async fn take(self, t: &TestStore, first: JobId, spec: &Arc<JobSpec>) -> Answer {
        let by_id = |id: JobId| if id == first { Answer::TheFirst } else { Answer::New };
        let conflict = |conflict: Conflict| match conflict {
            Conflict::Key { first: named } => {
                assert_eq!(named, Some(first), "{self:?}");
                Answer::Conflict(Conflict::Key { first: None })
            }
            other => Answer::Conflict(other),
        };
        match self {
            Self::Insert => match t.insert(spec).await {
                Inserted::New(_) => Answer::New,
                Inserted::Duplicate(repeated) => by_id(repeated.id),
                Inserted::Conflict(why) => conflict(why),
            },
            Self::Message => match t.claim(&claim(spec)).await {
                // The message of a job that waits is what it waits for.
                Claimed::Running(_) => by_id(spec.id),
                Claimed::Duplicate(repeated) => by_id(repeated.id),
                Claimed::Conflict(why) => conflict(why),
                other => panic!("{other:?}"),
            },
            Self::Batch | Self::Chunk => {
                let is_sealed = matches!(self, Self::Batch);
                let batch = NewBatch { is_sealed, ..batch() };
                let items = std::slice::from_ref(spec);
                let added = if is_sealed {
                    t.store.add_batch(&batch, items).await.unwrap()
                } else {
                    t.store.add_batch(&batch, &[]).await.unwrap();
                    t.store.add_items(&Principal::Operator, batch.id, 0, items).await.unwrap()
                };
                match added {
                    Added::New(_, jobs) => by_id(jobs[0]),
                    Added::Not(NotAdded::Items(conflicts)) => conflict(conflicts[0].1),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn batch() -> NewBatch {
    NewBatch {
        id: BatchId(Uuid::now_v7()),
        principal: Principal::Operator,
        digest: Digest([7; 16]),
        is_sealed: true,
        deadline: None,
        stop: None,
        follow_up: None,
        callback: None,
    }
}

/// A job that has come to this state.
async fn first(t: &TestStore, state: State) -> Arc<JobSpec> {
    let spec = job(json!({"idempotency_key": Uuid::now_v7()}));
    if state == State::Available {
        t.insert(&spec).await;
        return spec;
    }
    let run = t.run(&spec).await;
    t.finish(&match state {
        State::Failed => run.end(fail(), AttemptOutcome::ToolFailed),
        _ => run.end(succeed("{}"), AttemptOutcome::Succeeded),
    })
    .await;
    spec
}

on_every_backend!(every_way_in_judges_what_comes_again_by_one_rule, async |t| {
    let mut seen = [0; 3];
    for state in [State::Available, State::Failed, State::Succeeded] {
        for common in Common::all() {
            let mut answers = Vec::new();
            for door in Door::ALL {
                let first = first(&t, state).await;
                let second = common.second(&first);
                answers.push(door.take(&t, first.id, &second).await);
                assert_eq!(t.view(first.id).await.spec.tool, first.tool, "the first stays as it is");
            }
            let (one, others) = answers.split_first().unwrap();
            assert!(others.iter().all(|answer| answer == one), "{state}, {common:?}: {answers:?}");
            seen[match one {
                Answer::New => 0,
                Answer::TheFirst => 1,
                Answer::Conflict(_) => 2,
            }] += 1;
            // Whatever became of the first: neither its state nor its end makes room for another one.
            if common.owner && common.body && common.key == Some(true) {
                assert_eq!(*one, Answer::TheFirst, "{state}, {common:?}");
            }
        }
    }
    assert!(seen.iter().all(|answers| *answers > 0), "{seen:?}");
});

on_every_backend!(ways_in_that_meet_in_their_keys_make_each_job_once, async |t| {
    const KEYS: usize = 40;
    for round in 1..=10 {
        // Each way has IDs of its own, and meets the keys in another order.
        let keyed = |key: usize| job(json!({"idempotency_key": format!("{round}-{}", key % KEYS)}));
        let inserted: Vec<_> = (0..KEYS).map(keyed).collect();
        let claimed: Vec<_> = (0..KEYS).rev().map(keyed).collect();
        let added: Vec<_> = (KEYS / 2..KEYS / 2 + KEYS).map(keyed).collect();
        let (claims, new_batch) = (claimed.iter().map(claim).collect::<Vec<Claim>>(), batch());
        let (inserts, claims, batch) = tokio::join!(
            t.store.insert(&inserted, Duration::ZERO),
            t.other.claim(t.worker, &claims),
            t.store.add_batch(&new_batch, &added),
        );
        let inserts = inserted.iter().zip(inserts.unwrap()).map(|(spec, answer)| match answer {
            Inserted::New(_) => (spec, spec.id),
            Inserted::Duplicate(repeated) => (spec, repeated.id),
            other => panic!("{other:?}"),
        });
        let claims = claimed.iter().zip(claims.unwrap()).map(|(spec, answer)| match answer {
            Claimed::Running(_) => (spec, spec.id),
            Claimed::Duplicate(repeated) => (spec, repeated.id),
            other => panic!("{other:?}"),
        });
        let Added::New(_, jobs) = batch.unwrap() else { panic!("the batch is new") };
        let mut answers: BTreeMap<_, BTreeSet<JobId>> = BTreeMap::new();
        for (spec, job) in inserts.chain(claims).chain(added.iter().zip(jobs)) {
            answers.entry(spec.idempotency_key.as_deref()).or_default().insert(job);
        }
        assert_eq!(answers.len(), KEYS);
        assert!(answers.values().all(|jobs| jobs.len() == 1), "every way names the same job: {answers:?}");
        let jobs = usize::try_from(t.count("select count(*) from jobs").await).unwrap();
        assert_eq!(jobs, round * KEYS);
    }
});
