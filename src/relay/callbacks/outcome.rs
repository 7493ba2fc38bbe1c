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
        Some(Err(error)) if matches!(error.kind(), SendErrorKind::Local | SendErrorKind::Unsendable) => None,
        Some(Ok(Answer { status: 408 | 429 | 500.., .. }) | Err(_)) => Some(Pace::Failed),
        Some(Ok(_)) if took > SOON => Some(Pace::Late),
        Some(Ok(_)) => Some(Pace::Soon),
    }
}

/// Whether it could not be sent from this host, whatever its receiver does.
pub(super) fn is_local(answer: Option<&Result<Answer, SendError>>) -> bool {
    matches!(answer, Some(Err(error)) if error.kind() == SendErrorKind::Local)
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
        // What was not sent was not tried.
        let is_sent = !is_local(answer);
        let place = if is_sent { delivery.tries as usize } else { 0 };
        let again = SCHEDULE.get(place).map(|wait| {
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
            tried: TriedDelivery { id: delivery.id, next, tries: delivery.tries, is_sent, status, error },
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{job::OwnerKind, store::OwnUrl};

    fn due(tries: u32, is_proven: bool, failures: u32, own: Option<OwnUrl>) -> DueDelivery {
        DueDelivery {
            id: Uuid::from_u128(1),
            receiver: Uuid::from_u128(2),
            owner: Owner::new(OwnerKind::User, "user-1").unwrap(),
            url: "https://app.example/".to_owned(),
            event_id: Uuid::from_u128(3),
            event: "{}".to_owned(),
            job: None,
            tries,
            secrets: Vec::new(),
            is_proven,
            failures,
            own,
        }
    }

    fn answered(delivery: &DueDelivery, status: u16, after: Option<u64>, took: Duration) -> Answered {
        let answer = Ok(Answer { status, retry_after: after.map(Duration::from_secs) });
        let pace = pace(Some(&answer), took);
        Answered::new(delivery, Some(&answer), pace, 0.5)
    }

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn what_works_as_before_is_noted_of_the_delivery_alone() {
        let own = OwnUrl { is_failing: false, is_disabled: false };
        let taken = answered(&due(0, true, 0, Some(own)), 204, None, AT_ONCE);
        assert_eq!((taken.tried.next, taken.receiver, taken.own), (NextTry::Delivered, None, None));
        let first = answered(&due(0, false, 0, None), 204, None, AT_ONCE);
        assert_eq!(first.receiver, Some((Uuid::from_u128(2), true)), "it has taken something now");
        let again = answered(&due(0, true, 3, None), 204, None, AT_ONCE);
        assert_eq!(again.receiver, Some((Uuid::from_u128(2), true)), "it works again");
        let own = OwnUrl { is_failing: true, ..own };
        let taken = answered(&due(0, true, 0, Some(own)), 204, None, AT_ONCE);
        assert_eq!(taken.own.map(|(.., answer)| answer), Some(CallbackAnswer::Taken));
    }

    #[test]
    fn what_is_refused_is_no_fault_of_its_receiver_unless_that_says_so() {
        let own = OwnUrl { is_failing: false, is_disabled: false };
        for (status, works) in
            [(302, true), (404, true), (410, true), (408, false), (429, false), (503, false)]
        {
            let refused = answered(&due(0, true, 0, Some(own)), status, None, AT_ONCE);
            assert_eq!(refused.receiver, (!works).then_some((Uuid::from_u128(2), false)), "{status}");
            let (next, answer) = match status {
                410 => (NextTry::Never, CallbackAnswer::Gone),
                _ => (NextTry::After(SCHEDULE[0]), CallbackAnswer::NotTaken),
            };
            assert_eq!(refused.tried.next, next, "{status}");
            assert_eq!(refused.own.map(|(.., answer)| answer), Some(answer), "{status}");
        }
        assert_eq!(pace(Some(&Ok(Answer { status: 200, retry_after: None })), 2 * SOON), Some(Pace::Late));
        // A fault of errand's own, and what no request can be made of, say nothing of it.
        let unsendable = Err(SendError::new(SendErrorKind::Unsendable, "no request"));
        for answer in [None, Some(&unsendable)] {
            let ours = Answered::new(&due(9, true, 0, Some(own)), answer, pace(answer, AT_ONCE), 0.5);
            assert_eq!((ours.receiver, ours.own), (None, None));
            assert_eq!((ours.tried.next, ours.tried.is_sent), (NextTry::After(SCHEDULE[9]), true));
        }
    }

    #[test]
    fn what_this_host_could_not_send_counts_as_no_try_however_often() {
        let own = OwnUrl { is_failing: false, is_disabled: false };
        let local = Err(SendError::new(SendErrorKind::Local, "too many open files"));
        for tries in [0, 9, 20] {
            let answer = Some(&local);
            let ours = Answered::new(&due(tries, true, 0, Some(own)), answer, pace(answer, AT_ONCE), 0.5);
            assert_eq!((ours.tried.error, ours.word()), (Some("local"), "failed"));
            assert_eq!((ours.tried.next, ours.tried.is_sent), (NextTry::After(SCHEDULE[0]), false));
            assert_eq!((ours.receiver, ours.own), (None, None));
        }
    }

    #[test]
    fn the_page_has_each_reason_why_nothing_was_taken() {
        let page = include_str!("../../../docs/callbacks.md");
        let others = ["refused", "gone", "disabled", "erased", "bad_url", "expired"];
        for word in SendErrorKind::WORDS.iter().chain(&others) {
            assert!(page.contains(&format!("`{word}`")), "{word}");
        }
    }

    proptest! {
        #[test]
        fn it_is_sent_again_by_the_schedule_or_later_where_that_is_asked_for(
            tries in 0_u32..20, after in prop::option::of(0_u64..100_000), random in 0.0..1.0_f64
        ) {
            let answer = Ok(Answer { status: 500, retry_after: after.map(Duration::from_secs) });
            let refused = Answered::new(&due(tries, true, 0, None), Some(&answer), Some(Pace::Failed), random);
            match (SCHEDULE.get(tries as usize), refused.tried.next) {
                (None, NextTry::Never) => {}
                (Some(wait), NextTry::After(again)) => {
                    let after = Duration::from_secs(after.unwrap_or_default());
                    prop_assert!(again >= after.max(wait.mul_f64(0.9)));
                    prop_assert!(again <= after.max(wait.mul_f64(1.1)));
                }
                (wait, next) => prop_assert!(false, "{wait:?}, {next:?}"),
            }
        }
    }
}
