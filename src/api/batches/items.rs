//! What a request asks for that makes a batch or adds items to one.

use std::{fmt, sync::Arc};

use axum::http::HeaderMap;
use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::no_batch;
use crate::{
    api::{
        described::Envelope,
        edit::lane,
        problem::{FieldError, Kind, Problem},
        request::{idempotency_key, moment_in_json},
        shared::Shared,
    },
    bounds::{MAX_BATCH_ITEMS, MAX_BATCH_PARTS, MAX_CHUNK_ITEMS, MAX_OPEN_BATCHES, MAX_SHORT_TEXT_BYTES},
    job::{
        Arrival, BatchId, CallbackUrl, Digest, JobId, JobSpec, Owner, OwnerKind, Principal, decode,
        named_queue,
    },
    store::{Conflict, NewBatch, NotAdded, StopRule},
};

/// Most items that are named because something is wrong with them.
const MAX_ERRORS: usize = 100;

/// A batch that is to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted<'a> {
    /// Whose the batch is; then all of its items are. Without either it is that of the key's owner, or the operator's.
    user_id: Option<String>,
    org_id: Option<String>,
    /// With `false` it takes more items until it is sealed.
    #[schema(default = true)]
    sealed: Option<bool>,
    /// Up to 10,000 envelopes. One without an `id` gets one that is derived from its place in the batch.
    #[serde(borrow, default, deserialize_with = "bounded")]
    #[schema(value_type = Vec<Envelope>)]
    pub(super) items: Vec<&'a RawValue>,
    /// When what has not started by then is called off.
    #[serde(default, deserialize_with = "moment_in_json")]
    #[schema(value_type = Option<String>, format = DateTime)]
    deadline: Option<Timestamp>,
    stop_when: Option<StopRule>,
    /// The envelope of a job that is enqueued once the batch is complete. It has no `id` and no `idempotency_key`.
    #[serde(borrow)]
    #[schema(value_type = Option<Envelope>)]
    follow_up: Option<&'a RawValue>,
    /// Where the events of the batch as a whole are sent. It needs an owner, by whose secret they are signed.
    #[schema(inline)]
    callback: Option<CallbackTo>,
}

/// Where events are sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CallbackTo {
    #[schema(example = "https://app.example.com/errand", max_length = 1024)]
    url: String,
}

impl Wanted<'_> {
    /// The batch without its items.
    pub(super) fn batch(
        &self,
        shared: &Shared,
        principal: &Principal,
        headers: &HeaderMap,
    ) -> Result<NewBatch, Problem> {
        let owner = match (&self.user_id, &self.org_id) {
            (None, None) => None,
            (Some(id), None) => Some((OwnerKind::User, id)),
            (None, Some(id)) => Some((OwnerKind::Org, id)),
            (Some(_), Some(_)) => return Err(unreadable("give `user_id` or `org_id`, not both")),
        };
        let of = match owner {
            None => principal.clone(),
            Some((kind, id)) => Principal::Owner(
                Owner::new(kind, id).map_err(|error| unreadable(format!("`{}` {error}", kind.field())))?,
            ),
        };
        if *principal != Principal::Operator && *principal != of {
            return Err(Problem::new(Kind::Forbidden, "this key makes batches of its own owner only"));
        }
        let id = match idempotency_key(headers)? {
            Some(key) if key.len() > MAX_SHORT_TEXT_BYTES => {
                let detail =
                    format!("the header `Idempotency-Key` must have 1 to {MAX_SHORT_TEXT_BYTES} bytes");
                return Err(Problem::new(Kind::BadRequest, detail));
            }
            Some(key) => BatchId::from_key(&of, key),
            None => BatchId::new(),
        };
        let callback = self.callback(shared, &of)?;
        let follow_up = self.follow_up.map(|envelope| self.follow_up(shared, &of, envelope)).transpose()?;
        Ok(NewBatch {
            id,
            principal: of,
            digest: self.digest(),
            is_sealed: self.sealed.unwrap_or(true),
            deadline: self.deadline,
            stop: self.stop_when.map(in_bounds).transpose()?,
            follow_up,
            callback,
        })
    }

    fn callback(&self, shared: &Shared, of: &Principal) -> Result<Option<CallbackUrl>, Problem> {
        let Some(CallbackTo { url }) = &self.callback else { return Ok(None) };
        if *of == Principal::Operator {
            return Err(unreadable(
                "`callback` needs an owner, by whose secret it is signed: give `user_id` or `org_id`",
            ));
        }
        shared.parts.needs_callbacks()?;
        url.parse().map(Some).map_err(|error| unreadable(format!("the `url` of `callback` {error}")))
    }

    fn follow_up(&self, shared: &Shared, of: &Principal, envelope: &RawValue) -> Result<String, Problem> {
        let bad = |error: Problem| Problem::of_items(vec![error.about_item("/follow_up".to_owned())], 1);
        let spec = spec(shared, of, envelope.get().as_bytes(), None).map_err(|(_, error)| bad(error))?;
        if spec.is_named || spec.idempotency_key.is_some() {
            let detail = "it gets an `id` of its own and has no `idempotency_key`, because each generation is followed once";
            return Err(bad(Problem::new(Kind::InvalidJob, detail)));
        }
        Ok(envelope.get().to_owned())
    }

    /// Of what is asked for beside the items.
    fn digest(&self) -> Digest {
        let mut parts = vec![
            self.user_id.clone(),
            self.org_id.clone(),
            self.sealed.map(|sealed| sealed.to_string()),
            self.deadline.map(|deadline| deadline.to_string()),
            self.stop_when.as_ref().map(|stop| format!("{} {}", stop.failed_percent, stop.of_at_least)),
            self.follow_up.map(|envelope| envelope.get().to_owned()),
        ];
        // Batches of before there was this keep their digest.
        parts.extend(self.callback.as_ref().map(|callback| Some(callback.url.clone())));
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(json!(parts).to_string())[..16]);
        Digest(digest)
    }
}

fn in_bounds(rule: StopRule) -> Result<StopRule, Problem> {
    let StopRule { failed_percent, of_at_least } = rule;
    if !(1..=100).contains(&failed_percent) || of_at_least == 0 || u64::from(of_at_least) > MAX_BATCH_ITEMS {
        return Err(unreadable(format!(
            "`stop_when`: `failed_percent` must be 1 to 100, and `of_at_least` 1 to {MAX_BATCH_ITEMS}"
        )));
    }
    Ok(rule)
}

/// The jobs that items ask for. An item without an ID gets that of its place.
pub(super) fn specs<'a>(
    shared: &Shared,
    of: &Principal,
    batch: BatchId,
    from: u64,
    items: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<Arc<JobSpec>>, Problem> {
    let (mut specs, mut errors, mut wrong) = (Vec::new(), Vec::new(), 0);
    for (index, item) in (from..).zip(items) {
        match spec(shared, of, item, Some(batch.item(index))) {
            Ok(spec) => specs.push(Arc::new(spec)),
            Err((field, problem)) => {
                wrong += 1;
                if errors.len() < MAX_ERRORS {
                    let field = field.map(|field| format!("/{field}")).unwrap_or_default();
                    errors.push(problem.about_item(format!("/items/{index}{field}")));
                }
            }
        }
    }
    if wrong == 0 { Ok(specs) } else { Err(Problem::of_items(errors, wrong)) }
}

/// One of them; the error has the field that is wrong, where that can be told.
fn spec(
    shared: &Shared,
    of: &Principal,
    envelope: &[u8],
    id: Option<JobId>,
) -> Result<JobSpec, (Option<&'static str>, Problem)> {
    let queue = named_queue(envelope).unwrap_or_default();
    let arrival = Arrival { fallback_id: Some(id.unwrap_or_else(JobId::new)), ..Arrival::new(&queue) };
    let spec = decode(envelope, &arrival).map_err(|error| (error.field, error.into()))?;
    lane(shared, spec.queue.as_str()).map_err(|problem| (Some("queue"), problem))?;
    if !of.may_see(&spec.owner) {
        let field = spec.owner.kind().field();
        return Err((
            Some(field),
            Problem::new(
                Kind::Forbidden,
                "all items of a batch belong to its owner; give the batch this owner's `user_id` or `org_id`, or leave it out of the item",
            ),
        ));
    }
    match shared.parts.admission.check(&spec, shared.parts.clock.now()) {
        Ok(()) => Ok(spec),
        Err(unfit) => Err((unfit.field, unfit.into())),
    }
}

/// Why a new batch was not made, or why items were not added to one, of which the first has the index `from`.
pub(super) fn not_added(why: NotAdded, batch: BatchId, from: Option<u64>) -> Problem {
    match why {
        NotAdded::Unknown => no_batch(),
        NotAdded::Taken if from.is_none() => Problem::new(
            Kind::KeyConflict,
            format!(
                "the batch {batch} was made with this `Idempotency-Key` and another body: a new batch needs a key of its own, \
                 and the same batch again must be sent in the same bytes"
            ),
        ),
        NotAdded::TooMany => Problem::new(
            Kind::WrongState,
            format!(
                "there are {MAX_OPEN_BATCHES} batches of this owner that are not complete; wait for some, or decide about what \
                 they hold"
            ),
        ),
        NotAdded::Taken => Problem::new(
            Kind::OutOfOrder,
            "there are other items at these indexes; its `total` is the index of the next one",
        ),
        NotAdded::Gap { next } => Problem::new(
            Kind::OutOfOrder,
            format!("the next item has the index {next}; go on with `from={next}`"),
        ),
        NotAdded::Sealed => {
            Problem::new(Kind::WrongState, "the batch is sealed; make another one for more items")
        }
        NotAdded::Full => {
            let most = format!(
                "a batch has {MAX_BATCH_ITEMS} items at most, which came with {MAX_BATCH_PARTS} requests at most; make another one"
            );
            Problem::new(Kind::TooLarge, most)
        }
        NotAdded::Items(conflicts) => {
            let wrong = conflicts.len();
            let errors = conflicts.into_iter().take(MAX_ERRORS).map(|(place, conflict)| {
                let field = if matches!(conflict, Conflict::Key { .. }) { "idempotency_key" } else { "id" };
                let index = from.unwrap_or(0) + place as u64;
                Problem::from(conflict).about_item(format!("/items/{index}/{field}"))
            });
            Problem::of_items(errors.collect::<Vec<FieldError>>(), wrong)
        }
    }
}

pub(super) fn unreadable(what: impl fmt::Display) -> Problem {
    Problem::new(Kind::BadRequest, format!("the body cannot be read: {what}"))
}

/// A list of which no more is kept than shows that it is too long.
fn bounded<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'a RawValue>, D::Error> {
    struct Items;

    impl<'de> Visitor<'de> for Items {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of up to {MAX_CHUNK_ITEMS} envelopes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while items.len() <= MAX_CHUNK_ITEMS
                && let Some(item) = list.next_element()?
            {
                items.push(item);
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(items)
        }
    }

    deserializer.deserialize_seq(Items)
}
