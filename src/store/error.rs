//! What a store can answer instead of a result.

use std::error::Error as _;

use crate::{failure::Failure, string_enum::string_enum};

/// An error of the store. It never contains customers' data or credentials.
pub type StoreError = Failure<StoreErrorKind>;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

string_enum! {
    StoreErrorKind {
        /// The database is away, busy or restarting: wait and repeat the same batch.
        Unavailable = "unavailable",
        /// Another session holds a lock on a row or on a table for longer than a statement waits. Nothing of the batch
        /// was applied; what is not locked can be written without the rest.
        Locked = "locked",
        /// The database refuses this very item for what it contains: repeating is useless. The caller
        /// splits the batch until the item is found.
        Data = "data",
        /// The schema is missing or older than this build.
        Schema = "schema",
        /// Wrong address, credentials or permissions: repeating helps only after someone acts.
        Access = "access",
        Corrupt = "corrupt",
    }
}

impl StoreErrorKind {
    /// Whether it passes by itself: the same may be tried again.
    pub fn passes(self) -> bool {
        matches!(self, Self::Unavailable | Self::Locked)
    }

    /// Whether the store as a whole cannot be used, whatever it is asked.
    pub fn is_of_the_whole_store(self) -> bool {
        match self {
            Self::Unavailable | Self::Access => true,
            Self::Locked | Self::Data | Self::Schema | Self::Corrupt => false,
        }
    }
}

impl StoreError {
    /// Whether no answer came: what was sent, if it was, may be under way still, or applied. Only
    /// errors of the connection keep their cause; the others are what the database or the pool said.
    pub fn is_unanswered(&self) -> bool {
        self.kind() == StoreErrorKind::Unavailable && self.source().is_some()
    }

    /// A column holds what this version of errand never writes.
    pub fn corrupt(column: &str) -> Self {
        Self::new(
            StoreErrorKind::Corrupt,
            format!(
                "the column `{column}` holds what this version of errand does not know; a newer one may have written it"
            ),
        )
    }
}
