//! Where a list goes on, as it is printed for whoever asks for its next page.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{job::Owner, store::Place};

/// A place in one kind of list. It is spelt with a letter of this kind, so that it is refused in every other, where it would
/// mean any place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor<const LIST: char, P = Place>(pub P);

/// In the jobs.
pub type JobCursor = Cursor<'j'>;
/// In the batches.
pub type BatchCursor = Cursor<'b'>;
/// In the actions by filter.
pub type ActionCursor = Cursor<'a'>;
/// In the rejected messages.
pub type RejectedCursor = Cursor<'r'>;
/// In the audit log.
pub type ChangeCursor = Cursor<'c'>;
/// In the deliveries of callbacks.
pub type DeliveryCursor = Cursor<'d'>;
/// In the callbacks, which are in the order of their owners.
pub type OwnerCursor = Cursor<'o', Owner>;
/// In the access keys, whose IDs are in the order of the list.
pub type KeyCursor = Cursor<'k', Uuid>;

/// A text that is no cursor of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no cursor of this list; take it as it was printed")]
pub struct NoCursor;

/// What the spelling of an ID matches.
const ID: &str = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";

impl<const LIST: char, P> Cursor<LIST, P> {
    /// Goes on behind this place.
    pub fn of(place: P) -> Self {
        Self(place)
    }
}

impl<const LIST: char> Cursor<LIST> {
    /// What all of them match, as a regular expression.
    pub fn pattern() -> String {
        format!(r"^{LIST}[0-9]{{1,17}}\.{ID}$")
    }
}

impl KeyCursor {
    /// What all of them match, as a regular expression.
    pub fn pattern() -> String {
        format!("^k{ID}$")
    }
}

impl OwnerCursor {
    /// What all of them match, as a regular expression.
    pub fn pattern() -> String {
        r"^o(user|org):(?=.*\S)[^\u0000-\u001f\u007f-\u009f]{1,256}$".to_owned()
    }
}

impl<const LIST: char, P: fmt::Display> fmt::Display for Cursor<LIST, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LIST}{}", self.0)
    }
}

impl<const LIST: char, P: FromStr> FromStr for Cursor<LIST, P> {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let place = text.strip_prefix(LIST).ok_or(NoCursor)?;
        place.parse().map(Self).map_err(|_| NoCursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_by_its_own_list_alone() {
        let place: Place = "1760000000000001.0190b0a0-0000-7000-8000-000000000001".parse().unwrap();
        let cursor = JobCursor::of(place);
        let printed = cursor.to_string();
        assert_eq!(printed.parse(), Ok(cursor));
        assert_eq!(printed.parse::<BatchCursor>(), Err(NoCursor));
        assert!("k0190b0a0-0000-7000-8000-000000000001".parse::<KeyCursor>().is_ok());
        assert_eq!(printed.parse::<KeyCursor>(), Err(NoCursor));
        assert_eq!("0190b0a0-0000-7000-8000-000000000001".parse::<KeyCursor>(), Err(NoCursor));
        for wrong in ["", "j", "j1", &printed[1..], &format!("j{printed}")] {
            assert_eq!(wrong.parse::<JobCursor>(), Err(NoCursor), "{wrong}");
        }
    }
}
