//! `errand jobs show`: all that is known of one job.

use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};

use super::told::{ToldAttempt, ToldData, ToldJob, state};
use crate::{
    cli::{
        exit::{self, Exit},
        output::{self, Format},
        server::{Call, Server},
        setup::Setup,
        waiting,
    },
    job::{JobError, JobId, PinnedBy, Principal},
    job_json::{Fields, KnownJob},
    store::{HistoryEntry, JobView, SharedStore},
};

pub(super) async fn show(id: JobId, arguments: bool, format: Format, setup: &Setup) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        return show_of(server, id, arguments, format).await;
    }
    let store = setup.store()?;
    let Some(job) = KnownJob::find(&store, &Principal::Operator, id).await? else {
        return Err(exit::negative(match store.rejected_as(&Principal::Operator, id).await? {
            Some(message) => {
                format!(
                    "there is no job {id}: its message was rejected; see `errand rejected show {message}`"
                )
            }
            None => unknown(id),
        }));
    };
    let json = to_raw_value(&job.json(if arguments { Fields::INPUT } else { Fields::NONE }))?;
    print_with(&store, &json, format, setup).await?;
    store.close().await;
    Ok(Exit::Success)
}

async fn show_of(server: &Server, id: JobId, arguments: bool, format: Format) -> anyhow::Result<Exit> {
    let fields = arguments.then_some("arguments,text");
    let json =
        server.ask::<Box<RawValue>>(Call::get(format!("/v1/jobs/{id}")).with("fields", fields)).await?;
    print(&json, Timestamp::now(), None, format)?;
    Ok(Exit::Success)
}

/// What is said of a job that is not in the database, where an app's message may still be on its way.
fn unknown(id: JobId) -> String {
    format!(
        "there is no job {id} in the database: it was removed after its retention, or no worker has taken its message \
         yet; `errand queues` shows how many messages wait in the broker"
    )
}

/// Prints a job of the database with its attempts, its history and its result.
pub(in crate::cli) async fn print_view(
    store: &SharedStore,
    job: JobView,
    format: Format,
    setup: &Setup,
) -> anyhow::Result<()> {
    let known = KnownJob::of(store, &Principal::Operator, job).await?;
    print_with(store, &to_raw_value(&known.json(Fields::NONE))?, format, setup).await
}

async fn print_with(
    store: &SharedStore,
    json: &RawValue,
    format: Format,
    setup: &Setup,
) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let now = store.now().await?;
    let why = waiting::why(&ToldJob::of(json.get())?, now, store, setup).await;
    print(json, now, why, format)
}

/// Prints a job as it is told, at this time, and for what it waits.
pub(in crate::cli) fn print(
    json: &RawValue,
    now: Timestamp,
    why: Option<String>,
    format: Format,
) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let job = ToldJob::of(json.get())?;
    let data: ToldData<'_> = serde_json::from_str(json.get())?;
    let mut times = times(&job);
    times.extend(waiting::lines(&job, now));
    times.push(("waits for", why));
    output::print_fields(&fields(&job, &data, times))?;
    if data.arguments.is_some() || data.text.is_some() {
        let arguments = data.arguments.map(|arguments| arguments.get().to_owned());
        output::print("\n")?;
        output::print_fields(&[("arguments", arguments), ("text", data.text)])?;
    }
    if !job.more.attempts.is_empty() {
        output::print("\n")?;
        let rows = job.more.attempts.iter().map(attempt_row).collect();
        let header =
            ["ATTEMPT", "OUTCOME", "HTTP", "VERSION", "STARTED", "FINISHED", "LOG ID", "REQUEST ID", "ERROR"];
        output::print_table(&header, rows)?;
    }
    if !job.more.history.is_empty() {
        output::print("\n")?;
        let rows = job.more.history.iter().map(history_row).collect();
        output::print_table(&["AT", "KIND", "WHAT", "ATTEMPT", "BY"], rows)?;
    }
    Ok(())
}

type Field = (&'static str, Option<String>);

fn fields(job: &ToldJob, data: &ToldData<'_>, times: Vec<Field>) -> Vec<Field> {
    let summary = &job.summary;
    let version = match (&job.more.version, &job.more.toolkit, job.more.pinned_by) {
        (Some(version), Some(toolkit), Some(by)) => Some(format!("{version} of {toolkit}, {}", pinned(by))),
        (_, toolkit, _) => toolkit.as_ref().map(|toolkit| format!("not decided, of {toolkit}")),
    };
    let worker = job.more.worker.as_ref().map(|worker| match &worker.name {
        Some(name) => format!("{name} ({})", worker.id),
        None => worker.id.clone(),
    });
    let tags =
        job.more.tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    let queue = match job.more.queue_paused_since {
        Some(since) => format!("{}, paused since {}", summary.queue, output::moment(since)),
        None => summary.queue.clone(),
    };
    let mut fields = vec![
        ("job", Some(summary.id.clone())),
        ("known as", (!job.more.known_as.is_empty()).then(|| job.more.known_as.join(" "))),
        ("state", Some(state(summary))),
        ("owner", Some(summary.owner.to_string())),
        ("requested by", job.more.requested_by.clone()),
        ("tool", Some(summary.tool.clone())),
        ("version", version),
        ("effect", job.more.effect.clone().or_else(|| job.more.asked_effect.clone())),
        ("account", job.more.connected_account_id.clone()),
        ("queue", Some(queue)),
        ("priority", (job.more.priority != 0).then(|| job.more.priority.to_string())),
        ("tags", (!tags.is_empty()).then_some(tags)),
        ("key", job.more.idempotency_key.clone()),
    ];
    fields.extend(times);
    fields.extend([
        ("started", job.more.started_at.map(output::moment)),
        ("finished", job.more.finished_at.map(output::moment)),
        ("worker", worker),
        ("attempts", Some(attempts(job))),
        ("log ID", job.more.log_id.clone()),
        ("error", job.error().map(error)),
        ("result", data.result.map(|result| result.get().to_owned())),
    ]);
    fields
}

/// When it may run; since when it waits is told elsewhere.
fn times(job: &ToldJob) -> Vec<Field> {
    vec![
        ("created", Some(output::moment(job.summary.created_at))),
        ("run at", job.more.run_at.map(output::moment)),
        ("expires", job.more.expires_at.map(output::moment)),
        ("timeout", job.more.timeout_ms.map(|timeout| format!("{timeout} ms"))),
    ]
}

fn attempts(job: &ToldJob) -> String {
    let most = job.more.max_attempts.map(|most| format!(" of {most}")).unwrap_or_default();
    format!("{}, budget used: {}{most}", job.summary.attempt, job.more.spent)
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

fn attempt_row(attempt: &ToldAttempt) -> Vec<String> {
    vec![
        attempt.number.to_string(),
        match &attempt.outcome {
            None => "running".to_owned(),
            Some(outcome) if attempt.times > 1 => format!("{outcome}, {} times", attempt.times),
            Some(outcome) => outcome.clone(),
        },
        attempt.http_status.map(|status| status.to_string()).unwrap_or_default(),
        attempt.version.clone().unwrap_or_default(),
        output::moment(attempt.started_at),
        attempt.finished_at.map(output::moment).unwrap_or_default(),
        attempt.log_id.clone().unwrap_or_default(),
        attempt.request_id.clone(),
        attempt.error_kind.map(|kind| kind.to_string()).unwrap_or_default(),
    ]
}

fn error(error: &JobError) -> String {
    let code = error.code().map(|code| format!(" code {code}")).unwrap_or_default();
    let slug = error.slug().map(|slug| format!(" {slug}")).unwrap_or_default();
    format!("{}: {}{slug}{code}", error.kind(), error.message())
}
