//! What operators and owners read beside jobs, as JSON: the same for the command line and the API. The names are an interface,
//! and every key is always there.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    job::{BatchId, Effect, JobId, Owner, Pin, PinnedBy, QueueName, State, WorkerId},
    store::{
        BatchItem, BatchView, Callback, Counts, Delivery, DeliveryState, Doing, Secrets, StopRule,
        WhyDisabled, WorkerView,
    },
    tool::{Account, ToolInfo},
};

/// A worker, and what it holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LiveWorker)]
pub struct WorkerJson<'a> {
    pub id: WorkerId,
    pub name: &'a str,
    pub build: Option<&'a str>,
    /// Whether its last beat is younger than its lease.
    pub alive: bool,
    pub started_at: Timestamp,
    pub beat_at: Timestamp,
    pub silent_ms: u64,
    /// How many jobs it holds.
    pub running: u64,
    #[schema(value_type = BTreeMap<String, u64>)]
    pub running_by_queue: BTreeMap<&'a QueueName, u64>,
}

impl<'a> WorkerJson<'a> {
    /// `lease` is that of workers which do not say theirs.
    pub fn of(worker: &'a WorkerView, lease: Duration) -> Self {
        Self {
            id: worker.id,
            name: &worker.name,
            build: worker.build.as_deref(),
            alive: worker.silent_for < worker.lease.unwrap_or(lease),
            started_at: worker.started_at,
            beat_at: worker.beat_at,
            silent_ms: u64::try_from(worker.silent_for.as_millis()).unwrap_or(u64::MAX),
            running: worker.running.iter().map(|(_, jobs)| jobs).sum(),
            running_by_queue: worker.running.iter().map(|(queue, jobs)| (queue, *jobs)).collect(),
        }
    }
}

/// A pinned toolkit version.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pin)]
pub struct PinJson<'a> {
    pub toolkit: &'a str,
    pub version: &'a str,
    /// Whose jobs it is for; `null`: everybody's.
    pub owner: Option<&'a Owner>,
    pub pinned_by: PinnedBy,
}

impl<'a> PinJson<'a> {
    /// A pin that was set at run time.
    pub fn of(pin: &'a Pin) -> Self {
        let pinned_by = if pin.owner.is_some() { PinnedBy::Owner } else { PinnedBy::Global };
        Self { toolkit: &pin.toolkit, version: &pin.version, owner: pin.owner.as_ref(), pinned_by }
    }
}

/// Where the events of an owner are sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Callback)]
pub struct CallbackJson<'a> {
    pub owner: &'a Owner,
    /// `null`: nowhere.
    pub url: Option<&'a str>,
    pub set_at: Timestamp,
    /// Since when it has taken nothing.
    pub failing_since: Option<Timestamp>,
    /// Since when nothing is sent there any more.
    pub disabled_at: Option<Timestamp>,
    /// `gone`: it answered 410; `failing`: it has taken nothing for five days.
    pub disabled_why: Option<WhyDisabled>,
}

impl<'a> CallbackJson<'a> {
    pub fn of(callback: &'a Callback) -> Self {
        Self {
            owner: &callback.owner,
            url: callback.url.as_deref(),
            set_at: callback.set_at,
            failing_since: callback.failing_since,
            disabled_at: callback.disabled.map(|(_, at)| at),
            disabled_why: callback.disabled.map(|(why, _)| why),
        }
    }
}

/// What signs the callbacks of an owner.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CallbackSecret)]
pub struct CallbackSecretJson<'a> {
    pub owner: &'a Owner,
    /// `whsec_` and base64, as Standard Webhooks has it.
    #[serde(serialize_with = "exposed")]
    #[schema(value_type = String)]
    pub secret: SecretString,
    /// Until when the one before signs, too, if it does.
    pub previous_until: Option<Timestamp>,
}

impl<'a> CallbackSecretJson<'a> {
    pub fn of(owner: &'a Owner, secrets: &Secrets) -> Self {
        let previous_until = secrets.previous.as_ref().map(|(_, until)| *until);
        Self { owner, secret: secrets.secret.to_text(), previous_until }
    }
}

/// A secret as JSON, where it is told.
fn exposed<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

/// An event that is sent to a URL.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryJson<'a> {
    pub id: Uuid,
    pub owner: &'a Owner,
    pub url: &'a str,
    /// The `webhook-id` of each request.
    pub event_id: Uuid,
    /// The type of the event.
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub job_id: Option<JobId>,
    pub batch_id: Option<BatchId>,
    pub state: DeliveryState,
    pub created_at: Timestamp,
    /// When it is sent, while it waits.
    pub due_at: Option<Timestamp>,
    /// How often it was sent.
    pub tries: u32,
    /// The status of the last answer, if there was one.
    pub last_status: Option<u16>,
    /// Why it was not taken the last time.
    pub last_error: Option<&'a str>,
    pub tried_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl<'a> DeliveryJson<'a> {
    pub fn of(delivery: &'a Delivery) -> Self {
        Self {
            id: delivery.id,
            owner: &delivery.owner,
            url: &delivery.url,
            event_id: delivery.event_id,
            kind: &delivery.kind,
            job_id: delivery.job,
            batch_id: delivery.batch,
            state: delivery.state,
            created_at: delivery.created_at,
            due_at: delivery.due_at,
            tries: delivery.tries,
            last_status: delivery.last_status,
            last_error: delivery.last_error.as_deref(),
            tried_at: delivery.tried_at,
            finished_at: delivery.finished_at,
        }
    }
}

/// A connected account, without its credentials.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountJson<'a> {
    pub id: &'a str,
    pub toolkit: &'a str,
    /// `ACTIVE`, `EXPIRED`, and others.
    pub status: &'a str,
    pub status_reason: Option<&'a str>,
    pub disabled: bool,
    pub usable: bool,
    pub created_at: Timestamp,
}

impl<'a> AccountJson<'a> {
    pub fn of(account: &'a Account) -> Self {
        Self {
            id: &account.id,
            toolkit: &account.toolkit,
            status: &account.status,
            status_reason: account.status_reason.as_deref(),
            disabled: account.disabled,
            usable: account.is_active(),
            created_at: account.created_at,
        }
    }
}

/// A tool as the tool API describes it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tool)]
pub struct ToolJson<'a> {
    pub slug: &'a str,
    pub name: &'a str,
    pub description: &'a str,
    pub toolkit: &'a str,
    pub version: &'a str,
    pub available_versions: &'a [String],
    pub tags: &'a [String],
    /// What repeating a call does.
    pub effect: Effect,
    /// Whether it needs no connected account.
    pub no_auth: bool,
    pub deprecated: bool,
}

impl<'a> ToolJson<'a> {
    pub fn of(tool: &'a ToolInfo) -> Self {
        Self {
            slug: &tool.slug,
            name: &tool.name,
            description: &tool.description,
            toolkit: &tool.toolkit,
            version: &tool.version,
            available_versions: &tool.available_versions,
            tags: &tool.tags,
            effect: tool.effect(),
            no_auth: tool.no_auth,
            deprecated: tool.deprecated,
        }
    }
}

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchJson {
    #[schema(value_type = Uuid)]
    pub id: BatchId,
    /// `null`: the operator's.
    pub owner: Option<Owner>,
    pub created_at: Timestamp,
    /// Whether it takes no more items.
    pub sealed: bool,
    /// How many items it has.
    pub total: u64,
    /// 1, and one more each time that its failed jobs were run again.
    pub generation: u32,
    /// Since when it is sealed and all of its jobs have ended.
    pub completed_at: Option<Timestamp>,
    /// How many items are in each state; after its completion, how many were then.
    pub counts: Counts,
    pub deadline: Option<Timestamp>,
    pub stop_when: Option<StopRule>,
    /// Who called off its rest.
    pub cancelled_by: Option<String>,
    pub cancelled_at: Option<Timestamp>,
    /// What is being done with its jobs.
    pub doing: Option<Doing>,
    /// The job that is enqueued once it is complete.
    pub follow_up_id: Option<JobId>,
}

impl From<BatchView> for BatchJson {
    fn from(batch: BatchView) -> Self {
        let follow_up_id = batch.follow_up();
        let (cancelled_by, cancelled_at) = batch.cancelled.unzip();
        Self {
            id: batch.id,
            owner: batch.principal.owner().cloned(),
            created_at: batch.created_at,
            sealed: batch.sealed_at.is_some(),
            total: batch.items,
            generation: batch.generation,
            completed_at: batch.completed_at,
            counts: batch.counts,
            deadline: batch.deadline,
            stop_when: batch.stop,
            cancelled_by,
            cancelled_at,
            doing: batch.doing,
            follow_up_id,
        }
    }
}

/// An item of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Item)]
pub struct BatchItemJson {
    pub index: u64,
    pub job_id: JobId,
    /// `null`: the job was removed.
    pub state: Option<State>,
}

impl From<BatchItem> for BatchItemJson {
    fn from(BatchItem { index, job, state }: BatchItem) -> Self {
        Self { index, job_id: job, state }
    }
}
