//! The connections and the topology that the publishers and the subscriptions of one queue share.

use std::sync::Arc;

use super::{apart::Apart, connector::Connector, endpoint::Endpoint, topology::Topology};
use crate::{job::QueueName, queue::QueueError};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) publishing: Connector,
    pub(super) consuming: Connector,
    pub(super) topology: Topology,
    /// The lanes that are published to.
    pub(super) lanes: Vec<QueueName>,
    pub(super) apart: Apart,
}

impl Shared {
    /// The error, with the address of the broker.
    pub(super) fn named(&self, error: QueueError) -> QueueError {
        error.at(&self.endpoint.address())
    }
}
