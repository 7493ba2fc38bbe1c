//! The name of the role that stands for owners.

use std::{fmt, str::FromStr};

use super::schema_name::is_plain;

/// What PostgreSQL means by these is no role.
const RESERVED: [&str; 4] = ["none", "public", "current_user", "session_user"];

/// A plain identifier as [`SchemaName`](super::SchemaName) is one, which is none that the server reads as something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleName(String);

/// A text is not the name of a role that can stand for owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a role: lower-case letters, digits and underscores, no digit first, at most 63 of them, and not `pg_...`, \
     `none` or `public`"
)]
pub struct NoRoleName;

impl RoleName {
    /// The name as it is, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoleName {
    type Err = NoRoleName;

    fn from_str(text: &str) -> Result<Self, NoRoleName> {
        if is_plain(text) && !RESERVED.contains(&text) { Ok(Self(text.to_owned())) } else { Err(NoRoleName) }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_a_plain_name_that_the_server_reads_as_one() {
        for good in ["errand_tenant", "_t1", "user"] {
            assert_eq!(good.parse::<RoleName>().map(|name| name.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "Tenant", "a b", "a\"b", "a'b", "1a", "pg_read_all_data", "none", "public"] {
            assert_eq!(bad.parse::<RoleName>(), Err(NoRoleName), "{bad}");
        }
    }
}
