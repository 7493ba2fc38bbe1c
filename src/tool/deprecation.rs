//! The notice that a toolkit version will go away, in words.

use std::fmt;

use jiff::Timestamp;

/// What the header `Composio-Deprecated-Toolkits` says about one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deprecation {
    /// Since when it is deprecated, or will be.
    pub deprecated_at: Option<Timestamp>,
    /// From when on it is gone.
    pub sunset_at: Option<Timestamp>,
    pub reason: Option<String>,
}

impl Deprecation {
    /// The entry of a header for this version of a toolkit: `"GITHUB";version="20250905_00";deprecated=@1779840000`.
    /// Entries are separated by commas.
    pub fn find(header: &str, toolkit: &str, version: &str) -> Option<Self> {
        split(header, ',').into_iter().find_map(|entry| {
            let mut parts = split(entry, ';').into_iter().map(str::trim);
            let is_toolkit = parts.next().is_some_and(|name| unquoted(name).eq_ignore_ascii_case(toolkit));
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let value = |wanted: &str| {
                let found = parameters.iter().find(|(name, _)| *name == wanted);
                found.map(|(_, value)| unquoted(value))
            };
            let time = |name| {
                let seconds = value(name)?.strip_prefix('@')?.parse().ok()?;
                Timestamp::from_second(seconds).ok()
            };
            (is_toolkit && value("version") == Some(version)).then(|| Self {
                deprecated_at: time("deprecated"),
                sunset_at: time("sunset"),
                reason: value("reason").filter(|reason| !reason.is_empty()).map(str::to_owned),
            })
        })
    }
}

impl fmt::Display for Deprecation {
    /// Continues a sentence that begins with the version.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
        f.write_str("is deprecated")?;
        if let Some(at) = self.deprecated_at {
            write!(f, " from {} on", day(at))?;
        }
        if let Some(at) = self.sunset_at {
            write!(f, ", and gone from {} on", day(at))?;
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// The parts between separators that are not quoted.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut is_quoted = false;
    text.split(|c| {
        is_quoted ^= c == '"';
        c == separator && !is_quoted
    })
    .collect()
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_notice_is_read_for_its_version_only() {
        let header = r#""GMAIL";version="20250101_00", "GITHUB";version="20250905_00";deprecated=@1779840000;sunset=@1787788800;reason="life; cycle, v3""#;
        let found = Deprecation::find(header, "github", "20250905_00").unwrap();
        assert_eq!(
            found.to_string(),
            "is deprecated from 2026-05-27 on, and gone from 2026-08-27 on (life; cycle, v3)"
        );
        let bare = Deprecation::find(header, "gmail", "20250101_00").unwrap();
        assert_eq!(bare.to_string(), "is deprecated");
        assert_eq!(Deprecation::find(header, "github", "20251027_00"), None);
        assert_eq!(Deprecation::find("nonsense", "github", "20250905_00"), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header in "[\"a-z;=@, 0-9]{0,60}") {
            let _found = Deprecation::find(&header, "a", "b");
        }
    }
}
