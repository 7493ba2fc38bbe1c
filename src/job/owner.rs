//! Whose connected accounts a job uses.

use std::{fmt, str::FromStr};

use serde::Serialize;

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

/// The owner of a job. There is no default owner. In JSON it is `{"kind": ..., "id": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
pub struct Owner {
    kind: OwnerKind,
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    #[error("is empty; say who the owner is")]
    Empty,
    #[error("is longer than {MAX_OWNER_ID_BYTES} bytes")]
    TooLong,
    #[error("contains a control character; send the ID without it")]
    Control,
    #[error("begins or ends with a blank; send the ID itself")]
    OuterBlank,
    #[error(
        "contains a character that nobody sees, such as a zero-width space or a mark of writing direction; send the ID without it"
    )]
    Invisible,
    #[error("names neither a user nor an organization")]
    Kind,
}

impl Owner {
    /// Checks the rules that hold for every owner of new jobs; policies such as the refusal of `default` are
    /// applied where a job is admitted.
    pub fn new(kind: OwnerKind, id: impl Into<String>) -> Result<Self, OwnerError> {
        let owner = Self::known(kind, id)?;
        if owner.id.trim().len() < owner.id.len() {
            return Err(OwnerError::OuterBlank);
        }
        if owner.id.chars().any(is_invisible) {
            return Err(OwnerError::Invisible);
        }
        Ok(owner)
    }

    /// An owner that may have been accepted before the rules became as strict as those of [`Self::new`]: of a row,
    /// or named to find such rows.
    pub fn known(kind: OwnerKind, id: impl Into<String>) -> Result<Self, OwnerError> {
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

/// Whether a character changes an ID and not what a reader sees: Unicode's ignorable characters, and separators of lines.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    )
}

impl fmt::Display for Owner {
    /// `user:u-alice`, the spelling of the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    /// Takes [known](Owner::known) owners, too.
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let (kind, id) = text.split_once(':').ok_or(OwnerError::Kind)?;
        Self::known(kind.parse().map_err(|_| OwnerError::Kind)?, id)
    }
}
