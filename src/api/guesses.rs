//! Wrong keys, which are counted by the address that they come from, so that nobody tries many.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

use crate::sync::lock;

/// How many wrong keys may come from one address in [`WINDOW`] before it is slowed.
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Most addresses whose guesses are counted.
const MAX_ADDRESSES: usize = 10_000;

/// Those that were made a moment ago.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<HashMap<IpAddr, Made>>);

#[derive(Debug)]
struct Made {
    since: Instant,
    count: u32,
}

impl Guesses {
    /// Whether too many came from there.
    pub(super) fn are_too_many(&self, from: IpAddr) -> bool {
        let all = lock(&self.0);
        all.get(&neighbourhood(from)).is_some_and(|made| made.count >= MOST && made.since.elapsed() < WINDOW)
    }

    /// Counts one.
    pub(super) fn add(&self, from: IpAddr) {
        let mut all = lock(&self.0);
        if all.len() >= MAX_ADDRESSES {
            all.retain(|_, made| made.since.elapsed() < WINDOW);
        }
        if all.len() >= MAX_ADDRESSES {
            all.clear();
        }
        let new = Made { since: Instant::now(), count: 0 };
        let made = all.entry(neighbourhood(from)).or_insert(new);
        if made.since.elapsed() >= WINDOW {
            *made = Made { since: Instant::now(), count: 0 };
        }
        made.count = made.count.saturating_add(1);
    }
}

/// What is counted as one: of IPv6 the part that somebody has to themselves.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or_else(|| network(address).into(), IpAddr::V4),
    }
}

fn network(address: Ipv6Addr) -> Ipv6Addr {
    (u128::from(address) >> 64 << 64).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// As many as are let through, from both in turn.
    fn guess(guesses: &Guesses, one: IpAddr, other: IpAddr) {
        for guess in 0..MOST {
            assert!(!guesses.are_too_many(one) && !guesses.are_too_many(other), "after {guess} guesses");
            guesses.add(if guess % 2 == 0 { one } else { other });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_of_ipv6_guess_together_and_those_of_others_for_themselves() {
        let guesses = Guesses::default();
        let (one, other) = (address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        guess(&guesses, one, other);
        for neighbour in [one, other, address("2001:db8:1:2::"), address("2001:db8:1:2:3::")] {
            assert!(guesses.are_too_many(neighbour), "{neighbour:?}");
        }
        let strangers =
            ["2001:db8:1:3::1", "2001:db8:1:1:ffff:ffff:ffff:ffff", "2001:db8::1", "::1", "192.0.2.1"];
        for stranger in strangers.map(address) {
            assert!(!guesses.are_too_many(stranger), "{stranger:?}");
        }
        // Then they begin anew.
        tokio::time::advance(WINDOW).await;
        guess(&guesses, one, other);
        assert!(guesses.are_too_many(one) && guesses.are_too_many(other));
    }

    /// A listener of IPv6 that takes IPv4 as well gives them as addresses of one network.
    #[tokio::test(start_paused = true)]
    async fn addresses_of_ipv4_guess_for_themselves_also_where_they_are_written_as_those_of_ipv6() {
        let guesses = Guesses::default();
        let (plain, mapped) = (address("192.0.2.1"), address("::ffff:192.0.2.1"));
        guess(&guesses, plain, mapped);
        assert!(guesses.are_too_many(plain) && guesses.are_too_many(mapped));
        for stranger in ["192.0.2.2", "::ffff:192.0.2.2", "127.0.0.1", "::1"].map(address) {
            assert!(!guesses.are_too_many(stranger), "{stranger:?}");
        }
    }
}
