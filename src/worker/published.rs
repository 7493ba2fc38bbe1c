//! When the message of an app was published.

use jiff::{SignedDuration, Timestamp};

use crate::job::JobId;

/// How old a job may be for the time in its ID, or with its message, to be believed.
const MAX_PLAUSIBLE_AGE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// What the message's property `timestamp`, in seconds since 1970, and the time in an ID that is a UUIDv7 say together.
/// The property has no fractions of a second, so it ends at most a second later; the ID has milliseconds, and may have
/// been made long before, so that it is not given where nobody says that it was made for this message. An implausible time (another clock, another use of the bits) is not believed.
pub(super) fn published_at(id: Option<JobId>, timestamp: Option<u64>, now: Timestamp) -> Option<Timestamp> {
    let plausible =
        |at: &Timestamp| (SignedDuration::ZERO..MAX_PLAUSIBLE_AGE).contains(&now.duration_since(*at));
    let made = id.and_then(|id| id.0.get_timestamp()).and_then(|stamp| {
        let (seconds, nanos) = stamp.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    });
    let made = made.filter(plausible);
    let second = timestamp.and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    let Some(second) = second.filter(plausible) else { return made };
    let end = second + SignedDuration::from_secs(1);
    Some(made.map_or(end, |made| made.clamp(second, end)).min(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_was_published_when_its_property_or_its_id_says_so() {
        let at = |millis: i64| Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap();
        let seconds = |seconds: i64| Some(u64::try_from(at(seconds * 1_000).as_second()).unwrap());
        let random: Option<JobId> = Some("6fa1c1de-3c2b-4a5e-9d1f-8a2b3c4d5e6f".parse().unwrap());
        let of_its_time = |millis: i64| {
            let stamp = u64::try_from(at(millis).as_millisecond()).unwrap();
            Some(JobId(uuid::Builder::from_unix_timestamp_millis(stamp, &[7; 10]).into_uuid()))
        };
        let now = at(60_000);
        for (id, timestamp, expected) in [
            (random, None, None),
            (None, None, None),
            (None, seconds(20), Some(at(21_000))),
            // Not later than the end of the second in which it was published.
            (random, seconds(20), Some(at(21_000))),
            (random, seconds(60), Some(now)),
            (of_its_time(20_400), None, Some(at(20_400))),
            (of_its_time(20_400), seconds(20), Some(at(20_400))),
            // An ID may have been made long before the message was published.
            (of_its_time(5_000), seconds(20), Some(at(20_000))),
            // Milliseconds instead of seconds, the future, and 1970.
            (random, Some(u64::try_from(now.as_millisecond()).unwrap()), None),
            (random, seconds(90), None),
            (random, Some(0), None),
            (random, Some(u64::MAX), None),
        ] {
            assert_eq!(published_at(id, timestamp, now), expected, "{id:?} {timestamp:?}");
        }
    }
}
