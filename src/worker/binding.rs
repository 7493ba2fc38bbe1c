//! The binding of a claimed job: toolkit version, account and effect, recorded before anything is sent.

use std::time::Duration;

use super::{
    ending::{Stopped, given_back},
    running_job::RunningJob,
    shared::Shared,
};
use crate::{
    job::{Binding, ErrorKind, JobError, NotReady, Stop},
    store::{Bind, StoreError},
};

/// The binding that the job came with; or a new one, or one with a new account, where something was missing.
pub(super) async fn bind(shared: &Shared, job: &mut RunningJob) -> Result<Binding, Stopped> {
    if let Some(binding) = &job.receipt.binding
        && !shared.resolver.lacks_account(&job.spec, binding)
    {
        return Ok(binding.clone());
    }
    if !shared.services.api_status.admits_look_up() {
        return Err(job.policy(shared).api_is_away().into());
    }
    let Some(binding) = shared.unless_interrupted(decide(shared, job)).await else {
        return Err(given_back(Duration::ZERO).into());
    };
    let binding = binding.map_err(|not_ready| job.policy(shared).not_ready(not_ready))?;
    let bind = Bind { id: job.spec.id, fence: job.receipt.fence, binding: binding.clone() };
    match shared.bindings.submit(bind).await {
        Some(Ok(true)) => {
            job.receipt.binding = Some(binding.clone());
            Ok(binding)
        }
        Some(Ok(false)) => Err(Stopped::Fenced),
        Some(Err(error)) => Err(job.policy(shared).not_ready(refused(&error).into()).into()),
        // The store does not take it, or nobody waits any more.
        None => {
            let message =
                "nothing was sent, because the database does not record what was chosen for this job";
            let error = JobError::new(ErrorKind::Internal, message);
            Err(job.policy(shared).not_ready(NotReady::Wait { error, retry_after: None }).into())
        }
    }
}

async fn decide(shared: &Shared, job: &RunningJob) -> Result<Binding, NotReady> {
    let resolver = &shared.resolver;
    match job.receipt.binding.clone() {
        Some(binding) => resolver.decide_account(&job.spec, binding, job.claimed_at).await,
        None => resolver.decide(&job.spec, job.claimed_at).await,
    }
}

fn refused(error: &StoreError) -> Stop {
    let error = JobError::new(
        ErrorKind::Internal,
        format!(
            "nothing was sent, because the version or account that was chosen for this job cannot be recorded: \
             {error}; look at what the tool API says about the tool and the owner's account"
        ),
    );
    Stop::Fail { error }
}
