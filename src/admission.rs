//! The one door: a job that does not come through a queue is born here.
//!
//! A job is inserted into the store first and handed to the queue second. If the hand-over fails,
//! the relay of any worker publishes it; so what the caller was told is true whatever happens to
//! the broker.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    bounds::CLAIM_BATCH,
    failure::chain,
    job::{ErrorKind, JobError, JobId, JobSpec, OwnerKind, OwnerPolicy, encode},
    queue::{Address, Message, Properties, SharedQueue},
    store::{Conflict, Inserted, SharedStore, StoreError},
};

/// Rules about jobs that need no look-up.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Which owners may run jobs.
    pub owners: OwnerPolicy,
    /// Toolkits that belong to one kind of owner.
    pub owned_by: BTreeMap<String, OwnerKind>,
}

impl Rules {
    /// Judges a job by itself: what it says and who owns it.
    ///
    /// # Errors
    /// The error that the job fails with; it says what to change.
    pub fn judge(&self, spec: &JobSpec) -> Result<(), JobError> {
        if spec.arguments.is_some() && spec.text.is_some() {
            return Err(JobError::new(
                ErrorKind::InvalidJob,
                "`arguments` and `text` exclude each other; send one of them",
            ));
        }
        if spec.owner.id().eq_ignore_ascii_case("default") && !self.owners.allow_default {
            return Err(JobError::new(
                ErrorKind::OwnerRefused,
                format!(
                    "the owner `default` is refused because it could expose other people's data; send the real `{}`",
                    spec.owner.kind().field()
                ),
            ));
        }
        if self.owners.refuse_email && looks_like_email(spec.owner.id()) {
            return Err(JobError::new(
                ErrorKind::OwnerRefused,
                format!(
                    "`{}` is an e-mail address, which can change hands; send an ID that never changes",
                    spec.owner.kind().field()
                ),
            ));
        }
        Ok(())
    }

    /// Judges a job once its toolkit is known.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn judge_toolkit(&self, spec: &JobSpec, toolkit: &str) -> Result<(), JobError> {
        match self.owned_by.get(toolkit) {
            Some(kind) if *kind != spec.owner.kind() => Err(JobError::new(
                ErrorKind::WrongOwnerKind,
                format!(
                    "the toolkit `{toolkit}` is connected by {}; send `{}` instead of `{}`",
                    match kind {
                        OwnerKind::Org => "organizations",
                        OwnerKind::User => "users",
                    },
                    kind.field(),
                    spec.owner.kind().field(),
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Whether an owner ID has the shape of an e-mail address.
pub fn looks_like_email(id: &str) -> bool {
    id.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !id.contains(' '))
}

/// What became of one job at the door.
#[derive(Debug, Clone)]
pub enum Enqueued {
    /// It is stored, and the store or the queue will bring it to a worker.
    New(JobId),
    /// It was enqueued before; this is the job that stands for it.
    Duplicate(JobId),
    /// It may not run; nothing was stored.
    Refused(JobError),
    /// Its ID or idempotency key is taken; nothing was stored.
    Conflict(Conflict),
}

/// Enqueues jobs.
#[derive(Debug, Clone)]
pub struct Admission {
    store: SharedStore,
    queue: Option<SharedQueue>,
    rules: Rules,
    unclaimed_after: Duration,
}

impl Admission {
    /// A door into `store`. With a `queue`, jobs are handed over at once and the relay looks after
    /// those that nobody claimed within `unclaimed_after`; without one, the relay publishes them.
    pub fn new(
        store: SharedStore,
        queue: Option<SharedQueue>,
        rules: Rules,
        unclaimed_after: Duration,
    ) -> Self {
        Self { store, queue, rules, unclaimed_after }
    }

    /// Enqueues a batch; answers are in its order.
    ///
    /// # Errors
    /// The store could not be written; the same batch may be enqueued again as it is.
    pub async fn enqueue(&self, batch: &[Arc<JobSpec>]) -> Result<Vec<Enqueued>, StoreError> {
        let mut answers = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(CLAIM_BATCH) {
            answers.extend(self.enqueue_chunk(chunk).await?);
        }
        Ok(answers)
    }

    async fn enqueue_chunk(&self, chunk: &[Arc<JobSpec>]) -> Result<Vec<Enqueued>, StoreError> {
        let verdicts: Vec<_> = chunk.iter().map(|spec| self.rules.judge(spec)).collect();
        let fit: Vec<Arc<JobSpec>> =
            chunk.iter().zip(&verdicts).filter(|(_, v)| v.is_ok()).map(|(spec, _)| spec.clone()).collect();
        let unclaimed_after = if self.queue.is_some() { self.unclaimed_after } else { Duration::ZERO };
        let inserted = self.store.insert(&fit, unclaimed_after).await?;
        self.hand_over(&fit, &inserted).await;
        let mut inserted = fit.iter().zip(inserted);
        Ok(verdicts
            .into_iter()
            .filter_map(|verdict| match verdict {
                Err(error) => Some(Enqueued::Refused(error)),
                Ok(()) => inserted.next().map(|(spec, answer)| match answer {
                    Inserted::New { .. } => Enqueued::New(spec.id),
                    Inserted::Duplicate { id, .. } => Enqueued::Duplicate(id),
                    Inserted::Conflict(conflict) => Enqueued::Conflict(conflict),
                }),
            })
            .collect())
    }

    /// Publishes what was just stored. Nothing that fails here is a failure of enqueueing: the relay looks after jobs
    /// that nobody claims.
    async fn hand_over(&self, specs: &[Arc<JobSpec>], inserted: &[Inserted]) {
        let Some(queue) = &self.queue else { return };
        let available: Vec<&Arc<JobSpec>> = specs
            .iter()
            .zip(inserted)
            .filter(|(_, answer)| {
                matches!(answer, Inserted::New { state } if *state == crate::job::State::Available)
            })
            .map(|(spec, _)| spec)
            .collect();
        let messages = available.iter().map(|spec| message(spec)).collect();
        let failed: Vec<JobId> = available
            .iter()
            .zip(queue.publish(messages).await)
            .filter(|(_, answer)| answer.is_err())
            .map(|(spec, _)| spec.id)
            .collect();
        if !failed.is_empty()
            && let Err(error) = self.store.defer(&failed, Duration::ZERO).await
        {
            tracing::warn!(jobs = failed.len(), error = %chain(&error), "stored jobs are published only when the relay misses them");
        }
    }
}

/// The message that carries a stored job to a worker.
pub fn message(spec: &JobSpec) -> Message {
    Message {
        to: Address::Lane(spec.queue.clone()),
        body: encode(spec).into(),
        properties: Properties {
            message_id: Some(spec.id.to_string()),
            correlation_id: spec.correlation_id.clone(),
            reply_to: spec.reply_to.clone(),
            content_type: Some("application/json".into()),
            traceparent: spec.traceparent.clone(),
            from_store: true,
            unreadable: None,
            other: BTreeMap::new(),
        },
        priority: u8::try_from(spec.priority).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, decode};

    fn spec(json: serde_json::Value) -> JobSpec {
        let queue = "default".parse().unwrap();
        let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
        decode(&serde_json::to_vec(&json).unwrap(), &arrival).unwrap()
    }

    #[test]
    fn a_job_with_text_and_arguments_is_refused() {
        let both = spec(serde_json::json!({"user_id": "u", "tool": "T", "text": "x", "arguments": {}}));
        assert_eq!(Rules::default().judge(&both).unwrap_err().kind(), ErrorKind::InvalidJob);
    }

    #[test]
    fn the_default_owner_is_refused_unless_allowed() {
        let job = spec(serde_json::json!({"org_id": "Default", "tool": "T"}));
        let error = Rules::default().judge(&job).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OwnerRefused);
        assert!(error.message().contains("org_id"));
        let lenient =
            Rules { owners: OwnerPolicy { allow_default: true, refuse_email: false }, ..Rules::default() };
        assert!(lenient.judge(&job).is_ok());
    }

    #[test]
    fn e_mail_addresses_are_refused_only_by_the_setting() {
        let job = spec(serde_json::json!({"user_id": "ann@example.com", "tool": "T"}));
        assert!(Rules::default().judge(&job).is_ok());
        let strict =
            Rules { owners: OwnerPolicy { allow_default: false, refuse_email: true }, ..Rules::default() };
        assert_eq!(strict.judge(&job).unwrap_err().kind(), ErrorKind::OwnerRefused);
    }

    #[test]
    fn the_wrong_kind_of_owner_is_told_the_right_field() {
        let rules = Rules { owned_by: [("slack".to_owned(), OwnerKind::Org)].into(), ..Rules::default() };
        let job = spec(serde_json::json!({"user_id": "u", "tool": "SLACK_SEND_MESSAGE"}));
        let error = rules.judge_toolkit(&job, "slack").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongOwnerKind);
        assert!(error.message().contains("send `org_id` instead of `user_id`"), "{}", error.message());
        assert!(rules.judge_toolkit(&job, "github").is_ok());
    }
}
