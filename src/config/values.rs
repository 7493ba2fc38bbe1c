//! The effective values of all settings, and where each came from.

use std::{collections::BTreeMap, fmt};

use toml::Value;

use super::{error::Origin, names::Key};

pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Default)]
pub(super) struct Settings(pub(super) BTreeMap<Key, Setting>);

impl fmt::Debug for Settings {
    /// Some values are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys().map(Key::to_string)).finish()
    }
}

impl Settings {
    pub(super) fn to_table(&self) -> toml::Table {
        // Sections may be empty, and serde wants to see each of them.
        let mut root: toml::Table =
            ["queues", "publishers", "owner_retention", "toolkit_versions", "toolkits"]
                .map(|section| (section.to_owned(), Value::Table(toml::Table::new())))
                .into_iter()
                .collect();
        for (key, setting) in &self.0 {
            let Some((last, sections)) = key.0.split_last() else { continue };
            let mut table = &mut root;
            for section in sections {
                let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(toml::Table::new()));
                let Value::Table(inner) = entry else { unreachable!("no setting is inside another setting") };
                table = inner;
            }
            table.insert(last.clone(), setting.value.clone());
        }
        root
    }

    pub(super) fn whole(&self, key: &Key) -> Option<i64> {
        self.0.get(key).and_then(|setting| setting.value.as_integer())
    }
}
