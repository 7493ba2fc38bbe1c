//! The acknowledgements of one channel: which deliveries are settled, and which frames tell the broker.
//!
//! Deliveries are settled in any order, and one `basic.ack` with `multiple` acknowledges all up to a tag. So the longest
//! settled prefix goes out in one frame. One delivery that stays unsettled would withhold all later acknowledgements and
//! with them the prefetch; once half of the prefetch is withheld, those are written one by one.
//!
//! The broker closes the channel when a tag is settled twice or was never delivered, which this type prevents.

use std::collections::BTreeSet;

/// An acknowledgement to write. Their order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckFrame {
    /// Acknowledges everything up to the tag that is still outstanding.
    AckThrough(u64),
    AckOne(u64),
    Requeue(u64),
}

/// The unsettled deliveries of one channel. The prefetch bounds their number.
#[derive(Debug)]
pub(super) struct AckTracker {
    last_received: u64,
    unsettled: BTreeSet<u64>,
    /// Acknowledged by the caller, and not yet to the broker.
    withheld: BTreeSet<u64>,
    most_withheld: usize,
}

impl AckTracker {
    pub(super) fn new(prefetch: u16) -> Self {
        let most_withheld = usize::from(prefetch / 2).max(1);
        Self { last_received: 0, unsettled: BTreeSet::new(), withheld: BTreeSet::new(), most_withheld }
    }

    /// Notes a delivery. Tags of a channel count up from 1.
    pub(super) fn received(&mut self, tag: u64) {
        // A gap would be a delivery that this process never saw, and must not acknowledge.
        self.unsettled.extend(self.last_received + 1..=tag);
        self.last_received = self.last_received.max(tag);
    }

    /// Acknowledges deliveries. Tags that are settled already or were never received are ignored.
    pub(super) fn ack(&mut self, tags: impl IntoIterator<Item = u64>, frames: &mut Vec<AckFrame>) {
        for tag in tags {
            if self.unsettled.remove(&tag) {
                self.withheld.insert(tag);
            }
        }
        self.write_prefix(frames);
        if self.withheld.len() >= self.most_withheld {
            frames.extend(std::mem::take(&mut self.withheld).into_iter().map(AckFrame::AckOne));
        }
    }

    /// Gives deliveries back. Tags that are settled already or were never received are ignored.
    pub(super) fn give_back(&mut self, tags: impl IntoIterator<Item = u64>, frames: &mut Vec<AckFrame>) {
        for tag in tags {
            if self.unsettled.remove(&tag) {
                frames.push(AckFrame::Requeue(tag));
            }
        }
        self.write_prefix(frames);
    }

    /// Acknowledges all before the first unsettled delivery, by the last withheld tag, which the broker still knows.
    fn write_prefix(&mut self, frames: &mut Vec<AckFrame>) {
        let rest = match self.unsettled.first() {
            Some(first) => self.withheld.split_off(first),
            None => BTreeSet::new(),
        };
        let prefix = std::mem::replace(&mut self.withheld, rest);
        frames.extend(prefix.last().copied().map(AckFrame::AckThrough));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The broker's side: it knows what is outstanding and refuses what it does not know.
    #[derive(Default)]
    struct Broker {
        outstanding: BTreeSet<u64>,
        acked: Vec<u64>,
        requeued: Vec<u64>,
    }

    impl Broker {
        fn apply(&mut self, frames: &[AckFrame]) {
            for frame in frames {
                let tag = match *frame {
                    AckFrame::AckThrough(tag) | AckFrame::AckOne(tag) | AckFrame::Requeue(tag) => tag,
                };
                assert!(self.outstanding.contains(&tag), "406: unknown delivery tag {tag} in {frame:?}");
                match frame {
                    AckFrame::AckThrough(tag) => {
                        let rest = self.outstanding.split_off(&(tag + 1));
                        self.acked.extend(std::mem::replace(&mut self.outstanding, rest));
                    }
                    AckFrame::AckOne(tag) => {
                        self.outstanding.remove(tag);
                        self.acked.push(*tag);
                    }
                    AckFrame::Requeue(tag) => {
                        self.outstanding.remove(tag);
                        self.requeued.push(*tag);
                    }
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Receive(u8),
        Ack(Vec<u64>),
        GiveBack(Vec<u64>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let tags = || prop::collection::vec(0u64..60, 0..12);
        let step = prop_oneof![
            (1u8..8).prop_map(Step::Receive),
            tags().prop_map(Step::Ack),
            tags().prop_map(Step::GiveBack),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn the_broker_learns_exactly_what_was_settled(steps in steps(), prefetch in 1u16..40) {
            let (mut tracker, mut broker) = (AckTracker::new(prefetch), Broker::default());
            let (mut received, mut acked, mut returned) = (0, Vec::new(), Vec::new());
            let fresh = |received: u64, acked: &[u64], returned: &[u64], tags: &[u64]| {
                let mut fresh: Vec<u64> = tags.to_vec();
                fresh.sort_unstable();
                fresh.dedup();
                fresh.retain(|t| (1..=received).contains(t) && !acked.contains(t) && !returned.contains(t));
                fresh
            };
            for step in steps {
                let mut frames = Vec::new();
                match step {
                    Step::Receive(count) => for _ in 0..count {
                        received += 1;
                        broker.outstanding.insert(received);
                        tracker.received(received);
                    },
                    Step::Ack(tags) => {
                        acked.extend(fresh(received, &acked, &returned, &tags));
                        tracker.ack(tags, &mut frames);
                    }
                    Step::GiveBack(tags) => {
                        returned.extend(fresh(received, &acked, &returned, &tags));
                        tracker.give_back(tags, &mut frames);
                    }
                }
                broker.apply(&frames);
                prop_assert!(broker.acked.iter().all(|tag| acked.contains(tag)), "acked what is not settled");
                let withheld = acked.len() - broker.acked.len();
                prop_assert!(withheld < usize::from(prefetch / 2).max(1), "{withheld} acks withheld");
            }
            let mut frames = Vec::new();
            acked.extend(fresh(received, &acked, &returned, &(1..=received).collect::<Vec<_>>()));
            tracker.ack(1..=received, &mut frames);
            broker.apply(&frames);
            prop_assert!(broker.outstanding.is_empty());
            broker.acked.sort_unstable();
            acked.sort_unstable();
            prop_assert_eq!(broker.acked, acked);
            broker.requeued.sort_unstable();
            returned.sort_unstable();
            prop_assert_eq!(broker.requeued, returned);
            prop_assert!(tracker.unsettled.is_empty() && tracker.withheld.is_empty());
        }
    }

    #[test]
    fn a_settled_prefix_goes_out_in_one_frame() {
        let (mut tracker, mut frames) = (AckTracker::new(100), Vec::new());
        (1..=20).for_each(|tag| tracker.received(tag));
        tracker.ack(2..=10, &mut frames);
        assert_eq!(frames, []);
        tracker.ack([1], &mut frames);
        assert_eq!(frames, [AckFrame::AckThrough(10)]);
    }

    #[test]
    fn one_unsettled_delivery_withholds_at_most_half_of_the_prefetch() {
        let (mut tracker, mut frames) = (AckTracker::new(8), Vec::new());
        (1..=8).for_each(|tag| tracker.received(tag));
        tracker.ack([2, 3, 4], &mut frames);
        assert_eq!(frames, []);
        tracker.ack([6], &mut frames);
        assert_eq!(frames, [2, 3, 4, 6].map(AckFrame::AckOne));
    }
}
