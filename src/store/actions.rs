//! Actions: one decision about all jobs that a filter means, which is previewed, confirmed and carried out.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Decider, FilterJson, Force, JobFilter, Place, Result, StoreError, StoreErrorKind, read::StoreRow,
};
use crate::{
    bounds::MAX_FILTER_BYTES,
    job::{AttemptOutcome, Effect, JobId, Owner, Principal, Release, State},
    string_enum::string_enum,
};

/// Most ended actions that a new one removes.
pub(super) const REMOVED_TOGETHER: i64 = 1_000;

/// For how long it counts, for the turns of owners, that an action of theirs was taken and has ended since.
pub(super) const RECENTLY_TAKEN: Duration = Duration::from_secs(60);

/// Actions, from their preview to their end.
///
/// * For an owner it is as if there were only its own actions, and what is done by them is done as the owner decides: an
///   action changes no job that its principal may not see.
/// * An action means the jobs that were created before it was made, by the store's clock, so it never touches what came
///   later, and ends.
/// * One process at a time carries an action out. What another one writes, whose turn is over, changes nothing.
/// * Actions take turns, first by whose they are, so that nobody's wait for all those of somebody else.
/// * To make or confirm an action again that was made or confirmed, as when an answer was lost, changes nothing.
#[async_trait]
pub trait Actions: fmt::Debug + Send + Sync {
    /// Keeps an action that waits for its confirmation, for `valid_for`. Removes ended ones of the same principal beyond the
    /// newest [`MAX_ENDED_ACTIONS`](crate::bounds::MAX_ENDED_ACTIONS).
    async fn make_action(
        &self,
        principal: &Principal,
        action: &NewAction,
        valid_for: Duration,
    ) -> Result<MadeAction>;

    /// Lets an action be carried out. `force` says whether effects may be repeated, whatever it was made with. Where it was
    /// made to repeat some, or might, it is needed.
    async fn confirm_action(
        &self,
        principal: &Principal,
        id: Uuid,
        by: &Decider,
        force: bool,
    ) -> Result<Confirmed>;

    /// Ends an action. What was decided stays, and what is being decided at this moment is decided. One that has ended
    /// stays as it is. `None` if there is none.
    async fn abort_action(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<Action>>;

    async fn action(&self, principal: &Principal, id: Uuid) -> Result<Option<Action>>;

    /// Which of these actions have ended, or are not there.
    async fn ended_actions(&self, ids: &[Uuid]) -> Result<Vec<Uuid>>;

    /// Up to `limit` actions, the newest first. Those that come after `before`, or the first.
    async fn actions(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Action>>;

    /// Takes the confirmed action whose turn it is, or this one, which nobody else carries out for the time of the lease.
    /// One that this version of errand cannot read is left to others.
    async fn take_action(&self, only: Option<Uuid>, lease: Duration) -> Result<Option<TakenAction>>;

    /// Prolongs the lease. Whether to go on with the action that was taken under this fence: somebody may have aborted it.
    async fn keep_action(&self, id: Uuid, fence: i64, lease: Duration) -> Result<bool>;

    /// Records what was done since it was taken, and what is decided about next. Whether to go on, as
    /// [`Self::keep_action`] says. Of one that was aborted meanwhile only the progress is kept.
    async fn record_action(&self, id: Uuid, fence: i64, step: &Step) -> Result<bool>;

    /// How many are confirmed and have not ended, by kind.
    async fn actions_under_way(&self) -> Result<BTreeMap<ActionKind, u64>>;

    /// Removes up to `limit` actions that ended so long ago, or whose confirmation did not come in time. Returns how many.
    async fn prune_actions(&self, ended_for: Duration, limit: usize) -> Result<u64>;

    /// Removes all actions of an owner, and the ended ones of the operator whose filter names the owner. Returns how many.
    async fn remove_actions(&self, owner: &Owner) -> Result<u64>;
}

string_enum! {
    /// What an action does.
    ActionKind {
        Cancel = "cancel",
        Retry = "retry",
        Release = "release",
        Prune = "prune",
    }
}

/// What an action decides about each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionDecision {
    Cancel,
    Retry,
    Release(Release),
    /// Removes it, if it is final.
    Prune,
}

impl ActionDecision {
    pub fn kind(self) -> ActionKind {
        match self {
            Self::Cancel => ActionKind::Cancel,
            Self::Retry => ActionKind::Retry,
            Self::Release(_) => ActionKind::Release,
            Self::Prune => ActionKind::Prune,
        }
    }

    /// Whether it makes calls again, which may repeat an effect.
    pub fn runs_again(self) -> bool {
        match self {
            Self::Retry | Self::Release(Release::Retry) => true,
            Self::Cancel | Self::Prune | Self::Release(Release::Succeeded | Release::Failed) => false,
        }
    }

    /// How held jobs are let go.
    pub fn how(self) -> Option<Release> {
        match self {
            Self::Release(how) => Some(how),
            Self::Cancel | Self::Retry | Self::Prune => None,
        }
    }
}

string_enum! {
    ActionStatus {
        /// It waits for its confirmation.
        Previewed = "previewed",
        /// It is carried out.
        Confirmed = "confirmed",
        Done = "done",
        Aborted = "aborted",
    }
}

string_enum! {
    /// Why an action left a job as it was.
    Skip {
        /// Its state did not allow it.
        WrongState = "wrong_state",
        /// Its last call may have had its effect, and that was not to be repeated.
        NeedsForce = "needs_force",
        /// Its `run_at` was still to come.
        Early = "early",
        /// It was held and had not run, so that nobody could say how it ended.
        HasNotRun = "has_not_run",
        /// It was not there any more.
        Gone = "gone",
        /// It changed at the moment at which it was decided about.
        Changed = "changed",
        /// Its reply was still to be published, or its call looked up, so that it could not be removed.
        Pending = "pending",
        /// It was written by a newer version of errand.
        Unreadable = "unreadable",
    }
}

/// An action that is not there yet.
#[derive(Debug, Clone)]
pub struct NewAction {
    /// By which it is recognized when it is made again.
    pub id: Uuid,
    pub decision: ActionDecision,
    pub filter: JobFilter,
    /// Jobs that were created then or later are not meant, which is never later than the moment at which it is made. Without
    /// it, it is that moment.
    pub until: Option<Timestamp>,
    pub force: Force,
    pub preview: Option<Preview>,
    /// Who makes it, by [`check_decider`](super::check_decider).
    pub by: String,
}

impl NewAction {
    /// Whether its filter is larger than one may be.
    pub fn is_too_large(&self) -> bool {
        self.filter_json().len() > MAX_FILTER_BYTES
    }

    pub(super) fn filter_json(&self) -> String {
        json(&FilterJson::of(&self.filter))
    }

    pub(super) fn preview_json(&self) -> Option<String> {
        self.preview.as_ref().map(json)
    }

    /// # Errors
    /// It can not be kept.
    pub(super) fn check(&self) -> Result<()> {
        super::history::refuse_name(&self.by)?;
        if self.is_too_large() {
            let why = format!("the filter has more than {MAX_FILTER_BYTES} bytes");
            return Err(StoreError::new(StoreErrorKind::Data, why));
        }
        Ok(())
    }

    /// What becomes of making it, where this one has its ID.
    pub(super) fn known(&self, principal: &Principal, found: Action) -> MadeAction {
        let is_this = found.principal == *principal
            && found.decision == self.decision
            && found.filter == self.filter
            && found.asked == self.force;
        if is_this { MadeAction::Known(found) } else { MadeAction::Conflict }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum MadeAction {
    New(Action),
    /// It was made before.
    Known(Action),
    /// There is another one with its ID.
    Conflict,
    /// There are [`MAX_OPEN_ACTIONS`](crate::bounds::MAX_OPEN_ACTIONS) of this principal that have not ended.
    TooMany,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Confirmed {
    /// It is carried out, or was.
    Now(Box<Action>),
    Aborted,
    /// The confirmation came too late.
    Expired,
    /// It was made to repeat effects, or may, which was not confirmed.
    NeedsForce,
    Unknown,
}

/// What an action means, as it was counted before its confirmation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// Jobs that it would decide about.
    pub total: u64,
    /// Of these, those whose last call may have had its effect, which running them again would repeat.
    pub may_have_acted: u64,
    /// Whether not all jobs were looked at, so that there may be more.
    pub at_least: bool,
    pub kinds: Vec<PreviewKind>,
}

/// How many jobs there are of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviewKind {
    pub state: State,
    /// `None` as long as it is not known.
    pub effect: Option<Effect>,
    /// `None` where no call ended.
    pub last_outcome: Option<AttemptOutcome>,
    pub jobs: u64,
}

/// What an action has met and done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub looked_at: u64,
    pub done: u64,
    /// Of those that were called off, the ones whose call went on.
    pub running: u64,
    /// Those that stayed as they were.
    pub skipped: BTreeMap<Skip, u64>,
}

/// An action as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    pub id: Uuid,
    pub principal: Principal,
    pub decision: ActionDecision,
    pub filter: JobFilter,
    /// Jobs that were created then or later are not meant.
    pub until: Timestamp,
    pub force: Force,
    /// What it was made with.
    pub(super) asked: Force,
    pub preview: Option<Preview>,
    pub status: ActionStatus,
    pub made_by: String,
    pub created_at: Timestamp,
    /// Until when it waits for its confirmation.
    pub expires_at: Option<Timestamp>,
    pub confirmed_by: Option<String>,
    pub confirmed_at: Option<Timestamp>,
    pub aborted_by: Option<String>,
    pub finished_at: Option<Timestamp>,
    pub progress: Progress,
}

impl Action {
    /// Which jobs are meant.
    pub fn meant(&self) -> JobFilter {
        JobFilter { until: Some(self.until), ..self.filter.clone() }
    }

    /// Whether nothing more becomes of it.
    pub fn has_ended(&self) -> bool {
        self.finished_at.is_some()
    }

    /// Its place among actions.
    pub fn place(&self) -> Place {
        Place { at: self.created_at.as_microsecond(), id: self.id }
    }

    /// Whether its confirmation has to say that effects may be repeated.
    pub(super) fn asks_for_force(&self) -> bool {
        let repeats = |preview: &Preview| preview.may_have_acted > 0 || preview.at_least;
        self.asked.effect && self.decision.runs_again() && self.preview.as_ref().is_none_or(repeats)
    }

    /// Why it could not be confirmed, or that it was before.
    pub(super) fn confirmed(self) -> Confirmed {
        match self.status {
            ActionStatus::Confirmed | ActionStatus::Done => Confirmed::Now(Box::new(self)),
            ActionStatus::Aborted => Confirmed::Aborted,
            ActionStatus::Previewed => Confirmed::Expired,
        }
    }
}

/// An action that this process carries out, until its lease ends.
#[derive(Debug, Clone)]
pub struct TakenAction {
    pub action: Action,
    /// Proves to the store which process carries it out.
    pub fence: i64,
    /// All jobs down to here are decided about.
    pub place: Option<Place>,
    /// What a process was deciding about that did not say what became of it.
    pub unsettled: Option<Deciding>,
}

/// Jobs that are decided about next, or were when a process stopped.
#[derive(Debug, Clone)]
pub struct Deciding {
    pub jobs: Vec<JobId>,
    /// The place after them; `None` where nothing comes after them.
    pub to: Option<Place>,
    /// Since when, by the store's clock; unknown before it is recorded.
    pub since: Option<Timestamp>,
}

/// What is recorded of an action that is carried out.
#[derive(Debug, Clone)]
pub struct Step {
    pub progress: Progress,
    pub place: Option<Place>,
    pub then: Then,
}

#[derive(Debug, Clone)]
pub enum Then {
    /// These are decided about, for the time of the lease.
    Decide { next: Deciding, lease: Duration },
    /// It is given back, for whose turn it is.
    GiveBack,
    /// All jobs are decided about.
    End,
}

impl Step {
    pub(super) fn deciding(&self) -> Option<&Deciding> {
        match &self.then {
            Then::Decide { next, .. } => Some(next),
            Then::GiveBack | Then::End => None,
        }
    }

    pub(super) fn deciding_to(&self) -> Option<Place> {
        self.deciding().and_then(|next| next.to)
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        match &self.then {
            Then::Decide { lease, .. } => Some(*lease),
            Then::GiveBack | Then::End => None,
        }
    }

    pub(super) fn ends(&self) -> bool {
        matches!(self.then, Then::End)
    }

    pub(super) fn deciding_json(&self) -> String {
        json(
            &self
                .deciding()
                .map_or_else(Vec::new, |next| next.jobs.iter().map(|job| job.0).collect::<Vec<_>>()),
        )
    }
}

/// What a filter asks for, as the audit log tells it: without tags, which are customers' data.
pub(super) fn asked_for(filter: &JobFilter) -> Value {
    let mut fields = value!(FilterJson { tag: None, ..FilterJson::of(filter) });
    if let Value::Object(fields) = &mut fields {
        fields.retain(|_, wanted| !wanted.is_null());
    }
    fields
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|error| unreachable!("words and numbers always encode: {error}"))
}

fn from_json<T: for<'de> Deserialize<'de>>(column: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| StoreError::corrupt(column))
}

pub(super) fn action(row: &impl StoreRow) -> Result<Action> {
    let is_operators = row.read::<Option<String>>("owner_kind")?.is_none();
    let how: Option<Release> = row.parse_if_any("how")?;
    let decision = match (row.parse("kind")?, how) {
        (ActionKind::Cancel, None) => ActionDecision::Cancel,
        (ActionKind::Retry, None) => ActionDecision::Retry,
        (ActionKind::Release, Some(how)) => ActionDecision::Release(how),
        (ActionKind::Prune, None) => ActionDecision::Prune,
        _ => return Err(StoreError::corrupt("how")),
    };
    let filter: FilterJson = from_json("filter", &row.read::<String>("filter")?)?;
    let preview: Option<String> = row.read("preview")?;
    let early = row.read("early")?;
    Ok(Action {
        id: row.read("id")?,
        principal: if is_operators { Principal::Operator } else { Principal::Owner(row.owner()?) },
        decision,
        filter: filter.filter().map_err(|_| StoreError::corrupt("filter"))?,
        until: row.time("created_before")?,
        force: Force { effect: row.read("force")?, early },
        asked: Force { effect: row.read("asked_force")?, early },
        preview: preview.map(|preview| from_json("preview", &preview)).transpose()?,
        status: row.parse("status")?,
        made_by: row.read("made_by")?,
        created_at: row.time("created_at")?,
        expires_at: row.time_if_any("expires_at")?,
        confirmed_by: row.read("confirmed_by")?,
        confirmed_at: row.time_if_any("confirmed_at")?,
        aborted_by: row.read("aborted_by")?,
        finished_at: row.time_if_any("finished_at")?,
        progress: from_json("progress", &row.read::<String>("progress")?)?,
    })
}

pub(super) fn taken(row: &impl StoreRow) -> Result<TakenAction> {
    let jobs: Vec<Uuid> = from_json("deciding", &row.read::<String>("deciding")?)?;
    let deciding = Deciding {
        jobs: jobs.into_iter().map(JobId).collect(),
        to: place(row, "deciding_to_at", "deciding_to_id")?,
        since: row.time_if_any("deciding_since")?,
    };
    Ok(TakenAction {
        action: action(row)?,
        fence: row.read("fence")?,
        place: place(row, "place_at", "place_id")?,
        unsettled: deciding.since.is_some().then_some(deciding),
    })
}

fn place(row: &impl StoreRow, at: &str, id: &str) -> Result<Option<Place>> {
    let (at, id): (Option<i64>, Option<Uuid>) = (row.read(at)?, row.read(id)?);
    Ok(at.zip(id).map(|(at, id)| Place { at, id }))
}
