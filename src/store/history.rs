//! The history of rare decisions about a job.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{By, Claim, Decider, Finish, Result, StoreError, StoreErrorKind, texts};
use crate::{
    bounds::MAX_DECIDER_CHARS,
    job::{AttemptOutcome, Ending, HeldReason, JobId, LookResult, Principal, Release, State, Stop},
    string_enum::string_enum,
};

pub(super) const HISTORY: &str = "select at, kind, by, attempt, what, detail from (
        select * from job_history where job_id = {job_id} and {may_see_of} order by seq desc limit +{limit}) newest
    order by seq";

/// What was decided about a job beside its ordinary path, append-only.
///
/// * An entry is written in the transaction of the change that it records: there is never one without the other.
/// * A write that is sent again adds no entry.
/// * An ordinary claim, success, failure, retry or snooze adds none.
/// * For an owner, a job of others has no entries.
#[async_trait]
pub trait History: fmt::Debug + Send + Sync {
    /// The history of one job, oldest entry first; of a longer one than
    /// [`MAX_HISTORY`](crate::bounds::MAX_HISTORY) the newest entries.
    async fn history(&self, principal: &Principal, id: JobId) -> Result<Vec<HistoryEntry>>;
}

/// One decision about a job; as JSON, with what belongs to its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// By the store's clock.
    pub at: Timestamp,
    /// The name of a person, or `errand: ` and the part of errand.
    pub by: String,
    pub attempt: Option<u32>,
    #[serde(flatten)]
    pub fact: HistoryFact,
}

/// What was decided; as JSON, with the word of [`HistoryKind`] as `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(description = "What was decided, by `kind`.")]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HistoryFact {
    /// The outcome of the attempt became unknown; it is looked up.
    Unknown,
    /// The execution log was asked about the attempt and did not settle it; the detail says why it could not be read.
    LookedUp {
        found: LookResult,
        detail: Option<String>,
    },
    /// What the execution log says was taken as the outcome of the attempt: of an entry, or `not_sent` where the
    /// log proves that the call never arrived.
    Adopted {
        outcome: AttemptOutcome,
    },
    /// The job waits for a person or a connection.
    Held {
        reason: HeldReason,
    },
    Released {
        how: Release,
    },
    /// Called off; a job that runs, before its call has ended.
    Cancelled,
    /// Made due by a person, with a fresh budget of attempts.
    Retried,
    /// The account that the job was bound to was forgotten, so that one is chosen anew.
    AccountForgotten {
        account: String,
    },
    /// Somebody changed when, where or until when it runs; from what to what, by field.
    Edited {
        changes: String,
    },
}

string_enum! {
    HistoryKind {
        Unknown = "unknown",
        LookedUp = "looked_up",
        Adopted = "adopted",
        Held = "held",
        Released = "released",
        Cancelled = "cancelled",
        Retried = "retried",
        AccountForgotten = "account_forgotten",
        Edited = "edited",
    }
}

impl HistoryFact {
    /// The kind, the word that belongs to it, and why the log could not be read, which account was forgotten or what was
    /// changed.
    pub fn parts(&self) -> (HistoryKind, Option<&'static str>, Option<&str>) {
        match self {
            Self::Unknown => (HistoryKind::Unknown, None, None),
            Self::LookedUp { found, detail } => {
                (HistoryKind::LookedUp, Some(found.as_str()), detail.as_deref())
            }
            Self::Adopted { outcome } => (HistoryKind::Adopted, Some(outcome.as_str()), None),
            Self::Held { reason } => (HistoryKind::Held, Some(reason.as_str()), None),
            Self::Released { how } => (HistoryKind::Released, Some(how.as_str()), None),
            Self::Cancelled => (HistoryKind::Cancelled, None, None),
            Self::Retried => (HistoryKind::Retried, None, None),
            Self::AccountForgotten { account } => (HistoryKind::AccountForgotten, None, Some(account)),
            Self::Edited { changes } => (HistoryKind::Edited, None, Some(changes)),
        }
    }
}

/// Refuses what cannot stand in the history as the name of a person who decides.
///
/// # Errors
/// A sentence that says what a name is.
pub fn check_decider(by: &str) -> Result<(), String> {
    if by.trim().is_empty() || by.chars().count() > MAX_DECIDER_CHARS || by.contains(char::is_control) {
        Err(format!("write a name of up to {MAX_DECIDER_CHARS} characters, without control characters"))
    } else if by.starts_with(texts::BY_ERRAND) {
        Err(format!("a name does not begin with `{}`, which stands for errand itself", texts::BY_ERRAND))
    } else {
        Ok(())
    }
}

/// The same for the methods of a store.
pub(super) fn refuse_decider(by: &Decider) -> Result<()> {
    refuse_name(&by.by)
}

/// The same for a name alone.
pub(super) fn refuse_name(by: &str) -> Result<()> {
    check_decider(by).map_err(|why| StoreError::new(StoreErrorKind::Data, why))
}

#[derive(Debug, Clone)]
pub(super) struct Note<'a> {
    pub(super) job: JobId,
    pub(super) by: &'a str,
    pub(super) attempt: Option<u32>,
    pub(super) fact: HistoryFact,
}

/// What is noted of a claim that brings its job to `state`.
pub(super) fn of_claim(claim: &Claim, state: State) -> Option<Note<'static>> {
    let reason = claim.stop.as_ref().and_then(Stop::held_reason).filter(|_| state == State::Held)?;
    let fact = HistoryFact::Held { reason };
    Some(Note { job: claim.spec.id, by: texts::BY_ADMISSION, attempt: None, fact })
}

/// What is noted of a finish that brings its job to `state`.
pub(super) fn of_finish(finish: &Finish, state: State) -> Vec<Note<'static>> {
    let by = match finish.by {
        By::Holder => texts::BY_WORKER,
        By::Rescuer { .. } => texts::BY_RESCUE,
        By::LookUp => texts::BY_LOOK_UP,
    };
    let adopted = match finish.by {
        By::LookUp => Some(HistoryFact::Adopted { outcome: finish.attempt.outcome }),
        By::Holder | By::Rescuer { .. } => None,
    };
    let parked = match &finish.ending {
        // Also of a job that was called off while it ran.
        Ending::Verify { .. } if matches!(state, State::Held | State::Cancelled) => {
            Some(HistoryFact::Unknown)
        }
        _ if state != State::Held => None,
        ending => ending.held_reason().map(|reason| HistoryFact::Held { reason }),
    };
    let note = |fact| Note { job: finish.id, by, attempt: Some(finish.attempt.number), fact };
    adopted.into_iter().chain(parked).map(note).collect()
}
