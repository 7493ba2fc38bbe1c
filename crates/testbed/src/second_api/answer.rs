//! What answers have in common.

use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tokio::time::sleep;

use super::{
    mischief::{garbage, server_error, throttled, up_to},
    state::State,
    wire::{Act, Answer, Request},
};

/// The longest that a look-up takes, in which nothing else is wrong.
const SLOW: Duration = Duration::from_millis(400);

/// An error in its envelope.
pub(super) fn error(status: u16, code: u64, slug: &str, message: &str) -> Answer {
    let envelope =
        json!({"message": message, "code": code, "slug": slug, "status": status, "suggested_fix": ""});
    Answer::json(status, &json!({"error": envelope}))
}

/// The headers that every answer should have, where it is not its mischief to have others.
pub(super) fn with_usual_headers(answer: Answer, request: &Request) -> Answer {
    let answer = match request.header("x-request-id") {
        Some(id) => answer.with("X-Request-Id", id),
        None => answer,
    };
    answer
        .with("X-RateLimit", "2000")
        .with("X-RateLimit-Remaining", "1999")
        .with("X-RateLimit-Window-Size", "60s")
}

/// What goes wrong with something that only reads; `None` if it is only slow.
pub(super) async fn disturbance(state: &State, rng: &mut Rng) -> Option<Act> {
    let (what, act) = match rng.u8(..5) {
        0 => ("look_up_closed", Act::Close),
        1 => ("look_up_error", Act::Answer(server_error(rng, 1_000))),
        2 => ("look_up_throttled", Act::Answer(throttled(rng))),
        3 => ("look_up_garbage", Act::Answer(garbage(rng))),
        _ => {
            state.ledger(|ledger| ledger.count("look_up_slow"));
            sleep(up_to(rng, SLOW)).await;
            return None;
        }
    };
    state.ledger(|ledger| ledger.count(what));
    Some(act)
}
