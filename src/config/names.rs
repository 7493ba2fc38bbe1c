//! Names of settings, and what is meant by one that does not exist.

use std::fmt;

use super::{rule::Rule, sections::SETTINGS};

/// The prefix of the environment variables that reach every setting. Names with a single `_` are not ours: a
/// service called `errand` in Kubernetes puts `ERRAND_PORT` and the like into every container.
pub(super) const ENV_PREFIX: &str = "ERRAND__";

/// The name of a setting: its section and its key, and for some a chosen name in between.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) Vec<String>);

impl Key {
    /// The key of a name such as `store.url`.
    pub(super) fn new(name: &str) -> Self {
        Self(name.split('.').map(str::to_owned).collect())
    }

    pub(super) fn rule(&self) -> Option<Rule> {
        SETTINGS.iter().find(|(pattern, _)| self.matches(pattern)).map(|(_, rule)| *rule)
    }

    /// The place of the setting in the manual; settings of one section that have none of their own share its.
    pub(super) fn position(&self) -> Option<usize> {
        let exact = SETTINGS.iter().position(|(pattern, _)| self.0 == *pattern);
        exact.or_else(|| {
            SETTINGS.iter().position(|(pattern, _)| self.0.first().is_some_and(|s| s == pattern[0]))
        })
    }

    /// The key in the spelling of `ERRAND__SECTION__KEY`, without the prefix.
    pub(super) fn from_env(rest: &str) -> Self {
        Self(rest.split("__").map(str::to_lowercase).collect())
    }

    pub(super) fn env_name(&self) -> String {
        format!("{ENV_PREFIX}{}", self.0.join("__").to_uppercase())
    }

    /// The key inside the section that `self` names.
    pub(super) fn child(&self, name: &str) -> Self {
        let mut path = self.0.clone();
        path.push(name.to_owned());
        Self(path)
    }

    /// Whether this is a section: the beginning of some setting's name.
    pub(super) fn is_section(&self) -> bool {
        SETTINGS
            .iter()
            .any(|(pattern, _)| pattern.len() > self.0.len() && self.matches(&pattern[..self.0.len()]))
    }

    fn matches(&self, pattern: &[&str]) -> bool {
        self.0.len() == pattern.len()
            && self.0.iter().zip(pattern).all(|(part, expected)| *expected == "*" || part == expected)
    }

    /// The setting that a variable of the environment names, but for its underscores: `ERRAND_LOG_LEVEL` or
    /// `ERRAND__LOG_LEVEL`, which are no names of settings.
    pub(super) fn by_words(name: &str) -> Option<Self> {
        let words: Vec<String> = name
            .strip_prefix("ERRAND_")?
            .split('_')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        SETTINGS.iter().find_map(|(pattern, _)| words_of(pattern, &words)).map(Self)
    }

    /// The setting that was probably meant by a name that does not exist.
    pub(super) fn did_you_mean(&self) -> Option<Self> {
        let wrong = self.to_string();
        let whole: Vec<Self> = SETTINGS.iter().map(|(pattern, _)| self.fill(pattern)).collect();
        let sections = whole.iter().map(|key| Self(key.0[..self.0.len().min(key.0.len() - 1)].to_vec()));
        let near = whole
            .iter()
            .cloned()
            .chain(sections)
            .filter(|key| key.0.len() == self.0.len())
            .map(|key| (distance(&wrong, &key.to_string()), key))
            .filter(|(distance, _)| *distance <= 3.min(wrong.len() / 3))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, key)| key);
        let elsewhere = || {
            let same = |pattern: &[&str]| {
                self.0.len() > 1 && pattern.last() == self.0.last().map(String::as_str).as_ref()
            };
            SETTINGS.iter().find(|(pattern, _)| same(pattern)).map(|(pattern, _)| self.fill(pattern))
        };
        near.or_else(elsewhere)
    }

    /// A pattern with the chosen names of this key where there are any.
    fn fill(&self, pattern: &[&str]) -> Self {
        let part = |(at, part): (usize, &&str)| match (*part, self.0.get(at)) {
            ("*", Some(chosen)) if pattern.len() == self.0.len() => chosen.clone(),
            ("*", _) => "<name>".to_owned(),
            (part, _) => part.to_owned(),
        };
        Self(pattern.iter().enumerate().map(part).collect())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'<' | b'>');
            if !part.is_empty() && part.bytes().all(bare) {
                f.write_str(part)?;
            } else {
                write!(f, "{part:?}")?;
            }
        }
        Ok(())
    }
}

/// The parts of a name whose words these are, by a pattern of [`SETTINGS`] of which a `*` takes one word or more.
fn words_of(pattern: &[&str], words: &[&str]) -> Option<Vec<String>> {
    let Some((part, rest)) = pattern.split_first() else { return words.is_empty().then(Vec::new) };
    let takes =
        if *part == "*" { 1..=words.len() } else { part.split('_').count()..=part.split('_').count() };
    takes.filter(|count| *count <= words.len()).find_map(|count| {
        let (taken, left) = words.split_at(count);
        let taken = taken.join("_");
        if *part != "*" && taken != *part {
            return None;
        }
        let mut parts = words_of(rest, left)?;
        parts.insert(0, taken);
        Some(parts)
    })
}

/// The number of insertions, deletions and replacements between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_misses_are_recognized_in_every_part_of_a_name() {
        let meant = |name: &str| Key::new(name).did_you_mean().map(|key| key.to_string());
        assert_eq!(meant("store.ulr").as_deref(), Some("store.url"));
        assert_eq!(meant("stor").as_deref(), Some("store"));
        assert_eq!(meant("queues.bulk.concurency").as_deref(), Some("queues.bulk.concurrency"));
        assert_eq!(meant("worker.concurrency").as_deref(), Some("queues.<name>.concurrency"));
        assert_eq!(meant("entirely.different"), None);
    }

    #[test]
    fn a_variable_with_too_few_underscores_is_recognized_and_those_of_others_are_not() {
        let meant = |name: &str| Key::by_words(name).map(|key| key.env_name());
        for (name, setting) in [
            ("ERRAND_LOG_LEVEL", "ERRAND__LOG__LEVEL"),
            ("ERRAND__LOG_LEVEL", "ERRAND__LOG__LEVEL"),
            ("ERRAND_WORKER__LEASE_SECS", "ERRAND__WORKER__LEASE_SECS"),
            ("ERRAND_CIRCUIT_BREAKER_FIRST_MS", "ERRAND__CIRCUIT_BREAKER__FIRST_MS"),
            ("ERRAND_QUEUES_BULK_CONCURRENCY", "ERRAND__QUEUES__BULK__CONCURRENCY"),
            ("ERRAND_TOOLKIT_VERSIONS_MICROSOFT_TEAMS", "ERRAND__TOOLKIT_VERSIONS__MICROSOFT_TEAMS"),
        ] {
            assert_eq!(meant(name).as_deref(), Some(setting), "{name}");
        }
        // Kubernetes puts the addresses of a service called `errand` or `errand-http` into every container.
        for name in [
            "ERRAND_PORT",
            "ERRAND_SERVICE_HOST",
            "ERRAND_PORT_9464_TCP_ADDR",
            "ERRAND_HTTP_SERVICE_PORT",
            "ERRAND_CONFIG",
            "ERRAND_TEST_PYTHON",
            "ERRAND_",
            "LOG_LEVEL",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_rule_panic(text in ".{0,40}") {
            for (_, rule) in SETTINGS {
                let _result = rule.parse(&text);
            }
        }

        #[test]
        fn the_distance_is_symmetric(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
