//! Which jobs are meant: the same for lists, counts and decisions, whoever asks.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Place, Result, StoreError, read::StoreRow};
use crate::{
    bounds::{MAX_LOOK, MAX_LOOK_SCATTERED},
    job::{BatchId, Effect, ErrorKind, HeldReason, Owner, Principal, QueueName, State},
};

/// Which jobs are meant. All given conditions must hold; the default means all jobs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    pub state: Option<State>,
    pub owner: Option<Owner>,
    pub tool: Option<String>,
    /// Of this toolkit, as far as it is known: a job whose tool was not looked up has none.
    pub toolkit: Option<String>,
    pub queue: Option<QueueName>,
    /// The job has each of these tags, with this value.
    pub tags: BTreeMap<String, String>,
    /// Created then or later.
    pub since: Option<Timestamp>,
    /// Created before then.
    pub until: Option<Timestamp>,
    /// The kind of its error, also while it is being retried.
    pub error_kind: Option<ErrorKind>,
    pub held_reason: Option<HeldReason>,
    /// Only jobs of which nobody knows what became of their last call.
    pub outcome_unknown: bool,
    /// The toolkit version that it is bound to, or asks for as long as that is not decided.
    pub version: Option<String>,
    /// The effect that it is bound to, or asks for as long as that is not decided.
    pub effect: Option<Effect>,
    /// The batch that enqueued it.
    pub batch: Option<BatchId>,
}

impl JobFilter {
    /// Whether it means all jobs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What it means to this principal, and the index that is walked; `None` where it names an owner of whom the principal
    /// sees nothing. An owner's walk is among their jobs, because how far any other goes tells of others.
    pub(super) fn seen_by<'a>(&'a self, principal: &'a Principal) -> Option<(Cow<'a, Self>, Walk<'a>)> {
        if self.owner.as_ref().is_some_and(|owner| !principal.may_see(owner)) {
            return None;
        }
        Some(match principal {
            Principal::Operator => (Cow::Borrowed(self), self.walk()),
            Principal::Owner(owner) => {
                let own = Self { owner: Some(owner.clone()), ..self.clone() };
                (Cow::Owned(own), self.batch.map_or(Walk::Owner(owner), Walk::Batch))
            }
        })
    }

    /// The index that is walked for one who may see all.
    fn walk(&self) -> Walk<'_> {
        if let Some(batch) = self.batch {
            Walk::Batch(batch)
        } else if self.held_reason.is_some() || self.state == Some(State::Held) {
            Walk::Held
        } else if let Some(owner) = &self.owner {
            Walk::Owner(owner)
        } else {
            Walk::All
        }
    }

    /// Where a walk begins and ends that goes on before this place.
    pub(super) fn stretch(&self, before: Option<Place>) -> Stretch {
        Stretch::between(self.since, self.until, before)
    }
}

/// The index by which jobs are looked at, from the newest. None contains what a claim or a successful finish changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Walk<'a> {
    All,
    Owner(&'a Owner),
    Held,
    /// Whoever sees a job of a batch sees how many others it has.
    Batch(BatchId),
}

impl Walk<'_> {
    /// How many jobs one look reads at most.
    pub(super) fn most(self) -> usize {
        match self {
            Self::All => MAX_LOOK,
            Self::Owner(_) | Self::Held | Self::Batch(_) => MAX_LOOK_SCATTERED,
        }
    }
}

/// A part of the order of creation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    /// The newest job is older than this.
    pub(super) before: Place,
    /// The oldest job is this one or newer.
    pub(super) end: Place,
}

impl Stretch {
    /// From `since`, before `until` and before `before`, as far as they are given.
    pub(super) fn between(since: Option<Timestamp>, until: Option<Timestamp>, before: Option<Place>) -> Self {
        let at = |at: Timestamp| Place { at: at.as_microsecond(), id: Uuid::nil() };
        let before = before.unwrap_or(Place::LAST);
        Self {
            before: until.map_or(before, |until| before.min(at(until))),
            end: since.map_or(Place::FIRST, at),
        }
    }
}

/// What a look at a bounded number of jobs found.
#[derive(Debug, Clone)]
pub struct Looked<T> {
    /// Those that match and that this version of errand can read, newest first.
    pub items: Vec<T>,
    /// How many jobs were there to look at: [`MAX_LOOK`] at most. A list that is full before looks at fewer.
    pub looked_at: u64,
    /// Go on before this place; `None` when no job is left.
    pub next: Option<Place>,
}

/// The jobs that are looked at in one go, of which the last is known before any is read.
pub(super) struct Window {
    pub(super) stretch: Stretch,
    pub(super) looked_at: u64,
    next: Option<Place>,
}

impl Window {
    /// Reads the answer to a question for the oldest of up to `limit` jobs; `None` if there is none.
    pub(super) fn of(stretch: Stretch, oldest: Option<&impl StoreRow>, limit: usize) -> Result<Option<Self>> {
        let Some(row) = oldest else { return Ok(None) };
        let (end, looked_at) = (place_of(row)?, row.total("looked_at")?);
        let next = (looked_at >= limit as u64).then_some(end);
        Ok(Some(Self { stretch: Stretch { end, ..stretch }, looked_at, next }))
    }

    /// What was found, of which `rows` were read at most `limit`.
    pub(super) fn looked<R: StoreRow, T>(
        &self,
        rows: &[R],
        limit: usize,
        items: Vec<T>,
    ) -> Result<Looked<T>> {
        let last = match rows.last() {
            Some(last) if rows.len() >= limit => {
                Some(place_of(last)?).filter(|last| *last != self.stretch.end)
            }
            _ => None,
        };
        Ok(Looked { items, looked_at: self.looked_at, next: last.or(self.next) })
    }
}

impl<T> Looked<T> {
    pub(super) fn nothing() -> Self {
        Self { items: Vec::new(), looked_at: 0, next: None }
    }
}

pub(super) fn place_of(row: &impl StoreRow) -> Result<Place> {
    Ok(Place { at: row.time("created_at")?.as_microsecond(), id: row.read("id")? })
}

impl Place {
    /// When the row was created.
    ///
    /// # Errors
    /// No clock can show it: it is not the place of a row.
    pub fn time(&self) -> Result<Timestamp> {
        Timestamp::from_microsecond(self.at).map_err(|_| StoreError::corrupt("created_at"))
    }
}

/// How it is kept, and spelt in a cursor, where it means nothing to a person.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at, self.id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no cursor; take it as it was printed")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (at, id) = text.split_once('.').ok_or(NoPlace)?;
        let place = Self { at: at.parse().map_err(|_| NoPlace)?, id: id.parse().map_err(|_| NoPlace)? };
        if (Self::FIRST..=Self::LAST).contains(&place) { Ok(place) } else { Err(NoPlace) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_printed_and_nothing_else_is() {
        let place = Place { at: 1_760_000_000_000_001, id: Uuid::max() };
        assert_eq!(place.to_string().parse(), Ok(place));
        for wrong in
            ["", "1", "1.", "-1.00000000-0000-0000-0000-000000000000", "x.y", "9999999999999999999.1"]
        {
            assert_eq!(wrong.parse::<Place>(), Err(NoPlace), "{wrong}");
        }
        let beyond = format!("{}.{}", Place::LAST.at + 1, Uuid::nil());
        assert_eq!(beyond.parse::<Place>(), Err(NoPlace));
    }
}
