//! The lines of a journal.
//!
//! A line is the version of the format, the SHA-256 of what follows in hexadecimal, and one JSON object,
//! with a blank between them. The first line of a file says how many records follow, so that a missing
//! end is noticed. The types here are the format: they may change only together with [`VERSION`], and old
//! versions stay readable.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{
    job::{Attempt, AttemptOutcome, Ending, Fence, HeldReason, JobError, JobId, RequestId, Stop},
    store::{By, Finish},
};

/// The version that is written.
const VERSION: &str = "1";

/// One line.
#[derive(Debug)]
pub(super) enum Line {
    /// The head of a file.
    Head {
        /// How many records follow.
        records: usize,
    },
    /// The end of an attempt, as its holder reports it.
    Record(Box<Finish>),
}

/// Why a line cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Its checksum does not fit, or it is no line of a journal at all.
    Damaged,
    /// It was written by a version of errand that this one does not know.
    UnknownVersion,
}

/// The first line of a file, with its line break.
pub(super) fn head(records: usize) -> Result<String, serde_json::Error> {
    line(&WireHead { records })
}

/// The line of one record, with its line break.
pub(super) fn record(finish: &Finish) -> Result<String, serde_json::Error> {
    let Finish { id, fence, by: _, attempt, ending } = finish.clone();
    line(&WireFinish { job: id, fence, attempt, ending })
}

fn line(content: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(content)?;
    Ok(format!("{VERSION} {} {json}\n", checksum(json.as_bytes())))
}

/// Reads one line without its line break; `first` tells the head from the records.
pub(super) fn read(line: &[u8], first: bool) -> Result<Line, Unusable> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (version, sum, json) = match (parts.next(), parts.next(), parts.next()) {
        (Some(version), Some(sum), Some(json)) => (version, sum, json),
        _ => return Err(Unusable::Damaged),
    };
    if checksum(json).as_bytes() != sum {
        return Err(Unusable::Damaged);
    }
    if version != VERSION.as_bytes() {
        return Err(Unusable::UnknownVersion);
    }
    let damaged = |_| Unusable::Damaged;
    if first {
        let head: WireHead = serde_json::from_slice(json).map_err(damaged)?;
        return Ok(Line::Head { records: head.records });
    }
    let WireFinish { job, fence, attempt, ending } = serde_json::from_slice(json).map_err(damaged)?;
    Ok(Line::Record(Box::new(Finish { id: job, fence, by: By::Holder, attempt, ending })))
}

fn checksum(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

#[derive(Serialize, Deserialize)]
struct WireHead {
    records: usize,
}

#[derive(Serialize, Deserialize)]
struct WireFinish {
    job: JobId,
    fence: Fence,
    #[serde(with = "WireAttempt")]
    attempt: Attempt,
    #[serde(with = "WireEnding")]
    ending: Ending,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Attempt")]
struct WireAttempt {
    number: u32,
    request_id: RequestId,
    outcome: AttemptOutcome,
    http_status: Option<u16>,
    log_id: Option<String>,
    version: Option<String>,
    error: Option<JobError>,
    started_at: Timestamp,
    finished_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Ending", tag = "kind", rename_all = "snake_case")]
enum WireEnding {
    Succeed {
        #[serde(with = "verbatim")]
        result: Arc<RawValue>,
    },
    Retry {
        after: Duration,
        error: JobError,
    },
    Snooze {
        after: Duration,
        error: Option<JobError>,
    },
    Verify {
        after: Duration,
        error: JobError,
    },
    // In the file, a stop is an ending like the others.
    #[serde(untagged)]
    Stop(#[serde(with = "WireStop")] Stop),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Stop", tag = "kind", rename_all = "snake_case")]
enum WireStop {
    Fail { error: JobError },
    Hold { reason: HeldReason, error: JobError },
    Connect { toolkit: String, error: JobError },
}

/// JSON in a text, because a result is kept verbatim and may contain line breaks.
mod verbatim {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(result: &Arc<RawValue>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(result.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<RawValue>, D::Error> {
        let text = String::deserialize(deserializer)?;
        RawValue::from_string(text).map(Arc::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{option, prelude::*, sample::select};

    use super::*;
    use crate::job::ErrorKind;

    fn errors() -> impl Strategy<Value = JobError> {
        (select(ErrorKind::ALL), any::<String>(), any::<Option<i64>>(), any::<Option<String>>())
            .prop_map(|(kind, message, code, slug)| JobError::new(kind, message).with_code(code, slug))
    }

    fn durations() -> impl Strategy<Value = Duration> {
        (any::<u32>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs.into(), nanos))
    }

    fn endings() -> impl Strategy<Value = Ending> {
        let result = (any::<String>(), any::<i64>()).prop_map(|(text, number)| {
            // Pretty JSON has line breaks, and a result is kept as it came.
            let json = serde_json::json!({"text": text, "number": number, "list": [1, null]});
            let raw = RawValue::from_string(serde_json::to_string_pretty(&json).unwrap()).unwrap();
            Ending::Succeed { result: raw.into() }
        });
        prop_oneof![
            result,
            errors().prop_map(|error| Stop::Fail { error }.into()),
            (durations(), errors()).prop_map(|(after, error)| Ending::Retry { after, error }),
            (durations(), option::of(errors())).prop_map(|(after, error)| Ending::Snooze { after, error }),
            (select(HeldReason::ALL), errors())
                .prop_map(|(reason, error)| Stop::Hold { reason, error }.into()),
            (any::<String>(), errors()).prop_map(|(toolkit, error)| Stop::Connect { toolkit, error }.into()),
            (durations(), errors()).prop_map(|(after, error)| Ending::Verify { after, error }),
        ]
    }

    fn attempts() -> impl Strategy<Value = Attempt> {
        let times = (-1_000_000_000i64..4_000_000_000, 0i32..1_000_000_000)
            .prop_map(|(secs, nanos)| Timestamp::new(secs, nanos).unwrap());
        (
            (any::<u32>(), any::<u128>(), select(AttemptOutcome::ALL), any::<Option<u16>>()),
            (any::<Option<String>>(), any::<Option<String>>(), option::of(errors())),
            (times.clone(), times),
        )
            .prop_map(
                |(
                    (number, request, outcome, http_status),
                    (log_id, version, error),
                    (started_at, finished_at),
                )| {
                    Attempt {
                        number,
                        request_id: RequestId(uuid::Uuid::from_u128(request)),
                        outcome,
                        http_status,
                        log_id,
                        version,
                        error,
                        started_at,
                        finished_at,
                    }
                },
            )
    }

    /// Any report of a holder.
    pub(in super::super) fn finishes() -> impl Strategy<Value = Finish> {
        (any::<u128>(), any::<i64>(), attempts(), endings()).prop_map(|(id, fence, attempt, ending)| Finish {
            id: JobId(uuid::Uuid::from_u128(id)),
            fence: Fence(fence),
            by: By::Holder,
            attempt,
            ending,
        })
    }

    proptest! {
        #[test]
        fn every_report_survives_the_journal(finish in finishes()) {
            let line = record(&finish).unwrap();
            prop_assert_eq!(line.matches('\n').count(), 1);
            let read = match read(line.trim_end_matches('\n').as_bytes(), false) {
                Ok(Line::Record(read)) => *read,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            // The raw text of a result is part of what `{:?}` shows.
            prop_assert_eq!(format!("{read:?}"), format!("{finish:?}"));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(line in any::<Vec<u8>>(), first in any::<bool>()) {
            prop_assert!(read(&line, first).is_err());
        }
    }

    /// A journal may be read by a later build than the one that wrote it.
    #[test]
    fn the_first_version_of_the_format_stays_readable() {
        let json = concat!(
            r#"{"job":"0190b0a0-0000-7000-8000-000000000001","fence":3,"attempt":{"number":2,"#,
            r#""request_id":"0190b0a0-0000-7000-8000-000000000002","outcome":"succeeded","http_status":200,"#,
            r#""log_id":"log_1","version":"20251027_00","error":null,"started_at":"2026-01-02T03:04:05Z","#,
            r#""finished_at":"2026-01-02T03:04:06.5Z"},"ending":{"kind":"succeed","result":"{\"n\": 1}"}}"#
        );
        let line = format!("1 {} {json}", checksum(json.as_bytes()));
        let Ok(Line::Record(finish)) = read(line.as_bytes(), false) else { panic!("it is readable") };
        assert_eq!((finish.fence, finish.attempt.number), (Fence(3), 2));
        assert_eq!(record(&finish).unwrap().trim_end(), line);

        let newer = line.replacen('1', "2", 1);
        assert_eq!(read(newer.as_bytes(), false).unwrap_err(), Unusable::UnknownVersion);
    }
}
