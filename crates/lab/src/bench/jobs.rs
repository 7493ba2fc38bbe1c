//! The jobs of the benchmark.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use errand::{
    job::{Arrival, EnvelopeError, JobId, JobSpec, QueueName, decode},
    queue::{Address, Message, Properties},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// The only tool there is.
pub(super) const TOOL: &str = "BENCH_UPDATE_RECORD";
/// Its toolkit.
pub(super) const TOOLKIT: &str = "bench";
/// The version that the worker is told to use.
pub(super) const VERSION: &str = "20250101_00";

/// The number of users to whom the jobs belong, and whose accounts the worker looks up.
const OWNERS: usize = 100;

/// A job of the usual size, some 400 bytes, with a fresh ID.
fn envelope(n: usize) -> (JobId, Value) {
    let id = JobId::new();
    let body = json!({
        "id": id,
        "user_id": format!("user-{}", n % OWNERS),
        "tool": TOOL,
        "arguments": {
            "record_id": format!("rec-{n}"),
            "title": "A title that a person gave to a record of theirs",
            "body": "Two sentences of text, as they are common in the arguments of tools. They make the job as \
                     large as jobs are on an ordinary day.",
            "labels": ["bench", "generated", "update"],
            "priority": n % 5,
        },
    });
    (id, body)
}

/// The message that an app would publish for such a job.
pub(super) fn message(lane: &QueueName, n: usize) -> (JobId, Message) {
    let (id, body) = envelope(n);
    let properties = Properties {
        message_id: Some(id.to_string()),
        content_type: Some("application/json".into()),
        ..Properties::default()
    };
    (id, Message { to: Address::Lane(lane.clone()), body: body.to_string().into(), properties, priority: 0 })
}

/// The same job as a line of a file for `enqueue-bulk`, where no message says to which lane it goes.
pub(super) fn line(lane: &QueueName, n: usize) -> Value {
    let (_, mut body) = envelope(n);
    body["queue"] = json!(lane.as_str());
    body
}

/// The same job for a store.
pub(super) fn spec(lane: &QueueName, n: usize) -> Result<Arc<JobSpec>, EnvelopeError> {
    decode(envelope(n).1.to_string().as_bytes(), &Arrival::new(lane)).map(Arc::new)
}

/// Microseconds since 1970, the unit in which both databases are asked for times.
pub(super) fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A short random word for names on shared services.
pub(super) fn random_word() -> String {
    Uuid::new_v4().simple().to_string()[..12].to_owned()
}
