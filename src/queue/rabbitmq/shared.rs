//! The connections and the topology that the publishers and the subscriptions of one queue share.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use super::{connector::Connector, endpoint::Endpoint, topology::Topology};
use crate::{job::QueueName, queue::Address};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) publishing: Connector,
    pub(super) consuming: Connector,
    pub(super) topology: Topology,
    /// The lanes that are published to.
    pub(super) lanes: Vec<QueueName>,
    /// How many messages the broker has answered for. While this grows, the connection works.
    pub(super) confirms: AtomicU64,
    /// The addresses that did not confirm a message in time and none since. What goes there is published apart.
    pub(super) apart: Mutex<HashSet<Address>>,
}
