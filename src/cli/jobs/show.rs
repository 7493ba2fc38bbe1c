//! `errand jobs show`: all that is known of one job.

use serde_json::value::RawValue;

use crate::{
    cli::{
        context::Context,
        exit::{self, Exit},
        output::{self, Format},
        waiting,
    },
    job::{JobError, JobId, PinnedBy, Principal, State},
    job_json::{self, Fields, KnownJob},
    store::{AttemptView, HistoryEntry, JobView, SharedStore},
};

pub(super) async fn show(
    store: &SharedStore,
    id: JobId,
    arguments: bool,
    format: Format,
    context: &Context,
) -> anyhow::Result<Exit> {
    let job = KnownJob::find(store, &Principal::Operator, id).await?;
    let Some(job) = job else {
        return Err(exit::negative(match store.rejected_as(&Principal::Operator, id).await? {
            Some(message) => {
                format!(
                    "there is no job {id}: its message was rejected; see `errand rejected show {message}`"
                )
            }
            None => unknown(id),
        }));
    };
    print_with(store, &job, arguments, format, context).await?;
    Ok(Exit::Success)
}

/// What is said of a job that is not in the database, where an app's message may still be on its way.
fn unknown(id: JobId) -> String {
    format!(
        "there is no job {id} in the database: it was removed after its retention, or no worker has taken its message \
         yet; `errand queues` shows how many messages wait in the broker"
    )
}

/// Prints a job with its attempts, its history and its result.
pub(in crate::cli) async fn print(
    store: &SharedStore,
    job: JobView,
    format: Format,
    context: &Context,
) -> anyhow::Result<()> {
    print_with(store, &KnownJob::of(store, &Principal::Operator, job).await?, false, format, context).await
}

async fn print_with(
    store: &SharedStore,
    known: &KnownJob,
    arguments: bool,
    format: Format,
    context: &Context,
) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(&known.json(if arguments { Fields::INPUT } else { Fields::NONE }));
    }
    let KnownJob { job, attempts, history, .. } = known;
    let now = store.now().await?;
    let mut times = times(job);
    times.extend(waiting::lines(job, now));
    times.push(("waits for", waiting::why(job, now, store, context).await));
    output::print_fields(&fields(known, times))?;
    if arguments {
        let input = [
            ("arguments", job.spec.arguments.as_deref().map(|arguments| RawValue::get(arguments).to_owned())),
            ("text", job.spec.text.clone()),
        ];
        output::print("\n")?;
        output::print_fields(&input)?;
    }
    if !attempts.is_empty() {
        output::print("\n")?;
        let rows = attempts.iter().map(attempt_row).collect();
        let header =
            ["ATTEMPT", "OUTCOME", "HTTP", "VERSION", "STARTED", "FINISHED", "LOG ID", "REQUEST ID", "ERROR"];
        output::print_table(&header, rows)?;
    }
    if !history.is_empty() {
        output::print("\n")?;
        let rows = history.iter().map(history_row).collect();
        output::print_table(&["AT", "KIND", "WHAT", "ATTEMPT", "BY"], rows)?;
    }
    Ok(())
}

type Field = (&'static str, Option<String>);

fn fields(known: &KnownJob, times: Vec<Field>) -> Vec<Field> {
    let KnownJob { job, history, known_as, worker_name, .. } = known;
    let spec = &job.spec;
    let binding = job.binding.as_ref();
    let version = binding.map(|f| format!("{} of {}, {}", f.version, f.toolkit, pinned(f.pinned_by)));
    let waits_for = || job.toolkit().map(|toolkit| format!("not decided, of {toolkit}"));
    let account = binding.map_or(&spec.connected_account_id, |binding| &binding.account);
    let worker = job.worker.map(|id| match worker_name {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    });
    let mut fields = vec![
        ("job", Some(spec.id.to_string())),
        ("known as", (!known_as.is_empty()).then(|| other_ids(known_as))),
        ("state", Some(state(job))),
        ("owner", Some(spec.owner.to_string())),
        ("requested by", spec.requested_by.clone()),
        ("tool", Some(spec.tool.clone())),
        ("version", version.or_else(waits_for)),
        ("effect", binding.map(|f| f.effect).or(spec.effect).map(|effect| effect.to_string())),
        ("account", account.clone()),
        ("queue", Some(spec.queue.to_string())),
        ("priority", (spec.priority != 0).then(|| spec.priority.to_string())),
        ("tags", (!spec.tags.is_empty()).then(|| tags(job))),
        ("key", spec.idempotency_key.clone()),
    ];
    fields.extend(times);
    fields.extend([
        ("started", job.started_at.map(output::moment)),
        ("finished", job.finished_at.map(output::moment)),
        ("worker", worker),
        ("attempts", Some(attempts(job))),
        ("log ID", job.log_id.clone()),
        ("error", job_json::told_error(job, history).as_deref().map(error)),
        ("result", job.result.as_ref().map(|result| result.get().to_owned())),
    ]);
    fields
}

fn other_ids(known_as: &[JobId]) -> String {
    known_as.iter().map(JobId::to_string).collect::<Vec<_>>().join(" ")
}

/// When it may run; since when it waits is told elsewhere.
fn times(job: &JobView) -> Vec<Field> {
    let spec = &job.spec;
    vec![
        ("created", Some(output::moment(job.created_at))),
        ("run at", spec.run_at.map(output::moment)),
        ("expires", spec.expires_at.map(output::moment)),
        ("timeout", spec.timeout.map(|timeout| format!("{} ms", timeout.as_millis()))),
    ]
}

fn attempts(job: &JobView) -> String {
    let most = job.spec.budget.max_attempts.map(|most| format!(" of {most}")).unwrap_or_default();
    format!("{}, of which {} use up the budget{most}", job.attempt, job.spent)
}

/// Where the version of a job comes from.
pub(in crate::cli) fn pinned(by: PinnedBy) -> String {
    match by {
        PinnedBy::Latest => "not pinned: the newest at that time".to_owned(),
        by => format!("pinned by {}", by.as_str()),
    }
}

fn history_row(entry: &HistoryEntry) -> Vec<String> {
    let (kind, word, detail) = entry.fact.parts();
    let what: Vec<_> = [word, detail].into_iter().flatten().collect();
    vec![
        output::moment(entry.at),
        kind.to_string(),
        what.join(": "),
        entry.attempt.map(|number| number.to_string()).unwrap_or_default(),
        entry.by.clone(),
    ]
}

fn attempt_row(attempt: &AttemptView) -> Vec<String> {
    vec![
        attempt.number.to_string(),
        match attempt.outcome {
            None => "running".to_owned(),
            Some(outcome) if attempt.times > 1 => format!("{outcome}, {} times", attempt.times),
            Some(outcome) => outcome.to_string(),
        },
        attempt.http_status.map(|status| status.to_string()).unwrap_or_default(),
        attempt.version.clone().unwrap_or_default(),
        output::moment(attempt.started_at),
        attempt.finished_at.map(output::moment).unwrap_or_default(),
        attempt.log_id.clone().unwrap_or_default(),
        attempt.request_id.to_string(),
        attempt.error.as_ref().map(|error| error.kind().to_string()).unwrap_or_default(),
    ]
}

pub(super) fn state(job: &JobView) -> String {
    match job.held_reason {
        Some(reason) => format!("{} ({reason})", job.state),
        None if job.cancel_requested && job.state == State::Running => {
            format!("{} (to be cancelled)", job.state)
        }
        None => job.state.to_string(),
    }
}

fn tags(job: &JobView) -> String {
    job.spec.tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn error(error: &JobError) -> String {
    let code = error.code().map(|code| format!(" code {code}")).unwrap_or_default();
    let slug = error.slug().map(|slug| format!(" {slug}")).unwrap_or_default();
    format!("{}: {}{slug}{code}", error.kind(), error.message())
}
