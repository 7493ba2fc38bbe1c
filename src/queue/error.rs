//! Errors of the queue, by what a caller can do about them.

use crate::{failure::Failure, string_enum::string_enum};

/// An error of the queue. It never contains message bodies or credentials.
pub type QueueError = Failure<QueueErrorKind>;

string_enum! {
    /// What a caller can do about a queue error.
    QueueErrorKind {
        /// The broker is away, or the connection ended: wait and try again.
        Unavailable = "unavailable",
        /// The message may or may not have been taken: publish it again with the same `message_id`.
        Unconfirmed = "unconfirmed",
        /// The broker answers and does not confirm this message, which may or may not have been taken: its queue cannot
        /// store anything at present. Publish it again with the same `message_id`, after a while.
        Stuck = "stuck",
        /// Nothing is bound to this address, or the address or a property is too long for AMQP: publishing it again
        /// helps only after someone acts.
        Unroutable = "unroutable",
        /// The broker takes other messages and not this one: the user may not publish to its address, or its queue is full.
        /// Publishing it again helps only when something has changed.
        Refused = "refused",
        /// The message is larger than the broker allows, as far as can be told: a smaller one would get through.
        TooLarge = "too_large",
        /// The broker is full, or the in-process queue is: try again later.
        Full = "full",
        /// Wrong address, credentials or permissions: repeating helps only after someone acts.
        Access = "access",
        /// The broker has a queue or exchange of this name with other arguments, or none, which errand may not declare.
        /// Other lanes may be usable. Publishing it again helps only after someone acts.
        Topology = "topology",
    }
}

impl QueueErrorKind {
    /// Whether the error is about this message or its address, so that others may get through.
    pub fn concerns_one_message(self) -> bool {
        match self {
            Self::Stuck | Self::Unroutable | Self::Refused | Self::TooLarge | Self::Topology => true,
            Self::Unavailable | Self::Unconfirmed | Self::Full | Self::Access => false,
        }
    }
}
