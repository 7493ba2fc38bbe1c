//! The name of the schema that errand's tables are in.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// The longest that PostgreSQL keeps whole, in bytes.
const MAX_BYTES: usize = 63;

/// A plain identifier: lower-case letters, digits and underscores, no digit first, and none of the server's own. It
/// means the same with and without quotes, in statements and in settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SchemaName(String);

/// A text is not the name of a schema that errand may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a schema: lower-case letters, digits and underscores, no digit first, at most {MAX_BYTES} of them, and \
     not `pg_...` or `information_schema`"
)]
pub struct NoSchemaName;

impl SchemaName {
    /// The name as it is, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a name means the same with and without quotes, and is not of the sort that the server keeps for itself.
pub(super) fn is_plain(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !text.is_empty()
        && text.len() <= MAX_BYTES
        && text.bytes().all(fits)
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.starts_with("pg_")
}

impl FromStr for SchemaName {
    type Err = NoSchemaName;

    fn from_str(text: &str) -> Result<Self, NoSchemaName> {
        if is_plain(text) && text != "information_schema" {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoSchemaName)
        }
    }
}

impl TryFrom<String> for SchemaName {
    type Error = NoSchemaName;

    fn try_from(text: String) -> Result<Self, NoSchemaName> {
        text.parse()
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_has_a_plain_name_that_is_none_of_the_servers() {
        let longest = "a".repeat(63);
        for good in ["errand", "public", "_e1", "user", longest.as_str()] {
            assert_eq!(good.parse::<SchemaName>().map(|name| name.to_string()).as_deref(), Ok(good));
        }
        let too_long = "a".repeat(64);
        for bad in
            ["", "Errand", "1a", "a b", "a\"b", "a,b", "a-b", "é", "pg_temp", "information_schema", &too_long]
        {
            assert_eq!(bad.parse::<SchemaName>(), Err(NoSchemaName), "{bad}");
        }
    }
}
