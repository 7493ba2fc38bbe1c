//! What each setting may be: its name, its type and its bounds. `default.toml` says what it means.

use std::{fmt, net::SocketAddr};

use toml::Value;
use tracing_subscriber::filter::Targets;
use url::Url;

use crate::{
    bounds::{MAX_AGE, MAX_ATTEMPTS, MAX_SHORT_TEXT_BYTES, MAX_TIMEOUT},
    job::{OwnerKind, QueueName},
    telemetry::logging::LogFormat,
    tool::{
        catalog::UnpinnedPolicy,
        composio::HttpVersion,
        pin::{Wanted, wanted},
    },
};

/// Most calls that one worker process runs at once for one lane.
const MAX_CONCURRENCY: i64 = 20_000;

/// Most jobs per round of the relay or the rescue.
const MAX_BATCH: i64 = 10_000;

/// The prefix of the environment variables that reach every setting. Names with a single `_` are not ours: a
/// service called `errand` in Kubernetes puts `ERRAND_PORT` and the like into every container.
pub(super) const ENV_PREFIX: &str = "ERRAND__";

const DAY_SECS: i64 = 86_400;
const DAY_MS: i64 = DAY_SECS * 1_000;

/// Every setting, in the order of `default.toml`. A `*` stands for a name that people choose.
pub(super) const SETTINGS: &[(&[&str], Rule)] = &[
    (&["store", "url"], Rule::Service(&["postgres", "postgresql", "sqlite"])),
    (&["store", "hot_connections"], Rule::Whole(1, 1_000)),
    (&["store", "other_connections"], Rule::Whole(1, 1_000)),
    (&["store", "migrate_at_start"], Rule::Flag),
    (&["store", "statement_timeout_ms"], Rule::Whole(100, 3_600_000)),
    (&["amqp", "url"], Rule::Service(&["amqp", "amqps"])),
    (&["amqp", "queue_type"], Rule::Word(&["quorum", "classic"])),
    (&["amqp", "declare"], Rule::Flag),
    (&["amqp", "heartbeat_secs"], Rule::Whole(1, 3_600)),
    (&["queues", "*", "concurrency"], Rule::Whole(1, MAX_CONCURRENCY)),
    (&["worker", "name"], Rule::Text),
    (&["worker", "queues"], Rule::Lanes),
    (&["worker", "lease_secs"], Rule::Whole(2, 3_600)),
    (&["worker", "heartbeat_secs"], Rule::Whole(1, 600)),
    (&["worker", "drain_secs"], Rule::Whole(0, 3_600)),
    (&["worker", "accept_unidentified"], Rule::Flag),
    (&["worker", "max_buffered_bytes"], Rule::Whole(65_536, 1 << 36)),
    (&["worker", "journal_dir"], Rule::Text),
    (&["relay", "poll_ms"], Rule::Whole(10, 60_000)),
    (&["relay", "batch"], Rule::Whole(1, MAX_BATCH)),
    (&["relay", "unclaimed_secs"], Rule::Whole(1, 3_600)),
    (&["rescue", "poll_secs"], Rule::Whole(1, 3_600)),
    (&["rescue", "batch"], Rule::Whole(1, MAX_BATCH)),
    (&["verify", "enabled"], Rule::Flag),
    (&["verify", "poll_ms"], Rule::Whole(10, 3_600_000)),
    (&["verify", "batch"], Rule::Whole(1, 100)),
    (&["verify", "first_ms"], Rule::Whole(1, 3_600_000)),
    (&["verify", "max_ms"], Rule::Whole(1, 3_600_000)),
    (&["verify", "settle_secs"], Rule::Whole(0, DAY_SECS)),
    (&["verify", "give_up_secs"], Rule::Whole(0, 30 * DAY_SECS)),
    (&["audit", "enabled"], Rule::Flag),
    (&["audit", "every_secs"], Rule::Whole(1, DAY_SECS)),
    (&["audit", "repair"], Rule::Flag),
    (&["connections", "enabled"], Rule::Flag),
    (&["connections", "poll_ms"], Rule::Whole(10, 3_600_000)),
    (&["connections", "batch"], Rule::Whole(1, 100)),
    (&["connections", "first_ms"], Rule::Whole(1, DAY_MS)),
    (&["connections", "max_ms"], Rule::Whole(1, DAY_MS)),
    (&["outage", "after"], Rule::Whole(1, 1_000_000)),
    (&["outage", "first_ms"], Rule::Whole(1, 3_600_000)),
    (&["outage", "max_ms"], Rule::Whole(1, 3_600_000)),
    (&["retry", "initial_ms"], Rule::Whole(1, DAY_MS)),
    (&["retry", "max_ms"], Rule::Whole(1, DAY_MS)),
    (&["retry", "multiplier"], Rule::Number(1.0, 100.0)),
    (&["retry", "jitter"], Rule::Number(0.0, 1.0)),
    (&["retry", "max_attempts"], Rule::Whole(1, MAX_ATTEMPTS as i64)),
    (&["retry", "max_retry_after_secs"], Rule::Whole(1, 7 * DAY_SECS)),
    (&["retry", "max_throttled_secs"], Rule::Whole(1, MAX_AGE.as_secs() as i64)),
    (&["composio", "base_url"], Rule::BaseUrl),
    (&["composio", "api_key"], Rule::Key),
    (&["composio", "api_path"], Rule::Path),
    (&["composio", "http_version"], Rule::Word(HttpVersion::WORDS)),
    (&["composio", "timeout_ms"], Rule::Whole(1, MAX_TIMEOUT.as_millis() as i64)),
    (&["composio", "connect_timeout_ms"], Rule::Whole(1, MAX_TIMEOUT.as_millis() as i64)),
    (&["composio", "max_response_bytes"], Rule::Whole(1_024, 1 << 30)),
    (&["composio", "tool_cache_secs"], Rule::Whole(0, 7 * DAY_SECS)),
    (&["composio", "account_cache_secs"], Rule::Whole(0, DAY_SECS)),
    (&["pins", "unpinned"], Rule::Word(UnpinnedPolicy::WORDS)),
    (&["toolkit_versions", "*"], Rule::Version),
    (&["toolkits", "*", "owned_by"], Rule::Word(OwnerKind::WORDS)),
    (&["owners", "allow_default"], Rule::Flag),
    (&["owners", "refuse_email"], Rule::Flag),
    (&["http", "listen"], Rule::Address),
    (&["log", "format"], Rule::Word(LogFormat::WORDS)),
    (&["log", "level"], Rule::Filter),
    (&["runtime", "threads"], Rule::Whole(0, 1_024)),
];

/// The type and the bounds of a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// `true` or `false`.
    Flag,
    /// A whole number within bounds, both included.
    Whole(i64, i64),
    /// A number within bounds, both included.
    Number(f64, f64),
    /// A short printable text, or empty.
    Text,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// The URL of a service with one of these schemes, or empty. May hold a password.
    Service(&'static [&'static str]),
    /// A key, or empty. A secret.
    Key,
    /// The http(s) URL of the tool API.
    BaseUrl,
    /// A path under a URL.
    Path,
    /// Names of lanes.
    Lanes,
    /// A literal toolkit version, or blank, by the rule that jobs are read by.
    Version,
    /// Address and port, or empty.
    Address,
    /// A filter of log lines.
    Filter,
}

impl Rule {
    /// The rule of a setting, if there is such a setting.
    pub(super) fn of(key: &Key) -> Option<Self> {
        SETTINGS.iter().find(|(pattern, _)| key.matches(pattern)).map(|(_, rule)| *rule)
    }

    /// Whether the value must not be shown as it is.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::Service(_) | Self::Key)
    }

    /// Reads a value of the environment, which knows only text.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Flag => match text.trim().to_ascii_lowercase().as_str() {
                "true" => Value::Boolean(true),
                "false" => Value::Boolean(false),
                _ => return Err(format!("must be {}", self.expected())),
            },
            Self::Whole(..) => match text.trim().replace('_', "").parse() {
                Ok(number) => Value::Integer(number),
                Err(_) => return Err(format!("must be {}", self.expected())),
            },
            Self::Number(..) => match text.trim().replace('_', "").parse() {
                Ok(number) => Value::Float(number),
                Err(_) => return Err(format!("must be {}", self.expected())),
            },
            Self::Lanes => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(|name| Value::String(name.to_owned()))
                    .collect(),
            ),
            Self::Text
            | Self::Word(_)
            | Self::Service(_)
            | Self::Key
            | Self::BaseUrl
            | Self::Path
            | Self::Version
            | Self::Address
            | Self::Filter => Value::String(text.trim().to_owned()),
        };
        self.accept(value)
    }

    /// Checks a value, and returns it as the configuration reads it. The message continues the name
    /// of the setting. It quotes numbers but never text, because a text could be a secret that was
    /// put in the wrong place.
    pub(super) fn accept(self, value: Value) -> Result<Value, String> {
        let expected = self.expected();
        match (self, value) {
            (Self::Flag, value @ Value::Boolean(_)) => Ok(value),
            (Self::Whole(min, max), Value::Integer(number)) => {
                if (min..=max).contains(&number) {
                    Ok(Value::Integer(number))
                } else {
                    Err(format!("must be {expected}, but is {number}"))
                }
            }
            (Self::Number(min, max), Value::Float(number)) => accept_number(min, max, number, &expected),
            #[expect(clippy::cast_precision_loss, reason = "the bounds are far below 2^53")]
            (Self::Number(min, max), Value::Integer(number)) => {
                accept_number(min, max, number as f64, &expected)
            }
            (Self::Lanes, Value::Array(names)) => {
                let fits = |name: &Value| name.as_str().is_some_and(|name| name.parse::<QueueName>().is_ok());
                if names.iter().all(fits) {
                    Ok(Value::Array(names))
                } else {
                    Err(format!("must be {expected}"))
                }
            }
            (Self::Flag | Self::Whole(..) | Self::Number(..) | Self::Lanes, other) => {
                Err(format!("must be {expected}, but is {}", type_name(&other)))
            }
            (_, Value::String(text)) => match self.unfit_text(&text) {
                None if self == Self::Version => Ok(Value::String(text.trim().to_owned())),
                None => Ok(Value::String(text)),
                Some(hint) => Err(format!("must be {expected}{hint}")),
            },
            (_, other) => Err(format!("must be {expected}, but is {}", type_name(&other))),
        }
    }

    /// What is wrong with a text, as a continuation of what was expected; empty where that says it.
    fn unfit_text(self, text: &str) -> Option<&'static str> {
        let fits = match self {
            Self::Text => text.len() <= MAX_SHORT_TEXT_BYTES && !text.chars().any(char::is_control),
            Self::Word(words) => words.contains(&text),
            Self::Service(schemes) => {
                return match Url::parse(text) {
                    _ if text.is_empty() => None,
                    Ok(url) if !schemes.contains(&url.scheme()) => Some(", but has another scheme"),
                    Ok(url) if url.scheme() == "sqlite" => match text.strip_prefix("sqlite://") {
                        Some(path) if !path.is_empty() => None,
                        _ => Some(", and SQLite as sqlite:///path/to/file"),
                    },
                    Ok(url) if !url.has_host() => Some(", but names no host"),
                    Ok(_) => None,
                    Err(_) => {
                        Some(", but cannot be read; special characters in a password must be percent-encoded")
                    }
                };
            }
            Self::Key => text.bytes().all(|byte| byte.is_ascii_graphic()),
            Self::BaseUrl => {
                return match Url::parse(text) {
                    Ok(url) if !matches!(url.scheme(), "http" | "https") => Some(", but has another scheme"),
                    Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                        Some(" without user and password; the key belongs in `composio.api_key`")
                    }
                    Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                        Some(" without query and fragment")
                    }
                    Ok(_) => None,
                    Err(_) => Some(""),
                };
            }
            Self::Path => {
                text.starts_with('/')
                    && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
            }
            Self::Version => matches!(wanted(Some(text)), Ok(Wanted::Nothing | Wanted::Exact(_))),
            Self::Address => text.is_empty() || text.parse::<SocketAddr>().is_ok(),
            Self::Filter => is_filter(text),
            Self::Flag | Self::Whole(..) | Self::Number(..) | Self::Lanes => true,
        };
        if fits { None } else { Some("") }
    }

    fn expected(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Text => format!("text of at most {MAX_SHORT_TEXT_BYTES} printable bytes"),
            Self::Word(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                quoted.join(" or ")
            }
            Self::Service(schemes) => format!("a URL that starts with {}:", schemes.join(": or ")),
            Self::Key => "text of visible ASCII characters, without blanks".to_owned(),
            Self::BaseUrl => "a URL that starts with http: or https:".to_owned(),
            Self::Path => "a path that starts with \"/\", without query".to_owned(),
            Self::Lanes => "a list of queue names (lower-case letters, digits, \"_\", \"-\", \".\")".to_owned(),
            Self::Version => "a toolkit version such as \"20251027_00\" or \"00000000_00\"".to_owned(),
            Self::Address => "an address and a port such as \"127.0.0.1:9464\", or empty".to_owned(),
            Self::Filter => {
                "a filter such as \"info\" or \"info,errand=debug\" (levels: off, error, warn, info, debug, trace)"
                    .to_owned()
            }
        }
    }
}

fn accept_number(min: f64, max: f64, number: f64, expected: &str) -> Result<Value, String> {
    if (min..=max).contains(&number) {
        Ok(Value::Float(number))
    } else {
        Err(format!("must be {expected}, but is {number}"))
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Whether a text filters log lines. A word that is not a level would be read as the name of a
/// module, so that a misspelt level silently showed nothing; hence the check of bare words.
fn is_filter(text: &str) -> bool {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let bare_words_are_levels =
        text.split(',').map(str::trim).all(|part| part.contains('=') || part.contains('[') || is_level(part));
    bare_words_are_levels && text.parse::<Targets>().is_ok()
}

/// The name of a setting: its section and its key, and for some a chosen name in between.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) Vec<String>);

impl Key {
    /// The key of a path such as `["store", "url"]`.
    pub(super) fn new(path: &[&str]) -> Self {
        Self(path.iter().map(|part| (*part).to_owned()).collect())
    }

    /// The key in the spelling of `ERRAND__SECTION__KEY`, without the prefix.
    pub(super) fn from_env(rest: &str) -> Self {
        Self(rest.split("__").map(str::to_lowercase).collect())
    }

    /// The name of the environment variable that sets it.
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
    fn a_misspelt_level_is_not_a_filter() {
        for good in ["info", "INFO", "warn,errand=debug", "off", "errand::store=trace,lapin=off"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "inof", "debug,errand", "errand=loud"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }

    #[test]
    fn near_misses_are_recognized_in_every_part_of_a_name() {
        let meant = |path: &[&str]| Key::new(path).did_you_mean().map(|key| key.to_string());
        assert_eq!(meant(&["store", "ulr"]).as_deref(), Some("store.url"));
        assert_eq!(meant(&["stor"]).as_deref(), Some("store"));
        assert_eq!(meant(&["queues", "bulk", "concurency"]).as_deref(), Some("queues.bulk.concurrency"));
        assert_eq!(meant(&["worker", "concurrency"]).as_deref(), Some("queues.<name>.concurrency"));
        assert_eq!(meant(&["entirely", "different"]), None);
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
