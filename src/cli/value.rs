//! Values on the command line: owners, moments, durations, input.

use std::{error::Error, io::Read as _, str::FromStr, time::Duration};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::exit;
use crate::{
    bounds::{MAX_ENVELOPE_BYTES, MAX_LIST, MAX_OVERLAP},
    job::{BYTE_ORDER_MARK, Foreign, IdError, JobId, Owner, OwnerKind, foreign},
    store::{check_decider, check_reason},
    tool::pin::{Wanted, is_slug, wanted},
};

/// The owner that a command is about, by one flag. The hidden flags are spellings of releases before.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct OwnerFlags {
    /// The owner: user:ID or org:ID.
    #[arg(long, value_name = "OWNER", value_parser = owner, required_unless_present_any = ["user", "org"],
        conflicts_with_all = ["user", "org"])]
    owner: Option<Owner>,
    #[arg(long, alias = "user-id", value_name = "ID", hide = true, conflicts_with = "org")]
    user: Option<String>,
    #[arg(long, alias = "org-id", value_name = "ID", hide = true)]
    org: Option<String>,
}

impl OwnerFlags {
    /// The owner of something new.
    pub(super) fn owner(&self) -> anyhow::Result<Owner> {
        let known = self.known()?;
        Owner::new(known.kind(), known.id()).map_err(|error| wrong_owner(&error))
    }

    /// The owner of what is there already, who may be one of the time before the rules became strict.
    pub(super) fn known(&self) -> anyhow::Result<Owner> {
        let owner = named(&self.owner, &self.user, &self.org)?;
        owner.ok_or_else(|| exit::usage("give --owner user:ID or org:ID"))
    }
}

/// An owner by one flag, or none. The hidden flags are spellings of releases before.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct AnyOwner {
    /// Of this owner: user:ID or org:ID.
    #[arg(long, value_name = "OWNER", value_parser = owner, conflicts_with_all = ["user", "org"])]
    owner: Option<Owner>,
    #[arg(long, alias = "user-id", value_name = "ID", hide = true, conflicts_with = "org")]
    user: Option<String>,
    #[arg(long, alias = "org-id", value_name = "ID", hide = true)]
    org: Option<String>,
}

impl AnyOwner {
    /// The owner, who may be one of the time before the rules became strict.
    pub(super) fn owner(&self) -> anyhow::Result<Option<Owner>> {
        named(&self.owner, &self.user, &self.org)
    }
}

fn named(
    owner: &Option<Owner>,
    user: &Option<String>,
    org: &Option<String>,
) -> anyhow::Result<Option<Owner>> {
    let (kind, id) = match (user, org) {
        (Some(id), _) => (OwnerKind::User, id),
        (None, Some(id)) => (OwnerKind::Org, id),
        (None, None) => return Ok(owner.clone()),
    };
    Owner::known(kind, id.as_str()).map(Some).map_err(|error| wrong_owner(&error))
}

fn wrong_owner(error: &impl std::fmt::Display) -> anyhow::Error {
    exit::usage(format!("--owner {error}"))
}

/// One of a few words, which errors and completions of shells name.
pub(super) fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

/// The ID of a rejected message.
pub(super) fn message_id(text: &str) -> Result<Uuid, IdError> {
    text.parse().map(|JobId(id)| id)
}

/// An owner in the spelling `user:ID` or `org:ID`, for new rows.
pub(super) fn new_owner(text: &str) -> Result<Owner, String> {
    let known = owner(text)?;
    Owner::new(known.kind(), known.id()).map_err(|error| format!("it {error}"))
}

/// An owner in the spelling `user:ID` or `org:ID`, to find rows by.
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    text.parse().map_err(|error| format!("it {error}; write user:ID or org:ID"))
}

/// A moment: RFC 3339, or `+10m` from now by this host's clock.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    match text.strip_prefix('+') {
        Some(ahead) => {
            let ahead = duration(ahead)?;
            SignedDuration::try_from(ahead)
                .ok()
                .and_then(|ahead| Timestamp::now().checked_add(ahead).ok())
                .ok_or_else(|| "it is too far ahead".to_owned())
        }
        None => text.parse().map_err(|_| {
            "write a moment such as 2026-01-31T09:00:00Z, or a time from now such as +10m".to_owned()
        }),
    }
}

/// A moment in the past: RFC 3339, or a time ago such as `24h` by this host's clock.
pub(super) fn past(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let wrong =
        |_| "write a moment such as 2026-01-31T09:00:00Z, or a time ago such as 90s, 24h or 7d".to_owned();
    let ago = SignedDuration::try_from(duration(text).map_err(wrong)?);
    ago.ok()
        .and_then(|ago| Timestamp::now().checked_sub(ago).ok())
        .ok_or_else(|| "it is too long ago".to_owned())
}

/// A number of at least 1 and at most this.
pub(super) fn most<const MOST: u64>(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if (1..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("write a number from 1 to {MOST}")),
    }
}

/// A duration with its unit: `90s`, `10m`, `1h30m`, `2d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time with its unit, such as 90s, 10m, 1h30m or 500ms".to_owned();
    // A number without a unit could mean anything, and a sign or `ago` could only be a mistake.
    let starts_with_a_number = text.starts_with(|c: char| c.is_ascii_digit());
    if !starts_with_a_number || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()) {
        return Ok(Duration::from_secs(u64::from(days) * 86_400));
    }
    let parsed: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(parsed).map_err(|_| wrong())
}

/// How long what is replaced stays valid beside what takes its place.
pub(super) fn overlap(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|time| if time > MAX_OVERLAP { Err("it may be 90d at most".to_owned()) } else { Ok(time) })
}

/// Whole milliseconds, as envelopes have them.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit) if (1..=MAX_LIST).contains(&limit) => Ok(limit),
        _ => Err(format!("write a number from 1 to {MAX_LIST}")),
    }
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "write key=value".to_owned())
}

/// Why a queue is paused.
pub(super) fn reason(text: &str) -> Result<String, String> {
    check_reason(text).map(|()| text.to_owned())
}

/// The name of somebody who decides about jobs.
pub(super) fn decider(text: &str) -> Result<String, String> {
    check_decider(text).map(|()| text.to_owned())
}

pub(super) fn toolkit(text: &str) -> Result<String, String> {
    if is_slug(text) {
        Ok(text.to_owned())
    } else {
        Err("toolkits are spelt in lower case, such as github".to_owned())
    }
}

/// A literal toolkit version, by the rule that jobs are read by.
pub(super) fn version(text: &str) -> Result<String, String> {
    match wanted(Some(text)) {
        Ok(Wanted::Exact(version)) => Ok(version.to_owned()),
        _ => Err("write a version such as 20251027_00; `errand tools show` lists them".to_owned()),
    }
}

/// The text of an argument that may name a file (`@file`) or standard input (`-`), up to the largest envelope.
pub(super) fn text_or_file(argument: &str) -> anyhow::Result<String> {
    let limit = MAX_ENVELOPE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let read = if argument == "-" {
        std::io::stdin().take(limit).read_to_end(&mut bytes)
    } else if let Some(path) = argument.strip_prefix('@') {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    } else {
        return Ok(argument.to_owned());
    };
    read.map_err(|error| exit::usage(format!("cannot read {argument}: {error}")))?;
    if bytes.len() > MAX_ENVELOPE_BYTES {
        return Err(exit::usage(format!("{argument} has more than {MAX_ENVELOPE_BYTES} bytes")));
    }
    match foreign(&bytes) {
        None => {}
        Some(Foreign::Marked) => drop(bytes.drain(..BYTE_ORDER_MARK.len())),
        Some(other) => return Err(not_plain(argument, other)),
    }
    String::from_utf8(bytes).map_err(|_| exit::usage(format!("{argument} is not text in UTF-8")))
}

/// The error about an input in another encoding.
pub(super) fn not_plain(input: &str, encoding: Foreign) -> anyhow::Error {
    exit::usage(format!("{input} is {encoding}; make it plain text in UTF-8 first"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{config::load_text, tool::pin};

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "10", "-5s", "soon", "+1m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_absolute_or_from_now() {
        assert_eq!(moment("2026-01-31T09:00:00Z").unwrap().to_string(), "2026-01-31T09:00:00Z");
        let ahead = moment("+10m").unwrap().duration_since(Timestamp::now()).as_secs();
        assert!((598..=600).contains(&ahead), "{ahead}");
        for bad in ["tomorrow", "+soon", "10m", "2026-01-31"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        // Each case reads the whole configuration twice.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// `latest` is a wish and no version: a job may have it, and the policy for unpinned jobs decides;
        /// nothing can be pinned to it.
        #[test]
        fn a_toolkit_version_is_one_for_jobs_settings_environment_and_command_line_alike(
            text in prop_oneof![
                "[0-9]{8}_[0-9]{2}",
                "[ \\n]{0,2}[0-9]{8}_[0-9]{2}[ \\t]{0,2}",
                "[0-9_]{7,14}",
                Just("latest".to_owned()),
                ".{0,12}",
            ],
        ) {
            let job = match wanted(Some(&text)) {
                Ok(Wanted::Exact(version)) => Some(version),
                Ok(Wanted::Nothing | Wanted::Latest) | Err(_) => None,
            };
            let blank = wanted(Some(&text)) == Ok(Wanted::Nothing);

            let quoted = toml::Value::String(text.clone());
            let file = load_text(&format!("[toolkit_versions]\nx = {quoted}\n"), &BTreeMap::new());
            prop_assert_eq!(file.is_ok(), job.is_some() || blank);
            let pinned = file.ok().and_then(|loaded| loaded.config.toolkit_versions.get("x").cloned());
            prop_assert_eq!(pinned.as_deref(), job);

            let env = BTreeMap::from([(pin::env_name("x"), text.clone())]);
            let env = load_text("", &env);
            prop_assert_eq!(env.is_ok(), job.is_some() || blank);
            let pinned = env.ok().and_then(|loaded| loaded.config.env_pins.get("x").cloned());
            prop_assert_eq!(pinned.as_deref(), job);

            let pinned = version(&text).ok();
            prop_assert_eq!(pinned.as_deref(), job);
        }
    }
}
