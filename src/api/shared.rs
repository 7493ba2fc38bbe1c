//! What the requests of one API share.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use tokio::{sync::Mutex, time::Instant};

use super::{
    limits::Room,
    problem::{Kind, Problem},
    sealing::Sealing,
    streams::Streams,
    together::Together,
    waiters::Waiters,
};
use crate::{
    admission::Admission,
    clock::SharedClock,
    job::QueueName,
    lane_view::LaneViews,
    queue::SharedQueue,
    resolver::Resolver,
    store::{Result, SharedStore},
    tool::SharedToolApi,
};

/// What an API works with.
#[derive(Debug)]
pub struct Parts {
    pub store: SharedStore,
    pub admission: Admission,
    pub clock: SharedClock,
    /// What jobs are bound to, for dry runs; none where the tool API is unknown.
    pub resolver: Option<Resolver>,
    /// The lanes there are.
    pub lanes: Vec<QueueName>,
    /// To ask about tools and accounts; none where the tool API is unknown.
    pub tool_api: Option<SharedToolApi>,
    /// How old the last beat of a worker that lives may be, where it does not say so itself.
    pub lease: Duration,
    /// The broker, if there is one, to ask how deep they are.
    pub queue: Option<SharedQueue>,
    /// Whether all that happens is recorded as events.
    pub records_events: bool,
    /// Whether they are sent to whoever asks for it.
    pub sends_callbacks: bool,
}

impl Parts {
    /// Refuses what tells of events where there are none.
    pub(super) fn needs_events(&self) -> Result<(), Problem> {
        if self.records_events {
            return Ok(());
        }
        let detail = "no events are recorded here; set events.record to \"all\" for everything that writes to the database, or to \
                      \"listeners\" with events.exchange or callbacks.enabled";
        Err(Problem::new(Kind::NotRecorded, detail))
    }

    /// Refuses what asks for callbacks where none are sent.
    pub(super) fn needs_callbacks(&self) -> Result<(), Problem> {
        if self.sends_callbacks {
            return Ok(());
        }
        let detail = "no callbacks are sent, because the setting callbacks.enabled is false; set it for workers and APIs";
        Err(Problem::new(Kind::NotRecorded, detail))
    }
}

/// The last look at all lanes, which serves whoever asks soon after it.
#[derive(Debug, Default)]
pub(super) struct Glimpse(Mutex<Option<(Instant, Arc<LaneViews>)>>);

impl Glimpse {
    const FRESH: Duration = Duration::from_secs(1);

    pub(super) async fn look(&self, parts: &Parts) -> Result<Arc<LaneViews>> {
        let mut last = self.0.lock().await;
        if let Some((at, views)) = &*last
            && at.elapsed() < Self::FRESH
        {
            return Ok(views.clone());
        }
        let at = Instant::now();
        let views = Arc::new(LaneViews::of(&parts.store, parts.lanes.clone()).await?);
        *last = Some((at, views.clone()));
        Ok(views)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) parts: Arc<Parts>,
    pub(super) together: Arc<Together>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) streams: Arc<Streams>,
    pub(super) sealing: Arc<Sealing>,
    pub(super) glimpse: Arc<Glimpse>,
    pub(super) description: Description,
    /// One for each request that may add items to batches at the same time.
    pub(super) turns: Arc<Room>,
}

/// What the API says of itself, as it is served.
#[derive(Debug, Clone)]
pub(super) struct Description {
    /// The OpenAPI document.
    pub(super) document: Bytes,
    /// The same as a page in HTML.
    pub(super) page: Bytes,
}
