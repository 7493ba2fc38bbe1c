//! Who asks or decides.

use std::fmt;

use super::Owner;

/// Who asks or decides: the operator, who may see everything, or an owner, who sees what is theirs and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    Operator,
    Owner(Owner),
}

impl Principal {
    /// The owner that it is limited to; `None` for the operator.
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Operator => None,
            Self::Owner(owner) => Some(owner),
        }
    }

    /// Whether it may see what is this owner's. A user and an organization of the same ID are two owners.
    pub fn may_see(&self, owner: &Owner) -> bool {
        self.owner().is_none_or(|own| own == owner)
    }
}

impl fmt::Display for Principal {
    /// `operator`, or the owner as the command line spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.pad("operator"),
            Self::Owner(owner) => f.pad(&owner.to_string()),
        }
    }
}
