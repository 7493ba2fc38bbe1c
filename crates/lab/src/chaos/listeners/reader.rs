//! The listener that follows events by their positions.

use std::time::Duration;

use errand::{
    job::Principal,
    store::{EventsAfter, EventsOf, SharedStore},
};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::told::Heard;

/// How many events are read together; few, so that a reader is within a page when something breaks.
const PAGE: usize = 50;

/// How often new events are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Reads on behind the last event that it has, whatever breaks, for as long as this lives.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) heard: Heard,
    _following: AbortOnDropHandle<()>,
}

impl Reader {
    pub(super) fn start(store: SharedStore) -> Self {
        let heard = Heard::default();
        let following = tokio::spawn(follow(store, heard.clone()));
        Self { heard, _following: AbortOnDropHandle::new(following) }
    }
}

async fn follow(store: SharedStore, heard: Heard) {
    let mut after = 0;
    loop {
        match store.events(&Principal::Operator, EventsOf::All, Some(after), PAGE).await {
            Ok(EventsAfter::Are { events, next }) => {
                let is_page = events.len() == PAGE;
                for event in &events {
                    if event.position <= after {
                        heard.complain(format!("position {} was read behind {after}", event.position));
                    }
                    after = after.max(event.position);
                    heard.note(event.into());
                }
                // Whatever was left out before it is missing in the end.
                after = after.max(next);
                if is_page {
                    continue;
                }
            }
            Ok(gone) => heard.complain(format!("the reader was told behind position {after}: {gone:?}")),
            // A fault of the round.
            Err(_) => {}
        }
        sleep(LOOK).await;
    }
}
