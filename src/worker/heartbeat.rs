//! The heartbeat, which keeps the lease.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::shared::{Options, Shared};
use crate::{clock::millis, failure::chain, store::StoreErrorKind, telemetry::metrics};

/// Beats until `end`. A beat that fails is repeated sooner than the next one is due.
pub(super) async fn run(shared: Arc<Shared>, end: CancellationToken) {
    let every = shared.options.heartbeat;
    let mut away = false;
    while !end.is_cancelled() {
        // While a write does not end, nobody else says how many wait.
        metrics::FINISH_BACKLOG.set([], shared.waiting.load(Ordering::Relaxed) as f64);
        let sent = Instant::now();
        let Options { id, name, lease, .. } = &shared.options;
        let beat = shared.services.store.beat(*id, name, *lease);
        let wait = match tokio::time::timeout(every, beat).await {
            Ok(Ok(())) => {
                shared.lease.beat(sent);
                shared.health.beat(sent);
                if away {
                    away = false;
                    metrics::STORE_RECONNECTS.add([], 1);
                    tracing::info!("the store answers again");
                }
                every
            }
            failed => {
                let (kind, why) = match failed {
                    Ok(Err(error)) => (error.kind(), chain(&error)),
                    _ => {
                        let why = format!("{}: no answer in time", shared.services.store.address());
                        (StoreErrorKind::Unavailable, why)
                    }
                };
                metrics::STORE_ERRORS.add([kind.as_str()], 1);
                let wait = (every / 5).max(Duration::from_millis(100));
                if !away {
                    away = true;
                    tracing::warn!(
                        error = %why, wait_ms = millis(wait),
                        "the store does not take heartbeats; no more jobs are claimed"
                    );
                }
                shared.health.store_failed(why);
                wait
            }
        };
        end.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}
