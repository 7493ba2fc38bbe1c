//! The audit log: who changed what.

use axum::{
    Json,
    extract::{Extension, Request, State},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    IntoParams, ToSchema,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    caller::Caller,
    described::{
        OfAnyRequest, OfItsContent, cursor, line, moment as any_moment, number, optional, owner, words,
    },
    problem::Problem,
    request::{MAX_LIMIT, Parameters, moment, named_owner, parsed, plain},
    shared::Shared,
};
use crate::{
    access::Scope,
    cursor::ChangeCursor,
    store::{Change, ChangeFilter, ChangeJson, ObjectKind},
};

/// A page of the audit log, the newest entries first.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangePage<'a> {
    items: Vec<ChangeJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// The parameters of a page.
#[derive(Debug)]
struct Wanted;

impl IntoParams for Wanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name, schema: utoipa::openapi::ObjectBuilder, description| {
            optional(ParameterIn::Query, name, schema, description)
        };
        vec![
            query("kind", words(ObjectKind::WORDS), "About objects of this kind."),
            query("id", line(), "About the object with this ID or name."),
            query("owner", owner(), "About what is this owner's: `user:ID` or `org:ID`."),
            query("by", line(), "Made by this person, or by this key: `key ID`."),
            query("since", any_moment(), "Made then or later."),
            query("until", any_moment(), "Made before then."),
            query(
                "cursor",
                cursor(ChangeCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            query("limit", number(1, MAX_LIMIT), "The most entries of the page. 50 without it."),
        ]
    }
}

/// Lists who changed what, newest first
///
/// What people and keys changed: keys, jobs, batches, actions, queues, pins, rejected messages and owners. A key of an owner sees what is about that
/// owner.
#[utoipa::path(
    get, path = "/v1/audit-log", operation_id = "listChanges", security(("bearer" = ["manage"])),
    params(Wanted),
    responses((status = 200, description = "A page of the list.", body = ChangePage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let mut query = Parameters::of(&request);
    let filter = ChangeFilter {
        kind: query.one("kind", parsed)?,
        object: query.one("id", plain)?,
        owner: query.one("owner", named_owner)?,
        by: query.one("by", plain)?,
        since: query.one("since", moment)?,
        until: query.one("until", moment)?,
    };
    let before = query.one("cursor", parsed)?.map(|cursor: ChangeCursor| cursor.0);
    let limit = query.limit()?;
    query.end()?;
    let changes = shared.parts.store.changes(principal, &filter, before, limit).await?;
    let next = (changes.len() == limit)
        .then(|| changes.last().map(|change| ChangeCursor::of(change.place()).to_string()));
    Ok(Json(ChangePage { items: changes.iter().map(Change::json).collect(), next: next.flatten() })
        .into_response())
}
