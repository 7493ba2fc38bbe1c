//! Changes of a job that waits: when it runs, in which queue, how urgently, and until when.

use jiff::Timestamp;

use super::{EnvelopeError, JobSpec, encode, priority, times, too_large, wire::digest};
use crate::{bounds::MAX_ENVELOPE_BYTES, job::QueueName};

/// What is to be changed. What is `None` stays; of the times, `Some(None)` takes one away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub run_at: Option<Option<Timestamp>>,
    pub queue: Option<QueueName>,
    pub priority: Option<i128>,
    pub expires_at: Option<Option<Timestamp>>,
}

impl JobSpec {
    /// What it weighs in a write to the store, in bytes; the rest of it is short.
    pub fn weight(&self) -> usize {
        self.arguments.as_ref().map_or(0, |arguments| arguments.get().len())
            + self.text.as_ref().map_or(0, String::len)
    }

    /// The job as it is after a change.
    ///
    /// # Errors
    /// It has no meaning; the error names the field.
    pub fn edited(&self, edit: &Edit) -> Result<Self, EnvelopeError> {
        let (run_at, expires_at) =
            times(edit.run_at.unwrap_or(self.run_at), edit.expires_at.unwrap_or(self.expires_at))?;
        let mut spec = Self {
            run_at,
            expires_at,
            queue: edit.queue.clone().unwrap_or_else(|| self.queue.clone()),
            priority: edit.priority.map_or(Ok(self.priority), |wanted| priority(Some(wanted)))?,
            ..self.clone()
        };
        // A job whose digest an earlier build made otherwise keeps it, if nothing is changed.
        if spec.told() != self.told() {
            spec.digest = digest(&spec);
        }
        // What the relay publishes has to be accepted.
        let bytes = encode(&spec).len();
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(too_large(bytes, " as it would be published"));
        }
        Ok(spec)
    }

    /// What is changed from here to another form of the same job, for its history.
    pub fn changes(&self, after: &Self) -> String {
        let changed = self.told().into_iter().zip(after.told());
        let changed = changed.filter(|(before, after)| before != after);
        let told = changed.map(|((field, before), (_, after))| format!("{field}: {before} -> {after}"));
        told.collect::<Vec<_>>().join("; ")
    }

    fn told(&self) -> [(&'static str, String); 4] {
        let time = |time: Option<Timestamp>| time.map_or("none".to_owned(), |time| time.to_string());
        [
            ("run_at", time(self.run_at)),
            ("queue", self.queue.to_string()),
            ("priority", self.priority.to_string()),
            ("expires_at", time(self.expires_at)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, decode, encode};

    #[test]
    fn a_changed_job_is_published_as_it_is_and_changed_back_it_is_the_same_again() {
        let queue = "default".parse().unwrap();
        let body =
            br#"{"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u","tool":"T","arguments":{"a": 1}}"#;
        let asked = decode(body, &Arrival::new(&queue)).unwrap();
        let later = Some(Some("2030-01-01T00:00:00.1234567Z".parse().unwrap()));
        let edit = Edit { run_at: later, queue: "bulk".parse().ok(), priority: Some(9), expires_at: None };
        let moved = asked.edited(&edit).unwrap();
        assert_ne!(moved.digest, asked.digest);
        let bulk = "bulk".parse().unwrap();
        assert_eq!(decode(&encode(&moved), &Arrival::new(&bulk)).unwrap().digest, moved.digest);
        assert_eq!(
            asked.changes(&moved),
            "run_at: none -> 2030-01-01T00:00:00.123456Z; queue: default -> bulk; priority: 0 -> 9"
        );
        let back = Edit { run_at: Some(None), queue: Some(queue), priority: Some(0), expires_at: None };
        assert_eq!(moved.edited(&back).unwrap().digest, asked.digest);
        assert_eq!(moved.edited(&Edit::default()).unwrap().digest, moved.digest);
        for wrong in
            [Edit { priority: Some(10), ..Edit::default() }, Edit { expires_at: later, ..Edit::default() }]
        {
            assert!(moved.edited(&wrong).is_err(), "{wrong:?}");
        }
    }
}
