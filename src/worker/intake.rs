//! Deliveries, from the broker to running jobs: admitted, claimed in one write, started, acknowledged. What was
//! not recorded is given back to the broker.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    admit::{admit, anonymous_job, guarded, reject, repeat},
    attempt,
    crash::CrashPoint,
    persist::{NotTaken, Persist, Unwritten, bisect, each, split},
    running_job::RunningJob,
    shared::Shared,
};
use crate::{
    backoff::RECONNECT,
    failure::chain,
    in_flight::Noted,
    job::{EnvelopeError, EnvelopeReason, ErrorKind, JobId, JobSpec, Principal, QueueName, State, Stop},
    queue::{Delivery, QueueErrorKind, Settler, Token},
    store::{Claim, Claimed, Inserted, Rejected, Repeat, Repeated, StoreError},
    sync::lock,
    telemetry::metrics::{self, LaneMetrics},
};

/// Why a message is kept whose job should be in the database. It may be the last copy of a job that was confirmed, and
/// the job may have run: only a person knows.
pub(super) const UNKNOWN_JOB: &str = "the message says that the database knows its job (header x-errand-known), and it does not: the \
    database was restored, or it is not the one of the relay that published the message, or a publisher sets errand's own \
    header; `errand rejected requeue` runs it as a new job";

/// How long answers to what repeats jobs are tried to be written before the lane goes on without them. A try that is under
/// way may add some seconds.
const NOTE_PATIENCE: Duration = Duration::from_secs(5);

/// Takes the deliveries of one lane until its stop.
pub(super) struct Intake {
    pub(super) lane: QueueName,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<LaneMetrics>,
    pub(super) stop: CancellationToken,
}

impl Intake {
    /// Takes deliveries to their end: rejected, claimed or given back. `false` when the lane should stop.
    pub(super) async fn take(
        &self,
        deliveries: Vec<Delivery>,
        mut slots: OwnedSemaphorePermit,
        settler: &Arc<dyn Settler>,
    ) -> bool {
        let tokens: Vec<Token> = deliveries.iter().map(|delivery| delivery.token).collect();
        let arrived = self.shared.heads.arrive(&self.lane, deliveries.len());
        let waited_since = self.shared.heads.since(&self.lane);
        let mut rejected = Vec::new();
        let (mut claims, mut admitted) =
            (Vec::with_capacity(deliveries.len()), Vec::with_capacity(deliveries.len()));
        for delivery in deliveries {
            match guarded(|| admit(&self.shared, &self.lane, &delivery)) {
                Ok(claim) => {
                    claims.push(claim);
                    admitted.push(delivery);
                }
                Err(error) => {
                    rejected.push((delivery.token, reject(&self.shared, &self.lane, &delivery, error)));
                }
            }
        }

        let in_flight = &self.shared.in_flight;
        let mut noted: Vec<Option<Noted>> =
            claims.iter().map(|claim| Some(in_flight.note(claim.request_id, claim.spec.id))).collect();
        let (mut taken, mut published_at) = (rejected.len() as u64, None);
        let mut repeats = Vec::new();
        let done = |place: usize, claim: Claim, Answered { asked, answer }| {
            let Some(noted) = noted[place].take() else { return };
            taken += 1;
            published_at = published_at.max(claim.published_at);
            let start = Start { delivery: &admitted[place], noted, asked, waited_since };
            match self.start(claim, answer, start, &mut slots) {
                Some(After::Reject(token, message)) => rejected.push((token, message)),
                Some(After::Note(token, repeat)) => repeats.push((token, repeat)),
                None => {}
            }
        };
        let locked = Mutex::default();
        let Unwritten { mut failing, left } = self.claim(claims, &locked, done).await;
        drop(slots);
        self.metrics.taken.increment(taken);
        self.shared.heads.take(&self.lane, taken, published_at, self.shared.services.clock.now());
        drop(arrived);
        // The store may have taken what is in doubt, and nobody is going to run it here.
        left.iter().filter_map(|(place, _)| noted[*place].take()).for_each(Noted::leave);
        let locked = std::mem::take(&mut *lock(&locked));
        let known = self.known(&failing, &locked).await;
        failing.retain(|(place, _)| !known.iter().any(|(known, _)| known == place));
        repeats.extend(known.iter().filter_map(|(place, (spec, repeated))| {
            let delivery = &admitted[*place];
            Some((delivery.token, repeat(&self.shared, &self.lane, delivery, spec, repeated)?))
        }));
        let unsettled = failing.iter().map(|(place, _)| admitted[*place].token).collect();
        let records = Records { rejected, repeats, all_known: left.is_empty() };
        self.settle(tokens, unsettled, records, settler).await
    }

    /// The places of claims that were left out because others have locked their jobs, which the store knows. Their messages
    /// are only transport and can be acknowledged: a job that is available is due again, so that the relay publishes it,
    /// and for any other this message is a duplicate. Given back, they would take the places of others. A job with the
    /// same ID that is another one is not known.
    async fn known(
        &self,
        failing: &[(usize, Claim)],
        locked: &HashSet<JobId>,
    ) -> Vec<(usize, (Arc<JobSpec>, Repeated))> {
        let Shared { services, give_up, .. } = &*self.shared;
        let mut known = Vec::new();
        for (place, Claim { spec, .. }) in failing.iter().filter(|(_, claim)| locked.contains(&claim.spec.id))
        {
            match give_up.run_until_cancelled(services.store.job(&Principal::Operator, spec.id)).await {
                Some(Ok(Some(job))) if job.is_asked_by(spec) => {
                    known.push((*place, (spec.clone(), Repeated::by(&job, spec))));
                }
                Some(Ok(_)) => {}
                // Where this cannot be told, the messages are kept.
                Some(Err(_)) | None => break,
            }
        }
        if !known.is_empty() {
            tracing::warn!(
                queue = %self.lane, jobs = known.len(),
                "jobs that others have locked are left to the relay, which publishes them again after \
                 `relay.unclaimed_secs`"
            );
        }
        known
    }

    /// Keeps rejected messages, notes what repeats jobs, and acknowledges all deliveries, but those that the store does not
    /// take, which are given back. Where nobody waits for the store any more, all are. `false` when the lane should stop.
    pub(super) async fn settle(
        &self,
        tokens: Vec<Token>,
        mut unsettled: Vec<Token>,
        Records { rejected, repeats, all_known }: Records,
        settler: &Arc<dyn Settler>,
    ) -> bool {
        let are_answered = rejected.iter().any(|(_, message)| message.asked.is_some()) || !repeats.is_empty();
        let kept = self.keep(rejected).await;
        let noted = self.note(repeats).await;
        if are_answered {
            self.shared.services.relay_wake.notify_one();
        }
        if !all_known || !kept.left.is_empty() || !noted.left.is_empty() {
            // What was claimed is recorded, so its redelivery is a duplicate; the rest comes again.
            self.give_back(settler, tokens).await;
            return false;
        }
        unsettled.extend(kept.failing.into_iter().map(|(_, (token, _))| token));
        unsettled.extend(noted.failing.into_iter().map(|(_, (token, _))| token));
        let settled = tokens.into_iter().filter(|token| !unsettled.contains(token)).collect();
        self.shared.crash.pass(CrashPoint::BeforeAck);
        self.acknowledge(settler, settled).await;
        if !unsettled.is_empty() {
            let messages = unsettled.len();
            tracing::warn!(queue = %self.lane, messages, "messages that the store does not take are given back");
            self.give_back_later(settler, unsettled);
        }
        true
    }

    /// Puts deliveries back that nobody has looked at, for another worker. One without an ID must not come a second time,
    /// because then it passes for one that may have run: it becomes a job here, which the relay brings to a worker.
    pub(super) async fn put_back(&self, deliveries: Vec<Delivery>, settler: &Arc<dyn Settler>) {
        let (mut jobs, mut anonymous, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in deliveries {
            match anonymous_job(&self.shared, &self.lane, &delivery) {
                Some(job) => {
                    jobs.push(job);
                    anonymous.push(delivery);
                }
                None => others.push(delivery.token),
            }
        }
        let mut stored = self.store_all(&jobs).await.into_iter();
        let (mut known, mut repeats) = (Vec::new(), Vec::new());
        for (job, delivery) in jobs.iter().zip(&anonymous) {
            match stored.next() {
                Some(Inserted::New(_)) => known.push(delivery.token),
                Some(Inserted::Duplicate(repeated)) => {
                    known.push(delivery.token);
                    let repeat = repeat(&self.shared, &self.lane, delivery, job, &repeated);
                    repeats.extend(repeat.map(|repeat| (delivery.token, repeat)));
                }
                Some(Inserted::Conflict(_)) | None => others.push(delivery.token),
            }
        }
        let Unwritten { failing, left } = self.note(repeats).await;
        let unnoted: Vec<Token> = failing.into_iter().chain(left).map(|(_, (token, _))| token).collect();
        known.retain(|token| !unnoted.contains(token));
        others.extend(unnoted);
        if !known.is_empty() {
            self.shared.services.relay_wake.notify_one();
            self.acknowledge(settler, known).await;
        }
        if !others.is_empty() {
            self.give_back(settler, others).await;
        }
    }

    /// What the store says about each of these jobs, from the first, as far as it says anything.
    async fn store_all(&self, jobs: &[Arc<JobSpec>]) -> Vec<Inserted> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let mut known = Vec::with_capacity(jobs.len());
        for (_, piece) in split(jobs.to_vec(), |spec| spec.weight()) {
            let insert = self.shared.services.store.insert(&piece, Duration::ZERO);
            match self.shared.unless_interrupted(insert).await {
                Some(Ok(answers)) => known.extend(answers),
                Some(Err(error)) => {
                    metrics::STORE_ERRORS.add([error.kind().as_str()], 1);
                    tracing::warn!(queue = %self.lane, error = %chain(&error), "messages without an ID are given back and will be held");
                    return known;
                }
                None => return known,
            }
        }
        known
    }

    /// Claims in one write. An error is why the database refuses what a job contains; claims that are left are in doubt, and
    /// of those that fail `locked` has the jobs that others have locked.
    async fn claim(
        &self,
        claims: Vec<Claim>,
        locked: &Mutex<HashSet<JobId>>,
        done: impl FnMut(usize, Claim, Answered),
    ) -> Unwritten<Claim> {
        let unanswered = &AtomicBool::new(false);
        let persist = &Persist { unanswered: Some(unanswered), ..self.persist("claiming failed") };
        let shared = &*self.shared;
        let write = |batch: Vec<Claim>, tries| async move {
            shared.crash.pass(CrashPoint::BeforeClaim);
            metrics::CLAIM_BATCH.record([], batch.len() as f64);
            let started = Instant::now();
            let asked = Mutex::new(started);
            let ask = || {
                *lock(&asked) = Instant::now();
                shared.services.store.claim(shared.options.id, &batch)
            };
            let jobs: Vec<JobId> = batch.iter().map(|claim| claim.spec.id).collect();
            let written = persist.trying(tries).of(&jobs).until_taken(ask).await;
            match &written {
                Ok(_) => metrics::CLAIM_DURATION.record([], started.elapsed().as_secs_f64()),
                Err(NotTaken::Locked(places)) => lock(locked).extend(places.iter().map(|place| jobs[*place])),
                // Each failed try was logged and counted where it was made.
                Err(_) => {}
            }
            let asked = *lock(&asked);
            let answers = each(&batch, written);
            let answered =
                |answers: Vec<_>| answers.into_iter().map(|answer| Answered { asked, answer }).collect();
            (batch, answers.map(answered))
        };
        bisect(claims, |claim| claim.spec.weight(), write, done).await
    }

    /// Keeps rejected messages; where the database refuses their text, their bytes alone.
    async fn keep(&self, rejected: Vec<(Token, Rejected)>) -> Unwritten<(Token, Rejected)> {
        let persist = &self.persist("rejected messages could not be kept");
        let write = |batch: Vec<(Token, Rejected)>, tries| async move {
            let store = &persist.shared.services.store;
            let (tokens, messages): (Vec<Token>, Vec<Rejected>) = batch.into_iter().unzip();
            let mut kept = persist.trying(tries).until_taken(|| store.reject(&messages)).await;
            if let (Err(NotTaken::Refused(_)), [message]) = (&kept, &messages[..]) {
                let (plain, persist) =
                    ([message.clone().into_plain()], Persist { even_refused: true, ..*persist });
                kept = persist.until_taken(|| store.reject(&plain)).await;
            }
            let answers = kept.map(|()| vec![(); messages.len()]);
            (tokens.into_iter().zip(messages).collect(), answers)
        };
        bisect(rejected, |(_, message)| message.body.len(), write, |_, _, ()| {}).await
    }

    /// Notes what repeats jobs. An answer that the database refuses by itself for what it contains is never written. What
    /// it did not take in [`NOTE_PATIENCE`] is failing, so that the lane does not wait for a locked table of answers.
    async fn note(&self, repeats: Vec<(Token, Repeat)>) -> Unwritten<(Token, Repeat)> {
        let persist = &self.persist("answers to repeated messages could not be written");
        let until = Instant::now() + NOTE_PATIENCE;
        let write = |batch: Vec<(Token, Repeat)>, tries| async move {
            if Instant::now() >= until {
                return (batch, Err(NotTaken::Failing));
            }
            let (tokens, repeats): (Vec<Token>, Vec<Repeat>) = batch.into_iter().unzip();
            let store = &persist.shared.services.store;
            let mut noted = persist.trying(tries).until_taken(|| store.note_repeats(&repeats)).await;
            if let (Err(NotTaken::Refused(error)), [repeat]) = (&noted, &repeats[..]) {
                tracing::warn!(
                    queue = %self.lane, job.id = %repeat.job, error = %chain(error),
                    "a message that repeats a job stays without an answer, because the database refuses it"
                );
                noted = Ok(());
            }
            let answers = noted.map(|()| vec![(); repeats.len()]);
            (tokens.into_iter().zip(repeats).collect(), answers)
        };
        let unanswered = &self.shared.unanswered;
        let done = |_, (_, repeat): (Token, Repeat), ()| unanswered.set(&repeat, false);
        let unwritten = bisect(repeats, |_| 0, write, done).await;
        for (_, (_, repeat)) in &unwritten.failing {
            unanswered.set(repeat, true);
        }
        unwritten
    }

    /// Starts a job that was claimed, or counts why it was not. Returns what is still to be written before its message is
    /// acknowledged.
    fn start(
        &self,
        claim: Claim,
        answer: Result<Claimed, StoreError>,
        start: Start<'_>,
        slots: &mut OwnedSemaphorePermit,
    ) -> Option<After> {
        let Start { delivery, noted, asked, waited_since } = start;
        let result = match answer {
            Ok(Claimed::Running(receipt)) => {
                if let Some(slot) = slots.split(1) {
                    let waited_since = claim.published_at.or(waited_since);
                    let job = RunningJob::new(
                        &self.shared,
                        self.metrics.clone(),
                        claim,
                        receipt,
                        waited_since,
                        noted,
                        asked,
                    );
                    attempt::start(self.shared.clone(), job, slot);
                }
                self.metrics.running.increment(1);
                return None;
            }
            Ok(Claimed::Scheduled) => {
                self.shared.services.relay_wake.notify_one();
                "scheduled"
            }
            Ok(Claimed::Ended { state, kind }) => {
                self.tell_ended(&claim, state, kind);
                "ended"
            }
            Ok(Claimed::Duplicate(repeated)) => {
                metrics::DUPLICATES.add([self.lane.as_str()], 1);
                metrics::CLAIMS.add([self.lane.as_str(), "duplicate"], 1);
                let repeat = repeat(&self.shared, &self.lane, delivery, &claim.spec, &repeated);
                return repeat.map(|repeat| After::Note(delivery.token, repeat));
            }
            Ok(Claimed::Gone) => {
                metrics::CLAIMS.add([self.lane.as_str(), "gone"], 1);
                let error = EnvelopeError::new(EnvelopeReason::UnknownJob, UNKNOWN_JOB);
                return Some(After::Reject(
                    delivery.token,
                    reject(&self.shared, &self.lane, delivery, error),
                ));
            }
            Ok(Claimed::Conflict(conflict)) => {
                metrics::CLAIMS.add([self.lane.as_str(), "conflict"], 1);
                let error = EnvelopeError::new(conflict.reason(), conflict.message());
                return Some(After::Reject(
                    delivery.token,
                    reject(&self.shared, &self.lane, delivery, error),
                ));
            }
            Err(error) => {
                let message = format!("the database refuses the job for a value in it: {error}");
                let error = EnvelopeError::new(EnvelopeReason::BadValue, message);
                return Some(After::Reject(
                    delivery.token,
                    reject(&self.shared, &self.lane, delivery, error),
                ));
            }
        };
        metrics::CLAIMS.add([self.lane.as_str(), result], 1);
        None
    }

    fn tell_ended(&self, claim: &Claim, state: State, kind: ErrorKind) {
        self.metrics.finished(claim.stop.as_ref().and_then(Stop::waits_for), state.as_str());
        let JobSpec { id, owner, tool, reply_to, .. } = &*claim.spec;
        tracing::info!(
            job.id = %id, owner.kind = %owner.kind(), tool, queue = %self.lane, kind = %kind,
            "job {state} without an attempt"
        );
        if reply_to.is_some() {
            self.shared.services.relay_wake.notify_one();
        }
    }

    pub(super) fn persist(&self, failure: &'static str) -> Persist<'_> {
        Persist { lane: Some((&self.lane, &self.stop)), ..Persist::new(&self.shared, failure) }
    }

    pub(super) async fn acknowledge(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.ack(tokens)).await {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "acknowledging failed; the broker delivers again");
        }
    }

    /// Gives deliveries back that would only come again at once, and take the place of others.
    fn give_back_later(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        let (settler, stop) = (settler.clone(), self.stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(tokio::time::sleep(RECONNECT.max)).await;
            // If this fails, the subscription has ended, which gives everything back.
            drop(settler.give_back(tokens).await);
        });
    }

    pub(super) async fn give_back(&self, settler: &Arc<dyn Settler>, tokens: Vec<Token>) {
        if let Some(Err(error)) = self.shared.unless_interrupted(settler.give_back(tokens)).await
            && error.kind() != QueueErrorKind::Unavailable
        {
            tracing::debug!(queue = %self.lane, error = %chain(&error), "giving deliveries back failed; the broker does it");
        }
    }
}

/// What the store answered to a claim.
struct Answered {
    /// Before it was asked, so that what it says about the age of the job is at least as old.
    asked: Instant,
    answer: Result<Claimed, StoreError>,
}

/// What is written of deliveries before they are acknowledged.
pub(super) struct Records {
    pub(super) rejected: Vec<(Token, Rejected)>,
    pub(super) repeats: Vec<(Token, Repeat)>,
    /// Whether the store has answered for all that are jobs.
    pub(super) all_known: bool,
}

/// What is to be written of a delivery whose claim started nothing.
enum After {
    Reject(Token, Rejected),
    Note(Token, Repeat),
}

/// With what a claimed job starts.
struct Start<'a> {
    delivery: &'a Delivery,
    noted: Noted,
    asked: Instant,
    /// Since when the messages waited that came with it, for one that does not say when it was published.
    waited_since: Option<Timestamp>,
}
