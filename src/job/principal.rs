//! Who asks or decides.

use super::Owner;

/// Who asks or decides: the operator, who may see everything, or an owner, who sees what is theirs and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
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
