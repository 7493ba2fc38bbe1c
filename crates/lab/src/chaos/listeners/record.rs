//! The table of events, by which listeners are judged, and what must hold for it by itself.

use std::collections::HashMap;

use anyhow::{Result, bail};
use errand::{
    job::Principal,
    store::{Event, EventsAfter, EventsOf, SharedStore},
};

use super::told::subject;

/// How many events are read together.
const PAGE: usize = 1_000;

/// Reads all events that there are, in their order.
///
/// # Errors
/// The store does not answer, or says that events are gone.
pub(super) async fn read(store: &SharedStore) -> Result<Vec<Event>> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        match store.events(&Principal::Operator, EventsOf::All, Some(after), PAGE).await? {
            EventsAfter::Are { events, next } => {
                all.extend(events);
                if next <= after {
                    return Ok(all);
                }
                after = next;
            }
            gone => bail!("the store says of the events behind position {after}: {gone:?}"),
        }
    }
}

/// What is wrong with the table, a line each: positions and sequences begin with 1 and have no gap, because nothing is removed
/// in a round and everybody records, and the last event of what has come to an end tells of it.
pub(super) fn complaints(events: &[Event], ends: Vec<(String, String)>) -> Vec<String> {
    let mut complaints = Vec::new();
    let (mut position, mut last) = (0, HashMap::<String, &Event>::new());
    for event in events {
        if event.position != position + 1 {
            complaints.push(format!("position {} follows position {position}", event.position));
        }
        position = event.position;
        let subject = subject(event.job, event.batch);
        let before = last.get(&subject).map_or(0, |before| before.sequence);
        if event.sequence != before + 1 {
            let sequence = event.sequence;
            complaints.push(format!("of {subject}, sequence {sequence} follows sequence {before}"));
        }
        last.insert(subject, event);
    }
    for (subject, kind) in ends {
        let said = last.get(&subject).map_or("nothing", |event| event.kind.as_str());
        if said != kind {
            complaints.push(format!("of {subject}, the last event is {said} instead of {kind}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use errand::{job::JobId, store::EventKind};

    use super::*;

    fn event(position: u64, job: JobId, sequence: u32, kind: EventKind) -> Event {
        Event {
            position,
            at: "2026-11-30T09:12:44Z".parse().unwrap(),
            kind,
            sequence,
            job: Some(job),
            batch: None,
            owner: None,
            tool: None,
            toolkit: None,
            queue: None,
            attempt: None,
            held_reason: None,
            error_kind: None,
        }
    }

    #[test]
    fn a_gap_and_an_end_that_no_event_tells_of_are_found() {
        let (one, other) = (JobId::new(), JobId::new());
        let whole = vec![
            event(1, one, 1, EventKind::JobHeld),
            event(2, other, 1, EventKind::JobHeld),
            event(3, one, 2, EventKind::JobSucceeded),
        ];
        let wrong = |events: &[Event], ends: &[(JobId, &str)]| {
            let ends = ends.iter().map(|(job, kind)| (subject(Some(*job), None), (*kind).to_owned()));
            complaints(events, ends.collect())
        };
        let ends = [(one, "job.succeeded"), (other, "job.held")];
        assert_eq!(wrong(&whole, &ends), Vec::<String>::new());

        let without_the_first = wrong(&whole[1..], &ends);
        assert_eq!(without_the_first.len(), 2, "{without_the_first:?}");
        let without_the_second = wrong(&[whole[0].clone(), whole[2].clone()], &ends);
        assert_eq!(without_the_second.len(), 2, "{without_the_second:?}");
        assert!(without_the_second[0].contains("position 3 follows position 1"), "{without_the_second:?}");
        assert_eq!(wrong(&whole[..2], &ends).len(), 1, "its end is not told");
        assert_eq!(wrong(&whole, &[(one, "job.failed")]).len(), 1, "another end is told");
        let mut twice = whole.clone();
        twice[2].sequence = 1;
        assert_eq!(wrong(&twice, &ends).len(), 1, "a sequence comes twice");
    }
}
