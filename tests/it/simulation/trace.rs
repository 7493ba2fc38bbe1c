//! What happened in a world, line by line, with names that are the same in every run of the seed.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use uuid::Uuid;

/// A world in which more happens than this goes in circles.
const MOST_EVENTS: usize = 200_000;

/// The longest line that is kept.
const LONGEST: usize = 700;

/// The length of a UUID as text.
const UUID_LEN: usize = 36;

#[derive(Debug, Default)]
pub(super) struct Trace {
    lines: Vec<String>,
    events: usize,
    hasher: DefaultHasher,
    names: HashMap<Uuid, usize>,
}

impl Trace {
    /// Notes an event. A `quiet` one counts for the comparison of two runs, but is not shown.
    pub(super) fn note(&mut self, at: Duration, who: &str, what: &str, quiet: bool) {
        self.events += 1;
        assert!(self.events < MOST_EVENTS, "this world goes in circles: {:#?}", self.lines.last());
        let what = self.named(what);
        (at, who, &what).hash(&mut self.hasher);
        if !quiet {
            let line = format!("{:>9.3} {who:<5} {what}", at.as_secs_f64());
            self.lines.push(line.chars().take(LONGEST).collect());
        }
    }

    /// Stands for everything that happened.
    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The text with every ID replaced by a short name: jobs are numbered by whoever made them, everything
    /// else in the order in which it appears.
    fn named(&mut self, text: &str) -> String {
        let mut named = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(dash) = rest.find('-') {
            let id = dash.checked_sub(8).and_then(|start| {
                let id = rest.get(start..start + UUID_LEN)?;
                Some((start, Uuid::try_parse(id).ok()?))
            });
            let Some((start, id)) = id else {
                named.push_str(&rest[..=dash]);
                rest = &rest[dash + 1..];
                continue;
            };
            named.push_str(&rest[..start]);
            if id.as_u128() < 1_000 {
                named.push_str(&format!("job {}", id.as_u128()));
            } else {
                let next = self.names.len();
                named.push_str(&format!("#{}", self.names.entry(id).or_insert(next)));
            }
            rest = &rest[start + UUID_LEN..];
        }
        named.push_str(rest);
        named
    }
}
