//! What a queue can answer instead of a result.

use std::fmt;

/// What a caller can do about a queue error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueErrorKind {
    /// The broker is away, or the connection ended: wait and try again.
    Unavailable,
    /// The message may or may not have been taken: publish it again with the same `message_id`.
    Unconfirmed,
    /// Nothing is bound to this address, or the broker cannot carry the message as it is (a name or
    /// property is too long): publishing it again helps only after someone acts.
    Unroutable,
    /// The broker is full, or the in-process queue is: try again later.
    Full,
    /// Wrong address, credentials or permissions: repeating helps only after someone acts.
    Access,
    /// The broker has a queue or exchange of this name with other arguments, or has none and errand
    /// was told not to declare it.
    Topology,
}

impl QueueErrorKind {
    /// The word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Unconfirmed => "unconfirmed",
            Self::Unroutable => "unroutable",
            Self::Full => "full",
            Self::Access => "access",
            Self::Topology => "topology",
        }
    }
}

/// An error of the queue. `Display` never contains message bodies or credentials.
#[derive(Debug)]
pub struct QueueError {
    kind: QueueErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl QueueError {
    /// An error with a message for operators.
    pub fn new(kind: QueueErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause for the error chain. The cause must not quote credentials.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> QueueErrorKind {
        self.kind
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for QueueError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
