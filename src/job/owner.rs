//! Whose connected accounts a job uses.

use std::{fmt, str::FromStr};

use crate::{bounds::MAX_OWNER_ID_BYTES, string_enum::string_enum};

string_enum! {
    OwnerKind {
        /// One person's accounts (`user_id`).
        User = "user",
        /// Accounts that an organization shares (`org_id`).
        Org = "org",
    }
}

impl OwnerKind {
    /// The envelope field that names an owner of this kind.
    pub fn field(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Org => "org_id",
        }
    }
}

/// The owner of a job. There is no default owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    kind: OwnerKind,
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_OWNER_ID_BYTES} bytes")]
    TooLong,
    #[error("contains a control character")]
    Control,
    #[error("is neither `user` nor `org`")]
    Kind,
}

impl Owner {
    /// Checks the rules that hold for every owner; policies such as the refusal of `default` are
    /// applied where a job is admitted.
    pub fn new(kind: OwnerKind, id: impl Into<String>) -> Result<Self, OwnerError> {
        let id = id.into();
        if id.trim().is_empty() {
            return Err(OwnerError::Empty);
        }
        if id.len() > MAX_OWNER_ID_BYTES {
            return Err(OwnerError::TooLong);
        }
        if id.chars().any(char::is_control) {
            return Err(OwnerError::Control);
        }
        Ok(Self { kind, id })
    }

    pub fn kind(&self) -> OwnerKind {
        self.kind
    }

    /// The ID as the tool API knows it (`user_id`, for organizations too).
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for Owner {
    /// `user:u-alice`, the spelling of the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let (kind, id) = text.split_once(':').ok_or(OwnerError::Kind)?;
        Self::new(kind.parse().map_err(|_| OwnerError::Kind)?, id)
    }
}
