//! Where a list goes on, as it is printed for whoever asks for its next page.

use std::{fmt, str::FromStr};

use crate::store::Place;

/// A place in one kind of list. It is spelt with a letter of this kind, so that it is refused in every other, where it would
/// mean any place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor<const LIST: char>(pub Place);

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

/// A text that is no cursor of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no cursor of this list; take it as it was printed")]
pub struct NoCursor;

impl<const LIST: char> Cursor<LIST> {
    /// Goes on behind this place.
    pub fn of(place: Place) -> Self {
        Self(place)
    }

    /// What all of them match, as a regular expression.
    pub fn pattern() -> String {
        format!(r"^{LIST}[0-9]{{1,17}}\.[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$")
    }
}

impl<const LIST: char> fmt::Display for Cursor<LIST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LIST}{}", self.0)
    }
}

impl<const LIST: char> FromStr for Cursor<LIST> {
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
        for wrong in ["", "j", "j1", &printed[1..], &format!("j{printed}")] {
            assert_eq!(wrong.parse::<JobCursor>(), Err(NoCursor), "{wrong}");
        }
    }
}
