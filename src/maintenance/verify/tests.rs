use proptest::prelude::*;

use super::*;
use crate::backoff::RECONNECT;

const POLICY: Policy =
    Policy { intervals: RECONNECT, log_delay: Duration::from_secs(900), give_up: Duration::from_secs(3_600) };

fn looks() -> Vec<Look> {
    vec![Look::Unclear, Look::Absent, Look::Blind, Look::Closed("x".into(), "x".into())]
}

#[test]
fn only_a_settled_log_that_shows_our_calls_proves_that_a_call_never_arrived() {
    let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), Duration::ZERO, 3, 0.5);
    assert!(matches!(next(Look::Absent, 899), Step::Again(_)));
    assert!(matches!(next(Look::Absent, 900), Step::NeverArrived));
    for look in [|| Look::Unclear, || Look::Blind, || Look::Closed("x".into(), "x".into())] {
        assert!(matches!(next(look(), 3_599), Step::Again(_)));
        assert!(matches!(next(look(), 3_600), Step::GiveUp), "a person decides");
    }
}

#[test]
fn the_log_settles_only_after_the_last_worker_stopped_waiting() {
    let waited = Duration::from_secs(5_000);
    let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), waited, 3, 0.5);
    assert!(matches!(next(Look::Absent, 900), Step::Again(_)));
    assert!(matches!(next(Look::Absent, 5_899), Step::Again(_)), "even when others would be given up");
    assert!(matches!(next(Look::Absent, 5_900), Step::NeverArrived));
    assert!(matches!(next(Look::Blind, 3_600), Step::GiveUp));
    assert_eq!(POLICY.ended_after(waited), Duration::from_secs(5_450), "the other half is for the log");
}

proptest! {
    /// However the log behaves, nothing is repeated before it had time to settle, and every job ends or is a person's.
    #[test]
    fn a_call_is_never_repeated_early_and_never_looked_for_without_end(
        choices in prop::collection::vec(0usize..4, 1..50), random in 0.0f64..1.0,
    ) {
        let mut unknown_for = POLICY.intervals.wait(1, random);
        for checks in 0.. {
            let look = looks().swap_remove(choices[checks as usize % choices.len()]);
            match POLICY.next(look, unknown_for, Duration::ZERO, checks, random) {
                Step::Again(after) => {
                    prop_assert!(unknown_for < POLICY.give_up && !after.is_zero());
                    unknown_for += after;
                }
                Step::NeverArrived => {
                    prop_assert!(unknown_for >= POLICY.log_delay);
                    break;
                }
                Step::GiveUp | Step::Adopt(..) => break,
            }
        }
    }
}
