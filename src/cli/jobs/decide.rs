//! Decisions about named jobs.

use serde_json::json;

use crate::{
    cli::{
        actions::only_retry,
        exit::Exit,
        output::{self, Format},
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

    /// Carries the decision out for one job.
    pub(super) async fn carry_out(
        self,
        store: &SharedStore,
        id: JobId,
        by: &Decider,
    ) -> Result<Decided, StoreError> {
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
    store: &SharedStore,
    ids: &[JobId],
    decision: Decision,
    by: &Decider,
    format: Format,
) -> anyhow::Result<Exit> {
    let mut refused = false;
    for id in ids {
        let (done, state, message) = match decision.carry_out(store, *id, by).await? {
            Decided::Unknown => (false, None, unknown(store, *id).await?),
            decided => told(decided),
        };
        refused |= !done;
        if format.json {
            output::print_json(&json!({"id": id, "done": done, "state": state, "message": message}))?;
        } else {
            output::print_line(format!("{id} {message}"))?;
        }
    }
    Ok(Exit::negative_if(refused))
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
pub(super) fn told(decided: Decided) -> (bool, Option<State>, String) {
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
        (State::Held, _) => format!("unchanged: it is held and cannot {action}; see `errand jobs release`"),
        (_, action) if action == release => {
            format!("unchanged: it is {from}, and only held jobs can {release}")
        }
        _ => format!("unchanged: it is {from} and cannot {action}"),
    }
}
