//! Which job an envelope is.

use std::borrow::Cow;

use super::{Arrival, EnvelopeError, EnvelopeReason, MAX_ENVELOPE_BYTES, bad, is_unfit, owner};
use crate::job::{JobId, Owner};

/// The ID of the job that a message was meant to be which [`decode`](super::decode) refuses, as far as it can be told.
pub fn id_of(body: &[u8], arrival: &Arrival<'_>) -> Option<JobId> {
    #[derive(serde::Deserialize)]
    struct Identity<'a> {
        #[serde(borrow)]
        id: Option<Cow<'a, str>>,
        #[serde(borrow)]
        user_id: Option<Cow<'a, str>>,
        #[serde(borrow)]
        org_id: Option<Cow<'a, str>>,
    }

    if body.len() > MAX_ENVELOPE_BYTES {
        return None;
    }
    let Identity { id: named, user_id, org_id } = serde_json::from_slice(body).ok()?;
    match named {
        Some(named) => named.parse().ok(),
        None => id(None, &owner(user_id, org_id, true).ok()?, arrival).ok(),
    }
}

pub(super) fn id(id: Option<&str>, owner: &Owner, arrival: &Arrival<'_>) -> Result<JobId, EnvelopeError> {
    let given = match (id, arrival.message_id, arrival.fallback_id) {
        (Some(id), ..) => id.parse().map_err(|error| bad("id", error))?,
        (None, Some(message_id), _) if !message_id.trim().is_empty() => {
            JobId::from_message_id(owner, message_id)
        }
        (None, _, Some(id)) => return Ok(id),
        (None, _, None) => {
            return Err(EnvelopeError::new(
                EnvelopeReason::NoId,
                "give an `id` or an AMQP `message_id`, because without one a redelivery cannot be told from a new job",
            ));
        }
    };
    if given.is_derived() && !arrival.known {
        return Err(bad(
            "id",
            "is a UUID of version 8, which errand keeps for items of batches; use version 4 or 7",
        ));
    }
    Ok(given)
}

/// What a reply is to be called by, where the ID of its job does not say it.
pub(super) fn message_id(id: JobId, arrival: &Arrival<'_>) -> Option<String> {
    arrival.reply_to?;
    let named = arrival.message_id.filter(|text| !text.trim().is_empty() && !is_unfit(text))?;
    (named != id.to_string()).then(|| named.to_owned())
}
