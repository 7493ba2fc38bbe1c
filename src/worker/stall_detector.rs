//! The stall detector finds subscriptions that look healthy and through which no deliveries come.
//!
//! A broker can forget a consumer without saying so, and what it says can be lost. So a lane that has room and gets
//! nothing checks its queue now and then, and subscribes anew when two checks in a row show that something should have
//! come. A wrong suspicion costs a moment.

use std::time::Duration;

use super::shared::Shared;
use crate::{
    backoff::Intervals,
    job::QueueName,
    queue::{Depth, QueueError, QueueErrorKind},
    telemetry::metrics,
};

/// Time between two checks of a queue. It grows while subscribing anew brings nothing, because there are queues from which a
/// healthy consumer gets nothing: those that were declared with a single active consumer.
const CHECK_INTERVALS: Intervals =
    Intervals::doubling(Duration::from_secs(4), Duration::from_secs(300)).with_jitter(0.2);

/// Checks the queue now and then while nothing comes, and returns when something should have come.
pub(super) async fn stalled(shared: &Shared, lane: &QueueName, renewals: u32) -> QueueError {
    let mut detector = StallDetector::default();
    loop {
        tokio::time::sleep(CHECK_INTERVALS.wait(renewals + 1, fastrand::f64())).await;
        let seen = shared.services.queue.depth(lane).await;
        if let Err(stall) = detector.observe(&seen) {
            metrics::SUBSCRIPTIONS_RENEWED.add([lane.as_str()], 1);
            let sentence = format!("nothing comes through the subscription: {stall}");
            return QueueError::new(QueueErrorKind::Unavailable, sentence);
        }
    }
}

#[derive(Debug, Default)]
struct StallDetector {
    was_stalled: bool,
}

impl StallDetector {
    /// Takes the next check into account, with nothing delivered since. The error is why to subscribe anew.
    fn observe(&mut self, seen: &Result<Depth, QueueError>) -> Result<(), String> {
        let stall = stall(seen);
        let stalled_before = std::mem::replace(&mut self.was_stalled, stall.is_some());
        // A single check may fall between a publication and its delivery, or show what the broker counted earlier.
        match stall {
            Some(stall) if stalled_before => Err(stall),
            _ => Ok(()),
        }
    }
}

/// Why a subscription counts as stalled.
fn stall(seen: &Result<Depth, QueueError>) -> Option<String> {
    match seen {
        Ok(Depth { consumers: 0, .. }) => Some("the queue does not know this consumer".to_owned()),
        Ok(Depth { ready: 0, .. }) => None,
        Ok(Depth { ready, .. }) => Some(format!("{ready} messages wait in the queue and do not come")),
        Err(error) if error.kind() == QueueErrorKind::Unroutable => {
            Some("its queue or exchange was deleted".to_owned())
        }
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
            (depth(3, 1), depth(5, 1), "5 messages wait"),
            (depth(0, 0), depth(0, 0), "does not know"),
            (depth(3, 1), depth(3, 0), "does not know"),
            (error(QueueErrorKind::Unroutable), error(QueueErrorKind::Unroutable), "deleted"),
            (depth(0, 0), error(QueueErrorKind::Unroutable), "deleted"),
        ] {
            let mut detector = StallDetector::default();
            assert_eq!(detector.observe(&first), Ok(()), "{first:?}");
            let stall = detector.observe(&second).unwrap_err();
            assert!(stall.contains(expected), "{stall}");
        }
    }

    #[test]
    fn an_empty_queue_and_a_broker_that_does_not_answer_are_no_reason() {
        let silent =
            [QueueErrorKind::Unavailable, QueueErrorKind::Access, QueueErrorKind::Topology].map(error);
        for harmless in silent.into_iter().chain([depth(0, 1)]) {
            let mut detector = StallDetector::default();
            for _ in 0..3 {
                assert_eq!(detector.observe(&harmless), Ok(()));
                assert_eq!(detector.observe(&depth(1, 1)), Ok(()), "one check is not enough");
            }
        }
    }
}
