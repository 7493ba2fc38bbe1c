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
        /// Nothing is bound to this address, or the broker cannot carry the message as it is (a name or
        /// property is too long): publishing it again helps only after someone acts.
        Unroutable = "unroutable",
        /// The broker is full, or the in-process queue is: try again later.
        Full = "full",
        /// Wrong address, credentials or permissions: repeating helps only after someone acts.
        Access = "access",
        /// The broker has a queue or exchange of this name with other arguments, or none, which errand may not declare.
        Topology = "topology",
    }
}
