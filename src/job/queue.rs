//! The name of a lane, and how the broker keeps its messages.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{bounds::MAX_QUEUE_NAME_BYTES, string_enum::string_enum};

/// The name of a lane: lower-case letters, digits, `_`, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(Arc<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {MAX_QUEUE_NAME_BYTES} lower-case letters, digits, `_`, `-` or `.`")]
pub struct QueueNameError;

impl QueueName {
    /// The lane of what the broker has dead-lettered, which no setting names.
    pub fn dead() -> Self {
        Self(Self::DEAD.into())
    }

    /// The name of the lane of jobs that name none.
    pub const DEFAULT: &str = "default";

    /// The name of the lane of [`Self::dead`].
    pub const DEAD: &str = "dead";

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The lane of jobs that name none.
impl Default for QueueName {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl FromStr for QueueName {
    type Err = QueueNameError;

    fn from_str(text: &str) -> Result<Self, QueueNameError> {
        let fits = (1..=MAX_QUEUE_NAME_BYTES).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.'));
        if fits { Ok(Self(text.into())) } else { Err(QueueNameError) }
    }
}

impl TryFrom<String> for QueueName {
    type Error = QueueNameError;

    fn try_from(text: String) -> Result<Self, QueueNameError> {
        text.parse()
    }
}

impl From<QueueName> for String {
    fn from(name: QueueName) -> Self {
        name.0.to_string()
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

string_enum! {
    /// The type that the queues behind lanes are declared with on RabbitMQ.
    QueueType {
        /// Replicated, and the faster one even on a single node. Acknowledgements survive a crash of the broker.
        Quorum = "quorum",
        /// For brokers without quorum queues. Acknowledged messages may come back after a crash of the broker.
        Classic = "classic",
    }
}
