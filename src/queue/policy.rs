//! What a broker is told to do that makes it lose messages which it has confirmed.

use std::fmt;

use crate::string_enum::string_enum;

string_enum! {
    /// How confirmed messages of a queue can be lost.
    PolicyRiskKind {
        /// Messages that wait too long are dropped.
        TimeToLive = "ttl",
        /// The oldest messages of a long queue are dropped.
        MaxLength = "max_length",
        /// Messages that were given back too often are dropped.
        DeliveryLimit = "delivery_limit",
        /// An unused queue is deleted with its messages.
        Expires = "expires",
        /// What is dead-lettered can be lost on the way.
        DeadLetterStrategy = "dead_letter_strategy",
        /// A quorum queue has fewer members than would outlive the loss of one.
        FewMembers = "few_members",
    }
}

/// A way in which the broker can lose confirmed messages of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRisk {
    pub kind: PolicyRiskKind,
    /// The name of the queue on the broker.
    pub queue: String,
    /// What happens, as the rest of a sentence about the queue.
    pub what: String,
}

impl fmt::Display for PolicyRisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue `{}` {}", self.queue, self.what)
    }
}
