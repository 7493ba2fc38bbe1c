//! Bad input from every side: messages that are no jobs, answers that no database keeps, numbers that no computer
//! counts, and errand's own bugs. Each is kept, counted and explained, and the next job runs.

use errand_testbed::factory::{self, Envelope as _};
use serde_json::Value;

/// Runs every function of the list on both pairs of backends, with these settings.
macro_rules! on_both_pairs {
    ($($name:ident $settings:expr,)*) => {
        mod services {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let pair = super::Backends::services(stringify!($name), &$settings).await;
                Box::pin(super::$name(pair)).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let pair = super::Backends::embedded(stringify!($name), &$settings).await;
                Box::pin(super::$name(pair)).await;
            })*
        }
    };
}

mod answers;
mod backends;
mod counters;
mod messages;
mod panics;

/// A call that may be repeated, with these arguments.
fn read_with(id: &str, arguments: &str) -> String {
    format!(r#"{{"id":"{id}","user_id":"u-alice","tool":"GITHUB_GET_REPO","arguments":{arguments}}}"#)
}

fn read(id: &str) -> String {
    factory::read("u-alice").named(id).to_string()
}

/// A call that counts.
fn send(id: &str) -> String {
    factory::send("user-1").named(id).to_string()
}

fn message(job: &Value) -> &str {
    job["error"]["message"].as_str().unwrap_or_default()
}
