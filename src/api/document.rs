//! The description of the API as an OpenAPI document, made at start of what stands beside each handler.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    handler::Handler,
    http::header,
    middleware::from_fn_with_state,
    response::IntoResponse,
    routing::{MethodFilter, on},
};
use serde_json::Value;
use utoipa::{
    Path, ToSchema,
    openapi::{
        ComponentsBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApiBuilder, PathsBuilder, RefOr,
        Schema, ServerBuilder,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    actions::ActionPage,
    audit_log::ChangePage,
    batches::{BatchPage, ItemPage},
    callbacks::{CallbackPage, DeliveryPage, Recovered},
    caller,
    described::{BatchOrId, Envelope, JobOrDryRun, JobOrId, OfTheDescription},
    desk::{AccountList, WorkerList},
    docs_page,
    dry_run::DryRun,
    events::EventPage,
    jobs::{AttemptList, HistoryList, JobPage},
    keys::KeyPage,
    pins::PinList,
    problem::{FieldError, Problem},
    queues::{QueueList, QueueState, Stats},
    rejected::{RejectedPage, RequeuedAs},
    shared::{Description, Shared},
    tokens::TokenJson,
};
use crate::{
    access::{KeyJson, Scope},
    actions::ActionJson,
    desk_json::{CallbackSecretJson, ToolJson},
    job_json::{ASKED_FOR, Job},
    rejected::WholeRejectedJson,
};

/// The name of the security scheme. With it, each operation names the scopes that a key needs, as roles.
const BEARER: &str = "bearer";

/// The name of the security scheme of tokens.
const TOKEN: &str = "token";

/// What an operation needs that names nothing. None may do that.
const NO_SCOPES: [&str; 0] = [];

/// The published schema of what apps send, over AMQP as over HTTP.
const ENVELOPE: &str = include_str!("../../docs/envelope.schema.json");

/// Routes of which each has its description.
pub(super) struct DescribedRoutes {
    pub(super) router: Router<Shared>,
    pub(super) paths: PathsBuilder,
}

impl DescribedRoutes {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), paths: PathsBuilder::new() }
    }

    /// Adds a route by its description, which `#[utoipa::path]` names `__path_` and the handler. Whoever has not all the
    /// scopes that the description names does not reach the handler.
    ///
    /// # Panics
    /// The description names no scopes, nor that no key is needed (`security(())`). Every start makes all routes.
    pub(super) fn route<P: Path, H: Handler<T, Shared>, T: 'static>(
        self,
        _description: P,
        handler: H,
    ) -> Self {
        let Self { mut router, paths } = self;
        let needed = needed_scopes::<P>();
        for method in P::methods() {
            let guard = from_fn_with_state(needed.clone(), caller::require);
            router = router.route(&P::path(), on(filter(&method), handler.clone()).route_layer(guard));
        }
        Self { router, paths: paths.path_from::<P>() }
    }
}

/// The scopes that a description names.
fn needed_scopes<P: Path>() -> Arc<[Scope]> {
    let said = serde_json::to_value(P::operation().security).unwrap_or_default();
    let Some(needs) = said.get(0) else { panic!("{} does not say which scopes it needs", P::path()) };
    let words = needs.get(BEARER).and_then(Value::as_array).into_iter().flatten();
    let scope = |word: &Value| match word.as_str().unwrap_or_default().parse() {
        Ok(scope) => scope,
        Err(_) => panic!("{} needs {word}, which is no scope", P::path()),
    };
    words.map(scope).collect()
}

fn filter(method: &HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}

impl Description {
    /// Of an API that is reached at `base`, such as `http://127.0.0.1:8080`.
    pub(super) fn new(paths: PathsBuilder, base: &str) -> io::Result<Self> {
        let document = document(paths)?;
        let page = docs_page::render(&document, base).map_err(io::Error::other)?.into();
        Ok(Self { document: serde_json::to_vec(&document)?.into(), page })
    }
}

fn document(paths: PathsBuilder) -> serde_json::Result<Value> {
    let info = InfoBuilder::new()
        .title("errand")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Enqueue jobs, wait for them, read and list them, and decide about them. What each status means, and what is \
             promised, is in `docs/http-api.md`.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()));
    let mut schemas = Vec::new();
    // The page brings the jobs in it along.
    add::<Job>(&mut schemas);
    add::<JobPage>(&mut schemas);
    add::<AttemptList>(&mut schemas);
    add::<HistoryList>(&mut schemas);
    add::<JobOrId>(&mut schemas);
    add::<JobOrDryRun>(&mut schemas);
    add::<DryRun<'static>>(&mut schemas);
    add::<BatchPage>(&mut schemas);
    add::<BatchOrId>(&mut schemas);
    add::<ItemPage>(&mut schemas);
    add::<FieldError>(&mut schemas);
    add::<KeyJson<'static>>(&mut schemas);
    add::<KeyPage>(&mut schemas);
    add::<ActionJson<'static>>(&mut schemas);
    add::<ActionPage<'static>>(&mut schemas);
    add::<AccountList<'static>>(&mut schemas);
    add::<PinList<'static>>(&mut schemas);
    add::<RejectedPage<'static>>(&mut schemas);
    add::<WholeRejectedJson<'static>>(&mut schemas);
    add::<RequeuedAs>(&mut schemas);
    add::<ToolJson<'static>>(&mut schemas);
    add::<WorkerList<'static>>(&mut schemas);
    add::<QueueList>(&mut schemas);
    add::<QueueState>(&mut schemas);
    add::<Stats>(&mut schemas);
    add::<ChangePage>(&mut schemas);
    add::<EventPage<'static>>(&mut schemas);
    add_callbacks(&mut schemas);
    add::<TokenJson>(&mut schemas);
    add::<Problem>(&mut schemas);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "An access key. An operation names the scopes that it needs, as roles. None is needed as long as there is none, on \
             loopback.",
        ));
    let token = "A token of `POST /v1/tokens`, for web pages, whose event sources can send no header.";
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme(BEARER, SecurityScheme::Http(bearer.build()))
        .security_scheme(
            TOKEN,
            SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description(TOKEN, token))),
        );
    let api = OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([ServerBuilder::new().url("/").build()]))
        .security(Some([SecurityRequirement::new(BEARER, NO_SCOPES)]))
        .paths(paths.build())
        .components(Some(components.build()))
        .build();
    let mut document = serde_json::to_value(api)?;
    let schemas = &mut document["components"]["schemas"];
    for schema in schemas.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        require_every_key(schema);
    }
    // It is included as it is: a copy would differ from it one day.
    schemas[&*Envelope::name()] = serde_json::from_str(ENVELOPE)?;
    Ok(document)
}

fn add_callbacks(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    add::<CallbackPage<'static>>(schemas);
    add::<DeliveryPage<'static>>(schemas);
    add::<Recovered>(schemas);
    add::<CallbackSecretJson<'static>>(schemas);
}

/// Adds a schema and those that it names.
fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

/// In what errand answers every key is there, `null` where nothing is known, but for what is to be asked for.
fn require_every_key(schema: &mut Value) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let always = properties.iter().filter(|(_, property)| property.get(ASKED_FOR).is_none());
        schema["required"] = always.map(|(key, _)| key.clone()).collect::<Vec<_>>().into();
    }
    for parts in ["allOf", "oneOf"] {
        for part in schema.get_mut(parts).and_then(Value::as_array_mut).into_iter().flatten() {
            require_every_key(part);
        }
    }
}

/// This description, as an OpenAPI document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openApi", security(()),
    responses((status = 200, description = "The document.", body = Object), OfTheDescription)
)]
pub(super) async fn openapi(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], shared.description.document.clone())
}

/// This description, as a page to read
#[utoipa::path(
    get, path = "/docs", operation_id = "docs", security(()),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"), OfTheDescription)
)]
pub(super) async fn docs(State(shared): State<Shared>) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, docs_page::POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, shared.description.page.clone())
}
