//! What is sent of an event, and to whom.

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    callback::Secret,
    job::{CallbackUrl, State},
    job_json::callback_job_json,
    store::{CalledEvent, CalledJob, DueDelivery, EventKind, NewDelivery},
};

/// Of what the IDs of deliveries and receivers are made; it never changes.
const IDS: Uuid = Uuid::from_u128(0x2f9c_77a4_51de_4b0b_8a63_0d1f_c2e8_9b57);

/// A delivery for each URL to which an event is sent.
pub(super) fn deliveries_of(called: &CalledEvent, fresh: &Secret) -> Vec<NewDelivery> {
    let CalledEvent { event, urls } = called;
    // Nothing is sent to a URL that is disabled, not even that it is.
    let Some(owner) = event.owner.as_ref().filter(|_| event.kind != EventKind::CallbackDisabled) else {
        return Vec::new();
    };
    let json = serde_json::to_string(&event.json()).unwrap_or_default();
    let event_id = event.id();
    let of = |url: &String| {
        let origin = url.parse().map_or_else(|_| url.clone(), |url: CallbackUrl| url.origin());
        NewDelivery {
            id: Uuid::new_v5(&IDS, format!("{event_id}\n{url}").as_bytes()),
            receiver: Uuid::new_v5(&IDS, format!("{owner}\n{origin}").as_bytes()),
            owner: owner.clone(),
            url: url.clone(),
            event_id,
            kind: event.kind.as_str(),
            event: json.clone(),
            position: event.position,
            job: event.job,
            batch: event.batch,
            fresh: fresh.clone(),
        }
    };
    urls.iter().map(of).collect()
}

/// What is sent: the event, and its job as a reply has it, if that is still as the event left it. What has happened since is told by
/// an event of its own, and the ID may be another one's by now.
pub(super) fn body(delivery: &DueDelivery, job: Option<&CalledJob>) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        at: Timestamp,
        attempt: Option<u32>,
    }

    let event = delivery.event.as_str();
    let Ok(told) = serde_json::from_str::<Told<'_>>(event) else { return event.into() };
    let is_as_told = |called: &&CalledJob| {
        let CalledJob { job, .. } = called;
        let state = told.kind.strip_prefix("job.").and_then(|word| word.parse::<State>().ok());
        let is_it = job.spec.owner == delivery.owner && job.created_at <= told.at;
        is_it && state == Some(job.state) && Some(job.attempt) == told.attempt
    };
    let job = job.filter(is_as_told).map(|called| callback_job_json(&called.job, called.left_out));
    let job = job.and_then(|job| serde_json::to_string(&job).ok()).unwrap_or_else(|| "null".to_owned());
    // The event is an object with some keys, always.
    let data = event.trim_end().strip_suffix('}').unwrap_or(event);
    format!(r#"{{"type":"{}","timestamp":"{}","data":{data},"job":{job}}}}}"#, told.kind, told.at).into()
}
