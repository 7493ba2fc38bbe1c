//! Pins: which toolkit version jobs get.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        ObjectBuilder,
        path::{Parameter, ParameterIn},
        schema::Type,
    },
};

use super::{
    caller::Caller,
    described::{OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfTheState, OfTheToolApi, optional, text},
    problem::{Kind, Problem},
    request::{Parameters, flag, named_owner, optional_json},
    shared::Shared,
};
use crate::{
    access::Scope,
    bounds::MAX_PINS,
    desk_json::PinJson,
    job::{Owner, Pin, Principal},
    tool::{
        Pinnable,
        pin::{Wanted as WantedVersion, is_slug, wanted},
        pinnable,
    },
};

/// Pins.
#[derive(Serialize, ToSchema)]
pub(super) struct PinList<'a> {
    items: Vec<PinJson<'a>>,
    /// There is never more.
    next: Option<String>,
}

/// Whose pin is meant.
#[derive(Debug)]
struct Whose;

impl IntoParams for Whose {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let owner = text().pattern(Some(r"^(user|org):(?=.*\S)[^\u0000-\u001f\u007f-\u009f]{1,256}$"));
        let what = "Whose pin it is, `user:ID` or `org:ID`. Without it: that of the key's owner, or with a key of the \
                    operator the one for everybody.";
        vec![optional(ParameterIn::Query, "owner", owner, what)]
    }
}

/// The parameter that leaves out a question.
#[derive(Debug)]
struct Unchecked;

impl IntoParams for Unchecked {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let flag = ObjectBuilder::new().schema_type(Type::Boolean);
        let what = "With `true` the tool API is not asked whether there is such a version.";
        vec![optional(ParameterIn::Query, "force", flag, what)]
    }
}

/// The owner whose pin is meant; `None` for everybody's.
fn whose(principal: &Principal, parameters: &mut Parameters) -> Result<Option<Owner>, Problem> {
    let named = parameters.one("owner", named_owner)?;
    match principal {
        Principal::Operator => Ok(named),
        Principal::Owner(own) if named.as_ref().is_none_or(|named| named == own) => Ok(Some(own.clone())),
        Principal::Owner(_) => {
            Err(Problem::new(Kind::Forbidden, "this key sets and removes pins of its own owner only"))
        }
    }
}

/// Lists pins
///
/// Those that were set at run time: a key of an owner sees its own, and one of the operator all.
#[utoipa::path(
    get, path = "/v1/pins", operation_id = "listPins", security(("bearer" = ["read"])),
    responses((status = 200, description = "All of them.", body = PinList), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    Parameters::of(&request).end()?;
    let pins = shared.parts.store.pins_of(reader).await?;
    Ok(Json(PinList { items: pins.iter().map(PinJson::of).collect(), next: None }).into_response())
}

/// Which version jobs are to get.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Version {
    /// Such as `20251027_00`.
    #[schema(pattern = "^[0-9]{8}_[0-9]{2}$")]
    version: Option<String>,
}

/// Sets or replaces a pin
///
/// It decides for jobs that have not started. Workers know it within some seconds. The tool API is asked whether there is such
/// a version.
#[utoipa::path(
    put, path = "/v1/pins/{toolkit}", operation_id = "setPin", security(("bearer" = ["manage"])),
    params(("toolkit" = String, Path, description = "The toolkit, in lower case.", example = "github"), Whose, Unchecked),
    request_body(content = inline(Version), content_type = "application/json",
        example = json!({"version": "20251027_00"})),
    responses((status = 200, description = "The pin.", body = PinJson), OfAnyRequest, OfItsContent, OfItsBody, OfTheState, OfTheToolApi)
)]
pub(super) async fn set(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(toolkit): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let mut parameters = Parameters::of(&request);
    let owner = whose(manager, &mut parameters)?;
    let force = parameters.one("force", flag)?.unwrap_or(false);
    parameters.end()?;
    let Version { version } = optional_json(request).await?;
    let bad = |what: &str| Problem::new(Kind::BadRequest, what);
    if !is_slug(&toolkit) || toolkit.len() > MAX_TOOLKIT_BYTES {
        return Err(bad("toolkits are spelt in lower case, such as github"));
    }
    let Ok(WantedVersion::Exact(version)) = wanted(version.as_deref()) else {
        return Err(bad("`version` must be a version such as 20251027_00"));
    };
    if let Some(api) = &shared.parts.tool_api
        && !force
        && let Pinnable::No(why) = pinnable(api, &toolkit, version).await?
    {
        return Err(Problem::new(Kind::WrongState, format!("{why}; `force=true` pins it all the same")));
    }
    let pins = shared.parts.store.pins_of(manager).await?;
    let own: Vec<_> = pins.iter().filter(|pin| pin.owner == owner).collect();
    if own.len() >= MAX_PINS && own.iter().all(|pin| pin.toolkit != toolkit) {
        let detail = format!("there are {MAX_PINS} pins of this owner; remove one first");
        return Err(Problem::new(Kind::WrongState, detail));
    }
    let pin = Pin { owner, toolkit, version: version.to_owned() };
    shared.parts.store.set_pin(manager, &pin, caller.decider()).await?;
    Ok(Json(PinJson::of(&pin)).into_response())
}

/// The longest name of a toolkit.
const MAX_TOOLKIT_BYTES: usize = 128;

/// Removes a pin
#[utoipa::path(
    delete, path = "/v1/pins/{toolkit}", operation_id = "removePin", security(("bearer" = ["manage"])),
    params(("toolkit" = String, Path, description = "The toolkit, in lower case.", example = "github"), Whose),
    responses((status = 204, description = "It is not pinned any more."), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn remove(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(toolkit): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let mut parameters = Parameters::of(&request);
    let owner = whose(manager, &mut parameters)?;
    parameters.end()?;
    // No database keeps a NUL, and no toolkit has one.
    if is_slug(&toolkit)
        && shared.parts.store.unset_pin(manager, owner.as_ref(), &toolkit, caller.decider()).await?
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Err(Problem::new(Kind::NotFound, "this toolkit is not pinned for this owner"))
}
