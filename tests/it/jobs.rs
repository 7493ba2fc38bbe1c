//! Envelopes as the types that errand makes of them.

use std::sync::Arc;

use errand::{
    job::{self, Arrival, EnvelopeError, JobId, JobSpec, QueueName, RequestId},
    store::Claim,
};
use serde_json::Value;

/// What came with an envelope.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Properties<'a> {
    pub(crate) reply_to: Option<&'a str>,
    pub(crate) traceparent: Option<&'a str>,
}

/// The job of an envelope, which gets an ID if it has none.
pub(crate) fn spec(envelope: &Value) -> Arc<JobSpec> {
    Arc::new(decode(&envelope.to_string(), Properties::default()).unwrap())
}

/// The same, through the lane that the envelope names.
pub(crate) fn decode(envelope: &str, properties: Properties<'_>) -> Result<JobSpec, EnvelopeError> {
    let queue = lane(envelope);
    let Properties { reply_to, traceparent } = properties;
    let arrival = Arrival {
        reply_to,
        correlation_id: reply_to.map(|_| "c-1"),
        traceparent,
        fallback_id: Some(JobId::new()),
        ..Arrival::new(&queue)
    };
    job::decode(envelope.as_bytes(), &arrival)
}

fn lane(envelope: &str) -> QueueName {
    #[derive(serde::Deserialize)]
    struct Named {
        queue: Option<String>,
    }
    let named = serde_json::from_str::<Named>(envelope).ok().and_then(|named| named.queue?.parse().ok());
    named.unwrap_or_else(|| "default".parse().unwrap())
}

/// Asks for a job that came through the queue.
pub(crate) fn claim(spec: &Arc<JobSpec>) -> Claim {
    Claim {
        spec: Arc::clone(spec),
        request_id: RequestId::new(),
        binding: None,
        stop: None,
        from_store: false,
        published_at: None,
    }
}
