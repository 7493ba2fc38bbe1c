//! What a delivery is: a job to claim, or a message to reject. Decided without waiting for anything.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use uuid::Uuid;

use super::{published::published_at, shared::Shared};
use crate::{
    job::{
        Arrival, Binding, EnvelopeError, EnvelopeReason, ErrorKind, HeldReason, JobError, JobId, JobSpec,
        NotReady, QueueName, ReplyKind, RequestId, Stop, decode, foreign, id_of, names_compression,
    },
    queue::{Delivery, Properties},
    store::{Claim, Rejected, Repeat, Repeated},
    telemetry::metrics,
};

/// Why a message is rejected that errand cannot even look at.
const PANICKED: &str = "a bug in errand ended the reading of this message, and its log says where: report it, and requeue the \
    message with a build that has it mended";

/// Why a message is rejected whose ID, reply queue and headers are not known.
const UNREADABLE: &str = "the properties of the message cannot be read: a property or the name of a header is not UTF-8, \
    headers are nested deeper than 32 levels, or all of it is longer than one frame (128 KiB); publish it with short text \
    and flat headers (what came is kept as `unreadable`)";

/// The namespace of IDs of rejected messages, which are derived from the message.
const REJECTED_NAMESPACE: Uuid = Uuid::from_u128(0x2d0c_6f5a_9b7e_5f0e_8c52_6572_7261_6e64);

/// What `read` makes of a message. One on which it panics would end the lane each time that it comes, so it is rejected.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, EnvelopeError>) -> Result<T, EnvelopeError> {
    let panicked = |_| {
        metrics::PANICS.add([], 1);
        Err(EnvelopeError::new(EnvelopeReason::BadValue, PANICKED))
    };
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(panicked)
}

/// The claim that a delivery becomes, or why it is not a job.
pub(super) fn admit(shared: &Shared, lane: &QueueName, delivery: &Delivery) -> Result<Claim, EnvelopeError> {
    let properties = &delivery.properties;
    if properties.unreadable.is_some() {
        return Err(EnvelopeError::new(EnvelopeReason::Malformed, UNREADABLE));
    }
    let anonymous = shared.options.accept_unidentified.then(JobId::new);
    let from_store = properties.from_store;
    // A claim of such a message finds its row or nothing, so an owner of old does not come in again.
    let arrival = Arrival { known: from_store, ..properties.arrival(lane, anonymous) };
    let spec = decode(&delivery.body, &arrival).map_err(|error| with_encoding(error, delivery))?;
    if !from_store {
        // Of a job that the store knows, its row counts and not what its message says.
        shared.resolver.check_message(&spec)?;
    }
    let may_have_run = anonymous == Some(spec.id) && delivery.redelivered;
    let (binding, stop) = match decide(shared, &spec, may_have_run, from_store) {
        Ok(binding) => (binding, None),
        Err(stop) => (None, Some(stop)),
    };
    // The ID of a job that waited in the store says nothing about its message.
    let id = if from_store { None } else { Some(spec.id) };
    let published_at = published_at(id, properties.timestamp, shared.services.clock.now());
    Ok(Claim { spec: Arc::new(spec), request_id: RequestId::new(), binding, stop, from_store, published_at })
}

/// The job of a message that brings no ID and came for the first time, if such messages are accepted.
pub(super) fn anonymous_job(shared: &Shared, lane: &QueueName, delivery: &Delivery) -> Option<Arc<JobSpec>> {
    let Delivery { body, properties, redelivered, .. } = delivery;
    if !shared.options.accept_unidentified || *redelivered || properties.unreadable.is_some() {
        return None;
    }
    let id = JobId::new();
    let spec = guarded(|| decode(body, &properties.arrival(lane, Some(id)))).ok()?;
    (spec.id == id && shared.resolver.check_message(&spec).is_ok()).then(|| Arc::new(spec))
}

/// The binding, if it is known without a look-up.
fn decide(
    shared: &Shared,
    spec: &JobSpec,
    may_have_run: bool,
    from_store: bool,
) -> Result<Option<Binding>, Stop> {
    if may_have_run {
        let error = JobError::new(
            ErrorKind::UnknownOutcome,
            "the message has no ID and was delivered before, so it may have run; release the job to run it",
        );
        return Err(Stop::Hold { reason: HeldReason::Unidentified, error });
    }
    let resolver = &shared.resolver;
    resolver.check(spec, shared.services.clock.now()).map_err(|error| Stop::Fail { error })?;
    match resolver.decide_cached(spec) {
        Some(Ok(binding)) => Ok(Some(binding)),
        // Known jobs may carry an earlier decision that still holds, which only the store knows; what stops
        // them is decided after the claim.
        Some(Err(NotReady::Stop(stop @ Stop::Fail { .. }))) if !from_store => Err(stop),
        // A job is not held before its time: by the store's clock it is scheduled, or found wanting after
        // the claim.
        Some(Err(NotReady::Stop(stop))) if !from_store && spec.run_at.is_none() => Err(stop),
        Some(Err(_)) | None => Ok(None),
    }
}

/// Compressed JSON is no JSON, and the first bytes of some compressions do not say why.
fn with_encoding(error: EnvelopeError, delivery: &Delivery) -> EnvelopeError {
    let encoding = delivery.properties.other.get("content_encoding");
    let is_compressed = encoding.is_some_and(|encoding| names_compression(encoding));
    if error.reason == EnvelopeReason::Malformed && is_compressed && foreign(&delivery.body).is_none() {
        let hint =
            "its content encoding says that it is compressed, which errand does not undo; publish plain JSON";
        return EnvelopeError::new(error.reason, format!("{}; {hint}", error.message));
    }
    error
}

/// A message that is kept because it is not a job. The log has the reason in the words that its app reads, which name
/// fields and quote no values.
pub(super) fn reject(
    shared: &Shared,
    lane: &QueueName,
    delivery: &Delivery,
    error: EnvelopeError,
) -> Rejected {
    metrics::REJECTED.add([error.reason.as_str()], 1);
    let properties = serde_json::to_string(&delivery.properties).unwrap_or_else(|_| "{}".into());
    let mut name = Vec::with_capacity(delivery.body.len() + 128);
    name.extend_from_slice(lane.as_str().as_bytes());
    name.push(0);
    let Properties { message_id, unreadable, reply_to, correlation_id, .. } = &delivery.properties;
    // Two callers may send the same body without an ID, and each waits for a reply of its own.
    for part in [message_id.as_ref().or(unreadable.as_ref()), reply_to.as_ref(), correlation_id.as_ref()] {
        name.extend_from_slice(part.map_or("", String::as_str).as_bytes());
        name.push(0);
    }
    name.extend_from_slice(&delivery.body);
    let id = Uuid::new_v5(&REJECTED_NAMESPACE, &name);
    let arrival = delivery.properties.arrival(lane, None);
    let job = guarded(|| Ok(id_of(&delivery.body, &arrival))).ok().flatten();
    tracing::warn!(
        rejected.id = %id,
        job.id = job.map(tracing::field::display),
        queue = %lane,
        reason = %error.reason,
        error = error.message,
        bytes = delivery.body.len(),
        "message rejected and kept"
    );
    Rejected {
        id,
        queue: lane.clone(),
        reason: error.reason,
        message: error.message,
        body: delivery.body.to_vec(),
        properties,
        job,
        asked: shared.resolver.asked(&arrival, ReplyKind::Rejected, id, came_before(delivery)),
    }
}

/// What is noted of a delivery that repeats a job, if anything: another ID, and whether somebody waits for an answer of
/// their own.
pub(super) fn repeat(
    shared: &Shared,
    lane: &QueueName,
    delivery: &Delivery,
    spec: &JobSpec,
    repeated: &Repeated,
) -> Option<Repeat> {
    let Delivery { properties, .. } = delivery;
    if properties.from_store {
        return None;
    }
    let (arrival, came_before) = (properties.arrival(lane, None), came_before(delivery));
    let asked = shared.resolver.asked(&arrival, ReplyKind::Duplicate, repeated.id.0, came_before);
    // What this worker has given back itself, because the store did not take the answer, was not answered.
    let asked = asked.filter(|asked| repeated.is_answered(came_before && !shared.unanswered.has(asked.id)));
    let id = if spec.is_named { spec.id } else { repeated.id };
    let repeat = Repeat { job: repeated.id, id, asked };
    (repeat.asked.is_some() || repeat.id != repeat.job).then_some(repeat)
}

/// Whether the broker has delivered the message before, so that it may have been answered. One that it dead-lettered was
/// delivered to its lane first, as far as anybody knows.
fn came_before(delivery: &Delivery) -> bool {
    delivery.redelivered || delivery.properties.died_in.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_whose_reading_panics_is_rejected() {
        let error = guarded(|| -> Result<(), EnvelopeError> { panic!("a bug") }).unwrap_err();
        assert_eq!(error.reason, EnvelopeReason::BadValue);
        assert_eq!(guarded(|| Ok(7)).ok(), Some(7));
    }
}
