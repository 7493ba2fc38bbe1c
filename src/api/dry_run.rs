//! What would become of a job, found out without storing it.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    problem::{Kind, Problem},
    shared::Shared,
};
use crate::{
    job::{
        Binding, EXPIRED, Effect, ErrorKind, HeldReason, JobError, JobId, JobSpec, NotReady, Owner, PinnedBy,
        Stop,
    },
    store::Inserted,
    string_enum::string_enum,
    tool::arguments::ArgumentProblem,
};

string_enum! {
    Would {
        /// A worker would call the tool as soon as it has room.
        Run = "run",
        /// The same at its `run_at`.
        Schedule = "schedule",
        /// It would be parked, for `held_reason`.
        Hold = "hold",
        /// It would fail without a call.
        Fail = "fail",
        /// It would wait for the tool API, which does not answer now, so that no more can be said.
        Wait = "wait",
        /// Nothing would be done: it is a job that is there already, with this `id` or idempotency key.
        Repeat = "repeat",
    }
}

/// The names are an interface. Every key is always there.
#[derive(Serialize, ToSchema)]
pub(super) struct DryRun<'a> {
    would: Would,
    id: Option<JobId>,
    owner: &'a Owner,
    tool: &'a str,
    run_at: Option<Timestamp>,
    toolkit: Option<String>,
    version: Option<String>,
    pinned_by: Option<PinnedBy>,
    connected_account_id: Option<String>,
    effect: Option<Effect>,
    held_reason: Option<HeldReason>,
    problems: Vec<DryRunProblem>,
}

/// One reason why a job would not run, or would be answered with an error.
#[derive(Serialize, ToSchema)]
struct DryRunProblem {
    #[serde(flatten)]
    error: JobError,
    /// The place in `arguments`, as a JSON pointer, where the problem is there.
    pointer: Option<String>,
}

impl From<JobError> for DryRunProblem {
    fn from(error: JobError) -> Self {
        Self { error, pointer: None }
    }
}

impl From<ArgumentProblem> for DryRunProblem {
    fn from(problem: ArgumentProblem) -> Self {
        let error = JobError::new(ErrorKind::InvalidArguments, problem.message);
        Self { error, pointer: Some(problem.pointer) }
    }
}

/// The answer about a job that was decoded. A job that would be refused is refused in the same way.
pub(super) async fn dry_run(shared: &Shared, spec: &JobSpec) -> Result<Response, Problem> {
    let Some(resolver) = &shared.parts.resolver else {
        let detail = "dry runs need the tool API; start this process with COMPOSIO_API_KEY";
        return Err(Problem::new(Kind::NoToolApi, detail));
    };
    let now = shared.parts.clock.now();
    shared.parts.admission.check(spec, now)?;
    let mut answer = DryRun {
        would: if spec.run_at.is_some_and(|at| at > now) { Would::Schedule } else { Would::Run },
        id: spec.is_named.then_some(spec.id),
        owner: &spec.owner,
        tool: &spec.tool,
        run_at: spec.run_at,
        toolkit: None,
        version: None,
        pinned_by: None,
        connected_account_id: None,
        effect: None,
        held_reason: None,
        problems: Vec::new(),
    };
    match shared.parts.store.known(spec).await? {
        Some(Inserted::Conflict(conflict)) => return Err(conflict.into()),
        Some(Inserted::Duplicate(first)) => {
            answer.would = Would::Repeat;
            answer.id = Some(first.id);
            return Ok(Json(answer).into_response());
        }
        Some(Inserted::New(_)) | None => {}
    }
    if spec.expires_at.is_some_and(|at| at <= now) {
        answer.would = Would::Fail;
        answer.problems.push(JobError::new(ErrorKind::Expired, EXPIRED).into());
        return Ok(Json(answer).into_response());
    }
    resolver.load_pins(&shared.parts.store).await?;
    let mut unfit = Vec::new();
    let decided = resolver.decide_and_tell(spec, Instant::now(), &mut unfit).await;
    answer.problems.extend(unfit.into_iter().map(DryRunProblem::from));
    match decided {
        Ok(Binding { toolkit, version, pinned_by, account, effect }) => {
            (answer.toolkit, answer.version, answer.pinned_by) =
                (Some(toolkit), Some(version), Some(pinned_by));
            (answer.connected_account_id, answer.effect) = (account, Some(effect));
        }
        Err(not_ready) => {
            // What is wrong with the arguments stands there already, place by place.
            if not_ready.error().kind() != ErrorKind::InvalidArguments {
                answer.problems.push(not_ready.error().clone().into());
            }
            (answer.would, answer.held_reason) = match &not_ready {
                NotReady::Wait { .. } => (Would::Wait, None),
                NotReady::Stop(Stop::Fail { .. }) => (Would::Fail, None),
                NotReady::Stop(stop) => (Would::Hold, stop.held_reason()),
            };
        }
    }
    Ok(Json(answer).into_response())
}
