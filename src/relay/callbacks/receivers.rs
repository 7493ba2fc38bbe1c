//! How many callbacks are sent to whom at the same time.
//!
//! A receiver that takes what it gets, and soon, is given more at once. All else is a trial: there are few at once, of all, of an owner
//! and of a host, so that whoever answers late or never costs a part of what there is, however much waits for them. When one that
//! failed is tried again is the store's to say.

use std::{collections::HashMap, hash::Hash};

use uuid::Uuid;

use crate::job::Owner;

/// The most that are sent at once, by one worker for all.
const MOST: usize = 512;

/// The most of one owner.
const MOST_OF_OWNER: usize = 128;

/// The most trials, those of one owner, and those at one host and port, of whichever owners.
const MOST_TRIALS: usize = 128;
const MOST_TRIALS_OF_OWNER: usize = 16;
const MOST_TRIALS_OF_ORIGIN: usize = 16;

/// How many a receiver gets at once that is tried and has not failed, and the most.
const FIRST_WIDTH: usize = 8;
const MAX_WIDTH: usize = 64;

/// The most receivers of which something is kept. Beyond that, those that get nothing just now are forgotten.
const MAX_KNOWN: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Receivers {
    known: HashMap<Uuid, Receiver>,
    of_owners: HashMap<Owner, Sending>,
    of_origins: HashMap<String, Sending>,
    of_all: Sending,
}

/// Whoever something is sent to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) id: Uuid,
    pub(super) owner: &'a Owner,
    /// The host and port of the URL.
    pub(super) origin: &'a str,
}

/// How a receiver has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Soon,
    Late,
    /// It is down, or says that it cannot take more.
    Failed,
}

#[derive(Debug)]
struct Receiver {
    width: usize,
    sending: usize,
    is_trial: bool,
}

impl Receiver {
    fn of(pace: Pace) -> Self {
        let (width, is_trial) = match pace {
            Pace::Soon => (FIRST_WIDTH, false),
            Pace::Late => (FIRST_WIDTH, true),
            Pace::Failed => (1, true),
        };
        Self { width, sending: 0, is_trial }
    }
}

/// How many are on their way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sending {
    all: usize,
    trials: usize,
}

impl Receivers {
    /// How many more may be sent.
    pub(super) fn room(&self) -> usize {
        MOST - self.of_all.all
    }

    /// Those to whom nothing more may be sent just now.
    pub(super) fn full(&self) -> Vec<Uuid> {
        let is_full = |receiver: &Receiver| receiver.sending >= receiver.width;
        self.known.iter().filter(|(_, receiver)| is_full(receiver)).map(|(id, _)| *id).collect()
    }

    /// Notes that something is sent to a receiver, if it may be. `last` is how it has answered, where that is not known here;
    /// one that is new is late.
    pub(super) fn admit(&mut self, to: Target<'_>, last: Pace) -> bool {
        let new = Receiver::of(last);
        let receiver = self.known.get(&to.id).unwrap_or(&new);
        let is_trial = receiver.is_trial;
        let of_owner = of(&self.of_owners, to.owner);
        let no_trials = self.of_all.trials >= MOST_TRIALS
            || of_owner.trials >= MOST_TRIALS_OF_OWNER
            || of(&self.of_origins, to.origin).trials >= MOST_TRIALS_OF_ORIGIN;
        let is_full =
            receiver.sending >= receiver.width || of_owner.all >= MOST_OF_OWNER || self.of_all.all >= MOST;
        if is_full || is_trial && no_trials {
            return false;
        }
        self.known.entry(to.id).or_insert(new).sending += 1;
        self.count(to, |sending| {
            sending.all += 1;
            sending.trials += usize::from(is_trial);
        });
        true
    }

    /// Notes how what was sent was answered; `None`: it was not sent.
    pub(super) fn ended(&mut self, to: Target<'_>, pace: Option<Pace>) {
        let Some(receiver) = self.known.get_mut(&to.id) else { return };
        // What is still on its way counts as what its receiver is by now.
        let trials = |receiver: &Receiver| if receiver.is_trial { receiver.sending } else { 0 };
        let before = trials(receiver);
        receiver.sending -= 1;
        if let Some(pace) = pace {
            let now = Receiver::of(pace);
            receiver.is_trial = now.is_trial;
            receiver.width = if pace == Pace::Soon { (2 * receiver.width).min(MAX_WIDTH) } else { now.width };
        }
        let now = trials(receiver);
        self.count(to, |sending| {
            sending.all -= 1;
            sending.trials = sending.trials + now - before;
        });
        if self.known.len() > MAX_KNOWN {
            self.known.retain(|_, receiver| receiver.sending > 0);
        }
    }

    /// Changes what is counted of an owner, of a host, and of all.
    fn count(&mut self, to: Target<'_>, change: impl Fn(&mut Sending)) {
        change(&mut self.of_all);
        count_in(&mut self.of_owners, to.owner, &change);
        count_in(&mut self.of_origins, to.origin, &change);
    }
}

fn of<K: Eq + Hash + std::borrow::Borrow<Q>, Q: Eq + Hash + ?Sized>(
    counts: &HashMap<K, Sending>,
    key: &Q,
) -> Sending {
    counts.get(key).copied().unwrap_or_default()
}

fn count_in<K: Eq + Hash + std::borrow::Borrow<Q>, Q: Eq + Hash + ToOwned<Owned = K> + ?Sized>(
    counts: &mut HashMap<K, Sending>,
    key: &Q,
    change: impl Fn(&mut Sending),
) {
    let sending = counts.entry(key.to_owned()).or_default();
    change(sending);
    if *sending == Sending::default() {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::OwnerKind;

    fn owners() -> Vec<Owner> {
        (0..=255).map(|n| Owner::new(OwnerKind::User, format!("user-{n}")).unwrap()).collect()
    }

    fn to<'a>(owners: &'a [Owner], id: u8, owner: usize, origin: &'a str) -> Target<'a> {
        Target { id: Uuid::from_u128(id.into()), owner: &owners[owner], origin }
    }

    /// Admits all that may be, and returns how many.
    fn fill(receivers: &mut Receivers, target: Target<'_>, last: Pace) -> usize {
        std::iter::repeat_with(|| receivers.admit(target, last)).take_while(|is| *is).count()
    }

    #[test]
    fn a_receiver_that_answers_soon_gets_more_and_one_that_fails_gets_one_at_a_time() {
        let (mut receivers, owners) = (Receivers::default(), owners());
        let (one, other) = (to(&owners, 1, 1, "a"), to(&owners, 2, 1, "b"));
        assert_eq!(fill(&mut receivers, one, Pace::Soon), FIRST_WIDTH);
        for _ in 0..FIRST_WIDTH {
            receivers.ended(one, Some(Pace::Soon));
        }
        assert_eq!(fill(&mut receivers, one, Pace::Soon), MAX_WIDTH);
        assert_eq!(receivers.full(), [one.id]);
        for _ in 0..MAX_WIDTH {
            receivers.ended(one, Some(Pace::Failed));
        }
        assert_eq!(fill(&mut receivers, one, Pace::Soon), 1);
        assert_eq!(fill(&mut receivers, other, Pace::Late), FIRST_WIDTH, "another one of the same owner");
        receivers.ended(one, None);
        assert_eq!(fill(&mut receivers, one, Pace::Soon), 1, "what was not sent changes nothing");
        assert_eq!(
            fill(&mut receivers, to(&owners, 3, 1, "c"), Pace::Failed),
            1,
            "it failed before this began"
        );
    }

    #[test]
    fn neither_an_owner_nor_a_host_nor_trials_take_all() {
        let (mut receivers, owners) = (Receivers::default(), owners());
        let origins = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s",
            "t",
        ];
        let soon = |id: u8| (id, Pace::Soon);
        let of_one: usize =
            (0..20).map(soon).map(|(id, last)| fill(&mut receivers, to(&owners, id, 1, "a"), last)).sum();
        assert_eq!(of_one, MOST_OF_OWNER);
        let trials_of_one: usize = (0..20)
            .map(|n| fill(&mut receivers, to(&owners, 100 + n, 2, origins[usize::from(n)]), Pace::Late))
            .sum();
        assert_eq!(trials_of_one, MOST_TRIALS_OF_OWNER);
        let of_a_host: usize = (3..20)
            .map(|n| fill(&mut receivers, to(&owners, 120 + n, usize::from(n), "z"), Pace::Failed))
            .sum();
        assert_eq!(of_a_host, MOST_TRIALS_OF_ORIGIN);
        let mut trials = trials_of_one + of_a_host;
        for (n, origin) in origins.iter().enumerate() {
            trials += fill(&mut receivers, to(&owners, 150 + n as u8, 30 + n, origin), Pace::Late);
        }
        assert_eq!(trials, MOST_TRIALS);
        assert_eq!(fill(&mut receivers, to(&owners, 200, 200, "z"), Pace::Soon), FIRST_WIDTH, "no trial");
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_on_its_way(
            steps in prop::collection::vec(
                (0u8..6, any::<bool>(), prop::option::of(prop::sample::select(vec![Pace::Soon, Pace::Late, Pace::Failed]))),
                0..400,
            )
        ) {
            let (mut receivers, mut sending, owners) = (Receivers::default(), Vec::new(), owners());
            // A receiver is of one owner, and at one host.
            let target = |receiver: u8| to(&owners, receiver, usize::from(receiver / 2), ["a", "b", "c"][usize::from(receiver % 3)]);
            for (receiver, begins, pace) in steps {
                if begins {
                    if receivers.admit(target(receiver), Pace::Late) {
                        sending.push(receiver);
                    }
                } else if let Some(receiver) = sending.pop() {
                    receivers.ended(target(receiver), pace);
                }
                prop_assert_eq!(receivers.of_all.all, sending.len());
                let trials: usize = receivers.known.values().filter(|known| known.is_trial).map(|known| known.sending).sum();
                prop_assert_eq!(receivers.of_all.trials, trials);
                for counts in [
                    receivers.of_owners.values().copied().collect::<Vec<_>>(),
                    receivers.of_origins.values().copied().collect(),
                ] {
                    prop_assert_eq!(counts.iter().map(|sending| sending.all).sum::<usize>(), sending.len());
                    prop_assert_eq!(counts.iter().map(|sending| sending.trials).sum::<usize>(), trials);
                }
            }
        }
    }
}
