use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    breaker::Breaker,
    registry::{FORGET_AFTER, Failure, MAX_KEYS, SWEEP_EVERY},
    *,
};

const POLICY: Policy = Policy {
    after: 3,
    intervals: Intervals::doubling(Duration::from_secs(1), Duration::from_secs(60)).with_jitter(0.2),
    max_retry_after: Duration::from_secs(3_600),
};

const TOOLKIT: u64 = 7;

/// No other call is under way.
const FAILURE: Failure = Failure { retry_after: None, accuses_toolkit: true, others: 0 };

fn caller(owner: u64) -> Caller {
    Caller { owner, toolkit: TOOLKIT, key: owner * 100 }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Makes a call that the API does not answer.
fn fail(registry: &mut Registry, caller: Caller, now: Instant) {
    let ticket = registry.admit(caller, now, 0.5).unwrap();
    registry.failed(caller, ticket, FAILURE, now, 0.5);
}

#[test]
fn a_breaker_opens_to_one_probe_and_closes_step_by_step() {
    let (mut registry, bad, start) = (Registry::new(POLICY), caller(1), Instant::now());
    for _ in 0..3 {
        assert_eq!(registry.open().1, 0);
        fail(&mut registry, bad, start);
    }
    assert_eq!(registry.open(), (1, 0));
    let open = registry.admit(bad, start, 0.0).unwrap_err();
    assert_eq!(open, Open { scope: Scope::OwnerToolkit, after: secs(1) });
    assert!(registry.admit(caller(2), start, 0.0).is_ok(), "others are not kept back");

    let mut now = start + secs(1);
    for wait in [2, 4, 8, 16, 32, 60, 60] {
        let probe = registry.admit(bad, now, 0.5).unwrap();
        assert!(registry.admit(bad, now, 0.5).is_err(), "one at a time");
        registry.failed(bad, probe, FAILURE, now, 0.5);
        now += secs(wait) - Duration::from_millis(1);
        assert!(registry.admit(bad, now, 0.5).is_err(), "{wait}");
        now += Duration::from_millis(1);
    }
    for allowed in [1, 2, 4, 8, 16, 32] {
        let tickets: Vec<Ticket> = (0..allowed).map(|_| registry.admit(bad, now, 0.5).unwrap()).collect();
        assert!(registry.admit(bad, now, 0.5).is_err(), "{allowed}");
        registry.answered(bad, tickets[0], now);
        tickets[1..].iter().for_each(|ticket| registry.give_back(bad, *ticket));
    }
    assert_eq!((registry.known(), registry.open()), (0, (0, 0)), "nothing is left");
}

#[test]
fn calls_that_were_made_together_are_one_failure() {
    let (mut registry, bad, start) = (Registry::new(POLICY), caller(1), Instant::now());
    let tickets: Vec<Ticket> = (0..50).map(|_| registry.admit(bad, start, 0.5).unwrap()).collect();
    tickets.iter().for_each(|ticket| registry.failed(bad, *ticket, FAILURE, start, 0.5));
    let now = start + secs(1);
    let probe = registry.admit(bad, now, 0.5).unwrap();
    registry.answered(bad, probe, now);
    let two: Vec<Ticket> = (0..2).map(|_| registry.admit(bad, now, 0.5).unwrap()).collect();
    two.iter().for_each(|ticket| registry.failed(bad, *ticket, FAILURE, now, 0.5));
    assert!(registry.admit(bad, now + secs(2), 0.5).is_ok(), "two seconds, not four");
}

#[test]
fn what_the_api_asks_for_is_kept() {
    let (mut registry, bad, now) = (Registry::new(POLICY), caller(1), Instant::now());
    for _ in 0..3 {
        let ticket = registry.admit(bad, now, 0.5).unwrap();
        registry.failed(bad, ticket, Failure { retry_after: Some(secs(120)), ..FAILURE }, now, 0.5);
    }
    assert!(registry.admit(bad, now + secs(119), 0.0).unwrap_err().after >= secs(1));
    assert!(registry.admit(bad, now + secs(120), 0.5).is_ok());
}

#[test]
fn one_owner_never_stops_the_others_and_several_in_a_row_do() {
    let (mut registry, now) = (Registry::new(POLICY), Instant::now());
    for key in 0..50 {
        fail(&mut registry, Caller { key, ..caller(1) }, now);
    }
    assert_eq!(registry.open().1, 0, "one owner, however often");
    for owner in 2..5 {
        fail(&mut registry, caller(owner), now);
    }
    let good = caller(9);
    let ticket = registry.admit(good, now, 0.5).unwrap();
    registry.answered(good, ticket, now);
    for owner in 2..6 {
        fail(&mut registry, caller(owner), now);
    }
    assert_eq!(registry.open().1, 0, "somebody was answered in between");
    fail(&mut registry, caller(6), now);
    assert_eq!(registry.open().1, 1);
    assert_eq!(registry.admit(good, now, 0.5).unwrap_err().scope, Scope::Toolkit);
    assert!(
        registry.admit(Caller { toolkit: 8, ..good }, now, 0.5).is_ok(),
        "other toolkits are not kept back"
    );

    let mut now = now + secs(1);
    let probe = registry.admit(good, now, 0.5).unwrap();
    assert!(registry.admit(caller(10), now, 0.5).is_err());
    registry.failed(good, probe, FAILURE, now, 0.5);
    assert!(registry.admit(caller(10), now + secs(1), 0.5).is_err());
    now += secs(2);
    for _ in 0..6 {
        let ticket = registry.admit(caller(10), now, 0.5).unwrap();
        registry.answered(caller(10), ticket, now);
    }
    assert_eq!(registry.open().1, 0);
}

#[test]
fn impatient_jobs_accuse_nobody_but_their_owner() {
    let (mut registry, now) = (Registry::new(POLICY), Instant::now());
    let impatient = Failure { accuses_toolkit: false, ..FAILURE };
    for owner in 1..100 {
        let ticket = registry.admit(caller(owner), now, 0.5).unwrap();
        registry.failed(caller(owner), ticket, impatient, now, 0.5);
    }
    assert_eq!(registry.open(), (0, 0));
    for _ in 0..3 {
        registry.failed(caller(1), Ticket::default(), impatient, now, 0.5);
    }
    assert_eq!(registry.open(), (1, 0), "it keeps back its own calls");
}

#[test]
fn calls_that_are_under_way_can_acquit_a_toolkit() {
    let (mut registry, now) = (Registry::new(POLICY), Instant::now());
    let slow = Failure { others: 40, ..FAILURE };
    for owner in 1..=40 {
        registry.failed(caller(owner), Ticket::default(), slow, now, 0.5);
    }
    assert_eq!(registry.open().1, 0, "forty others may still be answered");
    registry.failed(caller(41), Ticket::default(), slow, now, 0.5);
    assert_eq!(registry.open().1, 1, "and have not been, so that most calls fail");
}

#[test]
fn a_probe_that_takes_long_keeps_the_others_back_for_a_bounded_time() {
    let (mut registry, now) = (Registry::new(POLICY), Instant::now());
    for owner in 1..=5 {
        for _ in 0..3 {
            registry.failed(caller(owner), Ticket::default(), FAILURE, now, 0.5);
        }
    }
    assert_eq!(registry.open(), (5, 1));
    let mut now = now + secs(5);
    let endless = registry.admit(caller(1), now, 0.5).unwrap();
    now += POLICY.intervals.max - Duration::from_millis(1);
    assert_eq!(registry.admit(caller(9), now, 0.5).unwrap_err().scope, Scope::Toolkit);
    assert_eq!(registry.admit(caller(1), now, 0.5).unwrap_err().scope, Scope::OwnerToolkit);
    now += Duration::from_millis(1);
    let next = registry.admit(caller(9), now, 0.5).unwrap();
    assert!(registry.admit(caller(8), now, 0.5).is_err(), "one at a time");
    registry.answered(caller(9), next, now);
    for _ in 0..5 {
        let ticket = registry.admit(caller(9), now, 0.5).unwrap();
        registry.answered(caller(9), ticket, now);
    }
    assert_eq!(registry.open().1, 0, "the toolkit answers, although the first probe has not ended");
    assert!(registry.admit(caller(1), now, 0.5).is_ok(), "nor does it keep its own owner's calls back");
    registry.failed(caller(1), endless, FAILURE, now, 0.5);
    assert_eq!(registry.open().1, 0);
}

#[test]
fn memory_is_bounded_and_what_nobody_calls_is_forgotten() {
    let (mut registry, now) = (Registry::new(POLICY), Instant::now());
    for key in 0..MAX_KEYS as u64 + 100 {
        let many = Caller { owner: 1, toolkit: key, key };
        registry.failed(many, Ticket::default(), FAILURE, now, 0.5);
    }
    assert_eq!((registry.keys.len(), registry.toolkits.len()), (MAX_KEYS, MAX_KEYS));
    let last = Caller { owner: 1, toolkit: 0, key: 0 };
    registry.answered(last, Ticket::default(), now + FORGET_AFTER + SWEEP_EVERY);
    assert_eq!(registry.known(), 0);
}

#[test]
fn a_permit_that_is_dropped_makes_room_for_the_next() {
    let intervals = Intervals::doubling(Duration::ZERO, secs(60));
    let breakers = CircuitBreakers::new(Policy { intervals, ..POLICY });
    let owner: Owner = "user:ann".parse().unwrap();
    for _ in 0..3 {
        breakers.admit(&owner, "github").unwrap().failed(None, true);
    }
    let probe = breakers.admit(&owner, "github").unwrap();
    assert!(breakers.admit(&owner, "github").is_err());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _probe = probe;
        panic!("in the middle of it");
    }));
    assert!(panicked.is_err());
    for _ in 0..6 {
        breakers.admit(&owner, "github").unwrap().answered();
    }
    assert!(breakers.is_idle());
}

proptest! {
    /// In whatever order: an open breaker never has more calls in flight than it allowed, no key without failures is kept
    /// back for its own sake, and all close once the API answers.
    #[test]
    fn probes_are_counted_and_every_breaker_closes_again(
        steps in prop::collection::vec((0u64..8, 0u8..8, 0u64..5_000, 0.0f64..1.0), 1..400),
    ) {
        let mut registry = Registry::new(POLICY);
        let mut now = Instant::now();
        let mut calls: Vec<(Caller, Ticket)> = Vec::new();
        let mut failed: Vec<u64> = Vec::new();
        for (owner, what, ms, random) in steps {
            now += Duration::from_millis(ms / 10);
            let who = caller(owner);
            match what {
                0..=3 => {
                    let open = registry.keys.iter().filter(|(_, breaker)| breaker.is_open());
                    let room = |breaker: &Breaker| {
                        breaker.allowed.max(if breaker.is_overdue(&POLICY, now) { breaker.in_flight + 1 } else { 0 })
                    };
                    let before: HashMap<u64, u32> = open.map(|(key, breaker)| (*key, room(breaker))).collect();
                    let toolkit = |registry: &Registry| {
                        let row = registry.toolkits.get(&TOOLKIT);
                        row.and_then(|row| row.breaker.as_ref()).map(|breaker| (room(breaker), breaker.in_flight))
                    };
                    let toolkit_before = toolkit(&registry).map(|(room, _)| room);
                    match registry.admit(who, now, random) {
                        Ok(ticket) => {
                            calls.push((who, ticket));
                            if let Some(allowed) = before.get(&who.key) {
                                prop_assert!(registry.keys[&who.key].in_flight <= *allowed);
                            }
                            if let (Some(allowed), Some((_, in_flight))) = (toolkit_before, toolkit(&registry)) {
                                prop_assert!(in_flight <= allowed);
                            }
                        }
                        Err(open) => {
                            let own = open.scope == Scope::OwnerToolkit;
                            prop_assert!(!own || failed.contains(&owner));
                            prop_assert!(open.after >= POLICY.intervals.initial / 2);
                            prop_assert!(open.after <= POLICY.intervals.max * 2);
                        }
                    }
                }
                _ if calls.is_empty() => {}
                4 | 5 => {
                    let (who, ticket) = calls.swap_remove(ms as usize % calls.len());
                    failed.push(who.owner);
                    let failure = Failure { others: calls.len(), ..FAILURE };
                    registry.failed(who, ticket, failure, now, random);
                }
                6 => {
                    let (who, ticket) = calls.swap_remove(ms as usize % calls.len());
                    registry.answered(who, ticket, now);
                }
                _ => {
                    let (who, ticket) = calls.swap_remove(ms as usize % calls.len());
                    registry.give_back(who, ticket);
                }
            }
        }
        for (who, ticket) in calls.drain(..) {
            registry.give_back(who, ticket);
        }
        let toolkits = registry.toolkits.values().filter_map(|row| row.breaker.as_ref());
        let in_flight: u32 = registry.keys.values().chain(toolkits).map(|breaker| breaker.in_flight).sum();
        prop_assert_eq!(in_flight, 0, "no ticket is lost");
        for round in 0.. {
            now += POLICY.intervals.max * 2;
            for owner in 0..8 {
                let who = caller(owner);
                if let Ok(ticket) = registry.admit(who, now, 0.5) {
                    registry.answered(who, ticket, now);
                }
            }
            if registry.known() == 0 {
                break;
            }
            prop_assert!(round < 20, "{registry:?}");
        }
    }
}
