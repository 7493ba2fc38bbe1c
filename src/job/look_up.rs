//! What is known about a call whose outcome is unknown, and the sentence that tells a person.

use std::time::Duration;

use jiff::Timestamp;

use super::RequestId;
use crate::{bounds::MAX_ERROR_CHARS, string_enum::string_enum};

string_enum! {
    /// What the tool API's execution log says about a call, looked up by the call's request ID.
    LookResult {
        /// It has an entry that tells how the call ended.
        Ended = "ended",
        /// It has an entry that does not tell the end, or that belongs to another tool.
        Unclear = "unclear",
        /// It has no entry, and it shows another call of ours.
        Absent = "absent",
        /// It has no entry, and it does not show a later call of ours either, or there is none to look for yet.
        Blind = "blind",
        Closed = "closed",
    }
}

#[derive(Debug, Clone, Copy)]
pub struct LookUps<'a> {
    pub count: u32,
    /// How long the outcome had been unknown at the last one.
    pub unknown_for: Duration,
    pub last_at: Timestamp,
    pub last: LookResult,
    /// Why the log could not be read, if it could not.
    pub detail: Option<&'a str>,
}

/// The sentence that a person reads as the error of a job whose call, with this request ID, has an unknown outcome.
/// `known` is what the attempt itself told, which is cut first, because the rest says what to do. A person decides
/// unless errand looks the call up, or looks it up again.
pub fn unknown_outcome(
    known: &str,
    id: RequestId,
    is_looked_up: bool,
    look_ups: Option<LookUps<'_>>,
) -> String {
    let looks =
        format!("; errand looks for the request ID {id} in the tool API's log and goes by what it finds");
    let release = "then release the job with --succeeded, --failed or --retry";
    let rest = match (look_ups.map(|look_ups| look_ups.told(id)), is_looked_up) {
        (None, true) => looks,
        (None, false) => format!("; look for the request ID {id} in the tool API's log, {release}"),
        (Some(told), true) => format!("{looks}; execution log: {told}; errand looks again"),
        (Some(told), false) => {
            format!("; execution log: {told}; look there yourself for the request ID {id}, {release}")
        }
    };
    let room = MAX_ERROR_CHARS.saturating_sub(rest.chars().count());
    known.chars().take(room).chain(rest.chars()).collect()
}

impl LookUps<'_> {
    fn told(&self, id: RequestId) -> String {
        let found = match self.last {
            LookResult::Ended => "the call is there, but the database refuses to keep its answer".to_owned(),
            LookResult::Unclear => format!("the entry for request ID {id} does not tell how the call ended"),
            LookResult::Absent => format!("no entry for request ID {id} yet"),
            LookResult::Blind => format!(
                "no entry for request ID {id}, which proves nothing, because the log shows no other call either that \
                 was made long enough after it and succeeded, or there was none yet"
            ),
            LookResult::Closed => {
                format!("it could not be read, {}", self.detail.unwrap_or("and did not say why"))
            }
        };
        format!(
            "asked {} times over {} s, last at {}: {found}",
            self.count,
            self.unknown_for.as_secs(),
            self.last_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_is_told_however_much_the_attempt_told() {
        let request_id = RequestId::new();
        let closed = LookUps {
            count: 3,
            unknown_for: Duration::from_secs(90),
            last_at: Timestamp::UNIX_EPOCH,
            last: LookResult::Closed,
            detail: Some("the tool API does not answer"),
        };
        for known in ["no answer".to_owned(), "é".repeat(MAX_ERROR_CHARS * 2)] {
            let mut sentences = Vec::new();
            for look_ups in [None, Some(closed)] {
                for is_looked_up in [true, false] {
                    let sentence = unknown_outcome(&known, request_id, is_looked_up, look_ups);
                    assert!(sentence.chars().count() <= MAX_ERROR_CHARS);
                    assert!(sentence.contains(&request_id.to_string()));
                    assert_eq!(sentence.ends_with("--succeeded, --failed or --retry"), !is_looked_up);
                    assert_eq!(
                        sentence.contains(
                            "asked 3 times over 90 s, last at 1970-01-01T00:00:00Z: it could not be read, the \
                             tool API does not answer"
                        ),
                        look_ups.is_some()
                    );
                    sentences.push(sentence);
                }
            }
            sentences.dedup();
            assert_eq!(sentences.len(), 4);
        }
    }
}
