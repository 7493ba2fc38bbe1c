//! What a store can answer instead of a result.

use std::fmt;

/// What a caller can do about a store error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The database is away, busy or restarting: wait and repeat the same batch.
    Unavailable,
    /// The database refuses this very item for what it contains: repeating is useless. The caller
    /// splits the batch until the item is found.
    Data,
    /// The schema is missing or older than this build.
    Schema,
    /// Wrong address, credentials or permissions: repeating helps only after someone acts.
    Access,
    /// The database contains what errand never writes.
    Corrupt,
}

impl StoreErrorKind {
    /// The word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Data => "data",
            Self::Schema => "schema",
            Self::Access => "access",
            Self::Corrupt => "corrupt",
        }
    }
}

/// An error of the store. `Display` never contains customers' data or credentials.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error with a message for operators.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause for the error chain. The cause must not quote customers' data.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// A column holds what errand never writes.
    pub fn corrupt(column: &str) -> Self {
        Self::new(StoreErrorKind::Corrupt, format!("the column `{column}` holds an unknown value"))
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
