//! Tokens, with which a web page follows the events of one job, one batch or one owner: an event source of a browser can send
//! no header, and a page should not have a key.

use std::time::Duration;

use axum::{
    Json,
    extract::{Extension, Request, State},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    caller::Caller,
    described::{OfAnyRequest, OfItsBody, OfItsContent, OfOne},
    events::{Subject, subject},
    problem::{Kind, Problem},
    request::{Parameters, optional_json},
    shared::Shared,
    token::{MAX_VALID_FOR, Token},
};
use crate::{
    access::Scope,
    job::{BatchId, JobId, Owner, OwnerKind, Principal},
    store::EventsOf,
};

/// How long a token is valid, unless said otherwise.
const VALID_FOR: Duration = Duration::from_secs(900);

/// For what a token is wanted. Of `job_id`, `batch_id`, `user_id` and `org_id` there is one, or none for all of the owner of the
/// key in use.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WantedToken {
    /// The events of this job.
    #[schema(value_type = Option<JobId>)]
    job_id: Option<String>,
    /// The events of this batch and of its jobs.
    #[schema(value_type = Option<BatchId>)]
    batch_id: Option<String>,
    /// All events of this user.
    user_id: Option<String>,
    /// All events of this organization.
    org_id: Option<String>,
    /// 900 without it.
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 3600)]
    expires_in_secs: Option<u32>,
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenJson {
    token: String,
    expires_at: Timestamp,
}

/// Makes a token for the events of one job, batch or owner
///
/// For `GET /v1/events` in a web page, which shows it as the parameter `token`: an event source can send no header. It is not stored,
/// and it ends after at most an hour, or with the key with which it was made.
#[utoipa::path(
    post, path = "/v1/tokens", operation_id = "createToken", security(("bearer" = ["read"])),
    request_body(content = inline(WantedToken), content_type = "application/json"),
    responses((status = 200, description = "The token.", body = TokenJson), OfAnyRequest, OfItsContent, OfItsBody, OfOne)
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<TokenJson>, Problem> {
    let reader = caller.may(Scope::Read)?;
    Parameters::of(&request).end()?;
    let WantedToken { job_id, batch_id, user_id, org_id, expires_in_secs } = optional_json(request).await?;
    let bad = |detail: &str| Problem::new(Kind::BadRequest, detail);
    let valid_for = match expires_in_secs {
        None => VALID_FOR,
        Some(secs @ 1..=MAX_VALID_FOR) => Duration::from_secs(secs.into()),
        Some(_) => return Err(bad("`expires_in_secs` must be from 1 to 3600").about(Some("expires_in_secs"))),
    };
    let of_owner = |kind, id: &str| {
        let owner = Owner::new(kind, id).map_err(|error| bad(&format!("the owner's ID {error}")))?;
        if !reader.may_see(&owner) {
            return Err(Problem::new(Kind::Forbidden, "this key reads the events of its own owner only"));
        }
        Ok((Principal::Owner(owner), EventsOf::All))
    };
    let of_one = async |of| {
        let Subject { whose, of, .. } = subject(&shared, reader, of).await?;
        Ok::<_, Problem>((whose, of))
    };
    let (whose, of) = match (job_id, batch_id, user_id, org_id) {
        (None, None, None, None) => (reader.clone(), EventsOf::All),
        (Some(job), None, None, None) => of_one(EventsOf::Job(read_id(&job)?)).await?,
        (None, Some(batch), None, None) => of_one(EventsOf::Batch(read_id(&batch)?)).await?,
        (None, None, Some(user), None) => of_owner(OwnerKind::User, &user)?,
        (None, None, None, Some(org)) => of_owner(OwnerKind::Org, &org)?,
        _ => return Err(bad("name one of `job_id`, `batch_id`, `user_id` and `org_id`")),
    };
    // A page is for somebody, who is not to learn of all the others.
    let Principal::Owner(owner) = whose else {
        return Err(bad(
            "a token is for what an owner has: name a job, a batch that is not the operator's, `user_id` or `org_id`",
        ));
    };
    let now = shared.parts.clock.now();
    // No token lasts longer than the key with which it is made.
    let valid_for = caller.may_last(Some(valid_for), None, now).unwrap_or(valid_for);
    let expires_at = now + SignedDuration::try_from(valid_for).unwrap_or(SignedDuration::ZERO);
    let token = Token { owner, of, key: caller.key(), expires_at };
    let token = token.seal(shared.sealing.seals().await?)?;
    Ok(Json(TokenJson { token, expires_at }))
}

fn read_id<T: std::str::FromStr>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::no_uuid())
}
