//! The claims of this process that are not finished. Who runs in another part of the process can tell a job that is
//! worked on from one that only the store says is running.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::{
    job::{JobId, RequestId},
    sync::lock,
};

/// The jobs in flight, by the request IDs of their claims, because the same job may be delivered twice.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<HashMap<RequestId, JobId>>);

/// One claim that is in flight until this is dropped, however its task ends.
#[derive(Debug)]
pub(crate) struct Noted {
    in_flight: Arc<InFlight>,
    request: RequestId,
    is_left: bool,
}

impl InFlight {
    /// Notes a claim, before it is written.
    pub(crate) fn note(self: &Arc<Self>, request: RequestId, job: JobId) -> Noted {
        lock(&self.0).insert(request, job);
        Noted { in_flight: self.clone(), request, is_left: false }
    }

    pub fn has(&self, request: RequestId) -> bool {
        lock(&self.0).contains_key(&request)
    }

    pub(crate) fn jobs(&self) -> Vec<JobId> {
        lock(&self.0).values().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Noted {
    /// Keeps the claim on the list for the rest of the process: nobody knows what became of it.
    pub(crate) fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.is_left {
            lock(&self.in_flight.0).remove(&self.request);
        }
    }
}
