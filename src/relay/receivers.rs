//! How many callbacks are sent to whom at the same time.
//!
//! A receiver that takes what it gets is given more at once. Whether others do is tried: with few at once of one that is not known, and
//! with one at a time of one that did not take the last, so that it costs one connection however much waits for it. Trials have a
//! part of all, and so has each owner, so that neither keeps others waiting.

use std::collections::HashMap;

use uuid::Uuid;

use crate::job::Owner;

/// The most that are sent at once, by one worker for all.
const MOST: usize = 512;

/// The most of one owner.
const MOST_OF_OWNER: usize = 128;

/// The most to receivers that are not known to take what they get, and of one owner.
const MOST_TRIALS: usize = 128;
const MOST_TRIALS_OF_OWNER: usize = 32;

/// How many a receiver gets at once of which nothing is known, and the most.
const FIRST_WIDTH: usize = 8;
pub(super) const MAX_WIDTH: usize = 64;

/// The most receivers of which something is kept. Beyond that, those that get nothing just now are forgotten.
const MAX_KNOWN: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Receivers {
    known: HashMap<Uuid, Receiver>,
    of_owners: HashMap<Owner, Sending>,
    of_all: Sending,
}

#[derive(Debug)]
struct Receiver {
    width: usize,
    sending: usize,
    /// Whether it took the last one.
    is_proven: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { width: FIRST_WIDTH, sending: 0, is_proven: false }
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

    /// Those to whom nothing more may be sent just now, of those that are known.
    pub(super) fn full(&self) -> Vec<Uuid> {
        let no_trials = self.of_all.trials >= MOST_TRIALS;
        let is_full =
            |receiver: &Receiver| receiver.sending >= receiver.width || !receiver.is_proven && no_trials;
        self.known.iter().filter(|(_, receiver)| is_full(receiver)).map(|(id, _)| *id).collect()
    }

    /// Notes that something is sent to a receiver of an owner, if it may be.
    pub(super) fn admit(&mut self, id: Uuid, owner: &Owner) -> bool {
        let of_owner = self.of_owners.get(owner).copied().unwrap_or_default();
        let (width, sending, is_proven) = self
            .known
            .get(&id)
            .map_or((FIRST_WIDTH, 0, false), |known| (known.width, known.sending, known.is_proven));
        let no_trials = of_owner.trials >= MOST_TRIALS_OF_OWNER || self.of_all.trials >= MOST_TRIALS;
        let is_full = sending >= width || of_owner.all >= MOST_OF_OWNER || self.of_all.all >= MOST;
        if is_full || !is_proven && no_trials {
            return false;
        }
        self.known.entry(id).or_default().sending += 1;
        self.count(owner, |sending| {
            sending.all += 1;
            sending.trials += usize::from(!is_proven);
        });
        true
    }

    /// Notes that what was sent has been taken, or has not; `None`: it was not sent.
    pub(super) fn ended(&mut self, id: Uuid, owner: &Owner, is_taken: Option<bool>) {
        let Some(receiver) = self.known.get_mut(&id) else { return };
        let (was_proven, was_sending) = (receiver.is_proven, receiver.sending);
        receiver.sending -= 1;
        if let Some(is_taken) = is_taken {
            receiver.is_proven = is_taken;
            receiver.width = if is_taken { (2 * receiver.width).min(MAX_WIDTH) } else { 1 };
        }
        // What is still on its way counts as what its receiver is by now.
        let trials = |is_proven, sending| if is_proven { 0 } else { sending };
        let (before, now) = (trials(was_proven, was_sending), trials(receiver.is_proven, receiver.sending));
        self.count(owner, |sending| {
            sending.all -= 1;
            sending.trials = sending.trials + now - before;
        });
        if self.known.len() > MAX_KNOWN {
            self.known.retain(|_, receiver| receiver.sending > 0);
        }
    }

    /// Changes what is counted of an owner and of all.
    fn count(&mut self, owner: &Owner, change: impl Fn(&mut Sending)) {
        change(&mut self.of_all);
        let of_owner = self.of_owners.entry(owner.clone()).or_default();
        change(of_owner);
        if *of_owner == Sending::default() {
            self.of_owners.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::OwnerKind;

    fn owner(n: u8) -> Owner {
        Owner::new(OwnerKind::User, format!("user-{n}")).unwrap()
    }

    fn id(n: u8) -> Uuid {
        Uuid::from_u128(n.into())
    }

    /// Admits all that may be, and returns how many.
    fn fill(receivers: &mut Receivers, receiver: u8, of: u8) -> usize {
        std::iter::repeat_with(|| receivers.admit(id(receiver), &owner(of))).take_while(|is| *is).count()
    }

    #[test]
    fn a_receiver_that_takes_all_gets_more_and_one_that_fails_gets_one_at_a_time() {
        let mut receivers = Receivers::default();
        assert_eq!(fill(&mut receivers, 1, 1), FIRST_WIDTH);
        for _ in 0..FIRST_WIDTH {
            receivers.ended(id(1), &owner(1), Some(true));
        }
        assert_eq!(fill(&mut receivers, 1, 1), MAX_WIDTH);
        assert_eq!(receivers.full(), [id(1)]);
        for _ in 0..MAX_WIDTH {
            receivers.ended(id(1), &owner(1), Some(false));
        }
        assert_eq!(fill(&mut receivers, 1, 1), 1);
        assert_eq!(fill(&mut receivers, 2, 1), FIRST_WIDTH, "another one of the same owner");
        receivers.ended(id(1), &owner(1), None);
        assert_eq!(fill(&mut receivers, 1, 1), 1, "what was not sent changes nothing");
    }

    #[test]
    fn neither_an_owner_nor_trials_take_all() {
        let mut receivers = Receivers::default();
        for n in 0..10 {
            assert!(receivers.admit(id(n), &owner(1)));
            receivers.ended(id(n), &owner(1), Some(true));
        }
        let of_one: usize = (0..10).map(|n| fill(&mut receivers, n, 1)).sum();
        assert_eq!(of_one, MOST_OF_OWNER);
        let trials_of_one: usize = (100..200).map(|n| fill(&mut receivers, n, 2)).sum();
        assert_eq!(trials_of_one, MOST_TRIALS_OF_OWNER);
        assert!(receivers.admit(id(200), &owner(200)));
        receivers.ended(id(200), &owner(200), Some(true));
        let trials: usize = (201..=255).map(|n| fill(&mut receivers, n, n)).sum();
        assert_eq!(trials_of_one + trials, MOST_TRIALS);
        assert_eq!(fill(&mut receivers, 200, 200), 2 * FIRST_WIDTH, "one that is known to take what it gets");
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_on_its_way(
            steps in prop::collection::vec((0u8..6, any::<bool>(), prop::option::of(any::<bool>())), 0..400)
        ) {
            // A receiver is of one owner.
            let of = |receiver: u8| receiver / 2;
            let (mut receivers, mut sending) = (Receivers::default(), Vec::new());
            for (receiver, begins, is_taken) in steps {
                if begins {
                    if receivers.admit(id(receiver), &owner(of(receiver))) {
                        sending.push(receiver);
                    }
                } else if let Some(receiver) = sending.pop() {
                    receivers.ended(id(receiver), &owner(of(receiver)), is_taken);
                }
                prop_assert_eq!(receivers.of_all.all, sending.len());
                prop_assert_eq!(receivers.of_owners.values().map(|of| of.all).sum::<usize>(), sending.len());
                let trials = receivers.known.values().filter(|known| !known.is_proven).map(|known| known.sending);
                prop_assert_eq!(receivers.of_all.trials, trials.sum::<usize>());
            }
        }
    }
}
