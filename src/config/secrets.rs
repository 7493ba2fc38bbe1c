//! Secrets that are in files: `store.url_file` instead of `store.url`, `DATABASE_URL_FILE` instead of `DATABASE_URL`.

use std::path::{Path, PathBuf};

use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{error::Origin, names::Key, rule::Rule};
use crate::secret_file;

/// The end of the name of a setting that names a file with a secret, and of such a variable.
const FILE: &str = "_file";
const FILE_VARIABLE: &str = "_FILE";

/// The secret that is in the file which a setting names.
pub(super) fn named_by(key: &Key) -> Option<(Key, Rule)> {
    let (last, sections) = key.0.split_last()?;
    let mut secret = sections.to_vec();
    secret.push(last.strip_suffix(FILE)?.to_owned());
    let secret = Key(secret);
    secret.rule().filter(|rule| rule.is_secret()).map(|rule| (secret, rule))
}

/// The variable that names a file with what this one holds.
pub(super) fn file_variable(name: &str) -> String {
    format!("{name}{FILE_VARIABLE}")
}

/// What else of a section gives the same secret, as it is or by a file: its name, if it is not blank.
pub(super) fn rival(table: &DeTable<'_>, name: &str) -> Option<String> {
    let rival = name.strip_suffix(FILE).map_or_else(|| format!("{name}{FILE}"), str::to_owned);
    let is_given = |value: &DeValue<'_>| value.as_str().is_none_or(|text| !text.trim().is_empty());
    let mut entries = table.iter();
    entries.any(|(key, value)| *key.get_ref() == *rival && is_given(value.get_ref())).then_some(rival)
}

/// What is said about a secret that is given twice. The message continues the name of the setting.
pub(super) fn given_twice(one: &str, other: &str) -> String {
    format!("is given twice, by {one} and by {other}; leave one of them out")
}

/// Reads the secret in a file, and says where it came from. The message continues the name of the setting, and quotes
/// nothing of the file.
pub(super) fn read(path: &str, rule: Rule, named_by: Origin) -> (Result<Value, String>, Origin) {
    let path = PathBuf::from(path.trim());
    match secret_file::read(&path) {
        Ok(text) => (rule.parse(&text), Origin::SecretFile { path, named_by: Box::new(named_by) }),
        Err(error) => (Err(format!("is to be read from {}, which {error}", told(&path))), named_by),
    }
}

/// A file as a person may be told of it. What is no path of a folder that is there may be a secret in the wrong place.
fn told(path: &Path) -> String {
    let folder = path.parent().filter(|folder| folder.is_absolute() && folder.parent().is_some());
    match folder {
        Some(folder) if folder.is_dir() => format!("the file {}", path.display()),
        _ => "a file".to_owned(),
    }
}
