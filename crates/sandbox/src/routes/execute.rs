//! Executing a tool: the one route that has effects.
//!
//! A call is counted first, then goes wrong as far as a fault wants it to before the effect, then
//! has its effect, which is recorded in the ledger and the log, and then goes wrong as far as a
//! fault wants it to after that. The client's presence makes no difference once the call is on its
//! way: a server does not notice that nobody waits any more.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderName},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    answer::{Done, Failure, deprecation},
    extract::{Raw, Segment, parse},
    fault_response,
    middleware::Call,
};
use crate::{
    accounts::{Chosen, Wanted},
    error::ApiError,
    fault::{Fault, Subject, WAIT_MAX_MS},
    ledger::Entry,
    listener::Cut,
    logs::{LOG_PAYLOAD_MAX, Log},
    seeded::{fingerprint, token},
    state::Shared,
    world::{
        Effect, MissingArgument, MissingUser, Tool, UnknownVersion, Version,
        template::{Arguments, Facts},
    },
};

const JOB_ID: HeaderName = HeaderName::from_static("x-errand-job-id");

/// A longer job ID counts as none.
const JOB_ID_MAX: usize = 256;

pub(super) async fn execute(
    State(state): State<Shared>,
    Extension(call): Extension<Call>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    Segment(slug): Segment,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, ApiError> {
    let job = job_id(&headers);
    let identity = state.ledger.call(&call.request_id, call.chosen, job.as_deref());
    if !call.may_execute {
        return Err(ApiError::key_may_not_execute());
    }
    let request = ExecuteRequest::read(&body)?;
    let subject = Subject {
        seed: state.seed,
        tool: &slug,
        user: request.user().unwrap_or(""),
        identity: identity.fingerprint,
        ordinal: identity.ordinal,
    };
    let plan = state.faults.plan(&subject);
    let received = state.now();
    let attempt = Attempt { state, call, cut, slug, job, request, received };
    if plan.latency.is_zero() {
        return attempt.run(plan.fault).await;
    }
    let latency = plan.latency;
    let stopped = attempt.state.stopped.clone();
    // A task of its own goes on when the client leaves; only stopping the sandbox ends it.
    let slow = tokio::spawn(async move {
        stopped
            .run_until_cancelled_owned(async move {
                tokio::time::sleep(latency).await;
                attempt.run(plan.fault).await
            })
            .await
    });
    match slow.await {
        Ok(Some(answer)) => answer,
        Ok(None) | Err(_) => Err(ApiError::fault(503)),
    }
}

#[derive(Debug, Deserialize)]
struct ExecuteRequest {
    user_id: Option<String>,
    entity_id: Option<String>,
    connected_account_id: Option<String>,
    arguments: Option<Box<RawValue>>,
    text: Option<String>,
    version: Option<String>,
    custom_connection_data: Option<CustomConnection>,
}

/// Credentials that come with the call itself. Their content does not matter here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CustomConnection {
    #[serde(rename = "authScheme")]
    _auth_scheme: String,
    toolkit_slug: String,
}

impl ExecuteRequest {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = parse(body)?;
        if request.text.is_some() && request.arguments.is_some() {
            return Err(ApiError::invalid_fields(
                "Invalid request body",
                vec!["text and arguments are mutually exclusive".to_owned()],
            ));
        }
        if request.arguments.as_ref().is_some_and(|arguments| !arguments.get().starts_with('{')) {
            return Err(ApiError::invalid_fields(
                "Invalid request body",
                vec!["arguments: expected an object".to_owned()],
            ));
        }
        Ok(request)
    }

    /// The user, under its current or its old name.
    fn user(&self) -> Option<&str> {
        let given = |id: &&str| !id.is_empty();
        self.user_id.as_deref().filter(given).or(self.entity_id.as_deref().filter(given))
    }
}

/// One call on its way.
struct Attempt {
    state: Shared,
    call: Call,
    cut: Cut,
    slug: String,
    job: Option<Arc<str>>,
    request: ExecuteRequest,
    received: Timestamp,
}

impl Attempt {
    async fn run(self, fault: Option<Fault>) -> Result<Response, ApiError> {
        match fault {
            Some(Fault::Throttle { retry_after, edge }) => {
                let standing = self.state.limiter.untouched(self.state.now());
                Ok(fault_response::throttle(&standing, retry_after, edge))
            }
            Some(Fault::Status { status, body, headers, after_effect }) => {
                if after_effect {
                    self.perform(None)?;
                }
                Ok(fault_response::status(status, body, headers, &self.call.request_id))
            }
            Some(Fault::Hang { after_effect, ms }) => {
                if after_effect {
                    self.perform(None)?;
                }
                let wait = Duration::from_millis(ms.unwrap_or(WAIT_MAX_MS));
                self.state.stopped.run_until_cancelled(tokio::time::sleep(wait)).await;
                Ok(self.cut())
            }
            Some(Fault::Reset { after_effect }) => {
                if after_effect {
                    self.perform(None)?;
                }
                Ok(self.cut())
            }
            Some(Fault::Provider { status, message, legacy }) => {
                Ok(self.perform(Some(Failure::of_provider(status, message, legacy)))?.respond())
            }
            Some(Fault::Malformed(how)) => Ok(self.perform(None)?.respond_malformed(how)),
            Some(Fault::Large { bytes }) => Ok(self.perform(None)?.respond_large(bytes)),
            None => Ok(self.perform(None)?.respond()),
        }
    }

    /// Resolves and runs the call. Whatever is returned as `Err` had no effect.
    fn perform(&self, failure: Option<Failure>) -> Result<Done, ApiError> {
        let world = &self.state.world;
        let (tool, version) = self.tool()?;
        let chosen = self.account(tool)?;

        let all_arguments = self.request.arguments.as_deref().map_or("{}", RawValue::get);
        let arguments: Arguments<'_> = serde_json::from_str(all_arguments)
            .map_err(|e| ApiError::invalid_fields("Invalid request body", vec![e.to_string()]))?;
        let failure = match self.missing(tool, &arguments) {
            missing if missing.is_empty() => failure,
            missing => match world.behaviour.missing_argument {
                MissingArgument::ToolFailure => Some(Failure::of_missing(&missing)),
                MissingArgument::BadRequest => {
                    let errors = missing.iter().map(|name| format!("{name}: required")).collect();
                    return Err(ApiError::invalid_fields("Invalid request data provided", errors));
                }
            },
        };

        let account = chosen.as_ref().map(|chosen| Arc::clone(&chosen.account));
        let user = self.request.user().unwrap_or("");
        let unique = self.state.unique();
        let now = self.state.now();
        let mut data = Vec::with_capacity(256);
        match &failure {
            Some(failure) if failure.legacy || world.behaviour.legacy_failures => data.extend(b"{}"),
            Some(failure) => data.extend(failure.data().as_bytes()),
            None => {
                let stable = match tool.result.uses_stable() {
                    true => fingerprint(&tool.slug) ^ fingerprint(all_arguments),
                    false => 0,
                };
                let facts = Facts {
                    arguments: &arguments,
                    all_arguments,
                    user,
                    account: account.as_deref().unwrap_or(""),
                    version: &version.version,
                    now,
                    unique,
                    stable: stable as u64,
                };
                tool.result.render(&facts, &mut data);
            }
        }
        let done = Done {
            data,
            http_status: failure.as_ref().map_or(Some(200), |failure| failure.status),
            error: failure.map(|failure| failure.message),
            log_id: format!("log_{}", token(unique)).into(),
            deprecation: deprecation(&tool.toolkit, version),
        };
        self.record(tool, version, chosen, &done);
        Ok(done)
    }

    /// The tool at the version that the call asks for.
    fn tool(&self) -> Result<(&Arc<Tool>, &Version), ApiError> {
        let asked = self.request.version.as_deref().filter(|version| !version.is_empty());
        let asked = asked.unwrap_or(self.call.api.default_version());
        let not_found = || ApiError::tool_not_found(&self.slug, asked);
        let tool = self.state.world.tools.get(&self.slug).ok_or_else(not_found)?;
        let version =
            tool.toolkit.version(asked).ok_or_else(|| match self.state.world.behaviour.unknown_version {
                UnknownVersion::NotFound => not_found(),
                UnknownVersion::BadRequest => ApiError::bad_version(asked),
            })?;
        if !tool.exists_at(&version.version) {
            return Err(not_found());
        }
        if tool.removed {
            return Err(ApiError::tool_removed(&tool.slug));
        }
        Ok((tool, version))
    }

    fn account(&self, tool: &Tool) -> Result<Option<Chosen>, ApiError> {
        let brings_its_own = self
            .request
            .custom_connection_data
            .as_ref()
            .is_some_and(|custom| *custom.toolkit_slug == *tool.toolkit.slug);
        if tool.no_auth || brings_its_own {
            return Ok(None);
        }
        let account = self.request.connected_account_id.as_deref().filter(|id| !id.is_empty());
        let mut user = self.request.user();
        if user.is_none()
            && account.is_none()
            && self.state.world.behaviour.missing_user == MissingUser::Default
        {
            user = Some("default");
        }
        let wanted = Wanted { user, account };
        self.state.accounts.choose(&self.state.world.behaviour, tool, &wanted, self.state.now()).map(Some)
    }

    /// The required parameters that have no value. A request in words is taken to name them all.
    fn missing<'a>(&self, tool: &'a Tool, arguments: &Arguments<'_>) -> Vec<&'a str> {
        if self.request.text.is_some() {
            return Vec::new();
        }
        let absent = |name: &&str| arguments.get(*name).is_none_or(|value| value.get() == "null");
        tool.required.keys().map(String::as_str).filter(absent).collect()
    }

    fn record(&self, tool: &Arc<Tool>, version: &Version, chosen: Option<Chosen>, done: &Done) {
        // A log that ended in the future would be invisible to a client that searches at once.
        let ended = self.state.clock.now();
        let user: Arc<str> = self.request.user().unwrap_or("").into();
        let (account, auth_config) = match chosen {
            Some(chosen) => (Some(chosen.account), Some(chosen.auth_config)),
            None => (None, None),
        };
        if done.error.is_none() {
            self.state.ledger.effect(Entry {
                number: 0,
                at: ended,
                tool: Arc::clone(&tool.slug),
                version: Arc::clone(&version.version),
                effect: tool.effect,
                read_only: tool.effect == Effect::Safe,
                user: Arc::clone(&user),
                account: account.clone(),
                request_id: Arc::clone(&self.call.request_id),
                job: self.job.clone(),
            });
        }
        let arguments = self.request.arguments.as_deref().map_or("{}", RawValue::get);
        self.state.logs.add(Log {
            id: Arc::clone(&done.log_id),
            request_id: Arc::clone(&self.call.request_id),
            tool: Arc::clone(tool),
            version: Arc::clone(&version.version),
            user,
            account,
            auth_config,
            successful: done.error.is_none(),
            http_status: done.http_status,
            error: done.error.clone(),
            started: self.received,
            ended,
            visible_from: ended,
            request: (arguments.len() <= LOG_PAYLOAD_MAX).then(|| arguments.into()),
            response: (done.data.len() <= LOG_PAYLOAD_MAX).then(|| Bytes::copy_from_slice(&done.data)),
            has_data: true,
        });
    }

    /// Ends the connection without an answer. What is returned here is never written.
    fn cut(&self) -> Response {
        self.cut.now();
        Response::new(Body::empty())
    }
}

fn job_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let id = headers.get(JOB_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= JOB_ID_MAX).then(|| id.into())
}
