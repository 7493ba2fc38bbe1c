//! Replies: the results of final jobs, and the answers beside them (`store/answers`).

use std::time::Duration;

use uuid::Uuid;

use super::{DEFER, Relay, Round};
use crate::{
    failure::chain,
    job::{Asked, JobId, ReplyKind},
    job_json::{rejection_json, reply_json, reply_without_result_json},
    queue::{Address, Message, Properties, QueueError, QueueErrorKind},
    store::{About, Answer, JobView, StoreError},
    telemetry::metrics,
};

/// When a reply is offered again that was taken by a process which then vanished.
const AGAIN: Duration = Duration::from_secs(60);

/// When a reply is offered again that was refused for the first time, and after how many refusals it is given up. The
/// waits double up to an hour, so that they take nine hours together.
const REFUSED_AGAIN: Duration = Duration::from_secs(2);
const MAX_REFUSALS: u32 = 20;

/// From how many bytes on the broker may find a reply too large. No broker is set so low.
const MAY_BE_TOO_LARGE: usize = 4 * 1024;

/// A reply that is to be published, under the key by which the store knows it.
struct Offer<K> {
    key: K,
    kind: ReplyKind,
    subject: Subject,
    publisher: Option<String>,
    message: Message,
    /// Without a long result, where the broker does not take the message with it.
    instead: Option<Message>,
}

/// What the log names a reply by.
#[derive(Debug, Clone, Copy)]
enum Subject {
    Job(JobId),
    Message(Uuid),
}

impl Subject {
    fn job(self) -> Option<tracing::field::DisplayValue<JobId>> {
        match self {
            Self::Job(id) => Some(tracing::field::display(id)),
            Self::Message(_) => None,
        }
    }

    fn message(self) -> Option<tracing::field::DisplayValue<Uuid>> {
        match self {
            Self::Job(_) => None,
            Self::Message(id) => Some(tracing::field::display(id)),
        }
    }
}

/// What became of replies.
struct Offered<K> {
    /// Published, or never to be published.
    done: Vec<K>,
    /// The broker takes nothing at present.
    failed: Vec<K>,
    refused: Vec<Refused<K>>,
}

struct Refused<K> {
    key: K,
    kind: ReplyKind,
    subject: Subject,
}

impl Relay {
    /// Publishes the results of final jobs.
    pub(super) async fn publish_results(&self) -> Result<Round, StoreError> {
        let store = &self.services.store;
        let taken = store.take_replies(self.options.batch, AGAIN).await?;
        let mut round = Round { more: taken.len() == self.options.batch, failed: 0 };
        let offers: Vec<Offer<JobId>> = taken.iter().map(of_result).collect();
        round.more |= self.fills_a_page(offers.iter().map(|offer| &offer.message));
        let Offered { done, failed, refused } = self.offer(offers).await;
        if !done.is_empty() {
            store.replied(&done).await?;
        }
        if !failed.is_empty() {
            store.defer_replies(&failed, DEFER).await?;
        }
        if !refused.is_empty() {
            let keys: Vec<JobId> = refused.iter().map(|refused| refused.key).collect();
            let given_up = store.put_off_replies(&keys, REFUSED_AGAIN, MAX_REFUSALS).await?;
            tell_given_up(&refused, &given_up);
        }
        round.failed = failed.len();
        Ok(round)
    }

    /// Publishes the answers beside results.
    pub(super) async fn publish_answers(&self) -> Result<Round, StoreError> {
        let store = &self.services.store;
        let taken = store.take_answers(self.options.batch, AGAIN).await?;
        let mut round = Round { more: taken.len() == self.options.batch, failed: 0 };
        let (mut offers, mut moot) = (Vec::with_capacity(taken.len()), Vec::new());
        for answer in taken {
            let id = answer.asked.id;
            match of_answer(answer, self.options.held) {
                Some(offer) => offers.push(offer),
                None => moot.push(id),
            }
        }
        round.more |= self.fills_a_page(offers.iter().map(|offer| &offer.message));
        let Offered { mut done, failed, refused } = self.offer(offers).await;
        done.extend(moot);
        if !done.is_empty() {
            store.answered(&done).await?;
        }
        if !failed.is_empty() {
            store.defer_answers(&failed, DEFER).await?;
        }
        if !refused.is_empty() {
            let keys: Vec<Uuid> = refused.iter().map(|refused| refused.key).collect();
            let given_up = store.put_off_answers(&keys, REFUSED_AGAIN, MAX_REFUSALS).await?;
            tell_given_up(&refused, &given_up);
        }
        round.failed = failed.len();
        Ok(round)
    }

    /// Publishes replies that are allowed, counts all, and logs those that are not published.
    async fn offer<K: Copy>(&self, offers: Vec<Offer<K>>) -> Offered<K> {
        let mut offered = Offered { done: Vec::new(), failed: Vec::new(), refused: Vec::new() };
        let (mut failed, mut refused) = (Failures::default(), Failures::default());
        let is_allowed = |offer: &Offer<K>| match &offer.message.to {
            Address::Reply(queue) => self.options.replies.allows(queue, offer.publisher.as_deref()),
            Address::Lane(_) | Address::Events(_) => false,
        };
        let (allowed, forbidden): (Vec<_>, Vec<_>) = offers.into_iter().partition(is_allowed);
        for Offer { key, kind, subject, .. } in forbidden {
            metrics::REPLIES.add([kind.as_str(), "forbidden"], 1);
            let (job, message) = (subject.job(), subject.message());
            tracing::warn!(job.id = job, rejected.id = message, reply = %kind, "the reply queue is not allowed by replies.allowed; what it should tell is in the store");
            offered.done.push(key);
        }
        let (mut next, mut sent) = (allowed, "sent");
        while !next.is_empty() {
            let mut messages = Vec::with_capacity(next.len());
            let mut waiting = Vec::with_capacity(next.len());
            for Offer { key, kind, subject, publisher, message, instead } in std::mem::take(&mut next) {
                messages.push(message);
                waiting.push((key, kind, subject, publisher, instead));
            }
            for ((key, kind, subject, publisher, instead), answer) in
                waiting.into_iter().zip(self.services.queue.publish(messages).await)
            {
                let result = match (answer, instead) {
                    (Ok(()), _) => {
                        offered.done.push(key);
                        sent
                    }
                    // Whoever waits for it is told where the result is.
                    (Err(error), Some(message)) if error.kind() == QueueErrorKind::TooLarge => {
                        next.push(Offer { key, kind, subject, publisher, message, instead: None });
                        continue;
                    }
                    // Nobody listens any more; what it should tell stays readable in the store.
                    (Err(error), _) if error.kind() == QueueErrorKind::Unroutable => {
                        let (job, message) = (subject.job(), subject.message());
                        tracing::info!(job.id = job, rejected.id = message, reply = %kind, "the reply queue is gone; what it should tell is in the store");
                        offered.done.push(key);
                        "dropped"
                    }
                    (Err(error), _) if error.kind().concerns_one_message() => {
                        refused.add(subject, error);
                        offered.refused.push(Refused { key, kind, subject });
                        "refused"
                    }
                    (Err(error), _) => {
                        failed.add(subject, error);
                        offered.failed.push(key);
                        "failed"
                    }
                };
                metrics::REPLIES.add([kind.as_str(), result], 1);
            }
            sent = "shortened";
        }
        failed.log("replies could not be published; they are offered again");
        refused.log("the broker refuses replies; each is offered again after ever longer waits");
        offered
    }
}

/// The reply that brings the result of a job to its app.
fn of_result(job: &JobView) -> Offer<JobId> {
    let spec = &job.spec;
    // The store takes no job without an address; if it did, the broker would say that there is no such queue.
    let asked = Asked {
        id: spec.id.0,
        reply_to: spec.reply_to.clone().unwrap_or_default(),
        correlation_id: spec.correlation_id.clone(),
        message_id: spec.message_id.clone(),
        publisher: spec.publisher.clone(),
        redelivered: false,
    };
    of_job(spec.id, asked, ReplyKind::Final, job)
}

/// The reply that an answer is; `None` where it has nothing to tell any more, or is not to be told.
fn of_answer(answer: Answer, tells_held: bool) -> Option<Offer<Uuid>> {
    let Answer { asked, kind, about } = answer;
    match about {
        // A job that goes on is told of when it is final.
        About::Job(job) if kind == ReplyKind::Held && !(tells_held && job.held_reason.is_some()) => None,
        About::Job(job) => Some(of_job(asked.id, asked, kind, &job)),
        About::Message { id, job, reason, message } => {
            let body = serde_json::to_vec(&rejection_json(id, job, reason, &message)).unwrap_or_default();
            let named = job.map_or(id, |job| job.0);
            Some(offer(asked.id, asked, kind, Subject::Message(id), named, body))
        }
        About::Nothing => None,
    }
}

fn of_job<K>(key: K, asked: Asked, kind: ReplyKind, job: &JobView) -> Offer<K> {
    let id = job.spec.id;
    let body = serde_json::to_vec(&reply_json(kind, job)).unwrap_or_default();
    let may_be_too_large = body.len() > MAY_BE_TOO_LARGE;
    let mut offer = offer(key, asked, kind, Subject::Job(id), id.0, body);
    offer.message.properties.traceparent = job.spec.traceparent.clone();
    if may_be_too_large && let Some(shorter) = reply_without_result_json(kind, job) {
        let body = serde_json::to_vec(&shorter).unwrap_or_default().into();
        offer.instead = Some(Message { body, ..offer.message.clone() });
    }
    offer
}

/// A reply with this body to whoever asked, about what is `named` so where they gave no message ID.
fn offer<K>(key: K, asked: Asked, kind: ReplyKind, subject: Subject, named: Uuid, body: Vec<u8>) -> Offer<K> {
    let Asked { reply_to, correlation_id, message_id, publisher, .. } = asked;
    let properties = Properties {
        message_id: Some(message_id.unwrap_or_else(|| named.to_string())),
        correlation_id,
        content_type: Some("application/json".into()),
        kind: Some(kind.as_str()),
        ..Properties::default()
    };
    let message = Message { to: Address::Reply(reply_to), body: body.into(), properties, priority: 0 };
    Offer { key, kind, subject, publisher, message, instead: None }
}

fn tell_given_up<K: PartialEq>(refused: &[Refused<K>], given_up: &[K]) {
    for Refused { kind, subject, .. } in refused.iter().filter(|refused| given_up.contains(&refused.key)) {
        metrics::REPLIES.add([kind.as_str(), "given_up"], 1);
        let (job, message) = (subject.job(), subject.message());
        tracing::warn!(
            job.id = job, rejected.id = message, reply = %kind, offers = MAX_REFUSALS,
            "a reply is given up, because the broker refused it so often; what it should tell is in the store"
        );
    }
}

/// Replies that were not published for the same kind of reason.
#[derive(Default)]
struct Failures {
    count: usize,
    first: Option<(Subject, QueueError)>,
}

impl Failures {
    fn add(&mut self, subject: Subject, error: QueueError) {
        self.count += 1;
        self.first.get_or_insert((subject, error));
    }

    /// One line for all, with the first of them and its error.
    fn log(&self, what: &'static str) {
        if let Some((subject, error)) = &self.first {
            let (job, message) = (subject.job(), subject.message());
            tracing::warn!(job.id = job, rejected.id = message, count = self.count, error = %chain(error), "{what}");
        }
    }
}
