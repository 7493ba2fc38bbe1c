//! A job as errand tells of it everywhere, read as far as a person is shown it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    cli::output::ToldOwner,
    job::{ErrorKind, JobError, PinnedBy, State},
    store::HistoryEntry,
};

/// A job in a list.
#[derive(Deserialize)]
pub(in crate::cli) struct ToldSummary {
    pub(super) id: String,
    pub(in crate::cli) state: State,
    pub(super) held_reason: Option<String>,
    pub(super) cancel_requested: bool,
    pub(super) owner: ToldOwner,
    pub(super) tool: String,
    pub(super) queue: String,
    pub(in crate::cli) created_at: Timestamp,
    pub(super) attempt: u32,
    pub(super) error: Option<JobError>,
}

/// A job with all that is known of it.
pub(in crate::cli) struct ToldJob {
    pub(in crate::cli) summary: ToldSummary,
    pub(in crate::cli) more: ToldMore,
}

/// What a list leaves out.
#[derive(Deserialize)]
pub(in crate::cli) struct ToldMore {
    pub(super) known_as: Vec<String>,
    pub(super) requested_by: Option<String>,
    pub(super) toolkit: Option<String>,
    pub(super) version: Option<String>,
    pub(super) pinned_by: Option<PinnedBy>,
    pub(super) effect: Option<String>,
    pub(super) asked_effect: Option<String>,
    pub(super) connected_account_id: Option<String>,
    pub(super) priority: i16,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) idempotency_key: Option<String>,
    pub(in crate::cli) first_due_at: Option<Timestamp>,
    pub(in crate::cli) due_at: Option<Timestamp>,
    pub(super) run_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) max_attempts: Option<u32>,
    pub(super) spent: u32,
    pub(in crate::cli) publications: u32,
    pub(super) queue_paused_since: Option<Timestamp>,
    pub(super) worker: Option<ToldWorker>,
    pub(super) log_id: Option<String>,
    pub(super) attempts: Vec<ToldAttempt>,
    pub(super) history: Vec<HistoryEntry>,
}

/// The worker of a job.
#[derive(Deserialize)]
pub(super) struct ToldWorker {
    pub(super) id: String,
    pub(super) name: Option<String>,
}

/// An attempt.
#[derive(Deserialize)]
pub(super) struct ToldAttempt {
    pub(super) number: u32,
    pub(super) times: u32,
    pub(super) request_id: String,
    pub(super) outcome: Option<String>,
    pub(super) http_status: Option<u16>,
    pub(super) log_id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) error_kind: Option<ErrorKind>,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
}

/// The parts of a job that are customers' data, as they are written.
#[derive(Deserialize)]
pub(super) struct ToldData<'a> {
    #[serde(borrow)]
    pub(super) result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) text: Option<String>,
}

impl ToldJob {
    /// Both parts are read by themselves: to join them, a parser would have to make numbers of what is only passed on.
    pub(in crate::cli) fn of(json: &str) -> serde_json::Result<Self> {
        Ok(Self { summary: serde_json::from_str(json)?, more: serde_json::from_str(json)? })
    }

    pub(in crate::cli) fn state(&self) -> State {
        self.summary.state
    }

    pub(in crate::cli) fn queue(&self) -> &str {
        &self.summary.queue
    }

    pub(in crate::cli) fn error(&self) -> Option<&JobError> {
        self.summary.error.as_ref()
    }
}

/// The state in words.
pub(super) fn state(job: &ToldSummary) -> String {
    match &job.held_reason {
        Some(reason) => format!("{} ({reason})", job.state),
        None if job.cancel_requested && job.state == State::Running => {
            format!("{} (to be cancelled)", job.state)
        }
        None => job.state.to_string(),
    }
}
