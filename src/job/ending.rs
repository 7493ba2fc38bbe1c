//! How attempts and jobs end: one algebra for admission, the call, the rescue and the look-up of unknown
//! outcomes.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Attempt, AttemptOutcome, HeldReason, JobError, Started, State};

/// What stops a job until a person or a connection intervenes, or for ever.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    Fail {
        error: JobError,
    },
    /// Parked; the error says what a person should know or do.
    Hold {
        reason: HeldReason,
        error: JobError,
    },
    /// Parked until the job's owner has a usable connection of this toolkit ([`HeldReason::Connection`]).
    Connect {
        toolkit: String,
        error: JobError,
    },
}

impl Stop {
    /// The state that the job has then, when nobody asked to cancel it.
    pub fn state(&self) -> State {
        match self {
            Self::Fail { .. } => State::Failed,
            Self::Hold { .. } | Self::Connect { .. } => State::Held,
        }
    }

    pub fn held_reason(&self) -> Option<HeldReason> {
        match self {
            Self::Fail { .. } => None,
            Self::Hold { reason, .. } => Some(*reason),
            Self::Connect { .. } => Some(HeldReason::Connection),
        }
    }

    /// The toolkit that has to be connected before the job can go on.
    pub fn waits_for(&self) -> Option<&str> {
        match self {
            Self::Connect { toolkit, .. } => Some(toolkit),
            Self::Fail { .. } | Self::Hold { .. } => None,
        }
    }

    pub fn error(&self) -> &JobError {
        match self {
            Self::Fail { error } | Self::Hold { error, .. } | Self::Connect { error, .. } => error,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The tool succeeded; its `data`, verbatim.
    Succeed {
        result: Arc<RawValue>,
    },
    Stop(Stop),
    /// Worth another attempt `after` some time by the store's clock, which is charged to the budget.
    Retry {
        after: Duration,
        error: JobError,
    },
    /// Postponed without spending an attempt: throttled, or given back at shutdown. `after` is by the store's
    /// clock; the error is there when there is something to tell.
    Snooze {
        after: Duration,
        error: Option<JobError>,
    },
    /// Parked because the outcome is unknown, until the tool API's execution log tells it. `after` is the time to
    /// the first look-up, by the store's clock.
    Verify {
        after: Duration,
        error: JobError,
    },
}

impl From<Stop> for Ending {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl Ending {
    /// Parks a job whose call may or may not have run: until it is looked up for the first time after
    /// `first_check`, or, without it, until a person has looked.
    pub fn undecided(first_check: Option<Duration>, error: JobError) -> Self {
        match first_check {
            Some(after) => Self::Verify { after, error },
            None => Stop::Hold { reason: HeldReason::UnknownOutcome, error }.into(),
        }
    }

    /// The state a job has after this ending, when nobody asked to cancel it.
    pub fn state(&self) -> State {
        match self {
            Self::Succeed { .. } => State::Succeeded,
            Self::Stop(stop) => stop.state(),
            Self::Retry { .. } | Self::Snooze { .. } => State::Retryable,
            Self::Verify { .. } => State::Held,
        }
    }

    pub fn held_reason(&self) -> Option<HeldReason> {
        match self {
            Self::Stop(stop) => stop.held_reason(),
            Self::Verify { .. } => Some(HeldReason::UnknownOutcome),
            Self::Succeed { .. } | Self::Retry { .. } | Self::Snooze { .. } => None,
        }
    }

    /// The toolkit that has to be connected before the job can go on.
    pub fn waits_for(&self) -> Option<&str> {
        match self {
            Self::Stop(stop) => stop.waits_for(),
            Self::Succeed { .. } | Self::Retry { .. } | Self::Snooze { .. } | Self::Verify { .. } => None,
        }
    }

    pub fn error(&self) -> Option<&JobError> {
        match self {
            Self::Succeed { .. } => None,
            Self::Stop(stop) => Some(stop.error()),
            Self::Retry { error, .. } | Self::Verify { error, .. } => Some(error),
            Self::Snooze { error, .. } => error.as_ref(),
        }
    }

    /// Whether the attempt counts against the job's budget.
    pub fn spends_attempt(&self) -> bool {
        match self {
            Self::Succeed { .. } | Self::Stop(Stop::Fail { .. }) | Self::Retry { .. } => true,
            Self::Stop(Stop::Hold { .. } | Stop::Connect { .. })
            | Self::Snooze { .. }
            | Self::Verify { .. } => false,
        }
    }
}

/// Why a job cannot be called now, and what to do with it. Nothing was sent.
#[derive(Debug, Clone)]
pub enum NotReady {
    Stop(Stop),
    /// Not the job's fault, and it passes: come back later, when the API wishes if it said so, without
    /// spending an attempt.
    Wait {
        error: JobError,
        retry_after: Option<Duration>,
    },
}

impl From<Stop> for NotReady {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl NotReady {
    pub fn error(&self) -> &JobError {
        match self {
            Self::Stop(stop) => stop.error(),
            Self::Wait { error, .. } => error,
        }
    }
}

/// How an attempt ended, and what that makes of its job.
#[derive(Debug, Clone)]
pub struct AttemptEnd {
    pub outcome: AttemptOutcome,
    pub http_status: Option<u16>,
    pub log_id: Option<String>,
    pub ending: Ending,
}

impl AttemptEnd {
    /// An attempt to which the tool API answered nothing.
    pub fn unanswered(outcome: AttemptOutcome, ending: impl Into<Ending>) -> Self {
        Self { outcome, http_status: None, log_id: None, ending: ending.into() }
    }

    /// The record of the attempt, and what becomes of its job.
    pub fn record(self, started: Started, now: Timestamp) -> (Attempt, Ending) {
        let Self { outcome, http_status, log_id, ending } = self;
        let Started { number, request_id, version, at: started_at } = started;
        let error = ending.error().cloned();
        let finished_at = now.max(started_at);
        let attempt = Attempt {
            number,
            request_id,
            outcome,
            http_status,
            log_id,
            version,
            error,
            started_at,
            finished_at,
        };
        (attempt, ending)
    }
}
