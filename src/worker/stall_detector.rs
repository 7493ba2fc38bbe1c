//! The stall detector finds subscriptions that look healthy and through which no deliveries come.
//!
//! A broker can forget a consumer without saying so, and what it says can be lost. Whoever waits for deliveries
//! then waits for ever, connected and idle. So a lane that has room and gets nothing checks its queue now and
//! then, and subscribes anew when two checks in a row show that something should have come. A wrong suspicion costs
//! a moment and nothing else.

use std::{fmt, time::Duration};

use crate::{
    backoff::Intervals,
    queue::{Depth, QueueError, QueueErrorKind},
};

/// Time between two checks of a queue. It grows while subscribing anew brings nothing, because there are queues from which a
/// healthy consumer gets nothing: those that were declared with a single active consumer.
pub(super) const CHECK_INTERVALS: Intervals = Intervals {
    initial: Duration::from_secs(4),
    max: Duration::from_secs(300),
    multiplier: 2.0,
    jitter: 0.2,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// Messages wait, there is room for them, and they do not come.
    Waiting(u64),
    /// The queue has no consumer at all.
    NotCounted,
    /// The queue, or the exchange that feeds it, is gone.
    Gone,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(messages) => {
                write!(f, "{messages} messages wait in the queue and do not come")
            }
            Self::NotCounted => f.write_str("the queue does not know this consumer"),
            Self::Gone => f.write_str("its queue or exchange was deleted"),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct StallDetector {
    was_stalled: bool,
}

impl StallDetector {
    /// Takes the next check of the queue into account, with nothing delivered since the last one.
    ///
    /// # Errors
    /// Why the subscription has to be made anew.
    pub(super) fn observe(&mut self, seen: &Result<Depth, QueueError>) -> Result<(), Stall> {
        let stall = stall(seen);
        let stalled_before = std::mem::replace(&mut self.was_stalled, stall.is_some());
        // A single check may fall between a publication and its delivery, or show what the broker counted earlier.
        match stall {
            Some(stall) if stalled_before => Err(stall),
            _ => Ok(()),
        }
    }
}

fn stall(seen: &Result<Depth, QueueError>) -> Option<Stall> {
    match seen {
        Ok(Depth { consumers: 0, .. }) => Some(Stall::NotCounted),
        Ok(Depth { ready: 0, .. }) => None,
        Ok(Depth { ready, .. }) => Some(Stall::Waiting(*ready)),
        Err(error) if error.kind() == QueueErrorKind::Unroutable => Some(Stall::Gone),
        // A broker that does not answer, or does not let us look, says nothing about the subscription.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(ready: u64, consumers: u64) -> Result<Depth, QueueError> {
        Ok(Depth { ready, consumers })
    }

    fn error(kind: QueueErrorKind) -> Result<Depth, QueueError> {
        Err(QueueError::new(kind, "no"))
    }

    #[test]
    fn two_suspicious_checks_in_a_row_end_a_subscription() {
        for (first, second, expected) in [
            (depth(3, 1), depth(5, 1), Stall::Waiting(5)),
            (depth(0, 0), depth(0, 0), Stall::NotCounted),
            (depth(3, 1), depth(3, 0), Stall::NotCounted),
            (error(QueueErrorKind::Unroutable), error(QueueErrorKind::Unroutable), Stall::Gone),
            (depth(0, 0), error(QueueErrorKind::Unroutable), Stall::Gone),
        ] {
            let mut detector = StallDetector::default();
            assert_eq!(detector.observe(&first), Ok(()), "{first:?}");
            assert_eq!(detector.observe(&second), Err(expected), "{second:?}");
        }
    }

    #[test]
    fn an_empty_queue_and_a_broker_that_does_not_answer_are_no_reason() {
        for harmless in [
            depth(0, 1),
            error(QueueErrorKind::Unavailable),
            error(QueueErrorKind::Access),
            error(QueueErrorKind::Topology),
        ] {
            let mut detector = StallDetector::default();
            for _ in 0..3 {
                assert_eq!(detector.observe(&harmless), Ok(()));
                assert_eq!(detector.observe(&depth(1, 1)), Ok(()), "one check is not enough");
            }
        }
    }
}
