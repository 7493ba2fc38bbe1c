//! The HTTP surface: which path leads where.

mod accounts;
mod answer;
mod auth_configs;
mod control;
mod execute;
mod extract;
mod fault_response;
mod fields;
mod logs;
mod middleware;
mod not_modelled;
mod render;
mod toolkits;
mod tools;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{get, patch, post},
};

use self::{
    extract::BODY_MAX,
    middleware::{ApiVersion, Context, admit},
};
use crate::{error::ApiError, state::Shared};

pub(super) fn router(state: Shared) -> Router {
    let api = |version| {
        let context = Context { state: Shared::clone(&state), version };
        api_routes().layer(DefaultBodyLimit::max(BODY_MAX)).layer(from_fn_with_state(context, admit))
    };
    let control = control::routes().layer(map_response(render_plainly));
    Router::new()
        .nest("/api/v3", api(ApiVersion::V3))
        .nest("/api/v3.1", api(ApiVersion::V31))
        .nest("/_sandbox", control)
        .fallback(async || ApiError::no_such_route().render(""))
        .with_state(Shared::clone(&state))
}

fn api_routes() -> Router<Shared> {
    Router::new()
        .route("/tools", get(tools::list))
        .route("/tools/enum", get(tools::slugs))
        .route("/tools/{slug}", get(tools::get))
        .route("/tools/execute/{slug}", post(execute::execute))
        .route("/toolkits", get(toolkits::list))
        .route("/toolkits/categories", get(toolkits::categories))
        .route("/toolkits/multi", post(toolkits::list_named))
        .route("/toolkits/{slug}", get(toolkits::get))
        .route("/connected_accounts", get(accounts::list).post(accounts::create))
        .route("/connected_accounts/link", post(accounts::link))
        .route(
            "/connected_accounts/{id}",
            get(accounts::get)
                .delete(accounts::delete)
                .patch(async || not_modelled::refuse("changes of connected accounts")),
        )
        .route("/connected_accounts/{id}/status", patch(accounts::set_status))
        .route("/connected_accounts/{id}/refresh", post(accounts::refresh))
        .route("/auth_configs", get(auth_configs::list).post(auth_configs::create))
        .route(
            "/auth_configs/{id}",
            get(auth_configs::get).patch(auth_configs::update).delete(auth_configs::delete),
        )
        .route("/auth_configs/{id}/ENABLED", patch(auth_configs::enable))
        .route("/auth_configs/{id}/DISABLED", patch(auth_configs::disable))
        .route("/logs/tool_execution", post(logs::search))
        .route("/logs/tool_execution/{id}", get(logs::get))
        .route("/internal/action_execution/log/{id}", get(logs::get_internal))
        .merge(not_modelled::routes())
        .fallback(async || ApiError::no_such_route())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

/// Renders errors of routes without that middleware.
async fn render_plainly(response: Response) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) => error.render(""),
        None => response,
    }
}
