//! The sandbox's own time: the machine's clock plus what a test has advanced it by.
//!
//! Links expire and rate limit windows roll over by this clock, so a test can pass ten minutes in
//! no time. Latencies and hangs are real time, because a client waits for them in real time.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// A clock that only ever moves forward relative to the machine's.
#[derive(Debug, Default)]
pub(super) struct Clock {
    ahead_ms: AtomicI64,
}

impl Clock {
    pub(super) fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// Moves the clock forward and answers how far ahead of the machine it is now, in milliseconds.
    pub(super) fn advance(&self, ms: u32) -> i64 {
        self.ahead_ms.fetch_add(i64::from(ms), Ordering::Relaxed) + i64::from(ms)
    }

    pub(super) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }
}
