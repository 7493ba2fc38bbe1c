//! Decisions about named jobs.

use serde::Deserialize;
use serde_json::json;

use crate::{
    cli::{
        actions::only_retry,
        decider::Who,
        exit::{self, Exit},
        output::{self, Format},
        server::{Call, Refused},
        setup::Setup,
    },
    job::{IllegalMove, JobId, Principal, Release, State, Transition},
    store::{ActionDecision, Decided, Decider, Force, SharedStore, StoreError},
};

/// What a person decides about jobs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decision {
    Cancel,
    Retry(Force),
    /// Of named jobs, whatever is forced.
    Release(Release, Force),
}

impl Decision {
    /// What it is as a decision about many jobs, and what it does all the same.
    pub(super) fn of_action(self) -> (ActionDecision, Force) {
        match self {
            Self::Cancel => (ActionDecision::Cancel, Force::default()),
            Self::Retry(force) => (ActionDecision::Retry, force),
            Self::Release(release, force) => (ActionDecision::Release(release), force),
        }
    }

    /// The request to a server that decides so about one job.
    fn call(self, id: JobId) -> serde_json::Result<Call> {
        let call = |verb| Call::post(format!("/v1/jobs/{id}/{verb}"));
        match self {
            Self::Cancel => Ok(call("cancel")),
            Self::Retry(Force { effect, early }) => {
                call("retry").json(&json!({"force": effect, "now": early}))
            }
            Self::Release(how, _) => call("release").json(&json!({"how": how})),
        }
    }

    /// Carries the decision out for one job.
    async fn carry_out(self, store: &SharedStore, id: JobId, by: &Decider) -> Result<Decided, StoreError> {
        match self {
            Self::Cancel => store.cancel(&Principal::Operator, id, by).await,
            Self::Retry(force) => store.restart(&Principal::Operator, id, by, force).await,
            Self::Release(release, _) => store.release(&Principal::Operator, id, release, by).await,
        }
    }
}

/// How careful a decision about many jobs is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Care {
    /// Count the matching jobs by state, effect and last outcome, and change nothing.
    #[arg(long, conflicts_with = "ids")]
    pub(super) dry_run: bool,
    /// Do it without asking for confirmation.
    #[arg(long, conflicts_with_all = ["dry_run", "ids"])]
    pub(super) yes: bool,
}

/// Carries a decision out for each of the named jobs and says what became of it.
pub(super) async fn decide(
    setup: &Setup,
    ids: &[JobId],
    decision: Decision,
    who: &Who,
    format: Format,
) -> anyhow::Result<Exit> {
    let mut refused = false;
    if let Some(server) = &setup.server {
        who.is_the_key()?;
        for id in ids {
            let told = told_by(server.ask(decision.call(*id)?).await)?;
            refused |= !told.0;
            print(*id, told, format)?;
        }
        return Ok(Exit::negative_if(refused));
    }
    let (store, by) = (setup.store()?, who.decider(setup));
    for id in ids {
        let told = match decision.carry_out(&store, *id, &by).await? {
            Decided::Unknown => (false, None, unknown(&store, *id).await?),
            decided => told(decided),
        };
        refused |= !told.0;
        print(*id, told, format)?;
    }
    store.close().await;
    Ok(Exit::negative_if(refused))
}

/// What became of a job.
pub(super) fn print(id: JobId, (done, state, message): Told, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(&json!({"id": id, "done": done, "state": state, "message": message}));
    }
    Ok(output::print_line(format!("{id} {message}"))?)
}

/// A job as a server answers a decision about it; without the scope `read` the answer has only its ID.
#[derive(Deserialize)]
pub(super) struct DecidedJob {
    state: Option<State>,
}

/// What a server answers to a decision. What it refuses is told of the job, and does not keep others from theirs.
pub(super) fn told_by(answer: anyhow::Result<DecidedJob>) -> anyhow::Result<Told> {
    match answer {
        Ok(DecidedJob { state: Some(state) }) => Ok(told(Decided::Now(state))),
        Ok(DecidedJob { state: None }) => Ok((true, None, "is decided about".to_owned())),
        Err(error) => match error.downcast::<Refused>()? {
            refused if exit::of_refusal(&refused) == Exit::Negative && !refused.is("forbidden") => {
                Ok((false, None, format!("unchanged: {}", refused.message)))
            }
            refused => Err(refused.into()),
        },
    }
}

const NO_SUCH_JOB: &str = "there is no such job in the database; a message that no worker has taken yet waits in the broker \
                           (`errand queues`)";

/// What is said of an ID that no job has: which job has it besides its own, if one has. Nothing is done to that before it
/// is named, because there may be more to it.
pub(super) async fn unknown(store: &SharedStore, id: JobId) -> anyhow::Result<String> {
    Ok(match store.job_known_as(&Principal::Operator, id).await? {
        Some(first) => format!("unchanged: it is another ID of the job {first}; name that one"),
        None => format!("unchanged: {NO_SUCH_JOB}"),
    })
}

/// Whether it was done, the state if it is known, and what is said.
pub(super) type Told = (bool, Option<State>, String);

pub(super) fn told(decided: Decided) -> Told {
    let unchanged = |message: &str| (false, None, format!("unchanged: {message}"));
    match decided {
        Decided::Now(state @ State::Running) => {
            let message = "is running; its call is not interrupted, but it will not be repeated";
            (true, Some(state), message.to_owned())
        }
        Decided::Now(state) => (true, Some(state), format!("is {state} now")),
        Decided::Illegal(illegal) => (false, Some(illegal.from), illegal_move(illegal)),
        Decided::MayHaveActed => unchanged(
            "its last call may have had its effect (see `errand jobs show`); to make it again all the same, add --force",
        ),
        Decided::Early => unchanged(
            "it is scheduled for later (see `run at` in `errand jobs show`); to run it now, add --now",
        ),
        Decided::HasNotRun(reason) => {
            (false, Some(State::Held), format!("unchanged: jobs that are {}", only_retry(reason)))
        }
        Decided::Changed => unchanged("it kept changing meanwhile; try again"),
        Decided::Unknown => unchanged(NO_SUCH_JOB),
    }
}

/// Why a decision changed nothing, and what would.
fn illegal_move(IllegalMove { from, action }: IllegalMove) -> String {
    let release = Transition::Release(Release::Retry).action();
    match (from, action) {
        (State::Cancelled, action) if action == Transition::Cancel.action() => {
            "unchanged: it is cancelled already".to_owned()
        }
        (State::Held, _) => {
            format!("unchanged: it is held and cannot {action}; `errand jobs release` lets it go")
        }
        (_, action) if action == release => {
            format!("unchanged: it is {from}, and only held jobs can {release}")
        }
        _ => format!("unchanged: it is {from} and cannot {action}"),
    }
}
