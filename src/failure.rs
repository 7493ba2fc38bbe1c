//! Errors that tell callers what they can do, and operators why.

use std::{error::Error, fmt};

/// An error of a service: its kind tells the caller what to do, its message and its cause tell an operator what
/// happened. Both are logged, so neither may quote customers' data or credentials.
#[derive(Debug)]
pub struct Failure<K> {
    kind: K,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl<K: Copy> Failure<K> {
    pub fn new(kind: K, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause, which [`chain`] prints behind the message.
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Names the address of the service, host and port, in front of a message that does not.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        if !self.message.contains(address) {
            self.message = format!("{address}: {}", self.message);
        }
        self
    }

    pub fn kind(&self) -> K {
        self.kind
    }
}

impl<K> fmt::Display for Failure<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<K: fmt::Debug> Error for Failure<K> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// An error and its causes in one line, the outermost first, for logs and people. Some libraries quote the cause
/// themselves; it is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the database cannot be reached")]
    struct Outer(#[source] Quoting);

    #[derive(Debug, thiserror::Error)]
    #[error("error communicating with the database: {0}")]
    struct Quoting(#[source] io::Error);

    #[test]
    fn every_cause_is_said_once() {
        let error = Outer(Quoting(io::Error::other(io::Error::other("connection refused"))));
        let expected =
            "the database cannot be reached: error communicating with the database: connection refused";
        assert_eq!(chain(&error), expected);
        assert_eq!(chain(&io::Error::other("alone")), "alone");
    }
}
