//! How an error is told with its causes.

use std::error::Error;

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
