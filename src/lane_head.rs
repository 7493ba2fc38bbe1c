//! How long the message at the head of each lane has waited, as far as this process can tell. The broker does not say it,
//! and looking at a message would count as a delivery.
//!
//! Lanes are taken to be first in, first out; where RabbitMQ 4 delivers jobs of high priority first, the age is that of
//! whatever comes next, and those behind may be older. So the message at the head was published after the one that was taken last, and it was
//! in the lane already when somebody looked and saw more messages than were taken since. What other processes take is
//! estimated: as much as this one for each consumer, and at least by how much the depth fell.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{job::QueueName, queue::Depth, sync::lock};

/// The most looks at one lane that are remembered. With more, every other one is forgotten, so that a lane without
/// progress is watched for as long as it takes.
const MAX_LOOKS: usize = 240;

/// The heads of all lanes that this process takes from or looks at.
#[derive(Debug, Default)]
pub struct LaneHeads(Mutex<BTreeMap<QueueName, LaneHead>>);

impl LaneHeads {
    /// Notes that so many messages have arrived in this process, where they go on waiting until the guard is dropped.
    pub(crate) fn arrive(self: &Arc<Self>, lane: &QueueName, messages: usize) -> Arrived {
        let messages = messages as u64;
        lock(&self.0).entry(lane.clone()).or_default().held += messages;
        Arrived { heads: self.clone(), lane: lane.clone(), messages }
    }

    /// Notes that so many messages were taken, and when the last of them that says so was published.
    pub(crate) fn take(
        &self,
        lane: &QueueName,
        messages: u64,
        published_at: Option<Timestamp>,
        now: Timestamp,
    ) {
        lock(&self.0).entry(lane.clone()).or_default().take(messages, published_at, now);
    }

    /// Since when the next message of the lane waits, if one was seen to wait there.
    pub(crate) fn since(&self, lane: &QueueName) -> Option<Timestamp> {
        lock(&self.0).get(lane)?.since()
    }

    /// Notes the depth of a lane, or that the broker does not tell it, and returns for how long its head has waited.
    pub(crate) fn look(&self, lane: &QueueName, depth: Option<Depth>, now: Timestamp) -> Duration {
        let mut heads = lock(&self.0);
        let head = heads.entry(lane.clone()).or_default();
        if let Some(depth) = depth {
            head.look(depth, now);
        }
        head.since().map_or(Duration::ZERO, |since| now.duration_since(since).try_into().unwrap_or_default())
    }
}

/// Messages of a lane that this process has received and not taken.
#[derive(Debug)]
pub(crate) struct Arrived {
    heads: Arc<LaneHeads>,
    lane: QueueName,
    messages: u64,
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Some(head) = lock(&self.heads.0).get_mut(&self.lane) {
            head.held = head.held.saturating_sub(self.messages);
        }
    }
}

/// What is known about one lane.
#[derive(Debug, Default)]
struct LaneHead {
    /// Messages that this process has received and not taken.
    held: u64,
    /// Messages that this process took since the last look.
    taken: u64,
    /// The most consumers, of all processes, that were seen since the lane was empty, when all that have nothing to do
    /// were there. A worker whose slots are all busy with long calls is no consumer until one is free.
    consumers: u64,
    /// At the last look: the messages that waited, and about how many had been taken since the lane was empty.
    waiting: u64,
    gone: u64,
    /// Those of which messages may still wait, oldest first.
    looks: VecDeque<Look>,
    /// When the last message was published that was taken, and how long it had waited; `None` where none of those that
    /// were taken together says so.
    last: Option<(Timestamp, SignedDuration)>,
}

#[derive(Debug)]
struct Look {
    at: Timestamp,
    /// All messages that have left the lane or wait in it: what waits is taken when as many are gone.
    through: u64,
}

impl LaneHead {
    fn take(&mut self, messages: u64, published_at: Option<Timestamp>, now: Timestamp) {
        if messages == 0 {
            return;
        }
        self.taken += messages;
        // What was taken before says nothing about the one that is at the head now.
        self.last = published_at.map(|at| (at, now.duration_since(at).max(SignedDuration::ZERO)));
    }

    fn look(&mut self, depth: Depth, now: Timestamp) {
        let waiting = depth.ready + self.held;
        if waiting == 0 {
            *self = Self { consumers: depth.consumers, ..Self::default() };
            return;
        }
        if self.taken == 0 && self.held == 0 && depth.consumers > 0 {
            // Others take from it, or messages are on their way to this process: who waits longest is not known here.
            self.looks.clear();
            self.last = None;
        }
        let left = self.waiting.saturating_sub(waiting);
        self.gone = self.gone_by_now().max(self.gone + left);
        (self.taken, self.waiting) = (0, waiting);
        self.consumers = self.consumers.max(depth.consumers);
        while self.looks.front().is_some_and(|look| look.through <= self.gone) {
            self.looks.pop_front();
        }
        if self.looks.len() == MAX_LOOKS {
            let mut place = 0;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
        self.looks.push_back(Look { at: now, through: self.gone + waiting });
    }

    fn gone_by_now(&self) -> u64 {
        self.gone + self.taken * self.consumers.max(1)
    }

    /// The oldest look at which the message at the head waited already, and about how long it had waited then: as long
    /// as the last that was taken, but not since before that was published.
    fn since(&self) -> Option<Timestamp> {
        let gone = self.gone_by_now();
        let seen = self.looks.iter().find(|look| look.through > gone)?.at;
        let since = self.last.and_then(|(published_at, waited)| {
            Some(seen.checked_sub(waited).ok()?.max(published_at).min(seen))
        });
        Some(since.unwrap_or(seen))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn depth(ready: u64, consumers: u64) -> Depth {
        Depth { ready, consumers }
    }

    /// For how many seconds the head has waited.
    fn age(head: &LaneHead, now: i64) -> Option<i64> {
        head.since().map(|since| at(now).duration_since(since).as_secs())
    }

    #[test]
    fn a_lane_that_nobody_consumes_is_as_old_as_it_was_seen_to_wait() {
        let mut head = LaneHead::default();
        head.look(depth(0, 0), at(0));
        assert_eq!(age(&head, 0), None);
        for second in 5..5_000 {
            head.look(depth(2, 0), at(second));
            assert_eq!(age(&head, second), Some(second - 5));
        }
        assert!(head.looks.len() <= MAX_LOOKS);
        head.look(depth(0, 0), at(5_000));
        assert_eq!(age(&head, 5_000), None, "it is empty");
    }

    #[test]
    fn what_others_take_is_not_taken_for_standstill() {
        let mut head = LaneHead::default();
        for second in 0..100 {
            head.look(depth(50, 3), at(second));
            assert_eq!(age(&head, second), Some(0));
        }
        // Their consumers are gone, and a purge is progress, too.
        head.look(depth(50, 0), at(100));
        head.look(depth(50, 0), at(110));
        assert_eq!(age(&head, 110), Some(11));
        head.look(depth(10, 0), at(120));
        assert_eq!(age(&head, 120), Some(21), "ten of those fifty may be left");
        head.look(depth(60, 0), at(130));
        head.look(depth(5, 0), at(140));
        assert_eq!(age(&head, 140), Some(10), "five are left of the sixty");
    }

    #[test]
    fn the_wait_of_those_that_are_taken_is_that_of_the_head() {
        let mut head = LaneHead::default();
        head.look(depth(10, 1), at(60));
        head.take(5, Some(at(0)), at(60));
        assert_eq!(age(&head, 61), Some(61), "published behind it, and in the lane at that look");
        // Little comes, and is taken at once: the depth at a look says nothing else.
        head.take(10, Some(at(99)), at(99));
        head.look(depth(1, 1), at(100));
        assert_eq!(age(&head, 100), Some(0));
        // Nothing is taken any more, by anybody.
        head.look(depth(1, 0), at(200));
        head.look(depth(9, 0), at(300));
        assert_eq!(age(&head, 300), Some(200));
    }

    #[test]
    fn one_old_message_among_those_that_say_no_time_does_not_make_the_lane_old() {
        let mut head = LaneHead::default();
        for second in 1..100 {
            head.look(depth(20, 1), at(second));
            head.take(10, (second == 5).then(|| at(-80_000)), at(second));
            assert!(second < 6 || age(&head, second).is_some_and(|age| age <= 2), "{second}");
            // Nothing was taken, and nothing is said.
            head.take(0, None, at(second));
            assert_eq!(head.last.is_some(), second == 5);
        }
    }

    #[test]
    fn workers_that_are_too_busy_to_consume_take_their_part() {
        let mut head = LaneHead::default();
        head.look(depth(0, 3), at(0));
        for second in 1..=10 {
            head.look(depth(30, 0), at(second));
            head.take(1, None, at(second));
        }
        // Three of thirty are gone with each second, so that those of the first look are taken now.
        head.look(depth(30, 0), at(11));
        assert_eq!(age(&head, 11), Some(9));
    }

    #[test]
    fn messages_that_a_process_has_received_and_cannot_take_wait_as_well() {
        let heads = Arc::new(LaneHeads::default());
        let lane = "default".parse().unwrap();
        let arrived = heads.arrive(&lane, 3);
        for (second, expected) in [(0, 0), (10, 10), (20, 20)] {
            let age = heads.look(&lane, Some(depth(0, 2)), at(second));
            assert_eq!(age, Duration::from_secs(expected));
        }
        assert_eq!(heads.look(&lane, None, at(30)), Duration::from_secs(30), "the broker does not answer");
        drop(arrived);
        assert_eq!(heads.look(&lane, Some(depth(0, 2)), at(40)), Duration::ZERO);
    }

    proptest! {
        /// A lane with one consumer: each second, so many messages are published and so many are taken.
        #[test]
        fn the_estimate_is_near_the_truth(
            seconds in proptest::collection::vec((0_u64..40, 0_u64..40), 1..200),
            say_when in any::<bool>(),
        ) {
            let mut head = LaneHead::default();
            let mut lane = VecDeque::new();
            for (second, (published, taken)) in seconds.into_iter().enumerate() {
                let now = i64::try_from(second).unwrap();
                lane.extend((0..published).map(|_| now));
                let taken = taken.min(lane.len() as u64);
                let last = lane.drain(..usize::try_from(taken).unwrap()).next_back();
                if taken > 0 {
                    head.take(taken, last.filter(|_| say_when).map(at), at(now));
                }
                // Nothing else consumes, so a second without a take is one of standstill.
                head.look(depth(lane.len() as u64, u64::from(taken > 0)), at(now));
                let truth = lane.front().map(|published| now - published);
                prop_assert_eq!(age(&head, now).is_some(), truth.is_some());
                let (Some(age), Some(truth)) = (age(&head, now), truth) else { continue };
                prop_assert!(age >= truth, "{} of {} s", age, truth);
                let longest = if say_when { now - last.unwrap_or(0) } else { truth };
                prop_assert!(age <= longest.max(truth), "{} of {} s", age, truth);
                if !say_when {
                    prop_assert_eq!(age, truth, "each second was looked at");
                }
            }
        }
    }
}
