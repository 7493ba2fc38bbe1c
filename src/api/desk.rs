//! What is read beside jobs: workers, tools and accounts.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    IntoParams, ToSchema,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    caller::Caller,
    described::{OfAnyRequest, OfItsContent, OfOne, OfTheToolApi, line, optional, text},
    problem::{Kind, Problem},
    request::{Parameters, named_owner},
    shared::Shared,
};
use crate::{
    access::Scope,
    bounds::MAX_TOOL_BYTES,
    desk_json::{AccountJson, ToolJson, WorkerJson},
    job::Principal,
    tool::{
        SharedToolApi,
        pin::{Wanted, is_slug, wanted},
    },
};

/// Workers.
#[derive(Serialize, ToSchema)]
pub(super) struct WorkerList<'a> {
    items: Vec<WorkerJson<'a>>,
    /// There is never more.
    next: Option<String>,
}

/// Lists workers: which build each runs, since when, and what it holds
///
/// Only for keys of the operator.
#[utoipa::path(
    get, path = "/v1/workers", operation_id = "listWorkers", security(("bearer" = ["read"])),
    responses((status = 200, description = "All that are known.", body = WorkerList), OfAnyRequest, OfItsContent)
)]
pub(super) async fn workers(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    Parameters::of(&request).end()?;
    let workers = shared.parts.store.workers().await?;
    let items = workers.iter().map(|worker| WorkerJson::of(worker, shared.parts.lease)).collect();
    Ok(Json(WorkerList { items, next: None }).into_response())
}

/// The version that a tool is described at.
#[derive(Debug)]
struct AtVersion;

impl IntoParams for AtVersion {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let version = text().pattern(Some("^[0-9]{8}_[0-9]{2}$"));
        vec![optional(
            ParameterIn::Query,
            "version",
            version,
            "The version of its toolkit; the newest without it.",
        )]
    }
}

/// Reads a tool as the tool API describes it
#[utoipa::path(
    get, path = "/v1/tools/{slug}", operation_id = "showTool", security(("bearer" = ["read"])),
    params(("slug" = String, Path, description = "The tool.", example = "GITHUB_GET_REPO"), AtVersion),
    responses((status = 200, description = "The tool.", body = ToolJson),
        OfAnyRequest, OfItsContent, OfOne, OfTheToolApi)
)]
pub(super) async fn tool(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(slug): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may(Scope::Read)?;
    let mut parameters = Parameters::of(&request);
    let version = parameters.one("version", |text| match wanted(Some(text)) {
        Ok(Wanted::Exact(version)) => Ok(version.to_owned()),
        _ => Err("must be a version such as 20251027_00".to_owned()),
    })?;
    parameters.end()?;
    let is_tool = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if slug.is_empty() || slug.len() > MAX_TOOL_BYTES || !slug.bytes().all(is_tool) {
        return Err(Problem::new(Kind::NotFound, "there is no tool of this name"));
    }
    let tool = tool_api(&shared)?.tool(&slug, version.as_deref()).await?;
    Ok(Json(ToolJson::of(&tool)).into_response())
}

/// Accounts.
#[derive(Serialize, ToSchema)]
pub(super) struct AccountList<'a> {
    items: Vec<AccountJson<'a>>,
    /// There is never more.
    next: Option<String>,
}

/// Whose accounts are meant.
#[derive(Debug)]
struct Which;

impl IntoParams for Which {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let owner = text().pattern(Some(r"^(user|org):(?=.*\S)[^\u0000-\u001f\u007f-\u009f]{1,256}$"));
        let what = "Whose they are, `user:ID` or `org:ID`. A key of an owner needs none.";
        vec![
            optional(ParameterIn::Query, "owner", owner, what),
            optional(
                ParameterIn::Query,
                "toolkit",
                line().pattern(Some("^[a-z0-9_-]+$")),
                "Only of this toolkit.",
            ),
        ]
    }
}

/// Lists the accounts that an owner has connected, without credentials
///
/// As the tool API knows them now, the last one that was connected first. The tool API tells owners apart by their ID alone, so
/// that a user and an organization with one ID have the same accounts.
#[utoipa::path(
    get, path = "/v1/accounts", operation_id = "listAccounts", security(("bearer" = ["read"])),
    params(Which),
    responses((status = 200, description = "All of them.", body = AccountList),
        OfAnyRequest, OfItsContent, OfTheToolApi)
)]
pub(super) async fn accounts(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let mut parameters = Parameters::of(&request);
    let named = parameters.one("owner", named_owner)?;
    let toolkit = parameters.one("toolkit", |text| match is_slug(text) {
        true => Ok(text.to_owned()),
        false => Err("must be in lower case, such as github".to_owned()),
    })?;
    parameters.end()?;
    let owner = match (reader, named) {
        (Principal::Owner(own), named) if named.as_ref().is_none_or(|named| named == own) => own.clone(),
        (Principal::Owner(_), _) => {
            return Err(Problem::new(Kind::Forbidden, "this key sees accounts of its own owner only"));
        }
        (Principal::Operator, Some(owner)) => owner,
        (Principal::Operator, None) => {
            return Err(Problem::new(
                Kind::BadRequest,
                "say whose accounts: `owner=user:ID` or `owner=org:ID`",
            ));
        }
    };
    let mut accounts = tool_api(&shared)?.accounts(&[owner.id()], toolkit.as_deref()).await?.accounts;
    // Whatever the tool API lists: what does not say that it is the owner's is told to nobody else.
    accounts.retain(|account| match &account.user_id {
        Some(id) => id == owner.id(),
        None => *reader == Principal::Operator,
    });
    let items = accounts.iter().map(AccountJson::of).collect();
    Ok(Json(AccountList { items, next: None }).into_response())
}

fn tool_api(shared: &Shared) -> Result<&SharedToolApi, Problem> {
    let missing = || {
        let detail = "this needs the tool API; start this process with COMPOSIO_API_KEY";
        Problem::new(Kind::NoToolApi, detail)
    };
    shared.parts.tool_api.as_ref().ok_or_else(missing)
}
