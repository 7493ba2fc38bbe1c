//! Notices a subscription that is in order as far as the connection tells, and through which nothing comes.
//!
//! A broker can forget a consumer without saying so, and what it says can be lost. Whoever waits for deliveries
//! then waits for ever, connected and idle. So a lane that has room and gets nothing looks at its queue now and
//! then, and subscribes anew when two looks in a row show that something should have come. That costs nothing
//! but a moment if it was wrong.

use std::{fmt, time::Duration};

use crate::{
    backoff::Intervals,
    queue::{Depth, QueueError, QueueErrorKind},
};

/// Time between two looks. It grows while subscribing anew brings nothing, because there are queues from which a
/// healthy consumer gets nothing: those that were declared with a single active consumer.
pub(super) const LOOKS: Intervals = Intervals {
    initial: Duration::from_secs(4),
    max: Duration::from_secs(300),
    multiplier: 2.0,
    jitter: 0.2,
};

/// Why a subscription cannot be in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Messages wait, there is room for them, and they do not come.
    Waiting(u64),
    /// The queue has no consumer at all.
    NotCounted,
    /// The queue, or the exchange that feeds it, is gone.
    Gone,
}

impl fmt::Display for Suspicion {
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

/// The looks since something was delivered.
#[derive(Debug, Default)]
pub(super) struct Silence {
    is_suspicious: bool,
}

impl Silence {
    /// Takes the next look into account, with nothing delivered since the last one.
    ///
    /// # Errors
    /// Why the subscription has to be made anew.
    pub(super) fn look(&mut self, seen: &Result<Depth, QueueError>) -> Result<(), Suspicion> {
        let suspicion = suspicion(seen);
        let was_suspicious = std::mem::replace(&mut self.is_suspicious, suspicion.is_some());
        // A single look may fall between a publication and its delivery, or show what the broker counted earlier.
        match suspicion {
            Some(suspicion) if was_suspicious => Err(suspicion),
            _ => Ok(()),
        }
    }
}

fn suspicion(seen: &Result<Depth, QueueError>) -> Option<Suspicion> {
    match seen {
        Ok(Depth { consumers: 0, .. }) => Some(Suspicion::NotCounted),
        Ok(Depth { ready: 0, .. }) => None,
        Ok(Depth { ready, .. }) => Some(Suspicion::Waiting(*ready)),
        Err(error) if error.kind() == QueueErrorKind::Unroutable => Some(Suspicion::Gone),
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
    fn two_suspicious_looks_in_a_row_end_a_subscription() {
        for (first, second, expected) in [
            (depth(3, 1), depth(5, 1), Suspicion::Waiting(5)),
            (depth(0, 0), depth(0, 0), Suspicion::NotCounted),
            (depth(3, 1), depth(3, 0), Suspicion::NotCounted),
            (error(QueueErrorKind::Unroutable), error(QueueErrorKind::Unroutable), Suspicion::Gone),
            (depth(0, 0), error(QueueErrorKind::Unroutable), Suspicion::Gone),
        ] {
            let mut silence = Silence::default();
            assert_eq!(silence.look(&first), Ok(()), "{first:?}");
            assert_eq!(silence.look(&second), Err(expected), "{second:?}");
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
            let mut silence = Silence::default();
            for _ in 0..3 {
                assert_eq!(silence.look(&harmless), Ok(()));
                assert_eq!(silence.look(&depth(1, 1)), Ok(()), "one look is not enough");
            }
        }
    }
}
