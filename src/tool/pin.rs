//! Which toolkit version a job runs. Pure: the sources of pins are given.
//!
//! The order is: the job's `version`, the owner's pin, the global pin, `toolkit_versions` in the
//! configuration, `COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>`. Blank means unset. A source that says
//! something unusable ends the search with an error: falling through to the next one would run a
//! version that nobody asked for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::job::{Owner, Pin, PinnedBy};

/// The first version of every toolkit, under which tools are found that were renamed later.
pub const BASE_VERSION: &str = "00000000_00";

/// The word for the newest version. It moves, so nothing runs with it.
pub const LATEST: &str = "latest";

const ENV_PREFIX: &str = "COMPOSIO_TOOLKIT_VERSION_";

/// Versions by lower-case toolkit slug.
pub type VersionMap = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// Blank or absent.
    Nothing,
    Latest,
    Exact(&'a str),
}

/// A text that is neither blank, nor `latest`, nor a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a toolkit version: write `YYYYMMDD_NN`, for example `20251027_00`")]
pub struct VersionError;

/// What the sources of pins say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Pinned {
        version: String,
        by: PinnedBy,
    },
    /// The first source that says anything says `latest`.
    Latest {
        by: PinnedBy,
    },
    /// The first source that says anything says something unusable.
    Malformed {
        version: String,
        by: PinnedBy,
    },
    Unpinned,
}

/// Whether a text is a literal version: eight digits, an underscore, two digits. The digits are not
/// checked to be a date, because the API has published some that are not.
pub fn is_version(text: &str) -> bool {
    let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    matches!(text.as_bytes(), [date @ .., b'_', n1, n2] if date.len() == 8 && digits(date) && digits(&[*n1, *n2]))
}

/// Reads a version as a job, a pin, a setting or the environment gives it: the one rule for all of them. Blanks
/// around a version do not count.
///
/// # Errors
/// [`VersionError`] when it is neither blank nor a version nor `latest`.
pub fn wanted(text: Option<&str>) -> Result<Wanted<'_>, VersionError> {
    match text.map(str::trim) {
        None | Some("") => Ok(Wanted::Nothing),
        Some(LATEST) => Ok(Wanted::Latest),
        Some(version) if is_version(version) => Ok(Wanted::Exact(version)),
        Some(_) => Err(VersionError),
    }
}

/// Decides by precedence, by what each source says of the toolkit in question, in the order of [`PinnedBy`].
pub fn decide(said: [Option<&str>; 5]) -> Decision {
    for (text, by) in said.into_iter().zip(PinnedBy::ALL.iter().copied()) {
        match wanted(text) {
            Ok(Wanted::Nothing) => {}
            Ok(Wanted::Latest) => return Decision::Latest { by },
            Ok(Wanted::Exact(version)) => return Decision::Pinned { version: version.to_owned(), by },
            Err(VersionError) => {
                return Decision::Malformed { version: text.unwrap_or_default().trim().to_owned(), by };
            }
        }
    }
    Decision::Unpinned
}

/// The newest of some versions; texts that are no versions do not count. The API lists versions in
/// no guaranteed order, and their spelling sorts by time.
pub fn newest<'a>(versions: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    versions.into_iter().filter(|version| is_version(version)).max()
}

pub fn env_name(toolkit: &str) -> String {
    format!("{ENV_PREFIX}{}", toolkit.to_uppercase())
}

/// The toolkit that an environment variable pins, in lower case; `None` for any other variable.
pub fn env_toolkit(variable: &str) -> Option<String> {
    variable.strip_prefix(ENV_PREFIX).filter(|toolkit| !toolkit.is_empty()).map(str::to_lowercase)
}

/// A snapshot of the store's pins.
#[derive(Debug, Default)]
pub struct PinTable {
    global: HashMap<String, String>,
    owners: HashMap<Owner, HashMap<String, String>>,
}

impl PinTable {
    pub fn new(rows: Vec<Pin>) -> Self {
        let mut table = Self::default();
        for Pin { owner, toolkit, version } in rows {
            let pins = match owner {
                Some(owner) => table.owners.entry(owner).or_default(),
                None => &mut table.global,
            };
            pins.insert(toolkit.to_lowercase(), version);
        }
        table
    }
}

/// All sources of pins but the job itself. Cheap to clone; a new snapshot of the store's pins
/// replaces the table.
#[derive(Debug, Clone, Default)]
pub struct PinSources {
    pub table: Arc<PinTable>,
    /// `toolkit_versions` in the configuration.
    pub config: Arc<VersionMap>,
    /// `COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>` in the environment, as the configuration reads it.
    pub env: Arc<VersionMap>,
}

impl PinSources {
    /// Decides the version of a job of this owner whose tool belongs to this toolkit.
    pub fn decide(&self, asked: Option<&str>, owner: &Owner, toolkit: &str) -> Decision {
        let own = self.table.owners.get(owner).and_then(|pins| pins.get(toolkit));
        let pins = [own, self.table.global.get(toolkit), self.config.get(toolkit), self.env.get(toolkit)];
        let [own, global, config, env] = pins.map(|pin| pin.map(String::as_str));
        decide([asked, own, global, config, env])
    }

    /// The toolkits that are pinned for this owner by any source and whose slug, in upper case, begins
    /// the tool's slug; longest first. Only a guess of where to look: what a tool belongs to is said
    /// by its description alone.
    pub(super) fn candidates(&self, owner: &Owner, tool: &str) -> Vec<String> {
        let pinned = self.table.owners.get(owner).into_iter().flat_map(HashMap::keys);
        let pinned = pinned.chain(self.table.global.keys()).chain(self.config.keys()).chain(self.env.keys());
        let mut found: Vec<String> = pinned
            .filter(|toolkit| {
                tool.strip_prefix(toolkit.to_uppercase().as_str()).is_some_and(|rest| rest.starts_with('_'))
            })
            .cloned()
            .collect();
        found.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        found.dedup();
        found
    }
}

/// Whether a text is the slug of a toolkit as it is spelt here, in lower case.
pub fn is_slug(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    !text.is_empty() && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::OwnerKind;

    fn owner(id: &str) -> Owner {
        Owner::new(OwnerKind::User, id).unwrap()
    }

    #[test]
    fn versions_are_told_from_other_texts() {
        for good in ["20251027_00", "00000000_00", "12082025_00", "99999999_99"] {
            assert_eq!(wanted(Some(good)), Ok(Wanted::Exact(good)));
        }
        assert_eq!(wanted(Some(" 20251027_00\n")), Ok(Wanted::Exact("20251027_00")));
        assert_eq!(wanted(Some("latest")), Ok(Wanted::Latest));
        for blank in [None, Some(""), Some(" \t")] {
            assert_eq!(wanted(blank), Ok(Wanted::Nothing));
        }
        for bad in [
            "20251027",
            "20251027-00",
            "2025102_000",
            "v20251027_00",
            "20251027_0",
            "20251027_000",
            "LATEST",
            "２0251027_00",
            "_00",
        ] {
            assert_eq!(wanted(Some(bad)), Err(VersionError), "{bad}");
        }
    }

    #[test]
    fn the_environment_pins_toolkits_by_the_rest_of_the_name() {
        assert_eq!(env_name("microsoft_teams"), "COMPOSIO_TOOLKIT_VERSION_MICROSOFT_TEAMS");
        assert_eq!(env_toolkit(&env_name("microsoft_teams")).as_deref(), Some("microsoft_teams"));
        for other in ["COMPOSIO_TOOLKIT_VERSION_", "COMPOSIO_API_KEY", ""] {
            assert_eq!(env_toolkit(other), None, "{other}");
        }
    }

    #[test]
    fn the_table_gives_an_owner_its_own_pins_and_nobody_elses() {
        let row = |owner: Option<&Owner>, toolkit: &str, version: &str| Pin {
            owner: owner.cloned(),
            toolkit: toolkit.into(),
            version: version.into(),
        };
        let alice = owner("u-alice");
        let org = Owner::new(OwnerKind::Org, "u-alice").unwrap();
        let table = PinTable::new(vec![
            row(None, "GitHub", "20250101_00"),
            row(Some(&alice), "github", "20250202_00"),
        ]);
        let sources = PinSources { table: Arc::new(table), ..PinSources::default() };
        let version = |asked, owner: &Owner| sources.decide(asked, owner, "github");
        let pinned = |version: &str, by| Decision::Pinned { version: version.into(), by };
        assert_eq!(version(None, &alice), pinned("20250202_00", PinnedBy::Owner));
        assert_eq!(version(None, &org), pinned("20250101_00", PinnedBy::Global));
        assert_eq!(version(None, &owner("u-bob")), pinned("20250101_00", PinnedBy::Global));
        assert_eq!(version(Some("20240101_00"), &alice), pinned("20240101_00", PinnedBy::Job));
        assert_eq!(sources.decide(None, &alice, "slack"), Decision::Unpinned);
    }

    #[test]
    fn candidates_are_the_pinned_toolkits_that_begin_the_slug() {
        let config: VersionMap =
            ["google", "google_maps", "maps", "goo"].map(|slug| (slug.into(), "20250101_00".into())).into();
        let sources =
            PinSources { config: Arc::new(config.clone()), env: Arc::new(config), ..PinSources::default() };
        assert_eq!(sources.candidates(&owner("u"), "GOOGLE_MAPS_SEARCH"), ["google_maps", "google"]);
    }

    #[test]
    fn the_newest_version_does_not_depend_on_the_order() {
        let listed = ["20251027_00", "latest", "00000000_00", "20251027_01", "garbage", "20250905_00"];
        assert_eq!(newest(listed), Some("20251027_01"));
        assert_eq!(newest(listed.iter().rev().copied()), Some("20251027_01"));
        assert_eq!(newest(["latest"]), None);
    }

    /// What a source may say.
    fn say() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            2 => Just(None),
            1 => Just(Some("  ".to_owned())),
            1 => Just(Some("latest".to_owned())),
            1 => Just(Some("nonsense".to_owned())),
            3 => "[0-9]{8}_[0-9]{2}".prop_map(Some),
        ]
    }

    proptest! {
        #[test]
        fn the_first_source_that_says_anything_decides(said in prop::array::uniform5(say())) {
            let decision = decide(said.each_ref().map(Option::as_deref));
            let first = said
                .iter()
                .zip(PinnedBy::ALL)
                .find(|(text, _)| text.as_deref().is_some_and(|text| !text.trim().is_empty()));
            let expected = match first {
                None => Decision::Unpinned,
                Some((text, by)) => match text.as_deref().unwrap() {
                    "latest" => Decision::Latest { by: *by },
                    "nonsense" => Decision::Malformed { version: "nonsense".into(), by: *by },
                    version => Decision::Pinned { version: version.into(), by: *by },
                },
            };
            prop_assert_eq!(decision, expected);
        }

        #[test]
        fn no_text_makes_the_check_panic(text in any::<String>()) {
            let _wanted = wanted(Some(&text));
            prop_assert_eq!(is_version(&text), matches!(wanted(Some(&text)), Ok(Wanted::Exact(version)) if version == text));
        }
    }
}
