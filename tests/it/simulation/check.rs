//! The promises of docs/guarantees.md, as they can be seen from outside when a world is at rest.

use std::collections::BTreeSet;

use errand::{
    job::{AttemptOutcome, Effect, ErrorKind, HeldReason, JobId, State},
    store::{EventKind, HistoryEntry, HistoryFact},
};
use jiff::Timestamp;

use super::{
    api::{Ledger, TOOLS, VERSION},
    clock::LEAPS,
    world::{Told, World},
};

/// The promises that were broken.
pub(super) fn broken(world: &World, all: &[Told]) -> Vec<String> {
    let mut broken = Vec::new();
    let ledger = world.api.ledger();
    for told in all {
        let id = told.wish.spec.id;
        let effects: Vec<_> = ledger.effects.iter().filter(|effect| effect.job == id).collect();
        let requests = ledger.requests.iter().filter(|request| request.job == id).count();
        let found = of_one(world, &ledger, told, effects.len(), requests);
        broken.extend(found.into_iter().map(|promise| format!("{id} {promise}")));
    }
    let mut seen = BTreeSet::new();
    for request in &ledger.requests {
        if !seen.insert(request.request) {
            broken.push(format!("{} was sent twice under one request ID", request.job));
        }
        let account = world.api.accounts.iter().find(|account| Some(&account.id) == request.account.as_ref());
        if account.is_some_and(|account| account.owner != request.owner) {
            broken.push(format!("{} was sent with the account of somebody else", request.job));
        }
    }
    let known: BTreeSet<JobId> = all.iter().map(|told| told.wish.spec.id).collect();
    for effect in ledger.effects.iter().filter(|effect| !known.contains(&effect.job)) {
        broken.push(format!("{} ran under {} and nobody wanted it", effect.job, effect.request));
    }
    broken
}

fn of_one(world: &World, ledger: &Ledger, told: &Told, effects: usize, requests: usize) -> Vec<String> {
    let Some(job) = &told.job else { return vec!["is lost".to_owned()] };
    let spec = &told.wish.spec;
    let kind = job.error.as_ref().map(|error| error.kind());
    let mut broken = Vec::new();
    let mut promise = |holds: bool, otherwise: &str| {
        if !holds {
            let error = job.error.as_ref().map_or("", |error| error.message());
            broken
                .push(format!("{otherwise}: {}, {effects} effects, {requests} requests, {error}", job.state));
        }
    };

    promise(job.state.is_final() || world.waits_for_good(job), "is stuck");
    // A job that was never decided about was never sent.
    let by_tags = TOOLS.iter().find(|(slug, ..)| *slug == spec.tool).map(|(.., tags)| match tags[..] {
        ["readOnlyHint"] => Effect::Safe,
        ["idempotentHint"] => Effect::Idempotent,
        _ => Effect::Once,
    });
    let effect = spec.effect.or(by_tags);
    promise(effect != Some(Effect::Once) || effects <= 1, "counts and was done twice");
    promise(job.state != State::Succeeded || effects > 0, "succeeded and was not done");
    let says_undone = job.state == State::Failed && kind != Some(ErrorKind::ResultTooLarge);
    promise(effect != Some(Effect::Once) || !says_undone || effects == 0, "failed and was done");
    if let (State::Succeeded, Some(result)) = (job.state, &job.result) {
        let own = format!("\"job\":\"{}\"", spec.id);
        // What a person marks as succeeded has no result.
        promise(result.get() == "null" || result.get().contains(&own), "has the result of another job");
    }
    promise(!told.wish.is_robbery || requests == 0, "was sent with the account of somebody else");

    // A job that was due stays due when the store's clock leaps back before it is claimed.
    let early = |at: Timestamp| spec.run_at.is_some_and(|run_at| at + LEAPS < run_at);
    promise(!job.started_at.is_some_and(early), "ran before its time");
    let expired = job.started_at.is_some_and(|at| spec.expires_at.is_some_and(|expires_at| at >= expires_at));
    promise(!expired, "ran after its time");
    promise(job.binding.as_ref().is_none_or(|binding| binding.version == VERSION), "ran another version");

    let allowed = match spec.budget.max_age {
        Some(_) => u32::MAX,
        None => spec.budget.max_attempts.unwrap_or(world.config.retry.max_attempts),
    };
    promise(job.spent <= allowed, "spent more attempts than it had");
    // What a rescue charged stays charged when it is learnt too late that nothing had been sent.
    let was_tried = |id| ledger.requests.iter().any(|request| request.request == id);
    let charged = told.attempts.iter().filter(|attempt| match attempt.outcome {
        Some(AttemptOutcome::Throttled | AttemptOutcome::Interrupted) | None => false,
        // Only what was tried and did not get through is charged, and not what something was missing for.
        Some(AttemptOutcome::NotSent) => was_tried(attempt.request_id),
        Some(_) => true,
    });
    let charged = u32::try_from(charged.count()).unwrap()
        + world.claims.charged_by_rescues(spec.id)
        + u32::from(job.state == State::Failed);
    promise(job.spent <= charged, "was charged for a wait");
    let mut noted = BTreeSet::new();
    let is_new = |entry: &HistoryEntry| match entry.fact {
        HistoryFact::Unknown | HistoryFact::Adopted { .. } | HistoryFact::Held { .. } => {
            entry.attempt.is_none() || noted.insert((entry.fact.parts().0, entry.by.clone(), entry.attempt))
        }
        _ => true,
    };
    promise(told.history.iter().all(is_new), "has one decision twice in its history");
    let counted = told.events.iter().zip(1..).all(|(event, sequence)| event.sequence == sequence);
    promise(counted, "has an event twice, or misses one");
    let last = told.events.last().map(|event| event.kind.as_str());
    promise(last == Some(&*format!("job.{}", job.state)), "has no event of its end");
    let ends = told.events.iter().filter(|event| {
        [EventKind::JobSucceeded, EventKind::JobFailed, EventKind::JobCancelled].contains(&event.kind)
    });
    promise(ends.count() == usize::from(job.state.is_final()), "ended more than once by its events");
    let became_unknown = told.history.iter().any(|entry| {
        let unknown = HistoryFact::Held { reason: HeldReason::UnknownOutcome };
        entry.attempt == Some(job.attempt) && [HistoryFact::Unknown, unknown].contains(&entry.fact)
    });
    let is_unknown = job.held_reason == Some(HeldReason::UnknownOutcome);
    promise(!is_unknown || became_unknown, "is held for what its history does not say");
    broken
}
