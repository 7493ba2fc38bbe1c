//! The addresses that are published to apart from others, because they did not confirm in time.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::{
    queue::{Address, Message},
    sync::lock,
};

/// The most addresses that are published to apart from others; one more takes the place of the eldest.
const MAX_APART: usize = 1_000;

/// After this, an address that confirmed nothing is tried again with one message.
const PROBE_AGAIN: Duration = Duration::from_secs(10);

/// The addresses that did not confirm a message in time, and none since, with when each is to be tried again.
#[derive(Debug, Default)]
pub(super) struct Apart(Mutex<HashMap<Address, Instant>>);

/// How the messages of a batch are published, by their places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) together: Vec<usize>,
    /// The messages to each address that did not confirm: the first has to be confirmed before the others are published.
    pub(super) apart: Vec<Vec<usize>>,
    /// Messages to addresses that did not even confirm one message a moment ago.
    pub(super) not_yet: Vec<usize>,
}

impl Apart {
    pub(super) fn plan(&self, messages: &[Message]) -> Plan {
        let apart = lock(&self.0);
        if apart.is_empty() {
            return Plan { together: (0..messages.len()).collect(), ..Plan::default() };
        }
        let (mut plan, mut groups) = (Plan::default(), HashMap::<_, Vec<usize>>::new());
        let now = Instant::now();
        for (place, message) in messages.iter().enumerate() {
            match apart.get(&message.to) {
                None => plan.together.push(place),
                Some(again) if *again > now => plan.not_yet.push(place),
                Some(_) => groups.entry(&message.to).or_default().push(place),
            }
        }
        plan.apart.extend(groups.into_values());
        plan
    }

    pub(super) fn confirmed<'a>(&self, addresses: impl Iterator<Item = &'a Address>) {
        let mut apart = lock(&self.0);
        if !apart.is_empty() {
            for address in addresses {
                apart.remove(address);
            }
        }
    }

    /// Notes addresses that did not confirm in time while the broker answered. One that is to blame for that is tried
    /// again later; which of several it is, trying each by itself shows.
    pub(super) fn unanswered<'a>(&self, addresses: impl Iterator<Item = &'a Address>, to_blame: bool) {
        let wait = if to_blame { PROBE_AGAIN } else { Duration::ZERO };
        let again = Instant::now() + wait;
        let mut apart = lock(&self.0);
        for address in addresses {
            if apart.len() >= MAX_APART
                && !apart.contains_key(address)
                && let Some(eldest) = apart.iter().min_by_key(|(_, again)| **again).map(|(a, _)| a.clone())
            {
                apart.remove(&eldest);
            }
            apart.insert(address.clone(), again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Properties;

    fn to(name: &str) -> Message {
        let (to, properties) = (Address::Reply(name.to_owned()), Properties::default());
        Message { to, body: "".into(), properties, priority: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_did_not_confirm_is_tried_again_by_one_message_after_a_while() {
        let apart = Apart::default();
        let batch = ["a", "b", "a", "c"].map(to);
        apart.unanswered([&batch[0].to].into_iter(), true);
        let plan = apart.plan(&batch);
        assert_eq!(plan, Plan { together: vec![1, 3], not_yet: vec![0, 2], ..Plan::default() });
        tokio::time::advance(PROBE_AGAIN).await;
        let plan = apart.plan(&batch);
        assert_eq!(plan, Plan { together: vec![1, 3], apart: vec![vec![0, 2]], ..Plan::default() });
        apart.unanswered([&batch[1].to, &batch[3].to].into_iter(), false);
        assert_eq!(apart.plan(&batch).apart.len(), 3, "nobody knows which of two it was");
        apart.confirmed(batch.iter().map(|message| &message.to));
        assert_eq!(apart.plan(&batch).together.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_address_is_kept_apart_however_many_there_were() {
        let apart = Apart::default();
        for n in 0..3 * MAX_APART {
            apart.unanswered([&to(&format!("q{n}")).to].into_iter(), true);
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(apart.plan(&[to(&format!("q{n}"))]).not_yet, [0], "{n}");
        }
        assert_eq!(apart.plan(&[to("q0")]).together, [0]);
        assert_eq!(lock(&apart.0).len(), MAX_APART);
    }
}
