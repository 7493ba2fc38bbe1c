//! How the broker keeps the messages of a lane.

use crate::string_enum::string_enum;

string_enum! {
    /// The type that the queues behind lanes are declared with on RabbitMQ.
    QueueType {
        /// Replicated, and the faster one even on a single node. Acknowledgements survive a crash of the broker.
        Quorum = "quorum",
        /// For brokers without quorum queues. Acknowledged messages may come back after a crash of the broker.
        Classic = "classic",
    }
}
