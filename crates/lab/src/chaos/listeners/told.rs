//! Events as listeners hear them, and their comparison with the events that were recorded.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use errand::{
    job::{BatchId, JobId},
    store::{Event, EventKind},
};
use serde::Deserialize;
use uuid::Uuid;

/// An event as it is told, in whichever way: what distinguishes it, and its place among the events of its job or batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "Wire")]
pub(super) struct Told {
    pub(super) id: Uuid,
    pub(super) kind: EventKind,
    /// The job that it is about, or else the batch.
    pub(super) subject: String,
    pub(super) sequence: u32,
    pub(super) owner: Option<String>,
}

/// The keys of an event that are looked at, as JSON.
#[derive(Deserialize)]
struct Wire {
    id: Uuid,
    #[serde(rename = "type")]
    kind: EventKind,
    sequence: u32,
    owner: Option<WireOwner>,
    job_id: Option<JobId>,
    batch_id: Option<BatchId>,
}

#[derive(Deserialize)]
struct WireOwner {
    kind: String,
    id: String,
}

impl From<Wire> for Told {
    fn from(wire: Wire) -> Self {
        let Wire { id, kind, sequence, owner, job_id, batch_id } = wire;
        let owner = owner.map(|WireOwner { kind, id }| format!("{kind}:{id}"));
        Self { id, kind, subject: subject(job_id, batch_id), sequence, owner }
    }
}

impl From<&Event> for Told {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id(),
            kind: event.kind,
            subject: subject(event.job, event.batch),
            sequence: event.sequence,
            owner: event.owner.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, kind, subject, sequence, .. } = self;
        write!(f, "event {id} ({kind}, sequence {sequence}) of {subject}")
    }
}

pub(super) fn subject(job: Option<JobId>, batch: Option<BatchId>) -> String {
    match (job, batch) {
        (Some(job), _) => format!("job {job}"),
        (None, Some(batch)) => format!("batch {batch}"),
        (None, None) => "no job".to_owned(),
    }
}

/// What one listener has heard. Its clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    /// In the order in which they came.
    arrivals: Vec<Told>,
    ids: HashSet<Uuid>,
    complaints: Vec<String>,
}

impl Heard {
    /// Notes an event that has come.
    pub(super) fn note(&self, event: Told) {
        let mut log = self.log();
        log.ids.insert(event.id);
        log.arrivals.push(event);
    }

    /// Notes an event that was read in a message with this ID, or that it cannot be read.
    pub(super) fn read(&self, id: &str, event: serde_json::Result<Told>) {
        match event {
            Err(error) => self.complain(format!("the message {id} is no event: {error}")),
            Ok(event) if event.id.to_string() != id => self.complain(format!("the message {id} is {event}")),
            Ok(event) => self.note(event),
        }
    }

    /// Notes what must not come, once.
    pub(super) fn complain(&self, what: String) {
        let mut log = self.log();
        if !log.complaints.contains(&what) {
            log.complaints.push(what);
        }
    }

    /// Whether all of these have come.
    pub(super) fn has<'a>(&self, events: impl IntoIterator<Item = &'a Told>) -> bool {
        let log = self.log();
        events.into_iter().all(|event| log.ids.contains(&event.id))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.log().arrivals.is_empty()
    }

    /// All that has come so far, and what was wrong with it.
    pub(super) fn so_far(&self) -> (Vec<Told>, Vec<String>) {
        let log = self.log();
        (log.arrivals.clone(), log.complaints.clone())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an event was not told as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Untold {
    /// It has not come.
    Missing,
    /// It came first when a later one of its job or batch had come.
    Late,
    /// It came, and was not recorded like that.
    Unknown,
}

impl Untold {
    /// Continues the name of the event; the way follows.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "was not told",
            Self::Late => "was told behind a later one",
            Self::Unknown => "was told and never recorded",
        }
    }
}

/// What a comparison has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Compared<'a> {
    pub(super) untold: Vec<(&'a Told, Untold)>,
    /// How often an event came that had come before, which is allowed.
    pub(super) repeats: u64,
}

/// Compares what came with what was recorded, of which the `due` first ones must have come.
pub(super) fn compare<'a>(recorded: &'a [Told], due: usize, heard: &'a [Told]) -> Compared<'a> {
    let known: HashSet<&Told> = recorded.iter().collect();
    let mut had = HashSet::new();
    let mut last = HashMap::<&str, u32>::new();
    let mut compared = Compared::default();
    for event in heard {
        if !had.insert(event) {
            compared.repeats += 1;
        } else if !known.contains(event) {
            compared.untold.push((event, Untold::Unknown));
        } else {
            let last = last.entry(&event.subject).or_default();
            if event.sequence < *last {
                compared.untold.push((event, Untold::Late));
            }
            *last = event.sequence.max(*last);
        }
    }
    let missing = recorded.iter().take(due).filter(|event| !had.contains(event));
    compared.untold.extend(missing.map(|event| (event, Untold::Missing)));
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(subject: &str, sequence: u32) -> Told {
        let id = Uuid::new_v5(&Uuid::nil(), format!("{subject} {sequence}").as_bytes());
        let kind = if sequence == 3 { EventKind::JobSucceeded } else { EventKind::JobEdited };
        Told { id, kind, subject: subject.to_owned(), sequence, owner: Some("org:org-1".to_owned()) }
    }

    /// Three events of each of two jobs.
    fn recorded() -> Vec<Told> {
        (1..=3).flat_map(|sequence| [event("job a", sequence), event("job b", sequence)]).collect()
    }

    fn found(heard: &[Told]) -> (Vec<(Told, Untold)>, u64) {
        let recorded = recorded();
        let Compared { untold, repeats } = compare(&recorded, recorded.len(), heard);
        (untold.into_iter().map(|(event, how)| (event.clone(), how)).collect(), repeats)
    }

    #[test]
    fn events_that_came_in_the_order_of_each_job_are_told_whatever_is_between_them() {
        assert_eq!(found(&recorded()), (vec![], 0));
        let mut one_job_after_the_other = recorded();
        one_job_after_the_other.sort_by(|a, b| (&b.subject, a.sequence).cmp(&(&a.subject, b.sequence)));
        assert_eq!(found(&one_job_after_the_other), (vec![], 0));
    }

    #[test]
    fn each_event_that_was_dropped_is_missing() {
        for dropped in 0..recorded().len() {
            let mut heard = recorded();
            let event = heard.remove(dropped);
            assert_eq!(found(&heard), (vec![(event, Untold::Missing)], 0));
        }
        assert_eq!(found(&[]).0.len(), recorded().len());
    }

    #[test]
    fn an_event_that_came_behind_a_later_one_of_its_job_is_late() {
        let mut heard = recorded();
        heard.swap(0, 2);
        assert_eq!(found(&heard), (vec![(event("job a", 1), Untold::Late)], 0));
        let mut last_first = recorded();
        last_first.reverse();
        let late = ["b", "a"].map(|job| (event(&format!("job {job}"), 2), Untold::Late));
        let later = ["b", "a"].map(|job| (event(&format!("job {job}"), 1), Untold::Late));
        assert_eq!(found(&last_first), ([late, later].concat(), 0));
    }

    #[test]
    fn an_event_that_came_again_is_counted_and_is_not_late() {
        let mut heard = recorded();
        heard.push(event("job a", 1));
        heard.extend(recorded());
        assert_eq!(found(&heard), (vec![], 7));
        // What came first decides, and so no repeat makes good for it.
        let mut late = recorded();
        late.swap(0, 2);
        late.extend(recorded());
        assert_eq!(found(&late), (vec![(event("job a", 1), Untold::Late)], 6));
    }

    #[test]
    fn an_event_that_was_recorded_otherwise_is_unknown_once() {
        let other = event("job c", 1);
        let heard = [recorded(), vec![other.clone(), other.clone()]].concat();
        assert_eq!(found(&heard), (vec![(other, Untold::Unknown)], 1));
        let mut altered = recorded();
        altered[3].sequence = 9;
        let untold = vec![(altered[3].clone(), Untold::Unknown), (event("job b", 2), Untold::Missing)];
        assert_eq!(found(&altered), (untold, 0));
    }

    #[test]
    fn what_was_recorded_later_may_come_and_need_not() {
        let recorded = recorded();
        assert_eq!(compare(&recorded, 4, &recorded[..4]), Compared::default());
        assert_eq!(compare(&recorded, 4, &recorded), Compared::default());
        let missing = vec![(&recorded[3], Untold::Missing)];
        assert_eq!(compare(&recorded, 4, &recorded[..3]), Compared { untold: missing, repeats: 0 });
    }

    #[test]
    fn an_event_is_the_same_from_the_store_and_as_json() {
        let (job, batch) = (Some(JobId::new()), Some(BatchId::new()));
        for (job, batch, owner) in
            [(job, None, Some("user:user-1")), (job, batch, Some("org:o")), (None, batch, None)]
        {
            let event = Event {
                position: 7,
                at: "2026-11-30T09:12:44.120391Z".parse().unwrap(),
                kind: EventKind::JobHeld,
                sequence: 2,
                job,
                batch,
                owner: owner.map(|owner| owner.parse().unwrap()),
                tool: None,
                toolkit: None,
                queue: None,
                attempt: None,
                held_reason: None,
                error_kind: None,
            };
            for json in
                [serde_json::to_value(event.placed("7".to_owned())), serde_json::to_value(event.json())]
            {
                let read: Told = serde_json::from_value(json.unwrap()).unwrap();
                assert_eq!(read, Told::from(&event));
            }
        }
    }

    #[test]
    fn a_listener_has_what_it_has_heard() {
        let heard = Heard::default();
        assert!(heard.has([]) && !heard.has(&recorded()));
        recorded().into_iter().for_each(|event| heard.note(event));
        heard.complain("it is late".to_owned());
        heard.complain("it is late".to_owned());
        assert!(heard.has(&recorded()) && !heard.has([&event("job c", 1)]));
        assert_eq!(heard.so_far(), (recorded(), vec!["it is late".to_owned()]));
    }
}
