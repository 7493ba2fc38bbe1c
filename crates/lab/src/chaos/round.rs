//! One round: jobs, a fault, and the count of what became of them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use errand::{
    job::{HeldReason, JobId, Principal, State},
    maintenance::audit::{self, Audit},
    store::{AuditLimits, SharedStore},
};
use tokio::time::{Instant, sleep};

use super::{
    cluster::Cluster,
    environment::{DRAIN, Environment, LEASE},
    fault::Fault,
    injector::Injector,
    listeners::{Listeners, Verdict},
    load::{Accepted, Load},
    plan::Plan,
    rest::{PATIENCE, Rest, rests},
    tally::{Outcome, Tally},
    tool_api::owners,
};

/// How long jobs take to come in.
const SPAN: Duration = Duration::from_secs(6);

/// How often a job follows that is not counted.
const LATER: Duration = Duration::from_secs(1);

/// How long a worker may take to end once nothing is left to do.
const END: Duration = Duration::from_secs(DRAIN.as_secs() + 10);

/// Jobs that the auditor reads at once.
const AUDIT_PAGE: usize = 1_000;

/// Most jobs that are named when something is wrong.
const NAMED: usize = 5;

/// A round to play.
pub(super) struct Round {
    pub(super) fault: Fault,
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) cluster: Arc<Cluster>,
}

impl Round {
    pub(super) fn title(&self) -> String {
        format!("{} with seed {}", self.fault.name(), self.seed)
    }

    pub(super) async fn play(&self) -> Result<Outcome> {
        let begin = Instant::now();
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let mut environment = Environment::build(&self.plan, &self.cluster, self.seed).await?;
        let played = self.play_on(&mut environment, &mut rng).await;
        environment.close().await;
        let went_well = matches!(&played, Ok((_, complaints)) if complaints.is_empty());
        if !went_well {
            self.keep_logs(&environment)?;
        }
        let (tally, complaints) = played?;
        Ok(Outcome { fault: self.fault, seed: self.seed, tally, complaints, took: begin.elapsed() })
    }

    async fn play_on(
        &self,
        environment: &mut Environment,
        rng: &mut fastrand::Rng,
    ) -> Result<(Tally, Vec<String>)> {
        let (store, vhost) = (environment.access.store.clone(), environment.vhost.as_ref());
        let listeners = Listeners::start(&store, vhost, &self.cluster.place, &owners()?).await?;
        environment.start_workers().await?;
        let load = Load {
            access: environment.access.clone(),
            api: environment.api.clone(),
            callback: listeners.receiver.url().clone(),
            jobs: self.plan.jobs,
            span: SPAN,
            by_message: !self.fault.loses_messages(),
            varied: true,
            impatient: self.fault == Fault::ShortTimeouts,
        };
        let later = Load { jobs: 1, span: Duration::ZERO, varied: false, impatient: false, ..load.clone() };
        let enqueueing = tokio::spawn(load.enqueue(rng.fork()));
        let receiver = &listeners.receiver;
        let backend = self.plan.backend;
        let injected =
            Injector { environment, receiver, cluster: &self.cluster, backend, rng }.run(self.fault).await;
        let accepted = enqueueing.await??;
        injected?;
        environment.start_workers().await?;

        let mut complaints = Vec::new();
        let rest = tokio::select! {
            biased;
            rest = Rest::of(&store, &accepted) => rest?,
            failed = keep_calling(&later, rng) => failed.map(|never| match never {})?,
        };
        complaints.extend(audit(&store).await?);
        let verdict = listeners.verdict(&store, rest.ends()).await?;
        let peak_bytes = environment
            .slots
            .iter()
            .filter_map(|slot| slot.process.as_ref()?.peak_bytes())
            .max()
            .unwrap_or(0);
        for slot in &mut environment.slots {
            if let Err(error) = slot.stop(END).await {
                complaints.push(format!("{error:#}"));
            }
        }
        let mut tally = count(environment, &accepted, &rest, &mut complaints);
        let Verdict { events, untold, repeats, complaints: of_events } = verdict;
        (tally.events, tally.untold, tally.told_again) = (events, untold, repeats);
        complaints.extend(of_events);
        complaints.extend(environment.api.complaints());
        tally.peak_bytes = peak_bytes;
        for id in rest.jobs.keys() {
            tally.add_look_ups(&store.history(&Principal::Operator, *id).await?);
        }
        Ok((tally, complaints))
    }

    fn keep_logs(&self, environment: &Environment) -> Result<()> {
        let folder = self.plan.keep.join(format!("{}-{}", self.fault.name(), self.seed));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for entry in std::fs::read_dir(environment.folder())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// Goes on to enqueue a job now and then, which nobody counts. Only a call that was sent later shows that the log has not
/// stopped since the one that is looked for.
async fn keep_calling(later: &Load, rng: &mut fastrand::Rng) -> Result<Infallible> {
    loop {
        later.clone().enqueue(rng.fork()).await?;
        sleep(LATER).await;
    }
}

/// What the auditor finds in a store at rest, a line for each kind.
async fn audit(store: &SharedStore) -> Result<Vec<String>> {
    let options = audit::Options {
        page: AUDIT_PAGE,
        pause: Duration::ZERO,
        limits: AuditLimits {
            lease: LEASE,
            lost: LEASE,
            timeout: Duration::ZERO,
            overrun: LEASE,
            overdue: LEASE,
            publications: 3,
            verified: true,
        },
        repair: false,
        named: NAMED,
    };
    let report = Audit::new(store.clone(), None, Arc::default(), options).run_once().await?;
    let lines = report.found.iter().map(|(kind, found)| {
        let jobs: Vec<_> = found.jobs.iter().map(ToString::to_string).collect();
        format!("the audit finds {} jobs {}, such as {}", found.found, kind.as_str(), jobs.join(", "))
    });
    Ok(lines.collect())
}

/// Compares the store with the ledger.
fn count(environment: &Environment, accepted: &Accepted, rest: &Rest, complaints: &mut Vec<String>) -> Tally {
    let mut tally = Tally { rounds: 1, enqueued: accepted.len() as u64, ..Tally::default() };
    for batch in rest.batches.iter().filter(|batch| batch.goes_on()) {
        tally.stuck += 1;
        complaints.push(format!("batch {} is not complete after {} s", batch.id, PATIENCE.as_secs()));
    }
    let mut named = 0;
    let mut complain = |id: &JobId, what: String| {
        named += 1;
        if named <= NAMED {
            complaints.push(format!("job {id} {what}"));
        }
    };
    for (id, once) in accepted {
        let effects = environment.api.effects(&id.to_string());
        if *once && effects > 1 {
            tally.twice += 1;
            complain(id, format!("took effect {effects} times"));
        }
        let Some(job) = rest.jobs.get(id) else {
            tally.lost += 1;
            complain(id, "was accepted and is not in the store".into());
            continue;
        };
        match job.state {
            State::Succeeded if effects == 0 => {
                tally.succeeded += 1;
                tally.lost += 1;
                complain(id, "succeeded without an effect".into());
            }
            State::Succeeded => tally.succeeded += 1,
            State::Failed | State::Cancelled => {
                tally.failed += 1;
                // All jobs of a round can be done, so each of these is worth a look.
                let kind = job.error.as_ref().map_or("", |error| error.kind().as_str());
                tracing::warn!(job.id = %id, kind, effects, attempts = job.attempt, "a job failed");
            }
            State::Held => {
                tally.held += 1;
                if !rests(job) {
                    tally.stuck += 1;
                    complain(id, format!("is still looked for after {} s", PATIENCE.as_secs()));
                }
                let error = job.error.as_ref().map_or("", |error| error.message());
                tracing::warn!(job.id = %id, error, effects, "a job waits for a person");
                if job.held_reason != Some(HeldReason::UnknownOutcome) {
                    tally.stuck += 1;
                    let reason = job.held_reason.map_or("nothing", HeldReason::as_str);
                    complain(id, format!("is held for {reason}, which nothing in the round justifies"));
                }
            }
            State::Scheduled | State::Available | State::Running | State::Retryable => {
                tally.stuck += 1;
                complain(id, format!("is still {} after {} s", job.state, PATIENCE.as_secs()));
            }
        }
    }
    tally
}
