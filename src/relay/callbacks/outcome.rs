//! What becomes of a callback by its answer.

use std::time::Duration;

use uuid::Uuid;

use super::receivers::Pace;
use crate::{
    backoff::Intervals,
    callback::{Answer, SendError, SendErrorKind},
    job::Owner,
    store::{CallbackAnswer, DueDelivery, NextTry, OwnUrl, TriedDelivery},
};

/// When a delivery that was not taken is sent again, after each try; after the last it has failed. Two days together.
pub const SCHEDULE: [Duration; 10] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(3),
    Duration::from_hours(6),
    Duration::from_hours(12),
    Duration::from_hours(12),
    Duration::from_hours(12),
];

/// By how much of each wait it is longer or shorter, so that what failed together is not sent together again.
const JITTER: f64 = 0.1;

/// An answer that comes later is late.
const SOON: Duration = Duration::from_secs(2);

/// What became of a delivery.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) tried: TriedDelivery,
    /// The receiver, and whether it works, where that is news.
    pub(super) receiver: Option<(Uuid, bool)>,
    /// The owner and the URL, where the state of their own callback changes by it.
    pub(super) own: Option<(Owner, String, CallbackAnswer)>,
}

/// How a receiver has answered; `None` where that says nothing of it.
pub(super) fn pace(answer: Option<&Result<Answer, SendError>>, took: Duration) -> Option<Pace> {
    match answer {
        None => None,
        Some(Err(error)) if error.kind() == SendErrorKind::Local => None,
        Some(Ok(Answer { status: 408 | 429 | 500.., .. }) | Err(_)) => Some(Pace::Failed),
        Some(Ok(_)) if took > SOON => Some(Pace::Late),
        Some(Ok(_)) => Some(Pace::Soon),
    }
}

impl Answered {
    pub(super) fn failed(delivery: &DueDelivery, why: &'static str) -> Self {
        let DueDelivery { id, tries, .. } = *delivery;
        let tried =
            TriedDelivery { id, next: NextTry::Never, tries, is_sent: false, status: None, error: Some(why) };
        Self { tried, receiver: None, own: None }
    }

    /// What becomes of a delivery by its answer; `None` where nobody knows it.
    pub(super) fn new(
        delivery: &DueDelivery,
        answer: Option<&Result<Answer, SendError>>,
        pace: Option<Pace>,
        random: f64,
    ) -> Self {
        let (status, error, retry_after) = match answer {
            Some(Ok(answer)) => (Some(answer.status), None, answer.retry_after),
            Some(Err(error)) => (None, Some(error.kind()), None),
            None => (None, Some(SendErrorKind::Local), None),
        };
        let outcome = match status {
            Some(200..300) => CallbackAnswer::Taken,
            Some(410) => CallbackAnswer::Gone,
            _ => CallbackAnswer::NotTaken,
        };
        let again = SCHEDULE.get(delivery.tries as usize).map(|wait| {
            let spread = Intervals::doubling(*wait, *wait).with_jitter(JITTER).wait(1, random);
            spread.max(retry_after.unwrap_or_default())
        });
        let next = match outcome {
            CallbackAnswer::Taken => NextTry::Delivered,
            CallbackAnswer::Gone => NextTry::Never,
            CallbackAnswer::NotTaken => again.map_or(NextTry::Never, NextTry::After),
        };
        let error = match outcome {
            CallbackAnswer::Taken => None,
            CallbackAnswer::Gone => Some("gone"),
            CallbackAnswer::NotTaken => Some(error.map_or("refused", SendErrorKind::as_str)),
        };
        // Where all is as it was there is nothing to be noted, nor where it says nothing of the receiver.
        let is_known = |works: bool| works && delivery.is_proven && delivery.failures == 0;
        let works = pace.map(|pace| pace != Pace::Failed);
        let changes = |own: &OwnUrl| outcome != CallbackAnswer::Taken || own.is_failing;
        let own = delivery.own.filter(|own| changes(own) && pace.is_some());
        Self {
            tried: TriedDelivery {
                id: delivery.id,
                next,
                tries: delivery.tries,
                is_sent: true,
                status,
                error,
            },
            receiver: works.filter(|works| !is_known(*works)).map(|works| (delivery.receiver, works)),
            own: own.map(|_| (delivery.owner.clone(), delivery.url.clone(), outcome)),
        }
    }

    /// What is counted.
    pub(super) fn word(&self) -> &'static str {
        match self.tried.next {
            NextTry::Delivered => "delivered",
            NextTry::After(_) => "failed",
            NextTry::Never => "given_up",
        }
    }
}
