//! Log lines of one cause, of which every request or job could be one.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::sync::lock;

/// Lets one line of a kind through in [`EVERY`](Self::EVERY), so that an outage under load fills no disk.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// How much happened since then.
    since: usize,
}

impl Seldom {
    /// The time between two lines.
    pub const EVERY: Duration = Duration::from_secs(10);

    /// None was let through yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Told { last: None, since: 0 }))
    }

    /// How much happened since the last line, with these `more`, where it is time for another.
    pub fn due(&self, more: usize) -> Option<usize> {
        self.due_at(Instant::now(), more)
    }

    fn due_at(&self, now: Instant, more: usize) -> Option<usize> {
        let mut told = lock(&self.0);
        told.since = told.since.saturating_add(more);
        if told.last.is_some_and(|last| now.saturating_duration_since(last) < Self::EVERY) {
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_others_together_later() {
        let (seldom, begin) = (Seldom::new(), Instant::now());
        let at = |seconds, more| seldom.due_at(begin + Duration::from_secs(seconds), more);
        assert_eq!(
            [at(0, 3), at(1, 1), at(9, 2), at(10, 1), at(11, 5), at(40, 0)],
            [Some(3), None, None, Some(4), None, Some(5)]
        );
    }
}
