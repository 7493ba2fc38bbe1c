//! An action in JSON, the same for the command line and the API.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    job::{Owner, Release},
    store::{Action, ActionKind, ActionStatus, FilterJson, Preview, PreviewKind, Progress},
};

/// What is counted as the effect of jobs that have none yet, and as their last outcome.
const NOT_KNOWN: &str = "not_known";
const NO_CALL: &str = "no_call";

/// One decision about all jobs that a filter means. The names are an interface.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Action)]
pub struct ActionJson<'a> {
    pub id: Uuid,
    pub action: ActionKind,
    /// How held jobs are let go.
    pub how: Option<Release>,
    /// Whether effects may be repeated.
    pub force: bool,
    /// Whether jobs may run before their `run_at`.
    pub now: bool,
    pub filter: FilterJson,
    /// Only jobs that were created before are meant.
    pub until: Timestamp,
    /// Whose it is; `null` where it is the operator's.
    pub owner: Option<&'a Owner>,
    pub status: ActionStatus,
    pub made_by: &'a str,
    pub created_at: Timestamp,
    /// Until when it waits for its confirmation.
    pub expires_at: Option<Timestamp>,
    pub confirmed_by: Option<&'a str>,
    pub confirmed_at: Option<Timestamp>,
    pub aborted_by: Option<&'a str>,
    pub finished_at: Option<Timestamp>,
    /// `null` for an action that errand has started itself.
    pub preview: Option<PreviewJson<'a>>,
    pub progress: ProgressJson,
}

/// What was counted before the confirmation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ActionPreview)]
pub struct PreviewJson<'a> {
    pub total: u64,
    /// Of these, those that stay as they are without `force`, because their last call may have had its effect.
    pub needs_force: u64,
    /// Whether not all jobs were looked at, so that there may be more than all these numbers say.
    pub at_least: bool,
    pub by_state: BTreeMap<&'static str, u64>,
    /// `not_known` as long as it is not decided.
    pub by_effect: BTreeMap<&'static str, u64>,
    /// `no_call` where no call ended.
    pub by_last_outcome: BTreeMap<&'static str, u64>,
    /// The same, all three together.
    pub kinds: &'a [PreviewKind],
}

/// What was met and done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ActionProgress)]
pub struct ProgressJson {
    pub looked_at: u64,
    pub done: u64,
    /// Of those that were called off, the ones whose call goes on.
    pub running: u64,
    /// Those that stayed as they were, by why.
    pub skipped: BTreeMap<&'static str, u64>,
}

impl<'a> ActionJson<'a> {
    pub fn of(action: &'a Action) -> Self {
        let Action { decision, status, created_at, confirmed_at, .. } = *action;
        Self {
            id: action.id,
            action: decision.kind(),
            how: decision.how(),
            force: action.force.effect,
            now: action.force.early,
            filter: FilterJson::of(&action.filter),
            until: action.until,
            owner: action.principal.owner(),
            status,
            made_by: &action.made_by,
            created_at,
            expires_at: action.expires_at,
            confirmed_by: action.confirmed_by.as_deref(),
            confirmed_at,
            aborted_by: action.aborted_by.as_deref(),
            finished_at: action.finished_at,
            preview: action.preview.as_ref().map(|preview| PreviewJson::of(preview, decision.runs_again())),
            progress: ProgressJson::of(&action.progress),
        }
    }
}

impl<'a> PreviewJson<'a> {
    fn of(preview: &'a Preview, runs_again: bool) -> Self {
        let by = |word: fn(&PreviewKind) -> &'static str| {
            let mut counts = BTreeMap::new();
            for kind in &preview.kinds {
                *counts.entry(word(kind)).or_default() += kind.jobs;
            }
            counts
        };
        Self {
            total: preview.total,
            needs_force: if runs_again { preview.may_have_acted } else { 0 },
            at_least: preview.at_least,
            by_state: by(|kind| kind.state.as_str()),
            by_effect: by(|kind| kind.effect.map_or(NOT_KNOWN, |effect| effect.as_str())),
            by_last_outcome: by(|kind| kind.last_outcome.map_or(NO_CALL, |outcome| outcome.as_str())),
            kinds: &preview.kinds,
        }
    }
}

impl ProgressJson {
    fn of(progress: &Progress) -> Self {
        let Progress { looked_at, done, running, ref skipped } = *progress;
        let skipped = skipped.iter().map(|(why, jobs)| (why.as_str(), *jobs)).collect();
        Self { looked_at, done, running, skipped }
    }
}
