//! The seal of the API: what it hands out and takes back of which others must not make one, or read it.

use std::sync::{Arc, OnceLock};

use super::problem::{Kind, Problem};
use crate::{
    access::{RANDOM_BYTES, random},
    job::Principal,
    seal::{Seal, sealed_len},
    store::{Event, EventsAfter, SharedStore},
};

/// The seals, which are the same in every process. They are made of a secret in the store, for which the first asks who needs it.
#[derive(Debug)]
pub(super) struct Sealing {
    store: SharedStore,
    seals: OnceLock<Arc<Seals>>,
}

/// A seal for each use.
#[derive(Debug)]
pub(super) struct Seals {
    pub(super) positions: Seal,
    pub(super) tokens: Seal,
}

impl Seals {
    pub(super) fn new(secret: &[u8]) -> Result<Self, Problem> {
        let seal = |use_| {
            let seal = Seal::new(secret, use_, unguessable()?);
            seal.ok_or_else(|| {
                Problem::new(Kind::Internal, "the table `sealing_secret` has no secret of 32 bytes")
            })
        };
        Ok(Self { positions: seal("positions")?, tokens: seal("tokens")? })
    }
}

impl Sealing {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, seals: OnceLock::new() }
    }

    pub(super) async fn seals(&self) -> Result<&Arc<Seals>, Problem> {
        if let Some(seals) = self.seals.get() {
            return Ok(seals);
        }
        // Each asks by itself: where the database is away, nobody waits for those before them.
        let secret = self.store.sealing_secret(unguessable()?).await?;
        let seals = Arc::new(Seals::new(&secret)?);
        Ok(self.seals.get_or_init(|| seals))
    }
}

fn unguessable() -> Result<[u8; RANDOM_BYTES], Problem> {
    random().map_err(|_| Problem::new(Kind::Internal, "the operating system gives no random bytes"))
}

/// Positions of events as they are told to somebody. To the operator that is the number. For an owner it is sealed, and another text
/// each time, because positions are counted over all owners: they would tell how much the others do, and when.
#[derive(Debug, Clone)]
pub(super) struct Cursors {
    /// For whom they are sealed; `None` of the operator.
    owner: Option<String>,
}

impl Cursors {
    pub(super) fn of(principal: &Principal) -> Self {
        Self { owner: principal.owner().map(ToString::to_string) }
    }

    /// What all of them match, as a regular expression.
    pub(super) fn pattern() -> String {
        format!("^([0-9]{{1,19}}|[A-Za-z0-9_-]{{{}}})$", sealed_len(size_of::<u64>()))
    }

    /// A position as it is told.
    pub(super) fn tell(&self, seals: &Seals, position: u64) -> String {
        match &self.owner {
            None => position.to_string(),
            Some(owner) => seals.positions.seal(owner, &position.to_be_bytes()),
        }
    }

    /// The events that were read behind a position, and the position behind which to go on, as far as they can be told.
    pub(super) fn readable(&self, seals: &Seals, behind: EventsAfter) -> Result<(Vec<Event>, u64), Problem> {
        match behind {
            EventsAfter::Are { events, next } => Ok((events, next)),
            EventsAfter::Removed { up_to } => Err(Problem::new(
                Kind::EventsRemoved,
                format!(
                    "events behind this cursor may be missing, because they are kept for the setting retention.events_days: begin \
                     anew with after={}, and read what became of the jobs in between",
                    self.tell(seals, up_to)
                ),
            )),
            EventsAfter::ToCome => Err(Problem::new(
                Kind::BadRequest,
                "the parameter `after`: no event has had this cursor yet; take one that was told",
            )),
        }
    }

    /// The position that was told as this.
    pub(super) fn read(&self, seals: &Seals, told: &str) -> Option<u64> {
        match &self.owner {
            None => told.parse().ok(),
            Some(owner) => seals.positions.open(owner, told)?.try_into().ok().map(u64::from_be_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Owner, OwnerKind};

    #[test]
    fn a_cursor_is_read_by_whom_it_was_told_and_tells_nothing_of_the_position() {
        let seals = Seals::new(&[7; RANDOM_BYTES]).unwrap();
        let of = |kind, id| Cursors::of(&Principal::Owner(Owner::new(kind, id).unwrap()));
        let all = [
            Cursors::of(&Principal::Operator),
            of(OwnerKind::User, "7"),
            of(OwnerKind::User, "8"),
            of(OwnerKind::Org, "7"),
        ];
        for position in [0, 1, 4_711, u64::MAX] {
            let told: Vec<_> = all.iter().map(|cursors| cursors.tell(&seals, position)).collect();
            assert_eq!(told[0], position.to_string());
            for (whose, told) in told.iter().enumerate() {
                for (who, cursors) in all.iter().enumerate() {
                    let expected = (who == whose).then_some(position);
                    assert_eq!(cursors.read(&seals, told), expected, "{told} of {whose} shown by {who}");
                }
            }
            // All of one length, whatever the position, and never twice the same.
            assert!(told[1..].iter().all(|told| told.len() == sealed_len(8)), "{told:?}");
            assert_ne!(all[1].tell(&seals, position), told[1]);
        }
    }
}
